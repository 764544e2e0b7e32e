//! Models by their names on the hub: the real client, and a small server on the loopback address in the hub's place.
#![cfg(feature = "hub")]

mod server;
mod tweedie;

use ::tweedie::checkpoints::Precision;
use serde_json::json;
use server::{Answer, Request, Server};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tweedie::{TestResult, Tweedie, copy_folder, golden, pixels};
use tweedie_pipelines::hub::{Hub, HubEvent, HubName, Wanted};
use tweedie_pipelines::{ErrorKind, Model, Purpose};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const HALF_UNET: &str = "unet/diffusion_pytorch_model.fp16.safetensors";
const WHOLE: Wanted = Wanted { purpose: Purpose::Model, precision: Precision::Full, exact: false };

type Files = BTreeMap<String, Vec<u8>>;

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What Git calls contents.
fn git_sum(bytes: &[u8]) -> String {
    let sum = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files below a folder by their paths in it.
fn files_of(folder: &Path) -> TestResult<Files> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(files_of(&path)?.into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, std::fs::read(path)?);
        }
    }
    Ok(files)
}

/// A small Stable Diffusion 1.x and what real repositories have beside it.
fn small_model() -> TestResult<Files> {
    let mut files = files_of(&golden().join("models/sd15"))?;
    files.insert("README.md".into(), b"# A model".to_vec());
    files.insert("safety_checker/model.safetensors".into(), vec![7; 100]);
    files.insert("unet/diffusion_pytorch_model.bin".into(), vec![7; 100]);
    files.insert("text_encoder/pytorch_model.bin".into(), vec![7; 100]);
    Ok(files)
}

fn sha_of(file: &str) -> TestResult<String> {
    Ok(sha256(&small_model()?[file]))
}

/// The hub's answer, for the model `some/model`: as the real one, it keeps large files elsewhere, under their sums.
fn hub_answer(files: &Files, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/api/models/some/model/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
        return Answer::file(json!({"sha": COMMIT, "siblings": siblings}).to_string());
    }
    if let Some(sum) = path.strip_prefix("/large/") {
        let found = files.values().find(|bytes| sha256(bytes) == sum);
        return found.map_or_else(Answer::not_found, |bytes| Answer::part(bytes, request));
    }
    let Some((name, bytes)) = path.strip_prefix("/some/model/resolve/main/").and_then(|name| files.get_key_value(name))
    else {
        return Answer::not_found();
    };
    let sum = sha256(bytes);
    let answer = if name.ends_with(".safetensors") {
        Answer::elsewhere(format!("/large/{sum}"))
            .with("X-Linked-ETag", format!("\"{sum}\""))
            .with("X-Linked-Size", bytes.len().to_string())
    } else {
        Answer::part(bytes, request).with("ETag", format!("W/\"{}\"", git_sum(bytes)))
    };
    answer.with("X-Repo-Commit", COMMIT)
}

/// A server with these files, where `fault` may answer in its place.
fn hub_with(files: Files, fault: impl Fn(&Request) -> Option<Answer> + Send + 'static) -> TestResult<Server> {
    Server::start(move |request| fault(request).unwrap_or_else(|| hub_answer(&files, request)))
}

/// A cache in a folder of its own.
struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> TestResult<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn hub(&self, base: &str) -> Hub {
        Hub { cache: self.0.path().join("hub"), endpoint: Some(base.into()), token: None, offline: false }
    }

    fn model(&self) -> PathBuf {
        self.0.path().join("hub/models--some--model")
    }

    /// Files that are not whole.
    fn incomplete(&self) -> Vec<(String, u64)> {
        let entries = std::fs::read_dir(self.model().join("blobs")).into_iter().flatten().flatten();
        let named = entries.map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), entry.metadata().map_or(0, |data| data.len()))
        });
        named.filter(|(name, _)| name.ends_with(".incomplete")).collect()
    }

    /// Runs the program with this cache and that hub.
    fn run(&self, tweedie: &Tweedie, base: &str, arguments: &[&str]) -> TestResult<tweedie::Outcome> {
        let home = self.0.path().to_string_lossy().into_owned();
        let environment = [("HF_HOME", home.as_str()), ("HF_ENDPOINT", base), ("HF_HUB_OFFLINE", "0")];
        tweedie.run_with(arguments, &environment)
    }
}

