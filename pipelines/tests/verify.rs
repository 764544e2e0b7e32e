//! Pictures are made again from what their files say.

mod tweedie;

use ::tweedie::images::{Photo, Samples, TextChunk, read_png_text};
use serde_json::Value;
use std::path::Path;
use tweedie::{TestResult, Tweedie, copy_folder, golden};

fn model(name: &str) -> String {
    golden().join("models").join(name).to_string_lossy().into_owned()
}

/// The hub's cache is an empty one.
fn run(tweedie: &Tweedie, arguments: &[&str]) -> TestResult<tweedie::Outcome> {
    let home = tweedie.path("no-cache").to_string_lossy().into_owned();
    tweedie.run_with(arguments, &[("HF_HOME", home.as_str()), ("HF_HUB_OFFLINE", "1")])
}

/// Makes `out.png`.
fn make(tweedie: &Tweedie, command: &str, model_name: &str, more: &[&str]) -> TestResult {
    let model = model(model_name);
    let first =
        [command, "--quiet", "--force", "--prompt", "a red fox as <word>, Ölfarbe", "--output", "out.png", "--model"];
    run(tweedie, &[&first[..], &[&model], more].concat())?.success()?;
    Ok(())
}

fn verify(tweedie: &Tweedie, model_name: &str, more: &[&str]) -> TestResult<tweedie::Outcome> {
    let model = model(model_name);
    run(tweedie, &[&["verify", "out.png", "--quiet", "--model", &model], more].concat())
}

fn check_identical(tweedie: &Tweedie, model_name: &str, more: &[&str]) -> TestResult {
    let outcome = verify(tweedie, model_name, more)?.success()?;
    assert!(outcome.stdout.starts_with("identical: "), "{}", outcome.stdout);
    Ok(())
}

fn chunks(path: &Path) -> TestResult<Vec<TextChunk>> {
    Ok(read_png_text(&std::fs::read(path)?, path)?)
}

/// Saves the picture anew with other samples and settings.
fn tamper(path: &Path, samples: impl Fn(&mut [u8]), settings: impl Fn(&mut Value)) -> TestResult {
    let photo = Photo::read(path)?;
    let Samples::Eight(mut bytes) = photo.samples().clone() else { return Err("not of 8 bits".into()) };
    samples(&mut bytes);
    let mut chunks = chunks(path)?;
    let chunk = chunks.iter_mut().find(|chunk| chunk.keyword == "tweedie").ok_or("no settings")?;
    let mut json: Value = serde_json::from_str(&chunk.text)?;
    settings(&mut json);
    chunk.text = json.to_string();
    let photo = Photo::new(photo.width(), photo.height(), photo.color(), Samples::Eight(bytes))?;
    std::fs::write(path, photo.encode_png(&chunks)?)?;
    Ok(())
}

/// Every option that a record has is repeated: each of these changes the picture.
#[test]
fn pictures_from_text_are_made_again_whatever_their_options() -> TestResult {
    let tweedie = Tweedie::new()?;
    let cases: [(&str, &[&str]); 12] = [
        ("sd15", &["--steps", "3", "--seed", "18446744073709551615"]),
        ("sd15", &["--steps", "3", "--negative-prompt", "", "--scheduler", "dpm++2m-karras", "--clip-skip", "1"]),
        ("sd15", &["--steps", "3", "--scheduler", "ddim", "--eta", "0.7", "--timestep-spacing", "trailing"]),
        ("sd15", &["--scheduler", "euler", "--sigmas", "14,5.5,1.1,0"]),
        ("sd15", &["--scheduler", "dpm++2m", "--timesteps", "900,600,100"]),
        ("sd15", &["--steps", "3", "--scheduler", "euler-a", "--guidance-rescale", "0.3", "--width", "96"]),
        ("sd15", &["--steps", "3", "--guidance-schedule", "cosine", "--guidance-interval", "0.3,5"]),
        ("sd15", &["--steps", "3", "--apg", "--prompt-syntax", "weighted"]),
        ("sd15", &["--steps", "3", "--pag-scale", "2", "--dtype", "f16"]),
        ("sd21", &["--steps", "3", "--dtype", "bf16"]),
        ("xl-small", &["--steps", "3", "--prompt-2", "two", "--original-size", "96x128", "--crop-top-left", "8,16"]),
        (
            "xl-small",
            &["--steps", "3", "--negative-prompt", "dull", "--negative-prompt-2", "grey", "--num-images", "1"],
        ),
    ];
    for (model, options) in cases {
        make(&tweedie, "txt2img", model, options)?;
        check_identical(&tweedie, model, &[]).map_err(|e| format!("{model} {options:?}: {e}"))?;
    }
    Ok(())
}

