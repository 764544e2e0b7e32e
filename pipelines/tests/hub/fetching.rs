//! What comes over the network, and what is said where it does not.

use super::fake::{
    COMMIT, Cache, Files, HALF_UNET, NOBODY, UNET, WHOLE, fails, fetch, hub_answer, hub_with, sha_of, sha256,
    small_model, some_model, txt2img,
};
use super::server::{Answer, Request, Server};
use super::tweedie::{TestResult, Tweedie};
use ::tweedie::checkpoints::Precision;
use serde_json::json;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use tweedie_pipelines::ErrorKind;
use tweedie_pipelines::hub::{Hub, HubEvent, Wanted};

#[test]
fn the_half_precision_variant_is_taken_where_it_serves() -> TestResult {
    let mut files = small_model()?;
    files.insert(HALF_UNET.into(), files[UNET].clone());
    files.insert("text_encoder/model.fp16.safetensors".into(), files["text_encoder/model.safetensors"].clone());
    let server = hub_with(files, |_| None)?;
    let cache = Cache::new()?;
    let hub = cache.hub(&server.base);
    let half = Wanted { precision: Precision::Half, ..WHOLE };
    fetch(&hub, half)?;
    let unets = |server: &Server| {
        let mut paths = server.asked();
        paths.retain(|path| path.contains("/unet/") && path.ends_with(".safetensors"));
        paths.dedup();
        paths
    };
    assert_eq!(unets(&server), [format!("/some/model/resolve/main/{HALF_UNET}")]);
    // It runs in f32 too, unless that is asked for.
    assert!(hub.cached(&some_model()?, WHOLE).is_some());
    let exact = Wanted { exact: true, ..WHOLE };
    assert!(hub.cached(&some_model()?, exact).is_none());
    assert!(Hub { offline: true, ..hub.clone() }.cached(&some_model()?, exact).is_some());
    fetch(&hub, exact)?;
    assert!(hub.cached(&some_model()?, exact).is_some());
    Ok(())
}

/// The connection breaks at half of what is left, again and again: bytes that came are never fetched twice.
#[test]
fn a_cut_connection_is_made_again_and_goes_on_where_it_stopped() -> TestResult {
    let large = format!("/large/{}", sha_of(UNET)?);
    let length = small_model()?[UNET].len();
    let cut = {
        let (files, large) = (small_model()?, large.clone());
        move |request: &Request| {
            let whole = request.path == large && request.range().is_none_or(|(_, end)| end.is_none());
            whole.then(|| hub_answer(&files, request).cut_at_half())
        }
    };
    let (cache, server) = fails(cut, &[UNET, "connection ended", "run it again", "goes on"])?;
    let starts = |server: &Server| {
        let requests = server.requests().into_iter().filter(|request| request.path == large);
        let open = requests.filter(|request| request.range().is_none_or(|(_, end)| end.is_none()));
        open.map(|request| request.range().map_or(0, |(start, _)| start)).collect::<Vec<_>>()
    };
    let halves = (0..6).map(|i| length - (0..i).fold(length, |left, _| left - left / 2));
    assert_eq!(starts(&server), halves.collect::<Vec<_>>());
    let [(_, kept)] = cache.incomplete()[..] else { return Err("what came is not kept".into()) };

    let server = hub_with(small_model()?, |_| None)?;
    fetch(&cache.hub(&server.base), WHOLE)?;
    assert_eq!(starts(&server), [kept as usize]);
    assert_eq!(cache.incomplete(), []);
    Ok(())
}

/// A server that does not know ranges sends the whole again; one that closes at once is not asked for ever.
#[test]
fn a_server_without_ranges_starts_anew() -> TestResult {
    let tries = AtomicUsize::new(0);
    let files = small_model()?;
    let whole = move |request: &Request| {
        let sum = request.path.strip_prefix("/large/")?;
        let bytes = files.values().find(|bytes| sha256(bytes) == sum)?;
        let first = tries.fetch_add(1, Ordering::SeqCst) == 1;
        Some(if first { Answer::cut(bytes.as_slice()) } else { Answer::file(bytes.as_slice()) })
    };
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, whole)?);
    fetch(&cache.hub(&server.base), WHOLE)?;
    assert!(server.requests().iter().any(|request| request.range().is_some_and(|(start, _)| start > 0)));
    for (file, bytes) in small_model()?.iter().filter(|(file, _)| file.as_str() == UNET) {
        assert_eq!(&std::fs::read(cache.model().join("snapshots").join(COMMIT).join(file))?, bytes);
    }
    Ok(())
}

