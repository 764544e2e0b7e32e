//! Autoencoders in strips: each bit is that of the whole picture at once.

use candle_core::{DType, Device, Tensor, Var};
use serde_json::json;
use std::ops::ControlFlow;
use tweedie::checkpoints::RandomWeights;
use tweedie::config::ConfigFields;
use tweedie::families::{Loader, autoencoder_config};
use tweedie::kernels::MatmulPrecision;
use tweedie::layers::{Backend, Weights};
use tweedie::models::{Autoencoder, AutoencoderConfig, AutoencoderKl, Halves, Strips};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::{Error, Result};
use tweedie_pipelines::Model;

fn config(channels: &[usize], layers: usize, groups: usize, attention: bool) -> Result<AutoencoderConfig> {
    let json = json!({
        "block_out_channels": channels, "layers_per_block": layers, "norm_num_groups": groups,
        "mid_block_add_attention": attention,
        "down_block_types": vec!["DownEncoderBlock2D"; channels.len()],
        "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
    });
    AutoencoderConfig::from_fields(&ConfigFields::from_fields("vae", json.as_object().cloned().unwrap_or_default()))
}

fn random_autoencoder(config: AutoencoderConfig) -> Result<AutoencoderKl> {
    let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
    AutoencoderKl::new(&Weights::new(&source), config, Halves::Both, DType::F32)
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1()?)
}

/// What both halves make of a random picture and random latents of this size, in the order mean, variance, picture.
fn halves(
    vae: &dyn Autoencoder,
    batch: usize,
    (height, width): (usize, usize),
    strips: &Strips,
) -> Result<[Vec<f32>; 3]> {
    let (space, mut noise) = (vae.latent_space(), TorchNoise::shared(7));
    let picture = noise.normal(&[batch, 3, height, width])?;
    let latents = noise.normal(&[batch, space.channels, height / space.factor, width / space.factor])?;
    let encoded = vae.encode_in_strips(&picture, strips)?;
    let decoded = vae.decode_in_strips(&latents, strips, &mut |_, _| ControlFlow::Continue(()))?;
    Ok([values(&encoded.mean)?, values(&encoded.log_variance)?, values(&decoded)?])
}

/// Every height of strips, with everything in memory, some of it or nothing: there is no tolerance.
fn check(what: &str, vae: &dyn Autoencoder, batch: usize, size: (usize, usize), rows: &[usize]) -> Result<()> {
    let at_once = halves(vae, batch, size, &Strips::NONE)?;
    assert!(at_once.iter().flatten().all(|value| value.is_finite()), "{what} of {size:?}");
    for &rows in rows {
        for memory in [0, 700_000, 3_000_000] {
            let strips = Strips { rows, memory };
            let in_strips = halves(vae, batch, size, &strips)?;
            for (part, (a, b)) in ["mean", "variance", "picture"].iter().zip(at_once.iter().zip(&in_strips)) {
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert!(bits(a) == bits(b), "{part} of {size:?} with {what}, {strips:?}");
            }
        }
    }
    Ok(())
}

/// Sizes that end within a strip, within what is computed together, and within the pixels that a norm sums together; maps so
/// small that they are not worth a strip among them. The attention has several parts.
#[test]
fn strips_of_any_height_give_each_bit_of_the_whole() -> Result<()> {
    // By Winograd's transform, and by patches.
    for (channels, groups) in [([32, 48, 48], 8), ([12, 20, 24], 4)] {
        let vae = random_autoencoder(config(&channels, 1, groups, true)?)?;
        for size in [(84, 68), (66, 131), (260, 36), (23, 90)] {
            check(&format!("{channels:?}"), &vae, 1, size, &[1, 4, 24, 64])?;
        }
    }
    Ok(())
}

/// As many blocks as Stable Diffusion's decoder has at each resolution, or none in the encoder's.
#[test]
fn any_number_of_blocks_is_in_strips() -> Result<()> {
    for (channels, layers, attention) in [([16, 16], 0, true), ([16, 32], 2, false)] {
        let vae = random_autoencoder(config(&channels, layers, 8, attention)?)?;
        check(&format!("{layers} layers"), &vae, 1, (70, 54), &[4, 16])?;
    }
    Ok(())
}