/// The second of two pictures has a seed of its own.
#[test]
fn one_picture_of_many_is_made_again() -> TestResult {
    let tweedie = Tweedie::new()?;
    make(&tweedie, "txt2img", "sd15", &["--steps", "2", "--num-images", "3", "--batch-size", "2", "--seed", "5"])?;
    std::fs::rename(tweedie.path("out-2.png"), tweedie.path("out.png"))?;
    let outcome = verify(&tweedie, "sd15", &["--output", "again.png", "--json"])?.success()?;
    // Another batch size adds numbers in another order on some machines.
    let result = outcome.json()?["result"].as_str().unwrap_or_default().to_owned();
    assert!(["identical", "close"].contains(&result.as_str()), "{result}");
    assert!(Photo::read(&tweedie.path("again.png")).is_ok());
    Ok(())
}

fn scene(tweedie: &Tweedie) -> TestResult {
    let photo = image::RgbImage::from_fn(80, 64, |x, y| image::Rgb([(x * 3) as u8, (y * 4) as u8, 128]));
    photo.save(tweedie.path("photo.png"))?;
    let mask = image::GrayImage::from_fn(80, 64, |x, y| {
        image::Luma([if (20..50).contains(&x) && (10..40).contains(&y) { 255 } else { 0 }])
    });
    Ok(mask.save(tweedie.path("mask.png"))?)
}

#[test]
fn pictures_from_pictures_need_their_inputs() -> TestResult {
    let tweedie = Tweedie::new()?;
    scene(&tweedie)?;
    let image = ["--image", "photo.png"];
    for more in [&["--strength", "0.6"][..], &["--width", "64", "--height", "64"], &["--height", "96"]] {
        make(&tweedie, "img2img", "sd15", &[&image[..], &["--steps", "4"], more].concat())?;
        check_identical(&tweedie, "sd15", &image).map_err(|e| format!("{more:?}: {e}"))?;
    }
    verify(&tweedie, "sd15", &[])?.fails(1, &["photo.png", "missing", "--image"])?;
    verify(&tweedie, "sd15", &["--image", "mask.png"])?.fails(1, &["mask.png", "SHA-256", "give that one"])?;

    let both = ["--image", "photo.png", "--mask", "mask.png"];
    let cases: [(&str, &[&str]); 5] = [
        ("sd15", &["--strength", "0.7"]),
        ("sd15", &["--crop-to-mask", "6", "--mask-grow", "2", "--mask-blur", "1", "--blend", "3"]),
        ("sd15", &["--invert-mask", "--no-composite", "--mask-resize", "max"]),
        ("sd15", &["--outpaint", "left=16,bottom=8", "--resample", "2", "--jump-length", "2"]),
        ("inpaint9", &["--width", "64", "--height", "64"]),
    ];
    for (model, more) in cases {
        make(&tweedie, "inpaint", model, &[&both[..], &["--steps", "4", "--scheduler", "ddim"], more].concat())?;
        check_identical(&tweedie, model, &both).map_err(|e| format!("{model} {more:?}: {e}"))?;
    }
    verify(&tweedie, "inpaint9", &image)?.fails(1, &["mask.png", "missing", "--mask"])
}

