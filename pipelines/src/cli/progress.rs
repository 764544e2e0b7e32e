//! What is shown on stderr while something runs.

use super::log_lines::{self, LogLines};
use super::print;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A bar of denoising steps and lines of text; without a terminal, lines alone; nothing but warnings if quiet.
pub struct Progress {
    bar: ProgressBar,
    log: LogLines,
    quiet: bool,
}

impl Progress {
    /// A bar, not shown before the first step.
    pub fn new(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let template = "{msg:<9} [{bar:32}] {pos}/{len} steps, {speed}, {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> ").with_key("speed", speed));
        Self { bar, log: LogLines::new(quiet), quiet }
    }

    /// The bar's label from now on.
    pub fn stage(&self, name: &'static str) {
        self.bar.set_message(name);
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// So many steps are done, of so many.
    pub fn steps(&self, done: usize, of: usize) {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        if self.log.due() {
            let mut how = String::new();
            write_speed(self.bar.per_sec(), &mut how);
            print::remark(&format!("{}: {}", self.bar.message(), log_lines::line(&self.bar, "steps", &how)));
        }
    }

    /// A line of text.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| print::remark(text));
        }
    }

    /// A warning, shown even if quiet.
    pub fn warning(&self, text: &str) {
        self.bar.suspend(|| print::warning(text));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Steps per second, or seconds per step where that is more than one.
fn speed(state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write) {
    write_speed(state.per_sec(), out);
}

fn write_speed(per_second: f64, out: &mut dyn std::fmt::Write) {
    // Writing to the bar's buffer does not fail.
    let _ = if per_second >= 1.0 || per_second <= 0.0 {
        write!(out, "{per_second:.1} steps/s")
    } else {
        write!(out, "{:.1} s/step", 1.0 / per_second)
    };
}
