//! `tweedie txt2img`.

use super::interrupt::Interrupt;
use super::output::Output;
use super::progress::Progress;
use super::{ModelArguments, memory, print, schedulers};
use clap::{Args, builder::PossibleValuesParser};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;
use tweedie::denoising::{GuidanceShape, Projection};
use tweedie::images::encode_png;
use tweedie_pipelines::{Error, Event, PromptSyntax, Record, Seconds, Settings, TextToImage, TextToImageRequest};

#[derive(Debug, Args)]
pub struct Txt2img {
    /// What to draw
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,

    /// What to stay away from
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT", allow_hyphen_values = true)]
    negative_prompt: String,

    /// How prompts are read: plain, or weighted as in A1111: (word:1.3), [word], BREAK, any length
    #[arg(long, value_name = "NAME", default_value = "plain", value_parser = PossibleValuesParser::new(["plain", "weighted"]))]
    prompt_syntax: String,

    #[command(flatten)]
    model: ModelArguments,

    /// Number of denoising steps [default: the model's, else 30]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,

    /// How strongly to follow the prompt; 1 turns guidance off [default: the model's, else 7.5]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    guidance_scale: Option<f64>,

    /// Pull the contrast that guidance adds back, 0 to 1 [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    guidance_rescale: Option<f64>,

    /// How the guidance scale develops from noise to data, its mean being --guidance-scale
    #[arg(long, value_name = "NAME", default_value = "constant", value_parser = PossibleValuesParser::new(["constant", "linear", "cosine"]))]
    guidance_schedule: String,

    /// Guide only between two noise levels sigma / alpha, as LOW,HIGH
    #[arg(long, value_name = "LOW,HIGH", value_parser = interval)]
    guidance_interval: Option<(f64, f64)>,

    /// Adaptive projected guidance: high scales without oversaturation
    #[arg(long)]
    apg: bool,

    /// Perturbed-attention guidance of this strength [default: 0]
    #[arg(long, value_name = "F", default_value_t = 0.0, hide_default_value = true, allow_negative_numbers = true)]
    pag_scale: f64,

    /// The sampler, such as ddim, euler-a or dpm++2m-karras; `tweedie schedulers` lists all [default: the model's]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,

    /// How timesteps are chosen [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(["leading", "trailing", "linspace"]))]
    timestep_spacing: Option<String>,

    /// The timesteps at which steps start, noisiest first, in place of --steps
    #[arg(long, value_name = "T,T,...", value_delimiter = ',', conflicts_with = "sigmas")]
    timesteps: Option<Vec<f64>>,

    /// The noise levels sigma / alpha at which steps start, noisiest first, and the end, in place of --steps
    #[arg(long, value_name = "S,S,...", value_delimiter = ',')]
    sigmas: Option<Vec<f64>>,

    /// Also draw the schedule and the chosen steps into this PNG file
    #[arg(long, value_name = "FILE.png")]
    plot_schedule: Option<PathBuf>,

    /// Fresh noise in DDIM's steps, 0 to 1 [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    eta: Option<f64>,

