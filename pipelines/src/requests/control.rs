//! Pictures that steer a run.

use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{flag, json, option, options};
use tweedie::images::Photo;

options! {
    /// A picture for a control model, in the order in which the models were given to the builder.
    #[derive(Debug, Clone, PartialEq)]
    pub struct ControlImage {
        given {
            /// Edges, depth, a pose, or whatever the model was trained on. It is resized to the picture that is made.
            image: Photo;
        }
        options {
            /// What the control model adds to the network is multiplied by this.
            scale: f64 = 1.0 => json().named("control_scale").always_recorded();
            /// The share of the run at which controls start, 0 to 1; several, in the order of `control`, with commas
            /// between.
            start: f64 = 0.0 =>
                option(OptionKind::Numbers, "F").named("control_start").needs("control").always_recorded()
                    .rarely();
            /// The share of the run at which controls end, 0 to 1; several as for `control_start`.
            end: f64 = 1.0 =>
                option(OptionKind::Numbers, "F").named("control_end").needs("control").always_recorded()
                    .rarely();
            /// Let the pictures of ControlNets lead without help from the prompt, which may be empty; a guidance scale of
            /// 3 to 5 suits that. It has no effect on T2I-Adapters.
            ///
            /// See [`tweedie::models::Strength::guess`].
            guess: bool = false => flag(FlagValue::On).named("control_guess").needs("control").rarely();
        }
    }
}

impl ControlImage {
    /// Control by a picture over the whole run.
    pub fn new(image: Photo) -> Self {
        Self::of(image)
    }
}
