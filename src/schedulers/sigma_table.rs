//! The training schedule seen as noise over signal.

use super::NoiseSchedule;
use crate::noise_level::LEAST_ALPHA_CUMPROD;
use crate::{Error, NoiseLevel, Result};

/// `sigma_t = sqrt((1 - abar_t) / abar_t)` for every training timestep, and the way back.
///
/// In the variables of Karras et al. (2022) this is the noise of `x / sqrt(abar)`; it rises with `t`. At zero terminal SNR the last
/// `abar`, which is 0, counts as 2^-24, so that the last sigma is 4096 and not infinite; what is small and no zero stays as it is, and
/// the cosine schedule's sigmas end at 20291.
#[derive(Debug, Clone, PartialEq)]
pub struct SigmaTable {
    alphas_cumprod: Vec<f64>,
    sigmas: Vec<f64>,
}

impl SigmaTable {
    /// The table that timesteps are interpolated in.
    ///
    /// Each alpha is rounded to single precision, as in the reference: a product of a thousand of them shows it, and
    /// timesteps that are interpolated between its sigmas differ by a thousandth.
    pub fn new(schedule: &NoiseSchedule) -> Self {
        let product = |product: &mut f64, beta: f64| {
            *product *= f64::from((1.0 - beta) as f32);
            Some(*product)
        };
        Self::from_alphas_cumprod(schedule.betas().into_iter().scan(1.0, product).collect())
    }

    /// The table without that rounding.
    pub fn exact(schedule: &NoiseSchedule) -> Self {
        Self::from_alphas_cumprod(schedule.alphas_cumprod().to_vec())
    }

    fn from_alphas_cumprod(alphas_cumprod: Vec<f64>) -> Self {
        let sigma = |abar: f64| ((1.0 - abar) / abar).sqrt();
        let sigmas = alphas_cumprod.iter().map(|&abar| sigma(some_signal(abar))).collect();
        Self { alphas_cumprod, sigmas }
    }

    /// The number of training timesteps.
    pub fn num_train_timesteps(&self) -> usize {
        self.sigmas.len()
    }

    /// Noise over signal at the first timestep, the least there is.
    pub fn sigma_min(&self) -> f64 {
        self.sigmas[0]
    }

    /// Noise over signal at the last timestep, the most there is.
    pub fn sigma_max(&self) -> f64 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// Noise over signal at a timestep, linear between whole ones.
    pub fn sigma(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let t = timestep.clamp(0.0, last as f64);
        let below = (t.floor() as usize).min(last);
        let above = (below + 1).min(last);
        self.sigmas[below] + (t - below as f64) * (self.sigmas[above] - self.sigmas[below])
    }

    /// The timestep of a sigma, linear in its logarithm between whole timesteps and held at the ends.
    pub fn timestep(&self, sigma: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        if last == 0 {
            return 0.0;
        }
        let below = self.sigmas.partition_point(|&s| s <= sigma).saturating_sub(1).min(last - 1);
        let (low, high) = (self.sigmas[below].ln(), self.sigmas[below + 1].ln());
        let share = ((sigma.max(1e-10).ln() - low) / (high - low)).clamp(0.0, 1.0);
        below as f64 + share
    }

    /// [`Self::timestep`] without its fraction, as the integer casts of diffusers leave it.
    ///
    /// The largest sigma lies on a whole timestep, so there the reference's f32 decides: if the logarithm in
    /// its table is rounded up, the fraction ends just below the last timestep and is cut to the one before.
    pub fn timestep_cut(&self, sigma: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let timestep = self.timestep(sigma);
        if timestep < last as f64 - 1e-4 || last == 0 {
            return timestep.floor();
        }
        let abar = some_signal(self.alphas_cumprod[last]) as f32;
        let largest = ((1.0 - abar) / abar).sqrt();
        let rounded_up = f64::from(largest.ln()) > f64::from(largest).ln();
        if rounded_up { (last - 1) as f64 } else { last as f64 }
    }

    /// The variance-preserving level at a whole timestep.
    ///
    /// # Errors
    /// If there is no such timestep.
    pub fn level(&self, timestep: f64) -> Result<NoiseLevel> {
        let abar = if timestep >= 0.0 { self.alphas_cumprod.get(timestep.round() as usize) } else { None };
        let abar = abar.ok_or_else(|| {
            let last = self.sigmas.len() - 1;
            Error::invalid("a timestep", timestep, format!("the model was trained on timesteps 0 to {last}"))
        })?;
        Ok(NoiseLevel::variance_preserving(timestep, *abar))
    }

    /// How many training timesteps have a half log-SNR `ln(alpha / sigma)` below `bound`.
    pub fn count_below(&self, bound: f64) -> usize {
        self.sigmas.iter().filter(|sigma| -sigma.ln() < bound).count()
    }
}

/// `abar`, or in the place of none what stands for it in a sigma.
fn some_signal(abar: f64) -> f64 {
    if abar == 0.0 { LEAST_ALPHA_CUMPROD } else { abar }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::BetaSchedule;

    fn table() -> Result<SigmaTable> {
        let betas = BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000);
        Ok(SigmaTable::new(&NoiseSchedule::from_betas(&betas)?))
    }

    #[test]
    fn whole_timesteps_survive_the_way_through_sigma() -> Result<()> {
        let table = table()?;
        for t in [0, 1, 17, 500, 998, 999] {
            let t = f64::from(t);
            assert!((table.timestep(table.sigma(t)) - t).abs() < 1e-9, "{t}");
        }
        assert_eq!(table.timestep(1e9), 999.0);
        assert_eq!(table.timestep(0.0), 0.0);
        Ok(())
    }

    #[test]
    fn zero_terminal_snr_has_a_finite_sigma() -> Result<()> {
        let betas = BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000);
        let table = SigmaTable::new(&NoiseSchedule::from_betas(&betas)?.with_zero_terminal_snr());
        assert!((table.sigma_max() - 4096.0).abs() < 1e-3);
        assert_eq!(table.level(999.0)?.alpha, 0.0);
        Ok(())
    }

    /// The cosine schedule's end has less signal than that stands for none, and keeps it: by Improved DDPM's equation 17 with the last beta
    /// cut to 0.999, `abar = 0.001 f(999 / 1000) / f(0)`.
    #[test]
    fn little_signal_is_not_none() -> Result<()> {
        let schedule = NoiseSchedule::from_betas(&BetaSchedule::SquaredCosine.betas(0.0, 0.0, 1000))?;
        let f = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        let abar = 0.001 * f(0.999) / f(0.0);
        let expected = ((1.0 - abar) / abar).sqrt();
        // The table's products are rounded to single precision, as in the reference.
        assert!((SigmaTable::new(&schedule).sigma_max() / expected - 1.0).abs() < 1e-3);
        assert!((SigmaTable::exact(&schedule).sigma_max() / expected - 1.0).abs() < 1e-9);
        Ok(())
    }

    /// The end of Stable Diffusion's table, known from the papers that start at 14.6146.
    #[test]
    fn stable_diffusion_starts_at_14_6146() -> Result<()> {
        let table = table()?;
        assert!((table.sigma_max() - 14.6146).abs() < 1e-4);
        assert_eq!(table.timestep_cut(table.sigma_max()), 998.0);
        assert_eq!(table.timestep_cut(table.sigma(500.5)), 500.0);
        Ok(())
    }
}
