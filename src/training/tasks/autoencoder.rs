//! Training a variational autoencoder of pictures (Kingma and Welling 2014; Rombach et al. 2022, section 3.1).

use super::pixel_diffusion::wrong_sets;
use super::write_json;
use crate::images::Picture;
use crate::kernels::MatmulPrecision;
use crate::layers::{WeightSource, Weights};
use crate::models::{
    Autoencoder, AutoencoderConfig, AutoencoderKl, DiagonalGaussian, Halves, PatchDiscriminator,
    PatchDiscriminatorConfig,
};
use crate::training::data::{Batch, ImageSet, evenly_spaced, hold_out};
use crate::training::reconstruction::{ReconstructionLoss, halved, psnr, ssim};
use crate::training::runs::write_tensors;
use crate::training::{Draws, FlatWeights, OptimizerOptions, ParameterSet, ParameterSource, Stream, TrainingTask};
use crate::{DType, Device, Error, Result, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Pictures of a grid of reconstructions.
const SHOWN: usize = 10;
/// Pictures that are encoded or judged at a time.
const BATCH: usize = 8;
/// Pictures from which the latents' spread is measured.
const MEASURED: usize = 512;
/// Pictures that are judged in the end.
const JUDGED: usize = 1024;

/// What an [`AutoencoderTraining`] trains, and what for.
#[derive(Debug, Clone)]
pub struct AutoencoderTrainingConfig {
    /// The network.
    pub network: AutoencoderConfig,
    /// How reconstructions are compared with their pictures.
    pub reconstruction: ReconstructionLoss,
    /// The weight of the Kullback-Leibler divergence of a latent value from the standard normal, a mean over values.
    pub kl: f64,
    /// The weight of the reconstruction of halved pictures from halved latents, which keeps latents smooth (Kouzelis et al.
    /// 2025; Skorokhodov et al. 2025, "scale equivariance"); 0 leaves it away.
    pub equivariance: f64,
    /// Whether it is also trained against a discriminator.
    pub adversarial: Option<Adversarial>,
    /// How products are taken in training.
    pub products: MatmulPrecision,
    /// The number format of the finished model.
    pub dtype: DType,
}

/// Training against a discriminator (Esser et al. 2021, section 3.1), with a weight that stays as it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adversarial {
    /// Steps before the discriminator takes part: until then there is nothing worth telling apart.
    pub start: u64,
    /// The weight of the discriminator's opinion beside the other terms.
    pub weight: f64,
    /// The discriminator.
    pub network: PatchDiscriminatorConfig,
}

/// The numbers of the losses.
const AUTOENCODER: usize = 0;
const DISCRIMINATOR: usize = 1;

/// How well pictures come back, means over pictures of 8-bit colours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// Pictures that were judged.
    pub pictures: usize,
    /// Whether the network had not been trained on them.
    pub held_out: bool,
    /// Peak signal-to-noise ratio in decibels.
    pub psnr: f64,
    /// Structural similarity, at most 1; none of pictures that are too small for it.
    pub ssim: Option<f64>,
}

/// Training of an [`AutoencoderKl`] by
///
/// ```text
/// L = R(D(z), x) + kl KL(q(z|x) || N(0, I)) + equivariance R(D(z_half), x_half),   z ~ q(z|x) = E(x)
/// ```
///
/// and, where a discriminator `C` takes part, `- weight C(D(z))`, while `C` follows the hinge loss
/// `max(0, 1 - C(x)) + max(0, 1 + C(D(z)))` in turn;
/// with the distance `R` of [`ReconstructionLoss`] and `_half` the mean of each two by two values. The finished model's latents
/// have mean 0 and deviation 1 in each channel: what they were is folded into the convolutions around them.
#[derive(Debug)]
pub struct AutoencoderTraining {
    config: AutoencoderTrainingConfig,
    network: AutoencoderKl,
    discriminator: Option<PatchDiscriminator>,
    train: Arc<ImageSet>,
    judged: Judged,
    record: Map<String, Value>,
}

/// The pictures that an autoencoder is judged by and shown on.
#[derive(Debug)]
struct Judged {
    set: Arc<ImageSet>,
    places: Vec<usize>,
    held_out: bool,
}

impl Judged {
    fn all(set: Arc<ImageSet>, held_out: bool) -> Self {
        Self { places: (0..set.len()).collect(), set, held_out }
    }

    /// The places in the set of at most so many, spread over them.
    fn spread(&self, most: usize) -> Vec<usize> {
        evenly_spaced(self.places.len(), most).into_iter().map(|i| self.places[i]).collect()
    }
}