fn some_model() -> Result<HubName, String> {
    "some/model".parse()
}

fn fetch(hub: &Hub, wanted: Wanted) -> Result<Model, String> {
    hub.fetch(&some_model()?, wanted, &mut |_| ControlFlow::Continue(())).map_err(|e| e.to_string())
}

/// The message with which a fetch fails on a hub with this fault; it must have all these parts.
fn fails(fault: impl Fn(&Request) -> Option<Answer> + Send + 'static, parts: &[&str]) -> TestResult<(Cache, Server)> {
    let cache = Cache::new()?;
    let server = hub_with(small_model()?, fault)?;
    let message = fetch(&cache.hub(&server.base), WHOLE).err().ok_or("it was fetched")?;
    parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in: {message}"));
    assert!(message.contains("some/model"), "{message}");
    assert!(cache.hub("http://x").cached(&some_model()?, WHOLE).is_none(), "what failed is not taken for whole");
    Ok((cache, server))
}

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:9";

const TXT2IMG: [&str; 8] = ["txt2img", "--quiet", "--prompt", "a fox", "--steps", "2", "--output", "out.png"];

fn txt2img<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TXT2IMG.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn a_model_is_fetched_once_and_then_runs_without_network() -> TestResult {
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
    let tweedie = Tweedie::new()?;
    cache.run(&tweedie, &server.base, &txt2img(&["--model", "some/model"]))?.success()?;
    let asked = server.asked();
    assert!(asked.iter().any(|path| path.ends_with(UNET)));
    for useless in ["README", "safety_checker", ".bin"] {
        assert!(!asked.iter().any(|path| path.contains(useless)), "{useless} was fetched");
    }
    // The layout that Python's client reads.
    assert_eq!(std::fs::read_to_string(cache.model().join("refs/main"))?, COMMIT);
    let unet = cache.model().join("snapshots").join(COMMIT).join(UNET);
    let sum = sha_of(UNET)?;
    assert_eq!(unet.canonicalize()?, cache.model().join("blobs").join(&sum).canonicalize()?);
    #[cfg(unix)]
    assert_eq!(std::fs::read_link(&unet)?, Path::new("../../../blobs").join(&sum), "a cache can be moved");
    assert_eq!(cache.incomplete(), []);

    let direct = golden().join("models/sd15");
    cache.run(&tweedie, NOBODY, &txt2img(&["--force", "--model", "some/model"]))?.success()?;
    let first = pixels(&tweedie.path("out.png"))?;
    cache.run(&tweedie, NOBODY, &txt2img(&["--force", "--model", &direct.to_string_lossy()]))?.success()?;
    assert!(first == pixels(&tweedie.path("out.png"))?, "the same model makes the same picture");
    Ok(())
}

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

/// A file of the cache that is not what it is called is fetched anew when the model is, large or small; and so is one of which
/// an earlier try left something else of the same length.
#[test]
fn what_is_damaged_in_the_cache_is_fetched_again() -> TestResult {
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
    let hub = cache.hub(&server.base);
    fetch(&hub, WHOLE)?;
    let names = [UNET, "unet/config.json", "tokenizer/merges.txt"];
    let whole = small_model()?;
    for name in names {
        let path = cache.model().join("snapshots").join(COMMIT).join(name);
        let mut bytes = std::fs::read(&path)?;
        bytes[9] ^= 1;
        std::fs::write(&path, bytes)?;
        let before = server.requests().len();
        fetch(&hub, WHOLE)?;
        assert!(std::fs::read(&path)? == whole[name], "{name}");
        let asked = server.requests()[before..].iter().filter(|request| request.path.starts_with("/some/")).count();
        assert!((1..=2).contains(&asked), "only {name} is asked for, not {asked} files");
    }
    hub.remove(&some_model()?)?;
    std::fs::create_dir_all(cache.model().join("blobs"))?;
    let name = "unet/config.json";
    let partial = cache.model().join("blobs").join(format!("{}.incomplete", git_sum(&whole[name])));
    std::fs::write(&partial, vec![b' '; whole[name].len()])?;
    assert!(fetch(&hub, WHOLE).is_err_and(|message| message.contains(name) && message.contains("run it again")));
    fetch(&hub, WHOLE)?;
    assert!(std::fs::read(cache.model().join("snapshots").join(COMMIT).join(name))? == whole[name]);
    Ok(())
}