#[test]
fn what_is_not_what_was_promised_is_refused() -> TestResult {
    let large = format!("/large/{}", sha_of(UNET)?);
    let sends = |change: fn(&mut Answer)| {
        let (files, large) = (small_model().unwrap_or_default(), large.clone());
        move |request: &Request| {
            let mut answer = hub_answer(&files, request);
            let open = request.range().is_none_or(|(_, end)| end.is_none());
            (request.path == large && open).then(|| {
                change(&mut answer);
                answer
            })
        }
    };
    let shorter = |answer: &mut Answer| answer.body.truncate(answer.body.len() - 9);
    fails(sends(shorter), &[UNET, "where it said", "try again later"])?;
    let longer = |answer: &mut Answer| answer.body.extend([0; 9]);
    fails(sends(longer), &[UNET, "where it said"])?;
    let damaged = |answer: &mut Answer| answer.body[100] ^= 1;
    let (cache, _) = fails(sends(damaged), &[UNET, "SHA-256", &sha_of(UNET)?, "run it again"])?;
    assert_eq!(cache.incomplete(), [], "what is damaged is not gone on with");
    // A file from an earlier try that is longer, or whole and damaged, is no hindrance for the next one.
    for length in [10, small_model()?[UNET].len() + 5] {
        let partial = cache.model().join("blobs").join(format!("{}.incomplete", sha_of(UNET)?));
        std::fs::write(&partial, vec![1; length])?;
        let server = hub_with(small_model()?, |_| None)?;
        let first = fetch(&cache.hub(&server.base), WHOLE);
        assert_eq!(first.is_err(), length == 10, "a wrong beginning shows in the sum");
        fetch(&cache.hub(&server.base), WHOLE)?;
        cache.hub("http://x").remove(&some_model()?)?;
        std::fs::create_dir_all(cache.model().join("blobs"))?;
    }
    Ok(())
}

#[test]
fn every_refusal_says_what_to_do() -> TestResult {
    let list = |status| move |request: &Request| request.path.starts_with("/api").then(|| Answer::status(status));
    let unauthorized = ["401", "private or gated", "HF_TOKEN"];
    fails(list("401 Unauthorized"), &unauthorized)?;
    fails(list("403 Forbidden"), &["403", "terms", "HF_TOKEN"])?;
    fails(list("404 Not Found"), &["404", "no such model", "`main`"])?;
    fails(list("500 Internal Server Error"), &["500", "try again later"])?;
    fails(list("429 Too Many Requests"), &["429", "few minutes"])?;
    let busy = |request: &Request| {
        request.path.contains("resolve").then(|| Answer::status("429 Too Many Requests").with("Retry-After", "3600"))
    };
    fails(busy, &["429", "after 3600 seconds"])?;
    let file = |status| move |request: &Request| request.path.ends_with(UNET).then(|| Answer::status(status));
    fails(file("404 Not Found"), &[UNET, "404", "run it again"])?;
    fails(file("401 Unauthorized"), &[UNET, "401", "HF_TOKEN"])?;
    // The program says it once, and as much.
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, list("401 Unauthorized"))?);
    let parts = [&unauthorized[..], &["nothing here is called some/model"]].concat();
    cache.run(&Tweedie::new()?, &server.base, &txt2img(&["--model", "some/model"]))?.fails(1, &parts)?;
    let parts = ["nothing here is called some/model", "cannot be reached", "--offline"];
    cache.run(&Tweedie::new()?, NOBODY, &txt2img(&["--model", "some/model"]))?.fails(1, &parts)?;
    let offline = txt2img(&["--offline", "--model", "some/model"]);
    cache.run(&Tweedie::new()?, &server.base, &offline)?.fails(1, &["some/model", "--offline", "HF_HUB_OFFLINE"])?;
    cache.run(&Tweedie::new()?, "ftp://x", &txt2img(&["--model", "some/model"]))?.fails(2, &["HF_ENDPOINT", "ftp://x"])
}

/// A name that the hub does not know is the request's fault; that the hub does not answer, or that the repository holds no
/// whole model, is not.
#[test]
fn a_failed_fetch_says_whose_fault_it_is() -> TestResult {
    let kind = |files: Files, status: Option<&'static str>, offline: bool| -> TestResult<ErrorKind> {
        let list = move |request: &Request| status.filter(|_| request.path.starts_with("/api")).map(Answer::status);
        let (cache, server) = (Cache::new()?, hub_with(files, list)?);
        let hub = Hub { offline, ..cache.hub(&server.base) };
        let fetched = hub.fetch(&some_model()?, WHOLE, &mut |_| ControlFlow::Continue(()));
        Ok(fetched.err().ok_or("it was fetched")?.kind())
    };
    assert_eq!(kind(small_model()?, Some("404 Not Found"), false)?, ErrorKind::Missing);
    assert_eq!(kind(small_model()?, Some("401 Unauthorized"), false)?, ErrorKind::Missing);
    assert_eq!(kind(small_model()?, None, true)?, ErrorKind::Missing);
    assert_eq!(kind(small_model()?, Some("500 Internal Server Error"), false)?, ErrorKind::File);
    let mut files = small_model()?;
    files.retain(|name, _| !name.starts_with("unet/diffusion"));
    assert_eq!(kind(files, None, false)?, ErrorKind::Model);
    Ok(())
}

