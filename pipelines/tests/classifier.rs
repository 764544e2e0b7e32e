//! `tweedie train classifier` and `tweedie eval classify`.

mod tweedie;

use ::tweedie::images::{ColorType, Photo, Samples};
use std::path::Path;
use std::process::{Command, Stdio};
use tweedie::{TestResult, Tweedie, kill_when_there, pixels, read_json};

/// Pictures of a bright bar at the top, in the middle or at the bottom, each kind in a sub-folder.
fn write_bars(folder: &Path, count: usize) -> TestResult {
    for (kind, name) in ["top", "middle", "bottom"].into_iter().enumerate() {
        std::fs::create_dir_all(folder.join(name))?;
        for i in 0..count {
            let value =
                |at: usize| if at / 48 == kind { 130 + (i * 37 % 120) as u8 } else { (at * (i + 3) % 50) as u8 };
            let photo = Photo::new(12, 12, ColorType::Grey, Samples::Eight((0..144).map(value).collect()))?;
            std::fs::write(folder.join(format!("{name}/{i}.png")), photo.encode_png(&[])?)?;
        }
    }
    Ok(())
}

#[test]
fn a_classifier_is_trained_and_judges() -> TestResult {
    let program = Tweedie::new()?;
    write_bars(&program.path("data/train"), 12)?;
    write_bars(&program.path("data/test"), 4)?;
    let train = ["train", "classifier", "--data", "data", "--steps", "120", "--batch-size", "12", "--json", "--quiet"];
    let run = |more: &[&str]| program.run(&[&train[..], more].concat());
    let result = run(&["--output", "clean"])?.success()?.json()?;
    assert_eq!(result["test"][0]["total"], 12);
    assert_eq!(result["test"][0]["correct"], 12);
    let config = read_json(&program.path("clean/model/classifier/config.json"))?;
    assert_eq!(config["class_names"], serde_json::json!(["bottom", "middle", "top"]));
    assert!(program.path("clean/loss.png").is_file() && program.path("clean/metrics.jsonl").is_file());
    let info = program.run(&["model", "info", "clean", "--json"])?.success()?.json()?;
    assert_eq!(info["components"][0]["name"], "classifier");

    let judge = ["eval", "classify", "--classifier", "clean/model", "--images"];
    let judge = |images: &str, more: &[&str]| program.run(&[&judge[..], &[images], more].concat());
    let result = judge("data/test", &["--json"])?.success()?.json()?;
    assert_eq!((&result["correct"], &result["total"]), (&12.into(), &12.into()));
    assert_eq!(result["confusion"], serde_json::json!([[4, 0, 0], [0, 4, 0], [0, 0, 4]]));
    // Classes asked for in turn, of pictures that are all of one.
    let text = judge("data/test/top", &["--classes", "2,middle"])?.success()?.stdout;
    assert_eq!(text, "2 of 4 right (50.00 %)\n2 of class middle taken for top\n");
    judge("data/test/top", &[])?.fails(2, &["no labels", "--classes"])?;
    judge("data/test/top", &["--classes", "3"])?.fails(2, &["a class is 3", "this model has 3", "middle"])?;

    let result = run(&["--output", "noisy", "--noisy", "--timesteps", "400"])?.success()?.json()?;
    let timesteps: Vec<_> = result["test"].as_array().ok_or("no test")?.iter().map(|a| &a["timestep"]).collect();
    assert_eq!(timesteps, [0, 100, 250]);
    assert_eq!(read_json(&program.path("noisy/model/scheduler/scheduler_config.json"))?["num_train_timesteps"], 400);
    run(&["--output", "clean"])?.fails(1, &["clean", "--output"])?;
    // A finished run that goes on has nothing left to do, unless other things are asked of it.
    let again = run(&["--output", "noisy", "--resume"])?.success()?.json()?;
    assert_eq!(again["test"], result["test"]);
    run(&["--output", "noisy", "--resume", "--shift", "3"])?.fails(2, &["--shift is 3", "the run has 2"])?;
    let digits = ["train", "pixel", "--data", "data", "--resume", "--output", "clean"];
    program.run(&digits)?.fails(1, &["a setting of the run", "same kind of training"])?;
    Ok(())
}

