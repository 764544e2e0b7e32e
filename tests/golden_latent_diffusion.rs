//! Text to image, image to image and inpainting, stage by stage: the picture alone would not tell tanh from erf GELU.

mod cases;

use candle_core::{DType, Device, IndexOp, Tensor};
use cases::controls::described_controls;
use cases::{Case, TestResult, cases, run_all};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use tweedie::NoiseLevel;
use tweedie::adapters::TextualInversion;
use tweedie::checkpoints::{ModelFiles, TensorFile};
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{Branch, Cache, Call, ClassifierFreeGuidance, Denoiser, InpaintingNetwork, Network, Position};
use tweedie::families::{convert_to_file, convert_to_folder};
use tweedie::files::Existing;
use tweedie::images::{Mask, Photo, Picture};
use tweedie::layers::Backend;
use tweedie::noise::TorchNoise;
use tweedie::schedulers::{Run, SCHEDULERS, Step, by_class_name, sample};
use tweedie::text::Tokenizer;
use tweedie_pipelines::stages::{Reference, prepare, reference};
use tweedie_pipelines::{
    Adapters, Builder, ControlImage, DTypeChoice, DeviceChoice, EmbeddingChoice, Event, ImageToImageRequest,
    InpaintRequest, LatentDiffusion, LoraChoice, Model, NegativeSizeRequest, Settings, SizeRequest, TextToImageRequest,
    XlRequest,
};

/// Of the largest value of a stage. Exact arithmetic is within 5e-5 of the reference's f32; tanh instead of erf
/// in the GELU moves the first output of the UNet by 2e-4 and more.
const TOLERANCE: f64 = 1e-4;

/// Passes on to a network and keeps what went in and out.
struct Recorder<'a> {
    network: &'a dyn Network,
    calls: RefCell<Vec<Recorded>>,
}

/// One call and its answer.
struct Recorded {
    x: Tensor,
    level: NoiseLevel,
    branches: Vec<Branch>,
    position: Option<Position>,
    raw: Tensor,
}

impl<'a> Recorder<'a> {
    fn new(network: &'a dyn Network) -> Self {
        Self { network, calls: RefCell::default() }
    }
}

impl Network for Recorder<'_> {
    fn forward(&self, call: &Call<'_>) -> tweedie::Result<Tensor> {
        let raw = self.network.forward(call)?;
        self.calls.borrow_mut().push(Recorded {
            x: call.x.clone(),
            level: call.level()?,
            branches: call.branches.to_vec(),
            position: call.position,
            raw: raw.clone(),
        });
        Ok(raw)
    }
}

const KINDS: [&str; 7] = ["txt2img", "img2img", "inpaint", "txt2img-xl", "img2img-xl", "inpaint-xl", "controlnet"];

fn kind(json: &Value) -> &str {
    json["kind"].as_str().unwrap_or_default()
}

fn wanted(json: &Value) -> bool {
    let covered = |name: &str| SCHEDULERS.iter().any(|entry| entry.class_name == name);
    KINDS.contains(&kind(json)) && json["scheduler"]["name"].as_str().is_some_and(covered)
}

/// The seeds: one for each image, or one stream for all of them.
fn noise(case: &Case) -> (TorchNoise, usize) {
    let images = case.json["num_images_per_prompt"].as_u64().unwrap_or(1) as usize;
    match &case.json["seed"] {
        Value::Array(list) => {
            let seeds: Vec<u64> = list.iter().filter_map(Value::as_u64).collect();
            (TorchNoise::per_image(&seeds), images)
        }
        seed => (TorchNoise::shared(seed.as_u64().unwrap_or(0)), images),
    }
}

