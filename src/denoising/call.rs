//! What a network is asked.

use super::{Cache, Reuse};
use crate::conditioning::Conditioning;
use crate::{Error, NoiseLevel, Result};
use candle_core::{DType, Tensor};
use std::ops::Range;

/// One evaluation of a [`Network`](super::Network): the states, how noisy they are, and what the network is to make them of.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The states: `[rows, in_channels, height, width]`, scaled to unit variance.
    pub x: &'a Tensor,
    /// How much signal and noise `x` holds, as it stands here, scaled.
    pub levels: RowLevels<'a>,
    /// One row for each of `x`.
    pub conditioning: &'a Conditioning,
    /// What the rows are to guidance: as many equal groups, in their order. Never empty.
    pub branches: &'a [Branch],
    /// Where in a run this is; outside of runs nowhere.
    pub position: Option<Position>,
    /// What the network keeps from call to call of one run.
    pub cache: &'a Cache,
    /// What it takes over of the calls before.
    pub reuse: Reuse,
    /// The share of tokens, 0 to 1, that are merged with similar ones for self-attention at the highest resolution that has any on the
    /// way down or up (Bolya and Hoffman 2023), which of Stable Diffusion XL is half that of the latents. Networks that merge none
    /// answer as with 0.
    pub token_merging: f64,
}

/// The noise levels of a call's rows.
#[derive(Debug, Clone, Copy)]
pub enum RowLevels<'a> {
    /// All have the same, as in sampling.
    Shared(NoiseLevel),
    /// Each has its own, as in training.
    Each(&'a [NoiseLevel]),
}

/// What a row is to guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// It has the prompt, or the class.
    Prompted,
    /// It has the negative prompt, or none.
    Unprompted,
    /// It has the prompt, and the network is to look around less than it does: self-attention is the identity somewhere.
    Perturbed,
}

impl Branch {
    /// Whether it has the prompt.
    pub fn has_prompt(self) -> bool {
        self != Self::Unprompted
    }
}

/// Which of a run's evaluations of its network this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Counted from 0.
    pub evaluation: usize,
    /// How many there are from the run's start to its end.
    pub total: usize,
}

impl<'a> Call<'a> {
    /// One branch, prompted, outside of any run, all rows at one level.
    ///
    /// # Shapes
    /// `x`: `[rows, in_channels, height, width]`, the state at `level`.
    pub fn new(x: &'a Tensor, level: NoiseLevel, conditioning: &'a Conditioning, cache: &'a Cache) -> Self {
        Self::at(x, RowLevels::Shared(level), conditioning, cache)
    }

    /// The same with a level for each row.
    ///
    /// # Shapes
    /// `x`: `[rows, in_channels, height, width]`, row `i` the state at `levels[i]`.
    pub fn of_rows(x: &'a Tensor, levels: &'a [NoiseLevel], conditioning: &'a Conditioning, cache: &'a Cache) -> Self {
        Self::at(x, RowLevels::Each(levels), conditioning, cache)
    }

    fn at(x: &'a Tensor, levels: RowLevels<'a>, conditioning: &'a Conditioning, cache: &'a Cache) -> Self {
        let branches = &[Branch::Prompted];
        Self { x, levels, conditioning, branches, position: None, cache, reuse: Reuse::Nothing, token_merging: 0.0 }
    }

    /// The level that all rows have.
    ///
    /// # Errors
    /// If each row has its own: what asks for this cannot be used in training.
    pub fn level(&self) -> Result<NoiseLevel> {
        match self.levels {
            RowLevels::Shared(level) => Ok(level),
            RowLevels::Each(levels) => {
                let fix = "guidance works on states of one level; give all rows the same";
                Err(Error::invalid("the noise levels of a call", format!("one for each of {} rows", levels.len()), fix))
            }
        }
    }

