//! From a request in that form to one of this program.

use super::super::answer::take;
use super::super::pictures::data;
use super::prompt::without_loras;
use super::{count, number};
use crate::requests::inpaint::MaskFill;
use crate::serve::board::Asked;
use crate::serve::failure::Failure;
use crate::serve::job::JobKind;
use serde_json::{Map, Value, json};
use tweedie::schedulers;

/// Fields that this program has no use for, with the values at which that changes nothing: whatever else is refused by name.
const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    ("restore_faces", &["false"]),
    ("tiling", &["false"]),
    ("enable_hr", &["false"]),
    ("hr_scale", &["*"]),
    ("hr_upscaler", &["*"]),
    ("hr_second_pass_steps", &["*"]),
    ("hr_resize_x", &["*"]),
    ("hr_resize_y", &["*"]),
    ("hr_checkpoint_name", &["*"]),
    ("hr_sampler_name", &["*"]),
    ("hr_scheduler", &["*"]),
    ("hr_prompt", &["*"]),
    ("hr_negative_prompt", &["*"]),
    ("hr_additional_modules", &["*"]),
    ("hr_cfg", &["*"]),
    ("hr_distilled_cfg", &["*"]),
    ("distilled_cfg_scale", &["*"]),
    ("firstphase_width", &["0"]),
    ("firstphase_height", &["0"]),
    ("subseed", &["*"]),
    ("subseed_strength", &["0", "0.0"]),
    ("seed_resize_from_h", &["-1", "0"]),
    ("seed_resize_from_w", &["-1", "0"]),
    ("seed_enable_extras", &["true", "false"]),
    ("s_min_uncond", &["0", "0.0"]),
    ("s_churn", &["0", "0.0"]),
    ("s_tmax", &["*"]),
    ("s_tmin", &["0", "0.0"]),
    ("s_noise", &["1", "1.0", "0", "0.0"]),
    ("styles", &["[]"]),
    ("comments", &["{}"]),
    ("disable_extra_networks", &["false"]),
    ("refiner_checkpoint", &["\"\"", "\"None\""]),
    ("refiner_switch_at", &["*"]),
    ("script_name", &["\"\"", "\"None\""]),
    ("script_args", &["[]"]),
    ("alwayson_scripts", &["{}"]),
    ("override_settings_restore_afterwards", &["*"]),
    ("do_not_save_samples", &["*"]),
    ("do_not_save_grid", &["*"]),
    ("save_images", &["*"]),
    ("include_init_images", &["*"]),
    ("infotext", &["\"\""]),
    ("force_task_id", &["*"]),
    ("image_cfg_scale", &["0", "1.5", "0.0"]),
    ("initial_noise_multiplier", &["1", "1.0"]),
    ("latent_mask", &[]),
    ("mask_round", &["true"]),
    ("resize_mode", &["0"]),
];

/// Settings of another request that may stand in `override_settings`, besides the model.
const OVERRIDES_WITHOUT_EFFECT: [&str; 4] =
    ["sd_vae", "samples_format", "save_images_add_number", "live_previews_enable"];

/// What drawing starts from under a mask, by that program's numbers.
const FILLS: [MaskFill; 4] = [MaskFill::Surroundings, MaskFill::Original, MaskFill::Noise, MaskFill::Nothing];

/// A request, and what is wanted of its answer.
#[derive(Debug)]
pub struct Read {
    /// What is asked for.
    pub asked: Asked,
    /// Whether the answer has the pictures.
    pub sends_images: bool,
    /// What was sent, for the answer.
    pub parameters: Map<String, Value>,
}

