//! Diffusion in pixel space, stage by stage.

mod cases;

use candle_core::{DType, Device, IndexOp, Tensor};
use cases::{Case, TestResult, cases, run_all};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::ops::ControlFlow;
use tweedie::NoiseLevel;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Denoiser, Network};
use tweedie::images::Picture;
use tweedie::layers::{Backend, Weights};
use tweedie::models::{UNet2DConfig, UNet2DModel};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Run, Step, by_class_name, sample};
use tweedie_pipelines::{DeviceChoice, PixelModel, PixelPipeline, PixelRequest};

/// Of the largest value of a stage; exact arithmetic is within 5e-5 of the reference's f32.
const TOLERANCE: f64 = 1e-4;

fn wanted(json: &Value) -> bool {
    json["kind"] == "pixel"
}

fn unet(case: &Case, backend: Backend) -> TestResult<UNet2DModel> {
    let files = ModelFiles::folder(&case.model())?;
    let config = UNet2DConfig::from_json(&files.read_text("unet/config.json")?, &files.path("unet/config.json"))?;
    let checkpoint = Checkpoint::open(&files, "unet", Precision::Full, DType::F32, &Device::Cpu)?;
    let unet = UNet2DModel::new(&Weights::new(&checkpoint).with_backend(backend), config, DType::F32)?;
    checkpoint.finish(&[])?;
    Ok(unet)
}

/// Passes on to a network and keeps its outputs.
struct Recorder<'a> {
    network: &'a dyn Network,
    outputs: RefCell<Vec<Tensor>>,
}

impl Network for Recorder<'_> {
    fn forward(&self, call: &Call<'_>) -> tweedie::Result<Tensor> {
        let raw = self.network.forward(call)?;
        self.outputs.borrow_mut().push(raw.clone());
        Ok(raw)
    }
}

fn noise(case: &Case) -> TorchNoise {
    match &case.json["seed"] {
        Value::Array(list) => TorchNoise::per_image(&list.iter().filter_map(Value::as_u64).collect::<Vec<_>>()),
        seed => TorchNoise::shared(seed.as_u64().unwrap_or(0)),
    }
}

fn classes(case: &Case) -> Option<Vec<u32>> {
    let list = case.json.get("class_labels")?.as_array()?;
    Some(list.iter().filter_map(Value::as_u64).map(|class| class as u32).collect())
}

