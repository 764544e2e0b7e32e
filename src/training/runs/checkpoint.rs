//! Checkpoints of a run: a folder each, with a manifest that is written last.

use super::tensor_file::encode;
use crate::checkpoints::{ModelFiles, SafetensorsFile};
use crate::files::{bytes_sha256, remove_folder, replace_folder, sync_folder, unfinished, write_synced};
use crate::training::{ParameterSet, SetState, TrainerState};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";
const WEIGHTS: &str = "weights.safetensors";
const EMA: &str = "ema.safetensors";
const POWERS: &str = "power_averages.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const TASK: &str = "task.safetensors";
/// What older versions call [`TASK`], and its one entry, which is now called [`LOSS_HISTORY`].
const OLD_LOSS_HISTORY: (&str, &str) = ("loss_history.safetensors", "losses");
const LOSS_HISTORY: &str = "loss_history";
const FIRST_MOMENT: &str = "first_moment.";
const SECOND_MOMENT: &str = "second_moment.";
/// Checkpoints that are kept: the newest and the one before it.
const KEPT: usize = 2;

/// The checkpoints of a run.
///
/// One is a folder `step-N` with the weights, their averages, the optimisers' moments and what else the task keeps as
/// safetensors files, all f32; the names of a set's tensors begin with the set's. It is written under another name, last of all
/// its manifest, with the sets and the SHA-256 of every file; then it is synced and renamed. A folder without a manifest that
/// agrees with its files is none.
///
/// ```text
/// manifest.json            {"step": 500, "sets": {"unet": {"updates": 500}}, "sha256": {...}}, and "power": 0 where a model has that
///                          one of the averages by powers of time
/// weights.safetensors      unet.conv_in.weight, ...
/// ema.safetensors          the same names, if averages are kept
/// power_averages.safetensors   0.unet.conv_in.weight, 1.unet.conv_in.weight, ..., if such are kept
/// optimizer.safetensors    first_moment.unet.conv_in.weight, second_moment.unet.conv_in.weight, ...
/// task.safetensors         what else the task keeps, if anything
/// ```
///
/// Manifests of older versions have no `sets`: their one set has bare names.
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

    /// Saves a state of these sets and removes all checkpoints but it and the last good one before. Gives its folder.
    ///
    /// # Errors
    /// If it cannot be written, as when the disk is full; earlier checkpoints stay.
    ///
    /// # Panics
    /// If the state is that of other sets.
    pub fn save(&self, state: &TrainerState, sets: &[ParameterSet]) -> Result<PathBuf> {
        let folder = self.of_step(state.step);
        let mut sums = Map::new();
        std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        replace_folder(&folder, |staged| {
            for (name, tensors) in files(state, sets)? {
                let bytes = encode(tensors, &staged.join(name))?;
                sums.insert(name.into(), bytes_sha256(&bytes).into());
                write_synced(&staged.join(name), &bytes)?;
            }
            let updates = state.sets.iter().map(|set| (set.name.clone(), json!({"updates": set.updates})));
            let mut manifest = json!({"step": state.step, "sets": Map::from_iter(updates), "sha256": sums});
            if let Some(power) = sets.iter().find_map(ParameterSet::chosen_power) {
                manifest["power"] = power.into();
            }
            write_synced(&staged.join(MANIFEST), format!("{manifest:#}\n").as_bytes())
        })?;
        self.remove_old()?;
        Ok(folder)
    }

    /// The newest checkpoint whose files are as its manifest says, and what was wrong with newer ones. Those are set aside under
    /// another name, so that they neither pass for a checkpoint again nor outlive the new ones. What [`Self::save`] removes is removed.
    ///
    /// # Errors
    /// If the folder cannot be read, the checkpoint is that of other sets, or a damaged one cannot be renamed or an old one removed.
    pub fn newest(&self, sets: &[ParameterSet]) -> Result<(Option<TrainerState>, Vec<String>)> {
        let mut passed_over = Vec::new();
        for (step, folder) in self.steps()? {
            match verified(&folder, step) {
                Ok(manifest) => {
                    let state = read(&folder, &manifest, sets)?;
                    // A kill may have come before an old one was removed, and a run that is at its end saves no other.
                    self.remove_old()?;
                    return Ok((Some(state), passed_over));
                }
                Err(reason) => {
                    let aside = set_aside(&folder)?;
                    let (folder, aside) = (folder.display(), aside.display());
                    passed_over
                        .push(format!("the checkpoint {folder} is passed over and now called {aside}: {reason}"));
                }
            }
        }
        Ok((None, passed_over))
    }

    /// The newest good checkpoint: its step and its folder.
    pub fn newest_good(&self) -> Option<(u64, PathBuf)> {
        let steps = self.steps().ok()?;
        steps.into_iter().find(|(step, folder)| verified(folder, *step).is_ok())
    }

    /// The newest checkpoint that was finished, whether or not its files are as they were written.
    pub(super) fn newest_written(&self) -> Result<Option<(u64, PathBuf)>> {
        Ok(self.steps()?.into_iter().find(|(_, folder)| folder.join(MANIFEST).is_file()))
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
            // Where a link leads is not this run's.
            if let Some(step) = step_of(name).filter(|_| !path.is_symlink()) {
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
            if unfinished(&entry.file_name().to_string_lossy()).and_then(step_of).is_some() {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The step of a checkpoint by its folder, if it is that of one.
pub(super) fn step_of_folder(folder: &Path) -> Option<u64> {
    let step = step_of(folder.file_name()?.to_str()?)?;
    folder.join(MANIFEST).is_file().then_some(step)
}

/// Where a checkpoint has the weights that a finished model would have: the file, and the number of the average by powers of time
/// that they are, if they are one.
///
/// # Errors
/// What is wrong with the checkpoint, if that file is not what was written.
pub(super) fn model_weights(folder: &Path, step: u64) -> Result<(PathBuf, Option<u64>), String> {
    let manifest = manifest_of(folder, step)?;
    let sums = manifest["sha256"].as_object().ok_or("its manifest names no files")?;
    let power = manifest["power"].as_u64();
    let name = match power {
        Some(_) => POWERS,
        None if sums.contains_key(EMA) => EMA,
        None => WEIGHTS,
    };
    let sum = ModelFiles::Folder(folder.to_path_buf()).sha256(name).map_err(|e| e.to_string())?;
    match sums.get(name).and_then(Value::as_str) == Some(&sum) {
        true => Ok((folder.join(name), power)),
        false => Err(format!("{name} is not what was written")),
    }
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// Renames a damaged checkpoint to a name that is free and is no checkpoint's.
fn set_aside(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let names = (1..).map(|i| if i == 1 { format!("{name}.damaged") } else { format!("{name}.damaged-{i}") });
    let mut free = names.map(|name| folder.with_file_name(name)).filter(|path| path.symlink_metadata().is_err());
    let aside = free.next().unwrap_or_default();
    std::fs::rename(folder, &aside).map_err(Error::io("rename", folder))?;
    folder.parent().map_or(Ok(()), sync_folder)?;
    Ok(aside)
}

type Tensors = BTreeMap<String, Tensor>;

/// The files of a checkpoint and what is in them.
fn files(state: &TrainerState, sets: &[ParameterSet]) -> Result<Vec<(&'static str, Tensors)>> {
    let (mut weights, mut ema, mut powers, mut moments) =
        (Tensors::new(), Tensors::new(), Tensors::new(), Tensors::new());
    assert_eq!(state.sets.len(), sets.len());
    for (state, set) in state.sets.iter().zip(sets) {
        let put = |file: &mut Tensors, prefix: &str, values: &[f32]| {
            let tensors = set.parameters().layout().tensors(values)?.into_iter();
            file.extend(tensors.map(|(name, tensor)| (format!("{prefix}{}.{name}", state.name), tensor)));
            Ok::<_, Error>(())
        };
        put(&mut weights, "", &state.weights)?;
        state.ema.as_ref().map_or(Ok(()), |values| put(&mut ema, "", values))?;
        for (i, values) in state.powers.iter().enumerate() {
            put(&mut powers, &format!("{i}."), values)?;
        }
        put(&mut moments, FIRST_MOMENT, &state.first_moment)?;
        put(&mut moments, SECOND_MOMENT, &state.second_moment)?;
    }
    let flat = |(name, values): (&String, &Vec<f32>)| {
        Ok::<_, Error>((name.clone(), Tensor::from_slice(values, values.len(), &Device::Cpu)?))
    };
    let task = state.task.iter().map(flat).collect::<Result<Tensors>>()?;
    let files = [(WEIGHTS, weights), (EMA, ema), (POWERS, powers), (OPTIMIZER, moments), (TASK, task)];
    Ok(files.into_iter().filter(|(_, tensors)| !tensors.is_empty()).collect())
}

/// What a manifest says of the files beside it, which are as it says.
struct Manifest {
    step: u64,
    /// How often each set was moved; `None` in the form of older versions.
    updates: Option<BTreeMap<String, u64>>,
}

impl Manifest {
    /// What the names of a set's tensors begin with.
    fn prefix(&self, set: &ParameterSet) -> String {
        if self.updates.is_some() { format!("{}.", set.name()) } else { String::new() }
    }
}

/// What the manifest of a folder says.
fn manifest_of(folder: &Path, step: u64) -> Result<Value, String> {
    let files = ModelFiles::Folder(folder.to_path_buf());
    if !files.exists(MANIFEST) {
        return Err("it has no manifest, so it was not finished".into());
    }
    let manifest = files.read_text(MANIFEST).map_err(|e| e.to_string())?;
    let manifest: Value = serde_json::from_str(&manifest).map_err(|e| format!("its manifest is no JSON ({e})"))?;
    if manifest["step"].as_u64() != Some(step) {
        return Err(format!("its manifest is of step {}", manifest["step"]));
    }
    Ok(manifest)
}

/// The manifest of a folder, if its files are those that it names.
fn verified(folder: &Path, step: u64) -> Result<Manifest, String> {
    let files = ModelFiles::Folder(folder.to_path_buf());
    let manifest = manifest_of(folder, step)?;
    let sums = manifest["sha256"].as_object().ok_or("its manifest names no files")?;
    for name in [WEIGHTS, OPTIMIZER] {
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
    let updates = manifest["sets"].as_object().map(|sets| {
        let updates = sets.iter().map(|(name, set)| Some((name.clone(), set["updates"].as_u64()?)));
        updates.collect::<Option<_>>().ok_or("its manifest does not say how often its sets were moved")
    });
    Ok(Manifest { step, updates: updates.transpose()? })
}

fn read(folder: &Path, manifest: &Manifest, sets: &[ParameterSet]) -> Result<TrainerState> {
    let files = ModelFiles::Folder(folder.to_path_buf());
    let known = manifest.updates.as_ref().map(|updates| updates.keys().map(String::as_str).collect::<Vec<_>>());
    let (mut names, count) = (sets.iter().map(ParameterSet::name).collect::<Vec<_>>(), sets.len());
    names.sort_unstable();
    if known.as_ref().map_or(count != 1, |known| *known != names) {
        let known = known.map_or("one without a name".into(), |known| known.join(", "));
        let reason = format!("its sets of parameters are {known}, and this task has {}", names.join(", "));
        return Err(Error::malformed(ErrorKind::Model, "checkpoint of this run", folder, reason));
    }
    let sets = sets.iter().map(|set| read_set(&files, manifest, set)).collect::<Result<_>>()?;
    Ok(TrainerState { step: manifest.step, sets, task: read_task(&files, manifest)? })
}

fn read_set(files: &ModelFiles, manifest: &Manifest, set: &ParameterSet) -> Result<SetState> {
    let layout = set.parameters().layout();
    let flat = |file: &SafetensorsFile, prefix: &str| {
        let mut values = Vec::with_capacity(layout.len());
        for slot in layout.slots() {
            let name = format!("{prefix}{}{}", manifest.prefix(set), slot.name);
            values.extend(values_of(file, &name, Some(slot.range.len()))?);
        }
        Ok::<_, Error>(values)
    };
    let optimizer = SafetensorsFile::open(files, OPTIMIZER)?;
    let ema = set.has_average().then(|| flat(&SafetensorsFile::open(files, EMA)?, ""));
    let power = |i: usize| flat(&SafetensorsFile::open(files, POWERS)?, &format!("{i}."));
    Ok(SetState {
        powers: (0..set.power_averages().len()).map(power).collect::<Result<_>>()?,
        name: set.name().into(),
        updates: manifest.updates.as_ref().and_then(|sets| sets.get(set.name()).copied()).unwrap_or(manifest.step),
        weights: flat(&SafetensorsFile::open(files, WEIGHTS)?, "")?,
        ema: ema.transpose()?,
        first_moment: flat(&optimizer, FIRST_MOMENT)?,
        second_moment: flat(&optimizer, SECOND_MOMENT)?,
    })
}

fn read_task(files: &ModelFiles, manifest: &Manifest) -> Result<BTreeMap<String, Vec<f32>>> {
    let (old, losses) = OLD_LOSS_HISTORY;
    if manifest.updates.is_none() && files.exists(old) {
        let history = values_of(&SafetensorsFile::open(files, old)?, losses, None)?;
        return Ok([(LOSS_HISTORY.to_owned(), history)].into());
    }
    if !files.exists(TASK) {
        return Ok(BTreeMap::new());
    }
    let file = SafetensorsFile::open(files, TASK)?;
    let values = |name: String| Ok((name.clone(), values_of(&file, &name, None)?));
    file.tensors().into_iter().map(|stored| values(stored.name)).collect()
}

/// The values of a tensor, as many as `count` if it is given.
fn values_of(file: &SafetensorsFile, name: &str, count: Option<usize>) -> Result<Vec<f32>> {
    let unusable = |reason: String| Error::malformed(ErrorKind::Model, "checkpoint of this run", file.path(), reason);
    let tensor = file.read(name, DType::F32, &Device::Cpu)?;
    let tensor = tensor.ok_or_else(|| unusable(format!("{name} has values that are not finite")))?;
    if let Some(count) = count.filter(|&count| count != tensor.elem_count()) {
        return Err(unusable(format!("{name} has {} values and the network needs {count}", tensor.elem_count())));
    }
    Ok(tensor.flatten_all()?.to_vec1()?)
}
