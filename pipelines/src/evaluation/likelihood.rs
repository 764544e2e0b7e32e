//! How likely pictures are by a model in pixel space: its variational bound, and its ODE.

use crate::pixel::{PixelPipeline, PixelRequest, PixelSettings};
use tweedie::conditioning::Conditioning;
use tweedie::denoising::Denoiser;
use tweedie::metrics::{BoundTerms, LikelihoodBound, MeanOfPictures};
use tweedie::models::Watch;
use tweedie::noise::TorchNoise;
use tweedie::schedulers::{Ddpm, NoiseSchedule, Scheduler, VarianceType};
use tweedie::score_based::{
    DenoiserScore, DormandPrince, EIGHT_BIT_OFFSET, ProbabilityFlow, Probes, VpSde, uniformly_dequantized,
};
use tweedie::training::data::ImageSet;
use tweedie::{Error, ErrorKind, Result, Tensor};

/// How likelihoods are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LikelihoodOptions {
    /// The variance of the bound's reverse step; what the model's scheduler says, if it is not given.
    pub variance: Option<VarianceType>,
    /// At how many timesteps the bound looks at each picture; with as many as the model has, at each.
    pub evaluations: usize,
    /// How many pictures at a time; changes speed and memory, not the noise that a picture gets. The ODE's steps are a batch's, within
    /// its tolerance of 1e-5.
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
    let (settings, scheduler) = prepared(pipeline, set, options)?;
    let schedule = schedule_of(&settings, scheduler.as_ref())?;
    let parameterization = scheduler.parameterization().clone().with_learned_variance(settings.learned_variance);
    let variance = match options.variance {
        Some(variance) => variance,
        None => Ddpm::from_config(&settings.scheduler_config)?.variance_type(),
    };
    let network = pipeline.network();
    let mut bound =
        LikelihoodBound::new(network, &parameterization, schedule, variance, options.evaluations, options.seed)?;
    in_batches(pipeline, set, options, watch, |x0, conditioning, noise| bound.add(x0, conditioning, noise))?;
    bound.finish()
}

/// What the probability-flow ODE says of some pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OdeLikelihood {
    /// The bits per dimension of the eight-bit values, from above (Theis et al. 2016).
    pub bits_per_dim: MeanOfPictures,
    /// Evaluations of the network, a batch each time, of the batch that took most.
    pub evaluations: usize,
}

/// The likelihood by the ODE that has the model's densities (Song et al. 2021, section 4.3): of each picture with uniform noise between
/// its values, by one vector of Hutchinson's, from the first timestep to the last in the time of a variance-preserving SDE. Models of
/// classes are told them as by [`likelihood_bound`].
///
/// # Errors
/// As [`likelihood_bound`]; or if the network cannot be differentiated.
pub fn ode_likelihood(
    pipeline: &PixelPipeline,
    set: &ImageSet,
    options: &LikelihoodOptions,
    watch: &mut Watch<'_>,
) -> Result<OdeLikelihood> {
    let (settings, scheduler) = prepared(pipeline, set, options)?;
    let schedule = schedule_of(&settings, scheduler.as_ref())?;
    let parameterization = scheduler.parameterization().clone().with_learned_variance(settings.learned_variance);
    let sde = sde_of(schedule)?;
    let (mut bits, mut evaluations) = (Vec::with_capacity(set.len()), 0);
    in_batches(pipeline, set, options, watch, |x0, conditioning, noise| {
        let denoiser = Denoiser::new(pipeline.network(), conditioning, &parameterization);
        let score = DenoiserScore::new(&denoiser, schedule, sde)?;
        let flow = ProbabilityFlow::new(sde, &score, score.times().0, DormandPrince::default())?;
        let values = x0.affine(MIDDLE, MIDDLE)?.round()?;
        let x = uniformly_dequantized(&values, noise)?;
        let found = flow.log_likelihood(&x, Probes::Rademacher(1), noise)?;
        bits.extend(found.bits_per_dim(EIGHT_BIT_OFFSET));
        evaluations = evaluations.max(found.evaluations);
        Ok(())
    })?;
    Ok(OdeLikelihood { bits_per_dim: MeanOfPictures::of(&bits)?, evaluations })
}

/// Between the least and the largest of the values of eight bits, which -1 and 1 stand for.
const MIDDLE: f64 = 127.5;

/// Whether a model has what [`ode_likelihood`] needs.
///
/// # Errors
/// If it is a flow, or its noise never ends or begins as that of a variance-preserving SDE.
pub fn has_ode_likelihood(pipeline: &PixelPipeline) -> Result<()> {
    let settings = pipeline.settle(&PixelRequest::default())?;
    sde_of(schedule_of(&settings, settings.build_scheduler()?.as_ref())?).map(drop)
}

fn sde_of(schedule: &NoiseSchedule) -> Result<VpSde> {
    VpSde::through(schedule).map_err(|error| {
        let fix = "it has the variational bound alone; leave the ODE away";
        Error::invalid("the model's noise schedule", format!("one without an ODE from data to noise ({error})"), fix)
    })
}

/// What the model's scheduler says, if the pictures are of the model's size.
fn prepared(
    pipeline: &PixelPipeline,
    set: &ImageSet,
    options: &LikelihoodOptions,
) -> Result<(PixelSettings, Box<dyn Scheduler>)> {
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
    Ok((settings, scheduler))
}

fn schedule_of<'a>(settings: &PixelSettings, scheduler: &'a dyn Scheduler) -> Result<&'a NoiseSchedule> {
    scheduler.schedule().ok_or_else(|| {
        let fix = "likelihoods are those of diffusion models, and this is a flow";
        Error::invalid("the model's scheduler", settings.scheduler.name(), fix)
    })
}

/// Goes through the pictures, each with what the network is told of it and noise of its own.
fn in_batches(
    pipeline: &PixelPipeline,
    set: &ImageSet,
    options: &LikelihoodOptions,
    watch: &mut Watch<'_>,
    mut judge: impl FnMut(&Tensor, &Conditioning, &mut TorchNoise) -> Result<()>,
) -> Result<()> {
    let indices: Vec<usize> = (0..set.len()).collect();
    for batch in indices.chunks(options.batch_size) {
        let conditioning = classes(pipeline, set, batch)?;
        let seeds: Vec<u64> = batch.iter().map(|&i| options.seed.wrapping_add(i as u64)).collect();
        let x0 = set.images(batch)?.to_device(pipeline.device())?;
        judge(&x0, &conditioning, &mut TorchNoise::per_image(&seeds))?;
        if watch(batch[batch.len() - 1] + 1, set.len()).is_break() {
            return Err(Error::Cancelled);
        }
    }
    Ok(())
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
