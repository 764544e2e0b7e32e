//! The command line: strings to a request, and results to files and text.

mod adapter_options;
mod bench;
#[cfg(feature = "hub")]
mod cached;
mod config_file;
mod data;
mod drawing;
mod eval;
mod failure;
mod fetching;
mod flags;
mod generate;
mod given;
mod img2img;
mod inpaint;
mod inputs;
mod interrupt;
mod log_lines;
mod manual;
mod model;
mod output;
mod pace;
mod print;
mod progress;
mod prompts_file;
mod sample;
mod schedulers;
#[cfg(feature = "server")]
mod serve;
mod source;
mod tips;
mod train;
mod txt2img;
mod verify;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
pub use config_file::parse;
pub use failure::show as show_failure;
use fetching::Fetching;
pub use interrupt::status as status_if_stopped;
use source::{OfflineOption, Source};
use std::path::PathBuf;
use std::process::ExitCode;
use tweedie::kernels::{InstructionSet, processor};
use tweedie::schedulers::{SCHEDULERS, SchedulerEntry};
use tweedie_pipelines::{Builder, DTypeChoice, DeviceChoice, Model, Purpose, TaskKind, Usage};

/// Pictures from text by latent diffusion, with no download for the first one.
#[derive(Debug, Parser)]
#[command(name = "tweedie", version, long_version = about_program(), max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = examples(&FIRST))]
#[command(after_long_help = format!("{}\n\n{ENVIRONMENT}", examples(&FIRST)))]
pub struct Arguments {
    /// Threads to compute with [default: RAYON_NUM_THREADS, or as many as there are cores]; no picture depends on it
    #[arg(long, value_name = "N", global = true, value_parser = clap::value_parser!(u16).range(1..), hide_short_help = true, help_heading = ADVANCED)]
    threads: Option<u16>,

    /// The most memory to take, such as 3GB or 800MB [default: what is free]. Of large pictures the autoencoder computes strips then,
    /// and puts aside on the disk (TMPDIR, or /var/tmp) what there is no memory for; no picture depends on it
    #[arg(long, value_name = "BYTES", global = true, value_parser = bytes, hide_short_help = true, help_heading = ADVANCED)]
    max_memory: Option<u64>,

    /// Leave tweedie.toml and the user's config.toml unread
    #[arg(long, global = true, hide_short_help = true, help_heading = ADVANCED)]
    no_config: bool,

    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// Threads to compute with, if they were given.
    pub fn threads(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// The most memory to take, if it was given.
    pub fn max_memory(&self) -> Option<u64> {
        self.max_memory
    }
}

/// A number of bytes, with or without a unit.
fn bytes(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: f64 = match text[number.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KIB" => f64::from(1 << 10),
        "MIB" => f64::from(1 << 20),
        "GIB" => f64::from(1 << 30),
        _ => return Err("the units are B, KB, MB, GB, KiB, MiB and GiB".into()),
    };
    match number.trim_end().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok((number * unit) as u64),
        _ => Err("give a number above 0, such as 3GB".into()),
    }
}

/// What stands at the foot of a command's help.
fn examples(commands: &[&str]) -> String {
    format!("Examples:\n  {}", commands.join("\n  "))
}

