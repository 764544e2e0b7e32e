//! The grid of pictures in the README.
//!
//! `cargo run --release --example picture_grid -- examples/pictures/emoji-grid.png`

use std::error::Error;
use std::path::Path;
use tweedie::images::{Photo, Picture};
use tweedie_pipelines::{LatentDiffusion, TextToImageRequest};

/// What the pictures show, all with the seed 0.
const PROMPTS: [&str; 16] = [
    "a fox on an orange background, flat style",
    "a panda under water, fluent style",
    "a penguin at sunset, noto style",
    "a hamburger on a blue background, noto style",
    "a lion on a pink background, flat style",
    "an alien on a pink background, noto style",
    "a crown on a purple background, noto style",
    "a spooky ghost at night",
    "a smiley face with sunglasses",
    "a house in the mountains, noto style",
    "a mushroom in the snow, flat style",
    "a red car on a yellow background, fluent style",
    "a wizard in the mountains, flat style",
    "a bus on a beach, fluent style",
    "a frog on a white background, fluent style",
    "a fox and a pizza on a beach, noto style",
];

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("give the name of the PNG file to write")?;
    let model = LatentDiffusion::builder().build()?;
    let mut pictures = Vec::new();
    for prompt in PROMPTS {
        let request = TextToImageRequest { prompt: prompt.into(), ..TextToImageRequest::default() };
        pictures.extend(model.generate(&request)?.pictures.iter().map(Photo::to_picture));
    }
    Picture::grid(&pictures, 8, 4)?.save(Path::new(&file), &[])?;
    println!("saved {file}");
    Ok(())
}
