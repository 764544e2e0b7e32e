//! What a picture carries of how it was made.

use crate::request::{PromptSyntax, Settings};
use crate::task::Task;
use crate::used_weights::UsedWeights;
use serde_json::{Map, Value, json};
use tweedie::Result;
use tweedie::denoising::{GuidanceShape, Projection};
use tweedie::images::TextChunk;

/// The settings of a run, for its pictures and for `--json`.
///
/// The SHA-256 of the weights is computed when it is first needed, so that it can be done while others
/// work: see [`Record::hash_weights`].
#[derive(Debug)]
pub struct Record {
    settings: Settings,
    weights: UsedWeights,
    vae_name: Option<String>,
    inputs: Vec<Input>,
}

/// A file that pictures are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// What it is: "image", "mask", or "control", of which there is one for each control model.
    pub role: &'static str,
    /// Its name, without its folder.
    pub name: String,
    /// The SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// The role of a control model's picture.
const CONTROL: &str = "control";

impl Record {
    pub(crate) fn new(settings: &Settings, weights: UsedWeights) -> Self {
        Self { settings: settings.clone(), weights, vae_name: None, inputs: Vec::new() }
    }

    /// Names another autoencoder than the model's.
    pub(crate) fn with_vae(mut self, name: Option<String>) -> Self {
        self.vae_name = name;
        self
    }

    /// Adds a file that the pictures are made from.
    #[must_use]
    pub fn with_input(mut self, input: Input) -> Self {
        self.inputs.push(input);
        self
    }

    /// The SHA-256 of each weight file, by its name in the model's folder.
    ///
    /// # Errors
    /// If a file can no longer be read.
    pub fn hash_weights(&self) -> Result<&Map<String, Value>, &str> {
        self.weights.hashes()
    }

    /// Everything as JSON; `seed` is the image's own.
    pub fn json(&self, seed: u64) -> Value {
        let s = &self.settings;
        let scheduler: Map<String, Value> = s
            .scheduler_config
            .fields()
            .iter()
            .filter(|(name, _)| !name.starts_with('_'))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut json = json!({
            "program": concat!("tweedie ", env!("CARGO_PKG_VERSION")),
            "kind": self.kind(),
            "prompt": s.prompt,
            "negative_prompt": s.negative_prompt,
            "seed": seed,
            "steps": s.steps,
            "guidance_scale": s.guidance_scale,
            "guidance_rescale": s.guidance_rescale,
            "scheduler": s.scheduler.name(),
            "scheduler_config": scheduler,
            "width": s.width,
            "height": s.height,
            "clip_skip": s.clip_skip,
            "dtype": self.weights.dtype,
            "model": self.weights.model_name,
            "weights_sha256": self.hash_weights().cloned().unwrap_or_default(),
        });
        for (list, entries) in self.weights.adapters() {
            json[list] = entries.into();
        }
        let images = self.inputs.iter().filter(|input| input.role == CONTROL);
        for (i, control) in s.controls.iter().enumerate() {
            let Some(entry) = json["controls"].get_mut(i).and_then(Value::as_object_mut) else { break };
            entry.extend(control.json());
            if let Some(Input { name, sha256, .. }) = images.clone().nth(i) {
                entry.insert("image".into(), json!({"name": name, "sha256": sha256}));
            }
        }
        if s.prompt_syntax == PromptSyntax::Weighted {
            json["prompt_syntax"] = "weighted".into();
        }
        if s.guidance_shape != GuidanceShape::Constant {
            json["guidance_schedule"] = format!("{:?}", s.guidance_shape).to_lowercase().into();
        }
        if let Some((low, high)) = s.guidance_interval {
            json["guidance_interval"] = json!([low, high]);
        }
        if let Some(Projection { eta, norm_threshold, momentum }) = s.projection {
            json["apg"] = json!({"eta": eta, "norm_threshold": norm_threshold, "momentum": momentum});
        }
        if let Some(name) = &self.vae_name {
            json["vae"] = name.as_str().into();
        }
        if let Some(xl) = &s.xl {
            json["xl"] = xl.json();
        }
        if s.pag_scale > 0.0 {
            json["pag_scale"] = s.pag_scale.into();
        }
        if s.task.canvas().is_some() {
            json["strength"] = s.task.strength().into();
        }
        for Input { role, name, sha256 } in self.inputs.iter().filter(|input| input.role != CONTROL) {
            json[*role] = json!({"name": name, "sha256": sha256});
        }
        if let Task::Inpaint { resampling, canvas, .. } = &s.task {
            json["inpaint"] = canvas.options().clone();
            if resampling.times > 1 {
                json["inpaint"]["resample"] = resampling.times.into();
                json["inpaint"]["jump_length"] = resampling.jump_length.into();
            }
        }
        json
    }

    /// The command that makes such pictures.
    pub fn kind(&self) -> &'static str {
        self.settings.task.kind().name()
    }

    /// The text of a picture: `parameters`, as A1111's web UI writes and reads it, and `tweedie`, which is
    /// [`Self::json`].
    pub fn chunks(&self, seed: u64) -> Vec<TextChunk> {
        vec![
            TextChunk::new("parameters", self.parameters(seed)),
            TextChunk::new("tweedie", self.json(seed).to_string()),
        ]
    }

    fn parameters(&self, seed: u64) -> String {
        let s = &self.settings;
        let mut text = s.prompt.clone();
        if let Some(negative) = s.negative_prompt.as_ref().filter(|text| !text.is_empty()) {
            text += &format!("\nNegative prompt: {negative}");
        }
        text += &format!(
            "\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {seed}, Size: {}x{}",
            s.steps,
            s.scheduler.label(),
            s.guidance_scale,
            s.width,
            s.height
        );
        let unet = self.hash_weights().ok().and_then(|hashes| {
            // A file with all weights is known by its own hash.
            let unet = hashes.iter().find(|(name, _)| name.starts_with("unet/") || !name.contains('/'))?;
            unet.1.as_str().and_then(|hash| hash.get(..10)).map(str::to_owned)
        });
        if let Some(hash) = unet {
            text += &format!(", Model hash: {hash}");
        }
        text += &format!(", Model: {}", self.weights.model_name);
        if s.task.canvas().is_some() {
            text += &format!(", Denoising strength: {}", s.task.strength());
        }
        if s.clip_skip > 0 {
            // A1111 counts from 1, the last layer.
            text += &format!(", Clip skip: {}", s.clip_skip + 1);
        }
        if let Some(eta) = s.scheduler_config.fields().get("eta").and_then(Value::as_f64).filter(|&eta| eta > 0.0) {
            text += &format!(", Eta: {eta}");
        }
        text + concat!(", Version: tweedie ", env!("CARGO_PKG_VERSION"))
    }
}