/// Reads a request for pictures, from a picture if `from_picture`.
pub fn read(fields: Map<String, Value>, from_picture: bool, chosen: Option<String>) -> Result<Read, Failure> {
    let mut parameters = fields.clone();
    parameters.shift_remove("init_images");
    parameters.shift_remove("mask");
    let mut fields = fields;
    refuse_what_has_no_effect(&mut fields)?;
    let mut request = Map::new();
    texts(&mut fields, &mut request)?;
    numbers(&mut fields, &mut request)?;
    sampler(&mut fields, &mut request)?;
    let (model, clip_skip) = overrides(&mut fields)?;
    request.extend(clip_skip.map(|skip| ("clip_skip".to_owned(), skip.into())));
    let sends_images = take(&mut fields, "send_images", "true or false")?.unwrap_or(true);
    let mut asked = Asked { model: model.or(chosen), ..Asked::default() };
    if from_picture {
        picture(&mut fields, &mut request, &mut asked)?;
    } else if let Some(strength) = number(&mut fields, "denoising_strength")? {
        // Of a second pass that is not asked for.
        parameters.insert("denoising_strength".into(), strength.into());
    }
    super::super::answer::nothing_else(&fields)?;
    asked.request = request;
    Ok(Read { asked, sends_images, parameters })
}

fn refuse_what_has_no_effect(fields: &mut Map<String, Value>) -> Result<(), Failure> {
    for (name, values) in WITHOUT_EFFECT {
        let Some(value) = fields.shift_remove(*name) else { continue };
        let shown = value.to_string();
        if !values.contains(&"*") && !values.contains(&shown.as_str()) {
            let fix = match values.first() {
                Some(usual) => format!("this program has no such thing; give {usual}, or leave it away"),
                None => "this program has no such thing; leave it away".into(),
            };
            return Err(Failure::field(
                name,
                format!("`{name}` is {}; {fix}", crate::requests::options::shortened(&value)),
            ));
        }
    }
    Ok(())
}

fn texts(fields: &mut Map<String, Value>, request: &mut Map<String, Value>) -> Result<(), Failure> {
    let prompt: String = take(fields, "prompt", "a text")?.unwrap_or_default();
    let (prompt, loras) = without_loras(&prompt);
    request.insert("prompt".into(), prompt.into());
    request.insert("prompt_syntax".into(), "weighted".into());
    if !loras.is_empty() {
        request.insert("loras".into(), loras.into());
    }
    let negative: Option<String> = take(fields, "negative_prompt", "a text")?;
    request.extend(negative.filter(|text| !text.is_empty()).map(|text| ("negative_prompt".to_owned(), text.into())));
    Ok(())
}

fn numbers(fields: &mut Map<String, Value>, request: &mut Map<String, Value>) -> Result<(), Failure> {
    for name in ["steps", "width", "height"] {
        request.extend(count(fields, name)?.map(|value| (name.to_owned(), value.into())));
    }
    request.extend(number(fields, "cfg_scale")?.map(|scale| ("guidance_scale".to_owned(), scale.into())));
    request.extend(number(fields, "eta")?.filter(|&eta| eta != 0.0).map(|eta| ("eta".to_owned(), eta.into())));
    match number(fields, "seed")? {
        Some(seed) if seed < 0.0 => {}
        Some(seed) => {
            fields.insert("seed".into(), seed.into());
            request.extend(count(fields, "seed")?.map(|seed| ("seed".to_owned(), seed.into())));
        }
        None => {}
    }
    let batch = count(fields, "batch_size")?.unwrap_or(1);
    let times = count(fields, "n_iter")?.unwrap_or(1);
    if batch == 0 || times == 0 {
        return Err(Failure::field("batch_size", "`batch_size` and `n_iter` are 0; give at least 1"));
    }
    request.insert("num_images".into(), batch.saturating_mul(times).into());
    request.insert("batch_size".into(), batch.into());
    Ok(())
}

/// The sampler, with how its levels are placed.
fn sampler(fields: &mut Map<String, Value>, request: &mut Map<String, Value>) -> Result<(), Failure> {
    let index: Option<String> = take(fields, "sampler_index", "a text")?;
    let name: Option<String> = take(fields, "sampler_name", "a text")?;
    let spacing: Option<String> = take(fields, "scheduler", "a text")?;
    let usual = ["", "automatic", "normal", "default"];
    let is_usual = |name: &String| usual.contains(&name.to_lowercase().as_str());
    let spacing = spacing.filter(|spacing| !is_usual(spacing));
    let Some(name) = name.or(index).filter(|name| !is_usual(name)) else {
        return match spacing {
            Some(spacing) => {
                let message = format!("`scheduler` is {spacing:?} and `sampler_name` is not given; give both, or none");
                Err(Failure::field("scheduler", message))
            }
            None => Ok(()),
        };
    };
    let whole = spacing.map_or_else(|| name.clone(), |spacing| format!("{name} {spacing}"));
    let choice = schedulers::by_name(&whole).map_err(|error| Failure {
        code: crate::serve::failure::FailureCode::Missing,
        ..Failure::field("sampler_name", error.to_string())
    })?;
    request.insert("scheduler".into(), choice.name().into());
    Ok(())
}

