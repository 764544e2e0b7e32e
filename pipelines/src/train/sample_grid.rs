//! Grids of samples from a network in training.

use super::{PredictionChoice, TrainSettings};
use std::ops::ControlFlow;
use tweedie::conditioning::Conditioning;
use tweedie::denoising::Denoiser;
use tweedie::images::Picture;
use tweedie::layers::Weights;
use tweedie::models::{UNet2DConfig, UNet2DModel};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Run, by_name, sample};
use tweedie::training::data::ImageSet;
use tweedie::training::{FlatLayout, FlatWeights};
use tweedie::{DType, Device, Result};

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
    layout: &FlatLayout,
    values: &[f32],
    network: &UNet2DConfig,
    settings: &TrainSettings,
    set: &ImageSet,
) -> Result<Picture> {
    let weights = FlatWeights::new(layout, values, &Device::Cpu)?;
    let unet = UNet2DModel::new(&Weights::new(&weights), network.clone(), DType::F32)?;
    let columns = if network.num_classes() > 0 { network.num_classes().min(COLUMNS) } else { COLUMNS };
    let count = ROWS * columns;
    let conditioning = if network.num_classes() > 0 {
        let classes: Vec<u32> = (0..count).map(|i| (i % columns) as u32).collect();
        Conditioning::classes(&classes, &Device::Cpu)?
    } else {
        Conditioning::default()
    };
    let solver = if settings.prediction_type == PredictionChoice::Flow { "flow-euler" } else { SOLVER };
    let scheduler = by_name(solver)?.build(&settings.scheduler_fields())?;
    let levels = scheduler.levels(STEPS.min(settings.timesteps))?;
    let mut noise = TorchNoise::per_image(&(0..count as u64).collect::<Vec<_>>());
    let start = (noise.normal(&[count, set.channels(), set.height(), set.width()])? * levels.init_noise_sigma())?;
    let denoiser = Denoiser::new(&unet, &conditioning, scheduler.parameterization());
    let run = Run::new(&levels, &denoiser, &mut noise);
    let end = sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
    Picture::grid(&Picture::from_tensor(&end)?, columns, 2)
}
