//! Gradients of layers and models against central differences, in f64.

use candle_core::{DType, Device, Tensor, Var};
use std::cell::RefCell;
use std::collections::BTreeMap;
use tweedie::NoiseLevel;
use tweedie::checkpoints::RandomWeights;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Network};
use tweedie::kernels::MatmulPrecision;
use tweedie::layers::{
    Activation, Adapter, Attention, AttentionConfig, Backend, Computation, Conv2d, ConvGeometry, FeatureMap, GroupNorm,
    LayerNorm, Linear, Weight, WeightDelta, WeightSource, Weights, with_gradients,
};
use tweedie::models::{
    Autoencoder, AutoencoderConfig, AutoencoderKl, ClipTextConfig, ClipTextModel, Halves, UNet2DConditionConfig,
    UNet2DConditionModel,
};
use tweedie::noise::{NoiseSource, TorchGenerator, TorchNoise};
use tweedie::training::ParameterSource;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Distance of neighbouring points of the five-point difference, whose error falls with its fourth power.
const STEP: f64 = 3e-5;
/// Relative to the largest derivative of a tensor. candle's derivative of the GELU has a constant of six digits.
const TOLERANCE: f64 = 1e-6;
/// Relative to the largest derivative: that of the tape from candle's, whose sums are in another order, in f64.
const ORDER_TOLERANCE: f64 = 1e-12;
/// Values of each tensor that are varied.
const PROBES: usize = 4;

/// Random weights as variables.
struct Trainable {
    source: RandomWeights,
    variables: RefCell<BTreeMap<String, Var>>,
}

impl Trainable {
    fn new() -> Self {
        Self { source: RandomWeights::new(7, DType::F64, &Device::Cpu), variables: RefCell::default() }
    }
}

impl WeightSource for Trainable {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        // Norms and biases get random values too, so that their gradients depend on more.
        let values = self.source.tensor(name, shape)?;
        let noise = random(values.elem_count() as u64, shape)?;
        let var = Var::from_tensor(&(values + (noise * 0.1)?)?)?;
        self.variables.borrow_mut().insert(name.into(), var.clone());
        Ok(var.as_tensor().clone())
    }

    /// Short names, and no text projection, whose output the loss does not use.
    fn contains(&self, name: &str) -> bool {
        name.starts_with("embeddings")
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

fn random(seed: u64, shape: &[usize]) -> tweedie::Result<Tensor> {
    Ok(TorchNoise::shared(seed).normal(shape)?.to_dtype(DType::F64)?)
}

/// Checks the gradients of `sum(forward(x) * fixed)` with respect to `x` and every variable; those whose name
/// contains one of `without` have none by nature (a bias before a softmax). Candle's walk back and the kernels' own have to
/// agree.
fn check(
    what: &str,
    weights: &Trainable,
    x: &Var,
    without: &[&str],
    forward: impl Fn(&Tensor) -> tweedie::Result<Tensor> + Sync,
) -> TestResult {
    let fixed = random(99, forward(x.as_tensor())?.dims())?;
    let loss = || -> tweedie::Result<Tensor> { Ok((forward(x.as_tensor())? * &fixed)?.sum_all()?) };
    let grads = loss()?.backward()?;
    // On the pool, where networks hand their work to: elsewhere what they do is not on the tape.
    let (_, (), taped) = with_gradients(&Device::Cpu, || Ok::<_, tweedie::Error>((loss()?, ())))?;
    let mut variables: Vec<(String, Var)> = weights.variables.borrow().clone().into_iter().collect();
    variables.push(("the input".into(), x.clone()));
    let mut generator = TorchGenerator::new(5);
    for (name, var) in variables {
        let grad = grads.get(var.as_tensor()).ok_or(format!("{what}: {name} has no gradient"))?;
        let grad = grad.flatten_all()?.to_vec1::<f64>()?;
        let taped = taped.get(var.as_tensor()).ok_or(format!("{what}: {name} has no gradient on the tape"))?;
        let taped = taped.flatten_all()?.to_vec1::<f64>()?;
        let values = var.as_tensor().flatten_all()?.to_vec1::<f64>()?;
        let largest = grad.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        let apart = grad.iter().zip(&taped).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart <= ORDER_TOLERANCE * largest.max(1e-3), "{what}: {name} on the tape is {apart} from candle's");
        if !without.iter().any(|part| name.contains(part)) {
            assert!(largest > 1e-9, "{what}: the gradient of {name} vanishes");
        }
        for _ in 0..PROBES {
            let i = generator.next_u32() as usize % values.len();
            let at = |delta: f64| -> tweedie::Result<f64> {
                let mut moved = values.clone();
                moved[i] += delta;
                var.set(&Tensor::from_vec(moved, var.as_tensor().shape(), &Device::Cpu)?)?;
                Ok(loss()?.to_scalar::<f64>()?)
            };
            let (near, far) = (at(STEP)? - at(-STEP)?, at(2.0 * STEP)? - at(-2.0 * STEP)?);
            let difference = (8.0 * near - far) / (12.0 * STEP);
            at(0.0)?;
            let error = (difference - grad[i]).abs() / largest.max(1e-3);
            assert!(error < TOLERANCE, "{what}: {name}[{i}]: {} by differences, {} by backward", difference, grad[i]);
        }
    }
    Ok(())
}

