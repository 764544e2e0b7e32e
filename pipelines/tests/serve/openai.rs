//! OpenAI's interface, with requests as its clients and Open WebUI send them.

use super::running::{Running, rgb, unbase64};
use super::tweedie::{TestResult, Tweedie};
use serde_json::{Value, json};

fn picture(data: &Value) -> TestResult<Vec<u8>> {
    unbase64(data["b64_json"].as_str().ok_or_else(|| format!("no picture in {data}"))?)
}

#[test]
fn pictures_are_generated_as_its_clients_ask() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let own = server.pictures(&server.job(&json!({"prompt": "a cat", "steps": 4, "seed": 5, "num_images": 2}))?)?;
    // As the Python client sends it, with this program's options as `extra_body`.
    let body = json!({
        "model": "emoji-ldm", "prompt": "a cat", "n": 2, "size": "128x128", "response_format": "b64_json", "quality": "auto",
        "background": "auto", "moderation": "auto", "user": "me", "output_format": "png", "seed": 5, "steps": 4,
    });
    let answer = server.post("/v1/images/generations", &body)?.expect(200)?;
    assert_eq!((answer["size"].as_str(), answer["output_format"].as_str()), (Some("128x128"), Some("png")));
    for (i, own) in own.iter().enumerate() {
        assert_eq!(rgb(&picture(&answer["data"][i])?)?, rgb(own)?, "picture {i}");
    }
    // As Open WebUI sends it; what is null is left open.
    let body = json!({"model": "emoji-ldm", "prompt": "a cat", "n": 1, "size": "auto", "response_format": null});
    assert_eq!(server.post("/v1/images/generations", &body)?.expect(200)?["data"].as_array().map(Vec::len), Some(1));

    let body = json!({"prompt": "a cat", "response_format": "url", "steps": 4, "seed": 5});
    let answer = server.post("/v1/images/generations", &body)?.expect(200)?;
    let url = answer["data"][0]["url"].as_str().ok_or("no url")?;
    assert_eq!(rgb(&server.get(url.strip_prefix(&server.url).ok_or("elsewhere")?)?.body)?, rgb(&own[0])?);

    for (format, start) in [("jpeg", &b"\xff\xd8\xff"[..]), ("webp", b"RIFF")] {
        let body = json!({"prompt": "a cat", "output_format": format, "steps": 4, "seed": 5});
        let answer = server.post("/v1/images/generations", &body)?.expect(200)?;
        assert!(picture(&answer["data"][0])?.starts_with(start), "{format}");
    }
    Ok(())
}

#[test]
fn partial_images_and_pictures_are_streamed() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let own = server.pictures(&server.job(&json!({"prompt": "a cat", "steps": 200, "seed": 5}))?)?;
    let body = json!({"prompt": "a cat", "stream": true, "partial_images": 2, "steps": 200, "seed": 5});
    let reply = server.post("/v1/images/generations", &body)?;
    assert_eq!((reply.status, reply.kind.as_str()), (200, "text/event-stream"));
    let text = String::from_utf8(reply.body)?;
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| serde_json::from_str(data.trim()))
        .collect::<Result<_, _>>()?;
    let (last, partial) = events.split_last().ok_or("no events")?;
    assert_eq!(last["type"], "image_generation.completed");
    assert_eq!(rgb(&picture(last)?)?, rgb(&own[0])?);
    assert!(partial.len() <= 2);
    for (i, event) in partial.iter().enumerate() {
        assert_eq!(event["type"], "image_generation.partial_image");
        assert_eq!(event["partial_image_index"], i);
        assert_eq!(rgb(&picture(event)?)?.0, 128);
    }
    let wrong =
        server.post("/v1/images/generations", &json!({"prompt": "a cat", "stream": true, "scheduler": "nobody"}))?;
    // The model is loaded, so this is known before anything is streamed.
    assert_eq!(wrong.expect(400)?["error"]["param"], "scheduler");
    Ok(())
}

#[test]
fn pictures_are_edited_where_the_mask_is_transparent() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let own = server
        .pictures(&server.job(&json!({"prompt": "a cat on a red background", "steps": 8, "seed": 5}))?)?
        .remove(0);
    let mask = image::RgbaImage::from_fn(128, 128, |x, _| image::Rgba([9, 9, 9, if x < 64 { 0 } else { 255 }]));
    mask.save(place.path("mask.png"))?;
    let mask = std::fs::read(place.path("mask.png"))?;
    // Numbers come as text in a form, and a prompt that looks like one stays a prompt.
    let fields: [(&str, Option<&str>, &[u8]); 6] = [
        ("image", Some("cat.png"), &own),
        ("mask", Some("mask.png"), &mask),
        ("prompt", None, b"7"),
        ("n", None, b"1"),
        ("seed", None, b"3"),
        ("steps", None, b"4"),
    ];
    let answer = server.post_form("/v1/images/edits", &fields)?.expect(200)?;
    let (before, after) = (rgb(&own)?.2, rgb(&picture(&answer["data"][0])?)?.2);
    let column = |i: usize| i / 3 % 128;
    let changed =
        |from: usize, to: usize| (0..before.len()).any(|i| (from..to).contains(&column(i)) && before[i] != after[i]);
    assert!(changed(0, 64) && !changed(64, 128));

    // Without a mask the whole picture is changed; Open WebUI sends lists.
    let fields: [(&str, Option<&str>, &[u8]); 3] =
        [("image[]", Some("cat.png"), &own), ("prompt", None, b"a dog"), ("steps", None, b"4")];
    server.post_form("/v1/images/edits", &fields)?.expect(200)?;
    let opaque = server.post_form(
        "/v1/images/edits",
        &[("image", Some("a"), &own), ("mask", Some("b"), &own), ("prompt", None, b"a")],
    )?;
    assert_eq!(opaque.expect(400)?["error"]["param"], "mask");
    let nothing = server.post_form("/v1/images/edits", &[("prompt", None, b"a")])?;
    assert_eq!(nothing.expect(400)?["error"]["param"], "image");
    Ok(())
}

#[test]
fn what_is_wrong_is_said_in_its_form() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    for (body, status, param, part) in [
        (json!({}), 400, json!("prompt"), "say what to draw"),
        (json!({"prompt": "a", "n": 11}), 400, json!("n"), "1 to 10"),
        (json!({"prompt": "a", "size": "big"}), 400, json!("size"), "512x512"),
        (json!({"prompt": "a", "quality": "best"}), 400, json!("quality"), "no effect"),
        (json!({"prompt": "a", "background": "transparent"}), 400, json!("background"), "opaque"),
        (json!({"prompt": "a", "output_format": "gif"}), 400, json!("output_format"), "webp"),
        (json!({"prompt": "a", "partial_images": 9}), 400, json!("partial_images"), "0 to 3"),
        (json!({"prompt": "a", "steps": 100000}), 400, json!("steps"), "at most"),
        (json!({"prompt": "a", "tiling": true}), 400, json!("tiling"), "not known"),
        (json!({"prompt": "a", "model": "dall-e-3"}), 404, json!("model"), "emoji-ldm"),
    ] {
        let error = server.post("/v1/images/generations", &body)?.expect(status)?["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(part)), "{error}");
    }
    let models = server.get("/v1/models")?.expect(200)?;
    assert_eq!((models["object"].as_str(), models["data"][0]["id"].as_str()), (Some("list"), Some("emoji-ldm")));
    assert_eq!(server.get("/v1/models/emoji-ldm")?.expect(200)?["object"], "model");
    assert_eq!(server.get("/v1/models/other")?.expect(404)?["error"]["param"], "model");
    Ok(())
}
