//! A token that a model does not know yet, and the embeddings that training starts from in its place.

use super::{Stream, Streams};
use crate::text::{Prompt, TextEncoder};
use crate::{DType, Device, Error, Result, Tensor};

/// How far embeddings that start from the mean of all are drawn apart, as a share of the deviation of all.
const SPREAD: f64 = 0.1;

/// A token whose embeddings are trained: textual inversion (Gal et al. 2023, section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// What stands for it in texts. It is found in any letter case, and within words too.
    pub token: String,
    /// The number of its embeddings in each text encoder.
    pub vectors: usize,
    /// The word that they start from: embedding `i` as that of the word's token `i`, from its first token again where it has fewer.
    /// Without a word they start as the mean of all embeddings plus normal noise of a tenth of their deviation; diffusers' script
    /// asks for a word of one token.
    pub init_word: Option<String>,
}

impl NewToken {
    /// Whether it can be used, as far as that does not depend on a model.
    ///
    /// # Errors
    /// If it cannot; the message names the field.
    pub fn check(&self) -> Result<()> {
        let is_word = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
        if !is_word(&self.token) {
            let fix = "give one word that no text has, as <thing>";
            return Err(Error::invalid("`token`", format!("{:?}", self.token), fix));
        }
        if self.vectors == 0 {
            return Err(Error::invalid("`vectors`", 0, "take at least 1; 1 to 8 are usual"));
        }
        match self.init_word.as_ref().filter(|word| !is_word(word)) {
            Some(word) => Err(Error::invalid("`init_word`", format!("{word:?}"), "give one word, without spaces")),
            None => Ok(()),
        }
    }

    /// Whether a text has it.
    pub fn is_in(&self, text: &str) -> bool {
        text.to_lowercase().contains(&self.token.to_lowercase())
    }

    /// The embeddings before the first step, `[vectors, width]` for each network of a text encoder that does not have the token yet.
    ///
    /// # Errors
    /// If the token is in a vocabulary already, the word is not known, or it has more tokens than there are embeddings.
    pub(super) fn start(&self, encoder: &dyn TextEncoder, seed: u64) -> Result<Vec<Tensor>> {
        if encoder.token_ids(&self.token)?.iter().any(|ids| ids.len() == 1) {
            let fix = "the vocabulary of the model has it already; take another one that no text has, as <thing>";
            return Err(Error::invalid("`token`", format!("{:?}", self.token), fix));
        }
        let tables = encoder.token_embeddings();
        let Some(word) = &self.init_word else {
            let draw = |(table, number)| self.near_the_mean(table, Streams::new(seed), number);
            return tables.iter().zip(0..).map(draw).collect();
        };
        let wrong = |fix: String| Err(Error::invalid("`init_word`", format!("{word:?}"), fix));
        let mut warnings = Vec::new();
        encoder.encode(&[Prompt { texts: [word; 2], what: "word", clip_skip: 0 }], false, &mut warnings)?;
        if !warnings.is_empty() {
            return wrong(warnings.join("; "));
        }
        let words = encoder.token_ids(word)?;
        if let Some(ids) = words.iter().find(|ids| ids.is_empty() || ids.len() > self.vectors) {
            let fix = format!(
                "it has {} tokens, and `vectors` is {}; take as many, or another word",
                ids.len(),
                self.vectors
            );
            return wrong(fix);
        }
        let repeated = |ids: &Vec<u32>| Tensor::from_iter(ids.iter().copied().cycle().take(self.vectors), &Device::Cpu);
        tables.iter().zip(&words).map(|(table, ids)| Ok(table.index_select(&repeated(ids)?, 0)?)).collect()
    }

    /// The mean of a table's rows, with noise.
    fn near_the_mean(&self, table: &Tensor, streams: Streams, number: u64) -> Result<Tensor> {
        let table = table.to_dtype(DType::F32)?;
        let mean = table.mean_keepdim(0)?;
        let variance = (table.sqr()?.mean_keepdim(0)? - mean.sqr()?)?.mean_all()?.to_scalar::<f32>()?;
        let width = table.dim(1)?;
        let noise = streams.generator(Stream::Weights, number).normal(self.vectors * width);
        let noise = Tensor::from_vec(noise, (self.vectors, width), table.device())?;
        Ok(mean.broadcast_add(&(noise * (SPREAD * f64::from(variance.max(0.0)).sqrt()))?)?)
    }
}
