//! `tweedie train embedding`: what it makes, killed and resumed, with and without captions, and given what it cannot use.
#![cfg(feature = "embedded-model")]

mod tweedie;

use tweedie::frozen::{check_kills, difference, draw, with_data};
use tweedie::{TestResult, check_same_picture, copy_folder, frozen, golden, read_json};

const FILE: &str = "model/learned_embeds.safetensors";
const TOKEN: &str = "<sks>";

fn arguments<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    frozen::arguments("embedding", output, &[&["--token", TOKEN], more].concat())
}

#[test]
fn a_run_that_is_killed_ends_with_the_same_bits() -> TestResult {
    check_kills(&with_data(TOKEN)?, "embedding", &["--token", TOKEN, "--vectors", "2"], FILE)
}

/// The file draws what the embeddings in training drew, and not what they drew before.
#[test]
fn the_file_draws_what_the_embeddings_in_training_drew() -> TestResult {
    let tweedie = with_data(TOKEN)?;
    let start = ["--init-word", "fox", "--vectors", "2", "--learning-rate", "2e-2"];
    tweedie.run(&arguments("run", &[&start[..], &["--steps", "40"]].concat()))?.success()?;
    let scale = read_json(&tweedie.path("run/config.json"))?["settings"]["guidance_scale"].to_string();
    let prompt = format!("a {TOKEN} flag");
    draw(&tweedie, &prompt, &scale, "file.png", &["--embedding", &format!("run/{FILE}")])?;
    let sampled = tweedie.path("run/samples/step-000040.png");
    check_same_picture(&tweedie.path("file.png"), &sampled)?;
    draw(&tweedie, "a fox fox flag", &scale, "start.png", &[])?;
    assert!(difference(&tweedie.path("start.png"), &sampled)? > 2.0, "training changes the picture");
    Ok(())
}

/// The same for two text encoders, whose file names the token in its metadata.
#[test]
fn the_file_of_two_text_encoders_draws_what_was_drawn() -> TestResult {
    let tweedie = with_data(TOKEN)?;
    copy_folder(&golden().join("models/xl-small"), &tweedie.path("xl"))?;
    let options = ["--model", "xl", "--steps", "4", "--learning-rate", "2e-2", "--vectors", "3"];
    tweedie.run(&arguments("run", &options))?.success()?;
    let scale = read_json(&tweedie.path("run/config.json"))?["settings"]["guidance_scale"].to_string();
    let file = format!("run/{FILE}");
    draw(&tweedie, &format!("a {TOKEN} flag"), &scale, "file.png", &["--model", "xl", "--embedding", &file])?;
    check_same_picture(&tweedie.path("file.png"), &tweedie.path("run/samples/step-000004.png"))
}

/// Pictures without any captions are told of by templates, or by one caption for all.
#[test]
fn pictures_need_no_captions() -> TestResult {
    let tweedie = with_data(TOKEN)?;
    for i in 0..5 {
        std::fs::remove_file(tweedie.path(&format!("data/{i}.txt")))?;
    }
    tweedie
        .run(&arguments("made", &["--steps", "2", "--dtype", "f16", "--buckets", "--no-sample-posterior"]))?
        .success()?;
    tweedie.run(&arguments("one", &["--steps", "2", "--caption", "the <SKS>"]))?.success()?;
    for (run, captions) in [("made", 5 * 8), ("one", 5)] {
        let config = read_json(&tweedie.path(run).join("config.json"))?;
        assert_eq!((&config["data"]["images"], &config["data"]["captions"]), (&5.into(), &captions.into()));
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> TestResult {
    let tweedie = with_data(TOKEN)?;
    let with = |more: &[&str]| tweedie.run(&arguments("run", &[&["--steps", "2"], more].concat()));
    tweedie.run(&frozen::arguments("embedding", "run", &[]))?.fails(2, &["--token is not given", "<thing>"])?;
    let known = ["--steps", "2", "--token", "fox", "--caption", "a fox"];
    tweedie.run(&frozen::arguments("embedding", "run", &known))?.fails(2, &["--token is \"fox\"", "has it already"])?;
    with(&["--vectors", "0"])?.fails(2, &["--vectors is 0", "at least 1"])?;
    with(&["--init-word", "a fox"])?.fails(2, &["--init-word", "one word"])?;
    with(&["--caption", "a flag"])?.fails(2, &["--caption is \"a flag\"", TOKEN])?;
    with(&["--learning-rate", "0"])?.fails(2, &["the learning rate is 0"])?;
    std::fs::create_dir(tweedie.path("empty"))?;
    let empty = ["train", "embedding", "--data", "empty", "--output", "run", "--token", TOKEN];
    tweedie.run(&empty)?.fails(1, &["the data folder empty is empty"])?;
    // A model that draws from noise alone reads no text.
    let pixels = golden().join("models/pixel28");
    with(&["--model", &pixels.to_string_lossy()])?.fails(1, &["draws in pixel space"])?;

    std::fs::write(tweedie.path("data/3.txt"), format!("a {TOKEN} flag\na flag\n"))?;
    with(&[])?.fails(1, &["3.txt, line 2 is \"a flag\"", TOKEN, "--caption"])?;
    let lines = (0..5)
        .map(|i| format!("{{\"file_name\": \"{i}.png\", \"text\": \"{}\"}}\n", if i < 4 { TOKEN } else { "a flag" }));
    std::fs::write(tweedie.path("data/metadata.jsonl"), lines.collect::<String>())?;
    with(&[])?.fails(1, &["metadata.jsonl, line 5 is \"a flag\"", TOKEN])?;
    std::fs::remove_file(tweedie.path("data/metadata.jsonl"))?;
    std::fs::remove_file(tweedie.path("data/3.txt"))?;
    with(&[])?.fails(1, &["the caption of", "3.png", "missing"])?;
    assert!(!tweedie.path("run").exists(), "nothing is made");
    // A run goes on with what it was started with.
    std::fs::write(tweedie.path("data/3.txt"), TOKEN)?;
    with(&["--checkpoint-every", "1"])?.success()?;
    with(&["--resume", "--vectors", "2"])?.fails(2, &["--vectors is 2", "the run has 1"])?;
    Ok(())
}
