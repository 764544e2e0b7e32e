//! What a kill, a restart and a stop leave.
#![cfg(unix)]

use super::running::{Running, rgb};
use super::tweedie::{TestResult, Tweedie};
use serde_json::json;

#[test]
fn jobs_survive_a_kill_of_the_server() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let long = json!({"prompt": "a cat", "steps": 400, "seed": 1});
    let short = json!({"prompt": "a dog", "steps": 2, "seed": 2});
    let (first, second) = (server.job(&long)?, server.job(&short)?);
    server.when(&first, |state| state == "running")?;
    server.kill()?;

    let server = Running::start(&place, &[])?;
    let (pictures, others) = (server.pictures(&first)?, server.pictures(&second)?);
    assert_eq!(server.ended(&first)?["attempt"], 2, "it was begun twice");
    let again = [server.job(&long)?, server.job(&short)?];
    assert_eq!(rgb(&pictures[0])?, rgb(&server.pictures(&again[0])?[0])?);
    assert_eq!(rgb(&others[0])?, rgb(&server.pictures(&again[1])?[0])?);
    Ok(())
}

#[test]
fn a_job_that_ends_its_process_is_set_aside() -> TestResult {
    let place = Tweedie::new()?;
    let endless = json!({"prompt": "a cat", "steps": 1000, "num_images": 64});
    let twice = ["--max-attempts", "2"];
    let mut server = Running::start(&place, &twice)?;
    let job = server.job(&endless)?;
    for attempt in 1..=2 {
        let path = format!("/api/jobs/{}", job["id"].as_str().ok_or("no id")?);
        server.once(&path, |job| job["state"] == "running" && job["attempt"] == attempt)?;
        server.kill()?;
        server = Running::start(&place, &twice)?;
    }
    let ended = server.ended(&job)?;
    assert_eq!(ended["state"], "failed");
    assert!(ended["error"]["message"].as_str().is_some_and(|text| text.contains("begun 2 times")), "{ended}");
    // Others are not held up.
    server.pictures(&server.job(&json!({"prompt": "a dog", "steps": 1}))?)?;
    Ok(())
}

#[test]
fn a_stop_hands_the_running_job_back() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let job = server.job(&json!({"prompt": "a cat", "steps": 600, "seed": 1}))?;
    server.when(&job, |state| state == "running")?;
    assert_eq!(server.stop()?, Some(0), "a stop in order is no failure");
    let server = Running::start(&place, &[])?;
    let done = server.ended(&job)?;
    assert_eq!((done["state"].as_str(), done["attempt"].as_u64()), (Some("done"), Some(1)), "the stop does not count");
    Ok(())
}

#[test]
fn a_damaged_job_holds_nobody_up_and_can_be_deleted() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let running = server.job(&json!({"prompt": "a cat", "steps": 300, "seed": 1}))?;
    let damaged = server.job(&json!({"prompt": "a cat", "steps": 1}))?;
    server.when(&running, |state| state == "running")?;
    let id = damaged["id"].as_str().ok_or("no id")?;
    std::fs::write(place.path("tweedie-results/jobs").join(id).join("job.json"), "")?;
    server.pictures(&server.job(&json!({"prompt": "a dog", "steps": 1}))?)?;
    let path = format!("/api/jobs/{id}");
    server.get(&path)?.refused(500, None, &["damaged", "delete its job"])?;
    assert_eq!(server.ask("DELETE", &path, &[], None)?.status, 204);
    assert_eq!(server.get(&path)?.status, 404);
    Ok(())
}

#[test]
fn a_job_without_a_ticket_is_taken_up() -> TestResult {
    let place = Tweedie::new()?;
    let server = Running::start(&place, &[])?;
    let job = server.job(&json!({"prompt": "a cat", "steps": 600, "seed": 1}))?;
    server.when(&job, |state| state == "running")?;
    server.kill()?;
    for file in ["queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm"] {
        let _ = std::fs::remove_file(place.path("tweedie-results").join(file));
    }
    let server = Running::start(&place, &[])?;
    assert_eq!(server.ended(&job)?["state"], "done");
    Ok(())
}
