//! Schedulers alone, on a network that is a formula.

mod cases;

use candle_core::{DType, Tensor};
use cases::{Case, TestResult, cases, run_all};
use std::cell::RefCell;
use std::ops::ControlFlow;
use tweedie::NoiseLevel;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Call, Denoiser, Network};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Levels, NoiseSchedule, Run, SCHEDULERS, Scheduler, Step, by_class_name, sample};

/// Of the largest value. diffusers computes its schedules in f32.
const TOLERANCE: f64 = 1e-5;
/// In sigma space the first sigma can be 4096 (zero terminal SNR) or 20291 (the cosine schedule), and its square is added to one in f32.
const TOLERANCE_OF_LARGE_SIGMAS: f64 = 1e-4;
const LARGE_SIGMA: f64 = 4000.0;

/// `0.6 sin(x) + 0.1 cos(t / 100)`, and `cos(2 x)` as further channels if a variance is wanted. Records what
/// it is shown.
struct FakeModel {
    learned: bool,
    seen: RefCell<Vec<Tensor>>,
    timesteps: RefCell<Vec<f64>>,
}

impl Network for FakeModel {
    fn forward(&self, call: &Call<'_>) -> tweedie::Result<Tensor> {
        let (x, timestep) = (call.x, call.level()?.timestep);
        self.seen.borrow_mut().push(x.clone());
        self.timesteps.borrow_mut().push(timestep);
        let y = x.sin()?.affine(0.6, 0.1 * (timestep / 100.0).cos())?;
        Ok(if self.learned { Tensor::cat(&[&y, &(x * 2.0)?.cos()?], 1)? } else { y })
    }
}

fn run(case: &Case) -> TestResult {
    let class_name = case.json["scheduler"]["name"].as_str().unwrap_or_default();
    let mut config = case.scheduler_config();
    for field in ["eta", "use_clipped_model_output", "timesteps", "sigmas"] {
        if let Some(value) = case.json.get(field) {
            config.insert(field.into(), value.clone());
        }
    }
    let scheduler = by_class_name(class_name)?.build(&ConfigFields::from_fields("scheduler", config))?;
    let steps = case.json["steps"].as_u64().ok_or("no steps")? as usize;
    let levels = scheduler.levels(steps)?;
    let first = levels.from(0);
    let large_sigma = first.alpha == 1.0 && first.sigma > LARGE_SIGMA;
    let tolerance = if large_sigma { TOLERANCE_OF_LARGE_SIGMAS } else { TOLERANCE };

    check_tables(case, scheduler.as_ref(), &levels)?;

    // The run. Its noise is the golden one's seed, its start as given.
    let network =
        FakeModel { learned: case.json["fake"] == "learned", seen: RefCell::default(), timesteps: RefCell::default() };
    let conditioning = Conditioning::text(Tensor::zeros(1, DType::F32, &tweedie::Device::Cpu)?);
    let denoiser = Denoiser::new(&network, &conditioning, scheduler.parameterization());
    let mut noise = TorchNoise::shared(case.json["seed"].as_u64().ok_or("no seed")?);
    let start = case.stage("start")?;
    let first = noise.normal(start.dims())?;
    case.check("start", &(&first * levels.init_noise_sigma())?, tolerance)?;
    check_add_noise(case, &levels, &first)?;

    // diffusers makes a step of every evaluation, so the state after a step of ours is that after the last
    // evaluation in it.
    let mut states = Vec::new();
    let mut on_step = |step: &Step<'_>| {
        states.push((network.seen.borrow().len() - 1, step.latents.clone()));
        ControlFlow::Continue(())
    };
    let run = Run::new(&levels, &denoiser, &mut noise);
    let first_step = case.json["start"].as_u64().unwrap_or(0) as usize;
    sample(scheduler.solver().as_mut(), start.clone(), first_step, run, &mut on_step)?;
    let reference = case.stage("traj")?;
    let (after, states): (Vec<usize>, Vec<Tensor>) = states.into_iter().unzip();
    let wanted = after.iter().map(|&i| Ok(reference.get(i)?)).collect::<TestResult<Vec<_>>>()?;
    case.check_against("traj", &Tensor::stack(&states, 0)?, &Tensor::stack(&wanted, 0)?, tolerance)?;
    let evaluations = after.last().map_or(0, |last| last + 1);
    ensure(evaluations == reference.dim(0)?, || format!("{}: {evaluations} evaluations", case.name))?;

    // Every state that the network was shown, those inside of steps included.
    let shown = match case.stages.get("model_in") {
        Some(shown) => shown.clone(),
        None => Tensor::cat(&[&start.unsqueeze(0)?, &reference.narrow(0, 0, reference.dim(0)? - 1)?], 0)?,
    };
    case.check_against("model_in", &Tensor::stack(&network.seen.borrow(), 0)?, &shown, tolerance)?;
    let (got, want) = (network.timesteps.borrow(), case.numbers("timesteps")?);
    let bound = TOLERANCE * want.iter().fold(0.0, |a: f64, b| a.max(*b));
    let same = got.len() == want.len() && got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= bound);
    ensure(same, || format!("{}: timesteps {got:?}, expected {want:?}", case.name))
}

fn ensure(holds: bool, message: impl FnOnce() -> String) -> TestResult {
    if holds { Ok(()) } else { Err(message().into()) }
}

