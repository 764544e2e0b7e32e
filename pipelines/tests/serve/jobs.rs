//! Jobs in the server's own interface.

use super::running::{Running, base64, rgb};
use super::tweedie::{TestResult, Tweedie, pixels};
use serde_json::{Value, json};

#[test]
fn pictures_are_those_of_the_command_line() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let job = server.job(&json!({"prompt": "a fox on a blue background", "steps": 6, "seed": 3, "num_images": 2}))?;
    assert_eq!((job["state"].as_str(), job["request"]["seed"].as_u64()), (Some("queued"), Some(3)));
    let pictures = server.pictures(&job)?;
    let arguments = ["txt2img", "a fox on a blue background", "--steps", "6", "--seed", "3", "--num-images", "2"];
    place.run(&[&arguments[..], &["--output", "a.png", "--no-config", "--quiet"]].concat())?.success()?;
    for (i, picture) in pictures.iter().enumerate() {
        assert_eq!(rgb(picture)?, pixels(&place.path(&format!("a-{i}.png")))?, "picture {i}");
    }
    // The settings are in the picture, and lead to the same one.
    std::fs::write(place.path("b.png"), &pictures[1])?;
    let verified = place.run(&["verify", "b.png", "--no-config"])?.success()?;
    assert!(verified.stdout.contains("same"), "{}", verified.stdout);

    // From a picture, and a part of one.
    let image = base64(&pictures[0]);
    let request = json!({"prompt": "a frog", "steps": 6, "seed": 1, "strength": 0.5});
    let job = server.post("/api/jobs", &json!({"request": request, "image": image}))?.expect(202)?;
    assert_eq!(job["kind"], "img2img");
    let from_picture = server.pictures(&job)?;
    std::fs::write(place.path("fox.png"), &pictures[0])?;
    let arguments = ["img2img", "a frog", "--image", "fox.png", "--steps", "6", "--seed", "1", "--strength", "0.5"];
    place.run(&[&arguments[..], &["--output", "c.png", "--no-config", "--quiet"]].concat())?.success()?;
    assert_eq!(rgb(&from_picture[0])?, pixels(&place.path("c.png"))?);
    assert_eq!(server.get(&format!("/api/jobs/{}/image", job["id"].as_str().unwrap_or_default()))?.body, pictures[0]);

    let mask = image::GrayImage::from_fn(128, 128, |x, _| image::Luma([if x < 64 { 255 } else { 0 }]));
    mask.save(place.path("mask.png"))?;
    let mask = base64(&std::fs::read(place.path("mask.png"))?);
    let request = json!({"prompt": "a frog", "steps": 6, "seed": 1, "inpaint": {"mask_grow": 3}});
    let job = server.post("/api/jobs", &json!({"request": request, "image": image, "mask": mask}))?.expect(202)?;
    let painted = server.pictures(&job)?;
    let arguments =
        ["inpaint", "a frog", "--image", "fox.png", "--mask", "mask.png", "--mask-grow", "3", "--steps", "6"];
    place
        .run(&[&arguments[..], &["--seed", "1", "--output", "d.png", "--no-config", "--quiet"]].concat())?
        .success()?;
    assert_eq!(rgb(&painted[0])?, pixels(&place.path("d.png"))?);
    Ok(())
}

#[test]
fn a_second_request_reads_no_weights() -> TestResult {
    let place = Tweedie::new()?;
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/emoji-ldm");
    super::tweedie::copy_folder(std::path::Path::new(embedded), &place.path("model"))?;
    let server = Running::start(&place, &["--model", "model"])?;
    let request = json!({"prompt": "a cat", "steps": 2, "seed": 1});
    let first = server.pictures(&server.job(&request)?)?;
    std::fs::rename(place.path("model"), place.path("elsewhere"))?;
    let second = server.pictures(&server.job(&request)?)?;
    assert_eq!(rgb(&first[0])?, rgb(&second[0])?);
    assert_eq!(server.figure("tweedie_models_loaded")?, 1);
    Ok(())
}

#[test]
fn a_seed_is_drawn_once_and_told() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let seeds = [json!(null), json!(-1), json!("random")].map(|seed| {
        let job = server.job(&json!({"prompt": "a cat", "steps": 1, "seed": seed}))?;
        job["request"]["seed"].as_u64().ok_or_else(|| format!("no seed in {job}").into())
    });
    let seeds = seeds.into_iter().collect::<TestResult<Vec<_>>>()?;
    assert!(seeds[0] != seeds[1] && seeds[1] != seeds[2], "{seeds:?}");
    Ok(())
}

