//! A task that the library does not know: two players, each with parameters of its own, in runs that are cut off.

use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;
use tweedie::images::Picture;
use tweedie::layers::{Linear, Weights};
use tweedie::noise::TorchGenerator;
use tweedie::training::data::{BatchSource, HeldOutBatch};
use tweedie::training::runs::{RunFolder, RunPlan, TrainEvent, TrainOutcome, train, write_tensors};
use tweedie::training::{
    AdamWConfig, Decay, Draws, EmaOptions, LearningRate, OptimizerOptions, ParameterSet, ParameterSource, Stream,
    Trainer, TrainerOptions, TrainingTask,
};
use tweedie::{Error, Result};

type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

const STEPS: u64 = 40;
/// The generator waits for so many steps.
const HEAD_START: u64 = 5;
/// The numbers of the losses.
const DISCRIMINATOR: usize = 0;
const GENERATOR: usize = 1;

/// A generative adversarial network (Goodfellow et al. 2014) of numbers, `G(z) = a z + b` against
/// `D(x) = sigmoid(c x + d x^2 + e)`. The generator's scale and shift are sets of their own, moved by the same loss.
struct Adversaries {
    scale: Linear,
    shift: Tensor,
    discriminator: Linear,
    /// The moving mean of the data, which is no parameter and has to be saved all the same.
    mean: f32,
}

impl Adversaries {
    fn generate(&self, real: &Tensor, draws: Draws) -> Result<Tensor> {
        let z = draws.generator(Stream::Noise).normal(real.elem_count());
        let z = Tensor::from_vec(z, real.dims(), real.device())?;
        Ok(self.scale.forward(&z)?.broadcast_add(&self.shift)?)
    }

    /// The mean of `-ln D(x)`, or of `-ln (1 - D(x))`: the softplus of the logit, with its sign turned or not.
    fn cross_entropy(&self, x: &Tensor, real: bool) -> Result<Tensor> {
        let logits = self.discriminator.forward(&Tensor::cat(&[x, &x.sqr()?], 1)?)?;
        let logits = if real { logits.neg()? } else { logits };
        Ok((logits.exp()? + 1.0)?.log()?.mean_all()?)
    }
}

impl TrainingTask for Adversaries {
    type Batch = Tensor;
    type Evaluation = f32;

    fn losses(&self) -> &'static [&'static str] {
        &["discriminator", "generator"]
    }

    fn is_due(&self, loss: usize, step: u64) -> bool {
        loss == DISCRIMINATOR || step >= HEAD_START
    }

    fn loss(&mut self, loss: usize, real: &Tensor, draws: Draws) -> Result<Tensor> {
        let generated = self.generate(real, draws)?;
        if loss == GENERATOR {
            return self.cross_entropy(&generated, true);
        }
        self.mean += 0.1 * (real.mean_all()?.to_scalar::<f32>()? - self.mean);
        Ok((self.cross_entropy(real, true)? + self.cross_entropy(&generated.detach(), false)?)?)
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        [("mean".to_owned(), vec![self.mean])].into()
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        let mean = state.get("mean").and_then(|mean| mean.first());
        self.mean = *mean.ok_or_else(|| Error::invalid("the mean", "missing", "it is in every checkpoint"))?;
        Ok(())
    }

    fn samples(&self, _: &[ParameterSet]) -> Result<Vec<(&'static str, Picture)>> {
        Ok(vec![("-dot", Picture::from_tensor(&Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu)?)?.remove(0))])
    }

    fn evaluate(&self, _: &[ParameterSet]) -> Result<f32> {
        Ok(self.mean)
    }

    fn write_model(&self, sets: &[ParameterSet], mean: &f32, folder: &Path) -> Result<()> {
        std::fs::write(folder.join("mean.txt"), mean.to_string()).map_err(Error::io("write", folder))?;
        for set in sets.iter().filter(|set| set.loss() == GENERATOR) {
            write_tensors(&folder.join(format!("{}.safetensors", set.name())), set.tensors()?)?;
        }
        Ok(())
    }
}

/// Where the parameters of scale, shift and discriminator come from.
fn sources() -> [ParameterSource<'static>; 3] {
    [3, 4, 5].map(|seed| ParameterSource::random(seed, &Device::Cpu))
}

