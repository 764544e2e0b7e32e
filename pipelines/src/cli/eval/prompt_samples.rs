//! What `tweedie eval` judges of a text-to-image model: pictures of prompts, which are made on the way.

use crate::cli::ModelArguments;
use crate::cli::failure::wrong_usage;
use crate::cli::fetching::Fetching;
use clap::Args;
use serde_json::{Map, Value};
use std::path::PathBuf;
use tweedie_pipelines::{Options, PromptSamples, PromptSet, TaskKind, TextToImageRequest, Usage};

/// Which model, and prompts.
#[derive(Debug, Args)]
#[group(skip)]
pub struct PromptSampleArguments {
    #[command(flatten)]
    pub model: ModelArguments,

    /// Judge pictures of this prompt by --model, which are made on the way; several prompts are taken in turn
    #[arg(long, value_name = "TEXT", group = "from")]
    prompt: Vec<String>,

    /// The same of the prompts of a file: a prompt a line, or a JSON list of objects, each with its prompt
    #[arg(long, value_name = "FILE", group = "from")]
    prompts: Option<PathBuf>,
}

impl PromptSampleArguments {
    /// Whether pictures of prompts are to be made.
    fn are_given(&self) -> bool {
        self.prompts.is_some() || !self.prompt.is_empty()
    }

    /// That no model was given in vain.
    pub fn check(&self) -> anyhow::Result<()> {
        let given = [("--model", &self.model.model), ("--vae", &self.model.vae)];
        if let Some((option, _)) = given.into_iter().find(|(_, path)| path.is_some() && !self.are_given()) {
            wrong_usage!("{option} is for pictures of prompts, and there are none; give --prompts or --prompt");
        }
        Ok(())
    }

    /// The pictures that will be made, one of each prompt if `fields`, the options of their request, do not say how many.
    pub fn samples(&self, fields: Map<String, Value>, fetching: &Fetching<'_>) -> anyhow::Result<PromptSamples> {
        let prompts = match &self.prompts {
            Some(path) => PromptSet::read(path)?.prompts().iter().map(|asked| asked.prompt.clone()).collect(),
            None => self.prompt.clone(),
        };
        let mut request = TextToImageRequest { num_images: prompts.len(), ..TextToImageRequest::default() };
        request.read(fields)?;
        let builder = self.model.builder(TaskKind::TextToImage, &self.model.source(fetching))?;
        Ok(PromptSamples::new(builder.usage(Usage::Any).build()?, prompts, request)?)
    }
}
