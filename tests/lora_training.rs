//! Training a LoRA: its loss and gradients, and what its file does to the model.

mod cases;
mod frozen;

use candle_core::{DType, Device, Tensor};
use cases::TestResult;
use frozen::{
    SEED, batch, check_agreement, check_gradients, load, loss_and_gradients, loss_of, model_folder, objective,
    optimizer, ways_to_hold,
};
use serde_json::Value;
use std::path::Path;
use tweedie::adapters::{LoraForm, Loras};
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use tweedie::conditioning::Conditioning;
use tweedie::families::{Family, SD1};
use tweedie::layers::{Backend, WeightSource, Weights};
use tweedie::models::{ClipTextConfig, ClipTextModel};
use tweedie::noise::TorchGenerator;
use tweedie::text::Tokenizer;
use tweedie::training::data::LatentBatch;
use tweedie::training::tasks::{FrozenModel, HeldWeights, LoraTraining, LoraTrainingConfig, SamplePrompts};
use tweedie::training::{
    Draws, LowRankConfig, LowRankModules, OptimizerOptions, Stream, Trainer, TrainerOptions, TrainingTask,
};

const CAPTIONS: [&str; 3] = ["a fox", "an owl on a branch", "a lighthouse in a storm"];

fn config(model: &FrozenModel, modules: LowRankModules) -> TestResult<LoraTrainingConfig> {
    Ok(LoraTrainingConfig {
        low_rank: LowRankConfig { rank: 3, alpha: 2.0, modules },
        objective: objective(model.scheduler())?,
        captions: CAPTIONS.map(str::to_owned).into(),
        caption_dropout: 0.3,
        size: (64, 64),
        samples: SamplePrompts { prompts: vec!["a fox".into()], guidance_scale: 3.0, steps: 2 },
        form: LoraForm::Kohya,
        dtype: DType::F32,
        metadata: [("ss_network_dim".to_owned(), "3".to_owned())].into(),
    })
}

fn trainer(model: FrozenModel, modules: LowRankModules, trains_text: bool) -> TestResult<Trainer<LoraTraining>> {
    let options = optimizer(1e-2);
    let config = config(&model, modules)?;
    let (task, sets) = LoraTraining::new(config, model, SEED, (options, trains_text.then_some(options)))?;
    Ok(Trainer::new(task, sets, TrainerOptions { seed: SEED, accumulate: 1 })?)
}

/// Factors away from their start, where half of all gradients are zero.
fn away_from_start(trainer: &mut Trainer<LoraTraining>) -> TestResult {
    let mut state = trainer.state();
    for (i, set) in state.sets.iter_mut().enumerate() {
        let noise = TorchGenerator::new(20 + i as u64).normal(set.weights.len());
        set.weights.iter_mut().zip(noise).for_each(|(weight, noise)| *weight += 0.05 * noise);
    }
    Ok(trainer.restore(state)?)
}

/// The derivative along the gradient is its squared norm, for each set of factors: over packed weights in full and half
/// precision, and with candle's operations; the two backends agree on every value.
#[test]
fn gradients_are_differences_of_the_loss() -> TestResult {
    for (name, modules, trains_text) in
        [("sd15", LowRankModules::All, true), ("xl-small", LowRankModules::Transformers, false)]
    {
        let mut by_kernels = Vec::new();
        for held in ways_to_hold() {
            let mut trainer = trainer(load(name, held)?, modules, trains_text)?;
            away_from_start(&mut trainer)?;
            let gradients = check_gradients(&mut trainer, &format!("{name} {held:?}"))?;
            assert_eq!(gradients.len(), if trains_text { 2 } else { 1 });
            match held.backend {
                Backend::Kernels if held.dtype == DType::F32 => by_kernels = gradients,
                Backend::Kernels => {}
                Backend::Candle => check_agreement(&by_kernels, &gradients, name),
            }
        }
    }
    Ok(())
}