#[test]
fn a_changed_picture_is_close_or_different() -> TestResult {
    let tweedie = Tweedie::new()?;
    make(&tweedie, "txt2img", "sd15", &["--steps", "2"])?;
    let path = tweedie.path("out.png");
    // Up or down, whichever stays a byte.
    let moved =
        |by: u8| move |samples: &mut [u8]| samples[40] = samples[40].checked_add(by).unwrap_or(samples[40] - by);
    tamper(&path, moved(2), |_| ())?;
    let close = verify(&tweedie, "sd15", &[])?.success()?.stdout;
    assert!(close.starts_with("close: ") && close.contains("2.000 of 255") && close.contains("PSNR"), "{close}");
    tamper(&path, moved(90), |_| ())?;
    let outcome = verify(&tweedie, "sd15", &["--json"])?;
    assert_eq!((outcome.status, outcome.stderr.as_str()), (1, ""));
    let json = outcome.json()?;
    assert_eq!(json["result"], "different");
    assert!(json["max_difference"].as_f64().is_some_and(|max| (88.0..=92.0).contains(&max)), "{json}");
    assert!(json["why"].to_string().contains("changed after"), "{json}");

    make(&tweedie, "txt2img", "sd15", &["--steps", "2"])?;
    tamper(&path, |_| (), |settings| settings["seed"] = 77.into())?;
    let outcome = verify(&tweedie, "sd15", &[])?;
    assert!(outcome.status == 1 && outcome.stdout.starts_with("different: "), "{}", outcome.stdout);
    // What settings say beyond the picture is not tried.
    for (name, value) in [("width", 16384), ("height", 128)] {
        make(&tweedie, "txt2img", "sd15", &["--steps", "2"])?;
        tamper(&path, |_| (), |settings| settings[name] = value.into())?;
        verify(&tweedie, "sd15", &[])?.fails(1, &["has 64x64 pixels", &value.to_string(), "was changed"])?;
    }
    make(&tweedie, "txt2img", "sd15", &["--steps", "2"])?;
    tamper(&path, |_| (), |settings| settings["steps"] = 99_999.into())?;
    verify(&tweedie, "sd15", &[])?.fails(2, &["steps is 99999", "between 1 and 1000"])?;
    tamper(&path, |_| (), |settings| settings["scheduler_config"]["num_train_timesteps"] = 100_000.into())?;
    verify(&tweedie, "sd15", &[])?.fails(2, &["num_train_timesteps", "100000", "trained with 1000"])?;
    make(&tweedie, "txt2img", "sd15", &["--steps", "2"])?;
    tamper(&path, |_| (), |settings| settings["program"] = "tweedie 0.0.1".into())?;
    let outcome = verify(&tweedie, "sd15", &["--dtype", "bf16"])?;
    assert!(outcome.stdout.contains("program was \"tweedie 0.0.1\" and is "), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("dtype was \"f32\" and is \"bf16\""), "{}", outcome.stdout);
    Ok(())
}

