//! What training minimises: the forward process, the target, and the weight of each timestep.

use super::variational_bound::{ReverseVariance, VariationalBound};
use crate::denoising::PredictionType;
use crate::schedulers::{FlowEuler, NoiseSchedule};
use crate::{Error, NoiseLevel, Result};
use candle_core::{DType, Tensor};

/// How clean samples become noisy ones.
#[derive(Debug, Clone, PartialEq)]
pub enum ForwardProcess {
    /// `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) epsilon` (Ho et al. 2020, equation 4).
    Diffusion(NoiseSchedule),
    /// Rectified flow, `x_t = (1 - t) x_0 + t epsilon` (Liu et al. 2023, equation 1), with `t` one of so many evenly
    /// spaced times up to 1.
    Flow {
        /// The number of times.
        num_train_timesteps: usize,
    },
}

impl ForwardProcess {
    /// The number of training timesteps.
    pub fn num_train_timesteps(&self) -> usize {
        match self {
            Self::Diffusion(schedule) => schedule.num_train_timesteps(),
            Self::Flow { num_train_timesteps } => *num_train_timesteps,
        }
    }

    /// The level of a timestep, counted from 0, the least noisy.
    ///
    /// # Errors
    /// If there is no such timestep.
    pub fn level(&self, timestep: usize) -> Result<NoiseLevel> {
        match self {
            Self::Diffusion(schedule) => schedule.level(timestep),
            Self::Flow { num_train_timesteps } if timestep < *num_train_timesteps => {
                Ok(FlowEuler::level((timestep + 1) as f64 / *num_train_timesteps as f64, *num_train_timesteps))
            }
            Self::Flow { num_train_timesteps } => Err(Error::invalid(
                "a timestep",
                timestep,
                format!("training has timesteps 0 to {}", num_train_timesteps.saturating_sub(1)),
            )),
        }
    }

    /// The levels of timesteps, counted from 0.
    ///
    /// # Errors
    /// If there is no such timestep.
    pub fn levels(&self, timesteps: &[usize]) -> Result<Vec<NoiseLevel>> {
        timesteps.iter().map(|&timestep| self.level(timestep)).collect()
    }

    /// `x_t = alpha_t x_0 + sigma_t epsilon`, each image at a level of its own.
    ///
    /// # Shapes
    /// `x0`, `noise`: `[batch, channels, height, width]`; `levels`: one for each image.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn states(&self, x0: &Tensor, noise: &Tensor, levels: &[NoiseLevel]) -> Result<Tensor> {
        mix(x0, noise, levels.iter().map(|level| (level.alpha, level.sigma)))
    }
}

/// How much each timestep counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossWeighting {
    /// All the same: L_simple (Ho et al. 2020, equation 14).
    Uniform,
    /// The error of `x0` weighted by `min(SNR, gamma)` (Hang et al. 2023, section 3.4), whatever the network
    /// predicts.
    MinSnr {
        /// The largest weight, 5 in the paper.
        gamma: f64,
    },
}

impl LossWeighting {
    /// The weight of the squared error of the network's output at a level.
    ///
    /// An error `e` of the output is an error `k e` of `x0`, so `min(SNR, gamma)` on the error of `x0` is
    /// `k^2 min(SNR, gamma)` here: for epsilon `min(SNR, gamma) / SNR`, for v `min(SNR, gamma) / (SNR + 1)`.
    pub fn weight(self, prediction_type: PredictionType, level: &NoiseLevel) -> f64 {
        match self {
            Self::Uniform => 1.0,
            // Without signal an epsilon says nothing of x0, and the quotient's limit is 1.
            Self::MinSnr { .. } if level.alpha == 0.0 && prediction_type == PredictionType::Epsilon => 1.0,
            Self::MinSnr { gamma } => {
                let snr = (level.alpha / level.sigma).powi(2);
                prediction_type.x0_factors(level).1.powi(2) * snr.min(gamma)
            }
        }
    }
}

/// What a network is trained for.
#[derive(Debug, Clone)]
pub struct Objective {
    process: ForwardProcess,
    prediction_type: PredictionType,
    weighting: LossWeighting,
    bound: Option<VariationalBound>,
    /// Whether the bound is all there is, and teaches the mean too.
    bound_alone: bool,
}

