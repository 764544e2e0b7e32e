//! From a photo of any size to what a model works on, and back.

use crate::native_size::{LARGEST_SIDE, NativeSize, check_side};
use crate::requests::inpaint::{InpaintOptions, InpaintRequest};
use tweedie::images::{CropBox, Margins, Mask, MaskResize, Photo, Picture};
use tweedie::{Error, Result};

/// A photo and the part of it that a model works on, at a size that suits the model.
#[derive(Debug, Clone)]
pub struct Canvas {
    /// The result before anything is painted: upright, extended, and resized if a size was asked for.
    photo: Photo,
    /// The part of it that is worked on.
    frame: CropBox,
    /// The size that the part is worked on at, width and height.
    working: (usize, usize),
    repaint: Option<Repaint>,
    warnings: Vec<String>,
}

/// What is repainted, for inpainting.
#[derive(Debug, Clone)]
struct Repaint {
    /// Where, at the photo's size.
    mask: Mask,
    /// Where, at the working size, black and white.
    working: Mask,
    resize: MaskResize,
    /// Over so many pixels inside the mask the photo and what is painted are mixed; `None` if what is painted is the result.
    blend: Option<usize>,
}

impl Canvas {
    /// A photo for image to image. With a size it is resized to it; otherwise it keeps its own.
    pub(crate) fn for_image(photo: &Photo, size: (Option<usize>, Option<usize>), native: NativeSize) -> Result<Self> {
        let asked = asked_size(photo, size, native.factor)?;
        let photo = resized(photo, asked)?;
        let frame = CropBox::whole(photo.width(), photo.height());
        let working = asked.unwrap_or_else(|| working_size(&frame, native));
        Ok(Self { photo, frame, working, repaint: None, warnings: Vec::new() })
    }

    /// A photo and its mask for inpainting.
    pub(crate) fn for_inpainting(request: &InpaintRequest, native: NativeSize) -> Result<Self> {
        let InpaintOptions { mask_grow: grow, mask_blur: blur, mask_resize: resize, outpaint, .. } = request.inpaint;
        let invert = |mask: Mask| if request.inpaint.invert_mask { mask.inverted() } else { mask };
        let given = match &request.mask {
            Some(mask) => Some(invert(mask.clone())),
            None if outpaint != Margins::default() => None,
            // What was erased is what is to be painted.
            None => Some(invert(Mask::of_hole(&request.image).ok_or_else(|| {
                let fix = "give a mask, a picture with a transparent hole, or `outpaint`";
                Error::invalid("`mask`", "not given", fix)
            })?)),
        };
        let mut warnings = Vec::new();
        warnings.extend(request.mask.as_ref().and_then(|mask| stretched(mask, &request.image)));

        let (photo, given) = extended(&request.image, given, outpaint, resize)?;
        let asked = asked_size(&photo, (request.text.width, request.text.height), native.factor)?;
        let photo = resized(&photo, asked)?;
        let mut mask = given.fitted(photo.width(), photo.height(), resize)?.grown(grow);
        if blur > 0 {
            mask = mask.blurred(blur as f32);
        }

        let whole = CropBox::whole(photo.width(), photo.height());
        let frame = match (request.inpaint.crop_to_mask, mask.bounding_box()) {
            (Some(padding), Some(masked)) => masked.padded(padding, whole.width, whole.height).with_aspect(
                (native.width, native.height),
                whole.width,
                whole.height,
            ),
            _ => whole,
        };
        let working = match asked {
            Some(size) if frame == whole => size,
            _ => working_size(&frame, native),
        };
        // A mask that was not changed comes to the working size in one step, as in diffusers.
        let unchanged = grow == 0 && blur == 0 && frame == whole;
        let small = if unchanged { given } else { mask.crop(&frame)? }.fitted(working.0, working.1, resize)?;

        let blend = request.inpaint.composite.then(|| request.inpaint.blend.unwrap_or(0));
        let repaint = Repaint { mask, working: small, resize, blend };
        let mut canvas = Self { photo, frame, working, repaint: Some(repaint), warnings };
        canvas.warn_of_vanished_mask(native.factor)?;
        Ok(canvas)
    }

