//! `tweedie sample`: pictures, their names, the JSON, and one clear error for everything that cannot be done.

mod tweedie;

use serde_json::{Value, json};
use std::path::Path;
use tweedie::{TestResult, Tweedie, check_same_picture, copy_folder, golden, pixels, read_json};

fn model(name: &str) -> String {
    golden().join("models").join(name).to_string_lossy().into_owned()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) -> TestResult {
    let mut json = read_json(path)?;
    change(&mut json);
    Ok(std::fs::write(path, json.to_string())?)
}

/// Image i is from seed + i and classes[i mod n]: what it is alone.
#[test]
fn a_picture_is_the_same_alone_and_in_any_batch() -> TestResult {
    let (t, model) = (Tweedie::new()?, model("pixel32-class"));
    let common = ["sample", "--checkpoint", &model, "--steps", "3", "--quiet"];
    let run = |arguments: &[&str]| t.run(&[&common, arguments].concat())?.success();
    run(&["--classes", "4,9", "--num-images", "5", "--seed", "10", "--batch-size", "2", "--output", "two.png"])?;
    run(&["--classes", "4,9", "--num-images", "5", "--seed", "10", "--batch-size", "5", "--output", "five.png"])?;
    for (i, (class, seed)) in [("4", "10"), ("9", "11"), ("4", "12"), ("9", "13"), ("4", "14")].iter().enumerate() {
        let alone = format!("alone-{i}.png");
        run(&["--classes", class, "--seed", seed, "--output", &alone])?;
        for batched in [format!("two-{i}.png"), format!("five-{i}.png")] {
            check_same_picture(&t.path(&batched), &t.path(&alone))?;
        }
    }
    // Another class from the same noise is another picture.
    run(&["--classes", "7", "--seed", "10", "--output", "other.png"])?;
    assert!(check_same_picture(&t.path("other.png"), &t.path("alone-0.png")).is_err());
    Ok(())
}

#[test]
fn json_says_what_was_made_of_what() -> TestResult {
    let (t, model) = (Tweedie::new()?, model("pixel32-class"));
    let arguments = ["sample", "--checkpoint", &model, "--classes", "3,1", "--steps", "4", "--scheduler", "ddim"];
    let more = ["--eta", "0.5", "--seed", "7", "--num-images", "3", "--output", "x.png", "--json"];
    let summary = t.run(&[&arguments[..], &more].concat())?.success()?.json()?;
    assert_eq!(summary["files"], json!(["x-0.png", "x-1.png", "x-2.png"]));
    assert_eq!(t.files()?, ["x-0.png", "x-1.png", "x-2.png"]);
    assert_eq!((&summary["seed"], &summary["seeds"]), (&json!(7), &json!([7, 8, 9])));
    assert_eq!(summary["classes"], json!([3, 1, 3]));
    let settings = &summary["settings"];
    assert_eq!((&settings["steps"], &settings["scheduler"]), (&json!(4), &json!("ddim")));
    assert_eq!(settings["scheduler_config"]["eta"], json!(0.5));
    assert_eq!(settings["model"], "pixel32-class");
    let hash = &settings["weights_sha256"]["unet/diffusion_pytorch_model.safetensors"];
    assert_eq!(hash.as_str().map(str::len), Some(64));
    for stage in ["load", "denoise", "total"] {
        assert!(summary["seconds"][stage].as_f64().is_some_and(|s| s > 0.0), "{stage}");
    }
    Ok(())
}

#[test]
fn a_grid_is_one_file_with_every_picture_in_it() -> TestResult {
    let (t, model) = (Tweedie::new()?, model("pixel32-class"));
    let common = ["sample", "--checkpoint", &model, "--steps", "2", "--quiet", "--classes", "0,5", "--num-images", "4"];
    t.run(&[&common[..], &["--output", "g.png", "--grid"]].concat())?.success()?;
    t.run(&[&common[..], &["--output", "p.png"]].concat())?.success()?;
    let (width, height, grid) = pixels(&t.path("g.png"))?;
    assert_eq!((width, height), (2 * 32 + 2, 2 * 32 + 2));
    for (i, (left, top)) in [(0, 0), (34, 0), (0, 34), (34, 34)].iter().enumerate() {
        let (_, _, picture) = pixels(&t.path(&format!("p-{i}.png")))?;
        for (y, row) in picture.chunks_exact(3 * 32).enumerate() {
            let start = 3 * ((top + y) * width as usize + left);
            assert_eq!(&grid[start..start + row.len()], row, "picture {i}, row {y}");
        }
    }
    Ok(())
}