/// Several programs that fetch one model at the same time all get it.
#[test]
fn three_fetches_at_once_all_succeed() -> TestResult {
    for _ in 0..5 {
        let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
        let hub = cache.hub(&server.base);
        let fetched: Vec<_> = std::thread::scope(|scope| {
            let fetches: Vec<_> = (0..3).map(|_| scope.spawn(|| fetch(&hub, WHOLE).map(|_| ()))).collect();
            let ended = |fetch: std::thread::ScopedJoinHandle<'_, _>| match fetch.join() {
                Ok(fetched) => fetched,
                Err(_) => Err("it panicked".to_owned()),
            };
            fetches.into_iter().map(ended).collect()
        });
        assert_eq!(fetched, vec![Ok(()); 3]);
        assert!(files_of(&cache.model().join("snapshots").join(COMMIT))?.len() > 10);
    }
    Ok(())
}

/// On a disk that is full in the middle of it, nothing passes for whole, and the next try goes on.
#[cfg(unix)]
#[test]
fn a_full_disk_costs_a_fetch_nothing_that_came() -> TestResult {
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
    let output = Tweedie::new()?
        .with_small_files(40, &["model", "fetch", "some/model", "--quiet"])
        .envs([("HF_HOME", cache.0.path().as_os_str()), ("HF_ENDPOINT", server.base.as_ref())])
        .output()?;
    let message = String::from_utf8(output.stderr)?;
    assert!(output.status.code() == Some(1) && message.contains("cannot write"), "{message}");
    assert!(cache.hub(NOBODY).cached(&some_model()?, WHOLE).is_none());
    let part = cache.incomplete();
    assert!(part.len() == 1 && part[0].1 > 0, "{part:?}");
    fetch(&cache.hub(&server.base), WHOLE)?;
    let fetched = files_of(&cache.model().join("snapshots").join(COMMIT))?;
    assert!(fetched[UNET] == small_model()?[UNET] && cache.incomplete().is_empty());
    Ok(())
}

