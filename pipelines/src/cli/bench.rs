//! `tweedie bench`.

use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    /// Stable Diffusion 1.5 with random weights.
    Sd15,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// A model's architecture with seeded random weights, which needs no files
    #[arg(long, value_enum)]
    preset: Option<Preset>,
}

impl Bench {
    pub fn run(&self) -> anyhow::Result<()> {
        anyhow::bail!("{:?}", self.preset)
    }
}
