//! `tweedie eval`.

mod classify;
mod grid;
mod prompts;
mod table;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Judge by a classifier whether pictures are of the classes that were asked for.
    Classify(classify::ClassifyArguments),
    /// Score a text-to-image model: make pictures of prompts, and judge whether they show what was asked for.
    Prompts(Box<prompts::PromptsArguments>),
}

impl EvalCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Classify(arguments) => arguments.run(),
            Self::Prompts(arguments) => arguments.run(),
        }
    }
}
