//! Bad input: one message each that says what to do, and nothing written.

mod tweedie;

use serde_json::json;
use std::path::PathBuf;
use tweedie::{TestResult, Tweedie, copy_folder, golden, read_json};

const PROMPT: [&str; 3] = ["txt2img", "--prompt", "a cat"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    PROMPT.iter().copied().chain(more.iter().copied()).collect()
}

/// A run of wrong usage, which must write nothing.
fn refused(more: &[&str], parts: &[&str]) -> TestResult {
    ends(2, more, parts)
}

/// A run for which something is not there, which must write nothing.
fn failed(more: &[&str], parts: &[&str]) -> TestResult {
    ends(1, more, parts)
}

fn ends(status: i32, more: &[&str], parts: &[&str]) -> TestResult {
    let tweedie = Tweedie::new()?;
    tweedie.run(&with(more))?.fails(status, parts)?;
    assert_eq!(tweedie.files()?, Vec::<String>::new());
    Ok(())
}

/// A changed copy of a small model, and a run with it that must fail.
fn refused_model(change: impl FnOnce(&PathBuf) -> TestResult, parts: &[&str]) -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = tweedie.path("model");
    copy_folder(&golden().join("models/sd15"), &model)?;
    change(&model)?;
    tweedie
        .run(&with(&["--model", "model", "--scheduler", "ddim", "--steps", "2", "--output", "x.png"]))?
        .fails(1, parts)?;
    assert_eq!(tweedie.files()?, ["model"]);
    Ok(())
}

fn edit_json(path: PathBuf, field: &str, value: serde_json::Value) -> TestResult {
    let mut json = read_json(&path)?;
    json[field] = value;
    std::fs::write(path, json.to_string())?;
    Ok(())
}

#[test]
fn sizes_that_the_model_cannot_do() -> TestResult {
    refused(&["--width", "66"], &["width is 66", "multiples of 8", "nearest is 64, then 72"])?;
    refused(&["--height", "65"], &["height is 65", "nearest is 64, then 72"])?;
    refused(&["--width", "0"], &["width is 0", "nearest is 8"])?;
    refused(&["--width", "1000000"], &["width is 1000000", "16384 is the largest"])?;
    // The factor comes from the model.
    let tweedie = Tweedie::new()?;
    let model = golden().join("models/sd15");
    let model = model.to_string_lossy();
    let arguments = ["--model", &model, "--scheduler", "ddim", "--width", "100"];
    tweedie.run(&with(&arguments))?.fails(2, &["width is 100", "multiples of 8", "nearest is 104, then 96"])
}

#[test]
fn impossible_numbers() -> TestResult {
    refused(&["--steps", "0"], &["steps is 0", "between 1 and 1000"])?;
    refused(&["--steps", "1001"], &["steps is 1001", "between 1 and 1000"])?;
    refused(&["--guidance-scale", "-1"], &["guidance scale is -1"])?;
    refused(&["--guidance-scale", "nan"], &["guidance scale is NaN"])?;
    refused(&["--guidance-rescale", "1.5"], &["guidance rescale is 1.5", "0 to 1"])?;
    refused(&["--scheduler", "euler", "--sigmas", "1,2"], &["sigmas", "[1.0,2.0]", "must fall"])?;
    refused(&["--scheduler", "euler", "--timesteps", "1500,3"], &["timesteps is 1500", "last timestep is 999"])?;
    let contradiction = ["--scheduler", "euler", "--timesteps", "900,500", "--steps", "3"];
    refused(&contradiction, &["steps is 3", "makes 2"])?;
    refused(&["--timesteps", "900,500", "--scheduler", "pndm"], &["pndm", "its own noise levels"])?;
    refused(&["--sigmas", "9,0", "--scheduler", "euler-karras"], &["euler-karras", "its own noise levels"])?;
    refused(&["--guidance-interval", "5,1"], &["guidance interval is 5,1", "lower first"])?;
    refused(&["--pag-scale", "-1"], &["perturbed attention is -1"])?;
    refused(&["--pag-scale", "1", "--apg"], &["exclude each other"])?;
    refused(&["--eta", "2"], &["eta is 2"])?;
    refused(&["--eta", "nan"], &["eta is null"])?;
    refused(&["--num-images", "0"], &["number of images is 0"])?;
    refused(&["--batch-size", "0"], &["batch size is 0"])?;
    refused(&["--clip-skip", "5"], &["clip-skip is 5", "3 layers"])
}

