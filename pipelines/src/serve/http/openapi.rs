//! The description of the interfaces, for programs that read one. Options of requests come from where they are declared.

use super::answer::Answer;
use super::lists::of_kind;
use crate::requests::kind::OptionKind;
use crate::requests::options::OptionInfo;
use crate::serve::job::JobKind;
use axum::Json;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

/// `GET /openapi.json`.
pub async fn document() -> Answer {
    Ok(Json(openapi()).into_response())
}

fn openapi() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tweedie",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Pictures from text by latent diffusion: jobs, and the image interfaces of OpenAI and A1111.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths(),
        "components": {
            "schemas": schemas(),
            "responses": {"Failure": {"description": "Why the request is refused.", "content": of("Failure")}},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}},
        },
        "security": [{}, {"bearer": []}, {"basic": []}],
    })
}

/// JSON of a schema.
fn of(schema: &str) -> Value {
    json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}})
}

/// An operation that answers with `status`, and otherwise with a failure.
fn operation(summary: &str, parameters: &[Value], body: Option<Value>, (status, answer): (&str, Value)) -> Value {
    let mut operation = json!({
        "summary": summary,
        "parameters": parameters,
        "responses": {status: answer, "default": {"$ref": "#/components/responses/Failure"}},
    });
    if let (Some(body), Value::Object(operation)) = (body, &mut operation) {
        operation.insert("requestBody".into(), json!({"required": true, "content": body}));
    }
    operation
}

fn paths() -> Value {
    let text = json!({"type": "string"});
    let id = json!({"name": "id", "in": "path", "required": true, "schema": text, "description": "A job's name."});
    let query = |name: &str, schema: Value| json!({"name": name, "in": "query", "required": false, "schema": schema});
    let header = |name: &str| json!({"name": name, "in": "header", "required": false, "schema": {"type": "string"}});
    let ok = |schema: &str| ("200", json!({"description": "It.", "content": of(schema)}));
    let any = || ("200", json!({"description": "It.", "content": {"application/json": {}}}));
    let kind = |mime: &str| ("200", json!({"description": "It.", "content": {mime: {}}}));
    let picture = || kind("image/png");
    let get =
        |summary: &str, parameters: &[Value], answer| json!({"get": operation(summary, parameters, None, answer)});
    let post = |summary: &str, body: &str| json!({"post": operation(summary, &[], Some(of(body)), any())});
    let limit = json!({"type": "integer", "minimum": 1, "maximum": 200});
    let kinds = json!({"enum": ["txt2img", "img2img", "inpaint"]});
    let index = json!({"name": "index", "in": "path", "required": true, "schema": {"type": "integer", "minimum": 0}});
    let created = ("202", json!({"description": "The job, which waits.", "content": of("Job")}));
    let deleted = ("204", json!({"description": "It is gone."}));
    let mut create = operation("Ask for pictures", &[header("Idempotency-Key")], Some(of("Asked")), created);
    create["responses"]["200"] = json!({"description": "The job that this key named before.", "content": of("Job")});
    let mut job = get("A job", std::slice::from_ref(&id), ok("Job"));
    job["delete"] =
        operation("Remove a job that has ended, with its pictures", std::slice::from_ref(&id), None, deleted);
    let mut jobs = get("Jobs, newest first", &[query("limit", limit), query("before", text.clone())], ok("Jobs"));
    jobs["post"] = create;
    let edits = json!({"multipart/form-data": {"schema": {"$ref": "#/components/schemas/OpenAiEdit"}}});
    let by_id = std::slice::from_ref(&id);
    let mut paths = json!({
        "/api/jobs": jobs,
        "/api/jobs/{id}": job,
        "/api/jobs/{id}/cancel": {"post": operation("End a job", by_id, None, ok("Job"))},
        "/api/jobs/{id}/events": get("News of a job", &[id.clone(), header("Last-Event-ID")], kind("text/event-stream")),
        "/api/jobs/{id}/pictures/{index}": get("A picture", &[id.clone(), index], picture()),
        "/api/jobs/{id}/preview": get("A picture on the way", by_id, picture()),
        "/api/jobs/{id}/image": get("What it was made from", by_id, picture()),
        "/api/jobs/{id}/mask": get("Where it was repainted", by_id, picture()),
        "/api/settings": {"post": operation("What a picture says of how it was made", &[], Some(json!({"image/png": {}})), any())},
        "/api/models": get("The models", &[], any()),
        "/api/loras": get("The LoRAs", &[], any()),
        "/api/schedulers": get("The schedulers", &[], any()),
        "/api/options": get("The options of requests", &[query("kind", kinds)], any()),
        "/v1/images/generations": post("Pictures, as OpenAI's clients ask for them", "OpenAiGeneration"),
        "/v1/images/edits": {"post": operation("A picture changed, as OpenAI's clients ask for it", &[], Some(edits), any())},
        "/v1/models": get("The models, as OpenAI's clients see them", &[], any()),
        "/v1/models/{id}": get("A model, as OpenAI's clients see it", by_id, any()),
        "/sdapi/v1/txt2img": post("Pictures, as A1111's clients ask for them", "A1111Generation"),
        "/sdapi/v1/img2img": post("Pictures of pictures, as A1111's clients ask for them", "A1111Generation"),
        "/sdapi/v1/interrupt": {"post": operation("End what is being drawn", &[], None, any())},
        "/sdapi/v1/png-info": post("What a picture says, as A1111's clients ask for it", "A1111Picture"),
        "/metrics": get("Figures for Prometheus", &[], kind("text/plain")),
        "/healthz": get("Whether the server works", &[], any()),
    });
    let lists = ["progress", "options", "sd-models", "samplers", "schedulers", "loras", "upscalers", "scripts"];
    if let Value::Object(paths) = &mut paths {
        for name in lists {
            paths.insert(format!("/sdapi/v1/{name}"), get("A list of A1111's interface", &[], any()));
        }
    }
    paths
}

