//! `tweedie sample`.

use super::failure::Stopped;
use super::fetching::Fetching;
use super::given::Given;
use super::interrupt::Interrupt;
use super::output::Output;
use super::print;
use super::progress::Progress;
use super::source::{OfflineOption, Source};
use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tweedie::images::{Photo, Picture, TextChunk, encode_png};
use tweedie_pipelines::{
    DTypeChoice, DeviceChoice, Error, Event, Options, PixelModel, PixelPipeline, PixelRecord, PixelRequest,
    PixelSeconds, PixelSettings, Trajectory,
};

/// White pixels between the pictures of a grid.
const GAP: usize = 2;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EmbeddedModel {
    /// Handwritten digits, 28x28
    Mnist,
}

#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("source").required(true))]
pub struct Sample {
    /// An embedded model
    #[arg(value_enum, value_name = "MODEL", group = "source")]
    model: Option<EmbeddedModel>,

    /// A model in pixel space: a folder in diffusers layout, a training run or one of its checkpoints, or owner/name[@revision] on the
    /// hub
    #[arg(long, visible_alias = "model", value_name = "MODEL", group = "source")]
    checkpoint: Option<PathBuf>,

    /// Also guide by the gradient of this classifier, made by `tweedie train classifier`
    #[arg(long, value_name = "DIR")]
    classifier: Option<PathBuf>,

    #[command(flatten)]
    request: Given<PixelRequest>,

    /// Put all pictures into one file, side by side
    #[arg(long)]
    grid: bool,

    /// Also draw the way to noise and back of the first picture into this PNG file
    #[arg(long, value_name = "FILE.png")]
    trajectory: Option<PathBuf>,

    /// Also show the first batch from noise to pictures in this animated PNG file
    #[arg(long, value_name = "FILE.png")]
    animation: Option<PathBuf>,

    /// The picture's file, which ends in .png, .webp or .jpg; several get -0, -1, ... before the extension; - is standard
    /// output [default: a PNG file, named from model and seed]
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Replace existing files
    #[arg(long)]
    force: bool,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Number format of the weights: auto, f32, f16, bf16 or q8. The CPU computes in f32 whatever they are held in, but for
    /// bf16 on machines that multiply it; on others auto leaves large models as they are stored, which changes no picture
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,

    /// Print one JSON object about the run
    #[arg(long)]
    json: bool,

    /// Print the files' names and nothing else, but for errors
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    offline: OfflineOption,
}

/// Where everything goes, checked before anything is computed.
struct Outputs {
    pictures: Output,
    trajectory: Option<Output>,
    animation: Option<Output>,
}

impl Sample {
    pub fn run(&self) -> anyhow::Result<()> {
        let interrupt = Interrupt::listen()?;
        let named = match &self.checkpoint {
            Some(path) if path.is_dir() => PixelModel::at(path.clone())?,
            Some(path) => PixelModel::Folder(path.clone()),
            None => PixelModel::Mnist,
        };
        let request = self.request()?;
        let outputs = self.outputs(&request, &named.name())?;
        let model = match &self.checkpoint {
            Some(path) => self.open(path, &interrupt)?,
            None => named,
        };
        let mut builder = PixelPipeline::builder().model(model).device(self.device).dtype(self.dtype);
        if let Some(classifier) = &self.classifier {
            builder = builder.classifier(classifier);
        }
        let pipeline = builder.build()?;
        let settings = pipeline.settle(&request)?;
        let record = pipeline.record(&settings);

        let start = Instant::now();
        let progress = Progress::new(self.quiet);
        let seconds = self.generate(&pipeline, &settings, &record, &outputs, (&interrupt, &progress))?;
        let total = seconds.load + start.elapsed().as_secs_f64();
        if self.quiet && !self.json {
            outputs.pictures.print_names()?;
        }
        if self.json {
            let mut summary = summary(&settings, &record, &outputs, seconds, total);
            summary["warnings"] = progress.warnings().into();
            print::result(&serde_json::to_string_pretty(&summary)?)?;
        }
        Ok(())
    }

    /// The model at a path, or on the hub.
    fn open(&self, path: &Path, interrupt: &Interrupt) -> anyhow::Result<PixelModel> {
        let fetching = Fetching { interrupt, quiet: self.quiet };
        let offline = self.offline.offline();
        let source = Source { dtype: self.dtype, device: self.device, offline, fetching: &fetching };
        source.pixel_model(path)
    }

    fn outputs(&self, request: &PixelRequest, model: &str) -> anyhow::Result<Outputs> {
        let one = |path: &PathBuf| Output::one(path, self.force);
        let files = if self.grid { 1 } else { request.count() };
        let outputs = Outputs {
            pictures: Output::plan(self.output.as_deref(), model, request.seed, files, self.force)?,
            trajectory: self.trajectory.as_ref().map(one).transpose()?,
            animation: self.animation.as_ref().map(one).transpose()?,
        };
        let Outputs { pictures, trajectory, animation } = &outputs;
        pictures.spare_stdout(self.json)?;
        Output::apart(
            &[Some(pictures), trajectory.as_ref(), animation.as_ref()].into_iter().flatten().collect::<Vec<_>>(),
        )?;
        Ok(outputs)
    }

