//! What classifier-free guidance trades: FID against the inception score, and precision against recall, as the scale grows
//! (Ho and Salimans 2022, "Classifier-free diffusion guidance", figure 4).
//!
//! `cargo run --release --example guidance_scales -- --output DIR [--size hour|night] [--resume] [--data DIR]`

mod experiments;

use experiments::arguments::MODEL;
use experiments::plots::points;
use experiments::{Column, Experiment, Figures, Outcome, begin};
use serde::Serialize;
use serde_json::json;
use tweedie::images::{Plot, Series};
use tweedie_pipelines::PixelRequest;

const EXPERIMENT: Experiment = Experiment {
    name: "guidance_scales",
    title: "Scales of classifier-free guidance",
    options: &[MODEL],
    columns: &[
        Column::setting("scale"),
        Column::FID,
        Column::IS,
        Column::PRECISION,
        Column::RECALL,
        Column::KID,
        Column::SECONDS,
    ],
};

/// 1 is without guidance, and 0 would be without a class.
const SCALES: [f64; 8] = [1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0];

#[derive(Debug, Serialize)]
struct Guidance {
    scale: f64,
}

impl Guidance {
    /// Evaluations of the network in a step.
    fn evaluations(&self) -> usize {
        if self.scale == 1.0 { 1 } else { 2 }
    }
}

/// One figure over another, with a point for each scale.
fn plot(rows: &[(Guidance, Figures)], x: (&str, &str), y: (&str, &str)) -> Plot {
    let mut series = points(rows, [x.0, y.0], |row| format!("scale {}", row.scale));
    let all = series.iter().flat_map(|scale| scale.points.clone()).collect();
    series.push(Series::line("in this order", all));
    Plot {
        title: format!("{} against {} of guided digits", y.1, x.1),
        x_label: format!("{}, by LeNet", x.1),
        y_label: format!("{}, by LeNet", y.1),
        logarithmic: (false, false),
        series,
    }
}

fn main() -> Outcome {
    let arguments = EXPERIMENT.arguments();
    let samples = arguments.samples(arguments.size.pick(1000, 10_000))?;
    let pipeline = arguments.pipeline()?;
    let usual = pipeline.settle(&PixelRequest::default())?;
    let (scheduler, steps) = (usual.scheduler.name(), usual.steps);
    let settings = json!({
        "samples": samples, "model": pipeline.model_name(), "scheduler": scheduler, "steps": steps,
    });
    let (mut results, judge) = begin(EXPERIMENT, &arguments, settings, samples)?;

    let rows = SCALES.map(|scale| Guidance { scale }).into();
    let work = |row: &Guidance| judge.work(row.evaluations() * steps);
    let rows = results.measure(rows, work, |row, progress| {
        let request = PixelRequest {
            scheduler: Some(scheduler.clone()),
            steps: Some(steps),
            guidance_scale: Some(row.scale),
            ..PixelRequest::default()
        };
        judge.judge(&pipeline, request, work(row), progress)
    })?;
    results.finish(&[
        ("fid_is.png", plot(&rows, ("is", "IS"), ("fid", "FID"))),
        ("precision_recall.png", plot(&rows, ("recall", "recall"), ("precision", "precision"))),
    ])
}
