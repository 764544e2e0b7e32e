//! `tweedie txt2img`.

use super::generate::Generate;
use clap::Args;
use tweedie_pipelines::TaskKind;

#[derive(Debug, Args)]
pub struct Txt2img {
    #[command(flatten)]
    generate: Generate,
}

impl Txt2img {
    pub fn run(&self) -> anyhow::Result<()> {
        let plan = self.generate.plan(&[])?;
        self.generate.run(TaskKind::TextToImage, &plan, &[], |model, request| Ok(model.settle(&request)?))
    }
}
