//! Golden pictures through the program itself.

#[path = "../../tests/cases/controls.rs"]
mod controls;
mod tweedie;

use controls::described_controls;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tweedie::{TestResult, Tweedie, check_same_picture, copy_folder, golden, read_json};

/// The cases that the command line can ask for: consecutive seeds, one generator for each image.
fn first_seed(case: &Value) -> Option<u64> {
    match &case["seed"] {
        Value::Array(seeds) => {
            let seeds: Vec<u64> = seeds.iter().filter_map(Value::as_u64).collect();
            seeds.windows(2).all(|pair| pair[1] == pair[0] + 1).then(|| seeds[0])
        }
        seed if case["num_images_per_prompt"].as_u64().unwrap_or(1) == 1 => seed.as_u64(),
        _ => None,
    }
}

/// Nothing, one object or a list of them.
fn one_or_more(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(list) => list,
        one => std::slice::from_ref(one),
    }
}

fn number(json: &Value, field: &str, default: f64) -> f64 {
    json[field].as_f64().unwrap_or(default)
}

/// The case with its model as a folder, and as each single file that it names.
fn run(tweedie: &Tweedie, folder: &Path, case: &Value, seed: u64) -> TestResult {
    run_form(tweedie, folder, case, seed, None)?;
    for file in case["single_file"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        run_form(&Tweedie::new()?, folder, case, seed, Some(file))?;
    }
    Ok(())
}

