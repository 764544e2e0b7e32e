//! Training from outside: gradients of objectives, steps that can be taken again, checkpoints that are damaged.

use candle_core::{DType, Device, Tensor, Var};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Network, PredictionType};
use tweedie::kernels::MatmulPrecision;
use tweedie::layers::{Weights, with_gradients};
use tweedie::models::{UNet2DConfig, UNet2DModel};
use tweedie::noise::TorchGenerator;
use tweedie::schedulers::{BetaSchedule, NoiseSchedule};
use tweedie::training::data::Batch;
use tweedie::training::runs::RunCheckpoints;
use tweedie::training::tasks::{PixelDiffusion, PixelDiffusionConfig};
use tweedie::training::{
    AdamWConfig, ClassDropout, Decay, DenoisingLoss, Draws, EmaOptions, ForwardProcess, LearningRate, LossWeighting,
    Objective, OptimizerOptions, ParameterSet, ParameterSource, Trainer, TrainerOptions, TrainerState, TrainingTask,
};
use tweedie::{NoiseLevel, Result};

type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

fn random(seed: u64, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let values = TorchGenerator::new(seed).normal(shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

fn diffusion() -> Result<ForwardProcess> {
    let betas = BetaSchedule::SquaredCosine.betas(0.0, 0.0, 1000);
    Ok(ForwardProcess::Diffusion(NoiseSchedule::from_betas(&betas)?))
}

/// The gradient of the mean loss with respect to the network's output, and by central differences.
///
/// `varied` are the values of the output that the difference is taken at.
fn check_gradient(objective: &Objective, channels: usize, varied: std::ops::Range<usize>) -> TestResult {
    let shape = [4, 1, 3, 2];
    let x0 = (random(1, &shape, DType::F64)? * 0.3)?;
    let batch = objective.noisy(&x0, &random(2, &shape, DType::F64)?, &[0, 3, 500, 990])?;
    let output = (random(3, &[4, channels, 3, 2], DType::F64)? * 0.4)?;
    let loss =
        |output: &Tensor| -> Result<f64> { Ok(objective.losses(output, &batch)?.mean_all()?.to_scalar::<f64>()?) };
    let var = Var::from_tensor(&output)?;
    let gradients = objective.losses(&var, &batch)?.mean_all()?.backward()?;
    let gradient = gradients.get(&var).ok_or("no gradient")?.to_vec3_flat()?;
    let flat = output.flatten_all()?.to_vec1::<f64>()?;
    let each = channels * 6;
    for image in 0..4 {
        let largest = gradient[image * each..(image + 1) * each].iter().fold(0f64, |most, g| most.max(g.abs()));
        for i in varied.clone() {
            let at = image * each + i;
            let moved = |by: f64| -> Result<f64> {
                let mut values = flat.clone();
                values[at] += by;
                loss(&Tensor::from_vec(values, output.dims(), &Device::Cpu)?)
            };
            // The five-point difference, whose error falls with the fourth power of the distance.
            let h = 1e-4;
            let difference = (8.0 * (moved(h)? - moved(-h)?) - (moved(2.0 * h)? - moved(-2.0 * h)?)) / (12.0 * h);
            let error = (difference - gradient[at]).abs() / largest.max(1e-12);
            // Rounding of the loss in f64, over the distance; losses of late timesteps are thousands.
            assert!(error < 1e-6, "image {image}, value {i}: {difference} {}", gradient[at]);
        }
    }
    Ok(())
}

trait Flat {
    fn to_vec3_flat(&self) -> Result<Vec<f64>>;
}

impl Flat for Tensor {
    fn to_vec3_flat(&self) -> Result<Vec<f64>> {
        Ok(self.flatten_all()?.to_vec1()?)
    }
}

#[test]
fn gradients_of_objectives_are_their_differences() -> TestResult {
    let flow = ForwardProcess::Flow { num_train_timesteps: 1000 };
    for (process, kind) in [
        (diffusion()?, PredictionType::Epsilon),
        (diffusion()?, PredictionType::VPrediction),
        (diffusion()?, PredictionType::Sample),
        (flow, PredictionType::Flow),
    ] {
        for weighting in [LossWeighting::Uniform, LossWeighting::MinSnr { gamma: 5.0 }] {
            check_gradient(&Objective::new(process.clone(), kind, weighting)?, 1, 0..6)?;
        }
    }
    Ok(())
}

/// The bound's gradient reaches the variance. The mean is held in it, so that the output's first half has the
/// gradient of the simple loss alone.
#[test]
fn the_bound_trains_the_variance_alone() -> TestResult {
    for kind in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
        let simple = Objective::new(diffusion()?, kind, LossWeighting::Uniform)?;
        let hybrid = simple.clone().with_learned_variance(0.001)?;
        check_gradient(&hybrid, 2, 6..12)?;

        let shape = [2, 1, 3, 2];
        let batch = simple.noisy(&random(1, &shape, DType::F64)?, &random(2, &shape, DType::F64)?, &[0, 400])?;
        let mean = Var::from_tensor(&random(3, &shape, DType::F64)?)?;
        let share = random(4, &shape, DType::F64)?;
        let alone = simple.losses(&mean, &batch)?.mean_all()?.backward()?;
        let both = hybrid.losses(&Tensor::cat(&[mean.as_tensor(), &share], 1)?, &batch)?.mean_all()?.backward()?;
        let (alone, both) = (alone.get(&mean).ok_or("none")?, both.get(&mean).ok_or("none")?);
        assert_eq!(alone.to_vec3_flat()?, both.to_vec3_flat()?, "{kind:?}");
    }
    Ok(())
}

fn network_config() -> Result<UNet2DConfig> {
    let text = r#"{"sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": [4, 8],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4, "num_class_embeds": 4,
        "_null_class": 3}"#;
    UNet2DConfig::from_fields(&ConfigFields::from_json("unet", text, Path::new("config.json"))?)
}

