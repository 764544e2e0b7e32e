//! How fast something goes, and for how long it will.

use indicatif::{HumanDuration, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pace of what is counted, from its beginning on. The estimates of bars forget what is half a minute old, which a single step of a
/// large model may take.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Mutex<Counted>>);

#[derive(Debug)]
struct Counted {
    /// When it began, and what was done then.
    began: (Instant, u64),
    /// The first and the newest that was done since.
    noted: Option<[(Instant, u64); 2]>,
}

impl Counted {
    fn note(&mut self, now: Instant, done: u64) {
        let newest = (now, done);
        self.noted = match self.noted {
            Some([first, last]) if done > last.1 => Some([first, newest]),
            Some([first, last]) if done == last.1 => Some([first, last]),
            None if done > self.began.1 => Some([newest; 2]),
            None => None,
            Some(_) => {
                self.began = newest;
                None
            }
        };
    }

    /// Seconds that one takes: what came before the first, such as loading, counts only until there is a second.
    fn seconds(&self) -> Option<f64> {
        let [first, last] = self.noted?;
        let from = if last.1 > first.1 { first } else { self.began };
        Some((last.0 - from.0).as_secs_f64() / (last.1 - from.1) as f64)
    }

    fn left(&self, now: Instant, of: u64) -> Option<Duration> {
        let ([_, last], seconds) = (self.noted?, self.seconds()?);
        let left = seconds * of.saturating_sub(last.1) as f64 - now.saturating_duration_since(last.0).as_secs_f64();
        Some(Duration::try_from_secs_f64(left.max(0.0)).unwrap_or(Duration::MAX))
    }
}

impl Pace {
    /// Nothing is done yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Counted { began: (Instant::now(), 0), noted: None })))
    }

    /// Counting begins now, after so many.
    pub fn begin(&self, done: u64) {
        self.with(|counted| *counted = Counted { began: (Instant::now(), done), noted: None });
    }

    /// So many are done; where they are fewer than before, counting begins anew.
    pub fn note(&self, done: u64) {
        self.with(|counted| counted.note(Instant::now(), done));
    }

    /// The pace in words, by the word for one.
    pub fn rate(&self, unit: &str) -> String {
        match self.with(|counted| counted.seconds()).filter(|seconds| *seconds > 0.0) {
            None => format!("- {unit}s/s"),
            Some(seconds) if seconds <= 1.0 => format!("{:.1} {unit}s/s", 1.0 / seconds),
            Some(seconds) => format!("{seconds:.1} s/{unit}"),
        }
    }

    /// How long it takes until so many are done, in words.
    pub fn left(&self, of: u64) -> String {
        let left = self.with(|counted| counted.left(Instant::now(), of));
        left.map_or_else(|| "-".into(), |left| HumanDuration(left).to_string())
    }

    /// A bar's style, in which `{left}` is what is left of its length.
    pub fn style(&self, template: &str) -> ProgressStyle {
        let pace = self.clone();
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        style.progress_chars("=> ").with_key("left", move |state: &ProgressState, out: &mut dyn Write| {
            // Writing to the bar's buffer does not fail.
            _ = out.write_str(&pace.left(state.len().unwrap_or_default()));
        })
    }

    /// The same, in which `{speed}` is the rate.
    pub fn style_with_speed(&self, template: &str, unit: &'static str) -> ProgressStyle {
        let pace = self.clone();
        self.style(template)
            .with_key("speed", move |_: &ProgressState, out: &mut dyn Write| _ = out.write_str(&pace.rate(unit)))
    }

    fn with<R>(&self, work: impl FnOnce(&mut Counted) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of minutes, after half a minute of loading.
    #[test]
    fn slow_steps_have_a_pace() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut counted = Counted { began: (began, 0), noted: None };
        assert_eq!((counted.seconds(), counted.left(at(5), 4)), (None, None));
        counted.note(at(30), 0);
        counted.note(at(330), 1);
        assert_eq!(counted.seconds(), Some(330.0));
        counted.note(at(630), 2);
        counted.note(at(640), 2);
        assert_eq!(counted.seconds(), Some(300.0));
        assert_eq!(counted.left(at(730), 4), Some(Duration::from_secs(500)));
        // A step that takes longer than those before.
        assert_eq!(counted.left(at(9999), 4), Some(Duration::ZERO));
        // Another picture.
        counted.note(at(1000), 0);
        assert_eq!(counted.seconds(), None);
        counted.note(at(1010), 1);
        assert_eq!(counted.seconds(), Some(10.0));
    }

    /// A run that goes on.
    #[test]
    fn what_was_done_before_does_not_count() {
        let began = Instant::now();
        let mut counted = Counted { began: (began, 300), noted: None };
        counted.note(began + Duration::from_secs(8), 301);
        assert_eq!(counted.seconds(), Some(8.0));
        assert_eq!(counted.left(began + Duration::from_secs(8), 400), Some(Duration::from_secs(8 * 99)));
    }
}
