//! `tweedie bench`.

use super::failure::wrong_usage;
use super::fetching::Fetching;
use super::interrupt::Interrupt;
use super::output::Output;
use super::print;
use super::progress::waiting;
use super::source::{OfflineOption, Source};
use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value};
use std::path::PathBuf;
use tweedie::images::{Bar, Bars, Picture, encode_png};
use tweedie_pipelines::{
    Bench, BenchModel, DTypeChoice, DeviceChoice, Error, Fast, MixedPrecisionChoice, Model, Purpose, TrainingBench,
};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    /// Stable Diffusion 1.5
    Sd15,
    /// A step of `tweedie train mnist`: forward, backward, AdamW; on the CPU, with products in f32 or, by --dtype, in bf16
    MnistTraining,
}

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// An architecture with seeded random weights, which needs no files [default: the embedded model]
    #[arg(long, value_enum, conflicts_with = "model")]
    preset: Option<Preset>,

    /// A folder in diffusers layout, of which those components are timed that are there; one checkpoint file; or
    /// owner/name[/FILE][@revision] on the hub
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,

    /// Side of the pictures in pixels, but for a training step, which has a size of its own [default: that of the
    /// pictures that the model is made for]
    #[arg(long, value_name = "N")]
    size: Option<usize>,

    /// Batch of the UNet, where 2 is one guided image; or images of a training step [default: 2, and 64]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,

    /// Timed runs of each part, after one that is not counted
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Number format of the weights: auto, f32, f16, bf16, q8 or q4, as for txt2img
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,

    /// Also time a call of the UNet that takes over from the one before, and say how many times as fast a guided run of 30 steps
    /// with this preset of txt2img is
    #[arg(long, value_name = "PRESET")]
    fast: Option<Fast>,

    /// Also time a call of the UNet with such a share of its tokens merged
    #[arg(long, value_name = "F")]
    token_merging: Option<f64>,

    /// Also draw where the time of the UNet goes (without one, of the VAE decoder or of a training step); on the CPU only
    #[arg(long, value_name = "FILE.png")]
    breakdown: Option<PathBuf>,

    /// Replace the file of --breakdown if it is there
    #[arg(long, requires = "breakdown")]
    force: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    offline: OfflineOption,
}

impl BenchArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let trains = matches!(self.preset, Some(Preset::MnistTraining));
        if self.breakdown.is_some() && !trains && !self.device.open()?.is_cpu() {
            wrong_usage!(
                "--breakdown shows the kernels of the CPU, and the device is {}; add --device cpu, or leave it away",
                self.device
            );
        }
        let output = self.breakdown.as_deref().map(|path| Output::one(path, self.force)).transpose()?;
        let mut results = match self.preset {
            Some(Preset::MnistTraining) => {
                let bench = self.training()?;
                waiting("timing a step of training", self.json, || bench.run())?
            }
            Some(Preset::Sd15) => self.time(BenchModel::Sd15)?,
            None => self.time(self.model()?)?,
        };
        results.insert("peak_rss_mb".into(), tweedie_pipelines::memory::peak_mb().map_or(Value::Null, Value::from));
        if let Some(output) = output {
            output.write(0, &encode_png(&breakdown(&results)?, &[])?)?;
        }
        if self.json {
            return print::result(&Value::Object(results).to_string());
        }
        print::result(&table(&results))
    }

    fn training(&self) -> anyhow::Result<TrainingBench> {
        if let Some(size) = self.size {
            wrong_usage!("--size {size}: a training step is on digits of 28x28 pixels; leave it away");
        }
        if self.fast.is_some() {
            wrong_usage!("--fast skips steps of sampling, and this is one of training; leave it away");
        }
        if self.token_merging.is_some() {
            wrong_usage!("--token-merging is for sampling, and this is a step of training; leave it away");
        }
        if !matches!(self.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
            wrong_usage!("--device {}: training runs on the CPU; leave it away", self.device);
        }
        let mixed_precision = match self.dtype {
            DTypeChoice::Auto | DTypeChoice::F32 => MixedPrecisionChoice::No,
            DTypeChoice::BF16 => MixedPrecisionChoice::Bf16,
            DTypeChoice::F16 | DTypeChoice::Q8 | DTypeChoice::Q4 => {
                wrong_usage!("--dtype {}: training has no such products; take f32 or bf16", self.dtype)
            }
        };
        Ok(TrainingBench { batch: self.batch.unwrap_or(64), mixed_precision, runs: self.runs })
    }

    fn time(&self, model: BenchModel) -> anyhow::Result<Map<String, Value>> {
        let (size, batch, runs) = (self.size, self.batch.unwrap_or(2), self.runs);
        let (device, dtype, fast, token_merging) = (self.device, self.dtype, self.fast, self.token_merging);
        let bench = Bench { model, size, batch, runs, device, dtype, fast, token_merging };
        Ok(waiting("timing the parts of the model", self.json, || bench.run())?)
    }

    fn model(&self) -> anyhow::Result<BenchModel> {
        Ok(match &self.model {
            Some(path) => {
                let (offline, interrupt) = (self.offline.offline(), Interrupt::listen()?);
                let fetching = Fetching { interrupt: &interrupt, quiet: false };
                let source = Source { dtype: self.dtype, device: self.device, offline, fetching: &fetching };
                let model = source.open(path, None, Purpose::Model)?;
                // A download is stopped in order; there is nothing to put in order in what follows.
                if interrupt.end().is_break() {
                    return Err(Error::Cancelled.into());
                }
                BenchModel::Model(model)
            }
            None => BenchModel::Model(Model::Embedded),
        })
    }
}

