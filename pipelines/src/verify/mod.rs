//! Whether a picture is what its settings say: they are read from its PNG file, the weights are found by their SHA-256,
//! and it is made again.

mod compare;
mod faults;
mod find;
mod recipe;

pub use crate::records::provenance::InputRecord;
pub use compare::{Comparison, Verdict};
pub use find::{WeightsCheck, check_weights};
pub use recipe::Recipe;