    fn warn_of_vanished_mask(&mut self, factor: usize) -> Result<()> {
        let nowhere = self.repaint.as_ref().is_some_and(|repaint| repaint.mask.is_empty());
        if nowhere {
            let fix = "what is lighter than half grey is repainted, which pure red and blue are not; see `invert_mask`";
            self.warnings.push(if self.has_nothing_to_paint() {
                format!("the mask is empty, so the picture stays as it is ({fix})")
            } else {
                format!("the mask is empty, so nothing new is painted ({fix})")
            });
        } else if self.latent_mask(factor)?.is_empty() {
            self.warnings.push(format!(
                "the mask is so thin that it vanishes at the size of the latents, 1/{factor} of {}x{}, so nothing new is \
                 painted; use `mask_resize` max, `mask_grow` or `crop_to_mask`",
                self.working.0, self.working.1
            ));
        }
        Ok(())
    }

    /// Another photo of what this one shows, cut and sized as the part that is worked on.
    pub(crate) fn aligned(&self, other: &Photo) -> Result<Picture> {
        let (width, height) = (self.photo.width(), self.photo.height());
        let picture = if self.frame == CropBox::whole(width, height) {
            other.to_picture()
        } else {
            other.resized(width, height)?.crop(&self.frame)?.to_picture()
        };
        picture.resized(self.working.0, self.working.1)
    }

    /// The width that the model works at.
    pub fn width(&self) -> usize {
        self.working.0
    }

    /// The height that the model works at.
    pub fn height(&self) -> usize {
        self.working.1
    }

    /// The result before anything is painted.
    pub fn photo(&self) -> &Photo {
        &self.photo
    }

    /// What the user should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What the model sees: the part that is worked on, at the working size.
    ///
    /// # Errors
    /// If the working size is zero or too large.
    pub fn picture(&self) -> Result<Picture> {
        let part = if self.frame == CropBox::whole(self.photo.width(), self.photo.height()) {
            self.photo.clone()
        } else {
            self.photo.crop(&self.frame)?
        };
        Ok(resized(&part, Some(self.working))?.to_picture())
    }

    /// Where to paint, black and white, at the working size; nowhere without a mask.
    ///
    /// # Errors
    /// If the working size is zero or too large.
    pub fn mask(&self) -> Result<Mask> {
        let (width, height) = self.working;
        match &self.repaint {
            Some(repaint) => Ok(repaint.working.clone()),
            None => Mask::new(width, height, vec![0; width * height]),
        }
    }

    /// The same at the size of latents.
    ///
    /// # Errors
    /// If the working size is smaller than a latent.
    pub fn latent_mask(&self, factor: usize) -> Result<Mask> {
        let resize = self.repaint.as_ref().map(|repaint| repaint.resize).unwrap_or_default();
        self.mask()?.to_latent(self.working.0 / factor, self.working.1 / factor, resize)
    }

    /// Whether the result is the photo, whatever the model would paint.
    pub fn has_nothing_to_paint(&self) -> bool {
        let nothing = |repaint: &Repaint| repaint.blend.is_some() && repaint.mask.is_empty();
        self.repaint.as_ref().is_some_and(nothing)
    }

    /// The width and height of the result.
    pub fn result_size(&self) -> (usize, usize) {
        match &self.repaint {
            Some(Repaint { blend: None, .. }) => self.working,
            _ => (self.photo.width(), self.photo.height()),
        }
    }

