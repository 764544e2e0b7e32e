//! Diffusion in continuous time on data whose densities, scores and flows are known in closed form. All in f64.

use candle_core::{DType, Device, Tensor};
use tweedie::NoiseLevel;
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{Call, Denoiser, Network, Parameterization, PredictionType};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{BetaSchedule, NoiseSchedule};
use tweedie::score_based::{
    AnnealedLangevin, DenoiserScore, DormandPrince, EIGHT_BIT_OFFSET, NoiseConditionalScore, PredictorCorrector,
    ProbabilityFlow, Probes, ReverseSde, Score, VpSde, uniformly_dequantized,
};

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// A mixture of two Gaussians with diagonal covariances; of `[batch, ...]`, all but the first are its dimensions.
struct Mixture {
    /// Of the first component.
    weight: f64,
    means: [Vec<f64>; 2],
    variances: [Vec<f64>; 2],
}

impl Mixture {
    /// A single Gaussian is a mixture of it with itself.
    fn gaussian(mean: &[f64], variance: &[f64]) -> Self {
        Self { weight: 0.5, means: [mean.to_vec(), mean.to_vec()], variances: [variance.to_vec(), variance.to_vec()] }
    }

    fn plane() -> Self {
        Self { weight: 0.3, means: [vec![-1.0, 0.5], vec![1.2, -0.3]], variances: [vec![0.25, 0.1], vec![0.09, 0.4]] }
    }

    /// The variance of one component with noise, at one coordinate.
    fn noisy(&self, component: usize, i: usize, level: &NoiseLevel) -> f64 {
        level.alpha.powi(2) * self.variances[component][i] + level.sigma.powi(2)
    }

    /// The score of `alpha x0 + sigma epsilon`, by the derivative of the closed form.
    fn score(&self, x: &Tensor, level: &NoiseLevel) -> tweedie::Result<Tensor> {
        let flat = x.flatten_from(1)?;
        let d = flat.dim(1)?;
        let mut parts = Vec::new();
        for (component, weight) in [self.weight, 1.0 - self.weight].into_iter().enumerate() {
            let variance: Vec<f64> = (0..d).map(|i| self.noisy(component, i, level)).collect();
            let log_scale = weight.ln() - 0.5 * variance.iter().map(|v| v.ln()).sum::<f64>();
            let mean = (Tensor::new(self.means[component].as_slice(), &Device::Cpu)? * level.alpha)?;
            let deviation = flat.broadcast_sub(&mean)?;
            let pull = deviation.broadcast_div(&Tensor::from_vec(variance, d, &Device::Cpu)?)?.neg()?;
            let logit = ((&deviation * &pull)?.sum_keepdim(1)? * 0.5)?;
            parts.push(((logit + log_scale)?, pull));
        }
        // The first component's responsibility, a sigmoid that cannot overflow.
        let first = ((&parts[0].0 - &parts[1].0)? * 0.5)?.tanh()?.affine(0.5, 0.5)?;
        let score = (&parts[1].1 + (&parts[0].1 - &parts[1].1)?.broadcast_mul(&first)?)?;
        Ok(score.reshape(x.shape())?)
    }

    fn log_density(&self, x: &[f64], level: &NoiseLevel) -> f64 {
        let log = |component: usize, weight: f64| {
            let at = |(i, x): (usize, &f64)| {
                let variance = self.noisy(component, i, level);
                let deviation = x - level.alpha * self.means[component][i];
                -0.5 * (deviation * deviation / variance + (std::f64::consts::TAU * variance).ln())
            };
            f64::ln(weight) + x.iter().enumerate().map(at).sum::<f64>()
        };
        let (a, b) = (log(0, self.weight), log(1, 1.0 - self.weight));
        a.max(b) + (-(a - b).abs()).exp().ln_1p()
    }

    fn mean(&self, i: usize, level: &NoiseLevel) -> f64 {
        level.alpha * (self.weight * self.means[0][i] + (1.0 - self.weight) * self.means[1][i])
    }

    fn covariance(&self, i: usize, j: usize, level: &NoiseLevel) -> f64 {
        let part = |component: usize| {
            let apart = |i: usize| level.alpha * self.means[component][i] - self.mean(i, level);
            apart(i) * apart(j) + if i == j { self.noisy(component, i, level) } else { 0.0 }
        };
        self.weight * part(0) + (1.0 - self.weight) * part(1)
    }

