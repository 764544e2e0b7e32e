//! Training a denoising network of small pictures, conditioned on their classes or on nothing.

use super::sample_grid::SampleGrid;
use super::write_json;
use crate::conditioning::Conditioning;
use crate::config::DIFFUSERS_VERSION;
use crate::denoising::{Cache, Call, Network, PredictionType};
use crate::images::Picture;
use crate::kernels::MatmulPrecision;
use crate::layers::Weights;
use crate::models::{UNet2DConfig, UNet2DModel};
use crate::training::data::Batch;
use crate::training::runs::write_tensors;
use crate::training::{
    ClassDropout, DenoisingLoss, Draws, FlatWeights, NoisyBatch, Objective, OptimizerOptions, ParameterSet,
    ParameterSource, TrainingTask,
};
use crate::{DType, Device, Error, Result, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the remembered losses in [`TrainingTask::state`].
const LOSS_HISTORY: &str = "loss_history";

/// What a [`PixelDiffusion`] trains, and what for.
#[derive(Debug, Clone)]
pub struct PixelDiffusionConfig {
    /// The network.
    pub network: UNet2DConfig,
    /// Height and width of the pictures.
    pub size: (usize, usize),
    /// What is minimised.
    pub objective: Objective,
    /// Whether timesteps are drawn by importance.
    pub importance_sampling: bool,
    /// How often classes are dropped, of a network that has a class for none.
    pub class_dropout: Option<ClassDropout>,
    /// The names of the classes that the network is told, in the order of their numbers.
    pub class_names: Vec<String>,
    /// How products are taken in training.
    pub products: MatmulPrecision,
    /// The model's `scheduler_config.json`, of the objective's process.
    pub scheduler: Map<String, Value>,
    /// The number format of the finished model.
    pub dtype: DType,
}

/// Training of a network in pixel space (Ho et al. 2020), which ends as a model that `tweedie sample` and diffusers take.
#[derive(Debug)]
pub struct PixelDiffusion {
    config: PixelDiffusionConfig,
    network: UNet2DModel,
    loss: DenoisingLoss,
    grid: SampleGrid,
}

impl PixelDiffusion {
    /// The task and its one set of parameters, on the CPU, with initial values drawn from `seed`.
    ///
    /// # Errors
    /// If the network cannot be built, or an option has an unusable value.
    pub fn new(config: PixelDiffusionConfig, seed: u64, optimizer: OptimizerOptions) -> Result<(Self, ParameterSet)> {
        config.class_dropout.as_ref().map_or(Ok(()), ClassDropout::check)?;
        let source = ParameterSource::random(seed, &Device::Cpu);
        let weights = Weights::new(&source).with_products(config.products);
        let network = UNet2DModel::new(&weights, config.network.clone(), DType::F32)?;
        let loss = DenoisingLoss::new(config.objective.clone(), config.importance_sampling);
        let flows = config.objective.prediction_type() == PredictionType::Flow;
        let grid = SampleGrid::new(&config.scheduler, flows)?;
        Ok((Self { config, network, loss, grid }, ParameterSet::new("unet", source.finish()?, optimizer)?))
    }

    /// The network with other values of its parameters.
    fn network(&self, set: &ParameterSet, values: &[f32]) -> Result<UNet2DModel> {
        let weights = FlatWeights::new(set.parameters().layout(), values, &Device::Cpu)?;
        UNet2DModel::new(&Weights::new(&weights), self.config.network.clone(), DType::F32)
    }

    /// The classes that the network is told, some of them dropped.
    fn labels(&self, batch: &Batch, draws: Draws) -> Result<Option<Tensor>> {
        let Some(labels) = batch.labels.as_ref().filter(|_| self.config.network.num_classes() > 0) else {
            return Ok(None);
        };
        self.config.class_dropout.map_or_else(|| Ok(labels.clone()), |dropout| dropout.drop(labels, draws)).map(Some)
    }

    /// What a request takes that says nothing else: no guidance, which makes what a run of the usual length has learned plainer and
    /// less like the data.
    fn defaults(&self) -> Value {
        let mut defaults = json!({"steps": self.grid.steps, "guidance_scale": 1.0});
        // A flow's own file names its solver.
        if self.config.objective.prediction_type() != PredictionType::Flow {
            defaults["scheduler"] = self.grid.solver.into();
        }
        defaults
    }
}

impl TrainingTask for PixelDiffusion {
    type Batch = Batch;
    type Evaluation = ();

    fn loss(&mut self, _: usize, batch: &Batch, draws: Draws) -> Result<Tensor> {
        let labels = self.labels(batch, draws)?;
        let conditioning = Conditioning { class_labels: labels, ..Conditioning::default() };
        let (network, cache) = (&self.network, Cache::default());
        let predict =
            |noisy: &NoisyBatch| network.forward(&Call::of_rows(&noisy.x_t, &noisy.levels, &conditioning, &cache));
        self.loss.mean(&batch.images, draws, predict)
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        self.loss.history().map(|history| (LOSS_HISTORY.to_owned(), history)).into_iter().collect()
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        self.loss.restore(state.get(LOSS_HISTORY).map(Vec::as_slice))
    }

    /// Grids of the weights as they are and of their average.
    fn samples(&self, sets: &[ParameterSet]) -> Result<Vec<(&'static str, Picture)>> {
        let [set] = sets else { return Err(wrong_sets(sets)) };
        let grid = |values: &[f32]| self.grid.draw(&self.network(set, values)?, self.config.size);
        Ok(vec![("", grid(set.parameters().values())?), ("-ema", grid(set.average())?)])
    }

    fn checkpoints_are_models(&self) -> bool {
        true
    }

    fn write_rest(&self, folder: &Path) -> Result<()> {
        let mut index = json!({
            "_class_name": "DDPMPipeline",
            "_diffusers_version": DIFFUSERS_VERSION,
            "scheduler": ["diffusers", self.config.scheduler["_class_name"]],
            "unet": ["diffusers", "UNet2DModel"],
        });
        // As the index of diffusers' DiT has them. Names that are their numbers say nothing.
        let numbered = || self.config.class_names.iter().enumerate().map(|(i, name)| (i.to_string(), name));
        if numbered().any(|(number, name)| number != *name) {
            index["id2label"] = numbered().map(|(number, name)| (number, Value::from(name.as_str()))).collect();
        }
        write_json(folder, "model_index.json", &index)?;
        write_json(folder, "defaults.json", &self.defaults())?;
        write_json(folder, "unet/config.json", &Value::Object(self.config.network.to_fields()))?;
        write_json(folder, "scheduler/scheduler_config.json", &Value::Object(self.config.scheduler.clone()))
    }

    fn evaluate(&self, _: &[ParameterSet]) -> Result<()> {
        Ok(())
    }

    /// A folder in diffusers layout, with the average of the weights.
    fn write_model(&self, sets: &[ParameterSet], (): &(), folder: &Path) -> Result<()> {
        let [set] = sets else { return Err(wrong_sets(sets)) };
        self.write_rest(folder)?;
        let stored = set.tensors()?.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(self.config.dtype)?)));
        write_tensors(&folder.join("unet/diffusion_pytorch_model.safetensors"), stored.collect::<Result<_>>()?)
    }
}

/// Sets of another task.
pub(super) fn wrong_sets(sets: &[ParameterSet]) -> Error {
    Error::invalid("the number of sets of parameters", sets.len(), "this task has one")
}
