//! `tweedie eval kid`.

use super::samples::{ReferenceArguments, SampleArguments};
use crate::cli::print;
use clap::Args;
use tweedie::metrics::{KernelDistanceOptions, kernel_distance};

#[derive(Debug, Args)]
pub struct KidArguments {
    #[command(flatten)]
    samples: SampleArguments,

    #[command(flatten)]
    reference: ReferenceArguments,

    /// Subsets whose distances are averaged
    #[arg(long, value_name = "N", default_value_t = 100)]
    subsets: usize,

    /// Pictures of each subset
    #[arg(long, value_name = "N", default_value_t = 1000)]
    subset_size: usize,
}

impl KidArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut work = self.samples.start()?;
        let [samples, reference] = work.compared(&self.reference)?;
        let Self { subsets, subset_size, .. } = *self;
        let options = KernelDistanceOptions { subsets, subset_size, seed: work.bootstrap.seed };
        let found = kernel_distance(samples.features(), reference.features(), &options, &work.bootstrap)?;
        if found.subset_size < subset_size {
            let used = found.subset_size;
            print::warning(&format!("there are not {subset_size} pictures on both sides; subsets are of {used}"));
        }
        work.figure("kid", "KID", found.distance);
        work.field("kid_std", found.deviation);
        work.field("subset_size", found.subset_size);
        work.finish()
    }
}
