//! `tweedie bench`.

use super::{memory, print};
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::path::PathBuf;
use tweedie_pipelines::{Bench, BenchModel, DTypeChoice, DeviceChoice, Model};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    /// Stable Diffusion 1.5
    Sd15,
}

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// An architecture with seeded random weights, which needs no files [default: the embedded model]
    #[arg(long, value_enum, conflicts_with = "model")]
    preset: Option<Preset>,

    /// A folder in diffusers layout; those of its components that are there are timed
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Side of the pictures in pixels
    #[arg(long, value_name = "N", default_value_t = 512)]
    size: usize,

    /// Batch of the UNet; 2 is one guided image
    #[arg(long, value_name = "N", default_value_t = 2)]
    batch: usize,

    /// Timed runs of each part, after one that is not counted
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Number format of the weights: auto, f32, f16 or bf16
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl BenchArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let model = match (self.preset, &self.model) {
            (Some(Preset::Sd15), _) => BenchModel::Sd15,
            (None, Some(path)) => BenchModel::Model(Model::at(path.clone(), None)?),
            (None, None) => BenchModel::Model(Model::Embedded),
        };
        let (size, batch, runs) = (self.size, self.batch, self.runs);
        let mut results = Bench { model, size, batch, runs, device: self.device, dtype: self.dtype }.run()?;
        results.insert("peak_rss_mb".into(), memory::peak_mb().map_or(Value::Null, Value::from));
        if self.json {
            return print::result(&Value::Object(results).to_string());
        }
        let lines: Vec<String> = results.iter().map(|(name, value)| format!("{name:16} {value}")).collect();
        print::result(&lines.join("\n"))
    }
}
