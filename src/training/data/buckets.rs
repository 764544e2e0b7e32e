//! Sizes that pictures of a set are brought to.

use super::SplitMix64;
use super::shuffle::{EpochOrder, permutation};
use crate::{Error, Result};

/// One side is at most this often the other.
const MOST_ASPECT: f64 = 2.0;

/// The sizes that pictures are brought to, and which picture has which: one for all, or several of about the same area, of which
/// each picture has the one whose proportions are the nearest (NovelAI 2022, "aspect ratio bucketing").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    buckets: Vec<Bucket>,
}

/// Pictures of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Height and width.
    pub size: (usize, usize),
    /// Which pictures of the set, at least one.
    pub pictures: Vec<usize>,
}

impl Buckets {
    /// One size for so many pictures.
    pub fn one(size: (usize, usize), pictures: usize) -> Self {
        Self { buckets: vec![Bucket { size, pictures: (0..pictures).collect() }] }
    }

    /// Sizes of at most `side` squared pixels whose sides are multiples of `multiple`, for pictures of these heights and widths.
    /// Sizes that fewer than `least` pictures would have are left out, so that a batch has no picture often.
    ///
    /// # Errors
    /// If there is no such size, or no picture.
    pub fn by_aspect(sizes: &[(usize, usize)], side: usize, multiple: usize, least: usize) -> Result<Self> {
        if multiple == 0 || side < multiple || sizes.is_empty() {
            let fix = format!("take {multiple} or more");
            return Err(Error::invalid("the side of pictures in buckets", side, fix));
        }
        let area = side * side;
        let heights = (multiple..=2 * side).step_by(multiple);
        let of_area = heights.map(|height| (height, area / height / multiple * multiple));
        let mut candidates: Vec<_> =
            of_area.filter(|&size| size.1 > 0 && aspect(size).abs() <= MOST_ASPECT.ln()).collect();
        if candidates.is_empty() {
            candidates.push((side / multiple * multiple, side / multiple * multiple));
        }
        let assigned = |candidates: &[(usize, usize)]| {
            let mut buckets: Vec<_> = candidates.iter().map(|&size| Bucket { size, pictures: Vec::new() }).collect();
            for (picture, &size) in sizes.iter().enumerate() {
                let far = |bucket: &Bucket| (aspect(bucket.size) - aspect(size)).abs();
                if let Some(nearest) = buckets.iter_mut().min_by(|a, b| far(a).total_cmp(&far(b))) {
                    nearest.pictures.push(picture);
                }
            }
            buckets
        };
        loop {
            let mut buckets = assigned(&candidates);
            // The smallest goes first; its pictures may fill its neighbours.
            let smallest = (0..buckets.len()).min_by_key(|&i| buckets[i].pictures.len()).unwrap_or(0);
            if buckets.len() == 1 || buckets[smallest].pictures.len() >= least.max(1) {
                buckets.retain(|bucket| !bucket.pictures.is_empty());
                return Ok(Self { buckets });
            }
            candidates.remove(smallest);
        }
    }

    /// The sizes with their pictures, at least one.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }
}

/// The logarithm of height by width.
fn aspect((height, width): (usize, usize)) -> f64 {
    (height as f64 / width as f64).ln()
}

/// Which items of which bucket each batch has: a function of the seed and the batch's number alone.
///
/// A round has as many batches of each bucket as its items fill, the last one rounded up, in an order of its own; each bucket's
/// batches are those of its [`EpochOrder`].
#[derive(Debug, Clone)]
pub(super) struct BucketOrder {
    orders: Vec<EpochOrder>,
    /// The batches of a round: the bucket of each.
    round: Vec<usize>,
    seed: u64,
    /// The order of the round that was asked for last.
    last: Option<(u64, Vec<usize>)>,
}

