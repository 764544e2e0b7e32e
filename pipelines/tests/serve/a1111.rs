//! A1111's interface, with requests as webuiapi, Open WebUI and SillyTavern send them.

use super::running::{Running, base64, rgb, unbase64};
use super::tweedie::{TestResult, Tweedie};
use serde_json::{Value, json};

fn pictures(answer: &Value) -> TestResult<Vec<Vec<u8>>> {
    let images = answer["images"].as_array().ok_or_else(|| format!("no pictures in {answer}"))?;
    images.iter().map(|image| unbase64(image.as_str().unwrap_or_default())).collect()
}

/// All that the Python client webuiapi 0.9.17 sends for `txt2img(prompt=...)`.
fn of_webuiapi() -> Value {
    json!({
        "enable_hr": false, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0,
        "hr_resize_y": 0, "denoising_strength": 0.7, "firstphase_width": 0, "firstphase_height": 0, "prompt": "a cat",
        "styles": [], "seed": 5, "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0, "seed_resize_from_w": 0,
        "batch_size": 1, "n_iter": 2, "steps": 6, "cfg_scale": 7.0, "width": 128, "height": 128, "restore_faces": false,
        "tiling": false, "do_not_save_samples": false, "do_not_save_grid": false, "negative_prompt": "a dog", "eta": 1.0,
        "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings": {},
        "override_settings_restore_afterwards": true, "sampler_name": "Euler a", "sampler_index": null, "script_name": null,
        "script_args": [], "send_images": true, "save_images": false, "alwayson_scripts": {},
    })
}

#[test]
fn pictures_are_made_as_its_clients_ask() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let answer = server.post("/sdapi/v1/txt2img", &of_webuiapi())?.expect(200)?;
    let made = pictures(&answer)?;
    assert_eq!(made.len(), 2);
    let info: Value = serde_json::from_str(answer["info"].as_str().ok_or("info is no text")?)?;
    assert_eq!((info["seed"].as_u64(), info["all_seeds"].clone()), (Some(5), json!([5, 6])));
    assert!(info["infotexts"][1].as_str().is_some_and(|text| text.contains("Seed: 6")), "{info}");
    assert_eq!(answer["parameters"]["prompt"], "a cat");

    let request = json!({
        "prompt": "a cat", "negative_prompt": "a dog", "prompt_syntax": "weighted", "steps": 6, "guidance_scale": 7.0, "seed": 5,
        "num_images": 2, "width": 128, "height": 128, "scheduler": "euler-a", "eta": 1.0,
    });
    let own = server.pictures(&server.job(&request)?)?;
    for (made, own) in made.iter().zip(&own) {
        assert_eq!(rgb(made)?, rgb(own)?);
    }
    // As Open WebUI sends it, and as SillyTavern does.
    let body = json!({"prompt": "a cat", "batch_size": 1, "width": 128, "height": 128, "steps": 3});
    assert_eq!(pictures(&server.post("/sdapi/v1/txt2img", &body)?.expect(200)?)?.len(), 1);
    let body = json!({
        "prompt": "a cat", "negative_prompt": "", "sampler_name": "DPM++ 2M", "scheduler": "Karras", "steps": 3, "cfg_scale": 7,
        "width": 128, "height": 128, "restore_faces": false, "enable_hr": false, "hr_upscaler": "Latent", "hr_scale": 2,
        "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": -1, "clip_skip": null,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": true, "save_images": true, "send_images": true, "do_not_save_grid": false,
        "do_not_save_samples": false,
    });
    assert_eq!(pictures(&server.post("/sdapi/v1/txt2img", &body)?.expect(200)?)?.len(), 1);
    Ok(())
}

#[test]
fn pictures_are_repainted_under_a_mask() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let own = server
        .pictures(&server.job(&json!({"prompt": "a cat on a red background", "steps": 8, "seed": 5}))?)?
        .remove(0);
    let mask = image::GrayImage::from_fn(128, 128, |x, _| image::Luma([if x < 48 { 255 } else { 0 }]));
    mask.save(place.path("mask.png"))?;
    let mask = base64(&std::fs::read(place.path("mask.png"))?);
    let request = |more: Value| {
        let mut body = json!({
            "init_images": [format!("data:image/png;base64,{}", base64(&own))], "prompt": "a dog", "steps": 4, "seed": 1,
            "denoising_strength": 0.9, "resize_mode": 0, "include_init_images": false, "initial_noise_multiplier": 1,
        });
        if let Some((body, more)) = body.as_object_mut().zip(more.as_object()) {
            body.extend(more.clone());
        }
        body
    };
    let whole = pictures(&server.post("/sdapi/v1/img2img", &request(json!({})))?.expect(200)?)?;
    assert_eq!(rgb(&whole[0])?.0, 128);
    let changed = |made: &[u8], from: usize, to: usize| -> TestResult<bool> {
        let (before, after) = (rgb(&own)?.2, rgb(made)?.2);
        Ok((0..before.len()).any(|i| (from..to).contains(&(i / 3 % 128)) && before[i] != after[i]))
    };
    for (fill, full, invert) in [(1, false, 0), (0, false, 0), (2, false, 0), (3, true, 0), (0, true, 0), (1, false, 1)]
    {
        let more = json!({
            "mask": mask, "mask_blur": 0, "inpainting_fill": fill, "inpaint_full_res": full, "inpaint_full_res_padding": 16,
            "inpainting_mask_invert": invert,
        });
        let made = pictures(&server.post("/sdapi/v1/img2img", &request(more))?.expect(200)?)?;
        let (painted, kept) = if invert == 1 { ((48, 128), (0, 48)) } else { ((0, 48), (48, 128)) };
        assert!(changed(&made[0], painted.0, painted.1)?, "{fill} {full} {invert}");
        assert!(!changed(&made[0], kept.0, kept.1)?, "{fill} {full} {invert}");
    }
    Ok(())
}