#[test]
fn weights_are_known_by_their_sums() -> TestResult {
    let tweedie = Tweedie::new()?;
    make(&tweedie, "txt2img", "sd15", &["--steps", "2"])?;
    run(&tweedie, &["verify", "out.png"])?.fails(1, &["sd15", "unet/", "neither embedded nor", "--model"])?;
    verify(&tweedie, "sd21", &[])?.fails(1, &["sd21", "is not the model of the picture", "SHA-256"])?;
    verify(&tweedie, "xl-refiner", &[])?.fails(1, &["is not the model of the picture"])?;

    // The network is the same, the autoencoder not.
    copy_folder(&golden().join("models/sd15"), &tweedie.path("copy"))?;
    let vae = tweedie.path("copy/vae/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&vae)?;
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(vae, bytes)?;
    run(&tweedie, &["verify", "out.png", "--model", "copy"])?.fails(1, &["vae/diffusion_pytorch_model", "--vae"])?;

    let vae = format!("{}/vae", model("sd15"));
    make(&tweedie, "txt2img", "sd15", &["--steps", "2", "--vae", &vae])?;
    check_identical(&tweedie, "sd15", &["--vae", &vae])?;
    verify(&tweedie, "sd15", &[])?.fails(1, &["another autoencoder", "--vae"])
}

#[cfg(feature = "embedded-model")]
#[test]
fn pictures_of_the_embedded_model_need_nothing_else() -> TestResult {
    let tweedie = Tweedie::new()?;
    run(&tweedie, &["txt2img", "--quiet", "--prompt", "a cat", "--steps", "2", "--output", "out.png"])?.success()?;
    let outcome = run(&tweedie, &["verify", "out.png", "--quiet"])?.success()?;
    assert!(outcome.stdout.starts_with("identical: "), "{}", outcome.stdout);
    Ok(())
}

#[test]
fn what_cannot_be_verified_is_named() -> TestResult {
    let tweedie = Tweedie::new()?;
    let path = tweedie.path("out.png");
    verify(&tweedie, "sd15", &[])?.fails(1, &["out.png", "cannot read"])?;
    std::fs::write(&path, b"no picture")?;
    verify(&tweedie, "sd15", &[])?.fails(1, &["out.png", "PNG"])?;
    image::RgbImage::new(8, 8).save(&path)?;
    verify(&tweedie, "sd15", &[])?.fails(1, &["no settings of Tweedie"])?;

    let cases: [(&str, Value, &[&str]); 12] = [
        ("kind", "sample".into(), &["kind", "txt2img"]),
        ("wish", "x".into(), &["wish", "cannot repeat"]),
        ("steps", (-1).into(), &["steps", "whole number"]),
        ("steps", 0.into(), &["steps"]),
        ("width", 1_000_000_000_000_u64.into(), &["width"]),
        ("seed", "x".into(), &["seed", "whole number"]),
        ("scheduler", "wish".into(), &["wish"]),
        ("scheduler_config", Value::Null, &["scheduler_config"]),
        ("dtype", "f8".into(), &["dtype", "f32"]),
        ("weights_sha256", serde_json::json!({}), &["weights_sha256"]),
        ("weights_sha256", serde_json::json!({"unet/../../x": "00"}), &["no unet/../../x in common"]),
        ("prompt", Value::Null, &["prompt"]),
    ];
    for (field, value, parts) in cases {
        make(&tweedie, "txt2img", "sd15", &["--steps", "1"])?;
        tamper(&path, |_| (), |settings| settings[field] = value.clone())?;
        verify(&tweedie, "sd15", &[])?.fails(2, parts).map_err(|e| format!("{field}: {e}"))?;
    }
    Ok(())
}

/// LoRAs, textual inversions and controls are given again; with which weights, the picture knows.
#[test]
fn what_was_put_on_top_of_the_model_must_be_the_same() -> TestResult {
    let tweedie = Tweedie::new()?;
    scene(&tweedie)?;
    let file = |folder: &str| -> TestResult<String> {
        let entries = std::fs::read_dir(golden().join("models").join(folder))?;
        let files = entries.flatten().map(|entry| entry.path().to_string_lossy().into_owned());
        Ok(files.filter(|path| path.ends_with(".safetensors")).min().ok_or("no file")?)
    };
    let (lora, embedding, control) = (file("lora")?, file("embedding")?, model("controlnet"));
    let options = [
        format!("--lora={lora}:0.4"),
        format!("--embedding={embedding}:<word>"),
        format!("--control={control}:photo.png:0.6"),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    make(&tweedie, "txt2img", "sd15", &[&options[..], &["--steps", "4", "--control-end", "0.5"]].concat())?;

    let plain =
        [format!("--lora={lora}"), format!("--embedding={embedding}"), format!("--control={control}:photo.png")];
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    check_identical(&tweedie, "sd15", &plain)?;
    verify(&tweedie, "sd15", &plain[1..])?.fails(2, &["loras", "0", "SHA-256", "give each"])?;
    let other = [plain[0], plain[1], &format!("--control={control}:mask.png")];
    verify(&tweedie, "sd15", &other)?.fails(1, &["controlnet", "the picture for"])?;
    // Another file of the same form.
    let mut bytes = std::fs::read(&lora)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    std::fs::write(tweedie.path("other.safetensors"), bytes)?;
    let other = ["--lora=other.safetensors", plain[1], plain[2]];
    verify(&tweedie, "sd15", &other)?.fails(1, &["loras had", "and has"])
}