fn check_stages(case: &Case, backend: Backend) -> TestResult {
    let unet = unet(case, backend)?;
    let conditioning = match classes(case) {
        Some(classes) => Conditioning::classes(&classes, &Device::Cpu)?,
        None => Conditioning::default(),
    };
    let mut fields = case.scheduler_config();
    fields.insert("eta".into(), case.json.get("eta").cloned().unwrap_or(json!(0.0)));
    let entry = by_class_name(case.json["scheduler"]["name"].as_str().unwrap_or_default())?;
    let scheduler = entry.build(&ConfigFields::from_fields("scheduler", fields))?;
    let learned = unet.config().out_channels == 2 * unet.config().in_channels;
    let parameterization = scheduler.parameterization().clone().with_learned_variance(learned);

    let levels = scheduler.levels(case.json["steps"].as_u64().ok_or("no steps")? as usize)?;
    let mut noise = noise(case);
    let start = (noise.normal(case.stage("latents.start")?.dims())? * levels.init_noise_sigma())?;
    case.check("latents.start", &start, TOLERANCE)?;

    let recorder = Recorder { network: &unet, outputs: RefCell::default() };
    let denoiser = Denoiser::new(&recorder, &conditioning, &parameterization);
    let mut after_step = Vec::new();
    let mut on_step = |step: &Step<'_>| {
        after_step.push(step.latents.clone());
        ControlFlow::Continue(())
    };
    let run = Run::new(&levels, &denoiser, &mut noise);
    let x = sample(scheduler.solver().as_mut(), start, 0, run, &mut on_step)?;

    let outputs = recorder.outputs.borrow();
    case.check("unet.0.out", &outputs[0], TOLERANCE)?;
    case.check("unet.last.out", &outputs[outputs.len() - 1], TOLERANCE)?;
    case.check("latents.after_step", &Tensor::stack(&after_step, 0)?, TOLERANCE)?;
    for (i, picture) in Picture::from_tensor(&x)?.iter().enumerate() {
        check_picture(case, i, picture)?;
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

#[test]
fn golden_stages_in_pixel_space() -> TestResult {
    run_all(&cases("cases", wanted)?, |case| check_stages(case, Backend::Kernels));
    Ok(())
}

/// What CUDA and Metal run, run on the CPU: candle's own operations, channels first.
#[test]
fn golden_stages_in_pixel_space_with_the_operations_of_other_devices() -> TestResult {
    run_all(&cases("cases", wanted)?, |case| check_stages(case, Backend::Candle));
    Ok(())
}

/// Every image has its own timestep and its own class: rows of a batch are what each is alone.
#[test]
fn golden_first_outputs_row_by_row() -> TestResult {
    run_all(&cases("cases", wanted)?, |case| {
        let unet = unet(case, Backend::Kernels)?;
        let x = case.stage("latents.start")?;
        let rows = x.dim(0)?;
        let levels: Vec<_> = (0..rows).map(|i| NoiseLevel::from_sigma(10.0 + 300.0 * i as f64, 1.0)).collect();
        let conditioning = match classes(case) {
            Some(classes) => Conditioning::classes(&classes, &Device::Cpu)?,
            None => Conditioning::default(),
        };
        let cache = Cache::default();
        let together = unet.forward(&Call::of_rows(x, &levels, &conditioning, &cache))?;
        for (i, &level) in levels.iter().enumerate() {
            let alone = conditioning.rows(i..i + 1)?;
            let alone = unet.forward(&Call::new(&x.narrow(0, i, 1)?, level, &alone, &cache))?;
            // The same sums in the same order, whatever stands in the other rows.
            case.check_against("a row of a batch", &together.i(i)?, &alone.i(0)?, 0.0)?;
        }
        Ok(())
    });
    Ok(())
}

/// The whole pipeline. It has a stream for each image, `seed + i`; other cases are asked batch by batch.
fn check_pictures(case: &Case, batch_size: usize) -> TestResult {
    let pipeline =
        PixelPipeline::builder().model(PixelModel::Folder(case.model())).device(DeviceChoice::Cpu).build()?;
    let entry = by_class_name(case.json["scheduler"]["name"].as_str().unwrap_or_default())?;
    let mut scheduler_config = case.scheduler_config();
    scheduler_config.insert("eta".into(), case.json.get("eta").cloned().unwrap_or(json!(0.0)));
    let images = case.json["batch"].as_u64().unwrap_or(1) as usize;
    let request = |seed: u64| PixelRequest {
        classes: classes(case).unwrap_or_default().into_iter().map(Into::into).collect(),
        steps: case.json["steps"].as_u64().map(|steps| steps as usize),
        scheduler: Some(entry.name.into()),
        scheduler_config: scheduler_config.clone(),
        seed,
        num_images: Some(images),
        batch_size,
        ..PixelRequest::default()
    };
    let seeds: Vec<u64> = case.json["seed"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let pictures = match (&case.json["seed"], images) {
        (Value::Array(_), _) if seeds.windows(2).all(|pair| pair[1] == pair[0] + 1) => {
            pipeline.generate(&request(seeds[0]))?
        }
        (seed, 1) if seed.is_u64() => pipeline.generate(&request(seed.as_u64().unwrap_or(0)))?,
        _ => {
            let settings = pipeline.settle(&request(0))?;
            let labels = classes(case).unwrap_or_default();
            let go_on = &mut |_: &Step<'_>| ControlFlow::Continue(());
            let x = pipeline.denoise(&settings, (images, &labels), &mut noise(case), None, go_on)?;
            Picture::from_tensor(&x)?
        }
    };
    assert_eq!(pictures.len(), images, "{}", case.name);
    pictures.iter().enumerate().try_for_each(|(i, picture)| check_picture(case, i, picture))
}

#[test]
fn golden_pictures_in_pixel_space_at_any_batch_size() -> TestResult {
    let cases = cases("cases", wanted)?;
    run_all(&cases, |case| check_pictures(case, 1));
    run_all(&cases, |case| check_pictures(case, 2));
    Ok(())
}
