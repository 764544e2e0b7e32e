//! Every solver on data whose exact denoiser is known: how fast its error falls, and where its noise leads.
//!
//! All in f64. The data is a mixture of normal distributions, so `E[x0 | x]` is a formula. In one dimension
//! the probability-flow ODE keeps the quantile of a point, and for one normal distribution it keeps the
//! standardised value: that gives the exact end of a run without integrating anything.

use candle_core::{DType, Device, Tensor};
use std::ops::ControlFlow;
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{Call, Denoiser, Network, Parameterization, PredictionType};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{
    AlgorithmType, Churn, Clock, DdimSolver, DdpmSolver, DeisSolver, Dpm2AncestralSolver, Dpm2Solver,
    DpmMultistepSolver, DpmSdeSolver, DpmSinglestepSolver, EulerAncestralSolver, EulerSolver, HeunSolver, LcmSolver,
    Levels, LmsSolver, MultistepOptions, PndmSolver, Run, SinglestepOptions, Solver, SolverType, UniPcOptions,
    UniPcSolver, UniPcVariant, VarianceType, by_name, sample,
};
use tweedie::{NoiseLevel, Result};

/// A normal distribution with a weight in a mixture.
#[derive(Clone, Copy)]
struct Component {
    weight: f64,
    mean: f64,
    std: f64,
}

const NORMAL: [Component; 1] = [Component { weight: 1.0, mean: 0.4, std: 0.5 }];
const MIXTURE: [Component; 2] =
    [Component { weight: 0.35, mean: -1.1, std: 0.3 }, Component { weight: 0.65, mean: 0.7, std: 0.45 }];

/// The exact `E[epsilon | x]` of variance-preserving states. The timestep is the half log-SNR, so the network
/// knows alpha and sigma. Channels are independent, each with the same distribution.
struct Exact {
    data: &'static [Component],
    /// From the timestep to the half log-SNR.
    lambda: fn(f64) -> f64,
}

/// `alpha^2` and `sigma^2` at a half log-SNR.
fn squares(lambda: f64) -> (f64, f64) {
    let alpha = 1.0 / (1.0 + (-2.0 * lambda).exp());
    (alpha, 1.0 - alpha)
}

impl Network for Exact {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let (x, timestep) = (call.x, call.level()?.timestep);
        let (alpha2, sigma2) = squares((self.lambda)(timestep));
        let (alpha, sigma) = (alpha2.sqrt(), sigma2.sqrt());
        let values = x.flatten_all()?.to_vec1::<f64>()?;
        let epsilon = values.iter().map(|&x| {
            let parts = self.data.iter().map(|c| {
                let variance = alpha2 * c.std * c.std + sigma2;
                let off = x - alpha * c.mean;
                let x0 = c.mean + alpha * c.std * c.std / variance * off;
                (c.weight / variance.sqrt() * (-off * off / (2.0 * variance)).exp(), x0)
            });
            let (total, weighted) = parts.fold((0.0, 0.0), |(t, w), (p, x0)| (t + p, w + p * x0));
            (x - alpha * weighted / total) / sigma
        });
        Ok(Tensor::from_vec(epsilon.collect::<Vec<f64>>(), x.dims(), x.device())?)
    }
}

/// The ends of the interval in half log-SNR; no level of any run is 0, which DDPM takes for its last timestep.
const START: f64 = -2.03;
const END: f64 = 1.71;

/// Which space a solver works in.
#[derive(Clone, Copy, PartialEq)]
enum Space {
    VariancePreserving,
    Sigma,
}

fn level(space: Space, lambda: f64) -> NoiseLevel {
    match space {
        Space::VariancePreserving => NoiseLevel::from_sigma(lambda, (-lambda).exp()),
        Space::Sigma => NoiseLevel { timestep: lambda, alpha: 1.0, sigma: (-lambda).exp() },
    }
}

fn clocked(levels: Levels) -> Levels {
    levels.with_clock(Clock::LogSigma { scale: -1.0 })
}

/// Half log-SNRs of a run of `steps` even steps.
fn even(steps: usize) -> Vec<f64> {
    (0..=steps).map(|i| START + (END - START) * i as f64 / steps as f64).collect()
}

/// The same after a warm-up: the first step is cut into ones that double from a thousandth of it, so that the
/// low order of a multistep method's first steps does not show.
fn warmed(steps: usize) -> Vec<f64> {
    let h = (END - START) / steps as f64;
    let cuts = (1..=10).rev().map(|k| START + h / f64::from(1 << k));
    std::iter::once(START).chain(cuts).chain(even(steps).into_iter().skip(1)).collect()
}