/// What cannot be held is not begun.
#[test]
fn a_file_for_which_there_is_no_room_is_refused() -> TestResult {
    let large = |request: &Request| {
        let is_large = request.path.ends_with(UNET);
        is_large.then(|| {
            let sum = sha_of(UNET).unwrap_or_default();
            Answer::elsewhere(format!("/large/{sum}"))
                .with("X-Linked-ETag", format!("\"{sum}\""))
                .with("X-Linked-Size", "4000000000000000")
                .with("X-Repo-Commit", COMMIT)
        })
    };
    if cfg!(any(target_os = "linux", target_os = "macos")) {
        fails(large, &[UNET, "4000000000000000 bytes", "make room", "HF_HOME"])?;
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

#[test]
fn shards_one_file_and_a_lone_autoencoder_come_too() -> TestResult {
    let mut files = small_model()?;
    let unet = files.remove(UNET).ok_or("no unet")?;
    let index = json!({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}).to_string();
    files.insert(format!("{UNET}.index.json"), index.into_bytes());
    files.insert("unet/part-1.safetensors".into(), unet.clone());
    files.insert("unet/part-2.safetensors".into(), vec![1; 50]);
    let (cache, server) = (Cache::new()?, hub_with(files, |_| None)?);
    let Model::Cached { name: called, folder } = fetch(&cache.hub(&server.base), WHOLE)? else {
        return Err("a folder was expected".into());
    };
    assert_eq!(called, "some/model");
    assert!(folder.join("unet/part-1.safetensors").is_file() && folder.join("unet/part-2.safetensors").is_file());
    std::fs::remove_file(folder.join("unet/part-2.safetensors"))?;
    assert!(cache.hub(NOBODY).cached(&some_model()?, WHOLE).is_none(), "a part is missing");

    // Pickles and GGUF beside it are other forms of it.
    let others =
        ["README.md", "model-v1.ckpt", "model-Q4_0.gguf", "model-Q8_0.gguf"].map(|name| (name.into(), vec![1]));
    let single = Files::from_iter(others.into_iter().chain([("model-v1.safetensors".into(), unet.clone())]));
    let (cache, server) = (Cache::new()?, hub_with(single, |_| None)?);
    let Model::File { path, config: None } = fetch(&cache.hub(&server.base), WHOLE)? else {
        return Err("a file was expected".into());
    };
    assert_eq!(std::fs::read(&path)?, unet);
    assert!(cache.hub(NOBODY).cached(&some_model()?, WHOLE).is_some());

    let vae = files_of(&golden().join("models/sd15/vae"))?;
    let (cache, server) = (Cache::new()?, hub_with(vae, |_| None)?);
    let direct = golden().join("models/sd15").to_string_lossy().into_owned();
    let with_vae = ["--model", &direct, "--vae", "some/model"];
    let tweedie = Tweedie::new()?;
    cache.run(&tweedie, &server.base, &txt2img(&with_vae))?.success()?;
    let first = pixels(&tweedie.path("out.png"))?;
    cache.run(&tweedie, NOBODY, &txt2img(&["--force", "--model", &direct]))?.success()?;
    assert!(first == pixels(&tweedie.path("out.png"))?, "it is the model's own");
    Ok(())
}

/// What goes on top of a model, each by the name of a repository, or of one file in it.
#[test]
fn adapters_and_control_models_come_by_name() -> TestResult {
    let models = golden().join("models");
    let read = |path: &str| std::fs::read(models.join(path));
    let weights = "diffusion_pytorch_model.safetensors";
    let files = Files::from([
        ("config.json".into(), read("controlnet/config.json")?),
        (weights.into(), read(&format!("controlnet/{weights}"))?),
        ("pytorch_lora_weights.safetensors".into(), read("lora/kohya.safetensors")?),
        ("learned_embeds.bin".into(), read("embedding/thing.bin")?),
        ("more/deep/taesd.safetensors".into(), read(&format!("taesd/{weights}"))?),
        ("more/word.pt".into(), read("embedding/thing.pt")?),
    ]);
    let (cache, server) = (Cache::new()?, hub_with(files, |_| None)?);
    let tweedie = Tweedie::new()?;
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 90]))
        .save(tweedie.path("photo.png"))?;
    let model = models.join("sd15").to_string_lossy().into_owned();
    let at = |path: &str| models.join(path).to_string_lossy().into_owned();
    let draw = |base: &str, more: &[String]| -> TestResult<_> {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        cache.run(&tweedie, base, &txt2img(&[&["--force", "--model", &model], &more[..]].concat()))?.success()?;
        pixels(&tweedie.path("out.png"))
    };
    let options = |lora: &str, word: &str, control: &str, vae: &str| {
        [
            format!("--lora={lora}:0.4"),
            format!("--embedding={word}:<word>"),
            format!("--control={control}:photo.png:0.6"),
            format!("--vae={vae}"),
            format!("--preview-vae={vae}"),
            "--save-steps=steps".into(),
            "--negative-prompt=a <word>".into(),
        ]
    };
    let local = options(&at("lora/kohya.safetensors"), &at("embedding/thing.pt"), &at("controlnet"), &at("taesd"));
    let expected = draw(NOBODY, &local)?;
    let taesd = "some/model/more/deep/taesd.safetensors";
    let named = options("some/model", "some/model", "some/model", taesd);
    assert!(draw(&server.base, &named)? == expected);
    assert!(!server.asked().iter().any(|path| path.ends_with("word.pt")), "what is not asked for stays there");
    // Then without network; another file of the same repository is not in the cache.
    let offline = [&named[..], &["--offline".into()]].concat();
    assert!(draw(NOBODY, &offline)? == expected);
    let word = ["--model", &model, "--embedding=some/model/more/word.pt"];
    let missing = [&word[..], &["--offline", "--force"]].concat();
    cache.run(&tweedie, NOBODY, &txt2img(&missing))?.fails(1, &["some/model/more/word.pt", "--offline"])?;
    cache.run(&tweedie, &server.base, &txt2img(&[&word[..], &["--force"]].concat()))?.success()?;

    let refused = |option: &str, parts: &[&str]| -> TestResult {
        cache.run(&tweedie, &server.base, &txt2img(&["--model", &model, "--force", option]))?.fails(1, parts)
    };
    refused("--lora=some/model/more/World.pt", &["more/World.pt", "missing", "more/word.pt", "capitals"])?;
    // A file that is not there is no name.
    refused("--lora=some/file.safetensors", &["some/file.safetensors", "no such file"])
}

