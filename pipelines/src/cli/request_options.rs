//! The options that make a request.

use super::xl_options::XlOptions;
use clap::{Args, builder::PossibleValuesParser};
use serde_json::Map;
use tweedie::denoising::{GuidanceShape, Projection};
use tweedie_pipelines::{PromptSyntax, TextToImageRequest};

/// What is wanted: the options of all three commands that make pictures from a text.
#[derive(Debug, Args)]
pub struct RequestOptions {
    /// What to draw
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,

    /// What to stay away from
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    negative_prompt: Option<String>,

    /// How prompts are read: plain, or weighted as in A1111: (word:1.3), [word], BREAK, any length
    #[arg(long, value_name = "NAME", default_value = "plain", value_parser = PossibleValuesParser::new(["plain", "weighted"]))]
    prompt_syntax: String,

    /// Number of denoising steps [default: the model's, else 30]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,

    /// How strongly to follow the prompt; 1 turns guidance off [default: the model's, else 7.5]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    guidance_scale: Option<f64>,

    /// Pull the contrast that guidance adds back, 0 to 1 [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    guidance_rescale: Option<f64>,

    /// How the guidance scale develops from noise to data, its mean being --guidance-scale
    #[arg(long, value_name = "NAME", default_value = "constant", value_parser = PossibleValuesParser::new(["constant", "linear", "cosine"]))]
    guidance_schedule: String,

    /// Guide only between two noise levels sigma / alpha, as LOW,HIGH
    #[arg(long, value_name = "LOW,HIGH", value_parser = interval)]
    guidance_interval: Option<(f64, f64)>,

    /// Adaptive projected guidance: high scales without oversaturation
    #[arg(long)]
    apg: bool,

    /// Perturbed-attention guidance of this strength [default: 0]
    #[arg(long, value_name = "F", default_value_t = 0.0, hide_default_value = true, allow_negative_numbers = true)]
    pag_scale: f64,

    /// The sampler, such as ddim, euler-a or dpm++2m-karras; `tweedie schedulers` lists all [default: the model's]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,

    /// How timesteps are chosen [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(["leading", "trailing", "linspace"]))]
    timestep_spacing: Option<String>,

    /// What the network predicts, where the model's files say something wrong or nothing [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(["epsilon", "v_prediction", "sample"]))]
    prediction_type: Option<String>,

    /// The timesteps at which steps start, noisiest first, in place of --steps
    #[arg(long, value_name = "T,T,...", value_delimiter = ',', conflicts_with = "sigmas")]
    timesteps: Option<Vec<f64>>,

    /// The noise levels sigma / alpha at which steps start, noisiest first, and the end, in place of --steps
    #[arg(long, value_name = "S,S,...", value_delimiter = ',')]
    sigmas: Option<Vec<f64>>,

    /// Fresh noise in DDIM's steps, 0 to 1 [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    eta: Option<f64>,

    /// The first image's seed; image i uses seed + i
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Width in pixels [default: the model's]
    #[arg(long, value_name = "W")]
    width: Option<usize>,

    /// Height in pixels [default: the model's]
    #[arg(long, value_name = "H")]
    height: Option<usize>,

    /// How many pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub num_images: usize,

    /// How many pictures at a time; changes speed and memory, not the pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_size: usize,

    /// Skip so many of the text encoder's last layers for the prompt
    #[arg(long, value_name = "N", default_value_t = 0)]
    clip_skip: usize,

    #[command(flatten)]
    xl: XlOptions,
}

impl RequestOptions {
    /// The request that they make.
    pub fn request(&self) -> TextToImageRequest {
        let mut scheduler_fields = Map::new();
        if let Some(spacing) = &self.timestep_spacing {
            scheduler_fields.insert("timestep_spacing".into(), spacing.clone().into());
        }
        if let Some(prediction) = &self.prediction_type {
            scheduler_fields.insert("prediction_type".into(), prediction.clone().into());
        }
        for (name, list) in [("timesteps", &self.timesteps), ("sigmas", &self.sigmas)] {
            if let Some(list) = list {
                scheduler_fields.insert(name.into(), list.clone().into());
            }
        }
        if let Some(eta) = self.eta {
            scheduler_fields.insert("eta".into(), eta.into());
        }
        TextToImageRequest {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            prompt_syntax: if self.prompt_syntax == "weighted" { PromptSyntax::Weighted } else { PromptSyntax::Plain },
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            guidance_rescale: self.guidance_rescale,
            guidance_shape: match self.guidance_schedule.as_str() {
                "linear" => GuidanceShape::Linear,
                "cosine" => GuidanceShape::Cosine,
                _ => GuidanceShape::Constant,
            },
            guidance_interval: self.guidance_interval,
            projection: self.apg.then(Projection::default),
            pag_scale: self.pag_scale,
            scheduler: self.scheduler.clone(),
            scheduler_fields,
            seed: self.seed,
            width: self.width,
            height: self.height,
            num_images: self.num_images,
            batch_size: self.batch_size,
            clip_skip: self.clip_skip,
            xl: self.xl.request(),
            ..TextToImageRequest::default()
        }
    }
}

/// Two numbers with a comma between.
fn interval(text: &str) -> Result<(f64, f64), String> {
    let numbers =
        text.split_once(',').and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
    numbers.ok_or_else(|| "give two numbers with a comma between, such as 0.3,5".into())
}
