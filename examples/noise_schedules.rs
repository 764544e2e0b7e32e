//! Noise schedules compared: how much of the picture is left at each timestep, what that looks like, and how well a small model
//! of digits learns with each.
//!
//! `cargo run --release --example noise_schedules -- --output DIR [--size hour|night] [--resume] [--data DIR]`
//!
//! Linear is that of Ho et al. 2020, with half as many timesteps and the same betas too; cosine that of Nichol and Dhariwal 2021;
//! sigmoid diffusers', from Xu et al. 2022; zero terminal SNR that of Lin et al. 2024. All models predict v. Losses are means over
//! timesteps, each schedule's own, and say nothing of another's.

mod experiments;

use experiments::arguments::STEPS;
use experiments::plots::points;
use experiments::training::{SAMPLING_STEPS, digits, request, run_name, small, train, work};
use experiments::{Column, Experiment, Figures, Outcome, begin};
use serde::Serialize;
use serde_json::json;
use tweedie::config::ConfigFields;
use tweedie::files::replace_file;
use tweedie::images::{Picture, Plot, Series, encode_png};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::data::ImageSet;
use tweedie_pipelines::{BetaChoice, PixelTrainingSettings};

const EXPERIMENT: Experiment = Experiment {
    name: "noise_schedules",
    title: "Noise schedules",
    options: &[STEPS],
    columns: &[
        Column::setting("schedule"),
        Column::setting("timesteps"),
        Column::FID,
        Column::KID,
        Column::IS,
        Column::LOSS,
        Column::TRAINING_SECONDS,
    ],
};

/// States of a forward row.
const COLUMNS: usize = 11;

#[derive(Debug, Clone, Copy, Serialize)]
struct Schedule {
    schedule: &'static str,
    timesteps: usize,
    #[serde(skip)]
    betas: BetaChoice,
    #[serde(skip)]
    zero_terminal_snr: bool,
}

const fn schedule(schedule: &'static str, timesteps: usize, betas: BetaChoice) -> Schedule {
    Schedule { schedule, timesteps, betas, zero_terminal_snr: false }
}

const SCHEDULES: [Schedule; 6] = [
    schedule("linear", 1000, BetaChoice::Linear),
    schedule("linear", 500, BetaChoice::Linear),
    schedule("cosine", 1000, BetaChoice::Cosine),
    schedule("sigmoid", 1000, BetaChoice::Sigmoid),
    Schedule { zero_terminal_snr: true, ..schedule("linear, zero terminal SNR", 1000, BetaChoice::Linear) },
    Schedule { zero_terminal_snr: true, ..schedule("cosine, zero terminal SNR", 1000, BetaChoice::Cosine) },
];

impl Schedule {
    fn name(&self) -> String {
        format!("{} {}", self.schedule, self.timesteps)
    }

    fn settings(&self, steps: u64) -> PixelTrainingSettings {
        let (beta_schedule, timesteps, zero_terminal_snr) = (self.betas, self.timesteps, self.zero_terminal_snr);
        PixelTrainingSettings { beta_schedule, timesteps, zero_terminal_snr, ..small(steps) }
    }

    fn noise_schedule(&self) -> tweedie::Result<NoiseSchedule> {
        NoiseSchedule::from_config(&ConfigFields::from_fields("scheduler", self.settings(1).scheduler()))
    }
}

/// A curve for each schedule over the share of its timesteps.
fn curves(title: &str, logarithmic: bool, value: impl Fn(f64) -> f64) -> tweedie::Result<Plot> {
    let curve = |schedule: Schedule| {
        let levels = schedule.noise_schedule()?;
        let share = |t: usize| (t + 1) as f64 / schedule.timesteps as f64;
        let points = levels.alphas_cumprod().iter().enumerate().map(|(t, &abar)| (share(t), value(abar)));
        Ok(Series::line(schedule.name(), points.collect()))
    };
    let series = SCHEDULES.into_iter().map(curve).collect::<tweedie::Result<_>>()?;
    let (x_label, y_label) = ("t / T".into(), title.into());
    Ok(Plot {
        title: format!("{title} of noise schedules"),
        x_label,
        y_label,
        logarithmic: (false, logarithmic),
        series,
    })
}

/// The first digit under each schedule, with the same noise everywhere.
fn forward_rows(set: &ImageSet) -> tweedie::Result<Picture> {
    let x0 = set.images(&[0])?;
    let noise = TorchNoise::shared(0).normal(x0.dims())?;
    let mut pictures = Vec::new();
    for schedule in SCHEDULES {
        let levels = schedule.noise_schedule()?;
        for column in 0..COLUMNS {
            let level = levels.level(column * (schedule.timesteps - 1) / (COLUMNS - 1))?;
            pictures.extend(Picture::from_tensor(&level.add_noise(&x0, &noise)?)?);
        }
    }
    Picture::grid(&pictures, COLUMNS, 2)
}

/// FID over loss.
fn plot(rows: &[(Schedule, Figures)]) -> Plot {
    Plot {
        title: "FID of models with each noise schedule".into(),
        x_label: "loss of v, over the schedule's own timesteps".into(),
        y_label: "FID, features of LeNet".into(),
        logarithmic: (false, false),
        series: points(rows, ["loss", "fid"], Schedule::name),
    }
}

fn main() -> Outcome {
    let arguments = EXPERIMENT.arguments();
    let samples = arguments.samples(arguments.size.pick(500, 5000))?;
    let steps = arguments.steps(arguments.size.pick(1200, 10_000))?;
    let settings = json!({"samples": samples, "training_steps": steps, "sampling_steps": SAMPLING_STEPS});
    let (mut results, judge) = begin(EXPERIMENT, &arguments, settings, samples)?;
    let data = digits(&arguments.data)?;
    replace_file(&arguments.output.join("forward.png"), &encode_png(&forward_rows(&data)?, &[])?)?;

    let (runs, drawing) = (results.runs(), judge.work(SAMPLING_STEPS));
    let rows = results.measure(
        SCHEDULES.into(),
        |_| work(steps) + drawing,
        |row, progress| {
            let trained = train(row.settings(steps), &data, &runs.join(run_name(&row.name())), progress)?;
            let judged = judge.judge(&trained.pipeline, request(), drawing, progress)?;
            Ok(judged.with_number("loss", trained.loss).with_number("training_seconds", trained.seconds))
        },
    )?;
    results.finish(&[
        ("alphas_cumprod.png", curves("alphas_cumprod", false, |abar| abar)?),
        ("snr.png", curves("SNR", true, |abar| abar / (1.0 - abar))?),
        ("fid.png", plot(&rows)),
    ])
}