/// A model that was trained on sub-folders knows their names, before the run is finished too.
#[test]
fn classes_of_a_model_have_the_names_of_folders() -> TestResult {
    let program = Tweedie::new()?;
    write_bars(&program.path("data"), 6)?;
    let train = ["train", "pixel", "--data", "data", "--output", "run", "--steps", "4", "--channels", "8,8", "--quiet"];
    program.run(&train)?.success()?;
    let index = read_json(&program.path("run/model/model_index.json"))?;
    assert_eq!(index["id2label"], serde_json::json!({"0": "bottom", "1": "middle", "2": "top"}));
    let sample = |output: &str, classes: &str| {
        let all = ["sample", "--checkpoint", "run", "--steps", "2", "--grid", "--output", output, "--classes", classes];
        program.run(&all)
    };
    sample("names.png", "top,bottom,1")?.success()?;
    sample("numbers.png", "2,0,1")?.success()?;
    assert_eq!(pixels(&program.path("names.png"))?, pixels(&program.path("numbers.png"))?);
    sample("x.png", "left")?.fails(2, &["a class is left", "take 0 to 2, or a name: bottom, middle, top"])?;
    sample("x.png", "3")?.fails(2, &["a class is 3", "take 0 to 2"])?;
    // A name that is a number goes before the number of a class.
    for (from, to) in [("top", "2"), ("middle", "1"), ("bottom", "3")] {
        std::fs::rename(program.path("data").join(from), program.path("data").join(to))?;
    }
    let other =
        ["train", "pixel", "--data", "data", "--output", "run2", "--steps", "1", "--channels", "8,8", "--quiet"];
    program.run(&other)?.success()?;
    let numbered = ["sample", "--checkpoint", "run2", "--steps", "1", "--json", "--output", "y.png", "--classes"];
    let classes = |classes: &str| program.run(&[&numbered[..], &[classes, "--grid", "--force"]].concat());
    assert_eq!(classes("1,3")?.success()?.json()?["classes"], serde_json::json!([0, 2]));
    classes("4")?.fails(2, &["a class is 4", "or a name: 1, 2, 3"])?;
    // Those of digits are their numbers.
    let digits = ["sample", "mnist", "--classes", "seven", "--output", "x.png"];
    program.run(&digits)?.fails(2, &["a class is seven", "this model has 10; take 0 to 9"])?;
    Ok(())
}

/// Killed after a checkpoint and resumed, it is the classifier that is trained in one go, to the bit.
#[test]
fn a_classifier_that_is_killed_goes_on() -> TestResult {
    let program = Tweedie::new()?;
    write_bars(&program.path("data"), 12)?;
    let train = |output: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
        command.stdout(Stdio::null());
        command.args(["train", "classifier", "--data", "data", "--noisy", "--steps", "60", "--checkpoint-every", "4"]);
        command
            .args(["--accumulate", "2", "--resume", "--quiet", "--output", output])
            .current_dir(program.folder.path());
        command
    };
    assert!(train("whole").status()?.success());
    let saved = program.path("killed/checkpoints/step-000000004/manifest.json");
    kill_when_there(&mut train("killed"), &saved)?;
    assert!(train("killed").status()?.success());
    for file in ["classifier/diffusion_pytorch_model.safetensors", "training.json", "classifier/config.json"] {
        let read = |run: &str| std::fs::read(program.path(run).join("model").join(file));
        assert_eq!(read("killed")?, read("whole")?, "{file}");
    }
    let steps = std::fs::read_to_string(program.path("killed/metrics.jsonl"))?;
    assert_eq!(steps.lines().count(), 60);
    Ok(())
}

#[test]
fn data_that_cannot_be_used_says_why() -> TestResult {
    let program = Tweedie::new()?;
    let train = |kind: &str, data: &str| program.run(&["train", kind, "--data", data, "--output", "run", "--quiet"]);
    train("mnist", "gone")?.fails(1, &["train-images-idx3-ubyte.gz", "--download", "dataset-fashion-mnist"])?;
    train("classifier", "gone")?.fails(1, &["gone", "--download"])?;
    write_bars(&program.path("data"), 1)?;
    train("classifier", "data/top")?.fails(2, &["0 classes", "sub-folders"])?;
    assert!(!program.path("run").exists());
    Ok(())
}
