//! Noise schedules compared: how much of the picture is left at each timestep, and what it looks like.
//!
//! `cargo run --release --example noise_schedules -- OUTPUT_DIR [MNIST_DIR]`
//!
//! Writes `alphas_cumprod.png` and `snr.png`, and with a data set `forward.png`: a row of noisy states of one picture
//! for each schedule. Linear is that of Ho et al. 2020, cosine that of Nichol and Dhariwal 2021, sigmoid diffusers',
//! from Xu et al. 2022.

use std::error::Error;
use std::path::Path;
use tweedie::config::ConfigFields;
use tweedie::images::{Picture, Plot, Series};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::data::{FolderOptions, Split, read_set};

/// diffusers' name and the number of timesteps of each schedule.
const SCHEDULES: [(&str, usize); 4] =
    [("linear", 500), ("linear", 1000), ("squaredcos_cap_v2", 1000), ("sigmoid", 1000)];
/// States of a forward row.
const COLUMNS: usize = 11;

fn schedule(name: &str, timesteps: usize) -> tweedie::Result<NoiseSchedule> {
    let fields = ConfigFields::from_fields("scheduler", serde_json::Map::new());
    let fields = fields.with("beta_schedule", name).with("num_train_timesteps", timesteps);
    NoiseSchedule::from_config(&fields.with("beta_start", 1e-4).with("beta_end", 0.02))
}

/// A curve for each schedule over the share of its timesteps.
fn plot(title: &str, logarithmic: bool, value: impl Fn(f64) -> f64) -> tweedie::Result<Picture> {
    let curve = |(name, timesteps): (&str, usize)| {
        let schedule = schedule(name, timesteps)?;
        let points = schedule.alphas_cumprod().iter().enumerate();
        let points = points.map(|(t, &alpha_cumprod)| ((t + 1) as f64 / timesteps as f64, value(alpha_cumprod)));
        Ok(Series::line(format!("{name} {timesteps}").replace("squaredcos_cap_v2", "cosine"), points.collect()))
    };
    let series = SCHEDULES.into_iter().map(curve).collect::<tweedie::Result<_>>()?;
    let (x_label, y_label) = ("t / T".into(), title.into());
    Plot { title: format!("{title} of noise schedules"), x_label, y_label, logarithmic: (false, logarithmic), series }
        .draw()
}

/// The first picture of a set under each schedule, with the same noise everywhere.
fn forward_rows(data: &Path) -> tweedie::Result<Picture> {
    let set = read_set(data, Split::Train, FolderOptions::default())?.first(1);
    let x0 = set.images(&[0])?;
    let noise = TorchNoise::shared(0).normal(x0.dims())?;
    let mut pictures = Vec::new();
    for (name, timesteps) in SCHEDULES {
        let schedule = schedule(name, timesteps)?;
        for column in 0..COLUMNS {
            let level = schedule.level(column * (timesteps - 1) / (COLUMNS - 1))?;
            pictures.extend(Picture::from_tensor(&level.add_noise(&x0, &noise)?)?);
        }
    }
    Picture::grid(&pictures, COLUMNS, 2)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let output = arguments.next().ok_or("give a folder for the pictures")?;
    let output = Path::new(&output);
    let save = |name, picture: Picture| -> Result<(), Box<dyn Error>> { Ok(picture.save(&output.join(name), &[])?) };
    save("alphas_cumprod.png", plot("alphas_cumprod", false, |alpha_cumprod| alpha_cumprod)?)?;
    save("snr.png", plot("SNR", true, |alpha_cumprod| alpha_cumprod / (1.0 - alpha_cumprod))?)?;
    if let Some(data) = arguments.next() {
        save("forward.png", forward_rows(Path::new(&data))?)?;
    }
    Ok(())
}
