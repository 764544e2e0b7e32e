//! What tests of `tweedie train lora` and `tweedie train embedding` have alike.

use super::kills::{killed_until_it_ends, steps};
use super::{TestResult, Tweedie};
use ::tweedie::images::{ColorType, Photo, Samples};
use std::path::Path;
use std::time::Duration;

/// The side of the files; the network sees them at twice that.
const SIDE: usize = 16;
/// Steps of sample grids.
pub const STEPS: &str = "4";

pub fn write_picture(path: &Path, number: usize) -> TestResult {
    let samples = (0..SIDE * SIDE).flat_map(|i| {
        let (x, y) = (i % SIDE, i / SIDE);
        [if x > y { 240 } else { 20 }, (40 * number) as u8, (x * y) as u8]
    });
    let photo = Photo::new(SIDE, SIDE, ColorType::Rgb, Samples::Eight(samples.collect()))?;
    Ok(std::fs::write(path, photo.encode_png(&[])?)?)
}

/// Five pictures in the folder data, each with two captions of a word beside it, and a prompt for samples.
pub fn with_data(word: &str) -> TestResult<Tweedie> {
    let tweedie = Tweedie::new()?;
    std::fs::create_dir_all(tweedie.path("data"))?;
    for i in 0..5 {
        write_picture(&tweedie.path(&format!("data/{i}.png")), i)?;
        std::fs::write(tweedie.path(&format!("data/{i}.txt")), format!("a {word} flag\na {word}, number {i}\n"))?;
    }
    std::fs::write(tweedie.path("prompts.txt"), format!("a {word} flag\n"))?;
    Ok(tweedie)
}

/// The arguments of a run of a kind.
pub fn arguments<'a>(kind: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["train", kind, "--data", "data", "--output", output, "--quiet"];
    if !more.contains(&"--resize") {
        all.extend(["--resize", "32"]);
    }
    all.extend(["--sample-steps", STEPS, "--sample-prompts", "prompts.txt", "--sample-every", "1000"]);
    all.extend(more);
    all
}

/// The bytes of the finished file, and each step's losses and norms.
fn result(run: &Path, file: &str) -> TestResult<(Vec<u8>, Vec<String>)> {
    Ok((std::fs::read(run.join(file))?, steps(run)?))
}

/// Killed at many moments and resumed each time, a run of 60 steps ends with the bits of one that was left alone.
pub fn check_kills(tweedie: &Tweedie, kind: &str, more: &[&str], file: &str) -> TestResult {
    let options = ["--resume", "--seed", "3", "--steps", "60", "--checkpoint-every", "3", "--flip", "--batch-size=2"];
    let options = [&options[..], &["--accumulate", "2"], more].concat();
    tweedie.run(&arguments(kind, "whole", &options))?.success()?;
    let whole = result(&tweedie.path("whole"), file)?;
    assert_eq!(whole.1.len(), 60);
    let kills = killed_until_it_ends(tweedie, &arguments(kind, "killed", &options), Duration::from_millis(80))?;
    assert!(kills > 3, "{kills} kills");
    let killed = result(&tweedie.path("killed"), file)?;
    assert_eq!(killed.1, whole.1, "after {kills} kills");
    assert!(killed.0 == whole.0, "the files differ after {kills} kills");
    Ok(())
}

/// Draws a prompt as sample grids do, at a guidance and from the first seed.
pub fn draw(tweedie: &Tweedie, prompt: &str, guidance_scale: &str, output: &str, more: &[&str]) -> TestResult {
    let size: &[_] = if more.contains(&"--width") { &[] } else { &["--width", "32", "--height", "32"] };
    let all = ["txt2img", "--prompt", prompt, "--steps", STEPS, "--quiet"];
    let sampled = ["--guidance-scale", guidance_scale, "--seed", "0", "--output", output];
    tweedie.run(&[&all[..], &sampled, size, more].concat())?.success()?;
    Ok(())
}

/// How far the values of two pictures are apart, in the mean.
pub fn difference(one: &Path, other: &Path) -> TestResult<f64> {
    let (one, other) = (super::pixels(one)?.2, super::pixels(other)?.2);
    let differences: u64 = one.iter().zip(&other).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    Ok(differences as f64 / one.len() as f64)
}
