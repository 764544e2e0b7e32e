//! `tweedie train vae`.

mod tweedie;

use ::tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use ::tweedie::config::ConfigFields;
use ::tweedie::images::{ColorType, Photo, Samples};
use ::tweedie::layers::Weights;
use ::tweedie::models::{Autoencoder, AutoencoderConfig, AutoencoderKl, Halves};
use ::tweedie::training::data::{FolderOptions, Split, read_set};
use ::tweedie::{DType, Device, Tensor};
use std::path::Path;
use std::process::{Command, Stdio};
use tweedie::{TestResult, Tweedie, kill_when_there, read_json};

const TRAIN: [&str; 15] = [
    "train",
    "vae",
    "--data",
    "data",
    "--batch-size",
    "4",
    "--channels",
    "8,8",
    "--latent-channels",
    "3",
    "--crop",
    "24",
    "--warmup-steps",
    "5",
    "--json",
];

/// Squares of one colour on another.
fn write_squares(folder: &Path, count: usize) -> TestResult {
    std::fs::create_dir_all(folder)?;
    for i in 0..count {
        let colour = |pixel: usize| {
            let (x, y) = (pixel % 32, pixel / 32);
            let inside = (8..24).contains(&(x + i % 5)) && (6..22).contains(&(y + i % 3));
            if inside { [220, (i * 40 % 256) as u8, 30] } else { [(i * 67 % 256) as u8, 90, 200] }
        };
        let photo = Photo::new(32, 32, ColorType::Rgb, Samples::Eight((0..1024).flat_map(colour).collect()))?;
        std::fs::write(folder.join(format!("{i}.png")), photo.encode_png(&[])?)?;
    }
    Ok(())
}

fn open(model: &Path) -> TestResult<AutoencoderKl> {
    let files = ModelFiles::folder(model)?;
    let name = "vae/config.json";
    let fields = ConfigFields::from_json("vae", &files.read_text(name)?, &files.path(name))?;
    let checkpoint = Checkpoint::open(&files, "vae", Precision::Full, DType::F32, &Device::Cpu)?;
    let config = AutoencoderConfig::from_fields(&fields)?;
    let network = AutoencoderKl::new(&Weights::new(&checkpoint), config, Halves::Both, DType::F32)?;
    checkpoint.finish(&[])?;
    Ok(network)
}

/// The mean and the deviation of each channel.
fn statistics(latents: &Tensor) -> TestResult<Vec<(f32, f32)>> {
    let rows = latents.transpose(0, 1)?.flatten_from(1)?.to_vec2::<f32>()?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let mean = row.iter().sum::<f32>() / row.len() as f32;
            (mean, (row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / row.len() as f32).sqrt())
        })
        .collect())
}

#[test]
fn an_autoencoder_learns_and_its_latents_are_of_unit_size() -> TestResult {
    let program = Tweedie::new()?;
    write_squares(&program.path("data/train"), 24)?;
    write_squares(&program.path("data/test"), 7)?;
    let run = |more: &[&str]| program.run(&[&TRAIN[..], more].concat());
    let short = run(&["--output", "short", "--steps", "2", "--learning-rate", "1e-9"])?.success()?.json()?;
    let result = run(&["--output", "run", "--steps", "250", "--learning-rate", "3e-3"])?.success()?.json()?;
    // Untrained it gives grey; after 150 steps 13.9 dB were seen.
    let decibels = |result: &serde_json::Value| result["psnr"].as_f64().unwrap_or(f64::NAN);
    assert!(decibels(&short) < 10.0 && decibels(&result) > 13.5, "{} {}", short["psnr"], result["psnr"]);
    assert_eq!((&result["judged"], &result["held_out"]), (&7.into(), &true.into()));
    assert!(program.path("run/samples/step-000250.png").is_file() && program.path("run/loss.png").is_file());

    let set = read_set(&program.path("data"), Split::Train, FolderOptions::default())?;
    let pictures = set.images(&(0..24).collect::<Vec<_>>())?;
    let network = open(&program.path("run/model"))?;
    let latents = network.encode(&pictures)?.mean;
    assert_eq!(latents.dims(), [24, 3, 16, 16]);
    assert_eq!(network.latent_space().scaling_factor, 1.0);
    for (mean, deviation) in statistics(&latents)? {
        // Sums of 6,144 values in f32, and weights that were folded in f64 and rounded.
        assert!(mean.abs() < 1e-4 && (deviation - 1.0).abs() < 1e-4, "{mean} {deviation}");
    }

    // Without convolutions to fold them into, all channels are scaled alike.
    let mut config = read_json(&program.path("run/model/vae/config.json"))?;
    config["use_quant_conv"] = false.into();
    std::fs::write(program.path("vae.json"), config.to_string())?;
    let arguments = ["train", "vae", "--data", "data", "--steps", "3", "--output", "plain", "--quiet", "--crop", "0"];
    program.run(&[&arguments[..], &["--vae-config", "vae.json"]].concat())?.success()?;
    let network = open(&program.path("plain/model"))?;
    let scaled = network.latent_space().scaled(&network.encode(&pictures)?.mean)?;
    let size = scaled.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt();
    assert!((size - 1.0).abs() < 1e-4, "{size}");
    Ok(())
}

