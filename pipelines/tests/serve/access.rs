//! Who may ask.

use super::running::Running;
use super::tweedie::{TestResult, Tweedie};

#[test]
fn other_sites_and_names_are_refused() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &["--allow-host", "pictures.lan", "--allow-origin", "https://app.example"])?;
    let status =
        |headers: &[(&str, &str)]| -> TestResult<u16> { Ok(server.ask("GET", "/api/models", headers, None)?.status) };
    let own = server.url.clone();
    assert_eq!(status(&[])?, 200);
    assert_eq!(status(&[("Origin", &own)])?, 200);
    assert_eq!(status(&[("Host", "pictures.lan:7860")])?, 200);
    assert_eq!(status(&[("Origin", "https://app.example")])?, 200);
    assert_eq!(status(&[("Host", "evil.example")])?, 403);
    assert_eq!(status(&[("Origin", "https://evil.example")])?, 403);
    assert_eq!(status(&[("Origin", "null")])?, 403);
    let evil = server.ask("POST", "/api/jobs", &[("Origin", "https://evil.example")], Some(("text/plain", b"{}")))?;
    evil.refused(403, None, &["Origin", "--allow-origin"])?;
    Ok(())
}

#[test]
fn the_key_is_asked_for_and_the_page_is_open() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &["--api-key", "secret"])?;
    server.get("/api/models")?.refused(401, None, &["Authorization: Bearer"])?;
    assert_eq!(server.get("/v1/models")?.expect(401)?["error"]["type"], "invalid_request_error");
    assert_eq!(server.get("/metrics")?.status, 401);
    let with = |value: &str| -> TestResult<u16> {
        Ok(server.ask("GET", "/api/models", &[("Authorization", value)], None)?.status)
    };
    assert_eq!((with("Bearer secret")?, with("Bearer secre")?), (200, 401));
    // A1111's clients: any user, and the key as the password.
    assert_eq!(with("Basic bWU6c2VjcmV0")?, 200);
    assert_eq!((server.get("/")?.status, server.get("/healthz")?.status), (200, 200));
    Ok(())
}

#[test]
fn another_address_needs_a_key_or_a_word() -> TestResult {
    let place = Tweedie::new()?;
    let refused = place.run(&["serve", "--listen", "0.0.0.0:0", "--no-config"])?;
    refused.fails(2, &["0.0.0.0", "--api-key", "--no-auth"])?;
    let refused = place.run(&["serve", "--model", "nowhere.safetensors", "--listen", "127.0.0.1:0", "--no-config"])?;
    assert!(refused.status != 0 && refused.stderr.contains("nowhere"), "{}", refused.stderr);
    Ok(())
}
