//! Grids of samples from a network in training.

use crate::conditioning::Conditioning;
use crate::config::ConfigFields;
use crate::denoising::Denoiser;
use crate::images::Picture;
use crate::models::UNet2DModel;
use crate::noise::{NoiseSource, TorchNoise};
use crate::schedulers::{Run, by_name, sample};
use crate::{Device, Result};
use std::ops::ControlFlow;

/// The solver of grids, and what the finished model takes by default.
pub(super) const SOLVER: &str = "dpm++2m";
/// Its steps.
pub(super) const STEPS: usize = 20;
/// Pictures of each class, one row for each; or in all, if there are no classes.
const ROWS: usize = 4;
/// Columns, and so classes, at most.
const COLUMNS: usize = 10;

/// Samples of every class in a column of its own, always from the same noise: image `i` starts from the seed `i`.
pub(super) fn draw(
    network: &UNet2DModel,
    (height, width): (usize, usize),
    flows: bool,
    scheduler: &ConfigFields,
) -> Result<Picture> {
    let config = network.config();
    let columns = if config.num_classes() > 0 { config.num_classes().min(COLUMNS) } else { COLUMNS };
    let count = ROWS * columns;
    let conditioning = if config.num_classes() > 0 {
        let classes: Vec<u32> = (0..count).map(|i| (i % columns) as u32).collect();
        Conditioning::classes(&classes, &Device::Cpu)?
    } else {
        Conditioning::default()
    };
    let timesteps = scheduler.usize("num_train_timesteps", STEPS)?;
    let scheduler = by_name(if flows { "flow-euler" } else { SOLVER })?.build(scheduler)?;
    let levels = scheduler.levels(STEPS.min(timesteps))?;
    let mut noise = TorchNoise::per_image(&(0..count as u64).collect::<Vec<_>>());
    let start = (noise.normal(&[count, config.in_channels, height, width])? * levels.init_noise_sigma())?;
    let denoiser = Denoiser::new(network, &conditioning, scheduler.parameterization());
    let run = Run::new(&levels, &denoiser, &mut noise);
    let end = sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
    Picture::grid(&Picture::from_tensor(&end)?, columns, 2)
}