fn adversaries([scale, shift, discriminator]: &[ParameterSource<'_>; 3]) -> Result<Adversaries> {
    Ok(Adversaries {
        scale: Linear::with_bias(&Weights::new(scale).at("scale"), 1, 1, false)?,
        shift: Weights::new(shift).at("shift").tensor("weight", &[1])?,
        discriminator: Linear::new(&Weights::new(discriminator).at("layer"), 2, 1)?,
        mean: 0.0,
    })
}

fn trainer() -> Result<Trainer<Adversaries>> {
    let sources = sources();
    let task = adversaries(&sources)?;
    let options = |peak, ema| OptimizerOptions {
        learning_rate: LearningRate { peak, warmup_steps: 0, total_steps: STEPS, decay: Decay::Constant },
        adamw: AdamWConfig::default(),
        max_gradient_norm: None,
        ema,
    };
    let ema = Some(EmaOptions { decay: 0.9, warm_up: false });
    let [scale, shift, discriminator] = sources.map(ParameterSource::finish);
    let sets = vec![
        ParameterSet::new("scale", scale?, options(1e-2, ema))?.for_loss(GENERATOR),
        ParameterSet::new("discriminator", discriminator?, options(5e-3, None))?.for_loss(DISCRIMINATOR),
        ParameterSet::new("shift", shift?, options(2e-2, ema))?.for_loss(GENERATOR),
    ];
    Trainer::new(task, sets, TrainerOptions { seed: 1, accumulate: 2 })
}

/// Numbers around 3; from a certain batch on they are gone, as if the power were.
struct Numbers {
    end: u64,
    /// How many other batches are held out.
    held_out: u64,
}

impl Numbers {
    fn until(end: u64) -> Self {
        Self { end, held_out: 0 }
    }
}

impl BatchSource for Numbers {
    type Batch = Tensor;

    fn get(&mut self, n: u64) -> Result<Tensor> {
        if n >= self.end {
            return Err(Error::Cancelled);
        }
        let values = TorchGenerator::new(n).normal(8).into_iter().map(|value| 3.0 + 0.5 * value).collect();
        Ok(Tensor::from_vec::<_, f32>(values, (8, 1), &Device::Cpu)?)
    }

    fn held_out(&mut self) -> Result<Vec<HeldOutBatch<Tensor>>> {
        let batch = |n| Ok(HeldOutBatch { batch: Numbers::until(u64::MAX).get(1000 + n)?, items: 1 });
        (0..self.held_out).map(batch).collect()
    }
}

/// A run into a folder, or what follows of one, that stops after step `stop` or has data for `end` batches.
fn run(folder: &Path, stop: u64, end: u64) -> Result<TrainOutcome<f32>> {
    run_on(folder, stop, Numbers::until(end), None)
}

fn run_on(folder: &Path, stop: u64, numbers: Numbers, first_look: Option<Duration>) -> Result<TrainOutcome<f32>> {
    let plan = RunPlan {
        steps: STEPS,
        checkpoint_every: 7,
        sample_every: Some(20),
        validate_every: 5,
        first_look,
        batch_size: 8,
    };
    let folder = RunFolder::resume(folder)?.0;
    folder.write_config(&serde_json::json!({"kind": "adversaries"}))?;
    train(folder, trainer()?, numbers, plan, &mut |event| match event {
        TrainEvent::Step { report, .. } if report.step == stop => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
}

/// The files of a run that say what was computed, without how long it took.
fn made(run: &Path) -> Result<Vec<Vec<u8>>> {
    let read = |name: &str| std::fs::read(run.join(name)).map_err(Error::io("read", &run.join(name)));
    let mut files = vec![];
    for name in ["model/scale.safetensors", "model/shift.safetensors", "model/mean.txt", "samples/step-000020-dot.png"]
    {
        files.push(read(name)?);
    }
    files.push(read("checkpoints/step-000000040/manifest.json")?);
    let log = String::from_utf8_lossy(&read("metrics.jsonl")?).into_owned();
    files.extend(log.lines().map(|line| line.split(",\"seconds\"").next().unwrap_or(line).as_bytes().to_vec()));
    Ok(files)
}

/// Stopped when asked, cut off between checkpoints, and resumed: the same bits as without.
#[test]
fn a_task_of_ones_own_is_trained_stopped_and_resumed() -> TestResult {
    let root = tempfile::tempdir()?;
    let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
    let outcome = run(&whole, u64::MAX, u64::MAX)?;
    let finished = outcome.finished.ok_or("it is not finished")?;
    // 80 batches of a moving mean that keeps nine tenths.
    assert!((finished.evaluation - 3.0).abs() < 0.3 && finished.path == whole.join("model"), "{finished:?}");

    assert_eq!(run(&parts, 3, u64::MAX)?.finished, None);
    assert!(matches!(run(&parts, u64::MAX, 2 * 19), Err(Error::Cancelled)), "19 steps, the last checkpoint of 14");
    assert!(!parts.join("model").exists());
    let outcome = run(&parts, u64::MAX, u64::MAX)?;
    assert_eq!((outcome.steps, outcome.finished.is_some()), (STEPS, true));
    assert_eq!(made(&parts)?, made(&whole)?);
    // Once more, and nothing is left to do.
    assert_eq!(run(&parts, u64::MAX, u64::MAX)?.images_per_second, 0.0);
    assert_eq!(made(&parts)?, made(&whole)?);
    Ok(())
}

/// Early pictures and losses of what is held out are there, and change nothing of what is trained, nor the task's own state.
#[test]
fn looks_at_a_run_change_nothing() -> TestResult {
    let root = tempfile::tempdir()?;
    let (plain, watched) = (root.path().join("plain"), root.path().join("watched"));
    run(&plain, u64::MAX, u64::MAX)?;
    let numbers = || Numbers { end: u64::MAX, held_out: 3 };
    run_on(&watched, 13, numbers(), Some(Duration::ZERO))?;
    assert!(watched.join("samples/step-000001-dot.png").is_file() && watched.join("loss.png").is_file());
    run_on(&watched, u64::MAX, numbers(), Some(Duration::ZERO))?;
    for name in ["model/scale.safetensors", "model/shift.safetensors", "model/mean.txt"] {
        assert!(std::fs::read(plain.join(name))? == std::fs::read(watched.join(name))?, "{name}");
    }
    // The loss of held-out batches, as the task has it with the draws of their places.
    let mut trainer = trainer()?;
    let mut batches = Numbers::until(u64::MAX);
    let mut first = 0;
    while trainer.steps() < 5 {
        trainer.step(|| {
            first += 1;
            batches.get(first - 1)
        })?;
    }
    let expected = trainer.validate(&numbers().held_out()?)?;
    let log = std::fs::read_to_string(watched.join("metrics.jsonl"))?;
    let logged = |step: usize| -> Result<serde_json::Value, Box<dyn std::error::Error>> {
        Ok(serde_json::from_str::<serde_json::Value>(log.lines().nth(step - 1).ok_or("no such step")?)?)
    };
    assert_eq!(expected.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["discriminator", "generator"]);
    for (name, value) in expected {
        assert_eq!(logged(5)?["validation_loss"][name].as_f64(), Some(value));
    }
    assert!(logged(6)?["validation_loss"].is_null() && !logged(40)?["validation_loss"].is_null());
    Ok(())
}

/// The loss of what is held out is a mean over items: a batch counts by how many it has.
#[test]
fn a_batch_of_more_items_counts_more() -> TestResult {
    let mut trainer = trainer()?;
    let [first, second] = [3, 4].map(|n| Numbers::until(u64::MAX).get(n));
    let (first, second) = (first?, second?);
    let mut loss = |items: [usize; 2]| -> Result<f64> {
        let held = [&first, &second].into_iter().zip(items);
        let held: Vec<_> = held.map(|(batch, items)| HeldOutBatch { batch: batch.clone(), items }).collect();
        Ok(trainer.validate(&held)?[0].1)
    };
    let (one, other) = (loss([1, 0])?, loss([0, 1])?);
    assert_ne!(one, other);
    // One rounding of each product and sum in f64.
    assert!((loss([3, 1])? - (3.0 * one + other) / 4.0).abs() < 1e-12 * one.abs().max(other.abs()));
    Ok(())
}

/// Each loss moves its own sets, and none before it is due.
#[test]
fn players_move_in_turn() -> TestResult {
    let mut trainer = trainer()?;
    let mut numbers = Numbers::until(u64::MAX);
    let values = |trainer: &Trainer<Adversaries>| -> Vec<Vec<f32>> {
        trainer.sets().iter().map(|set| set.parameters().values().to_vec()).collect()
    };
    let start = values(&trainer);
    for step in 0..HEAD_START {
        let report = trainer.step(|| numbers.get(step))?;
        assert_eq!(report.losses.iter().map(|loss| loss.name).collect::<Vec<_>>(), ["discriminator"]);
        assert_eq!(report.losses[0].sets.iter().map(|set| set.set).collect::<Vec<_>>(), ["discriminator"]);
    }
    let waited = values(&trainer);
    assert_eq!((&waited[0], &waited[2]), (&start[0], &start[2]));
    assert_ne!(waited[1], start[1]);
    let report = trainer.step(|| numbers.get(9))?;
    assert_eq!(
        report.losses[1].sets.iter().map(|set| (set.set, set.learning_rate)).collect::<Vec<_>>(),
        [("scale", 1e-2), ("shift", 2e-2)]
    );
    assert!(values(&trainer).iter().zip(&waited).all(|(now, before)| now != before));
    assert_eq!(trainer.state().sets.iter().map(|set| set.updates).collect::<Vec<_>>(), [1, HEAD_START + 1, 1]);
    // Of a set without an average, a model has the weights.
    assert_eq!(trainer.sets()[1].average(), trainer.sets()[1].parameters().values());
    Ok(())
}

/// Other values to start from are those of the averages too, and come before the first step.
#[test]
fn a_set_starts_from_other_values() -> TestResult {
    let mut trainer = trainer()?;
    trainer.start_from("shift", &[0.25])?;
    let shift = trainer.sets().iter().find(|set| set.name() == "shift").ok_or("no shift")?;
    assert_eq!((shift.parameters().values(), shift.average()), (&[0.25][..], &[0.25][..]));
    for (set, values, message) in
        [("shift", vec![1.0, 2.0], "shift has 1"), ("slope", vec![1.0], "scale, discriminator, shift")]
    {
        let error = trainer.start_from(set, &values).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(message), "{error}");
    }
    let mut numbers = Numbers::until(10);
    trainer.step(|| numbers.get(0))?;
    assert!(trainer.start_from("shift", &[0.5]).is_err());
    Ok(())
}

#[test]
fn sets_that_do_not_fit_the_task_are_refused() -> TestResult {
    let set = |name, loss| -> Result<ParameterSet> {
        let source = ParameterSource::random(1, &Device::Cpu);
        Linear::new(&Weights::new(&source).at("layer"), 2, 1)?;
        let learning_rate = LearningRate { peak: 1.0, warmup_steps: 0, total_steps: 1, decay: Decay::Constant };
        let adamw = AdamWConfig::default();
        let options = OptimizerOptions { learning_rate, adamw, max_gradient_norm: None, ema: None };
        Ok(ParameterSet::new(name, source.finish()?, options)?.for_loss(loss))
    };
    let refused = |sets: Vec<ParameterSet>| -> Result<String> {
        let made = Trainer::new(adversaries(&sources())?, sets, TrainerOptions { seed: 1, accumulate: 1 });
        Ok(made.err().map(|error| error.to_string()).unwrap_or_default())
    };
    assert!(refused(vec![set("a", 0)?, set("b", 1)?, set("c", 2)?])?.contains("parameters c is 2"));
    assert!(refused(vec![set("a", 0)?])?.contains("generator"));
    assert!(refused(vec![set("a", 0)?, set("a", 1)?])?.contains("two sets"));
    assert!(set("a.b", 0).is_err_and(|error| error.to_string().contains("without dots")));
    // A state of other sets changes nothing.
    let (mut one, other) = (trainer()?, trainer()?.state());
    let before = one.state();
    let renamed = other.sets.iter().rev().cloned().collect();
    assert!(one.restore(tweedie::training::TrainerState { sets: renamed, ..other }).is_err());
    assert_eq!(one.state(), before);
    Ok(())
}