/// A line for each result; kernels in columns of their own.
fn table(results: &Map<String, Value>) -> String {
    let mut lines = Vec::new();
    for (name, value) in results {
        let Value::Object(kernels) = value else {
            let rounded =
                |number: &Value| number.as_f64().map_or_else(|| number.to_string(), |number| format!("{number:.4}"));
            let shown = match value {
                Value::Array(values) => values.iter().map(rounded).collect::<Vec<_>>().join(" "),
                value => value.to_string(),
            };
            lines.push(format!("{name:26} {shown}"));
            continue;
        };
        let whole: f64 = kernels.values().filter_map(|row| row["s"].as_f64()).sum();
        lines.push(format!(
            "\n{name:26} {:>6} {:>9} {:>6} {:>8} {:>8}",
            "calls", "seconds", "share", "GFLOP/s", "of peak"
        ));
        for (kind, row) in kernels {
            let number = |field: &str, scale: f64, places: usize, unit: &str| {
                row[field].as_f64().map_or(String::new(), |x| format!("{:.places$}{unit}", x * scale))
            };
            lines.push(format!(
                "  {kind:24} {:>6} {:>9} {:>6} {:>8} {:>8}",
                number("calls", 1.0, 0, ""),
                number("s", 1.0, 4, ""),
                number("s", 100.0 / whole, 1, "%"),
                number("gflops", 1.0, 1, ""),
                number("of_peak", 100.0, 0, "%"),
            ));
        }
        lines.push(String::new());
    }
    lines.join("\n")
}

/// A bar for each kind of kernel.
fn breakdown(results: &Map<String, Value>) -> anyhow::Result<Picture> {
    let part = ["unet", "vae_decode", "train_step"].into_iter().find_map(|part| {
        Some((part, results.get(&format!("{part}_kernels"))?.as_object()?, results.get(&format!("{part}_s"))?))
    });
    let (part, kernels, seconds) = part.context("the model has neither a UNet nor a VAE; there is nothing to draw")?;
    let whole: f64 = kernels.values().filter_map(|row| row["s"].as_f64()).sum();
    let bars = kernels.iter().filter_map(|(kind, row)| {
        let value = row["s"].as_f64()?;
        let speed = row["gflops"].as_f64().map_or(String::new(), |speed| format!(", {speed:.0} GFLOP/s"));
        Some(Bar { name: kind.clone(), value, note: format!("{:.1} %{speed}", 100.0 * value / whole) })
    });
    let title = format!("{part}: {seconds} s, {} threads", results.get("threads").unwrap_or(&Value::Null));
    Ok(Bars { title, label: "share of the time".into(), bars: bars.collect() }.draw()?)
}
