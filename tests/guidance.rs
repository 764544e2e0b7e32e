//! When and how strongly guidance acts, in runs of every kind of noise level.

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::cell::RefCell;
use std::ops::ControlFlow;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{
    AdaptiveProjectedGuidance, Branch, Call, ClassifierFreeGuidance, Denoiser, GuidanceSchedule, GuidanceShape,
    Network, PerturbedAttentionGuidance, Projection,
};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Run, Scheduler, by_name, sample};
use tweedie::{NoiseLevel, Result};

const SCALE: f64 = 7.5;
const PAG_SCALE: f64 = 2.0;

/// Answers each branch with a number of its own: of plain guidance, what comes out is then the scale.
struct Constants;

impl Network for Constants {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let (rows, channels, height, width) = call.x.dims4()?;
        let group = rows / call.branches.len();
        let parts = call.branches.iter().map(|branch| {
            let value = match branch {
                Branch::Prompted => 1.0,
                Branch::Unprompted => 0.0,
                Branch::Perturbed => 0.25,
            };
            Ok(Tensor::full(value, (group, channels, height, width), call.x.device())?)
        });
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// Keeps what comes out at which level.
struct Recorder<'a> {
    network: &'a dyn Network,
    outputs: RefCell<Vec<(NoiseLevel, f64)>>,
}

impl Network for Recorder<'_> {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let raw = self.network.forward(call)?;
        let first = raw.flatten_all()?.get(0)?.to_scalar::<f64>()?;
        self.outputs.borrow_mut().push((call.level()?, first));
        Ok(raw)
    }
}

/// One of each kind of level: discrete and respaced timesteps, logarithms of sigma, EDM's sigmas, rectified flow.
fn schedulers() -> Result<Vec<(&'static str, Box<dyn Scheduler>)>> {
    let file = |fields: serde_json::Value| {
        ConfigFields::from_fields("scheduler", fields.as_object().cloned().unwrap_or_default())
    };
    let latent =
        json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false});
    let continuous = json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "timestep_type": "continuous", "prediction_type": "v_prediction"});
    Ok(vec![
        ("ddim", by_name("ddim")?.build(&file(latent.clone()))?),
        ("euler", by_name("euler")?.build(&file(latent.clone()))?),
        ("dpm++2m-karras", by_name("dpm++2m-karras")?.build(&file(latent))?),
        ("euler, continuous", by_name("euler")?.build(&file(continuous))?),
        ("edm-euler", by_name("edm-euler")?.build(&file(json!({})))?),
        ("flow-euler", by_name("flow-euler")?.build(&file(json!({})))?),
    ])
}

/// What a network gives in a run, by level.
fn outputs(scheduler: &dyn Scheduler, network: &dyn Network, steps: usize) -> Result<Vec<(NoiseLevel, f64)>> {
    let recorder = Recorder { network, outputs: RefCell::default() };
    let (levels, conditioning) = (scheduler.levels(steps)?, Conditioning::default());
    let denoiser = Denoiser::new(&recorder, &conditioning, scheduler.parameterization());
    let mut noise = TorchNoise::shared(1);
    let x = (noise.normal(&[2, 1, 2, 2])?.to_dtype(DType::F64)? * levels.init_noise_sigma())?;
    let run = Run::new(&levels, &denoiser, &mut noise);
    sample(scheduler.solver().as_mut(), x, 0, run, &mut |_| ControlFlow::Continue(()))?;
    Ok(recorder.outputs.into_inner())
}

/// Networks of EDM are told a quarter of the logarithm of sigma, which is negative in the second half of a run.
#[test]
fn guidance_acts_at_every_level() -> Result<()> {
    let negative = Conditioning::default();
    for (name, scheduler) in schedulers()? {
        let guided = ClassifierFreeGuidance::new(&Constants, &negative, SCALE, 0.0);
        let plain = Projection { eta: 1.0, norm_threshold: f64::INFINITY, momentum: 0.0 };
        let projected = AdaptiveProjectedGuidance::new(&Constants, &negative, SCALE, plain);
        let perturbed = PerturbedAttentionGuidance::new(&Constants, Some(&negative), SCALE, PAG_SCALE);
        let alone = PerturbedAttentionGuidance::new(&Constants, None, SCALE, PAG_SCALE);
        let networks: [(&dyn Network, f64); 4] = [
            (&guided, SCALE),
            (&projected, SCALE),
            (&perturbed, SCALE + 0.75 * PAG_SCALE),
            (&alone, 1.0 + 0.75 * PAG_SCALE),
        ];
        for (network, expected) in networks {
            let outputs = outputs(scheduler.as_ref(), network, 12)?;
            assert_eq!(outputs.len(), 12, "{name}");
            for (level, output) in outputs {
                assert!((output - expected).abs() < 1e-9, "{name} at {level:?}: {output} for {expected}");
            }
        }
    }
    Ok(())
}

