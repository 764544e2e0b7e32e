//! Textual inversion: embeddings of a new token, trained for a model that stays as it is.

use super::frozen_model::{FrozenModel, no_such_caption};
use super::prompt_grid::SamplePrompts;
use crate::adapters::TextualInversion;
use crate::conditioning::Conditioning;
use crate::families::DenoisingNetwork;
use crate::images::Picture;
use crate::text::TextEncoder;
use crate::training::data::LatentBatch;
use crate::training::{
    DenoisingLoss, Draws, NewToken, Objective, OptimizerOptions, ParameterSet, Parameters, TrainingTask,
};
use crate::{DType, Error, ErrorKind, Result, Tensor};
use std::collections::BTreeSet;
use std::path::Path;

/// The file of a finished embedding, as diffusers calls it.
const FILE: &str = "learned_embeds.safetensors";
/// The one parameter of each text encoder.
const VECTORS: &str = "vectors";

/// What an [`EmbeddingTraining`] trains, and what for.
#[derive(Debug, Clone)]
pub struct EmbeddingTrainingConfig {
    /// The token.
    pub token: NewToken,
    /// What is minimised.
    pub objective: Objective,
    /// All captions, each with the token in it; batches name them by their numbers here.
    pub captions: Vec<String>,
    /// Height and width of the pictures of sample grids.
    pub size: (usize, usize),
    /// What sample grids show.
    pub samples: SamplePrompts,
    /// The number format of the finished file.
    pub dtype: DType,
}

/// Training of the embeddings `v` of a token (Gal et al. 2023, equation 2), `v* = argmin_v E |epsilon - epsilon_theta(z_t, t, c_v(y))|^2`,
/// with the loss that the model was trained with; `c_v(y)` is what its text encoder says of a caption `y` that has the token. It ends
/// as a file that this program and others take.
#[derive(Debug)]
pub struct EmbeddingTraining {
    config: EmbeddingTrainingConfig,
    model: FrozenModel,
    network: Box<dyn DenoisingNetwork>,
    /// It has the token, whose embeddings are the parameters.
    encoder: Box<dyn TextEncoder>,
    /// What stands for no text.
    none: Conditioning,
    warnings: Vec<String>,
    loss: DenoisingLoss,
}

impl EmbeddingTraining {
    /// The task and its sets of parameters: the embeddings of each of the model's text encoders, by the name of its folder.
    ///
    /// # Errors
    /// If an option has an unusable value, the model has no text encoder of tokens, or one that knows the token already, or a caption
    /// does not have the token where it is read.
    pub fn new(
        config: EmbeddingTrainingConfig,
        model: FrozenModel,
        seed: u64,
        optimizer: OptimizerOptions,
    ) -> Result<(Self, Vec<ParameterSet>)> {
        config.token.check()?;
        let plain = model.text_encoder(None)?;
        let folders = model.text_encoder_folders();
        if plain.token_embeddings().len() != folders.len() {
            let fix = "its text encoder has no embeddings of tokens; take a model of Stable Diffusion 1.x, 2.x or XL";
            return Err(Error::unusable(ErrorKind::Model, "the model", model.family(), fix));
        }
        let start = config.token.start(plain.as_ref(), seed)?;
        let of_encoder = |(&folder, vectors): (&&'static str, Tensor)| {
            let parameters = Parameters::from_tensors(&[(VECTORS.to_owned(), vectors)].into())?;
            ParameterSet::new(folder, parameters, optimizer)
        };
        let sets: Vec<_> = folders.iter().zip(start).map(of_encoder).collect::<Result<_>>()?;
        let variables = sets.iter().map(|set| set.parameters().variable(VECTORS).cloned()).collect::<Option<Vec<_>>>();
        let encoder = with_token(&model, &config.token, &variables.ok_or_else(|| wrong_sets(sets.len()))?)?;
        check_captions(&config, encoder.as_ref())?;
        let mut warnings = Vec::new();
        // For what there is to say of them alone, which is said once.
        let texts: BTreeSet<_> = config.captions.iter().chain(&config.samples.prompts).collect();
        model.encode(encoder.as_ref(), &Vec::from_iter(texts), &mut warnings)?;
        let none = model.without_text(&model.encode(encoder.as_ref(), &[""], &mut warnings)?[0])?;
        let network = model.network(None)?;
        let loss = DenoisingLoss::new(config.objective.clone(), false);
        Ok((Self { config, model, network, encoder, none, warnings, loss }, sets))
    }

