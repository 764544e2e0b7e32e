//! Digits, judged by the features of the embedded LeNet against MNIST's test digits.

use super::{Figures, Outcome, RowProgress};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tweedie::metrics::{
    Bootstrap, FeatureNetwork, FrechetReference, Kept, KernelDistanceOptions, NEAREST, PictureSet, feature_statistics,
    features_of_folder, inception_score, kernel_distance, manifold_figures,
};
use tweedie::training::data::Split;
use tweedie_pipelines::{
    FeatureChoice, PixelPipeline, PixelRequest, PixelSamples, SampleEvent, features_of_samples, open_features,
};

/// The most pictures whose features are kept, which bounds the memory: 128 of each take 26 MB.
const MOST_KEPT: usize = 50_000;
/// Digits that are drawn at a time.
const BATCH: usize = 50;
/// The first digit's seed.
const SEED: u64 = 1000;
/// Resamples of the intervals that hold figures with 95 %.
const RESAMPLES: usize = 100;
/// Parts of the samples whose inception scores are averaged.
const SPLITS: usize = 10;

/// Judges digits, of every row as many.
#[derive(Debug)]
pub struct Judge {
    network: Box<dyn FeatureNetwork>,
    data: PathBuf,
    reference: PictureSet,
    frechet: FrechetReference,
    samples: usize,
}

impl Judge {
    /// Looks at the test digits in a folder of MNIST, to which `samples` digits of each row will be compared.
    ///
    /// # Errors
    /// If they are not there.
    pub fn open(data: &Path, samples: usize) -> Outcome<Self> {
        let network = open_features(&FeatureChoice::Lenet, None)?;
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let reference = features_of_folder(network.as_ref(), data, Split::Test, kept(MOST_KEPT), go_on)?;
        let frechet = FrechetReference::new(&feature_statistics(reference.features())?);
        Ok(Self { network, data: data.into(), reference, frechet, samples })
    }

    /// The digits of a row.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The work of drawing a row's digits in so many steps.
    pub fn work(&self, steps: usize) -> f64 {
        (self.samples * steps) as f64
    }

    /// The figures of as many of the training digits: what two sets of real digits differ by.
    ///
    /// # Errors
    /// If they are not there.
    pub fn floor(&self) -> Outcome<Figures> {
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let kept = kept(self.samples.min(MOST_KEPT));
        self.figures(&features_of_folder(self.network.as_ref(), &self.data, Split::Train, kept, go_on)?)
    }

    /// Draws a row's digits, ten classes in turn, and judges them.
    ///
    /// # Errors
    /// If the request cannot be carried out.
    pub fn judge(
        &self,
        pipeline: &PixelPipeline,
        request: PixelRequest,
        work: f64,
        progress: &mut RowProgress<'_>,
    ) -> Outcome<Figures> {
        let request = PixelRequest { num_images: Some(self.samples), seed: SEED, batch_size: BATCH, ..request };
        let samples = PixelSamples { pipeline, settings: pipeline.settle(&request)? };
        let kept = kept(self.samples.min(MOST_KEPT));
        let seen = progress.part(work, |watch| {
            Ok(features_of_samples(self.network.as_ref(), &samples, kept, &mut |event| {
                let done = match event {
                    SampleEvent::Warning(text) => {
                        eprintln!("warning: {text}");
                        return Ok(());
                    }
                    SampleEvent::Working { done } => done,
                    SampleEvent::Sample { index, .. } => index + 1,
                };
                // It never breaks: an experiment is stopped by ending it.
                let _ = watch(done, self.samples);
                Ok(())
            })?)
        })?;
        self.figures(&seen)
    }

    /// FID, KID and inception score, and precision and recall, with their intervals.
    fn figures(&self, seen: &PictureSet) -> Outcome<Figures> {
        let bootstrap = Bootstrap { resamples: RESAMPLES, seed: SEED };
        let (features, reference) = (seen.features(), self.reference.features());
        let kernel = kernel_distance(features, reference, &KernelDistanceOptions::default(), &bootstrap)?;
        let splits = SPLITS.min(seen.logits().len());
        let manifolds = manifold_figures(features, reference, NEAREST, &bootstrap)?;
        Ok(Figures::default()
            .with("fid", self.frechet.figure(features, &bootstrap)?)
            .with("kid", kernel.distance)
            .with("is", inception_score(seen.logits(), splits, Some(SEED), &bootstrap)?.score)
            .with("precision", manifolds.precision)
            .with("recall", manifolds.recall))
    }
}

fn kept(count: usize) -> Kept {
    Kept { moments: false, features: count, logits: count, seed: SEED }
}
