//! `tweedie model`.

use super::print;
use clap::Subcommand;
use std::path::PathBuf;
use tweedie_pipelines::{Model, ModelInfo};

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Show a model's family, components, parameters and number formats, from its headers alone.
    Info {
        /// A folder in diffusers layout, or one checkpoint file [default: the embedded model]
        #[arg(value_name = "MODEL")]
        model: Option<PathBuf>,

        /// With a checkpoint file: the folder of its configurations
        #[arg(long, value_name = "DIR", requires = "model")]
        config: Option<PathBuf>,
    },

    #[cfg(feature = "hub")]
    #[command(flatten)]
    Cached(super::cached::CachedCommand),
}

impl ModelCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        let (model, config) = match self {
            Self::Info { model, config } => (model, config),
            #[cfg(feature = "hub")]
            Self::Cached(command) => return command.run(),
        };
        let info = ModelInfo::read(&model_at(model.as_ref(), config.as_ref())?)?;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let mut lines = vec![
            format!("model       {}", info.name),
            format!("family      {}", info.family),
            format!("pipeline    {}", or_dash(info.pipeline)),
            format!("scheduler   {}", or_dash(info.scheduler)),
            format!("size        {}", or_dash(info.size.map(|(width, height)| format!("{width}x{height}")))),
            String::new(),
            format!("{:16} {:24} {:>14}  {:10} files", "component", "class", "parameters", "types"),
        ];
        let total = info.components.iter().map(|component| component.parameters).sum();
        for component in info.components {
            lines.push(format!(
                "{:16} {:24} {:>14}  {:10} {}",
                component.name,
                or_dash(component.class_name),
                grouped(component.parameters),
                component.dtypes.join(","),
                component.files.join(", ")
            ));
        }
        lines.push(format!("{:16} {:24} {:>14}", "total", "", grouped(total)));
        print::result(&lines.join("\n"))
    }
}

fn model_at(path: Option<&PathBuf>, config: Option<&PathBuf>) -> anyhow::Result<Model> {
    Ok(match path {
        Some(path) => Model::at(path.clone(), config.cloned())?,
        None => Model::Embedded,
    })
}

/// Digits in groups of three.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}
