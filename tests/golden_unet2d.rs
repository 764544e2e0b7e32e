//! Options of the UNet in pixel space that no golden model has, on networks of a few thousand weights.

mod cases;

use candle_core::{DType, Device, Tensor};
use cases::{TestResult, roots};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tweedie::NoiseLevel;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Network};
use tweedie::layers::{Backend, WeightSource, Weights};
use tweedie::models::{UNet2DConfig, UNet2DModel};

/// Of the largest value; the reference's own f32 is within 1e-5 on networks of this size.
const TOLERANCE: f64 = 3e-5;

/// Tensors by name, and which were asked for.
struct Tensors {
    tensors: HashMap<String, Tensor>,
    asked: RefCell<BTreeSet<String>>,
}

impl WeightSource for Tensors {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        self.asked.borrow_mut().insert(name.into());
        match self.tensors.get(name) {
            Some(tensor) if tensor.dims() == shape => Ok(tensor.clone()),
            other => {
                let fix = format!("the model has shape {shape:?}");
                Err(tweedie::Error::invalid(name, format!("{:?}", other.map(Tensor::dims)), fix))
            }
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

fn config(path: &Path) -> TestResult<UNet2DConfig> {
    let bytes = std::fs::read(path)?;
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let text = metadata.metadata().as_ref().and_then(|m| m.get("config")).ok_or("no config")?.clone();
    Ok(UNet2DConfig::from_json(&text, path)?)
}

fn answer(unet: &UNet2DModel, x: &Tensor, timesteps: &Tensor, labels: Option<Tensor>) -> TestResult<Tensor> {
    // The network is told the timesteps alone.
    let levels: Vec<_> = timesteps.to_vec1::<f32>()?.iter().map(|&t| NoiseLevel::from_sigma(t.into(), 1.0)).collect();
    let conditioning = Conditioning { class_labels: labels, ..Conditioning::default() };
    Ok(unet.forward(&Call::of_rows(x, &levels, &conditioning, &Cache::default()))?)
}

fn check(path: &Path, backend: Backend) -> TestResult<f64> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let source = Tensors { tensors, asked: RefCell::default() };
    let config = config(path)?;
    // What this program writes, it reads back as the same.
    assert_eq!(UNet2DConfig::from_fields(&ConfigFields::from_fields("unet", config.to_fields()))?, config);

    let unet = UNet2DModel::new(&Weights::new(&source).with_backend(backend), config, DType::F32)?;
    let stored: BTreeSet<_> =
        source.tensors.keys().filter(|name| !name.starts_with("in.") && *name != "out").cloned().collect();
    assert_eq!(*source.asked.borrow(), stored, "{}", path.display());
    let input = |name: &str| source.tensors.get(name);
    let (x, timesteps) = (input("in.x").ok_or("no x")?, input("in.timesteps").ok_or("no timesteps")?);
    let labels = input("in.class_labels")
        .map(|labels| if labels.dtype() == DType::I64 { labels.to_dtype(DType::U32) } else { Ok(labels.clone()) });
    let got = answer(&unet, x, timesteps, labels.transpose()?)?;
    let want = input("out").ok_or("no output")?;
    assert_eq!(got.dims(), want.dims(), "{}", path.display());
    let largest = want.abs()?.max_all()?.to_scalar::<f32>()?;
    Ok(f64::from((got - want)?.abs()?.max_all()?.to_scalar::<f32>()? / largest))
}

#[test]
fn golden_outputs_of_every_option() -> TestResult {
    let mut count = 0;
    for root in roots() {
        let Ok(entries) = std::fs::read_dir(root.join("unet2d")) else { continue };
        for entry in entries {
            let path = entry?.path();
            for backend in [Backend::Kernels, Backend::Candle] {
                let error = check(&path, backend)?;
                println!("{:60} {backend:?} {error:.1e}", path.display());
                assert!(error < TOLERANCE, "{} {backend:?}: {error:.2e}", path.display());
            }
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} variants were found");
    Ok(())
}

#[test]
fn labels_are_asked_for_where_there_are_classes_and_refused_elsewhere() -> TestResult {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/unet2d");
    for (name, labels, part) in [("no_middle", false, "missing"), ("scale_shift", true, "trained without classes")] {
        let path = folder.join(format!("{name}.safetensors"));
        let source =
            Tensors { tensors: candle_core::safetensors::load(&path, &Device::Cpu)?, asked: RefCell::default() };
        let unet = UNet2DModel::new(&Weights::new(&source), config(&path)?, DType::F32)?;
        let labels = labels.then(|| Tensor::new(&[0u32, 1], &Device::Cpu)).transpose()?;
        let message = answer(&unet, &source.tensors["in.x"], &source.tensors["in.timesteps"], labels);
        assert!(message.is_err_and(|e| e.to_string().contains(part)), "{name}");
    }
    Ok(())
}
