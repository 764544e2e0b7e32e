//! `tweedie schedulers`, and the plot of a schedule.

use tweedie::images::{Picture, Plot, Series};
use tweedie::schedulers::{SCHEDULERS, Stochastic};
use tweedie_pipelines::Settings;

/// Lists every scheduler.
pub fn list() {
    println!(
        "{:13} {:>5} {:>11}  {:10} {:32} {}",
        "name", "order", "evaluations", "noise", "diffusers' class", "reference"
    );
    for entry in SCHEDULERS {
        let noise = match entry.stochastic {
            Stochastic::No => "no",
            Stochastic::Optional => "optional",
            Stochastic::Yes => "yes",
        };
        println!(
            "{:13} {:>5} {:>11}  {:10} {:32} {}",
            entry.name, entry.order, entry.evaluations, noise, entry.class_name, entry.reference
        );
    }
    println!("\nEndings that place the noise levels, where a scheduler takes them:");
    for entry in SCHEDULERS.iter().filter(|entry| !entry.suffixes.is_empty()) {
        let endings: Vec<_> = entry.suffixes.iter().map(|suffix| format!("-{}", suffix.name)).collect();
        println!("{:13} {}", entry.name, endings.join(" "));
    }
    println!("\nevaluations: of the network in each step. noise: whether it is added on the way.");
}

/// Alpha and sigma of the forward process over the timesteps, and the levels that a run visits.
pub fn plot(settings: &Settings) -> tweedie::Result<Picture> {
    let scheduler = settings.build_scheduler()?;
    let levels = settings.levels(scheduler.as_ref())?;
    let mut series = Vec::new();
    if let Some(schedule) = scheduler.schedule() {
        let over = |f: fn(f64) -> f64| {
            schedule.alphas_cumprod().iter().enumerate().map(|(t, abar)| (t as f64, f(*abar))).collect()
        };
        series.push(Series::line("alpha", over(f64::sqrt)));
        series.push(Series::line("sigma", over(|abar| (1.0 - abar).sqrt())));
    }
    // As the network sees them: of unit variance.
    let visited =
        (0..levels.len()).map(|i| levels.from(i)).map(|level| (level.timestep, level.sigma * level.input_scale()));
    series.push(Series::marked("steps", visited.collect(), false));
    Plot {
        title: format!("{}, {} steps", settings.scheduler.name(), settings.steps),
        x_label: "timestep".into(),
        y_label: "x = alpha x0 + sigma noise".into(),
        logarithmic: (false, false),
        series,
    }
    .draw()
}