fn request(case: &Case) -> TestResult<TextToImageRequest> {
    let json = &case.json;
    let text = |name: &str| json[name].as_str().map(str::to_owned);
    let number = |name: &str| json[name].as_u64().map(|n| n as usize);
    let entry = by_class_name(json["scheduler"]["name"].as_str().unwrap_or_default())?;
    // The configuration in effect, whether it came from the request or from how diffusers reads the model's file.
    let mut fields = case.scheduler_config();
    if let Some(eta) = json.get("eta") {
        fields.insert("eta".into(), eta.clone());
    }
    Ok(TextToImageRequest {
        prompt: text("prompt").unwrap_or_default(),
        negative_prompt: text("negative_prompt"),
        steps: number("steps"),
        guidance_scale: json["guidance_scale"].as_f64(),
        guidance_rescale: json["guidance_rescale"].as_f64(),
        scheduler: Some(entry.name.into()),
        scheduler_config: fields,
        width: number("width"),
        height: number("height"),
        num_images: number("num_images_per_prompt").unwrap_or(1),
        clip_skip: number("clip_skip").unwrap_or(0),
        controls: controls(case)?.into_iter().map(|(_, image)| image).collect(),
        xl: XlRequest {
            prompt_2: text("prompt_2"),
            negative_prompt_2: text("negative_prompt_2"),
            sizes: sizes(json),
            negative_sizes: negative_sizes(json),
        },
        ..TextToImageRequest::default()
    })
}

fn sizes(json: &Value) -> SizeRequest {
    SizeRequest {
        original: pair(json, "original_size"),
        crop_top_left: pair(json, "crops_coords_top_left"),
        target: pair(json, "target_size"),
        ..SizeRequest::default()
    }
}

fn negative_sizes(json: &Value) -> NegativeSizeRequest {
    NegativeSizeRequest {
        original: pair(json, "negative_original_size"),
        crop_top_left: pair(json, "negative_crops_coords_top_left"),
        target: pair(json, "negative_target_size"),
        ..NegativeSizeRequest::default()
    }
}

fn pair(json: &Value, name: &str) -> Option<(usize, usize)> {
    let value = &json[name];
    Some((value[0].as_u64()? as usize, value[1].as_u64()? as usize))
}

