//! Who may ask: the key, and that a request comes from no other site in somebody's browser.

use super::App;
use super::answer::Dialect;
use crate::serve::failure::{Failure, FailureCode};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;

/// Who may ask a server.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The key that everything but the page's own files asks for.
    pub key: Option<String>,
    /// Names that the server is called by, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Other sites whose pages may ask, such as `https://example.org`.
    pub origins: Vec<String>,
}

impl Access {
    /// Whether a request is for this server by a name that is its own. A page of another site can make a name of its own lead
    /// here (DNS rebinding), and an address cannot be made to.
    fn is_own_host(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Whether a page of that origin may ask: one of this server, or one that is named.
    fn is_own_origin(&self, origin: &str, host: &str) -> bool {
        let named = self.origins.iter().any(|own| own == origin);
        named || origin.split_once("://").is_some_and(|(_, from)| from.eq_ignore_ascii_case(host))
    }

    /// Whether the headers have the key: as a bearer's, or as the password of any user, as clients of A1111's send it.
    fn has_key(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.key else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let given = match given.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().as_bytes().to_vec()),
            Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => {
                let pair = STANDARD.decode(pair.trim()).unwrap_or_default();
                pair.iter().position(|byte| *byte == b':').map(|colon| pair[colon + 1..].to_vec())
            }
            _ => None,
        };
        // Sums are compared, so that the time tells nothing of the key.
        given.is_some_and(|given| Sha256::digest(given) == Sha256::digest(key.as_bytes()))
    }
}

/// Whether a path is open to everybody.
fn is_open(path: &str) -> bool {
    path == "/" || path == "/healthz" || path.starts_with("/page/")
}

/// Lets a request pass, or refuses it.
pub async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let path = request.uri().path().to_owned();
    let refuse = |failure: Failure| Dialect::of_path(&path).refuse(&failure);
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let host = text(header::HOST).or_else(|| request.uri().authority().map(ToString::to_string)).unwrap_or_default();
    if !app.access.is_own_host(&host) {
        let fix = "start the server with --allow-host and that name if it is this server's";
        return refuse(Failure::new(FailureCode::Forbidden, format!("the header Host is {host:?}; {fix}")));
    }
    let origin = text(header::ORIGIN).filter(|origin| !app.access.is_own_origin(origin, &host));
    if let Some(origin) = origin {
        let fix = "start the server with --allow-origin and that site if its pages may ask";
        return refuse(Failure::new(FailureCode::Forbidden, format!("the header Origin is {origin:?}; {fix}")));
    }
    let foreign = text(header::ORIGIN).filter(|origin| app.access.origins.contains(origin));
    if request.method() == Method::OPTIONS && foreign.is_some() {
        return with_origin(StatusCode::NO_CONTENT.into_response(), foreign);
    }
    if !is_open(&path) && !app.access.has_key(headers) {
        let message = "the server's key is missing or wrong; send the header Authorization: Bearer KEY";
        return with_origin(refuse(Failure::new(FailureCode::Unauthorized, message)), foreign);
    }
    let mut response = next.run(request).await;
    // What a picture or an answer is, is what the server says it is.
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    with_origin(response, foreign)
}

/// Lets a page of a named site read an answer.
fn with_origin(mut response: Response, origin: Option<String>) -> Response {
    if let Some(origin) = origin.and_then(|origin| HeaderValue::from_str(&origin).ok()) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let methods = HeaderValue::from_static("GET, POST, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let names = HeaderValue::from_static("Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Client");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_another_site_is_not_the_servers() {
        let access = Access { hosts: vec!["pictures.lan".into()], ..Access::default() };
        for host in
            ["localhost:7860", "127.0.0.1:7860", "[::1]:7860", "[::1]", "10.0.0.3", "Pictures.lan:80", "LOCALHOST"]
        {
            assert!(access.is_own_host(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:7860", "", "127.0.0.1.evil.example", "pictures.lan.evil"] {
            assert!(!access.is_own_host(host), "{host}");
        }
    }

    #[test]
    fn a_page_of_another_site_may_not_ask_unless_it_is_named() {
        let access = Access { origins: vec!["https://app.example".into()], ..Access::default() };
        assert!(access.is_own_origin("http://127.0.0.1:7860", "127.0.0.1:7860"));
        assert!(access.is_own_origin("https://app.example", "127.0.0.1:7860"));
        for origin in ["http://127.0.0.1:7861", "null", "https://evil.example", "http://app.example"] {
            assert!(!access.is_own_origin(origin, "127.0.0.1:7860"), "{origin}");
        }
    }

    #[test]
    fn the_key_comes_as_a_bearers_or_as_a_password() -> Result<(), Box<dyn std::error::Error>> {
        let access = Access { key: Some("secret".into()), ..Access::default() };
        let with = |value: &str| -> Result<bool, header::InvalidHeaderValue> {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse()?);
            Ok(access.has_key(&headers))
        };
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert!(with("Bearer secret")? && with("bearer secret")? && with(&basic("me:secret"))?);
        for wrong in ["Bearer wrong", "secret", "Bearer ", &basic("secret"), &basic("secret:")] {
            assert!(!with(wrong)?, "{wrong}");
        }
        assert!(!access.has_key(&HeaderMap::new()));
        Ok(())
    }
}
