//! The control models of a case, in either of the two ways that cases describe them.

use serde_json::{Value, json};

/// A list of objects with model, picture, scale, start and end: as it stands in the field `controls`, or from the fields
/// that have the names of diffusers' arguments.
pub fn described_controls(case: &Value) -> Vec<Value> {
    if let Some(controls) = case["controls"].as_array() {
        return controls.clone();
    }
    let models = match &case["controlnet"] {
        Value::Null => return Vec::new(),
        Value::Array(models) => models.clone(),
        one => vec![one.clone()],
    };
    let pick = |field: &str, i: usize| match &case[field] {
        Value::Array(list) => list[i].clone(),
        one => one.clone(),
    };
    let image = if case["control_image"].is_null() { "init_image" } else { "control_image" };
    let describe = |(i, model): (usize, &Value)| {
        json!({
            "model": model,
            "image": pick(image, i),
            "scale": pick("controlnet_conditioning_scale", i),
            "start": pick("control_guidance_start", i),
            "end": pick("control_guidance_end", i),
        })
    };
    models.iter().enumerate().map(describe).collect()
}