/// What a newcomer does first.
const FIRST: [&str; 2] = [r#"tweedie txt2img "a fox on a blue background""#, "tweedie model info"];

/// What stands at the foot of the program's long help.
const ENVIRONMENT: &str = "\
Environment:
  RAYON_NUM_THREADS   threads to compute with, as --threads
  TWEEDIE_API_KEY     the key that clients of tweedie serve must send
  TWEEDIE_ISA         the instruction set to use, of those that --version lists
  HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE
                      where models of the hub are kept and fetched from, as in Python's huggingface_hub
  HTTPS_PROXY, ALL_PROXY, NO_PROXY
                      how the network is reached
  XDG_CONFIG_HOME     where tweedie/config.toml is [default: ~/.config]
  XDG_CACHE_HOME      where the cache of the hub is, unless HF_HOME says it [default: ~/.cache]
  TWEEDIE_MNIST_MIRROR
                      where train mnist --download fetches from

Files:
  tweedie.toml, ~/.config/tweedie/config.toml
                      options by their long names, for all commands that make pictures or in a table for one, such as
                      `steps = 20` under `[txt2img]`; the command line goes before both";

/// What a build without the server says of it.
#[cfg(not(feature = "server"))]
const NO_SERVER: &str = "this build has no server, which needs a C compiler and Rust 1.94; build it from a clone with: cargo install --locked \
     --path pipelines --features server";

/// The heading of options that few need.
const ADVANCED: &str = "Advanced";

/// The version, what was compiled in, and what of the processor is used.
fn about_program() -> String {
    let features = [
        ("built-in-families", cfg!(feature = "built-in-families")),
        ("download", cfg!(feature = "download")),
        ("embedded-mnist", cfg!(feature = "embedded-mnist")),
        ("embedded-model", cfg!(feature = "embedded-model")),
        ("hub", cfg!(feature = "hub")),
        ("postgres", cfg!(feature = "postgres")),
        ("s3", cfg!(feature = "s3")),
        ("server", cfg!(feature = "server")),
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("flash-attn", cfg!(feature = "flash-attn")),
        ("metal", cfg!(feature = "metal")),
        ("accelerate", cfg!(feature = "accelerate")),
    ];
    let features: Vec<_> = features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let sets = InstructionSet::ALL.into_iter().filter(|set| *set <= InstructionSet::of_machine());
    let sets: Vec<_> = sets.map(InstructionSet::name).collect();
    let used = InstructionSet::from_environment().map_or_else(|error| error.to_string(), |set| set.name().to_owned());
    format!(
        "{}\nfeatures          {}\ninstruction sets  {}; used: {used}\nprocessor         {}",
        env!("CARGO_PKG_VERSION"),
        features.join(", "),
        sets.join(", "),
        processor()
    )
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make pictures from a text.
    #[command(after_help = examples(&[r#"tweedie txt2img "a fox on a blue background""#, r#"tweedie txt2img -p "a castle at sunset" -m sd15 --steps 25 --scheduler unipc -o castle.png"#]))]
    Txt2img(Box<txt2img::Txt2img>),
    /// Make pictures from a text and a picture.
    #[command(after_help = examples(&[r#"tweedie img2img --image sketch.png --strength 0.6 "a castle, oil painting" -m sd15"#, "tweedie img2img --image photo.jpg --like castle.png"]))]
    Img2img(Box<img2img::Img2img>),
    /// Repaint or extend a part of a picture; the rest keeps every byte.
    #[command(after_help = examples(&[r#"tweedie inpaint --image photo.png --mask mask.png "a dog on a bench" -m sd15"#, r#"tweedie inpaint --image photo.png --outpaint left=64,right=64 "a beach" -m sd15"#]))]
    Inpaint(Box<inpaint::InpaintArguments>),
    /// Train a network on a folder of data.
    #[command(after_help = examples(&["tweedie train mnist --data mnist --output runs/mnist --epochs 5", "tweedie train lora --model sd15 --data pictures --output runs/lora"]))]
    #[command(subcommand)]
    Train(train::TrainCommand),
    /// Judge pictures.
    #[command(after_help = examples(&["tweedie eval classify --images digits --classifier runs/classifier/model", "tweedie eval prompts --model MODEL --prompts prompts.json --judge JUDGE --output scores"]))]
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Make pictures with a model in pixel space, such as the embedded digits.
    #[command(after_help = examples(&["tweedie sample mnist --num-images 16 --grid", "tweedie sample --checkpoint runs/pixel/model --classes cat,dog --num-images 8"]))]
    Sample(Box<sample::Sample>),
    /// Look at models, and convert them.
    #[command(after_help = examples(&["tweedie model info", "tweedie model convert sd15.safetensors sd15-folder"]))]
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Make a picture again from the settings in its file, and compare.
    #[command(after_help = examples(&["tweedie verify fox.png", "tweedie verify castle.png --model sd15"]))]
    Verify(Box<verify::Verify>),
    /// Answer programs and browsers over HTTP, with models that stay loaded.
    #[cfg(feature = "server")]
    #[command(after_help = examples(&["tweedie serve", "tweedie serve --model sd15 --models models --listen 0.0.0.0:7860 --api-key KEY"]))]
    Serve(Box<serve::Serve>),
    /// Work on the jobs of servers on other machines.
    #[cfg(feature = "server")]
    #[command(after_help = examples(&["tweedie worker --queue postgres://tweedie@host/tweedie --results /mnt/results"]))]
    Worker(Box<serve::WorkerArguments>),
    /// Not in this build: build with --features server to answer programs and browsers over HTTP.
    #[cfg(not(feature = "server"))]
    #[command(name = "serve", alias = "worker")]
    NoServer {
        /// Whatever is given
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        given: Vec<String>,
    },
    /// List the schedulers with their order, cost and references.
    #[command(after_help = examples(&[r#"tweedie schedulers --json"#]))]
    Schedulers {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Time the parts of a model on this machine.
    #[command(after_help = examples(&[r#"tweedie bench"#, r#"tweedie bench --preset sd15 --size 512 --json"#]))]
    Bench(bench::BenchArguments),
    /// Print a script that completes commands and options in a shell.
    #[command(after_help = examples(&[r#"tweedie completions bash > ~/.local/share/bash-completion/completions/tweedie"#]))]
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page of the program, or of one of its commands.
    #[command(after_help = examples(&[r#"tweedie man txt2img | man -l -"#]))]
    Man {
        /// The command, such as `txt2img` or `train mnist`
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
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
        Command::Schedulers { json: false } => print::result(&schedulers::list()),
        Command::Schedulers { json: true } => {
            let rows: Vec<_> = SCHEDULERS.iter().map(SchedulerEntry::to_json).collect();
            print::result(&serde_json::to_string_pretty(&rows)?)
        }
        Command::Completions { shell } => print::result(&manual::completions(shell)?),
        Command::Man { command } => print::result(&manual::page(&command)?),
        Command::Bench(command) => command.run(),
        #[cfg(feature = "server")]
        Command::Serve(command) => command.run(),
        #[cfg(feature = "server")]
        Command::Worker(command) => command.run(),
        #[cfg(not(feature = "server"))]
        Command::NoServer { .. } => Err(failure::WrongUsage(NO_SERVER.into()).into()),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Which model, where, in which number format.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
struct ModelArguments {
    /// A folder in diffusers layout, a training run, one checkpoint file (.safetensors, .gguf, .ckpt), a short name (tweedie
    /// model known), or owner/name[/FILE][@revision] on the hub [default: the embedded model]
    #[arg(long, short, visible_alias = "checkpoint", value_name = "MODEL")]
    model: Option<PathBuf>,

    /// With a checkpoint file: the folder in diffusers layout whose configurations and tokenizer it takes, and all other
    /// weights if the file holds a UNet alone [default: those of the family that the file belongs to]
    #[arg(long, value_name = "DIR", requires = "model", hide_short_help = true)]
    config: Option<PathBuf>,

    /// Another denoising network, alone in a file (.safetensors, .gguf, .ckpt) [default: the model's]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    unet: Option<PathBuf>,

    /// Another text encoder, alone in a file; of a model with two, the one that is as wide; may be given for each [default: the
    /// model's]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    text_encoder: Vec<PathBuf>,

    /// Another autoencoder: a file, its folder, the folder of a model that has it, or owner/name[/FILE] on the hub
    /// [default: the model's]
    #[arg(long, value_name = "MODEL", hide_short_help = true)]
    vae: Option<PathBuf>,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Number format of the weights: auto, f32, f16, bf16, q8 or q4. The CPU computes in f32 whatever they are held in, but for bf16
    /// on machines that multiply it; on others auto leaves large models as they are stored, which changes no picture. q8 holds
    /// the network and the text encoders in 8 bits, rounded, in half the memory of f16, and is a little faster; q4 takes a half of that,
    /// and draws clearly other pictures of the same
    #[arg(long, default_value = "auto", hide_short_help = true)]
    dtype: DTypeChoice,

    #[command(flatten)]
    offline: OfflineOption,
}

impl ModelArguments {
    /// The number format that was asked for.
    fn dtype(&self) -> DTypeChoice {
        self.dtype
    }

    fn source<'a>(&self, fetching: &'a Fetching<'a>) -> Source<'a> {
        Source { dtype: self.dtype, device: self.device, offline: self.offline.offline(), fetching }
    }

    /// For one run of a task.
    fn builder(&self, task: TaskKind, source: &Source<'_>) -> anyhow::Result<Builder> {
        let model = match &self.model {
            Some(path) => source.open(path, self.config.clone(), Purpose::Model)?,
            None => Model::Embedded,
        };
        self.builder_with(model, task, source)
    }

    /// For one run of a task, with a model that was found otherwise.
    fn builder_with(&self, model: Model, task: TaskKind, source: &Source<'_>) -> anyhow::Result<Builder> {
        let vae = self.vae.as_ref().map(|path| source.open(path, None, Purpose::Autoencoder)).transpose()?;
        let builder = Builder::default().model(model).vae(vae).device(self.device).dtype(self.dtype);
        let builder = builder.unet(self.unet.clone()).text_encoders(self.text_encoder.clone());
        Ok(builder.usage(Usage::Once(task)))
    }
}
