//! Pictures that steer a run, checked.

use crate::canvas::Canvas;
use crate::requests::control::ControlImage;
use crate::requests::options::Options;
use serde_json::{Map, Value};
use tweedie::images::Picture;
use tweedie::models::Strength;
use tweedie::{Error, Result};

/// A control that has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlSettings {
    /// The picture, at the size of the run's.
    pub picture: Picture,
    /// How much it counts.
    pub strength: Strength,
    /// The shares of the run at which the control starts and ends.
    pub window: (f64, f64),
    /// The options of the request that say so, for the picture's record.
    pub(crate) options: Map<String, Value>,
}

impl ControlSettings {
    /// Checks what is asked for against the models, of which some can guess, and fits pictures to the run's size and canvas.
    pub(crate) fn settle(
        images: &[ControlImage],
        models: &[bool],
        canvas: Option<&Canvas>,
        (width, height): (usize, usize),
    ) -> Result<Vec<Self>> {
        if images.len() != models.len() {
            let fix = format!("the pipeline has {} control models; give each of them one", models.len());
            return Err(Error::invalid("the number of control pictures", images.len(), fix));
        }
        let settle = |(control, &guesses): (&ControlImage, &bool)| {
            let &ControlImage { ref image, scale, start, end, guess } = control;
            if !scale.is_finite() {
                return Err(Error::invalid("the scale of a control", scale, "take a number; 1 is usual, 0 is none"));
            }
            if !(start >= 0.0 && start < end && end <= 1.0) {
                let fix = "take two shares of the run from 0 to 1, the start before the end";
                return Err(Error::invalid("start and end of a control", format!("{start} and {end}"), fix));
            }
            let picture = match canvas {
                Some(canvas) => canvas.aligned(image)?,
                None => image.to_picture().resized(width, height)?,
            };
            let guess = guess && guesses;
            let mut options = control.write();
            if !guess {
                options.shift_remove("guess");
            }
            Ok(Self { picture, strength: Strength { scale, guess }, window: (start, end), options })
        };
        images.iter().zip(models).map(settle).collect()
    }
}