    /// The largest deviation of the samples' means, covariances and total variance from the exact ones, in units of its standard
    /// error, after `bias` (relative to the standard deviations) is taken off.
    fn deviation(&self, samples: &Tensor, level: &NoiseLevel, bias: f64) -> tweedie::Result<f64> {
        let rows = samples.flatten_from(1)?.to_vec2::<f64>()?;
        let (n, d) = (rows.len() as f64, rows[0].len());
        // The exact moments are those of the mean of `f(row)`, whose standard error comes from its own spread.
        let standard_errors = |f: &dyn Fn(&[f64]) -> f64, exact: f64, size: f64| {
            let mean = rows.iter().map(|row| f(row)).sum::<f64>() / n;
            let variance = rows.iter().map(|row| (f(row) - mean).powi(2)).sum::<f64>() / n;
            ((mean - exact).abs() - bias * size).max(0.0) / (variance / n).sqrt()
        };
        let squares = |row: &[f64]| (0..d).map(|i| (row[i] - self.mean(i, level)).powi(2)).sum::<f64>();
        let trace = (0..d).map(|i| self.covariance(i, i, level)).sum();
        let mut worst = standard_errors(&squares, trace, trace);
        for i in 0..d {
            let size = self.covariance(i, i, level).sqrt();
            worst = worst.max(standard_errors(&|row| row[i], self.mean(i, level), size));
            for j in 0..=i {
                let product = |row: &[f64]| (row[i] - self.mean(i, level)) * (row[j] - self.mean(j, level));
                let size = size * self.covariance(j, j, level).sqrt();
                worst = worst.max(standard_errors(&product, self.covariance(i, j, level), size));
            }
        }
        Ok(worst)
    }
}

fn normal(seed: u64, shape: &[usize]) -> tweedie::Result<Tensor> {
    Ok(TorchNoise::shared(seed).normal(shape)?.to_dtype(DType::F64)?)
}

fn distance(a: &Tensor, b: &Tensor) -> tweedie::Result<f64> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar::<f64>()?)
}

/// Whose prior is exact: `alpha(1)` is 1e-11, so that no likelihood differs on its account.
fn far_sde() -> tweedie::Result<VpSde> {
    VpSde::new(0.1, 100.0)
}

fn tight() -> tweedie::Result<DormandPrince> {
    DormandPrince::new(1e-9, 1e-9)
}

/// The marginals against `d alpha^2 / dt = -beta alpha^2`, integrated numerically.
#[test]
fn marginals_solve_the_equations_of_their_moments() -> TestResult {
    let sde = VpSde::new(0.1, 20.0)?;
    let shares = |x: &Tensor, t: f64| Ok((x * -sde.beta(t))?);
    for t in [0.01, 0.3, 1.0] {
        let start = Tensor::new(&[[1.0f64]], &Device::Cpu)?;
        let abar = tight()?.integrate(&shares, &start, 0.0, t)?.x.sum_all()?.to_scalar::<f64>()?;
        let level = sde.marginal(t);
        assert!((level.alpha.powi(2) - abar).abs() < 1e-8, "{t}");
        assert!((level.alpha.powi(2) + level.sigma.powi(2) - 1.0).abs() < 1e-14, "{t}");
        assert!((sde.time_of(level.alpha_cumprod()) - t).abs() < 1e-10, "{t}");
    }
    let schedule = NoiseSchedule::from_betas(&BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000))?;
    let through = VpSde::through(&schedule)?;
    assert!((through.marginal(0.001).alpha_cumprod() - schedule.alphas_cumprod()[0]).abs() < 1e-12);
    assert!((through.marginal(1.0).alpha_cumprod() - schedule.alphas_cumprod()[999]).abs() < 1e-12);
    assert!(VpSde::through(&schedule.with_zero_terminal_snr()).is_err());
    assert!(VpSde::new(0.0, 20.0).is_err() && VpSde::new(0.1, f64::NAN).is_err());
    Ok(())
}

/// `dx/dt = x cos t`, which `exp(sin t)` solves, in steps of one length: the error falls with the fifth power
/// of the length, and so does the estimate of one step's error, which is that of the order 4.
#[test]
fn dormand_prince_has_order_five_and_its_estimate_order_four() -> TestResult {
    let field = |x: &Tensor, t: f64| Ok((x * t.cos())?);
    let one = Tensor::new(&[[1.0f64]], &Device::Cpu)?;
    let global = |steps: usize| -> tweedie::Result<f64> {
        let h = 3.0 / steps as f64;
        let (mut x, mut slope) = (one.clone(), field(&one, 0.0)?);
        for i in 0..steps {
            let step = DormandPrince::step(&field, &x, i as f64 * h, h, &slope)?;
            (x, slope) = (step.x, step.slope);
        }
        Ok((x.sum_all()?.to_scalar::<f64>()? - 3f64.sin().exp()).abs())
    };
    let slope = (global(32)? / global(64)?).log2();
    assert!((slope - 5.0).abs() < 0.25, "order {slope}");

    let local = |h: f64| -> tweedie::Result<f64> {
        let step = DormandPrince::step(&field, &one, 0.0, h, &field(&one, 0.0)?)?;
        Ok(step.error.abs()?.sum_all()?.to_scalar::<f64>()?)
    };
    let slope = (local(0.1)? / local(0.05)?).log2();
    assert!((slope - 5.0).abs() < 0.25, "the estimate of order 4 has a local order of {slope}");
    Ok(())
}

