//! Models by their names, and LoRAs of requests.

use super::running::{Running, rgb};
use super::tweedie::{TestResult, Tweedie, copy_folder};
use serde_json::json;
use std::path::Path;

/// A folder of two small models, with a LoRA for both.
fn models(place: &Tweedie) -> TestResult {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models");
    for name in ["one", "two"] {
        copy_folder(&golden.join("sd15"), &place.path("models").join(name))?;
    }
    std::fs::create_dir(place.path("models/loras"))?;
    std::fs::copy(golden.join("lora/kohya.safetensors"), place.path("models/loras/ink.safetensors"))?;
    std::fs::write(place.path("models/readme.txt"), "no model")?;
    Ok(())
}

#[test]
fn a_lora_acts_in_its_request_alone() -> TestResult {
    let place = Tweedie::new()?;
    models(&place)?;
    let server = Running::start(&place, &["--models", "models"])?;
    assert_eq!(server.get("/api/loras")?.expect(200)?, json!({"loras": [{"name": "ink"}]}));
    let draw = |loras: serde_json::Value| -> TestResult<Vec<u8>> {
        let job = server.job(&json!({"prompt": "an owl", "steps": 3, "seed": 1, "loras": loras}))?;
        Ok(rgb(&server.pictures(&job)?[0])?.2)
    };
    let with = json!([{"name": "ink", "weight": 0.8}]);
    let (first, without, again) = (draw(with.clone())?, draw(json!([]))?, draw(with)?);
    assert_eq!(first, again);
    assert_ne!(first, without);
    // In a prompt, as A1111's clients name it.
    let body = json!({"prompt": "an owl <lora:ink:0.8>", "steps": 3, "seed": 1});
    let answer = server.post("/sdapi/v1/txt2img", &body)?.expect(200)?;
    let picture = super::running::unbase64(answer["images"][0].as_str().unwrap_or_default())?;
    let job = server.job(&json!({"prompt": "an owl", "prompt_syntax": "weighted", "steps": 3, "seed": 1,
        "loras": [{"name": "ink", "weight": 0.8}]}))?;
    assert_eq!(rgb(&picture)?, rgb(&server.pictures(&job)?[0])?);
    Ok(())
}

#[test]
fn models_come_and_go_within_their_memory() -> TestResult {
    let place = Tweedie::new()?;
    models(&place)?;
    // Too little for two.
    let server = Running::start(&place, &["--models", "models", "--model-memory", "1"])?;
    let names = server.get("/v1/models")?.expect(200)?;
    let names: Vec<_> = names["data"].as_array().into_iter().flatten().map(|model| model["id"].clone()).collect();
    assert_eq!(names, ["one", "two"]);
    let draw = |model: &str| -> TestResult<Vec<u8>> {
        let body = json!({"model": model, "request": {"prompt": "an owl", "steps": 2, "seed": 1}});
        let job = server.post("/api/jobs", &body)?.expect(202)?;
        Ok(rgb(&server.pictures(&job)?[0])?.2)
    };
    let (one, two) = (draw("one")?, draw("two")?);
    assert_eq!(one, two, "they are the same model by two names");
    assert_eq!(server.figure("tweedie_models_loaded")?, 1);
    let loaded = server.get("/api/models")?.expect(200)?;
    assert_eq!([&loaded["models"][0]["loaded"], &loaded["models"][1]["loaded"]], [&json!(false), &json!(true)]);
    assert_eq!(draw("one")?, one);
    drop(server);

    let server = Running::start(&place, &["--models", "models", "--model", "models/two"]);
    let said = server.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(said.contains("two") && said.contains("name"), "{said}");
    Ok(())
}
