//! What calls take over from the calls before.

use super::Position;
use crate::{Error, Result};

/// What a call takes over of the last whole call of its run, since that changes little from one step to the next.
///
/// A network takes the features of its deep layers. `shallow` says how much of a UNet is computed anew: the first convolution, so
/// many layers of the highest resolution on the way down, and one more on the way up. Guidance takes the difference of its two
/// branches, so that the network is asked for one. Networks that keep nothing compute everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reuse {
    /// Everything is computed.
    #[default]
    Nothing,
    /// Everything is computed, and kept for calls to come.
    Keep {
        /// Layers of the highest resolution that those compute anew.
        shallow: usize,
    },
    /// What was kept of these rows is taken; as [`Self::Keep`] where nothing was.
    Take {
        /// Layers of the highest resolution that are computed anew.
        shallow: usize,
    },
}

/// In shorter runs every call is whole: what they keep is too old in the next step.
const SHORTEST: usize = 10;

/// Which calls of a run are whole (DeepCache; Ma et al. 2024, "DeepCache: Accelerating Diffusion Models for Free", section 3.3).
///
/// The first are, in which a picture takes shape and features change fast; then one in so many is. In Ma et al. the interval
/// begins at once, which costs far more of a picture than it saves time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReuseSchedule {
    whole: f64,
    every: usize,
    shallow: usize,
}

impl ReuseSchedule {
    /// The first share `whole` of a run's calls, 0 to 1, is whole, and after it one in `every`. Others compute `shallow` layers of
    /// the highest resolution.
    ///
    /// # Errors
    /// If a number is out of its range, or `every` is 0.
    pub fn new(whole: f64, every: usize, shallow: usize) -> Result<Self> {
        if !(0.0..=1.0).contains(&whole) {
            return Err(Error::invalid("the share of whole calls", whole, "take a number from 0 to 1"));
        }
        if every == 0 {
            return Err(Error::invalid("the interval of whole calls", every, "take 1 for all calls, or more"));
        }
        Ok(Self { whole, every, shallow })
    }

    /// Whether some call of a run of so many is not whole.
    pub fn acts_in(total: usize) -> bool {
        total >= SHORTEST
    }

    /// What a call at that position of a run does; outside of runs, and in short ones, everything is computed.
    pub fn at(&self, position: Option<Position>) -> Reuse {
        let Self { whole, every, shallow } = *self;
        let Some(Position { evaluation, total }) = position.filter(|position| Self::acts_in(position.total)) else {
            return Reuse::Nothing;
        };
        let first = ((whole * total as f64).round() as usize).max(1);
        let is_whole = evaluation < first || (evaluation - first) % every == every - 1;
        if is_whole { Reuse::Keep { shallow } } else { Reuse::Take { shallow } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_calls_are_whole_and_then_one_of_so_many() -> Result<()> {
        let run = |whole, every, total| -> Result<String> {
            let schedule = ReuseSchedule::new(whole, every, 1)?;
            let of = |evaluation| match schedule.at(Some(Position { evaluation, total })) {
                Reuse::Nothing => '.',
                Reuse::Keep { shallow: 1 } => 'k',
                Reuse::Take { shallow: 1 } => 't',
                other => panic!("{other:?}"),
            };
            Ok((0..total).map(of).collect())
        };
        assert_eq!(run(0.25, 3, 12)?, "kkkttkttkttk");
        assert_eq!(run(0.0, 2, 10)?, "ktktktktkt", "there is nothing to take at the start");
        assert_eq!(run(0.5, 1, 10)?, "kkkkkkkkkk");
        assert_eq!(run(0.25, 3, 9)?, ".........");
        assert_eq!(ReuseSchedule::new(0.25, 3, 1)?.at(None), Reuse::Nothing);
        assert!(ReuseSchedule::new(0.0, 0, 0).is_err() && ReuseSchedule::new(1.1, 1, 0).is_err());
        Ok(())
    }
}
