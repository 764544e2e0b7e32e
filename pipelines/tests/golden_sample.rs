//! Golden pictures in pixel space through the program itself.

mod tweedie;

use serde_json::Value;
use std::path::{Path, PathBuf};
use tweedie::{TestResult, Tweedie, check_same_picture, copy_folder, golden, read_json};

/// The seed and the number of pictures that the command line can ask for. It has a generator for each image; where one
/// generator serves all, a deterministic solver still gives the first image from the first draw alone.
fn asked(case: &Value) -> Option<(u64, usize)> {
    let images = case["batch"].as_u64().unwrap_or(1) as usize;
    match &case["seed"] {
        Value::Array(seeds) => {
            let seeds: Vec<u64> = seeds.iter().filter_map(Value::as_u64).collect();
            seeds.windows(2).all(|pair| pair[1] == pair[0] + 1).then(|| (seeds[0], images))
        }
        seed if images == 1 => Some((seed.as_u64()?, 1)),
        seed if case["draws"].as_array().is_some_and(|draws| draws.len() == 1) => Some((seed.as_u64()?, 1)),
        _ => None,
    }
}

fn run(tweedie: &Tweedie, folder: &Path, case: &Value, (seed, images): (u64, usize)) -> TestResult {
    let name = case["name"].as_str().ok_or("no name")?;
    let root = folder.parent().and_then(Path::parent).ok_or("no root")?;
    let entry = ::tweedie::schedulers::by_class_name(case["scheduler"]["name"].as_str().unwrap_or_default())?;
    let mut model = root.join("models").join(case["model"].as_str().ok_or("no model")?);
    // What has no flag is changed in a copy's scheduler file.
    if case["scheduler"]["overrides"].as_object().is_some_and(|overrides| !overrides.is_empty()) {
        let copy = tweedie.path(&format!("{name}-model"));
        copy_folder(&model, &copy)?;
        let file = copy.join("scheduler/scheduler_config.json");
        let mut config = read_json(&file)?;
        for (field, value) in case["scheduler"]["overrides"].as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        std::fs::write(file, config.to_string())?;
        model = copy;
    }
    let output = format!("{name}.png");
    let mut arguments = vec!["sample".to_owned(), "--quiet".into(), "--batch-size=2".into()];
    arguments.push(format!("--checkpoint={}", model.display()));
    arguments.push(format!("--output={output}"));
    arguments.push(format!("--scheduler={}", entry.name));
    arguments.push(format!("--seed={seed}"));
    arguments.push(format!("--num-images={images}"));
    for (flag, field) in [("--steps", "steps"), ("--eta", "eta")] {
        if !case[field].is_null() {
            arguments.push(format!("{flag}={}", case[field]));
        }
    }
    if let Some(classes) = case["class_labels"].as_array() {
        let classes: Vec<_> = classes.iter().map(Value::to_string).collect();
        arguments.push(format!("--classes={}", classes.join(",")));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tweedie.run(&arguments)?.success().map_err(|e| format!("{name}: {e}"))?;
    for i in 0..images {
        let expected = case["expected"][i].as_str().ok_or("no expected picture")?;
        let file = if images == 1 { output.clone() } else { format!("{name}-{i}.png") };
        check_same_picture(&tweedie.path(&file), &folder.join(expected))?;
    }
    Ok(())
}

#[test]
fn golden_pictures_in_pixel_space_through_the_program() -> TestResult {
    let mut roots = vec![golden()];
    roots.extend(std::env::var_os("TWEEDIE_GOLDEN").map(PathBuf::from));
    let (mut count, mut failures) = (0, Vec::new());
    for root in roots {
        for entry in std::fs::read_dir(root.join("cases"))? {
            let folder = entry?.path();
            let case = read_json(&folder.join("case.json"))?;
            if case["kind"] != "pixel" {
                continue;
            }
            let Some(asked) = asked(&case) else { continue };
            // Both roots may hold the case.
            let tweedie = Tweedie::new()?;
            failures.extend(run(&tweedie, &folder, &case, asked).err().map(|e| e.to_string()));
            count += 1;
        }
    }
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
    assert!(count > 0, "no golden case in pixel space was found");
    println!("{count} cases");
    Ok(())
}
