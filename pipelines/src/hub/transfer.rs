//! The bytes of one file.

use super::cache::Snapshot;
use super::client::{AGAIN, Answer, Client};
use super::name::is_file_name;
use super::sum::Sum;
use super::{HubEvent, HubObserver};
use crate::http::PATIENCE;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;
use tweedie::files::{folder_of, free_space};
use tweedie::{Error, Result};
use ureq::http::{StatusCode, header};

/// So often a connection that broke is made again at once, if more bytes came each time.
const RESUMES: usize = 5;

/// What the hub says of a file before it sends it.
struct Promise {
    /// Its SHA-256 if it is large, else its name in Git: the name of its blob.
    etag: String,
    size: u64,
}

impl Promise {
    fn sum(&self) -> Option<Sum<'_>> {
        Sum::of_etag(&self.etag)
    }
}

/// How a transfer ended.
enum End {
    Whole,
    /// The connection broke, for a reason.
    Cut(String),
}

impl Client {
    /// Fetches a file into the cache and makes it one of the snapshot.
    pub fn fetch(&self, name: &str, snapshot: &Snapshot, observer: &mut HubObserver<'_>) -> Result<()> {
        let promise = self.promise(name, snapshot.commit(), observer)?;
        let blob = snapshot.blob(&promise.etag);
        let lock = locked(&snapshot.lock(&promise.etag), observer)?;
        // Another revision may have it, or another program may just have fetched it.
        let there = blob.metadata().is_ok_and(|data| data.is_file() && data.len() == promise.size);
        if !(there && promise.sum().map_or(Ok(true), |sum| sum.is_of(&blob))?) {
            // Not with_extension: a sum has none, other names may.
            let partial = snapshot.blob(&format!("{}.incomplete", promise.etag));
            if let Some(folder) = partial.parent() {
                std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            }
            self.transfer(name, &promise, &partial, observer)?;
            self.check(name, &promise, &partial)?;
            std::fs::rename(&partial, &blob).map_err(Error::io("create", &blob))?;
        }
        snapshot.link(&promise.etag, name)?;
        drop(lock);
        tell(observer, HubEvent::Saved(name))
    }

    /// Asks for one byte, to hear of the whole.
    fn promise(&self, name: &str, commit: &str, observer: &mut HubObserver<'_>) -> Result<Promise> {
        let answer = self.ask(name, Some((0, Some(0))), observer)?;
        let odd = |what: &str| self.failed(Some(name), what, "check HF_ENDPOINT");
        if answer.first("x-repo-commit").is_some_and(|found| found != commit) {
            return Err(self.failed(Some(name), "the repository has changed meanwhile", "run it again"));
        }
        let etag = answer.first("x-linked-etag").or_else(|| answer.first("etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let etag = etag.filter(|etag| is_file_name(etag)).ok_or_else(|| odd("the hub does not name its contents"))?;
        let size = whole_size(&answer).ok_or_else(|| odd("the hub does not say how long it is"))?;
        Ok(Promise { etag: etag.into(), size })
    }

    /// Fills up the file beside the blob's place.
    fn transfer(&self, name: &str, promise: &Promise, partial: &Path, observer: &mut HubObserver<'_>) -> Result<()> {
        let fail = |action| Error::io(action, partial);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(partial);
        let mut file = file.map_err(fail("create"))?;
        if file.metadata().map_err(fail("read"))?.len() > promise.size {
            file.set_len(0).map_err(fail("write"))?;
        }
        self.check_space(name, promise, (&file, partial))?;
        let mut tries = 0;
        loop {
            let start = file.seek(SeekFrom::End(0)).map_err(fail("read"))?;
            if start == promise.size {
                return file.sync_all().map_err(fail("write"));
            }
            if let End::Cut(why) = self.go_on(name, promise, (&mut file, partial), start, observer)? {
                let done = file.seek(SeekFrom::End(0)).map_err(fail("read"))?;
                tries += 1;
                if done <= start || tries > RESUMES {
                    let why = format!("the connection ended after {done} of {} bytes ({why})", promise.size);
                    return Err(self.failed(Some(name), &why, AGAIN));
                }
            }
        }
    }

    /// Whether there is room for what is still to come.
    fn check_space(&self, name: &str, promise: &Promise, (file, partial): (&File, &Path)) -> Result<()> {
        let there = file.metadata().map_err(Error::io("read", partial))?.len();
        let folder = folder_of(partial);
        match free_space(folder) {
            Some(free) if free < promise.size - there => {
                let (missing, folder) = (promise.size - there, folder.display());
                let why = format!("{missing} bytes of it are to come, and the disk of {folder} has {free} left");
                Err(self.failed(Some(name), &why, "make room, or name another place with HF_HOME"))
            }
            _ => Ok(()),
        }
    }

    /// Fetches from the byte `start` on.
    fn go_on(
        &self,
        name: &str,
        promise: &Promise,
        (file, path): (&mut File, &Path),
        start: u64,
        observer: &mut HubObserver<'_>,
    ) -> Result<End> {
        let fail = |action| Error::io(action, path);
        let answer = self.ask(name, (start > 0).then_some((start, None)), observer)?;
        let from = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(&answer),
            StatusCode::OK => Some(0),
            _ => None,
        };
        // Some servers send the whole whatever was asked for.
        let mut done = match from {
            Some(from) if from == start => start,
            Some(0) => 0,
            _ => return Err(self.failed(Some(name), "the hub sent another part than was asked for", AGAIN)),
        };
        if let Some(length) = content_length(&answer)
            && done + length != promise.size
        {
            let why = format!("the hub sends {} bytes where it said {}", done + length, promise.size);
            return Err(self.failed(Some(name), &why, "try again later, or with another HF_ENDPOINT"));
        }
        file.set_len(done).map_err(fail("write"))?;
        file.seek(SeekFrom::Start(done)).map_err(fail("write"))?;
        // One byte more than there should be, to see it.
        let limit = promise.size - done + 1;
        let mut reader = answer.response.into_body().into_with_config().limit(limit + 1).reader().take(limit);
        let mut buffer = vec![0; 1 << 18];
        let mut pace = Pace::from(Instant::now());
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) if done == promise.size => return Ok(End::Whole),
                Ok(0) => return Ok(End::Cut("it was closed".into())),
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Ok(End::Cut(e.to_string())),
            };
            done += count as u64;
            if !pace.holds(count as u64, Instant::now()) {
                return Ok(End::Cut("next to nothing came for a minute".into()));
            }
            if done > promise.size {
                file.set_len(0).map_err(fail("write"))?;
                let why = format!("the hub sends more than the {} bytes that it said", promise.size);
                return Err(self.failed(Some(name), &why, "try again later, or with another HF_ENDPOINT"));
            }
            file.write_all(&buffer[..count]).map_err(fail("write"))?;
            tell(observer, HubEvent::Progress { name, done, total: promise.size })?;
        }
    }

    /// Whether what came is what was promised; what is not is taken away, so that the next try starts anew.
    fn check(&self, name: &str, promise: &Promise, partial: &Path) -> Result<()> {
        let Some(expected) = promise.sum() else { return Ok(()) };
        if expected.is_of(partial)? {
            return Ok(());
        }
        std::fs::remove_file(partial).map_err(Error::io("remove", partial))?;
        let why = match expected {
            Sum::Sha256(sum) => format!("what came has not the SHA-256 of the hub's file, {sum}"),
            Sum::Git(sum) => format!("what came has not the sum of the hub's file in Git, {sum}"),
        };
        Err(self.failed(Some(name), &why, "run it again: it starts anew"))
    }
}

