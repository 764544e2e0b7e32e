//! The hub's place is taken by a small server with a small model, and the cache is a folder of the test.

use super::server::{Answer, Request, Server};
use super::tweedie::{self, TestResult, Tweedie, golden};
use ::tweedie::checkpoints::Precision;
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tweedie_pipelines::hub::{Hub, HubName, Wanted};
use tweedie_pipelines::{Model, Purpose};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
pub const HALF_UNET: &str = "unet/diffusion_pytorch_model.fp16.safetensors";
pub const WHOLE: Wanted = Wanted { purpose: Purpose::Model, precision: Precision::Full, exact: false };

pub type Files = BTreeMap<String, Vec<u8>>;

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What Git calls contents.
pub fn git_sum(bytes: &[u8]) -> String {
    let sum = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files below a folder by their paths in it.
pub fn files_of(folder: &Path) -> TestResult<Files> {
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
pub fn small_model() -> TestResult<Files> {
    let mut files = files_of(&golden().join("models/sd15"))?;
    files.insert("README.md".into(), b"# A model".to_vec());
    files.insert("safety_checker/model.safetensors".into(), vec![7; 100]);
    files.insert("unet/diffusion_pytorch_model.bin".into(), vec![7; 100]);
    files.insert("text_encoder/pytorch_model.bin".into(), vec![7; 100]);
    Ok(files)
}

pub fn sha_of(file: &str) -> TestResult<String> {
    Ok(sha256(&small_model()?[file]))
}

/// The hub's answer, for the model `some/model`: as the real one, it keeps large files elsewhere, under their sums.
pub fn hub_answer(files: &Files, request: &Request) -> Answer {
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
pub fn hub_with(files: Files, fault: impl Fn(&Request) -> Option<Answer> + Send + 'static) -> TestResult<Server> {
    Server::start(move |request| fault(request).unwrap_or_else(|| hub_answer(&files, request)))
}

/// A cache in a folder of its own.
pub struct Cache(pub tempfile::TempDir);

impl Cache {
    pub fn new() -> TestResult<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    pub fn hub(&self, base: &str) -> Hub {
        Hub { cache: self.0.path().join("hub"), endpoint: Some(base.into()), token: None, offline: false }
    }

    pub fn model(&self) -> PathBuf {
        self.0.path().join("hub/models--some--model")
    }

    /// Files that are not whole.
    pub fn incomplete(&self) -> Vec<(String, u64)> {
        let entries = std::fs::read_dir(self.model().join("blobs")).into_iter().flatten().flatten();
        let named = entries.map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), entry.metadata().map_or(0, |data| data.len()))
        });
        named.filter(|(name, _)| name.ends_with(".incomplete")).collect()
    }

    /// Runs the program with this cache and that hub.
    pub fn run(&self, tweedie: &Tweedie, base: &str, arguments: &[&str]) -> TestResult<tweedie::Outcome> {
        let home = self.0.path().to_string_lossy().into_owned();
        let environment = [("HF_HOME", home.as_str()), ("HF_ENDPOINT", base), ("HF_HUB_OFFLINE", "0")];
        tweedie.run_with(arguments, &environment)
    }
}

pub fn some_model() -> Result<HubName, String> {
    "some/model".parse()
}

pub fn fetch(hub: &Hub, wanted: Wanted) -> Result<Model, String> {
    hub.fetch(&some_model()?, wanted, &mut |_| ControlFlow::Continue(())).map_err(|e| e.to_string())
}

/// The message with which a fetch fails on a hub with this fault; it must have all these parts.
pub fn fails(
    fault: impl Fn(&Request) -> Option<Answer> + Send + 'static,
    parts: &[&str],
) -> TestResult<(Cache, Server)> {
    let cache = Cache::new()?;
    let server = hub_with(small_model()?, fault)?;
    let message = fetch(&cache.hub(&server.base), WHOLE).err().ok_or("it was fetched")?;
    parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in: {message}"));
    assert!(message.contains("some/model"), "{message}");
    assert!(cache.hub("http://x").cached(&some_model()?, WHOLE).is_none(), "what failed is not taken for whole");
    Ok((cache, server))
}

/// Nobody listens there.
pub const NOBODY: &str = "http://127.0.0.1:9";

pub const TXT2IMG: [&str; 8] = ["txt2img", "--quiet", "--prompt", "a fox", "--steps", "2", "--output", "out.png"];

pub fn txt2img<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TXT2IMG.iter().copied().chain(more.iter().copied()).collect()
}
