//! Progress where nobody sees a bar move: in a log, a line every so often.

use super::pace::Pace;
use indicatif::ProgressBar;
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How far the lines are apart.
const APART: Duration = Duration::from_secs(10);

/// Says when a line is due.
#[derive(Debug)]
pub struct LogLines {
    wanted: bool,
    last: Cell<Instant>,
}

impl LogLines {
    /// Lines if stderr is no terminal, unless `quiet`. The first one comes after a while: short work needs none.
    pub fn new(quiet: bool) -> Self {
        Self { wanted: !quiet && !std::io::stderr().is_terminal(), last: Cell::new(Instant::now()) }
    }

    /// Whether a line is due; the next one is in a while.
    pub fn due(&self) -> bool {
        let due = self.wanted && self.last.get().elapsed() >= APART;
        if due {
            self.last.set(Instant::now());
        }
        due
    }
}

/// What a bar shows, as a line: `of` is what it counts, and `how` its speed or what else there is to say.
pub fn line(bar: &ProgressBar, pace: &Pace, of: &str, how: &str) -> String {
    let all = bar.length().unwrap_or_default();
    [format!("{} of {all} {of}", bar.position()), how.to_owned(), format!("{} left", pace.left(all))].join(", ")
}