/// Tolerances 1e-4 to 1e-10: the error stays within a small multiple, and the evaluations grow as the fifth
/// root, tenfold by 10^5.
#[test]
fn the_integrator_keeps_its_tolerance_at_the_price_of_its_order() -> TestResult {
    let field = |x: &Tensor, t: f64| Ok((x * t.cos())?);
    let one = Tensor::new(&[[1.0f64]], &Device::Cpu)?;
    let mut last = f64::INFINITY;
    for tolerance in [1e-4, 1e-6, 1e-8, 1e-10] {
        for (from, to) in [(0.0, 10.0), (10.0, 0.0)] {
            let start = (&one * f64::exp(f64::sin(from)))?;
            let solution = DormandPrince::new(tolerance, tolerance)?.integrate(&field, &start, from, to)?;
            let error = (solution.x.sum_all()?.to_scalar::<f64>()? - f64::exp(f64::sin(to))).abs();
            assert!(error < 20.0 * tolerance && error < last, "{error:e} at tolerance {tolerance:e}");
            assert_eq!(solution.evaluations, 2 + 6 * (solution.accepted + solution.rejected));
            if to == 0.0 {
                last = error;
            }
        }
    }
    let steps = |tolerance: f64| -> tweedie::Result<f64> {
        Ok(DormandPrince::new(tolerance, tolerance)?.integrate(&field, &one, 0.0, 100.0)?.accepted as f64)
    };
    let growth = steps(1e-11)? / steps(1e-6)?;
    assert!((growth.log10() - 1.0).abs() < 0.1, "{growth}");
    Ok(())
}

#[test]
fn the_integrator_says_when_it_cannot_go_on() -> TestResult {
    let one = Tensor::new(&[[1.0f64]], &Device::Cpu)?;
    let message = |result: tweedie::Result<_>| result.err().map(|error| error.to_string()).unwrap_or_default();
    // x' = x^2 from 1 is infinite at t = 1.
    let singular = message(DormandPrince::default().integrate(&|x, _| Ok(x.sqr()?), &one, 0.0, 2.0));
    assert!(singular.contains("too short") && singular.contains("t = 1"), "{singular}");
    let stiff = DormandPrince { max_steps: 50, ..DormandPrince::default() };
    let stiff = message(stiff.integrate(&|x, _| Ok((x * -1e6)?), &one, 0.0, 1.0));
    assert!(stiff.contains("max_steps"), "{stiff}");
    let nowhere = message(DormandPrince::default().integrate(&|x, _| Ok((x / 0.0)?), &one, 0.0, 1.0));
    assert!(nowhere.contains("not finite"), "{nowhere}");
    assert!(DormandPrince::new(0.0, 0.0).is_err() && DormandPrince::new(-1.0, 1.0).is_err());
    Ok(())
}

/// On a Gaussian the flow keeps `(x - alpha mean) / deviation`.
#[test]
fn the_flow_of_a_gaussian_is_the_closed_form() -> TestResult {
    let (mean, variance) = ([0.4, -1.0, 0.0, 2.0], [0.04, 0.5, 1.0, 3.0]);
    let data = Mixture::gaussian(&mean, &variance);
    let sde = VpSde::new(0.1, 20.0)?;
    let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
    let flow = ProbabilityFlow::new(sde, &score, 1e-3, tight()?)?;
    let z = normal(1, &[8, 1, 2, 2])?;
    let (start, end) = (sde.marginal(1.0), sde.marginal(1e-3));
    let x = flow.decode(&z)?.x.flatten_from(1)?.to_vec2::<f64>()?;
    for (z, x) in z.flatten_from(1)?.to_vec2::<f64>()?.iter().zip(&x) {
        for i in 0..4 {
            let standard = (z[i] - start.alpha * mean[i]) / data.noisy(0, i, &start).sqrt();
            let expected = end.alpha * mean[i] + standard * data.noisy(0, i, &end).sqrt();
            assert!((x[i] - expected).abs() < 1e-7, "{} for {expected}", x[i]);
        }
    }
    Ok(())
}

