//! `tweedie model fetch|list|remove`: the hub's models on this disk.

use super::fetching::{Fetching, hub};
use super::interrupt::Interrupt;
use super::print;
use super::source::hub_name;
use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::BinaryBytes;
use serde_json::json;
use std::path::Path;
use tweedie_pipelines::hub::{CachedModel, Hub, HubName, KnownModel, Wanted, known_models};
use tweedie_pipelines::{DTypeChoice, DeviceChoice, Model, Purpose};

#[derive(Debug, Subcommand)]
pub enum CachedCommand {
    /// Fetch a model from the hub, or what has changed of it, into the cache that it shares with Python.
    Fetch(Fetch),
    /// List the well-known models that have short names, with licences and sizes.
    Known,
    /// List the hub's models in that cache.
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove a model from that cache with all its revisions. It asks nothing.
    Remove {
        /// Its exact name
        #[arg(value_name = "OWNER/NAME", value_parser = without_revision)]
        model: HubName,
    },
}

#[derive(Debug, Args)]
pub struct Fetch {
    /// Its name, a file of weights if that alone is wanted, and the revision if that is not main; or a short name, which
    /// `tweedie model known` lists
    #[arg(value_name = "OWNER/NAME[/FILE][@REVISION]", value_parser = with_short_names)]
    model: HubName,

    /// The number format that it will run in: f16 takes the smaller files of half precision, if there are any
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,

    /// Where it will run: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Only the autoencoder, for --vae
    #[arg(long, conflicts_with = "part")]
    vae: bool,

    /// What it is fetched for
    #[arg(long, value_enum, value_name = "NAME", default_value = "model")]
    part: PurposeName,

    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// What --part calls a [`Purpose`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PurposeName {
    /// A whole model, for --model
    Model,
    /// The autoencoder, for --vae and --preview-vae
    Vae,
    /// A ControlNet or T2I-Adapter, for --control
    Control,
    /// For --lora
    Lora,
    /// A textual inversion, for --embedding
    Embedding,
    /// A model in pixel space, for `tweedie sample`
    Pixel,
}

impl From<PurposeName> for Purpose {
    fn from(name: PurposeName) -> Self {
        match name {
            PurposeName::Model => Self::Model,
            PurposeName::Vae => Self::Autoencoder,
            PurposeName::Control => Self::Control,
            PurposeName::Lora => Self::Lora,
            PurposeName::Embedding => Self::TextualInversion,
            PurposeName::Pixel => Self::Pixel,
        }
    }
}

impl CachedCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Fetch(fetch) => fetch.run(),
            Self::Known => print::result(&known()),
            Self::List { json } => list(&hub(true)?, *json),
            Self::Remove { model } => {
                let bytes = hub(true)?.remove(model)?;
                print::result(&format!("removed {model} ({})", BinaryBytes(bytes)))
            }
        }
    }
}

fn with_short_names(text: &str) -> Result<HubName, String> {
    known_models().get(text).and_then(KnownModel::name).map_or_else(|| text.parse(), Ok)
}

/// A line for each model with a short name.
fn known() -> String {
    let mut lines = vec![format!("{:14} {:50} {:>8} {:>8}  licence", "name", "on the hub", "GB, f32", "GB, f16")];
    for (name, KnownModel { repository, licence, full, half, .. }) in known_models() {
        lines.push(format!("{name:14} {repository:50} {full:>8} {half:>8}  {licence}"));
    }
    lines.push("\nWhat they are:".into());
    for (name, KnownModel { what, checked, .. }) in known_models() {
        let unchecked = if *checked { "" } else { " (not checked)" };
        lines.push(format!("{name:14} {what}{unchecked}"));
    }
    lines.push("\nnot checked: nobody has fetched it with this program yet.".into());
    lines.join("\n")
}

fn without_revision(text: &str) -> Result<HubName, String> {
    match (text.split_once('@'), text.parse::<HubName>()) {
        (Some((id, _)), _) => Err(format!("that names one revision, and all of them go; give {id}")),
        (None, Ok(name)) if name.file().is_some() => {
            Err(format!("that names one file, and all of them go; give {}", name.id()))
        }
        (None, name) => name,
    }
}

/// The model that a path means which is not there: one in the cache.
pub fn in_cache(path: &Path) -> anyhow::Result<Option<Model>> {
    let Some(name) = hub_name(path)? else { return Ok(None) };
    let wanted = Wanted::new(Purpose::Model, DTypeChoice::Auto, &tweedie::Device::Cpu);
    match hub(true)?.cached(&name, wanted) {
        Some(model) => Ok(Some(model)),
        None => bail!("there is no {name} here and none in the hub's cache; `tweedie model fetch {name}` fetches it"),
    }
}

impl Fetch {
    /// Prints the folder or file that it is in.
    fn run(&self) -> anyhow::Result<()> {
        let interrupt = Interrupt::listen()?;
        let purpose = if self.vae { Purpose::Autoencoder } else { self.part.into() };
        let wanted = Wanted::new(purpose, self.dtype, &self.device.open()?);
        let fetching = Fetching { interrupt: &interrupt, quiet: self.quiet };
        let hub = hub(false)?;
        fetching.tell_of(&hub, &self.model, wanted);
        match fetching.fetch(&hub, &self.model, wanted)? {
            Model::Cached { folder: path, .. } | Model::File { path, .. } => print::result(&path.display().to_string()),
            _ => Ok(()),
        }
    }
}

fn list(hub: &Hub, json: bool) -> anyhow::Result<()> {
    let models = hub.list()?;
    if json {
        let rows: Vec<_> = models.iter().map(|model| row_json(hub, model)).collect();
        return print::result(&serde_json::to_string_pretty(&rows)?);
    }
    if models.is_empty() {
        print::remark(&format!("no model in {}; `tweedie model fetch OWNER/NAME` fetches one", hub.cache.display()));
        return Ok(());
    }
    let mut lines = vec![format!("{:44} {:>11}  {:9} revisions", "model", "size", "")];
    for model in models {
        let state = if complete(hub, &model) { "complete" } else { "in part" };
        let revisions = revisions(&model).join(", ");
        lines.push(format!(
            "{:44} {:>11}  {state:9} {revisions}",
            model.name.id(),
            BinaryBytes(model.bytes).to_string()
        ));
    }
    print::lines(lines)
}

fn row_json(hub: &Hub, model: &CachedModel) -> serde_json::Value {
    json!({
        "model": model.name.id(),
        "bytes": model.bytes,
        "complete": complete(hub, model),
        "revisions": revisions(model),
        "commits": model.commits,
    })
}

/// Branches and tags, and the commits that are neither's.
fn revisions(model: &CachedModel) -> Vec<String> {
    let named = |commit: &&String| model.references.iter().any(|(_, at)| at == *commit);
    let unnamed = model.commits.iter().filter(|commit| !named(commit)).cloned();
    model.references.iter().map(|(name, _)| name.clone()).chain(unnamed).collect()
}

/// Whether one of its revisions runs without network.
fn complete(hub: &Hub, model: &CachedModel) -> bool {
    let wanted = Wanted::new(Purpose::Model, DTypeChoice::Auto, &tweedie::Device::Cpu);
    model.commits.iter().any(|commit| hub.cached(&model.at(commit), wanted).is_some())
}
