//! What a model of digits is trained for, and which variance its reverse steps have: L_simple, L_hybrid and L_vlb of Nichol and
//! Dhariwal 2021 ("Improved denoising diffusion probabilistic models", tables 1 and 2), by likelihood and by FID.
//!
//! `cargo run --release --example variances_and_losses -- --output DIR [--size hour|night] [--resume] [--data DIR]`
//!
//! All predict epsilon under cosine betas, which takes its time to learn: x0 at the noisiest timesteps is what the prediction is wrong by,
//! times thousands. With L_simple the variance is fixed, small (the posterior's) or large (the forward
//! step's); the others learn it between the two. L_vlb is noisy, and is trained once more with timesteps drawn by importance.

mod experiments;

use experiments::arguments::STEPS;
use experiments::plots::points;
use experiments::training::{digits, run_name, small, train, work};
use experiments::{Column, Experiment, Figures, Outcome, begin};
use serde::Serialize;
use serde_json::{Map, json};
use tweedie::images::Plot;
use tweedie::schedulers::VarianceType;
use tweedie::training::data::{FolderOptions, Split, read_set};
use tweedie_pipelines::{LikelihoodOptions, PixelRequest, PixelTrainingSettings, PredictionChoice, likelihood_bound};

const EXPERIMENT: Experiment = Experiment {
    name: "variances_and_losses",
    title: "Losses and variances of the reverse step",
    options: &[STEPS],
    columns: &[
        Column::setting("loss"),
        Column::setting("variance"),
        Column::figure("bits_per_dim", "bits per dimension", 3),
        Column::FID,
        Column::KID,
        Column::IS,
        Column::TRAINING_SECONDS,
    ],
};

/// Steps of DDPM in which digits are drawn.
const SAMPLING_STEPS: usize = 100;
/// Timesteps at which a digit's bound is evaluated.
const EVALUATIONS: usize = 50;
/// Digits whose bound is evaluated at a time, and the seed of its noise.
const BATCH: usize = 50;
const SEED: u64 = 0;

/// A loss, and the variance that is taken with it.
#[derive(Debug, Clone, Copy, Serialize)]
struct Choice {
    loss: &'static str,
    variance: &'static str,
    #[serde(skip)]
    variance_type: VarianceType,
}

const fn choice(loss: &'static str, variance: &'static str, variance_type: VarianceType) -> Choice {
    Choice { loss, variance, variance_type }
}

const SIMPLE: &str = "L_simple";
const HYBRID: &str = "L_hybrid";
const BOUND: &str = "L_vlb";
const BOUND_BY_IMPORTANCE: &str = "L_vlb, importance sampling";

const CHOICES: [Choice; 5] = [
    choice(SIMPLE, "fixed_small", VarianceType::FixedSmall),
    choice(SIMPLE, "fixed_large", VarianceType::FixedLarge),
    choice(HYBRID, "learned_range", VarianceType::LearnedRange),
    choice(BOUND, "learned_range", VarianceType::LearnedRange),
    choice(BOUND_BY_IMPORTANCE, "learned_range", VarianceType::LearnedRange),
];

impl Choice {
    fn settings(&self, steps: u64) -> PixelTrainingSettings {
        PixelTrainingSettings {
            prediction_type: PredictionChoice::Epsilon,
            learned_variance: self.loss != SIMPLE,
            variational_bound: [BOUND, BOUND_BY_IMPORTANCE].contains(&self.loss),
            importance_sampling: self.loss == BOUND_BY_IMPORTANCE,
            ..small(steps)
        }
    }

    fn request(&self) -> PixelRequest {
        PixelRequest {
            scheduler: Some("ddpm".into()),
            scheduler_config: Map::from_iter([("variance_type".to_owned(), json!(self.variance))]),
            steps: Some(SAMPLING_STEPS),
            guidance_scale: Some(1.0),
            ..PixelRequest::default()
        }
    }
}

/// FID over likelihood.
fn plot(rows: &[(Choice, Figures)]) -> Plot {
    Plot {
        title: "FID against likelihood".into(),
        x_label: "bits per dimension (variational bound)".into(),
        y_label: "FID, features of LeNet".into(),
        logarithmic: (false, false),
        series: points(rows, ["bits_per_dim", "fid"], |row| format!("{}, {}", row.loss, row.variance)),
    }
}

fn main() -> Outcome {
    let arguments = EXPERIMENT.arguments();
    let samples = arguments.samples(arguments.size.pick(500, 5000))?;
    let steps = arguments.steps(arguments.size.pick(4800, 10_000))?;
    let settings = json!({
        "samples": samples, "training_steps": steps, "sampling_steps": SAMPLING_STEPS, "evaluations_of_the_bound": EVALUATIONS,
    });
    let (mut results, judge) = begin(EXPERIMENT, &arguments, settings, samples)?;
    let data = digits(&arguments.data)?;
    // As many as are drawn.
    let test = read_set(&arguments.data, Split::Test, FolderOptions::default())?.first(samples);

    let (runs, drawing) = (results.runs(), judge.work(SAMPLING_STEPS));
    let bounding = (test.len() * EVALUATIONS) as f64;
    let rows = results.measure(
        CHOICES.into(),
        |_| work(steps) + bounding + drawing,
        |row, progress| {
            // One run of a loss is for every variance.
            let trained = train(row.settings(steps), &data, &runs.join(run_name(row.loss)), progress)?;
            let options = LikelihoodOptions {
                variance: Some(row.variance_type),
                evaluations: EVALUATIONS,
                batch_size: BATCH,
                seed: SEED,
            };
            let bound =
                progress.part(bounding, |watch| Ok(likelihood_bound(&trained.pipeline, &test, &options, watch)?))?;
            let judged = judge.judge(&trained.pipeline, row.request(), drawing, progress)?;
            Ok(Figures::default()
                .with_number("bits_per_dim", bound.total.mean)
                .with_number("bits_per_dim_standard_error", bound.total.standard_error)
                .and(judged)
                .with_number("training_seconds", trained.seconds))
        },
    )?;
    results.finish(&[("fid_likelihood.png", plot(&rows))])
}