/// What a test varies.
#[derive(Clone)]
struct Variation {
    seed: u64,
    timesteps: usize,
    importance_sampling: bool,
    learning_rate: LearningRate,
}

fn variation() -> Variation {
    Variation {
        seed: 5,
        timesteps: 100,
        importance_sampling: false,
        learning_rate: LearningRate { peak: 1e-2, warmup_steps: 2, total_steps: 12, decay: Decay::Cosine },
    }
}

fn optimizer(learning_rate: LearningRate) -> OptimizerOptions {
    OptimizerOptions {
        learning_rate,
        adamw: AdamWConfig::default(),
        max_gradient_norm: Some(1.0),
        ema: Some(EmaOptions { decay: 0.9, warm_up: true }),
    }
}

fn trainer(variation: &Variation) -> Result<Trainer<PixelDiffusion>> {
    let betas = BetaSchedule::Linear.betas(1e-4, 0.02, variation.timesteps);
    let process = ForwardProcess::Diffusion(NoiseSchedule::from_betas(&betas)?);
    let config = PixelDiffusionConfig {
        network: network_config()?,
        size: (4, 4),
        objective: Objective::new(process, PredictionType::Epsilon, LossWeighting::Uniform)?,
        importance_sampling: variation.importance_sampling,
        class_dropout: Some(ClassDropout { probability: 0.2, null_class: 3 }),
        class_names: Vec::new(),
        products: MatmulPrecision::Full,
        scheduler: serde_json::Map::new(),
        dtype: DType::F32,
    };
    let (task, set) = PixelDiffusion::new(config, variation.seed, optimizer(variation.learning_rate))?;
    Trainer::new(task, vec![set], TrainerOptions { seed: variation.seed, accumulate: 1 })
}

/// Batch `n` of a small set: two patterns.
fn batch(n: u64, size: usize) -> Result<Batch> {
    let labels: Vec<u32> = (0..size as u64).map(|i| ((n * size as u64 + i) % 3) as u32).collect();
    let pixel = |(label, i): (&u32, usize)| if (*label as usize + i).is_multiple_of(3) { 1f32 } else { -1.0 };
    let pixels: Vec<f32> = labels.iter().flat_map(|label| (0..16).map(move |i| pixel((label, i)))).collect();
    let images = Tensor::from_vec(pixels, (size, 1, 4, 4), &Device::Cpu)?;
    let indices = (0..size).map(|i| n as usize * size + i).collect();
    Ok(Batch { images, labels: Some(Tensor::from_vec(labels, size, &Device::Cpu)?), indices })
}

fn steps(trainer: &mut Trainer<PixelDiffusion>, count: usize) -> Result<f64> {
    let mut last = f64::NAN;
    for _ in 0..count {
        let n = trainer.steps();
        last = trainer.step(|| batch(n, 6))?.loss();
    }
    Ok(last)
}