fn chain(space: Space, lambdas: &[f64]) -> Levels {
    let levels: Vec<NoiseLevel> = lambdas.iter().map(|&lambda| level(space, lambda)).collect();
    clocked(Levels::chain(&levels, 1.0))
}

/// One step per evaluation, as PNDM has them: the second level twice.
fn corrected_start(lambdas: &[f64]) -> Levels {
    let at = |i: usize| level(Space::VariancePreserving, lambdas[i]);
    let mut pairs: Vec<_> = (0..lambdas.len() - 1).map(|i| (at(i), at(i + 1))).collect();
    pairs.insert(1, pairs[1]);
    clocked(Levels::steps(&pairs, 1.0))
}

/// Three Runge-Kutta steps of four evaluations, then one per step.
fn runge_kutta_start(lambdas: &[f64]) -> Levels {
    let at = |lambda: f64| level(Space::VariancePreserving, lambda);
    let mut pairs = Vec::new();
    for (i, ends) in lambdas.windows(2).enumerate() {
        let (start, middle, end) = (at(ends[0]), at(f64::midpoint(ends[0], ends[1])), at(ends[1]));
        match i {
            0..3 => pairs.extend([(start, middle), (middle, middle), (middle, end), (end, end)]),
            _ => pairs.push((start, end)),
        }
    }
    clocked(Levels::steps(&pairs, 1.0))
}

/// Runs a solver from `x`, given and returned as `x / alpha`.
fn run(data: &'static [Component], solver: &mut dyn Solver, levels: &Levels, x: &Tensor, seed: u64) -> Result<Tensor> {
    let network = Exact { data, lambda: |timestep| timestep };
    run_network(&network, solver, levels, x, seed)
}

fn run_network(
    network: &dyn Network,
    solver: &mut dyn Solver,
    levels: &Levels,
    x: &Tensor,
    seed: u64,
) -> Result<Tensor> {
    let parameterization = Parameterization::new(PredictionType::Epsilon);
    let conditioning = Conditioning::text(Tensor::zeros(1, DType::F32, &Device::Cpu)?);
    let denoiser = Denoiser::new(network, &conditioning, &parameterization);
    let mut noise = TorchNoise::shared(seed);
    let run = Run::new(levels, &denoiser, &mut noise);
    let start = (x * levels.from(0).alpha)?;
    let end = sample(solver, start, 0, run, &mut |_| ControlFlow::Continue(()))?;
    Ok((end / levels.to(levels.len() - 1).alpha)?)
}

/// The distribution function at `x / alpha` with noise over signal `sigma`.
fn distribution(data: &[Component], x: f64, sigma: f64) -> Result<f64> {
    let standard = data.iter().map(|c| (x - c.mean) / (c.std.hypot(sigma) * 2f64.sqrt())).collect::<Vec<_>>();
    let erf = Tensor::new(standard, &Device::Cpu)?.erf()?.to_vec1::<f64>()?;
    Ok(data.iter().zip(erf).map(|(c, erf)| c.weight * 0.5 * (1.0 + erf)).sum())
}

/// Where the ODE takes `x / alpha`: to the point with the same quantile.
fn transported(data: &[Component], x: f64) -> Result<f64> {
    let (from, to) = ((-START).exp(), (-END).exp());
    if let [only] = data {
        return Ok(only.mean + (x - only.mean) * only.std.hypot(to) / only.std.hypot(from));
    }
    let quantile = distribution(data, x, from)?;
    let (mut low, mut high) = (-20.0, 20.0);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if distribution(data, middle, to)? < quantile { low = middle } else { high = middle }
    }
    Ok(f64::midpoint(low, high))
}

/// The largest error over a spread of starting points.
fn error(data: &'static [Component], solver: &mut dyn Solver, levels: &Levels) -> Result<f64> {
    let starts: Vec<f64> = (-6..=6).map(|i| f64::from(i) * 2.3 + 0.1).collect();
    let wanted = starts.iter().map(|&x| transported(data, x)).collect::<Result<Vec<f64>>>()?;
    // Two dimensions: the points in one channel, their reverse in the other.
    let count = starts.len();
    let both = |values: &[f64]| -> Result<Tensor> {
        let pairs: Vec<f64> = (0..count).flat_map(|i| [values[i], values[count - 1 - i]]).collect();
        Ok(Tensor::from_vec(pairs, (count, 2, 1, 1), &Device::Cpu)?)
    };
    let end = run(data, solver, levels, &both(&starts)?, 0)?;
    Ok((end - both(&wanted)?)?.abs()?.max_all()?.to_scalar::<f64>()?)
}