/// A run without pictures to judge by is judged by what it holds out, and says so.
#[test]
fn what_is_held_out_is_what_it_is_judged_by() -> TestResult {
    let program = Tweedie::new()?;
    write_squares(&program.path("data"), 12)?;
    let run = |output: &str, more: &[&str]| {
        let all = [&TRAIN[..], &["--steps", "2", "--learning-rate", "1e-9", "--output", output], more].concat();
        program.run(&all)?.success()?.json()
    };
    let (all, held) = (run("all", &[])?, run("held", &["--validation", "0.25"])?);
    assert_eq!((&all["judged"], &all["held_out"]), (&12.into(), &false.into()));
    assert_eq!((&held["judged"], &held["held_out"]), (&3.into(), &true.into()));
    assert_eq!(read_json(&program.path("held/model/training.json"))?["held_out"], true);
    assert_ne!(all["psnr"], held["psnr"]);
    Ok(())
}

/// What is folded into the convolutions changes no picture: a run that goes on from a model starts where that ended.
#[test]
fn a_run_goes_on_from_a_model() -> TestResult {
    let program = Tweedie::new()?;
    write_squares(&program.path("data"), 12)?;
    let run = |more: &[&str]| program.run(&[&TRAIN[..], more].concat());
    let first = run(&["--output", "first", "--steps", "60", "--learning-rate", "3e-3"])?.success()?.json()?;
    let arguments = ["train", "vae", "--data", "data", "--from", "first/model", "--output", "second", "--json"];
    let more = ["--steps", "1", "--learning-rate", "1e-9", "--crop", "24"];
    let second = program.run(&[&arguments[..], &more].concat())?.success()?.json()?;
    let off = second["psnr"].as_f64().zip(first["psnr"].as_f64()).map(|(a, b)| (a - b).abs());
    // Of pictures rounded to 8 bits; latents of another scale are rounded elsewhere.
    assert!(off.is_some_and(|off| off < 0.01), "{off:?}");

    // It goes on wherever that model is now, which it remembers, and with no other.
    std::fs::rename(program.path("first/model"), program.path("moved"))?;
    let resume = |from: &str| {
        program.run(&["train", "vae", "--data", "data", "--output", "second", "--resume", "--json", "--from", from])
    };
    let config = program.path("second/config.json");
    let mut written = read_json(&config)?;
    assert!(written["settings"].get("channels").is_none() && written["start"]["from"].is_string(), "{written}");
    assert_eq!(resume("moved")?.success()?.json()?["psnr"], second["psnr"]);
    assert_eq!(read_json(&config)?["settings"]["from"], "moved");
    let again = ["train", "vae", "--data", "data", "--output", "second", "--resume", "--json"];
    assert_eq!(program.run(&again)?.success()?.json()?["psnr"], second["psnr"]);
    resume("second/model")?.fails(2, &["--from is another model than the run started from"])?;
    // A run of a version that did not write down what it started from.
    let start = written["start"].take();
    written.as_object_mut().ok_or("no object")?.remove("start");
    std::fs::write(&config, written.to_string())?;
    resume("moved")?.success()?;
    assert_eq!(read_json(&config)?["start"], start);
    // Its sizes are the model's.
    let sized = ["train", "vae", "--data", "data", "--from", "moved", "--output", "third", "--channels", "8,16"];
    program.run(&sized)?.fails(2, &["--from", "--channels"])?;
    Ok(())
}

#[test]
fn an_autoencoder_that_is_killed_goes_on() -> TestResult {
    for more in [&["--discriminator-start", "20"][..], &[]] {
        let program = Tweedie::new()?;
        write_squares(&program.path("data"), 12)?;
        let train = |output: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
            command.args(TRAIN).args(["--steps", "40", "--checkpoint-every", "4", "--resume", "--output", output]);
            command.args(more).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(program.folder.path());
            command
        };
        assert!(train("whole").status()?.success());
        let saved = program.path("killed/checkpoints/step-000000024/manifest.json");
        kill_when_there(&mut train("killed"), &saved)?;
        assert!(train("killed").status()?.success());
        for file in ["vae/diffusion_pytorch_model.safetensors", "training.json", "vae/config.json"] {
            let read = |run: &str| std::fs::read(program.path(run).join("model").join(file));
            assert_eq!(read("killed")?, read("whole")?, "{file}");
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> TestResult {
    let program = Tweedie::new()?;
    write_squares(&program.path("data"), 3)?;
    let run = |more: &[&str]| {
        program.run(&[&["train", "vae", "--data", "data", "--output", "run", "--quiet", "--crop", "24"], more].concat())
    };
    run(&["--channels", "8,8,8,8"])?.fails(2, &["a side of the pictures is 24", "--channels", "multiples of 16"])?;
    run(&["--channels", "8,8,8", "--vae-config", "x"])?.fails(2, &["--vae-config"])?;
    run(&["--channels", "8,8", "--kl", "-1"])?.fails(2, &["--kl is -1"])?;
    // What the terms of the loss look at must be there, in the halved picture too.
    let crop = |side: &str, more: &[&str]| {
        let all = ["train", "vae", "--data", "data", "--quiet", "--channels", "8,8", "--crop", side];
        program.run(&[&all[..], more].concat())
    };
    crop("20", &["--output", "run"])?
        .fails(2, &["a side of what is trained on is 20", "--ssim", "22 pixels", "--crop"])?;
    crop("12", &["--output", "run", "--ssim", "0"])?.fails(2, &["is 12", "16 pixels"])?;
    crop("8", &["--output", "run", "--equivariance", "0"])?.fails(2, &["is 8", "11 pixels"])?;
    assert!(!program.path("run").exists());
    for (i, (side, more)) in
        [("24", &[][..]), ("16", &["--ssim", "0"]), ("12", &["--equivariance", "0"])].into_iter().enumerate()
    {
        crop(side, &[more, &["--steps", "1", "--output", &format!("least-{i}")]].concat())?.success()?;
    }
    run(&["--from", "gone"])?.fails(1, &["gone"])?;
    assert!(!program.path("run").exists());
    Ok(())
}
