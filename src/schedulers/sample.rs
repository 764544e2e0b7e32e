//! The sampling loop and what a solver may use in it.

use super::{Levels, NoiseLevel};
use crate::denoising::{Denoiser, Prediction};
use crate::noise::NoiseSource;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::ops::ControlFlow;

/// A numerical method that moves a state from noise to data, one level at a time.
///
/// A solver lives for one request: what it remembers of earlier steps is its own and ends with it. It
/// reads `x0` or `epsilon` of a [`Prediction`] and does not know what the network predicts.
pub trait Solver {
    /// Takes `x` from `run.levels().from(i)` to `run.levels().to(i)`.
    ///
    /// An intermediate state that a step makes for a second evaluation goes through
    /// [`Run::constrain`] before [`Run::predict`]; the loop does so for the result.
    ///
    /// # Shapes
    /// `x` and the result: `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// If the network fails.
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor>;
}

/// Puts known parts of the picture back into a state at a level, for inpainting.
pub type Constraint<'a> = dyn Fn(&mut Tensor, &NoiseLevel) -> Result<()> + 'a;

/// What a run lends its solver: the levels, the network, the noise and the constraint.
pub struct Run<'a> {
    levels: &'a Levels,
    denoiser: &'a Denoiser<'a>,
    noise: &'a mut dyn NoiseSource,
    constraint: Option<&'a Constraint<'a>>,
}

impl<'a> Run<'a> {
    /// A run over `levels` with a network and a source of noise.
    pub fn new(levels: &'a Levels, denoiser: &'a Denoiser<'a>, noise: &'a mut dyn NoiseSource) -> Self {
        Self { levels, denoiser, noise, constraint: None }
    }

    /// The same run with a constraint on every state.
    #[must_use]
    pub fn constrained(mut self, constraint: &'a Constraint<'a>) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// All levels of the run.
    pub fn levels(&self) -> &'a Levels {
        self.levels
    }

    /// Evaluates the network on a state at a level.
    ///
    /// # Errors
    /// If the network fails.
    pub fn predict(&self, x: &Tensor, level: &NoiseLevel) -> Result<Prediction> {
        self.denoiser.predict(x, level)
    }

    /// Reads a raw output, such as a mean of several, as a prediction for the state `x` at a level.
    ///
    /// # Errors
    /// If the level has no such prediction (epsilon at zero signal).
    pub fn interpret(&self, raw: Tensor, x: &Tensor, level: &NoiseLevel) -> Result<Prediction> {
        self.denoiser.interpret(raw, x, level)
    }

    /// Fresh standard normal noise with the shape, type and device of `x`.
    ///
    /// # Errors
    /// If the source was made for another number of images.
    pub fn noise_like(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(self.noise.normal(x.dims())?.to_dtype(x.dtype())?.to_device(x.device())?)
    }

    /// Applies the run's constraint, if it has one, to a state at a level.
    ///
    /// # Errors
    /// If the constraint fails.
    pub fn constrain(&self, x: &mut Tensor, level: &NoiseLevel) -> Result<()> {
        self.constraint.map_or(Ok(()), |constraint| constraint(x, level))
    }
}

/// What the caller is told after each step.
#[derive(Debug)]
pub struct Step<'a> {
    /// Which step was done, from 0.
    pub index: usize,
    /// How many there are in all; a run that starts in the middle does only the last of them.
    pub total: usize,
    /// The state after the step.
    pub latents: &'a Tensor,
    /// The level of that state.
    pub level: NoiseLevel,
}

/// Runs a solver from step `start` to the end.
///
/// `on_step` is told of every step and says whether to go on.
///
/// # Shapes
/// `x` and the result: `[batch, channels, height, width]`, `x` at the level `run.levels().from(start)`.
///
/// # Errors
/// [`Error::Cancelled`] if `on_step` breaks, [`Error::NotFinite`] if a state stops being finite, and
/// whatever the network or the solver reports.
pub fn sample(
    solver: &mut dyn Solver,
    mut x: Tensor,
    start: usize,
    mut run: Run<'_>,
    on_step: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Tensor> {
    let total = run.levels().len();
    for i in start..total {
        x = solver.step(&x, i, &mut run)?;
        let level = run.levels().after(i);
        run.constrain(&mut x, &level)?;
        check_finite(&x, i, total)?;
        if on_step(&Step { index: i, total, latents: &x, level }).is_break() {
            return Err(Error::Cancelled);
        }
    }
    Ok(x)
}

fn check_finite(x: &Tensor, i: usize, total: usize) -> Result<()> {
    let sum = x.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        return Ok(());
    }
    Err(Error::NotFinite {
        stage: format!("denoising step {} of {total}", i + 1),
        detail: format!("the latents sum to {sum}"),
        fix: "use --dtype f32 or bf16 instead of f16, a lower guidance scale, or check the checkpoint",
    })
}