#[test]
fn a_cancel_is_heard_within_a_step_and_in_the_queue_at_once() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let long = json!({"prompt": "a cat", "steps": 1000, "seed": 1, "num_images": 8});
    let (running, waiting) = (server.job(&long)?, server.job(&long)?);
    server.when(&running, |state| state == "running")?;
    let path = |job: &Value| format!("/api/jobs/{}", job["id"].as_str().unwrap_or_default());
    server.ask("DELETE", &path(&running), &[], None)?.refused(409, None, &["has not ended", "cancel"])?;

    let cancelled = server.post(&format!("{}/cancel", path(&waiting)), &json!({}))?.expect(200)?;
    assert_eq!(cancelled["state"], "cancelled");
    let before = server.get(&path(&running))?.expect(200)?["progress"]["step"].as_u64().unwrap_or(0);
    server.post(&format!("{}/cancel", path(&running)), &json!({}))?.expect(200)?;
    let ended = server.ended(&running)?;
    assert_eq!(ended["state"], "cancelled");
    // On a machine that does 20 steps in the time of an answer it would still be far from its end.
    assert!(ended["progress"]["step"].as_u64().unwrap_or(0) < before + 500, "{ended}");
    server.post(&format!("{}/cancel", path(&running)), &json!({}))?.refused(409, None, &["ended already"])?;

    assert_eq!(server.ask("DELETE", &path(&running), &[], None)?.status, 204);
    server.get(&path(&running))?.refused(404, None, &["there is no job"])?;
    let left = server.get("/api/jobs")?.expect(200)?;
    assert_eq!(left["jobs"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn the_same_key_is_the_same_job() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let body = json!({"request": {"prompt": "a cat", "steps": 1}}).to_string();
    let ask = |key: &str, client: &str| {
        let headers = [("Idempotency-Key", key), ("X-Client", client)];
        server.ask("POST", "/api/jobs", &headers, Some(("application/json", body.as_bytes())))
    };
    let first = ask("one", "me")?.expect(202)?;
    assert_eq!(ask("one", "me")?.expect(200)?["id"], first["id"]);
    assert_ne!(ask("two", "me")?.expect(202)?["id"], first["id"]);
    assert_ne!(ask("one", "you")?.expect(202)?["id"], first["id"]);
    Ok(())
}

#[test]
fn news_go_on_after_the_last_that_was_heard() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let job = server.job(&json!({"prompt": "a cat", "steps": 30, "seed": 1}))?;
    let path = format!("/api/jobs/{}/events", job["id"].as_str().unwrap_or_default());
    let events = |last: Option<&str>| -> TestResult<Vec<(u64, Value)>> {
        let headers: Vec<_> = last.map(|last| ("Last-Event-ID", last)).into_iter().collect();
        let reply = server.ask("GET", &path, &headers, None)?;
        assert_eq!((reply.status, reply.kind.as_str()), (200, "text/event-stream"));
        let text = String::from_utf8(reply.body)?;
        let blocks = text.split("\n\n").filter(|block| block.contains("data:"));
        let event = |block: &str| {
            let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
            assert_eq!(line("event:"), "job");
            Ok((line("id:").parse()?, serde_json::from_str(line("data:"))?))
        };
        blocks.map(event).collect()
    };
    let all = events(None)?;
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let (last, end) = all.last().ok_or("no events")?;
    assert_eq!((end["state"].as_str(), end["sequence"].as_u64()), (Some("done"), Some(*last)));
    let again = events(Some(&(last - 1).to_string()))?;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].1, *end);
    server.get("/api/jobs/01J0000000000000000000000A/events")?.refused(404, None, &["there is no job"])?;
    Ok(())
}

