//! Making the pictures of a request and saving them: what txt2img, img2img and inpaint share.

use super::adapter_options::AdapterOptions;
use super::drawing::{Work, summary};
use super::failure::wrong_usage;
use super::fetching::Fetching;
use super::given::Given;
use super::interrupt::Interrupt;
use super::output::{NewFolder, Output};
use super::progress::waiting;
use super::prompts_file::{self, Line};
use super::{ModelArguments, flags, print, schedulers};
use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tweedie::images::{Photo, encode_png};
use tweedie_pipelines::{
    Builder, DTypeChoice, Input, LatentDiffusion, Options, Purpose, Record, ReusedSettings, Settings, TaskKind,
    TextToImageRequest, Usage, memory,
};

/// The heading of what concerns files.
const OUTPUT: &str = "Output";

/// The options of every command that makes pictures from a text.
#[derive(Debug, Args)]
pub struct Generate {
    #[command(flatten)]
    pub request: Given<TextToImageRequest>,

    /// Width and height together, in the place of --width and --height
    #[arg(long, value_name = "WxH", value_parser = size, conflicts_with_all = ["width", "height"], hide_short_help = true)]
    #[arg(help_heading = "Size and number")]
    size: Option<(u32, u32)>,

    #[command(flatten)]
    pub model: ModelArguments,

    #[command(flatten)]
    pub adapters: AdapterOptions,

    /// Also draw the schedule and the chosen steps into this PNG file
    #[arg(help_heading = OUTPUT, long, value_name = "FILE.png", hide_short_help = true)]
    plot_schedule: Option<PathBuf>,

    /// Save a cheap preview of each step, and an animated one of all, as PNG files in this new folder
    #[arg(help_heading = OUTPUT, long, value_name = "DIR", hide_short_help = true)]
    save_steps: Option<PathBuf>,

    /// Draw the previews by this autoencoder, such as TAESD, in every form that --vae takes; each is then written as
    /// soon as its step is done [default: a fit of the steps' latents to the finished picture]
    #[arg(help_heading = OUTPUT, long, value_name = "MODEL", requires = "save_steps", hide_short_help = true)]
    preview_vae: Option<PathBuf>,

    /// The picture's file, which ends in .png, .webp or .jpg; several get -0, -1, ... before the extension; - is standard
    /// output; with --prompts it is a folder [default: a PNG file, named from prompt and seed]
    #[arg(help_heading = OUTPUT, long, short, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Put all pictures into one file, side by side
    #[arg(help_heading = OUTPUT, long, conflicts_with = "save_steps")]
    grid: bool,

    /// Enlarge what is saved so many times, smoothly: for small pictures
    #[arg(help_heading = OUTPUT, long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=16))]
    #[arg(hide_short_help = true)]
    scale: Option<u32>,

    /// Replace existing files
    #[arg(help_heading = OUTPUT, long)]
    force: bool,

    /// Print one JSON object about the run
    #[arg(help_heading = OUTPUT, long)]
    json: bool,

    /// Print the files' names and nothing else, but for errors
    #[arg(help_heading = OUTPUT, long, short)]
    quiet: bool,
}

/// Where everything goes that is written, known and checked before anything is computed.
pub struct Plan {
    interrupt: Interrupt,
    /// What another picture says.
    like: Option<ReusedSettings>,
    /// What is drawn, one after the other.
    drawings: Vec<Drawing>,
    plot: Option<Output>,
    steps: Option<NewFolder>,
    /// What is warned of before anything runs.
    warnings: Vec<String>,
}

/// A request's own options, beside those of all, and where its pictures go.
struct Drawing {
    fields: Map<String, Value>,
    output: Output,
}