/// A batch with noise: what the network is shown and what it should answer.
#[derive(Debug, Clone)]
pub struct NoisyBatch {
    /// The states, `[batch, channels, height, width]`.
    pub x_t: Tensor,
    /// Their noise levels, one for each state.
    pub levels: Vec<NoiseLevel>,
    target: Tensor,
    x0: Tensor,
    indices: Vec<usize>,
}

impl Objective {
    /// # Errors
    /// If flow is to predict something else than the velocity, or diffusion the velocity.
    pub fn new(process: ForwardProcess, prediction_type: PredictionType, weighting: LossWeighting) -> Result<Self> {
        let flows = matches!(process, ForwardProcess::Flow { .. });
        if flows != (prediction_type == PredictionType::Flow) {
            let fix = "rectified flow predicts its velocity, and nothing else does";
            return Err(Error::invalid("the prediction type", format!("{prediction_type:?}"), fix));
        }
        if process.num_train_timesteps() == 0 {
            return Err(Error::invalid("the number of training timesteps", 0, "take at least 1"));
        }
        if let LossWeighting::MinSnr { gamma } = weighting
            && !(gamma > 0.0 && gamma.is_finite())
        {
            return Err(Error::invalid("gamma of the min-SNR weights", gamma, "it must be above 0; the paper has 5"));
        }
        Ok(Self { process, prediction_type, weighting, bound: None, bound_alone: false })
    }

    /// The same with a second half of the output channels that says the reverse step's variance, learned through
    /// `lambda` times the variational bound: L_hybrid (Nichol and Dhariwal 2021, equation 16).
    ///
    /// # Errors
    /// If the process is flow, which has no variance.
    pub fn with_learned_variance(mut self, lambda: f64) -> Result<Self> {
        let ForwardProcess::Diffusion(schedule) = &self.process else {
            let fix = "rectified flow has no variance to learn; choose another prediction type";
            return Err(Error::invalid("the learned variance", "on", fix));
        };
        self.bound = Some(VariationalBound::new(schedule, lambda));
        Ok(self)
    }

    /// The same with the variational bound alone, in bits per dimension, through which mean and variance are learned: L_vlb
    /// (Nichol and Dhariwal 2021, equation 4). Single timesteps give a noisy estimate of it, less so where they are drawn by
    /// importance (section 3.3).
    ///
    /// # Errors
    /// If the process is flow, which has no such bound, or the weights are not even, which the bound's own are instead.
    pub fn with_variational_bound(self) -> Result<Self> {
        if self.weighting != LossWeighting::Uniform {
            let fix = "the variational bound has weights of its own; take one of both";
            return Err(Error::invalid("the weights of timesteps", format!("{:?}", self.weighting), fix));
        }
        Ok(Self { bound_alone: true, ..self.with_learned_variance(1.0)? })
    }

    /// What the network predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }

    /// The forward process.
    pub fn process(&self) -> &ForwardProcess {
        &self.process
    }

    /// Mixes clean images with noise at their timesteps, counted from 0: line 5 of algorithm 1 (Ho et al. 2020).
    ///
    /// # Shapes
    /// `x0`, `noise`: `[batch, channels, height, width]`; `timesteps`: one for each image.
    ///
    /// # Errors
    /// If the shapes differ, or there is no such timestep.
    pub fn noisy(&self, x0: &Tensor, noise: &Tensor, timesteps: &[usize]) -> Result<NoisyBatch> {
        let levels = self.process.levels(timesteps)?;
        Ok(NoisyBatch {
            x_t: self.process.states(x0, noise, &levels)?,
            target: mix(x0, noise, levels.iter().map(|level| self.prediction_type.target_factors(level)))?,
            x0: x0.clone(),
            indices: timesteps.to_vec(),
            levels,
        })
    }

