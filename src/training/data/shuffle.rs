//! Seeded shuffling.

use crate::{Error, Result};

/// SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
///
/// Any seed is a good one, nearby seeds give unrelated numbers, and a stream starts at once: what is needed to
/// have one for every epoch and every image.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The stream of a seed and a number, unrelated to those of other numbers.
    pub fn numbered(seed: u64, number: u64) -> Self {
        let mut seeds = Self::new(seed);
        Self::new(seeds.next_u64() ^ Self::new(number).next_u64())
    }

    /// The next 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound`, by the high half of a product; of `bound` below `2^32` no value is more likely than
    /// another by more than one part in `2^32`. 0 if the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// The order of `count` images in an epoch: the Fisher-Yates shuffle of `0..count`, from the last place to the
/// first, by the stream of seed and epoch.
pub fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut generator = SplitMix64::numbered(seed, epoch);
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, generator.below(i as u64 + 1) as usize);
    }
    order
}

/// The items of a data set that are trained on, and a share of them that are not, which are chosen by a seed; both in their order,
/// and at least one of each.
///
/// # Errors
/// If the share is not above 0 and below 1, or there is only one item.
pub fn hold_out(count: usize, share: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::invalid("the share that is held out", share, "take more than 0 and less than 1"));
    }
    if count < 2 {
        return Err(Error::invalid("the number of pictures, of which some are held out", count, "there must be two"));
    }
    let held = ((share * count as f64).round() as usize).clamp(1, count - 1);
    // Another order than any epoch has.
    let mut held_out = permutation(count, seed, u64::MAX);
    let mut trained = held_out.split_off(held);
    held_out.sort_unstable();
    trained.sort_unstable();
    Ok((trained, held_out))
}

/// The places of `most` of `count` items, or of all where they are fewer, evenly spaced from the first on: data sets are often sorted,
/// and so their beginning is not like the rest.
pub fn evenly_spaced(count: usize, most: usize) -> Vec<usize> {
    let taken = count.min(most);
    (0..taken).map(|i| i * count / taken).collect()
}

/// Which items of a data set each batch has: a function of the seed and the batch's number alone.
///
/// Epoch after epoch, the items stand in a row, each epoch in the order of [`permutation`]; batch `n` is the `n`th piece of that
/// row. So every batch is full, every item comes once in each epoch, and a batch may have the end of one epoch and the start of
/// the next. A batch may be larger than the set.
#[derive(Debug, Clone)]
pub struct EpochOrder {
    count: usize,
    batch_size: usize,
    seed: u64,
    /// The order of the epoch that was asked for last.
    last: Option<(u64, Vec<usize>)>,
}

impl EpochOrder {
    /// The order of `count` items, at least one, in batches of a size.
    ///
    /// # Errors
    /// If the batch size is 0.
    pub fn new(count: usize, batch_size: usize, seed: u64) -> Result<Self> {
        match batch_size {
            0 => Err(Error::invalid("the batch size", batch_size, "give 1 or more")),
            _ => Ok(Self { count, batch_size, seed, last: None }),
        }
    }

    /// Batches until every item has been seen `epochs` times, the last one rounded up.
    pub fn in_epochs(&self, epochs: u64) -> u64 {
        (epochs.saturating_mul(self.count as u64)).div_ceil(self.batch_size as u64)
    }

    /// The epoch, counted from 0, in which batch `n` starts.
    pub fn epoch(&self, n: u64) -> u64 {
        (u128::from(n) * self.batch_size as u128 / self.count as u128) as u64
    }

    /// The place of the first item of batch `n` in the row of all epochs.
    pub fn place(&self, n: u64) -> u64 {
        n.wrapping_mul(self.batch_size as u64)
    }

    /// The items of batch `n`.
    pub fn indices(&mut self, n: u64) -> Vec<usize> {
        let (count, first) = (self.count as u128, u128::from(n) * self.batch_size as u128);
        let places = (0..self.batch_size as u128).map(|i| first + i);
        places.map(|place| self.of_epoch((place / count) as u64)[(place % count) as usize]).collect()
    }

    fn of_epoch(&mut self, epoch: u64) -> &[usize] {
        if self.last.as_ref().is_none_or(|(of, _)| *of != epoch) {
            self.last = None;
        }
        let (count, seed) = (self.count, self.seed);
        &self.last.get_or_insert_with(|| (epoch, permutation(count, seed, epoch))).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs of the published C program (Vigna, prng.di.unimi.it/splitmix64.c) for the seed 1234567.
    #[test]
    fn published_outputs() {
        let mut generator = SplitMix64::new(1_234_567);
        let outputs: Vec<u64> = (0..5).map(|_| generator.next_u64()).collect();
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(outputs, published);
    }

    #[test]
    fn what_is_held_out_is_a_share_of_the_seed() -> Result<()> {
        for (count, share, expected) in [(200, 0.05, 10), (3, 0.001, 1), (3, 0.999, 2)] {
            let (trained, held_out) = hold_out(count, share, 4)?;
            assert_eq!((trained.len(), held_out.len()), (count - expected, expected));
            let mut all = [trained, held_out].concat();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
        assert_eq!(hold_out(200, 0.05, 4)?, hold_out(200, 0.05, 4)?);
        assert_ne!(hold_out(200, 0.05, 4)?, hold_out(200, 0.05, 5)?);
        assert!(hold_out(200, 1.0, 4).is_err() && hold_out(200, f64::NAN, 4).is_err() && hold_out(1, 0.5, 4).is_err());
        Ok(())
    }

    #[test]
    fn places_are_spread_over_all() {
        assert_eq!(evenly_spaced(3, 8), [0, 1, 2]);
        assert_eq!(evenly_spaced(10, 4), [0, 2, 5, 7]);
        assert!(evenly_spaced(0, 4).is_empty() && evenly_spaced(4, 0).is_empty());
    }

    #[test]
    fn every_order_is_equally_likely() {
        // 24 orders of four, 2,400 each on average; five standard deviations are 240.
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..57_600 {
            *counts.entry(permutation(4, 9, epoch)).or_insert(0i64) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|count| (count - 2400).abs() < 240), "{counts:?}");
    }
}