/// The slope of the error between `steps` and twice as many.
fn slope(
    data: &'static [Component],
    solver: &dyn Fn() -> Box<dyn Solver>,
    levels: &dyn Fn(usize) -> Levels,
    steps: usize,
) -> Result<f64> {
    let coarse = error(data, solver().as_mut(), &levels(steps))?;
    let fine = error(data, solver().as_mut(), &levels(2 * steps))?;
    Ok((coarse / fine).log2())
}

/// What theory says of a slope.
enum Theory {
    /// It is this.
    Is(f64),
    /// It is at least this.
    AtLeast(f64),
}

fn check(
    name: &str,
    theory: &Theory,
    solver: &dyn Fn() -> Box<dyn Solver>,
    levels: &dyn Fn(usize) -> Levels,
) -> Result<()> {
    for (kind, data) in [("normal", &NORMAL[..]), ("mixture", &MIXTURE[..])] {
        let slope = slope(data, solver, levels, 96)?;
        println!("{name:36} {kind:8} {slope:.2}");
        let holds = match theory {
            Theory::Is(order) => (slope - order).abs() <= 0.25,
            Theory::AtLeast(order) => slope >= order - 0.25,
        };
        assert!(holds, "{name} on the {kind}: slope {slope}");
    }
    Ok(())
}

fn multistep(order: usize, algorithm: AlgorithmType, solver_type: SolverType) -> Box<dyn Solver> {
    let options = MultistepOptions { order, algorithm, solver_type, ..MultistepOptions::default() };
    Box::new(DpmMultistepSolver::new(options))
}

fn singlestep(order: usize, algorithm: AlgorithmType, solver_type: SolverType) -> Box<dyn Solver> {
    let options = SinglestepOptions { order, algorithm, solver_type, ..SinglestepOptions::default() };
    Box::new(DpmSinglestepSolver::new(options))
}

fn unipc(order: usize, predict_x0: bool, variant: UniPcVariant) -> Box<dyn Solver> {
    Box::new(UniPcSolver::new(UniPcOptions { order, predict_x0, variant, ..UniPcOptions::default() }))
}

const ODES: [AlgorithmType; 2] = [AlgorithmType::DpmSolverPlusPlus, AlgorithmType::DpmSolver];

#[test]
fn one_step_methods_have_their_order() -> Result<()> {
    let sigma = |steps: usize| chain(Space::Sigma, &even(steps));
    let preserving = |steps: usize| chain(Space::VariancePreserving, &even(steps));
    check("Euler", &Theory::Is(1.0), &|| Box::new(EulerSolver::default()), &sigma)?;
    check("DDIM", &Theory::Is(1.0), &|| Box::new(DdimSolver::default()), &preserving)?;
    check("Heun", &Theory::Is(2.0), &|| Box::new(HeunSolver::default()), &sigma)?;
    check("DPM2", &Theory::Is(2.0), &|| Box::new(Dpm2Solver), &sigma)?;
    for algorithm in ODES {
        for solver_type in [SolverType::Midpoint, SolverType::Heun] {
            let name = |order: usize| format!("singlestep {order} {algorithm:?} {solver_type:?}");
            check(&name(1), &Theory::Is(1.0), &|| singlestep(1, algorithm, solver_type), &preserving)?;
            check(&name(2), &Theory::Is(2.0), &|| singlestep(2, algorithm, solver_type), &preserving)?;
            check(&name(3), &Theory::AtLeast(3.0), &|| singlestep(3, algorithm, solver_type), &preserving)?;
        }
    }
    Ok(())
}

#[test]
fn multistep_methods_have_their_order() -> Result<()> {
    let preserving = |steps: usize| chain(Space::VariancePreserving, &even(steps));
    let warm = |steps: usize| chain(Space::VariancePreserving, &warmed(steps));
    for algorithm in ODES {
        for solver_type in [SolverType::Midpoint, SolverType::Heun] {
            let name = |order: usize| format!("multistep {order} {algorithm:?} {solver_type:?}");
            check(&name(1), &Theory::Is(1.0), &|| multistep(1, algorithm, solver_type), &preserving)?;
            check(&name(2), &Theory::Is(2.0), &|| multistep(2, algorithm, solver_type), &preserving)?;
            // The reference takes half of the second difference that a third order needs.
            check(&name(3), &Theory::AtLeast(2.0), &|| multistep(3, algorithm, solver_type), &warm)?;
        }
    }
    for order in 1..=3 {
        let theory = Theory::AtLeast(order as f64);
        check(&format!("DEIS {order}"), &theory, &|| Box::new(DeisSolver::new(order, false)), &warm)?;
        for variant in [UniPcVariant::Bh1, UniPcVariant::Bh2] {
            for predict_x0 in [true, false] {
                let name = format!("UniPC {order} {variant:?} x0 {predict_x0}");
                check(&name, &theory, &|| unipc(order, predict_x0, variant), &warm)?;
            }
        }
    }
    let sigma = |steps: usize| chain(Space::Sigma, &warmed(steps));
    check("LMS", &Theory::AtLeast(4.0), &|| Box::new(LmsSolver::default()), &sigma)
}

