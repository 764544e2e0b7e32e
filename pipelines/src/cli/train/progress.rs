//! What is shown on stderr while a network is trained.

use crate::cli::log_lines::{self, LogLines};
use crate::cli::pace::Pace;
use crate::cli::print;
use indicatif::ProgressBar;
use tweedie::training::runs::TrainEvent;

/// The share of the newest step in the loss that is shown.
const FRESH: f64 = 0.02;

/// What the bar says of steps.
const STEPS: &str = "[{bar:28}] {pos}/{len} steps, {msg}, {left} left";

/// A bar with loss, images per second and the time that is left; without a terminal, lines of it; nothing but warnings if
/// quiet.
pub struct TrainProgress {
    bar: ProgressBar,
    pace: Pace,
    log: LogLines,
    quiet: bool,
    loss: Option<f64>,
}

impl TrainProgress {
    pub fn new(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let pace = Pace::new();
        bar.set_style(pace.style(STEPS));
        Self { bar, pace, log: LogLines::new(quiet), quiet, loss: None }
    }

    pub fn event(&mut self, event: &TrainEvent<'_>) {
        match event {
            TrainEvent::Warning(text) => self.bar.suspend(|| print::warning(text)),
            TrainEvent::Preparing { what, unit, done, total } => {
                self.bar.set_style(self.pace.style("[{bar:28}] {msg}, {pos} of {len}, {left} left"));
                self.bar.set_message(*what);
                self.bar.set_length(*total as u64);
                self.pace.note(*done as u64);
                self.bar.set_position(*done as u64);
                if self.log.due() {
                    print::remark(&log_lines::line(&self.bar, &self.pace, unit, what));
                }
            }
            TrainEvent::Start { steps, parameters, done } => {
                self.bar.set_style(self.pace.style(STEPS));
                self.line(&format!("{parameters} parameters, step {done} of {steps}"));
                self.bar.set_length(*steps);
                self.bar.set_position(*done);
                self.pace.begin(*done);
            }
            TrainEvent::Step { report, images } => {
                let loss = self.loss.map_or(report.loss(), |loss| loss + FRESH * (report.loss() - loss));
                self.loss = Some(loss);
                self.pace.note(report.step);
                let speed = self.pace.seconds().map_or(0.0, |seconds| *images as f64 / seconds);
                let how = format!("loss {loss:.4}, {speed:.0} images/s");
                self.bar.set_message(how.clone());
                self.bar.set_position(report.step);
                if self.log.due() {
                    print::remark(&log_lines::line(&self.bar, &self.pace, "steps", &how));
                }
            }
            TrainEvent::Checkpoint(path) | TrainEvent::Samples(path) => self.line(&path.display().to_string()),
            TrainEvent::Evaluating => self.bar.set_message("evaluating"),
            _ => {}
        }
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| print::remark(text));
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
