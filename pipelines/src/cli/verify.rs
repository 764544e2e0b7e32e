//! `tweedie verify`.

use super::adapter_options::AdapterOptions;
use super::failure::wrong_usage;
use super::fetching::Fetching;
use super::interrupt::Interrupt;
use super::output::Output;
use super::progress::Progress;
use super::source::Source;
use super::{ModelArguments, inputs, print};
use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tweedie::images::{Mask, Photo, PictureFormat, picture_bytes};
use tweedie_pipelines::verify::{Comparison, InputRecord, Recipe, Verdict, WeightsCheck, check_weights};
use tweedie_pipelines::{
    Adapters, ControlImage, DTypeChoice, Event, LatentDiffusion, LoraRequest, Model, Purpose, Record, Settings,
    TaskKind, TextToImageRequest, Usage,
};

#[derive(Debug, Args)]
pub struct Verify {
    /// A picture that txt2img, img2img or inpaint wrote: PNG, WebP or JPEG
    #[arg(value_name = "PICTURE")]
    picture: PathBuf,

    /// The picture that it was made from
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,

    /// The mask that it was made with
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,

    /// Where it is made again; without --model, the embedded model and the hub's cache are searched for its weights, and
    /// without --dtype they are rounded as they were
    #[command(flatten)]
    model: ModelArguments,

    /// What was put on top of the model, in its order. Weights, tokens and scales are the picture's own
    #[command(flatten)]
    adapters: AdapterOptions,

    /// Also write the new picture to this PNG file
    #[arg(long, short, value_name = "FILE.png")]
    output: Option<PathBuf>,

    /// Replace existing files
    #[arg(long)]
    force: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// What the picture was made from.
struct Inputs {
    /// Width and height of the picture itself.
    picture: (usize, usize),
    image: Option<Photo>,
    mask: Option<Mask>,
    adapters: Adapters,
    controls: Vec<ControlImage>,
    /// Those that act beside the model's weights.
    loras: Vec<LoraRequest>,
}

/// A model that was found, and what goes on top.
struct Prepared<'a> {
    arguments: &'a ModelArguments,
    model: Model,
    adapters: Adapters,
    /// Whether LoRAs of the request stand beside the weights, which a model for one run does not have.
    beside: bool,
}

impl Prepared<'_> {
    fn build(self, task: TaskKind, source: &Source<'_>) -> anyhow::Result<LatentDiffusion> {
        let builder = self.arguments.builder_with(self.model, task, source)?;
        let builder = if self.beside { builder.usage(Usage::Any) } else { builder };
        Ok(builder.adapters(self.adapters).build()?)
    }
}

impl Verify {
    pub fn run(mut self) -> anyhow::Result<ExitCode> {
        let interrupt = Interrupt::listen()?;
        let output = self.output.as_deref().map(|path| Output::one(path, self.force)).transpose()?;
        let read = [Some(&self.picture), self.image.as_ref(), self.mask.as_ref()].into_iter().flatten();
        let read: Vec<&Path> = read.map(PathBuf::as_path).chain(self.adapters.control_paths()).collect();
        output.iter().try_for_each(|output| output.spare(&read))?;

        let bytes = picture_bytes(&self.picture)?;
        let recipe = Recipe::read(&bytes, &self.picture)?;
        let given = Photo::decode(&bytes, &self.picture)?;
        if self.model.dtype == DTypeChoice::Auto {
            self.model.dtype = recipe.dtype()?;
        }
        let fetching = Fetching { interrupt: &interrupt, quiet: self.quiet };
        let source = self.model.source(&fetching);
        let inputs = self.inputs(&recipe, &given, &source)?;
        let model = self.find(&recipe, &source)?;
        let (model, settings) = self.prepare(&recipe, model, inputs, &source)?;

        let record = self.adapters.control_inputs()?.into_iter().fold(model.record(&settings), Record::with_input);
        let record = record.with_scale(recipe.scale());
        let weights = record.hash_weights().map_err(|e| anyhow::anyhow!("cannot hash the weights: {e}"))?;
        if let Some(other) = recipe.other_weights(weights)? {
            bail!(
                "the model has not all weights that the picture was made with: {other}; give it with --model or --vae"
            );
        }
        // As a file has it: numbers through text.
        let json: Value = serde_json::from_str(&record.json(settings.request.seed).to_string())?;
        if let Some(other) = recipe.other_adapters(&json) {
            bail!("not all files that the picture was made with are those: {other}");
        }
        let again = self.render(&model, &settings, &interrupt)?;
        let again = record.scaled(&again)?.into_owned();
        let again = match PictureFormat::of_bytes(&bytes) {
            // What that format loses, it loses again.
            Some(format @ PictureFormat::Jpeg) => Photo::decode(&again.encode(format, &[])?, &self.picture)?,
            _ => again,
        };
        if let Some(output) = &output {
            output.write(0, &again.encode_png(&[])?)?;
        }
        let comparison = Comparison::of(&given, &again);
        let faults = if comparison.verdict() == Verdict::Identical { Vec::new() } else { recipe.faults(&settings)? };
        self.report(&comparison, [faults, recipe.differences(&json)].concat())
    }

