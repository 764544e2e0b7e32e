//! `tweedie train`.

mod pixel;
mod progress;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// A diffusion model of handwritten digits, in pixel space.
    Mnist(Box<pixel::PixelArguments>),
}

impl TrainCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Mnist(arguments) => arguments.run(pixel::mnist),
        }
    }
}
