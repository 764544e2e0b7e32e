//! What tests of training for a frozen model have alike: small models, a batch, and the first step's loss and gradients.

use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};
use tweedie::checkpoints::ModelFiles;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Network, PredictionType};
use tweedie::families::Families;
use tweedie::layers::Backend;
use tweedie::noise::TorchGenerator;
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::data::LatentBatch;
use tweedie::training::tasks::{FrozenModel, HeldWeights};
use tweedie::training::{
    AdamWConfig, Decay, DenoisingLoss, Draws, ForwardProcess, LearningRate, LossWeighting, Objective, OptimizerOptions,
    Stream, Trainer, TrainingTask,
};

use super::cases::TestResult;

pub const SEED: u64 = 5;

pub fn model_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

fn normal(seed: u64, shape: &[usize]) -> TestResult<Tensor> {
    let values = TorchGenerator::new(seed).normal(shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

pub fn load(name: &str, held: HeldWeights) -> TestResult<FrozenModel> {
    Ok(FrozenModel::load(&ModelFiles::folder(&model_folder(name))?, &Families::built_in(), held)?)
}

/// Ways to hold weights: in full and half precision, packed for the kernels, and for candle's operations.
pub fn ways_to_hold() -> [HeldWeights; 3] {
    let full = HeldWeights::default();
    [full, HeldWeights { dtype: DType::F16, ..full }, HeldWeights { backend: Backend::Candle, ..full }]
}

pub fn objective(scheduler: &ConfigFields) -> TestResult<Objective> {
    let process = ForwardProcess::Diffusion(NoiseSchedule::from_config(scheduler)?);
    Ok(Objective::new(process, PredictionType::Epsilon, LossWeighting::Uniform)?)
}

/// AdamW at a constant learning rate.
pub fn optimizer(peak: f64) -> OptimizerOptions {
    OptimizerOptions {
        learning_rate: LearningRate { peak, warmup_steps: 0, total_steps: 100, decay: Decay::Constant },
        adamw: AdamWConfig::default(),
        max_gradient_norm: None,
        ema: None,
    }
}

/// Two pictures' latents with the captions 2 and 0.
pub fn batch() -> TestResult<LatentBatch> {
    let shape = [2, 4, 8, 8];
    let std = Some((normal(12, &shape)?.abs()? * 0.1)?);
    Ok(LatentBatch { mean: normal(11, &shape)?, std, tokens: Tensor::new(&[[2u32], [0]], &Device::Cpu)? })
}

/// The loss of the first step's batch where the parameters are moved by `distance` along each direction, and its gradients, as the
/// optimiser's means of them have it after one step. The trainer ends as it was.
pub fn loss_and_gradients<T: TrainingTask<Batch = LatentBatch>>(
    trainer: &mut Trainer<T>,
    directions: &[Vec<f32>],
    distance: f32,
) -> TestResult<(f64, Vec<Vec<f32>>)> {
    let before = trainer.state();
    let mut moved = before.clone();
    for (set, direction) in moved.sets.iter_mut().zip(directions) {
        set.weights.iter_mut().zip(direction).for_each(|(weight, d)| *weight += distance * d);
    }
    trainer.restore(moved)?;
    let batch = batch()?;
    let report = trainer.step(|| Ok(batch.clone()))?;
    let share = 1.0 - AdamWConfig::default().beta1 as f32;
    let of_set = |moment: &Vec<f32>| moment.iter().map(|m| m / share).collect();
    let gradients = trainer.state().sets.iter().map(|set| of_set(&set.first_moment)).collect();
    trainer.restore(before)?;
    Ok((report.loss(), gradients))
}

/// Whether the derivative of the loss along each set's gradient is its norm, and gives the gradients.
pub fn check_gradients<T: TrainingTask<Batch = LatentBatch>>(
    trainer: &mut Trainer<T>,
    what: &str,
) -> TestResult<Vec<Vec<f32>>> {
    let (loss, gradients) = loss_and_gradients(trainer, &[], 0.0)?;
    for (set, gradient) in gradients.iter().enumerate() {
        let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let direction: Vec<f32> = gradient.iter().map(|&g| (f64::from(g) / norm) as f32).collect();
        let along: Vec<_> = (0..gradients.len())
            .map(|i| if i == set { direction.clone() } else { vec![0.0; gradients[i].len()] })
            .collect();
        // The loss changes by a two thousandth: much more than roundings are, and little enough to be straight.
        let distance = (5e-4 * loss / norm) as f32;
        let (ahead, _) = loss_and_gradients(trainer, &along, distance)?;
        let (behind, _) = loss_and_gradients(trainer, &along, -distance)?;
        let slope = (ahead - behind) / (2.0 * f64::from(distance));
        assert!((slope / norm - 1.0).abs() < 5e-3, "{what} set {set}: {slope} {norm}");
    }
    Ok(gradients)
}

/// Whether the gradients that two backends give are the same, but for roundings.
pub fn check_agreement(kernels: &[Vec<f32>], candle: &[Vec<f32>], what: &str) {
    assert_eq!(kernels.len(), candle.len());
    for (kernels, candle) in kernels.iter().flatten().zip(candle.iter().flatten()) {
        assert!((kernels - candle).abs() < 1e-5 + 1e-3 * candle.abs(), "{what}: {kernels} {candle}");
    }
}

/// The loss of the first step's batch by a network that was built from a model's files, and is told `conditioning`.
pub fn loss_of(
    network: &dyn Network,
    scheduler: &ConfigFields,
    conditioning: &Conditioning,
    batch: &LatentBatch,
) -> TestResult<f64> {
    let draws = Draws::new(SEED, 0);
    let latents = batch.draw(&mut draws.generator(Stream::Latents))?;
    let cache = Cache::default();
    let loss = DenoisingLoss::new(objective(scheduler)?, false).mean(&latents, draws, |noisy| {
        network.forward(&Call::of_rows(&noisy.x_t, &noisy.levels, conditioning, &cache))
    })?;
    Ok(f64::from(loss.to_scalar::<f32>()?))
}
