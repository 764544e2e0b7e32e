//! `tweedie train mnist` and `tweedie train pixel`.

use super::progress::TrainProgress;
use crate::cli::data::DataArguments;
use crate::cli::interrupt::Interrupt;
use crate::cli::{memory, print};
use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Instant;
use tweedie::training::data::{ImageSet, Split, has_idx, read_idx};
use tweedie_pipelines::{BetaChoice, DecayChoice, MixedPrecisionChoice, PredictionChoice, StoredChoice, TrainRequest};

#[derive(Debug, Args)]
pub struct PixelArguments {
    #[command(flatten)]
    data: DataArguments,

    /// The run's folder, which must not be there yet, unless the run goes on
    #[arg(long, value_name = "RUN_DIR")]
    output: PathBuf,

    /// Go on from the newest checkpoint, with the settings of the run; start anew if there is none
    #[arg(long)]
    resume: bool,

    /// A unet/config.json in diffusers' form, in the place of --channels and --blocks
    #[arg(long, value_name = "FILE", conflicts_with_all = ["channels", "blocks"])]
    unet_config: Option<PathBuf>,

    #[command(flatten)]
    settings: GivenSettings,

    /// Do not tell the network classes
    #[arg(long)]
    unconditional: bool,

    /// Learn the variance of the reverse step (hybrid loss)
    #[arg(long)]
    learned_variance: bool,

    /// Draw timesteps by the size of their losses
    #[arg(long)]
    importance_sampling: bool,

    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,

    /// Show nothing but warnings and errors
    #[arg(long)]
    quiet: bool,
}

/// The settings that are given; their names are those of `config.json`.
#[derive(Debug, Args, Serialize)]
struct GivenSettings {
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Steps of the run [default: 6000]
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<u64>,

    /// Passes over the data, in the place of --steps
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,

    /// Images of a batch [default: 64]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,

    /// Batches whose gradients make one step [default: 1]
    #[arg(long, value_name = "N")]
    accumulate: Option<usize>,

    /// Steps between checkpoints [default: 500]
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<u64>,

    /// Steps between grids of samples [default: 1000]
    #[arg(long, value_name = "N")]
    sample_every: Option<u64>,

    /// Learning rate after the warm-up [default: 0.001]
    #[arg(long, value_name = "F")]
    learning_rate: Option<f64>,

    /// Steps over which the learning rate rises [default: 100]
    #[arg(long, value_name = "N")]
    warmup_steps: Option<u64>,

    /// What the learning rate does then: constant or cosine [default: cosine]
    #[arg(long, value_name = "NAME")]
    lr_schedule: Option<DecayChoice>,

    /// Weight decay of AdamW [default: 0.01]
    #[arg(long, value_name = "F")]
    weight_decay: Option<f64>,

    /// Largest norm of the gradient; 0 does not cut it [default: 1]
    #[arg(long, value_name = "F")]
    grad_clip: Option<f64>,

    /// Decay of the moving average of weights [default: 0.999]
    #[arg(long, value_name = "F")]
    ema_decay: Option<f64>,

    /// What the network predicts: epsilon, v_prediction, sample or flow [default: v_prediction]
    #[arg(long, value_name = "NAME")]
    prediction_type: Option<PredictionChoice>,

    /// How betas grow: linear, squaredcos_cap_v2 or sigmoid [default: squaredcos_cap_v2]
    #[arg(long, value_name = "NAME")]
    beta_schedule: Option<BetaChoice>,

    /// Training timesteps [default: 1000]
    #[arg(long, value_name = "N")]
    timesteps: Option<usize>,

    /// Gamma of the min-SNR weights; 0 for even weights [default: 0]
    #[arg(long, value_name = "F")]
    min_snr_gamma: Option<f64>,

    /// Share of images whose class is dropped, for classifier-free guidance [default: 0.1]
    #[arg(long, value_name = "F")]
    class_dropout: Option<f64>,

    /// Channels at each resolution [default: 16,32,96]
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    channels: Option<Vec<usize>>,

    /// Residual blocks at each resolution [default: 1]
    #[arg(long, value_name = "N")]
    blocks: Option<usize>,

    /// Which products are of rounded numbers: no, or bf16, which is faster where the CPU multiplies bf16 (AVX-512 BF16,
    /// AMX); weights and sums stay f32 [default: no]
    #[arg(long, value_name = "NAME")]
    mixed_precision: Option<MixedPrecisionChoice>,

    /// Number format of the finished model: f32 or f16 [default: f32]
    #[arg(long, value_name = "NAME")]
    dtype: Option<StoredChoice>,
}

/// The training part of a set in IDX files; if it is not there, the error says how to get it.
pub fn mnist(data: &DataArguments) -> anyhow::Result<ImageSet> {
    if has_idx(&data.data) { any(data) } else { Ok(read_idx(&data.data, Split::Train)?) }
}

/// The training part of a set of any kind.
pub fn any(data: &DataArguments) -> anyhow::Result<ImageSet> {
    data.read(Split::Train)
}

impl PixelArguments {
    pub fn run(&self, load: fn(&DataArguments) -> anyhow::Result<ImageSet>) -> anyhow::Result<()> {
        let start = Instant::now();
        let given = self.given()?;
        self.data.fetch(self.quiet)?;
        let data = load(&self.data)?;
        let interrupt = Interrupt::listen()?;
        let mut progress = TrainProgress::new(self.quiet);
        let request = TrainRequest { data, output: self.output.clone(), resume: self.resume, given };
        let outcome = request.run(&mut |event| {
            progress.event(&event);
            interrupt.flow()
        });
        progress.finish();
        let outcome = outcome?;
        let Some(model) = &outcome.model else {
            let folder = self.output.display();
            bail!("stopped after step {}; a checkpoint is in {folder}, go on with --resume", outcome.steps);
        };
        if self.json {
            return print::result(
                &json!({
                    "run": self.output,
                    "model": model,
                    "steps": outcome.steps,
                    "loss": outcome.loss,
                    "images_per_second": outcome.images_per_second,
                    "seconds": start.elapsed().as_secs_f64(),
                    "peak_rss_mb": memory::peak_mb(),
                })
                .to_string(),
            );
        }
        print::result(&model.display().to_string())
    }

    /// What was given on the command line, by the settings' names.
    fn given(&self) -> anyhow::Result<Map<String, Value>> {
        let Value::Object(mut given) = serde_json::to_value(&self.settings).context("an option cannot be used")? else {
            return Ok(Map::new());
        };
        given.retain(|_, value| !value.is_null());
        for (name, flag) in [
            ("unconditional", self.unconditional),
            ("learned_variance", self.learned_variance),
            ("importance_sampling", self.importance_sampling),
        ] {
            if flag {
                given.insert(name.into(), true.into());
            }
        }
        if let Some(path) = &self.unet_config {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let config: Value = serde_json::from_str(&text)
                .map_err(|e| tweedie::Error::malformed("unet config", path, format!("it is no JSON ({e})")))?;
            given.insert("unet_config".into(), config);
        }
        Ok(given)
    }
}
