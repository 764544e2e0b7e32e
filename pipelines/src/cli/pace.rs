//! How fast something goes, and for how long it will.

use indicatif::{HumanDuration, ProgressState, ProgressStyle};
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pace of what is counted, over the last minute or more, so that a machine that slept or did other work is soon forgotten. The estimates
/// of bars forget what is half a minute old, which a single step of a large model may take.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Mutex<Counted>>);

/// What is older counts no more, but for so many.
const RECENT: Duration = Duration::from_secs(60);
const FEW: usize = 8;
/// What is noted within such a time is noted as one.
const BLINK: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Counted {
    /// When it began, and what was done then.
    began: (Instant, u64),
    /// What was done since, and when, the newest last.
    noted: VecDeque<(Instant, u64)>,
}

impl Counted {
    fn from(now: Instant, done: u64) -> Self {
        Self { began: (now, done), noted: VecDeque::new() }
    }

    fn note(&mut self, now: Instant, done: u64) {
        let (_, last) = *self.noted.back().unwrap_or(&self.began);
        if done < last {
            *self = Self::from(now, done);
        }
        if done <= last {
            return;
        }
        let count = self.noted.len();
        if count >= 2 && now.duration_since(self.noted[count - 2].0) < BLINK {
            self.noted.pop_back();
        }
        self.noted.push_back((now, done));
        while self.noted.len() > FEW && now.duration_since(self.noted[0].0) > RECENT {
            self.noted.pop_front();
        }
    }

    /// Seconds that one takes: what came before the first, such as loading, counts only until there is a second.
    fn seconds(&self) -> Option<f64> {
        let (first, last) = (self.noted.front()?, self.noted.back()?);
        let from = if last.1 > first.1 { first } else { &self.began };
        Some((last.0 - from.0).as_secs_f64() / (last.1 - from.1) as f64)
    }

    fn left(&self, now: Instant, of: u64) -> Option<Duration> {
        let (last, seconds) = (self.noted.back()?, self.seconds()?);
        let left = seconds * of.saturating_sub(last.1) as f64 - now.saturating_duration_since(last.0).as_secs_f64();
        Some(Duration::try_from_secs_f64(left.max(0.0)).unwrap_or(Duration::MAX))
    }
}

impl Pace {
    /// Nothing is done yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Counted::from(Instant::now(), 0))))
    }

    /// Counting begins now, after so many.
    pub fn begin(&self, done: u64) {
        self.with(|counted| *counted = Counted::from(Instant::now(), done));
    }

    /// So many are done; where they are fewer than before, counting begins anew.
    pub fn note(&self, done: u64) {
        self.with(|counted| counted.note(Instant::now(), done));
    }

    /// Seconds that one takes, once one is done.
    pub fn seconds(&self) -> Option<f64> {
        self.with(|counted| counted.seconds()).filter(|seconds| *seconds > 0.0)
    }

    /// The pace in words, by the word for one.
    pub fn rate(&self, unit: &str) -> String {
        match self.seconds() {
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
        let mut counted = Counted::from(began, 0);
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
        let mut counted = Counted::from(began, 300);
        counted.note(began + Duration::from_secs(8), 301);
        assert_eq!(counted.seconds(), Some(8.0));
        assert_eq!(counted.left(began + Duration::from_secs(8), 400), Some(Duration::from_secs(8 * 99)));
    }

    /// Ten steps a second, then a night's sleep.
    #[test]
    fn a_sleeping_machine_is_forgotten() {
        let began = Instant::now();
        let at = |tenths: u64| began + Duration::from_millis(100 * tenths);
        let mut counted = Counted::from(began, 0);
        let night = 8 * 36_000;
        (1..=600).for_each(|step| counted.note(at(step), step));
        (601..=1300).for_each(|step| counted.note(at(night + step), step));
        assert!((counted.seconds().unwrap_or_default() - 0.1).abs() < 1e-9, "{:?}", counted.seconds());
        assert!(counted.noted.len() < 400, "{}", counted.noted.len());
    }
}