fn on_map(
    backend: Backend,
    f: impl Fn(&FeatureMap) -> tweedie::Result<FeatureMap> + Sync,
) -> impl Fn(&Tensor) -> tweedie::Result<Tensor> + Sync {
    move |x| f(&FeatureMap::from_nchw(x, backend)?)?.to_nchw()
}

#[test]
fn of_convolutions() -> TestResult {
    for (kernel, stride, pad_before, pad_after) in [(3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (1, 1, 0, 0)] {
        let weights = Trainable::new();
        let geometry = ConvGeometry { pad_after: [pad_after; 2], ..ConvGeometry::square(kernel, stride, pad_before) };
        let conv = Conv2d::with_geometry(&Weights::new(&weights), 4, 6, geometry)?;
        let x = Var::from_tensor(&random(1, &[2, 4, 6, 5])?)?;
        check(&format!("{geometry:?}"), &weights, &x, &[], on_map(Backend::Kernels, |x| conv.forward(x)))?;
    }
    Ok(())
}

/// With channels as Winograd's method wants them, in tiles that end outside of the image.
#[test]
fn of_convolutions_by_winograd() -> TestResult {
    let weights = Trainable::new();
    let conv = Conv2d::new(&Weights::new(&weights), 16, 32, 3)?;
    let x = Var::from_tensor(&random(1, &[2, 16, 10, 7])?)?;
    check("Winograd", &weights, &x, &[], on_map(Backend::Kernels, |x| conv.forward(x)))
}

/// MatmulPrecision of rounded weights are steps to the weights, but smooth in the input, which f64 does not round.
#[test]
fn of_rounded_products_with_respect_to_the_input() -> TestResult {
    let fixed = RandomWeights::new(7, DType::F64, &Device::Cpu);
    let source = ParameterSource::from_weights(&fixed);
    let weights = Weights::new(&source).with_products(MatmulPrecision::Bf16);
    let (conv, linear) = (Conv2d::new(&weights.at("conv"), 32, 32, 3)?, Linear::new(&weights.at("linear"), 32, 64)?);
    assert_eq!(linear.products(), MatmulPrecision::Bf16);
    let (image, tokens) = (random(1, &[2, 32, 4, 5])?, random(2, &[2, 3, 32])?);
    let none = Trainable::new();
    check("conv", &none, &Var::from_tensor(&image)?, &[], on_map(Backend::Kernels, |x| conv.forward(x)))?;
    check("linear", &none, &Var::from_tensor(&tokens)?, &[], |x| linear.forward(x))
}

#[test]
fn of_norms_on_both_backends() -> TestResult {
    for backend in [Backend::Kernels, Backend::Candle] {
        for silu in [false, true] {
            let weights = Trainable::new();
            let norm = GroupNorm::new(&Weights::new(&weights).with_backend(backend), 2, 6, 1e-5)?;
            let norm = if silu { norm.with_silu() } else { norm };
            let x = Var::from_tensor(&random(1, &[2, 6, 3, 4])?)?;
            check("group norm", &weights, &x, &[], on_map(backend, |x| norm.forward(x)))?;
        }
        let weights = Trainable::new();
        let norm = LayerNorm::new(&Weights::new(&weights).with_backend(backend), 8, 1e-5)?;
        let x = Var::from_tensor(&random(2, &[2, 5, 8])?)?;
        check("layer norm", &weights, &x, &[], |x| norm.forward(x))?;
    }
    Ok(())
}

#[test]
fn of_linear_layers_and_attention_on_both_backends() -> TestResult {
    for backend in [Backend::Kernels, Backend::Candle] {
        let weights = Trainable::new();
        let linear = Linear::new(&Weights::new(&weights).with_backend(backend), 5, 7)?;
        let x = Var::from_tensor(&random(1, &[2, 3, 5])?)?;
        check("linear", &weights, &x, &[], |x| linear.forward(x))?;

        let weights = Trainable::new();
        let config = AttentionConfig { width: 8, context_width: 6, heads: 2, bias: true };
        let attention = Attention::new(&Weights::new(&weights).with_backend(backend), config)?;
        let (x, context) = (Var::from_tensor(&random(2, &[2, 5, 8])?)?, random(3, &[2, 4, 6])?);
        // A constant added to all keys changes no softmax.
        check("attention", &weights, &x, &["to_k.bias"], |x| attention.forward(x, &context, x))?;
    }
    Ok(())
}

/// With respect to what goes into a layer and the residual that it adds, or with the gate that follows it, where the weight is
/// packed, plain, or candle's.
#[test]
fn of_layers_with_what_is_fused_into_them() -> TestResult {
    let (packed, none) = (RandomWeights::new(7, DType::F64, &Device::Cpu), Trainable::new());
    let (x, image) = (Var::from_tensor(&random(1, &[2, 3, 5])?)?, Var::from_tensor(&random(2, &[2, 4, 6, 5])?)?);
    let check_all = |name: &str, weights: &Weights<'_>, variables: &Trainable| -> TestResult {
        let linear = Linear::new(&weights.at("linear"), 5, 5)?;
        check(&format!("{name} linear"), variables, &x, &[], |x| linear.forward_plus_residual(&x.sin()?, x))?;
        variables.variables.borrow_mut().clear();
        let linear = Linear::new(&weights.at("gated"), 5, 32)?;
        check(&format!("{name} gated"), variables, &x, &[], |x| linear.forward_geglu(x))?;
        variables.variables.borrow_mut().clear();
        let (conv, factors) = (Conv2d::new(&weights.at("conv"), 4, 3, 3)?, random(3, &[2, 3, 6, 5])?);
        let residual = |x: &Tensor| -> tweedie::Result<Tensor> { Ok((x.narrow(1, 0, 3)? * &factors)?) };
        let backend = weights.backend();
        check(&format!("{name} convolution"), variables, &image, &[], |x| {
            let map = |x: &Tensor| FeatureMap::from_nchw(x, backend);
            conv.forward_plus_residual(&map(x)?, &map(&residual(x)?)?)?.to_nchw()
        })
    };
    check_all("packed", &Weights::new(&packed), &none)?;
    for backend in [Backend::Kernels, Backend::Candle] {
        let trainable = Trainable::new();
        check_all(&format!("{backend:?}"), &Weights::new(&trainable).with_backend(backend), &trainable)?;
    }
    Ok(())
}

