//! Targets for fuzzing: one for each kind of bytes that others give and this project reads.
//!
//! A target is a plain function of bytes. It fails if it panics, which it does too where a reader takes more memory than
//! its input is worth; an error of a reader is none.

mod parts;
#[path = "../../png_files/mod.rs"]
mod png_files;
#[path = "../../readers/mod.rs"]
mod readers;
mod seeds;
mod targets;
#[path = "../../torch_files/mod.rs"]
mod torch_files;

pub use seeds::write_seeds;
pub use targets::TARGETS;

/// Runs a target.
///
/// # Panics
/// If a reader does not keep what it promises, or there is no such target.
pub fn run(target: &str, bytes: &[u8]) {
    let (_, read) = TARGETS.iter().find(|(name, _)| *name == target).unwrap_or_else(|| panic!("no target {target}"));
    read(bytes).unwrap_or_else(|error| panic!("{target} cannot be tried: {error}"));
}