/// In one dimension a flow keeps the order of points, hence each point's share of the distribution below it.
#[test]
fn the_flow_of_a_mixture_on_the_line_keeps_quantiles() -> TestResult {
    let data = Mixture { weight: 0.3, means: [vec![-1.0], vec![1.2]], variances: [vec![0.25], vec![0.09]] };
    let sde = VpSde::new(0.1, 20.0)?;
    let share_below = |x: &Tensor, level: &NoiseLevel| -> tweedie::Result<Tensor> {
        let part = |component: usize| -> tweedie::Result<Tensor> {
            let scale = (2.0 * data.noisy(component, 0, level)).sqrt();
            Ok(((x - level.alpha * data.means[component][0])? / scale)?.erf()?.affine(0.5, 0.5)?)
        };
        Ok(((part(0)? * data.weight)? + (part(1)? * (1.0 - data.weight))?)?)
    };
    let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
    let flow = ProbabilityFlow::new(sde, &score, 1e-3, tight()?)?;
    let z = Tensor::new(&[[-2.5f64], [-1.0], [-0.6], [-0.4], [0.0], [0.7], [2.0]], &Device::Cpu)?;
    let x = flow.decode(&z)?.x;
    let apart = distance(&share_below(&z, &sde.marginal(1.0))?, &share_below(&x, &sde.marginal(1e-3))?)?;
    assert!(apart < 1e-7, "{apart}");
    Ok(())
}

#[test]
fn data_to_noise_and_back_returns() -> TestResult {
    let (data, sde) = (Mixture::plane(), VpSde::new(0.1, 20.0)?);
    let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
    let x = normal(2, &[16, 2])?;
    let mut last = f64::INFINITY;
    for tolerance in [1e-5, 1e-7, 1e-9] {
        let flow = ProbabilityFlow::new(sde, &score, 1e-3, DormandPrince::new(tolerance, tolerance)?)?;
        let z = flow.encode(&x)?.x;
        let error = distance(&flow.decode(&z)?.x, &x)?;
        assert!(error < 20.0 * tolerance && error < last, "{error:e} at tolerance {tolerance:e}");
        assert!(distance(&z, &x)? > 0.1);
        last = error;
    }
    Ok(())
}

/// The ODE's likelihood against the closed form, exactly: along every axis on the mixture, and by one vector of
/// signs on the Gaussian, whose Jacobian is diagonal.
#[test]
fn likelihood_is_the_closed_form() -> TestResult {
    let sde = far_sde()?;
    let gaussian = Mixture::gaussian(&[0.4, -1.0, 0.0, 0.3], &[0.04, 0.5, 1.0, 3.0]);
    let cases = [(Mixture::plane(), vec![12, 2], Probes::Axes), (gaussian, vec![6, 1, 2, 2], Probes::Rademacher(1))];
    for (data, shape, probes) in cases {
        let x = normal(3, &shape)?;
        let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
        let flow = ProbabilityFlow::new(sde, &score, 1e-3, tight()?)?;
        let got = flow.log_likelihood(&x, probes, &mut TorchNoise::shared(4))?;
        let rows = x.flatten_from(1)?.to_vec2::<f64>()?;
        let bits = got.bits_per_dim(EIGHT_BIT_OFFSET);
        for ((row, nats), bits) in rows.iter().zip(&got.nats).zip(bits) {
            let expected = data.log_density(row, &sde.marginal(1e-3));
            assert!((nats - expected).abs() < 1e-7, "{probes:?}: {nats} for {expected}");
            let expected = 7.0 - expected / row.len() as f64 / 2f64.ln();
            assert!((bits - expected).abs() < 1e-6, "{bits} for {expected}");
        }
        assert!(got.standard_error.is_none());
        assert!(distance(&got.latents, &flow.encode(&x)?.x)? < 1e-7);

        // A score of the wrong sign is found out, as a result or as an error.
        let wrong = |x: &Tensor, t: f64| Ok(data.score(x, &sde.marginal(t))?.neg()?);
        let flow = ProbabilityFlow::new(sde, &wrong, 1e-3, DormandPrince::default())?;
        if let Ok(got) = flow.log_likelihood(&x, probes, &mut TorchNoise::shared(4)) {
            let apart = |(row, nats): (&Vec<f64>, &f64)| (nats - data.log_density(row, &sde.marginal(1e-3))).abs();
            assert!(rows.iter().zip(&got.nats).map(apart).fold(f64::INFINITY, f64::min) > 1.0);
        }
    }
    Ok(())
}

