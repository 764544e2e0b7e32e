//! Asking the hub.

use super::name::is_file_name;
use super::{Hub, HubEvent, HubName, HubObserver};
use crate::http::agent_config;
use hf_hub::Cache;
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use tweedie::{Error, ErrorKind, Result};
use ureq::http::{HeaderMap, StatusCode, Uri, header};
use ureq::{Agent, Body};

/// A busy server is asked again if it wants no longer than this many seconds, so many times.
const LONGEST_WAIT: u64 = 60;
const TRIES: usize = 4;
/// The most redirects from one address to the next.
const REDIRECTS: usize = 8;
/// Bytes of the longest list of files.
const LONGEST_LIST: u64 = 32 << 20;

pub(super) type Response = ureq::http::Response<Body>;

/// One repository on the hub.
pub(super) struct Client {
    /// Knows addresses.
    repository: ApiRepo,
    agent: Agent,
    /// Where it says what the repository holds.
    list: String,
    name: HubName,
    token: Option<String>,
}

/// The files of a repository at one commit.
pub(super) struct Listing {
    pub commit: String,
    pub names: BTreeSet<String>,
}

/// An answer, and what was said on the way to it.
pub(super) struct Answer {
    pub response: Response,
    /// The headers of the redirects that led to it, in order.
    pub on_the_way: Vec<HeaderMap>,
}

impl Answer {
    /// A header of the first answer that has it.
    pub fn first(&self, name: &str) -> Option<&str> {
        let all = self.on_the_way.iter().chain([self.response.headers()]);
        all.filter_map(|headers| headers.get(name)).find_map(|value| value.to_str().ok())
    }