#[test]
fn what_has_no_effect_is_refused_by_name() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    for (name, value) in [
        ("restore_faces", json!(true)),
        ("tiling", json!(true)),
        ("enable_hr", json!(true)),
        ("subseed_strength", json!(0.5)),
        ("styles", json!(["ink"])),
        ("script_name", json!("x/y/z plot")),
        ("alwayson_scripts", json!({"ADetailer": {}})),
        ("colour", json!(1)),
        ("steps", json!("many")),
        ("width", json!(-8)),
        ("n_iter", json!(100000)),
        ("scheduler", json!("karras")),
    ] {
        let answer = server.post("/sdapi/v1/txt2img", &json!({"prompt": "a cat", name: value}))?.expect(422)?;
        let text = answer.to_string();
        assert_eq!(answer["field"], name, "{text}");
        assert!(text.contains(name) && answer["detail"].is_string() && answer["errors"].is_string(), "{text}");
    }
    let unknown =
        server.post("/sdapi/v1/txt2img", &json!({"prompt": "a cat", "sampler_name": "Nobody"}))?.expect(404)?;
    assert!(unknown["detail"].as_str().is_some_and(|text| text.contains("Nobody")), "{unknown}");
    let settings = json!({"prompt": "a", "override_settings": {"sd_model_checkpoint": "other"}});
    assert!(
        server.post("/sdapi/v1/txt2img", &settings)?.expect(404)?["detail"]
            .as_str()
            .is_some_and(|t| t.contains("emoji-ldm"))
    );
    let none = server.post("/sdapi/v1/img2img", &json!({"prompt": "a"}))?.expect(422)?;
    assert!(none["detail"].as_str().is_some_and(|text| text.contains("init_images")), "{none}");
    Ok(())
}

#[test]
fn progress_lists_and_the_text_of_a_picture_are_there() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    // What webuiapi asks first.
    for (path, name) in [
        ("scripts", ""),
        ("sd-models", "emoji-ldm"),
        ("samplers", "Euler a"),
        ("schedulers", "karras"),
        ("upscalers", "None"),
        ("loras", ""),
        ("embeddings", "loaded"),
        ("options", "emoji-ldm"),
        ("cmd-flags", ""),
        ("memory", "ram"),
        ("sd-vae", ""),
        ("latent-upscale-modes", ""),
    ] {
        let text = server.get(&format!("/sdapi/v1/{path}"))?.expect(200)?.to_string();
        assert!(text.contains(name), "{path}: {text}");
    }
    assert_eq!(
        server.post("/sdapi/v1/options", &json!({"sd_model_checkpoint": "emoji-ldm"}))?.expect(200)?,
        json!(null)
    );
    assert_eq!(server.post("/sdapi/v1/options", &json!({"sd_model_checkpoint": "other"}))?.status, 404);

    let idle = server.get("/sdapi/v1/progress?skip_current_image=true")?.expect(200)?;
    assert_eq!((idle["progress"].as_f64(), idle["state"]["job_count"].as_u64()), (Some(0.0), Some(0)));
    let job = server.job(&json!({"prompt": "a cat", "steps": 1000, "num_images": 8}))?;
    server.when(&job, |state| state == "running")?;
    let at_work = server.get("/sdapi/v1/progress")?.expect(200)?;
    assert_eq!(at_work["state"]["job_count"], 1);
    assert!(at_work["progress"].as_f64().is_some_and(|share| share < 1.0), "{at_work}");
    assert_eq!(server.post("/sdapi/v1/interrupt", &json!({}))?.expect(200)?, json!({}));
    assert_eq!(server.ended(&job)?["state"], "cancelled");

    let job = server.job(&json!({"prompt": "a cat", "steps": 2, "seed": 4}))?;
    let picture = server.pictures(&job)?.remove(0);
    let info = server.post("/sdapi/v1/png-info", &json!({"image": base64(&picture)}))?.expect(200)?;
    assert!(
        info["info"].as_str().is_some_and(|text| text.starts_with("a cat\n") && text.contains("Seed: 4")),
        "{info}"
    );
    assert!(info["items"]["tweedie"].is_string());
    Ok(())
}
