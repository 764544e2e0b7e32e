//! From pictures to their features, a batch at a time.

use super::feature_network::FeatureNetwork;
use super::features::{FeatureSample, Features};
use super::moments::{FeatureStatistics, Moments};
use crate::images::Photo;
use crate::{Error, ErrorKind, Result};
use candle_core::Tensor;

/// Pictures that go through the network at a time.
const BATCH: usize = 64;

/// What is kept of pictures. Each takes memory that does not grow with their number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Whether mean and covariance of the features are summed.
    pub moments: bool,
    /// Of how many pictures the features are kept.
    pub features: usize,
    /// Of how many pictures the logits are kept.
    pub logits: usize,
    /// From which it follows of which, if there are more.
    pub seed: u64,
}

/// Takes the features of pictures that come one after the other.
#[derive(Debug)]
pub struct Extraction<'a> {
    network: &'a dyn FeatureNetwork,
    kept: Kept,
    waiting: Vec<Tensor>,
    /// The size of the first picture, and what it is called.
    size: Option<(usize, usize, String)>,
    count: usize,
    moments: Moments,
    features: FeatureSample,
    logits: FeatureSample,
}

/// What is known of a set of pictures.
#[derive(Debug, Clone)]
pub struct PictureSet {
    count: usize,
    moments: Moments,
    features: FeatureSample,
    logits: FeatureSample,
}

impl<'a> Extraction<'a> {
    /// Of no picture yet.
    pub fn new(network: &'a dyn FeatureNetwork, kept: Kept) -> Self {
        Self {
            network,
            kept,
            waiting: Vec::new(),
            size: None,
            count: 0,
            moments: Moments::new(if kept.moments { network.width() } else { 0 }),
            features: FeatureSample::new(network.width(), kept.features, kept.seed),
            logits: FeatureSample::new(network.classes(), kept.logits, kept.seed),
        }
    }

    /// Adds a picture; `name` is what messages call it.
    ///
    /// # Errors
    /// If it has another size than those before, or the network does not take it; the message names it.
    pub fn add(&mut self, photo: &Photo, name: &str) -> Result<()> {
        let (width, height) = (photo.width(), photo.height());
        let (first_width, first_height, first) = self.size.get_or_insert_with(|| (width, height, name.to_owned()));
        if (width, height) != (*first_width, *first_height) {
            let value = format!("{first_width}x{first_height} in {first} and {width}x{height} in {name}");
            return Err(Error::unusable(
                ErrorKind::File,
                "the pictures' size",
                value,
                "pictures that are compared have one size; make them so",
            ));
        }
        self.waiting.push(self.network.prepare(photo)?);
        self.count += 1;
        if self.waiting.len() == BATCH { self.look() } else { Ok(()) }
    }

    /// What is known of all pictures.
    ///
    /// # Errors
    /// If there was none, or whatever the network reports.
    pub fn finish(mut self) -> Result<PictureSet> {
        self.look()?;
        let Self { count, moments, features, logits, .. } = self;
        match count {
            0 => Err(Error::invalid("the number of pictures", 0, "give at least one")),
            _ => Ok(PictureSet { count, moments, features, logits }),
        }
    }

    /// Shows the network the pictures that wait.
    fn look(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let seen = self.network.picture_features(&Tensor::cat(&self.waiting, 0)?)?;
        self.waiting.clear();
        if self.kept.moments {
            let mut features = Features::new(self.network.width());
            features.append(&seen.features)?;
            self.moments.add(&features);
        }
        if self.kept.features > 0 {
            self.features.offer(&seen.features)?;
        }
        if self.kept.logits > 0 {
            self.logits.offer(&seen.logits)?;
        }
        Ok(())
    }
}

impl PictureSet {
    /// How many pictures there were.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Mean and covariance of all features.
    ///
    /// # Errors
    /// If they were not kept, or there are fewer than two pictures.
    pub fn statistics(&self) -> Result<FeatureStatistics> {
        self.moments.statistics()
    }

    /// Features, of as many pictures as were to be kept.
    pub fn features(&self) -> &Features {
        self.features.kept()
    }

    /// Logits, of as many pictures as were to be kept.
    pub fn logits(&self) -> &Features {
        self.logits.kept()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::RandomWeights;
    use crate::images::{ColorType, Samples};
    use crate::layers::Weights;
    use crate::metrics::feature_statistics;
    use crate::models::{LeNet, LeNetConfig};
    use crate::{DType, Device};

    fn photo(side: usize, seed: usize) -> Result<Photo> {
        let bytes = (0..side * side).map(|at| ((at + 3) * (seed + 7) * 31 % 256) as u8).collect();
        Photo::new(side, side, ColorType::Grey, Samples::Eight(bytes))
    }

    /// Batches do not show, and what is summed is what is kept.
    #[test]
    fn features_are_those_of_single_pictures() -> Result<()> {
        let config = LeNetConfig::new(1, 8, vec!["a".into(), "b".into()], false);
        let network = LeNet::new(config, &Weights::new(&RandomWeights::new(5, DType::F32, &Device::Cpu)))?;
        let kept = Kept { moments: true, features: 100, logits: 10, seed: 1 };
        let mut extraction = Extraction::new(&network, kept);
        let mut alone = Features::new(FeatureNetwork::width(&network));
        for seed in 0..BATCH + 6 {
            let photo = photo(8, seed)?;
            extraction.add(&photo, "a picture")?;
            alone.append(&network.picture_features(&network.prepare(&photo)?)?.features)?;
        }
        let message = extraction.add(&photo(9, 0)?, "another").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("8x8 in a picture and 9x9 in another"), "{message}");
        let set = extraction.finish()?;
        assert_eq!((set.count(), set.features().len(), set.logits().len()), (BATCH + 6, BATCH + 6, 10));
        for i in 0..set.count() {
            let pairs = set.features().row(i).into_iter().flatten().zip(alone.row(i).into_iter().flatten());
            pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a} {b}"));
        }
        let (got, want) = (set.statistics()?, feature_statistics(set.features())?);
        assert!(got.covariance().iter().zip(want.covariance()).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!(Extraction::new(&network, kept).finish().is_err());
        Ok(())
    }
}
