//! A server that runs, and what it answers.

use super::tweedie::{TestResult, Tweedie};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A server on a port of its own.
pub struct Running {
    child: Child,
    /// Its address, `http://127.0.0.1:PORT`.
    pub url: String,
}

/// What was answered.
pub struct Reply {
    pub status: u16,
    pub kind: String,
    pub retry_after: Option<String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> TestResult<Value> {
        let text = String::from_utf8_lossy(&self.body);
        Ok(serde_json::from_slice(&self.body).map_err(|error| format!("{}: {error}: {text}", self.status))?)
    }

    /// The JSON of an answer with this status.
    pub fn expect(&self, status: u16) -> TestResult<Value> {
        if self.status != status {
            return Err(format!("{} is not {status}: {}", self.status, String::from_utf8_lossy(&self.body)).into());
        }
        self.json()
    }

    /// Fails unless it is refused so, naming the field, with all parts in the message.
    pub fn refused(&self, status: u16, field: Option<&str>, parts: &[&str]) -> TestResult {
        let error = self.expect(status)?["error"].clone();
        assert_eq!(error["field"].as_str(), field, "{error}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} in {message}");
        Ok(())
    }
}

impl Running {
    /// Starts a server in a folder and waits until it listens.
    pub fn start(place: &Tweedie, arguments: &[&str]) -> TestResult<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tweedie"))
            .args(["serve", "--listen", "127.0.0.1:0", "--no-config"])
            .args(arguments)
            .current_dir(place.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let mut said = String::new();
        let url = loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                let _ = child.wait();
                return Err(format!("it ended: {said}").into());
            }
            said.push_str(&line);
            if let Some(start) = line.find("http://") {
                let end = line[start..].find("/;").ok_or("no end of the address")?;
                break line[start..start + end].to_owned();
            }
        };
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Ok(Self { child, url })
    }

    /// A request; `body` with its type, if it has one.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<(&str, &[u8])>,
    ) -> TestResult<Reply> {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build().into();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some((kind, _)) = body {
            request = request.header("Content-Type", kind);
        }
        let mut response = match body {
            Some((_, bytes)) => agent.run(request.body(bytes)?)?,
            None => agent.run(request.body(())?)?,
        };
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (kind, retry_after) = (header("content-type").unwrap_or_default(), header("retry-after"));
        let body = response.body_mut().with_config().limit(1 << 30).read_to_vec()?;
        Ok(Reply { status: response.status().as_u16(), kind, retry_after, body })
    }

    pub fn get(&self, path: &str) -> TestResult<Reply> {
        self.ask("GET", path, &[], None)
    }

    pub fn post(&self, path: &str, body: &Value) -> TestResult<Reply> {
        self.ask("POST", path, &[], Some(("application/json", body.to_string().as_bytes())))
    }

    /// A form of fields, each with the name of its file if it is one.
    pub fn post_form(&self, path: &str, fields: &[(&str, Option<&str>, &[u8])]) -> TestResult<Reply> {
        const BOUNDARY: &str = "0123456789abcdef";
        let mut body = Vec::new();
        for (name, file, bytes) in fields {
            let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\"\r\nContent-Type: image/png"));
            let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
            body.extend([head.as_bytes(), bytes, b"\r\n"].concat());
        }
        body.extend(format!("--{BOUNDARY}--\r\n").bytes());
        self.ask("POST", path, &[], Some((&format!("multipart/form-data; boundary={BOUNDARY}"), &body)))
    }

    /// Asks for a job of the server's own interface.
    pub fn job(&self, request: &Value) -> TestResult<Value> {
        self.post("/api/jobs", &json!({"request": request}))?.expect(202)
    }

    /// The job once it has ended.
    pub fn ended(&self, job: &Value) -> TestResult<Value> {
        self.when(job, |state| ["done", "failed", "cancelled"].contains(&state))
    }

    /// The job once its state is as wanted.
    pub fn when(&self, job: &Value, wanted: impl Fn(&str) -> bool) -> TestResult<Value> {
        let path = format!("/api/jobs/{}", job["id"].as_str().ok_or("no id")?);
        self.once(&path, |job| wanted(job["state"].as_str().unwrap_or_default()))
    }

    /// What is at a path once it is as wanted.
    pub fn once(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> TestResult<Value> {
        let start = Instant::now();
        loop {
            let found = self.get(path)?.expect(200)?;
            if wanted(&found) {
                return Ok(found);
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("still {found}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The pictures of a job that is done.
    pub fn pictures(&self, job: &Value) -> TestResult<Vec<Vec<u8>>> {
        let job = self.ended(job)?;
        assert_eq!(job["state"], "done", "{job}");
        let pictures = job["pictures"].as_array().ok_or("no pictures")?;
        pictures.iter().map(|picture| Ok(self.get(picture["url"].as_str().ok_or("no url")?)?.body)).collect()
    }

    /// A figure of /metrics.
    pub fn figure(&self, name: &str) -> TestResult<u64> {
        let text = String::from_utf8(self.get("/metrics")?.body)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.ok_or_else(|| format!("no {name} in {text}"))?)
    }

    pub fn kill(mut self) -> TestResult {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop, and gives its exit status.
    #[cfg(unix)]
    pub fn stop(mut self) -> TestResult<Option<i32>> {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        assert!(asked.success());
        Ok(self.child.wait()?.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The RGB bytes of a picture in memory.
pub fn rgb(png: &[u8]) -> TestResult<(u32, u32, Vec<u8>)> {
    let picture = image::load_from_memory(png)?.to_rgb8();
    Ok((picture.width(), picture.height(), picture.into_raw()))
}

/// A picture in base64.
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |word, i| word << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i) & 63) as usize] as char;
            text.push(if i <= chunk.len() { letter } else { '=' });
        }
    }
    text
}

/// The bytes of base64.
pub fn unbase64(text: &str) -> TestResult<Vec<u8>> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Ok(u32::from(c - b'A')),
        b'a'..=b'z' => Ok(u32::from(c - b'a') + 26),
        b'0'..=b'9' => Ok(u32::from(c - b'0') + 52),
        b'+' => Ok(62),
        b'/' => Ok(63),
        _ => Err(format!("{c} is no base64")),
    };
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut word = 0;
        for &c in chunk {
            word = word << 6 | value(c)?;
        }
        word <<= 6 * (4 - chunk.len());
        bytes.extend(&word.to_be_bytes()[1..chunk.len()]);
    }
    Ok(bytes)
}
