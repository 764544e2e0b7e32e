//! Whose fault errors are: a server answers a bad request, a damaged model and a full disk differently.

mod tweedie;

use ::tweedie::adapters::TextualInversion;
use ::tweedie::checkpoints::{ModelFiles, TensorFile};
use ::tweedie::families::{convert_to_file, convert_to_folder};
use ::tweedie::files::{Existing, replace_file, write_synced};
use ::tweedie::images::{Photo, Picture, encode_png, read_png_text};
use ::tweedie::schedulers;
use ::tweedie::training::data::{FolderOptions, Split, read_set};
use ::tweedie::training::runs::RunFolder;
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tweedie::{TestResult, copy_folder, golden};
use tweedie_pipelines::verify::Recipe;
use tweedie_pipelines::{
    Builder, DeviceChoice, ErrorKind, LatentDiffusion, Model, PixelModel, PixelPipeline, PixelRequest, Result,
    TextToImageRequest,
};

/// The name of a case, its kind, and a call that fails.
type Case<'a> = (&'static str, ErrorKind, Box<dyn Fn() -> Result<()> + 'a>);

fn case<'a, T>(name: &'static str, kind: ErrorKind, call: impl Fn() -> Result<T> + 'a) -> Case<'a> {
    (name, kind, Box::new(move || call().map(drop)))
}

