//! `tweedie img2img`.

use super::generate::Generate;
use super::given::Given;
use super::inputs;
use clap::Args;
use std::path::PathBuf;
use tweedie::images::Photo;
use tweedie_pipelines::{ImageToImageRequest, Options, TaskKind};

#[derive(Debug, Args)]
pub struct Img2img {
    /// The picture to start from: PNG, JPEG or WebP. With --width and --height it is resized first; without, the result
    /// has its size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,

    #[command(flatten)]
    options: Given<ImageToImageRequest>,

    #[command(flatten)]
    generate: Generate,
}

impl Img2img {
    pub fn run(&self) -> anyhow::Result<()> {
        let plan = self.generate.plan(&[&self.image])?;
        let image = Photo::read(&self.image)?;
        let inputs = vec![inputs::input("image", &self.image)?];
        self.generate.run(TaskKind::ImageToImage, &plan, &inputs, |model, text| {
            let mut request = ImageToImageRequest::of(image.clone(), text);
            request.read(self.generate.task_fields(&plan, &self.options))?;
            Ok(model.settle(&request)?)
        })
    }
}
