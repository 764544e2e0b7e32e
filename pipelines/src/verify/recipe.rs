//! From a picture's record back to the request that made it.

use crate::adapters::Adapters;
use crate::control::ControlImage;
use crate::device::DTypeChoice;
use crate::image_to_image::ImageToImageRequest;
use crate::inpaint::{Composite, InpaintRequest, MaskShaping};
use crate::request::{PromptSyntax, Settings, TextToImageRequest};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tweedie::config::ConfigFields;
use tweedie::denoising::{GuidanceShape, Projection};
use tweedie::images::{Margins, Mask, MaskResize, Photo, read_png_text};
use tweedie::schedulers::Resampling;
use tweedie::{Error, Result};

/// The fields of a record that a picture can be made from again.
const KNOWN: [&str; 30] = [
    "program",
    "kind",
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "guidance_scale",
    "guidance_rescale",
    "scheduler",
    "scheduler_config",
    "width",
    "height",
    "clip_skip",
    "dtype",
    "model",
    "weights_sha256",
    "prompt_syntax",
    "guidance_schedule",
    "guidance_interval",
    "apg",
    "vae",
    "xl",
    "pag_scale",
    "strength",
    "image",
    "mask",
    "inpaint",
    "loras",
    "embeddings",
    "controls",
];

/// The lists of what was put on top of the model.
const ADAPTERS: [&str; 3] = ["loras", "embeddings", "controls"];

/// Fields that may be others without another picture, or are compared by their sums.
const IRRELEVANT: [&str; 8] =
    ["model", "vae", "weights_sha256", "image", "mask", ADAPTERS[0], ADAPTERS[1], ADAPTERS[2]];

/// What a picture says of how it was made: what [`crate::Record::json`] wrote.
#[derive(Debug, Clone)]
pub struct Recipe {
    fields: Map<String, Value>,
    path: PathBuf,
}

/// A file that a picture was made from, as its record names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRecord {
    /// Its name, without its folder.
    pub name: String,
    /// The SHA-256 of its bytes.
    pub sha256: String,
}