#[test]
fn an_interval_is_where_noise_over_signal_lies_in_it() -> Result<()> {
    let negative = Conditioning::default();
    for (name, scheduler) in schedulers()? {
        let interval = GuidanceSchedule::constant(SCALE).between(0.3, 5.0);
        let guided = ClassifierFreeGuidance::new(&Constants, &negative, interval, 0.0);
        let outputs = outputs(scheduler.as_ref(), &guided, 30)?;
        for (level, output) in &outputs {
            let inside = (0.3..=5.0).contains(&(level.sigma / level.alpha));
            assert_eq!(*output, if inside { SCALE } else { 1.0 }, "{name} at {level:?}");
        }
        let guided = outputs.iter().filter(|(_, output)| *output == SCALE).count();
        assert!((3..outputs.len() - 2).contains(&guided), "{name}: {guided} of {}", outputs.len());
    }
    Ok(())
}

/// From none at pure noise to the most at the data, with the scale as the mean of a run whose steps are even in it.
#[test]
fn a_shape_runs_over_the_share_of_noise() -> Result<()> {
    let negative = Conditioning::default();
    for (name, scheduler) in schedulers()? {
        let noise_share = |level: &NoiseLevel| scheduler.noise_share(level);
        for (shape, largest) in [(GuidanceShape::Linear, 14.0), (GuidanceShape::Cosine, 14.0)] {
            let schedule = GuidanceSchedule::shaped(SCALE, shape, &noise_share);
            let guided = ClassifierFreeGuidance::new(&Constants, &negative, schedule, 0.0);
            let outputs = outputs(scheduler.as_ref(), &guided, 50)?;
            let scales: Vec<f64> = outputs.iter().map(|(_, output)| *output).collect();
            assert!(scales.windows(2).all(|pair| pair[0] <= pair[1] + 1e-12), "{name} {shape:?}: {scales:?}");
            assert!((scales[0] - 1.0).abs() < 0.3, "{name} {shape:?}: {scales:?}");
            assert!((scales[49] - largest).abs() < 0.3, "{name} {shape:?}: {scales:?}");
            let mean = scales.iter().sum::<f64>() / 50.0;
            assert!(name.contains("karras") || (mean - SCALE).abs() < 0.3, "{name} {shape:?}: {mean}");
        }
    }
    Ok(())
}

/// On discrete timesteps the share is that of the timestep, to the bit.
#[test]
fn timesteps_are_shares_of_the_last() -> Result<()> {
    let negative = Conditioning::default();
    let scheduler = &schedulers()?[0].1;
    let noise_share = |level: &NoiseLevel| scheduler.noise_share(level);
    let schedule = GuidanceSchedule::shaped(SCALE, GuidanceShape::Linear, &noise_share);
    for (level, _) in outputs(scheduler.as_ref(), &ClassifierFreeGuidance::new(&Constants, &negative, SCALE, 0.0), 20)?
    {
        let done = 1.0 - level.timestep / 999.0;
        assert_eq!(schedule.at(&level), 1.0 + (SCALE - 1.0) * 2.0 * done);
    }
    Ok(())
}

/// Guidance is for runs: rows at levels of their own are training's.
#[test]
fn rows_at_their_own_levels_are_not_guided() -> Result<()> {
    let (negative, cache) = (Conditioning::default(), Default::default());
    let x = Tensor::zeros((2, 1, 2, 2), DType::F64, &Device::Cpu)?;
    let levels = [NoiseLevel::from_sigma(1.0, 0.1), NoiseLevel::from_sigma(500.0, 3.0)];
    let guided = ClassifierFreeGuidance::new(&Constants, &negative, SCALE, 0.0);
    let message = guided.forward(&Call::of_rows(&x, &levels, &negative, &cache)).err().map(|e| e.to_string());
    assert!(message.is_some_and(|message| message.contains("one level")));
    Ok(())
}
