//! What is shown on stderr while something runs.

use super::log_lines::{self, LogLines};
use super::print;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::time::Duration;

/// A bar of denoising steps and lines of text; without a terminal, lines alone; nothing but warnings if quiet.
pub struct Progress {
    bar: ProgressBar,
    log: LogLines,
    /// What is counted.
    unit: &'static str,
    quiet: bool,
}

impl Progress {
    /// A bar, not shown before the first step.
    pub fn new(quiet: bool) -> Self {
        Self::counting("step", quiet)
    }

    /// A bar of something else than steps, by the word for one.
    pub fn counting(unit: &'static str, quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let template = format!("{{msg:<9}} [{{bar:32}}] {{pos}}/{{len}} {unit}s, {{speed}}, {{eta}} left");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> ").with_key("speed", speed(unit)));
        Self { bar, log: LogLines::new(quiet), unit, quiet }
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
            let line = log_lines::line(&self.bar, &format!("{}s", self.unit), &rate(self.bar.per_sec(), self.unit));
            print::remark(&format!("{}: {line}", self.bar.message()));
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

/// Units per second, or seconds per unit where that is more than one.
fn speed(unit: &'static str) -> impl Fn(&ProgressState, &mut dyn Write) + Clone + Send + Sync {
    move |state, out| {
        // Writing to the bar's buffer does not fail.
        let _ = out.write_str(&rate(state.per_sec(), unit));
    }
}

fn rate(per_second: f64, unit: &str) -> String {
    match per_second >= 1.0 || per_second <= 0.0 {
        true => format!("{per_second:.1} {unit}s/s"),
        false => format!("{:.1} s/{unit}", 1.0 / per_second),
    }
}
