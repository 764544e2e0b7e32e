//! `tweedie model`.

use clap::Subcommand;
use std::path::PathBuf;
use tweedie_pipelines::{Model, ModelInfo};

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Show a model's family, components, parameters and number formats, from its headers alone.
    Info {
        /// A folder in diffusers layout [default: the embedded model]
        #[arg(value_name = "MODEL")]
        model: Option<PathBuf>,
    },
}

impl ModelCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        let Self::Info { model } = self;
        let info = ModelInfo::read(&model.clone().map_or(Model::Embedded, Model::Folder))?;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        println!("model       {}", info.name);
        println!("family      {}", info.family);
        println!("pipeline    {}", or_dash(info.pipeline));
        println!("scheduler   {}", or_dash(info.scheduler));
        println!("size        {}", or_dash(info.size.map(|(width, height)| format!("{width}x{height}"))));
        println!();
        println!("{:16} {:24} {:>14}  {:10} files", "component", "class", "parameters", "types");
        let mut total = 0;
        for component in info.components {
            total += component.parameters;
            println!(
                "{:16} {:24} {:>14}  {:10} {}",
                component.name,
                or_dash(component.class_name),
                grouped(component.parameters),
                component.dtypes.join(","),
                component.files.join(", ")
            );
        }
        println!("{:16} {:24} {:>14}", "total", "", grouped(total));
        Ok(())
    }
}

/// Digits in groups of three.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}
