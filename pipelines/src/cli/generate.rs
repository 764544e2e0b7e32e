//! Making the pictures of a request and saving them: what txt2img, img2img and inpaint share.

use super::adapter_options::AdapterOptions;
use super::failure::{Stopped, wrong_usage};
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
use tweedie::images::{Photo, Picture, TextChunk, encode_animation, encode_png};
use tweedie_pipelines::{
    Error, Event, Input, LatentDiffusion, Options, Previews, Purpose, Record, ReusedSettings, Seconds, Settings,
    TaskKind, TextToImageRequest,
};

/// The options of every command that makes pictures from a text.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct Generate {
    #[command(flatten)]
    pub request: Given<TextToImageRequest>,

    /// Width and height together, in the place of --width and --height
    #[arg(long, value_name = "WxH", value_parser = size, conflicts_with_all = ["width", "height"])]
    #[arg(help_heading = "Size and number")]
    size: Option<(u32, u32)>,

    #[command(flatten)]
    pub model: ModelArguments,

    #[command(flatten)]
    pub adapters: AdapterOptions,

    /// Also draw the schedule and the chosen steps into this PNG file
    #[arg(long, value_name = "FILE.png", hide_short_help = true)]
    plot_schedule: Option<PathBuf>,

    /// Save a cheap preview of each step, and an animated one of all, as PNG files in this new folder
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    save_steps: Option<PathBuf>,

    /// Draw the previews by this autoencoder, such as TAESD, in every form that --vae takes; each is then written as
    /// soon as its step is done [default: a fit of the steps' latents to the finished picture]
    #[arg(long, value_name = "MODEL", requires = "save_steps", hide_short_help = true)]
    preview_vae: Option<PathBuf>,

    /// The picture's file, which ends in .png, .webp or .jpg; several get -0, -1, ... before the extension; - is standard
    /// output [default: a PNG file, named from prompt and seed]
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Put all pictures into one file, side by side
    #[arg(long, conflicts_with = "save_steps")]
    grid: bool,

    /// Replace existing files
    #[arg(long)]
    force: bool,

    /// Print one JSON object about the run
    #[arg(long)]
    json: bool,

    /// Show no progress, only the files' names
    #[arg(long, short)]
    quiet: bool,
}

/// Where everything goes that a run writes, known and checked before anything is computed.
pub struct Plan {
    interrupt: Interrupt,
    /// What another picture says.
    like: Option<ReusedSettings>,
    output: Output,
    plot: Option<Output>,
    steps: Option<NewFolder>,
}

impl Plan {
    /// That the pictures of a task that keeps a photo's depth and transparency can be saved.
    pub fn check_format(&self, photo: &Photo) -> anyhow::Result<()> {
        Ok(self.output.format().check(photo)?)
    }
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

    /// What is wanted of a model, with the pictures of the control models.
    pub fn text_request(&self, plan: &Plan, model: &LatentDiffusion) -> anyhow::Result<TextToImageRequest> {
        let mut request =
            TextToImageRequest { controls: self.adapters.control_images()?, ..TextToImageRequest::default() };
        let like = plan.like.clone().map(|like| {
            let own = like.model.as_deref() == Some(model.model_name());
            // Another scheduler has another configuration.
            let own = own && !self.fields().contains_key("scheduler");
            if own { like.options } else { like.for_another_model() }
        });
        request.read(only::<TextToImageRequest>(like.unwrap_or_default()))?;
        request.read(self.fields())?;
        Ok(request)
    }

    /// What is wanted of a task besides, that `given` does not say.
    pub fn task_fields<R: Options>(&self, plan: &Plan, given: &Given<R>) -> Map<String, Value> {
        let like = plan.like.as_ref().map(|like| only::<R>(like.options.clone())).unwrap_or_default();
        let of_text = TextToImageRequest::keys();
        like.into_iter().filter(|(key, _)| !of_text.contains(&key.as_str())).chain(given.fields()).collect()
    }