    /// The result, from what the model painted at the working size.
    ///
    /// # Errors
    /// If `painted` has another size.
    pub fn finish(&self, painted: &Picture) -> Result<Photo> {
        let painted = Photo::from(painted);
        match &self.repaint {
            None => resized(&painted, Some((self.photo.width(), self.photo.height()))),
            Some(Repaint { blend: None, .. }) => Ok(painted),
            Some(Repaint { blend: Some(feather), mask, .. }) => {
                let painted = resized(&painted, Some((self.frame.width, self.frame.height)))?;
                self.photo.paste(&painted.to_picture(), &mask.weights(*feather), &self.frame)
            }
        }
    }
}

/// A photo of another size, or a copy.
fn resized(photo: &Photo, size: Option<(usize, usize)>) -> Result<Photo> {
    match size {
        Some((width, height)) if (width, height) != (photo.width(), photo.height()) => photo.resized(width, height),
        _ => Ok(photo.clone()),
    }
}

/// The size that was asked for; if only one side was, the other follows from the photo's aspect ratio.
fn asked_size(photo: &Photo, size: (Option<usize>, Option<usize>), factor: usize) -> Result<Option<(usize, usize)>> {
    let other = |side: usize, of: usize, to: usize| multiple(side as f64 * to as f64 / of as f64, factor);
    let (width, height) = match size {
        (None, None) => return Ok(None),
        (Some(width), Some(height)) => (width, height),
        (Some(width), None) => (width, other(width, photo.width(), photo.height())),
        (None, Some(height)) => (other(height, photo.height(), photo.width()), height),
    };
    check_side("width", width, factor)?;
    check_side("height", height, factor)?;
    Ok(Some((width, height)))
}

/// The size at which a model works on a part of a picture: its own if the model can be expected to cope with that, else
/// one of the same aspect ratio with as many pixels as the model is made for. Sides are rounded to what the model makes.
fn working_size(frame: &CropBox, native: NativeSize) -> (usize, usize) {
    let native_area = (native.width * native.height) as f64;
    let area = (frame.width * frame.height) as f64;
    let scale = if (0.5..=1.5).contains(&(area / native_area)) { 1.0 } else { (native_area / area).sqrt() };
    (multiple(frame.width as f64 * scale, native.factor), multiple(frame.height as f64 * scale, native.factor))
}

/// The multiple of `factor` nearest to a length, two at least: a single latent has no neighbours.
fn multiple(length: f64, factor: usize) -> usize {
    let most = LARGEST_SIDE / factor;
    ((length / factor as f64).round() as usize).clamp(2, most) * factor
}

/// The photo with its margins, and its mask with them; without a mask only the margins are white.
fn extended(photo: &Photo, mask: Option<Mask>, margins: Margins, resize: MaskResize) -> Result<(Photo, Mask)> {
    let (width, height) = (photo.width(), photo.height());
    let mask = match mask {
        Some(mask) if margins == Margins::default() => return Ok((photo.clone(), mask)),
        mask => mask,
    };
    let (larger, new) = photo.extended(&margins, 0)?;
    let Some(mask) = mask else { return Ok((larger, new)) };
    let mask = mask.fitted(width, height, resize)?;
    let mut values = new.values().to_vec();
    for (y, row) in mask.values().chunks_exact(width).enumerate() {
        let start = (y + margins.top) * new.width() + margins.left;
        values[start..start + width].copy_from_slice(row);
    }
    Ok((larger, Mask::new(new.width(), new.height(), values)?))
}

/// What to say of a mask that does not have the photo's aspect ratio.
fn stretched(mask: &Mask, photo: &Photo) -> Option<String> {
    let aspect = |width: usize, height: usize| width as f64 / height as f64;
    let ratio = aspect(mask.width(), mask.height()) / aspect(photo.width(), photo.height());
    ((ratio - 1.0).abs() > 0.02).then(|| {
        format!(
            "the mask is {}x{} and the picture {}x{}; the mask is stretched to it",
            mask.width(),
            mask.height(),
            photo.width(),
            photo.height()
        )
    })
}