impl Recipe {
    /// Reads the settings in a PNG file's bytes; `path` is named in messages.
    ///
    /// # Errors
    /// If it is no PNG file, has no settings of this program, or they are of a kind that cannot be repeated.
    pub fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let chunks = read_png_text(bytes, path)?;
        let Some(chunk) = chunks.iter().find(|chunk| chunk.keyword == "tweedie") else {
            let fix = "give a PNG file that this program wrote and no other has saved since";
            return Err(Error::malformed("picture to verify", path, format!("it has no settings of Tweedie; {fix}")));
        };
        let fields = serde_json::from_str(&chunk.text).map_err(|e| {
            Error::malformed("picture to verify", path, format!("its settings are no JSON object ({e})"))
        })?;
        let recipe = Self { fields, path: path.into() };
        if !["txt2img", "img2img", "inpaint"].contains(&recipe.kind()) {
            return Err(recipe.wrong("kind", "pictures of txt2img, img2img and inpaint can be verified"));
        }
        if let Some(name) = recipe.fields.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(recipe.wrong(name, "this version cannot repeat that; take the one that made the picture"));
        }
        Ok(recipe)
    }

    /// The command that made it.
    pub fn kind(&self) -> &str {
        self.fields.get("kind").and_then(Value::as_str).unwrap_or_default()
    }

    /// What the model is called.
    pub fn model_name(&self) -> &str {
        self.fields.get("model").and_then(Value::as_str).unwrap_or_default()
    }

    /// What its autoencoder is called, if it is not the model's own.
    pub fn vae_name(&self) -> Option<&str> {
        self.fields.get("vae").and_then(Value::as_str)
    }

    /// The SHA-256 of each weight file by its name.
    ///
    /// # Errors
    /// If there is none.
    pub fn weights(&self) -> Result<&Map<String, Value>> {
        let weights = self.fields.get("weights_sha256").and_then(Value::as_object);
        weights.filter(|weights| !weights.is_empty()).ok_or_else(|| {
            self.wrong("weights_sha256", "it must name the weights; without, no model can be said to be the same")
        })
    }

    /// The number format of the weights.
    ///
    /// # Errors
    /// If it is none.
    pub fn dtype(&self) -> Result<DTypeChoice> {
        self.text("dtype")?.parse().map_err(|fix: String| self.wrong("dtype", fix))
    }

    /// The seed.
    ///
    /// # Errors
    /// If it is no whole number.
    pub fn seed(&self) -> Result<u64> {
        self.fields.get("seed").and_then(Value::as_u64).ok_or_else(|| self.wrong("seed", "it must be a whole number"))
    }

    /// A file that it was made from: "image", "mask".
    pub fn input(&self, role: &str) -> Option<InputRecord> {
        let input = self.fields.get(role)?;
        let text = |name: &str| input[name].as_str().unwrap_or_default().to_owned();
        Some(InputRecord { name: text("name"), sha256: text("sha256") })
    }

    /// What was put on top of the model: "loras", "embeddings" or "controls".
    pub fn adapters(&self, list: &str) -> &[Value] {
        self.fields.get(list).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Gives adapters the weights and tokens that were used, and control pictures their scales and times.
    ///
    /// # Errors
    /// If there are more or fewer than the picture was made with, or its record lacks a number.
    pub fn apply_adapters(&self, adapters: &mut Adapters, images: &mut [ControlImage]) -> Result<()> {
        let given = [adapters.loras.len(), adapters.embeddings.len(), adapters.controls.len().max(images.len())];
        for (list, count) in ADAPTERS.into_iter().zip(given) {
            let recorded = self.adapters(list);
            if count != recorded.len() {
                let named = |entry: &Value| format!("{} (SHA-256 {})", entry["name"], entry["sha256"]);
                let all: Vec<_> = recorded.iter().map(named).collect();
                let fix = match all.is_empty() {
                    true => "the picture was made with none".to_owned(),
                    false => format!("the picture was made with {}; give each, in this order", all.join(", ")),
                };
                return Err(Error::invalid(format!("the number of {list}"), count, fix));
            }
        }
        let number = |list: &str, i: usize, name: &str| {
            self.adapters(list)[i][name].as_f64().ok_or_else(|| self.wrong(list, format!("each must have its {name}")))
        };
        for (i, lora) in adapters.loras.iter_mut().enumerate() {
            lora.weight = number(ADAPTERS[0], i, "weight")?;
        }
        for (embedding, recorded) in adapters.embeddings.iter_mut().zip(self.adapters(ADAPTERS[1])) {
            embedding.token = recorded["token"].as_str().map(str::to_owned);
        }
        for (i, image) in images.iter_mut().enumerate() {
            image.scale = number(ADAPTERS[2], i, "scale")?;
            image.start = number(ADAPTERS[2], i, "start")?;
            image.end = number(ADAPTERS[2], i, "end")?;
            image.guess = self.adapters(ADAPTERS[2])[i]["guess"].as_bool().unwrap_or(false);
        }
        Ok(())
    }

    /// Which file of an adapter, or which control picture, in another record is not what the picture was made with.
    pub fn other_adapters(&self, other: &Value) -> Option<String> {
        let of_list = |list: &'static str| self.adapters(list).iter().enumerate().map(move |(i, own)| (list, i, own));
        let sums = |entry: &Value| [entry["sha256"].clone(), entry["image"]["sha256"].clone()];
        let differs = |(list, i, own): &(&str, usize, &Value)| sums(own) != sums(&other[*list][*i]);
        let (list, i, own) = ADAPTERS.into_iter().flat_map(of_list).find(differs)?;
        let [[was, image_was], [is, image_is]] = [sums(own), sums(&other[list][i])];
        Some(match was == is {
            true => format!("the picture for {} had {image_was} and has {image_is}", own["name"]),
            false => format!("{} of its {list} had {was} and has {is}", own["name"]),
        })
    }

    /// The part of the request that all commands share, without control pictures; the size only if it is the text's to say.
    ///
    /// # Errors
    /// If a field is missing or of another type.
    pub fn text_request(&self) -> Result<TextToImageRequest> {
        let of_text = self.kind() == "txt2img";
        let mut xl = crate::xl::XlRequest::default();
        if let Some(recorded) = self.fields.get("xl") {
            let text = |name: &str| recorded[name].as_str().map(str::to_owned);
            xl.prompt_2 = text("prompt_2");
            xl.negative_prompt_2 =
                text("negative_prompt_2").filter(|_| self.optional_text("negative_prompt").is_some());
        }
        Ok(TextToImageRequest {
            prompt: self.text("prompt")?.into(),
            negative_prompt: self.optional_text("negative_prompt").map(str::to_owned),
            prompt_syntax: match self.optional_text("prompt_syntax") {
                None => PromptSyntax::Plain,
                Some("weighted") => PromptSyntax::Weighted,
                Some(_) => return Err(self.wrong("prompt_syntax", "it must be weighted")),
            },
            steps: Some(self.count("steps")?),
            guidance_scale: Some(self.number("guidance_scale")?),
            guidance_rescale: Some(self.number("guidance_rescale")?),
            guidance_shape: match self.optional_text("guidance_schedule") {
                None => GuidanceShape::Constant,
                Some("linear") => GuidanceShape::Linear,
                Some("cosine") => GuidanceShape::Cosine,
                Some(_) => return Err(self.wrong("guidance_schedule", "it must be linear or cosine")),
            },
            guidance_interval: self.guidance_interval()?,
            projection: self.projection()?,
            pag_scale: self.fields.get("pag_scale").map_or(Ok(0.0), |_| self.number("pag_scale"))?,
            scheduler: Some(self.text("scheduler")?.into()),
            scheduler_fields: self.scheduler_fields()?.clone(),
            seed: self.seed()?,
            width: of_text.then(|| self.count("width")).transpose()?,
            height: of_text.then(|| self.count("height")).transpose()?,
            num_images: 1,
            batch_size: 1,
            clip_skip: self.count("clip_skip")?,
            controls: Vec::new(),
            xl,
        })
    }

    /// The request of a picture from a picture.
    ///
    /// # Errors
    /// As [`Self::text_request`].
    pub fn image_request(&self, image: Photo) -> Result<ImageToImageRequest> {
        Ok(ImageToImageRequest { text: self.text_request()?, image, strength: Some(self.number("strength")?) })
    }

    /// The request of a repainted picture.
    ///
    /// # Errors
    /// As [`Self::text_request`].
    pub fn inpaint_request(&self, image: Photo, mask: Option<Mask>) -> Result<InpaintRequest> {
        let options = self.fields.get("inpaint").cloned().unwrap_or_default();
        let wrong = |what: &str| self.wrong("inpaint", format!("its {what} must be as this program writes it"));
        let flag = |name: &str| options[name].as_bool().ok_or_else(|| wrong(name));
        let count = |value: &Value, name: &str, default: Option<usize>| match value {
            Value::Null => default.ok_or_else(|| wrong(name)),
            value => value.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| wrong(name)),
        };
        let of = |name: &str, default| count(&options[name], name, default);
        let margin = |side: &str| count(&options["outpaint"][side], "outpaint", Some(0));
        Ok(InpaintRequest {
            text: self.text_request()?,
            image,
            mask,
            shaping: MaskShaping {
                invert: flag("invert_mask")?,
                grow: of("mask_grow", None)?,
                blur: of("mask_blur", None)?,
                resize: match options["mask_resize"].as_str() {
                    Some("max") => MaskResize::Max,
                    Some("lanczos") => MaskResize::Lanczos,
                    _ => return Err(wrong("mask_resize")),
                },
            },
            strength: Some(self.number("strength")?),
            resampling: Resampling { times: of("resample", Some(1))?, jump_length: of("jump_length", Some(1))? },
            crop_to_mask: options.get("crop_to_mask").map(|value| count(value, "crop_to_mask", None)).transpose()?,
            outpaint: Margins {
                left: margin("left")?,
                top: margin("top")?,
                right: margin("right")?,
                bottom: margin("bottom")?,
            },
            composite: match options["composite"].as_bool() {
                Some(false) => Composite::Decoded,
                _ => Composite::Blend(of("blend", Some(0))?),
            },
        })
    }

    /// Settles its request for a model: `settle` does it with the width and height that it is given, or with none. The
    /// record has the size that the model worked at and not whether it was asked for, so an input's own way to a size is
    /// tried first.
    ///
    /// # Errors
    /// If the request cannot be carried out, or the picture leads to another size.
    pub fn settle(&self, settle: &mut dyn FnMut(Option<(usize, usize)>) -> Result<Settings>) -> Result<Settings> {
        let size = (self.count("width")?, self.count("height")?);
        let settled = match settle(None) {
            Ok(settings) if (settings.width, settings.height) == size => settings,
            _ => settle(Some(size))?,
        };
        if (settled.width, settled.height) != size {
            let fix = format!("this model and this input make {}x{} of it", settled.width, settled.height);
            return Err(self.wrong("width", fix));
        }
        self.repeated(settled)
    }

    /// Settled settings with what the record has in full: no default of this version or of the model's files counts.
    fn repeated(&self, mut settings: Settings) -> Result<Settings> {
        let mut fields = settings.scheduler_config.fields().clone();
        fields.retain(|name, _| name.starts_with('_'));
        fields.extend(self.scheduler_fields()?.clone());
        settings.scheduler_config = ConfigFields::from_fields("scheduler", fields);
        settings.build_scheduler()?.levels(settings.steps)?;
        match (settings.xl.take(), self.fields.get("xl")) {
            (Some(xl), Some(recorded)) => {
                let xl = xl.with_json(recorded);
                settings.xl = Some(xl.ok_or_else(|| self.wrong("xl", "it must be as this program writes it"))?);
            }
            (None, None) => {}
            _ => {
                return Err(
                    self.wrong("xl", "it goes with Stable Diffusion XL alone, and the model is of another family")
                );
            }
        }
        Ok(settings)
    }

    /// What of the weights in another record is not what the picture was made with: `None` if all is.
    ///
    /// # Errors
    /// If this one names no weights.
    pub fn other_weights(&self, other: &Map<String, Value>) -> Result<Option<String>> {
        // By sums alone: who has a file may have given it another name.
        let sums = |weights: &Map<String, Value>| {
            let mut sums: Vec<_> = weights.values().map(Value::to_string).collect();
            sums.sort();
            sums
        };
        let own = self.weights()?;
        if sums(own) == sums(other) {
            return Ok(None);
        }
        let differing = own.iter().find(|(name, sum)| other.get(*name) != Some(sum));
        Ok(differing.map(|(name, sum)| format!("{name} had {sum} and has {}", other.get(name).unwrap_or(&Value::Null))))
    }

    /// The names of fields in which another record differs, with both values, the longer ones cut.
    pub fn differences(&self, other: &Value) -> Vec<String> {
        let empty = Map::new();
        let other = other.as_object().unwrap_or(&empty);
        let mut names: Vec<&String> = self.fields.keys().chain(other.keys()).collect();
        names.sort();
        names.dedup();
        let relevant = names.into_iter().filter(|name| !IRRELEVANT.contains(&name.as_str()));
        let differing = relevant.filter(|name| self.fields.get(*name) != other.get(*name));
        let value = |fields: &Map<String, Value>, name: &str| shortened(&fields.get(name).cloned().unwrap_or_default());
        differing
            .map(|name| format!("{name} was {} and is {}", value(&self.fields, name), value(other, name)))
            .collect()
    }

    fn scheduler_fields(&self) -> Result<&Map<String, Value>> {
        let fields = self.fields.get("scheduler_config").and_then(Value::as_object);
        fields.ok_or_else(|| self.wrong("scheduler_config", "it must be an object"))
    }

    fn guidance_interval(&self) -> Result<Option<(f64, f64)>> {
        let Some(value) = self.fields.get("guidance_interval") else { return Ok(None) };
        match (value[0].as_f64(), value[1].as_f64()) {
            (Some(low), Some(high)) => Ok(Some((low, high))),
            _ => Err(self.wrong("guidance_interval", "it must be two numbers")),
        }
    }

    fn projection(&self) -> Result<Option<Projection>> {
        let Some(value) = self.fields.get("apg") else { return Ok(None) };
        let number = |name: &str| {
            value[name].as_f64().ok_or_else(|| self.wrong("apg", "it must have eta, norm_threshold and momentum"))
        };
        Ok(Some(Projection {
            eta: number("eta")?,
            norm_threshold: number("norm_threshold")?,
            momentum: number("momentum")?,
        }))
    }

    fn text(&self, name: &str) -> Result<&str> {
        self.optional_text(name).ok_or_else(|| self.wrong(name, "it must be a text"))
    }

    fn optional_text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Value::as_str)
    }

    fn number(&self, name: &str) -> Result<f64> {
        self.fields.get(name).and_then(Value::as_f64).ok_or_else(|| self.wrong(name, "it must be a number"))
    }

    fn count(&self, name: &str) -> Result<usize> {
        let count = self.fields.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        count.ok_or_else(|| self.wrong(name, "it must be a whole number from 0 on"))
    }

    fn wrong(&self, name: &str, fix: impl Into<String>) -> Error {
        let value = shortened(&self.fields.get(name).cloned().unwrap_or_default());
        Error::invalid(format!("`{name}` in the settings of {}", self.path.display()), value, fix)
    }
}

/// JSON on one line that is not too long.
fn shortened(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
