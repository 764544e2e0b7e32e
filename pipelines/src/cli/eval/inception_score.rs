//! `tweedie eval is`.

use super::samples::{MOST_KEPT, SampleArguments};
use clap::Args;
use tweedie::metrics::{Kept, inception_score};

#[derive(Debug, Args)]
pub struct InceptionScoreArguments {
    #[command(flatten)]
    samples: SampleArguments,

    /// Parts of the samples whose scores are averaged
    #[arg(long, value_name = "N", default_value_t = 10)]
    splits: usize,
}

impl InceptionScoreArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut work = self.samples.start()?;
        let seed = work.bootstrap.seed;
        let samples = work.samples(Kept { logits: MOST_KEPT, seed, ..Kept::default() })?;
        work.tell_of_kept("samples", &samples, samples.logits());
        let found = inception_score(samples.logits(), self.splits, Some(seed), &work.bootstrap)?;
        work.figure("is", "IS", found.score);
        work.field("is_std", found.deviation);
        work.finish()
    }
}