    /// The model that stays as it is.
    pub fn model(&self) -> &FrozenModel {
        &self.model
    }

    /// What the user should know of captions and sample prompts.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The embeddings as training left them, of each text encoder.
    fn trained(&self, sets: &[ParameterSet]) -> Result<Vec<Tensor>> {
        if sets.len() != self.model.text_encoder_folders().len() {
            return Err(wrong_sets(sets.len()));
        }
        let of_set = |set: &ParameterSet| set.tensors()?.remove(VECTORS).ok_or_else(|| wrong_sets(sets.len()));
        sets.iter().map(of_set).collect()
    }
}

/// The model's text encoder with the token.
fn with_token(model: &FrozenModel, token: &NewToken, vectors: &[Tensor]) -> Result<Box<dyn TextEncoder>> {
    let mut encoder = model.text_encoder(None)?;
    encoder.add_token(&token.token, vectors)?;
    Ok(encoder)
}

/// Whether every text encoder reads the token, with all that it stands for, in every caption.
fn check_captions(config: &EmbeddingTrainingConfig, encoder: &dyn TextEncoder) -> Result<()> {
    let tokens = encoder.token_ids(&config.token.token)?;
    for caption in &config.captions {
        let read = encoder.token_ids(caption)?;
        let is_read = |(read, token): (&Vec<u32>, &Vec<u32>)| {
            token.len() == config.token.vectors && read.windows(token.len()).any(|window| window == token)
        };
        if !read.iter().zip(&tokens).all(is_read) {
            let NewToken { token, vectors, .. } = &config.token;
            let fix = format!(
                "it must have {token}, for which {vectors} tokens stand, in the part that the text encoder reads; take a shorter \
                 caption or fewer `vectors`"
            );
            return Err(Error::invalid("a caption", format!("{caption:?}"), fix));
        }
    }
    Ok(())
}

fn wrong_sets(count: usize) -> Error {
    Error::invalid("the number of sets of parameters", count, "take those of the task")
}

impl TrainingTask for EmbeddingTraining {
    type Batch = LatentBatch;
    type Evaluation = ();

    fn loss(&mut self, _: usize, batch: &LatentBatch, draws: Draws) -> Result<Tensor> {
        let numbers = batch.tokens.flatten_all()?.to_vec1::<u32>()?;
        let captions: Option<Vec<_>> =
            numbers.iter().map(|&number| self.config.captions.get(number as usize)).collect();
        let captions = captions.ok_or_else(|| no_such_caption(self.config.captions.len()))?;
        let rows = self.model.encode(self.encoder.as_ref(), &captions, &mut Vec::new())?;
        let conditioning = Conditioning::cat(&rows.iter().collect::<Vec<_>>())?;
        self.model.loss(self.network.as_ref(), &mut self.loss, conditioning, batch, draws)
    }

    fn samples(&self, sets: &[ParameterSet]) -> Result<Vec<(&'static str, Picture)>> {
        let EmbeddingTrainingConfig { token, samples, size, .. } = &self.config;
        let encoder = with_token(&self.model, token, &self.trained(sets)?)?;
        let prompts = self.model.encode(encoder.as_ref(), &samples.prompts, &mut Vec::new())?;
        Ok(vec![("", self.model.grid(self.network.as_ref(), samples, &prompts, &self.none, *size)?)])
    }

    fn evaluate(&self, _: &[ParameterSet]) -> Result<()> {
        Ok(())
    }

    /// A file with the embeddings, `learned_embeds.safetensors`.
    fn write_model(&self, sets: &[ParameterSet], (): &(), folder: &Path) -> Result<()> {
        let stored = self.trained(sets)?.into_iter().map(|vectors| Ok(vectors.to_dtype(self.config.dtype)?));
        TextualInversion::write(&self.config.token.token, &stored.collect::<Result<Vec<_>>>()?, &folder.join(FILE))
    }
}
