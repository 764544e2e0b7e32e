//! Weights in any form: a form that the crate does not know, adapters beside weights, models that share them.

mod cases;

use candle_core::{DType, Device, Tensor, Var};
use cases::{TestResult, roots};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tweedie::NoiseLevel;
use tweedie::adapters::{LoraFile, Loras};
use tweedie::checkpoints::RandomWeights;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Network};
use tweedie::families::{Family, SDXL};
use tweedie::kernels::{ConvGeometry, MatmulPrecision};
use tweedie::layers::{
    Adapter, Backend, Computation, Conv2d, FeatureMap, Linear, Weight, WeightDelta, WeightForm, WeightRecorder,
    WeightSource, WeightStore, Weights,
};
use tweedie::models::{UNet2DConditionConfig, UNet2DConditionModel};
use tweedie::noise::{NoiseSource, TorchNoise};

/// Of the largest value: sums of some hundred f32 products in another order.
const ORDER_TOLERANCE: f32 = 5e-6;

const KERNELS: Computation = Computation { backend: Backend::Kernels, products: MatmulPrecision::Full };

fn random(seed: u64, shape: &[usize]) -> tweedie::Result<Tensor> {
    TorchNoise::shared(seed).normal(shape)
}

fn largest(x: &Tensor) -> TestResult<f32> {
    Ok(x.abs()?.max_all()?.to_scalar()?)
}

fn bits(x: &Tensor) -> TestResult<Vec<u32>> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

fn assert_near(what: &str, got: &Tensor, want: &Tensor) -> TestResult {
    let error = largest(&(got - want)?)? / largest(want)?;
    assert!(error < ORDER_TOLERANCE, "{what} differs by {error:.1e}");
    Ok(())
}