/// A scheduler without a table of betas is drawn too.
#[test]
fn a_trajectory_of_flow_is_drawn() -> TestResult {
    let (t, model) = (Tweedie::new()?, model("pixel16-learned"));
    let common = ["sample", "--checkpoint", &model, "--steps", "4", "--scheduler", "flow-euler", "--quiet"];
    t.run(&[&common[..], &["--output", "x.png", "--trajectory", "way.png"]].concat())?.success()?;
    let (width, height, _) = pixels(&t.path("way.png"))?;
    // Five states in three rows, with names beside and noise levels above.
    assert!((5 * 100..5 * 100 + 200).contains(&width) && (3 * 100..3 * 130).contains(&height), "{width}x{height}");
    Ok(())
}

/// Ten columns of three rows; the finished picture stands at the start of the first row and the end of the others.
#[test]
fn a_trajectory_goes_to_noise_and_back() -> TestResult {
    let (t, model) = (Tweedie::new()?, model("pixel16-learned"));
    let arguments = ["sample", "--checkpoint", &model, "--steps", "12", "--quiet", "--output", "x.png"];
    let more = ["--trajectory", "way.png", "--animation", "film.png"];
    t.run(&[&arguments[..], &more].concat())?.success()?;
    let (width, height, way) = pixels(&t.path("way.png"))?;
    let side = 96; // 16 pixels, enlarged six times
    // Names are to the left and noise levels above.
    let (pitch, above) = (height / 3, height / 3 - side - 4);
    let before = width - 10 * (side + 4);
    assert!(above > 10 && before > 50, "{width}x{height}");
    let (_, _, picture) = pixels(&t.path("x.png"))?;
    for (column, row) in [(0, 0), (9, 1), (9, 2)] {
        for (x, y) in (0..16).flat_map(|x| (0..16).map(move |y| (x, y))) {
            let (left, top) = (before + column * (side + 4), above + row * pitch);
            let at = 3 * ((top + 6 * y + 3) * width + left + 6 * x + 3) as usize;
            assert_eq!(way[at], picture[3 * (16 * y + x) as usize], "cell {column},{row} at {x},{y}");
        }
    }
    // 13 states and the last again; viewers without animation show the first frame.
    let film = std::fs::read(t.path("film.png"))?;
    let at = film.windows(4).position(|window| window == b"acTL").ok_or("not animated")? + 4;
    assert_eq!(film[at..at + 4], 28u32.to_be_bytes());
    Ok(())
}

#[test]
fn every_solver_makes_a_picture() -> TestResult {
    let (t, model) = (Tweedie::new()?, model("pixel16-learned"));
    // EDM's own solvers need EDM's own networks.
    let names =
        ::tweedie::schedulers::SCHEDULERS.iter().map(|entry| entry.name).filter(|name| !name.starts_with("edm"));
    for name in names {
        let output = format!("{name}.png");
        t.run(&[
            "sample",
            "--checkpoint",
            &model,
            "--steps",
            "4",
            "--scheduler",
            name,
            "--quiet",
            "--output",
            &output,
        ])?
        .success()
        .map_err(|e| format!("{name}: {e}"))?;
        assert_eq!(pixels(&t.path(&output))?.0, 16, "{name}");
    }
    Ok(())
}

