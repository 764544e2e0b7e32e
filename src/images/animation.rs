//! Animated PNG.

use super::Picture;
use crate::{Error, Result};

/// Pictures of one size as an animated PNG file that repeats for ever, each shown for `delay_ms` milliseconds. Programs
/// without animation show the first.
///
/// # Errors
/// If there are no frames, or their sizes differ.
pub fn encode_animation(frames: &[Picture], delay_ms: u16) -> Result<Vec<u8>> {
    let Some(first) = frames.first() else {
        return Err(Error::invalid("the number of frames", 0, "an animation needs at least one"));
    };
    let size = (first.width(), first.height());
    if let Some(other) = frames.iter().find(|frame| (frame.width(), frame.height()) != size) {
        let fix = format!("all frames of an animation have one size, here {}x{}", size.0, size.1);
        return Err(Error::invalid("a frame's size", format!("{}x{}", other.width(), other.height()), fix));
    }
    let fail = |e: png::EncodingError| Error::invalid("the animated PNG", "unwritable", e.to_string());
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size.0 as u32, size.1 as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_animated(frames.len() as u32, 0).map_err(fail)?;
    encoder.set_frame_delay(delay_ms, 1000).map_err(fail)?;
    let mut writer = encoder.write_header().map_err(fail)?;
    for frame in frames {
        writer.write_image_data(frame.rgb()).map_err(fail)?;
    }
    writer.finish().map_err(fail)?;
    Ok(bytes)
}