#[test]
fn benchmarks_of_training_take_what_they_heed() -> TestResult {
    let tweedie = Tweedie::new()?;
    for (option, value, parts) in [
        ("--batch", "0", ["batch is 0", "1 to 1024"]),
        ("--runs", "16385", ["runs is 16385", "1 to 16384"]),
        ("--size", "64", ["--size 64", "28x28"]),
        ("--device", "cuda", ["--device cuda", "on the CPU"]),
        ("--dtype", "f16", ["--dtype f16", "f32 or bf16"]),
    ] {
        tweedie.run(&["bench", "--preset", "mnist-training", option, value])?.fails(2, &parts)?;
    }
    Ok(())
}

#[test]
fn wrong_usage_has_status_two() -> TestResult {
    let tweedie = Tweedie::new()?;
    for arguments in [
        vec!["txt2img"],
        with(&["--steps", "many"]),
        with(&["--timestep-spacing", "sideways"]),
        with(&["--guidance-interval", "wide"]),
        with(&["--device", "abacus"]),
        with(&["--no-such-flag"]),
    ] {
        assert_eq!(tweedie.run(&arguments)?.status, 2, "{arguments:?}");
    }
    Ok(())
}

#[test]
fn unknown_schedulers_list_the_known_ones() -> TestResult {
    refused(&["--scheduler", "magic"], &["`magic`", "ddim", "ddpm"])?;
    refused_model(
        |model| edit_json(model.join("scheduler/scheduler_config.json"), "prediction_type", json!("wish")),
        &["prediction_type", "wish", "epsilon, v_prediction, sample"],
    )
}

#[test]
fn a_scheduler_class_that_is_not_covered_is_named() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = tweedie.path("model");
    copy_folder(&golden().join("models/sd15"), &model)?;
    edit_json(model.join("scheduler/scheduler_config.json"), "_class_name", json!("CogVideoXDPMScheduler"))?;
    tweedie.run(&with(&["--model", "model"]))?.fails(1, &["CogVideoXDPMScheduler", "--scheduler", "ddim"])
}

#[test]
fn devices_that_are_not_there() -> TestResult {
    failed(&["--device", "cuda:99"], &["device is cuda:99", "--device cpu"])?;
    if !cfg!(feature = "cuda") {
        failed(&["--device", "cuda"], &["device is cuda", "--features cuda", "--device cpu"])?;
    }
    if !cfg!(feature = "metal") {
        failed(&["--device", "metal"], &["device is metal", "--features metal", "--device cpu"])?;
    }
    Ok(())
}

#[test]
fn missing_models_and_files() -> TestResult {
    failed(&["--model", "nowhere"], &["nowhere", "no such file or folder", "sdxl-turbo"])?;
    refused_model(
        |m| Ok(std::fs::remove_file(m.join("unet/config.json"))?),
        &["unet/config.json", "is missing", "diffusers layout"],
    )?;
    refused_model(
        |m| Ok(std::fs::remove_file(m.join("vae/diffusion_pytorch_model.safetensors"))?),
        &["vae", "no safetensors file", "diffusion_pytorch_model.safetensors"],
    )?;
    refused_model(
        |m| Ok(std::fs::remove_dir_all(m.join("tokenizer"))?),
        &["tokenizer", "vocab.json", "tokenizer.json"],
    )?;
    refused_model(
        |m| Ok(std::fs::remove_file(m.join("scheduler/scheduler_config.json"))?),
        &["scheduler_config.json"],
    )?;
    // A file that is no checkpoint, and a folder that is given configurations.
    let tweedie = Tweedie::new()?;
    std::fs::write(tweedie.path("model.safetensors"), b"x")?;
    tweedie
        .run(&with(&["--model", "model.safetensors"]))?
        .fails(1, &["not a usable safetensors file", "get it again"])?;
    std::fs::create_dir(tweedie.path("folder"))?;
    tweedie
        .run(&with(&["--model", "folder", "--config", "folder"]))?
        .fails(2, &["--config", "a folder's configurations"])
}