/// Liu et al. (2022) prove order 2.
#[test]
fn pndm_has_its_order() -> Result<()> {
    let corrected = |steps: usize| corrected_start(&even(steps));
    let runge_kutta = |steps: usize| runge_kutta_start(&even(steps));
    check("PNDM", &Theory::AtLeast(2.0), &|| Box::new(PndmSolver::new(0)), &corrected)?;
    check("PNDM with Runge-Kutta", &Theory::AtLeast(2.0), &|| Box::new(PndmSolver::new(12)), &runge_kutta)
}

/// Draws of the exact distribution at the start of the interval, as `x / alpha`.
fn draws(data: &[Component], count: usize, sigma: f64, seed: u64) -> Result<Tensor> {
    let mut source = TorchNoise::shared(seed);
    let normal = source.normal(&[count, 1, 1, 1])?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let mut edge = 0.0;
    let mut values = Vec::with_capacity(count);
    for c in data {
        // As many of each component as its weight says, which takes away a part of the sampling error.
        let first = (edge * count as f64).round() as usize;
        edge += c.weight;
        let last = (edge * count as f64).round() as usize;
        values.extend(normal[first..last].iter().map(|z| c.mean + c.std.hypot(sigma) * z));
    }
    Ok(Tensor::from_vec(values, (count, 1, 1, 1), &Device::Cpu)?)
}

/// Mean and variance of the exact distribution of `x / alpha`.
fn moments(data: &[Component], sigma: f64) -> (f64, f64) {
    let mean = data.iter().map(|c| c.weight * c.mean).sum::<f64>();
    let square = data.iter().map(|c| c.weight * (c.mean * c.mean + c.std * c.std)).sum::<f64>();
    (mean, square - mean * mean + sigma * sigma)
}

const DRAWS: usize = 20_000;
const STEPS: usize = 300;

/// Whether a sample has the right mean and variance within four standard errors and the bias that first-order
/// steps leave.
///
/// The standard error of the mean is `std / sqrt(n)`, that of the variance at most `variance * sqrt(2 / n)` for
/// data without heavier tails than the normal distribution's; the bias is allowed 1.5 % of each.
fn check_moments(name: &str, data: &[Component], sigma: f64, end: &Tensor) -> Result<()> {
    let values = end.flatten_all()?.to_vec1::<f64>()?;
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let (wanted_mean, wanted_variance) = moments(data, sigma);
    let mean_bound = wanted_variance.sqrt() * (4.0 / n.sqrt() + 0.015);
    let variance_bound = wanted_variance * (4.0 * (2.0 / n).sqrt() + 0.015);
    println!(
        "{name:28} mean {:+.4} of {mean_bound:.4}, variance {:+.4} of {variance_bound:.4}",
        mean - wanted_mean,
        variance - wanted_variance
    );
    assert!((mean - wanted_mean).abs() < mean_bound, "{name}: mean {mean}, expected {wanted_mean}");
    assert!(
        (variance - wanted_variance).abs() < variance_bound,
        "{name}: variance {variance}, expected {wanted_variance}"
    );
    Ok(())
}

fn check_stochastic(name: &str, space: Space, solver: &dyn Fn() -> Box<dyn Solver>) -> Result<()> {
    for (seed, data) in [(1, &NORMAL[..]), (2, &MIXTURE[..])] {
        let start = draws(data, DRAWS, (-START).exp(), seed)?;
        let end = run(data, solver().as_mut(), &chain(space, &even(STEPS)), &start, seed + 100)?;
        check_moments(name, data, (-END).exp(), &end)?;
    }
    Ok(())
}

