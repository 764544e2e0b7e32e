//! The record of a run.

use crate::adapters::{EMBEDDINGS, LORAS, has_word};
use crate::records::provenance::{InputRecord, Provenance, RECORD_FORM};
use crate::requests::options::Options;
use crate::requests::values::write;
use crate::settings::Settings;
use crate::task::Task;
use crate::used_weights::UsedWeights;
use serde_json::{Map, Value};
use std::borrow::Cow;
use tweedie::Result;
use tweedie::images::{Photo, TextChunk};

/// The settings of a run, for its pictures and for what is printed as JSON.
///
/// The SHA-256 of the weights is computed when it is first needed, so that it can be done while others
/// work: see [`Record::hash_weights`].
#[derive(Debug)]
pub struct Record {
    settings: Settings,
    weights: UsedWeights,
    vae: Option<UsedAutoencoder>,
    /// How many times pictures are enlarged when they are saved.
    scale: Option<u32>,
    inputs: Vec<Input>,
}

/// An autoencoder in place of a model's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsedAutoencoder {
    /// What pictures' settings call it.
    pub name: String,
    /// The first of its files, by its name among the weights.
    pub file: Option<String>,
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

/// The program that pictures say they were made by.
const PROGRAM: &str = concat!("tweedie ", env!("CARGO_PKG_VERSION"));

impl Input {
    fn record(&self) -> InputRecord {
        InputRecord { name: self.name.clone(), sha256: self.sha256.clone() }
    }
}

impl Record {
    pub(crate) fn new(settings: &Settings, weights: UsedWeights) -> Self {
        Self { settings: settings.clone(), weights, vae: None, scale: None, inputs: Vec::new() }
    }

    /// Names another autoencoder than the model's.
    pub(crate) fn with_vae(mut self, vae: Option<UsedAutoencoder>) -> Self {
        self.vae = vae;
        self
    }

    /// That the pictures are enlarged when they are saved.
    #[must_use]
    pub fn with_scale(mut self, scale: Option<u32>) -> Self {
        self.scale = scale.filter(|&scale| scale > 1);
        self
    }

