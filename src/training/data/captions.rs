//! Captions without their pictures.

use super::{BatchSource, PictureTokens, SplitMix64};
use crate::{Device, Error, Result, Tensor};
use std::sync::Arc;

/// Batches of captions, each a function of the seed and its number alone: for every place a picture is drawn, and one of its
/// captions.
#[derive(Debug)]
pub struct CaptionBatches {
    tokens: Arc<PictureTokens>,
    batch_size: usize,
    seed: u64,
}

impl CaptionBatches {
    /// The batches of pictures' captions as token ids, all of one length.
    ///
    /// # Errors
    /// If the batch size is 0, there is no picture, or one has no caption.
    pub fn new(tokens: Arc<PictureTokens>, batch_size: usize, seed: u64) -> Result<Self> {
        if batch_size == 0 || tokens.is_empty() || tokens.iter().any(Vec::is_empty) {
            let fix = format!("a batch has {batch_size} captions; take one at least, of pictures that each have one");
            return Err(Error::invalid("the number of captioned pictures", tokens.len(), fix));
        }
        Ok(Self { tokens, batch_size, seed })
    }
}

impl BatchSource for CaptionBatches {
    /// `[batch, tokens]` of u32.
    type Batch = Tensor;

    fn get(&mut self, n: u64) -> Result<Tensor> {
        let first = n.wrapping_mul(self.batch_size as u64);
        let mut drawn = |place: usize| {
            let mut generator = SplitMix64::numbered(self.seed, first.wrapping_add(place as u64));
            let captions = &self.tokens[generator.below(self.tokens.len() as u64) as usize];
            captions[generator.below(captions.len() as u64) as usize].as_slice()
        };
        let rows: Vec<&[u32]> = (0..self.batch_size).map(&mut drawn).collect();
        let length = rows.first().map_or(0, |row| row.len());
        Ok(Tensor::from_vec(rows.concat(), (self.batch_size, length), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every caption comes, in batches that depend on nothing but their number.
    #[test]
    fn batches_are_captions_that_are_drawn_by_their_number() -> Result<()> {
        let tokens = Arc::new(vec![vec![vec![1, 2], vec![1, 3]], vec![vec![1, 4]]]);
        let mut batches = CaptionBatches::new(tokens.clone(), 3, 7)?;
        let fifth = batches.get(5)?.to_vec2::<u32>()?;
        let seen =
            (0..20).map(|n| batches.get(n)?.to_vec2::<u32>().map_err(Error::from)).collect::<Result<Vec<_>>>()?;
        assert_eq!(seen[5], fifth);
        let mut all = seen.concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all, [[1, 2], [1, 3], [1, 4]]);
        assert!(
            CaptionBatches::new(tokens, 0, 7).is_err() && CaptionBatches::new(Arc::new(vec![vec![]]), 1, 7).is_err()
        );
        Ok(())
    }
}
