//! Which timesteps a batch is trained on.

use crate::noise::TorchGenerator;
use crate::{Error, ErrorKind, Result};

/// Losses that are remembered of each timestep (Nichol and Dhariwal 2021, section 3.3).
const REMEMBERED: usize = 10;
/// The share of draws that stays even, so that no timestep is forgotten; as in the paper's program.
const EVEN_SHARE: f64 = 0.001;

/// How timesteps are drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum TimestepSampling {
    /// Every timestep alike.
    Uniform {
        /// How many there are.
        timesteps: usize,
    },
    /// More often the noisier ones, or the less noisy ones below 1: `T s u / (1 + (s - 1) u)` with `u` even over `[0, 1)` (Esser
    /// et al. 2024, equation 23). Their losses are not weighted down in return.
    Shifted {
        /// How many there are.
        timesteps: usize,
        /// `s`, above 0.
        shift: f64,
    },
    /// In proportion to `sqrt(E[L_t^2])` of the last ten losses of each (Nichol and Dhariwal 2021, equation 18);
    /// evenly until every timestep has ten.
    LossSecondMoment(LossHistory),
}

/// The last losses of every timestep.
#[derive(Debug, Clone, PartialEq)]
pub struct LossHistory {
    /// Ten for each timestep, oldest first; those that are not there yet are zero.
    losses: Vec<[f32; REMEMBERED]>,
    counts: Vec<usize>,
}

/// Timesteps of a batch, and what each loss is multiplied with so that its expectation is that of even draws.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnTimesteps {
    /// One for each image, counted from 0.
    pub timesteps: Vec<usize>,
    /// `1 / (T p_t)`.
    pub weights: Vec<f64>,
}

impl TimestepSampling {
    /// Importance sampling over `timesteps`, without losses yet.
    pub fn importance(timesteps: usize) -> Self {
        Self::LossSecondMoment(LossHistory { losses: vec![[0.0; REMEMBERED]; timesteps], counts: vec![0; timesteps] })
    }

    /// Draws timesteps for `count` images.
    pub fn draw(&self, count: usize, generator: &mut TorchGenerator) -> DrawnTimesteps {
        match self {
            Self::LossSecondMoment(history) if history.is_full() => history.draw(count, generator),
            Self::LossSecondMoment(LossHistory { losses, .. }) => even(losses.len(), count, generator),
            Self::Uniform { timesteps } => even(*timesteps, count, generator),
            Self::Shifted { timesteps, shift } => shifted(*timesteps, *shift, count, generator),
        }
    }

    /// Takes note of the losses of drawn timesteps, before their weights.
    pub fn note(&mut self, timesteps: &[usize], losses: &[f32]) {
        let Self::LossSecondMoment(history) = self else { return };
        for (&t, &loss) in timesteps.iter().zip(losses) {
            let (row, count) = (&mut history.losses[t], &mut history.counts[t]);
            if *count == REMEMBERED {
                row.rotate_left(1);
                row[REMEMBERED - 1] = loss;
            } else {
                row[*count] = loss;
                *count += 1;
            }
        }
    }

    /// What has to be saved: for each timestep its ten losses and their number, row by row.
    pub fn history(&self) -> Option<Vec<f32>> {
        let Self::LossSecondMoment(LossHistory { losses, counts }) = self else { return None };
        let rows = losses.iter().zip(counts);
        Some(rows.flat_map(|(row, &count)| row.iter().copied().chain([count as f32])).collect())
    }

    /// Takes what [`Self::history`] gave.
    ///
    /// # Errors
    /// If it is that of another number of timesteps, or there is none where one is needed.
    pub fn restore(&mut self, saved: Option<&[f32]>) -> Result<()> {
        let Self::LossSecondMoment(LossHistory { losses, counts }) = self else { return Ok(()) };
        let saved = saved.unwrap_or_default();
        if saved.len() != losses.len() * (REMEMBERED + 1) {
            let fix = format!("the checkpoint must have that of {} timesteps", losses.len());
            return Err(Error::unusable(ErrorKind::Model, "the length of the loss history", saved.len(), fix));
        }
        for ((row, count), saved) in losses.iter_mut().zip(counts).zip(saved.chunks_exact(REMEMBERED + 1)) {
            row.copy_from_slice(&saved[..REMEMBERED]);
            *count = (saved[REMEMBERED] as usize).min(REMEMBERED);
        }
        Ok(())
    }
}

impl LossHistory {
    fn is_full(&self) -> bool {
        self.counts.iter().all(|&count| count == REMEMBERED)
    }

    /// The probability of each timestep.
    fn probabilities(&self) -> Vec<f64> {
        let second_moment = |row: &[f32; REMEMBERED]| {
            (row.iter().map(|&loss| f64::from(loss).powi(2)).sum::<f64>() / REMEMBERED as f64).sqrt()
        };
        let roots: Vec<f64> = self.losses.iter().map(second_moment).collect();
        let (sum, count) = (roots.iter().sum::<f64>(), roots.len() as f64);
        // Losses that are all zero tell nothing.
        let share = |root: f64| if sum > 0.0 { root / sum } else { 1.0 / count };
        roots.into_iter().map(|root| (1.0 - EVEN_SHARE) * share(root) + EVEN_SHARE / count).collect()
    }

