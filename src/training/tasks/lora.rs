//! Training a LoRA: low-rank factors beside the weights of a model that stays as it is.

use super::frozen_model::{FrozenModel, no_such_caption};
use super::prompt_grid::SamplePrompts;
use crate::adapters::{LoraForm, WrittenLora};
use crate::conditioning::Conditioning;
use crate::families::DenoisingNetwork;
use crate::images::Picture;
use crate::layers::WeightSource;
use crate::text::TextEncoder;
use crate::training::data::LatentBatch;
use crate::training::low_rank::{LowRankAdapters, new_factors};
use crate::training::{
    DenoisingLoss, Draws, FlatWeights, LowRankConfig, Objective, OptimizerOptions, ParameterSet, Stream, TrainingTask,
};
use crate::{DType, Device, Error, Result, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The file of a finished LoRA, as diffusers calls it.
const FILE: &str = "pytorch_lora_weights.safetensors";

/// What a [`LoraTraining`] trains, and what for.
#[derive(Debug, Clone)]
pub struct LoraTrainingConfig {
    /// What the change of each weight is.
    pub low_rank: LowRankConfig,
    /// What is minimised.
    pub objective: Objective,
    /// All captions; batches name them by their numbers here.
    pub captions: Vec<String>,
    /// The share of pictures whose caption is taken for none.
    pub caption_dropout: f64,
    /// Height and width of the pictures of sample grids.
    pub size: (usize, usize),
    /// What sample grids show.
    pub samples: SamplePrompts,
    /// The form of the finished file.
    pub form: LoraForm,
    /// The number format of its factors.
    pub dtype: DType,
    /// What kohya's form says of the run: names that begin with `ss_`.
    pub metadata: BTreeMap<String, String>,
}

/// What the network is told of texts.
#[derive(Debug)]
enum Texts {
    /// Encoded once, since nothing of that changes: each caption, each sample prompt, and no text.
    Encoded { captions: Vec<Conditioning>, prompts: Vec<Conditioning>, none: Conditioning },
    /// Encoded each time, by an encoder that is trained.
    Trained(Box<dyn TextEncoder>),
}

/// Training of the low-rank factors of a LoRA (Hu et al. 2022, equation 3), `W x + alpha / rank B (A x)`, with the loss that the model
/// was trained with, of which `W` is. It ends as a file that this program and others take.
#[derive(Debug)]
pub struct LoraTraining {
    config: LoraTrainingConfig,
    model: FrozenModel,
    network: Box<dyn DenoisingNetwork>,
    texts: Texts,
    warnings: Vec<String>,
    loss: DenoisingLoss,
}

impl LoraTraining {
    /// The task and its sets of parameters: the factors beside the denoising network's weights, and those beside the text
    /// encoder's if they have an optimiser.
    ///
    /// # Errors
    /// If an option has an unusable value, or no weight of the model gets factors.
    pub fn new(
        config: LoraTrainingConfig,
        model: FrozenModel,
        seed: u64,
        (network_optimizer, text_optimizer): (OptimizerOptions, Option<OptimizerOptions>),
    ) -> Result<(Self, Vec<ParameterSet>)> {
        config.low_rank.check()?;
        if !(0.0..=1.0).contains(&config.caption_dropout) {
            let fix = "it lies between 0 and 1";
            return Err(Error::invalid("the caption dropout", config.caption_dropout, fix));
        }
        if text_optimizer.is_some() && model.sees_part_of_its_text_encoders() {
            let fix =
                "the network of such a model does not see all layers of its text encoders; train the network alone";
            return Err(Error::invalid("the model whose text encoder is to be trained", model.family(), fix));
        }
        let network_factors = new_factors(seed);
        let text_factors = text_optimizer.is_some().then(|| new_factors(seed));
        let adapters = LowRankAdapters {
            config: config.low_rank,
            network: model.network_folder(),
            network_factors: &network_factors,
            text_factors: text_factors.as_ref().map(|factors| factors as &dyn WeightSource),
        };
        let network = model.network(Some(&adapters))?;
        let encoder = model.text_encoder(Some(&adapters))?;
        let mut sets = vec![ParameterSet::new("unet", network_factors.finish()?, network_optimizer)?];
        let mut warnings = Vec::new();
        let texts = match text_factors.zip(text_optimizer) {
            Some((factors, optimizer)) => {
                sets.push(ParameterSet::new("text_encoder", factors.finish()?, optimizer)?);
                Texts::Trained(encoder)
            }
            None => Texts::encoded(&config, &model, encoder.as_ref(), &mut warnings)?,
        };
        let loss = DenoisingLoss::new(config.objective.clone(), false);
        Ok((Self { config, model, network, texts, warnings, loss }, sets))
    }

    /// The model that stays as it is.
    pub fn model(&self) -> &FrozenModel {
        &self.model
    }

    /// What the user should know of the captions.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What the network is told of a batch's captions, some of which are taken for none.
    fn conditioning(&self, batch: &LatentBatch, draws: Draws) -> Result<Conditioning> {
        let numbers = batch.tokens.flatten_all()?.to_vec1::<u32>()?;
        let uniform = draws.generator(Stream::ClassDropout).uniform(numbers.len());
        let is_dropped = |u: f32| f64::from(u) < self.config.caption_dropout;
        let numbers = numbers.into_iter().zip(uniform).map(|(number, u)| (!is_dropped(u)).then_some(number as usize));
        match &self.texts {
            Texts::Encoded { captions, none, .. } => {
                let row = |number: Option<usize>| number.map_or(Some(none), |number| captions.get(number));
                let rows: Option<Vec<_>> = numbers.map(row).collect();
                Conditioning::cat(&rows.ok_or_else(|| no_such_caption(self.config.captions.len()))?)
            }
            Texts::Trained(encoder) => {
                let text = |number: Option<usize>| match number {
                    Some(number) => self.config.captions.get(number).map(String::as_str),
                    None => Some(""),
                };
                let texts: Option<Vec<_>> = numbers.map(text).collect();
                let texts = texts.ok_or_else(|| no_such_caption(self.config.captions.len()))?;
                let rows = self.model.encode(encoder.as_ref(), &texts, &mut Vec::new())?;
                Conditioning::cat(&rows.iter().collect::<Vec<_>>())
            }
        }
    }

    /// Does something with the factors as training left them, beside the weights.
    fn with_trained<R>(
        &self,
        sets: &[ParameterSet],
        use_them: impl FnOnce(&LowRankAdapters<'_>) -> Result<R>,
    ) -> Result<R> {
        let (network, text) = self.split(sets)?;
        let factors = |set: &ParameterSet| FlatWeights::new(set.parameters().layout(), set.average(), &Device::Cpu);
        let (network_factors, text_factors) = (factors(network)?, text.map(factors).transpose()?);
        use_them(&LowRankAdapters {
            config: self.config.low_rank,
            network: self.model.network_folder(),
            network_factors: &network_factors,
            text_factors: text_factors.as_ref().map(|factors| factors as &dyn WeightSource),
        })
    }

    /// The network's set, and the text encoder's if it is trained.
    fn split<'s>(&self, sets: &'s [ParameterSet]) -> Result<(&'s ParameterSet, Option<&'s ParameterSet>)> {
        match (sets, &self.texts) {
            ([network], Texts::Encoded { .. }) => Ok((network, None)),
            ([network, text], Texts::Trained(_)) => Ok((network, Some(text))),
            _ => Err(Error::invalid("the number of sets of parameters", sets.len(), "take those of the task")),
        }
    }
}

impl Texts {
    fn encoded(
        config: &LoraTrainingConfig,
        model: &FrozenModel,
        encoder: &dyn TextEncoder,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let mut encode = |texts: &[String]| model.encode(encoder, texts, warnings);
        let (captions, prompts) = (encode(&config.captions)?, encode(&config.samples.prompts)?);
        let none = model.without_text(&encode(&[String::new()])?[0])?;
        Ok(Self::Encoded { captions, prompts, none })
    }
}

impl TrainingTask for LoraTraining {
    type Batch = LatentBatch;
    type Evaluation = ();

    fn loss(&mut self, _: usize, batch: &LatentBatch, draws: Draws) -> Result<Tensor> {
        let conditioning = self.conditioning(batch, draws)?;
        self.model.loss(self.network.as_ref(), &mut self.loss, conditioning, batch, draws)
    }

    fn samples(&self, sets: &[ParameterSet]) -> Result<Vec<(&'static str, Picture)>> {
        let (config, model) = (&self.config, &self.model);
        let (network, encoded) = self.with_trained(sets, |adapters| {
            let network = model.network(Some(adapters))?;
            let Texts::Trained(_) = self.texts else { return Ok((network, None)) };
            let encoder = model.text_encoder(Some(adapters))?;
            Ok((network, Some(Texts::encoded(config, model, encoder.as_ref(), &mut Vec::new())?)))
        })?;
        let Texts::Encoded { prompts, none, .. } = encoded.as_ref().unwrap_or(&self.texts) else {
            return Ok(Vec::new());
        };
        Ok(vec![("", model.grid(network.as_ref(), &config.samples, prompts, none, config.size)?)])
    }

    fn evaluate(&self, _: &[ParameterSet]) -> Result<()> {
        Ok(())
    }

    /// A file with the factors, `pytorch_lora_weights.safetensors`.
    fn write_model(&self, sets: &[ParameterSet], (): &(), folder: &Path) -> Result<()> {
        let (network, text) = self.split(sets)?;
        let mut factors = network.tensors()?;
        factors.extend(text.map(ParameterSet::tensors).transpose()?.into_iter().flatten());
        let stored = factors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(self.config.dtype)?)));
        let lora = WrittenLora {
            target: self.model.lora_target(),
            factors: stored.collect::<Result<_>>()?,
            rank: self.config.low_rank.rank,
            alpha: self.config.low_rank.alpha,
            metadata: self.config.metadata.clone(),
        };
        lora.write(self.config.form, &folder.join(FILE))
    }
}