    /// A header of the last one.
    pub fn last(&self, name: header::HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

impl Client {
    pub fn new(hub: &Hub, name: &HubName) -> Result<Self> {
        let cache = Cache::new(hub.cache.clone());
        let repository = name.repository();
        let list = format!("{}/api/{}", hub.endpoint(), repository.api_url());
        let mut builder = ApiBuilder::from_cache(cache).with_progress(false).with_token(hub.token.clone());
        if let Some(endpoint) = &hub.endpoint {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                return Err(Error::invalid("HF_ENDPOINT", endpoint, "give a URL that starts with https:// or http://"));
            }
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').into());
        }
        let api = builder
            .build()
            .map_err(|e| Error::unusable(ErrorKind::File, "the client of the hub", "not usable", e.to_string()))?;
        let agent = agent_config().max_redirects(0).http_status_as_error(false).build().new_agent();
        Ok(Self { repository: api.repo(repository), agent, list, name: name.clone(), token: hub.token.clone() })
    }

    /// What the repository holds at the revision that was asked for.
    pub fn listing(&self, observer: &mut HubObserver<'_>) -> Result<Listing> {
        let mut response = self.follow(None, self.list.clone(), None, observer)?.response;
        let list = response.body_mut().with_config().limit(LONGEST_LIST).read_to_string();
        let list =
            list.map_err(|e| self.failed(None, &format!("its list of files did not come whole ({e})"), AGAIN))?;
        let odd = |what: &str| self.failed(None, &format!("its list of files {what}"), "check HF_ENDPOINT");
        let list: Value = serde_json::from_str(&list).map_err(|_| odd("is no JSON"))?;
        let commit =
            list["sha"].as_str().filter(|commit| is_file_name(commit)).ok_or_else(|| odd("names no commit"))?;
        let files = list["siblings"].as_array().ok_or_else(|| odd("names no files"))?;
        let names = files.iter().filter_map(|file| file["rfilename"].as_str()).map(str::to_owned).collect();
        Ok(Listing { commit: commit.into(), names })
    }

    /// Asks for a file, from the byte `start` on up to `end`.
    pub fn ask(&self, file: &str, range: Option<(u64, Option<u64>)>, observer: &mut HubObserver<'_>) -> Result<Answer> {
        self.follow(Some(file), self.repository.url(file), range, observer)
    }

    /// Asks, and follows redirects. The token goes to the hub's own scheme, host and port alone.
    fn follow(
        &self,
        file: Option<&str>,
        mut url: String,
        range: Option<(u64, Option<u64>)>,
        observer: &mut HubObserver<'_>,
    ) -> Result<Answer> {
        let (own, mut on_the_way) = (origin(&url), Vec::new());
        for _ in 0..=REDIRECTS {
            let request = || {
                let mut request = self.agent.get(&url).header("Accept-Encoding", "identity");
                if let Some((start, end)) = range {
                    let end = end.map(|end| end.to_string()).unwrap_or_default();
                    request = request.header("Range", format!("bytes={start}-{end}"));
                }
                if let Some(token) = self.token.as_ref().filter(|_| own.is_some() && origin(&url) == own) {
                    request = request.header("Authorization", format!("Bearer {token}"));
                }
                request.call()
            };
            let response = self.patiently(file, request, observer)?;
            if !response.status().is_redirection() {
                return Ok(Answer { response, on_the_way });
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| next_url(&url, location));
            url = next.ok_or_else(|| self.failed(file, "the hub redirects to nowhere", "check HF_ENDPOINT"))?;
            on_the_way.push(response.headers().clone());
        }
        Err(self.failed(file, &format!("more than {REDIRECTS} redirects"), "check HF_ENDPOINT"))
    }

    /// Asks, and again if the server is busy and says for how long.
    fn patiently(
        &self,
        file: Option<&str>,
        request: impl Fn() -> Result<Response, ureq::Error>,
        observer: &mut HubObserver<'_>,
    ) -> Result<Response> {
        for tries_left in (0..TRIES).rev() {
            let response = request().map_err(|error| {
                let fix = "check the network and HF_ENDPOINT; models that are in the cache run with `offline`";
                self.failed(file, &format!("the hub cannot be reached ({error})"), fix)
            })?;
            let status = response.status();
            let nothing_more = status == StatusCode::RANGE_NOT_SATISFIABLE;
            if status.is_success() || status.is_redirection() || nothing_more {
                return Ok(response);
            }
            let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
            let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let wait = wait.and_then(|seconds| seconds.trim().parse().ok()).filter(|_| busy);
            match wait {
                Some(seconds) if seconds <= LONGEST_WAIT && tries_left > 0 => pause(seconds, observer)?,
                _ => return Err(self.refused(file, status, wait)),
            }
        }
        Err(self.failed(file, "the hub stays busy", "try again later"))
    }

    /// What a status means, and what to do.
    fn refused(&self, file: Option<&str>, status: StatusCode, wait: Option<u64>) -> Error {
        let what = format!("the hub answered with status {status}");
        let fix = match (status.as_u16(), wait) {
            (401 | 403, _) if self.token.is_none() => {
                "the name is misspelt, or the model is private or gated: accept its terms on its page and set HF_TOKEN"
                    .into()
            }
            (401 | 403, _) => {
                "the name is misspelt, or the token (HF_TOKEN, or that of a login) does not open this model: accept its \
                 terms on its page, or take another token"
                    .into()
            }
            (404, None) if file.is_none() => format!(
                "there is no such model, or it has no revision `{}`; check the spelling (capitals count)",
                self.name.revision()
            ),
            (404, None) => "the repository has changed meanwhile; run it again".into(),
            (429, Some(seconds)) => format!("too many requests: try again after {seconds} seconds"),
            (429, None) => "too many requests: try again in a few minutes, or set HF_TOKEN".into(),
            (_, Some(seconds)) => format!("try again after {seconds} seconds"),
            _ => "try again later".into(),
        };
        // A model that is not there, or not for who asks, was named wrongly; the rest is the hub's or the connection's.
        let kind = match (status.as_u16(), file) {
            (401 | 403, _) | (404, None) => ErrorKind::Missing,
            _ => ErrorKind::File,
        };
        self.without(kind, file, &what, &fix)
    }

    /// That the model, or a file of it, does not come.
    pub fn failed(&self, file: Option<&str>, why: &str, fix: &str) -> Error {
        self.without(ErrorKind::File, file, why, fix)
    }

    fn without(&self, kind: ErrorKind, file: Option<&str>, why: &str, fix: &str) -> Error {
        let what = match file {
            Some(file) => format!("the download of {file} of {}", self.name),
            None => format!("the download of {}", self.name),
        };
        Error::unusable(kind, what, "not possible", format!("{why}; {fix}"))
    }
}

/// What to do after a connection broke.
pub(super) const AGAIN: &str = "run it again: it goes on where it stopped";

/// Waits, and asks now and then whether to stop.
fn pause(seconds: u64, observer: &mut HubObserver<'_>) -> Result<()> {
    let mut told = observer(HubEvent::Waiting(seconds));
    for _ in 0..seconds.max(1) * 10 {
        if told.is_break() {
            return Err(Error::Cancelled);
        }
        std::thread::sleep(Duration::from_millis(100));
        told = observer(HubEvent::Waiting(seconds));
    }
    Ok(())
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_lowercase(), uri.authority()?.as_str().to_lowercase()))
}

/// Where a redirect leads: to a URL or to another path of the same host, but not from HTTPS to HTTP.
fn next_url(url: &str, location: &str) -> Option<String> {
    let (scheme, authority) = origin(url)?;
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let (next, _) = origin(location)?;
    (next == "https" || (next == "http" && scheme == "http")).then(|| location.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_a_url_or_a_path_and_never_to_less_security() {
        let next = |url: &str, location: &str| next_url(url, location);
        assert_eq!(next("https://a.b:8/c/d?e", "/x?y=1").as_deref(), Some("https://a.b:8/x?y=1"));
        assert_eq!(next("http://a/c", "https://b/x").as_deref(), Some("https://b/x"));
        assert_eq!(next("http://a/c", "http://b/x").as_deref(), Some("http://b/x"));
        for location in ["http://b/x", "//b/x", "x", "", "file:///etc/passwd", "ftp://b/x"] {
            assert_eq!(next("https://a/c", location), None, "{location}");
        }
    }
}