    /// A picture as it is saved.
    ///
    /// # Errors
    /// If it would be larger than pictures are.
    pub fn scaled<'a>(&self, picture: &'a Photo) -> Result<Cow<'a, Photo>> {
        let Some(scale) = self.scale.map(|scale| scale as usize) else { return Ok(Cow::Borrowed(picture)) };
        Ok(Cow::Owned(picture.resized(scale * picture.width(), scale * picture.height())?))
    }

    /// The record of another run of the same model, in which no LoRA acts that is not the model's: the weights' sums are kept.
    #[must_use]
    pub fn with_settings(mut self, settings: &Settings) -> Self {
        self.settings = settings.clone();
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

    /// Everything as JSON: the request that makes the picture of that seed, and what it is made from.
    pub fn json(&self, seed: u64) -> Value {
        let mut fields = self.provenance().write();
        self.settings.request_of(seed).put(&mut fields);
        match &self.settings.task {
            Task::TextToImage => {}
            Task::ImageToImage { strength, .. } => {
                fields.insert("strength".into(), (*strength).into());
            }
            Task::Inpaint { strength, options, .. } => {
                fields.insert("strength".into(), (*strength).into());
                fields.insert("inpaint".into(), options.write().into());
            }
        }
        fields.into()
    }

    fn provenance(&self) -> Provenance {
        let mut adapters = self.weights.adapters();
        let mut list = |name| adapters.remove(name).unwrap_or_default();
        let input = |role: &str| self.inputs.iter().find(|input| input.role == role).map(Input::record);
        Provenance {
            program: PROGRAM.into(),
            record: RECORD_FORM,
            kind: self.kind().into(),
            dtype: self.weights.dtype.into(),
            model: self.weights.model_name.clone(),
            weights_sha256: self.hash_weights().cloned().unwrap_or_default(),
            vae: self.vae.as_ref().map(|vae| vae.name.clone()),
            scale: self.scale,
            loras: list(LORAS),
            embeddings: list(EMBEDDINGS),
            controls: self.controls(list("controls")),
            image: input("image"),
            mask: input("mask"),
        }
    }

    /// Control models, each with how it acted and its picture.
    fn controls(&self, mut models: Vec<Value>) -> Vec<Value> {
        let mut images = self.inputs.iter().filter(|input| input.role == CONTROL);
        for (model, control) in models.iter_mut().zip(&self.settings.controls) {
            let Value::Object(model) = model else { continue };
            model.extend(control.options.clone());
            if let Some(image) = images.next() {
                model.insert("image".into(), write(&image.record()));
            }
        }
        models
    }

    /// The command that makes such pictures.
    pub fn kind(&self) -> &'static str {
        self.settings.task.kind().name()
    }

    /// The text of a picture: `parameters`, as A1111's web UI writes and reads it, and `tweedie`, which is
    /// [`Self::json`].
    pub fn chunks(&self, seed: u64) -> Vec<TextChunk> {
        vec![
            TextChunk::new(TextChunk::PARAMETERS, self.parameters(seed)),
            TextChunk::new(TextChunk::SETTINGS, self.json(seed).to_string()),
        ]
    }

    fn parameters(&self, seed: u64) -> String {
        let s = &self.settings;
        let mut text = s.request.prompt.clone();
        if let Some(negative) = s.request.negative_prompt.as_ref().filter(|text| !text.is_empty()) {
            text += &format!("\nNegative prompt: {negative}");
        }
        text += &format!(
            "\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {seed}, Size: {}x{}",
            s.steps,
            quoted(&s.scheduler_label()),
            s.guidance_scale,
            s.width,
            s.height
        );
        // A file with all weights is known by its own hash.
        if let Some(hash) = self.short_hash(&|name| name.starts_with("unet/") || !name.contains('/')) {
            text += &format!(", Model hash: {hash}");
        }
        text += &format!(", Model: {}", quoted(&self.weights.model_name));
        if let Some(UsedAutoencoder { name, file }) = &self.vae {
            if let Some(hash) = self.short_hash(&|name| file.as_ref().is_some_and(|file| file == name)) {
                text += &format!(", VAE hash: {hash}");
            }
            let name = file.as_ref().filter(|file| !file.contains('/')).unwrap_or(name);
            text += &format!(", VAE: {}", quoted(name));
        }
        if s.task.canvas().is_some() {
            text += &format!(", Denoising strength: {}", s.task.strength());
        }
        if s.request.clip_skip > 0 {
            // A1111 counts from 1, the last layer.
            text += &format!(", Clip skip: {}", s.request.clip_skip + 1);
        }
        if let Some(eta) = s.scheduler_config.fields().get("eta").and_then(Value::as_f64).filter(|&eta| eta > 0.0) {
            text += &format!(", Eta: {eta}");
        }
        if s.request.token_merging > 0.0 {
            text += &format!(", Token merging ratio: {}", s.request.token_merging);
        }
        for (what, list) in [("Lora hashes", LORAS), ("TI hashes", EMBEDDINGS)] {
            let networks =
                self.weights.known_by(list).into_iter().filter(|(name, _)| list == LORAS || self.reads(name));
            let networks: Vec<String> =
                networks.map(|(name, hash)| format!("{}: {hash}", name.replace([':', ','], ""))).collect();
            if !networks.is_empty() {
                text += &format!(", {what}: {}", quoted(&networks.join(", ")));
            }
        }
        text + ", Version: " + PROGRAM
    }

    /// The digits by which A1111's web UI knows the first file of weights whose name fits.
    fn short_hash(&self, fits: &dyn Fn(&str) -> bool) -> Option<String> {
        let (_, hash) = self.hash_weights().ok()?.iter().find(|(name, _)| fits(name))?;
        hash.as_str().and_then(|hash| hash.get(..10)).map(str::to_owned)
    }

    /// Whether a prompt has the word of an embedding.
    fn reads(&self, word: &str) -> bool {
        let request = &self.settings.request;
        let xl = self.settings.xl.as_ref();
        let negatives = [request.negative_prompt.as_deref(), xl.map(|xl| xl.negative_prompt_2.as_str())];
        let negatives = negatives.into_iter().filter(|_| self.settings.guided());
        let prompts = [Some(request.prompt.as_str()), xl.map(|xl| xl.prompt_2.as_str())];
        prompts.into_iter().chain(negatives).flatten().any(|prompt| has_word(prompt, word))
    }
}

/// A value of A1111's text, in which commas, colons and ends of lines separate values: with one of them it is written as JSON, as
/// that program does.
fn quoted(value: &str) -> Cow<'_, str> {
    if value.contains([',', ':', '\n']) { Value::from(value).to_string().into() } else { value.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_look_like_separators_are_quoted() -> Result<(), serde_json::Error> {
        assert_eq!(quoted("DPM++ 2M SDE Karras"), "DPM++ 2M SDE Karras");
        for value in ["ink, v2", "a: b", "two\nlines", "\"quoted\", ñ", "C:\\models"] {
            let written = quoted(value).into_owned();
            assert!(written.starts_with('"') && !written.contains('\n'), "{written}");
            assert_eq!(serde_json::from_str::<String>(&written)?, value);
        }
        // As Python's `json.dumps(value, ensure_ascii=False)` has it.
        assert_eq!(quoted("a, ñ \"b\""), r#""a, ñ \"b\"""#);
        Ok(())
    }
}