#[test]
fn damaged_weights() -> TestResult {
    let unet = |m: &PathBuf| m.join("unet/diffusion_pytorch_model.safetensors");
    refused_model(
        |m| {
            let bytes = std::fs::read(unet(m))?;
            Ok(std::fs::write(unet(m), &bytes[..bytes.len() - 1000])?)
        },
        &["unet", "truncated", "get it again"],
    )?;
    refused_model(|m| Ok(std::fs::write(unet(m), b"")?), &["unet", "is empty", "get it again"])?;
    refused_model(|m| Ok(std::fs::write(unet(m), [0xff; 64])?), &["unet", "not a usable safetensors file"])?;
    refused_model(
        |m| {
            // The last four bytes are a value of the last tensor.
            let mut bytes = std::fs::read(unet(m))?;
            let end = bytes.len();
            bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
            Ok(std::fs::write(unet(m), bytes)?)
        },
        &["weights of the unet", "NaN"],
    )
}

#[test]
fn weights_that_do_not_fit_are_listed_in_one_message() -> TestResult {
    refused_model(
        |m| edit_json(m.join("unet/config.json"), "layers_per_block", json!(2)),
        &["weights of the unet", "96 tensors missing (down_blocks.0.resnets.1.", "does not belong"],
    )?;
    refused_model(
        |m| edit_json(m.join("text_encoder/config.json"), "num_hidden_layers", json!(1)),
        &["weights of the text_encoder", "unexpected", "encoder.layers.1."],
    )?;
    refused_model(
        |m| edit_json(m.join("text_encoder/config.json"), "intermediate_size", json!(64)),
        &["of another shape", "fc1.weight", "needed [64, 32], found [128, 32]"],
    )?;
    refused_model(
        |m| edit_json(m.join("unet/config.json"), "cross_attention_dim", json!(40)),
        &["cross_attention_dim", "40", "hidden_size is 32"],
    )
}

#[test]
fn configurations_that_are_not_supported_name_the_option() -> TestResult {
    refused_model(
        |m| edit_json(m.join("unet/config.json"), "down_block_types", json!(["MagicDownBlock2D", "DownBlock2D"])),
        &["unet config", "down_block_types", "MagicDownBlock2D", "CrossAttnDownBlock2D"],
    )?;
    refused_model(
        |m| edit_json(m.join("unet/config.json"), "class_embed_type", json!("timestep")),
        &["class_embed_type", "timestep"],
    )?;
    for (field, value) in [
        ("layers_per_block", json!(1_000_000_000)),
        ("conv_in_kernel", json!(99_999)),
        ("block_out_channels", json!([1_000_000, 1_000_000])),
        ("time_embedding_dim", json!(1e12 as u64)),
        ("attention_head_dim", json!(0)),
        ("norm_num_groups", json!(0)),
        ("block_out_channels", json!([])),
    ] {
        refused_model(|m| edit_json(m.join("unet/config.json"), field, value), &["unet"])?;
    }
    refused_model(
        |m| edit_json(m.join("scheduler/scheduler_config.json"), "num_train_timesteps", json!(1_000_000_000)),
        &["num_train_timesteps", "1000000"],
    )?;
    refused_model(
        |m| edit_json(m.join("text_encoder/config.json"), "use_attention_mask", json!(true)),
        &["use_attention_mask"],
    )?;
    refused_model(|m| edit_json(m.join("vae/config.json"), "new_option", json!(3)), &["vae config", "new_option"])?;
    refused_model(
        |m| edit_json(m.join("text_encoder/config.json"), "hidden_act", json!("relu")),
        &["hidden_act", "quick_gelu"],
    )?;
    refused_model(|m| Ok(std::fs::write(m.join("vae/config.json"), "{")?), &["vae/config.json", "JSON"])
}

#[test]
fn output_paths_that_cannot_be_written() -> TestResult {
    failed(&["--output", "no/such/folder/x.png"], &["no/such/folder", "does not exist"])?;
    refused(&["--output", "x.gif"], &["x.gif", ".png", ".webp"])?;
    failed(&["--output", &format!("{}.png", "x".repeat(300))], &["cannot write"])?;
    refused(&["--output", ".png"], &["no name before .png"])?;
    let tweedie = Tweedie::new()?;
    std::fs::create_dir(tweedie.path("dir.png"))?;
    tweedie.run(&with(&["--output", "dir.png"]))?.fails(2, &["is a folder"])
}

