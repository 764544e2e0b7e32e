//! A small HTTP server on the loopback address.
#![allow(dead_code)] // every test binary uses a part

use super::tweedie::TestResult;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a client asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// With its query.
    pub path: String,
    /// By their names in small letters.
    pub headers: HashMap<String, String>,
}

impl Request {
    /// The first byte that was asked for, and the last one if it was said.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (start, end) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().ok()?, end.parse().ok()))
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Says that the body is so long, if that is not so: a client sees that the connection is cut.
    pub said: Option<usize>,
}

impl Answer {
    pub fn status(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), said: None }
    }

    pub fn file(bytes: impl Into<Vec<u8>>) -> Self {
        Self { body: bytes.into(), ..Self::status("200 OK") }
    }

    /// Says that there is more than comes.
    pub fn cut(bytes: impl Into<Vec<u8>>) -> Self {
        Self::file(bytes).cut_at_half()
    }

    pub fn cut_at_half(mut self) -> Self {
        self.said = Some(self.body.len());
        self.body.truncate(self.body.len() / 2);
        self
    }

    pub fn elsewhere(url: impl Into<String>) -> Self {
        Self::status("302 Found").with("Location", url)
    }

    pub fn not_found() -> Self {
        Self::status("404 Not Found")
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The part of a file that a request asks for.
    pub fn part(bytes: &[u8], request: &Request) -> Self {
        let Some((start, end)) = request.range() else { return Self::file(bytes) };
        if start >= bytes.len() {
            let all = format!("bytes */{}", bytes.len());
            return Self::status("416 Range Not Satisfiable").with("Content-Range", all);
        }
        let end = end.map_or(bytes.len(), |end| bytes.len().min(end + 1));
        let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
        let part = Self::file(&bytes[start..end]);
        Self { status: "206 Partial Content", ..part }.with("Content-Range", range)
    }
}

/// A server that answers until the test's process ends.
pub struct Server {
    pub base: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(answers: impl Fn(&Request) -> Answer + Send + 'static) -> TestResult<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let base = format!("http://{}", listener.local_addr()?);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is what some tests want.
                let _ = stream.and_then(|stream| serve(stream, &answers, &log));
            }
        });
        Ok(Self { base, asked })
    }

    /// All that was asked for so far.
    pub fn requests(&self) -> Vec<Request> {
        self.asked.lock().map(|asked| asked.clone()).unwrap_or_default()
    }

    /// Their paths.
    pub fn asked(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    answers: &impl Fn(&Request) -> Answer,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut request = Request { path: first.split(' ').nth(1).unwrap_or_default().into(), ..Request::default() };
    for line in lines {
        match line?.split_once(':') {
            Some((name, value)) => request.headers.insert(name.to_lowercase(), value.trim().into()),
            None => break,
        };
    }
    let Answer { status, headers, body, said } = answers(&request);
    // First, so that a client that has its answer finds it there.
    if let Ok(mut log) = log.lock() {
        log.push(request);
    }
    let length = said.unwrap_or(body.len());
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n")?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "\r\n")?;
    stream.write_all(&body)?;
    stream.flush()
}