/// The estimate from random probes lies within 4.5 of its own standard errors (24 estimates), and these are
/// neither 0 nor large.
#[test]
fn stochastic_likelihood_is_within_its_standard_errors() -> TestResult {
    let (data, sde) = (Mixture::plane(), far_sde()?);
    let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
    let flow = ProbabilityFlow::new(sde, &score, 1e-3, DormandPrince::new(1e-6, 1e-6)?)?;
    let x = normal(5, &[12, 2])?;
    let rows = x.to_vec2::<f64>()?;
    for probes in [Probes::Rademacher(64), Probes::Gaussian(64)] {
        let got = flow.log_likelihood(&x, probes, &mut TorchNoise::shared(6))?;
        let errors = got.standard_error.clone().ok_or("no standard errors")?;
        for ((row, nats), error) in rows.iter().zip(&got.nats).zip(errors) {
            let apart = (nats - data.log_density(row, &sde.marginal(1e-3))).abs();
            assert!(apart < 4.5 * error + 1e-4 && error < 2.0, "{probes:?}: off by {apart}, standard error {error}");
            assert!(error > 1e-6, "{probes:?}: standard error {error}");
        }
    }
    assert!(Probes::Gaussian(0).draw(&x, &mut TorchNoise::shared(0)).is_err());
    let detached = |x: &Tensor, t: f64| Ok(score(x, t)?.detach());
    let flow = ProbabilityFlow::new(sde, &detached, 1e-3, DormandPrince::default())?;
    let message = flow.log_likelihood(&x, Probes::Axes, &mut TorchNoise::shared(0)).err().map(|e| e.to_string());
    assert!(message.is_some_and(|message| message.contains("derivative")));
    Ok(())
}

/// In f32, type in, type out, the likelihood is right to the tolerance, 1e-5 relative to some 10 nats of change.
#[test]
fn tensors_keep_their_type() -> TestResult {
    let (data, sde) = (Mixture::plane(), VpSde::new(0.1, 100.0)?);
    let score =
        |x: &Tensor, t: f64| Ok(data.score(&x.to_dtype(DType::F64)?, &sde.marginal(t))?.to_dtype(DType::F32)?);
    let wide = normal(3, &[12, 2])?;
    let x = wide.to_dtype(DType::F32)?;
    let flow = ProbabilityFlow::new(sde, &score, 1e-3, DormandPrince::default())?;
    let got = flow.log_likelihood(&x, Probes::Axes, &mut TorchNoise::shared(0))?;
    for (row, nats) in wide.to_vec2::<f64>()?.iter().zip(&got.nats) {
        let expected = data.log_density(row, &sde.marginal(1e-3));
        assert!((nats - expected).abs() < 2e-3, "{nats} for {expected}");
    }
    let (reverse, times) = (ReverseSde::new(sde, &score), sde.reverse_times(3, 0.1));
    let noise = &mut TorchNoise::shared(0);
    for samples in [
        got.latents,
        flow.decode(&x)?.x,
        reverse.euler_maruyama(x.clone(), &times, noise)?,
        PredictorCorrector::default().sample(&reverse, x.clone(), &times, noise)?,
        AnnealedLangevin::geometric(1.0, 0.1, 3, 1e-3, 2)?.sample(&score, x.clone(), noise)?,
    ] {
        assert_eq!(samples.dtype(), DType::F32);
    }
    Ok(())
}

#[test]
fn dequantized_pixels_fill_their_cells() -> TestResult {
    let pixels = Tensor::arange(0f64, 256.0, &Device::Cpu)?.repeat((40, 1))?;
    let x = uniformly_dequantized(&pixels, &mut TorchNoise::shared(7))?;
    let offsets = (x.affine(128.0, 128.0)? - pixels)?.flatten_all()?.to_vec1::<f64>()?;
    assert!(offsets.iter().all(|u| (0.0..=1.0).contains(u)));
    let n = offsets.len() as f64;
    let mean = offsets.iter().sum::<f64>() / n;
    let variance = offsets.iter().map(|u| (u - 0.5).powi(2)).sum::<f64>() / n;
    // 4.5 standard errors: of the mean sqrt(1 / 12 / n), of the variance sqrt((1 / 80 - 1 / 144) / n).
    assert!((mean - 0.5).abs() < 4.5 * (1.0 / 12.0 / n).sqrt(), "{mean}");
    assert!((variance - 1.0 / 12.0).abs() < 4.5 * (1.0f64 / 180.0 / n).sqrt(), "{variance}");
    Ok(())
}