/// The forms that the case's model comes in: the folder, and single files with the folder's configurations.
fn forms(case: &Case) -> Vec<Model> {
    let files = case.json["single_file"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let single = files.map(|name| Model::File { path: case.root.join(name), config: Some(case.model()) });
    std::iter::once(Model::Folder(case.model())).chain(single).collect()
}

fn builder(case: &Case, model: &Model, backend: Backend, dtype: DTypeChoice) -> TestResult<Builder> {
    let builder = Builder::default().model(model.clone()).device(DeviceChoice::Cpu).dtype(dtype).backend(backend);
    let vae = case.json["vae"].as_str().map(|name| Model::Folder(case.root.join("models").join(name)));
    Ok(builder.vae(vae).adapters(adapters(case)?))
}

/// What the case puts on top of its model; files are in the folder of models.
fn adapters(case: &Case) -> TestResult<Adapters> {
    let file = |json: &Value| case.root.join("models").join(json["file"].as_str().unwrap_or_default());
    let lora = |json: &Value| LoraChoice { path: file(json), weight: json["scale"].as_f64().unwrap_or(1.0) };
    let token = |json: &Value| json["token"].as_str().map(Into::into);
    let embedding = |json: &Value| EmbeddingChoice { path: file(json), token: token(json) };
    Ok(Adapters {
        loras: case.one_or_more("lora").map(lora).collect(),
        embeddings: case.one_or_more("embedding").map(embedding).collect(),
        controls: controls(case)?.into_iter().map(|(model, _)| model).collect(),
    })
}

/// The folders of the case's control models with their pictures.
fn controls(case: &Case) -> TestResult<Vec<(Model, ControlImage)>> {
    let described = described_controls(&case.json);
    let read = |control: &Value| {
        let number = |field: &str, default| control[field].as_f64().unwrap_or(default);
        let image = Photo::read(&case.folder.join(control["image"].as_str().ok_or("no picture")?))?;
        let model = case.root.join("models").join(control["model"].as_str().ok_or("no model")?);
        let (scale, start, end) = (number("scale", 1.0), number("start", 0.0), number("end", 1.0));
        let guess = case.json["guess_mode"].as_bool().unwrap_or(false);
        Ok((model.into(), ControlImage { image, scale, start, end, guess }))
    };
    described.iter().map(read).collect()
}

/// The case's model and settings, those of the request changed by `change`.
fn settled(
    case: &Case,
    model: &Model,
    backend: Backend,
    change: impl FnOnce(&mut TextToImageRequest),
) -> TestResult<(LatentDiffusion, Settings)> {
    // Rounded to f16 and computed in f32: what the CPU does with weights in f16.
    let dtype = if case.json["weights"] == "fp16" { DTypeChoice::F16 } else { DTypeChoice::F32 };
    settled_in(case, model, backend, dtype, change)
}

fn settled_in(
    case: &Case,
    model: &Model,
    backend: Backend,
    dtype: DTypeChoice,
    change: impl FnOnce(&mut TextToImageRequest),
) -> TestResult<(LatentDiffusion, Settings)> {
    let mut text = request(case)?;
    change(&mut text);
    let strength = case.json["strength"].as_f64();
    let file = |field: &str| case.folder.join(case.json[field].as_str().unwrap_or_default());
    let loaded = builder(case, model, backend, dtype)?.build()?;
    let settings = match kind(&case.json).trim_end_matches("-xl") {
        "img2img" => {
            let image = Photo::read(&file("init_image"))?;
            loaded.settle(&ImageToImageRequest { text, image, strength })?
        }
        "inpaint" => {
            let (image, mask) = (Photo::read(&file("init_image"))?, Mask::read(&file("mask_image"))?);
            let mut request = InpaintRequest { strength, ..InpaintRequest::of(image, Some(mask), text) };
            request.inpaint.composite = false;
            loaded.settle(&request)?
        }
        _ => loaded.settle(&text)?,
    };
    Ok((loaded, settings))
}

fn check_token_ids(case: &Case) -> TestResult {
    let files = ModelFiles::folder(&case.model())?;
    // What an encoder reads is its own text, or the first one's.
    for (stage, folder, texts) in [
        ("text.prompt", "tokenizer", ["prompt", "prompt"]),
        ("text.negative", "tokenizer", ["negative_prompt", "negative_prompt"]),
        ("text_2.prompt", "tokenizer_2", ["prompt_2", "prompt"]),
        ("text_2.negative", "tokenizer_2", ["negative_prompt_2", "negative_prompt"]),
    ] {
        if let Some(ids) = case.stages.get(&format!("{stage}.input_ids")) {
            // An empty second text is none, as diffusers takes it.
            let given = |field: &&str| case.json[*field].as_str().filter(|text| !text.is_empty());
            let text = texts.iter().find_map(given).unwrap_or_default();
            let mut tokenizer = Tokenizer::from_files(&files, folder)?;
            for choice in adapters(case)?.embeddings {
                let (folder, name) = (choice.path.parent().ok_or("no folder")?, choice.path.file_name());
                let name = name.and_then(|name| name.to_str()).ok_or("no name")?;
                let file = TensorFile::open(&ModelFiles::folder(folder)?, name)?;
                let word = TextualInversion::read(&choice.path, choice.token.as_deref())?;
                tokenizer.add_token(word.token(), file.tensors().first().ok_or("no vectors")?.shape[0])?;
            }
            let got = tokenizer.encode(text)?.ids;
            let want: Vec<i64> = ids.i(0)?.to_dtype(DType::I64)?.to_vec1()?;
            assert!(got.iter().map(|&id| i64::from(id)).eq(want.iter().copied()), "{}: {stage}", case.name);
        }
    }
    Ok(())
}

/// What the autoencoder makes of the given picture, and what it was given.
fn check_reference(case: &Case, settings: &Settings, reference: &Reference) -> TestResult {
    let encoded = [&reference.picture, &reference.masked];
    if let (Some(canvas), Some(_)) = (settings.task.canvas(), &reference.picture) {
        case.check("vae.encode.0.in", &canvas.picture()?.to_tensor(&Device::Cpu)?, 1e-6)?;
    }
    for (i, gaussian) in encoded.into_iter().flatten().enumerate() {
        // An image of a batch each; all are the same picture.
        let one = |stage: &str| -> TestResult<Tensor> { Ok(case.stage(stage)?.narrow(0, 0, 1)?) };
        let (mean, log_variance) = (format!("vae.encode.{i}.mean"), format!("vae.encode.{i}.logvar"));
        case.check_against(&mean, &gaussian.mean, &one(&mean)?, TOLERANCE)?;
        if gaussian.is_certain() {
            continue;
        }
        case.check_against(&log_variance, &gaussian.log_variance, &one(&log_variance)?, TOLERANCE)?;
    }
    Ok(())
}

fn check_picture(case: &Case, index: usize, picture: &Picture) -> TestResult {
    let name = case.json["expected"][index].as_str().ok_or("no expected picture")?;
    let expected = image::open(case.folder.join(name))?.to_rgb8();
    assert_eq!((picture.width() as u32, picture.height() as u32), expected.dimensions(), "{}", case.name);
    let differences = picture.rgb().iter().zip(expected.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b)));
    let (max, sum) = differences.fold((0, 0), |(max, sum), d| (d.max(max), sum + d));
    let mean = sum as f64 / picture.rgb().len() as f64;
    // Of 255.
    if max > 2 || mean > 0.1 {
        return Err(format!("{}: {name} differs by up to {max}, {mean:.3} in the mean", case.name).into());
    }
    Ok(())
}

