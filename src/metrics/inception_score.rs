//! The inception score (Salimans et al. 2016, "Improved techniques for training GANs", section 4).

use super::bootstrap::{Bootstrap, Figure};
use super::features::{Features, check_count};
use crate::training::data::permutation;
use crate::{Error, Result};

/// `exp(E KL(p(y|x) || p(y)))`, from 1 to the number of classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InceptionScore {
    /// The mean over the parts.
    pub score: Figure,
    /// The standard deviation over the parts.
    pub deviation: f64,
}

/// The inception score, as the mean over `splits` parts of the pictures, each with its own `p(y)`.
///
/// # Shapes
/// `logits`: unnormalised logarithms of the classes' probabilities, `[pictures, classes]`. `shuffle` is the seed of the order in
/// which pictures are taken apart; without it they stay in theirs.
///
/// # Errors
/// If there are no parts, or fewer pictures than parts.
pub fn inception_score(
    logits: &Features,
    splits: usize,
    shuffle: Option<u64>,
    bootstrap: &Bootstrap,
) -> Result<InceptionScore> {
    if splits == 0 {
        return Err(Error::invalid("the number of splits", splits, "give 1 or more"));
    }
    check_count("the number of pictures", logits, splits)?;
    let predictions: Vec<Prediction> = (0..logits.len()).filter_map(|i| logits.row(i)).map(Prediction::of).collect();
    let order = match shuffle {
        Some(seed) => permutation(predictions.len(), seed, 0),
        None => (0..predictions.len()).collect(),
    };
    let scores = of_parts(&predictions, &order, splits);
    let mean = mean(&scores);
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / splits as f64;
    let score = bootstrap
        .figure(mean, predictions.len(), |indices| Ok(self::mean(&of_parts(&predictions, indices, splits))))?;
    Ok(InceptionScore { score, deviation: variance.sqrt() })
}

fn mean(scores: &[f64]) -> f64 {
    scores.iter().sum::<f64>() / scores.len() as f64
}

/// The score of each part of the pictures in an order.
fn of_parts(predictions: &[Prediction], order: &[usize], splits: usize) -> Vec<f64> {
    let count = order.len();
    (0..splits).map(|i| score(predictions, &order[i * count / splits..(i + 1) * count / splits])).collect()
}

/// The mean of `KL(p(y|x) || p(y))` is the mean of `sum p ln p` less that of `p(y)`.
fn score(predictions: &[Prediction], part: &[usize]) -> f64 {
    let count = part.len() as f64;
    let mut marginal = vec![0.0; predictions[part[0]].probabilities.len()];
    let mut information = 0.0;
    for &i in part {
        information += predictions[i].information / count;
        marginal.iter_mut().zip(&predictions[i].probabilities).for_each(|(sum, p)| *sum += p / count);
    }
    (information - marginal.iter().map(|&p| x_ln_x(p)).sum::<f64>()).exp()
}

fn x_ln_x(p: f64) -> f64 {
    if p > 0.0 { p * p.ln() } else { 0.0 }
}

/// What a classifier says of a picture.
struct Prediction {
    probabilities: Vec<f64>,
    /// `sum p ln p`.
    information: f64,
}

impl Prediction {
    fn of(logits: &[f32]) -> Self {
        let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, &logit| largest.max(logit.into()));
        let powers: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let probabilities: Vec<f64> = powers.iter().map(|power| power / sum).collect();
        let information = probabilities.iter().map(|&p| x_ln_x(p)).sum();
        Self { probabilities, information }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_and_perfect_predictions() -> Result<()> {
        let score = |logits: &dyn Fn(usize, usize) -> f32, splits| {
            let values = (0..200 * 4).map(|at| logits(at / 4, at % 4)).collect();
            inception_score(&Features::from_values(4, values)?, splits, Some(3), &Bootstrap { resamples: 10, seed: 0 })
        };
        let constant = score(&|_, class| class as f32, 10)?;
        assert!((constant.score.value - 1.0).abs() < 1e-12 && constant.deviation < 1e-12, "{constant:?}");
        // Sure of its class, and the four are equally many.
        let perfect = score(&|i, class| if i % 4 == class { 200.0 } else { 0.0 }, 1)?;
        assert!((perfect.score.value - 4.0).abs() < 1e-12, "{perfect:?}");
        assert!(
            perfect.score.interval.is_some_and(|interval| interval.low < 4.0 && interval.high - interval.low < 0.2)
        );
        // Sure half of the time: exp of half of ln 4.
        let half = score(&|i, class| if i < 100 && i % 4 == class { 200.0 } else { 0.0 }, 1)?;
        assert!((half.score.value - 2.0).abs() < 1e-12, "{half:?}");
        let message = score(&|_, _| 0.0, 201).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("200") && message.contains("201"), "{message}");
        Ok(())
    }
}