    /// Each image's loss: the weighted mean squared error of the output, and the bound if the variance is learned; or the bound
    /// alone.
    ///
    /// # Shapes
    /// `output`: as the network gives it for `batch`, `[batch, channels, height, width]`, or twice the channels if
    /// the variance is learned; the result is `[batch]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn losses(&self, output: &Tensor, batch: &NoisyBatch) -> Result<Tensor> {
        let channels = batch.x0.dim(1)?;
        let wanted = if self.bound.is_some() { 2 * channels } else { channels };
        if output.dim(1)? != wanted {
            let fix = format!("images of {channels} channels need {wanted} with this objective");
            return Err(Error::invalid("the number of the network's output channels", output.dim(1)?, fix));
        }
        let raw = output.narrow(1, 0, channels)?;
        let squares = (raw.sub(&batch.target))?.sqr()?;
        let weights = batch.levels.iter().map(|level| self.weighting.weight(self.prediction_type, level));
        let simple = (mean_per_image(&squares)? * per_image(&squares, weights)?.flatten_all()?)?;
        let Some(bound) = &self.bound else { return Ok(simple) };
        // Beside another loss only the variance is learned through the bound (section 3.1): the mean is held.
        let of_mean = if self.bound_alone { raw.clone() } else { raw.detach() };
        let factors: Vec<_> = batch.levels.iter().map(|level| self.prediction_type.x0_factors(level)).collect();
        let of_x = batch.x_t.broadcast_mul(&per_image(&raw, factors.iter().map(|f| f.0))?)?;
        let of_raw = of_mean.broadcast_mul(&per_image(&raw, factors.iter().map(|f| f.1))?)?;
        let share = output.narrow(1, channels, channels)?;
        let variance = ReverseVariance::Share(&share);
        let terms = bound.terms(&batch.x0, &batch.x_t, &(of_x + of_raw)?, variance, &batch.indices)?;
        let bounds = (terms * bound.factor())?;
        if self.bound_alone { Ok(bounds) } else { Ok((simple + bounds)?) }
    }
}

/// Clean images and noise, each pair by factors of its own.
fn mix(x0: &Tensor, noise: &Tensor, factors: impl Iterator<Item = (f64, f64)>) -> Result<Tensor> {
    let (of_x0, of_noise): (Vec<_>, Vec<_>) = factors.unzip();
    let (of_x0, of_noise) = (per_image(x0, of_x0.into_iter())?, per_image(x0, of_noise.into_iter())?);
    Ok((x0.broadcast_mul(&of_x0)? + noise.broadcast_mul(&of_noise)?)?)
}

/// A number for each image, `[batch, 1, 1, 1]`, in the type and on the device of `like`.
pub(super) fn per_image(like: &Tensor, values: impl Iterator<Item = f64>) -> Result<Tensor> {
    let values: Vec<f64> = values.collect();
    let column = Tensor::from_vec(values, (like.dim(0)?, 1, 1, 1), &candle_core::Device::Cpu)?;
    let dtype = if like.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    Ok(column.to_dtype(dtype)?.to_device(like.device())?)
}

