//! What every scheduler owes the loop, whatever its mathematics.

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, json};
use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Call, Denoiser, Network, Position};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Levels, Resampling, Run, SCHEDULERS, Scheduler, Solver, Stochastic, by_name, sample};
use tweedie::{NoiseLevel, Result};

/// `0.6 sin(x)`; it keeps where in the run it was evaluated.
#[derive(Default)]
struct Counted {
    positions: RefCell<Vec<Option<Position>>>,
}

impl Network for Counted {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let x = call.x;
        self.positions.borrow_mut().push(call.position);
        Ok((x.sin()? * 0.6)?)
    }
}

/// A noise source that counts its draws.
struct CountedNoise {
    source: TorchNoise,
    draws: usize,
}

impl NoiseSource for CountedNoise {
    fn normal(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.draws += 1;
        self.source.normal(shape)
    }
}

/// What one run did.
struct Outcome {
    evaluations: usize,
    draws: usize,
    constrained: usize,
    end: Vec<f32>,
}

fn file(fields: serde_json::Value) -> ConfigFields {
    let latent = json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"});
    let merge = |value: serde_json::Value| value.as_object().cloned().unwrap_or_default();
    let fields: Map<_, _> = merge(latent).into_iter().chain(merge(fields)).collect();
    ConfigFields::from_fields("scheduler", fields)
}

fn outcome(scheduler: &dyn Scheduler, steps: usize) -> Result<Outcome> {
    let levels = scheduler.levels(steps)?;
    let network = Counted::default();
    let conditioning = Conditioning::text(Tensor::zeros(1, DType::F32, &Device::Cpu)?);
    let denoiser = Denoiser::new(&network, &conditioning, scheduler.parameterization());
    let mut noise = CountedNoise { source: TorchNoise::shared(3), draws: 0 };
    let start = (noise.source.normal(&[1, 2, 3, 3])? * levels.init_noise_sigma())?;
    let constrained = Cell::new(0);
    let constraint = |_: &mut Tensor, _: &NoiseLevel| {
        constrained.set(constrained.get() + 1);
        Ok(())
    };
    let run = Run::new(&levels, &denoiser, &mut noise).constrained(&constraint);
    let end = sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
    Ok(Outcome {
        evaluations: network.positions.borrow().len(),
        draws: noise.draws,
        constrained: constrained.get(),
        end: end.flatten_all()?.to_vec1()?,
    })
}

/// All names of the command line.
fn names() -> Vec<String> {
    let endings = |entry: &tweedie::schedulers::SchedulerEntry| {
        let name = entry.name;
        std::iter::once(name.to_owned())
            .chain(entry.suffixes.iter().map(move |suffix| format!("{name}-{}", suffix.name)))
            .collect::<Vec<_>>()
    };
    SCHEDULERS.iter().flat_map(endings).collect()
}

/// The states that the network is shown, but for the first, and the end: each goes through the constraint
/// once. That is what inpainting rests on.
#[test]
fn every_state_goes_through_the_constraint() -> Result<()> {
    for entry in SCHEDULERS {
        let outcome = outcome(by_name(entry.name)?.build(&file(json!({})))?.as_ref(), 7)?;
        assert_eq!(outcome.constrained, outcome.evaluations, "{}", entry.name);
    }
    Ok(())
}

#[test]
fn evaluations_and_noise_are_as_listed() -> Result<()> {
    for entry in SCHEDULERS {
        let config = entry.with_pipeline_defaults(file(json!({"skip_prk_steps": true})));
        let outcome = outcome(by_name(entry.name)?.build(&config)?.as_ref(), 8)?;
        // A step to zero noise has one evaluation, and PNDM's start has one more.
        let expected = if entry.evaluations == 2 { 15 } else { 8 + usize::from(entry.name == "pndm") };
        assert_eq!(outcome.evaluations, expected, "{}", entry.name);
        assert_eq!(outcome.draws > 0, entry.stochastic == Stochastic::Yes, "{}", entry.name);
    }
    Ok(())
}

/// What a solver says of a run beforehand is what it does, wherever the run starts and however often it goes back: every
/// evaluation is told which one it is, and of how many.
#[test]
fn evaluations_are_known_before_the_run() -> Result<()> {
    let files = [
        json!({}),
        json!({"skip_prk_steps": true, "final_sigmas_type": "sigma_min", "s_churn": 5.0}),
        json!({"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": true}),
    ];
    let resamplings = [(1, 1), (2, 1), (3, 2)].map(|(times, jump_length)| Resampling { times, jump_length });
    let mut runs = 0;
    for fields in &files {
        for name in names() {
            let scheduler = by_name(&name)?.build(&file(fields.clone()))?;
            for steps in [1, 2, 5, 8] {
                let Ok(levels) = scheduler.levels(steps) else { continue };
                for (start, resampling) in [0, steps / 2].into_iter().zip(resamplings.iter().cycle().skip(runs % 3)) {
                    let seen = positions(scheduler.as_ref(), &levels, start, *resampling)?;
                    let total = seen.len();
                    let told: Vec<_> = (0..total).map(|evaluation| Some(Position { evaluation, total })).collect();
                    assert_eq!(seen, told, "{name} with {fields}: {steps} steps from {start}, {resampling:?}");
                    runs += 1;
                }
            }
        }
    }
    assert!(runs > 1000, "{runs}");
    Ok(())
}

