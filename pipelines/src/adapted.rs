//! Stages of a model that are built after it was loaded: with a request's LoRAs beside the weights, or when their turn comes.

use crate::device::NumberFormat;
use crate::requests::lora::LoraRequest;
use crate::stages::{Denoise, Encode};
use std::collections::BTreeSet;
use std::sync::Arc;
use tweedie::adapters::{LoraTarget, Loras, TextualInversion};
use tweedie::checkpoints::ModelFiles;
use tweedie::families::{Architecture, DenoisingNetwork, KeptWeights, Loader};
use tweedie::layers::{Backend, Weights};
use tweedie::text::TextEncoder;
use tweedie::{Device, Result};

/// What the first two stages of a model are built from: its configurations, and its files, or the weights as they are laid out,
/// which all of its stages share.
#[derive(Debug)]
pub(crate) struct Blueprint {
    pub architecture: Box<dyn Architecture>,
    pub kept: KeptWeights,
    pub files: ModelFiles,
    /// The network's folder in the model's.
    pub network: &'static str,
    pub target: LoraTarget,
    pub embeddings: Vec<TextualInversion>,
    /// What messages call the model's family.
    pub family: String,
    pub format: NumberFormat,
    pub backend: Option<Backend>,
    pub device: Device,
}

/// The text encoder with the tokens of embeddings, and the names of the files that its weights came from.
pub(crate) fn text_encoder(
    architecture: &dyn Architecture,
    loader: &Loader<'_>,
    embeddings: &[TextualInversion],
) -> Result<(Box<dyn TextEncoder>, Vec<String>)> {
    let (mut encoder, files) = architecture.text_encoder(loader)?;
    embeddings.iter().try_for_each(|embedding| embedding.add_to(encoder.as_mut()))?;
    Ok((encoder, files))
}

/// The embeddings of words that come with LoRAs, the first of each word, but for words that have one of the `given`.
pub(crate) fn bundled(loras: &Loras, given: &[TextualInversion]) -> Result<Vec<TextualInversion>> {
    let mut words: BTreeSet<String> = given.iter().map(|embedding| embedding.token().to_owned()).collect();
    Ok(loras.embeddings()?.into_iter().filter(|embedding| words.insert(embedding.token().into())).collect())
}

/// The first two stages with LoRAs.
pub(crate) struct AdaptedStages {
    pub encode: Arc<Encode>,
    pub denoise: Arc<Denoise>,
    /// What of the LoRAs has no effect.
    pub warnings: Vec<String>,
}

impl Blueprint {
    /// The names of the files of the network's weights.
    pub fn network_files(&self) -> Result<Vec<String>> {
        let loader = self.format.loader(&self.files, &self.device);
        Ok(loader.open(self.network)?.file_names().to_vec())
    }

    /// The denoising stage, from the model's files.
    pub fn denoise(&self) -> Result<Denoise> {
        let loader = Loader { backend: self.backend, ..self.format.loader(&self.files, &self.device) };
        let (network, _) = loader.load(self.network, &[], |weights| self.network_of(weights))?;
        Ok(Denoise::new(network, self.device.clone()))
    }

    fn network_of(&self, weights: &Weights<'_>) -> Result<Box<dyn DenoisingNetwork>> {
        self.architecture.network(weights, self.format.activations)
    }

    /// Both stages with LoRAs beside their weights, the second with the control models of `denoise`. A file that changes the
    /// text encoder not at all leaves `encode` as it is.
    pub fn stages(&self, loras: &[LoraRequest], encode: Arc<Encode>, denoise: &Denoise) -> Result<AdaptedStages> {
        let files = loras.iter().map(|lora| (lora.name.as_path(), lora.weight));
        let loras = Loras::open(files, &self.target)?;
        let loader = self.format.loader(&self.files, &self.device);
        let loader = Loader { backend: self.backend, loras: Some(&loras), kept: Some(&self.kept), ..loader };
        let embeddings = [self.embeddings.clone(), bundled(&loras, &self.embeddings)?].concat();
        let adds_words = embeddings.len() > self.embeddings.len();
        let changes_text =
            adds_words || self.target.components.iter().any(|part| !part.is_network && loras.changes(part.folder));
        let encode = match changes_text {
            false => encode,
            true => {
                let (text_encoder, _) = text_encoder(self.architecture.as_ref(), &loader, &embeddings)?;
                Arc::new(Encode::new(text_encoder, self.device.clone()).offering(&embeddings))
            }
        };
        let (network, _) = loader.load(self.network, &[], |weights| self.network_of(weights))?;
        let warnings = loras.finish(&self.family)?;
        Ok(AdaptedStages { encode, denoise: Arc::new(denoise.with_network(network)), warnings })
    }
}
