//! `tweedie eval fid`, `kid`, `is`, `prdc` and `likelihood`.

mod tweedie;

use ::tweedie::files::Existing;
use ::tweedie::images::{ColorType, Photo, Samples};
use ::tweedie::metrics::FeatureStatistics;
use ::tweedie::training::data::SplitMix64;
use std::path::Path;
use tweedie::{TestResult, Tweedie};

/// Grey pictures of a few strokes, each a file.
fn write_pictures(folder: &Path, count: u64, side: usize, seed: u64) -> TestResult {
    std::fs::create_dir_all(folder)?;
    for number in 0..count {
        let mut draws = SplitMix64::numbered(seed, number);
        let mut bytes = vec![0; side * side];
        for _ in 0..3 {
            let (row, from) = (draws.below(side as u64) as usize, draws.below(side as u64) as usize);
            bytes[row * side + from..(row + 1) * side].fill(150 + draws.below(100) as u8);
        }
        let photo = Photo::new(side, side, ColorType::Grey, Samples::Eight(bytes))?;
        std::fs::write(folder.join(format!("{number:03}.png")), photo.encode_png(&[])?)?;
    }
    Ok(())
}

#[test]
fn samples_are_judged_by_every_figure() -> TestResult {
    let program = Tweedie::new()?;
    write_pictures(&program.path("a"), 150, 28, 1)?;
    write_pictures(&program.path("b"), 140, 28, 2)?;
    let eval = |figure: &str, more: &[&str]| {
        let judge = ["eval", figure, "a", "--json", "--quiet", "--resamples", "20"];
        program.run(&[&judge[..], more].concat())?.success()?.json()
    };
    let same = eval("fid", &["--reference", "a", "--write-statistics", "a.npz", "--infinity"])?;
    assert_eq!(
        (&same["samples"], &same["reference"], &same["statistics"]),
        (&150.into(), &150.into(), &"a.npz".into())
    );
    // A set is at no distance from itself, and half of LeNet's features say nothing of strokes.
    assert!(same["fid"].as_f64().is_some_and(|fid| fid < 1e-3), "{same}");
    assert!(same["null_directions"].as_u64().is_some_and(|count| count > 0) && same["fid_infinity"].is_f64());

    // A folder and its statistics are one reference.
    let by_folder = eval("fid", &["--reference", "b"])?;
    let by_file =
        program.run(&["eval", "fid", "b", "--reference", "a.npz", "--json", "--quiet", "--resamples", "0"])?;
    let by_file = by_file.success()?.json()?;
    let fid = |json: &serde_json::Value| json["fid"].as_f64().ok_or("no FID");
    assert!((fid(&by_folder)? - fid(&by_file)?).abs() < 1e-6 * fid(&by_file)?, "{by_folder} {by_file}");
    assert!(by_file["fid_interval"].is_null() && by_folder["fid_interval"][0].as_f64() < by_folder["fid"].as_f64());

    let kid = eval("kid", &["--reference", "b", "--subsets", "7", "--subset-size", "50"])?;
    assert!(kid["kid"].is_f64() && kid["kid_std"].as_f64() > Some(0.0) && kid["subset_size"] == 50, "{kid}");
    let is = eval("is", &["--splits", "5"])?;
    assert!(is["is"].as_f64().is_some_and(|score| (1.0..=10.0).contains(&score)) && is["is_std"].is_f64(), "{is}");
    let prdc = eval("prdc", &["--reference", "a"])?;
    assert_eq!(["precision", "recall", "coverage"].map(|name| prdc[name].as_f64()), [Some(1.0); 3], "{prdc}");
    assert_eq!(prdc["precision_interval"], serde_json::json!([1.0, 1.0]));
    // The same seed, the same intervals, to the bit.
    assert_eq!(
        eval("kid", &["--reference", "b", "--subset-size", "50"])?["kid_interval"],
        eval("kid", &["--reference", "b", "--subset-size", "50"])?["kid_interval"]
    );

    let text = program.run(&["eval", "prdc", "a", "--reference", "b", "--quiet", "--resamples", "5"])?.success()?;
    assert_eq!(
        text.stdout.lines().filter_map(|line| line.split(' ').next()).collect::<Vec<_>>(),
        ["precision", "recall", "density", "coverage"]
    );
    let few = program.run(&["eval", "fid", "a", "--reference", "a.npz", "--split", "train", "--quiet"])?.success()?;
    assert!(few.stderr.is_empty(), "{}", few.stderr);
    write_pictures(&program.path("few"), 20, 28, 3)?;
    let few = program.run(&["eval", "fid", "few", "--reference", "a.npz", "--quiet"])?.success()?;
    assert!(few.stderr.contains("20 samples are too few for a covariance of 128 features"), "{}", few.stderr);
    Ok(())
}

