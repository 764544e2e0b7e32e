//! The memory of a run, known before it: predicted, and refused where there is less.
#![cfg(target_os = "linux")]

mod tweedie;

use serde_json::Value;
use tweedie::{TestResult, Tweedie};

/// How far a prediction may be off: the system's allocator, threads' stacks and the program's own pages are not in the account.
const TOLERANCE: f64 = 0.1;

/// Predicted and measured peak of a run, in MiB.
fn peaks(tweedie: &Tweedie, arguments: &[&str]) -> TestResult<(f64, f64)> {
    let json = tweedie.run(&[arguments, &["--json", "--force"]].concat())?.success()?.json()?;
    let field = |name: &str| json[name].as_f64().ok_or(format!("{name} is missing in {json}"));
    Ok((field("predicted_memory_mb")?, field("peak_memory_mb")?))
}

#[test]
fn peaks_are_predicted_within_a_tenth() -> TestResult {
    let tweedie = Tweedie::new()?;
    let of_text = ["txt2img", "--prompt", "a fox", "--steps", "8", "--output", "a.png"];
    let of_picture = ["img2img", "--prompt", "a fox", "--image", "a.png", "--steps", "4", "--output", "b.png"];
    let cases: [(&[&str], &[&str]); 8] = [
        (&of_text, &["--size", "256x256"]),
        (&of_text, &["--size", "512x384"]),
        (&of_text, &["--size", "512x512", "--dtype", "q8"]),
        (&of_text, &["--size", "256x256", "--num-images", "4", "--batch-size", "4"]),
        (&of_text, &["--size", "512x512", "--guidance-scale", "1"]),
        (&of_text, &["--size", "512x512", "--fast", "2x"]),
        (&of_text, &["--size", "768x768", "--token-merging", "0.5"]),
        (&of_picture, &[]),
    ];
    for (task, options) in cases {
        let (predicted, measured) = peaks(&tweedie, &[task, options].concat())?;
        let off = predicted / measured - 1.0;
        assert!(off.abs() <= TOLERANCE, "{task:?} {options:?}: {predicted} and {measured} MiB");
    }
    Ok(())
}

/// What `model info` says is what a run of that size takes.
#[test]
fn a_models_memory_is_told_by_size_and_format() -> TestResult {
    let tweedie = Tweedie::new()?;
    let json = tweedie.run(&["model", "info", "--memory", "384x256", "--json"])?.success()?.json()?;
    let memory = &json["memory"];
    assert_eq!((&memory["width"], &memory["height"]), (&Value::from(384), &Value::from(256)));
    let bytes = |dtype: &str| memory["bytes"][dtype].as_f64().ok_or(format!("{dtype}: {memory}"));
    let (auto, q8, q4) = (bytes("auto")?, bytes("q8")?, bytes("q4")?);
    // Where the most memory is taken when the network has been let go of, its format matters little.
    assert!(auto > q8 && q8 >= q4, "{memory}");
    let text = tweedie.run(&["model", "info", "--memory", "384x256"])?.success()?.stdout;
    assert!(text.contains("384x256") && text.contains("MB"), "{text}");
    for (dtype, told) in [("auto", auto), ("q8", q8), ("q4", q4)] {
        let size = ["txt2img", "--prompt", "", "--steps", "3", "--output", "a.png", "--size", "384x256"];
        let (predicted, _) = peaks(&tweedie, &[&size[..], &["--dtype", dtype]].concat())?;
        // The same account, in two processes.
        assert!((predicted * (1 << 20) as f64 / told - 1.0).abs() < 0.05, "{dtype}: {predicted} and {told}");
    }
    tweedie.run(&["model", "info", "--memory", "large"])?.fails(2, &["512x768"])?;
    Ok(())
}

/// Nothing is loaded for what does not fit, and what the refusal names does.
#[test]
fn what_does_not_fit_is_refused_with_what_would() -> TestResult {
    let tweedie = Tweedie::new()?;
    let limited = ["txt2img", "--prompt", "a fox", "--steps", "1", "--output", "a.png", "--max-memory", "320MB"];
    let draw = |more: &[&str]| tweedie.run(&[&limited[..], more].concat());
    let many = ["--num-images", "8", "--size", "384x384"];
    let refused = draw(&[&many[..], &["--batch-size", "8"]].concat())?;
    refused.fails(1, &["memory that the pictures need", "can be had here", "take a --batch-size of 1"])?;
    draw(&[&many[..], &["--batch-size", "1"]].concat())?.success()?;
    // Of a file of prompts one model draws all, and what it has drawn is there.
    let prompts = "{\"prompt\": \"a cat\"}\n{\"prompt\": \"a dog\", \"width\": 1024, \"height\": 1024}\n";
    std::fs::write(tweedie.path("list.jsonl"), prompts)?;
    let each = ["txt2img", "--prompts", "list.jsonl", "--steps", "1", "--max-memory", "320MB", "--output", "all"];
    tweedie.run(&each)?.fails(1, &["memory that the pictures need", "take a smaller --width and --height"])?;
    assert_eq!(std::fs::read_dir(tweedie.path("all"))?.count(), 1);
    draw(&["--size", "1024x1024"])?.fails(1, &["take a smaller --width and --height, such as 512x512"])?;
    Ok(())
}
