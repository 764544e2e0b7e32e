//! Runs of training that are killed and resumed.

use super::{TestResult, Tweedie};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Starts a run with these arguments, kills it after a delay, and starts it again, until it ends by itself; gives the number of
/// kills. The delay grows, so that it ends on any machine.
pub fn killed_until_it_ends(tweedie: &Tweedie, arguments: &[&str], mut delay: Duration) -> TestResult<usize> {
    for kills in 0.. {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
        command.args(arguments).current_dir(tweedie.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        std::thread::sleep(delay);
        if child.try_wait()?.is_some_and(|status| status.success()) {
            return Ok(kills);
        }
        child.kill()?;
        child.wait()?;
        delay = delay * 5 / 4;
    }
    unreachable!("the delay grows until the run ends")
}

/// What a run says of each of its steps, but for the time.
pub fn steps(run: &Path) -> TestResult<Vec<String>> {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let lines = metrics.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line)?;
        line["seconds"].take();
        Ok(line.to_string())
    });
    lines.collect()
}
