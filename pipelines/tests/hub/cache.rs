//! What has been fetched, and lies in the cache.

use super::fake::{
    COMMIT, Cache, NOBODY, UNET, WHOLE, fails, fetch, files_of, git_sum, hub_with, sha_of, small_model, some_model,
    txt2img,
};
use super::server::{Answer, Request};
use super::tweedie::{TestResult, Tweedie, golden, pixels};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;
use tweedie_pipelines::hub::{HubEvent, Wanted};
use tweedie_pipelines::{Model, Purpose};

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
