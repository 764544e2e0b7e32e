//! The variational bound of a model in pixel space on a set of pictures.

use crate::pixel::{PixelPipeline, PixelRequest};
use tweedie::conditioning::Conditioning;
use tweedie::metrics::{BoundTerms, LikelihoodBound};
use tweedie::models::Watch;
use tweedie::noise::TorchNoise;
use tweedie::schedulers::{Ddpm, VarianceType};
use tweedie::training::data::ImageSet;
use tweedie::{Error, ErrorKind, Result};

/// How the bound is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LikelihoodOptions {
    /// The variance of the reverse step; what the model's scheduler says, if it is not given.
    pub variance: Option<VarianceType>,
    /// At how many timesteps each picture is looked at; with as many as the model has, at each.
    pub evaluations: usize,
    /// How many pictures at a time; changes speed and memory, not the noise that a picture gets.
    pub batch_size: usize,
    /// From which the noise of picture i follows, as seed + i.
    pub seed: u64,
}

/// The terms of the bound on the pictures of a set, in the order of the set. A model of classes is told each picture's class, if the
/// set has as many, and else that there is none.
///
/// # Errors
/// [`Error::Cancelled`] if `watch`, which is told of pictures, breaks; if the model has no such bound, the pictures have another
/// size, or the network fails.
pub fn likelihood_bound(
    pipeline: &PixelPipeline,
    set: &ImageSet,
    options: &LikelihoodOptions,
    watch: &mut Watch<'_>,
) -> Result<BoundTerms> {
    let facts = pipeline.facts();
    let (height, width) = facts.sample_size;
    if (set.channels(), set.height(), set.width()) != (facts.channels, height, width) {
        let value = format!("{}x{}x{}", set.channels(), set.height(), set.width());
        let fix = format!("the model knows {}x{height}x{width}", facts.channels);
        return Err(Error::unusable(ErrorKind::File, "the pictures' size", value, fix));
    }
    if options.batch_size == 0 {
        return Err(Error::invalid("the batch size", 0, "give 1 or more"));
    }
    let settings = pipeline.settle(&PixelRequest::default())?;
    let scheduler = settings.build_scheduler()?;
    let Some(schedule) = scheduler.schedule() else {
        let fix = "a flow has no chain of reverse steps; the bound is that of diffusion models";
        return Err(Error::invalid("the model's scheduler", settings.scheduler.name(), fix));
    };
    let parameterization = scheduler.parameterization().clone().with_learned_variance(settings.learned_variance);
    let variance = match options.variance {
        Some(variance) => variance,
        None => Ddpm::from_config(&settings.scheduler_config)?.variance_type(),
    };
    let network = pipeline.network();
    let mut bound =
        LikelihoodBound::new(network, &parameterization, schedule, variance, options.evaluations, options.seed)?;
    let indices: Vec<usize> = (0..set.len()).collect();
    for batch in indices.chunks(options.batch_size) {
        let conditioning = classes(pipeline, set, batch)?;
        let seeds: Vec<u64> = batch.iter().map(|&i| options.seed.wrapping_add(i as u64)).collect();
        let x0 = set.images(batch)?.to_device(pipeline.device())?;
        bound.add(&x0, &conditioning, &mut TorchNoise::per_image(&seeds))?;
        if watch(batch[batch.len() - 1] + 1, set.len()).is_break() {
            return Err(Error::Cancelled);
        }
    }
    bound.finish()
}

/// What the network is told of the pictures of a batch.
fn classes(pipeline: &PixelPipeline, set: &ImageSet, batch: &[usize]) -> Result<Conditioning> {
    let facts = pipeline.facts();
    if facts.classes == 0 {
        return Ok(Conditioning::default());
    }
    let known = set.labels().filter(|_| set.classes().len() <= facts.classes);
    let labels: Vec<u32> = match (known, facts.null_class) {
        (Some(labels), _) => batch.iter().map(|&i| labels[i]).collect(),
        (None, Some(null)) => vec![null as u32; batch.len()],
        (None, None) => {
            let fix =
                format!("the model knows {} and none for pictures without; label them by sub-folders", facts.classes);
            return Err(Error::invalid("the number of classes of the pictures", set.classes().len(), fix));
        }
    };
    Conditioning::classes(&labels, pipeline.device())
}
