//! `tweedie schedulers`, and the plot of a schedule.

use tweedie::images::{Picture, Plot, Series};
use tweedie::schedulers::SCHEDULERS;
use tweedie_pipelines::Settings;

/// Every scheduler in a table.
pub fn list() -> String {
    let row = |cells: [&str; 5]| {
        let [name, order, evaluations, noise, class_name] = cells;
        format!("{name:13} {order:>5} {evaluations:>11}  {noise:10} {class_name}")
    };
    let mut lines = vec![row(["name", "order", "evaluations", "noise", "diffusers' class"])];
    for entry in SCHEDULERS {
        let noise = entry.stochastic.name();
        let (order, evaluations) = (entry.order.to_string(), entry.evaluations.to_string());
        lines.push(row([entry.name, &order, &evaluations, noise, entry.class_name]));
    }
    lines.push("\nEndings that place the noise levels, where a scheduler takes them:".into());
    for entry in SCHEDULERS.iter().filter(|entry| !entry.suffixes.is_empty()) {
        let endings: Vec<_> = entry.suffixes.iter().map(|suffix| format!("-{}", suffix.name)).collect();
        lines.push(format!("{:13} {}", entry.name, endings.join(" ")));
    }
    lines.push("\nWhere they come from:".into());
    lines.extend(SCHEDULERS.iter().map(|entry| format!("{:13} {}", entry.name, entry.reference)));
    lines.push("\nevaluations: of the network in each step. noise: whether it is added on the way.".into());
    lines.join("\n")
}

/// Alpha and sigma of the forward process over the timesteps, and the levels that a run visits.
pub fn plot(settings: &Settings) -> tweedie::Result<Picture> {
    let scheduler = settings.build_scheduler()?;
    let levels = scheduler.levels(settings.steps)?;
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
        y_label: "coefficients of data (alpha) and noise (sigma)".into(),
        logarithmic: (false, false),
        series,
    }
    .draw()
}
