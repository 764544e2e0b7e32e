//! Schedulers alone, on a network that is a formula.

mod cases;

use candle_core::{DType, Tensor};
use cases::{Case, TestResult, cases, run_all};
use std::cell::RefCell;
use std::ops::ControlFlow;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Denoiser, Network};
use tweedie::noise::TorchNoise;
use tweedie::schedulers::{Run, SCHEDULERS, by_class_name, sample};

/// Of the largest value. diffusers computes its schedules in f32.
const TOLERANCE: f64 = 1e-5;
/// The first sigma is 4096 there, and its square is added to one in f32.
const TOLERANCE_EULER_ZERO_SNR: f64 = 1e-4;

/// `0.6 sin(x) + 0.1 cos(t / 100)`, and `cos(2 x)` as further channels if a variance is wanted. Records what
/// it is shown.
struct FakeModel {
    learned: bool,
    seen: RefCell<Vec<Tensor>>,
}

impl Network for FakeModel {
    fn forward(&self, x: &Tensor, timestep: f64, _: &Conditioning) -> tweedie::Result<Tensor> {
        self.seen.borrow_mut().push(x.clone());
        let y = x.sin()?.affine(0.6, 0.1 * (timestep / 100.0).cos())?;
        Ok(if self.learned { Tensor::cat(&[&y, &(x * 2.0)?.cos()?], 1)? } else { y })
    }
}

fn run(case: &Case) -> TestResult {
    let class_name = case.json["scheduler"]["name"].as_str().unwrap_or_default();
    let mut config = case.scheduler_config();
    for field in ["eta", "use_clipped_model_output"] {
        if let Some(value) = case.json.get(field) {
            config.insert(field.into(), value.clone());
        }
    }
    let scheduler = by_class_name(class_name)?.build(&ConfigFields::from_fields("scheduler", config))?;
    let steps = case.json["steps"].as_u64().ok_or("no steps")? as usize;
    let levels = scheduler.levels(steps)?;
    let tolerance = if case.name.contains("zsnr") && class_name.starts_with("Euler") {
        TOLERANCE_EULER_ZERO_SNR
    } else {
        TOLERANCE
    };

    // Tables. diffusers' are f32, the betas relative to a value near one.
    let schedule = scheduler.schedule();
    let abar = Tensor::new(schedule.alphas_cumprod(), &tweedie::Device::Cpu)?;
    case.check("alphas_cumprod", &abar, 1e-6)?;
    let betas = schedule.betas();
    let ends = [("betas.head", &betas[..8]), ("betas.tail", &betas[betas.len() - 8..])];
    for (name, betas) in ends {
        // The reference takes a difference to one in f32, so it is also off by up to two roundings of one.
        let want = case.numbers(name)?;
        let bound = 2.0 * f64::from(f32::EPSILON) + TOLERANCE * want.iter().fold(0.0, |a: f64, b| a.max(*b));
        let close = betas.iter().zip(&want).all(|(a, b)| (a - b).abs() <= bound);
        assert!(close, "{}: {name} is {betas:?}, expected {want:?}", case.name);
    }
    let (got, want) = (levels.timesteps(), case.numbers("timesteps")?);
    let same = got.len() == want.len() && got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-3);
    if class_name.starts_with("DDIM") || class_name.starts_with("DDPM") {
        assert!(same, "{}: timesteps {got:?}, expected {want:?}", case.name);
    }

    // The run. Its noise is the golden one's seed, its start as given.
    let network = FakeModel { learned: case.json["fake"] == "learned", seen: RefCell::default() };
    let conditioning = Conditioning::text(Tensor::zeros(1, DType::F32, &tweedie::Device::Cpu)?);
    let denoiser = Denoiser::new(&network, &conditioning, scheduler.parameterization());
    let mut noise = TorchNoise::shared(case.json["seed"].as_u64().ok_or("no seed")?);
    let start = case.stage("start")?;
    let first = tweedie::noise::NoiseSource::normal(&mut noise, start.dims())?;
    case.check("start", &(first * levels.init_noise_sigma())?, tolerance)?;
    let mut trajectory = Vec::new();
    let mut on_step = |step: &tweedie::schedulers::Step<'_>| {
        trajectory.push(step.latents.clone());
        ControlFlow::Continue(())
    };
    let run = Run::new(&levels, &denoiser, &mut noise);
    let end = sample(scheduler.solver().as_mut(), start.clone(), 0, run, &mut on_step)?;
    let reference = case.stage("traj")?;
    if reference.dim(0)? == trajectory.len() {
        case.check("traj", &Tensor::stack(&trajectory, 0)?, tolerance)?;
    }
    let last = reference.get(reference.dim(0)? - 1)?;
    case.check_against("the last of traj", &end, &last, tolerance)?;
    let seen = network.seen.borrow();
    if case.stages.contains_key("model_in") && case.stage("model_in")?.dim(0)? == seen.len() {
        case.check("model_in", &Tensor::stack(&seen, 0)?, tolerance)?;
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