impl AutoencoderTraining {
    /// The task and its sets of parameters, the autoencoder's and the discriminator's if there is one, on the CPU: with initial values drawn from `seed`, the last convolution of each
    /// residual block at zero, or those of `start`.
    ///
    /// # Errors
    /// If the network cannot be built, or an option has an unusable value.
    pub fn new(
        config: AutoencoderTrainingConfig,
        train: Arc<ImageSet>,
        start: Option<&dyn WeightSource>,
        seed: u64,
        optimizer: OptimizerOptions,
    ) -> Result<(Self, Vec<ParameterSet>)> {
        config.reconstruction.check()?;
        let adversarial = config.adversarial.map_or(0.0, |adversarial| adversarial.weight);
        for (name, value) in
            [("kl", config.kl), ("equivariance", config.equivariance), ("discriminator_weight", adversarial)]
        {
            if value < 0.0 || !value.is_finite() {
                return Err(Error::invalid(format!("`{name}`"), value, "it must be 0 or above"));
            }
        }
        let source = ParameterSource::new(start, seed).with_zeros(|name| name.contains(".conv2."));
        let weights = Weights::new(&source).with_products(config.products);
        let network = AutoencoderKl::new(&weights, config.network.clone(), Halves::Both, DType::F32)?;
        let mut sets = vec![ParameterSet::new("vae", source.finish()?, optimizer)?];
        let discriminator = match config.adversarial {
            None => None,
            Some(adversarial) => {
                let source = ParameterSource::random(seed, &Device::Cpu);
                let weights = Weights::new(&source).with_products(config.products);
                let network = PatchDiscriminator::new(&weights, adversarial.network)?;
                let optimizer = OptimizerOptions { ema: None, ..optimizer };
                let set = ParameterSet::new("discriminator", source.finish()?, optimizer)?;
                sets.push(set.for_loss(DISCRIMINATOR));
                Some(network)
            }
        };
        let judged = Judged::all(train.clone(), false);
        Ok((Self { config, network, discriminator, train, judged, record: Map::new() }, sets))
    }

    /// The same, judged and shown on pictures that it is not trained on.
    #[must_use]
    pub fn judged_by(mut self, test: ImageSet) -> Self {
        self.judged = Judged::all(Arc::new(test), true);
        self
    }

    /// The same, judged and shown on the share of its own set that is held out by a seed.
    ///
    /// # Errors
    /// As [`hold_out`].
    pub fn judged_by_held_out(mut self, share: f64, seed: u64) -> Result<Self> {
        let (_, places) = hold_out(self.train.len(), share, seed)?;
        self.judged = Judged { set: self.train.clone(), places, held_out: true };
        Ok(self)
    }

    /// The same with an account of the training, to which the judgement is added in the model's `training.json`.
    #[must_use]
    pub fn with_record(mut self, record: Map<String, Value>) -> Self {
        self.record = record;
        self
    }

    /// The discriminator's loss (Lim and Ye 2017).
    fn hinge(&self, pictures: &Tensor, reconstruction: &Tensor) -> Result<Tensor> {
        let Some(discriminator) = &self.discriminator else {
            return Err(Error::invalid(
                "the number of the loss",
                DISCRIMINATOR,
                "without a discriminator there is one",
            ));
        };
        let of_pictures = (1.0 - discriminator.forward(pictures)?)?.relu()?.mean_all()?;
        Ok((of_pictures + (discriminator.forward(reconstruction)? + 1.0)?.relu()?.mean_all()?)?)
    }

    /// The autoencoder with the moving average of its weights.
    fn average(&self, set: &ParameterSet) -> Result<AutoencoderKl> {
        let weights = FlatWeights::new(set.parameters().layout(), set.average(), &Device::Cpu)?;
        AutoencoderKl::new(&Weights::new(&weights), self.config.network.clone(), Halves::Both, DType::F32)
    }
}

/// The mean over values of `(mean^2 + variance - 1 - log variance) / 2`.
fn divergence(posterior: &DiagonalGaussian) -> Result<Tensor> {
    let terms = ((posterior.mean.sqr()? + posterior.log_variance.exp()?)? - &posterior.log_variance)?;
    Ok(((terms.mean_all()? - 1.0)? * 0.5)?)
}

impl TrainingTask for AutoencoderTraining {
    type Batch = Batch;
    type Evaluation = Fidelity;

