//! The variational bound of a diffusion model on pictures, term by term (Ho, Jain and Abbeel 2020, equation 5 and section 3.3; with
//! learned variances Nichol and Dhariwal 2021, section 3.1).

use crate::conditioning::Conditioning;
use crate::denoising::{Cache, Call, Network, Parameterization};
use crate::noise::NoiseSource;
use crate::schedulers::{NoiseSchedule, VarianceType};
use crate::training::data::SplitMix64;
use crate::training::{ReverseVariance, VariationalBound};
use crate::{DType, Device, Error, NoiseLevel, Result};
use candle_core::Tensor;
use std::ops::Range;

/// A mean over pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanOfPictures {
    /// The mean.
    pub mean: f64,
    /// Its standard error, from the spread of the pictures.
    pub standard_error: f64,
}

impl MeanOfPictures {
    /// The mean of a value for each picture.
    ///
    /// # Errors
    /// If there are fewer than two, which have no spread.
    pub fn of(values: &[f64]) -> Result<Self> {
        if values.len() < 2 {
            let fix = "the standard error comes from the spread of pictures; give two or more";
            return Err(Error::invalid("the number of pictures", values.len(), fix));
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Ok(Self { mean, standard_error: (squares / (count * (count - 1.0))).sqrt() })
    }
}

/// The bound's terms on some pictures, in bits per dimension. Their sum bounds the bits that a picture's eight-bit values take from above.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundTerms {
    /// `L_T`: how far the last state's distribution is from the prior.
    pub prior: MeanOfPictures,
    /// `L_t` for `t` from 1, in groups of neighbouring timesteps, counted from 0 as networks are told them: the mean of a group's terms.
    /// With as many groups as there are timesteps each is a term.
    pub terms: Vec<(Range<usize>, MeanOfPictures)>,
    /// `L_0`: the bits of the eight-bit values given the state at the first timestep.
    pub decoder: MeanOfPictures,
    /// All of it.
    pub total: MeanOfPictures,
}

/// What evaluates the bound.
pub struct LikelihoodBound<'a> {
    network: &'a dyn Network,
    parameterization: &'a Parameterization,
    schedule: &'a NoiseSchedule,
    variance: VarianceType,
    bound: VariationalBound,
    /// Timesteps of which one is drawn for each picture; the first is 0 alone.
    groups: Vec<Range<usize>>,
    /// Of each picture so far: `L_T`, then the mean term of each group.
    found: Vec<Vec<f64>>,
    seed: u64,
}

impl<'a> LikelihoodBound<'a> {
    /// The bound of a network with a schedule and a variance of the reverse step. Each picture is looked at at `evaluations` timesteps:
    /// at 0, and at one drawn from each of so many groups of the others but one, which leaves the mean what it is. With as many as the
    /// schedule has, or more, nothing is drawn but noise.
    ///
    /// # Errors
    /// If the network has no variance and it is to be taken from it; if there is one evaluation for several timesteps, or none.
    pub fn new(
        network: &'a dyn Network,
        parameterization: &'a Parameterization,
        schedule: &'a NoiseSchedule,
        variance: VarianceType,
        evaluations: usize,
        seed: u64,
    ) -> Result<Self> {
        let learned = matches!(variance, VarianceType::Learned | VarianceType::LearnedRange);
        if learned && !parameterization.learned_variance {
            let fix = "the network gives none; take fixed-small or fixed-large";
            return Err(Error::invalid("the `variance`", "learned", fix));
        }
        let timesteps = schedule.num_train_timesteps();
        let evaluations = evaluations.min(timesteps);
        if evaluations < timesteps.min(2) {
            return Err(Error::invalid("the number of `evaluations`", evaluations, "give 2 or more"));
        }
        let (others, count) = (timesteps - 1, evaluations - 1);
        let groups = (0..count).map(|i| 1 + i * others / count..1 + (i + 1) * others / count);
        Ok(Self {
            network,
            parameterization,
            schedule,
            variance,
            bound: VariationalBound::new(schedule, 0.0),
            groups: std::iter::once(0..1).chain(groups).collect(),
            found: Vec::new(),
            seed,
        })
    }