/// Each call fails, and with an error of its kind.
fn check(cases: &[Case<'_>]) {
    let wrong = cases.iter().filter_map(|(name, kind, call)| match call() {
        Ok(()) => Some(format!("{name}: no error")),
        Err(error) if error.kind() == *kind => None,
        Err(error) => Some(format!("{name}: {:?} and not {kind:?}: {error}", error.kind())),
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A small model of the golden ones, or a part of one.
fn small(name: &str) -> PathBuf {
    golden().join("models").join(name)
}

fn builder(model: &Path) -> Builder {
    LatentDiffusion::builder().model_folder(model).device(DeviceChoice::Cpu)
}

/// A copy of a small model in which a file has other contents.
fn changed(folder: &Path, file: &str, change: impl FnOnce(Vec<u8>) -> TestResult<Vec<u8>>) -> TestResult<PathBuf> {
    let copy = folder.join(file.replace('/', "-"));
    copy_folder(&small("sd15"), &copy)?;
    let path = copy.join(file);
    std::fs::write(&path, change(std::fs::read(&path)?)?)?;
    Ok(copy)
}

/// A configuration with a field of another value.
fn with_field(name: &str, value: Value) -> impl FnOnce(Vec<u8>) -> TestResult<Vec<u8>> {
    move |bytes| {
        let mut fields: Map<String, Value> = serde_json::from_slice(&bytes)?;
        fields.insert(name.into(), value);
        Ok(serde_json::to_vec(&fields)?)
    }
}

fn request() -> TextToImageRequest {
    TextToImageRequest { prompt: "a fox".into(), steps: Some(2), ..TextToImageRequest::default() }
}

#[test]
fn requests() -> TestResult {
    let folder = tempfile::tempdir()?;
    let (missing, taken) = (folder.path().join("missing"), folder.path().join("taken"));
    std::fs::create_dir(&taken)?;
    std::fs::write(taken.join("letter"), "Dear reader")?;
    let model = builder(&small("sd15")).build()?;
    let pixels = PixelPipeline::builder().model(PixelModel::Folder(small("pixel28"))).device(DeviceChoice::Cpu);
    let pixels = pixels.build()?;
    let once = builder(&small("sd15")).usage(tweedie_pipelines::Usage::Once(tweedie_pipelines::TaskKind::TextToImage));
    let once = once.build()?;
    once.generate(&request())?;
    let scheduler_field = |name: &str, value: Value| TextToImageRequest {
        scheduler_config: Map::from_iter([(name.to_owned(), value)]),
        ..request()
    };
    let kind = ErrorKind::Request;
    check(&[
        case("a model that is not there", ErrorKind::Missing, || builder(&missing).build()),
        case("a LoRA that is not there", ErrorKind::Missing, || builder(&small("sd15")).lora(&missing, 1.0).build()),
        case("a control model that is not there", ErrorKind::Missing, || {
            builder(&small("sd15")).control(&missing).build()
        }),
        case("a weight that is no number", kind, || {
            builder(&small("sd15")).lora(small("lora/kohya.safetensors"), f64::NAN).build()
        }),
        case("a data set that is not there", ErrorKind::Missing, || {
            read_set(&missing, Split::Train, FolderOptions::default())
        }),
        case("an unknown scheduler", kind, || schedulers::by_name("sideways")),
        case("a width between latents", kind, || model.generate(&TextToImageRequest { width: Some(67), ..request() })),
        case("no steps", kind, || model.generate(&TextToImageRequest { steps: Some(0), ..request() })),
        case("more layers than there are", kind, || model.generate(&TextToImageRequest { clip_skip: 99, ..request() })),
        case("a scheduler's field", kind, || model.generate(&scheduler_field("timestep_spacing", "sideways".into()))),
        case("a spacing", kind, || {
            model.generate(&TextToImageRequest { timestep_spacing: Some("sideways".into()), ..request() })
        }),
        case("timesteps that rise", kind, || {
            model.generate(&TextToImageRequest {
                scheduler: Some("euler".into()),
                steps: None,
                timesteps: Some(vec![1.0, 500.0]),
                ..request()
            })
        }),
        case("a model that is used up", kind, || once.generate(&request())),
        case("classes without a model of classes", kind, || {
            pixels.settle(&PixelRequest { classes: vec![3.into()], ..PixelRequest::default() })
        }),
        case("a folder that holds something", ErrorKind::File, || RunFolder::create(&taken)),
        case("tensors that do not fit", kind, || {
            let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
            Ok(x.matmul(&x)?)
        }),
    ]);
    Ok(())
}

#[test]
fn models() -> TestResult {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    let empty = at.join("empty");
    std::fs::create_dir(&empty)?;
    let garbage = at.join("garbage.safetensors");
    std::fs::write(&garbage, b"no tensors at all")?;
    let unet = "unet/diffusion_pytorch_model.safetensors";
    let truncated = changed(at, unet, |bytes| Ok(bytes[..bytes.len() / 2].to_vec()))?;
    let not_json = changed(at, "vae/config.json", |_| Ok(b"{".to_vec()))?;
    let unusable = changed(at, "unet/config.json", with_field("layers_per_block", json!(0)))?;
    let unlike = changed(at, "text_encoder/config.json", with_field("intermediate_size", json!(12)))?;
    let scheduler = "scheduler/scheduler_config.json";
    let spacing = changed(at, scheduler, with_field("timestep_spacing", json!("sideways")))?;
    let spacing = builder(&spacing).build()?;
    let tokenizer = changed(at, "tokenizer/vocab.json", |_| Ok(b"[]".to_vec()))?;
    let without_weights = changed(at, "vae/diffusion_pytorch_model.safetensors", Ok)?;
    std::fs::remove_file(without_weights.join("vae/diffusion_pytorch_model.safetensors"))?;
    let kind = ErrorKind::Model;
    check(&[
        case("a folder without a model", kind, || builder(&empty).build()),
        case("a folder without a model in pixel space", kind, || PixelModel::Folder(empty.clone()).files()),
        case("a folder without a control model", kind, || builder(&small("sd15")).control(&empty).build()),
        case("a truncated file of weights", kind, || builder(&truncated).build()),
        case("a configuration that is no JSON", kind, || builder(&not_json).build()),
        case("a configuration's value", kind, || builder(&unusable).build()),
        case("weights of other shapes", kind, || builder(&unlike).build()),
        case("a scheduler file's value", kind, || spacing.generate(&request())),
        case("a damaged tokenizer", kind, || builder(&tokenizer).build()),
        case("a component without weights", kind, || builder(&without_weights).build()),
        case("a model in pixel space", kind, || builder(&small("pixel28")).build()),
        case("a model of texts in pixel space", kind, || {
            PixelPipeline::builder().model(PixelModel::Folder(small("sd15"))).build()
        }),
        case("an unknown class of schedulers", kind, || schedulers::by_class_name("SidewaysScheduler")),
        case("a damaged LoRA", kind, || builder(&small("sd15")).lora(&garbage, 1.0).build()),
        case("a LoRA for another model", kind, || {
            builder(&small("sd15")).lora(small("lora/xl.safetensors"), 1.0).build()
        }),
        case("a control model for another model", kind, || {
            builder(&small("xl-small")).control(small("controlnet")).build()
        }),
        case("an autoencoder as a control model", kind, || builder(&small("sd15")).control(small("taesd")).build()),
        case("a damaged textual inversion", kind, || TextualInversion::read(&garbage, None)),
        case("a file that is no model", kind, || Model::at(garbage.clone(), None)?.files()),
        case("a damaged file of weights", kind, || {
            TensorFile::open(&ModelFiles::Folder(at.to_path_buf()), "garbage.safetensors")
        }),
        case("a picture that is not finite", kind, || {
            Picture::from_tensor(&Tensor::full(f32::NAN, (1, 3, 8, 8), &Device::Cpu)?)
        }),
    ]);
    Ok(())
}

#[test]
fn files() -> TestResult {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    let file = at.join("file");
    std::fs::write(&file, b"neither a picture nor JSON")?;
    let digits = at.join("digits");
    std::fs::create_dir(&digits)?;
    std::fs::write(digits.join("train-images-idx3-ubyte"), [0, 0, 8, 3, 0, 0])?;
    std::fs::write(digits.join("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0])?;
    let listed = at.join("listed");
    std::fs::create_dir(&listed)?;
    std::fs::write(listed.join("metadata.jsonl"), "{\"file_name\": \"../elsewhere.png\"}\n")?;
    let run = at.join("run");
    std::fs::create_dir(&run)?;
    std::fs::write(run.join("config.json"), "{")?;
    let plain = encode_png(&Picture::new(1, 1, vec![0, 0, 0])?, &[])?;
    let model = ModelFiles::folder(&small("sd15"))?;
    let below_a_file = file.join("below");
    let kind = ErrorKind::File;
    let mut cases = vec![
        case("a picture that is not there", kind, || Photo::read(&at.join("missing.png"))),
        case("a picture that is none", kind, || Photo::read(&file)),
        case("a truncated picture", kind, || Photo::decode(&plain[..plain.len() - 20], &file)),
        case("a PNG file's settings", kind, || read_png_text(b"no PNG", &file)),
        case("a picture without settings", kind, || Recipe::read(&plain, &file)),
        case("a truncated data set", kind, || read_set(&digits, Split::Train, FolderOptions::default())),
        case("half a data set", kind, || read_set(&digits, Split::Test, FolderOptions::default())),
        case("a list of pictures elsewhere", kind, || read_set(&listed, Split::Train, FolderOptions::default())),
        case("a run's configuration", kind, || RunFolder::config(&run)),
        case("a folder below a file", kind, || RunFolder::create(&below_a_file)),
        case("a file below a file", kind, || replace_file(&below_a_file, b"text")),
        case("a model below a file", kind, || convert_to_folder(&model, &below_a_file, None, Existing::Stays)),
    ];
    let (full, read_only) = (Path::new("/dev/full"), Path::new("/proc/model.safetensors"));
    if cfg!(target_os = "linux") {
        cases.push(case("a full disk", kind, || write_synced(full, b"text")));
        cases.push(case("a folder that takes no file", kind, || {
            convert_to_file(&model, read_only, None, Existing::Stays)
        }));
    }
    check(&cases);
    Ok(())
}

#[test]
fn devices() {
    let mut cases = Vec::new();
    if !candle_core::utils::cuda_is_available() {
        cases.push(case("CUDA", ErrorKind::Device, || DeviceChoice::Cuda(0).open()));
        cases.push(case("CUDA, asked of the tensor library", ErrorKind::Device, || Ok(Device::new_cuda(0)?)));
    }
    if !candle_core::utils::metal_is_available() {
        cases.push(case("Metal", ErrorKind::Device, || DeviceChoice::Metal.open()));
        cases.push(case("a model on Metal", ErrorKind::Device, || {
            LatentDiffusion::builder().model_folder(small("sd15")).device(DeviceChoice::Metal).build()
        }));
    }
    assert!(!cases.is_empty(), "no machine has both");
    check(&cases);
}

#[test]
fn stopped_runs() -> TestResult {
    let model = builder(&small("sd15")).build()?;
    let settings = model.settle(&request())?;
    let pixels = PixelPipeline::builder().model(PixelModel::Folder(small("pixel28"))).device(DeviceChoice::Cpu);
    let pixels = pixels.build()?;
    let pixel_settings = pixels.settle(&PixelRequest { steps: Some(2), ..PixelRequest::default() })?;
    check(&[
        case("pictures of a text", ErrorKind::Cancelled, || model.run(&settings, &mut |_| ControlFlow::Break(()))),
        case("samples", ErrorKind::Cancelled, || pixels.run(&pixel_settings, None, &mut |_| ControlFlow::Break(()))),
    ]);
    Ok(())
}

#[test]
#[cfg(feature = "download")]
fn downloads() -> TestResult {
    use tweedie_pipelines::download::{RemoteFile, fetch};
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("there"), "other contents")?;
    let get = |name: &str, mirror: &str| {
        let sha256 = "00";
        fetch(&[RemoteFile { name, sha256 }], mirror, folder.path(), &mut |_| ControlFlow::Continue(()))
    };
    // Nobody listens on port 1.
    let nobody = "http://127.0.0.1:1/";
    check(&[
        case("a mirror that does not answer", ErrorKind::File, || get("missing", nobody)),
        case("a file that is another", ErrorKind::File, || get("there", nobody)),
        case("a mirror that is no address", ErrorKind::Request, || get("missing", "sideways")),
    ]);
    Ok(())
}