fn check_stages(case: &Case, model: &Model, backend: Backend) -> TestResult {
    check_token_ids(case)?;
    let (model, settings) = settled(case, model, backend, |_| ())?;
    let (mut noise, images) = noise(case);

    let encoded = model.encode()?.run(&settings)?;
    let positive = encoded.positive.repeat(images)?;
    let negative = encoded.negative.as_ref().map(|negative| negative.repeat(images)).transpose()?;
    let rows = match &negative {
        Some(negative) => Conditioning::cat(&[negative, &positive])?,
        None => positive.clone(),
    };
    case.check("unet.0.encoder_hidden_states", rows.text.as_ref().ok_or("no text")?, TOLERANCE)?;
    if settings.xl.is_some() {
        case.check("unet.0.text_embeds", rows.pooled.as_ref().ok_or("no pooled text")?, TOLERANCE)?;
        case.check("unet.0.time_ids", rows.time_ids.as_ref().ok_or("no sizes")?, 0.0)?;
    } else if case.stages.contains_key("text.prompt.pooler_output") {
        let pooled = encoded.positive.pooled.as_ref().ok_or("no pooled output")?;
        case.check("text.prompt.pooler_output", pooled, TOLERANCE)?;
    }

    let vae = model.decode().vae();
    let denoise = model.denoise()?;
    let reference = reference(&settings.task, vae, &denoise.network().facts(), &Device::Cpu)?;
    check_reference(case, &settings, &reference)?;
    let prepared = prepare(&settings, &reference, &vae.latent_space(), images, &mut noise, &Device::Cpu)?;
    case.check("latents.start", &prepared.latents, TOLERANCE)?;

    let controlled = denoise.controlled(&settings)?;
    let network: &dyn Network = match &controlled {
        Some(controlled) => controlled,
        None => denoise.network(),
    };
    let recorder = Recorder::new(network);
    let shown = prepared.shown.as_ref().map(|shown| InpaintingNetwork::new(&recorder, shown));
    let unet = shown.as_ref().map_or(&recorder as &dyn Network, |shown| shown);
    let guidance = negative.as_ref().map(|negative| {
        ClassifierFreeGuidance::new(unet, negative, settings.guidance_scale, settings.guidance_rescale)
    });
    let guided = Recorder::new(guidance.as_ref().map_or(unet, |guidance| guidance));
    let denoiser = Denoiser::new(&guided, &positive, prepared.scheduler.parameterization());
    let mut after_step = Vec::new();
    let mut on_step = |step: &Step<'_>| {
        after_step.push(step.latents.clone());
        ControlFlow::Continue(())
    };
    let levels = &prepared.levels;
    let end = levels.after(levels.len() - 1);
    let constraint = |x: &mut Tensor, level: &NoiseLevel| {
        if let Some(known) = &prepared.known {
            *x = known.put_back(x, level, &end)?;
        }
        Ok(())
    };
    let run = Run::new(levels, &denoiser, &mut noise).constrained(&constraint);
    let latents =
        sample(prepared.scheduler.solver().as_mut(), prepared.latents.clone(), prepared.start, run, &mut on_step)?;

    let (unet, guided) = (recorder.calls.borrow(), guided.calls.borrow());
    let last = unet.len() - 1;
    let Recorded { x, level, branches, position, .. } = &unet[0];
    case.check("unet.0.in", x, TOLERANCE)?;
    if let Some(mid) = case.stages.get("controlnet.0.mid") {
        let controlled = controlled.as_ref().ok_or("no controls")?;
        let cache = Cache::default();
        let call = Call { branches, position: *position, ..Call::new(x, *level, &rows, &cache) };
        let residuals = controlled.residuals(&call)?.unwrap_or_default();
        for (i, down) in residuals.down.iter().enumerate() {
            case.check(&format!("controlnet.0.down.{i:02}"), down, TOLERANCE)?;
        }
        case.check_against("controlnet.0.mid", &residuals.mid.ok_or("no residual")?, mid, TOLERANCE)?;
        let stages = case.stages.keys().filter(|name| name.starts_with("controlnet.0.down.")).count();
        assert_eq!(residuals.down.len(), stages, "{}", case.name);
    }
    case.check("unet.0.out", &unet[0].raw, TOLERANCE)?;
    case.check("guided.first", &guided[0].raw, TOLERANCE)?;
    let timesteps: Vec<f64> = unet.iter().map(|call| call.level.timestep).collect();
    case.check("unet.t", &Tensor::new(timesteps, &Device::Cpu)?, 1e-6)?;
    let reference = case.stage("latents.after_step")?;
    if reference.dim(0)? == after_step.len() {
        case.check("latents.after_step", &Tensor::stack(&after_step, 0)?, TOLERANCE)?;
    }
    case.check_against("the last latents", &latents, &reference.i(reference.dim(0)? - 1)?, TOLERANCE)?;
    case.check("unet.last.in", &unet[last].x, TOLERANCE)?;
    case.check("unet.last.out", &unet[last].raw, TOLERANCE)?;
    case.check("guided.last", &guided[guided.len() - 1].raw, TOLERANCE)?;
    case.check("vae.decode.out", &vae.decode(&vae.latent_space().unscaled(&latents)?)?, TOLERANCE)?;
    for i in 0..images {
        check_picture(case, i, &model.decode().run(&latents.narrow(0, i, 1)?)?)?;
    }
    Ok(())
}