/// 4.5 standard errors, beside a bias of 1 % for steps of `beta h` up to 0.04.
#[test]
fn euler_maruyama_reaches_the_moments_and_with_a_wrong_sign_does_not() -> TestResult {
    let sde = VpSde::new(0.1, 20.0)?;
    let times = sde.reverse_times(500, 1e-3);
    let x = normal(8, &[4000, 2])?;
    for data in [Mixture::plane(), Mixture::gaussian(&[0.7, -0.4], &[0.3, 2.0])] {
        let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
        let samples = ReverseSde::new(sde, &score).euler_maruyama(x.clone(), &times, &mut TorchNoise::shared(9))?;
        let worst = data.deviation(&samples, &sde.marginal(1e-3), 0.01)?;
        assert!(worst < 4.5, "{worst} standard errors");

        let wrong = |x: &Tensor, t: f64| Ok(score(x, t)?.neg()?);
        let samples = ReverseSde::new(sde, &wrong).euler_maruyama(x.clone(), &times, &mut TorchNoise::shared(9));
        if let Ok(samples) = samples {
            assert!(data.deviation(&samples, &sde.marginal(1e-3), 0.01)? > 20.0);
        }
    }
    Ok(())
}

fn line(from: f64, to: f64) -> Vec<f64> {
    (0..64).map(|i| from + (to - from) * i as f64 / 63.0).collect()
}

/// On "pictures" of 8 x 8, because the corrector's step follows from norms: 4.5 standard errors, beside a bias of
/// 5 %, of which the corrector's stationary density has `2 / 64 + 0.1^2`.
#[test]
fn predictor_corrector_reaches_the_moments_and_with_a_wrong_sign_does_not() -> TestResult {
    let data =
        Mixture { weight: 0.4, means: [line(-0.5, 0.3), line(0.4, 0.6)], variances: [line(0.2, 0.4), line(0.4, 0.3)] };
    let sde = VpSde::new(0.1, 20.0)?;
    let x = normal(10, &[1500, 1, 8, 8])?;
    let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
    let wrong = |x: &Tensor, t: f64| Ok(score(x, t)?.neg()?);
    for corrector_steps in [0, 1] {
        let sampler = PredictorCorrector { snr: 0.1, corrector_steps };
        let deviation = |score: &dyn Score, steps: usize| {
            let (reverse, times) = (ReverseSde::new(sde, score), sde.reverse_times(steps, 1e-3));
            let samples = sampler.sample(&reverse, x.clone(), &times, &mut TorchNoise::shared(11))?;
            data.deviation(&samples, &sde.marginal(1e-3), 0.05)
        };
        let worst = deviation(&score, 200)?;
        assert!(worst < 4.5, "{sampler:?}: {worst} standard errors");
        if let Ok(worst) = deviation(&wrong, 50) {
            assert!(worst > 20.0, "{sampler:?}: {worst} standard errors with a wrong sign");
        }
    }
    Ok(())
}

/// Too few steps of the predictor miss the variance; Langevin steps at each time make most of that good.
#[test]
fn a_corrector_corrects() -> TestResult {
    let data = Mixture::gaussian(&line(-0.5, 0.5), &line(0.2, 0.4));
    let sde = VpSde::new(0.1, 20.0)?;
    let x = normal(17, &[500, 1, 8, 8])?;
    let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
    let (reverse, times) = (ReverseSde::new(sde, &score), sde.reverse_times(10, 1e-3));
    let level = sde.marginal(1e-3);
    let variance_error = |corrector_steps: usize| -> tweedie::Result<f64> {
        let sampler = PredictorCorrector { snr: 0.16, corrector_steps };
        let samples = sampler.sample(&reverse, x.clone(), &times, &mut TorchNoise::shared(18))?;
        let mut squares = 0.0;
        for row in samples.flatten_from(1)?.to_vec2::<f64>()? {
            let standardised =
                |(i, x): (usize, &f64)| (x - data.mean(i, &level)).powi(2) / data.covariance(i, i, &level);
            squares += row.iter().enumerate().map(standardised).sum::<f64>();
        }
        Ok((squares / (500.0 * 64.0) - 1.0).abs())
    };
    let (alone, corrected) = (variance_error(0)?, variance_error(20)?);
    assert!(corrected < 0.5 * alone, "off by {corrected} with a corrector, {alone} without");
    Ok(())
}