    fn draw(&self, count: usize, generator: &mut TorchGenerator) -> DrawnTimesteps {
        let probabilities = self.probabilities();
        let cumulative: Vec<f64> = (probabilities.iter())
            .scan(0.0, |sum, p| {
                *sum += p;
                Some(*sum)
            })
            .collect();
        let last = cumulative.len() - 1;
        let timesteps: Vec<usize> = (0..count)
            .map(|_| even_share(generator) * cumulative[last])
            .map(|u| cumulative.partition_point(|&sum| sum <= u).min(last))
            .collect();
        let weights = timesteps.iter().map(|&t| 1.0 / (probabilities[t] * probabilities.len() as f64)).collect();
        DrawnTimesteps { timesteps, weights }
    }
}

/// A number from 0 to 1, without 1, any as likely as any other.
fn even_share(generator: &mut TorchGenerator) -> f64 {
    f64::from(generator.next_u32()) / 2f64.powi(32)
}

/// Every timestep alike, by the high half of a product: none is more likely than another by more than `T` in `2^32`.
fn even(timesteps: usize, count: usize, generator: &mut TorchGenerator) -> DrawnTimesteps {
    let draw = |_| ((u64::from(generator.next_u32()) * timesteps as u64) >> 32) as usize;
    DrawnTimesteps { timesteps: (0..count).map(draw).collect(), weights: vec![1.0; count] }
}

/// The same, moved: the share of draws below `t` of `T` timesteps is `t / (s T - (s - 1) t)`.
fn shifted(timesteps: usize, shift: f64, count: usize, generator: &mut TorchGenerator) -> DrawnTimesteps {
    let draw = |_| {
        let u = even_share(generator);
        let moved = shift * u / (1.0 + (shift - 1.0) * u);
        ((moved * timesteps as f64) as usize).min(timesteps - 1)
    };
    DrawnTimesteps { timesteps: (0..count).map(draw).collect(), weights: vec![1.0; count] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(losses: &[f32]) -> TimestepSampling {
        let mut sampling = TimestepSampling::importance(losses.len());
        for _ in 0..REMEMBERED {
            let timesteps: Vec<usize> = (0..losses.len()).collect();
            sampling.note(&timesteps, losses);
        }
        sampling
    }

    /// Weighted losses have the mean that even draws give.
    #[test]
    fn weights_undo_the_choice() {
        let losses = [0.1f32, 2.0, 0.5, 9.0];
        let drawn = full(&losses).draw(200_000, &mut TorchGenerator::new(5));
        let pairs = drawn.timesteps.iter().zip(&drawn.weights);
        let mean = pairs.map(|(&t, w)| f64::from(losses[t]) * w).sum::<f64>() / 200_000.0;
        let expected = 2.9;
        // The product of loss and weight is nearly constant, which is the point; its spread is below 0.1.
        assert!((mean - expected).abs() < 4.0 * 0.1 / 200_000f64.sqrt(), "{mean}");
    }

    #[test]
    fn draws_are_even_until_every_timestep_has_ten_losses() {
        let mut sampling = full(&[1.0, 100.0]);
        if let TimestepSampling::LossSecondMoment(history) = &mut sampling {
            history.counts[0] = REMEMBERED - 1;
        }
        let drawn = sampling.draw(10_000, &mut TorchGenerator::new(1));
        let ones = drawn.timesteps.iter().sum::<usize>();
        // Five standard deviations of a fair coin.
        assert!(ones.abs_diff(5000) < 250 && drawn.weights.iter().all(|&w| w == 1.0), "{ones}");
        sampling.note(&[0], &[1.0]);
        let ones = sampling.draw(10_000, &mut TorchGenerator::new(1)).timesteps.iter().sum::<usize>();
        assert!(ones > 9_700, "{ones}");
    }

    #[test]
    fn the_history_keeps_the_last_ten_and_can_be_saved() -> Result<()> {
        let mut sampling = full(&[1.0, 2.0]);
        sampling.note(&[1, 1], &[7.0, 8.0]);
        let saved = sampling.history().unwrap_or_default();
        assert_eq!(saved[11..], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 7.0, 8.0, 10.0]);
        let mut restored = TimestepSampling::importance(2);
        restored.restore(Some(&saved))?;
        assert_eq!(restored, sampling);
        assert!(TimestepSampling::importance(3).restore(Some(&saved)).is_err());
        assert!(TimestepSampling::importance(2).restore(None).is_err());
        Ok(())
    }

    /// Counts below some timesteps against the distribution's closed form, to five standard deviations.
    #[test]
    fn shifted_draws_are_distributed_as_they_should_be() {
        for shift in [0.5, 3.0] {
            let sampling = TimestepSampling::Shifted { timesteps: 1000, shift };
            let drawn = sampling.draw(40_000, &mut TorchGenerator::new(3));
            for t in [100usize, 400, 700, 999] {
                let share = drawn.timesteps.iter().filter(|&&drawn| drawn < t).count() as f64 / 40_000.0;
                let expected = t as f64 / (1000.0 * shift - (shift - 1.0) * t as f64);
                let deviation = (expected * (1.0 - expected) / 40_000.0).sqrt();
                assert!((share - expected).abs() < 5.0 * deviation, "{shift} {t}: {share} {expected}");
            }
            assert!(drawn.weights.iter().all(|&weight| weight == 1.0));
        }
    }

    #[test]
    fn uniform_draws_reach_both_ends() {
        let drawn = TimestepSampling::Uniform { timesteps: 3 }.draw(300, &mut TorchGenerator::new(2));
        assert!((0..3).all(|t| drawn.timesteps.contains(&t)) && drawn.timesteps.iter().all(|&t| t < 3));
    }
}