    /// Plans the files that will be written. None of `inputs` is among them, even with `--force`.
    pub fn plan(&self, inputs: &[&Path]) -> anyhow::Result<Plan> {
        let interrupt = Interrupt::listen()?;
        let like = self.request.like().map(ReusedSettings::read).transpose()?;
        let mut request = TextToImageRequest::default();
        request.read(only::<TextToImageRequest>(like.as_ref().map(|like| like.options.clone()).unwrap_or_default()))?;
        request.read(self.fields())?;
        let TextToImageRequest { prompt, seed, num_images, .. } = request;
        let files = if self.grid { 1 } else { num_images };
        let output = Output::plan(self.output.as_deref(), &prompt, seed, files, self.force)?;
        if output.is_stdout() && self.json {
            wrong_usage!("--json and --output - both write to standard output; leave one away");
        }
        let plot = self.plot_schedule.as_deref().map(|path| Output::one(path, self.force)).transpose()?;
        Output::apart(&plot.iter().chain([&output]).collect::<Vec<_>>())?;
        for output in plot.iter().chain([&output]) {
            output.spare(inputs)?;
            output.spare(&self.adapters.control_paths().collect::<Vec<_>>())?;
        }
        let steps = self.save_steps.as_deref().map(|path| NewFolder::plan(path, self.force)).transpose()?;
        Ok(Plan { interrupt, like, output, plot, steps })
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

    /// Says what of another picture's settings is not taken.
    fn tell_of_like(&self, plan: &Plan, model: &LatentDiffusion) {
        let Some(like) = &plan.like else { return };
        if let Some(other) = like.model.as_ref().filter(|name| *name != model.model_name()) {
            print::warning(&format!(
                "the settings are those of a picture of {other}, and the model is {}: the picture will be another one; give that \
                 model with `model`",
                model.model_name()
            ));
        }
        if !like.unused.is_empty() {
            print::warning(&format!("of that picture's settings these are not taken: {}", like.unused.join(", ")));
        }
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
        self.tell_of_like(&plan, model);
        let start = Instant::now();
        let mut work = Work {
            settings,
            record: &record,
            plan: &plan,
            progress: Progress::new(self.quiet),
            previews: Previews::default(),
            shown: BTreeMap::new(),
            grid: self.grid.then(Vec::new),
            saved: 0,
            failure: None,
        };
        let seconds = work.run(model)?;
        work.save_grid()?;
        let total = seconds.load + start.elapsed().as_secs_f64();
        if self.quiet && !self.json && !plan.output.is_stdout() {
            print::lines(plan.output.paths().iter().map(|path| path.display().to_string()))?;
        }
        if self.json {
            let summary = summary(settings, &record, &plan.output, seconds, total);
            print::result(&serde_json::to_string_pretty(&summary)?)?;
        }
        Ok(())
    }
}

/// Of some options, those of a request.
fn only<R: Options>(options: Map<String, Value>) -> Map<String, Value> {
    let keys = R::keys();
    options.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect()
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
    /// The pictures that go into one file.
    grid: Option<Vec<Picture>>,
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
                let of = settings.request.num_images;
                let saved = if self.grid.is_some() { 0 } else { self.saved };
                Err(Stopped(format!("stopped; {saved} of {of} pictures were saved")).into())
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
        if let Some(grid) = &mut self.grid {
            grid.push(picture.to_picture());
            self.saved += 1;
            return Ok(());
        }
        self.record.hash_weights().map_err(|e| anyhow::anyhow!("cannot hash the weights: {e}"))?;
        let output = &self.plan.output;
        let path = output.write(*index, &picture.encode(output.format(), &self.record.chunks(*seed))?)?;
        self.saved += 1;
        if !output.is_stdout() {
            self.progress.line(&format!("saved {} (seed {seed})", path.display()));
        }
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

    /// Writes the file with all pictures, if that was asked for.
    fn save_grid(&mut self) -> anyhow::Result<()> {
        let Some(pictures) = self.grid.take() else { return Ok(()) };
        self.record.hash_weights().map_err(|e| anyhow::anyhow!("cannot hash the weights: {e}"))?;
        let columns = (pictures.len() as f64).sqrt().ceil() as usize;
        let grid = Photo::from(&Picture::grid(&pictures, columns, GRID_GAP)?);
        // Its settings make the first picture, and no picture that looks like it.
        let texts = self
            .record
            .chunks(self.settings.request.seed)
            .into_iter()
            .filter(|text| text.keyword == TextChunk::PARAMETERS);
        let path = self.plan.output.write(0, &grid.encode(self.plan.output.format(), &texts.collect::<Vec<_>>())?)?;
        if !self.plan.output.is_stdout() {
            self.progress.line(&format!("saved {} ({} pictures)", path.display(), pictures.len()));
        }
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

/// Pixels between the pictures of a grid.
const GRID_GAP: usize = 2;

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
