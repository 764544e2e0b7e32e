//! What `tweedie eval fid`, `kid`, `is` and `prdc` have in common: samples, the network that sees their features, the reference.

use super::prompt_samples::PromptSampleArguments;
use crate::cli::failure::{unless_stopped, wrong_usage};
use crate::cli::fetching::Fetching;
use crate::cli::given::Given;
use crate::cli::interrupt::Interrupt;
use crate::cli::print;
use crate::cli::progress::Progress;
use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tweedie::metrics::{
    Bootstrap, FeatureNetwork, Features, Figure, InceptionResizing, Kept, PictureSet, features_of_folder,
};
use tweedie::training::data::Split;
use tweedie_pipelines::{
    Error, FeatureChoice, Options, PixelPipeline, PixelRequest, PixelSamples, SampleEvent, Samples,
    features_of_samples, open_features,
};

/// Pictures whose features are kept at most: with 2,048 of each 400 MB.
pub const MOST_KEPT: usize = 50_000;

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What networks are trained on
    Train,
    /// What they are judged by
    Test,
}

impl From<Part> for Split {
    fn from(part: Part) -> Self {
        match part {
            Part::Train => Self::Train,
            Part::Test => Self::Test,
        }
    }
}

/// Whose way pictures are resized for Inception.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resize {
    /// Bilinear interpolation, which skips pixels where pictures shrink
    PytorchFid,
    /// A bicubic filter over all pixels
    CleanFid,
}

impl From<Resize> for InceptionResizing {
    fn from(resize: Resize) -> Self {
        match resize {
            Resize::PytorchFid => Self::PytorchFid,
            Resize::CleanFid => Self::CleanFid,
        }
    }
}

#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("from").required(true))]
pub struct SampleArguments {
    /// A folder of pictures of one size, or of IDX files (MNIST)
    #[arg(value_name = "SAMPLES", group = "from")]
    samples: Option<PathBuf>,

    /// Judge samples of this model in pixel space, which are made on the way: a folder in diffusers layout, a training run
    /// or one of its checkpoints, owner/name[@revision] on the hub, or mnist, the embedded one
    #[arg(long, value_name = "MODEL", group = "from")]
    checkpoint: Option<PathBuf>,

    /// With --checkpoint: also guide by the gradient of this classifier
    #[arg(long, value_name = "DIR", requires = "checkpoint")]
    classifier: Option<PathBuf>,

    #[command(flatten)]
    request: Given<PixelRequest>,

    #[command(flatten)]
    prompts: PromptSampleArguments,

    /// Which part of SAMPLES, if it has two
    #[arg(long, value_enum, value_name = "PART", default_value = "train")]
    #[arg(conflicts_with_all = ["checkpoint", "prompt", "prompts"])]
    split: Part,

    /// By which network's features pictures are compared: lenet, the embedded one of digits; inception, that of FID, if
    /// pytorch-fid has downloaded it; a file of Inception-v3 as pytorch-fid or torchvision have it; or the folder of a model
    /// from `tweedie train classifier`
    #[arg(long, value_name = "lenet|inception|FILE|DIR", default_value = "lenet")]
    features: FeatureChoice,

    /// How pictures come to Inception's size, on which every figure depends [default: pytorch-fid]
    #[arg(long, value_enum, value_name = "NAME")]
    resize: Option<Resize>,

    /// How often samples are drawn again for the interval that holds a figure with 95 %; 0 for no interval
    #[arg(long, value_name = "N", default_value_t = 100)]
    resamples: usize,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// What there is of a judgement that was stopped.
pub const NOTHING_JUDGED: &str = "nothing is judged";

/// Which pictures samples are compared to.
#[derive(Debug, Args)]
pub struct ReferenceArguments {
    /// What samples are compared to: a folder of pictures or of IDX files (MNIST)
    #[arg(long, value_name = "DIR")]
    pub reference: PathBuf,

    /// Which part of the reference, if it has two
    #[arg(long, value_enum, value_name = "PART", default_value = "train")]
    pub reference_split: Part,
}

impl ReferenceArguments {
    /// Its features.
    fn features(&self, work: &mut Work<'_>) -> anyhow::Result<PictureSet> {
        if self.reference.extension().is_some_and(|extension| extension == "npz") {
            wrong_usage!(
                "the reference {} has mean and covariance alone, from which FID follows and nothing else; give a folder of pictures",
                self.reference.display()
            );
        }
        work.folder("reference", &self.reference, self.reference_split, work.kept_features())
    }
}

/// Shows how far samples are, and stops if that was asked for.
pub fn show_sampling(
    event: &SampleEvent<'_>,
    count: usize,
    progress: &Progress,
    interrupt: &Interrupt,
) -> tweedie::Result<()> {
    match event {
        SampleEvent::Warning(text) => progress.aside(|| print::warning(text)),
        SampleEvent::Working { done } => progress.steps(*done, count),
        SampleEvent::Sample { index, .. } => progress.steps(index + 1, count),
    }
    if interrupt.flow().is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

/// A judgement that is under way.
pub struct Work<'a> {
    arguments: &'a SampleArguments,
    pub network: Box<dyn FeatureNetwork>,
    pub bootstrap: Bootstrap,
    progress: Progress,
    interrupt: Interrupt,
    start: Instant,
    /// The figures so far, by their names.
    fields: Map<String, Value>,
    /// The same as text.
    lines: Vec<String>,
}

impl SampleArguments {
    /// Starts a judgement.
    pub fn start(&self) -> anyhow::Result<Work<'_>> {
        let (start, interrupt) = (Instant::now(), Interrupt::listen()?);
        self.prompts.check()?;
        if self.samples.is_some() && !self.request.fields().keys().all(|field| field == "seed") {
            wrong_usage!(
                "options of sampling were given, and no model that could use them; give --checkpoint, or --prompts with --model"
            );
        }
        let seed = self.request()?.seed;
        Ok(Work {
            arguments: self,
            network: open_features(&self.features, self.resize.map(Into::into))?,
            bootstrap: Bootstrap { resamples: self.resamples, seed },
            progress: Progress::counting("picture", self.quiet),
            interrupt,
            start,
            fields: Map::new(),
            lines: Vec::new(),
        })
    }