#[test]
fn stable_diffusions_channels_are_in_strips() -> Result<()> {
    let vae = random_autoencoder(config(&[128, 256, 512, 512], 2, 32, true)?)?;
    check("Stable Diffusion's channels", &vae, 1, (72, 136), &[8])
}

#[test]
fn the_embedded_autoencoder_is_in_strips() -> Result<()> {
    let files = Model::Embedded.files()?;
    let loader = Loader::new(&files, &Device::Cpu);
    let config = autoencoder_config(&files, "vae")?;
    let (vae, _) = loader.load("vae", &[], |weights| config.clone().build(weights, Halves::Both, DType::F32))?;
    check("the embedded weights", vae.as_ref(), 1, (152, 136), &[4, 20])?;
    check("the embedded weights", vae.as_ref(), 2, (72, 80), &[8])
}

/// Weights of half precision, and products of which both factors are rounded.
#[test]
fn half_precision_is_in_strips() -> Result<()> {
    for (dtype, products) in [
        (DType::F16, MatmulPrecision::Full),
        (DType::BF16, MatmulPrecision::Full),
        (DType::BF16, MatmulPrecision::Bf16),
    ] {
        let source = RandomWeights::new(1, dtype, &Device::Cpu);
        let weights = Weights::new(&source).with_products(products);
        let vae = AutoencoderKl::new(&weights, config(&[32, 64], 1, 8, true)?, Halves::Both, DType::F32)?;
        check(&format!("{dtype:?}, {products:?}"), &vae, 1, (72, 52), &[4, 12])?;
    }
    Ok(())
}

/// On other backends all is computed at once, whatever is asked for.
#[test]
fn other_backends_have_no_strips() -> Result<()> {
    let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
    let weights = Weights::new(&source).with_backend(Backend::Candle);
    let vae = AutoencoderKl::new(&weights, config(&[8, 16], 1, 4, true)?, Halves::Both, DType::F32)?;
    check("candle", &vae, 2, (36, 40), &[4])
}

#[test]
fn whoever_watches_strips_can_stop_them() -> Result<()> {
    let vae = random_autoencoder(config(&[16, 32], 1, 8, false)?)?;
    let latents = TorchNoise::shared(1).normal(&[2, 4, 24, 24])?;
    let strips = Strips { rows: 4, memory: 0 };
    let decode = |stop_after: usize| {
        let mut told = Vec::new();
        let decoded = vae.decode_in_strips(&latents, &strips, &mut |done, parts| {
            told.push((done, parts));
            if told.len() > stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (decoded, told)
    };
    let (decoded, told) = decode(usize::MAX);
    let calls = told.len();
    assert!(decoded.is_ok() && calls > 40 && told.is_sorted(), "{told:?}");
    assert_eq!((told[0], told[calls - 1]), ((0, 8), (8, 8)));
    for stop_after in [0, 1, 7, calls / 2, calls - 1] {
        assert!(matches!(decode(stop_after).0, Err(Error::Cancelled)), "after {stop_after} of {calls}");
    }
    Ok(())
}

/// A gradient would be lost, so it is refused.
#[test]
fn gradients_are_refused_in_strips() -> Result<()> {
    let vae = random_autoencoder(config(&[16, 32], 1, 8, false)?)?;
    let latents = Var::from_tensor(&TorchNoise::shared(1).normal(&[1, 4, 24, 24])?)?;
    let decode = |strips: &Strips| vae.decode_in_strips(&latents, strips, &mut |_, _| ControlFlow::Continue(()));
    assert!(decode(&Strips::NONE)?.track_op());
    assert!(decode(&Strips { rows: 8, memory: 0 }).is_err());
    Ok(())
}

/// What is said of the memory before: more at once than in strips, and more for more pixels.
#[test]
fn memory_is_known_before() -> Result<()> {
    let vae = random_autoencoder(config(&[32, 64, 128], 1, 8, true)?)?;
    let [small, large] = [16, 64].map(|side| vae.decoding_memory(side, side));
    assert!(0 < small.least && small.least < small.at_once);
    assert_eq!((16 * small.least, 16 * small.at_once), (large.least, large.at_once));
    // Two maps of 64 channels and one of 32, at a resolution four times as high.
    assert_eq!(small.at_once, 64 * 64 * (2 * 64 + 32) * 4);
    assert_eq!(vae.encoding_memory(64, 64).least, small.least);
    Ok(())
}
