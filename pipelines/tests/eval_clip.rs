//! `tweedie eval clip`.

mod tweedie;

use ::tweedie::images::Picture;
use serde_json::Value;
use tweedie::{TestResult, Tweedie, copy_folder, golden, read_json};

#[test]
fn pictures_are_scored_by_what_they_should_show() -> TestResult {
    let program = Tweedie::new()?;
    copy_folder(&golden().join("clip/model"), &program.path("clip"))?;
    let case = read_json(&golden().join("clip/case.json"))?;
    let list = |name: &str| -> Vec<String> {
        case[name].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    std::fs::create_dir(program.path("pictures"))?;
    for (i, name) in list("pictures").iter().enumerate() {
        std::fs::copy(golden().join("pictures/resize").join(name), program.path(&format!("pictures/{i}.png")))?;
    }
    let score =
        |more: &[&str]| program.run(&[&["eval", "clip", "pictures", "--clip", "clip", "--json"], more].concat());
    score(&[])?.fails(1, &["0.png", "does not say what it should show", "--texts"])?;
    std::fs::write(program.path("texts.txt"), list("texts").join("\n"))?;
    let of_list = score(&["--texts", "texts.txt"])?.success()?.json()?;
    assert_eq!([&of_list["pictures"], &case["scores"]].map(|list| list.as_array().map(Vec::len)), [Some(3); 2]);
    for (found, expected) in
        of_list["pictures"].as_array().into_iter().flatten().zip(case["scores"].as_array().into_iter().flatten())
    {
        let [found, expected] = [&found["score"], expected].map(|score| score.as_f64().unwrap_or(f64::NAN));
        // As in the library's test.
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
    for (i, text) in list("texts").iter().enumerate() {
        std::fs::write(program.path(&format!("pictures/{i}.txt")), text)?;
    }
    assert_eq!(score(&[])?.success()?.json()?["clip_score"], of_list["clip_score"]);
    let text = program.run(&["eval", "clip", "pictures", "--clip", "clip"])?.success()?.stdout;
    assert!(text.starts_with("CLIP score ") && text.contains("of 3 pictures"), "{text}");
    std::fs::write(program.path("texts.txt"), "a fox\n")?;
    score(&["--texts", "texts.txt"])?.fails(2, &["1 texts", "3 pictures"])?;

    // Pictures of this program say what they were made of.
    let model = golden().join("models/sd15");
    let draw = [
        "txt2img",
        "an owl on a branch",
        "--steps",
        "1",
        "--output",
        "drawn/x.png",
        "--model",
        &model.to_string_lossy(),
    ];
    std::fs::create_dir(program.path("drawn"))?;
    program.run(&draw)?.success()?;
    let drawn = program.run(&["eval", "clip", "drawn", "--clip", "clip", "--json"])?.success()?.json()?;
    assert_eq!(drawn["pictures"][0]["text"], "an owl on a branch");
    assert!(Picture::read(&program.path("drawn/x.png")).is_ok());
    // Pictures of prompts are scored as they are made, each by its own: the first one here is that one.
    let made = ["eval", "clip", "--clip", "clip", "--steps", "1", "--json", "--num-images", "3"];
    let prompts = ["--model", &model.to_string_lossy(), "--prompt", "an owl on a branch", "--prompt", "a fox"];
    let made = program.run(&[&made[..], &prompts].concat())?.success()?.json()?;
    assert_eq!(made["pictures"][0]["score"], drawn["pictures"][0]["score"]);
    let texts = [0, 1, 2].map(|i| made["pictures"][i]["text"].as_str());
    assert_eq!(texts, [Some("an owl on a branch"), Some("a fox"), Some("an owl on a branch")]);
    assert_eq!([0, 1, 2].map(|i| made["pictures"][i]["seed"].as_u64()), [Some(0), Some(1), Some(2)]);
    program.run(&["eval", "clip", "--clip", "clip"])?.fails(2, &["--prompts"])?;
    program.run(&["eval", "clip", "drawn", "--clip", "clip", "--num-images", "2"])?.fails(2, &["--num-images"])?;
    Ok(())
}