#[test]
fn the_model_in_a_training_run_and_its_defaults_are_found() -> TestResult {
    let t = Tweedie::new()?;
    copy_folder(&golden().join("models/pixel16-learned"), &t.path("run/model"))?;
    std::fs::write(t.path("run/model/defaults.json"), r#"{"steps": 3}"#)?;
    let summary =
        t.run(&["sample", "--checkpoint", "run", "--json", "--quiet", "--output", "x.png"])?.success()?.json()?;
    assert_eq!(summary["settings"]["steps"], 3);
    assert_eq!(summary["classes"], json!([]));
    // A DDIMPipeline takes any scheduler's file as DDIM's.
    edit(&t.path("run/model/model_index.json"), |json| json["_class_name"] = "DDIMPipeline".into())?;
    let summary =
        t.run(&["sample", "--checkpoint", "run", "--json", "--quiet", "--output", "y.png"])?.success()?.json()?;
    assert_eq!(summary["settings"]["scheduler"], "ddim");
    // Without --output the name comes from the model and the seed.
    t.run(&["sample", "--checkpoint", "run", "--quiet", "--seed", "5"])?.success()?;
    assert!(t.files()?.contains(&"run-5.png".into()), "{:?}", t.files()?);
    Ok(())
}

/// With a null class, guidance of scale 0 is the picture of no class, 1 that of the class, and more goes beyond.
#[test]
fn guidance_goes_from_no_class_through_the_class() -> TestResult {
    let t = Tweedie::new()?;
    copy_folder(&golden().join("models/pixel32-class"), &t.path("m"))?;
    edit(&t.path("m/unet/config.json"), |json| json["_null_class"] = 9.into())?;
    let common = ["sample", "--checkpoint", "m", "--steps", "3", "--scheduler", "ddim", "--quiet", "--classes", "2"];
    let run = |scale: &str, output: &str| {
        t.run(&[&common[..], &["--guidance-scale", scale, "--output", output]].concat())?.success()
    };
    for (scale, output) in [("0", "zero.png"), ("1", "one.png"), ("3", "three.png")] {
        run(scale, output)?;
    }
    let plain = model("pixel32-class");
    for (class, name) in [("9", "zero.png"), ("2", "one.png")] {
        let arguments = ["sample", "--checkpoint", &plain, "--steps", "3", "--scheduler", "ddim", "--classes", class];
        t.run(&[&arguments[..], &["--output", "plain.png", "--force", "--quiet"]].concat())?.success()?;
        check_same_picture(&t.path(name), &t.path("plain.png"))?;
    }
    assert!(check_same_picture(&t.path("three.png"), &t.path("one.png")).is_err());
    // The null class is none to ask for.
    t.run(&["sample", "--checkpoint", "m", "--classes", "9"])?.fails(2, &["a class is 9", "this model has 9", "0 to 8"])
}

/// A LeNet for 16x16 pictures whose every value is a function of its place.
fn write_classifier(folder: &Path) -> TestResult {
    std::fs::create_dir_all(folder.join("classifier"))?;
    let config = json!({
        "_class_name": "LeNet", "in_channels": 1, "sample_size": 16, "block_out_channels": [2, 3],
        "hidden_size": 4, "class_names": ["a", "b", "c"], "time_embedding": null,
    });
    std::fs::write(folder.join("classifier/config.json"), config.to_string())?;
    let shapes: [(&str, &[usize]); 8] = [
        ("conv1.weight", &[2, 1, 5, 5]),
        ("conv1.bias", &[2]),
        ("conv2.weight", &[3, 2, 5, 5]),
        ("conv2.bias", &[3]),
        ("hidden.weight", &[4, 48]),
        ("hidden.bias", &[4]),
        ("output.weight", &[3, 4]),
        ("output.bias", &[3]),
    ];
    let value = |i: usize| 0.2 * (i as f32 * 1.7).sin() + 0.02;
    let bytes =
        shapes.map(|(_, shape)| (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>());
    let views = shapes.iter().zip(&bytes).map(|(&(name, shape), bytes)| {
        Ok((name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes)?))
    });
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let file = folder.join("classifier/diffusion_pytorch_model.safetensors");
    Ok(std::fs::write(file, safetensors::serialize(views, None)?)?)
}

/// Classifier guidance gives an unconditional model classes; its effect grows from nothing with the scale.
#[test]
fn a_classifier_guides_a_model_without_classes() -> TestResult {
    let (t, model) = (Tweedie::new()?, model("pixel16-learned"));
    write_classifier(&t.path("judge"))?;
    let common = ["sample", "--checkpoint", &model, "--steps", "4", "--quiet", "--force"];
    let run = |arguments: &[&str]| t.run(&[&common[..], arguments].concat())?.success();
    run(&["--output", "plain.png"])?;
    let guided = ["--classifier", "judge", "--classes", "1", "--classifier-scale"];
    for (scale, output) in [("0", "zero.png"), ("500", "strong.png")] {
        run(&[&guided[..], &[scale, "--output", output]].concat())?;
    }
    check_same_picture(&t.path("zero.png"), &t.path("plain.png"))?;
    assert!(check_same_picture(&t.path("strong.png"), &t.path("plain.png")).is_err());
    let sample = |arguments: &[&str]| t.run(&[&common[..], arguments].concat());
    sample(&["--classifier", "judge", "--classes", "3"])?.fails(2, &["a class is 3", "0 to 2"])?;
    let other = golden().join("models/pixel32-class").to_string_lossy().into_owned();
    let arguments = ["sample", "--checkpoint", &other, "--classifier", "judge"];
    t.run(&arguments)?.fails(1, &["the classifier", "16x16", "take one trained on the same"])
}

#[test]
fn what_cannot_be_done_is_one_clear_error() -> TestResult {
    let t = Tweedie::new()?;
    let (class, plain, latent) = (model("pixel32-class"), model("pixel16-learned"), model("sd15"));
    let sample = |arguments: &[&str]| t.run(&[&["sample"], arguments].concat());
    sample(&["--checkpoint", &class, "--classes", "3,10"])?
        .fails(2, &["a class is 10", "this model has 10", "0 to 9"])?;
    sample(&["--checkpoint", &plain, "--classes", "3"])?
        .fails(2, &["list of classes is 3", "trained without classes"])?;
    sample(&["--checkpoint", &latent])?.fails(1, &["the model is sd15", "txt2img"])?;
    sample(&["--checkpoint", "nowhere"])?.fails(1, &["nowhere", "no such file or folder"])?;
    std::fs::create_dir(t.path("empty"))?;
    sample(&["--checkpoint", "empty"])?.fails(1, &["the checkpoint is empty", "unet/config.json", "finished"])?;
    sample(&["--checkpoint", &class, "--guidance-scale", "3"])?.fails(2, &["guidance scale is 3", "no null class"])?;
    sample(&["--checkpoint", &plain, "--guidance-scale", "3"])?
        .fails(2, &["guidance scale is 3", "without classes"])?;
    sample(&["--checkpoint", &plain, "--guidance-scale", "nan"])?.fails(2, &["guidance scale is NaN"])?;
    sample(&["--checkpoint", &plain, "--eta", "2", "--scheduler", "ddim"])?
        .fails(2, &["eta is 2", "0 (deterministic)"])?;
    sample(&["--checkpoint", &plain, "--scheduler", "magic"])?.fails(2, &["magic", "ddim"])?;
    sample(&["--checkpoint", &plain, "--steps", "0"])?.fails(2, &["steps", "0"])?;
    sample(&["--checkpoint", &plain, "--steps", "1001"])?.fails(2, &["1001"])?;
    sample(&["--checkpoint", &plain, "--num-images", "0"])?.fails(2, &["number of images is 0"])?;
    sample(&["--checkpoint", &plain, "--output", "x.gif"])?.fails(2, &["x.gif", ".png"])?;
    sample(&["--checkpoint", &plain, "--classifier", "nowhere"])?.fails(1, &["nowhere", "no such folder"])?;
    sample(&["--checkpoint", &plain, "--classifier-scale", "2"])?.fails(2, &["--classifier"])?;
    sample(&[])?.fails(2, &["--checkpoint"])?;
    sample(&["mnist", "--checkpoint", &plain])?.fails(2, &["cannot be used with"])?;
    assert_eq!(t.files()?, ["empty"], "nothing was written");
    Ok(())
}

#[test]
fn model_info_knows_models_in_pixel_space() -> TestResult {
    let info = Tweedie::new()?.run(&["model", "info", &model("pixel32-class")])?.success()?.stdout;
    for part in ["pixel space, 10 classes", "32x32", "UNet2DModel", "DDPMPipeline"] {
        assert!(info.contains(part), "`{part}` is not in: {info}");
    }
    Ok(())
}

#[cfg(feature = "embedded-mnist")]
#[test]
fn the_embedded_model_draws_digits_offline() -> TestResult {
    let tweedie = Tweedie::new()?;
    let arguments = ["sample", "mnist", "--classes", "7,1", "--num-images", "2", "--steps", "4", "--output", "d.png"];
    let json = tweedie.run(&[&arguments[..], &["--json", "--quiet"]].concat())?.success()?.json()?;
    assert_eq!(json["settings"]["model"], "mnist-ddpm");
    for name in ["d-0.png", "d-1.png"] {
        assert_eq!(image::image_dimensions(tweedie.path(name))?, (28, 28));
        // Strokes of white on black: neither empty nor full.
        let (_, _, rgb) = tweedie::pixels(&tweedie.path(name))?;
        let white = rgb.iter().filter(|&&byte| byte > 127).count() as f64 / rgb.len() as f64;
        assert!((0.02..0.4).contains(&white), "{name}: {white}");
    }
    Ok(())
}

#[cfg(not(feature = "embedded-mnist"))]
#[test]
fn without_the_embedded_digits_the_message_says_what_to_do() -> TestResult {
    Tweedie::new()?.run(&["sample", "mnist"])?.fails(1, &["the model is mnist", "--checkpoint", "tweedie train mnist"])
}

#[test]
fn a_damaged_configuration_is_named() -> TestResult {
    let t = Tweedie::new()?;
    for (field, value, parts) in [
        ("in_channels", json!(4), ["in_channels", "1 or 3 channels"]),
        ("sample_size", json!(null), ["sample_size", "side of the pictures"]),
        ("class_embed_type", json!("timestep"), ["class_embed_type", "numbered classes"]),
        ("block_out_channels", json!([16, 31]), ["norm_num_groups", "divide"]),
        ("block_out_channels", json!([16, 64]), ["unet", "64"]),
    ] {
        let folder = t.path(&format!("m-{field}-{value}").replace(['"', ',', '[', ']'], ""));
        copy_folder(&golden().join("models/pixel16-learned"), &folder)?;
        edit(&folder.join("unet/config.json"), |json| json[field] = value)?;
        t.run(&["sample", "--checkpoint", &folder.to_string_lossy()])?.fails(1, &parts)?;
    }
    Ok(())
}
