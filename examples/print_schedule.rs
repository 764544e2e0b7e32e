//! The noise levels that a scheduler visits.
//!
//! `cargo run --release --example print_schedule -- ddim 10 trailing`

use serde_json::json;
use std::error::Error;
use tweedie::config::ConfigFields;
use tweedie::schedulers::by_name;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "ddim".into());
    let steps = arguments.next().map_or(Ok(10), |steps| steps.parse())?;
    let spacing = arguments.next().unwrap_or_else(|| "leading".into());

    // Stable Diffusion 1.x.
    let config = json!({
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
        "steps_offset": 1, "clip_sample": false, "set_alpha_to_one": false, "timestep_spacing": spacing,
    });
    let fields = ConfigFields::from_fields("scheduler", config.as_object().cloned().unwrap_or_default());
    let levels = by_name(&name)?.build(&fields)?.levels(steps)?;

    println!("{:>4}  {:>8}  {:>8}  {:>8}  {:>9}", "step", "timestep", "alpha", "sigma", "log SNR");
    for i in 0..levels.len() {
        let level = levels.from(i);
        let log_snr = 2.0 * (level.alpha / level.sigma).ln();
        println!("{i:>4}  {:>8}  {:>8.5}  {:>8.5}  {log_snr:>9.4}", level.timestep, level.alpha, level.sigma);
    }
    Ok(())
}
