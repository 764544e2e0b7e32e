//! `tweedie train lora`: what it makes, killed and resumed, in both forms, and given what it cannot use.
#![cfg(feature = "embedded-model")]

mod tweedie;

use tweedie::frozen::{check_kills, difference, draw, with_data, write_picture};
use tweedie::{TestResult, check_same_picture, frozen, read_json};

const FILE: &str = "model/pytorch_lora_weights.safetensors";

fn arguments<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    frozen::arguments("lora", output, &[&["--rank", "2"], more].concat())
}

#[test]
fn a_run_that_is_killed_ends_with_the_same_bits() -> TestResult {
    let more = ["--rank", "2", "--caption-dropout", "0.3", "--train-text-encoder"];
    check_kills(&with_data("sks")?, "lora", &more, FILE)
}

/// The file, in either form and number format, draws what the factors in training drew, and not what the bare model does.
#[test]
fn the_file_draws_what_the_factors_in_training_drew() -> TestResult {
    let tweedie = with_data("sks")?;
    let options = ["--steps", "30", "--learning-rate", "3e-3", "--train-text-encoder", "--modules", "all"];
    tweedie.run(&arguments("kohya", &options))?.success()?;
    tweedie.run(&arguments("peft", &[&options[..], &["--lora-format", "peft"]].concat()))?.success()?;
    let scale = read_json(&tweedie.path("kohya/config.json"))?["settings"]["guidance_scale"].to_string();
    draw(&tweedie, "a sks flag", &scale, "bare.png", &[])?;
    let sampled = tweedie.path("kohya/samples/step-000030.png");
    for run in ["kohya", "peft"] {
        let (file, picture) = (format!("{run}/{FILE}"), format!("{run}.png"));
        draw(&tweedie, "a sks flag", &scale, &picture, &["--lora", &file])?;
        check_same_picture(&tweedie.path(&picture), &sampled)?;
        // The run itself stands for its file.
        let of_run = format!("of-{run}.png");
        draw(&tweedie, "a sks flag", &scale, &of_run, &["--lora", run])?;
        assert_eq!(difference(&tweedie.path(&picture), &tweedie.path(&of_run))?, 0.0);
    }
    assert!(difference(&tweedie.path("bare.png"), &sampled)? > 2.0, "the LoRA changes the picture");
    tweedie.run(&["model", "info", "kohya"])?.fails(1, &["kohya", "no model by itself", "--lora"])?;
    Ok(())
}

/// Pictures without captions of their own; a file in half precision.
#[test]
fn one_caption_is_that_of_all_pictures() -> TestResult {
    let tweedie = with_data("sks")?;
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
    let header = std::fs::read(tweedie.path("run").join(FILE))?;
    assert!(String::from_utf8_lossy(&header).contains("\"ss_v2\":\"False\""), "as kohya's scripts say it");

    // Latents depend on all that they are made with: on the batch, since no size has fewer pictures than it.
    let shared = ["--steps", "1", "--caption", "a sks flag", "--buckets", "--latents", "shared.safetensors"];
    let with = |output: &str, more: &[&str]| tweedie.run(&arguments(output, &[&shared[..], more].concat()));
    with("first", &[])?.success()?;
    with("again", &[])?.success()?;
    for other in [["--batch-size", "2"], ["--base-dtype", "f16"], ["--resize", "40"]] {
        with("other", &other)?.fails(2, &["--latents", "other pictures", "other settings"])?;
    }
    Ok(())
}

/// DreamBooth's prior preservation: the class is drawn more as the bare model draws it than without its pictures.
#[test]
fn pictures_of_the_class_keep_what_the_model_draws_of_it() -> TestResult {
    let tweedie = with_data("sks")?;
    std::fs::create_dir(tweedie.path("class"))?;
    for seed in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        let output = format!("class/{seed}.png");
        tweedie.run(&["txt2img", "a fox", "--seed", seed, "--output", &output])?.success()?;
    }
    // At the model's own size: at a smaller one it draws other things than it was trained to.
    let options = ["--steps", "160", "--learning-rate", "1e-3", "--batch-size", "2", "--caption", "a sks fox"];
    let options = [&options[..], &["--resize", "128"]].concat();
    let own_size = ["--width", "128", "--height", "128"];
    tweedie.run(&arguments("alone", &options))?.success()?;
    let kept = ["--class-data", "class", "--class-caption", "a fox"];
    tweedie.run(&arguments("kept", &[&options[..], &kept].concat()))?.success()?;
    assert_eq!(read_json(&tweedie.path("kept/config.json"))?["data"]["images"], 13);
    // A pass sees as many of the ones as of the others: eight, and the five and three of them again, two in a step.
    let pass = ["--epochs", "1", "--batch-size", "2", "--caption", "a sks fox"];
    tweedie.run(&arguments("pass", &[&pass[..], &kept].concat()))?.success()?;
    assert_eq!(read_json(&tweedie.path("pass/config.json"))?["settings"]["steps"], 8);
    draw(&tweedie, "a fox", "4", "bare.png", &own_size)?;
    let far = ["alone", "kept"].map(|run| -> TestResult<f64> {
        let (file, picture) = (format!("{run}/{FILE}"), format!("{run}.png"));
        draw(&tweedie, "a fox", "4", &picture, &[&own_size[..], &["--lora", &file]].concat())?;
        difference(&tweedie.path("bare.png"), &tweedie.path(&picture))
    });
    let [alone, kept] = far;
    let (alone, kept) = (alone?, kept?);
    assert!(kept < 0.8 * alone, "{kept} with pictures of the class, {alone} without");
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> TestResult {
    let tweedie = with_data("sks")?;
    let with = |more: &[&str]| tweedie.run(&arguments("run", &[&["--steps", "2"], more].concat()));
    with(&["--alpha", "0"])?.fails(2, &["--alpha", "above 0"])?;
    with(&["--snr-gamma", "-1"])?.fails(2, &["--snr-gamma"])?;
    with(&["--caption", " "])?.fails(2, &["caption", "empty"])?;
    with(&["--model", "absent"])?.fails(1, &["absent"])?;
    let odd = ["train", "lora", "--data", "data", "--output", "run", "--quiet", "--resize", "30"];
    tweedie.run(&odd)?.fails(2, &["a side of the pictures is 30", "multiple of 8", "--resize"])?;
    std::fs::write(tweedie.path("data/3.png"), "a letter")?;
    with(&[])?.fails(1, &["3.png", "no picture format"])?;
    write_picture(&tweedie.path("data/3.png"), 3)?;
    assert!(!tweedie.path("run").exists(), "nothing is made");
    // A run goes on with what it was started with.
    with(&["--checkpoint-every", "1"])?.success()?;
    with(&["--resume", "--seed", "4"])?.fails(2, &["--seed is 4", "the run has 0"])?;
    Ok(())
}
