//! DDPM against DDIM at few steps: what they draw, how long it takes, and how often a classifier sees the class asked.
//!
//! `cargo run --release --example ddpm_vs_ddim -- MODEL_DIR CLASSIFIER_DIR OUTPUT_DIR [NUM_IMAGES]`
//!
//! MODEL_DIR and CLASSIFIER_DIR are the `model` folders of `tweedie train mnist` and `tweedie train classifier`. Writes
//! a grid for each sampler and number of steps, and `ddpm_vs_ddim.png`, the share that is judged right over the steps.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::Denoiser;
use tweedie::images::{Picture, Plot, Series};
use tweedie::layers::Weights;
use tweedie::models::{UNet2DConfig, UNet2DModel};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Run, by_name, sample};
use tweedie::{DType, Device, Tensor};
use tweedie_pipelines::judge;

const STEPS: [usize; 4] = [10, 20, 50, 100];
const SAMPLERS: [&str; 2] = ["ddpm", "ddim"];

fn load(files: &ModelFiles) -> tweedie::Result<UNet2DModel> {
    let config = UNet2DConfig::from_json(&files.read_text("unet/config.json")?, &files.path("unet/config.json"))?;
    let checkpoint = Checkpoint::open(files, "unet", Precision::Full, DType::F32, &Device::Cpu)?;
    let model = UNet2DModel::new(&Weights::new(&checkpoint), config, DType::F32)?;
    checkpoint.finish(&[])?;
    Ok(model)
}

/// Pictures of classes 0, 1, 2, ... in turn, image `i` from seed `i`.
fn draw(
    model: &UNet2DModel,
    fields: &ConfigFields,
    sampler: &str,
    steps: usize,
    asked: &[u32],
) -> tweedie::Result<Tensor> {
    let scheduler = by_name(sampler)?.build(fields)?;
    let levels = scheduler.levels(steps)?;
    let seeds: Vec<u64> = (0..asked.len() as u64).collect();
    let mut noise = TorchNoise::per_image(&seeds);
    let (height, width) = model.config().sample_size.unwrap_or((28, 28));
    let start = noise.normal(&[asked.len(), model.config().in_channels, height, width])?;
    let start = (start * levels.init_noise_sigma())?;
    let conditioning = Conditioning::classes(asked, &Device::Cpu)?;
    let denoiser = Denoiser::new(model, &conditioning, scheduler.parameterization());
    let run = Run::new(&levels, &denoiser, &mut noise);
    sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut folder = |what| arguments.next().ok_or(format!("give the folder of {what}"));
    let (model, classifier, output) = (folder("the model")?, folder("the classifier")?, folder("the pictures")?);
    let count: usize = arguments.next().map_or(Ok(50), |count| count.parse())?;
    let files = ModelFiles::folder(Path::new(&model))?;
    let network = load(&files)?;
    let name = "scheduler/scheduler_config.json";
    let fields = ConfigFields::from_json("scheduler", &files.read_text(name)?, &files.path(name))?;
    let asked: Vec<u32> = (0..count as u32).map(|i| i % 10).collect();
    let mut series = Vec::new();
    println!("sampler  steps   seconds   right");
    for sampler in SAMPLERS {
        let mut points = Vec::new();
        for steps in STEPS {
            let start = Instant::now();
            let x = draw(&network, &fields, sampler, steps, &asked)?.clamp(-1f32, 1f32)?;
            let seconds = start.elapsed().as_secs_f64();
            let right = judge(Path::new(&classifier), &x, &asked)?.accuracy();
            println!("{sampler:8} {steps:5} {seconds:9.2}   {:.1} %", 100.0 * right);
            points.push((steps as f64, 100.0 * right));
            let grid = Picture::grid(&Picture::from_tensor(&x)?, 10, 2)?;
            grid.save(&Path::new(&output).join(format!("{sampler}-{steps}.png")), &[])?;
        }
        series.push(Series::marked(sampler, points, true));
    }
    let plot = Plot {
        title: format!("{count} samples judged by a classifier"),
        x_label: "steps".into(),
        y_label: "% of the class asked".into(),
        logarithmic: (true, false),
        series,
    };
    plot.draw()?.save(&Path::new(&output).join("ddpm_vs_ddim.png"), &[])?;
    Ok(())
}