#[test]
fn a_restored_trainer_goes_on_bit_by_bit() -> TestResult {
    // So few timesteps that every one has ten losses soon, and importance sampling is reached.
    let variation = Variation { importance_sampling: true, timesteps: 4, ..variation() };
    let mut whole = trainer(&variation)?;
    steps(&mut whole, 12)?;
    let mut first = trainer(&variation)?;
    steps(&mut first, 9)?;
    let folder = tempfile::tempdir()?;
    let checkpoints = RunCheckpoints::new(folder.path());
    checkpoints.save(&first.state(), first.sets())?;
    let mut second = trainer(&variation)?;
    let (state, warnings) = checkpoints.newest(second.sets())?;
    assert!(warnings.is_empty());
    second.restore(state.ok_or("no checkpoint")?)?;
    assert_eq!(second.state(), first.state());
    steps(&mut second, 3)?;
    assert_eq!(second.state(), whole.state());
    Ok(())
}

/// Checkpoints of versions that knew one set of parameters: bare names, and a file of its own for remembered losses.
#[test]
fn a_checkpoint_in_the_older_form_is_taken() -> TestResult {
    let variation = Variation { importance_sampling: true, timesteps: 4, ..variation() };
    let mut first = trainer(&variation)?;
    steps(&mut first, 9)?;
    let folder = tempfile::tempdir()?;
    let checkpoints = RunCheckpoints::new(folder.path());
    let saved = checkpoints.save(&first.state(), first.sets())?;

    let mut sums = serde_json::Map::new();
    for (name, older) in [
        ("weights.safetensors", "weights.safetensors"),
        ("ema.safetensors", "ema.safetensors"),
        ("optimizer.safetensors", "optimizer.safetensors"),
        ("task.safetensors", "loss_history.safetensors"),
    ] {
        let tensors = candle_core::safetensors::load(saved.join(name), &Device::Cpu)?;
        let bare = |name: String| name.replace("unet.", "").replace("loss_history", "losses");
        let tensors = tensors.into_iter().map(|(name, tensor)| (bare(name), tensor)).collect();
        std::fs::remove_file(saved.join(name))?;
        candle_core::safetensors::save(&tensors, saved.join(older))?;
        let sum = Sha256::digest(std::fs::read(saved.join(older))?);
        sums.insert(older.into(), sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into());
    }
    std::fs::write(saved.join("manifest.json"), json!({"step": 9, "sha256": sums}).to_string())?;
    let (state, warnings) = checkpoints.newest(first.sets())?;
    assert_eq!((state, warnings), (Some(first.state()), Vec::new()));
    Ok(())
}

#[test]
fn the_loss_falls_and_the_seed_decides() -> TestResult {
    let variation = Variation {
        learning_rate: LearningRate { peak: 5e-3, warmup_steps: 5, total_steps: 150, decay: Decay::Constant },
        ..variation()
    };
    let mut one = trainer(&variation)?;
    let first = steps(&mut one, 1)?;
    steps(&mut one, 149)?;
    let mean: f64 = (0..20).map(|_| steps(&mut one, 1)).sum::<Result<f64>>()? / 20.0;
    assert!(mean < 0.6 * first, "from {first} to {mean}");
    let start = |variation: &Variation| -> Result<TrainerState> { Ok(trainer(variation)?.state()) };
    assert_eq!(start(&variation)?, start(&self::variation())?);
    assert_ne!(start(&Variation { seed: 6, ..variation.clone() })?, start(&variation)?);
    Ok(())
}

/// A network that looks at labels alone: a table of what it answers.
struct Constant {
    table: Tensor,
    loss: DenoisingLoss,
}

impl TrainingTask for Constant {
    type Batch = Batch;
    type Evaluation = ();

    fn loss(&mut self, _: usize, batch: &Batch, draws: Draws) -> Result<Tensor> {
        let labels =
            batch.labels.as_ref().ok_or_else(|| tweedie::Error::invalid("the labels", "missing", "give some"))?;
        let output = self.table.index_select(labels, 0)?.reshape(batch.images.dims())?;
        self.loss.mean(&batch.images, draws, |_| Ok(output))
    }

    fn evaluate(&self, _: &[ParameterSet]) -> Result<()> {
        Ok(())
    }

