//! Predictor-corrector sampling: steps of the reverse SDE, each followed by Langevin steps at its new time.

use super::reverse_sde::check_times;
use super::{ReverseSde, finite, normal_like};
use crate::noise::NoiseSource;
use crate::{Error, Result};
use candle_core::Tensor;

/// The predictor-corrector sampler of Song et al. 2021, algorithm 1, for the VP-SDE (algorithm 3).
///
/// The predictor is reverse diffusion (equation 46), which undoes the discrete forward step
/// `x(t) = sqrt(1 - beta) x(s) + sqrt(beta) z`; the corrector is Langevin dynamics at the new time with the step
/// of algorithm 5. Its norms are each image's own, where the paper's code takes their means over the batch, so
/// no image depends on its neighbours.
///
/// A step that follows the score's norm is for pictures: with short steps the corrector's stationary density is
/// `p |score|^2` in place of `p`, which on a Gaussian of `d` dimensions makes the variance `1 + 2 / d` times as
/// large, and the step's length adds `r^2` to that factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PredictorCorrector {
    /// `r`, the ratio of the norms of signal and noise in a corrector step; 0.16 is the default of the paper's code.
    pub snr: f64,
    /// `M`, the number of corrector steps at each time; with 0 it is the predictor alone.
    pub corrector_steps: usize,
}

impl Default for PredictorCorrector {
    fn default() -> Self {
        Self { snr: 0.16, corrector_steps: 1 }
    }
}

impl PredictorCorrector {
    /// Runs it along `times`.
    ///
    /// # Shapes
    /// `x`, at `times[0]`, and the result, at the last of them: `[batch, ...]`. `times` falls within `(0, 1]`.
    ///
    /// # Errors
    /// If the times do not fall, `snr` is no positive number, the score or the noise fails, or a state stops
    /// being finite.
    pub fn sample(
        &self,
        reverse: &ReverseSde<'_>,
        mut x: Tensor,
        times: &[f64],
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        check_times(times)?;
        if !(self.snr > 0.0 && self.snr.is_finite()) {
            return Err(Error::invalid("the corrector's snr", self.snr, "it must be positive, such as 0.16"));
        }
        for pair in times.windows(2) {
            let (t, s) = (pair[0], pair[1]);
            let alpha = (reverse.sde().marginal(t).alpha / reverse.sde().marginal(s).alpha).powi(2);
            x = predict(reverse, &x, t, 1.0 - alpha, noise)?;
            for _ in 0..self.corrector_steps {
                x = self.correct(reverse, &x, s, alpha, noise)?;
            }
            x = finite(x, || format!("the predictor-corrector step from t = {t}"))?;
        }
        Ok(x)
    }

    /// `x + epsilon g + sqrt(2 epsilon) z` with `epsilon = 2 alpha (r |z| / |g|)^2` (algorithm 5).
    fn correct(
        &self,
        reverse: &ReverseSde<'_>,
        x: &Tensor,
        t: f64,
        alpha: f64,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        let score = reverse.score().score(x, t)?;
        let z = normal_like(noise, x)?;
        let epsilon = ((squared_norms(&z)? / squared_norms(&score)?)? * (2.0 * alpha * self.snr * self.snr))?;
        let diffusion = z.broadcast_mul(&(&epsilon * 2.0)?.sqrt()?)?;
        Ok(((x + score.broadcast_mul(&epsilon)?)? + diffusion)?)
    }
}

/// `(2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z` (algorithm 3).
fn predict(reverse: &ReverseSde<'_>, x: &Tensor, t: f64, beta: f64, noise: &mut dyn NoiseSource) -> Result<Tensor> {
    let mean = ((x * (2.0 - (1.0 - beta).sqrt()))? + (reverse.score().score(x, t)? * beta)?)?;
    Ok((mean + (normal_like(noise, x)? * beta.sqrt())?)?)
}

/// `|x|^2` of each image: `[batch, 1, ...]`, of the same rank as `x`.
fn squared_norms(x: &Tensor) -> Result<Tensor> {
    Ok(x.sqr()?.sum_keepdim((1..x.rank()).collect::<Vec<_>>())?)
}
