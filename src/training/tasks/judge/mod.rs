//! Training a judge: a network that says what a picture shows.

mod score;

pub use score::{Asked, Measure, Score, Share};

use super::pixel_diffusion::wrong_sets;
use super::{FrozenAutoencoder, cross_entropy_of_labelled, write_json};
use crate::layers::{WeightSource, Weights};
use crate::models::judge::{Judge, JudgeConfig, Unsaid};
use crate::training::data::{DecodedPictures, ImageSet, JudgeBatch, JudgedPictures};
use crate::training::runs::write_tensors;
use crate::training::{Draws, FlatWeights, OptimizerOptions, ParameterSet, ParameterSource, TrainingTask};
use crate::{Device, Result, Tensor};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Pictures that are looked at at a time.
const BATCH: usize = 64;

/// What a judge is judged by in the end.
#[derive(Debug)]
pub struct JudgeTest {
    /// Pictures that it is not trained on.
    pub pictures: JudgedPictures,
    /// What gives them back as generated pictures are, if anything.
    pub autoencoder: Option<Arc<FrozenAutoencoder>>,
}

/// How often a judge is right about pictures that it was not trained on, each taken for a prompt that asks for what it shows: so
/// the figures are those that pictures of prompts would have if all of them were as they should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JudgeAccuracy {
    /// The pictures as they are.
    pub raw: Score,
    /// The same pictures as an autoencoder gives them back, if there was one.
    pub decoded: Option<Score>,
}

impl JudgeAccuracy {
    /// As JSON: [`Score::fields`] under `raw` and `decoded`.
    pub fn fields(&self) -> Value {
        json!({"raw": self.raw.fields(), "decoded": self.decoded.as_ref().map(Score::fields)})
    }

    /// What [`Self::fields`] gave, as the configuration of a judge has it; nothing if there is none.
    pub fn from_fields(fields: &Value) -> Option<Self> {
        Some(Self { raw: Score::from_fields(&fields["raw"])?, decoded: Score::from_fields(&fields["decoded"]) })
    }
}

/// Training of a [`Judge`] by the sum of the cross-entropies of what it says, each a mean over the pictures of which it can be said.
///
/// Where concept and style are known, one look is right and all others are wrong. Cross-entropies of concepts and of styles apart,
/// each a sum over looks, are content with a style that is read off the looks of other concepts: of one network that was trained so,
/// 93.6 % of styles of new pictures were right, and 99.8 % after 1,245 more steps of this loss.
#[derive(Debug)]
pub struct JudgeTraining {
    network: Judge,
    test: Option<JudgeTest>,
    record: Map<String, Value>,
}

impl JudgeTraining {
    /// The task and its one set of parameters, on the CPU, with the values of `start`, or else with initial values drawn from `seed`,
    /// the last convolution of each residual block at zero.
    ///
    /// # Errors
    /// If the configuration or an option cannot be used.
    pub fn new(
        config: JudgeConfig,
        start: Option<&dyn WeightSource>,
        seed: u64,
        optimizer: OptimizerOptions,
    ) -> Result<(Self, ParameterSet)> {
        let source = ParameterSource::new(start, seed).with_zeros(|name| name.contains(".conv2."));
        let network = Judge::new(config, &Weights::new(&source))?;
        let set = ParameterSet::new("judge", source.finish()?, optimizer)?;
        Ok((Self { network, test: None, record: Map::new() }, set))
    }

    /// The same, judged in the end.
    #[must_use]
    pub fn judged_by(mut self, test: Option<JudgeTest>) -> Self {
        self.test = test;
        self
    }

    /// The same with an account of the training, for the model's `training.json`.
    #[must_use]
    pub fn with_record(mut self, record: Map<String, Value>) -> Self {
        self.record = record;
        self
    }

    /// The judge with the moving average of its weights.
    ///
    /// # Errors
    /// If the set is that of another network.
    pub fn average(&self, set: &ParameterSet) -> Result<Judge> {
        let weights = FlatWeights::new(set.parameters().layout(), set.average(), &Device::Cpu)?;
        Judge::new(self.network.config().clone(), &Weights::new(&weights))
    }
}

impl TrainingTask for JudgeTraining {
    type Batch = JudgeBatch;
    type Evaluation = Option<JudgeAccuracy>;

    fn loss(&mut self, _: usize, batch: &JudgeBatch, _: Draws) -> Result<Tensor> {
        let (logits, looks) = self.network.forward_with_looks(&batch.images)?;
        let classes = &self.network.config().classes;
        let (shown, rest): (Vec<_>, Vec<_>) = batch.labels.iter().map(|labels| classes.looks(labels)).unzip();
        let mut sum = Tensor::new(0f32, &Device::Cpu)?;
        let mut add = |logits: &Tensor, labels: Vec<Option<u32>>| -> Result<()> {
            // Most often looks leave nothing to say of concepts and styles.
            if labels.iter().any(Option::is_some) {
                sum = (&sum + cross_entropy_of_labelled(logits, &labels)?)?;
            }
            Ok(())
        };
        for (slot, logits) in looks.iter().enumerate() {
            add(logits, shown.iter().map(|looks| looks[slot]).collect())?;
        }
        for (head, logits) in logits.iter().enumerate() {
            add(logits, rest.iter().map(|labels| labels[head]).collect())?;
        }
        Ok(sum)
    }

    fn evaluate(&self, sets: &[ParameterSet]) -> Result<Option<JudgeAccuracy>> {
        let [set] = sets else { return Err(wrong_sets(sets)) };
        let Some(JudgeTest { pictures, autoencoder }) = &self.test else { return Ok(None) };
        let judge = self.average(set)?;
        let decoded = autoencoder.as_ref().map(|autoencoder| {
            let all = (0..pictures.len()).collect();
            let watch = &mut |_, _| ControlFlow::Continue(());
            let decoded = DecodedPictures::make(pictures, all, autoencoder.network(), watch)?;
            score_pictures(&judge, pictures, decoded.set())
        });
        let raw = score_pictures(&judge, pictures, pictures.averaged())?;
        Ok(Some(JudgeAccuracy { raw, decoded: decoded.transpose()? }))
    }

    fn write_model(&self, sets: &[ParameterSet], accuracy: &Option<JudgeAccuracy>, folder: &Path) -> Result<()> {
        let [set] = sets else { return Err(wrong_sets(sets)) };
        let accuracy = accuracy.as_ref().map_or(Value::Null, JudgeAccuracy::fields);
        let mut record = self.record.clone();
        record.insert("accuracy".into(), accuracy.clone());
        let config = JudgeConfig { accuracy, ..self.network.config().clone() };
        write_json(folder, "judge/config.json", &Value::Object(config.fields()))?;
        write_json(folder, "training.json", &Value::Object(record))?;
        write_tensors(&folder.join("judge/diffusion_pytorch_model.safetensors"), set.tensors()?)
    }
}

/// Scores a judge on a set of pictures, `seen` being they or what was made of them, in their order.
///
/// # Errors
/// If the pictures have another size than the judge looks at.
pub fn score_pictures(judge: &Judge, pictures: &JudgedPictures, seen: &ImageSet) -> Result<Score> {
    let mut score = Score::default();
    let classes = &judge.config().classes;
    let all: Vec<usize> = (0..pictures.len()).collect();
    for indices in all.chunks(BATCH) {
        for (&index, seen) in indices.iter().zip(judge.seen(&seen.images(indices)?)?) {
            score.add(&Asked::new(&pictures.shown()[index], classes, Unsaid::IsOpen), &seen);
        }
    }
    Ok(score)
}
