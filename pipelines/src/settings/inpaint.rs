//! The options of inpainting, checked.

use crate::requests::inpaint::InpaintOptions;
use tweedie::schedulers::Resampling;
use tweedie::{Error, Result};

impl InpaintOptions {
    /// The jumps back in time that are asked for.
    pub(crate) fn resampling(&self) -> Resampling {
        let Resampling { times, jump_length } = Resampling::default();
        Resampling { times: self.resample.unwrap_or(times), jump_length: self.jump_length.unwrap_or(jump_length) }
    }

    /// Checks them and fills in defaults, where they have a meaning.
    pub(crate) fn settle(&self) -> Result<Self> {
        let Resampling { times, jump_length } = self.resampling();
        for (what, count) in [("resample", times), ("the jump length", jump_length)] {
            if !(1..=1000).contains(&count) {
                return Err(Error::invalid(what, count, "take 1 (no repetition) to 1000"));
            }
        }
        if let Some(blend) = self.blend.filter(|&blend| blend > 0 && !self.composite) {
            let fix =
                "old and new are not mixed where the decoder's raw picture is asked for; leave one of the two away";
            return Err(Error::invalid("the width of the blend", blend, fix));
        }
        Ok(Self {
            blend: self.composite.then(|| self.blend.unwrap_or(0)),
            resample: (times > 1).then_some(times),
            jump_length: (times > 1).then_some(jump_length),
            ..self.clone()
        })
    }
}