fn positions(
    scheduler: &dyn Scheduler,
    levels: &Levels,
    start: usize,
    resampling: Resampling,
) -> Result<Vec<Option<Position>>> {
    let (network, conditioning) = (Counted::default(), Conditioning::default());
    let denoiser = Denoiser::new(&network, &conditioning, scheduler.parameterization());
    let mut noise = TorchNoise::shared(3);
    let x = (noise.normal(&[1, 2, 3, 3])? * levels.init_noise_sigma())?;
    let run = Run::new(levels, &denoiser, &mut noise);
    resampling.sample(scheduler, x, start, run, &mut |_| ControlFlow::Continue(()))?;
    Ok(network.positions.into_inner())
}

/// A solver that says less than it does is told so, and no control ends early without a word.
#[test]
fn a_solver_that_miscounts_is_an_error() -> Result<()> {
    struct Twice;
    impl Solver for Twice {
        fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
            let level = run.levels().from(i);
            run.predict(&run.predict(x, &level)?.x0, &level).map(|prediction| prediction.x0)
        }
    }
    let scheduler = by_name("euler")?.build(&file(json!({})))?;
    let (levels, network, conditioning) = (scheduler.levels(3)?, Counted::default(), Conditioning::default());
    let denoiser = Denoiser::new(&network, &conditioning, scheduler.parameterization());
    let mut noise = TorchNoise::shared(3);
    let x = noise.normal(&[1, 2, 3, 3])?;
    let run = Run::new(&levels, &denoiser, &mut noise);
    let message = sample(&mut Twice, x, 0, run, &mut |_| ControlFlow::Continue(())).err().map(|e| e.to_string());
    assert!(message.is_some_and(|message| message.contains("Solver::evaluations")));
    assert_eq!(network.positions.borrow().len(), 3);
    Ok(())
}

/// Every name at every number of steps: finite, or an error before the run.
#[test]
fn no_number_of_steps_ends_in_values_that_are_not_finite() -> Result<()> {
    let files = [
        json!({}),
        json!({"final_sigmas_type": "sigma_min", "solver_type": "heun"}),
        json!({"timestep_spacing": "leading", "steps_offset": 1, "lower_order_final": true}),
        json!({"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": true}),
    ];
    for fields in &files {
        for name in names() {
            let scheduler = by_name(&name)?.build(&file(fields.clone()))?;
            for steps in [1, 2, 3, 4, 5, 14, 15, 16, 50] {
                if scheduler.levels(steps).is_ok() {
                    let end = outcome(scheduler.as_ref(), steps)?.end;
                    assert!(end.iter().all(|v| v.is_finite()), "{name} with {fields} in {steps} steps: {end:?}");
                }
            }
        }
    }
    Ok(())
}

/// What cannot work says what to do instead.
/// As many steps as were asked for where there are levels for them, else as many as there are whole timesteps to visit once.
#[test]
fn the_most_steps_follow_from_the_training_timesteps() -> Result<()> {
    for train in 1..30 {
        let file = file(json!({"num_train_timesteps": train, "beta_schedule": "squaredcos_cap_v2"}));
        let most = |name: &str| by_name(name)?.build(&file)?.steps_up_to(20);
        assert_eq!(most("ddim")?, train.min(20), "{train}");
        // Evenly from the last timestep to the first, which is the end of the last step: two of them round as three do.
        let between = if train < 3 { train } else { train - 1 };
        assert_eq!(most("dpm++2m")?, between.min(20), "{train}");
    }
    Ok(())
}

#[test]
fn impossible_combinations_are_errors() -> Result<()> {
    let message = |name: &str, fields: serde_json::Value| -> Result<String> {
        let built = by_name(name)?.build(&file(fields));
        Ok(built.err().map(|e| e.to_string()).unwrap_or_default())
    };
    for (name, fields, fix) in [
        ("dpm++2m", json!({"algorithm_type": "dpmsolver"}), "sigma_min"),
        ("dpm++3m", json!({"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}), "solver_order 2"),
        ("dpm++2m", json!({"solver_order": 4}), "1, 2 or 3"),
        ("dpm++2m", json!({"use_flow_sigmas": true}), "false"),
        ("dpm++2m", json!({"use_karras_sigmas": true, "use_beta_sigmas": true}), "use_karras_sigmas"),
        ("dpm++2s", json!({"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}), "sde-dpmsolver++"),
        ("unipc", json!({"predict_x0": false}), "sigma_min"),
        ("unipc", json!({"lower_order_final": false}), "sigma_min"),
        ("unipc", json!({"disable_corrector": [0.5]}), "counted from 0"),
        ("deis", json!({"algorithm_type": "sde-dpmsolver++"}), "deis"),
        ("euler", json!({"s_churn": -1.0}), "0 or more"),
        ("tcd", json!({"eta": 1.5}), "between 0"),
        ("edm-euler", json!({"sigma_min": 0.0}), "above 0"),
        ("dpm++2m", json!({"lambda_min_clipped": 50.0}), "-inf"),
    ] {
        let message = message(name, fields.clone())?;
        assert!(message.contains(fix), "{name} with {fields}: `{message}` does not say {fix}");
    }
    Ok(())
}

/// A network that predicts the noise cannot start where there is no signal, unless sigma stands in for it.
#[test]
fn zero_terminal_snr_needs_a_prediction_that_works_there() -> Result<()> {
    let fields = json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"});
    for name in ["ddim", "lcm"] {
        let refused = outcome(by_name(name)?.build(&file(fields.clone()))?.as_ref(), 4);
        assert!(refused.err().is_some_and(|e| e.to_string().contains("v_prediction")), "{name}");
    }
    for name in ["euler", "euler-a", "dpm++2m", "unipc"] {
        assert!(outcome(by_name(name)?.build(&file(fields.clone()))?.as_ref(), 4).is_ok(), "{name}");
    }
    Ok(())
}