#[test]
fn an_existing_file_is_replaced_only_with_force() -> TestResult {
    let tweedie = Tweedie::new()?;
    std::fs::write(tweedie.path("x.png"), b"mine")?;
    tweedie.run(&with(&["--steps", "1", "--output", "x.png"]))?.fails(1, &["x.png exists", "--force"])?;
    assert_eq!(std::fs::read(tweedie.path("x.png"))?, b"mine");
    // One of several is enough to refuse all.
    std::fs::write(tweedie.path("y-1.png"), b"mine")?;
    let several = with(&["--steps", "1", "--output", "y.png", "--num-images", "2"]);
    tweedie.run(&several)?.fails(1, &["y-1.png exists"])?;
    assert_eq!(tweedie.files()?, ["x.png", "y-1.png"]);
    tweedie.run(&with(&["--steps", "1", "--output", "x.png", "--force"]))?.success()?;
    assert!(image::open(tweedie.path("x.png")).is_ok());
    assert_eq!(tweedie.files()?, ["x.png", "y-1.png"]);
    Ok(())
}

/// A reader that has gone away is no failure.
#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_quietly() -> TestResult {
    let script = "\"$0\" model info | true; \"$0\" schedulers | head -1";
    let outcome = std::process::Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_tweedie")]).output()?;
    assert!(outcome.status.success() && outcome.stderr.is_empty(), "{}", String::from_utf8_lossy(&outcome.stderr));
    Ok(())
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_cleanly() -> TestResult {
    let tweedie = Tweedie::new()?;
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_tweedie"))
        .args(with(&["--steps", "1000", "--output", "x.png"]))
        .current_dir(tweedie.folder.path())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    let status = child.wait()?;
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().ok_or("no stderr")?, &mut stderr)?;
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("stopped; 0 of 1 pictures were saved"), "{stderr}");
    assert_eq!(tweedie.files()?, Vec::<String>::new());
    Ok(())
}

/// What the machine cannot hold is refused before it is begun, with what it can hold.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_there_is_not_is_not_asked_for() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = golden().join("models/sd15");
    let model = model.to_string_lossy();
    let draw = |limit_kib: u32, more: &[&str]| -> TestResult<String> {
        let base = ["txt2img", "--model", &*model, "--prompt", "x", "--steps", "1", "--output", "x.png", "--force"];
        let output = tweedie.after(&format!("ulimit -v {limit_kib}"), &[&base[..], more].concat()).output()?;
        let message = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{message}");
        Ok(message)
    };
    let wide = draw(1_500_000, &["--width", "8192", "--height", "8192"])?;
    assert!(wide.contains("memory that the") && wide.contains("--width") && wide.contains("GB are free"), "{wide}");
    let many = ["--num-images", "100000", "--batch-size", "100000", "--width", "64", "--height", "64"];
    let many = draw(1_500_000, &many)?;
    assert!(many.contains("denoising network") && many.contains("--batch-size of"), "{many}");
    Ok(())
}

/// Whoever makes a file chooses the names in it, but not what they do to the terminal.
#[test]
fn control_characters_of_files_are_shown_and_not_sent() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = tweedie.path("model");
    copy_folder(&golden().join("models/sd15"), &model)?;
    let plain = |text: &str| text.chars().all(|c| c == '\n' || !c.is_control());
    let name = "\u{1b}[31mred\u{9b}2J\r\nforged.weight";
    let header = serde_json::json!({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    std::fs::write(tweedie.path("x.safetensors"), file)?;
    for option in ["--lora", "--vae"] {
        let outcome = tweedie.run(&with(&["--model", "model", option, "x.safetensors", "--output", "x.png"]))?;
        assert!(outcome.status == 1 && plain(&outcome.stderr), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{}", outcome.stderr);
    }
    let lora = tweedie.run(&with(&["--model", "model", "--lora", "x.safetensors", "--output", "x.png"]))?;
    lora.fails(1, &["\\u001b[31mred\\u009b2J\\u000d\\u000aforged"])?;
    edit_json(model.join("model_index.json"), "_class_name", json!("Stable\u{1b}[2J\nforged"))?;
    let info = tweedie.run(&["model", "info", "model"])?.success()?;
    assert!(plain(&info.stdout) && info.stdout.contains("Stable\\u001b[2J\\u000aforged"), "{}", info.stdout);
    Ok(())
}