#[test]
fn stochastic_solvers_in_sigma_space_keep_the_distribution() -> Result<()> {
    let churn = Churn { churn: 8.0, ..Churn::default() };
    check_stochastic("Euler ancestral", Space::Sigma, &|| Box::new(EulerAncestralSolver))?;
    check_stochastic("DPM2 ancestral", Space::Sigma, &|| Box::new(Dpm2AncestralSolver))?;
    check_stochastic("DPM++ SDE", Space::Sigma, &|| Box::new(DpmSdeSolver))?;
    check_stochastic("Euler with churn", Space::Sigma, &|| Box::new(EulerSolver { churn }))?;
    check_stochastic("Heun with churn", Space::Sigma, &|| Box::new(HeunSolver { churn }))
}

#[test]
fn stochastic_solvers_of_the_sde_keep_the_distribution() -> Result<()> {
    let preserving = Space::VariancePreserving;
    check_stochastic("DDIM, eta 1", preserving, &|| Box::new(DdimSolver { eta: 1.0, ..DdimSolver::default() }))?;
    check_stochastic("DDIM, eta 0.5", preserving, &|| Box::new(DdimSolver { eta: 0.5, ..DdimSolver::default() }))?;
    check_stochastic("DDPM", preserving, &|| Box::new(DdpmSolver { variance_type: VarianceType::FixedSmall }))?;
    for algorithm in [AlgorithmType::SdeDpmSolver, AlgorithmType::SdeDpmSolverPlusPlus] {
        for solver_type in [SolverType::Midpoint, SolverType::Heun] {
            for order in 1..=2 {
                let name = format!("{order} {algorithm:?} {solver_type:?}");
                check_stochastic(&name, preserving, &|| multistep(order, algorithm, solver_type))?;
            }
        }
    }
    let plus_plus = AlgorithmType::SdeDpmSolverPlusPlus;
    check_stochastic("2S SDE", preserving, &|| singlestep(2, plus_plus, SolverType::Midpoint))
}

/// TCD counts in timesteps, so it runs on a schedule's own; data with unit variance is then where it starts.
#[test]
fn tcd_keeps_the_distribution() -> Result<()> {
    let fields = serde_json::json!({"original_inference_steps": 500, "eta": 0.3});
    let fields = fields.as_object().cloned().unwrap_or_default();
    let scheduler = by_name("tcd")?.build(&tweedie::config::ConfigFields::from_fields("scheduler", fields))?;
    let levels = scheduler.levels(250)?;
    let network = Exact { data: &MIXTURE, lambda: stable_diffusion_lambda };
    let (first, last) = (levels.from(0), levels.to(levels.len() - 1));
    let start = draws(&MIXTURE, DRAWS, first.sigma / first.alpha, 5)?;
    let end = run_network(&network, scheduler.solver().as_mut(), &levels, &start, 105)?;
    check_moments("TCD", &MIXTURE, last.sigma / last.alpha, &end)
}

/// The half log-SNR of a timestep of Stable Diffusion, from the definition of its betas.
fn stable_diffusion_lambda(timestep: f64) -> f64 {
    let beta = |i: usize| (0.00085f64.sqrt() + (0.012f64.sqrt() - 0.00085f64.sqrt()) * i as f64 / 999.0).powi(2);
    let abar: f64 = (0..=timestep.round() as usize).map(|i| 1.0 - beta(i)).product();
    0.5 * (abar / (1.0 - abar)).ln()
}

/// A consistency model's output at the end of a trajectory is the trajectory's clean end. With one point as
/// data the exact denoiser is one, and LCM returns the point from wherever it starts.
#[test]
fn lcm_returns_the_data_of_a_consistent_network() -> Result<()> {
    static POINT: [Component; 1] = [Component { weight: 1.0, mean: 0.8, std: 0.0 }];
    let mut levels: Vec<NoiseLevel> = even(4).iter().map(|&l| level(Space::VariancePreserving, l)).collect();
    for level in &mut levels {
        level.timestep += 1000.0;
    }
    levels.push(NoiseLevel { timestep: 0.0, alpha: 1.0, sigma: 0.0 });
    let network = Exact { data: &POINT, lambda: |timestep| timestep - 1000.0 };
    let start = Tensor::new(&[-9.0f64, 0.0, 4.0], &Device::Cpu)?.reshape((3, 1, 1, 1))?;
    let mut solver = LcmSolver { timestep_scaling: 10.0 };
    let end = run_network(&network, &mut solver, &Levels::chain(&levels, 1.0), &start, 7)?;
    // The skip connection keeps (0.5 / 10^4)^2 of the state.
    for value in end.flatten_all()?.to_vec1::<f64>()? {
        assert!((value - 0.8).abs() < 1e-6, "{value}");
    }
    Ok(())
}
