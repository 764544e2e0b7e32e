//! What a run will take, before a weight of it is read.

use super::{in_all, in_words, resident_at_first, with_swap};
use crate::builder::Builder;
use crate::device::DTypeChoice;
use crate::latent_diffusion::LatentDiffusion;
use crate::model::ModelInfo;
use crate::requests::text_to_image::TextToImageRequest;
use crate::settings::Settings;
use std::ops::ControlFlow;
use tweedie::kernels::{RecyclingAllocator, can_dry_run, dry_run, is_dry_run};
use tweedie::schedulers::Scheduler;
use tweedie::{Error, ErrorKind, Result};

/// Pages of the program that are read while it computes, and its threads' stacks.
const PROGRAM: u64 = 8 << 20;

/// Steps that show what all of them take.
const STEPS: usize = 3;

impl Builder {
    /// The most memory in bytes that this process will have resident when it loads this model and makes the pictures of some
    /// settings, which `settle` makes of the model without its weights. Of the model's files the headers are read: the run itself is
    /// [made without computing](dry_run). Nothing where that is not known: on other devices than the CPU, and where the program's
    /// allocator is not [`RecyclingAllocator`](tweedie::kernels::RecyclingAllocator).
    ///
    /// # Errors
    /// As [`Self::build`], of what the headers show, and whatever `settle` reports.
    pub fn predicted_memory<E: From<Error>>(
        &self,
        settle: impl FnOnce(&LatentDiffusion) -> Result<Settings, E>,
    ) -> Result<Option<u64>, E> {
        let Some(before) = resident_at_first().filter(|_| self.computes_with_kernels() && can_dry_run()) else {
            return Ok(None);
        };
        let (found, most) = dry_run(|| {
            let model = self.clone().build()?;
            let settings = settle(&model)?;
            Ok::<_, E>(model.rehearse(settings)?)
        });
        // Of the embedded model the program has the weights too, which are resident once they are read.
        let embedded = self.embedded().map(ModelInfo::read).transpose()?;
        let beside: usize = embedded.iter().flat_map(|info| &info.components).map(|component| component.bytes).sum();
        Ok((found? && most > 0).then_some(before + PROGRAM + most + beside as u64))
    }
}

impl LatentDiffusion {
    /// A run in a dry run: whether it came to its end. Of what is not computed nothing can be wrong but a number, which is no matter
    /// here.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] if there is too little for any of it.
    fn rehearse(&self, settings: Settings) -> Result<bool> {
        match self.run(&settings.in_brief(), &mut |_| ControlFlow::Continue(())) {
            Err(error) if error.kind() == ErrorKind::Memory => Err(error),
            run => Ok(run.is_ok()),
        }
    }

    /// Whether there is memory for a run of this model, which is loaded for any number of them: that is asked where there is not
    /// plenty.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] if there is not; the message says what would help.
    pub(crate) fn check_room(&self, settings: &Settings) -> Result<()> {
        // A solver of one's own is not for rehearsals.
        if is_dry_run() || !self.is_for_any_use() || !self.computes_with_kernels() || settings.solver.is_some() {
            return Ok(());
        }
        let Some(free) = with_swap().filter(|&free| is_scarce(free, settings) && can_dry_run()) else { return Ok(()) };
        let free = free.saturating_add(RecyclingAllocator::kept());
        let takes = |settings: Settings| {
            let (ended, most) = dry_run(|| self.rehearse(settings));
            Ok::<_, Error>(if ended? { most } else { 0 })
        };
        let needed = takes(settings.clone())?;
        if fits(needed, free) {
            return Ok(());
        }
        let mut one_by_one = settings.clone();
        one_by_one.request.batch_size = 1;
        let fix = match takes(one_by_one) {
            Ok(less) if fits(less, free) => "take a `batch_size` of 1",
            _ => "take a smaller `width` and `height`",
        };
        Err(too_little(needed, free, fix))
    }
}

/// Whether memory may not be enough for a run. Where it is, that is not worth a few hundredths of a second.
fn is_scarce(free: u64, settings: &Settings) -> bool {
    free < PLENTY || settings.width * settings.height * settings.request.batch_size > USUAL
}

fn fits(needed: u64, there: u64) -> bool {
    (needed as f64 * (1.0 - TOLERANCE)) as u64 <= there
}

