//! Networks of several sizes, trained for longer and longer: what size and length cost, and what they bring.
//!
//! `cargo run --release --example network_sizes -- --output DIR [--size hour|night] [--resume] [--data DIR]`
//!
//! Each length is a run of its own, whose learning rate falls to nothing at its end.

mod experiments;

use experiments::arguments::STEPS;
use experiments::training::{SAMPLING_STEPS, digits, request, small, train, work};
use experiments::{Column, Experiment, Figures, Outcome, begin};
use serde::Serialize;
use serde_json::json;
use tweedie::images::{Plot, Series};
use tweedie_pipelines::PixelTrainingSettings;

const EXPERIMENT: Experiment = Experiment {
    name: "network_sizes",
    title: "Sizes of networks and lengths of training",
    options: &[STEPS],
    columns: &[
        Column::setting("channels"),
        Column::setting("steps"),
        Column::figure("parameters", "parameters", 0),
        Column::FID,
        Column::KID,
        Column::IS,
        Column::LOSS,
        Column::TRAINING_SECONDS,
    ],
};

/// Channels at each resolution.
const SIZES: [[usize; 3]; 3] = [[8, 16, 32], [16, 32, 64], [32, 64, 96]];
/// Lengths, as parts of the longest.
const PARTS: [u64; 3] = [4, 2, 1];

#[derive(Debug, Clone, Copy, Serialize)]
struct Training {
    channels: [usize; 3],
    steps: u64,
}

impl Training {
    fn name(&self) -> String {
        self.channels.map(|channels| channels.to_string()).join("-")
    }

    fn settings(&self) -> PixelTrainingSettings {
        PixelTrainingSettings { channels: self.channels.into(), ..small(self.steps) }
    }

    /// How much more an evaluation costs than that of the middle one: most of it is in the products of the full resolution.
    fn cost(&self) -> f64 {
        (self.channels[0] as f64 / SIZES[1][0] as f64).powf(1.5)
    }
}

/// A figure over the seconds of training, with a line for each size.
fn plot(rows: &[(Training, Figures)], figure: &str, y_label: &str) -> Plot {
    let series = SIZES.map(|channels| {
        let of_size = rows.iter().filter(|(row, _)| row.channels == channels);
        let points = of_size.filter_map(|(_, figures)| Some((figures.get("training_seconds")?, figures.get(figure)?)));
        let parameters = rows.iter().find(|(row, _)| row.channels == channels);
        let parameters = parameters.and_then(|(_, figures)| figures.get("parameters")).unwrap_or_default();
        Series::marked(format!("{:.0}k parameters", parameters / 1000.0), points.collect(), true)
    });
    Plot {
        title: format!("{y_label} of networks over the length of their training"),
        x_label: "seconds of training".into(),
        y_label: y_label.into(),
        logarithmic: (true, true),
        series: series.into(),
    }
}

fn main() -> Outcome {
    let arguments = EXPERIMENT.arguments();
    let samples = arguments.samples(arguments.size.pick(500, 5000))?;
    let steps = arguments.steps(arguments.size.pick(1200, 8000))?;
    let settings = json!({"samples": samples, "longest_training": steps, "sampling_steps": SAMPLING_STEPS});
    let (mut results, judge) = begin(EXPERIMENT, &arguments, settings, samples)?;
    let data = digits(&arguments.data)?;

    let of_size = |channels| PARTS.map(|part| Training { channels, steps: (steps / part).max(1) });
    let rows: Vec<Training> = SIZES.into_iter().flat_map(of_size).collect();
    let (runs, drawing) = (results.runs(), judge.work(SAMPLING_STEPS));
    let cost = |row: &Training| row.cost() * (work(row.steps) + drawing);
    let rows = results.measure(rows, cost, |row, progress| {
        progress.scale(row.cost());
        let run = runs.join(format!("{}-steps-{}", row.name(), row.steps));
        let trained = train(row.settings(), &data, &run, progress)?;
        let judged = judge.judge(&trained.pipeline, request(), drawing, progress)?;
        Ok(judged
            .with_number("loss", trained.loss)
            .with_number("parameters", trained.parameters as f64)
            .with_number("training_seconds", trained.seconds))
    })?;
    results.finish(&[("fid.png", plot(&rows, "fid", "FID")), ("loss.png", plot(&rows, "loss", "loss of v"))])
}
