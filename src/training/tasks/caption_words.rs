//! A text encoder before its network is trained: it learns to tell captions apart by their words.
//!
//! Trained with the network alone, a new text encoder keeps what first lowers the loss, the colours of things, and is blind to
//! the rest from then on: what two words have in common grows, by which they differ does not. One that has to say every word
//! of its captions has a direction for each before the network asks for any.

use super::write_json;
use crate::config::ConfigFields;
use crate::layers::{Linear, Weights, log_softmax};
use crate::models::{ClipTextConfig, ClipTextModel};
use crate::text::Tokenizer;
use crate::training::clip_initialization::{ClipInitialization, WithoutProjection};
use crate::training::data::PictureTokens;
use crate::training::runs::write_tensors;
use crate::training::{Draws, OptimizerOptions, ParameterSet, ParameterSource, TrainingTask};
use crate::{Device, Error, Result, Tensor};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Training of a text encoder by its captions alone: the state at each token says which tokens the caption has had so far.
///
/// The loss is the mean over tokens `i` of the Kullback-Leibler divergence `KL(p_i || q_i)`, where `p_i` is even over the
/// different tokens from the first to the `i`-th, without those that begin, end and fill captions, and `q_i` is the softmax of a
/// linear layer of the state. It is 0 where every state knows its whole caption so far.
#[derive(Debug)]
pub struct CaptionWords {
    fields: Map<String, Value>,
    text_encoder: ClipTextModel,
    words: Linear,
    /// The tokens that captions are made of, and which output of [`Self::words`] is whose.
    outputs: BTreeMap<u32, usize>,
}

impl CaptionWords {
    /// The task and its sets of parameters, on the CPU: that of the text encoder of a `config.json`, whose values are drawn from
    /// the seed as those of [`LatentDiffusion`](super::LatentDiffusion) are, and that of the linear layer, which has an output for
    /// each token of `captions`.
    ///
    /// # Errors
    /// If the encoder cannot be built, captions have no tokens, or an option has an unusable value.
    pub fn new(
        fields: &Map<String, Value>,
        tokenizer: &Tokenizer,
        captions: &PictureTokens,
        seed: u64,
        optimizer: OptimizerOptions,
    ) -> Result<(Self, Vec<ParameterSet>)> {
        let config = ClipTextConfig::from_fields(&ConfigFields::from_fields("text_encoder", fields.clone()))?;
        let (end, pad) = tokenizer.end_and_padding();
        let silent = [tokenizer.start(), end, pad];
        let said: BTreeSet<u32> =
            captions.iter().flatten().flatten().copied().filter(|id| !silent.contains(id)).collect();
        let outputs: BTreeMap<u32, usize> = said.into_iter().enumerate().map(|(output, id)| (id, output)).collect();
        if outputs.is_empty() {
            return Err(Error::invalid("the number of words in captions", 0, "give captions that say something"));
        }
        let drawn = ClipInitialization::new(&config, seed);
        let without = WithoutProjection(&drawn);
        let source = ParameterSource::from_weights(&without);
        let text_encoder = ClipTextModel::new(&Weights::new(&source), config.clone())?;
        let mut sets = vec![ParameterSet::new("text_encoder", source.finish()?, optimizer)?];
        let source = ParameterSource::random(seed, &Device::Cpu);
        let words = Linear::new(&Weights::new(&source).at("words"), config.hidden_size, outputs.len())?;
        sets.push(ParameterSet::new("words", source.finish()?, optimizer)?);
        Ok((Self { fields: fields.clone(), text_encoder, words, outputs }, sets))
    }

    /// The number of tokens that captions are made of.
    pub fn vocabulary(&self) -> usize {
        self.outputs.len()
    }

    /// `p` over all states that have one, each weighted by one over their number, and the mean of `sum p ln p`.
    fn wanted(&self, ids: &[Vec<u32>]) -> (Vec<f32>, f64) {
        let (length, vocabulary) = (ids.first().map_or(0, Vec::len), self.vocabulary());
        let mut wanted = vec![0.0; ids.len() * length * vocabulary];
        let (mut states, mut logarithms) = (0, 0.0);
        for (row, caption) in wanted.chunks_exact_mut((length * vocabulary).max(1)).zip(ids) {
            let mut bag = BTreeSet::new();
            for (state, &id) in row.chunks_exact_mut(vocabulary).zip(caption) {
                bag.extend(self.outputs.get(&id));
                if bag.is_empty() {
                    continue;
                }
                bag.iter().for_each(|&&output| state[output] = 1.0 / bag.len() as f32);
                states += 1;
                logarithms -= (bag.len() as f64).ln();
            }
        }
        let states = f64::from(states).max(1.0);
        wanted.iter_mut().for_each(|p| *p /= states as f32);
        (wanted, logarithms / states)
    }
}

impl TrainingTask for CaptionWords {
    type Batch = Tensor;
    type Evaluation = ();

    /// `ids`: captions, `[batch, tokens]` of u32.
    fn loss(&mut self, _: usize, ids: &Tensor, _: Draws) -> Result<Tensor> {
        let (wanted, entropy) = self.wanted(&ids.to_vec2()?);
        let states = self.text_encoder.forward(ids)?.last_hidden_state;
        let found = log_softmax(&self.words.forward(&states)?)?;
        let wanted = Tensor::from_vec(wanted, found.dims(), ids.device())?;
        Ok((wanted * found)?.sum_all()?.affine(-1.0, entropy)?)
    }