/// A server that is busy and says for how long is asked again after that time.
#[test]
fn a_busy_server_is_asked_again() -> TestResult {
    let tries = AtomicUsize::new(0);
    let busy = move |request: &Request| {
        let first = request.path.ends_with(UNET) && tries.fetch_add(1, Ordering::SeqCst) < 1;
        first.then(|| Answer::status("429 Too Many Requests").with("Retry-After", "1"))
    };
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, busy)?);
    let (mut waited, start) = (false, std::time::Instant::now());
    cache.hub(&server.base).fetch(&some_model()?, WHOLE, &mut |event| {
        waited |= event == HubEvent::Waiting(1);
        ControlFlow::Continue(())
    })?;
    assert!(waited && start.elapsed().as_secs_f64() >= 1.0);
    Ok(())
}

#[test]
fn redirects_are_followed_and_the_token_stays_at_home() -> TestResult {
    let files = small_model()?;
    let other = Server::start(move |request| hub_answer(&files, request))?;
    let large = other.base.clone();
    let elsewhere = move |request: &Request| {
        let sum = request.path.strip_prefix("/large/")?;
        Some(Answer::elsewhere(format!("{large}/large/{sum}")))
    };
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, elsewhere)?);
    let hub = Hub { token: Some("secret".into()), ..cache.hub(&server.base) };
    assert!(!format!("{hub:?}").contains("secret"));
    fetch(&hub, WHOLE)?;
    let sent = |server: &Server| server.requests().iter().filter(|r| r.headers.contains_key("authorization")).count();
    assert_eq!(sent(&server), server.requests().len());
    assert!(!other.requests().is_empty());
    assert_eq!(sent(&other), 0);

    // The list of files too is asked for without it where the hub sends on to: another port of the same host.
    let files = small_model()?;
    let other = Server::start(move |request| hub_answer(&files, request))?;
    let list = other.base.clone();
    let elsewhere = move |request: &Request| {
        request.path.starts_with("/api/").then(|| Answer::elsewhere(format!("{list}{}", request.path)))
    };
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, elsewhere)?);
    fetch(&Hub { token: Some("secret".into()), ..cache.hub(&server.base) }, WHOLE)?;
    assert_eq!((other.requests().len(), sent(&other)), (1, 0));
    assert_eq!(sent(&server), server.requests().len());

    let circle = |request: &Request| request.path.starts_with("/large/").then(|| Answer::elsewhere(&*request.path));
    fails(circle, &["redirects", "HF_ENDPOINT"])?;
    let nowhere = |request: &Request| request.path.starts_with("/large/").then(|| Answer::status("302 Found"));
    fails(nowhere, &["redirects to nowhere"])?;
    Ok(())
}

/// Whatever the other side says, no file is written but in the model's folder of the cache.
#[test]
fn a_hostile_server_writes_nothing_elsewhere() -> TestResult {
    let listing = |commit: &'static str, file: &'static str| {
        move |request: &Request| {
            let list = json!({"sha": commit, "siblings": [{"rfilename": file}]}).to_string();
            request.path.starts_with("/api").then(|| Answer::file(list))
        }
    };
    fails(listing("../../../x", "model.safetensors"), &["commit"])?;
    fails(listing(COMMIT, "../model.safetensors"), &["neither a model_index.json nor a checkpoint"])?;
    fails(|r| r.path.starts_with("/api").then(|| Answer::file("no json")), &["no JSON"])?;
    fails(|r| r.path.starts_with("/api").then(|| Answer::file("{}")), &["commit"])?;
    for etag in ["\"../../x\"", "/x", "", "\"..\""] {
        let named = move |request: &Request| {
            let answer = Answer::file("{}").with("ETag", etag).with("X-Repo-Commit", COMMIT);
            request.path.contains("/resolve/").then_some(answer)
        };
        fails(named, &["does not name its contents"])?;
    }
    let moved = |request: &Request| {
        let answer = Answer::file("{}").with("ETag", "abc").with("X-Repo-Commit", "another");
        request.path.contains("/resolve/").then_some(answer)
    };
    fails(moved, &["changed meanwhile", "run it again"])?;

    let mut files = small_model()?;
    files.remove(UNET);
    let index = json!({"weight_map": {"a": "../../../../x.safetensors"}}).to_string();
    files.insert(format!("{UNET}.index.json"), index.into_bytes());
    let (cache, server) = (Cache::new()?, hub_with(files, |_| None)?);
    let message = fetch(&cache.hub(&server.base), WHOLE).err().ok_or("it was fetched")?;
    assert!(message.contains("leads out of the folder"), "{message}");
    Ok(())
}

/// Breaking off keeps what came.
#[test]
fn a_download_can_be_stopped() -> TestResult {
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
    let mut seen = Vec::new();
    let stopped = cache.hub(&server.base).fetch(&some_model()?, WHOLE, &mut |event| match event {
        HubEvent::Progress { done, total, .. } if total > 100_000 => {
            seen.push(done);
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(::tweedie::Error::Cancelled)), "{stopped:?}");
    let [done] = seen[..] else { return Err("it went on".into()) };
    assert_eq!(cache.incomplete().first().map(|(_, length)| *length), Some(done));
    fetch(&cache.hub(&server.base), WHOLE)?;
    Ok(())
}
