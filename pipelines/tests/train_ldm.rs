//! `tweedie train ldm`: what it makes, killed and resumed, gone on from, and given bad data.
#![cfg(feature = "embedded-model")]

mod tweedie;

use ::tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use ::tweedie::config::ConfigFields;
use ::tweedie::images::{ColorType, Photo, Samples};
use ::tweedie::layers::Weights;
use ::tweedie::models::{ClipTextConfig, ClipTextModel};
use ::tweedie::text::{Tokenizer, TokenizerFiles};
use ::tweedie::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tweedie::kills::{killed_until_it_ends, steps};
use tweedie::{TestResult, Tweedie, kill_when_there, pixels, read_json};

/// The side of the pictures.
const SIDE: usize = 16;

/// The folder of the embedded model, whose autoencoder runs here work with: 8 channels at an eighth of the size.
fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../weights/emoji-ldm")
}

/// A picture that is brighter to the left or at the top.
fn write_picture(path: &Path, number: usize, left: bool) -> TestResult {
    let shade = |x: usize, y: usize| {
        let at = if left { x } else { y };
        [if at < SIDE / 2 { 240 } else { 20 }, (10 * number % 200) as u8, (x + y) as u8]
    };
    let samples = (0..SIDE * SIDE).flat_map(|i| shade(i % SIDE, i / SIDE)).collect();
    Ok(std::fs::write(path, Photo::new(SIDE, SIDE, ColorType::Rgb, Samples::Eight(samples))?.encode_png(&[])?)?)
}

/// A dozen pictures with a list of their captions.
fn write_pictures(folder: &Path) -> TestResult {
    std::fs::create_dir_all(folder)?;
    let mut list = String::new();
    for i in 0..12 {
        let left = i % 2 == 0;
        write_picture(&folder.join(format!("{i}.png")), i, left)?;
        let side = if left { "left" } else { "top" };
        let texts = [format!("bright at the {side}"), format!("A picture, {side} bright")];
        let text = if i < 6 { json!(texts) } else { json!(texts[0]) };
        list += &format!("{}\n", json!({"file_name": format!("{i}.png"), "text": text}));
    }
    Ok(std::fs::write(folder.join("metadata.jsonl"), list)?)
}

fn with_data() -> TestResult<Tweedie> {
    let tweedie = Tweedie::new()?;
    write_pictures(&tweedie.path("data"))?;
    Ok(tweedie)
}

/// The arguments of a short run of small networks into `output`.
fn arguments<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["train", "ldm", "--data", "data", "--output", output, "--quiet", "--batch-size", "4"];
    all.extend(["--sample-steps", "2", "--warmup-steps", "5", "--sample-every", "1000"]);
    all.extend(more);
    all
}

const SMALL: [&str; 9] =
    ["--channels", "8,16", "--heads", "2", "--text-width", "32", "--text-layers", "1", "--learning-rate=1e-3"];

fn small<'a>(output: &'a str, vae: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    arguments(output, &[&["--vae", vae], &SMALL[..], more].concat())
}

/// The fields of a model's `text_encoder/config.json`.
fn fields(run: &Path) -> TestResult<serde_json::Map<String, Value>> {
    let config = read_json(&run.join("model/text_encoder/config.json"))?;
    Ok(config.as_object().cloned().ok_or("no object")?)
}

fn text(path: &Path) -> TestResult<&str> {
    Ok(path.to_str().ok_or("a path that is no text")?)
}

/// The bytes of both networks, and each step's losses and norms.
fn result(run: &Path) -> TestResult<(Vec<u8>, Vec<u8>, Vec<String>)> {
    let unet = std::fs::read(run.join("model/unet/diffusion_pytorch_model.safetensors"))?;
    let text = std::fs::read(run.join("model/text_encoder/model.safetensors"))?;
    Ok((unet, text, steps(run)?))
}

