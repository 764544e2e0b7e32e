//! Pictures that earlier versions made, in `pictures`, are made again from what they say. They were made with
//! `TWEEDIE_ISA=portable`, which computes the same on every machine.

mod tweedie;

use std::path::Path;
use tweedie::{Outcome, TestResult, Tweedie, golden};

fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures").join(name).to_string_lossy().into_owned()
}

fn verify(name: &str, more: &[String]) -> TestResult<Outcome> {
    let tweedie = Tweedie::new()?;
    let home = tweedie.path("no-cache").to_string_lossy().into_owned();
    let picture = file(name);
    let first = ["verify", &picture, "--quiet"];
    let arguments: Vec<&str> = first.into_iter().chain(more.iter().map(String::as_str)).collect();
    tweedie.run_with(&arguments, &[("TWEEDIE_ISA", "portable"), ("HF_HOME", &home), ("HF_HUB_OFFLINE", "1")])
}

fn check_identical(name: &str, more: &[String]) -> TestResult {
    let outcome = verify(name, more)?.success().map_err(|e| format!("{name}: {e}"))?;
    assert!(outcome.stdout.starts_with("identical: "), "{name}: {}", outcome.stdout);
    Ok(())
}

fn image() -> Vec<String> {
    vec![format!("--image={}", file("photo.png"))]
}

fn image_and_mask() -> Vec<String> {
    [image(), vec![format!("--mask={}", file("mask.png"))]].concat()
}

fn model(name: &str) -> Vec<String> {
    vec![format!("--model={}", golden().join("models").join(name).display())]
}

#[cfg(feature = "embedded-model")]
#[test]
fn pictures_of_the_embedded_model_are_still_made() -> TestResult {
    for name in ["plain.png", "schedule.png", "apg.png", "pag.png", "rescale.png"] {
        check_identical(name, &[])?;
    }
    check_identical("img2img.png", &image())?;
    for name in ["outpaint.png", "crop.png", "decoded.png"] {
        check_identical(name, &image_and_mask())?;
    }
    Ok(())
}

#[test]
fn pictures_of_other_models_and_with_adapters_are_still_made() -> TestResult {
    check_identical("xl.png", &model("xl-small"))?;
    check_identical("refiner.png", &[image(), model("xl-refiner")].concat())?;
    let models = golden().join("models");
    let adapters = vec![
        format!("--lora={}", models.join("lora/kohya.safetensors").display()),
        format!("--embedding={}", models.join("embedding/thing.a1111.safetensors").display()),
        format!("--control={}:{}", models.join("controlnet").display(), file("photo.png")),
    ];
    check_identical("adapters.png", &[model("sd15"), adapters].concat())
}

/// These say that guidance was limited, and it was not: schedulers without training timesteps passed over that. A version
/// that heeds it makes others and says why.
#[cfg(feature = "embedded-model")]
#[test]
fn a_picture_that_a_fault_drew_names_it() -> TestResult {
    for (name, option) in [("edm-interval.png", "guidance_interval"), ("flow-schedule.png", "guidance_schedule")] {
        let outcome = verify(name, &[])?;
        let fault = format!("{option} was recorded but not applied by the version that made it");
        match outcome.status {
            0 => assert!(outcome.stdout.starts_with("identical: "), "{name}: {}", outcome.stdout),
            _ => assert!(outcome.stdout.contains(&fault), "{name}: {}{}", outcome.stdout, outcome.stderr),
        }
    }
    Ok(())
}