    /// The files that it was made from, if they are those.
    fn inputs(&self, recipe: &Recipe, given: &Photo, source: &Source<'_>) -> anyhow::Result<Inputs> {
        let needs_image = recipe.kind() != "txt2img";
        for (role, path) in [("image", &self.image), ("mask", &self.mask)] {
            let option = format!("--{role}");
            match (recipe.input(role), path) {
                (Some(recorded), Some(path)) => {
                    let found = inputs::input(role, path)?.sha256;
                    if found != recorded.sha256 {
                        let (path, was) = (path.display(), &recorded.sha256);
                        bail!("{path} has the SHA-256 {found}, and the picture's {role} had {was}; give that one");
                    }
                }
                (Some(recorded), None) => {
                    let InputRecord { name, sha256: sum } = recorded;
                    bail!("the picture was made from {name:?} (SHA-256 {sum}), which is missing; give it with {option}")
                }
                (None, None) if needs_image && role == "image" => {
                    bail!("the picture was made from another, which its settings do not name; give it with {option}")
                }
                (None, Some(_)) if !needs_image => {
                    wrong_usage!("{option} is given, and the picture was made from text alone")
                }
                (None, _) => {}
            }
        }
        let (mut adapters, mut controls) = (self.adapters.adapters(source)?, self.adapters.control_images()?);
        let loras = recipe.apply_adapters(&mut adapters, &mut controls)?;
        Ok(Inputs {
            picture: {
                let scale = recipe.scale().unwrap_or(1) as usize;
                (given.width() / scale, given.height() / scale)
            },
            adapters,
            controls,
            loras,
            image: self.image.as_deref().map(Photo::read).transpose()?,
            mask: self.mask.as_deref().map(Mask::read).transpose()?,
        })
    }

    /// The model with the picture's weights.
    fn find(&self, recipe: &Recipe, source: &Source<'_>) -> anyhow::Result<Model> {
        match (recipe.vae_name(), &self.model.vae) {
            (Some(name), None) => bail!("the picture was made with another autoencoder, {name:?}; give it with --vae"),
            (None, Some(vae)) => {
                wrong_usage!("--vae is {}, and the picture was made with its model's own", vae.display())
            }
            _ => {}
        }
        let weights = recipe.weights()?;
        if let Some(path) = &self.model.model {
            let model = source.open(path, self.model.config.clone(), Purpose::Model)?;
            return match check_weights(&model, weights)? {
                WeightsCheck::Same => Ok(model),
                WeightsCheck::Missing(name) => {
                    bail!("{} is not the model of the picture: they have no {name} in common", path.display())
                }
                WeightsCheck::Other { name, found, expected } => bail!(
                    "{} is not the model of the picture: its {name} has the SHA-256 {found}, and that of the picture's \
                     had {expected}",
                    path.display()
                ),
            };
        }
        #[cfg(feature = "embedded-model")]
        if check_weights(&Model::Embedded, weights)? == WeightsCheck::Same {
            return Ok(Model::Embedded);
        }
        #[cfg(feature = "hub")]
        if let Some(model) = super::fetching::hub(true)?.with_weights(weights)? {
            return Ok(model);
        }
        let (name, sum) = weights.iter().find(|(name, _)| name.starts_with("unet/") || !name.contains('/')).unzip();
        bail!(
            "the model of the picture, {:?} ({} with the SHA-256 {}), is neither embedded nor in the hub's cache; give its \
             folder, its file or its name on the hub with --model",
            recipe.model_name(),
            name.map_or("weights", String::as_str),
            sum.and_then(Value::as_str).unwrap_or("unknown"),
        )
    }

