//! The loss of a denoising network: algorithm 1 of Ho et al. (2020), lines 2 to 5.

use super::{Draws, NoisyBatch, Objective, Stream, TimestepSampling};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// The mean loss of batches at timesteps that are drawn for them, of whatever kind the network is:
///
/// ```text
/// t ~ p(t),  epsilon ~ N(0, I),  x_t = alpha_t x_0 + sigma_t epsilon,
/// L = mean_i  w_i  l(F(x_t, t), target),  w = 1 / (T p(t))
/// ```
///
/// with the objective's `l` and targets. It remembers the losses of timesteps where those are drawn by importance.
#[derive(Debug, Clone)]
pub struct DenoisingLoss {
    objective: Objective,
    sampling: TimestepSampling,
}

impl DenoisingLoss {
    /// The loss of an objective; by `importance`, timesteps are drawn in proportion to their losses.
    pub fn new(objective: Objective, importance: bool) -> Self {
        let timesteps = objective.process().num_train_timesteps();
        let sampling = match importance {
            true => TimestepSampling::importance(timesteps),
            false => TimestepSampling::Uniform { timesteps },
        };
        Self { objective, sampling }
    }

    /// The same with timesteps of more or less noise more often: [`TimestepSampling::Shifted`]. 1 changes nothing.
    ///
    /// # Errors
    /// If the shift is not above 0, or timesteps are drawn by importance.
    pub fn with_timestep_shift(mut self, shift: f64) -> Result<Self> {
        if shift <= 0.0 || !shift.is_finite() {
            return Err(Error::invalid("the shift of timesteps", shift, "it must be above 0, and 1 draws all alike"));
        }
        if shift == 1.0 {
            return Ok(self);
        }
        let TimestepSampling::Uniform { timesteps } = self.sampling else {
            let fix = "timesteps are drawn by importance already; take one of both";
            return Err(Error::invalid("the shift of timesteps", shift, fix));
        };
        self.sampling = TimestepSampling::Shifted { timesteps, shift };
        Ok(self)
    }

    /// The objective.
    pub fn objective(&self) -> &Objective {
        &self.objective
    }

    /// The loss of clean samples, differentiable in whatever `predict`, which gives the network's raw output for a batch,
    /// is differentiable in.
    ///
    /// # Shapes
    /// `x0`: `[batch, channels, height, width]`, of unit size; the result is a scalar.
    ///
    /// # Errors
    /// If the output does not fit the objective, or whatever `predict` reports.
    pub fn mean(
        &mut self,
        x0: &Tensor,
        draws: Draws,
        predict: impl FnOnce(&NoisyBatch) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let generator = &mut draws.generator(Stream::Timesteps);
        let drawn = match &self.sampling {
            // By importance, the draws would follow what was trained on.
            TimestepSampling::LossSecondMoment(_) if draws.validates() => {
                let timesteps = self.objective.process().num_train_timesteps();
                TimestepSampling::Uniform { timesteps }.draw(x0.dim(0)?, generator)
            }
            sampling => sampling.draw(x0.dim(0)?, generator),
        };
        let batch = self.objective.noisy(x0, &draws.noise(x0)?, &drawn.timesteps)?;
        let losses = self.objective.losses(&predict(&batch)?, &batch)?;
        if let TimestepSampling::LossSecondMoment(_) = self.sampling
            && !draws.validates()
        {
            self.sampling.note(&drawn.timesteps, &losses.to_dtype(DType::F32)?.to_vec1()?);
        }
        let weights = Tensor::from_vec(drawn.weights, losses.dim(0)?, x0.device())?.to_dtype(losses.dtype())?;
        Ok((losses * weights)?.mean_all()?)
    }

    /// The losses that are remembered: [`TimestepSampling::history`].
    pub fn history(&self) -> Option<Vec<f32>> {
        self.sampling.history()
    }

    /// Takes what [`Self::history`] gave.
    ///
    /// # Errors
    /// If it is that of another number of timesteps, or there is none where one is needed.
    pub fn restore(&mut self, history: Option<&[f32]>) -> Result<()> {
        self.sampling.restore(history)
    }
}

/// Classes that are dropped at random, so that one network learns to predict with them and without: classifier-free guidance
/// (Ho and Salimans 2022, algorithm 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassDropout {
    /// The probability with which an image's class is dropped, from 0 to 1.
    pub probability: f64,
    /// The class that stands for none.
    pub null_class: u32,
}

impl ClassDropout {
    /// Whether the probability is one.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self) -> Result<()> {
        match (0.0..=1.0).contains(&self.probability) {
            true => Ok(()),
            false => Err(Error::invalid("the class dropout", self.probability, "it lies between 0 and 1")),
        }
    }

    /// Labels with some of them dropped, by [`Stream::ClassDropout`].
    ///
    /// # Shapes
    /// `labels`: `[batch]` of u32, and so is the result.
    ///
    /// # Errors
    /// If they have another shape or type.
    pub fn drop(&self, labels: &Tensor, draws: Draws) -> Result<Tensor> {
        let mut classes = labels.to_vec1::<u32>()?;
        let uniform = draws.generator(Stream::ClassDropout).uniform(classes.len());
        for (class, u) in classes.iter_mut().zip(uniform) {
            if f64::from(u) < self.probability {
                *class = self.null_class;
            }
        }
        let count = classes.len();
        Ok(Tensor::from_vec(classes, count, labels.device())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoising::PredictionType;
    use crate::training::{ForwardProcess, LossWeighting};
    use candle_core::Device;

    /// What is held out is looked at with the same timesteps, whatever was trained on in between, and is not remembered.
    #[test]
    fn looking_depends_on_no_importance() -> Result<()> {
        let timesteps = 4;
        let process = ForwardProcess::Flow { num_train_timesteps: timesteps };
        let objective = Objective::new(process, PredictionType::Flow, LossWeighting::Uniform)?;
        let x0 = Tensor::ones((8, 1, 2, 2), DType::F32, &Device::Cpu)?;
        let loss = |loss: &mut DenoisingLoss, draws: Draws| -> Result<f32> {
            Ok(loss.mean(&x0, draws, |batch| Ok(batch.x_t.zeros_like()?))?.to_scalar()?)
        };
        let mut trained = DenoisingLoss::new(objective, true);
        let mut fresh = trained.clone();
        // Until every timestep has its ten losses; the first is by far the largest.
        for step in 0..64 {
            let drawn = trained.sampling.draw(8, &mut Draws::new(1, step).generator(Stream::Timesteps)).timesteps;
            let losses: Vec<f32> = drawn.iter().map(|&t| if t == 0 { 100.0 } else { 0.01 }).collect();
            trained.sampling.note(&drawn, &losses);
        }
        let history = trained.history();
        let draws = Draws::new(5, 0);
        assert_ne!(
            loss(&mut trained.clone(), draws)?,
            loss(&mut fresh.clone(), draws)?,
            "training draws by importance"
        );
        assert_eq!(loss(&mut trained, draws.validating())?, loss(&mut fresh, draws.validating())?);
        assert_eq!(trained.history(), history);
        Ok(())
    }
}
