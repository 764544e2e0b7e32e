//! `tweedie eval prdc`.

use super::samples::{ReferenceArguments, SampleArguments};
use clap::Args;
use tweedie::metrics::{NEAREST, manifold_figures};

#[derive(Debug, Args)]
pub struct PrdcArguments {
    #[command(flatten)]
    samples: SampleArguments,

    #[command(flatten)]
    reference: ReferenceArguments,

    /// The ball of a picture reaches to its neighbour of this number
    #[arg(long, value_name = "K", default_value_t = NEAREST)]
    nearest: usize,
}

impl PrdcArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut work = self.samples.start()?;
        let [samples, reference] = work.compared(&self.reference)?;
        let found = manifold_figures(samples.features(), reference.features(), self.nearest, &work.bootstrap)?;
        work.figure("precision", "precision", found.precision);
        work.figure("recall", "recall", found.recall);
        work.figure("density", "density", found.density);
        work.figure("coverage", "coverage", found.coverage);
        work.finish()
    }
}
