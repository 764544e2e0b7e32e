//! A family of models from outside the crate: a network of tokens that are mixed, a text encoder that counts letters, an
//! autoencoder of two matrices. It joins the others through the registry, and runs as they do.

use candle_core::{D, DType, Device, Tensor};
use std::collections::HashMap;
use std::f64::consts::LN_10;
use std::path::Path;
use tweedie::checkpoints::{ModelFiles, RandomWeights};
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{Branch, Cache, Call, Network, PredictionType};
use tweedie::families::{
    Architecture, AutoencoderArchitecture, Component, ConditioningFacts, DenoisingNetwork, Families, Family,
    KeptWeights, Loader, NetworkFacts, Variant,
};
use tweedie::images::{Photo, Picture};
use tweedie::layers::{Linear, WeightSource, Weights};
use tweedie::models::{Autoencoder, DiagonalGaussian, Halves, LatentSpace, Watch};
use tweedie::schedulers::NoiseSchedule;
use tweedie::text::{Prompt, TextEncoder};
use tweedie::training::tasks::{EmbeddingTraining, EmbeddingTrainingConfig, FrozenModel, HeldWeights, SamplePrompts};
use tweedie::training::{
    AdamWConfig, Decay, ForwardProcess, LearningRate, LossWeighting, NewToken, Objective, OptimizerOptions,
};
use tweedie::{Error, NoiseLevel, Result};
use tweedie_pipelines::{ImageToImageRequest, LatentDiffusion, TextToImageRequest};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

const LETTERS: usize = 128;
const TEXT_WIDTH: usize = 16;
const WIDTH: usize = 32;
const SIDE: usize = 8;
const LATENTS: LatentSpace = LatentSpace { channels: 4, factor: 8, scaling_factor: 0.5 };

#[derive(Debug)]
struct Toy;

static TOY: Toy = Toy;

impl Family for Toy {
    fn id(&self) -> &'static str {
        "toy"
    }

    fn name(&self) -> &'static str {
        "token mixer"
    }

    fn components(&self) -> &'static [Component] {
        const COMPONENTS: [Component; 3] = [
            Component::text_encoder("letters", "letters"),
            Component::network("mixer"),
            Component::autoencoder("colours"),
        ];
        &COMPONENTS
    }

    fn recognise(&self, files: &ModelFiles) -> Result<Option<Variant>> {
        if !files.exists("mixer/config.json") {
            return Ok(None);
        }
        let of_class = files.config("mixer", "config.json")?.class_name() == Some("TokenMixer");
        Ok(of_class.then(Variant::default))
    }

    fn architecture(&self, _: &ModelFiles) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(ToyArchitecture))
    }
}

const FACTS: NetworkFacts = NetworkFacts {
    in_channels: LATENTS.channels,
    out_channels: LATENTS.channels,
    sample_size: (SIDE, SIDE),
    takes_guidance: false,
    merges_tokens: false,
};

#[derive(Debug)]
struct ToyArchitecture;

impl Architecture for ToyArchitecture {
    fn network_facts(&self) -> NetworkFacts {
        FACTS
    }

    fn conditioning_facts(&self) -> ConditioningFacts {
        ConditioningFacts { text_width: TEXT_WIDTH, ..ConditioningFacts::default() }
    }

    fn network(&self, weights: &Weights<'_>, _: DType) -> Result<Box<dyn DenoisingNetwork>> {
        Ok(Box::new(Mixer {
            embed: Linear::new(&weights.at("embed"), LATENTS.channels, WIDTH)?,
            read: Linear::new(&weights.at("read"), TEXT_WIDTH, WIDTH)?,
            time: Linear::new(&weights.at("time"), WIDTH, WIDTH)?,
            mix: Linear::new(&weights.at("mix"), SIDE * SIDE, SIDE * SIDE)?,
            out: Linear::new(&weights.at("out"), WIDTH, LATENTS.channels)?,
        }))
    }

    fn text_encoder(&self, loader: &Loader<'_>) -> Result<(Box<dyn TextEncoder>, Vec<String>)> {
        let build = |weights: &Weights<'_>| weights.tensor("letters.weight", &[LETTERS, TEXT_WIDTH]);
        let (letters, files) = loader.load("letters", &[], build)?;
        Ok((Box::new(BagOfLetters { letters }), files))
    }

    fn autoencoder(&self, _: &ModelFiles, _: &str) -> Result<Box<dyn AutoencoderArchitecture>> {
        Ok(Box::new(ColoursArchitecture))
    }
}

/// The text is the mean of its letters' embeddings: one token.
#[derive(Debug)]
struct BagOfLetters {
    letters: Tensor,
}

