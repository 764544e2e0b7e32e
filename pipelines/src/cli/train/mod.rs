//! `tweedie train`.

mod autoencoder;
mod classifier;
mod frozen;
mod judge;
mod latent;
mod pixel;
mod progress;
mod run;

use super::examples;
use clap::Subcommand;
use frozen::FrozenModelArguments;
use tweedie_pipelines::{EmbeddingTrainingSettings, LoraTrainingSettings};

#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// A diffusion model of handwritten digits, in pixel space.
    #[command(after_help = examples(&[r#"tweedie train mnist --data mnist --download --output runs/mnist"#, r#"tweedie train mnist --data mnist --output runs/mnist --resume"#]))]
    Mnist(Box<pixel::PixelArguments>),
    /// A diffusion model of any small pictures, in pixel space.
    #[command(after_help = examples(&[r#"tweedie train pixel --data photos --resize 32 --flip --output runs/photos"#]))]
    Pixel(Box<pixel::PixelArguments>),
    /// An autoencoder of pictures, between which and a text a latent diffusion model works.
    #[command(after_help = examples(&[r#"tweedie train vae --data captioned --resize 128 --output runs/vae"#]))]
    Vae(Box<autoencoder::AutoencoderArguments>),
    /// A latent diffusion model of captioned pictures: texts become pictures of an autoencoder's latents.
    #[command(after_help = examples(&[r#"tweedie train ldm --data captioned --resize 128 --vae runs/vae/model --output runs/ldm"#]))]
    Ldm(Box<latent::LatentArguments>),
    /// A LoRA: a small file that changes what a model draws, from a few captioned pictures.
    #[command(after_help = examples(&[r#"tweedie train lora --model sd15 --data ten-pictures --caption "a sks fox" --resize 512 --output runs/thing"#]))]
    Lora(Box<FrozenModelArguments<LoraTrainingSettings>>),
    /// A textual inversion: embeddings of a new word, by which a model that stays as it is draws what a few pictures show.
    #[command(after_help = examples(&[r#"tweedie train embedding --model sd15 --data ten-pictures --token sks --output runs/word"#]))]
    Embedding(Box<FrozenModelArguments<EmbeddingTrainingSettings>>),
    /// A classifier of small pictures, which judges samples or guides them. It is in the run's folder model, and a run
    /// that was stopped or killed goes on with --resume, as those of the other kinds.
    #[command(after_help = examples(&[r#"tweedie train classifier --data mnist --output runs/classifier"#, r#"tweedie eval classify --classifier runs/classifier --images digits"#]))]
    Classifier(Box<classifier::ClassifierArguments>),
    /// A judge of pictures of prompts: it says which concepts a picture shows and where, before what, in which style. It
    /// learns that from composed pictures of which a metadata.jsonl says under shows what they show.
    #[command(after_help = examples(&[r#"tweedie train judge --data composed --output runs/judge"#]))]
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
