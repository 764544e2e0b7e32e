//! Sizes of pictures that a model makes.

use tweedie::{Error, Result};

/// The largest side of a picture in pixels.
pub(crate) const LARGEST_SIDE: usize = 16_384;

/// The size of pictures that a model is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NativeSize {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// What sides must be multiples of: the autoencoder's factor.
    pub factor: usize,
}

pub(crate) fn check_side(what: &str, side: usize, factor: usize) -> Result<()> {
    if side > 0 && side.is_multiple_of(factor) && side <= LARGEST_SIDE {
        return Ok(());
    }
    let below = side.min(LARGEST_SIDE) / factor * factor;
    let nearest = match (below, below + factor) {
        _ if side > LARGEST_SIDE => format!("{below} is the largest"),
        (0, above) => format!("the nearest is {above}"),
        (below, above) if above > LARGEST_SIDE => format!("the nearest is {below}"),
        (below, above) if side - below < above - side => format!("the nearest is {below}, then {above}"),
        (below, above) => format!("the nearest is {above}, then {below}"),
    };
    Err(Error::invalid(format!("the {what}"), side, format!("this model makes multiples of {factor}; {nearest}")))
}
