//! `tweedie img2img`.

use super::generate::Generate;
use super::inputs;
use clap::Args;
use std::path::PathBuf;
use tweedie::images::Photo;
use tweedie_pipelines::{ImageToImageRequest, TaskKind};

#[derive(Debug, Args)]
pub struct Img2img {
    /// The picture to start from: PNG, JPEG or WebP. With --width and --height it is resized first; without, the result
    /// has its size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,

    /// How far to go from it, from 0 (leave it) to 1 [default: the model's, else 0.8]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    strength: Option<f64>,

    #[command(flatten)]
    generate: Generate,
}

impl Img2img {
    pub fn run(&self) -> anyhow::Result<()> {
        let plan = self.generate.plan(&[&self.image])?;
        let image = Photo::read(&self.image)?;
        let inputs = vec![inputs::input("image", &self.image)?];
        let model = self.generate.build(TaskKind::ImageToImage, &plan)?;
        let request = ImageToImageRequest { text: self.generate.text_request()?, image, strength: self.strength };
        let settings = model.settle(&request)?;
        self.generate.run(plan, &model, &settings, inputs)
    }
}