#[test]
fn wrong_requests_name_the_field_and_say_what_to_do() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &["--max-steps", "50", "--max-images", "4", "--max-pixels", "70000"])?;
    // Loaded, so that all is checked before anything waits.
    server.pictures(&server.job(&json!({"prompt": "a cat", "steps": 1}))?)?;
    let image = image::RgbImage::new(300, 300);
    image.save(place.path("large.png"))?;
    let large = base64(&std::fs::read(place.path("large.png"))?);
    let request = |fields: Value| {
        let mut request = json!({"prompt": "a cat"});
        if let Some((all, more)) = request.as_object_mut().zip(fields.as_object()) {
            all.extend(more.clone());
        }
        json!({"request": request})
    };
    for (body, field, parts) in [
        (json!({"request": {}}), "request.prompt", vec!["say what to draw"]),
        (json!({"request": {"prompt": 3}}), "request.prompt", vec!["say what to draw"]),
        (request(json!({"stepz": 3})), "request.stepz", vec!["no such option"]),
        (request(json!({"steps": 0})), "request.steps", vec!["steps"]),
        (request(json!({"steps": "many"})), "request.steps", vec!["many"]),
        (request(json!({"steps": 51})), "request.steps", vec!["51", "50 at most"]),
        (request(json!({"num_images": 5})), "request.num_images", vec!["4 at most"]),
        (request(json!({"width": 512, "height": 512})), "request.width", vec!["70000 pixels"]),
        (request(json!({"sigmas": vec![1.0; 51]})), "request.steps", vec!["51", "50 at most"]),
        (request(json!({"loras": vec![json!({"name": "a"}); 17]})), "request.loras", vec!["16 at most"]),
        (request(json!({"width": 100})), "request.width", vec!["100"]),
        (request(json!({"scheduler": "eulr"})), "request.scheduler", vec!["eulr"]),
        (request(json!({"loras": [{"name": "../../etc/passwd"}]})), "request.loras", vec!["not in the server's list"]),
        (request(json!({"inpaint": {"mask_grow": -1}})), "request.inpaint", vec!["no such option"]),
        (json!({"request": {"prompt": "a"}, "image": "not base64!"}), "image", vec!["neither base64"]),
        (json!({"request": {"prompt": "a"}, "image": "AAAA"}), "image", vec!["picture format"]),
        (json!({"request": {"prompt": "a"}, "image": large}), "image", vec!["300x300", "70000"]),
        (json!({"request": {"prompt": "a"}, "mask": large}), "mask", vec!["300x300"]),
        (json!({"request": {"prompt": "a"}, "kind": "inpaint"}), "image", vec!["not given"]),
        (json!({"request": {"prompt": "a"}, "kind": "paint"}), "kind", vec!["txt2img, img2img or inpaint"]),
        (json!({"request": {"prompt": "a"}, "priority": i32::MIN}), "priority", vec!["-100 to 100"]),
        (json!({"request": {"prompt": "a"}, "colour": 1}), "colour", vec!["not known"]),
    ] {
        let reply = server.post("/api/jobs", &body)?;
        reply.refused(400, Some(field), &parts).map_err(|error| format!("{body}: {error}"))?;
    }
    image::RgbImage::new(64, 64).save(place.path("small.png"))?;
    let small = base64(&std::fs::read(place.path("small.png"))?);
    for (request, field) in [
        (json!({"prompt": "a", "width": 512}), "request.width"),
        (json!({"prompt": "a", "inpaint": {"outpaint": {"right": 16000}}}), "request.width"),
        (json!({"prompt": "a", "steps": 40, "inpaint": {"outpaint": {"right": 8}, "resample": 2}}), "request.steps"),
    ] {
        let reply = server.post("/api/jobs", &json!({"request": request, "image": small}))?;
        reply.refused(400, Some(field), &["at most"]).map_err(|error| format!("{request}: {error}"))?;
    }
    let long = server.post("/api/jobs", &json!({"request": {"prompt": "a".repeat(70_000)}}))?;
    long.refused(413, Some("request"), &["65536 at most"])?;
    let many = server.post("/api/jobs", &json!({"request": {"prompt": "a", "sigmas": vec![0; 30_000]}}))?;
    many.refused(413, None, &["more than 20000 values"])?;
    let unknown = server.post("/api/jobs", &json!({"request": {"prompt": "a"}, "model": "/etc/passwd"}))?;
    unknown.refused(404, Some("model"), &["not in the server's list", "emoji-ldm"])?;
    let reply = server.ask("POST", "/api/jobs", &[], Some(("application/json", b"{")))?;
    reply.refused(400, None, &["no JSON"])?;
    server.get("/api/nothing")?.refused(404, None, &["/openapi.json"])?;
    server.ask("PUT", "/api/jobs", &[], None)?.refused(405, None, &["does not take PUT"])?;
    server.get("/api/jobs?limit=0")?.refused(400, Some("limit"), &["1 to 200"])?;
    for path in
        ["/api/jobs/..%2f..%2fqueue.sqlite", "/api/jobs/%2e%2e/pictures/0", "/page/..%2fmod.rs", "/page/../mod.rs"]
    {
        assert_eq!(server.get(path)?.status, 404, "{path}");
    }
    Ok(())
}

