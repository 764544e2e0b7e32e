//! Presets that skip work where a picture changes least.

use crate::requests::values::{OptionValue, read, values_by_serde, write};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tweedie::Result;
use tweedie::denoising::{Position, Reuse, ReuseSchedule};

/// How many times as fast guided denoising is at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fast {
    /// All steps are made; after the first quarter, one in three is whole.
    #[serde(rename = "1.5x")]
    OneAndAHalf,
    /// The same with four in five of the steps.
    #[serde(rename = "2x")]
    Two,
    /// The same with half of the steps.
    #[serde(rename = "3x")]
    Three,
}

/// In the first quarter of a run most of a picture is decided.
const WHOLE: f64 = 0.27;
const EVERY: usize = 3;

impl Fast {
    /// How much of a UNet is computed in other calls, as [`Reuse`] has it: a layer on the way down and two on the way up. With none
    /// on the way down pictures change far more.
    pub(crate) const SHALLOW: usize = 1;

    /// Their names.
    pub const NAMES: &[&str] = &["1.5x", "2x", "3x"];

    /// Which calls of a run are whole.
    ///
    /// # Errors
    /// None: the numbers are in their ranges.
    pub(crate) fn schedule(self) -> Result<ReuseSchedule> {
        ReuseSchedule::new(WHOLE, EVERY, Self::SHALLOW)
    }

    /// How many calls of a run of so many steps, of one evaluation each, are whole, and how many are not.
    pub(crate) fn calls(self, asked: usize) -> Result<(usize, usize)> {
        let (schedule, total) = (self.schedule()?, self.steps(asked));
        let at = |evaluation| schedule.at(Some(Position { evaluation, total }));
        let taken = (0..total).filter(|&evaluation| matches!(at(evaluation), Reuse::Take { .. })).count();
        Ok((total - taken, taken))
    }

    /// How many of so many steps are made; of few all are.
    pub(crate) fn steps(self, asked: usize) -> usize {
        let share = match self {
            Self::OneAndAHalf => 1.0,
            Self::Two => 0.8,
            Self::Three => 0.5,
        };
        let steps = (share * asked as f64).round() as usize;
        if ReuseSchedule::acts_in(steps) { steps } else { asked }
    }
}

values_by_serde! {
    Fast: "1.5x, 2x or 3x";
}

impl std::str::FromStr for Fast {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        read(&name.into()).ok_or_else(|| format!("it is none of {}", Self::NAMES.join(", ")))
    }
}