/// The model, and how many layers of the text encoder are skipped.
fn overrides(fields: &mut Map<String, Value>) -> Result<(Option<String>, Option<u64>), Failure> {
    let mut settings: Map<String, Value> = take(fields, "override_settings", "an object")?.unwrap_or_default();
    settings.retain(|name, value| !value.is_null() && !OVERRIDES_WITHOUT_EFFECT.contains(&name.as_str()));
    let model: Option<String> = take(&mut settings, "sd_model_checkpoint", "a text")?;
    // There the last layer is number 1.
    let skip = count(&mut settings, "CLIP_stop_at_last_layers")?.map(|skip| skip.saturating_sub(1));
    super::super::answer::nothing_else(&settings).map_err(|failure| failure.within("override_settings"))?;
    Ok((model.filter(|name| !name.is_empty()), skip))
}

/// What drawing starts from.
fn picture(
    fields: &mut Map<String, Value>,
    request: &mut Map<String, Value>,
    asked: &mut Asked,
) -> Result<(), Failure> {
    let images: Vec<String> = take(fields, "init_images", "a list of pictures in base64")?.unwrap_or_default();
    let [image] = images.as_slice() else {
        let message = format!("`init_images` has {} pictures; give one", images.len());
        return Err(Failure::field("init_images", message));
    };
    let image = data(image, "init_images")?;
    request.insert("strength".into(), number(fields, "denoising_strength")?.unwrap_or(0.75).into());
    let painted: Option<String> = take(fields, "mask", "a picture in base64")?;
    let blur = count(fields, "mask_blur")?;
    let sides = [count(fields, "mask_blur_x")?, count(fields, "mask_blur_y")?];
    let fill = count(fields, "inpainting_fill")?.unwrap_or(0);
    let whole: Option<Value> = fields.shift_remove("inpaint_full_res");
    let padding = count(fields, "inpaint_full_res_padding")?.unwrap_or(0);
    let inverts = count(fields, "inpainting_mask_invert")?.unwrap_or(0);
    if inverts > 1 {
        let message = format!("`inpainting_mask_invert` is {inverts}; give 0 or 1");
        return Err(Failure::field("inpainting_mask_invert", message));
    }
    let Some(painted) = painted else {
        asked.kind = Some(JobKind::Img2img);
        asked.image = Some(image);
        return Ok(());
    };
    let blur = match sides {
        [Some(x), Some(y)] if x != y => {
            return Err(Failure::field(
                "mask_blur_x",
                format!("`mask_blur_x` is {x} and `mask_blur_y` {y}; give the same"),
            ));
        }
        [Some(side), _] | [None, Some(side)] => side,
        [None, None] => blur.unwrap_or(4),
    };
    let fill = match FILLS.get(fill as usize) {
        Some(fill) => fill,
        None => {
            let fix = "give 0 (surroundings), 1 (what is there), 2 (noise) or 3 (nothing)";
            return Err(Failure::field("inpainting_fill", format!("`inpainting_fill` is {fill}; {fix}")));
        }
    };
    asked.image = Some(image);
    asked.mask = Some(data(&painted, "mask")?);
    asked.kind = Some(JobKind::Inpaint);
    let mut inpaint = Map::from_iter([("mask_blur".to_owned(), json!(blur)), ("mask_fill".to_owned(), json!(fill))]);
    if !is_false(&whole) {
        inpaint.insert("crop_to_mask".into(), padding.into());
    }
    if inverts == 1 {
        inpaint.insert("invert_mask".into(), true.into());
    }
    request.insert("inpaint".into(), inpaint.into());
    Ok(())
}

/// Whether a truth value, which some clients send as a number, says no.
fn is_false(value: &Option<Value>) -> bool {
    matches!(value, Some(Value::Bool(false))) || value.as_ref().and_then(Value::as_f64) == Some(0.0)
}