/// The whole pipeline, for requests that it can be asked: image i from seed + i.
fn check_pictures(case: &Case, model: &Model, batch_size: usize) -> TestResult {
    let images = case.json["num_images_per_prompt"].as_u64().unwrap_or(1);
    let first = match &case.json["seed"] {
        Value::Array(list) => {
            let seeds: Vec<u64> = list.iter().filter_map(Value::as_u64).collect();
            if !seeds.windows(2).all(|pair| pair[1] == pair[0] + 1) {
                return Ok(());
            }
            seeds[0]
        }
        _ if images > 1 => return Ok(()),
        seed => seed.as_u64().ok_or("no seed")?,
    };
    let (model, settings) = settled(case, model, Backend::Kernels, |request| {
        request.seed = first;
        request.batch_size = batch_size;
    })?;
    for (i, picture) in model.generate_settled(&settings)?.pictures.iter().enumerate() {
        check_picture(case, i, &picture.to_picture())?;
    }
    Ok(())
}

fn in_all_forms(case: &Case, check: impl Fn(&Model) -> TestResult) -> TestResult {
    forms(case).iter().try_for_each(|model| check(model).map_err(|e| format!("{model:?}: {e}").into()))
}

#[test]
fn golden_stages_of_latent_diffusion() -> TestResult {
    run_all(&cases("cases", wanted)?, |case| in_all_forms(case, |model| check_stages(case, model, Backend::Kernels)));
    Ok(())
}

