//! Every solver over the evaluations of the network that it is given: how good its digits are, and how far it is from the exact
//! solution of the probability-flow ODE that it solves.
//!
//! `cargo run --release --example solvers -- --output DIR [--size hour|night] [--resume] [--data DIR]`
//!
//! All start from the same noise at the last timestep (trailing timesteps), end at none, and cut no value on the way, so that
//! solvers without noise of their own solve one and the same equation. Its exact solution is taken from many steps of Heun's
//! method; as a check, a first row has its distance from as many evaluations of another method. `solver_comparison` asks the
//! same of data for which the exact solution is known.

mod experiments;

use experiments::arguments::MODEL;
use experiments::plots::{lines, with_real_digits};
use experiments::{Column, Experiment, Figures, Outcome, RowProgress, begin};
use serde::Serialize;
use serde_json::{Map, json};
use tweedie::images::Plot;
use tweedie::noise::TorchNoise;
use tweedie::schedulers::{SCHEDULERS, Step, Stochastic, by_name};
use tweedie::{DType, Tensor};
use tweedie_pipelines::{PixelPipeline, PixelRequest};

const EXPERIMENT: Experiment = Experiment {
    name: "solvers",
    title: "Solvers over evaluations of the network",
    options: &[MODEL],
    columns: &[
        Column::setting("solver"),
        Column::setting("evaluations"),
        Column::figure("distance", "distance", 4),
        Column::FID,
        Column::KID,
        Column::IS,
        Column::SECONDS,
    ],
};

/// The exact solution, its evaluations, and the method that it is compared with.
const EXACT: &str = "heun-karras";
const CHECK: &str = "unipc-karras";
const MANY: usize = 400;
/// Digits whose distance from the exact solution is measured.
const FOLLOWED: usize = 50;

#[derive(Debug, Clone, Serialize)]
struct Solver {
    solver: String,
    evaluations: usize,
}

impl Solver {
    /// Every solver of a network with training timesteps that was not distilled for it, and some with Karras's noise levels.
    fn names() -> Vec<String> {
        let comparable = SCHEDULERS
            .iter()
            .filter(|entry| !["edm-euler", "edm-heun", "flow-euler", "lcm", "tcd"].contains(&entry.name));
        let names = comparable.map(|entry| entry.name.to_owned());
        names.chain(["heun-karras", "dpm++2m-karras", "unipc-karras"].map(str::to_owned)).collect()
    }

    fn request(&self) -> tweedie::Result<PixelRequest> {
        let choice = by_name(&self.solver)?;
        let scheduler_config = Map::from_iter([
            ("timestep_spacing".to_owned(), json!("trailing")),
            ("clip_sample".to_owned(), json!(false)),
            ("skip_prk_steps".to_owned(), json!(true)),
        ]);
        Ok(PixelRequest {
            scheduler: Some(self.solver.clone()),
            scheduler_config,
            steps: Some((self.evaluations / choice.entry.evaluations).max(1)),
            guidance_scale: Some(1.0),
            ..PixelRequest::default()
        })
    }

    /// Whether it adds no noise, so that there is an exact solution.
    fn is_deterministic(&self) -> tweedie::Result<bool> {
        Ok(by_name(&self.solver)?.entry.stochastic != Stochastic::Yes)
    }

    /// Where the noise of the first seeds ends, as numbers and not as pictures.
    fn end(&self, pipeline: &PixelPipeline, progress: &mut RowProgress<'_>) -> Outcome<Tensor> {
        let settings = pipeline.settle(&PixelRequest { num_images: Some(FOLLOWED), ..self.request()? })?;
        let seeds: Vec<u64> = (0..FOLLOWED as u64).collect();
        let classes: Vec<u32> = settings.classes.iter().copied().cycle().take(FOLLOWED).collect();
        progress.part(self.work(FOLLOWED), |watch| {
            let mut noise = TorchNoise::per_image(&seeds);
            let mut told = |step: &Step<'_>| watch(step.done, step.total);
            Ok(pipeline.denoise(&settings, (FOLLOWED, &classes), &mut noise, None, &mut told)?)
        })
    }

    fn work(&self, digits: usize) -> f64 {
        (digits * self.evaluations) as f64
    }
}

/// The root mean square difference of values.
fn distance(a: &Tensor, b: &Tensor) -> Outcome<f64> {
    let square = (a - b)?.sqr()?.mean_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    Ok(square.sqrt())
}

/// A figure of every solver over its evaluations.
fn plot(rows: &[(Solver, Figures)], figure: &str, y_label: &str, floor: Option<f64>) -> Plot {
    let solvers = lines(rows, figure, |row| row.evaluations as f64, |row| row.solver.clone());
    Plot {
        title: format!("{y_label} of every solver"),
        x_label: "evaluations of the network".into(),
        y_label: y_label.into(),
        logarithmic: (true, true),
        series: with_real_digits(solvers, floor),
    }
}

fn main() -> Outcome {
    let arguments = EXPERIMENT.arguments();
    let samples = arguments.samples(arguments.size.pick(500, 2000))?;
    let pipeline = arguments.pipeline()?;
    let settings = json!({"samples": samples, "model": pipeline.model_name(), "followed": FOLLOWED});
    let (mut results, judge) = begin(EXPERIMENT, &arguments, settings, samples)?;

    let all = |evaluations| Solver::names().into_iter().map(move |solver| Solver { solver, evaluations });
    let evaluations = arguments.size.pick(&[10, 20, 40][..], &[6, 10, 20, 40, 80]);
    let rows: Vec<Solver> = evaluations.iter().flat_map(|&evaluations| all(evaluations)).collect();
    let check = Solver { solver: CHECK.into(), evaluations: MANY };
    let exact = Solver { solver: EXACT.into(), evaluations: MANY };
    let work = |row: &Solver| row.work(samples + FOLLOWED);

    // The exact solution is found once more by a process that goes on.
    let mut solution = None;
    let mut from_exact = |row: &Solver, progress: &mut RowProgress<'_>| -> Outcome<Figures> {
        if !row.is_deterministic()? {
            return Ok(Figures::default());
        }
        if solution.is_none() {
            solution = Some(exact.end(&pipeline, progress)?);
        }
        let end = row.end(&pipeline, progress)?;
        let found = solution.as_ref().map(|exact| distance(&end, exact)).transpose()?;
        Ok(found.map_or_else(Figures::default, |found| Figures::default().with_number("distance", found)))
    };
    results.measure(vec![check], |row| row.work(2 * FOLLOWED), |row, progress| from_exact(row, progress))?;
    let rows = results.measure(rows, work, |row, progress| {
        let figures = from_exact(row, progress)?;
        Ok(figures.and(judge.judge(&pipeline, row.request()?, row.work(samples), progress)?))
    })?;
    results.finish(&[
        ("distance.png", plot(&rows, "distance", "distance from the exact solution", None)),
        ("fid.png", plot(&rows, "fid", "FID", results.floor("fid"))),
    ])
}
