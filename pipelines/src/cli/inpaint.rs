//! `tweedie inpaint`.

use super::generate::Generate;
use super::inputs;
use clap::{Args, builder::PossibleValuesParser};
use std::path::PathBuf;
use tweedie::images::{Margins, Mask, MaskResize, Photo};
use tweedie::schedulers::Resampling;
use tweedie_pipelines::{Composite, InpaintRequest, MaskShaping, TaskKind};

#[derive(Debug, Args)]
pub struct InpaintArguments {
    /// The picture: PNG, JPEG or WebP. With --width and --height it is resized first; without, the result has its size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,

    /// The mask: PNG, JPEG or WebP, white where to repaint; if it has transparency, opaque where to repaint
    #[arg(long, value_name = "FILE", required_unless_present = "outpaint")]
    mask: Option<PathBuf>,

    /// How far to go from what is under the mask, from 0 (leave it) to 1 (start from noise) [default: the model's, else 1]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    strength: Option<f64>,

    /// Repaint where the mask is black
    #[arg(long)]
    invert_mask: bool,

    /// Grow the mask by so many pixels
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    mask_grow: usize,

    /// Soften the mask's edge, to both sides, by so many pixels
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    mask_blur: usize,

    /// How the mask comes to another size: lanczos as diffusers does, or max, which keeps thin lines
    #[arg(long, value_name = "NAME", default_value = "lanczos", value_parser = PossibleValuesParser::new(["lanczos", "max"]))]
    mask_resize: String,

    /// Work at full resolution on the mask's surroundings alone, so many pixels around it, and paste the result back
    #[arg(long, value_name = "PADDING")]
    crop_to_mask: Option<usize>,

    /// Extend the picture and fill what is new, such as left=64,right=64,top=0,bottom=32
    #[arg(long, value_name = "SIDE=N,...", value_parser = margins)]
    outpaint: Option<Margins>,

    /// Mix old and new over so many pixels inside the mask
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, conflicts_with = "no_composite")]
    blend: usize,

    /// Save the decoder's raw picture instead of putting its masked part into the input
    #[arg(long)]
    no_composite: bool,

    /// Run each step so often, going back in time in between, so that new parts agree with old ones (RePaint)
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    resample: usize,

    /// How many steps each jump of --resample goes back
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    jump_length: usize,

    #[command(flatten)]
    generate: Generate,
}

impl InpaintArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let files: Vec<_> =
            [Some(&self.image), self.mask.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
        let plan = self.generate.plan(&files)?;
        let image = Photo::read(&self.image)?;
        let mask = self.mask.as_deref().map(Mask::read).transpose()?;
        let mut inputs = vec![inputs::input("image", &self.image)?];
        inputs.extend(self.mask.as_deref().map(|path| inputs::input("mask", path)).transpose()?);
        let model = self.generate.build(TaskKind::Inpaint, &plan)?;
        let settings = model.settle(&self.request(image, mask)?)?;
        self.generate.run(plan, &model, &settings, inputs)
    }

    fn request(&self, image: Photo, mask: Option<Mask>) -> anyhow::Result<InpaintRequest> {
        Ok(InpaintRequest {
            text: self.generate.text_request()?,
            image,
            mask,
            shaping: MaskShaping {
                invert: self.invert_mask,
                grow: self.mask_grow,
                blur: self.mask_blur,
                resize: if self.mask_resize == "max" { MaskResize::Max } else { MaskResize::Lanczos },
            },
            strength: self.strength,
            resampling: Resampling { times: self.resample, jump_length: self.jump_length },
            crop_to_mask: self.crop_to_mask,
            outpaint: self.outpaint.unwrap_or_default(),
            composite: if self.no_composite { Composite::Decoded } else { Composite::Blend(self.blend) },
        })
    }
}

/// Sides and their widths.
fn margins(text: &str) -> Result<Margins, String> {
    let mut margins = Margins::default();
    for part in text.split(',') {
        let (side, width) = part.split_once('=').ok_or_else(|| format!("{part:?} is not SIDE=N"))?;
        let width = width.trim().parse().map_err(|_| format!("{width:?} is not a number of pixels"))?;
        *match side.trim() {
            "left" => &mut margins.left,
            "right" => &mut margins.right,
            "top" => &mut margins.top,
            "bottom" => &mut margins.bottom,
            other => return Err(format!("{other:?} is not a side; take left, right, top or bottom")),
        } = width;
    }
    if margins == Margins::default() {
        return Err("every side is 0; give at least one a number of pixels".into());
    }
    Ok(margins)
}
