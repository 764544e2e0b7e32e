//! The variational bound through which a variance is learned (Nichol and Dhariwal 2021, section 3.1).

use super::objective::{mean_per_image, per_image};
use crate::Result;
use crate::schedulers::NoiseSchedule;
use candle_core::Tensor;
use std::f64::consts::{LN_2, PI};

/// Half the distance of two levels of an 8-bit picture in `[-1, 1]`.
const HALF_LEVEL: f64 = 1.0 / 255.0;
/// A probability is never taken below this, so that it has a logarithm.
const LEAST_PROBABILITY: f64 = 1e-12;

/// What the posterior `q(x_{t-1} | x_t, x_0)` is at a timestep (Ho et al. 2020, equations 6 and 7).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Posterior {
    mean_of_x0: f64,
    mean_of_x_t: f64,
    /// `ln beta~_t`; at t = 0, where it is infinite, that of t = 1.
    log_variance: f64,
    log_beta: f64,
}

/// The variance of the reverse step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ReverseVariance<'a> {
    /// That of the posterior, `beta~_t`.
    Small,
    /// That of the forward step, `beta_t`; at t = 0, which is hardly a step, that of the posterior all the same.
    Large,
    /// Where its logarithm lies between those of the two, in `[-1, 1]` (equation 15 of Nichol and Dhariwal); of the pictures' shape.
    Share(&'a Tensor),
    /// Its logarithm, of the pictures' shape.
    Logarithm(&'a Tensor),
}

/// The terms `L_t` of the bound, in bits per dimension.
#[derive(Debug, Clone)]
pub(crate) struct VariationalBound {
    posteriors: Vec<Posterior>,
    /// `abar_T`.
    last: f64,
    lambda: f64,
}

impl VariationalBound {
    pub(crate) fn new(schedule: &NoiseSchedule, lambda: f64) -> Self {
        let (abar, betas) = (schedule.alphas_cumprod(), schedule.betas());
        let before = |t: usize| if t == 0 { 1.0 } else { abar[t - 1] };
        let variance = |t: usize| betas[t] * (1.0 - before(t)) / (1.0 - abar[t]);
        let posterior = |t: usize| Posterior {
            mean_of_x0: betas[t] * before(t).sqrt() / (1.0 - abar[t]),
            mean_of_x_t: (1.0 - before(t)) * (1.0 - betas[t]).sqrt() / (1.0 - abar[t]),
            log_variance: if betas.len() == 1 { betas[0].ln() } else { variance(t.max(1)).ln() },
            log_beta: betas[t].ln(),
        };
        Self { posteriors: (0..betas.len()).map(posterior).collect(), last: abar[betas.len() - 1], lambda }
    }

    /// `lambda T`: with timesteps drawn evenly, `T` times a term is an estimate of their sum `L_vlb`.
    pub(super) fn factor(&self) -> f64 {
        self.lambda * self.posteriors.len() as f64
    }

    /// Each image's `L_t`: the divergence of the network's step from the posterior, and at t = 0 the negative
    /// log-likelihood of the 8-bit image (Ho et al. 2020, equations 5 and 13).
    ///
    /// # Shapes
    /// `x0`, `x_t` and `predicted_x0` are `[batch, channels, height, width]`; the result is `[batch]`.
    pub(crate) fn terms(
        &self,
        x0: &Tensor,
        x_t: &Tensor,
        predicted_x0: &Tensor,
        variance: ReverseVariance<'_>,
        timesteps: &[usize],
    ) -> Result<Tensor> {
        let column = |of: fn(&Posterior) -> f64| per_image(x0, timesteps.iter().map(|&t| of(&self.posteriors[t])));
        let low = column(|p| p.log_variance)?;
        let log_variance = self.log_variance(x0, &low, variance, timesteps)?;
        let (of_x0, of_x_t) = (column(|p| p.mean_of_x0)?, column(|p| p.mean_of_x_t)?);
        let known = x_t.broadcast_mul(&of_x_t)?;
        let mean = (predicted_x0.broadcast_mul(&of_x0)? + &known)?;
        let true_mean = (x0.broadcast_mul(&of_x0)? + &known)?;
        let divergence = mean_per_image(&divergence(&true_mean, &low, &mean, &log_variance)?)?;
        let likelihood = mean_per_image(&log_likelihood(x0, &mean, &log_variance)?)?.neg()?;
        let first: Vec<u8> = timesteps.iter().map(|&t| u8::from(t == 0)).collect();
        let first = Tensor::from_vec(first, timesteps.len(), x0.device())?;
        Ok((first.where_cond(&likelihood, &divergence)? / LN_2)?)
    }

    /// The logarithm of the variance, of the shape of `x0`; `low` is that of the posterior's, `[batch, 1, 1, 1]`.
    fn log_variance(
        &self,
        x0: &Tensor,
        low: &Tensor,
        variance: ReverseVariance<'_>,
        timesteps: &[usize],
    ) -> Result<Tensor> {
        let high = |first: fn(&Posterior) -> f64| {
            let of = |&t: &usize| if t == 0 { first(&self.posteriors[0]) } else { self.posteriors[t].log_beta };
            per_image(x0, timesteps.iter().map(of))
        };
        match variance {
            ReverseVariance::Small => Ok(low.broadcast_as(x0.shape())?.contiguous()?),
            ReverseVariance::Large => Ok(high(|p| p.log_variance)?.broadcast_as(x0.shape())?.contiguous()?),
            ReverseVariance::Logarithm(logarithm) => Ok(logarithm.clone()),
            ReverseVariance::Share(share) => {
                let high = high(|p| p.log_beta)?;
                let middle = ((low + &high)? * 0.5)?;
                Ok(share.broadcast_mul(&((&high - low)? * 0.5)?)?.broadcast_add(&middle)?)
            }
        }
    }

    /// Each image's `L_T`: the divergence of the last state's distribution from the standard normal one.
    ///
    /// # Shapes
    /// `x0`: `[batch, channels, height, width]`; the result is `[batch]`.
    pub(crate) fn prior(&self, x0: &Tensor) -> Result<Tensor> {
        let variance = 1.0 - self.last;
        let constant = 0.5 * (variance - 1.0 - variance.ln());
        Ok((mean_per_image(&x0.sqr()?)?.affine(0.5 * self.last, constant)? / LN_2)?)
    }
}

/// `KL(N(mean_1, e^l1) || N(mean_2, e^l2))` value by value; `l1` is `[batch, 1, 1, 1]`.
fn divergence(mean_1: &Tensor, l1: &Tensor, mean_2: &Tensor, l2: &Tensor) -> Result<Tensor> {
    let wider = l2.broadcast_sub(l1)?;
    let distance = ((mean_1 - mean_2)?.sqr()? * l2.neg()?.exp()?)?;
    let sum = ((&wider + wider.neg()?.exp()?)? + distance)?;
    Ok(((sum - 1.0)? * 0.5)?)
}

/// The logarithm of the probability that a normal variable rounds to the 8-bit level of `x`.
///
/// The normal distribution function is its approximation by the hyperbolic tangent, which the paper's program has.
fn log_likelihood(x: &Tensor, mean: &Tensor, log_variance: &Tensor) -> Result<Tensor> {
    let (off, inverse) = ((x - mean)?, (log_variance * -0.5)?.exp()?);
    let below = |edge: f64| distribution(&((&off + edge)? * &inverse)?);
    let (upper, lower) = (below(HALF_LEVEL)?, below(-HALF_LEVEL)?);
    let log = |p: Tensor| Ok::<_, crate::Error>(p.maximum(LEAST_PROBABILITY)?.log()?);
    let inside = log((&upper - &lower)?)?;
    let highest = log(lower.affine(-1.0, 1.0)?)?;
    let lowest = log(upper)?;
    let limit = |value: f64| Tensor::full(value, x.dims(), x.device())?.to_dtype(x.dtype());
    let inside = x.gt(&limit(0.999)?)?.where_cond(&highest, &inside)?;
    Ok(x.lt(&limit(-0.999)?)?.where_cond(&lowest, &inside)?)
}

fn distribution(x: &Tensor) -> Result<Tensor> {
    let inner = ((x + (x.sqr()?.mul(x)? * 0.044715)?)? * (2.0 / PI).sqrt())?;
    Ok(((inner.tanh()? + 1.0)? * 0.5)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The levels of a picture share all the probability.
    #[test]
    fn probabilities_of_all_levels_sum_to_one() -> Result<()> {
        let levels: Vec<f64> = (0..256).map(|i| f64::from(i) / 127.5 - 1.0).collect();
        let x = Tensor::from_vec(levels, (1, 1, 16, 16), &Device::Cpu)?;
        for (mean, log_variance) in [(0.3, -3.0), (-1.0, -1.0), (0.9, -6.0)] {
            let mean = (x.zeros_like()? + mean)?;
            let log_variance = (x.zeros_like()? + log_variance)?;
            let sum = log_likelihood(&x, &mean, &log_variance)?.exp()?.sum_all()?.to_scalar::<f64>()?;
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        }
        Ok(())
    }

    /// The divergence against its integral, by the trapezoidal rule over 12 standard deviations.
    #[test]
    fn the_divergence_is_its_integral() -> Result<()> {
        let (m1, l1, m2, l2) = (0.4, -0.7, -0.2, 0.5);
        let log_density = |x: f64, m: f64, l: f64| -0.5 * ((x - m).powi(2) * (-l).exp() + l + (2.0 * PI).ln());
        let step = 1e-3;
        let integral: f64 = (-12_000..12_000)
            .map(|i| m1 + f64::from(i) * step)
            .map(|x| log_density(x, m1, l1).exp() * (log_density(x, m1, l1) - log_density(x, m2, l2)) * step)
            .sum();
        let t = |v: f64| Tensor::from_vec(vec![v], (1, 1, 1, 1), &Device::Cpu);
        let got = divergence(&t(m1)?, &t(l1)?, &t(m2)?, &t(l2)?)?.flatten_all()?.to_vec1::<f64>()?[0];
        assert!((got - integral).abs() < 1e-9, "{got} {integral}");
        Ok(())
    }

    /// A network that knows x0 and the posterior's variance has no divergence left.
    #[test]
    fn a_perfect_step_costs_nothing() -> Result<()> {
        let schedule = NoiseSchedule::from_betas(&crate::schedulers::BetaSchedule::Linear.betas(1e-4, 0.02, 50))?;
        let bound = VariationalBound::new(&schedule, 0.001);
        let x0 = Tensor::new(&[[[[0.1f64, -0.4]]]], &Device::Cpu)?;
        let x_t = Tensor::new(&[[[[0.9f64, 0.2]]]], &Device::Cpu)?;
        let lowest = (x0.zeros_like()? - 1.0)?;
        let term = bound.terms(&x0, &x_t, &x0, ReverseVariance::Share(&lowest), &[20])?.to_vec1::<f64>()?[0];
        assert!(term.abs() < 1e-12, "{term}");
        let highest = x0.ones_like()?;
        assert!(bound.terms(&x0, &x_t, &x0, ReverseVariance::Share(&highest), &[20])?.to_vec1::<f64>()?[0] > 1e-5);
        assert!((bound.factor() - 0.05).abs() < 1e-15);
        Ok(())
    }
}