#[test]
fn more_than_waits_is_refused_for_a_while() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &["--max-waiting", "2"])?;
    let long = json!({"request": {"prompt": "a cat", "steps": 1000, "num_images": 8}});
    let first = server.post("/api/jobs", &long)?.expect(202)?;
    server.when(&first, |state| state == "running")?;
    for _ in 0..2 {
        server.post("/api/jobs", &long)?.expect(202)?;
    }
    let refused = server.post("/api/jobs", &long)?;
    refused.refused(429, None, &["2 jobs wait"])?;
    assert!(refused.retry_after.is_some());
    let refused = server.post("/v1/images/generations", &json!({"prompt": "a cat"}))?;
    assert_eq!((refused.status, refused.retry_after.is_some()), (429, true));
    Ok(())
}

#[test]
fn nobody_waits_behind_another_clients_hundredth_job() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let ask = |client: &str, priority: i32, steps: usize| {
        let body = json!({"priority": priority, "request": {"prompt": "a cat", "steps": steps}}).to_string();
        let reply =
            server.ask("POST", "/api/jobs", &[("X-Client", client)], Some(("application/json", body.as_bytes())))?;
        reply.expect(202)
    };
    let running = ask("first", 0, 1000)?;
    server.when(&running, |state| state == "running")?;
    let mine = (0..3).map(|_| ask("many", 0, 1)).collect::<TestResult<Vec<_>>>()?;
    let yours = ask("one", 0, 1)?;
    let urgent = ask("many", 1, 1)?;
    let position = |job: &Value| -> TestResult<Option<u64>> {
        let path = format!("/api/jobs/{}", job["id"].as_str().unwrap_or_default());
        Ok(server.get(&path)?.expect(200)?["position"].as_u64())
    };
    assert_eq!(position(&urgent)?, Some(1), "behind the one that is worked on");
    assert_eq!(
        [position(&mine[0])?, position(&yours)?, position(&mine[1])?, position(&mine[2])?],
        [2, 3, 4, 5].map(Some)
    );
    Ok(())
}

#[test]
fn what_there_is_to_choose_from_is_listed() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let models = server.get("/api/models")?.expect(200)?;
    assert_eq!(models["default"], "emoji-ldm");
    assert!(models["models"][0]["words"].as_array().is_some_and(|words| words.len() > 900));
    assert!(server.get("/api/schedulers")?.expect(200)?.as_array().is_some_and(|list| list.len() > 15));
    let options = server.get("/api/options?kind=inpaint")?.expect(200)?;
    assert!(options.as_array().is_some_and(|list| list.iter().any(|option| option["name"] == "mask_blur")));
    assert_eq!(server.get("/healthz")?.expect(200)?["status"], "ok");
    for path in ["/api/options?kind=x", "/api/jobs?limit=x", "/api/jobs/%ff", "/v1/models/%ff"] {
        assert!(server.get(path)?.expect(400)?["error"].is_object(), "{path}");
    }
    let page = server.get("/")?;
    assert!(page.kind.starts_with("text/html") && page.body.starts_with(b"<!"), "{}", page.kind);

    // What a picture says of how it was made.
    let job = server.job(&json!({"prompt": "a cat", "steps": 2, "seed": 9, "negative_prompt": "a dog"}))?;
    let picture = server.pictures(&job)?.remove(0);
    let said = server.ask("POST", "/api/settings", &[], Some(("image/png", &picture)))?.expect(200)?;
    let options = &said["options"];
    assert_eq!((options["prompt"].as_str(), options["seed"].as_u64()), (Some("a cat"), Some(9)));
    assert_eq!((said["model"].as_str(), options["negative_prompt"].as_str()), (Some("emoji-ldm"), Some("a dog")));
    // All of it is a request again.
    let again = server.pictures(&server.job(options)?)?;
    assert_eq!(rgb(&picture)?, rgb(&again[0])?);
    let nothing = server.ask("POST", "/api/settings", &[], Some(("image/png", b"no picture")))?;
    nothing.refused(400, Some("picture"), &["picture"])?;
    Ok(())
}

#[test]
fn a_client_that_goes_takes_its_job_along() -> TestResult {
    use std::io::Write;
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let body = json!({"prompt": "a cat", "steps": 1000, "n": 8}).to_string();
    let address = server.url.trim_start_matches("http://").to_owned();
    let mut client = std::net::TcpStream::connect(&address)?;
    let head =
        format!("POST /v1/images/generations HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all(format!("{head}{body}").as_bytes())?;
    let jobs = server.once("/api/jobs", |jobs| jobs["jobs"][0]["state"] == "running")?;
    let job = jobs["jobs"][0].clone();
    drop(client);
    assert_eq!(server.ended(&job)?["state"], "cancelled");
    Ok(())
}
