//! Networks of several sizes, trained for the same number of steps: what a larger one costs and what it brings.
//!
//! `cargo run --release --example network_sizes -- DATA_DIR OUTPUT_DIR [STEPS]`
//!
//! Writes `network_sizes.png`, the loss of the last tenth of the steps over the seconds that they all took.

use serde_json::json;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tweedie::DType;
use tweedie::config::ConfigFields;
use tweedie::denoising::PredictionType;
use tweedie::images::{Plot, Series};
use tweedie::kernels::MatmulPrecision;
use tweedie::models::UNet2DConfig;
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::data::{Batches, FolderOptions, ImageSet, Loader, Split, read_set};
use tweedie::training::tasks::{PixelDiffusion, PixelDiffusionConfig};
use tweedie::training::{
    AdamWConfig, Decay, EmaOptions, ForwardProcess, LearningRate, LossWeighting, Objective, OptimizerOptions, Trainer,
    TrainerOptions,
};

/// Channels at each resolution.
const SIZES: [&[usize]; 4] = [&[8, 16], &[16, 32], &[16, 32, 64], &[32, 64, 96]];
const BATCH: usize = 32;

fn network(set: &ImageSet, channels: &[usize]) -> tweedie::Result<UNet2DConfig> {
    let blocks = |kind: &'static str| vec![kind; channels.len()];
    let config = json!({
        "sample_size": set.height(), "in_channels": set.channels(), "out_channels": set.channels(),
        "block_out_channels": channels, "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": blocks("DownBlock2D"), "up_block_types": blocks("UpBlock2D"), "add_attention": false,
    });
    UNet2DConfig::from_json(&config.to_string(), Path::new("this program"))
}

/// The number of parameters, seconds and mean loss of the last steps.
fn train(set: &Arc<ImageSet>, channels: &[usize], steps: u64) -> tweedie::Result<(usize, f64, f64)> {
    let scheduler = serde_json::Map::from_iter([("beta_schedule".to_owned(), "squaredcos_cap_v2".into())]);
    let schedule = NoiseSchedule::from_config(&ConfigFields::from_fields("scheduler", scheduler.clone()))?;
    let process = ForwardProcess::Diffusion(schedule);
    let config = PixelDiffusionConfig {
        network: network(set, channels)?,
        size: (set.height(), set.width()),
        objective: Objective::new(process, PredictionType::VPrediction, LossWeighting::Uniform)?,
        importance_sampling: false,
        class_dropout: None,
        class_names: Vec::new(),
        products: MatmulPrecision::Full,
        scheduler,
        dtype: DType::F32,
    };
    let optimizer = OptimizerOptions {
        learning_rate: LearningRate { peak: 1e-3, warmup_steps: steps / 20, total_steps: steps, decay: Decay::Cosine },
        adamw: AdamWConfig::default(),
        max_gradient_norm: Some(1.0),
        ema: Some(EmaOptions { decay: 0.99, warm_up: true }),
    };
    let (task, parameters) = PixelDiffusion::new(config, 0, optimizer)?;
    let mut trainer = Trainer::new(task, vec![parameters], TrainerOptions { seed: 0, accumulate: 1 })?;
    let mut loader = Loader::start(Batches::new(set.clone(), BATCH, 0)?, 0)?;
    let last = (steps / 10).max(1);
    let (start, mut sum) = (Instant::now(), 0.0);
    for step in 0..steps {
        let loss = trainer.step(|| loader.next_batch())?.loss();
        if step >= steps - last {
            sum += loss;
        }
    }
    Ok((trainer.parameters(), start.elapsed().as_secs_f64(), sum / last as f64))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut folder = |what| arguments.next().ok_or(format!("give the folder of {what}"));
    let (data, output) = (folder("the data")?, folder("the plot")?);
    let steps = arguments.next().map_or(Ok(300), |steps| steps.parse())?.max(1);
    let set = Arc::new(read_set(Path::new(&data), Split::Train, FolderOptions::default())?);
    let mut series = Vec::new();
    println!("channels           parameters   seconds   loss");
    for channels in SIZES {
        let (parameters, seconds, loss) = train(&set, channels, steps)?;
        println!("{:18} {parameters:10} {seconds:9.1}   {loss:.4}", format!("{channels:?}"));
        series.push(Series::marked(format!("{}k parameters", parameters / 1000), vec![(seconds, loss)], false));
    }
    let plot = Plot {
        title: format!("loss of v after {steps} steps of {BATCH} pictures"),
        x_label: "seconds".into(),
        y_label: "loss".into(),
        logarithmic: (true, true),
        series,
    };
    plot.draw()?.save(&Path::new(&output).join("network_sizes.png"), &[])?;
    Ok(())
}