/// A small network with each kind of layer: attention, gates, convolutions with and without a stride.
fn unet(source: &dyn WeightSource) -> tweedie::Result<UNet2DConditionModel> {
    let fields = json!({
        "block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32,
        "attention_head_dim": 2, "in_channels": 4, "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    let fields = ConfigFields::from_fields("unet", fields.as_object().cloned().unwrap_or_default());
    UNet2DConditionModel::new(&Weights::new(source), UNet2DConditionConfig::from_fields(&fields)?, DType::F32)
}

/// What a network makes of fixed noise.
fn output(unet: &UNet2DConditionModel) -> tweedie::Result<Tensor> {
    let text = Conditioning::text(random(1, &[2, 7, 32])?);
    let levels = [10.0, 700.0].map(|timestep| NoiseLevel::from_sigma(timestep, 1.0));
    unet.forward(&Call::of_rows(&random(2, &[2, 4, 8, 8])?, &levels, &text, &Cache::default()))
}

/// Whole numbers of eight bits, of each row by the row's scale, multiplied by widening them.
#[derive(Debug)]
struct RowsOfInt8 {
    codes: Vec<i8>,
    scales: Vec<f32>,
    shape: Vec<usize>,
}

impl RowsOfInt8 {
    fn of(tensor: &Tensor) -> tweedie::Result<Self> {
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in tensor.flatten_from(1)?.to_vec2::<f32>()? {
            let scale = row.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 127.0;
            codes.extend(row.iter().map(|value| (value / scale.max(f32::MIN_POSITIVE)).round() as i8));
            scales.push(scale);
        }
        Ok(Self { codes, scales, shape: tensor.dims().to_vec() })
    }
}

impl WeightForm for RowsOfInt8 {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn backend(&self) -> Backend {
        Backend::Kernels
    }

    fn to_dense(&self) -> tweedie::Result<Tensor> {
        let rows = self.codes.chunks(self.codes.len() / self.scales.len()).zip(&self.scales);
        let values: Vec<f32> =
            rows.flat_map(|(row, &scale)| row.iter().map(move |&code| f32::from(code) * scale)).collect();
        Ok(Tensor::from_vec(values, self.shape.as_slice(), &Device::Cpu)?)
    }
}

/// Weights in eight bits, or the dense ones that those are equal to.
struct Quantised {
    exact: RandomWeights,
    widened: bool,
}

impl WeightSource for Quantised {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        self.exact.tensor(name, shape)
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> tweedie::Result<Weight> {
        let form = RowsOfInt8::of(&self.tensor(name, shape)?)?;
        if self.widened { Weight::from_tensor(&form.to_dense()?, computation) } else { Ok(Weight::new(Arc::new(form))) }
    }

    fn contains(&self, name: &str) -> bool {
        self.exact.contains(name)
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

fn random_weights() -> RandomWeights {
    RandomWeights::new(3, DType::F32, &Device::Cpu)
}

#[test]
fn a_network_takes_a_form_of_weights_that_the_crate_does_not_know() -> TestResult {
    let quantised = |widened| -> tweedie::Result<_> { output(&unet(&Quantised { exact: random_weights(), widened })?) };
    let (blocks, dense) = (quantised(false)?, quantised(true)?);
    assert_near("eight bits", &blocks, &dense)?;
    let exact = output(&unet(&random_weights())?)?;
    let rounding = largest(&(&blocks - &exact)?)? / largest(&exact)?;
    assert!(rounding > 1e-4, "eight bits are not exact, {rounding:.1e}");
    Ok(())
}

#[test]
fn a_form_is_the_tensor_that_it_was_made_of() -> TestResult {
    for (shape, dtype) in [(&[20, 32][..], DType::F32), (&[33, 7, 3, 3], DType::F16), (&[16, 64], DType::F64)] {
        let tensor = random(4, shape)?.to_dtype(dtype)?;
        for backend in [Backend::Kernels, Backend::Candle] {
            let weight = Weight::from_tensor(&tensor, Computation { backend, products: MatmulPrecision::Full })?;
            let form = weight.form();
            assert_eq!((form.shape(), form.dtype(), form.backend()), (shape, dtype, backend));
            let difference = (form.to_dense()?.to_dtype(DType::F64)? - tensor.to_dtype(DType::F64)?)?;
            assert_eq!(difference.abs()?.max_all()?.to_scalar::<f64>()?, 0.0, "{shape:?} {dtype:?} {backend:?}");
        }
    }
    let tensor = random(4, &[32, 64, 3, 3])?;
    let products = MatmulPrecision::Bf16;
    let rounded = Weight::from_tensor(&tensor, Computation { backend: Backend::Kernels, products })?;
    let want = tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
    assert_eq!(bits(&rounded.form().to_dense()?.to_dtype(DType::F32)?)?, bits(&want)?);
    Ok(())
}

/// A LoRA file for some weights of [`unet`], linear layers and convolutions.
fn write_lora(folder: &Path, seed: u64, more: &[(&str, &[usize])]) -> TestResult<PathBuf> {
    const ATTENTION: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0";
    let factor = |module: &str, role: &str, shape: &[usize]| (format!("{module}.lora_{role}.weight"), shape.to_vec());
    let mut shapes = vec![
        factor(&format!("{ATTENTION}_attn1_to_q"), "down", &[4, 32]),
        factor(&format!("{ATTENTION}_attn1_to_q"), "up", &[32, 4]),
        factor(&format!("{ATTENTION}_attn2_to_out_0"), "down", &[2, 32]),
        factor(&format!("{ATTENTION}_attn2_to_out_0"), "up", &[32, 2]),
        factor(&format!("{ATTENTION}_ff_net_0_proj"), "down", &[4, 32]),
        factor(&format!("{ATTENTION}_ff_net_0_proj"), "up", &[256, 4]),
        factor("lora_unet_down_blocks_0_attentions_0_proj_in", "down", &[3, 32]),
        factor("lora_unet_down_blocks_0_attentions_0_proj_in", "up", &[32, 3]),
        factor("lora_unet_down_blocks_0_resnets_0_conv1", "down", &[4, 32, 3, 3]),
        factor("lora_unet_down_blocks_0_resnets_0_conv1", "up", &[32, 4, 1, 1]),
        factor("lora_unet_down_blocks_0_resnets_0_conv2", "down", &[4, 32, 3, 3]),
        factor("lora_unet_down_blocks_0_resnets_0_conv2", "up", &[32, 4, 1, 1]),
        factor("lora_unet_down_blocks_0_downsamplers_0_conv", "down", &[4, 32, 3, 3]),
        factor("lora_unet_down_blocks_0_downsamplers_0_conv", "up", &[32, 4, 1, 1]),
    ];
    shapes.extend(more.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())));
    let tensors = shapes.into_iter().enumerate().map(|(i, (name, shape))| {
        let scale = 0.3 / (shape[1..].iter().product::<usize>() as f64).sqrt();
        Ok((name, (random(seed + i as u64, &shape)? * scale)?))
    });
    let path = folder.join(format!("{seed}.safetensors"));
    candle_core::safetensors::save(&tensors.collect::<TestResult<HashMap<String, Tensor>>>()?, &path)?;
    Ok(path)
}

fn loras(files: &[(&Arc<LoraFile>, f64)]) -> tweedie::Result<Loras> {
    Loras::new(files.iter().map(|&(file, weight)| (file.clone(), weight)))
}

fn is_shared<T: Send + Sync>(_: &T) {}

#[test]
fn one_store_serves_models_with_and_without_adapters() -> TestResult {
    let folder = tempfile::tempdir()?;
    let open = |seed| -> TestResult<_> {
        let file = Arc::new(LoraFile::open(&write_lora(folder.path(), seed, &[])?, &SDXL.lora_target(1))?);
        is_shared(&file);
        Ok(file)
    };
    let files = (open(100)?, open(200)?);
    // What is stored in half precision is widened exactly, and so what stands beside it is in f32 too.
    for dtype in [DType::F32, DType::F16] {
        adapters_come_and_go(&RandomWeights::new(3, dtype, &Device::Cpu), &files.0, &files.1)?;
    }
    Ok(())
}

fn adapters_come_and_go(source: &RandomWeights, ink: &Arc<LoraFile>, storm: &Arc<LoraFile>) -> TestResult {
    let recorder = WeightRecorder::new(source);
    let first = unet(&recorder)?;
    let store = recorder.finish();
    is_shared(&store);
    let plain = bits(&output(&first)?)?;
    drop(first);
    assert_eq!(bits(&output(&unet(&store)?)?)?, plain, "built again");

    let adapted = |files: &[(&Arc<LoraFile>, f64)]| -> TestResult<Tensor> {
        let loras = loras(files)?;
        assert!(loras.changes("unet") && !loras.changes("text_encoder"));
        let model = unet(&loras.beside("unet", &store))?;
        loras.finish("a test's model")?;
        Ok(output(&model)?)
    };
    let merged = |files: &[(&Arc<LoraFile>, f64)]| -> TestResult<Tensor> {
        let loras = loras(files)?;
        let model = unet(&loras.over("unet", source))?;
        loras.finish("a test's model")?;
        Ok(output(&model)?)
    };
    let applied = adapted(&[(ink, 0.8)])?;
    assert_near("one", &applied, &merged(&[(ink, 0.8)])?)?;
    assert!(bits(&applied)? != plain);
    assert_eq!(bits(&output(&unet(&store)?)?)?, plain, "not applied");
    assert_eq!(bits(&adapted(&[(ink, 0.8)])?)?, bits(&applied)?, "applied again");
    assert_eq!(bits(&adapted(&[(ink, 0.0)])?)?, plain, "of no strength");
    let both = [(ink, 0.8), (storm, -0.5)];
    assert_near("two", &adapted(&both)?, &merged(&both)?)?;
    assert!(largest(&(adapted(&both)? - applied)?)? > 1e-2);
    Ok(())
}

#[test]
fn a_store_shares_the_memory_of_weights_and_lets_go_of_it() -> TestResult {
    const NAME: &str = "down_blocks.0.resnets.0.conv1.weight";
    const SHAPE: [usize; 4] = [32, 32, 3, 3];
    let folder = tempfile::tempdir()?;
    let file = Arc::new(LoraFile::open(&write_lora(folder.path(), 100, &[])?, &SDXL.lora_target(1))?);
    let source = random_weights();
    let recorder = WeightRecorder::new(&source);
    let model = unet(&recorder)?;
    let store: WeightStore = recorder.finish();
    let weight = store.weight(NAME, &SHAPE, KERNELS)?;
    let beside = |strength| -> tweedie::Result<Weight> {
        loras(&[(&file, strength)])?.beside("unet", &store).weight(NAME, &SHAPE, KERNELS)
    };
    let (weak, strong) = (beside(0.1)?, beside(1.5)?);
    assert!(weight.adapters().is_empty() && Arc::ptr_eq(weight.form(), weak.form()));
    // Another strength lays nothing out.
    let (first, second) = (&weak.adapters()[0], &strong.adapters()[0]);
    assert!(Arc::ptr_eq(&first.delta, &second.delta) && (first.scale, second.scale) == (0.1, 1.5));
    let released = Arc::downgrade(weight.form());
    drop((weight, weak, strong, model));
    assert!(released.upgrade().is_some());
    drop(store);
    assert!(released.upgrade().is_none());
    Ok(())
}

#[test]
fn a_store_is_of_one_model() -> TestResult {
    let source = random_weights();
    let recorder = WeightRecorder::new(&source);
    unet(&recorder)?;
    let store = recorder.finish();
    let message = |computation, name, shape: &[usize]| {
        store.weight(name, shape, computation).map(drop).map_err(|error| error.to_string()).err().unwrap_or_default()
    };
    assert!(message(KERNELS, "conv_in.weight", &[32, 9, 3, 3]).contains("[32, 4, 3, 3]"));
    assert!(message(KERNELS, "conv_before.weight", &[32, 4, 3, 3]).contains("absent"));
    let rounded = Computation { products: MatmulPrecision::Bf16, ..KERNELS };
    assert!(message(rounded, "conv_in.weight", &[32, 4, 3, 3]).contains("Bf16"));
    assert!(store.tensor("conv_in.bias", &[31]).is_err_and(|error| error.to_string().contains("[32]")));
    assert!(store.contains("conv_in.weight") && !store.contains("conv_before.weight"));
    Ok(())
}

#[test]
fn what_does_not_fit_beside_a_weight_is_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let message = |more: &[(&str, &[usize])]| -> TestResult<String> {
        let file = Arc::new(LoraFile::open(&write_lora(folder.path(), 300, more)?, &SDXL.lora_target(1))?);
        let (loras, source) = (loras(&[(&file, 1.0)])?, random_weights());
        unet(&loras.beside("unet", &source))?;
        match loras.finish("a test's model") {
            Ok(warnings) => Ok(warnings.into_iter().next().ok_or("it was taken")?),
            Err(error) => Ok(error.to_string()),
        }
    };
    let says = |more: &[(&str, &[usize])], parts: &[&str]| -> TestResult {
        let message = message(more)?;
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        Ok(())
    };
    let (down, up) = ("lora_unet_conv_out.lora_down.weight", "lora_unet_conv_out.lora_up.weight");
    says(&[(down, &[2, 31, 3, 3]), (up, &[4, 2, 1, 1])], &[down, "[2, 31, 3, 3]", "[4, 32, 3, 3]"])?;
    says(&[(down, &[2, 32, 3, 3]), (up, &[4, 3, 1, 1])], &[up, "[4, 3, 1, 1]"])?;
    says(&[(down, &[0, 32, 3, 3]), (up, &[4, 0, 1, 1])], &[down, "rank 0"])?;
    says(&[(down, &[2, 32, 3, 3])], &["Up", "is missing", down])?;
    let scale = "lora_unet_conv_out.dora_scale";
    says(&[(down, &[2, 32, 3, 3]), (up, &[4, 2, 1, 1]), (scale, &[4, 1, 1, 1])], &[scale, "DoRA", "merge it"])?;
    let elsewhere = "lora_unet_conv_before.lora_down.weight";
    says(&[(elsewhere, &[2, 8])], &["1 of its 8 weights", elsewhere, "a test's model"])?;
    Ok(())
}

/// MatmulPrecision with the weights of a golden case, which are linear layers and convolutions.
fn products(source: &dyn WeightSource, stored: &HashMap<String, Tensor>) -> TestResult<HashMap<String, Tensor>> {
    let product = |(name, tensor): (&String, &Tensor)| {
        let weight = source.weight(name, tensor.dims(), KERNELS)?;
        let y = match *tensor.dims() {
            [_, inputs] => weight.linear(&random(7, &[2, 5, inputs])?, None)?,
            [_, inputs, kernel, _] => {
                let geometry = ConvGeometry::same([kernel; 2]);
                weight.conv2d(&random(8, &[2, 6, 5, inputs])?, None, geometry)?
            }
            ref dims => return Err(format!("{name} has shape {dims:?}").into()),
        };
        Ok((name.clone(), y))
    };
    stored.iter().filter(|(_, tensor)| tensor.rank() >= 2).map(product).collect()
}

/// Weights in memory.
struct Stored(HashMap<String, Tensor>);

impl WeightSource for Stored {
    fn tensor(&self, name: &str, _: &[usize]) -> tweedie::Result<Tensor> {
        Ok(self.0[name].clone())
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

/// Each kind of adapter of the golden cases gives the same products beside a weight as merged into it, but those that say that they
/// have to be merged.
#[test]
fn adapters_beside_weights_are_those_merged_into_them() -> TestResult {
    let (mut compared, mut refused) = (0, 0);
    let root = roots()[0].join("adapters");
    let stored = Stored(candle_core::safetensors::load(root.join("base.safetensors"), &Device::Cpu)?);
    for folder in std::fs::read_dir(&root)?.map(|entry| entry.map(|entry| entry.path())) {
        let folder = folder?;
        let Ok(text) = std::fs::read_to_string(folder.join("case.json")) else { continue };
        let json: Value = serde_json::from_str(&text)?;
        let weights = json["weights"].as_array().into_iter().flatten().filter_map(Value::as_f64);
        let files = weights.enumerate().map(|(i, weight)| {
            Ok((Arc::new(LoraFile::open(&folder.join(format!("lora.{i}.safetensors")), &SDXL.lora_target(2))?), weight))
        });
        let files: Vec<(Arc<LoraFile>, f64)> = files.collect::<TestResult<_>>()?;
        let (over, beside) = (Loras::new(files.iter().cloned())?, Loras::new(files.iter().cloned())?);
        let want = products(&over.over("unet", &stored), &stored.0)?;
        let got = products(&beside.beside("unet", &stored), &stored.0)?;
        over.finish("a test's model")?;
        let name = folder.display().to_string();
        if let Err(error) = beside.finish("a test's model") {
            assert!(name.contains("dora") && error.to_string().contains("merge it"), "{name}: {error}");
            refused += 1;
            continue;
        }
        for (tensor, want) in want {
            assert_near(&format!("{name}: {tensor}"), &got[&tensor], &want)?;
        }
        compared += 1;
    }
    assert!(compared >= 10 && refused >= 1, "{compared} compared, {refused} refused");
    Ok(())
}

/// Factors that are variables, beside weights that are not.
#[test]
fn factors_are_trained_beside_a_frozen_weight() -> TestResult {
    struct Adapted<'a>(&'a RandomWeights, Arc<WeightDelta>);
    impl WeightSource for Adapted<'_> {
        fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
            self.0.tensor(name, shape)
        }
        fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> tweedie::Result<Weight> {
            self.0.weight(name, shape, computation)?.with_adapter(Adapter { delta: self.1.clone(), scale: 0.5 })
        }
        fn contains(&self, name: &str) -> bool {
            self.0.contains(name)
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
    }
    let source = random_weights();
    let (down, up) = (Var::from_tensor(&random(1, &[2, 8])?)?, Var::zeros((6, 2), DType::F32, &Device::Cpu)?);
    let delta = Arc::new(WeightDelta::low_rank(&down, &up, &[6, 8], KERNELS)?);
    let linear = Linear::new(&Weights::new(&Adapted(&source, delta)), 8, 6)?;
    let x = random(2, &[3, 8])?;
    let plain = Linear::new(&Weights::new(&source), 8, 6)?.forward(&x)?;
    assert_eq!(bits(&linear.forward(&x)?)?, bits(&plain)?, "a factor of zeros changes nothing");
    let gradients = linear.forward(&x)?.sum_all()?.backward()?;
    assert!(largest(gradients.get(up.as_tensor()).ok_or("no gradient of up")?)? > 0.0);
    assert_eq!(largest(gradients.get(down.as_tensor()).ok_or("no gradient of down")?)?, 0.0, "behind zeros");
    // The network sees what training makes of them.
    up.set(&Tensor::ones((6, 2), DType::F32, &Device::Cpu)?)?;
    let change = (x.matmul(&down.t()?)?.sum_keepdim(1)?.broadcast_as((3, 6))? * 0.5)?;
    assert_near("the trained factor", &linear.forward(&x)?, &(plain + change)?)?;
    // A convolution of one pixel takes the factors of a linear layer, one of more does not.
    let delta = Arc::new(WeightDelta::low_rank(&down, &up, &[6, 8, 1, 1], KERNELS)?);
    let weights = Adapted(&source, delta);
    let map = FeatureMap::from_nchw(&random(3, &[1, 8, 4, 4])?, Backend::Kernels)?;
    let conv = Conv2d::new(&Weights::new(&weights), 8, 6, 1)?;
    let gradients = conv.forward(&map)?.to_nchw()?.sum_all()?.backward()?;
    assert!(gradients.get(down.as_tensor()).is_some() && gradients.get(up.as_tensor()).is_some());
    assert!(
        Conv2d::new(&Weights::new(&weights), 8, 6, 3).is_err_and(|error| error.to_string().contains("[6, 8, 3, 3]"))
    );
    Ok(())
}
