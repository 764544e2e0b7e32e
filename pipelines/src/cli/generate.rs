//! Making the pictures of a request and saving them: what txt2img, img2img and inpaint share.

use super::adapter_options::AdapterOptions;
use super::fetching::Fetching;
use super::given::Given;
use super::interrupt::Interrupt;
use super::output::{NewFolder, Output};
use super::progress::Progress;
use super::{ModelArguments, print, schedulers};
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tweedie::images::{Picture, encode_animation, encode_png};
use tweedie_pipelines::{
    Error, Event, Input, LatentDiffusion, Options, Previews, Purpose, Record, Seconds, Settings, TaskKind,
    TextToImageRequest,
};

/// The options of every command that makes pictures from a text.
#[derive(Debug, Args)]
pub struct Generate {
    #[command(flatten)]
    pub request: Given<TextToImageRequest>,

    /// Width and height together, in the place of --width and --height
    #[arg(long, value_name = "WxH", value_parser = size, conflicts_with_all = ["width", "height"])]
    size: Option<(u32, u32)>,

    #[command(flatten)]
    pub model: ModelArguments,

    #[command(flatten)]
    pub adapters: AdapterOptions,

    /// Also draw the schedule and the chosen steps into this PNG file
    #[arg(long, value_name = "FILE.png")]
    plot_schedule: Option<PathBuf>,

    /// Save a cheap preview of each step, and an animated one of all, as PNG files in this new folder
    #[arg(long, value_name = "DIR")]
    save_steps: Option<PathBuf>,

    /// Draw the previews by this autoencoder, such as TAESD, in every form that --vae takes; each is then written as
    /// soon as its step is done [default: a fit of the steps' latents to the finished picture]
    #[arg(long, value_name = "MODEL", requires = "save_steps")]
    preview_vae: Option<PathBuf>,

    /// The PNG file; several get -0, -1, ... before the extension [default: from prompt and seed]
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Replace existing files
    #[arg(long)]
    force: bool,

    /// Print one JSON object about the run
    #[arg(long)]
    json: bool,

    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// Where everything goes that a run writes, known and checked before anything is computed.
pub struct Plan {
    interrupt: Interrupt,
    output: Output,
    plot: Option<Output>,
    steps: Option<NewFolder>,
}

impl Generate {
    /// The request's options, as JSON.
    fn fields(&self) -> Map<String, Value> {
        let mut fields = self.request.fields();
        if let Some((width, height)) = self.size {
            fields.extend([("width".to_owned(), width.into()), ("height".to_owned(), height.into())]);
        }
        fields
    }

    /// What is wanted, with the pictures of the control models.
    pub fn text_request(&self) -> anyhow::Result<TextToImageRequest> {
        let mut request =
            TextToImageRequest { controls: self.adapters.control_images()?, ..TextToImageRequest::default() };
        request.read(self.fields())?;
        Ok(request)
    }

    /// Plans the files that will be written. None of `inputs` is among them, even with `--force`.
    pub fn plan(&self, inputs: &[&Path]) -> anyhow::Result<Plan> {
        let interrupt = Interrupt::listen()?;
        let mut request = TextToImageRequest::default();
        request.read(self.fields())?;
        let TextToImageRequest { prompt, seed, num_images, .. } = request;
        let output = Output::plan(self.output.as_deref(), &prompt, seed, num_images, self.force)?;
        let plot = self.plot_schedule.as_deref().map(|path| Output::one(path, self.force)).transpose()?;
        Output::apart(&plot.iter().chain([&output]).collect::<Vec<_>>())?;
        for output in plot.iter().chain([&output]) {
            output.spare(inputs)?;
            output.spare(&self.adapters.control_paths().collect::<Vec<_>>())?;
        }
        let steps = self.save_steps.as_deref().map(|path| NewFolder::plan(path, self.force)).transpose()?;
        Ok(Plan { interrupt, output, plot, steps })
    }

    /// The model that the options ask for, for one run of a task, with what is put on top of its model; that is fetched first if need be.
    pub fn build(&self, task: TaskKind, plan: &Plan) -> anyhow::Result<LatentDiffusion> {
        let fetching = Fetching { interrupt: &plan.interrupt, quiet: self.quiet };
        let source = self.model.source(&fetching);
        let preview = self.preview_vae.as_ref();
        let preview = preview.map(|path| source.open(path, None, Purpose::Autoencoder)).transpose()?;
        let builder = self.model.builder(task, &source)?.preview_vae(preview);
        Ok(builder.adapters(self.adapters.adapters(&source)?).build()?)
    }

    /// Makes the pictures and writes what was planned.
    pub fn run(
        &self,
        plan: Plan,
        model: &LatentDiffusion,
        settings: &Settings,
        inputs: Vec<Input>,
    ) -> anyhow::Result<()> {
        let inputs = inputs.into_iter().chain(self.adapters.control_inputs()?);
        let record = inputs.fold(model.record(settings), Record::with_input);
        if let Some(output) = &plan.plot {
            let path = output.write(0, &encode_png(&schedulers::plot(settings)?, &[])?)?;
            if !self.quiet {
                print::remark(&format!("saved {}", path.display()));
            }
        }
        let start = Instant::now();
        let mut work = Work {
            settings,
            record: &record,
            plan: &plan,
            progress: Progress::new(self.quiet),
            previews: Previews::default(),
            shown: BTreeMap::new(),
            saved: 0,
            failure: None,
        };
        let seconds = work.run(model)?;
        let total = seconds.load + start.elapsed().as_secs_f64();
        if self.json {
            let summary = summary(settings, &record, &plan.output, seconds, total);
            print::result(&serde_json::to_string_pretty(&summary)?)?;
        }
        Ok(())
    }
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text
        .split_once(['x', 'X', '*'])
        .and_then(|(width, height)| Some((width.trim().parse().ok()?, height.trim().parse().ok()?)));
    sides.ok_or_else(|| "give width and height with an x between, such as 512x768".into())
}

/// A run that is under way.
struct Work<'a> {
    settings: &'a Settings,
    record: &'a Record,
    plan: &'a Plan,
    progress: Progress,
    previews: Previews,
    /// Of pictures that are not finished, what was drawn and written by an autoencoder for previews.
    shown: BTreeMap<usize, Vec<Picture>>,
    saved: usize,
    failure: Option<anyhow::Error>,
}