fn schemas() -> Value {
    let request = object_of(&of_kind(JobKind::Inpaint), &of_kind(JobKind::Img2img));
    let text = json!({"type": "string"});
    let count = json!({"type": "integer", "minimum": 0});
    let of_text = || Map::from_iter([("prompt".to_owned(), json!({"type": "string"}))]);
    let generation: Map<String, Value> = of_text()
        .into_iter()
        .chain([
            ("model".to_owned(), text.clone()),
            ("n".to_owned(), json!({"type": "integer", "minimum": 1, "maximum": 10})),
            ("size".to_owned(), json!({"type": "string", "examples": ["auto", "512x512"]})),
            ("response_format".to_owned(), json!({"enum": ["b64_json", "url"]})),
            ("output_format".to_owned(), json!({"enum": ["png", "jpeg", "webp"]})),
            ("stream".to_owned(), json!({"type": "boolean"})),
            ("partial_images".to_owned(), json!({"type": "integer", "minimum": 0, "maximum": 3})),
            ("seed".to_owned(), count.clone()),
            ("steps".to_owned(), count.clone()),
        ])
        .collect();
    let mut edit = generation.clone();
    edit.insert("image".into(), json!({"type": "string", "contentMediaType": "application/octet-stream"}));
    edit.insert("mask".into(), json!({"type": "string", "contentMediaType": "application/octet-stream"}));
    json!({
        "Failure": {"type": "object", "required": ["error"], "properties": {"error": {}}},
        "Asked": {
            "type": "object",
            "required": ["request"],
            "additionalProperties": false,
            "properties": {
                "kind": {"enum": ["txt2img", "img2img", "inpaint"]},
                "model": text,
                "priority": {"type": "integer", "minimum": -100, "maximum": 100},
                "request": request,
                "image": {"type": "string", "description": "A picture in base64, or as a data URL."},
                "mask": {"type": "string", "description": "White where to repaint."},
            },
        },
        "Job": {"type": "object", "required": ["id", "state", "kind", "model", "request", "pictures", "sequence"], "properties": {
            "id": text, "state": {"enum": ["queued", "running", "done", "failed", "cancelled"]}, "sequence": count,
        }},
        "Jobs": {"type": "object", "required": ["jobs", "next"], "properties": {"jobs": {"type": "array"}}},
        "OpenAiGeneration": {"type": "object", "required": ["prompt"], "properties": generation},
        "OpenAiEdit": {"type": "object", "required": ["prompt", "image"], "properties": edit},
        "A1111Generation": {"type": "object", "properties": {
            "prompt": text, "negative_prompt": text, "seed": {"type": "integer", "minimum": -1}, "steps": count,
            "width": count, "height": count, "cfg_scale": {"type": "number"}, "sampler_name": text,
            "batch_size": {"type": "integer", "minimum": 1}, "n_iter": {"type": "integer", "minimum": 1},
            "init_images": {"type": "array", "items": text}, "denoising_strength": {"type": "number"}, "mask": text,
        }},
        "A1111Picture": {"type": "object", "required": ["image"], "properties": {"image": text}},
    })
}

/// The object of a request with all options.
fn object_of(inpaint: &[OptionInfo], image: &[OptionInfo]) -> Value {
    let mut root = json!({"type": "object", "required": ["prompt"], "properties": {}});
    for option in inpaint.iter().chain(image) {
        let Some((key, groups)) = option.path.split_last() else { continue };
        let mut properties = &mut root["properties"];
        for group in groups {
            if properties.get(*group).is_none() {
                properties[*group] = json!({"type": "object", "properties": {}});
            }
            properties = &mut properties[*group]["properties"];
        }
        properties[*key] = schema(option);
    }
    root
}

fn schema(option: &OptionInfo) -> Value {
    let whole = json!({"type": "integer", "minimum": 0});
    let two = |items: Value| json!({"type": "array", "items": items, "minItems": 2, "maxItems": 2});
    let mut schema = match option.kind {
        OptionKind::Text | OptionKind::Name => json!({"type": "string"}),
        OptionKind::Choice(names) => json!({"enum": names}),
        OptionKind::Count => whole,
        OptionKind::Seed => json!({"type": "integer", "minimum": -1}),
        OptionKind::Number => json!({"type": "number"}),
        OptionKind::Counts => json!({"type": "array", "items": whole}),
        OptionKind::Numbers => json!({"type": "array", "items": {"type": "number"}}),
        OptionKind::Interval => two(json!({"type": "number"})),
        OptionKind::Size | OptionKind::Corner => two(whole),
        OptionKind::Flag(crate::requests::kind::FlagValue::Defaults) => json!({"type": "object"}),
        OptionKind::Flag(_) => json!({"type": "boolean"}),
        OptionKind::Margins => json!({"type": "object", "properties": {
            "left": whole, "right": whole, "top": whole, "bottom": whole,
        }}),
        OptionKind::Names | OptionKind::Json => json!({}),
    };
    schema["description"] = option.help.clone().into();
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_described_and_every_reference_leads_somewhere() {
        let document = openapi();
        let request = &document["components"]["schemas"]["Asked"]["properties"]["request"]["properties"];
        assert_eq!(request["steps"]["type"], "integer");
        assert_eq!(request["inpaint"]["properties"]["mask_blur"]["minimum"], 0);
        assert_eq!(request["strength"]["type"], "number");
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 10);
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}
