//! How far each solver is from the exact solution, or from the data, by evaluations of the network: the plots
//! in `src/schedulers/CHOOSING.md`.
//!
//! `cargo run --release --example solver_comparison -- examples/pictures`
//!
//! The data are a mixture of two normal distributions, for which the exact denoiser is known, and with it the
//! exact solution: in one dimension the probability-flow ODE keeps every point's quantile.

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::error::Error;
use std::ops::ControlFlow;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Call, Denoiser, Network};
use tweedie::images::{Plot, Series};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Run, SCHEDULERS, SchedulerChoice, SchedulerEntry, SigmaTable, Stochastic, by_name, sample};
use tweedie::{NoiseLevel, Result};

/// Means and standard deviation of the two parts.
const MEANS: [f64; 2] = [-1.0, 1.0];
const SPREAD: f64 = 0.25;

/// Evaluations that are compared.
const EVALUATIONS: [usize; 8] = [6, 8, 12, 16, 24, 32, 48, 64];

/// The exact noise prediction for the mixture.
struct Mixture(SigmaTable);

impl Network for Mixture {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let (x, timestep) = (call.x, call.level()?.timestep);
        let NoiseLevel { alpha, sigma, .. } = NoiseLevel::from_sigma(timestep, self.0.sigma(timestep));
        let variance = (alpha * SPREAD).powi(2) + sigma * sigma;
        // E[x0 | x] mixes the parts' means by how likely each is; the log odds are linear in x.
        let [low, high] = MEANS;
        let slope = alpha * (high - low) / variance;
        let odds = (x - alpha * f64::midpoint(low, high))?.affine(slope, 0.0)?;
        let share = (odds.neg()?.exp()? + 1.0)?.recip()?;
        let mean = share.affine(high - low, low)?;
        let gain = alpha * SPREAD * SPREAD / variance;
        let x0 = ((&mean * (1.0 - alpha * gain))? + (x * gain)?)?;
        Ok(((x - (x0 * alpha)?)? / sigma)?)
    }
}

/// The share of the mixture's mass below each of `x` at a level.
fn quantile(x: &Tensor, level: &NoiseLevel) -> Result<Tensor> {
    let deviation = (level.alpha * SPREAD).hypot(level.sigma) * 2f64.sqrt();
    let below = |mean: f64| Ok::<_, tweedie::Error>((x - level.alpha * mean)?.affine(1.0 / deviation, 0.0)?.erf()?);
    Ok((below(MEANS[0])? + below(MEANS[1])?)?.affine(0.25, 0.5)?)
}

/// The points with the given shares of the mass below them at a level, by bisection.
fn at_quantile(shares: &Tensor, level: &NoiseLevel) -> Result<Tensor> {
    let (mut low, mut high) = ((shares.ones_like()? * -8.0)?, (shares.ones_like()? * 8.0)?);
    for _ in 0..60 {
        let middle = ((&low + &high)? * 0.5)?;
        let too_high = quantile(&middle, level)?.ge(shares)?;
        high = too_high.where_cond(&middle, &high)?;
        low = too_high.where_cond(&low, &middle)?;
    }
    Ok(((low + high)? * 0.5)?)
}

/// One run: where the points end, the level there, and where each would end exactly.
struct Outcome {
    got: Tensor,
    exact: Tensor,
    end: NoiseLevel,
}

fn run(choice: &SchedulerChoice, fields: &ConfigFields, evaluations: usize, noise: &Tensor) -> Result<Outcome> {
    let scheduler = choice.build(fields)?;
    let schedule = scheduler
        .schedule()
        .ok_or_else(|| tweedie::Error::invalid("the scheduler", choice.name(), "its forward process is not known"))?;
    let network = Mixture(SigmaTable::new(schedule));
    let conditioning = Conditioning::text(Tensor::zeros(1, DType::F64, &Device::Cpu)?);
    let denoiser = Denoiser::new(&network, &conditioning, scheduler.parameterization());
    let levels = scheduler.levels(evaluations / choice.entry.evaluations)?;
    let start = (noise * levels.init_noise_sigma())?;
    let end = levels.to(levels.len() - 1);
    let exact = at_quantile(&quantile(&start, &levels.from(0))?, &end)?;
    let mut source = TorchNoise::shared(1);
    let run = Run::new(&levels, &denoiser, &mut source);
    let got = sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
    Ok(Outcome { got, exact, end })
}