/// Killed at many moments, the making of latents and the learning of words among them, and resumed each time, a run ends with the bits of one that was
/// left alone.
#[test]
fn a_run_that_is_killed_ends_with_the_same_bits() -> TestResult {
    let tweedie = with_data()?;
    let vae = embedded();
    let options =
        ["--resume", "--seed", "3", "--steps", "60", "--checkpoint-every", "3", "--flip", "--sample-posterior"];
    let options = [&options[..], &["--accumulate", "2", "--caption-dropout", "0.3"]].concat();
    let options = [&options[..], &["--text-steps", "40", "--timestep-shift", "2"]].concat();
    tweedie.run(&small("whole", text(&vae)?, &options))?.success()?;
    let whole = result(&tweedie.path("whole"))?;
    assert_eq!(whole.2.len(), 60);
    let arguments = small("killed", text(&vae)?, &options);
    let kills = killed_until_it_ends(&tweedie, &arguments, Duration::from_millis(40))?;
    assert!(kills > 3, "{kills} kills");
    assert_eq!(result(&tweedie.path("killed"))?, whole, "after {kills} kills");
    Ok(())
}

/// The newest checkpoint draws what the model draws that the run ends as when it is ended there, with a text encoder that is trained
/// and with one that is not.
#[test]
fn an_unfinished_run_is_the_model_that_it_would_end_as() -> TestResult {
    let tweedie = with_data()?;
    let vae = embedded();
    let taken = ["--text-encoder", text(&vae)?, "--channels", "8,16", "--heads", "2", "--vae", text(&vae)?];
    for (run, more) in [("trained", small("trained", text(&vae)?, &[])), ("taken", arguments("taken", &taken))] {
        let options = ["--steps", "100000", "--checkpoint-every", "4", "--validation", "0.2", "--validate-every", "2"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
        command.args([&more[..], &options].concat()).current_dir(tweedie.folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        kill_when_there(&mut command, &tweedie.path(run).join("checkpoints/step-000000008/manifest.json"))?;
        let draw = |output: &str| {
            let all = ["txt2img", "--model", run, "--prompt", "bright at the left", "--output", output, "--steps", "2"];
            tweedie.run(&all)
        };
        let before = draw(&format!("{run}-before.png"))?.success()?;
        let step =
            before.stderr.split("after step ").nth(1).and_then(|rest| rest.split(' ').next()).ok_or("no step")?;
        tweedie.run(&["model", "convert", run, &format!("{run}-converted")])?.success()?;
        tweedie.run(&[&more[..], &["--resume", "--steps", step]].concat())?.success()?;
        assert!(!draw(&format!("{run}-after.png"))?.success()?.stderr.contains("after step"));
        let picture = |name: &str| pixels(&tweedie.path(&format!("{run}-{name}.png")));
        assert!(picture("before")? == picture("after")?, "{run}");
        let weights = |folder: String| std::fs::metadata(tweedie.path(&folder).join("text_encoder/model.safetensors"));
        assert_eq!(weights(format!("{run}-converted"))?.len(), weights(format!("{run}/model"))?.len(), "{run}");
        let log = std::fs::read_to_string(tweedie.path(run).join("metrics.jsonl"))?;
        assert!(log.lines().nth(1).is_some_and(|line| line.contains("validation_loss")), "{log}");
    }
    Ok(())
}

/// The model of a run draws, says what it is, and is gone on from; its networks learn.
#[test]
fn what_is_trained_draws_and_is_gone_on_from() -> TestResult {
    let tweedie = with_data()?;
    let vae = embedded();
    let run =
        tweedie.run(&small("run", text(&vae)?, &["--steps", "200", "--dtype", "f16", "--json"]))?.success()?.json()?;
    let first: Value = serde_json::from_str(
        std::fs::read_to_string(tweedie.path("run/metrics.jsonl"))?.lines().next().ok_or("no step")?,
    )?;
    let (first, last) = (first["loss"]["loss"].as_f64().ok_or("no loss")?, run["loss"].as_f64().ok_or("no loss")?);
    assert!(last < 0.8 * first, "{first} {last}");
    assert!(tweedie.path("run/samples/step-000200-ema.png").is_file());

    let model = tweedie.path("run/model");
    let index = read_json(&model.join("model_index.json"))?;
    assert_eq!(index["_class_name"], "StableDiffusionPipeline");
    // The autoencoder is there as it was given.
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        let given = std::fs::read(embedded().join("vae").join(name))?;
        assert_eq!(std::fs::read(model.join("vae").join(name))?, given);
    }
    let draw = |output: &str| {
        tweedie.run(&["txt2img", "--model", "run/model", "--prompt", "bright at the left", "--output", output])
    };
    assert!(!draw("a.png")?.success()?.stderr.contains("not trained on"));
    assert_eq!(Photo::read(&tweedie.path("a.png"))?.width(), SIDE);
    // Words that no caption had are named, with those that were perhaps meant; they are beside the tokenizer.
    let prompt = "bright at the lefft, xyzzy";
    let unknown = ["txt2img", "--model", "run/model", "--prompt", prompt, "--output", "b.png"];
    let stderr = tweedie.run(&unknown)?.success()?.stderr;
    assert!(stderr.contains(r#""lefft" (perhaps left), "xyzzy""#), "{stderr}");
    assert!(std::fs::read_to_string(model.join("tokenizer/words.txt"))?.lines().any(|word| word == "bright"));

    // The run stands for its model, of which is told what it knows; one that has none yet says so.
    let again = ["txt2img", "--model", "run", "--prompt", "bright at the left", "--output", "c.png", "--quiet"];
    tweedie.run(&again)?.success()?;
    assert_eq!(pixels(&tweedie.path("c.png"))?, pixels(&tweedie.path("a.png"))?);
    let info = tweedie.run(&["model", "info", "run"])?.success()?.stdout;
    assert!(info.lines().any(|line| line.starts_with("knows ")) && info.contains("bright"), "{info}");
    std::fs::create_dir(tweedie.path("begun"))?;
    for file in ["config.json", "metrics.jsonl"] {
        std::fs::copy(tweedie.path("run").join(file), tweedie.path("begun").join(file))?;
    }
    tweedie.run(&["model", "info", "begun"])?.fails(1, &["begun", "has not finished", "no checkpoint yet"])?;

    // From it, with its own tokenizer, schedule and autoencoder; and with its text encoder, which stays as it is.
    let from = ["--from", "run/model", "--steps", "3", "--train-text-encoder"];
    tweedie.run(&arguments("further", &from))?.success()?;
    for file in ["tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json", "unet/config.json"]
    {
        assert_eq!(
            std::fs::read(tweedie.path("further/model").join(file))?,
            std::fs::read(model.join(file))?,
            "{file}"
        );
    }
    let (unet, encoder) = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors");
    let bytes = |run: &str, file: &str| std::fs::read(tweedie.path(run).join("model").join(file));
    assert!(bytes("further", unet)? != bytes("run", unet)? && bytes("further", encoder)? != bytes("run", encoder)?);
    let frozen =
        ["--text-encoder", "run/model", "--steps", "3", "--dtype", "f16", "--channels", "8,16", "--heads", "2"];
    let frozen = [&frozen[..], &["--vae", text(&vae)?]].concat();
    tweedie.run(&arguments("frozen", &frozen))?.success()?;
    assert_eq!(bytes("frozen", encoder)?, bytes("run", encoder)?);
    Ok(())
}

/// Less memory, and the same losses but for the order of sums.
#[test]
fn blocks_that_are_computed_again_train_alike() -> TestResult {
    let tweedie = with_data()?;
    let vae = embedded();
    let losses = |output: &str, more: &[&str]| -> TestResult<Vec<f64>> {
        let options = [&["--steps", "5", "--attention", "0,1"], more].concat();
        tweedie.run(&small(output, text(&vae)?, &options))?.success()?;
        let log = std::fs::read_to_string(tweedie.path(output).join("metrics.jsonl"))?;
        let loss = |line: &str| {
            let line: Value = serde_json::from_str(line)?;
            line["loss"]["loss"].as_f64().ok_or_else(|| "no loss".into())
        };
        log.lines().map(loss).collect()
    };
    let (kept, again) = (losses("kept", &[])?, losses("again", &["--gradient-checkpointing"])?);
    assert_eq!((kept.len(), kept[0]), (5, again[0]));
    for (kept, again) in kept.iter().zip(&again) {
        // Steps of AdamW take a gradient next to nothing, whose sign roundings decide, as far as any other.
        assert!((kept / again - 1.0).abs() < 1e-3, "{kept} {again}");
    }
    Ok(())
}

/// Other objectives, and captions beside pictures.
#[test]
fn flow_and_epsilon_are_trained_from_captions_beside_pictures() -> TestResult {
    let tweedie = Tweedie::new()?;
    std::fs::create_dir_all(tweedie.path("data/more"))?;
    for (i, name) in ["a", "b", "more/c"].into_iter().enumerate() {
        write_picture(&tweedie.path(&format!("data/{name}.png")), i, true)?;
        std::fs::write(tweedie.path(&format!("data/{name}.txt")), "bright at the left\na picture\n")?;
    }
    let vae = embedded();
    for prediction in ["flow", "epsilon"] {
        let options = ["--steps", "2", "--prediction-type", prediction, "--latents", "shared.safetensors"];
        tweedie.run(&small(prediction, text(&vae)?, &options))?.success()?;
        let config = read_json(&tweedie.path(prediction).join("config.json"))?;
        assert_eq!((&config["data"]["images"], &config["data"]["captions"]), (&3.into(), &6.into()));
        let model = format!("{prediction}/model");
        let draw = ["txt2img", "--model", &model, "--prompt", "a picture", "--output", "x.png", "--force", "--quiet"];
        tweedie.run(&draw)?.success()?;
    }
    // One file of latents for both.
    assert!(tweedie.path("shared.safetensors").is_file() && !tweedie.path("flow/latents.safetensors").exists());
    // Of other pictures it is of no use, and the folder is free for who has seen that.
    ["b.png", "b.txt"].iter().try_for_each(|name| std::fs::remove_file(tweedie.path("data").join(name)))?;
    let options = ["--steps", "1", "--latents", "shared.safetensors"];
    tweedie.run(&small("fewer", text(&vae)?, &options))?.fails(2, &["--latents", "other pictures"])?;
    tweedie.run(&small("fewer", text(&vae)?, &options[..2]))?.success()?;
    Ok(())
}

/// Pictures keep their proportions, and those of a batch have one size.
#[test]
fn pictures_of_several_proportions_are_trained_in_buckets() -> TestResult {
    let tweedie = Tweedie::new()?;
    std::fs::create_dir_all(tweedie.path("data"))?;
    for (i, (width, height)) in [(96, 60), (60, 96), (80, 80)].into_iter().cycle().take(9).enumerate() {
        let samples = Samples::Eight((0..3 * width * height).map(|j| (j * (i + 3)) as u8).collect());
        let photo = Photo::new(width, height, ColorType::Rgb, samples)?;
        std::fs::write(tweedie.path(&format!("data/{i}.png")), photo.encode_png(&[])?)?;
        std::fs::write(tweedie.path(&format!("data/{i}.txt")), "a pattern")?;
    }
    let vae = embedded();
    let options = ["--steps", "7", "--buckets", "--batch-size=2"];
    let run = |more: &[&str]| {
        let all = ["train", "ldm", "--data", "data", "--output", "run", "--quiet", "--sample-steps", "2", "--vae"];
        tweedie.run(&[&all[..], &[text(&vae)?], &SMALL[..], &options[..], more].concat())
    };
    run(&[])?.fails(2, &["--buckets", "--resize"])?;
    run(&["--resize", "64"])?.success()?;
    let latents = std::fs::read(tweedie.path("run/latents.safetensors"))?;
    let header = String::from_utf8_lossy(&latents[..2000.min(latents.len())]).into_owned();
    // Wide, tall and square ones, at an eighth of 80x48, 48x80 and 64x64 pixels.
    for shape in ["[3,8,6,10]", "[3,8,10,6]", "[3,8,8,8]"] {
        assert!(header.contains(shape), "{shape}: {header}");
    }
    run(&["--resize", "64", "--resume"])?.success()?;
    Ok(())
}

/// Bad data are named with file and line before anything is made.
#[test]
fn bad_data_are_named_before_training() -> TestResult {
    let tweedie = with_data()?;
    let vae = embedded();
    let run = || tweedie.run(&small("run", text(&vae)?, &["--steps", "2"]));
    let list = tweedie.path("data/metadata.jsonl");
    let good = std::fs::read_to_string(&list)?;
    let with = |line: &str| std::fs::write(&list, format!("{good}{line}\n"));
    let bad = |line: &str, parts: &[&str]| -> TestResult {
        with(line)?;
        run()?.fails(1, &[&["metadata.jsonl", "line 13"], parts].concat())?;
        assert!(!tweedie.path("run").exists(), "nothing is made");
        Ok(())
    };
    bad(r#"{"file_name": "absent.png", "text": "a cat"}"#, &["absent.png"])?;
    bad("not JSON", &["expected"])?;
    write_picture(&tweedie.path("data/12.png"), 12, true)?;
    bad(r#"{"file_name": "12.png", "text": ["a cat", " "]}"#, &["12.png", "empty"])?;
    bad(r#"{"file_name": "12.png", "text": []}"#, &["list"])?;
    bad(r#"{"file_name": "12.png", "text": 3}"#, &["string"])?;
    bad(r#"{"file_name": "12.png"}"#, &["text"])?;
    std::fs::write(tweedie.path("data/12.png"), "a letter")?;
    bad(r#"{"file_name": "12.png", "text": "a cat"}"#, &["12.png", "no picture format"])?;
    // A picture that states an enormous size is not decoded.
    let mut huge = std::fs::read(tweedie.path("data/0.png"))?;
    huge[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
    std::fs::write(tweedie.path("data/12.png"), huge)?;
    bad(r#"{"file_name": "12.png", "text": "a cat"}"#, &["12.png", "100000"])?;
    std::fs::copy(embedded().join("../../examples/pictures/digits.png"), tweedie.path("data/12.png"))?;
    with(r#"{"file_name": "12.png", "text": "digits"}"#)?;
    run()?.fails(1, &["the pictures' size", "12.png", "--resize"])?;

    std::fs::remove_file(&list)?;
    run()?.fails(1, &["the caption of", ".png", "missing", ".txt"])?;
    for i in 0..13 {
        std::fs::write(tweedie.path(&format!("data/{i}.txt")), "a cat\n")?;
    }
    std::fs::write(tweedie.path("data/5.txt"), "a cat\n\na dog\n")?;
    run()?.fails(1, &["5.txt", "line 2", "empty"])?;
    std::fs::write(tweedie.path("data/5.txt"), b"a cat\na f\xfcx\n")?;
    run()?.fails(1, &["5.txt", "line 2 is not UTF-8"])?;
    std::fs::write(tweedie.path("data/5.txt"), b"\xff\xfea\0")?;
    run()?.fails(1, &["5.txt", "UTF-16", "save it as UTF-8"])?;
    std::fs::write(tweedie.path("data/5.txt"), "a cat")?;
    std::fs::write(tweedie.path("data/lonely.txt"), "a dog")?;
    run()?.fails(1, &["lonely.txt", "picture"])?;
    assert!(!tweedie.path("run").exists());
    Ok(())
}

#[test]
fn parts_that_do_not_fit_are_named() -> TestResult {
    let tweedie = with_data()?;
    let vae = embedded();
    let with = |more: &[&str]| tweedie.run(&small("run", text(&vae)?, &[&["--steps", "2"], more].concat()));
    tweedie.run(&arguments("run", &["--steps", "2"]))?.fails(2, &["--vae", "not given"])?;
    with(&["--resize", "12"])?.fails(2, &["a side of the pictures is 12", "multiples of 16"])?;
    with(&["--attention", "2"])?.fails(2, &["--attention", "2 resolutions"])?;
    with(&["--caption-dropout", "2"])?.fails(2, &["caption dropout", "between 0 and 1"])?;
    with(&["--timestep-shift", "0"])?.fails(2, &["shift of timesteps", "above 0"])?;
    with(&["--timestep-shift", "3", "--importance-sampling"])?.fails(2, &["by importance already"])?;
    with(&["--snr-gamma", "-1"])?.fails(2, &["--snr-gamma"])?;
    let absent = arguments("run", &["--steps", "2", "--vae", "absent"]);
    assert_eq!(tweedie.run(&absent)?.status, 1);
    std::fs::write(
        tweedie.path("unet.json"),
        json!({"cross_attention_dim": 7, "sample_size": 4, "in_channels": 8, "out_channels": 8}).to_string(),
    )?;
    let given = ["--steps", "2", "--vae", text(&vae)?, "--unet-config", "unet.json"];
    tweedie.run(&arguments("run", &given))?.fails(1, &["cross_attention_dim", "192"])?;
    assert!(!tweedie.path("run").exists());
    // A run goes on with what it was started with.
    with(&["--checkpoint-every", "1"])?.success()?;
    with(&["--resume", "--seed", "4"])?.fails(2, &["--seed is 4", "the run has 0"])?;
    let list = tweedie.path("data/metadata.jsonl");
    std::fs::write(&list, std::fs::read_to_string(&list)?.replace("bright", "dark"))?;
    with(&["--resume"])?.fails(2, &["the data is of as many pictures", "other ones"])?;
    Ok(())
}

/// A text encoder that has learned its captions' words has states that lie further apart for captions that differ in a word,
/// and words are learned before the first step alone, by a new encoder alone.
#[test]
fn a_new_text_encoder_learns_words_first() -> TestResult {
    let tweedie = with_data()?;
    let vae = embedded();
    let weights = |run: &str| std::fs::read(tweedie.path(run).join("model/text_encoder/model.safetensors"));
    let apart = |run: &str| -> TestResult<f32> {
        let files = ModelFiles::Folder(tweedie.path(run).join("model"));
        let fields = ConfigFields::from_fields("text_encoder", fields(&tweedie.path(run))?);
        let source = Checkpoint::open(&files, "text_encoder", Precision::Full, DType::F32, &Device::Cpu)?;
        let encoder = ClipTextModel::new(&Weights::new(&source), ClipTextConfig::from_fields(&fields)?)?;
        let tokenizer = Tokenizer::from_memory(&TokenizerFiles::read(&files, "tokenizer")?)?;
        let ids =
            ["bright at the left", "bright at the top"].map(|text| tokenizer.encode(text).map(|tokens| tokens.ids));
        let [left, top] = ids;
        let pooled = encoder.forward(&Tensor::new(vec![left?, top?], &Device::Cpu)?)?.pooled;
        Ok((pooled.get(0)? - pooled.get(1)?)?.sqr()?.mean_all()?.to_scalar::<f32>()?)
    };
    let train = |output: &str, text_steps: &str, more: &[&str]| -> TestResult {
        let all = [&["--steps", "1", "--text-steps", text_steps], more].concat();
        tweedie.run(&small(output, text(&vae)?, &all))?.success()?;
        Ok(())
    };
    train("without", "0", &[])?;
    train("with", "150", &[])?;
    // Of states of mean square 1; seen were 0.03 and 0.31.
    let (without, with) = (apart("without")?, apart("with")?);
    assert!(with > 5.0 * without, "{with} {without}");
    // A run that has a checkpoint does not learn them anew.
    let before = weights("with")?;
    std::fs::remove_dir_all(tweedie.path("with/model"))?;
    train("with", "150", &["--resume"])?;
    assert_eq!(weights("with")?, before);
    // An encoder that is taken stays as it is.
    let from = tweedie.path("without/model");
    let taken = ["--vae", text(&vae)?, "--text-encoder", text(&from)?, "--channels", "8,16", "--heads", "2"];
    tweedie.run(&arguments("taken", &[&taken[..], &["--steps", "1", "--text-steps", "9"]].concat()))?.success()?;
    assert_eq!(weights("taken")?, weights("without")?);
    let resume = |encoder: &str| -> TestResult<_> {
        let encoder = tweedie.path(encoder);
        let other = ["--vae", text(&vae)?, "--text-encoder", text(&encoder)?, "--resume"];
        tweedie.run(&[&["train", "ldm", "--data", "data", "--output", "taken"][..], &other].concat())
    };
    resume("without/model")?.success()?;
    resume("with/model")?.fails(2, &["--text-encoder is another model than the run started from"])?;
    Ok(())
}

/// Averages by powers of time are kept beside the exponential one, are in checkpoints, and can be chosen when the run is over.
#[test]
fn an_average_is_chosen_afterwards() -> TestResult {
    let tweedie = with_data()?;
    let vae = embedded();
    let train = |output: &str, more: &[&str]| -> TestResult {
        let kept = ["--steps", "12", "--checkpoint-every", "5", "--power-averages", "0.05,0.1", "--resume"];
        tweedie.run(&small(output, text(&vae)?, &[&kept[..], more].concat()))?.success()?;
        Ok(())
    };
    train("run", &[])?;
    let exponential = result(&tweedie.path("run"))?;
    train("run", &["--average", "0.1"])?;
    let chosen = result(&tweedie.path("run"))?;
    train("other", &["--average", "0.1"])?;
    assert_eq!(result(&tweedie.path("other"))?, chosen);
    assert_ne!(exponential.0, chosen.0);
    // From the checkpoint of step 5 on it is the same.
    for step in ["step-000000010", "step-000000012"] {
        std::fs::remove_dir_all(tweedie.path("other/checkpoints").join(step))?;
    }
    std::fs::remove_dir_all(tweedie.path("other/model"))?;
    train("other", &["--average", "0.1"])?;
    assert_eq!(result(&tweedie.path("other"))?, chosen);
    Ok(())
}