    fn request(&self) -> anyhow::Result<PixelRequest> {
        let mut request = PixelRequest::default();
        request.read(self.request.fields())?;
        Ok(request)
    }

    /// Those that a model will make.
    fn made(&self, interrupt: &Interrupt) -> anyhow::Result<Box<dyn Samples>> {
        let fetching = Fetching { interrupt, quiet: self.quiet };
        let Some(path) = &self.checkpoint else {
            let fields = self.request.fields();
            if fields.contains_key("classes") {
                wrong_usage!("--classes is for models of classes, and this one takes prompts; leave it out");
            }
            return Ok(Box::new(self.prompts.samples(fields, &fetching)?));
        };
        let model = &self.prompts.model;
        let pixel_model = model.source(&fetching).pixel_model_or_mnist(path)?;
        let builder = PixelPipeline::builder().model(pixel_model).device(model.device).dtype(model.dtype);
        let pipeline = self.classifier.iter().fold(builder, |builder, path| builder.classifier(path)).build()?;
        let settings = pipeline.settle(&self.request()?)?;
        Ok(Box::new(PixelSamples { pipeline, settings }))
    }
}

impl Work<'_> {
    /// Features of so many pictures as there is room for.
    pub fn kept_features(&self) -> Kept {
        Kept { features: MOST_KEPT, seed: self.bootstrap.seed, ..Kept::default() }
    }

    /// Looks at the samples.
    pub fn samples(&mut self, kept: Kept) -> anyhow::Result<PictureSet> {
        let set = match &self.arguments.samples {
            Some(folder) => self.folder("samples", folder, self.arguments.split, kept),
            None => self.made(kept),
        }?;
        self.fields.insert("samples".into(), set.count().into());
        Ok(set)
    }

    fn made(&self, kept: Kept) -> anyhow::Result<PictureSet> {
        let samples = self.arguments.made(&self.interrupt)?;
        self.progress.stage("samples");
        let made = features_of_samples(self.network.as_ref(), samples.as_ref(), kept, &mut |event| {
            show_sampling(&event, samples.count(), &self.progress, &self.interrupt)
        });
        self.ended(made)
    }

    /// Looks at the reference and at the samples, and says of which pictures features are kept if not of all.
    pub fn compared(&mut self, reference: &ReferenceArguments) -> anyhow::Result<[PictureSet; 2]> {
        let reference = reference.features(self)?;
        let samples = self.samples(self.kept_features())?;
        self.tell_of_kept("samples", &samples, samples.features());
        self.tell_of_kept("reference pictures", &reference, reference.features());
        Ok([samples, reference])
    }

    /// Looks at the pictures of a folder.
    pub fn folder(&mut self, what: &'static str, folder: &Path, part: Part, kept: Kept) -> anyhow::Result<PictureSet> {
        self.progress.stage(what);
        let looked =
            features_of_folder(self.network.as_ref(), folder, part.into(), kept, &mut |done, of| self.watch(done, of));
        let set = self.ended(looked)?;
        self.fields.insert(what.into(), set.count().into());
        Ok(set)
    }

    fn watch(&self, done: usize, of: usize) -> ControlFlow<()> {
        self.progress.steps(done, of);
        self.interrupt.flow()
    }

    fn ended(&self, looked: tweedie::Result<PictureSet>) -> anyhow::Result<PictureSet> {
        self.progress.finish();
        unless_stopped(looked, NOTHING_JUDGED)
    }

    /// Says so if features are not of all pictures.
    pub fn tell_of_kept(&self, what: &str, set: &PictureSet, kept: &Features) {
        if kept.len() < set.count() {
            let (all, kept) = (set.count(), kept.len());
            print::warning(&format!(
                "of {all} {what} {kept} are kept, drawn at random; figures that need each picture are of these"
            ));
        }
    }

    /// Adds a figure; `title` is what people call it.
    pub fn figure(&mut self, name: &str, title: &str, figure: Figure) {
        let Figure { value, interval } = figure;
        self.fields.insert(name.into(), json!(value));
        self.fields.insert(format!("{name}_interval"), json!(interval.map(|interval| [interval.low, interval.high])));
        let interval = interval.map(|interval| format!("  ({:.4} to {:.4})", interval.low, interval.high));
        self.lines.push(format!("{title:<14}{value:>10.4}{}", interval.unwrap_or_default()));
    }

    /// Adds a number that goes with a figure.
    pub fn field(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.into(), value.into());
    }

    /// Prints what was found.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.field("seconds", self.start.elapsed().as_secs_f64());
        self.field("peak_rss_mb", tweedie_pipelines::memory::peak_mb());
        print::result(&if self.arguments.json { Value::Object(self.fields).to_string() } else { self.lines.join("\n") })
    }
}
