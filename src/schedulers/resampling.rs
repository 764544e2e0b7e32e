//! Going back in time and down again, so that what is painted comes to agree with what is known.

use super::sample::{Progress, advance};
use super::{Run, Scheduler, Step};
use crate::{Error, NoiseLevel, Result};
use candle_core::Tensor;
use std::ops::ControlFlow;

/// RePaint's resampling (Lugmayr et al. 2022, section 4.2): the steps are run in blocks, and after each block the
/// state is noised back to where the block began and the block is run again.
///
/// Blocks are counted from the end. The noisiest one is run once, since it starts from pure noise each time.
/// With `times` of 1 this is plain sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    /// How often each block is run; 1 or more.
    pub times: usize,
    /// How many steps a block has; 1 or more.
    pub jump_length: usize,
}

impl Default for Resampling {
    /// Every step once.
    fn default() -> Self {
        Self { times: 1, jump_length: 1 }
    }
}

/// One movement in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// Step `i`.
    Down(usize),
    /// From the state after step `from` back to where step `to` starts.
    Back { from: usize, to: usize },
}

impl Resampling {
    /// Runs `scheduler`'s solver from step `start` to the end, with the jumps.
    ///
    /// After a jump a fresh solver goes on: what a multistep method remembers belongs to the path that was left.
    ///
    /// # Shapes
    /// As [`super::sample`].
    ///
    /// # Errors
    /// As [`super::sample`]; and if a number is zero.
    pub fn sample(
        &self,
        scheduler: &dyn Scheduler,
        mut x: Tensor,
        start: usize,
        run: Run<'_>,
        on_step: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        if self.times == 0 || self.jump_length == 0 {
            return Err(Error::invalid("resampling", format!("{self:?}"), "take 1 or more"));
        }
        let moves = self.moves(start, run.levels().len());
        let steps = moves.iter().filter_map(|m| if let Move::Down(i) = m { Some(*i) } else { None });
        let (total, mut done) = (steps.clone().count(), 0);
        let mut solver = scheduler.solver();
        let mut run = run.of_steps(solver.as_ref(), steps);
        for &step in &moves {
            match step {
                Move::Down(index) => {
                    x = advance(solver.as_mut(), &x, index, &mut run)?;
                    done += 1;
                    Progress { index, done, total }.report(&x, &run, on_step)?;
                }
                Move::Back { from, to } => {
                    let (here, there) = (run.levels().after(from), run.levels().from(to));
                    x = noised_back(&x, &here, &there, &mut run)?;
                    run.constrain(&mut x, &there)?;
                    solver = scheduler.solver();
                }
            }
        }
        Ok(x)
    }

    fn moves(&self, start: usize, total: usize) -> Vec<Move> {
        let mut moves = Vec::new();
        for i in start..total {
            moves.push(Move::Down(i));
            let left = total - (i + 1);
            if left.is_multiple_of(self.jump_length) && left + self.jump_length < total - start {
                let first = i + 1 - self.jump_length;
                for _ in 1..self.times {
                    moves.push(Move::Back { from: i, to: first });
                    moves.extend((first..=i).map(Move::Down));
                }
            }
        }
        moves
    }
}

/// The forward process between two levels: `r x + sqrt(sigma_there^2 - r^2 sigma_here^2) noise`, where
/// `r = alpha_there / alpha_here`.
fn noised_back(x: &Tensor, here: &NoiseLevel, there: &NoiseLevel, run: &mut Run<'_>) -> Result<Tensor> {
    let ratio = there.alpha / here.alpha;
    let variance = there.sigma.powi(2) - (ratio * here.sigma).powi(2);
    Ok(((x * ratio)? + (run.noise_like(x)? * variance.max(0.0).sqrt())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Move::{Back, Down};

    #[test]
    fn each_block_but_the_noisiest_is_repeated() {
        let moves = |times, jump_length, start, total| Resampling { times, jump_length }.moves(start, total);
        assert_eq!(moves(1, 2, 1, 4), [Down(1), Down(2), Down(3)]);
        assert_eq!(
            moves(2, 1, 0, 3),
            [Down(0), Down(1), Back { from: 1, to: 1 }, Down(1), Down(2), Back { from: 2, to: 2 }, Down(2)]
        );
        assert_eq!(moves(2, 2, 0, 4), [Down(0), Down(1), Down(2), Down(3), Back { from: 3, to: 2 }, Down(2), Down(3)]);
    }

    /// The paper's schedule for T = 250, jump length 10 and 10 resamplings: 4,570 transitions, of which 24 * 9
    /// jumps are ten up each, and as many down again.
    #[test]
    fn the_number_of_steps_is_the_papers() {
        let moves = Resampling { times: 10, jump_length: 10 }.moves(0, 250);
        let down = moves.iter().filter(|m| matches!(m, Down(_))).count();
        let jumps = moves.len() - down;
        assert_eq!((jumps, down, down + 10 * jumps), (24 * 9, 250 + 24 * 9 * 10, 4570));
    }
}