    /// Adds pictures.
    ///
    /// # Shapes
    /// `x0`: `[batch, channels, height, width]`, eight-bit values scaled to `[-1, 1]`; `noise` has a stream for each of the batch.
    ///
    /// # Errors
    /// If the network or the noise fails, or a term is not a number.
    pub fn add(&mut self, x0: &Tensor, conditioning: &Conditioning, noise: &mut dyn NoiseSource) -> Result<()> {
        let batch = x0.dim(0)?;
        let mut found: Vec<Vec<f64>> = on_host(&self.bound.prior(x0)?)?.into_iter().map(|prior| vec![prior]).collect();
        let cache = Cache::default();
        // Each picture has a stream of its own, so that batches do not show.
        let numbers = (self.found.len()..).take(batch);
        let mut draws: Vec<_> = numbers.map(|number| SplitMix64::numbered(self.seed, number as u64)).collect();
        for group in &self.groups {
            let length = group.len() as u64;
            let timesteps: Vec<usize> =
                draws.iter_mut().map(|draws| group.start + draws.below(length) as usize).collect();
            let levels = timesteps.iter().map(|&t| self.schedule.level(t)).collect::<Result<Vec<_>>>()?;
            let epsilon = noise.normal(x0.dims())?.to_dtype(x0.dtype())?.to_device(x0.device())?;
            let terms = on_host(&self.terms(x0, &epsilon, &timesteps, &levels, conditioning, &cache)?)?;
            if let Some(term) = terms.iter().find(|term| !term.is_finite()) {
                return Err(Error::NotFinite {
                    stage: format!("the bound at timesteps {} to {}", group.start, group.end - 1),
                    detail: term.to_string(),
                    fix: "the model's weights are damaged, or a variance is 0",
                });
            }
            found.iter_mut().zip(terms).for_each(|(found, term)| found.push(term));
        }
        self.found.extend(found);
        Ok(())
    }

    /// The terms of each picture, at a timestep of its own.
    fn terms(
        &self,
        x0: &Tensor,
        epsilon: &Tensor,
        timesteps: &[usize],
        levels: &[NoiseLevel],
        conditioning: &Conditioning,
        cache: &Cache,
    ) -> Result<Tensor> {
        let rows = levels
            .iter()
            .enumerate()
            .map(|(i, level)| level.add_noise(&x0.narrow(0, i, 1)?, &epsilon.narrow(0, i, 1)?));
        let x_t = Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?;
        let raw = self.network.forward(&Call::of_rows(&x_t, levels, conditioning, cache))?;
        let (mut predicted, mut variances) = (Vec::new(), Vec::new());
        for (i, level) in levels.iter().enumerate() {
            let prediction = self.parameterization.convert(raw.narrow(0, i, 1)?, &x_t.narrow(0, i, 1)?, level)?;
            predicted.push(prediction.x0);
            variances.extend(prediction.variance);
        }
        let variances = if variances.is_empty() { None } else { Some(Tensor::cat(&variances, 0)?) };
        let variance = match (self.variance, &variances) {
            (VarianceType::Learned, Some(logarithms)) => ReverseVariance::Logarithm(logarithms),
            (VarianceType::LearnedRange, Some(share)) => ReverseVariance::Share(share),
            (VarianceType::FixedLarge, _) => ReverseVariance::Large,
            _ => ReverseVariance::Small,
        };
        self.bound.terms(x0, &x_t, &Tensor::cat(&predicted, 0)?, variance, timesteps)
    }

    /// The mean over all pictures.
    ///
    /// # Errors
    /// If there are fewer than two, which have no spread.
    pub fn finish(self) -> Result<BoundTerms> {
        let mean = |of: &dyn Fn(&Vec<f64>) -> f64| MeanOfPictures::of(&self.found.iter().map(of).collect::<Vec<_>>());
        let lengths: Vec<f64> = self.groups.iter().map(|group| group.len() as f64).collect();
        let total =
            |found: &Vec<f64>| found[0] + found[1..].iter().zip(&lengths).map(|(term, n)| term * n).sum::<f64>();
        let terms = self.groups.iter().enumerate().skip(1);
        let terms = terms.map(|(i, group)| Ok((group.clone(), mean(&|found| found[i + 1])?)));
        Ok(BoundTerms {
            prior: mean(&|found| found[0])?,
            decoder: mean(&|found| found[1])?,
            terms: terms.collect::<Result<_>>()?,
            total: mean(&total)?,
        })
    }
}

