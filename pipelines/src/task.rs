//! What a run starts from, and what becomes of what it paints.

use crate::canvas::Canvas;
use crate::requests::inpaint::InpaintOptions;
use tweedie::images::{Photo, Picture};
use tweedie::models::Halves;
use tweedie::{Error, Result};

/// The three things that a latent diffusion model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// A picture from a text.
    TextToImage,
    /// A picture from a text and a picture.
    ImageToImage,
    /// A part of a picture painted anew.
    Inpaint,
}

impl TaskKind {
    /// What records and the command line call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextToImage => "txt2img",
            Self::ImageToImage => "img2img",
            Self::Inpaint => "inpaint",
        }
    }
}

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Usage {
    /// All tasks, in any number of runs, by any number of threads at a time.
    #[default]
    Any,
    /// One run of one task: only the halves of the autoencoder that it needs are loaded, the denoising network when the text encoder
    /// has done its work, and every part is let go of when the run needs it no more, which is what bounds the memory of a process
    /// that makes pictures once. Where LoRAs or control models go with it, all is loaded at once.
    Once(TaskKind),
}

impl Usage {
    /// The only task, if there is one.
    pub(crate) fn task(self) -> Option<TaskKind> {
        match self {
            Self::Any => None,
            Self::Once(task) => Some(task),
        }
    }

    /// The halves of the autoencoder that are needed.
    pub(crate) fn halves(self) -> Halves {
        match self {
            Self::Once(TaskKind::TextToImage) => Halves::Decoder,
            _ => Halves::Both,
        }
    }
}

/// A task with what it works on.
#[derive(Debug, Clone)]
pub enum Task {
    /// A picture from noise.
    TextToImage,
    /// A picture from another one, noised (SDEdit, Meng et al. 2022).
    ImageToImage {
        /// The other one.
        canvas: Canvas,
        /// The share of the steps that are done, 0 to 1.
        strength: f64,
    },
    /// New content where a mask says so.
    Inpaint {
        /// The picture and its mask.
        canvas: Canvas,
        /// The share of the steps that are done, 0 to 1; at 1 the masked part starts from pure noise.
        strength: f64,
        /// The request's, with its defaults filled in.
        options: InpaintOptions,
    },
}

impl Task {
    /// Which of the three it is.
    pub fn kind(&self) -> TaskKind {
        match self {
            Self::TextToImage => TaskKind::TextToImage,
            Self::ImageToImage { .. } => TaskKind::ImageToImage,
            Self::Inpaint { .. } => TaskKind::Inpaint,
        }
    }

    /// The picture that is worked on.
    pub fn canvas(&self) -> Option<&Canvas> {
        match self {
            Self::TextToImage => None,
            Self::ImageToImage { canvas, .. } | Self::Inpaint { canvas, .. } => Some(canvas),
        }
    }

    /// The share of the steps that are done.
    pub fn strength(&self) -> f64 {
        match self {
            Self::TextToImage => 1.0,
            Self::ImageToImage { strength, .. } | Self::Inpaint { strength, .. } => *strength,
        }
    }

    /// The given picture, if the task leaves it as it is: at strength 0, or under an empty mask.
    pub fn unchanged(&self) -> Option<&Photo> {
        let canvas = self.canvas()?;
        (self.strength() == 0.0 || canvas.has_nothing_to_paint()).then(|| canvas.photo())
    }

    /// What the user should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.canvas().map(|canvas| canvas.warnings().to_vec()).unwrap_or_default()
    }

    /// The finished picture, from the decoder's.
    pub(crate) fn finish(&self, decoded: &Picture) -> Result<Photo> {
        match self.canvas() {
            Some(canvas) => canvas.finish(decoded),
            None => Ok(decoded.into()),
        }
    }
}

/// Whether a model whose network takes so many channels can do a task: one that is shown mask and masked picture can do
/// nothing else.
pub(crate) fn check_task(task: TaskKind, in_channels: usize, latent_channels: usize) -> Result<()> {
    if in_channels > latent_channels && task != TaskKind::Inpaint {
        let fix = "this is an inpainting model; use it with `tweedie inpaint`, or another model here";
        return Err(Error::invalid("in_channels of the unet", in_channels, fix));
    }
    Ok(())
}

/// A strength as diffusers takes it.
pub(crate) fn check_strength(strength: f64) -> Result<f64> {
    if (0.0..=1.0).contains(&strength) {
        return Ok(strength);
    }
    let fix = "take a number from 0 (leave the picture as it is) to 1 (paint from noise)";
    Err(Error::invalid("the strength", strength, fix))
}