impl TextEncoder for BagOfLetters {
    fn encode(&self, prompts: &[Prompt<'_>], _: bool, warnings: &mut Vec<String>) -> Result<Vec<Conditioning>> {
        let encode = |prompt: &Prompt<'_>| -> Result<Conditioning> {
            let mut counts = [0f32; LETTERS];
            for letter in prompt.texts[0].chars() {
                match counts.get_mut(letter as usize) {
                    Some(count) => *count += 1.0,
                    None => warnings.push(format!("{letter} of the {} has no effect", prompt.what)),
                }
            }
            let mean = (Tensor::new(&counts, self.letters.device())? / prompt.texts[0].len().max(1) as f64)?;
            Ok(Conditioning::text(mean.unsqueeze(0)?.matmul(&self.letters)?.unsqueeze(0)?))
        };
        prompts.iter().map(encode).collect()
    }

    fn embedding_widths(&self) -> Vec<usize> {
        vec![TEXT_WIDTH]
    }

    fn add_token(&mut self, token: &str, _: &[Tensor]) -> Result<()> {
        Err(Error::invalid("the embedding's token", token, "letters have no more tokens"))
    }
}

/// Every place of the latents is a token; a layer mixes the tokens, one mixes the channels.
#[derive(Debug)]
struct Mixer {
    embed: Linear,
    read: Linear,
    time: Linear,
    mix: Linear,
    out: Linear,
}

impl DenoisingNetwork for Mixer {
    fn facts(&self) -> NetworkFacts {
        FACTS
    }
}

impl Network for Mixer {
    /// Perturbed rows, which come first, are not mixed.
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let (x, timestep, conditioning) = (call.x, call.level()?.timestep, call.conditioning);
        let perturbed = call.rows(|branch| branch == Branch::Perturbed)?.len();
        let (batch, channels, height, width) = x.dims4()?;
        let tokens = x.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let text = conditioning.text.as_ref().ok_or_else(|| Error::invalid("the text", "missing", "give one"))?;
        let waves: Vec<f32> = (0..WIDTH).map(|i| (timestep * (-LN_10 * i as f64 / 8.0).exp()).sin() as f32).collect();
        let time = self.time.forward(&Tensor::from_vec(waves, (1, 1, WIDTH), x.device())?)?;
        let h = self.embed.forward(&tokens)?.broadcast_add(&time)?.broadcast_add(&self.read.forward(text)?)?.silu()?;
        let mixed = self.mix.forward(&h.transpose(1, 2)?.contiguous()?)?.transpose(1, 2)?.contiguous()?;
        let rows = batch - perturbed;
        let h = match (perturbed, rows) {
            (0, _) => (h + mixed)?,
            (_, 0) => h,
            _ => {
                let unperturbed = (h.narrow(0, perturbed, rows)? + mixed.narrow(0, perturbed, rows)?)?;
                Tensor::cat(&[&h.narrow(0, 0, perturbed)?, &unperturbed], 0)?
            }
        };
        let out = self.out.forward(&h.contiguous()?)?;
        Ok(out.transpose(1, D::Minus2)?.contiguous()?.reshape((batch, channels, height, width))?)
    }
}

#[derive(Debug)]
struct ColoursArchitecture;

impl AutoencoderArchitecture for ColoursArchitecture {
    fn latent_space(&self) -> LatentSpace {
        LATENTS
    }

    fn load(
        &self,
        loader: &Loader<'_>,
        component: &str,
        halves: Halves,
    ) -> Result<(Box<dyn Autoencoder>, Vec<String>)> {
        let unused: &[&str] = if halves == Halves::Decoder { &["to_latents."] } else { &[] };
        let (colours, files) = loader.load(component, unused, |weights| {
            let encoder = || Linear::new(&weights.at("to_latents"), 3, LATENTS.channels);
            Ok(Colours {
                to_latents: (halves == Halves::Both).then(encoder).transpose()?,
                to_colours: Linear::new(&weights.at("to_colours"), LATENTS.channels, 3)?,
            })
        })?;
        Ok((Box::new(colours), files))
    }
}

/// A latent is a linear function of its square's mean colour, and the other way round.
#[derive(Debug)]
struct Colours {
    to_latents: Option<Linear>,
    to_colours: Linear,
}

/// A linear layer over the channels of `[batch, channels, height, width]`.
fn over_channels(layer: &Linear, x: &Tensor) -> Result<Tensor> {
    let last = x.permute((0, 2, 3, 1))?.contiguous()?;
    Ok(layer.forward(&last)?.permute((0, 3, 1, 2))?.contiguous()?)
}

