//! How far an experiment is, on stderr.

use super::Outcome;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tweedie::models::Watch;

/// How far lines are apart on a terminal, which has one at a time, and in a log.
const APART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// How far an experiment is. Work is counted in evaluations of a network for a picture.
#[derive(Debug)]
pub struct Progress {
    total: f64,
    /// Of this process and of those before.
    done: f64,
    /// Of those before.
    kept: f64,
    start: Instant,
    last: Instant,
    terminal: bool,
}

impl Progress {
    /// Of so much work nothing is done yet.
    pub fn new(total: f64) -> Self {
        let (start, terminal) = (Instant::now(), std::io::stderr().is_terminal());
        Self { total, done: 0.0, kept: 0.0, start, last: start, terminal }
    }

    /// So much was done by another process.
    pub fn skip(&mut self, work: f64) {
        self.done += work;
        self.kept += work;
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        eprintln!("{}{text}", if self.terminal { "\r\x1b[K" } else { "" });
    }

    /// Starts on a row that takes so much work.
    pub fn row(&mut self, name: String, work: f64) -> RowProgress<'_> {
        RowProgress { progress: self, name, work, scale: 1.0, done: 0.0 }
    }

    /// Shows how far it is with so much of a row, now and then.
    fn show(&mut self, row: &str, of_row: f64) {
        let apart = if self.terminal { APART.0 } else { APART.1 };
        if self.last.elapsed() < apart {
            return;
        }
        self.last = Instant::now();
        let done = self.done + of_row;
        let speed = (done - self.kept) / self.start.elapsed().as_secs_f64();
        let left = if speed > 0.0 { in_words((self.total - done) / speed) } else { "?".into() };
        let line = format!("{row}: {:.1} % of all, {left} left", 100.0 * done / self.total);
        match self.terminal {
            true => {
                eprint!("\r\x1b[K{line}");
                // It is shown with the next one otherwise.
                let _ = std::io::stderr().flush();
            }
            false => eprintln!("{line}"),
        }
    }
}

/// How far a row is.
#[derive(Debug)]
pub struct RowProgress<'a> {
    progress: &'a mut Progress,
    name: String,
    work: f64,
    scale: f64,
    done: f64,
}

impl RowProgress<'_> {
    /// An evaluation of this row's network is so much more work than that of another.
    pub fn scale(&mut self, factor: f64) {
        self.scale = factor;
    }

    /// Does a part of the row that takes so much work, and tells its watch how far it is.
    ///
    /// # Errors
    /// Whatever the part reports.
    pub fn part<T>(&mut self, work: f64, part: impl FnOnce(&mut Watch<'_>) -> Outcome<T>) -> Outcome<T> {
        let (before, name, work, all) = (self.done, &self.name, self.scale * work, self.work);
        let progress = &mut self.progress;
        let result = part(&mut |done, of| {
            // A training may have been done before, and is then no work.
            progress.show(name, (before + work * done as f64 / of.max(1) as f64).min(all));
            ControlFlow::Continue(())
        })?;
        self.done += work;
        Ok(result)
    }

    /// The row is done.
    pub fn finish(self) {
        self.progress.done += self.work;
    }
}

/// Seconds as people say them.
fn in_words(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}