impl Work<'_> {
    fn run(&mut self, model: &LatentDiffusion) -> anyhow::Result<Seconds> {
        let (settings, record) = (self.settings, self.record);
        let result = std::thread::scope(|scope| {
            let mut hashes = false;
            model.run(settings, &mut |event| {
                // The weights' hash goes into the pictures. It can wait until there is something to see, and is then ready
                // before the first picture as a rule.
                if matches!(event, Event::Step { .. }) && !std::mem::replace(&mut hashes, true) {
                    scope.spawn(|| record.hash_weights().is_ok());
                }
                self.event(event)
            })
        });
        self.progress.finish();
        match (self.failure.take(), result) {
            (Some(error), _) => Err(error),
            (None, Err(Error::Cancelled)) if self.saved == settings.request.num_images => Ok(Seconds::default()),
            (None, Err(Error::Cancelled)) => {
                anyhow::bail!("stopped; {} of {} pictures were saved", self.saved, settings.request.num_images)
            }
            (None, result) => Ok(result?),
        }
    }

    fn event(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Warning(text) => self.progress.warning(&text),
            Event::Step { done, steps, batch, batches, x0 } => {
                self.progress.stage("denoising");
                self.progress.steps(batch * steps + done, batches * steps);
                if done == 1 {
                    self.previews.clear();
                }
                if let (Some(x0), Some(_)) = (x0, &self.plan.steps) {
                    self.previews.push(x0);
                }
            }
            Event::Preview { index, done, picture } => {
                if let Err(error) = self.preview(index, done, picture) {
                    self.failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            Event::Decoding { .. } => self.progress.stage("decoding"),
            Event::Picture { .. } => {
                if let Err(error) = self.save(&event) {
                    self.failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            _ => {}
        }
        self.plan.interrupt.flow()
    }

    fn save(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        let Event::Picture { index, seed, picture, decoded } = event else { return Ok(()) };
        self.record.hash_weights().map_err(|e| anyhow::anyhow!("cannot hash the weights: {e}"))?;
        let path = self.plan.output.write(*index, &picture.encode_png(&self.record.chunks(*seed))?)?;
        self.saved += 1;
        self.progress.line(&format!("saved {} (seed {seed})", path.display()));
        let (Some(folder), Some((latents, decoded))) = (&self.plan.steps, decoded) else { return Ok(()) };

        let prefix = self.prefix(*index);
        let previews = match self.shown.remove(index) {
            Some(shown) => shown,
            None => {
                let previews = self.previews.pictures(index % self.settings.request.batch_size, latents, decoded)?;
                for (i, preview) in previews.iter().enumerate() {
                    folder.write(&format!("{prefix}step-{:03}.png", i + 1), &encode_png(preview, &[])?)?;
                }
                previews
            }
        };
        // The finished picture stays for a moment before the animation starts again.
        let mut frames: Vec<_> = previews.iter().collect();
        frames.extend([*decoded; LAST_FRAME_TIMES]);
        let frames: Vec<_> = frames.into_iter().cloned().collect();
        folder.write(&format!("{prefix}steps.png"), &encode_animation(&frames, FRAME_MILLISECONDS)?)?;
        self.progress.line(&format!("saved {} previews in {}", previews.len(), folder.path().display()));
        Ok(())
    }

    /// Writes a preview while the picture is being made.
    fn preview(&mut self, index: usize, done: usize, picture: &Picture) -> anyhow::Result<()> {
        let Some(folder) = &self.plan.steps else { return Ok(()) };
        folder.write(&format!("{}step-{done:03}.png", self.prefix(index)), &encode_png(picture, &[])?)?;
        self.shown.entry(index).or_default().push(picture.clone());
        Ok(())
    }

    /// What the names of a picture's previews start with.
    fn prefix(&self, index: usize) -> String {
        if self.settings.request.num_images > 1 { format!("{index}-") } else { String::new() }
    }
}

/// How long a step is shown in the animation.
const FRAME_MILLISECONDS: u16 = 120;

/// For how many frames the finished picture is shown.
const LAST_FRAME_TIMES: usize = 8;

fn summary(settings: &Settings, record: &Record, output: &Output, seconds: Seconds, total: f64) -> Value {
    let seeds: Vec<u64> = settings.seed_batches().concat();
    json!({
        "files": output.paths().iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        "seed": settings.request.seed,
        "seeds": seeds,
        "settings": record.json(settings.request.seed),
        "seconds": {
            "load": seconds.load,
            "encode": seconds.encode,
            "denoise": seconds.denoise,
            "decode": seconds.decode,
            "total": total,
        },
        "peak_memory_mb": tweedie_pipelines::memory::peak_mb(),
    })
}