#[test]
fn golden_pictures_of_latent_diffusion_at_any_batch_size() -> TestResult {
    let cases = cases("cases", wanted)?;
    run_all(&cases, |case| in_all_forms(case, |model| check_pictures(case, model, 1)));
    run_all(&cases, |case| in_all_forms(case, |model| check_pictures(case, model, 2)));
    Ok(())
}

/// What CUDA and Metal run, run on the CPU: candle's own operations, channels first.
#[test]
fn golden_stages_with_the_operations_of_other_devices() -> TestResult {
    let ddim = |json: &Value| wanted(json) && json["scheduler"]["name"] == "DDIMScheduler";
    run_all(&cases("cases", ddim)?, |case| check_stages(case, &Model::Folder(case.model()), Backend::Candle));
    Ok(())
}

/// The textual inversions of a case, in the other forms that lie beside its file.
#[test]
fn golden_pictures_of_words_in_every_form() -> TestResult {
    let mut ran = 0;
    for case in cases("cases", |json| wanted(json) && json["embedding"]["file"].is_string())? {
        let own = case.root.join("models").join(case.json["embedding"]["file"].as_str().unwrap_or_default());
        let stem = own.file_stem().and_then(|stem| stem.to_str()).ok_or("no name")?;
        for entry in std::fs::read_dir(own.parent().ok_or("no folder")?)? {
            let path = entry?.path();
            if !path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(stem)) {
                continue;
            }
            let Case { name, folder, root, json, .. } = &case;
            let (name, folder, root, json) = (name.clone(), folder.clone(), root.clone(), json.clone());
            let mut case = Case { name, folder, root, json, stages: Default::default() };
            case.json["embedding"]["file"] = path.to_string_lossy().into_owned().into();
            check_pictures(&case, &Model::Folder(case.model()), 1).map_err(|e| format!("{}: {e}", path.display()))?;
            ran += 1;
        }
    }
    assert!(ran >= 5, "{ran} files");
    Ok(())
}

