//! Grids of samples from a network in training.

use crate::conditioning::Conditioning;
use crate::config::ConfigFields;
use crate::denoising::Denoiser;
use crate::images::Picture;
use crate::models::UNet2DModel;
use crate::noise::{NoiseSource, TorchNoise};
use crate::schedulers::{Run, by_name, sample};
use crate::{Device, Result};
use serde_json::{Map, Value};
use std::ops::ControlFlow;

/// Steps of grids, where the network learns as many noise levels.
const STEPS: usize = 20;
/// Pictures of each class, one row for each; or in all, if there are no classes.
const ROWS: usize = 4;
/// Columns, and so classes, at most.
const COLUMNS: usize = 10;

/// How grids are drawn, and what the finished model takes by default.
#[derive(Debug)]
pub(super) struct SampleGrid {
    /// The solver's name.
    pub solver: &'static str,
    /// Its steps.
    pub steps: usize,
    scheduler: ConfigFields,
}

impl SampleGrid {
    /// By the scheduler's file of the model.
    ///
    /// # Errors
    /// If it cannot be used, or there is no step to be made.
    pub fn new(scheduler: &Map<String, Value>, flows: bool) -> Result<Self> {
        let solver = if flows { "flow-euler" } else { "dpm++2m" };
        let scheduler = ConfigFields::from_fields("scheduler", scheduler.clone());
        let steps = by_name(solver)?.build(&scheduler)?.steps_up_to(STEPS)?;
        Ok(Self { solver, steps, scheduler })
    }

    /// Samples of every class in a column of its own, always from the same noise: image `i` starts from the seed `i`.
    pub fn draw(&self, network: &UNet2DModel, (height, width): (usize, usize)) -> Result<Picture> {
        let config = network.config();
        let columns = if config.num_classes() > 0 { config.num_classes().min(COLUMNS) } else { COLUMNS };
        let count = ROWS * columns;
        let conditioning = if config.num_classes() > 0 {
            let classes: Vec<u32> = (0..count).map(|i| (i % columns) as u32).collect();
            Conditioning::classes(&classes, &Device::Cpu)?
        } else {
            Conditioning::default()
        };
        let scheduler = by_name(self.solver)?.build(&self.scheduler)?;
        let levels = scheduler.levels(self.steps)?;
        let mut noise = TorchNoise::per_image(&(0..count as u64).collect::<Vec<_>>());
        let start = (noise.normal(&[count, config.in_channels, height, width])? * levels.init_noise_sigma())?;
        let denoiser = Denoiser::new(network, &conditioning, scheduler.parameterization());
        let run = Run::new(&levels, &denoiser, &mut noise);
        let end = sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
        Picture::grid(&Picture::from_tensor(&end)?, columns, 2)
    }
}