impl Autoencoder for Colours {
    fn latent_space(&self) -> LatentSpace {
        LATENTS
    }

    fn encode(&self, images: &Tensor) -> Result<DiagonalGaussian> {
        let layer = self.to_latents.as_ref().ok_or_else(|| Error::invalid("the encoder", "left out", "load both"))?;
        DiagonalGaussian::certain(over_channels(layer, &images.avg_pool2d(LATENTS.factor)?)?)
    }

    fn decode_watched(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        if watch(0, 1).is_break() {
            return Err(Error::Cancelled);
        }
        let (_, _, height, width) = latents.dims4()?;
        let colours = over_channels(&self.to_colours, latents)?.tanh()?;
        Ok(colours.upsample_nearest2d(height * LATENTS.factor, width * LATENTS.factor)?)
    }
}

/// A model of the family with weights of a seed, in diffusers layout.
fn write_model(folder: &Path, seed: u64) -> TestResult {
    let write = |name: &str, text: &str| -> TestResult {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().ok_or("no folder")?)?;
        Ok(std::fs::write(path, text)?)
    };
    write("model_index.json", r#"{"_class_name": "ToyPipeline"}"#)?;
    let scheduler = r#"{"_class_name": "DDIMScheduler", "clip_sample": false, "steps_offset": 1}"#;
    write("scheduler/scheduler_config.json", scheduler)?;
    write("mixer/config.json", r#"{"_class_name": "TokenMixer"}"#)?;
    write("letters/config.json", "{}")?;
    write("colours/config.json", "{}")?;
    let linear = |name: &str, inputs, outputs| {
        [(format!("{name}.weight"), vec![outputs, inputs]), (format!("{name}.bias"), vec![outputs])]
    };
    let tokens = SIDE * SIDE;
    let channels = LATENTS.channels;
    let mixer = [
        linear("embed", channels, WIDTH),
        linear("read", TEXT_WIDTH, WIDTH),
        linear("time", WIDTH, WIDTH),
        linear("mix", tokens, tokens),
        linear("out", WIDTH, channels),
    ];
    let colours = [linear("to_latents", 3, channels), linear("to_colours", channels, 3)];
    let random = RandomWeights::new(seed, DType::F32, &Device::Cpu);
    for (component, shapes) in [
        ("mixer", mixer.concat()),
        ("letters", vec![("letters.weight".to_owned(), vec![LETTERS, TEXT_WIDTH])]),
        ("colours", colours.concat()),
    ] {
        let tensors = shapes.into_iter().map(|(name, shape)| Ok((name.clone(), random.tensor(&name, &shape)?)));
        let tensors = tensors.collect::<Result<HashMap<_, _>>>()?;
        candle_core::safetensors::save(&tensors, folder.join(component).join("diffusion_pytorch_model.safetensors"))?;
    }
    Ok(())
}

fn load(folder: &Path) -> Result<LatentDiffusion> {
    LatentDiffusion::builder().families(Families::built_in().with(&TOY)).model_folder(folder).build()
}

#[test]
fn a_family_from_outside_is_found_and_draws() -> TestResult {
    let folder = tempfile::tempdir()?;
    write_model(folder.path(), 7)?;
    let files = ModelFiles::folder(folder.path())?;
    assert_eq!(Families::built_in().with(&TOY).detect(&files)?.name(), "token mixer");
    assert!(Families::built_in().detect(&files).is_err());

    let model = load(folder.path())?;
    let request = TextToImageRequest {
        prompt: "a fox".into(),
        negative_prompt: Some("blurry".into()),
        steps: Some(4),
        seed: 3,
        ..TextToImageRequest::default()
    };
    let picture = |request: &TextToImageRequest| -> TestResult<Photo> {
        Ok(model.generate(request)?.pictures.pop().ok_or("no picture")?)
    };
    let first = picture(&request)?;
    assert_eq!((first.width(), first.height()), (64, 64));
    assert!(first == picture(&request)?, "the same request draws another picture");
    assert!(first == load(folder.path())?.generate(&request)?.pictures[0], "loaded again it draws another picture");
    for other in [
        TextToImageRequest { prompt: "an owl".into(), ..request.clone() },
        TextToImageRequest { negative_prompt: Some("red".into()), ..request.clone() },
        TextToImageRequest { guidance_scale: Some(3.0), ..request.clone() },
        TextToImageRequest { pag_scale: 2.0, ..request.clone() },
        TextToImageRequest { seed: 4, ..request.clone() },
    ] {
        assert!(first != picture(&other)?, "{other:?}");
    }

    let image = Photo::from(&Picture::new(64, 64, [200, 40, 60].repeat(64 * 64))?);
    let from_picture = ImageToImageRequest { text: request, image, strength: Some(0.5) };
    assert_eq!(model.generate(&from_picture)?.pictures.len(), 1);
    let other_text = TextToImageRequest { prompt: "é".into(), steps: Some(1), ..TextToImageRequest::default() };
    assert_eq!(model.generate(&other_text)?.warnings, ["é of the prompt has no effect"]);
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    write_model(folder.path(), 7)?;
    let path = folder.path().join("mixer/diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    tensors.remove("mix.bias");
    candle_core::safetensors::save(&tensors, &path)?;
    let error = load(folder.path()).err().ok_or("it loads")?.to_string();
    assert!(error.contains("mix.bias"), "{error}");

    write_model(folder.path(), 7)?;
    let with_control = LatentDiffusion::builder().families(Families::built_in().with(&TOY)).model_folder(folder.path());
    std::fs::write(folder.path().join("edges.safetensors"), std::fs::read(&path)?)?;
    let error = with_control.control(folder.path().join("edges.safetensors")).build().err().ok_or("it loads")?;
    assert!(error.to_string().contains("models of this family take none"), "{error}");
    Ok(())
}

/// A text encoder that has no tokens can get none.
#[test]
fn no_embedding_is_trained_for_letters() -> TestResult {
    let folder = tempfile::tempdir()?;
    write_model(folder.path(), 7)?;
    let files = ModelFiles::folder(folder.path())?;
    let model = FrozenModel::load(&files, &Families::built_in().with(&TOY), HeldWeights::default())?;
    let process = ForwardProcess::Diffusion(NoiseSchedule::from_config(model.scheduler())?);
    let config = EmbeddingTrainingConfig {
        token: NewToken { token: "<fox>".into(), vectors: 1, init_word: None },
        objective: Objective::new(process, PredictionType::Epsilon, LossWeighting::Uniform)?,
        captions: vec!["a <fox>".into()],
        size: (64, 64),
        samples: SamplePrompts { prompts: Vec::new(), guidance_scale: 1.0, steps: 1 },
        dtype: DType::F32,
    };
    let optimizer = OptimizerOptions {
        learning_rate: LearningRate { peak: 1e-3, warmup_steps: 0, total_steps: 1, decay: Decay::Constant },
        adamw: AdamWConfig::default(),
        max_gradient_norm: None,
        ema: None,
    };
    let error = EmbeddingTraining::new(config, model, 0, optimizer).err().ok_or("it is trained")?.to_string();
    assert!(error.contains("the model is token mixer") && error.contains("no embeddings of tokens"), "{error}");
    Ok(())
}

#[test]
fn a_component_is_built_again_from_weights_that_were_kept_or_are_no_files() -> TestResult {
    let folder = tempfile::tempdir()?;
    write_model(folder.path(), 7)?;
    let (files, kept) = (ModelFiles::folder(folder.path())?, KeptWeights::default());
    let loader = Loader { kept: Some(&kept), ..Loader::new(&files, &Device::Cpu) };
    let architecture = TOY.architecture(&files)?;
    let build = || loader.load("mixer", &[], |weights| architecture.network(weights, DType::F32));
    let (first, names) = build()?;
    assert_eq!(names, ["mixer/diffusion_pytorch_model.safetensors"]);
    std::fs::remove_dir_all(folder.path().join("mixer"))?;
    let (again, names) = build()?;
    assert!(names.is_empty());
    let x = RandomWeights::new(1, DType::F32, &Device::Cpu).tensor("x", &[1, LATENTS.channels, SIDE, SIDE])?;
    let conditioning = Conditioning::text(Tensor::ones((1, 1, TEXT_WIDTH), DType::F32, &Device::Cpu)?);
    let values = |network: &dyn DenoisingNetwork| -> TestResult<Vec<f32>> {
        let (level, cache) = (NoiseLevel { timestep: 500.0, alpha: 1.0, sigma: 1.0 }, Cache::default());
        Ok(network.forward(&Call::new(&x, level, &conditioning, &cache))?.flatten_all()?.to_vec1()?)
    };
    assert_eq!(values(first.as_ref())?, values(again.as_ref())?);
    // And from what the files were written of.
    let random = RandomWeights::new(7, DType::F32, &Device::Cpu);
    let loader = Loader { source: Some(&random), kept: None, ..loader };
    let (written, names) = loader.load("mixer", &[], |weights| architecture.network(weights, DType::F32))?;
    assert!(names.is_empty());
    assert_eq!(values(first.as_ref())?, values(written.as_ref())?);
    Ok(())
}