impl Plan {
    /// Adds a warning of the whole run.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// That the pictures of a task that keeps a photo's depth and transparency can be saved.
    pub fn check_format(&self, photo: &Photo) -> anyhow::Result<()> {
        Ok(self.drawings.iter().try_for_each(|drawing| drawing.output.format().check(photo))?)
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

    /// What is wanted of a model in one drawing, without the pictures of control models.
    fn text_request(
        &self,
        plan: &Plan,
        drawing: &Drawing,
        model: &LatentDiffusion,
    ) -> anyhow::Result<TextToImageRequest> {
        let like = plan.like.clone().map(|like| {
            let own = like.model.as_deref() == Some(model.model_name());
            // Another scheduler has another configuration.
            let other = [&self.fields(), &drawing.fields].into_iter().any(|fields| fields.contains_key("scheduler"));
            if own && !other { like.options } else { like.for_another_model() }
        });
        self.request_of(&only::<TextToImageRequest>(like.unwrap_or_default()), &drawing.fields)
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
        let options = only::<TextToImageRequest>(like.as_ref().map(|like| like.options.clone()).unwrap_or_default());
        let drawings = match self.request.prompts() {
            Some(path) => self.plan_each(path, &options)?,
            None => vec![self.plan_one(&options)?],
        };
        let plot = self.plot_schedule.as_deref().map(|path| Output::one(path, self.force)).transpose()?;
        let outputs: Vec<_> = plot.iter().chain(drawings.iter().map(|drawing| &drawing.output)).collect();
        Output::apart(&outputs)?;
        for output in outputs {
            output.spare(inputs)?;
            output.spare(&self.adapters.control_paths().collect::<Vec<_>>())?;
        }
        let steps = self.save_steps.as_deref().map(|path| NewFolder::plan(path, self.force)).transpose()?;
        Ok(Plan { interrupt, like, drawings, plot, steps, warnings: Vec::new() })
    }

    fn plan_one(&self, like: &Map<String, Value>) -> anyhow::Result<Drawing> {
        let request = self.request_of(like, &Map::new())?;
        let files = if self.grid { 1 } else { request.num_images };
        let output = Output::plan(self.output.as_deref(), &request.prompt, request.seed, files, self.force)?;
        output.spare_stdout(self.json)?;
        Ok(Drawing { fields: Map::new(), output })
    }

    /// A drawing for each line of a file, in a folder: that of `--output`, else one with the file's name.
    fn plan_each(&self, path: &Path, like: &Map<String, Value>) -> anyhow::Result<Vec<Drawing>> {
        for (given, option) in
            [(self.save_steps.is_some(), "--save-steps"), (self.plot_schedule.is_some(), "--plot-schedule")]
        {
            if given {
                wrong_usage!("{option} is for one run, and --prompts makes many; leave one away");
            }
        }
        let folder = self.output.clone().unwrap_or_else(|| path.with_extension(""));
        let drawing = |(i, line): (usize, Line)| {
            let request = self
                .request_of(like, &line.fields)
                .with_context(|| format!("{}: line {}", path.display(), line.number))?;
            let files = if self.grid { 1 } else { request.num_images };
            let output = Output::in_folder(&folder, i + 1, &request.prompt, files, self.force)?;
            Ok(Drawing { fields: line.fields, output })
        };
        prompts_file::read(path)?.into_iter().enumerate().map(drawing).collect()
    }

    /// What is wanted, as far as no model needs to be known.
    fn request_of(&self, like: &Map<String, Value>, own: &Map<String, Value>) -> anyhow::Result<TextToImageRequest> {
        let mut request = TextToImageRequest::default();
        for fields in [like.clone(), self.fields(), own.clone()] {
            request.read(fields)?;
        }
        Ok(request)
    }

    /// What builds the model that the options ask for, for one run of a task, with what is put on top of it; it is fetched first if
    /// need be.
    fn builder(&self, task: TaskKind, plan: &Plan) -> anyhow::Result<Builder> {
        let fetching = Fetching { interrupt: &plan.interrupt, quiet: self.quiet };
        let source = self.model.source(&fetching);
        let preview = self.preview_vae.as_ref();
        let preview = preview.map(|path| source.open(path, None, Purpose::Autoencoder)).transpose()?;
        let builder = self.model.builder(task, &source)?.preview_vae(preview).previews(self.save_steps.is_some());
        // Many runs need all parts again.
        let builder = if self.request.prompts().is_some() { builder.usage(Usage::Any) } else { builder };
        Ok(builder.adapters(self.adapters.adapters(&source)?))
    }

    /// The most memory that the only drawing will take, where that is known and somebody asks for it, or it may be short. If there is
    /// not so much, it is refused with what would fit.
    fn memory(
        &self,
        plan: &Plan,
        builder: &Builder,
        settle: &impl Fn(&LatentDiffusion, TextToImageRequest) -> anyhow::Result<Settings>,
    ) -> anyhow::Result<Option<u64>> {
        // Of many drawings each is asked for when its turn comes.
        let [drawing] = &plan.drawings[..] else { return Ok(None) };
        let predict = |dtype: DTypeChoice, change: &dyn Fn(&mut TextToImageRequest)| {
            builder.clone().dtype(dtype).predicted_memory(|model| {
                let mut request = self.text_request(plan, drawing, model)?;
                request.controls = self.adapters.control_images()?;
                change(&mut request);
                settle(model, request)
            })
        };
        memory::checked(self.json, self.model.dtype(), &predict)
    }

    /// What of another picture's settings is not taken.
    fn warnings_of_like(plan: &Plan, model: &LatentDiffusion) -> Vec<String> {
        let Some(like) = &plan.like else { return Vec::new() };
        let other = like.model.as_ref().filter(|name| *name != model.model_name()).map(|other| {
            format!(
                "the settings are those of a picture of {other}, and the model is {}: the picture will be another one; give that \
                 model with `model`",
                model.model_name()
            )
        });
        let unused = || format!("of that picture's settings these are not taken: {}", like.unused.join(", "));
        other.into_iter().chain((!like.unused.is_empty()).then(unused)).collect()
    }

    /// Loads the model, makes the pictures and writes what was planned. `settle` makes the task's settings of what is wanted in text.
    pub fn run(
        &self,
        task: TaskKind,
        plan: &Plan,
        inputs: &[Input],
        settle: impl Fn(&LatentDiffusion, TextToImageRequest) -> anyhow::Result<Settings>,
    ) -> anyhow::Result<()> {
        let inputs = [inputs, &self.adapters.control_inputs()?].concat();
        let builder = self.builder(task, plan)?;
        let predicted = self.memory(plan, &builder, &settle)?;
        let model = &waiting("loading the model", self.quiet, || builder.build())?;
        let warnings = [plan.warnings.clone(), Self::warnings_of_like(plan, model)].concat();
        if !self.quiet {
            warnings.iter().for_each(|warning| print::warning(warning));
        }
        // All are checked before the first is drawn.
        let controls = self.adapters.control_images()?;
        let settled = plan.drawings.iter().map(|drawing| {
            let request = self.text_request(plan, drawing, model)?;
            settle(model, TextToImageRequest { controls: controls.clone(), ..request })
        });
        let settled = settled.collect::<anyhow::Result<Vec<_>>>()?;
        let many = self.request.prompts().is_some();
        let mut there = 0;
        for (drawing, settings) in plan.drawings.iter().zip(&settled) {
            let record = inputs.iter().cloned().fold(model.record(settings), Record::with_input).with_scale(self.scale);
            if many && !self.force && prompts_file::is_there(&drawing.output, &record, settings)? {
                there += 1;
                continue;
            }
            self.draw(plan, drawing, model, (settings, &record), (predicted, &warnings))?;
        }
        if there > 0 && !self.quiet {
            print::remark(&format!("{there} of {} were there already", plan.drawings.len()));
        }
        Ok(())
    }

    fn draw(
        &self,
        plan: &Plan,
        drawing: &Drawing,
        model: &LatentDiffusion,
        (settings, record): (&Settings, &Record),
        (predicted, warnings): (Option<u64>, &[String]),
    ) -> anyhow::Result<()> {
        if let Some(output) = &plan.plot {
            let path = output.write(0, &encode_png(&schedulers::plot(settings)?, &[])?)?;
            if !self.quiet {
                print::remark(&format!("saved {}", path.display()));
            }
        }
        let (start, output) = (Instant::now(), &drawing.output);
        let files = (output, plan.steps.as_ref());
        let mut work = Work::new((settings, record), files, &plan.interrupt, self.grid, self.quiet);
        let seconds = work.run(model)?;
        let total = seconds.load + start.elapsed().as_secs_f64();
        if self.quiet && !self.json {
            output.print_names()?;
        }
        if self.json {
            let mut summary = summary(settings, record, output, seconds, total);
            summary["predicted_memory_mb"] = predicted.map(|bytes| bytes >> 20).into();
            let warnings = warnings.iter().map(|warning| flags::in_text(warning));
            summary["warnings"] = warnings.chain(work.warnings()).collect();
            let many = self.request.prompts().is_some();
            print::result(&if many { summary.to_string() } else { serde_json::to_string_pretty(&summary)? })?;
        }
        Ok(())
    }
}

/// Of some options, those of a request.
fn only<R: Options>(options: Map<String, Value>) -> Map<String, Value> {
    let keys = R::keys();
    options.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect()
}

/// Width and height with an x between.
pub fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text
        .split_once(['x', 'X', '*'])
        .and_then(|(width, height)| Some((width.trim().parse().ok()?, height.trim().parse().ok()?)));
    sides.ok_or_else(|| "give width and height with an x between, such as 512x768".into())
}