    fn write_model(&self, _: &[ParameterSet], (): &(), _: &Path) -> Result<()> {
        Ok(())
    }
}

/// The gradient of two batches is the mean of theirs: a step on both is the step on one that has all images, but for
/// the random numbers, which are kept out here by a network that looks at labels alone.
#[test]
fn accumulated_gradients_are_those_of_the_whole() -> TestResult {
    let make = |accumulate: usize| {
        let source = ParameterSource::random(1, &Device::Cpu);
        let table = Weights::new(&source).at("class_embedding").tensor("weight", &[4, 16])?;
        // Of pure signal the target x0 has no noise in it.
        let process = ForwardProcess::Diffusion(NoiseSchedule::from_betas(&[0.0001])?);
        let objective = Objective::new(process, PredictionType::Sample, LossWeighting::Uniform)?;
        let options = OptimizerOptions { max_gradient_norm: None, ..optimizer(variation().learning_rate) };
        let set = ParameterSet::new("table", source.finish()?, options)?;
        let task = Constant { table, loss: DenoisingLoss::new(objective, false) };
        Trainer::new(task, vec![set], TrainerOptions { seed: 5, accumulate })
    };
    let (mut whole, mut parts) = (make(1)?, make(2)?);
    let (mut n, mut last) = (0, [0.0; 2]);
    for _ in 0..3 {
        last[0] = whole.step(|| batch(n / 2, 12))?.loss();
        let mut next = || {
            n += 1;
            batch(n - 1, 6)
        };
        last[1] = parts.step(&mut next)?.loss();
    }
    // Sums in another order.
    assert!((last[0] - last[1]).abs() < 1e-6, "{last:?}");
    let values = |trainer: &Trainer<Constant>| trainer.sets()[0].parameters().values().to_vec();
    let off = values(&whole).iter().zip(values(&parts)).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(off < 1e-5, "{off}");
    Ok(())
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_weights_change() -> TestResult {
    let mut trainer = trainer(&variation())?;
    steps(&mut trainer, 2)?;
    let before = trainer.state();
    let broken = trainer.step(|| {
        let batch = batch(0, 6)?;
        Ok(Batch { images: (batch.images * f64::NAN)?, ..batch })
    });
    let message = broken.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message.contains("step 3") && message.contains("learning rate 1e-2"), "{message}");
    assert_eq!(trainer.state(), before);
    Ok(())
}

fn state(trainer: &Trainer<PixelDiffusion>, step: u64) -> TrainerState {
    TrainerState { step, ..trainer.state() }
}