/// The fewest bytes of a minute.
const LEAST: u64 = 64 << 10;

/// How fast bytes come.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn from(now: Instant) -> Self {
        Self { since: now, bytes: 0 }
    }

    /// Whether the last whole minute brought enough, with bytes that came now.
    fn holds(&mut self, bytes: u64, now: Instant) -> bool {
        self.bytes += bytes;
        if now.duration_since(self.since) < PATIENCE {
            return true;
        }
        let enough = self.bytes >= LEAST;
        *self = Self::from(now);
        enough
    }
}

/// The length of the whole file, by an answer that has a part of it.
fn whole_size(answer: &Answer) -> Option<u64> {
    let stated = answer.first("x-linked-size").and_then(|size| size.parse().ok());
    stated.or_else(|| match answer.response.status() {
        StatusCode::OK => content_length(answer),
        // An empty file has no first byte: "bytes */0".
        _ => answer.last(header::CONTENT_RANGE)?.rsplit('/').next()?.trim().parse().ok(),
    })
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.last(header::CONTENT_LENGTH)?.trim().parse().ok()
}

/// Where the part starts that an answer has: "bytes 100-199/200".
fn range_start(answer: &Answer) -> Option<u64> {
    let range = answer.last(header::CONTENT_RANGE)?.trim().strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}

/// A lock that ends with the file, waited for while another program has it.
fn locked(path: &Path, observer: &mut HubObserver<'_>) -> Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let lock = lock.map_err(Error::io("create", path))?;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(std::fs::TryLockError::WouldBlock) => {
                tell(observer, HubEvent::Waiting(1))?;
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
    }
}

fn tell(observer: &mut HubObserver<'_>, event: HubEvent<'_>) -> Result<()> {
    if observer(event).is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_trickle_is_told_from_a_slow_line() {
        let start = Instant::now();
        let holds = |bytes_a_second: u64| {
            let mut pace = Pace::from(start);
            (1..=180).all(|second| pace.holds(bytes_a_second, start + Duration::from_secs(second)))
        };
        assert!(!holds(1) && !holds(LEAST / 60 - 1));
        assert!(holds(LEAST / 60 + 1) && holds(1 << 20));
    }
}
