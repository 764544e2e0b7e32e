//! Checkpoints of a run: a folder each, with a manifest that is written last.

use super::durable_file::{STAGED, remove_folder, replace_file, replace_folder, write_synced};
use super::{FlatLayout, TrainerState};
use crate::checkpoints::{ModelFiles, SafetensorsFile};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";
const WEIGHTS: &str = "weights.safetensors";
const EMA: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const LOSS_HISTORY: &str = "loss_history.safetensors";
const FIRST_MOMENT: &str = "first_moment.";
const SECOND_MOMENT: &str = "second_moment.";
/// Checkpoints that are kept: the newest and the one before it.
const KEPT: usize = 2;

/// The checkpoints of a run.
///
/// One is a folder `step-N` with the weights, their average and the optimiser's moments as safetensors files, all
/// f32. It is written under another name, synced and renamed; then its manifest, with the SHA-256 of every file, is
/// written in the same way. A folder without a manifest that agrees with its files is none.
#[derive(Debug, Clone)]
pub struct RunCheckpoints {
    folder: PathBuf,
}

impl RunCheckpoints {
    /// Those in a folder, which is made with the first.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    fn of_step(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:09}"))
    }

    /// Saves a state and removes all checkpoints but it and the last good one before. Gives its folder.
    ///
    /// # Errors
    /// If it cannot be written, as when the disk is full; earlier checkpoints stay.
    pub fn save(&self, layout: &FlatLayout, state: &TrainerState) -> Result<PathBuf> {
        let folder = self.of_step(state.step);
        let mut sums = Map::new();
        std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        replace_folder(&folder, |staged| {
            for (name, tensors) in files(layout, state)? {
                let bytes = encode(tensors, &staged.join(name))?;
                sums.insert(name.into(), sha256(&bytes).into());
                write_synced(&staged.join(name), &bytes)?;
            }
            Ok(())
        })?;
        let manifest = json!({"step": state.step, "sha256": sums});
        replace_file(&folder.join(MANIFEST), format!("{manifest:#}\n").as_bytes())?;
        self.remove_old()?;
        Ok(folder)
    }

    /// The newest checkpoint whose files are as its manifest says, and what was wrong with newer ones.
    ///
    /// # Errors
    /// If the folder cannot be read, or the checkpoint is that of another network.
    pub fn newest(&self, layout: &FlatLayout) -> Result<(Option<TrainerState>, Vec<String>)> {
        let mut passed_over = Vec::new();
        for (step, folder) in self.steps()? {
            match verified(&folder, step) {
                Ok(()) => return Ok((Some(read(&folder, step, layout)?), passed_over)),
                Err(reason) => {
                    passed_over.push(format!("the checkpoint {} is passed over: {reason}", folder.display()))
                }
            }
        }
        Ok((None, passed_over))
    }

    /// The folder of the newest good checkpoint, for messages.
    pub fn newest_folder(&self) -> Option<PathBuf> {
        let steps = self.steps().ok()?;
        steps.into_iter().find(|(step, folder)| verified(folder, *step).is_ok()).map(|(_, folder)| folder)
    }

    /// All folders with their steps, newest first.
    fn steps(&self) -> Result<Vec<(u64, PathBuf)>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("read", &self.folder))?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io("read", &self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
                steps.push((step, path));
            }
        }
        steps.sort_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    fn remove_old(&self) -> Result<()> {
        let is_whole = |folder: &Path| folder.join(MANIFEST).is_file();
        let mut kept = 0;
        for (_, folder) in self.steps()? {
            if is_whole(&folder) && kept < KEPT {
                kept += 1;
                continue;
            }
            // The manifest goes first: what is left of a folder is then none that could be taken.
            let _ = std::fs::remove_file(folder.join(MANIFEST));
            remove_folder(&folder)?;
        }
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io("read", &self.folder))?.flatten() {
            if entry.file_name().to_string_lossy().ends_with(STAGED) {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

type Tensors = BTreeMap<String, Tensor>;

fn files(layout: &FlatLayout, state: &TrainerState) -> Result<Vec<(&'static str, Tensors)>> {
    let prefixed = |prefix: &str, values: &[f32]| {
        let tensors = layout.tensors(values)?.into_iter();
        Ok::<_, Error>(tensors.map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect::<Tensors>())
    };
    let mut moments = prefixed(FIRST_MOMENT, &state.first_moment)?;
    moments.extend(prefixed(SECOND_MOMENT, &state.second_moment)?);
    let mut files =
        vec![(WEIGHTS, layout.tensors(&state.weights)?), (EMA, layout.tensors(&state.ema)?), (OPTIMIZER, moments)];
    if let Some(history) = &state.loss_history {
        let history = Tensor::from_slice(history, history.len(), &Device::Cpu)?;
        files.push((LOSS_HISTORY, [("losses".to_owned(), history)].into()));
    }
    Ok(files)
}

/// The bytes of a safetensors file, as PyTorch's programs write it.
pub(super) fn encode(tensors: Tensors, path: &Path) -> Result<Vec<u8>> {
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(tensors, Some(metadata)).map_err(|e| Error::malformed("safetensors file", path, e))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the files of a folder are those of its manifest.
fn verified(folder: &Path, step: u64) -> Result<(), String> {
    let files = ModelFiles::Folder(folder.to_path_buf());
    if !files.exists(MANIFEST) {
        return Err("it has no manifest, so it was not finished".into());
    }
    let manifest = files.read_text(MANIFEST).map_err(|e| e.to_string())?;
    let manifest: Value = serde_json::from_str(&manifest).map_err(|e| format!("its manifest is no JSON ({e})"))?;
    if manifest["step"].as_u64() != Some(step) {
        return Err(format!("its manifest is of step {}", manifest["step"]));
    }
    let sums = manifest["sha256"].as_object().ok_or("its manifest names no files")?;
    for name in [WEIGHTS, EMA, OPTIMIZER] {
        if !sums.contains_key(name) {
            return Err(format!("its manifest does not name {name}"));
        }
    }
    for (name, sum) in sums {
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(format!("its manifest names {name}, which leads out of the folder"));
        }
        if Some(files.sha256(name).map_err(|e| e.to_string())?.as_str()) != sum.as_str() {
            return Err(format!("{name} is not what was written"));
        }
    }
    Ok(())
}

fn read(folder: &Path, step: u64, layout: &FlatLayout) -> Result<TrainerState> {
    let files = ModelFiles::Folder(folder.to_path_buf());
    let optimizer = SafetensorsFile::open(&files, OPTIMIZER)?;
    let flat = |file: &SafetensorsFile, prefix: &str| {
        let mut values = Vec::with_capacity(layout.len());
        for slot in layout.slots() {
            values.extend(values_of(file, &format!("{prefix}{}", slot.name), slot.range.len())?);
        }
        Ok::<_, Error>(values)
    };
    let loss_history = if files.exists(LOSS_HISTORY) {
        let file = SafetensorsFile::open(&files, LOSS_HISTORY)?;
        let count = file.tensors().first().map_or(0, |stored| stored.shape.iter().product());
        Some(values_of(&file, "losses", count)?)
    } else {
        None
    };
    Ok(TrainerState {
        step,
        weights: flat(&SafetensorsFile::open(&files, WEIGHTS)?, "")?,
        ema: flat(&SafetensorsFile::open(&files, EMA)?, "")?,
        first_moment: flat(&optimizer, FIRST_MOMENT)?,
        second_moment: flat(&optimizer, SECOND_MOMENT)?,
        loss_history,
    })
}

fn values_of(file: &SafetensorsFile, name: &str, count: usize) -> Result<Vec<f32>> {
    let unusable = |reason: String| Error::malformed("checkpoint of this run", file.path(), reason);
    let tensor = file.read(name, DType::F32, &Device::Cpu)?;
    let tensor = tensor.ok_or_else(|| unusable(format!("{name} has values that are not finite")))?;
    if tensor.elem_count() != count {
        return Err(unusable(format!("{name} has {} values and the network needs {count}", tensor.elem_count())));
    }
    Ok(tensor.flatten_all()?.to_vec1()?)
}