/// Every way in which a checkpoint can be half there: the one before is taken, and the reason said.
#[test]
fn a_damaged_checkpoint_is_passed_over() -> TestResult {
    let trainer = trainer(&variation())?;
    type Damage = (&'static str, fn(&Path) -> std::io::Result<()>);
    let damages: [Damage; 6] = [
        ("no manifest", |folder| std::fs::remove_file(folder.join("manifest.json"))),
        ("no JSON", |folder| std::fs::write(folder.join("manifest.json"), "{\"step\": 2, \"sha")),
        ("does not name", |folder| std::fs::write(folder.join("manifest.json"), "{\"step\": 2, \"sha256\": {}}")),
        ("ema.safetensors is not what was written", |folder| {
            let path = folder.join("ema.safetensors");
            let mut bytes = std::fs::read(&path)?;
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            std::fs::write(path, bytes)
        }),
        ("optimizer.safetensors is not what was written", |folder| {
            let path = folder.join("optimizer.safetensors");
            let half = std::fs::read(&path)?.len() / 2;
            std::fs::OpenOptions::new().write(true).open(path)?.set_len(half as u64)
        }),
        ("weights.safetensors", |folder| std::fs::remove_file(folder.join("weights.safetensors"))),
    ];
    for (reason, damage) in damages {
        let folder = tempfile::tempdir()?;
        let checkpoints = RunCheckpoints::new(folder.path());
        checkpoints.save(&state(&trainer, 1), trainer.sets())?;
        damage(&checkpoints.save(&state(&trainer, 2), trainer.sets())?)?;
        let (found, warnings) = checkpoints.newest(trainer.sets())?;
        assert_eq!(found.map(|state| state.step), Some(1), "{reason}");
        assert!(warnings.len() == 1 && warnings[0].contains(reason), "{reason} in {warnings:?}");
        // Saved again, it is whole, and what could not be used is beside it.
        checkpoints.save(&state(&trainer, 2), trainer.sets())?;
        assert_eq!(checkpoints.newest(trainer.sets())?.0.map(|state| state.step), Some(2));
        assert_eq!(names(folder.path())?, ["step-000000001", "step-000000002", "step-000000002.damaged"]);
    }
    Ok(())
}

/// A run that starts anew has checkpoints of lower steps than those that were damaged, and keeps them.
#[test]
fn new_checkpoints_outlive_damaged_ones() -> TestResult {
    let trainer = trainer(&variation())?;
    let folder = tempfile::tempdir()?;
    let checkpoints = RunCheckpoints::new(folder.path());
    for again in 1..=2 {
        for step in [70, 80] {
            let saved = checkpoints.save(&state(&trainer, step), trainer.sets())?;
            std::fs::write(saved.join("weights.safetensors"), "X")?;
        }
        let (found, warnings) = checkpoints.newest(trainer.sets())?;
        assert!(found.is_none() && warnings.len() == 2, "{warnings:?}");
        for step in [10, 20, 30] {
            checkpoints.save(&state(&trainer, step), trainer.sets())?;
        }
        let kept = names(folder.path())?;
        assert_eq!(kept[..2], ["step-000000020", "step-000000030"]);
        assert_eq!(kept.len(), 2 + 2 * again, "{kept:?}");
        for name in &kept[..2] {
            std::fs::remove_dir_all(folder.path().join(name))?;
        }
    }
    Ok(())
}

/// The names of what is in a folder, in order.
fn names(folder: &Path) -> std::io::Result<Vec<String>> {
    let names = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

#[test]
fn two_checkpoints_are_kept_and_nothing_that_is_half_made() -> TestResult {
    let trainer = trainer(&variation())?;
    let folder = tempfile::tempdir()?;
    let checkpoints = RunCheckpoints::new(folder.path());
    std::fs::create_dir_all(folder.path().join(".step-000000009.aB3dE5gH7j.part/x"))?;
    std::fs::create_dir_all(folder.path().join("thesis.part"))?;
    for step in [1, 2, 3, 4] {
        checkpoints.save(&state(&trainer, step), trainer.sets())?;
    }
    assert_eq!(names(folder.path())?, ["step-000000003", "step-000000004", "thesis.part"]);
    Ok(())
}

/// Rounding to bf16 changes a factor by up to 2^-9, and products in a row add up: the gradient was seen at 6e-3 of its length from
/// that of full products.
#[test]
fn gradients_by_rounded_products_are_near_the_exact_ones() -> TestResult {
    let config = json!({"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8,
        "block_out_channels": [32, 64], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 32});
    let config = UNet2DConfig::from_fields(&ConfigFields::from_json("unet", &config.to_string(), Path::new("unet"))?)?;
    let gradient = |products: MatmulPrecision| -> std::result::Result<Vec<f64>, Box<dyn std::error::Error>> {
        let source = ParameterSource::random(3, &Device::Cpu);
        let network = UNet2DModel::new(&Weights::new(&source).with_products(products), config.clone(), DType::F32)?;
        let parameters = source.finish()?;
        let (x, target) = (random(1, &[4, 1, 8, 8], DType::F32)?, random(2, &[4, 1, 8, 8], DType::F32)?);
        let levels = [10.0, 200.0, 500.0, 900.0].map(|timestep| NoiseLevel::from_sigma(timestep, 1.0));
        let (conditioning, cache) = (Conditioning::default(), Cache::default());
        let call = Call::of_rows(&x, &levels, &conditioning, &cache);
        let (_, (), gradients) = with_gradients(&Device::Cpu, || {
            Ok::<_, tweedie::Error>(((network.forward(&call)? - &target)?.sqr()?.mean_all()?, ()))
        })?;
        let mut sums = vec![0.0; parameters.layout().len()];
        parameters.add_gradients(&gradients, &mut sums)?;
        Ok(sums.into_iter().map(f64::from).collect())
    };
    let (exact, rounded) = (gradient(MatmulPrecision::Full)?, gradient(MatmulPrecision::Bf16)?);
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let apart = length(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / length(&mut exact.iter().copied());
    println!("{apart:.1e} of the gradient's length");
    assert!(apart > 1e-4 && apart < 2e-2, "{apart:e}");
    Ok(())
}