    /// The timesteps as networks are told them: `[rows]`, of f64 where the state is, else of f32.
    ///
    /// # Errors
    /// If there are more or fewer levels than rows.
    pub fn timesteps(&self) -> Result<Tensor> {
        let (rows, device) = (self.x.dim(0)?, self.x.device());
        let dtype = if self.x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let told: Vec<f64> = match self.levels {
            RowLevels::Shared(level) => vec![level.timestep; rows],
            RowLevels::Each(levels) if levels.len() == rows => levels.iter().map(|level| level.timestep).collect(),
            RowLevels::Each(levels) => {
                return Err(Error::invalid(
                    "the number of noise levels",
                    levels.len(),
                    format!("give {rows}, one a row"),
                ));
            }
        };
        // Not every device has f64, so the numbers are rounded here.
        Ok(match dtype {
            DType::F64 => Tensor::from_vec(told, rows, device)?,
            _ => Tensor::from_vec(told.iter().map(|&t| t as f32).collect::<Vec<_>>(), rows, device)?,
        })
    }

    /// The rows of the branches that are `wanted`, which must lie beside each other; empty if there are none.
    ///
    /// # Errors
    /// If the rows are no equal groups, or others lie between the wanted ones.
    pub fn rows(&self, wanted: impl Fn(Branch) -> bool) -> Result<Range<usize>> {
        let (rows, branches) = (self.x.dim(0)?, self.branches.len());
        if branches == 0 || !rows.is_multiple_of(branches) {
            let fix = format!("there are {branches} branches; give each as many rows");
            return Err(Error::invalid("the number of a call's rows", rows, fix));
        }
        let group = rows / branches;
        let Some(first) = self.branches.iter().position(|&branch| wanted(branch)) else { return Ok(0..0) };
        let count = self.branches[first..].iter().take_while(|&&branch| wanted(branch)).count();
        if self.branches[first + count..].iter().any(|&branch| wanted(branch)) {
            let fix = "put branches of one kind beside each other";
            return Err(Error::invalid("the order of a call's branches", format!("{:?}", self.branches), fix));
        }
        Ok(first * group..(first + count) * group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn timesteps_are_told_in_the_precision_of_the_state() -> Result<()> {
        let (conditioning, cache) = (Conditioning::default(), Cache::default());
        let level = |timestep| NoiseLevel::from_sigma(timestep, 1.0);
        let (single, double) = (state(DType::F32)?, state(DType::F64)?);
        let shared = Call::new(&single, level(0.1), &conditioning, &cache);
        assert_eq!(shared.timesteps()?.to_vec1::<f32>()?, [0.1f32; 4]);
        let each = [level(0.1), level(7.0), level(-3.5), level(999.0)];
        let each = Call::of_rows(&double, &each, &conditioning, &cache);
        assert_eq!(each.timesteps()?.to_vec1::<f64>()?, [0.1, 7.0, -3.5, 999.0]);
        assert!(each.level().is_err() && shared.level().is_ok());
        let few = [level(0.1)];
        assert!(Call::of_rows(&double, &few, &conditioning, &cache).timesteps().is_err());
        Ok(())
    }

    #[test]
    fn branches_are_equal_groups_of_rows() -> Result<()> {
        use Branch::{Perturbed, Prompted, Unprompted};
        let (x, conditioning, cache) = (state(DType::F32)?, Conditioning::default(), Cache::default());
        let call = Call::new(&x, NoiseLevel::from_sigma(0.0, 1.0), &conditioning, &cache);
        let prompted = |branches: &[Branch]| Call { branches, ..call }.rows(Branch::has_prompt);
        assert_eq!(prompted(&[Prompted])?, 0..4);
        assert_eq!(prompted(&[Unprompted, Prompted])?, 2..4);
        assert_eq!(prompted(&[Perturbed, Prompted, Unprompted, Unprompted])?, 0..2);
        assert!(prompted(&[Unprompted])?.is_empty());
        assert!(prompted(&[Prompted, Unprompted, Prompted]).is_err(), "four rows are no three groups");
        assert!(prompted(&[Prompted, Unprompted, Prompted, Unprompted]).is_err());
        Ok(())
    }

    fn state(dtype: DType) -> Result<Tensor> {
        Ok(Tensor::zeros((4, 1, 1, 1), dtype, &Device::Cpu)?)
    }
}
