//! How long the memory of the averaged weights is to be: one training of digits, of which several averages are kept, and the
//! figures of a model with each (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
//! section 3 and figure 5).
//!
//! `cargo run --release --example ema_lengths -- --output DIR [--size hour|night] [--resume] [--data DIR]`
//!
//! A length is the standard deviation of the weights' shares, relative to the run. The learning rate stays as it is, so that
//! there is something to average. The averages are kept while the network is trained; others are not reconstructed from
//! snapshots afterwards, as the paper has it too.

mod experiments;

use experiments::arguments::STEPS;
use experiments::plots::{lines, with_real_digits};
use experiments::training::{SAMPLING_STEPS, digits, request, small, train, work};
use experiments::{Column, Experiment, Figures, Outcome, begin};
use serde::Serialize;
use serde_json::json;
use tweedie::images::Plot;
use tweedie_pipelines::{CommonSettings, DecayChoice, PixelTrainingSettings};

const EXPERIMENT: Experiment = Experiment {
    name: "ema_lengths",
    title: "Lengths of the weights' average",
    options: &[STEPS],
    columns: &[
        Column::setting("relative_deviation"),
        Column::FID,
        Column::KID,
        Column::IS,
        Column::PRECISION,
        Column::RECALL,
        Column::SECONDS,
    ],
};

const LENGTHS: [f64; 7] = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25];

#[derive(Debug, Serialize)]
struct Average {
    relative_deviation: f64,
}

impl Average {
    fn settings(&self, steps: u64) -> PixelTrainingSettings {
        let small = small(steps);
        PixelTrainingSettings {
            common: CommonSettings { lr_schedule: DecayChoice::Constant, ..small.common },
            power_averages: LENGTHS.into(),
            average: Some(self.relative_deviation),
            ..small
        }
    }
}

fn plot(rows: &[(Average, Figures)], floor: Option<f64>) -> Plot {
    let averages = lines(rows, "fid", |row| row.relative_deviation, |_| "averaged weights".into());
    Plot {
        title: "FID over the length of the weights' average".into(),
        x_label: "relative standard deviation of the average".into(),
        y_label: "FID, features of LeNet".into(),
        logarithmic: (false, true),
        series: with_real_digits(averages, floor),
    }
}

fn main() -> Outcome {
    let arguments = EXPERIMENT.arguments();
    let samples = arguments.samples(arguments.size.pick(500, 5000))?;
    let steps = arguments.steps(arguments.size.pick(4000, 40_000))?;
    let settings = json!({"samples": samples, "training_steps": steps, "sampling_steps": SAMPLING_STEPS});
    let (mut results, judge) = begin(EXPERIMENT, &arguments, settings, samples)?;
    let data = digits(&arguments.data)?;

    let (run, drawing) = (results.runs().join("averaged"), judge.work(SAMPLING_STEPS));
    let rows = LENGTHS.map(|relative_deviation| Average { relative_deviation }).into();
    // The first row trains the network, and the others make its model again.
    let training = |row: &Average| if row.relative_deviation == LENGTHS[0] { work(steps) } else { 0.0 };
    let rows = results.measure(
        rows,
        |row| training(row) + drawing,
        |row, progress| {
            let trained = train(row.settings(steps), &data, &run, progress)?;
            judge.judge(&trained.pipeline, request(), drawing, progress)
        },
    )?;
    results.finish(&[("fid.png", plot(&rows, results.floor("fid")))])
}