    fn evaluate(&self, _: &[ParameterSet]) -> Result<()> {
        Ok(())
    }

    /// The text encoder, as a component of a model.
    fn write_model(&self, sets: &[ParameterSet], (): &(), folder: &Path) -> Result<()> {
        let [text, _] = sets else {
            return Err(Error::invalid("the number of sets of parameters", sets.len(), "this task has two"));
        };
        write_json(folder, "text_encoder/config.json", &Value::Object(self.fields.clone()))?;
        write_tensors(&folder.join("text_encoder/model.safetensors"), text.tensors()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::checkpoints::{Checkpoint, ModelFiles, Precision};
    use crate::text::train_tokenizer;
    use crate::training::{AdamWConfig, Decay, LearningRate, Trainer, TrainerOptions};
    use serde_json::json;

    const CAPTIONS: [&str; 4] = ["a red fox", "a blue fox", "a red cat at night", "a cat"];

    fn tokenizer() -> Result<Tokenizer> {
        Tokenizer::from_memory(&train_tokenizer(CAPTIONS.into_iter(), 60, 12)?)
    }

    fn task(peak: f64) -> Result<(CaptionWords, Vec<ParameterSet>, Tensor)> {
        let tokenizer = tokenizer()?;
        let (end, _) = tokenizer.end_and_padding();
        let fields = json!({
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 12, "vocab_size": tokenizer.vocabulary_size(), "eos_token_id": end,
        });
        let optimizer = OptimizerOptions {
            learning_rate: LearningRate { peak, warmup_steps: 0, total_steps: 300, decay: Decay::Constant },
            adamw: AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() },
            max_gradient_norm: Some(1.0),
            ema: None,
        };
        let ids: Vec<Vec<u32>> = CAPTIONS.iter().map(|text| Ok(tokenizer.encode(text)?.ids)).collect::<Result<_>>()?;
        let fields = fields.as_object().cloned().unwrap_or_default();
        let (task, sets) = CaptionWords::new(&fields, &tokenizer, &vec![ids.clone()], 5, optimizer)?;
        Ok((task, sets, Tensor::new(ids, &Device::Cpu)?))
    }

    /// Against the definition, state by state in f64: of even probabilities, and of the bags counted by hand.
    #[test]
    fn the_loss_is_the_divergence_of_each_state() -> Result<()> {
        let (mut task, _, ids) = task(1e-3)?;
        let tokenizer = tokenizer()?;
        let silent = [tokenizer.start(), tokenizer.end_and_padding().0, tokenizer.end_and_padding().1];
        let states = task.text_encoder.forward(&ids)?.last_hidden_state;
        let logits = task.words.forward(&states)?.to_vec3::<f32>()?;
        let (mut sum, mut count) = (0.0, 0);
        for (caption, logits) in ids.to_vec2::<u32>()?.iter().zip(&logits) {
            for last in 0..caption.len() {
                let mut bag: Vec<u32> = caption[..=last].iter().copied().filter(|id| !silent.contains(id)).collect();
                bag.sort_unstable();
                bag.dedup();
                if bag.is_empty() {
                    continue;
                }
                let total: f64 = logits[last].iter().map(|&logit| f64::from(logit).exp()).sum();
                let p = 1.0 / bag.len() as f64;
                sum += bag
                    .iter()
                    .map(|&id| p * (p.ln() - (f64::from(logits[last][task.outputs[&id]]).exp() / total).ln()))
                    .sum::<f64>();
                count += 1;
            }
        }
        let found = f64::from(task.loss(0, &ids, Draws::new(0, 0))?.to_scalar::<f32>()?);
        // Sums of a thousand numbers near 4 in f32.
        assert!((found / (sum / f64::from(count)) - 1.0).abs() < 1e-5, "{found} {sum} {count}");
        Ok(())
    }

    /// After some hundred steps the states know their captions, and different words are different directions.
    #[test]
    fn captions_are_learnt_by_heart() -> Result<()> {
        let (task, sets, ids) = task(3e-3)?;
        let mut trainer = Trainer::new(task, sets, TrainerOptions { seed: 0, accumulate: 1 })?;
        let first = trainer.step(|| Ok(ids.clone()))?.loss();
        for _ in 0..299 {
            trainer.step(|| Ok(ids.clone()))?;
        }
        let last = trainer.step(|| Ok(ids.clone()))?.loss();
        assert!(first > 1.0 && last < 0.02, "{first} {last}");
        // The encoder is written as a component of a model, which says the same.
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a folder")))?;
        trainer.task().write_model(trainer.sets(), &(), folder.path())?;
        let files = ModelFiles::Folder(folder.path().to_path_buf());
        let written = Checkpoint::open(&files, "text_encoder", Precision::Full, DType::F32, &Device::Cpu)?;
        let config = ClipTextConfig::from_fields(&files.config("text_encoder", "config.json")?)?;
        let states = |encoder: &ClipTextModel| -> Result<Vec<f32>> {
            Ok(encoder.forward(&ids)?.last_hidden_state.flatten_all()?.to_vec1()?)
        };
        let written = states(&ClipTextModel::new(&Weights::new(&written), config)?)?;
        assert_eq!(written, states(&trainer.task().text_encoder)?);
        Ok(())
    }
}
