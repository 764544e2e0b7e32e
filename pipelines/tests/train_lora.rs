//! `tweedie train lora`: what it makes, killed and resumed, in both forms, and given what it cannot use.
#![cfg(feature = "embedded-model")]

mod tweedie;

use ::tweedie::images::{ColorType, Photo, Samples};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tweedie::{TestResult, Tweedie, check_same_picture, pixels, read_json};

/// The side of the files; the network sees them at twice that.
const SIDE: usize = 16;
const STEPS: &str = "4";

fn write_picture(path: &Path, number: usize) -> TestResult {
    let samples = (0..SIDE * SIDE).flat_map(|i| {
        let (x, y) = (i % SIDE, i / SIDE);
        [if x > y { 240 } else { 20 }, (40 * number) as u8, (x * y) as u8]
    });
    let photo = Photo::new(SIDE, SIDE, ColorType::Rgb, Samples::Eight(samples.collect()))?;
    Ok(std::fs::write(path, photo.encode_png(&[])?)?)
}

/// Five pictures with their captions beside them.
fn with_data() -> TestResult<Tweedie> {
    let tweedie = Tweedie::new()?;
    std::fs::create_dir_all(tweedie.path("data"))?;
    for i in 0..5 {
        write_picture(&tweedie.path(&format!("data/{i}.png")), i)?;
        std::fs::write(tweedie.path(&format!("data/{i}.txt")), format!("a sks flag\na flag, number {i}\n"))?;
    }
    std::fs::write(tweedie.path("prompts.txt"), "a sks flag\n")?;
    Ok(tweedie)
}

fn arguments<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["train", "lora", "--data", "data", "--output", output, "--quiet", "--resize", "32"];
    all.extend(["--sample-steps", STEPS, "--sample-prompts", "prompts.txt", "--sample-every", "1000", "--rank", "2"]);
    all.extend(more);
    all
}

const FILE: &str = "model/pytorch_lora_weights.safetensors";

fn spawn(tweedie: &Tweedie, arguments: &[&str]) -> TestResult<Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
    command.args(arguments).current_dir(tweedie.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.spawn()?)
}

/// The bytes of the file, and each step's losses and norms.
fn result(run: &Path) -> TestResult<(Vec<u8>, Vec<String>)> {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let lines = metrics.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line)?;
        line["seconds"].take();
        Ok(line.to_string())
    });
    Ok((std::fs::read(run.join(FILE))?, lines.collect::<TestResult<_>>()?))
}

/// Killed at many moments and resumed each time, a run ends with the bits of one that was left alone.
#[test]
fn a_run_that_is_killed_ends_with_the_same_bits() -> TestResult {
    let tweedie = with_data()?;
    let options = ["--resume", "--seed", "3", "--steps", "60", "--checkpoint-every", "3", "--flip", "--batch-size=2"];
    let options = [&options[..], &["--accumulate", "2", "--caption-dropout", "0.3", "--train-text-encoder"]].concat();
    tweedie.run(&arguments("whole", &options))?.success()?;
    let whole = result(&tweedie.path("whole"))?;
    assert_eq!(whole.1.len(), 60);
    let (mut kills, mut finished) = (0, false);
    // Ever longer, so that it ends on any machine.
    let mut delay = Duration::from_millis(80);
    while !finished {
        let mut child = spawn(&tweedie, &arguments("killed", &options))?;
        std::thread::sleep(delay);
        finished = child.try_wait()?.is_some_and(|status| status.success());
        if !finished {
            child.kill()?;
            child.wait()?;
            kills += 1;
            delay = delay * 5 / 4;
        }
    }
    assert!(kills > 3, "{kills} kills");
    let killed = result(&tweedie.path("killed"))?;
    assert_eq!(killed.1, whole.1, "after {kills} kills");
    assert!(killed.0 == whole.0, "the files differ after {kills} kills");
    Ok(())
}