/// Blocks that are computed again on the way back give the loss and the gradients of those that are kept.
#[test]
fn recomputed_blocks_have_the_same_gradients() -> TestResult {
    for (name, modules, trains_text) in
        [("sd15", LowRankModules::All, true), ("xl-small", LowRankModules::Transformers, false)]
    {
        for backend in [Backend::Kernels, Backend::Candle] {
            let gradients = |recomputes: bool| -> TestResult<(f64, Vec<Vec<f32>>)> {
                let model = load(name, HeldWeights { backend, ..HeldWeights::default() })?;
                let mut trainer = trainer(model, modules, trains_text)?.with_recomputation(recomputes);
                away_from_start(&mut trainer)?;
                loss_and_gradients(&mut trainer, &[], 0.0)
            };
            let ((kept_loss, kept), (loss, found)) = (gradients(false)?, gradients(true)?);
            assert_eq!(loss, kept_loss, "{name}");
            for (kept, found) in kept.iter().zip(&found) {
                let largest = kept.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
                let off = kept.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // What several parts contribute is summed in another order.
                assert!(largest > 0.0 && off < 1e-5 * largest, "{name} {backend:?}: {off} of {largest}");
            }
        }
    }
    Ok(())
}

/// How a LoRA's file is put on a model.
#[derive(Debug, Clone, Copy)]
enum Put {
    Merged,
    Beside,
}

/// The loss of the first step's batch by the small Stable Diffusion 1.x, which is built from its files, with a LoRA's file on it or
/// without; `dropout` as in training.
fn loss_by_files(lora: Option<(&Path, Put)>, batch: &LatentBatch, dropout: f64) -> TestResult<f64> {
    let files = ModelFiles::folder(&model_folder("sd15"))?;
    let open = |component| Checkpoint::open(&files, component, Precision::Full, DType::F32, &Device::Cpu);
    let (unet, text) = (open("unet")?, open("text_encoder")?);
    let target = SD1.lora_target(2);
    let loras = lora.map(|(path, _)| Loras::open([(path, 1.0)], &target)).transpose()?;
    let put = lora.map(|(_, put)| put);
    let through = |component, checkpoint| with_loras(loras.as_ref().zip(put), component, checkpoint);
    let network = SD1.architecture(&files)?.network(&Weights::new(through("unet", &unet).as_ref()), DType::F32)?;
    let text_config = ClipTextConfig::from_fields(&files.config("text_encoder", "config.json")?)?;
    let encoder = ClipTextModel::new(&Weights::new(through("text_encoder", &text).as_ref()), text_config)?;
    let tokenizer = Tokenizer::from_files(&files, "tokenizer")?;
    let draws = Draws::new(SEED, 0);
    let dropped = draws.generator(Stream::ClassDropout).uniform(2);
    let captions = batch.tokens.flatten_all()?.to_vec1::<u32>()?;
    let ids = captions.into_iter().zip(dropped).map(|(caption, u)| {
        let caption = if f64::from(u) < dropout { "" } else { CAPTIONS[caption as usize] };
        Ok(tokenizer.encode(caption)?.ids)
    });
    let ids = Tensor::new(ids.collect::<TestResult<Vec<_>>>()?, &Device::Cpu)?;
    let conditioning = Conditioning::text(encoder.forward(&ids)?.last_hidden_state);
    loss_of(network.as_ref(), &files.config("scheduler", "scheduler_config.json")?, &conditioning, batch)
}

/// A component's weights with the changes of files, if there are any.
fn with_loras<'a>(
    loras: Option<(&'a Loras, Put)>,
    component: &'a str,
    checkpoint: &'a Checkpoint,
) -> Box<dyn WeightSource + 'a> {
    match loras {
        Some((loras, Put::Merged)) => Box::new(loras.over(component, checkpoint)),
        Some((loras, Put::Beside)) => Box::new(loras.beside(component, checkpoint)),
        None => Box::new(Plain(checkpoint)),
    }
}

