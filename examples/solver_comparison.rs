//! How far each deterministic solver is from the exact solution, by evaluations of the network: the plot in
//! `src/schedulers/CHOOSING.md`.
//!
//! `cargo run --release --example solver_comparison -- examples/pictures/solvers.png`
//!
//! The data are a mixture of two normal distributions, for which the exact denoiser is known, and with it the
//! exact solution: in one dimension the probability-flow ODE keeps every point's quantile.

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::error::Error;
use std::ops::ControlFlow;
use tweedie::Result;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Denoiser, Network};
use tweedie::images::{Plot, Series, encode_png};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{NoiseLevel, Run, SCHEDULERS, SigmaTable, Stochastic, by_name, sample};

/// Means and standard deviation of the two parts.
const MEANS: [f64; 2] = [-1.0, 1.0];
const SPREAD: f64 = 0.25;

/// Evaluations that are compared.
const EVALUATIONS: [usize; 8] = [6, 8, 12, 16, 24, 32, 48, 64];

/// The exact noise prediction for the mixture.
struct Mixture(SigmaTable);

impl Network for Mixture {
    fn forward(&self, x: &Tensor, timestep: f64, _: &Conditioning) -> Result<Tensor> {
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

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("give the name of the PNG file to write")?;
    // Stable Diffusion 1.x.
    let config = json!({
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false,
        "steps_offset": 1, "set_alpha_to_one": false, "skip_prk_steps": true,
    });
    let fields = ConfigFields::from_fields("scheduler", config.as_object().cloned().unwrap_or_default());
    let noise = TorchNoise::shared(0).normal(&[1, 1, 64, 64])?.to_dtype(DType::F64)?;
    let conditioning = Conditioning::text(Tensor::zeros(1, DType::F64, &Device::Cpu)?);

    let mut series = Vec::new();
    let deterministic = SCHEDULERS.iter().filter(|e| e.stochastic != Stochastic::Yes && !e.name.starts_with("edm"));
    let respaced = ["heun-karras", "dpm++2m-karras", "unipc-karras", "deis-karras"];
    for name in deterministic.map(|entry| entry.name).chain(respaced) {
        let choice = by_name(name)?;
        let scheduler = choice.build(&fields)?;
        let schedule = scheduler.schedule().ok_or("the forward process is not known")?;
        let network = Mixture(SigmaTable::new(schedule));
        let denoiser = Denoiser::new(&network, &conditioning, scheduler.parameterization());
        let mut points = Vec::new();
        for evaluations in EVALUATIONS {
            let levels = scheduler.levels(evaluations / choice.entry.evaluations)?;
            let start = (&noise * levels.init_noise_sigma())?;
            let end = levels.to(levels.len() - 1);
            let exact = at_quantile(&quantile(&start, &levels.from(0))?, &end)?;
            let mut source = TorchNoise::shared(0);
            let run = Run::new(&levels, &denoiser, &mut source);
            let mut solver = scheduler.solver();
            let got = sample(solver.as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
            let error = (got - exact)?.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt();
            points.push((evaluations as f64, error));
        }
        println!("{name:14} {}", points.iter().map(|p| format!("{:9.2e}", p.1)).collect::<String>());
        series.push(Series::marked(name, points, true));
    }
    let plot = Plot {
        title: "distance from the exact solution, mixture of two normals".into(),
        x_label: "evaluations of the network".into(),
        y_label: "root mean square error".into(),
        logarithmic: (true, true),
        series,
    };
    std::fs::write(&file, encode_png(&plot.draw()?, &[])?)?;
    println!("saved {file}");
    Ok(())
}