/// After the first step a preview is Tweedie's formula of what the network said, decoded.
fn check_previews(case: &Case) -> TestResult {
    let vae = case.json["vae"].as_str().map(|name| Model::Folder(case.root.join("models").join(name)));
    let builder = builder(case, &Model::Folder(case.model()), Backend::Kernels, DTypeChoice::F32)?;
    let loaded = builder.preview_vae(vae).build()?;
    let image = Photo::read(&case.folder.join(case.json["init_image"].as_str().unwrap_or_default()))?;
    let strength = case.json["strength"].as_f64();
    let seed = case.json["seed"].as_u64().ok_or("no seed")?;
    let text = TextToImageRequest { seed, ..request(case)? };
    let settings = loaded.settle(&ImageToImageRequest { text, image, strength })?;
    let (mut previews, mut order) = (Vec::new(), Vec::new());
    loaded.run(&settings, &mut |event| {
        match event {
            Event::Step { done, .. } => order.push(("step", done)),
            Event::Preview { index: 0, done, picture } => {
                order.push(("preview", done));
                previews.push(picture.clone());
            }
            Event::Decoding { done: 0, .. } => order.push(("decoding", 0)),
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    let steps = settings.steps - settings.start();
    let mut wanted: Vec<_> = (1..=steps).flat_map(|done| [("step", done), ("preview", done)]).collect();
    wanted.push(("decoding", 0));
    assert_eq!(order, wanted, "{}", case.name);

    let scheduler = settings.build_scheduler()?;
    let NoiseLevel { alpha, sigma, .. } = scheduler.levels(settings.steps)?.from(settings.start());
    let (x, epsilon) = (case.stage("unet.0.in")?.narrow(0, 0, 1)?, case.stage("guided.first")?);
    let x0 = ((x - (epsilon * sigma)?)? / alpha)?;
    // The preview's decoder is the one that the golden cases hold to diffusers.
    let decoder = settled(case, &Model::Folder(case.model()), Backend::Kernels, |_| ())?.0;
    let expected = decoder.decode().run(&x0)?;
    let off = previews[0].rgb().iter().zip(expected.rgb()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(off <= Some(1), "{}: {off:?}", case.name);
    Ok(())
}

#[test]
fn golden_previews_of_a_tiny_autoencoder() -> TestResult {
    let tiny = |json: &Value| {
        wanted(json)
            && json["vae"].is_string()
            && kind(json) == "img2img"
            && json["scheduler"]["name"] == "DDIMScheduler"
            && json["scheduler"]["config"]["prediction_type"] == "epsilon"
    };
    run_all(&cases("cases", tiny)?, check_previews);
    Ok(())
}

/// A model goes to one file, from there to a folder, and both draw what it draws. Stored as f16 it draws what its weights
/// draw rounded to f16.
fn check_conversions(case: &Case) -> TestResult {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let original = Model::Folder(case.model());
    let file = |name: &str| Model::File { path: at(name), config: Some(case.model()) };
    convert_to_file(&original.files()?, &at("whole.safetensors"), None, Existing::Stays)?;
    convert_to_folder(&file("whole.safetensors").files()?, &at("back"), None, Existing::Stays)?;
    same_tensors(&case.model(), &at("back"))?;
    for (i, form) in forms(case).iter().enumerate() {
        let name = format!("from-{i}");
        convert_to_folder(&form.files()?, &at(&name), None, Existing::Stays)?;
        check_pictures(case, &Model::Folder(at(&name)), 1)?;
    }
    check_pictures(case, &file("whole.safetensors"), 1)?;
    check_pictures(case, &Model::Folder(at("back")), 1)?;

    convert_to_file(&Model::Folder(at("back")).files()?, &at("half.safetensors"), Some(DType::F16), Existing::Stays)?;
    convert_to_folder(&original.files()?, &at("half"), Some(DType::F16), Existing::Stays)?;
    let picture = |model: &Model, dtype: DTypeChoice| -> TestResult<Vec<Photo>> {
        let (model, settings) = settled_in(case, model, Backend::Kernels, dtype, |request| request.num_images = 1)?;
        Ok(model.generate_settled(&settings)?.pictures)
    };
    let rounded = picture(&original, DTypeChoice::F16)?;
    assert!(picture(&file("half.safetensors"), DTypeChoice::F32)? == rounded, "{}: one file", case.name);
    assert!(picture(&Model::Folder(at("half")), DTypeChoice::F32)? == rounded, "{}: a folder", case.name);
    Ok(())
}

/// Whether two folders hold the same tensors, bit for bit.
fn same_tensors(one: &Path, other: &Path) -> TestResult {
    for name in
        ["text_encoder/model", "text_encoder_2/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]
    {
        let load =
            |folder: &Path| candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &Device::Cpu);
        if !one.join(format!("{name}.safetensors")).exists() {
            continue;
        }
        let (mut one, other) = (load(one)?, load(other)?);
        one.retain(|name, _| !name.ends_with("position_ids"));
        assert_eq!(one.keys().collect::<BTreeSet<_>>(), other.keys().collect::<BTreeSet<_>>());
        for (name, tensor) in one {
            assert_eq!(tensor.dims(), other[&name].dims(), "{name}");
            let bits = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            assert!(bits(&tensor)?.iter().zip(bits(&other[&name])?).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
        }
    }
    Ok(())
}

#[test]
fn golden_pictures_survive_conversion() -> TestResult {
    let mut seen = BTreeSet::new();
    // What is put on top of a model is not converted with it, so it would be rounded in one of the two runs alone.
    let alone = |json: &Value| {
        wanted(json)
            && ["lora", "embedding", "vae"].iter().all(|field| json.get(field).is_none())
            && described_controls(json).is_empty()
    };
    let mut cases = cases("cases", alone)?;
    // One case for each model, one with single files if there is one.
    cases.sort_by_key(|case| case.json["single_file"].is_null());
    cases.retain(|case| {
        // Adapters and control models are files of their own, which no conversion touches or rounds.
        described_controls(&case.json).is_empty() && case.json["weights"] != "fp16" && seen.insert(case.model())
    });
    run_all(&cases, check_conversions);
    Ok(())
}
