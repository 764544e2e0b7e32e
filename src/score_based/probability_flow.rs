//! The ODE whose densities are those of the SDE.

use super::{DormandPrince, Score, Solution, VpSde};
use crate::{Error, Result};
use candle_core::Tensor;

/// `dx/dt = f(x, t) - 1/2 g(t)^2 score(x, t)` (Song et al. 2021, equation 13), between the `earliest` time and
/// `t = 1`.
///
/// It maps data to noise and back, one to one. The steps are chosen for a whole batch, so a picture may
/// depend on its neighbours within the tolerance; where that matters, map images one by one.
#[derive(Clone, Copy)]
pub struct ProbabilityFlow<'a> {
    sde: VpSde,
    score: &'a dyn Score,
    earliest: f64,
    integrator: DormandPrince,
}

impl<'a> ProbabilityFlow<'a> {
    /// The flow of `sde`, whose densities have `score`.
    ///
    /// `earliest` stands for the data's time 0, at which the score may not exist; the paper has 1e-5 for
    /// likelihoods and 1e-3 for pictures, and a network knows nothing before its first timestep.
    ///
    /// # Errors
    /// If `earliest` is not above 0 and below 1.
    pub fn new(sde: VpSde, score: &'a dyn Score, earliest: f64, integrator: DormandPrince) -> Result<Self> {
        if !(earliest > 0.0 && earliest < 1.0) {
            return Err(Error::invalid("the earliest time of the flow", earliest, "it must lie between 0 and 1"));
        }
        Ok(Self { sde, score, earliest, integrator })
    }

    /// The SDE whose densities it shares.
    pub fn sde(&self) -> VpSde {
        self.sde
    }

    /// The score of those densities.
    pub fn score(&self) -> &'a dyn Score {
        self.score
    }

    /// The time that stands for the data's.
    pub fn earliest(&self) -> f64 {
        self.earliest
    }

    /// The method that integrates it.
    pub fn integrator(&self) -> &DormandPrince {
        &self.integrator
    }

    /// `dx/dt = -1/2 beta(t) (x + score(x, t))`.
    ///
    /// # Shapes
    /// `x` and the result: `[batch, ...]`.
    ///
    /// # Errors
    /// If the score fails.
    pub fn velocity(&self, x: &Tensor, t: f64) -> Result<Tensor> {
        self.velocity_of(x, &self.score.score(x, t)?, t)
    }

    /// The velocity where the score is known.
    pub(super) fn velocity_of(&self, x: &Tensor, score: &Tensor, t: f64) -> Result<Tensor> {
        Ok((self.sde.drift(x, t)? - (score * (0.5 * self.sde.beta(t)))?)?)
    }

    /// From data to the noise that belongs to it.
    ///
    /// # Shapes
    /// `x`, at the earliest time, and the solution, at `t = 1`: `[batch, ...]`.
    ///
    /// # Errors
    /// If the score or the integration fails.
    pub fn encode(&self, x: &Tensor) -> Result<Solution> {
        self.integrator.integrate(&|x, t| self.velocity(x, t), x, self.earliest, 1.0)
    }

    /// From noise to the data that belongs to it.
    ///
    /// # Shapes
    /// `x`, at `t = 1`, and the solution, at the earliest time: `[batch, ...]`.
    ///
    /// # Errors
    /// If the score or the integration fails.
    pub fn decode(&self, x: &Tensor) -> Result<Solution> {
        self.integrator.integrate(&|x, t| self.velocity(x, t), x, 1.0, self.earliest)
    }
}
