//! Scheduler files of old models, read as diffusers' pipelines read them: which fields are mended depends on the pipeline.

mod tweedie;

use serde_json::{Value, json};
use tweedie::{TestResult, Tweedie, copy_folder, golden, read_json};

/// A folder with a picture and a mask.
fn folder() -> TestResult<Tweedie> {
    let tweedie = Tweedie::new()?;
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 90]))
        .save(tweedie.path("photo.png"))?;
    image::GrayImage::from_fn(64, 64, |x, _| image::Luma([if x < 32 { 255 } else { 0 }]))
        .save(tweedie.path("mask.png"))?;
    Ok(tweedie)
}

/// The warnings of one run of six steps, and its picture; the scheduler's file of the model has these fields.
fn run(tweedie: &Tweedie, model: &str, file: Value, arguments: &[&str]) -> TestResult<(String, image::RgbImage)> {
    let folder = tweedie.path("model");
    copy_folder(&golden().join("models").join(model), &folder)?;
    let path = folder.join("scheduler/scheduler_config.json");
    let mut json = read_json(&path)?;
    for (name, value) in file.as_object().into_iter().flatten() {
        json[name] = value.clone();
    }
    std::fs::write(path, json.to_string())?;
    let always = ["--model", "model", "--prompt", "a cat", "--steps", "6", "--output", "out.png", "--force"];
    let warnings = tweedie.run(&[arguments, &always].concat())?.success()?.warnings();
    let picture = image::open(tweedie.path("out.png"))?.into_rgb8();
    std::fs::remove_dir_all(folder)?;
    Ok((warnings.concat(), picture))
}

/// Offset and clipping are what they are in new files, and the user is told; also where the scheduler is another one than the file's.
#[test]
fn what_clips_and_has_no_offset_is_mended() -> TestResult {
    let tweedie = folder()?;
    let [old, new] = [(true, 0), (false, 1)]
        .map(|(clip, offset)| json!({"_class_name": "DDIMScheduler", "clip_sample": clip, "steps_offset": offset}));
    for arguments in [
        &["txt2img"][..],
        &["txt2img", "--scheduler", "ddpm"],
        &["img2img", "--image", "photo.png", "--strength", "0.7"],
    ] {
        let (_, expected) = run(&tweedie, "sd15", new.clone(), arguments)?;
        let (warnings, picture) = run(&tweedie, "sd15", old.clone(), arguments)?;
        assert!(warnings.contains("clip_sample true; false is used") && warnings.contains("steps_offset 0; 1 is used"));
        assert!(picture == expected, "{arguments:?}");
    }
    let (warnings, _) = run(&tweedie, "sd15", new, &["txt2img"])?;
    assert!(warnings.is_empty(), "{warnings}");
    Ok(())
}

/// Inpainting mends the start of PNDM and the offset, but clips as the file says.
#[test]
fn inpainting_mends_other_fields() -> TestResult {
    let tweedie = folder()?;
    let inpaint = ["inpaint", "--image", "photo.png", "--mask", "mask.png"];
    let pndm = |skip: bool, offset: u32| json!({"skip_prk_steps": skip, "steps_offset": offset});
    let (_, expected) = run(&tweedie, "sd15", pndm(true, 1), &inpaint)?;
    let (warnings, picture) = run(&tweedie, "sd15", pndm(false, 0), &inpaint)?;
    assert!(warnings.contains("skip_prk_steps false; true is used"), "{warnings}");
    assert!(picture == expected);
    let ddim = |clip: bool| json!({"_class_name": "DDIMScheduler", "clip_sample": clip});
    let (_, plain) = run(&tweedie, "sd15", ddim(false), &inpaint)?;
    let (warnings, clipped) = run(&tweedie, "sd15", ddim(true), &inpaint)?;
    assert!(warnings.contains("cuts predicted latents to 1"), "{warnings}");
    assert!(clipped != plain);
    Ok(())
}

/// Pipelines of Stable Diffusion XL, and those with control models, leave the file as it is.
#[test]
fn other_pipelines_mend_nothing() -> TestResult {
    let tweedie = folder()?;
    let control = format!("--control={}:photo.png", golden().join("models/controlnet").display());
    for (model, arguments) in [("xl-small", &["txt2img"][..]), ("sd15", &["txt2img", &control])] {
        let file = |offset: u32| json!({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": offset});
        let (_, expected) = run(&tweedie, model, file(1), arguments)?;
        let (warnings, picture) = run(&tweedie, model, file(0), arguments)?;
        assert!(!warnings.contains("is used, as in diffusers"), "{warnings}");
        assert!(picture != expected, "{model}");
    }
    Ok(())
}