    fn request(&self) -> anyhow::Result<PixelRequest> {
        let mut request = PixelRequest::default();
        request.read(self.request.fields())?;
        Ok(request)
    }

    fn generate(
        &self,
        pipeline: &PixelPipeline,
        settings: &PixelSettings,
        record: &PixelRecord,
        outputs: &Outputs,
        (interrupt, progress): (&Interrupt, &Progress),
    ) -> anyhow::Result<PixelSeconds> {
        record.hash_weights().map_err(|e| anyhow::anyhow!("cannot hash the weights: {e}"))?;
        let mut trajectory = (outputs.trajectory.is_some() || outputs.animation.is_some()).then(Trajectory::new);
        let mut kept = Vec::new();
        let (mut saved, mut failure) = (0, None);
        let result = pipeline.run(settings, trajectory.as_mut(), &mut |event| {
            match event {
                Event::Warning(text) => progress.warning(&text),
                Event::Step { done, steps, batch, batches, .. } => {
                    progress.stage("denoising");
                    progress.steps(batch * steps + done, batches * steps);
                }
                Event::Picture { picture, .. } if self.grid => {
                    kept.push(picture.to_picture());
                    saved += 1;
                }
                Event::Picture { index, seed, picture, .. } => match save(outputs, record, index, picture) {
                    Ok(path) => {
                        saved += 1;
                        if !outputs.pictures.is_stdout() {
                            progress.line(&format!("saved {path} ({})", described(settings, index, seed)));
                        }
                    }
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(());
                    }
                },
                _ => {}
            }
            interrupt.flow()
        });
        progress.finish();
        let seconds = match (failure, result) {
            (Some(error), _) => return Err(error),
            (None, Err(Error::Cancelled)) if saved < settings.num_images => {
                let made = if self.grid { 0 } else { saved };
                let of = settings.num_images;
                return Err(Stopped(format!("stopped; {made} of {of} pictures were saved")).into());
            }
            (None, Err(Error::Cancelled)) => PixelSeconds::default(),
            (None, result) => result?,
        };
        if self.grid {
            let grid = Picture::grid(&kept, self.columns(settings), GAP)?;
            let path = write(&outputs.pictures, 0, &Photo::from(&grid), &record.chunks(None))?;
            if !outputs.pictures.is_stdout() {
                progress.line(&format!("saved {} ({} pictures)", path.display(), kept.len()));
            }
        }
        if let Some(trajectory) = &trajectory {
            draw(trajectory, settings, record, outputs, progress)?;
        }
        Ok(seconds)
    }

    /// A column for each class, if there are fewer than pictures; else about a square.
    fn columns(&self, settings: &PixelSettings) -> usize {
        match settings.classes.len() {
            classes if classes > 1 && classes <= settings.num_images && classes <= 20 => classes,
            _ => (settings.num_images as f64).sqrt().ceil() as usize,
        }
    }
}

fn save(outputs: &Outputs, record: &PixelRecord, index: usize, picture: &Photo) -> anyhow::Result<String> {
    let path = write(&outputs.pictures, index, picture, &record.chunks(Some(index)))?;
    Ok(path.display().to_string())
}

fn write(output: &Output, index: usize, picture: &Photo, texts: &[TextChunk]) -> anyhow::Result<PathBuf> {
    output.write(index, &picture.encode(output.format(), texts)?)
}

fn described(settings: &PixelSettings, index: usize, seed: u64) -> String {
    match settings.class_of(index) {
        Some(class) => format!("class {class}, seed {seed}"),
        None => format!("seed {seed}"),
    }
}

fn draw(
    trajectory: &Trajectory,
    settings: &PixelSettings,
    record: &PixelRecord,
    outputs: &Outputs,
    progress: &Progress,
) -> anyhow::Result<()> {
    if let Some(output) = &outputs.trajectory {
        let picture = trajectory.picture(settings.seed)?;
        let path = output.write(0, &encode_png(&picture, &record.chunks(Some(0)))?)?;
        progress.line(&format!("saved {}", path.display()));
    }
    if let Some(output) = &outputs.animation {
        let path = output.write(0, &trajectory.animation()?)?;
        progress.line(&format!("saved {}", path.display()));
    }
    Ok(())
}

fn summary(
    settings: &PixelSettings,
    record: &PixelRecord,
    outputs: &Outputs,
    seconds: PixelSeconds,
    total: f64,
) -> Value {
    let paths = |output: &Output| output.paths().iter().map(|p| p.to_string_lossy().into_owned()).collect::<Vec<_>>();
    let one = |output: &Option<Output>| output.as_ref().and_then(|output| paths(output).pop());
    let images = 0..settings.num_images;
    json!({
        "files": paths(&outputs.pictures),
        "trajectory": one(&outputs.trajectory),
        "animation": one(&outputs.animation),
        "seed": settings.seed,
        "seeds": images.clone().map(|i| settings.seed_of(i)).collect::<Vec<_>>(),
        "classes": images.filter_map(|i| settings.class_of(i)).collect::<Vec<_>>(),
        "settings": record.json(None),
        "seconds": { "load": seconds.load, "denoise": seconds.denoise, "total": total },
        "peak_memory_mb": tweedie_pipelines::memory::peak_mb(),
    })
}