/// Frozen weights with trained factors of rank 2 beside them.
struct LowRank {
    frozen: RandomWeights,
    factors: Trainable,
}

impl WeightSource for LowRank {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        self.frozen.tensor(name, shape)
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> tweedie::Result<Weight> {
        let ones = vec![1; shape.len() - 2];
        let down = self.factors.tensor(&format!("{name}.down"), &[&[2], &shape[1..]].concat())?;
        let up = self.factors.tensor(&format!("{name}.up"), &[&[shape[0], 2], &ones[..]].concat())?;
        let delta = WeightDelta::low_rank(&down, &up, shape, computation)?;
        self.frozen.weight(name, shape, computation)?.with_adapter(Adapter { delta: delta.into(), scale: 0.7 })
    }

    fn contains(&self, name: &str) -> bool {
        self.frozen.contains(name)
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

/// With respect to low-rank factors and to the input, which also goes through the frozen weight beside them, packed or candle's.
#[test]
fn of_low_rank_factors_beside_frozen_weights() -> TestResult {
    for backend in [Backend::Kernels, Backend::Candle] {
        let source = || LowRank { frozen: RandomWeights::new(7, DType::F64, &Device::Cpu), factors: Trainable::new() };
        let (x, weights) = (Var::from_tensor(&random(1, &[2, 3, 5])?)?, source());
        let linear = Linear::new(&Weights::new(&weights).with_backend(backend), 5, 5)?;
        let plus = |x: &Tensor| linear.forward_plus_residual(&linear.forward(&x.sin()?)?, x);
        check("linear", &weights.factors, &x, &[], plus)?;
        let weights = source();
        let gated = Linear::new(&Weights::new(&weights).with_backend(backend), 5, 32)?;
        check("gated", &weights.factors, &x, &[], |x| gated.forward_geglu(x))?;

        let image = Var::from_tensor(&random(2, &[2, 4, 6, 5])?)?;
        for (kernel, stride, pad) in [(3, 1, 1), (3, 2, 1), (1, 1, 0)] {
            if stride > 1 && backend == Backend::Candle {
                // candle's gradient of such a convolution has another shape than its input where a side is odd.
                continue;
            }
            let weights = source();
            let geometry = ConvGeometry::square(kernel, stride, pad);
            let conv = Conv2d::with_geometry(&Weights::new(&weights).with_backend(backend), 4, 4, geometry)?;
            check(&format!("{geometry:?}"), &weights.factors, &image, &[], on_map(backend, |x| conv.forward(x)))?;
        }
        let weights = source();
        let conv = Conv2d::new(&Weights::new(&weights).with_backend(backend), 4, 4, 3)?;
        check("residual", &weights.factors, &image, &[], on_map(backend, |x| conv.forward_plus_residual(x, x)))?;
    }
    Ok(())
}

#[test]
fn of_activations_and_of_resampling_used_twice() -> TestResult {
    let none = Trainable::new();
    let x = Var::from_tensor(&random(1, &[2, 3, 4, 4])?)?;
    for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        check(&format!("{activation:?}"), &none, &x, &[], |x| activation.forward(x))?;
    }
    for backend in [Backend::Kernels, Backend::Candle] {
        for (height, width) in [(8, 8), (7, 9)] {
            // candle's own upsampling loses a gradient where its result is used twice.
            let twice = |x: &FeatureMap| {
                let up = x.resize_nearest(height, width)?;
                up.add(&up.scale(2.0)?)
            };
            check("nearest", &none, &x, &[], on_map(backend, twice))?;
        }
    }
    Ok(())
}

fn fields(component: &'static str, json: serde_json::Value) -> ConfigFields {
    ConfigFields::from_fields(component, json.as_object().cloned().unwrap_or_default())
}

#[test]
fn of_every_parameter_of_a_unet() -> TestResult {
    let plain = serde_json::json!({
        "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "cross_attention_dim": 6,
        "attention_head_dim": 2, "in_channels": 2, "out_channels": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    let mut text_in_time = plain.clone();
    text_in_time["addition_embed_type"] = "text".into();
    text_in_time["addition_embed_type_num_heads"] = 2.into();
    text_in_time["resnet_time_scale_shift"] = "scale_shift".into();
    for (name, config) in [("unet", plain), ("unet with the text in its time embedding", text_in_time)] {
        let weights = Trainable::new();
        let config = UNet2DConditionConfig::from_fields(&fields("unet", config))?;
        let unet = UNet2DConditionModel::new(&Weights::new(&weights), config, DType::F64)?;
        let conditioning = Conditioning::text(random(3, &[2, 3, 6])?);
        let levels = [10.0, 700.0].map(|timestep| NoiseLevel::from_sigma(timestep, 1.0));
        // It is the same in every call: what gradients pass through is not kept.
        let cache = Cache::default();
        let x = Var::from_tensor(&random(4, &[2, 2, 4, 6])?)?;
        check(name, &weights, &x, &["k_proj.bias"], |x| {
            unet.forward(&Call::of_rows(x, &levels, &conditioning, &cache))
        })?;
    }
    Ok(())
}

#[test]
fn of_every_parameter_of_an_autoencoder_and_a_text_encoder() -> TestResult {
    let weights = Trainable::new();
    let config = AutoencoderConfig::from_fields(&fields(
        "vae",
        serde_json::json!({
            "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 2,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        }),
    ))?;
    let vae = AutoencoderKl::new(&Weights::new(&weights), config, Halves::Both, DType::F64)?;
    let x = Var::from_tensor(&random(1, &[1, 3, 4, 6])?)?;
    let noise = random(2, &[1, 2, 2, 3])?;
    check("autoencoder", &weights, &x, &["to_k.bias"], |x| vae.decode(&vae.encode(x)?.sample(&noise)?))?;

    let weights = Trainable::new();
    let config = ClipTextConfig::from_fields(&fields(
        "text_encoder",
        serde_json::json!({
            "vocab_size": 5, "hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 4, "projection_dim": 3,
        }),
    ))?;
    let encoder = ClipTextModel::new(&Weights::new(&weights), config)?;
    let ids = Tensor::new(&[[0u32, 1, 2, 3], [4, 4, 1, 0]], &Device::Cpu)?;
    let scale = Var::from_tensor(&random(3, &[1])?)?;
    check("text encoder", &weights, &scale, &["k_proj.bias"], |scale| {
        Ok(encoder.forward(&ids)?.last_hidden_state.broadcast_mul(scale)?)
    })
}

/// The gradients of a text-conditioned UNet and its text encoder, through one loss, with one backend.
fn of_latent_diffusion(backend: Backend) -> tweedie::Result<BTreeMap<String, Vec<f32>>> {
    let (unet_source, text_source) =
        (ParameterSource::random(1, &Device::Cpu), ParameterSource::random(2, &Device::Cpu));
    let config = UNet2DConditionConfig::from_fields(&fields(
        "unet",
        serde_json::json!({
            "block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32,
            "attention_head_dim": 4, "addition_embed_type": "text", "addition_embed_type_num_heads": 4,
            "resnet_time_scale_shift": "scale_shift", "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        }),
    ))?;
    let unet = UNet2DConditionModel::new(&Weights::new(&unet_source).with_backend(backend), config, DType::F32)?;
    let config = ClipTextConfig::from_fields(&fields(
        "text_encoder",
        serde_json::json!({
            "vocab_size": 20, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 8, "projection_dim": 32,
        }),
    ))?;
    let encoder = ClipTextModel::new(&Weights::new(&text_source).with_backend(backend), config)?;
    let ids = Tensor::new(&[[1u32, 2, 3, 4, 19, 19, 19, 19], [1, 7, 7, 8, 9, 10, 11, 19]], &Device::Cpu)?;
    let levels = [10.0, 700.0].map(|timestep| NoiseLevel::from_sigma(timestep, 1.0));
    let (x, target) = (TorchNoise::shared(4).normal(&[2, 4, 8, 8])?, TorchNoise::shared(5).normal(&[2, 4, 8, 8])?);
    let loss = || -> tweedie::Result<Tensor> {
        let output = encoder.forward(&ids)?;
        let conditioning = Conditioning::text(output.last_hidden_state);
        let raw = unet.forward(&Call::of_rows(&x, &levels, &conditioning, &Cache::default()))?;
        // A projection is made of random weights, and has a gradient through this alone.
        let projected =
            output.text_embeds.map_or_else(|| Tensor::zeros((), DType::F32, &Device::Cpu), |x| x.sum_all())?;
        Ok(((raw - &target)?.sqr()?.mean_all()? + (projected * 1e-3)?)?)
    };
    let (_, (), gradients) = with_gradients(&Device::Cpu, || Ok::<_, tweedie::Error>((loss()?, ())))?;
    let mut all = BTreeMap::new();
    for (name, source) in [("unet", unet_source), ("text_encoder", text_source)] {
        let parameters = source.finish()?;
        let mut values = vec![0.0; parameters.layout().len()];
        parameters.add_gradients(&gradients, &mut values)?;
        for slot in parameters.layout().slots() {
            all.insert(format!("{name}.{}", slot.name), values[slot.range.clone()].to_vec());
        }
    }
    Ok(all)
}

/// candle's own operations, which are what other devices run, give the gradients of the kernels.
#[test]
fn of_latent_diffusion_on_both_backends() -> TestResult {
    let (kernels, candle) = (of_latent_diffusion(Backend::Kernels)?, of_latent_diffusion(Backend::Candle)?);
    assert_eq!(kernels.len(), candle.len());
    for ((name, ours), theirs) in kernels.iter().zip(candle.values()) {
        let largest = theirs.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let apart = ours.iter().zip(theirs).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        // Sums in f32 in another order, through two networks; a bias before a softmax has no gradient but rounding.
        assert!(apart <= 2e-4 * largest + 2e-7, "{name}: {apart} of {largest}");
    }
    Ok(())
}