    fn losses(&self) -> &'static [&'static str] {
        if self.discriminator.is_some() { &["autoencoder", "discriminator"] } else { &["loss"] }
    }

    fn is_due(&self, loss: usize, step: u64) -> bool {
        loss == AUTOENCODER || self.config.adversarial.is_some_and(|adversarial| step >= adversarial.start)
    }

    fn loss(&mut self, loss: usize, batch: &Batch, draws: Draws) -> Result<Tensor> {
        let (config, pictures) = (&self.config, &batch.images);
        let posterior = self.network.encode(pictures)?;
        let noise = draws.generator(Stream::Latents).normal(posterior.mean.elem_count());
        let latents = posterior.sample(&Tensor::from_vec(noise, posterior.mean.dims(), pictures.device())?)?;
        let reconstruction = self.network.decode(&latents)?;
        if loss == DISCRIMINATOR {
            return self.hinge(pictures, &reconstruction.detach());
        }
        let mut loss = config.reconstruction.mean(&reconstruction, pictures)?;
        if config.kl > 0.0 {
            loss = (loss + (divergence(&posterior)? * config.kl)?)?;
        }
        if config.equivariance > 0.0 {
            let small = self.network.decode(&halved(&latents)?)?;
            loss = (loss + (config.reconstruction.mean(&small, &halved(pictures)?)? * config.equivariance)?)?;
        }
        if let (Some(discriminator), Some(adversarial)) = (&self.discriminator, config.adversarial)
            && draws.step() >= adversarial.start
        {
            loss = (loss - (discriminator.forward(&reconstruction)?.mean_all()? * adversarial.weight)?)?;
        }
        Ok(loss)
    }

    /// Pictures above their reconstructions by the averaged weights.
    fn samples(&self, sets: &[ParameterSet]) -> Result<Vec<(&'static str, Picture)>> {
        let set = first(sets)?;
        let network = self.average(set)?;
        let shown = self.judged.spread(SHOWN);
        let pictures = self.judged.set.images(&shown)?;
        let reconstructions = in_parts(&pictures, |part| network.decode(network.encode(part)?.mode()))?;
        let rows = [Picture::from_tensor(&pictures)?, Picture::from_tensor(&reconstructions)?].concat();
        Ok(vec![("", Picture::grid(&rows, shown.len(), 2)?)])
    }

    fn evaluate(&self, sets: &[ParameterSet]) -> Result<Fidelity> {
        let set = first(sets)?;
        let network = self.average(set)?;
        let judged = self.judged.spread(JUDGED);
        let pictures = judged.len();
        let (mut decibels, mut similarity) = (Vec::with_capacity(pictures), Some(0.0));
        for indices in judged.chunks(BATCH) {
            let x = self.judged.set.images(indices)?;
            let y = eight_bits(&network.decode(network.encode(&x)?.mode())?)?;
            decibels.extend(psnr(&y, &x)?);
            // Of pictures smaller than its window there is none.
            similarity = match (similarity, ssim(&y, &x)) {
                (Some(sum), Ok(map)) => {
                    Some(sum + indices.len() as f64 * f64::from(map.mean_all()?.to_scalar::<f32>()?))
                }
                _ => None,
            };
        }
        Ok(Fidelity {
            pictures,
            held_out: self.judged.held_out,
            psnr: decibels.iter().sum::<f64>() / pictures as f64,
            ssim: similarity.map(|sum| sum / pictures as f64),
        })
    }

    /// The averaged weights in diffusers layout, in the folder `vae`, with latents of mean 0 and deviation 1.
    fn write_model(&self, sets: &[ParameterSet], fidelity: &Fidelity, folder: &Path) -> Result<()> {
        let set = first(sets)?;
        let (mut tensors, mut network) = (set.tensors()?, self.config.network.clone());
        let statistics = LatentStatistics::measure(&self.average(set)?, &self.train)?;
        if network.use_quant_conv && network.use_post_quant_conv {
            statistics.fold(&mut tensors)?;
            network.scaling_factor = 1.0;
        } else {
            network.scaling_factor = 1.0 / statistics.deviation();
        }
        let mut record = self.record.clone();
        record.insert("judged".into(), json!(fidelity.pictures));
        record.insert("held_out".into(), fidelity.held_out.into());
        record.insert("psnr".into(), fidelity.psnr.into());
        record.insert("ssim".into(), fidelity.ssim.into());
        record.insert("latent_means".into(), json!(statistics.means));
        record.insert("latent_deviations".into(), json!(statistics.deviations));
        write_json(folder, "vae/config.json", &Value::Object(network.to_fields()))?;
        write_json(folder, "training.json", &Value::Object(record))?;
        let stored = tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(self.config.dtype)?)));
        write_tensors(&folder.join("vae/diffusion_pytorch_model.safetensors"), stored.collect::<Result<_>>()?)
    }
}

