//! A picture from a text, in a few lines.
//!
//! `cargo run --release --example txt2img -- "a penguin on a green background" penguin.png`

use std::error::Error;
use std::path::Path;
use tweedie_pipelines::{LatentDiffusion, TextToImageRequest};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let prompt = arguments.next().unwrap_or_else(|| "a fox on a blue background".into());
    let file = arguments.next().unwrap_or_else(|| "picture.png".into());

    let model = LatentDiffusion::builder().build()?;
    let request = TextToImageRequest { prompt, seed: 6, ..TextToImageRequest::default() };
    let record = model.record(&model.settle(&request)?);
    let pictures = model.generate(&request)?.pictures;

    pictures[0].save(Path::new(&file), &record.chunks(request.seed))?;
    println!("saved {file}");
    Ok(())
}