fn on_host(values: &Tensor) -> Result<Vec<f64>> {
    Ok(values.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoising::PredictionType;
    use crate::noise::TorchNoise;
    use crate::schedulers::BetaSchedule;

    /// Deviation of the data, of independent normal values with mean 0.
    const DEVIATION: f64 = 0.35;

    /// Knows `E[x0 | x_t]` of such data.
    struct Exact;

    impl Network for Exact {
        fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
            let crate::denoising::RowLevels::Each(levels) = call.levels else {
                return Err(Error::invalid("the levels", "shared", "give one for each row"));
            };
            let rows = levels.iter().enumerate().map(|(i, level)| {
                let share = level.alpha * DEVIATION.powi(2) / marginal(level);
                Ok((call.x.narrow(0, i, 1)? * share)?)
            });
            Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
        }
    }

    fn marginal(level: &NoiseLevel) -> f64 {
        (level.alpha * DEVIATION).powi(2) + level.sigma.powi(2)
    }

    /// Every term of the bound against its closed form: the divergence of normal distributions whose means are apart by what the state
    /// does not say of x0.
    #[test]
    fn the_bound_of_a_network_that_is_exact_on_normal_data() -> Result<()> {
        let schedule = NoiseSchedule::from_betas(&BetaSchedule::Linear.betas(1e-3, 0.2, 20))?;
        let parameterization = Parameterization::new(PredictionType::Sample);
        let (pictures, dims) = (400, 64.0);
        // Values are whole levels, whose rounding adds 1 / 12 of a squared level to the variance, 2e-5 of it.
        let x0 = TorchNoise::shared(7).normal(&[pictures, 1, 8, 8])?.to_dtype(DType::F64)?;
        let x0 = (((x0 * DEVIATION)?.clamp(-1.0, 1.0)?.affine(127.5, 127.5)?.round()? / 127.5)? - 1.0)?;
        let mut totals = Vec::new();
        for variance in [VarianceType::FixedSmall, VarianceType::FixedLarge] {
            let mut bound = LikelihoodBound::new(&Exact, &parameterization, &schedule, variance, 20, 1)?;
            for start in [0, pictures / 2] {
                let half = x0.narrow(0, start, pictures / 2)?;
                let seeds: Vec<u64> = (0..pictures / 2).map(|i| (start + i) as u64).collect();
                bound.add(&half, &Conditioning::default(), &mut TorchNoise::per_image(&seeds))?;
            }
            let got = bound.finish()?;
            let (abar, betas) = (schedule.alphas_cumprod(), schedule.betas());
            let near = |name: &str, got: MeanOfPictures, want: f64| {
                let MeanOfPictures { mean, standard_error } = got;
                assert!((mean - want).abs() < 4.5 * standard_error + 1e-6, "{variance:?} {name}: {got:?} {want}");
            };
            let last = abar[19];
            let of_prior = 0.5 * (last * DEVIATION.powi(2) + (1.0 - last) - 1.0 - (1.0 - last).ln());
            near("prior", got.prior, of_prior / std::f64::consts::LN_2);
            assert_eq!(got.terms.len(), 19);
            for (group, term) in &got.terms {
                assert_eq!(group.len(), 1);
                let (t, level) = (group.start, schedule.level(group.start)?);
                let small = betas[t] * (1.0 - abar[t - 1]) / (1.0 - abar[t]);
                let taken = if variance == VarianceType::FixedSmall { small } else { betas[t] };
                let unknown = DEVIATION.powi(2) * level.sigma.powi(2) / marginal(&level);
                let apart = (betas[t] * abar[t - 1].sqrt() / (1.0 - abar[t])).powi(2) * unknown;
                let nats = 0.5 * (small / taken - 1.0 + (taken / small).ln() + apart / taken);
                near(&format!("term {t}"), *term, nats / std::f64::consts::LN_2);
            }
            let sum = got.prior.mean + got.decoder.mean + got.terms.iter().map(|(_, term)| term.mean).sum::<f64>();
            assert!((got.total.mean - sum).abs() < 1e-9);
            totals.push(got.total.mean);
        }
        // No code is shorter than the entropy: that of a normal density, in levels of 2 / 255.
        let entropy = (DEVIATION * (2.0 * std::f64::consts::PI * std::f64::consts::E).sqrt() * 127.5).log2();
        let least = totals.iter().fold(f64::INFINITY, |least, &total| least.min(total));
        let error = 4.0 * 0.5 / (pictures as f64 * dims).sqrt() / std::f64::consts::LN_2;
        assert!(least > entropy - error && least < entropy + 1.0, "{totals:?} {entropy}");
        Ok(())
    }

    /// Few evaluations have the mean of all.
    #[test]
    fn drawn_timesteps_leave_the_mean_as_it_is() -> Result<()> {
        let schedule = NoiseSchedule::from_betas(&BetaSchedule::Linear.betas(1e-3, 0.2, 20))?;
        let parameterization = Parameterization::new(PredictionType::Sample);
        let x0 = (TorchNoise::shared(3).normal(&[3000, 1, 2, 2])? * DEVIATION)?.clamp(-1.0, 1.0)?;
        let total = |evaluations| {
            let mut bound =
                LikelihoodBound::new(&Exact, &parameterization, &schedule, VarianceType::FixedSmall, evaluations, 2)?;
            bound.add(&x0, &Conditioning::default(), &mut TorchNoise::shared(4))?;
            Ok::<_, Error>(bound.finish()?.total)
        };
        let (few, all) = (total(4)?, total(50)?);
        assert!((few.mean - all.mean).abs() < 4.5 * few.standard_error, "{few:?} {all:?}");
        assert!(few.standard_error > all.standard_error);
        let learned = VarianceType::LearnedRange;
        assert!(LikelihoodBound::new(&Exact, &parameterization, &schedule, learned, 4, 2).is_err());
        assert!(LikelihoodBound::new(&Exact, &parameterization, &schedule, VarianceType::FixedSmall, 1, 2).is_err());
        Ok(())
    }
}
