//! `tweedie eval`.

mod classify;
mod clip;
mod fid;
mod grid;
mod inception_score;
mod kid;
mod likelihood;
mod prdc;
mod prompt_samples;
mod prompts;
mod samples;
mod table;

use super::examples;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// The Frechet inception distance of samples from a reference (Heusel et al. 2017), by the features that a network sees.
    #[command(after_help = examples(&[r#"tweedie eval fid --checkpoint runs/mnist --num-images 2000 --reference mnist --reference-split test"#]))]
    Fid(Box<fid::FidArguments>),
    /// The kernel inception distance (Binkowski et al. 2018), which is without bias.
    #[command(after_help = examples(&[r#"tweedie eval kid samples --reference mnist"#]))]
    Kid(Box<kid::KidArguments>),
    /// The inception score (Salimans et al. 2016), which needs no reference.
    #[command(after_help = examples(&[r#"tweedie eval is samples"#]))]
    Is(Box<inception_score::InceptionScoreArguments>),
    /// Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).
    #[command(after_help = examples(&[r#"tweedie eval prdc samples --reference mnist"#]))]
    Prdc(Box<prdc::PrdcArguments>),
    /// How well pictures show what texts say, as CLIP sees it (Hessel et al. 2021).
    #[command(after_help = examples(&[r#"tweedie eval clip pictures --clip clip-vit-base-patch32"#]))]
    Clip(Box<clip::ClipArguments>),
    /// Judge by a classifier whether pictures are of the classes that were asked for.
    #[command(after_help = examples(&[r#"tweedie eval classify --images digits --classifier runs/classifier"#]))]
    Classify(classify::ClassifyArguments),
    /// How many bits a model in pixel space needs for pictures: the variational bound, term by term (Ho et al. 2020).
    #[command(after_help = examples(&[r#"tweedie eval likelihood --checkpoint runs/mnist --data mnist --num-images 500 --plot terms.png"#]))]
    Likelihood(likelihood::LikelihoodArguments),
    /// Score a text-to-image model: make pictures of prompts, and judge whether they show what was asked for.
    #[command(after_help = examples(&[r#"tweedie eval prompts --prompts prompts.json --judge runs/judge --output scores"#]))]
    Prompts(Box<prompts::PromptsArguments>),
}

impl EvalCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Fid(arguments) => arguments.run(),
            Self::Kid(arguments) => arguments.run(),
            Self::Is(arguments) => arguments.run(),
            Self::Prdc(arguments) => arguments.run(),
            Self::Clip(arguments) => arguments.run(),
            Self::Likelihood(arguments) => arguments.run(),
            Self::Classify(arguments) => arguments.run(),
            Self::Prompts(arguments) => arguments.run(),
        }
    }
}
