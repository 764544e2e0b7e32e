//! The sampling loop and what a solver may use in it.

use super::Levels;
use crate::denoising::{Denoiser, Position, Prediction};
use crate::noise::NoiseSource;
use crate::{Error, NoiseLevel, Result};
use candle_core::{DType, Tensor};
use std::cell::{Cell, RefCell};
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

    /// How often step `i` evaluates the network, known before the run: what acts on a share of the run, such as a control,
    /// asks how far it is. It follows from the solver's options and the levels, not from the steps before.
    fn evaluations(&self, i: usize, levels: &Levels) -> usize {
        let _ = (i, levels);
        1
    }
}

/// Puts known parts of the picture back into a state at a level, for inpainting.
pub type Constraint<'a> = dyn Fn(&mut Tensor, &NoiseLevel) -> Result<()> + 'a;

/// What a run lends its solver: the levels, the network, the noise and the constraint.
pub struct Run<'a> {
    levels: &'a Levels,
    denoiser: &'a Denoiser<'a>,
    noise: &'a mut dyn NoiseSource,
    constraint: Option<&'a Constraint<'a>>,
    last_x0: RefCell<Option<Tensor>>,
    evaluations: Cell<usize>,
    /// How many evaluations there will be, once it is known which steps are run.
    total: Option<usize>,
}

impl<'a> Run<'a> {
    /// A run over `levels` with a network and a source of noise.
    pub fn new(levels: &'a Levels, denoiser: &'a Denoiser<'a>, noise: &'a mut dyn NoiseSource) -> Self {
        Self {
            levels,
            denoiser,
            noise,
            constraint: None,
            last_x0: RefCell::default(),
            evaluations: Cell::new(0),
            total: None,
        }
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

    /// The same run, told which steps a solver will make.
    pub(super) fn of_steps(mut self, solver: &dyn Solver, steps: impl Iterator<Item = usize>) -> Self {
        self.total = Some(steps.map(|i| solver.evaluations(i, self.levels)).sum());
        self
    }

    /// Evaluates the network on a state at a level.
    ///
    /// # Errors
    /// If the network fails, or the solver evaluates it more often than it said.
    pub fn predict(&self, x: &Tensor, level: &NoiseLevel) -> Result<Prediction> {
        let evaluation = self.evaluations.replace(self.evaluations.get() + 1);
        if let Some(total) = self.total.filter(|&total| evaluation >= total) {
            let fix = format!("it said {total} for the whole run; correct Solver::evaluations");
            return Err(Error::invalid("the number of the solver's evaluations", evaluation + 1, fix));
        }
        let position = self.total.map(|total| Position { evaluation, total });
        self.note(self.denoiser.predict(x, level, position)?)
    }

    /// Reads a raw output, such as a mean of several, as a prediction for the state `x` at a level.
    ///
    /// # Errors
    /// If the level has no such prediction (epsilon at zero signal).
    pub fn interpret(&self, raw: Tensor, x: &Tensor, level: &NoiseLevel) -> Result<Prediction> {
        self.note(self.denoiser.interpret(raw, x, level)?)
    }

    fn note(&self, prediction: Prediction) -> Result<Prediction> {
        self.last_x0.replace(Some(prediction.x0.clone()));
        Ok(prediction)
    }

    fn last_x0(&self) -> Option<Tensor> {
        self.last_x0.borrow().clone()
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
    /// Which of the levels' steps was done, from 0.
    pub index: usize,
    /// How many steps have been done, this one included.
    pub done: usize,
    /// How many will have been done at the end; a run that starts in the middle does only the last of them.
    pub total: usize,
    /// The state after the step.
    pub latents: &'a Tensor,
    /// The level of that state.
    pub level: NoiseLevel,
    /// The clean sample that the network predicted last.
    pub x0: Option<Tensor>,
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
    run: Run<'_>,
    on_step: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Tensor> {
    let total = run.levels().len();
    let mut run = run.of_steps(solver, start..total);
    for index in start..total {
        x = advance(solver, &x, index, &mut run)?;
        let progress = Progress { index, done: index + 1 - start, total: total - start };
        progress.report(&x, &run, on_step)?;
    }
    Ok(x)
}

/// Step `i` of a solver, with the constraint on its result.
pub(super) fn advance(solver: &mut dyn Solver, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
    let mut x = solver.step(x, i, run)?;
    run.constrain(&mut x, &run.levels().after(i))?;
    check_finite(&x, i, run.levels().len())?;
    Ok(x)
}

/// How far a run has come.
pub(super) struct Progress {
    pub index: usize,
    pub done: usize,
    pub total: usize,
}

impl Progress {
    /// Tells the caller, who may stop the run.
    pub(super) fn report(
        self,
        latents: &Tensor,
        run: &Run<'_>,
        on_step: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let Self { index, done, total } = self;
        let step = Step { index, done, total, latents, level: run.levels().after(index), x0: run.last_x0() };
        if on_step(&step).is_break() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

fn check_finite(x: &Tensor, i: usize, total: usize) -> Result<()> {
    let sum = x.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        return Ok(());
    }
    Err(Error::NotFinite {
        stage: format!("denoising step {} of {total}", i + 1),
        detail: format!("the latents sum to {sum}"),
        fix: "use `dtype` f32 or bf16 instead of f16, a lower guidance scale, or check the checkpoint",
    })
}
