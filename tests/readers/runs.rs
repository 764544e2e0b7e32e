//! The folder of a run that goes on.

use super::TestResult;
use super::memory::bounded;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tweedie::files::file_sha256;
use tweedie::training::runs::{RunCheckpoints, RunFolder};
use tweedie::training::{
    AdamWConfig, Decay, EmaOptions, LearningRate, OptimizerOptions, ParameterSet, Parameters, SetState, TrainerState,
};
use tweedie_pipelines::{
    AutoencoderTrainingSettings, ClassifierTrainingSettings, LatentTrainingSettings, PixelTrainingSettings,
    TrainingSettings,
};

/// Its checkpoint.
const CHECKPOINT: &str = "checkpoints/step-000000003";
const MANIFEST: &str = "manifest.json";

/// The checkpoint's files of tensors.
const TENSORS: [&str; 4] = ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "task.safetensors"];

/// Configuration, log, the checkpoint's manifest, its files of tensors.
pub type RunFiles = [Vec<u8>; 7];

/// The one set of a small task.
fn sets() -> TestResult<[ParameterSet; 1]> {
    let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
    let tensors = BTreeMap::from([("bias".to_owned(), tensor(&[2])?), ("weight".to_owned(), tensor(&[2, 3])?)]);
    let options = OptimizerOptions {
        learning_rate: LearningRate { peak: 1e-3, warmup_steps: 0, total_steps: 9, decay: Decay::Constant },
        adamw: AdamWConfig::default(),
        max_gradient_norm: None,
        ema: Some(EmaOptions { decay: 0.9, warm_up: false }),
    };
    Ok([ParameterSet::new("unet", Parameters::from_tensors(&tensors)?, options)?])
}

/// The files of a run that went well.
pub fn good_files(folder: &Path) -> TestResult<RunFiles> {
    let settings = PixelTrainingSettings::default();
    let config = json!({"program": "tweedie", "settings": tweedie_pipelines::Options::write(&settings), "data": {}});
    let line =
        |step: usize| json!({"step": step, "loss": 0.5, "gradient_norm": 1.0, "learning_rate": 1e-3}).to_string();
    let log = (1..=4).map(|step| line(step) + "\n").collect::<String>();
    let values = vec![0.5; 8];
    let set = SetState {
        name: "unet".into(),
        updates: 3,
        weights: values.clone(),
        ema: Some(values.clone()),
        powers: Vec::new(),
        first_moment: values.clone(),
        second_moment: values,
    };
    let task = BTreeMap::from([("loss_history".to_owned(), vec![0.25; 4])]);
    let state = TrainerState { step: 3, sets: vec![set], task };
    let checkpoint = RunCheckpoints::new(&folder.join("checkpoints")).save(&state, &sets()?)?;
    let read = |name: &str| std::fs::read(checkpoint.join(name));
    let [weights, ema, optimizer, task] = TENSORS.map(read);
    Ok([config.to_string().into(), log.into(), read(MANIFEST)?, weights?, ema?, optimizer?, task?])
}

/// Goes on with a run of these files, as far as reading it goes. The sums in the manifest are made those of the files: what is
/// damaged has the right ones.
pub fn run_folder(folder: &Path, files: &[Vec<u8>]) -> TestResult<bool> {
    std::fs::create_dir_all(folder.join(CHECKPOINT))?;
    let names = ["config.json", "metrics.jsonl"].map(|name| folder.join(name));
    let of_checkpoint = [MANIFEST].into_iter().chain(TENSORS).map(|name| folder.join(CHECKPOINT).join(name));
    for (path, bytes) in names.into_iter().chain(of_checkpoint).zip(files) {
        std::fs::write(path, bytes)?;
    }
    correct_sums(&folder.join(CHECKPOINT))?;
    let (sets, length) = (sets()?, files.iter().map(Vec::len).sum());
    Ok(bounded("a run's folder", length, 128, || {
        let _ = PixelTrainingSettings::of_run(folder);
        let _ = LatentTrainingSettings::of_run(folder);
        let _ = AutoencoderTrainingSettings::of_run(folder);
        let _ = ClassifierTrainingSettings::of_run(folder);
        let Ok((run, _)) = RunFolder::resume(folder) else { return false };
        let newest = run.checkpoints().newest(&sets);
        let step = newest.as_ref().ok().and_then(|(state, _)| Some(state.as_ref()?.step)).unwrap_or(u64::MAX);
        let _ = run.metrics(step);
        newest.is_ok_and(|(state, _)| state.is_some())
    }))
}

/// Opens a run's log and draws the losses in it.
pub fn run_log(folder: &Path, bytes: &[u8]) -> TestResult<bool> {
    let run = RunFolder::create(folder)?;
    std::fs::write(folder.join("metrics.jsonl"), bytes)?;
    Ok(bounded("a run's log", bytes.len(), 128, || {
        let Ok(log) = run.metrics(u64::MAX) else { return false };
        run.write_loss_curves(&log.curves).is_ok() && !log.curves.is_empty()
    }))
}

fn correct_sums(checkpoint: &Path) -> TestResult {
    let path = checkpoint.join(MANIFEST);
    let Ok(bytes) = std::fs::read(&path) else { return Ok(()) };
    let Ok(mut manifest) = serde_json::from_slice::<Value>(&bytes) else { return Ok(()) };
    let Some(sums) = manifest.get_mut("sha256").and_then(Value::as_object_mut) else { return Ok(()) };
    for name in TENSORS {
        if let (Some(sum), Ok(real)) = (sums.get_mut(name), file_sha256(&checkpoint.join(name))) {
            *sum = real.into();
        }
    }
    Ok(std::fs::write(path, manifest.to_string())?)
}
