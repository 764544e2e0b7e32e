//! `tweedie inpaint`.

use super::generate::Generate;
use super::given::Given;
use super::inputs;
use clap::Args;
use std::path::PathBuf;
use tweedie::images::{Mask, Photo};
use tweedie_pipelines::{InpaintRequest, Options, TaskKind};

#[derive(Debug, Args)]
pub struct InpaintArguments {
    /// The picture: PNG, JPEG or WebP. With --width and --height it is resized first; without, the result has its size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,

    /// The mask: PNG, JPEG or WebP, white where to repaint; if it has transparency, opaque where to repaint [default: what is
    /// transparent in the picture]
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,

    #[command(flatten)]
    options: Given<InpaintRequest>,

    #[command(flatten)]
    generate: Generate,
}

impl InpaintArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let files: Vec<_> =
            [Some(&self.image), self.mask.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
        let mut plan = self.generate.plan(&files)?;
        let image = Photo::read(&self.image)?;
        let is_own_mask = self.mask.as_ref() == Some(&self.image);
        if is_own_mask && image.is_transparent_somewhere() {
            plan.warn(
                "the picture is its own mask, so what is opaque in it is repainted; to fill its transparent hole leave `mask` away",
            );
        }
        plan.check_format(&image)?;
        let mask = self.mask.as_deref().map(Mask::read).transpose()?;
        let mut inputs = vec![inputs::input("image", &self.image)?];
        inputs.extend(self.mask.as_deref().map(|path| inputs::input("mask", path)).transpose()?);
        self.generate.run(TaskKind::Inpaint, &plan, &inputs, |model, text| {
            let mut request = InpaintRequest::of(image.clone(), mask.clone(), text);
            request.read(self.generate.task_fields(&plan, &self.options))?;
            Ok(model.settle(&request)?)
        })
    }
}