/// Samples that are judged on the way are those that would be saved.
#[test]
fn samples_of_a_model_are_those_that_it_saves() -> TestResult {
    let program = Tweedie::new()?;
    let sampling = ["--num-images", "24", "--steps", "2", "--seed", "5", "--batch-size", "10", "--quiet", "--json"];
    std::fs::create_dir(program.path("saved"))?;
    program.run(&[&["sample", "mnist", "--output", "saved/digit.png"], &sampling[..]].concat())?.success()?;
    let judge = |figure: &str, more: &[&str]| program.run(&[&["eval", figure], more].concat())?.success()?.json();
    for (figure, more) in [("is", &["--splits", "1"][..]), ("kid", &["--reference", "saved", "--subset-size", "24"])] {
        let on_the_way = judge(figure, &[&["--checkpoint", "mnist"], more, &sampling].concat())?;
        let saved = judge(figure, &[&["saved", "--json", "--quiet", "--seed", "5"], more].concat())?;
        let value = |json: &serde_json::Value| json[figure].as_f64().ok_or("no figure");
        let (got, want) = (value(&on_the_way)?, value(&saved)?);
        assert!((got - want).abs() < 1e-5, "{figure}: {got} {want}");
        assert_eq!(on_the_way["samples"], 24);
    }
    Ok(())
}

#[test]
fn what_cannot_be_judged_is_answered_once() -> TestResult {
    let program = Tweedie::new()?;
    write_pictures(&program.path("a"), 8, 28, 1)?;
    write_pictures(&program.path("small"), 8, 12, 1)?;
    write_pictures(&program.path("mixed"), 3, 28, 1)?;
    let odd = Photo::new(30, 28, ColorType::Grey, Samples::Eight(vec![0; 840]))?;
    std::fs::write(program.path("mixed/z.png"), odd.encode_png(&[])?)?;
    std::fs::create_dir(program.path("empty"))?;
    let other = FeatureStatistics::new(vec![0.0; 3], vec![0.0; 9], None)?;
    assert!(other.write(&program.path("other.npz"), Existing::Stays)?);
    std::fs::write(program.path("text.npz"), "mu, sigma")?;
    let fails = |arguments: &[&str], status: i32, parts: &[&str]| {
        program.run(&[&["eval"], arguments, &["--quiet"]].concat())?.fails(status, parts)
    };
    fails(&["fid", "mixed", "--reference", "a"], 1, &["28x28 in mixed/000.png", "30x28 in mixed/z.png", "one size"])?;
    fails(&["fid", "small", "--reference", "a"], 1, &["is 12x12", "28x28", "--features"])?;
    fails(&["kid", "a", "--reference", "empty"], 1, &["the data folder empty", "PNG"])?;
    fails(&["is", "gone"], 1, &["gone"])?;
    fails(&["fid", "a", "--reference", "other.npz"], 1, &["is 3", "the samples have 128", "--features"])?;
    fails(&["fid", "a", "--reference", "text.npz"], 1, &["text.npz", "no zip file"])?;
    fails(&["prdc", "a", "--reference", "other.npz"], 2, &["mean and covariance alone", "folder"])?;
    fails(&["prdc", "a", "--reference", "a", "--nearest", "8"], 2, &["is 8", "at least 9"])?;
    fails(&["is", "a", "--splits", "9"], 2, &["is 8", "at least 9"])?;
    fails(
        &["fid", "a", "--reference", "a", "--features", "empty"],
        1,
        &["--features", "lenet", "classifier/config.json"],
    )?;
    fails(&["fid", "a", "--write-statistics", "other.npz"], 1, &["other.npz exists", "--force"])?;
    fails(&["is", "a", "--steps", "3"], 2, &["--checkpoint"])?;
    fails(&["fid", "a"], 2, &["--reference"])?;
    fails(&["is"], 2, &["--checkpoint", "--prompts"])?;
    fails(&["is", "a", "--checkpoint", "mnist"], 2, &["--checkpoint"])?;
    Ok(())
}

