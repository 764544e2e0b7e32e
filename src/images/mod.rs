//! Pictures: from a file to what a model sees, from the decoder's values back into the file's pixels, masks, and plots.
//!
//! A [`Photo`] is what a file holds, upright, in its own depth and colours; a [`Picture`] is the eight-bit RGB that
//! models read and write; a [`Mask`] says where a photo may change, and [`Photo::paste`] changes it there and nowhere
//! else. Sizes are always (width, height), in pixels.
//!
//! # Examples
//!
//! ```
//! use tweedie::images::{Picture, Plot, Series, TextChunk};
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("grey.png");
//! let picture = Picture::new(4, 2, vec![128; 3 * 4 * 2])?;
//! picture.save(&file, &[TextChunk::new("parameters", "nothing but grey")])?;
//! assert_eq!(Picture::read(&file)?, picture);
//! picture.resized(8, 4)?.save(&folder.path().join("grey.webp"), &[])?;
//!
//! let plot = Plot {
//!     title: "a falling loss".into(),
//!     x_label: "step".into(),
//!     y_label: "loss".into(),
//!     logarithmic: (false, true),
//!     series: vec![Series::line("loss", vec![(1.0, 0.9), (2.0, 0.5), (3.0, 0.3)])],
//! };
//! plot.draw()?.save(&folder.path().join("loss.png"), &[])?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod animation;
mod average;
mod blur;
mod canvas;
mod composite;
mod crop;
mod distance;
mod encoded;
mod exif;
mod mask;
mod photo;
mod photo_file;
mod picture;
mod plot;
mod png_file;
mod resample;
mod surroundings;

pub use animation::encode_animation;
pub use canvas::Margins;
pub use composite::BlendWeights;
pub use crop::CropBox;
pub use encoded::{PictureFormat, read_picture_text};
pub use mask::{Mask, MaskResize};
pub use photo::{ColorType, Photo, Samples};
pub use photo_file::{MAX_ASPECT, MAX_PIXELS, MAX_SIDE, picture_bytes};
pub use picture::{FloatResizing, Picture};
pub use plot::{Bar, Bars, LabelledRow, LabelledRows, Plot, Series};
pub use png_file::{TextChunk, encode_png, read_png_text};