    /// The first image's seed; image i uses seed + i
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Width in pixels [default: the model's]
    #[arg(long, value_name = "W")]
    width: Option<usize>,

    /// Height in pixels [default: the model's]
    #[arg(long, value_name = "H")]
    height: Option<usize>,

    /// How many pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    num_images: usize,

    /// How many pictures at a time; changes speed and memory, not the pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_size: usize,

    /// Skip so many of the text encoder's last layers for the prompt
    #[arg(long, value_name = "N", default_value_t = 0)]
    clip_skip: usize,

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

impl Txt2img {
    pub fn run(&self) -> anyhow::Result<()> {
        let interrupt = Interrupt::listen()?;
        let output = Output::plan(self.output.as_deref(), &self.prompt, self.seed, self.num_images, self.force)?;
        let plot =
            self.plot_schedule.as_deref().map(|path| Output::plan(Some(path), "", 0, 1, self.force)).transpose()?;
        let pipeline = self.model.builder().build()?;
        let settings = pipeline.settle(&self.request())?;
        let record = pipeline.record(&settings);
        if let (Some(output), Some(path)) = (&plot, &self.plot_schedule) {
            output.write(0, &encode_png(&schedulers::plot(&settings)?, &[])?)?;
            if !self.quiet {
                print::remark(&format!("saved {}", path.display()));
            }
        }

        let start = Instant::now();
        let seconds = self.generate(pipeline, &settings, &record, &output, &interrupt)?;
        let total = seconds.load + start.elapsed().as_secs_f64();
        if self.json {
            print::result(&serde_json::to_string_pretty(&summary(&settings, &record, &output, seconds, total))?)?;
        }
        Ok(())
    }

    fn request(&self) -> TextToImageRequest {
        let mut scheduler_fields = Map::new();
        if let Some(spacing) = &self.timestep_spacing {
            scheduler_fields.insert("timestep_spacing".into(), spacing.clone().into());
        }
        for (name, list) in [("timesteps", &self.timesteps), ("sigmas", &self.sigmas)] {
            if let Some(list) = list {
                scheduler_fields.insert(name.into(), list.clone().into());
            }
        }
        if let Some(eta) = self.eta {
            scheduler_fields.insert("eta".into(), eta.into());
        }
        TextToImageRequest {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            prompt_syntax: if self.prompt_syntax == "weighted" { PromptSyntax::Weighted } else { PromptSyntax::Plain },
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            guidance_rescale: self.guidance_rescale,
            guidance_shape: match self.guidance_schedule.as_str() {
                "linear" => GuidanceShape::Linear,
                "cosine" => GuidanceShape::Cosine,
                _ => GuidanceShape::Constant,
            },
            guidance_interval: self.guidance_interval,
            projection: self.apg.then(Projection::default),
            pag_scale: self.pag_scale,
            scheduler: self.scheduler.clone(),
            scheduler_fields,
            seed: self.seed,
            width: self.width,
            height: self.height,
            num_images: self.num_images,
            batch_size: self.batch_size,
            clip_skip: self.clip_skip,
        }
    }

    fn generate(
        &self,
        pipeline: TextToImage,
        settings: &Settings,
        record: &Record,
        output: &Output,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Seconds> {
        let batches = settings.seed_batches().len();
        let progress = Progress::new(self.quiet, settings.steps * batches);
        let (mut saved, mut failure) = (0, None);
        let result = std::thread::scope(|scope| {
            // The weights' hash goes into the pictures; it is ready long before the first is.
            scope.spawn(|| record.hash_weights().is_ok());
            pipeline.run_once(settings, &mut |event| {
                match event {
                    Event::Warning(text) => progress.warning(&text),
                    Event::Step { done, steps, batch, .. } => {
                        progress.stage("denoising");
                        progress.steps(batch * steps + done);
                    }
                    Event::Decoding => progress.stage("decoding"),
                    Event::Picture { index, seed, picture } => {
                        let save = || -> anyhow::Result<_> {
                            record.hash_weights().map_err(|e| anyhow::anyhow!("cannot hash the weights: {e}"))?;
                            output.write(index, &encode_png(picture, &record.chunks(seed))?)
                        };
                        match save() {
                            Ok(path) => {
                                saved += 1;
                                progress.line(&format!("saved {} (seed {seed})", path.display()));
                            }
                            Err(error) => {
                                failure = Some(error);
                                return ControlFlow::Break(());
                            }
                        }
                    }
                    _ => {}
                }
                interrupt.flow()
            })
        });
        progress.finish();
        match (failure, result) {
            (Some(error), _) => Err(error),
            (None, Err(Error::Cancelled)) if saved == settings.num_images => Ok(Seconds::default()),
            (None, Err(Error::Cancelled)) => {
                anyhow::bail!("stopped; {saved} of {} pictures were saved", settings.num_images)
            }
            (None, result) => Ok(result?),
        }
    }
}

/// Two numbers with a comma between.
fn interval(text: &str) -> Result<(f64, f64), String> {
    let numbers =
        text.split_once(',').and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
    numbers.ok_or_else(|| "give two numbers with a comma between, such as 0.3,5".into())
}

fn summary(settings: &Settings, record: &Record, output: &Output, seconds: Seconds, total: f64) -> Value {
    let seeds: Vec<u64> = settings.seed_batches().concat();
    json!({
        "files": output.paths().iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        "seed": settings.seed,
        "seeds": seeds,
        "settings": record.json(settings.seed),
        "seconds": {
            "load": seconds.load,
            "encode": seconds.encode,
            "denoise": seconds.denoise,
            "decode": seconds.decode,
            "total": total,
        },
        "peak_memory_mb": memory::peak_mb(),
    })
}