impl BucketOrder {
    /// The order of buckets with so many items each, at least one.
    pub fn new(counts: &[usize], batch_size: usize, seed: u64) -> Result<Self> {
        let order = |(bucket, &count): (usize, &usize)| {
            // The first bucket's order is that of a set without buckets.
            let seed = if bucket == 0 { seed } else { SplitMix64::numbered(seed, bucket as u64).next_u64() };
            EpochOrder::new(count, batch_size, seed)
        };
        let orders = counts.iter().enumerate().map(order).collect::<Result<Vec<_>>>()?;
        let batches = |(bucket, order): (usize, &EpochOrder)| std::iter::repeat_n(bucket, order.in_epochs(1) as usize);
        let round = orders.iter().enumerate().flat_map(batches).collect();
        Ok(Self { orders, round, seed, last: None })
    }

    /// The bucket of batch `n`, and its items, by their places in the bucket.
    pub fn batch(&mut self, n: u64) -> (usize, Vec<usize>) {
        if let [order] = &mut self.orders[..] {
            return (0, order.indices(n));
        }
        let length = self.round.len() as u64;
        let (round, slot) = (n / length, (n % length) as usize);
        if self.last.as_ref().is_none_or(|(of, _)| *of != round) {
            // Other draws than those of the orders of items.
            self.last = Some((round, permutation(self.round.len(), self.seed.rotate_left(32), round)));
        }
        let order = self.last.as_ref().map_or(&[] as &[usize], |(_, order)| order);
        let bucket = self.round[order[slot]];
        let before = order[..slot].iter().filter(|&&slot| self.round[slot] == bucket).count() as u64;
        let each = self.round.iter().filter(|&&other| other == bucket).count() as u64;
        (bucket, self.orders[bucket].indices(round * each + before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_have_the_nearest_proportions_of_about_one_area() -> Result<()> {
        let sizes = [(100, 100), (100, 198), (300, 100), (90, 95), (120, 60), (64, 64)];
        let buckets = Buckets::by_aspect(&sizes, 64, 8, 1)?;
        for bucket in buckets.buckets() {
            let (height, width) = bucket.size;
            assert!(
                height % 8 == 0 && width % 8 == 0 && height * width <= 64 * 64 && height * width > 40 * 64,
                "{bucket:?}"
            );
        }
        let of = |picture: usize| buckets.buckets().iter().find(|b| b.pictures.contains(&picture)).map(|b| b.size);
        assert_eq!([of(0), of(3), of(5)], [Some((64, 64)); 3]);
        // Wide, and taller than twice the width.
        assert!(of(1).is_some_and(|(height, width)| width > height) && of(2) == of(4));
        let one = Buckets::by_aspect(&sizes, 64, 8, 4)?;
        assert_eq!(one.buckets().iter().map(|b| b.pictures.len()).sum::<usize>(), sizes.len());
        assert!(one.buckets().iter().all(|bucket| bucket.pictures.len() >= 4), "{one:?}");
        assert!(Buckets::by_aspect(&sizes, 4, 8, 1).is_err());
        Ok(())
    }

    /// In a round every item comes at least once, and whatever batch is asked for first is the same.
    #[test]
    fn a_round_has_every_item() -> Result<()> {
        let counts = [5, 12, 3];
        let mut order = BucketOrder::new(&counts, 4, 7)?;
        let round: Vec<_> = (0..6).map(|n| order.batch(n)).collect();
        for (bucket, &count) in counts.iter().enumerate() {
            let batches: Vec<_> = round.iter().filter(|(of, _)| *of == bucket).collect();
            assert_eq!(batches.len(), count.div_ceil(4));
            assert!((0..count).all(|item| batches.iter().any(|(_, items)| items.contains(&item))));
        }
        let mut fresh = BucketOrder::new(&counts, 4, 7)?;
        assert_eq!(fresh.batch(13), order.batch(13));
        assert_eq!(fresh.batch(2), round[2]);
        let mut single = BucketOrder::new(&[9], 4, 7)?;
        assert_eq!(single.batch(3), (0, EpochOrder::new(9, 4, 7)?.indices(3)));
        Ok(())
    }
}
