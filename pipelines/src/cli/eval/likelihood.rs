//! `tweedie eval likelihood`.

use super::samples::{NOTHING_JUDGED, Part};
use crate::cli::failure::unless_stopped;
use crate::cli::fetching::Fetching;
use crate::cli::interrupt::Interrupt;
use crate::cli::output::Output;
use crate::cli::print;
use crate::cli::progress::Progress;
use crate::cli::source::{OfflineOption, Source};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;
use tweedie::images::{Picture, Plot, Series, encode_png};
use tweedie::metrics::{BoundTerms, MeanOfPictures};
use tweedie::models::Watch;
use tweedie::schedulers::VarianceType;
use tweedie::training::data::{FolderOptions, read_set};
use tweedie_pipelines::{
    DTypeChoice, DeviceChoice, LikelihoodOptions, OdeLikelihood, PixelPipeline, has_ode_likelihood, likelihood_bound,
    ode_likelihood,
};

/// The variance of the reverse step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VarianceChoice {
    /// That of the posterior, beta~
    FixedSmall,
    /// That of the forward step, beta
    FixedLarge,
    /// What the network says, between the two
    Learned,
}

impl From<VarianceChoice> for VarianceType {
    fn from(choice: VarianceChoice) -> Self {
        match choice {
            VarianceChoice::FixedSmall => Self::FixedSmall,
            VarianceChoice::FixedLarge => Self::FixedLarge,
            VarianceChoice::Learned => Self::LearnedRange,
        }
    }
}

#[derive(Debug, Args)]
pub struct LikelihoodArguments {
    /// A model in pixel space: a folder in diffusers layout, a training run or one of its checkpoints,
    /// owner/name[@revision] on the hub, or mnist, the embedded one
    #[arg(long, visible_alias = "model", value_name = "MODEL")]
    checkpoint: PathBuf,

    /// A folder of IDX files (MNIST) or of pictures of the model's size
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Which part of the data, if it has two
    #[arg(long, value_enum, value_name = "PART", default_value = "test")]
    split: Part,

    /// How many of the pictures, from the first [default: all]
    #[arg(long, value_name = "N")]
    num_images: Option<usize>,

    /// At how many timesteps each picture is looked at: at 0, and at one drawn from each of so many groups of the others but one; with
    /// as many as the model has, at each
    #[arg(long, value_name = "N", default_value_t = 50)]
    evaluations: usize,

    /// The variance of the reverse step [default: what the model's scheduler says]
    #[arg(long, value_enum, value_name = "NAME")]
    variance: Option<VarianceChoice>,

    /// Also the likelihood by the probability-flow ODE (Song et al. 2021), by one vector of Hutchinson's a picture: a hundred
    /// evaluations of the network or more, with their gradients
    #[arg(long)]
    ode: bool,

    /// How many pictures at a time; changes speed and memory, and figures of the ODE within its tolerance
    #[arg(long, value_name = "N", default_value_t = 50)]
    batch_size: usize,

    /// Seed of the noise and of the timesteps
    #[arg(long, short, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Also draw the terms over the timesteps into this PNG file
    #[arg(long, value_name = "FILE.png")]
    plot: Option<PathBuf>,

    /// Replace an existing file
    #[arg(long)]
    force: bool,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Show no progress
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    offline: OfflineOption,
}