fn run_form(tweedie: &Tweedie, folder: &Path, case: &Value, seed: u64, single_file: Option<&str>) -> TestResult {
    let name = case["name"].as_str().ok_or("no name")?;
    let root = folder.parent().and_then(Path::parent).ok_or("no root")?;
    let entry = ::tweedie::schedulers::by_class_name(case["scheduler"]["name"].as_str().unwrap_or_default())?;
    let mut model = root.join("models").join(case["model"].as_str().ok_or("no model")?);
    // What has no flag is changed in a copy's scheduler file, and so is what diffusers itself changes in one.
    let base = read_json(&model.join("scheduler/scheduler_config.json"))?;
    let in_effect = case["scheduler"]["config"].as_object().into_iter().flatten();
    if in_effect.clone().any(|(field, value)| base.get(field).is_some_and(|stated| stated != value))
        || case["scheduler"]["overrides"].as_object().is_some_and(|overrides| !overrides.is_empty())
    {
        let copy = tweedie.path(&format!("{name}-model"));
        copy_folder(&model, &copy)?;
        let file = copy.join("scheduler/scheduler_config.json");
        let mut config = read_json(&file)?;
        for (field, value) in in_effect {
            config[field] = value.clone();
        }
        std::fs::write(file, config.to_string())?;
        model = copy;
    }
    let output = format!("{name}.png");
    let command = match case["kind"].as_str() {
        None | Some("txt2img-pag" | "txt2img-merged" | "controlnet") => "txt2img",
        Some(kind) => kind.trim_end_matches("-xl"),
    };
    let mut arguments: Vec<String> = [command, "--quiet", "--batch-size", "2", "--dtype"].map(Into::into).into();
    arguments.push(if case["weights"] == "fp16" { "f16" } else { "f32" }.into());
    let mut option = |flag: &str, value: &Value| match value {
        Value::Null => {}
        Value::String(text) => arguments.push(format!("{flag}={text}")),
        other => arguments.push(format!("{flag}={other}")),
    };
    let model = model.to_string_lossy().into_owned();
    match single_file {
        Some(file) => {
            option("--model", &root.join(file).to_string_lossy().into_owned().into());
            option("--config", &model.into());
        }
        None => option("--model", &model.into()),
    }
    option("--output", &output.clone().into());
    for (flag, field) in [("--image", "init_image"), ("--mask", "mask_image")] {
        if let (Some(name), false) = (case[field].as_str(), command == "txt2img") {
            option(flag, &folder.join(name).to_string_lossy().into_owned().into());
        }
    }
    if let Some(vae) = case["vae"].as_str() {
        option("--vae", &root.join("models").join(vae).to_string_lossy().into_owned().into());
    }
    option("--scheduler", &entry.name.into());
    option("--seed", &seed.into());
    for (flag, field) in [
        ("--prompt", "prompt"),
        ("--negative-prompt", "negative_prompt"),
        ("--prompt-2", "prompt_2"),
        ("--negative-prompt-2", "negative_prompt_2"),
        ("--steps", "steps"),
        ("--guidance-scale", "guidance_scale"),
        ("--guidance-rescale", "guidance_rescale"),
        ("--pag-scale", "pag_scale"),
        ("--token-merging", "token_merging"),
        ("--eta", "eta"),
        ("--width", "width"),
        ("--height", "height"),
        ("--clip-skip", "clip_skip"),
        ("--num-images", "num_images_per_prompt"),
        ("--strength", "strength"),
    ] {
        option(flag, &case[field]);
    }
    for (flag, field, separator) in [
        ("original-size", "original_size", 'x'),
        ("crop-top-left", "crops_coords_top_left", ','),
        ("target-size", "target_size", 'x'),
        ("negative-original-size", "negative_original_size", 'x'),
        ("negative-crop-top-left", "negative_crops_coords_top_left", ','),
        ("negative-target-size", "negative_target_size", 'x'),
    ] {
        if let [first, second] = case[field].as_array().map_or(&[][..], Vec::as_slice) {
            arguments.push(format!("--{flag}={first}{separator}{second}"));
        }
    }
    if command == "inpaint" {
        arguments.push("--no-composite".into());
    }
    let controls = described_controls(case);
    if case["guess_mode"] == true {
        arguments.push("--control-guess".into());
    }
    for control in &controls {
        let part = |field: &str| control[field].as_str().ok_or("no model or picture");
        let (model, image) = (root.join("models").join(part("model")?), folder.join(part("image")?));
        arguments.push(format!("--control={}:{}:{}", model.display(), image.display(), number(control, "scale", 1.0)));
    }
    for (flag, field, default) in [("--control-start", "start", 0.0), ("--control-end", "end", 1.0)] {
        let values: Vec<_> = controls.iter().map(|control| number(control, field, default).to_string()).collect();
        if !values.is_empty() {
            arguments.push(format!("{flag}={}", values.join(",")));
        }
    }
    for lora in one_or_more(&case["lora"]) {
        let file = root.join("models").join(lora["file"].as_str().ok_or("no file")?);
        arguments.push(format!("--lora={}:{}", file.display(), lora["scale"]));
    }
    for embedding in one_or_more(&case["embedding"]) {
        let file = root.join("models").join(embedding["file"].as_str().ok_or("no file")?);
        let token = embedding["token"].as_str().map(|token| format!(":{token}")).unwrap_or_default();
        arguments.push(format!("--embedding={}{token}", file.display()));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tweedie.run(&arguments)?.success().map_err(|e| format!("{name}: {e}"))?;

    let expected: Vec<&str> = case["expected"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (i, expected_name) in expected.iter().enumerate() {
        let file = if expected.len() == 1 { output.clone() } else { format!("{name}-{i}.png") };
        check_same_picture(&tweedie.path(&file), &folder.join(expected_name))?;
    }
    Ok(())
}

#[test]
fn golden_pictures_through_the_command_line() -> TestResult {
    let mut folders: Vec<PathBuf> = Vec::new();
    for root in [Some(golden()), std::env::var_os("TWEEDIE_GOLDEN").map(PathBuf::from)].into_iter().flatten() {
        for entry in std::fs::read_dir(root.join("cases"))? {
            folders.push(entry?.path());
        }
    }
    let (mut ran, mut failures) = (0, Vec::new());
    for folder in folders {
        let case = read_json(&folder.join("case.json"))?;
        let covered =
            ::tweedie::schedulers::by_class_name(case["scheduler"]["name"].as_str().unwrap_or_default()).is_ok();
        let kind = case["kind"].as_str().unwrap_or_default();
        let kinds = ["txt2img", "txt2img-pag", "txt2img-merged", "img2img", "inpaint", "controlnet"];
        let plain = kinds.contains(&kind.trim_end_matches("-xl")) && case["guess_mode"] != true;
        if let (true, true, Some(seed)) = (covered, plain, first_seed(&case)) {
            ran += 1;
            failures.extend(run(&Tweedie::new()?, &folder, &case, seed).err().map(|e| e.to_string()));
        }
    }
    assert!(ran > 0, "no golden case was found");
    assert!(failures.is_empty(), "{} of {ran} failed:\n{}", failures.len(), failures.join("\n"));
    println!("{ran} cases");
    Ok(())
}

/// Old checkpoints state few options and call the autoencoder's attention otherwise.
#[test]
fn golden_picture_of_a_model_in_its_oldest_form() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = tweedie.path("old");
    copy_folder(&golden().join("models/sd15"), &model)?;
    for component in ["unet", "vae"] {
        strip_defaults(&model.join(component).join("config.json"), component)?;
    }
    rename_attention(&model.join("vae/diffusion_pytorch_model.safetensors"))?;

    let folder = golden().join("cases/sd15-ddim");
    let mut case = read_json(&folder.join("case.json"))?;
    let cases = tweedie.path("root/cases/sd15-ddim");
    copy_folder(&folder, &cases)?;
    std::fs::create_dir(tweedie.path("root/models"))?;
    std::fs::rename(&model, tweedie.path("root/models/old"))?;
    case["model"] = "old".into();
    run(&tweedie, &cases, &case, first_seed(&case).ok_or("no seed")?)
}

/// Removes every field that has diffusers' default.
fn strip_defaults(path: &Path, component: &str) -> TestResult {
    let defaults: Value = serde_json::from_str(match component {
        "unet" => {
            r#"{"in_channels": 4, "out_channels": 4, "center_input_sample": false, "flip_sin_to_cos": true, "freq_shift": 0,
            "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": false, "layers_per_block": 2,
            "downsample_padding": 1, "mid_block_scale_factor": 1, "dropout": 0.0, "act_fn": "silu", "norm_num_groups": 32,
            "norm_eps": 1e-05, "cross_attention_dim": 1280, "transformer_layers_per_block": 1, "attention_head_dim": 8,
            "dual_cross_attention": false, "use_linear_projection": false, "upcast_attention": false,
            "resnet_time_scale_shift": "default", "resnet_skip_time_act": false, "resnet_out_scale_factor": 1.0,
            "time_embedding_type": "positional", "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default",
            "class_embeddings_concat": false, "addition_embed_type_num_heads": 64}"#
        }
        _ => {
            r#"{"in_channels": 3, "out_channels": 3, "layers_per_block": 1, "act_fn": "silu", "latent_channels": 4,
            "norm_num_groups": 32, "sample_size": 32, "scaling_factor": 0.18215, "force_upcast": true,
            "use_quant_conv": true, "use_post_quant_conv": true, "mid_block_add_attention": true}"#
        }
    })?;
    let mut config = read_json(path)?;
    let fields = config.as_object_mut().ok_or("no object")?;
    let before = fields.len();
    fields.retain(|name, value| !value.is_null() && defaults.get(name) != Some(value));
    assert!(fields.len() + 8 <= before, "{component}: {} of {before} fields are left", fields.len());
    std::fs::write(path, config.to_string())?;
    Ok(())
}

fn rename_attention(path: &Path) -> TestResult {
    let bytes = std::fs::read(path)?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?;
    let mut renamed = 0;
    let views: Vec<_> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let old = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
                .iter()
                .fold(name.clone(), |name, (new, old)| name.replace(new, old));
            renamed += usize::from(old != name);
            (old, view)
        })
        .collect();
    assert_eq!(renamed, 16, "four projections with weight and bias in each half");
    let bytes = safetensors::serialize(views, None)?;
    Ok(std::fs::write(path, bytes)?)
}