/// For what a model made itself it needs few bits, and for noise at least the eight that no code can spare.
#[test]
fn a_model_knows_its_own_samples() -> TestResult {
    let program = Tweedie::new()?;
    std::fs::create_dir(program.path("digits"))?;
    let sample = ["sample", "mnist", "--num-images", "6", "--steps", "10", "--output", "digits/d.png", "--quiet"];
    program.run(&sample)?.success()?;
    std::fs::create_dir(program.path("noise"))?;
    for number in 0..6 {
        let mut draws = SplitMix64::numbered(4, number);
        let bytes = (0..28 * 28).map(|_| draws.below(256) as u8).collect();
        let photo = Photo::new(28, 28, ColorType::Grey, Samples::Eight(bytes))?;
        std::fs::write(program.path(&format!("noise/{number}.png")), photo.encode_png(&[])?)?;
    }
    write_pictures(&program.path("small"), 2, 12, 1)?;
    let judge = |data: &str, more: &[&str]| {
        let judge = [
            "eval",
            "likelihood",
            "--checkpoint",
            "mnist",
            "--split",
            "train",
            "--data",
            data,
            "--evaluations",
            "40",
            "--quiet",
        ];
        program.run(&[&judge[..], more].concat())
    };
    let json = |data, more: &[&str]| judge(data, &[&["--json"], more].concat())?.success()?.json();
    let bits = |json: &serde_json::Value| json["bits_per_dim"].as_f64().ok_or("no bits");
    let own = json("digits", &["--plot", "terms.png", "--batch-size", "4"])?;
    assert!(bits(&own)? > 0.0 && bits(&own)? < 5.0, "{own}");
    let noise = json("noise", &[])?;
    assert!(bits(&noise)? > 7.5, "{noise}");
    assert_eq!((own["terms"].as_array().map(Vec::len), &own["pictures"]), (Some(39), &6.into()));
    assert_eq!((&own["terms"][0]["timesteps"][0], &own["terms"][38]["timesteps"][1]), (&1.into(), &999.into()));
    // Batches do not show.
    assert!((bits(&own)? - bits(&json("digits", &[])?)?).abs() < 1e-6);
    assert!(program.path("terms.png").is_file() && own["prior"]["bits_per_dim"].as_f64() < Some(0.01));
    // The larger variance is further from the posterior's in the last steps.
    assert!(bits(&json("digits", &["--variance", "fixed-large"])?)? != bits(&own)?);
    let text = judge("digits", &["--num-images", "2"])?.success()?.stdout;
    assert_eq!(text.lines().count(), 4, "{text}");
    // The ODE's density of the data is its own, and is as little that of noise.
    let by_ode = |data, more: &[&str]| -> TestResult<f64> {
        let more = [&["--ode", "--num-images", "2"], more].concat();
        json(data, &more)?["ode"]["bits_per_dim"].as_f64().ok_or_else(|| "no bits".into())
    };
    let (own, of_noise) = (by_ode("digits", &[])?, by_ode("noise", &[])?);
    assert!(own > 0.0 && own < 6.0 && of_noise > 7.5, "{own} {of_noise}");
    // Steps are a batch's own, within the tolerance of 1e-5 of each.
    assert!((by_ode("digits", &["--batch-size", "1"])? - own).abs() < 1e-3);
    let text = judge("digits", &["--num-images", "2", "--ode"])?.success()?.stdout;
    assert!(text.lines().last().is_some_and(|line| line.starts_with("ODE") && line.ends_with("evaluations")), "{text}");
    judge("small", &[])?.fails(1, &["1x12x12", "1x28x28"])?;
    judge("digits", &["--variance", "learned"])?.fails(2, &["--variance", "fixed-small"])?;
    judge("digits", &["--num-images", "1"])?.fails(2, &["is 1", "two or more"])?;
    Ok(())
}
