//! DDPM against DDIM with more or less fresh noise, over the number of steps: table 1 of Song, Meng and Ermon 2021
//! ("Denoising diffusion implicit models"), on digits.
//!
//! `cargo run --release --example ddpm_vs_ddim -- --output DIR [--size hour|night] [--resume] [--data DIR]`
//!
//! Eta is the share of DDPM's noise that a step adds: with 0 a step is deterministic, with 1 it is DDPM's with the posterior's
//! variance. DDPM itself has that one (`fixed_small`), or the larger one of the forward step (`fixed_large`), the sigma hat of
//! the table.

mod experiments;

use experiments::arguments::{GUIDANCE_SCALE, MODEL};
use experiments::plots::{lines, with_real_digits};
use experiments::{Column, Experiment, Figures, Outcome, begin};
use serde::Serialize;
use serde_json::{Map, json};
use tweedie::images::Plot;
use tweedie_pipelines::PixelRequest;

const EXPERIMENT: Experiment = Experiment {
    name: "ddpm_vs_ddim",
    title: "DDPM and DDIM over the number of steps",
    options: &[MODEL, GUIDANCE_SCALE],
    columns: &[
        Column::setting("sampler"),
        Column::setting("variance"),
        Column::setting("eta"),
        Column::setting("steps"),
        Column::FID,
        Column::KID,
        Column::IS,
        Column::PRECISION,
        Column::RECALL,
        Column::SECONDS,
    ],
};

/// Numbers of steps; all of them, as many as the model was trained on, come after.
const STEPS: [usize; 4] = [10, 20, 50, 100];
const ALL: usize = 1000;

/// A way of drawing digits.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Sampler {
    sampler: &'static str,
    variance: Option<&'static str>,
    eta: Option<f64>,
    steps: usize,
}

impl Sampler {
    fn ddpm(variance: &'static str) -> Self {
        Self { sampler: "ddpm", variance: Some(variance), eta: None, steps: 0 }
    }

    fn ddim(eta: f64) -> Self {
        Self { sampler: "ddim", variance: None, eta: Some(eta), steps: 0 }
    }

    fn name(&self) -> String {
        let Self { sampler, variance, eta, .. } = self;
        let eta = eta.map(|eta| format!(" eta {eta}"));
        format!("{sampler}{}{}", variance.map(|name| format!(" {name}")).unwrap_or_default(), eta.unwrap_or_default())
    }

    fn request(&self, guidance_scale: f64) -> PixelRequest {
        let variance = self.variance.map(|name| ("variance_type".to_owned(), json!(name)));
        PixelRequest {
            scheduler: Some(self.sampler.into()),
            scheduler_config: Map::from_iter(variance),
            eta: self.eta,
            steps: Some(self.steps),
            guidance_scale: Some(guidance_scale),
            ..PixelRequest::default()
        }
    }
}

/// The FID of every sampler over its steps, and that of real digits.
fn plot(rows: &[(Sampler, Figures)], floor: Option<f64>) -> Plot {
    Plot {
        title: "FID of DDPM and DDIM".into(),
        x_label: "steps".into(),
        y_label: "FID, features of LeNet".into(),
        logarithmic: (true, true),
        series: with_real_digits(lines(rows, "fid", |row| row.steps as f64, Sampler::name), floor),
    }
}

fn main() -> Outcome {
    let arguments = EXPERIMENT.arguments();
    let (samples, guidance_scale) = (arguments.samples(arguments.size.pick(500, 2000))?, arguments.guidance_scale()?);
    let pipeline = arguments.pipeline()?;
    let settings = json!({"samples": samples, "model": pipeline.model_name(), "guidance_scale": guidance_scale});
    let (mut results, judge) = begin(EXPERIMENT, &arguments, settings, samples)?;

    let mut samplers = vec![Sampler::ddpm("fixed_small"), Sampler::ddpm("fixed_large")];
    samplers.extend([0.0, 0.2, 0.5, 1.0].map(Sampler::ddim));
    let with = |steps| samplers.iter().map(move |sampler| Sampler { steps, ..sampler.clone() });
    let mut rows: Vec<Sampler> = STEPS.into_iter().flat_map(with).collect();
    // A thousand steps of each sampler are most of a night's work.
    let ends = [Sampler::ddpm("fixed_small"), Sampler::ddim(0.0)].map(|sampler| sampler.name());
    rows.extend(with(ALL).filter(|sampler| arguments.size.pick(ends.contains(&sampler.name()), true)));

    let work = |row: &Sampler| judge.work(row.steps);
    let rows = results.measure(rows, work, |row, progress| {
        judge.judge(&pipeline, row.request(guidance_scale), work(row), progress)
    })?;
    results.finish(&[("fid.png", plot(&rows, results.floor("fid")))])
}