fn too_little(needed: u64, there: u64, fix: &str) -> Error {
    let fix = format!("{} can be had here; {fix}", in_words(there));
    Error::unusable(ErrorKind::Memory, "the memory that the pictures need", in_words(needed), fix)
}

/// What a run takes with other weights and another request.
pub type Predict<'a, E> = dyn Fn(DTypeChoice, &dyn Fn(&mut TextToImageRequest)) -> Result<Option<u64>, E> + 'a;

/// The predicted memory of a run with weights in a number format, if it is asked for, or may be too much: where there is plenty it is
/// not worth its few hundredths of a second.
///
/// # Errors
/// [`ErrorKind::Memory`] if there is not so much; the message says what would fit. Whatever `predict` reports.
pub fn checked<E: From<Error>>(asked: bool, dtype: DTypeChoice, predict: &Predict<'_, E>) -> Result<Option<u64>, E> {
    let Some(all) = in_all().filter(|&all| asked || all < PLENTY) else { return Ok(None) };
    let Some(needed) = predict(dtype, &|_| {})? else { return Ok(None) };
    if fits(needed, all) {
        return Ok(Some(needed));
    }
    let fix = what_fits(dtype, (needed, all), predict);
    let fix = fix.unwrap_or_else(|| "no smaller size or number format would fit".into());
    Err(too_little(needed, all, &fix).into())
}

/// What to do where a run needs more than there is: the first that helps. What a model cannot do, does not.
fn what_fits<E>(dtype: DTypeChoice, (needed, all): (u64, u64), predict: &Predict<'_, E>) -> Option<String> {
    let takes = |dtype: DTypeChoice, change: &dyn Fn(&mut TextToImageRequest)| predict(dtype, change).ok().flatten();
    let mut ways: Vec<(String, DTypeChoice, Change)> = vec![("a `batch_size` of 1".into(), dtype, one_by_one)];
    for smaller in [DTypeChoice::Q8, DTypeChoice::Q4] {
        ways.push((format!("`dtype` {smaller}"), smaller, |_| {}));
        ways.push((format!("`dtype` {smaller} and a `batch_size` of 1"), smaller, one_by_one));
    }
    ways.retain(|(_, other, _)| *other != DTypeChoice::Q8 || dtype != DTypeChoice::Q4);
    for (way, dtype, change) in ways {
        if takes(dtype, &change).is_some_and(|less| fits(less, all)) {
            return Some(format!("take {way}"));
        }
    }
    for (dtype, beside) in [(dtype, ""), (DTypeChoice::Q4, " and `dtype` q4")] {
        for side in SIDES {
            let smaller = |request: &mut TextToImageRequest| {
                one_by_one(request);
                (request.width, request.height) = (Some(side), Some(side));
            };
            if takes(dtype, &smaller).is_some_and(|less| less < needed && fits(less, all)) {
                return Some(format!("take a smaller `width` and `height`, such as {side}x{side}{beside}"));
            }
        }
    }
    None
}

type Change = fn(&mut TextToImageRequest);

fn one_by_one(request: &mut TextToImageRequest) {
    request.batch_size = 1;
}

/// How far a prediction may be off.
const TOLERANCE: f64 = 0.1;

/// Memory in which every usual run fits.
const PLENTY: u64 = 16 << 30;

/// Pixels of the pictures of a usual run that are made together.
const USUAL: usize = 2048 * 2048;

/// Sizes that are tried, from the largest on.
const SIDES: [usize; 7] = [1536, 1024, 768, 512, 384, 256, 128];

impl Settings {
    /// The same without what takes time and no memory: two batches of a few steps.
    fn in_brief(mut self) -> Self {
        let request = &mut self.request;
        request.num_images = request.num_images.min(request.batch_size.saturating_mul(2));
        request.apg = None;
        self.guidance_rescale = 0.0;
        if self.request.fast.is_none() && self.task.strength() > 0.0 {
            // From a picture on, a share of all is made.
            let steps = self.steps.min((STEPS as f64 / self.task.strength()).ceil() as usize);
            let builds = |scheduler: Box<dyn Scheduler>| scheduler.levels(steps);
            if self.build_scheduler().and_then(builds).is_ok() {
                self.steps = steps;
            }
        }
        self
    }
}
