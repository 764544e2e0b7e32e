//! Text to image, and what all tasks share.

use crate::requests::control::ControlImage;
use crate::requests::fast::Fast;
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::lora::LoraRequest;
use crate::requests::options::{flag, json, option, options, serde_by_options};
use crate::requests::values::{OptionValue, read, values_by_serde, write};
use crate::requests::xl::XlRequest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tweedie::denoising::{GuidanceShape, Projection};

/// How prompts are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// As text; what is longer than the text encoder takes is cut. diffusers does so.
    #[default]
    Plain,
    /// With weights in brackets and in chunks of any number; see [`tweedie::text::parse_weights`].
    Weighted,
}

values_by_serde! {
    PromptSyntax: "plain or weighted";
}

const PROMPT: &str = "Prompt";
const SAMPLING: &str = "Sampling";
const GUIDANCE: &str = "Guidance";
const SIZE: &str = "Size and number";

options! {
    /// A request for pictures from a text. What is `None` is taken from the model.
    #[derive(Debug, Clone, PartialEq)]
    pub struct TextToImageRequest {
        given {
            /// Pictures for the pipeline's control models, one for each.
            controls: Vec<ControlImage>;
        }
        options {
            /// What to draw.
            prompt: String = String::new() =>
                option(OptionKind::Text, "TEXT").required().always_recorded().under(PROMPT);
            /// What to stay away from.
            ///
            /// `None` differs from an empty text where Stable Diffusion XL takes zeros for it.
            negative_prompt: Option<String> = None => option(OptionKind::Text, "TEXT").always_recorded().under(PROMPT);
            /// How prompts are read: plain, or weighted as in A1111: (word:1.3), \[word\], BREAK, any length.
            prompt_syntax: PromptSyntax = PromptSyntax::Plain =>
                option(OptionKind::Choice(&["plain", "weighted"]), "NAME").under(PROMPT).rarely();
            /// Number of denoising steps.
            steps: Option<usize> = None =>
                option(OptionKind::Count, "N").default("the model's, else 30").always_recorded().under(SAMPLING);
            /// How strongly to follow the prompt; 1 turns guidance off.
            guidance_scale: Option<f64> = None =>
                option(OptionKind::Number, "F").default("the model's, else 7.5").always_recorded().under(GUIDANCE);
            /// Pull the contrast that guidance adds back, 0 to 1.
            ///
            /// So far is guidance's standard deviation pulled back (Lin et al. 2024).
            guidance_rescale: Option<f64> = None =>
                option(OptionKind::Number, "F").default("0").always_recorded().under(GUIDANCE).rarely();
            /// How the guidance scale develops from noise to data, its mean being `guidance_scale`.
            guidance_schedule: GuidanceShape = GuidanceShape::Constant =>
                option(OptionKind::Choice(&["constant", "linear", "cosine"]), "NAME").under(GUIDANCE).rarely();
            /// Guide only between two noise levels sigma / alpha, as LOW,HIGH.
            guidance_interval: Option<(f64, f64)> = None =>
                option(OptionKind::Interval, "LOW,HIGH").under(GUIDANCE).rarely();
            /// Adaptive projected guidance: high scales without oversaturation.
            apg: Option<Projection> = None => flag(FlagValue::Defaults).under(GUIDANCE).rarely();
            /// Perturbed-attention guidance of this strength.
            pag_scale: f64 = 0.0 => option(OptionKind::Number, "F").under(GUIDANCE).rarely();
            /// The sampler, such as ddim, euler-a or dpm++2m-karras; `tweedie schedulers` lists all.
            scheduler: Option<String> = None =>
                option(OptionKind::Name, "NAME").default("the model's").always_recorded().under(SAMPLING);
            /// How timesteps are chosen.
            timestep_spacing: Option<String> = None =>
                option(OptionKind::Choice(&["leading", "trailing", "linspace"]), "NAME").default("the model's")
                    .under(SAMPLING).rarely();
            /// What the network predicts, where the model's files say something wrong or nothing.
            prediction_type: Option<String> = None =>
                option(OptionKind::Choice(&["epsilon", "v_prediction", "sample"]), "NAME").default("the model's")
                    .under(SAMPLING).rarely();
            /// The timesteps at which steps start, noisiest first, in place of `steps`.
            timesteps: Option<Vec<f64>> = None =>
                option(OptionKind::Numbers, "T,T,...").excluded_by("sigmas").under(SAMPLING).rarely();
            /// The noise levels sigma / alpha at which steps start, noisiest first, and the end, in place of `steps`.
            sigmas: Option<Vec<f64>> = None => option(OptionKind::Numbers, "S,S,...").under(SAMPLING).rarely();
            /// Fresh noise in the steps of DDIM and TCD, 0 to 1.
            eta: Option<f64> = None => option(OptionKind::Number, "F").default("0").under(SAMPLING).rarely();
            /// Skip work where the picture changes least: denoising is so many times as fast, and the picture another one that
            /// shows the same.
            fast: Option<Fast> = None =>
                option(OptionKind::Choice(Fast::NAMES), "PRESET").under(SAMPLING);
            /// Merge so great a share of a UNet's tokens with similar ones for self-attention, 0 to 0.75: large pictures are made
            /// in less time, and are other ones.
            token_merging: f64 = 0.0 => option(OptionKind::Number, "F").under(SAMPLING).rarely();
            /// Fields that override those of the model's scheduler file; the usual ones have options of their own.
            ///
            /// A picture's record has all of them.
            scheduler_config: Map<String, Value> = Map::new() => json().always_recorded();
            /// The first image's seed; image i uses seed + i. The word random or -1 draws one, which is told. It is the same by
            /// default, so that a command makes the same picture again.
            seed: u64 = 0 => option(OptionKind::Seed, "N").always_recorded().under(SAMPLING);
            /// Width in pixels.
            width: Option<usize> = None =>
                option(OptionKind::Count, "W").default("the model's").always_recorded().under(SIZE);
            /// Height in pixels.
            height: Option<usize> = None =>
                option(OptionKind::Count, "H").default("the model's").always_recorded().under(SIZE);
            /// How many pictures.
            num_images: usize = 1 => option(OptionKind::Count, "N").under(SIZE);
            /// How many pictures at a time; changes speed and memory, not the pictures.
            batch_size: usize = 1 => option(OptionKind::Count, "N").under(SIZE).rarely();
            /// Skip so many of the text encoder's last layers for the prompt.
            clip_skip: usize = 0 => option(OptionKind::Count, "N").always_recorded().under(PROMPT).rarely();
            /// LoRAs that act in this request alone.
            loras: Vec<LoraRequest> = Vec::new() => json();
        }
        groups {
            /// What concerns Stable Diffusion XL alone.
            xl: XlRequest;
        }
    }
}

impl Default for TextToImageRequest {
    fn default() -> Self {
        Self::of(Vec::new())
    }
}

serde_by_options!(TextToImageRequest);

impl TextToImageRequest {
    /// Fields that override those of the model's scheduler file: all that it says of them.
    pub(crate) fn scheduler_fields(&self) -> Map<String, Value> {
        let mut fields = self.scheduler_config.clone();
        let texts = [("timestep_spacing", &self.timestep_spacing), ("prediction_type", &self.prediction_type)];
        fields.extend(texts.into_iter().filter_map(|(name, text)| Some((name.into(), text.clone()?.into()))));
        let lists = [("timesteps", &self.timesteps), ("sigmas", &self.sigmas)];
        fields.extend(lists.into_iter().filter_map(|(name, list)| Some((name.into(), list.clone()?.into()))));
        fields.extend(self.eta.map(|eta| ("eta".into(), eta.into())));
        fields
    }
}
