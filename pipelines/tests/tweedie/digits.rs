//! What tests of `tweedie train mnist` have alike.

use super::{TestResult, Tweedie};
use std::path::Path;

/// A data set of three classes of stripes in IDX files, 8x8.
fn write_digits(folder: &Path) -> TestResult {
    std::fs::create_dir_all(folder)?;
    const COUNT: u32 = 24;
    let header = |magic: u32, sizes: &[u32]| {
        let numbers = std::iter::once(&magic).chain(sizes);
        numbers.flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>()
    };
    let mut images = header(0x0803, &[COUNT, 8, 8]);
    let mut labels = header(0x0801, &[COUNT]);
    for i in 0..COUNT {
        let class = i % 3;
        labels.push(class as u8);
        images.extend((0..64u32).map(|p| if (p / 8 + class * (p % 8) + i / 3) % 4 < 2 { 230 } else { 10 }));
    }
    std::fs::write(folder.join("train-images-idx3-ubyte"), images)?;
    std::fs::write(folder.join("train-labels-idx1-ubyte"), labels)?;
    Ok(())
}

/// The arguments of a short run into `output`.
pub fn arguments<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["train", "mnist", "--data", "data", "--output", output, "--quiet"];
    all.extend(["--channels", "4,8", "--batch-size", "4", "--timesteps", "50", "--warmup-steps", "5"]);
    all.extend(more);
    all
}

/// A folder with the data.
pub fn with_data() -> TestResult<Tweedie> {
    let tweedie = Tweedie::new()?;
    write_digits(&tweedie.path("data"))?;
    Ok(tweedie)
}