/// 4.5 standard errors, beside a bias of 1.25 %: that of the discrete steps is `epsilon / (4 v)` of a variance `v`,
/// the least of which is 0.1.
#[test]
fn annealed_langevin_reaches_the_moments_and_with_a_wrong_sign_does_not() -> TestResult {
    let x = (normal(12, &[4000, 2])? * 5.0)?;
    let sampler = AnnealedLangevin::geometric(5.0, 0.1, 12, 0.005, 100)?;
    let level = |sigma: f64| NoiseLevel { timestep: 0.0, alpha: 1.0, sigma };
    for data in [Mixture::plane(), Mixture::gaussian(&[0.7, -0.4], &[0.3, 2.0])] {
        let score = |x: &Tensor, sigma: f64| data.score(x, &level(sigma));
        let samples = sampler.sample(&score, x.clone(), &mut TorchNoise::shared(13))?;
        let worst = data.deviation(&samples, &level(0.1), 0.0125)?;
        assert!(worst < 4.5, "{worst} standard errors");

        let wrong = |x: &Tensor, sigma: f64| Ok(score(x, sigma)?.neg()?);
        if let Ok(samples) = sampler.sample(&wrong, x.clone(), &mut TorchNoise::shared(13)) {
            assert!(data.deviation(&samples, &level(0.1), 0.0125)? > 20.0);
        }
    }
    assert!(AnnealedLangevin::new(vec![], 0.1, 1).is_err());
    assert!(AnnealedLangevin::new(vec![0.1, 0.2], 0.1, 1).is_err());
    Ok(())
}

/// With a stream of noise for each image, no image depends on the others: bit for bit in the stochastic
/// samplers, within the tolerance in the ODE, whose steps are common.
#[test]
fn images_of_a_batch_are_independent() -> TestResult {
    let (data, sde) = (Mixture::plane(), VpSde::new(0.1, 20.0)?);
    let score = |x: &Tensor, t: f64| data.score(x, &sde.marginal(t));
    let conditional = |x: &Tensor, sigma: f64| data.score(x, &NoiseLevel { timestep: 0.0, alpha: 1.0, sigma });
    let times = sde.reverse_times(20, 1e-2);
    let reverse = ReverseSde::new(sde, &score);
    let langevin = AnnealedLangevin::geometric(2.0, 0.1, 3, 0.005, 5)?;
    let corrector = PredictorCorrector::default();
    let flow = ProbabilityFlow::new(sde, &score, 1e-2, DormandPrince::new(1e-8, 1e-8)?)?;

    let seeds = [3, 1, 4];
    let x = normal(14, &[3, 2])?;
    let run = |x: &Tensor, seeds: &[u64]| -> tweedie::Result<[Tensor; 3]> {
        let noise = &mut TorchNoise::per_image(seeds);
        Ok([
            reverse.euler_maruyama(x.clone(), &times, noise)?,
            corrector.sample(&reverse, x.clone(), &times, noise)?,
            langevin.sample(&conditional, x.clone(), noise)?,
        ])
    };
    let likelihood =
        |x: &Tensor, seeds: &[u64]| flow.log_likelihood(x, Probes::Rademacher(2), &mut TorchNoise::per_image(seeds));
    let (together, nats) = (run(&x, &seeds)?, likelihood(&x, &seeds)?.nats);
    for i in 0..3 {
        let row = x.narrow(0, i, 1)?;
        let alone = run(&row, &seeds[i..=i])?;
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together.narrow(0, i, 1)?.to_vec2::<f64>()?, alone.to_vec2::<f64>()?);
        }
        assert!((likelihood(&row, &seeds[i..=i])?.nats[0] - nats[i]).abs() < 1e-6);
    }
    for times in [vec![1.0, 0.5, 0.5], vec![0.5, 0.0], vec![1.5, 1.0]] {
        assert!(reverse.euler_maruyama(x.clone(), &times, &mut TorchNoise::per_image(&seeds)).is_err());
    }
    Ok(())
}

/// A network that predicts perfectly, at timesteps between the trained ones by the log-SNR between theirs.
struct Perfect<'a> {
    data: &'a Mixture,
    schedule: &'a NoiseSchedule,
    kind: PredictionType,
}

impl Network for Perfect<'_> {
    fn forward(&self, call: &Call<'_>) -> tweedie::Result<Tensor> {
        let (x, timestep) = (call.x, call.level()?.timestep);
        let log_snr = |t: usize| {
            let level = NoiseLevel::variance_preserving(0.0, self.schedule.alphas_cumprod()[t]);
            2.0 * (level.alpha / level.sigma).ln()
        };
        let (below, share) = (timestep.floor() as usize, timestep.fract());
        let above = if share > 0.0 { below + 1 } else { below };
        let log_snr = log_snr(below) * (1.0 - share) + log_snr(above) * share;
        let level = NoiseLevel::variance_preserving(timestep, 1.0 / (1.0 + (-log_snr).exp()));
        let epsilon = (self.data.score(x, &level)? * -level.sigma)?;
        let x0 = ((x - (&epsilon * level.sigma)?)? / level.alpha)?;
        Ok(match self.kind {
            PredictionType::Epsilon => epsilon,
            PredictionType::Sample => x0,
            PredictionType::VPrediction => ((epsilon * level.alpha)? - (x0 * level.sigma)?)?,
            PredictionType::Edm | PredictionType::Flow => {
                return Err(tweedie::Error::invalid("the prediction", "EDM's or a flow's", "not tested here"));
            }
        })
    }
}

