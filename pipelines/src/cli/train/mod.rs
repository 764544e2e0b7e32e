//! `tweedie train`.

mod autoencoder;
mod classifier;
mod frozen;
mod judge;
mod latent;
mod pixel;
mod progress;
mod run;

use clap::Subcommand;
use frozen::FrozenModelArguments;
use tweedie_pipelines::{EmbeddingTrainingSettings, LoraTrainingSettings};

#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// A diffusion model of handwritten digits, in pixel space.
    Mnist(Box<pixel::PixelArguments>),
    /// A diffusion model of any small pictures, in pixel space.
    Pixel(Box<pixel::PixelArguments>),
    /// An autoencoder of pictures, between which and a text a latent diffusion model works.
    Vae(Box<autoencoder::AutoencoderArguments>),
    /// A latent diffusion model of captioned pictures: texts become pictures of an autoencoder's latents.
    Ldm(Box<latent::LatentArguments>),
    /// A LoRA: a small file that changes what a model draws, from a few captioned pictures.
    Lora(Box<FrozenModelArguments<LoraTrainingSettings>>),
    /// A textual inversion: embeddings of a new word, by which a model that stays as it is draws what a few pictures show.
    Embedding(Box<FrozenModelArguments<EmbeddingTrainingSettings>>),
    /// A classifier of small pictures, which judges samples or guides them. It is in the run's folder model, and a run
    /// that was stopped or killed goes on with --resume, as those of the other kinds.
    Classifier(Box<classifier::ClassifierArguments>),
    /// A judge of pictures of prompts: it says which concepts a picture shows and where, before what, in which style. It
    /// learns that from composed pictures of which a metadata.jsonl says under shows what they show.
    Judge(Box<judge::JudgeArguments>),
}

impl TrainCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Mnist(arguments) => arguments.run(pixel::mnist),
            Self::Pixel(arguments) => arguments.run(pixel::any),
            Self::Vae(arguments) => arguments.run(),
            Self::Ldm(arguments) => arguments.run(),
            Self::Lora(arguments) => arguments.run(),
            Self::Embedding(arguments) => arguments.run(),
            Self::Classifier(arguments) => arguments.run(),
            Self::Judge(arguments) => arguments.run(),
        }
    }
}