#[test]
fn a_repository_with_several_files_asks_which() -> TestResult {
    let lora = std::fs::read(golden().join("models/lora/kohya.safetensors"))?;
    let files = ["ink.safetensors", "storm.safetensors", "old.pt"].map(|name| (name.to_owned(), lora.clone()));
    let (cache, server) = (Cache::new()?, hub_with(Files::from(files), |_| None)?);
    let tweedie = Tweedie::new()?;
    let model = golden().join("models/sd15").to_string_lossy().into_owned();
    let with_lora = |base: &str, lora: &str, more: &[&str]| {
        let options = [&["--force", "--model", &model, "--lora", lora], more].concat();
        cache.run(&tweedie, base, &txt2img(&options))
    };
    let run = |lora: &str| with_lora(&server.base, lora, &[]);
    run("some/model")?
        .fails(2, &["LoRA of some/model", "ink.safetensors, storm.safetensors", "some/model/ink.safetensors"])?;
    run("some/model/storm.safetensors:0.5")?.success()?;
    // That one of them is in the cache now does not make it the one that is meant.
    run("some/model")?.fails(2, &["ink.safetensors, storm.safetensors"])?;
    let as_model = cache.run(&tweedie, &server.base, &txt2img(&["--force", "--model", "some/model"]))?;
    as_model.fails(2, &["checkpoint of some/model", "ink.safetensors, storm.safetensors"])?;
    // Where nobody can say so, it is.
    with_lora(NOBODY, "some/model", &[])?.success()?;
    with_lora(NOBODY, "some/model", &["--offline"])?.success()?;
    let sample = ["sample", "--output=out.png", "--force", "--checkpoint"];
    for (checkpoint, value) in
        [("some/model", "without a model_index.json"), ("some/model/ink.safetensors", "one file")]
    {
        let outcome = cache.run(&tweedie, &server.base, &[&sample[..], &[checkpoint]].concat())?;
        outcome.fails(1, &[checkpoint, value, "pixel space", "owner/name"])?;
    }
    assert!(!server.asked().iter().any(|path| path.contains("ink")), "nothing is fetched that cannot be used");
    let fetch = |more: &[&str]| cache.run(&tweedie, &server.base, &[&["model", "fetch", "--quiet"], more].concat());
    let path = fetch(&["some/model/ink.safetensors", "--part=lora"])?.success()?.stdout;
    assert_eq!(std::fs::read(path.trim())?, lora);
    cache
        .run(&tweedie, NOBODY, &["model", "remove", "some/model/ink.safetensors"])?
        .fails(2, &["one file", "some/model"])
}

/// A file that was fetched by its own name is not taken for the model that lies beside it.
#[test]
fn one_file_in_the_cache_is_not_the_whole_repository() -> TestResult {
    let mut files = small_model()?;
    files.insert("ink.safetensors".into(), std::fs::read(golden().join("models/lora/kohya.safetensors"))?);
    let (cache, server) = (Cache::new()?, hub_with(files, |_| None)?);
    let hub = cache.hub(&server.base);
    let observer = &mut |_: HubEvent<'_>| ControlFlow::Continue(());
    let lora = Wanted { purpose: Purpose::Lora, ..WHOLE };
    let Model::File { path, .. } = hub.open(&"some/model/ink.safetensors".parse()?, lora, observer)? else {
        return Err("a file was expected".into());
    };
    assert!(matches!(hub.open(&some_model()?, WHOLE, observer)?, Model::Cached { .. }));
    assert!(path.with_file_name("model_index.json").is_file());
    // All of that is in the cache, so nobody is asked.
    assert!(matches!(cache.hub(NOBODY).open(&some_model()?, WHOLE, observer)?, Model::Cached { .. }));
    Ok(())
}

