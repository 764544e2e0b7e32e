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
use experiments::training::{SAMPLING_STEPS, digits, request, small, train, work};
use experiments::{Column, Experiment, Figures, Judge, Outcome, Results};
use serde::Serialize;
use serde_json::json;
use tweedie::images::{Plot, Series};
use tweedie_pipelines::{CommonSettings, DecayChoice, PixelTrainingSettings};

const EXPERIMENT: Experiment = Experiment {
    name: "ema_lengths",
    title: "Lengths of the weights' average",
    options: &[STEPS],
    columns: &[
        Column::setting("relative_deviation"),
        Column::figure("fid", "FID", 1),
        Column::figure("kid", "KID", 2),
        Column::figure("is", "IS", 2),
        Column::figure("precision", "precision", 3),
        Column::figure("recall", "recall", 3),
        Column::figure("seconds", "seconds", 0),
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
    let points = rows.iter().filter_map(|(row, figures)| Some((row.relative_deviation, figures.get("fid")?)));
    let mut series = vec![Series::marked("averaged weights", points.collect(), true)];
    let ends = [LENGTHS[0], LENGTHS[LENGTHS.len() - 1]];
    series.extend(floor.map(|fid| Series::line("real digits", ends.map(|length| (length, fid)).to_vec())));
    Plot {
        title: "FID over the length of the weights' average".into(),
        x_label: "relative standard deviation of the average".into(),
        y_label: "FID, features of LeNet".into(),
        logarithmic: (false, true),
        series,
    }
}

fn main() -> Outcome {
    let arguments = EXPERIMENT.arguments();
    let samples = arguments.samples(arguments.size.pick(500, 5000))?;
    let steps = arguments.steps(arguments.size.pick(4000, 40_000))?;
    let settings = json!({"samples": samples, "training_steps": steps, "sampling_steps": SAMPLING_STEPS});
    let mut results = Results::open(EXPERIMENT, &arguments, settings)?;
    let data = digits(&arguments.data)?;
    let judge = Judge::open(&arguments.data, samples)?;
    results.measure_floor(&judge)?;

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
