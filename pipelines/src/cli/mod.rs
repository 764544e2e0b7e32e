//! The command line: strings to a request, and results to files and text.

mod adapter_options;
mod bench;
#[cfg(feature = "hub")]
mod cached;
mod data;
mod eval;
mod fetching;
mod generate;
mod img2img;
mod inpaint;
mod inputs;
mod interrupt;
mod memory;
mod model;
mod output;
mod print;
mod progress;
mod request_options;
mod sample;
mod schedulers;
mod train;
mod txt2img;
mod verify;
mod xl_options;

#[cfg(feature = "hub")]
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use fetching::Fetching;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tweedie_pipelines::{Builder, DTypeChoice, DeviceChoice, Model, Pipeline};

/// Pictures from text by latent diffusion, with no download for the first one.
#[derive(Debug, Parser)]
#[command(name = "tweedie", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make pictures from a text.
    Txt2img(Box<txt2img::Txt2img>),
    /// Make pictures from a text and a picture.
    Img2img(Box<img2img::Img2img>),
    /// Repaint or extend a part of a picture; the rest keeps every byte.
    Inpaint(Box<inpaint::InpaintArguments>),
    /// Train a network on a folder of data.
    #[command(subcommand)]
    Train(train::TrainCommand),
    /// Judge pictures.
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Make pictures with a model in pixel space, such as the embedded digits.
    Sample(Box<sample::Sample>),
    /// Look at models, and convert them.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Make a picture again from the settings in its file, and compare.
    Verify(Box<verify::Verify>),
    /// List the schedulers with their order, cost and references.
    Schedulers,
    /// Time the parts of a model on this machine.
    Bench(bench::BenchArguments),
}

/// Shows why the program failed.
pub fn show_error(message: &str) {
    print::remark(&format!("error: {message}"));
}

/// Carries out what the arguments say; the status is that of a question that was answered with no.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let done = match arguments.command {
        Command::Verify(command) => return command.run(),
        Command::Txt2img(command) => command.run(),
        Command::Img2img(command) => command.run(),
        Command::Inpaint(command) => command.run(),
        Command::Train(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Sample(command) => command.run(),
        Command::Model(command) => command.run(),
        Command::Schedulers => print::result(&schedulers::list()),
        Command::Bench(command) => command.run(),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Which model, where, in which number format.
#[derive(Debug, Args)]
struct ModelArguments {
    /// A folder in diffusers layout, one checkpoint file (.safetensors, .ckpt), or owner/name[@revision] on the hub
    /// [default: the embedded model]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,

    /// With a checkpoint file: the folder in diffusers layout whose configurations and tokenizer it takes [default: those
    /// of the family that the file belongs to]
    #[arg(long, value_name = "DIR", requires = "model")]
    config: Option<PathBuf>,

    /// Another autoencoder: a file, its folder, or the folder or owner/name of a model that has it [default: the model's]
    #[arg(long, value_name = "MODEL")]
    vae: Option<PathBuf>,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Number format of the weights: auto, f32, f16 or bf16. The CPU computes in f32 whatever they are stored in, but for
    /// bf16 on machines that multiply it
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,

    /// Take models of the hub from its cache alone, as HF_HUB_OFFLINE=1 does
    #[cfg(feature = "hub")]
    #[arg(long)]
    offline: bool,
}

/// What a name on the hub stands for.
#[derive(Debug, Clone, Copy)]
enum Part {
    Model,
    Autoencoder,
}

impl ModelArguments {
    fn builder<P: Pipeline>(&self, fetching: &Fetching<'_>) -> anyhow::Result<Builder<P>> {
        let model = match &self.model {
            Some(path) => self.open(path, self.config.clone(), Part::Model, fetching)?,
            None => Model::Embedded,
        };
        self.builder_with(model, fetching)
    }

    /// With a model that was found otherwise.
    fn builder_with<P: Pipeline>(&self, model: Model, fetching: &Fetching<'_>) -> anyhow::Result<Builder<P>> {
        let vae = self.vae.as_ref().map(|path| self.open(path, None, Part::Autoencoder, fetching)).transpose()?;
        Ok(Builder::default().model(model).vae(vae).device(self.device).dtype(self.dtype))
    }

    /// What is there under a path; else, what the hub has under that name.
    #[cfg(feature = "hub")]
    fn open(&self, path: &Path, config: Option<PathBuf>, part: Part, fetching: &Fetching<'_>) -> anyhow::Result<Model> {
        use tweedie_pipelines::hub;
        let name = path.to_str().filter(|_| !path.exists()).and_then(|text| text.parse().ok());
        let Some(name) = name else { return Ok(Model::at(path.into(), config)?) };
        let part = match part {
            Part::Model => hub::Part::Model,
            Part::Autoencoder => hub::Part::Autoencoder,
        };
        let wanted = hub::Wanted::new(part, self.dtype, &self.device.open()?);
        let model = fetching.open(&fetching::hub(self.offline)?, &name, wanted);
        match model.with_context(|| format!("nothing here is called {name}, so it is looked for on the hub"))? {
            Model::File { path, .. } => Ok(Model::at(path, config)?),
            Model::Cached { folder, .. } if config.is_some() => Ok(Model::at(folder, config)?),
            model => Ok(model),
        }
    }

    #[cfg(not(feature = "hub"))]
    fn open(&self, path: &Path, config: Option<PathBuf>, _: Part, _: &Fetching<'_>) -> anyhow::Result<Model> {
        Ok(Model::at(path.into(), config)?)
    }
}