impl LikelihoodArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let (start, interrupt) = (Instant::now(), Interrupt::listen()?);
        let plot = self.plot.as_deref().map(|path| Output::one(path, self.force)).transpose()?;
        let pipeline = self.pipeline(&interrupt)?;
        if self.ode {
            has_ode_likelihood(&pipeline)?;
        }
        let options = FolderOptions { resize: None, channels: Some(pipeline.facts().channels) };
        let set = read_set(&self.data, self.split.into(), options)?;
        let set = match self.num_images {
            Some(count) => set.first(count),
            None => set,
        };
        let options = LikelihoodOptions {
            variance: self.variance.map(Into::into),
            evaluations: self.evaluations,
            batch_size: self.batch_size,
            seed: self.seed,
        };
        let bound = |watch: &mut Watch<'_>| likelihood_bound(&pipeline, &set, &options, watch);
        let found = self.watched("bound", &interrupt, bound)?;
        if let Some(output) = &plot {
            output.write(0, &encode_png(&drawn(&found)?, &[])?)?;
        }
        // It stands there whatever becomes of the ODE.
        if !self.json {
            print::result(&as_text(&found))?;
        }
        let ode = |watch: &mut Watch<'_>| ode_likelihood(&pipeline, &set, &options, watch);
        let by_ode = self.ode.then(|| self.watched("ODE", &interrupt, ode)).transpose()?;
        if !self.json {
            return by_ode.map_or(Ok(()), |OdeLikelihood { bits_per_dim, evaluations }| {
                print::result(&format!("{}, {evaluations} evaluations", with_error("ODE", &bits_per_dim)))
            });
        }
        let mut fields = as_json(&found);
        if let Some(OdeLikelihood { bits_per_dim, evaluations }) = by_ode {
            fields["ode"] = part(&bits_per_dim);
            fields["ode"]["evaluations"] = evaluations.into();
        }
        fields["pictures"] = set.len().into();
        fields["plot"] = json!(plot.as_ref().and_then(|output| output.paths().pop()));
        fields["seconds"] = start.elapsed().as_secs_f64().into();
        fields["peak_rss_mb"] = tweedie_pipelines::memory::peak_mb().into();
        print::result(&fields.to_string())
    }

    /// Judges the pictures with its progress on show.
    fn watched<T>(
        &self,
        stage: &'static str,
        interrupt: &Interrupt,
        judge: impl FnOnce(&mut Watch<'_>) -> tweedie::Result<T>,
    ) -> anyhow::Result<T> {
        let progress = Progress::counting("picture", self.quiet);
        progress.stage(stage);
        let found = judge(&mut |done, of| {
            progress.steps(done, of);
            interrupt.flow()
        });
        progress.finish();
        unless_stopped(found, NOTHING_JUDGED)
    }

    fn pipeline(&self, interrupt: &Interrupt) -> anyhow::Result<PixelPipeline> {
        let fetching = Fetching { interrupt, quiet: self.quiet };
        let (dtype, offline) = (DTypeChoice::default(), self.offline.offline());
        let source = Source { dtype, device: self.device, offline, fetching: &fetching };
        let model = source.pixel_model_or_mnist(&self.checkpoint)?;
        Ok(PixelPipeline::builder().model(model).device(self.device).build()?)
    }
}

fn part(part: &MeanOfPictures) -> Value {
    json!({"bits_per_dim": part.mean, "standard_error": part.standard_error})
}

fn with_error(name: &str, MeanOfPictures { mean, standard_error }: &MeanOfPictures) -> String {
    format!("{name:<14}{mean:>10.4} bits per dimension, standard error {standard_error:.4}")
}

fn as_json(found: &BoundTerms) -> Value {
    let BoundTerms { prior, terms, decoder, total } = found;
    let terms = terms.iter().map(|(group, term)| {
        json!({"timesteps": [group.start, group.end - 1], "bits_per_dim": term.mean, "standard_error": term.standard_error})
    });
    json!({
        "bits_per_dim": total.mean, "standard_error": total.standard_error,
        "prior": part(prior), "decoder": part(decoder), "terms": terms.collect::<Vec<_>>(),
    })
}

fn as_text(found: &BoundTerms) -> String {
    let BoundTerms { prior, terms, decoder, total } = found;
    let steps: f64 = terms.iter().map(|(group, term)| group.len() as f64 * term.mean).sum();
    let lines = [("L_T", prior.mean), ("L_1 to L_T-1", steps), ("L_0", decoder.mean)];
    let lines = lines.map(|(name, bits)| format!("{name:<14}{bits:>10.4} bits per dimension"));
    format!("{}\n{}", lines.join("\n"), with_error("bound", total))
}

/// The terms over the timesteps.
fn drawn(found: &BoundTerms) -> tweedie::Result<Picture> {
    let middle = |start: usize, end: usize| (start + end - 1) as f64 / 2.0;
    let points = found.terms.iter().map(|(group, term)| (middle(group.start, group.end), term.mean));
    let points = std::iter::once((0.0, found.decoder.mean)).chain(points);
    Plot {
        title: format!("variational bound, {:.3} bits per dimension", found.total.mean),
        x_label: "timestep".into(),
        y_label: "term, bits per dimension".into(),
        logarithmic: (false, true),
        series: vec![Series::line("L_t", points.filter(|point| point.1 > 0.0).collect())],
    }
    .draw()
}
