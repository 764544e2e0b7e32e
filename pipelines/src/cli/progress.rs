//! What is shown on stderr while something runs.

use super::log_lines::{self, LogLines};
use super::pace::Pace;
use super::{flags, print};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::time::Duration;

/// A bar of denoising steps and lines of text; without a terminal, lines alone; nothing if quiet.
pub struct Progress {
    bar: ProgressBar,
    pace: Pace,
    log: LogLines,
    /// What is counted.
    unit: &'static str,
    warnings: RefCell<Vec<String>>,
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
        let pace = Pace::new();
        let template = format!("{{msg:<9}} [{{bar:32}}] {{pos}}/{{len}} {unit}s, {{speed}}, {{left}} left");
        bar.set_style(pace.style_with_speed(&template, unit));
        Self { bar, pace, log: LogLines::new(quiet), unit, warnings: RefCell::default(), quiet }
    }

    /// The bar's label from now on.
    pub fn stage(&self, name: &'static str) {
        self.bar.set_message(name);
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// So many steps are done, of so many.
    pub fn steps(&self, done: usize, of: usize) {
        self.bar.set_length(of as u64);
        self.pace.note(done as u64);
        self.bar.set_position(done as u64);
        if self.log.due() {
            let line = log_lines::line(&self.bar, &self.pace, &format!("{}s", self.unit), &self.pace.rate(self.unit));
            let stage = self.bar.message();
            print::remark(&if stage.is_empty() { line } else { format!("{stage}: {line}") });
        }
    }

    /// A line of text.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            self.aside(|| print::remark(text));
        }
    }

    /// A warning of a run whose pictures say more than it.
    pub fn warning(&self, text: &str) {
        if !self.quiet {
            self.aside(|| print::warning(text));
        }
        self.warnings.borrow_mut().push(flags::in_text(text));
    }

    /// The warnings so far, whether they were shown or not.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().clone()
    }

    /// Says something above the bar, even if quiet. The bar is not shown before the first step.
    pub fn aside(&self, say: impl FnOnce()) {
        if self.bar.length() == Some(0) { say() } else { self.bar.suspend(say) }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Does what takes a while, of which nothing can be counted: in a terminal it shows what that is and for how long it has gone on.
pub fn waiting<T>(what: &'static str, quiet: bool, work: impl FnOnce() -> T) -> T {
    let spinner = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}");
    spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    spinner.set_message(what);
    spinner.enable_steady_tick(Duration::from_millis(200));
    let done = work();
    spinner.finish_and_clear();
    done
}