    /// The loaded model and its checked request.
    fn prepare(
        &self,
        recipe: &Recipe,
        model: Model,
        inputs: Inputs,
        source: &Source<'_>,
    ) -> anyhow::Result<(LatentDiffusion, Settings)> {
        let Inputs { picture, image, mask, adapters, controls, loras } = inputs;
        let builder = Prepared { arguments: &self.model, model, adapters, beside: !loras.is_empty() };
        match (recipe.kind(), image) {
            ("img2img", Some(image)) => {
                let model = builder.build(TaskKind::ImageToImage, source)?;
                let mut request = recipe.image_request(image)?;
                (request.text.controls, request.text.loras) = (controls, loras);
                let settings = recipe.settle(picture, &mut |size| {
                    (request.text.width, request.text.height) = size.unzip();
                    model.settle(&request)
                })?;
                Ok((model, settings))
            }
            ("inpaint", Some(image)) => {
                let model = builder.build(TaskKind::Inpaint, source)?;
                let mut request = recipe.inpaint_request(image, mask)?;
                (request.text.controls, request.text.loras) = (controls, loras);
                let settings = recipe.settle(picture, &mut |size| {
                    (request.text.width, request.text.height) = size.unzip();
                    model.settle(&request)
                })?;
                Ok((model, settings))
            }
            _ => {
                let model = builder.build(TaskKind::TextToImage, source)?;
                let request = TextToImageRequest { controls, loras, ..recipe.text_request()? };
                let settings = recipe.settle(picture, &mut |_| model.settle(&request))?;
                Ok((model, settings))
            }
        }
    }

    fn render(&self, model: &LatentDiffusion, settings: &Settings, interrupt: &Interrupt) -> anyhow::Result<Photo> {
        let progress = Progress::new(self.quiet);
        let mut again = None;
        let run = model.run(settings, &mut |event| {
            match event {
                Event::Step { done, steps, .. } => {
                    progress.stage("denoising");
                    progress.steps(done, steps);
                }
                Event::Decoding { .. } => progress.stage("decoding"),
                Event::Picture { picture, .. } => again = Some(picture.clone()),
                _ => {}
            }
            interrupt.flow()
        });
        progress.finish();
        match again {
            Some(picture) => Ok(picture),
            None => Err(run.err().map_or_else(|| anyhow::anyhow!("no picture was made"), Into::into)),
        }
    }

    fn report(&self, comparison: &Comparison, mut differences: Vec<String>) -> anyhow::Result<ExitCode> {
        let verdict = comparison.verdict();
        let name = match verdict {
            Verdict::Identical => "identical",
            Verdict::Close => "close",
            Verdict::Different => "different",
        };
        let (figure, max, psnr) = match comparison {
            Comparison::Samples { max, .. } if *max == 0.0 => ("every sample is the same".into(), Some(0.0), None),
            Comparison::Samples { max, psnr } => {
                (format!("samples differ by up to {max:.3} of 255, PSNR {psnr:.1} dB"), Some(*max), Some(*psnr))
            }
            Comparison::Form(was, is) => {
                let form = |[width, height, channels, bits]: &[usize; 4]| {
                    format!("{width}x{height} of {channels} x {bits} bits")
                };
                (format!("the picture is {}, and the new one {}", form(was), form(is)), None, None)
            }
        };
        if verdict == Verdict::Different && differences.is_empty() {
            differences.push(
                "settings and weights are the same: the picture was changed after it was made, or its device computed \
                 otherwise"
                    .into(),
            );
        }
        if self.json {
            let result = json!({"result": name, "max_difference": max, "psnr": psnr, "why": differences});
            print::result(&serde_json::to_string_pretty(&result)?)?;
        } else {
            let differences = differences.into_iter().map(|difference| format!("  {difference}"));
            print::lines([format!("{name}: {figure}")].into_iter().chain(differences))?;
        }
        Ok(if verdict == Verdict::Different { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
