//! `tweedie train vae`.

use super::pixel::read_config;
use super::run::{Account, Next, RunArguments};
use crate::cli::given::Given;
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use tweedie::training::data::Split;
use tweedie::training::tasks::Fidelity;
use tweedie_pipelines::{AutoencoderTrainingSettings, CommonSettings, SharedSettings, TrainingData};

#[derive(Debug, Args)]
pub struct AutoencoderArguments {
    #[command(flatten)]
    run: RunArguments,

    /// A vae/config.json in diffusers' form, in the place of --channels, --blocks and --latent-channels
    #[arg(long, value_name = "FILE", conflicts_with_all = ["channels", "blocks", "latent_channels", "from"])]
    vae_config: Option<PathBuf>,

    #[command(flatten)]
    common: Given<SharedSettings<CommonSettings, AutoencoderTrainingSettings>>,

    #[command(flatten)]
    settings: Given<AutoencoderTrainingSettings>,
}

impl AutoencoderArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut given = self.common.fields();
        given.extend(self.settings.fields());
        if let Some(path) = &self.vae_config {
            given.insert("vae_config".into(), read_config("vae config", path)?);
        }
        self.run.run::<AutoencoderTrainingSettings>(given, |data| {
            Ok(TrainingData { train: Arc::new(data.read(Split::Train)?), test: data.read_test()? })
        })
    }
}

impl Next for AutoencoderTrainingSettings {
    fn next(&self, run: &str, data: &str) -> Vec<String> {
        vec![format!("tweedie train ldm --data {data} --vae {run} --output RUN_DIR")]
    }
}

/// How well pictures come back.
impl Account for Fidelity {
    fn fields(&self) -> Map<String, Value> {
        let fields = json!({
            "judged": self.pictures, "held_out": self.held_out, "psnr": self.psnr, "ssim": self.ssim,
        });
        fields.as_object().cloned().unwrap_or_default()
    }

    fn lines(&self) -> Vec<String> {
        let of = if self.held_out { "held-out pictures" } else { "of the pictures that it was trained on" };
        let ssim = self.ssim.map_or(String::new(), |ssim| format!(", SSIM {ssim:.4}"));
        vec![format!("PSNR {:.2} dB{ssim} ({} {of})", self.psnr, self.pictures)]
    }
}
