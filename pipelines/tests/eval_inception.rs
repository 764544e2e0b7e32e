//! `tweedie eval` by the features of Inception-v3, with weights that the references had too.

#[path = "../../tests/cases/inception.rs"]
mod rules;
mod tweedie;

use ::tweedie::files::Existing;
use ::tweedie::metrics::FeatureStatistics;
use rules::{write_pictures, write_weights};
use serde_json::Value;
use tweedie::{TestResult, Tweedie, golden, read_json};

/// The last folder of what PyTorch keeps.
const CHECKPOINTS: &str = "torch/hub/checkpoints";

fn number(json: &Value, name: &str) -> TestResult<f64> {
    Ok(json[name].as_f64().ok_or_else(|| format!("no {name} in {json}"))?)
}

/// From files of pictures to figures, as pytorch-fid and torch-fidelity have them.
#[test]
fn golden_figures_of_pictures() -> TestResult {
    let program = Tweedie::new()?;
    let want = read_json(&golden().join("inception/figures.json"))?;
    let count = number(&want, "count")? as usize;
    write_weights(&program.path("inception.safetensors"), 1008)?;
    write_pictures(&program.path("dark"), 0, count)?;
    write_pictures(&program.path("bright"), 1, count)?;
    let eval = |figure: &str, more: &[&str]| {
        let judge =
            ["eval", figure, "dark", "--features", "inception.safetensors", "--json", "--quiet", "--resamples", "0"];
        program.run(&[&judge[..], more].concat())?.success()?.json()
    };
    // Relative. Features differ in the fifth digit, and figures are differences of them.
    let close = |got: &Value, name: &str, of: &str| -> TestResult {
        let (got, want) = (number(got, name)?, number(&want, of)?);
        assert!((got - want).abs() <= 1e-3 * want.abs(), "{of}: {got} instead of {want}");
        Ok(())
    };
    close(&eval("fid", &["--reference", "bright", "--write-statistics", "dark.npz"])?, "fid", "fid")?;
    let size = count.to_string();
    close(&eval("kid", &["--reference", "bright", "--subsets", "1", "--subset-size", &size])?, "kid", "kid")?;
    close(&eval("is", &["--splits", "1"])?, "is", "is")?;

    // Of the distance to the other set nothing is left but rounding.
    let same = eval("fid", &["--reference", "dark.npz"])?;
    assert!(number(&same, "fid")?.abs() < 1e-6 * number(&want, "fid")?, "{same}");
    close(&eval("fid", &["--reference", "bright", "--resize", "clean-fid"])?, "fid", "fid_of_clean")
}

/// Pictures of prompts that are judged on the way are those that would be saved.
#[test]
fn pictures_of_prompts_are_judged_as_they_are_made() -> TestResult {
    let program = Tweedie::new()?;
    write_weights(&program.path("inception.safetensors"), 1000)?;
    let model = golden().join("models/sd15");
    let model = model.to_string_lossy();
    let drawing = ["--model", &model, "--steps", "1", "--quiet", "--json"];
    std::fs::create_dir(program.path("saved"))?;
    for (i, prompt) in ["a fox", "an owl", "a fox"].into_iter().enumerate() {
        let (seed, file) = ((7 + i).to_string(), format!("saved/{i}.png"));
        program.run(&[&["txt2img", prompt, "--seed", &seed, "--output", &file], &drawing[..]].concat())?.success()?;
    }
    std::fs::write(program.path("prompts.txt"), "a fox\nan owl\n")?;
    let judge = |samples: &[&str]| {
        let judge =
            ["eval", "is", "--splits", "1", "--resamples", "0", "--seed", "7", "--features", "inception.safetensors"];
        program.run(&[&judge[..], samples].concat())?.success()?.json()
    };
    let saved = judge(&["saved", "--json", "--quiet"])?;
    for prompts in [&["--prompts", "prompts.txt"][..], &["--prompt", "a fox", "--prompt", "an owl"]] {
        let made = judge(&[prompts, &["--num-images", "3"], &drawing].concat())?;
        assert_eq!(made["samples"], 3);
        // The same pictures, and as many at a time.
        assert_eq!(number(&made, "is")?, number(&saved, "is")?);
    }
    Ok(())
}

#[test]
fn what_cannot_be_judged_is_answered_once() -> TestResult {
    let program = Tweedie::new()?;
    write_weights(&program.path("inception.safetensors"), 1008)?;
    write_pictures(&program.path("dark"), 0, 2)?;
    std::fs::create_dir(program.path("empty"))?;
    std::fs::write(program.path("prompts.txt"), "a fox\n")?;
    std::fs::write(program.path("text.pth"), "no network")?;
    let of_lenet = FeatureStatistics::new(vec![0.0; 128], vec![0.0; 128 * 128], None)?;
    assert!(of_lenet.write(&program.path("lenet.npz"), Existing::Stays)?);
    let fails = |arguments: &[&str], status: i32, parts: &[&str]| {
        let caches = program.path("torch");
        let environment = [("TORCH_HOME", caches.to_str().unwrap_or_default())];
        program.run_with(&[&["eval"], arguments, &["--quiet"]].concat(), &environment)?.fails(status, parts)
    };
    let with = ["--features", "inception.safetensors"];
    fails(
        &[&["fid", "dark", "--reference", "lenet.npz"], &with[..]].concat(),
        1,
        &["is 128", "the samples have 2048"],
    )?;
    fails(&[&["is", "empty"], &with[..]].concat(), 1, &["the data folder empty", "PNG"])?;
    fails(&["is", "dark", "--features", "text.pth"], 1, &["text.pth"])?;
    fails(&["is", "dark", "--features", "gone.pth"], 1, &["gone.pth", "lenet, inception"])?;
    let other = golden().join("clip/stages.safetensors");
    let parts = ["stages.safetensors", "no Inception-v3", "pt_inception-2015-12-05-6726825d.pth"];
    fails(&["is", "dark", "--features", &other.to_string_lossy()], 1, &parts)?;
    fails(&["is", "dark", "--features", "inception"], 1, &["pt_inception-2015-12-05-6726825d.pth", "--features"])?;
    fails(&["is", "dark", "--resize", "clean-fid"], 2, &["--resize", "--features"])?;

    fails(&["is", "--model", "some"], 2, &["--prompt"])?;
    fails(&["is", "dark", "--model", "some"], 2, &["--model is for", "--prompts or --prompt"])?;
    fails(&["is", "dark", "--prompt", "a fox"], 2, &["--prompt"])?;
    fails(&["is", "--prompts", "prompts.txt", "--classes", "1"], 2, &["--classes"])?;
    fails(&["is", "--prompts", "prompts.txt", "--num-images", "0"], 2, &["the number of images is 0", "take 1 to"])?;
    fails(&["is", "--prompts", "gone.txt"], 1, &["gone.txt"])?;

    // Where PyTorch keeps it, it is found by its name, and read as any file.
    std::fs::create_dir_all(program.path(CHECKPOINTS))?;
    std::fs::copy(program.path("text.pth"), program.path(CHECKPOINTS).join("pt_inception-2015-12-05-6726825d.pth"))?;
    fails(&["is", "dark", "--features", "inception"], 1, &[CHECKPOINTS, "pt_inception-2015-12-05-6726825d.pth"])
}
