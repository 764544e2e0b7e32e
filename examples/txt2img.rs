//! A picture from a text, in a few lines.
//!
//! `cargo run --release --example txt2img -- "a penguin on a green background" penguin.png`

use std::error::Error;
use tweedie::images::encode_png;
use tweedie_pipelines::{TextToImage, TextToImageRequest};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let prompt = arguments.next().unwrap_or_else(|| "a fox on a blue background".into());
    let file = arguments.next().unwrap_or_else(|| "picture.png".into());

    let pipeline = TextToImage::builder().build()?;
    let request = TextToImageRequest { prompt, seed: 6, ..TextToImageRequest::default() };
    let record = pipeline.model().record(&pipeline.settle(&request)?);
    let pictures = pipeline.generate(&request)?;

    std::fs::write(&file, encode_png(&pictures[0], &record.chunks(request.seed))?)?;
    println!("saved {file}");
    Ok(())
}