#[test]
fn models_in_pixel_space_and_benchmarks_take_names() -> TestResult {
    let (cache, server) = (Cache::new()?, hub_with(files_of(&golden().join("models/pixel28"))?, |_| None)?);
    let tweedie = Tweedie::new()?;
    let sample = |base: &str, checkpoint: &str, more: &[&str]| {
        let common = ["sample", "--quiet", "--steps=2", "--force", "--output=out.png", "--checkpoint", checkpoint];
        cache.run(&tweedie, base, &[&common[..], more].concat())
    };
    sample(&server.base, "some/model", &[])?.success()?;
    let first = pixels(&tweedie.path("out.png"))?;
    let json = sample(NOBODY, "some/model", &["--offline", "--json"])?.success()?.json()?;
    assert_eq!(json["settings"]["model"], "some/model");
    sample(NOBODY, &golden().join("models/pixel28").to_string_lossy(), &[])?.success()?;
    assert!(first == pixels(&tweedie.path("out.png"))?);

    let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
    let bench = ["bench", "--model=some/model", "--size=64", "--runs=1", "--json"];
    let json = cache.run(&tweedie, &server.base, &bench)?.success()?.json()?;
    assert!(json["unet_s"].is_number() && json["model"] == "some/model", "{json}");
    cache.run(&tweedie, NOBODY, &[&bench[..], &["--offline"]].concat())?.success()?;
    cache.run(&tweedie, NOBODY, &["bench", "--model=other/model", "--offline"])?.fails(1, &["other/model", "--offline"])
}

#[test]
fn a_path_that_exists_wins() -> TestResult {
    let tweedie = Tweedie::new()?;
    copy_folder(&golden().join("models/sd15"), &tweedie.path("some/model"))?;
    let cache = Cache::new()?;
    cache.run(&tweedie, NOBODY, &txt2img(&["--model", "some/model"]))?.success()?;
    assert!(!cache.0.path().join("hub").exists());
    Ok(())
}

#[test]
fn models_are_fetched_listed_and_removed() -> TestResult {
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
    let tweedie = Tweedie::new()?;
    let run = |arguments: &[&str]| cache.run(&tweedie, &server.base, arguments);
    assert!(run(&["model", "list"])?.success()?.stderr.contains("no model in"));
    let fetched = run(&["model", "fetch", "some/model", "--quiet"])?.success()?;
    assert_eq!(Path::new(fetched.stdout.trim()), cache.model().join("snapshots").join(COMMIT));
    // What Python left there in part, and what is no model.
    std::fs::create_dir_all(cache.0.path().join("hub/models--other--one/snapshots/abc"))?;
    std::fs::create_dir_all(cache.0.path().join("hub/datasets--some--model"))?;
    let listed = run(&["model", "list", "--json"])?.success()?.json()?;
    let rows = listed.as_array().ok_or("no list")?;
    assert_eq!(rows.len(), 2);
    assert_eq!((&rows[0]["model"], &rows[0]["complete"]), (&json!("other/one"), &json!(false)));
    assert_eq!((&rows[1]["model"], &rows[1]["complete"]), (&json!("some/model"), &json!(true)));
    assert_eq!(rows[1]["revisions"], json!(["main"]));
    let blobs = std::fs::read_dir(cache.model().join("blobs"))?.flatten().map(|e| e.metadata().map_or(0, |d| d.len()));
    assert_eq!(rows[1]["bytes"].as_u64(), Some(blobs.sum::<u64>() + COMMIT.len() as u64));
    let table = run(&["model", "list"])?.success()?.stdout;
    assert!(table.contains("some/model") && table.contains("complete") && table.contains("MiB"), "{table}");

    let info = run(&["model", "info", "some/model"])?.success()?.stdout;
    assert!(info.contains("some/model") && info.contains("unet"), "{info}");
    run(&["model", "info", "some/mode"])?.fails(1, &["some/mode", "tweedie model fetch some/mode"])?;

    run(&["model", "remove", "some/mode"])?.fails(1, &["some/mode", "does not have it", "model list"])?;
    run(&["model", "remove", "some/model@main"])?.fails(2, &["one revision", "give some/model"])?;
    run(&["model", "remove", "../model"])?.fails(2, &["owner/name"])?;
    #[cfg(unix)]
    {
        std::fs::create_dir(tweedie.path("precious"))?;
        std::os::unix::fs::symlink(tweedie.path("precious"), cache.0.path().join("hub/models--a--link"))?;
        run(&["model", "remove", "a/link"])?.fails(1, &["does not have it"])?;
        assert!(tweedie.path("precious").is_dir());
    }
    run(&["model", "remove", "some/model"])?.success()?;
    assert!(!cache.model().exists() && cache.0.path().join("hub/models--other--one").exists());
    Ok(())
}