/// The mean over all but the first dimension.
pub(super) fn mean_per_image(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(1)?.mean(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::BetaSchedule;

    fn schedule() -> Result<NoiseSchedule> {
        NoiseSchedule::from_betas(&BetaSchedule::Linear.betas(1e-4, 0.02, 1000))
    }

    /// The published forms for each prediction.
    #[test]
    fn min_snr_weights_are_those_of_the_paper() -> Result<()> {
        let weighting = LossWeighting::MinSnr { gamma: 5.0 };
        for t in [0, 100, 400, 999] {
            let level = schedule()?.level(t)?;
            let snr = level.alpha_cumprod() / (1.0 - level.alpha_cumprod());
            for (kind, expected) in [
                (PredictionType::Epsilon, snr.min(5.0) / snr),
                (PredictionType::VPrediction, snr.min(5.0) / (snr + 1.0)),
                (PredictionType::Sample, snr.min(5.0)),
            ] {
                let weight = weighting.weight(kind, &level);
                assert!((weight / expected - 1.0).abs() < 1e-9, "{kind:?} at {t}: {weight} {expected}");
            }
        }
        let noise = NoiseLevel { timestep: 999.0, alpha: 0.0, sigma: 1.0 };
        assert_eq!(weighting.weight(PredictionType::Epsilon, &noise), 1.0);
        assert_eq!(weighting.weight(PredictionType::VPrediction, &noise), 0.0);
        Ok(())
    }

    #[test]
    fn flow_ends_in_pure_noise() -> Result<()> {
        let process = ForwardProcess::Flow { num_train_timesteps: 10 };
        let last = process.level(9)?;
        assert_eq!((last.alpha, last.sigma, last.timestep), (0.0, 1.0, 10.0));
        assert!(process.level(10).is_err());
        assert!(Objective::new(process, PredictionType::Epsilon, LossWeighting::Uniform).is_err());
        let diffusion = ForwardProcess::Diffusion(schedule()?);
        assert!(Objective::new(diffusion, PredictionType::Flow, LossWeighting::Uniform).is_err());
        Ok(())
    }

    /// A network that knows the answer has no loss, and one that is off by one everywhere has the loss 1.
    #[test]
    fn the_loss_is_the_distance_from_the_target() -> Result<()> {
        let device = candle_core::Device::Cpu;
        let x0 = Tensor::new(&[[[[0.5f64, -1.0]]], [[[0.25, 1.0]]]], &device)?;
        let noise = Tensor::new(&[[[[1.5f64, 0.3]]], [[[-0.7, 0.1]]]], &device)?;
        let flow = ForwardProcess::Flow { num_train_timesteps: 1000 };
        let objective = Objective::new(flow, PredictionType::Flow, LossWeighting::Uniform)?;
        let batch = objective.noisy(&x0, &noise, &[499, 999])?;
        assert_eq!([batch.levels[0].timestep, batch.levels[1].timestep], [500.0, 1000.0]);
        let x_t = batch.x_t.flatten_all()?.to_vec1::<f64>()?;
        assert!((x_t[0] - 1.0).abs() < 1e-12 && (x_t[2] + 0.7).abs() < 1e-12, "{x_t:?}");
        let velocity = (&noise - &x0)?;
        assert_eq!(objective.losses(&velocity, &batch)?.to_vec1::<f64>()?, [0.0, 0.0]);
        let losses = objective.losses(&(velocity + 1.0)?, &batch)?.to_vec1::<f64>()?;
        assert!(losses.iter().all(|loss| (loss - 1.0).abs() < 1e-12));
        assert!(objective.losses(&Tensor::cat(&[&x0, &x0], 1)?, &batch).is_err());
        Ok(())
    }

    /// The bound teaches the mean where it is alone, and beside L_simple the variance only.
    #[test]
    fn the_bound_alone_moves_the_mean() -> Result<()> {
        let device = candle_core::Device::Cpu;
        let x0 = Tensor::new(&[[[[0.5f64, -1.0]]]], &device)?;
        let noise = Tensor::new(&[[[[1.5f64, 0.3]]]], &device)?;
        let objective =
            |weighting| Objective::new(ForwardProcess::Diffusion(schedule()?), PredictionType::Epsilon, weighting);
        let output = candle_core::Var::from_tensor(&Tensor::new(&[[[[1.4f64, 0.5]], [[0.0, 0.0]]]], &device)?)?;
        let gradient = |objective: &Objective| {
            let batch = objective.noisy(&x0, &noise, &[400])?;
            let loss = objective.losses(&output, &batch)?.sum_all()?;
            let gradients = loss.backward()?;
            let of_output = gradients.get(&output).ok_or_else(|| Error::invalid("the gradient", "none", ""))?;
            Ok::<_, Error>((loss.to_scalar::<f64>()?, of_output.flatten_all()?.to_vec1::<f64>()?))
        };
        let uniform = LossWeighting::Uniform;
        let (simple, of_simple) = gradient(&objective(uniform)?.with_learned_variance(0.0)?)?;
        let (hybrid, of_hybrid) = gradient(&objective(uniform)?.with_learned_variance(1.0)?)?;
        let (bound, of_bound) = gradient(&objective(uniform)?.with_variational_bound()?)?;
        assert!((hybrid - simple - bound).abs() < 1e-12, "{simple} {hybrid} {bound}");
        for i in 0..2 {
            assert!((of_hybrid[i] - of_simple[i]).abs() < 1e-12, "{of_hybrid:?} {of_simple:?}");
            // The mean squared error of epsilon and that of the mean have one direction.
            assert!(of_bound[i] * of_simple[i] > 0.0, "{of_bound:?} {of_simple:?}");
        }
        assert_eq!(of_hybrid[2..], of_bound[2..]);
        let weighted = objective(LossWeighting::MinSnr { gamma: 5.0 })?;
        assert!(weighted.with_variational_bound().is_err());
        Ok(())
    }
}
