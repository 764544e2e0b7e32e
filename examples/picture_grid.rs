//! The grid of pictures in the README.
//!
//! `cargo run --release --example picture_grid -- examples/pictures/emoji-grid.png`

use std::error::Error;
use std::path::Path;
use tweedie::images::{Photo, Picture};
use tweedie_pipelines::{LatentDiffusion, TextToImageRequest};

/// Prompt and seed of each picture.
const PICTURES: [(&str, u64); 16] = [
    ("a fox on a blue background", 6),
    ("a penguin on a green background", 1),
    ("a pizza, noto style", 3),
    ("a rocket on a black background, fluent style", 2),
    ("a panda on a pink background", 4),
    ("a sunflower on a purple background", 9),
    ("a castle on a yellow background, flat style", 5),
    ("a red apple on a blue background", 1),
    ("the sun on a blue background", 3),
    ("a cactus on a gray background", 2),
    ("a red heart on a black background", 4),
    ("an owl on a blue background, noto style", 5),
    ("a strawberry", 8),
    ("a snowman on a red background", 7),
    ("a rainbow on a white background", 1),
    ("a banana on a purple background", 6),
];

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("give the name of the PNG file to write")?;
    let model = LatentDiffusion::builder().build()?;
    let mut pictures = Vec::new();
    for (prompt, seed) in PICTURES {
        let request = TextToImageRequest { prompt: prompt.into(), seed, ..TextToImageRequest::default() };
        pictures.extend(model.generate(&request)?.pictures.iter().map(Photo::to_picture));
    }
    Picture::grid(&pictures, 8, 4)?.save(Path::new(&file), &[])?;
    println!("saved {file}");
    Ok(())
}