/// The file, in either form and number format, draws what the factors in training drew, and not what the bare model does.
#[test]
fn the_file_draws_what_the_factors_in_training_drew() -> TestResult {
    let tweedie = with_data()?;
    let options = ["--steps", "30", "--learning-rate", "3e-3", "--train-text-encoder", "--modules", "all"];
    tweedie.run(&arguments("kohya", &options))?.success()?;
    tweedie.run(&arguments("peft", &[&options[..], &["--lora-format", "peft"]].concat()))?.success()?;
    let scale = read_json(&tweedie.path("kohya/config.json"))?["settings"]["guidance_scale"].to_string();
    let draw = |output: &str, more: &[&str]| {
        let all = ["txt2img", "--prompt", "a sks flag", "--width", "32", "--height", "32", "--steps", STEPS, "--quiet"];
        tweedie
            .run(&[&all[..], &["--guidance-scale", &scale, "--seed", "0", "--output", output], more].concat())?
            .success()
    };
    draw("bare.png", &[])?;
    let sampled = tweedie.path("kohya/samples/step-000030.png");
    for run in ["kohya", "peft"] {
        let (file, picture) = (format!("{run}/{FILE}"), format!("{run}.png"));
        draw(&picture, &["--lora", &file])?;
        check_same_picture(&tweedie.path(&picture), &sampled)?;
    }
    let (bare, changed) = (pixels(&tweedie.path("bare.png"))?.2, pixels(&sampled)?.2);
    let differences: u64 = bare.iter().zip(&changed).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(differences as f64 / bare.len() as f64 > 2.0, "the LoRA changes the picture");
    Ok(())
}

/// Pictures without captions of their own; a file in half precision.
#[test]
fn one_caption_is_that_of_all_pictures() -> TestResult {
    let tweedie = with_data()?;
    for i in 0..5 {
        std::fs::remove_file(tweedie.path(&format!("data/{i}.txt")))?;
    }
    tweedie.run(&arguments("run", &["--steps", "2"]))?.fails(1, &["the caption of", "missing"])?;
    let run = ["--steps", "2", "--caption", "a sks flag", "--dtype", "f16", "--buckets", "--no-sample-posterior"];
    tweedie.run(&arguments("run", &run))?.success()?;
    let config = read_json(&tweedie.path("run/config.json"))?;
    assert_eq!((&config["data"]["images"], &config["data"]["captions"]), (&5.into(), &5.into()));
    let half = std::fs::metadata(tweedie.path("run").join(FILE))?.len();
    // It is 40,704 factors' values in attention, each of two bytes, and a header.
    assert!(half < 4 * 40_704, "{half} bytes");
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> TestResult {
    let tweedie = with_data()?;
    let with = |more: &[&str]| tweedie.run(&arguments("run", &[&["--steps", "2"], more].concat()));
    with(&["--alpha", "0"])?.fails(1, &["--alpha", "above 0"])?;
    with(&["--snr-gamma", "-1"])?.fails(1, &["--snr-gamma"])?;
    with(&["--caption", " "])?.fails(1, &["caption", "empty"])?;
    with(&["--model", "absent"])?.fails(1, &["absent"])?;
    let odd = ["train", "lora", "--data", "data", "--output", "run", "--quiet", "--resize", "30"];
    tweedie.run(&odd)?.fails(1, &["a side of the pictures is 30", "multiple of 4", "--resize"])?;
    std::fs::write(tweedie.path("data/3.png"), "a letter")?;
    with(&[])?.fails(1, &["3.png", "no picture format"])?;
    write_picture(&tweedie.path("data/3.png"), 3)?;
    assert!(!tweedie.path("run").exists(), "nothing is made");
    // A run goes on with what it was started with.
    with(&["--checkpoint-every", "1"])?.success()?;
    with(&["--resume", "--seed", "4"])?.fails(1, &["--seed is 4", "the run has 0"])?;
    Ok(())
}
