//! The model inside the program, and what a picture carries.

mod tweedie;

use std::path::Path;
use tweedie::{TestResult, Tweedie, check_same_picture, golden, pixels, read_json};

#[test]
fn reference_pictures_of_diffusers() -> TestResult {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emoji_reference");
    let reference = read_json(&folder.join("reference.json"))?;
    let cases = reference["cases"].as_array().ok_or("no cases")?;
    assert!(cases.len() >= 12);
    let tweedie = Tweedie::new()?;
    for case in cases {
        let text = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| case[name].to_string();
        let arguments = [
            "txt2img".into(),
            format!("--prompt={}", text("prompt")),
            format!("--negative-prompt={}", text("negative_prompt")),
            format!("--seed={}", number("seed")),
            format!("--steps={}", number("steps")),
            format!("--guidance-scale={}", number("guidance_scale")),
            format!("--width={}", number("width")),
            format!("--height={}", number("height")),
            format!("--output={}", text("file")),
            "--quiet".into(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tweedie.run(&arguments)?.success()?;
        check_same_picture(&tweedie.path(&text("file")), &folder.join(text("file")))?;
    }
    Ok(())
}

#[test]
fn neither_batch_size_nor_threads_change_a_bit() -> TestResult {
    // One that draws noise in every step, one that remembers, one that asks twice.
    for scheduler in ["euler-a", "dpm++2m-sde-karras", "unipc", "heun"] {
        let tweedie = Tweedie::new()?;
        let common = ["txt2img", "--prompt", "an owl", "--steps", "2", "--scheduler", scheduler];
        let run = |name: &str, batch: &str, threads: &str| -> TestResult {
            let more = ["--num-images", "3", "--seed", "5", "--batch-size", batch, "--output", name];
            tweedie.run_with(&[&common[..], &more].concat(), &[("RAYON_NUM_THREADS", threads)])?.success()?;
            Ok(())
        };
        run("one.png", "1", "2")?;
        run("all.png", "3", "2")?;
        run("two.png", "2", "1")?;
        for i in 0..3 {
            let one = pixels(&tweedie.path(&format!("one-{i}.png")))?;
            assert!(one == pixels(&tweedie.path(&format!("all-{i}.png")))?, "{scheduler}, three at a time");
            assert!(one == pixels(&tweedie.path(&format!("two-{i}.png")))?, "{scheduler}, one thread");
        }
        // Image i alone, from its own seed.
        tweedie.run(&[&common[..], &["--seed", "7", "--output", "alone.png"]].concat())?.success()?;
        assert!(pixels(&tweedie.path("alone.png"))? == pixels(&tweedie.path("one-2.png"))?, "{scheduler}, alone");
    }
    Ok(())
}

#[test]
fn a_picture_carries_its_settings() -> TestResult {
    let tweedie = Tweedie::new()?;
    let arguments = [
        "txt2img",
        "--prompt",
        "a fox, \"日本\"",
        "--negative-prompt",
        "red",
        "--steps",
        "2",
        "--seed",
        "9",
        "--output",
        "fox.png",
        "--json",
    ];
    let outcome = tweedie.run(&arguments)?.success()?;
    let json = outcome.json()?;
    assert_eq!(json["files"], serde_json::json!(["fox.png"]));
    assert_eq!(json["seed"], 9);
    assert_eq!(json["settings"]["steps"], 2);
    assert!(json["seconds"]["denoise"].as_f64().is_some_and(|s| s > 0.0));
    assert!(!cfg!(target_os = "linux") || json["peak_memory_mb"].as_u64().is_some_and(|mb| mb > 30));

    let bytes = std::fs::read(tweedie.path("fox.png"))?;
    let chunks = ::tweedie::images::read_png_text(&bytes, Path::new("fox.png"))?;
    let text = |keyword: &str| chunks.iter().find(|c| c.keyword == keyword).map(|c| c.text.clone()).ok_or("no chunk");
    let parameters = text("parameters")?;
    assert!(parameters.starts_with("a fox, \"日本\"\nNegative prompt: red\nSteps: 2, Sampler: DDIM, CFG scale: 3.5, Seed: 9, Size: 128x128, Model hash: "), "{parameters}");
    let settings: serde_json::Value = serde_json::from_str(&text("tweedie")?)?;
    assert_eq!(settings, json["settings"]);
    let hashes = settings["weights_sha256"].as_object().ok_or("no hashes")?;
    assert_eq!(hashes.len(), 3);
    assert!(hashes.values().all(|hash| hash.as_str().is_some_and(|hash| hash.len() == 64)));
    Ok(())
}

#[test]
fn half_precision_weights_give_nearly_the_same_picture() -> TestResult {
    let tweedie = Tweedie::new()?;
    // The embedded weights are f16, so storing them as f16 loses nothing.
    for dtype in ["f32", "f16"] {
        let name = format!("{dtype}.png");
        tweedie
            .run(&["txt2img", "--prompt", "a cat", "--steps", "3", "--dtype", dtype, "--output", &name])?
            .success()?;
    }
    assert_eq!(pixels(&tweedie.path("f32.png"))?, pixels(&tweedie.path("f16.png"))?);
    Ok(())
}

#[test]
fn names_come_from_the_prompt_and_are_never_taken_twice() -> TestResult {
    let tweedie = Tweedie::new()?;
    for _ in 0..2 {
        tweedie.run(&["txt2img", "--prompt", "A red car!", "--steps", "1"])?.success()?;
    }
    assert_eq!(tweedie.files()?, ["a-red-car-0-again.png", "a-red-car-0.png"]);
    Ok(())
}

/// With little memory the autoencoder goes about a picture in strips, which are on the disk between its passes: files are the same to
/// the bit, and where there is no room for strips the folder is named.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_memory_changes_no_bit_of_a_picture() -> TestResult {
    let tweedie = Tweedie::new()?;
    let of_text = ["txt2img", "--prompt", "an owl", "--steps", "1", "--width", "136", "--quiet", "--output"];
    let of_picture = [
        "img2img",
        "--image",
        "text-0.png",
        "--prompt",
        "an owl",
        "--steps",
        "2",
        "--strength",
        "0.5",
        "--quiet",
        "--output",
    ];
    for (kind, arguments) in [("text", &of_text[..]), ("picture", &of_picture[..])] {
        // Less than strips have in hand, so that all that is held goes to the disk.
        for (i, limit) in [None, Some("600MB")].into_iter().enumerate() {
            let output = format!("{kind}-{i}.png");
            let limit = limit.map_or(Vec::new(), |limit| vec!["--max-memory", limit]);
            tweedie.run(&[arguments, &[&*output], &limit].concat())?.success()?;
        }
        let read = |i: usize| std::fs::read(tweedie.path(&format!("{kind}-{i}.png")));
        assert!(read(0)? == read(1)?, "{kind}");
    }
    let limited = [&of_text[..], &["x.png", "--max-memory", "600MB"]].concat();
    let nowhere = tweedie.path("nowhere");
    let nowhere = nowhere.to_string_lossy();
    tweedie.run_with(&limited, &[("TMPDIR", &nowhere)])?.fails(1, &["temporary file", &nowhere])?;
    let too_little = [&of_text[..], &["x.png", "--max-memory", "1MiB"]].concat();
    tweedie.run(&too_little)?.fails(1, &["memory that the pictures need", "1 MB can be had here"])?;
    for wrong in ["3 apples", "-1GB", "0"] {
        tweedie.run(&[&of_text[..], &["x.png", &format!("--max-memory={wrong}")]].concat())?.fails(2, &[wrong])?;
    }
    assert_eq!(tweedie.files()?, ["picture-0.png", "picture-1.png", "text-0.png", "text-1.png"]);
    Ok(())
}

#[test]
fn a_prompt_that_is_too_long_is_cut_with_a_warning_that_names_the_cut() -> TestResult {
    let tweedie = Tweedie::new()?;
    let prompt = format!("{} and a unicorn at the end", "a very small cat ".repeat(8).trim());
    let warnings = tweedie.run(&["txt2img", "--prompt", &prompt, "--steps", "1"])?.success()?.warnings();
    assert!(warnings.iter().any(|warning| warning.contains("a unicorn at the end")), "{warnings:?}");
    Ok(())
}

#[test]
fn info_and_bench_of_the_embedded_model() -> TestResult {
    let tweedie = Tweedie::new()?;
    let info = tweedie.run(&["model", "info"])?.success()?.stdout;
    for part in ["emoji-ldm", "StableDiffusionPipeline", "DDIMScheduler", "128x128", "UNet2DConditionModel", "f16"] {
        assert!(info.contains(part), "{part}: {info}");
    }
    let bench = ["bench", "--size", "64", "--runs", "1", "--json"];
    let bench = tweedie.run_with(&bench, &[("RAYON_NUM_THREADS", "3")])?.success()?.json()?;
    assert_eq!(bench["threads"], 3, "those that were used");
    for key in ["text_encoder_s", "unet_s", "vae_encode_s", "vae_decode_s", "load_s", "peak_rss_mb"] {
        assert!(bench[key].is_number() || (key == "peak_rss_mb" && !cfg!(target_os = "linux")), "{key}: {bench}");
    }
    assert_eq!(bench["unet_first"].as_array().map(Vec::len), Some(4));
    Ok(())
}

/// Its inputs are those of a formula, so its output is another program's.
#[test]
fn golden_bench_of_stable_diffusion_xl() -> TestResult {
    let rows = read_json(&golden().join("bench.json"))?;
    for row in rows.as_array().ok_or("no rows")? {
        let model = golden().join("models").join(row["model"].as_str().ok_or("no model")?);
        let (model, size, batch) = (model.to_string_lossy(), row["size"].to_string(), row["batch"].to_string());
        let options = ["--runs=1", "--dtype=f32", "--device=cpu", "--json"];
        let common = ["bench", "--model", &model, "--size", &size, "--batch", &batch];
        let bench = Tweedie::new()?.run(&[&common[..], &options].concat())?.success()?.json()?;
        assert!(bench["text_encoder_2_s"].is_number(), "{bench}");
        for i in 0..4 {
            let [got, want] = [&bench, row].map(|row| row["unet_first"][i].as_f64().unwrap_or(f64::NAN));
            // Within 1e-4 of the largest values, as the UNet's stages.
            assert!((got - want).abs() < 1e-4, "{}: {got} for {want}", row["model"]);
        }
    }
    Ok(())
}

#[test]
fn weighted_prompts_are_plain_ones_until_they_have_weights() -> TestResult {
    let tweedie = Tweedie::new()?;
    let run = |name: &str, more: &[&str]| -> TestResult<(u32, u32, Vec<u8>)> {
        let file = format!("{name}.png");
        let arguments = [&["txt2img", "--steps", "3", "--output", &file], more].concat();
        let outcome = tweedie.run(&arguments)?.success()?;
        assert!(outcome.warnings().is_empty(), "{}", outcome.stderr);
        pixels(&tweedie.path(&file))
    };
    let plain = run("plain", &["--prompt", "a cat on a red background"])?;
    let weighted = ["--prompt-syntax", "weighted", "--prompt"];
    assert!(plain == run("same", &[&weighted[..], &["a cat on a red background"]].concat())?);
    assert!(plain == run("one", &[&weighted[..], &["a (cat:1.0) on a red background"]].concat())?);
    assert!(plain != run("heavy", &[&weighted[..], &["a (cat:1.5) on a red background"]].concat())?);
    // Two chunks for the prompt, so two for the empty negative prompt.
    assert!(plain != run("chunks", &[&weighted[..], &["a cat BREAK on a red background"]].concat())?);
    let long = "a red cat, ".repeat(30);
    run("long", &[&weighted[..], &[long.as_str()]].concat())?;
    Ok(())
}

/// It draws all the same, and what comes of words that mean nothing to it is not passed over in silence.
#[test]
fn words_that_the_model_does_not_know_are_named() -> TestResult {
    let tweedie = Tweedie::new()?;
    let told = |more: &[&str]| -> TestResult<String> {
        let run = [&["txt2img", "--steps", "1", "--force", "--output", "x.png"], more].concat();
        Ok(tweedie.run(&run)?.success()?.warnings().concat())
    };
    let nebula = told(&["a nebula over xyzzy"])?;
    assert!(
        ["\"nebula\"", "\"xyzzy\"", "tweedie model info", "--model"].iter().all(|part| nebula.contains(part)),
        "{nebula}"
    );
    assert!(told(&["a foxx on a blue background"])?.contains("\"foxx\" (perhaps fox"));
    assert_eq!(told(&["a fox on a blue background, flat style"])?, "");
    let listed = tweedie.run(&["model", "info"])?.success()?.stdout;
    assert!(listed.contains("sailboat") && listed.contains("purple"), "{listed}");
    Ok(())
}

#[test]
fn listed_timesteps_are_the_rule_that_chose_them() -> TestResult {
    let tweedie = Tweedie::new()?;
    let run = |name: &str, more: &[&str]| -> TestResult<(u32, u32, Vec<u8>)> {
        let common = ["txt2img", "--prompt", "a star", "--scheduler", "euler", "--output", name];
        tweedie.run(&[&common[..], more].concat())?.success()?;
        pixels(&tweedie.path(name))
    };
    // Trailing, four of 1000.
    let rule = run("rule.png", &["--steps", "4"])?;
    assert!(rule == run("listed.png", &["--timesteps", "999,749,499,249"])?);
    assert!(rule != run("other.png", &["--timesteps", "999,600,300,100"])?);
    run("sigmas.png", &["--sigmas", "50,10,3,1,0.3,0", "--plot-schedule", "plot.png"])?;
    assert_eq!(pixels(&tweedie.path("plot.png"))?.0, 960);
    Ok(())
}

/// What scripts ask for is JSON that says the same as the table.
#[test]
fn models_and_schedulers_are_listed_as_json() -> TestResult {
    let tweedie = Tweedie::new()?;
    let info = tweedie.run(&["model", "info", "--json"])?.success()?.json()?;
    let table = tweedie.run(&["model", "info"])?.success()?.stdout;
    let components = info["components"].as_array().ok_or("no components")?;
    let total: u64 = components.iter().filter_map(|component| component["parameters"].as_u64()).sum();
    let line = table.lines().find(|line| line.starts_with("total")).ok_or("no total")?;
    let digits = line.split_whitespace().nth(1).map(|number| number.replace(',', ""));
    assert_eq!(digits, Some(total.to_string()));
    // Two bytes for each weight, which is in half precision.
    assert!(line.ends_with(&format!("{:.1} MB", total as f64 * 2e-6)), "{line}");
    let schedulers = tweedie.run(&["schedulers", "--json"])?.success()?.json()?;
    let table = tweedie.run(&["schedulers"])?.success()?.stdout;
    for entry in schedulers.as_array().ok_or("no list")? {
        let (name, class) = (entry["name"].as_str().unwrap_or("-"), entry["class_name"].as_str().unwrap_or("-"));
        assert!(table.lines().any(|line| line.starts_with(name) && line.contains(class)), "{name} {class}");
    }
    Ok(())
}

/// The picture does not depend on how many threads make it.
#[test]
fn threads_can_be_given() -> TestResult {
    let tweedie = Tweedie::new()?;
    for threads in ["1", "2", "3"] {
        let name = format!("{threads}.png");
        let draw = ["txt2img", "a fox", "--steps", "2", "--quiet", "--threads", threads, "--output", &name];
        tweedie.run(&draw)?.success()?;
        assert!(std::fs::read(tweedie.path(&name))? == std::fs::read(tweedie.path("1.png"))?, "{threads}");
    }
    tweedie.run(&["txt2img", "a fox", "--threads", "0"])?.fails(2, &["--threads"])?;
    let version = tweedie.run(&["--version"])?.success()?.stdout;
    assert!(version.contains("features") && version.contains("instruction sets"), "{version}");
    assert_eq!(tweedie.run(&["-V"])?.success()?.stdout.lines().count(), 1);
    Ok(())
}