/// The autoencoder's parameters.
fn first(sets: &[ParameterSet]) -> Result<&ParameterSet> {
    sets.first().filter(|set| set.loss() == AUTOENCODER).ok_or_else(|| wrong_sets(sets))
}

/// What `f` makes of a batch, a few pictures at a time.
fn in_parts(pictures: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let count = pictures.dim(0)?;
    let part = |start: usize| f(&pictures.narrow(0, start, BATCH.min(count - start))?);
    Ok(Tensor::cat(&(0..count).step_by(BATCH).map(part).collect::<Result<Vec<_>>>()?, 0)?)
}

/// Values as a file of 8-bit colours has them.
fn eight_bits(pictures: &Tensor) -> Result<Tensor> {
    let levels = ((pictures.clamp(-1f32, 1f32)? + 1.0)? * 127.5)?.round()?;
    Ok(((levels / 127.5)? - 1.0)?)
}

/// Mean and deviation of each channel of the latents.
struct LatentStatistics {
    means: Vec<f64>,
    deviations: Vec<f64>,
}

impl LatentStatistics {
    fn measure(network: &AutoencoderKl, set: &ImageSet) -> Result<Self> {
        let channels = network.config().latent_channels;
        let (mut sums, mut squares, mut count) = (vec![0.0; channels], vec![0.0; channels], 0.0);
        for indices in evenly_spaced(set.len(), MEASURED).chunks(BATCH) {
            let latents = network.encode(&set.images(indices)?)?.mean.transpose(0, 1)?.flatten_from(1)?;
            count += latents.dim(1)? as f64;
            for (channel, values) in latents.to_dtype(DType::F64)?.to_vec2::<f64>()?.into_iter().enumerate() {
                sums[channel] += values.iter().sum::<f64>();
                squares[channel] += values.iter().map(|value| value * value).sum::<f64>();
            }
        }
        let means: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
        let deviation = |(square, mean): (&f64, &f64)| (square / count - mean * mean).max(1e-12).sqrt();
        Ok(Self { deviations: squares.iter().zip(&means).map(deviation).collect(), means })
    }

    /// The deviation of all channels together, from 0 as the diffusion model has it.
    fn deviation(&self) -> f64 {
        let squares =
            self.means.iter().zip(&self.deviations).map(|(mean, deviation)| mean * mean + deviation * deviation);
        (squares.sum::<f64>() / self.means.len() as f64).sqrt()
    }

    /// Makes an autoencoder's latents `(z - mean) / deviation`: in the last convolution of the encoder, and backwards in the first
    /// of the decoder.
    fn fold(&self, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
        let channels = self.means.len();
        let ratios: Vec<f64> =
            self.means.iter().zip(&self.deviations).map(|(mean, deviation)| mean / deviation).collect();
        let values = |values: Vec<f64>, shape: &[usize]| Ok::<_, Error>(Tensor::from_vec(values, shape, &Device::Cpu)?);
        let mut change = |name: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            let missing = || Error::invalid(format!("the parameter {name}"), "missing", "the autoencoder must have it");
            let tensor = tensors.get_mut(name).ok_or_else(missing)?;
            *tensor = f(&tensor.to_dtype(DType::F64)?)?.to_dtype(DType::F32)?;
            Ok::<_, Error>(tensor.to_dtype(DType::F64)?)
        };
        // The second half of the moments is the logarithm of the variance, from which 2 ln(deviation) is taken.
        let scales: Vec<f64> =
            self.deviations.iter().map(|deviation| 1.0 / deviation).chain(vec![1.0; channels]).collect();
        let shifts = ratios.iter().map(|ratio| -ratio).chain(self.deviations.iter().map(|d| -2.0 * d.ln())).collect();
        let (scales, shifts) = (values(scales, &[2 * channels])?, values(shifts, &[2 * channels])?);
        let of_rows = scales.reshape((2 * channels, 1, 1, 1))?;
        change("quant_conv.weight", &|weight| Ok(weight.broadcast_mul(&of_rows)?))?;
        change("quant_conv.bias", &|bias| Ok(((bias * &scales)? + &shifts)?))?;
        // W' = W deviation, and W (deviation z + mean) + b = W' z + (W' (mean / deviation) + b).
        let of_columns = values(self.deviations.clone(), &[1, channels, 1, 1])?;
        let weight = change("post_quant_conv.weight", &|weight| Ok(weight.broadcast_mul(&of_columns)?))?;
        let offset = weight.reshape((channels, channels))?.matmul(&values(ratios, &[channels, 1])?)?.squeeze(1)?;
        change("post_quant_conv.bias", &|bias| Ok((bias + &offset)?))?;
        Ok(())
    }
}
