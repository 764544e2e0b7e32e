//! `tweedie txt2img`.

use super::generate::Generate;
use clap::Args;
use tweedie_pipelines::TextToImage;

#[derive(Debug, Args)]
pub struct Txt2img {
    #[command(flatten)]
    generate: Generate,
}

impl Txt2img {
    pub fn run(&self) -> anyhow::Result<()> {
        let plan = self.generate.plan(&[])?;
        let pipeline = self.generate.build::<TextToImage>(&plan)?;
        let settings = pipeline.settle(&self.generate.text_request()?)?;
        self.generate.run(plan, pipeline.into_model(), &settings, Vec::new())
    }
}