/// The forward process and the levels. diffusers' are f32, the betas relative to a value near one.
fn check_tables(case: &Case, scheduler: &dyn Scheduler, levels: &Levels) -> TestResult {
    let betas = scheduler.schedule().map(NoiseSchedule::betas).unwrap_or_default();
    let mut ends = Vec::new();
    if let Some(schedule) = scheduler.schedule() {
        let abar = Tensor::new(schedule.alphas_cumprod(), &tweedie::Device::Cpu)?;
        case.check("alphas_cumprod", &abar, 1e-6)?;
        ends.extend([("betas.head", &betas[..8]), ("betas.tail", &betas[betas.len() - 8..])]);
    }
    for (name, betas) in ends {
        // The reference takes a difference to one in f32, so it is also off by up to two roundings of one.
        let want = case.numbers(name)?;
        let bound = 2.0 * f64::from(f32::EPSILON) + TOLERANCE * want.iter().fold(0.0, |a: f64, b| a.max(*b));
        let close = betas.iter().zip(&want).all(|(a, b)| (a - b).abs() <= bound);
        ensure(close, || format!("{}: {name} is {betas:?}, expected {want:?}", case.name))?;
    }
    if let Ok(mut want) = case.numbers("sigmas") {
        // Two evaluations in a step repeat a sigma, and so does an end that stays where it is.
        let last = levels.to(levels.len() - 1);
        let variance_preserving = |l: &NoiseLevel| (l.alpha.hypot(l.sigma) - 1.0).abs() < 1e-9;
        let preserving = (0..levels.len()).all(|i| variance_preserving(&levels.from(i)));
        let noise = |l: NoiseLevel| if preserving { l.sigma / l.alpha } else { l.sigma };
        let mut got: Vec<f64> = (0..levels.len()).map(|i| levels.from(i)).chain([last]).map(noise).collect();
        want.dedup();
        got.dedup();
        // The least sigma is the root of a difference to one, off by its f32 rounding.
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= TOLERANCE * b + f64::from(f32::EPSILON) / b.max(1e-9);
        let same = got.len() == want.len() && got.iter().zip(&want).all(close);
        ensure(same, || format!("{}: sigmas {got:?}, expected {want:?}", case.name))?;
    }
    Ok(())
}

/// A clean sample noised to the starts of three steps.
fn check_add_noise(case: &Case, levels: &Levels, noise: &Tensor) -> TestResult {
    let values = Tensor::arange(0u32, noise.elem_count() as u32, noise.device())?.to_dtype(DType::F64)?;
    let clean = values.affine(2.0 / (noise.elem_count() - 1) as f64, -1.0)?.reshape(noise.dims())?;
    let Some(want) = case.stages.get("add_noise.out") else { return Ok(()) };
    for (k, timestep) in case.numbers("add_noise.t")?.into_iter().enumerate() {
        let at: Vec<usize> =
            (0..levels.len()).filter(|&i| (levels.from(i).timestep - timestep).abs() <= 1e-3).collect();
        // Of two steps with one timestep diffusers takes the second; none of ours starts inside of a step.
        let Some(&i) = at.get(1).or(at.first()) else { continue };
        let batch = noise.dim(0)?;
        let noised = levels.from(i).add_noise(&clean, &noise.to_dtype(DType::F64)?)?;
        case.check_against("add_noise.out", &noised, &want.narrow(0, k * batch, batch)?, TOLERANCE)?;
    }
    Ok(())
}

#[test]
fn golden_scheduler_tables_and_runs() -> TestResult {
    let covered = |name: &str| SCHEDULERS.iter().any(|entry| entry.class_name == name);
    let cases = cases("schedulers", |json| json["scheduler"]["name"].as_str().is_some_and(covered))?;
    run_all(&cases, run);
    Ok(())
}

/// The state after a run of ten steps on the network that is a formula, with the run's levels.
fn drawn(scheduler: &dyn Scheduler) -> TestResult<(Levels, Vec<f64>)> {
    let network = FakeModel { learned: false, seen: RefCell::default(), timesteps: RefCell::default() };
    let conditioning = Conditioning::default();
    let denoiser = Denoiser::new(&network, &conditioning, scheduler.parameterization());
    let (levels, mut noise) = (scheduler.levels(10)?, TorchNoise::shared(1));
    let start = (noise.normal(&[1, 2, 4, 4])?.to_dtype(DType::F64)? * levels.init_noise_sigma())?;
    let run = Run::new(&levels, &denoiser, &mut noise);
    let end = sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
    Ok((levels, end.flatten_all()?.to_vec1()?))
}

/// A scheduler of which nothing is said is one of which all of diffusers' defaults are, with what its pipelines add.
#[test]
fn golden_defaults_of_every_class() -> TestResult {
    let path = cases::roots()[0].join("scheduler_defaults.json");
    let defaults: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    for entry in SCHEDULERS {
        let Some(fields) = defaults["classes"][entry.class_name].as_object() else {
            return Err(format!("{} has no recorded defaults", entry.class_name).into());
        };
        let by_class = by_class_name(entry.class_name)?;
        let nothing = ConfigFields::from_fields("scheduler", serde_json::Map::new());
        let said = ConfigFields::from_fields("scheduler", fields.clone());
        let unsaid = drawn(by_class.build(&by_class.with_pipeline_defaults(nothing))?.as_ref())?;
        ensure(unsaid == drawn(by_class.build(&said)?.as_ref())?, || format!("{}: other defaults", entry.class_name))?;
    }
    Ok(())
}