/// A picture says which weights made it, and they are found in the cache.
#[test]
fn a_picture_of_a_cached_model_is_verified_without_naming_it() -> TestResult {
    let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
    let tweedie = Tweedie::new()?;
    cache.run(&tweedie, &server.base, &txt2img(&["--model", "some/model"]))?.success()?;
    let verified = cache.run(&tweedie, NOBODY, &["verify", "out.png", "--quiet"])?.success()?;
    assert!(verified.stdout.starts_with("identical"), "{}", verified.stdout);
    cache.hub(NOBODY).remove(&some_model()?)?;
    let parts = ["some/model", "neither embedded nor in the hub's cache", "--model"];
    cache.run(&tweedie, NOBODY, &["verify", "out.png", "--quiet"])?.fails(1, &parts)
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

/// Every short name means its repository, here a server that has a small model under each; what it is, under which licence and how
/// large is said before anything is fetched.
#[test]
fn well_known_models_have_short_names() -> TestResult {
    let files = small_model()?;
    let server = Server::start(move |request| {
        let mut request = request.clone();
        for known in tweedie_pipelines::hub::known_models().values() {
            request.path = request.path.replace(&format!("/{}/", known.repository), "/some/model/");
        }
        hub_answer(&files, &request)
    })?;
    let tweedie = Tweedie::new()?;
    for (name, known) in tweedie_pipelines::hub::known_models() {
        let cache = Cache::new()?;
        let part = if known.what.contains("--vae") { "vae" } else { "model" };
        let fetched = cache.run(&tweedie, &server.base, &["model", "fetch", name, "--part", part])?.success()?;
        assert!(fetched.stdout.contains(&known.repository.replace('/', "--")), "{}", fetched.stdout);
        let told = &fetched.stderr;
        assert!(told.contains(&known.licence) && told.contains(" GB are fetched"), "{name}: {told}");
    }
    let cache = Cache::new()?;
    let drawn = cache.run(&tweedie, &server.base, &txt2img(&["--model", "sd15"]))?.success()?;
    assert_eq!(drawn.stderr, "", "--quiet");
    let again = cache.run(&tweedie, NOBODY, &txt2img(&["--model", "sd15", "--force"]))?.success()?;
    assert_eq!(again.stderr, "");
    cache.run(&tweedie, NOBODY, &["model", "info", "sd15"])?.success()?;
    let slip = cache.run(&tweedie, NOBODY, &txt2img(&["--model", "sd-15", "--force"]))?;
    slip.fails(1, &["did you mean sd15?", "sdxl-turbo", "owner/name"])?;
    let list = cache.run(&tweedie, NOBODY, &["model", "known"])?.success()?.stdout;
    assert!(list.contains("sd15") && list.contains("OpenRAIL") && list.contains("not checked"), "{list}");
    Ok(())
}
