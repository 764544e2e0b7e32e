//! What a run will take, before a weight of it is read.

use super::{in_all, in_words, resident_at_first};
use crate::builder::Builder;
use crate::device::DTypeChoice;
use crate::latent_diffusion::LatentDiffusion;
use crate::model::ModelInfo;
use crate::requests::text_to_image::TextToImageRequest;
use crate::settings::Settings;
use crate::task::Task;
use std::ops::ControlFlow;
use tweedie::kernels::dry_run;
use tweedie::schedulers::Scheduler;
use tweedie::{Error, ErrorKind, Result};

/// Pages of the program that are read while it computes, and its threads' stacks.
const PROGRAM: u64 = 12 << 20;

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
        let Some(before) = resident_at_first().filter(|_| self.computes_with_kernels()) else { return Ok(None) };
        let (found, most) = dry_run(|| {
            let model = self.clone().build()?;
            let settings = settle(&model)?.in_brief();
            match model.run(&settings, &mut |_| ControlFlow::Continue(())) {
                Err(error) if error.kind() == ErrorKind::Memory => Err(error.into()),
                // Of what is not computed nothing else can be wrong but a number, which is no matter here.
                run => Ok::<_, E>(run.is_ok()),
            }
        });
        // Of the embedded model the program has the weights too, which are resident once they are read.
        let embedded = self.embedded().map(ModelInfo::read).transpose()?;
        let beside: usize = embedded.iter().flat_map(|info| &info.components).map(|component| component.bytes).sum();
        Ok((found? && most > 0).then_some(before + PROGRAM + most + beside as u64))
    }
}

/// What a run takes with other weights and another request.
pub type Predict<'a, E> = dyn Fn(DTypeChoice, &dyn Fn(&mut TextToImageRequest)) -> Result<Option<u64>, E> + 'a;

/// The predicted memory of a run with weights in a number format, if it is asked for, or so little is free that it may be too much:
/// where there is plenty it is not worth its few hundredths of a second.
///
/// # Errors
/// [`ErrorKind::Memory`] if there is not so much; the message says what would fit. Whatever `predict` reports.
pub fn checked<E: From<Error>>(asked: bool, dtype: DTypeChoice, predict: &Predict<'_, E>) -> Result<Option<u64>, E> {
    let Some(all) = in_all().filter(|&all| asked || all < PLENTY) else { return Ok(None) };
    let Some(needed) = predict(dtype, &|_| {})? else { return Ok(None) };
    let fits = |needed: u64| (needed as f64 * (1.0 - TOLERANCE)) as u64 <= all;
    if fits(needed) {
        return Ok(Some(needed));
    }
    let mut ways: Vec<(String, DTypeChoice, Change)> = vec![("a `batch_size` of 1".into(), dtype, one_by_one)];
    for smaller in [DTypeChoice::Q8, DTypeChoice::Q4] {
        ways.push((format!("`dtype` {smaller}"), smaller, |_| {}));
        ways.push((format!("`dtype` {smaller} and a `batch_size` of 1"), smaller, one_by_one));
    }
    let found = ways.into_iter().filter(|(_, other, _)| *other != DTypeChoice::Q8 || dtype != DTypeChoice::Q4);
    let mut fix = None;
    for (way, dtype, change) in found {
        if predict(dtype, &change)?.is_some_and(fits) {
            fix = Some(format!("take {way}"));
            break;
        }
    }
    for side in SIDES.into_iter().filter(|_| fix.is_none()) {
        let smaller = |request: &mut TextToImageRequest| {
            one_by_one(request);
            (request.width, request.height) = (Some(side), Some(side));
        };
        // A size that the model does not take is none that helps.
        let Ok(Some(less)) = predict(dtype, &smaller) else { continue };
        if less < needed && fits(less) {
            fix = Some(format!("take a `width` and a `height` of {side}"));
            break;
        }
    }
    let fix = fix.unwrap_or_else(|| "no smaller size or number format would fit".into());
    let fix = format!("{} can be had here; {fix}", in_words(all));
    Err(Error::unusable(ErrorKind::Memory, "the memory that the pictures need", in_words(needed), fix).into())
}

type Change = fn(&mut TextToImageRequest);

fn one_by_one(request: &mut TextToImageRequest) {
    request.batch_size = 1;
}

/// How far a prediction may be off.
const TOLERANCE: f64 = 0.1;

/// Memory in which every usual run fits.
const PLENTY: u64 = 16 << 30;

/// Sizes that are tried, from the largest on.
const SIDES: [usize; 7] = [1536, 1024, 768, 512, 384, 256, 128];

impl Settings {
    /// The same without what takes time and no memory: two batches of a few steps.
    fn in_brief(mut self) -> Self {
        let request = &mut self.request;
        request.num_images = request.num_images.min(2 * request.batch_size);
        request.apg = None;
        self.guidance_rescale = 0.0;
        // Elsewhere steps are skipped by a share of all.
        if matches!(self.task, Task::TextToImage) && self.request.fast.is_none() {
            let steps = self.steps.min(STEPS);
            let builds = |scheduler: Box<dyn Scheduler>| scheduler.levels(steps);
            if self.build_scheduler().and_then(builds).is_ok() {
                self.steps = steps;
            }
        }
        self
    }
}
