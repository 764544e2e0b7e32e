//! `tweedie eval fid`.

use super::samples::{Part, SampleArguments, Work};
use crate::cli::print;
use anyhow::bail;
use clap::{ArgGroup, Args};
use std::path::{Path, PathBuf};
use tweedie::files::Existing;
use tweedie::metrics::{FeatureStatistics, FrechetReference, Kept};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("purpose").required(true).multiple(true)))]
pub struct FidArguments {
    #[command(flatten)]
    samples: SampleArguments,

    /// What samples are compared to: a folder of pictures or of IDX files (MNIST), or an .npz file of statistics as pytorch-fid has
    /// them (mu, sigma)
    #[arg(long, value_name = "DIR|FILE.npz", group = "purpose")]
    reference: Option<PathBuf>,

    /// Which part of the reference, if it has two
    #[arg(long, value_enum, value_name = "PART", default_value = "train")]
    reference_split: Part,

    /// Write mean and covariance of the samples' features into this file, which can be a reference later
    #[arg(long, value_name = "FILE.npz", group = "purpose")]
    write_statistics: Option<PathBuf>,

    /// Also say what FID would be of infinitely many samples
    #[arg(long)]
    infinity: bool,

    /// Replace an existing file
    #[arg(long)]
    force: bool,
}

impl FidArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        if let Some(path) = self.write_statistics.as_ref().filter(|path| path.exists() && !self.force) {
            bail!("{} exists; choose another --write-statistics, or --force to replace it", path.display());
        }
        let mut work = self.samples.start()?;
        let reference = self.reference.as_deref().map(|path| self.statistics(path, &mut work)).transpose()?;
        let needed = reference.is_some() && (work.bootstrap.resamples > 0 || self.infinity);
        let features = if needed { work.kept_features().features } else { 0 };
        let samples = work.samples(Kept { moments: true, features, ..work.kept_features() })?;
        let statistics = samples.statistics()?;
        if let Some(path) = &self.write_statistics {
            let existing = if self.force { Existing::GivesWay } else { Existing::Stays };
            if !statistics.write(path, existing)? {
                bail!("{} is there by now; choose another --write-statistics", path.display());
            }
            work.field("statistics", path.to_string_lossy());
        }
        if let Some(reference) = reference {
            warn_of_few("samples", &statistics);
            warn_of_few("reference pictures", &reference);
            let reference = FrechetReference::new(&reference);
            let distance = reference.distance(&statistics)?;
            work.tell_of_kept("samples", &samples, samples.features());
            let bootstrap = work.bootstrap;
            let interval = match needed && bootstrap.resamples > 0 {
                true => reference.figure(samples.features(), &bootstrap)?.interval,
                false => None,
            };
            let value = distance.distance;
            work.figure("fid", "FID", tweedie::metrics::Figure { value, interval });
            work.field("null_directions", distance.null_directions);
            if self.infinity {
                work.figure("fid_infinity", "FID-infinity", reference.infinity(samples.features(), &bootstrap)?);
            }
        }
        work.finish()
    }

    /// Those of the reference, of as many features as the network has.
    fn statistics(&self, path: &Path, work: &mut Work<'_>) -> anyhow::Result<FeatureStatistics> {
        if path.extension().is_some_and(|extension| extension == "npz") {
            let statistics = FeatureStatistics::read(path)?;
            statistics.check_width(work.network.width())?;
            return Ok(statistics);
        }
        let kept = Kept { moments: true, ..Kept::default() };
        Ok(work.folder("reference", path, self.reference_split, kept)?.statistics()?)
    }
}

/// Says so if there are too few pictures for their number of features.
fn warn_of_few(what: &str, statistics: &FeatureStatistics) {
    if let Some(count) = statistics.count().filter(|_| statistics.too_few()) {
        let width = statistics.width();
        print::warning(&format!(
            "{count} {what} are too few for a covariance of {width} features: FID is far too large; take several times as many"
        ));
    }
}