/// A checkpoint as it is.
struct Plain<'a>(&'a Checkpoint);

impl WeightSource for Plain<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        self.0.tensor(name, shape)
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn device(&self) -> &Device {
        self.0.device()
    }
}

/// Before the first step the loss is that of the model without factors.
#[test]
fn factors_start_as_no_change() -> TestResult {
    for trains_text in [false, true] {
        let mut trainer = trainer(load("sd15", HeldWeights::default())?, LowRankModules::All, trains_text)?;
        let (loss, _) = loss_and_gradients(&mut trainer, &[], 0.0)?;
        let own = loss_by_files(None, &batch()?, 0.3)?;
        assert!((loss - own).abs() < 1e-6 * own, "{loss} {own}");
    }
    Ok(())
}

/// Training lowers the loss of a batch that it sees again and again; the file in either form gives the bare model the loss that the
/// trained factors have, merged or beside its weights.
#[test]
fn the_file_does_what_the_trained_factors_do() -> TestResult {
    for (form, trains_text) in [(LoraForm::Kohya, false), (LoraForm::Peft, true), (LoraForm::Kohya, true)] {
        let model = load("sd15", HeldWeights::default())?;
        let options = OptimizerOptions { max_gradient_norm: Some(1.0), ..optimizer(2e-2) };
        let config = LoraTrainingConfig { form, caption_dropout: 0.0, ..config(&model, LowRankModules::All)? };
        let (task, sets) = LoraTraining::new(config, model, SEED, (options, trains_text.then_some(options)))?;
        let mut trainer = Trainer::new(task, sets, TrainerOptions { seed: SEED, accumulate: 1 })?;
        let (first, _) = loss_and_gradients(&mut trainer, &[], 0.0)?;
        let batch = batch()?;
        for _ in 0..12 {
            trainer.step(|| Ok(batch.clone()))?;
        }
        // The first step's noise and timesteps once more.
        let mut state = trainer.state();
        state.step = 0;
        trainer.restore(state)?;
        let (last, _) = loss_and_gradients(&mut trainer, &[], 0.0)?;
        assert!(last < 0.99 * first, "{first} {last}");

        let folder = tempfile::tempdir()?;
        trainer.task().write_model(trainer.sets(), &(), folder.path())?;
        let path = folder.path().join("pytorch_lora_weights.safetensors");
        check_file(&path, form)?;
        for put in [Put::Merged, Put::Beside] {
            let of_file = loss_by_files(Some((&path, put)), &batch, 0.0)?;
            assert!((of_file - last).abs() < 1e-5 * last, "{form:?} {put:?}: {of_file} {last} after {first}");
        }
    }
    Ok(())
}

/// What the file says beside its tensors.
fn check_file(path: &Path, form: LoraForm) -> TestResult {
    let bytes = std::fs::read(path)?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    match form {
        LoraForm::Kohya => assert_eq!(metadata["ss_network_dim"], "3"),
        LoraForm::Peft => {
            let settings: Value = serde_json::from_str(&metadata["lora_adapter_metadata"])?;
            assert_eq!((&settings["unet.r"], &settings["unet.lora_alpha"]), (&3.into(), &2.0.into()));
            assert!(settings["text_encoder.target_modules"].as_array().is_some_and(|modules| !modules.is_empty()));
        }
    }
    Ok(())
}

