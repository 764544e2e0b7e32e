//! Runs of training that are used before they have finished, made longer and shorter, and looked at meanwhile.

mod tweedie;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use tweedie::digits::{arguments, with_data};
use tweedie::{TestResult, Tweedie, kill_when_there, pixels, read_json};

/// A run into the folder `run` that is killed after its checkpoint of step 10; gives the step of its newest one.
fn unfinished(tweedie: &Tweedie, more: &[&str]) -> TestResult<u64> {
    let options = ["--steps", "100000", "--checkpoint-every", "10", "--sample-every", "100000"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
    command.args(arguments("run", &[&options, more].concat())).current_dir(tweedie.folder.path());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    kill_when_there(&mut command, &tweedie.path("run/checkpoints/step-000000010/manifest.json"))?;
    newest(&tweedie.path("run"))
}

fn newest(run: &Path) -> TestResult<u64> {
    let names = std::fs::read_dir(run.join("checkpoints"))?.flatten().map(|entry| entry.path());
    let written = names.filter(|path| path.join("manifest.json").is_file());
    let steps = written.filter_map(|path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok());
    Ok(steps.max().ok_or("no checkpoint")?)
}

fn sample(tweedie: &Tweedie, checkpoint: &str, output: &str, more: &[&str]) -> TestResult<tweedie::Outcome> {
    let all = ["sample", "--checkpoint", checkpoint, "--num-images", "4", "--steps", "3", "--grid", "--output", output];
    tweedie.run(&[&all[..], more].concat())
}

fn losses(run: &Path, name: &str) -> TestResult<Vec<(u64, f64)>> {
    let mut losses = Vec::new();
    for line in std::fs::read_to_string(run.join("metrics.jsonl"))?.lines() {
        let line: Value = serde_json::from_str(line)?;
        losses.extend(line["step"].as_u64().zip(line[name].as_f64()));
    }
    Ok(losses)
}

/// The newest checkpoint draws what the model draws that the run ends as when it is ended there; and is looked at and converted.
#[test]
fn an_unfinished_run_is_the_model_that_it_would_end_as() -> TestResult {
    let tweedie = with_data()?;
    let step = unfinished(&tweedie, &["--class-dropout", "0.3"])?;
    let told = sample(&tweedie, "run", "newest.png", &[])?.success()?;
    assert_eq!(told.stderr.matches(&format!("after step {step} of 100000")).count(), 1, "{}", told.stderr);
    let folder = format!("run/checkpoints/step-{step:09}");
    sample(&tweedie, &folder, "folder.png", &["--quiet"])?.success()?;
    let info = tweedie.run(&["model", "info", "run", "--json"])?.success()?;
    assert!(info.stderr.contains(&format!("after step {step}")), "{}", info.stderr);
    let info = info.json()?;
    assert_eq!((info["model"].as_str(), info["width"].as_u64()), (Some(&*format!("run-step-{step}")), Some(8)));
    tweedie.run(&["model", "convert", "run", "converted"])?.success()?;

    let steps = step.to_string();
    let ended = tweedie.run(&arguments("run", &["--resume", "--steps", &steps]))?.success()?;
    assert!(ended.stderr.contains("which are done"), "{}", ended.stderr);
    assert!(!tweedie.path("run/unfinished").exists());
    let finished = sample(&tweedie, "run", "finished.png", &[])?.success()?;
    assert!(!finished.stderr.contains("before its end"), "{}", finished.stderr);
    sample(&tweedie, "converted", "converted.png", &["--quiet"])?.success()?;
    // One of the checkpoints of a finished run too.
    sample(&tweedie, &folder, "again.png", &["--quiet"])?.success()?;
    let expected = pixels(&tweedie.path("finished.png"))?;
    for picture in ["newest.png", "folder.png", "converted.png", "again.png"] {
        assert!(pixels(&tweedie.path(picture))? == expected, "{picture}");
    }
    // The curve is there without the run having been finished by its own steps.
    assert!(tweedie.path("run/loss.png").is_file());
    Ok(())
}

#[test]
fn a_checkpoint_that_is_damaged_or_not_there_is_named() -> TestResult {
    let tweedie = with_data()?;
    let step = unfinished(&tweedie, &[])?;
    let ema = tweedie.path(&format!("run/checkpoints/step-{step:09}/ema.safetensors"));
    let mut bytes = std::fs::read(&ema)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    std::fs::write(&ema, bytes)?;
    sample(&tweedie, "run", "a.png", &[])?.fails(1, &["ema.safetensors is not what was written"])?;
    std::fs::remove_dir_all(tweedie.path("run/checkpoints"))?;
    sample(&tweedie, "run", "a.png", &[])?.fails(1, &["run", "no checkpoint yet"])?;
    // What a run of this kind is only at its end.
    let classifier = ["--data", "data", "--output", "judge", "--quiet", "--checkpoint-every", "5", "--batch-size", "4"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
    command.args(["train", "classifier", "--steps", "100000"]).args(classifier).current_dir(tweedie.folder.path());
    for part in ["images-idx3-ubyte", "labels-idx1-ubyte"] {
        let [train, test] = ["train", "t10k"].map(|split| tweedie.path(&format!("data/{split}-{part}")));
        std::fs::copy(train, test)?;
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    kill_when_there(&mut command, &tweedie.path("judge/checkpoints/step-000000005/manifest.json"))?;
    let ended = newest(&tweedie.path("judge"))?.to_string();
    tweedie.run(&["model", "info", "judge"])?.fails(1, &["judge", "only then", "--resume", &ended, "--steps"])
}

/// With another number of steps the learning rate follows another schedule from there on, and more or fewer steps than are done
/// cannot be taken back.
#[test]
fn a_run_becomes_longer_and_shorter() -> TestResult {
    let tweedie = with_data()?;
    tweedie.run(&arguments("run", &["--steps", "20", "--checkpoint-every", "10"]))?.success()?;
    let resumed = |steps: &str| tweedie.run(&arguments("run", &["--resume", "--steps", steps]));
    let longer = resumed("40")?.success()?;
    assert!(longer.stderr.contains("was to have 20 steps and has 40"), "{}", longer.stderr);
    let rates = losses(&tweedie.path("run"), "learning_rate")?;
    assert_eq!(rates.len(), 40);
    // The cosine after 5 steps of warm-up, of 20 steps and then of 40.
    let rate = |step: u64, total: u64| {
        let done = (step - 1 - 5) as f64 / (total - 5) as f64;
        1e-3 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    };
    assert!((rates[19].1 - rate(20, 20)).abs() < 1e-12 && (rates[20].1 - rate(21, 40)).abs() < 1e-12, "{rates:?}");
    let (now, before) = (format!("{:.3e}", rate(21, 40)), format!("{:.3e}", rate(21, 20)));
    assert!(longer.stderr.contains(&now) && longer.stderr.contains(&before), "{}", longer.stderr);
    assert_eq!(read_json(&tweedie.path("run/config.json"))?["settings"]["steps"], 40);
    assert!(!resumed("40")?.success()?.stderr.contains("was to have"));
    resumed("30")?.fails(2, &["--steps is 30", "has done 40 already"])?;
    // All else stays as it was.
    let other = ["--resume", "--steps", "50", "--learning-rate", "0.5"];
    tweedie.run(&arguments("run", &other))?.fails(2, &["--learning-rate is 0.5", "the run has 0.001"])?;
    assert_eq!(read_json(&tweedie.path("run/config.json"))?["settings"]["steps"], 40);
    Ok(())
}

/// What is held out is logged and changes nothing but which pictures are trained on.
#[test]
fn held_out_pictures_have_a_loss_of_their_own() -> TestResult {
    let tweedie = with_data()?;
    let train = |output: &str, more: &[&str]| tweedie.run(&arguments(output, &[&["--steps", "12"], more].concat()));
    let held_out = ["--validation", "0.25", "--importance-sampling"];
    train("often", &[&held_out[..], &["--validate-every", "2"]].concat())?.success()?;
    train("seldom", &[&held_out[..], &["--validate-every", "100"]].concat())?.success()?;
    train("without", &["--importance-sampling"])?.success()?;
    let steps = |run: &str| -> TestResult<Vec<u64>> {
        Ok(losses(&tweedie.path(run), "validation_loss")?.iter().map(|(step, _)| *step).collect())
    };
    assert_eq!((steps("often")?, steps("seldom")?, steps("without")?), (vec![2, 4, 6, 8, 10, 12], vec![12], vec![]));
    let model = |run: &str| std::fs::read(tweedie.path(run).join("model/unet/diffusion_pytorch_model.safetensors"));
    assert!(model("often")? == model("seldom")?, "looking changes nothing");
    assert!(model("often")? != model("without")?, "other pictures are trained on");
    let last = |run: &str| Ok::<_, Box<dyn std::error::Error>>(losses(&tweedie.path(run), "validation_loss")?.pop());
    assert_eq!(last("often")?, last("seldom")?);
    train("all", &["--validation", "1"])?.fails(2, &["--validation is 1", "below 1"])?;
    // The shortened epoch: 18 of 24 pictures, 4 at a time.
    tweedie.run(&arguments("epoch", &["--epochs", "1", "--validation", "0.25"]))?.success()?;
    assert_eq!(losses(&tweedie.path("epoch"), "loss")?.len(), 5);
    Ok(())
}

/// A class-conditional model is guided by default; the command that is printed draws with it.
#[test]
fn the_next_command_is_printed_and_works() -> TestResult {
    let tweedie = with_data()?;
    let train = ["train", "mnist", "--data", "data", "--output", "a run", "--steps", "2", "--channels", "4,8"];
    let trained = tweedie.run(&[&train[..], &["--timesteps", "20"]].concat())?.success()?;
    let next = trained.stderr.lines().find_map(|line| line.strip_prefix("next: tweedie ")).ok_or("no command")?;
    let arguments: Vec<&str> = next.split(' ').collect();
    assert_eq!(&arguments[..4], ["sample", "--checkpoint", "'a", "run'"]);
    tweedie.run(&[&["sample", "--checkpoint", "a run"], &arguments[4..]].concat())?.success()?;
    assert!(tweedie.path("samples.png").is_file());
    // No model asks for guidance by itself, also one that could be guided.
    for (run, more) in [("with", &[][..]), ("without", &["--class-dropout", "0"]), ("no", &["--unconditional"])] {
        tweedie.run(&tweedie::digits::arguments(run, &[&["--steps", "1"], more].concat()))?.success()?;
        let defaults = read_json(&tweedie.path(run).join("model/defaults.json"))?;
        assert_eq!(defaults["guidance_scale"], 1.0, "{run}");
    }
    Ok(())
}

#[test]
fn data_of_another_kind_and_other_devices_are_answered() -> TestResult {
    let tweedie = with_data()?;
    let colours = ["red", "blue"];
    for (i, name) in colours.iter().enumerate() {
        std::fs::create_dir_all(tweedie.path("pictures"))?;
        let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([255 * (1 - i as u8), 0, 255 * i as u8]));
        picture.save(tweedie.path(&format!("pictures/{name}.png")))?;
    }
    let train = |kind: &str, more: &[&str]| {
        let all =
            ["train", kind, "--data", "pictures", "--output", "run", "--steps", "1", "--channels", "4,8", "--quiet"];
        tweedie.run(&[&all[..], more].concat())
    };
    train("mnist", &[])?.fails(2, &["pictures", "tweedie train pixel"])?;
    train("pixel", &["--device", "cuda"])?.fails(2, &["--device is cuda", "CPU alone"])?;
    let lines =
        colours.map(|name| format!("{}\n", serde_json::json!({"file_name": format!("{name}.png"), "text": name})));
    std::fs::write(tweedie.path("pictures/metadata.jsonl"), lines.concat())?;
    let run = train("pixel", &["--device", "cpu", "--flip", "--shift", "1"])?.success()?;
    assert_eq!(run.stderr.matches("have captions").count(), 1, "{}", run.stderr);
    let more = image::RgbImage::new(8, 8);
    more.save(tweedie.path("pictures/black.png"))?;
    std::fs::remove_file(tweedie.path("pictures/metadata.jsonl"))?;
    train("pixel", &["--resume"])?.fails(2, &["the data", "3 images in the place of 2", "another --output"])
}

/// `mnist` is the embedded model, also where a folder of data is called so.
#[cfg(feature = "embedded-mnist")]
#[test]
fn data_of_the_name_of_a_model_are_no_model() -> TestResult {
    let tweedie = with_data()?;
    std::fs::rename(tweedie.path("data"), tweedie.path("mnist"))?;
    let judge = ["eval", "fid", "--checkpoint", "mnist", "--num-images", "2", "--steps", "2", "--resamples", "0"];
    tweedie.run(&[&judge[..], &["--write-statistics", "x.npz"]].concat())?.success()?;
    assert!(tweedie.path("x.npz").is_file());
    Ok(())
}