/// Whatever the network predicts and whatever its betas, the adapter gives the score in the SDE's time and in
/// sigma, and with it the likelihood.
#[test]
fn a_denoising_network_gives_the_score() -> TestResult {
    let data = Mixture::gaussian(&[0.4, -1.0, 0.0, 0.3], &[0.04, 0.5, 1.0, 3.0]);
    let schedule = NoiseSchedule::from_betas(&BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000))?;
    let conditioning = Conditioning::text(Tensor::zeros((2, 1, 1), DType::F64, &Device::Cpu)?);
    let x = normal(15, &[2, 1, 2, 2])?;
    for kind in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
        let network = Perfect { data: &data, schedule: &schedule, kind };
        let parameterization = Parameterization::new(kind);
        let denoiser = Denoiser::new(&network, &conditioning, &parameterization);
        for sde in [VpSde::through(&schedule)?, VpSde::new(0.1, 20.0)?] {
            let adapter = DenoiserScore::new(&denoiser, &schedule, sde)?;
            let (earliest, latest) = adapter.times();
            for t in [earliest, 0.1, 0.3, latest] {
                let expected = data.score(&x, &sde.marginal(t))?;
                let error = distance(&adapter.score(&x, t)?, &expected)? / sde.marginal(t).sigma.recip();
                assert!(error < 1e-9, "{kind:?} at {t}: {error}");
            }
            assert!(adapter.score(&x, 0.5 * earliest).is_err());
            for sigma in [0.05, 1.0, 10.0] {
                let expected = data.score(&x, &NoiseLevel { timestep: 0.0, alpha: 1.0, sigma })?;
                assert!(distance(&adapter.noise_conditional_score(&x, sigma)?, &expected)? < 1e-8, "{kind:?} {sigma}");
            }
            let message = adapter.noise_conditional_score(&x, 100.0).err().map(|error| error.to_string());
            assert!(message.is_some_and(|message| message.contains("was trained from")));
        }

        let sde = VpSde::through(&schedule)?;
        let adapter = DenoiserScore::new(&denoiser, &schedule, sde)?;
        let earliest = adapter.times().0;
        let flow = ProbabilityFlow::new(sde, &adapter, earliest, DormandPrince::new(1e-8, 1e-8)?)?;
        let got = flow.log_likelihood(&x, Probes::Rademacher(1), &mut TorchNoise::shared(1))?;
        let z = got.latents.flatten_from(1)?.to_vec2::<f64>()?;
        for ((x, z), nats) in x.flatten_from(1)?.to_vec2::<f64>()?.iter().zip(z).zip(got.nats) {
            // This schedule ends at alpha = 0.07: the prior's density in place of the SDE's is part of the method.
            let standard = Mixture::gaussian(&[0.0; 4], &[1.0; 4]);
            let prior = standard.log_density(&z, &sde.marginal(1.0)) - data.log_density(&z, &sde.marginal(1.0));
            let expected = data.log_density(x, &sde.marginal(earliest)) + prior;
            assert!((nats - expected).abs() < 1e-6, "{kind:?}: {nats} for {expected}");
        }
    }
    Ok(())
}

/// Tweedie's formula against the mean of the posterior, a product of Gaussians.
#[test]
fn denoised_is_the_posterior_mean() -> TestResult {
    let (mean, variance) = (0.4, 0.25);
    let data = Mixture::gaussian(&[mean], &[variance]);
    let (sde, t) = (VpSde::new(0.1, 20.0)?, 0.3);
    let x = normal(16, &[5, 1])?;
    let NoiseLevel { alpha, sigma, .. } = sde.marginal(t);
    let precision = 1.0 / variance + (alpha / sigma).powi(2);
    let expected = x.affine(alpha / sigma.powi(2) / precision, mean / variance / precision)?;
    let got = sde.denoised(&x, &data.score(&x, &sde.marginal(t))?, t)?;
    assert!(distance(&got, &expected)? < 1e-12);
    Ok(())
}