fn root_mean_square(difference: &Tensor) -> Result<f64> {
    Ok(difference.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt())
}

/// How far each point is from where the exact solution takes it.
fn pathwise(outcome: &Outcome) -> Result<f64> {
    root_mean_square(&(&outcome.got - &outcome.exact)?)
}

/// How far the points are from the data as a whole, whichever went where: the Wasserstein-1 distance.
fn in_distribution(outcome: &Outcome) -> Result<f64> {
    let mut points = outcome.got.flatten_all()?.to_vec1::<f64>()?;
    points.sort_by(f64::total_cmp);
    let count = points.len();
    let shares: Vec<f64> = (0..count).map(|i| (i as f64 + 0.5) / count as f64).collect();
    let exact = at_quantile(&Tensor::new(shares, &Device::Cpu)?, &outcome.end)?;
    Ok((Tensor::new(points, &Device::Cpu)? - exact)?.abs()?.mean_all()?.to_scalar::<f64>()?)
}

fn plot(title: &str, y_label: &str, names: &[&str], distance: fn(&Outcome) -> Result<f64>) -> Result<Plot> {
    // Stable Diffusion 1.x.
    let config = json!({
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false,
        "steps_offset": 1, "set_alpha_to_one": false, "skip_prk_steps": true,
    });
    let mut fields = ConfigFields::from_fields("scheduler", config.as_object().cloned().unwrap_or_default());
    let noise = TorchNoise::shared(0).normal(&[1, 1, 192, 192])?.to_dtype(DType::F64)?;
    let mut series = Vec::new();
    for name in names {
        let (scheduler, eta) = name.split_once(" eta ").unwrap_or((name, "0"));
        fields = fields.with("eta", eta.parse::<f64>().unwrap_or(0.0));
        let choice = by_name(scheduler)?;
        let mut points = Vec::new();
        for evaluations in EVALUATIONS {
            points.push((evaluations as f64, distance(&run(&choice, &fields, evaluations, &noise)?)?));
        }
        println!("{name:20} {}", points.iter().map(|p| format!("{:9.2e}", p.1)).collect::<String>());
        series.push(Series::marked(*name, points, true));
    }
    Ok(Plot {
        title: title.into(),
        x_label: "evaluations of the network".into(),
        y_label: y_label.into(),
        logarithmic: (true, true),
        series,
    })
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("give the folder for the PNG files")?;
    // The schedulers of EDM and of rectified flow have forward processes of their own; LCM and TCD need a distilled network.
    let comparable =
        |entry: &&SchedulerEntry| !["edm-euler", "edm-heun", "flow-euler", "lcm", "tcd"].contains(&entry.name);
    let (stochastic, deterministic): (Vec<_>, Vec<_>) =
        SCHEDULERS.iter().filter(comparable).partition(|entry| entry.stochastic == Stochastic::Yes);
    let names = |entries: &[&'static SchedulerEntry], more: &[&'static str]| {
        entries.iter().map(|entry| entry.name).chain(more.iter().copied()).collect::<Vec<_>>()
    };
    let plots = [
        (
            "solvers.png",
            plot(
                "distance from the exact solution, mixture of two normals",
                "root mean square",
                &names(&deterministic, &["heun-karras", "dpm++2m-karras", "unipc-karras", "deis-karras"]),
                pathwise,
            )?,
        ),
        (
            "solvers-stochastic.png",
            plot(
                "distance from the data in distribution, mixture of two normals",
                "Wasserstein-1",
                &names(&stochastic, &["dpm++2m-sde-karras", "dpm++sde-karras", "ddim eta 1", "ddim", "dpm++2m-karras"]),
                in_distribution,
            )?,
        ),
    ];
    for (name, plot) in plots {
        let file = std::path::Path::new(&folder).join(name);
        plot.draw()?.save(&file, &[])?;
        println!("saved {}", file.display());
    }
    Ok(())
}