/// Fifty steps of diffusers and PEFT with the same timesteps and noise: every loss, and the factors afterwards.
#[test]
fn golden_steps_of_peft() -> TestResult {
    for (name, trains_text) in [("lora-unet", false), ("lora-text", true)] {
        let folder = model_folder("../training").join(name);
        let case: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json"))?)?;
        let stored = candle_core::safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu)?;
        let number = |name: &str| case[name].as_f64().ok_or_else(|| format!("no {name}"));
        let texts = |value: &Value| value.as_str().map(str::to_owned);
        let captions: Vec<String> = case["captions"].as_array().into_iter().flatten().filter_map(texts).collect();

        let model = load("sd15", HeldWeights::default())?;
        let low_rank = LowRankConfig {
            rank: number("rank")? as usize,
            alpha: number("alpha")?,
            modules: LowRankModules::Attention,
        };
        let count = captions.len() as u32;
        let config =
            LoraTrainingConfig { low_rank, captions, caption_dropout: 0.0, ..config(&model, low_rank.modules)? };
        let options = OptimizerOptions { max_gradient_norm: Some(1.0), ..optimizer(number("lr")?) };
        let (task, sets) = LoraTraining::new(config, model, 1, (options, trains_text.then_some(options)))?;
        let seed = number("seed")? as u64;
        let mut trainer = Trainer::new(task, sets, TrainerOptions { seed, accumulate: 1 })?;
        let mut named: Vec<(&'static str, Vec<String>)> = Vec::new();
        for set in trainer.sets() {
            let slots = set.parameters().layout().slots();
            named.push((set.name(), slots.iter().map(|slot| slot.name.clone()).collect()));
        }
        let flat = |which: &str, names: &[String]| -> TestResult<Vec<f32>> {
            let parts = names.iter().map(|name| {
                let tensor = stored.get(&format!("{which}.{name}")).ok_or_else(|| format!("no {which}.{name}"))?;
                Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
            });
            Ok(parts.collect::<TestResult<Vec<_>>>()?.concat())
        };
        let all: usize = named.iter().map(|(_, names)| names.len()).sum();
        assert_eq!(stored.keys().filter(|name| name.starts_with("end.")).count(), all, "{name}");
        for (set, names) in &named {
            trainer.start_from(set, &flat("start", names)?)?;
        }
        for (step, loss) in case["losses"].as_array().into_iter().flatten().enumerate() {
            let tokens: Vec<u32> = (0..2).map(|i| (step as u32 + i) % count).collect();
            let mean = stored["latents"].get(step % 5)?;
            let batch = LatentBatch { mean, std: None, tokens: Tensor::from_vec(tokens, (2, 1), &Device::Cpu)? };
            let (found, expected) = (trainer.step(|| Ok(batch.clone()))?.loss(), loss.as_f64().ok_or("no loss")?);
            assert!((found / expected - 1.0).abs() < 1e-4, "{name}, step {step}: {found} for {expected}");
        }
        for (set, (_, names)) in trainer.sets().iter().zip(&named) {
            let (expected, found) = (flat("end", names)?, set.parameters().values());
            let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Fifty steps of 2e-3 each move a factor by up to 0.1; where a gradient is next to nothing, roundings decide its sign.
            assert!(off < 1e-3, "{name}, {}: factors are off by {off}", set.name());
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_trained_is_named() -> TestResult {
    let fails =
        |name: &str, trains_text: bool, change: &dyn Fn(&mut LoraTrainingConfig), parts: &[&str]| -> TestResult {
            let model = load(name, HeldWeights::default())?;
            let mut config = config(&model, LowRankModules::Attention)?;
            change(&mut config);
            let options = optimizer(1e-4);
            let made = LoraTraining::new(config, model, SEED, (options, trains_text.then_some(options)));
            let message = made.err().ok_or("it is trained")?.to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
            Ok(())
        };
    fails("sd15", false, &|config| config.low_rank.rank = 0, &["`rank`", "4096"])?;
    fails("sd15", false, &|config| config.low_rank.alpha = f64::NAN, &["`alpha`"])?;
    fails("sd15", false, &|config| config.caption_dropout = 1.5, &["caption dropout"])?;
    fails("xl-small", true, &|_| (), &["Stable Diffusion XL", "network alone"])?;
    for name in ["inpaint9", "lcm"] {
        let message = load(name, HeldWeights::default()).err().ok_or("it is loaded")?.to_string();
        assert!(message.contains("inpainting") && message.contains("the model is"), "{message}");
    }
    Ok(())
}
