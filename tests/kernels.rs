//! Each kernel against its definition in candle's own operations, on shapes that do not divide evenly.

use candle_core::{DType, Device, Tensor};
use tweedie::kernels::{
    Activation, ConvGeometry, attention, attention_definition, conv2d, group_norm, group_norm_definition, layer_norm,
    layer_norm_definition, linear,
};
use tweedie::noise::{NoiseSource, TorchNoise};

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Of the largest value: sums of a few thousand f32 products in another order.
const TOLERANCE: f64 = 1e-5;

fn random(seed: u64, shape: &[usize]) -> tweedie::Result<Tensor> {
    TorchNoise::shared(seed).normal(shape)
}

fn check(what: &str, got: &Tensor, want: &Tensor) -> TestResult {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (got.to_dtype(DType::F64)?, want.to_dtype(DType::F64)?);
    let largest = want.abs()?.max_all()?.to_scalar::<f64>()?;
    let error = (got - want)?.abs()?.max_all()?.to_scalar::<f64>()? / largest;
    assert!(error < TOLERANCE, "{what}: {error:e}");
    Ok(())
}

#[test]
fn convolution_is_candles_on_any_geometry() -> TestResult {
    for (kernel, stride, pad_before, pad_after, height, width) in [
        (3, 1, 1, 1, 9, 5),
        (3, 2, 1, 1, 9, 6),
        (3, 2, 0, 1, 8, 10),
        (1, 1, 0, 0, 7, 3),
        (5, 1, 2, 2, 3, 4),
        (3, 1, 1, 1, 1, 1),
    ] {
        let (x, w) = (random(1, &[2, 6, height, width])?, random(2, &[10, 6, kernel, kernel])?);
        let bias = random(3, &[10])?;
        let after = pad_after - pad_before;
        let padded = x.pad_with_zeros(2, 0, after)?.pad_with_zeros(3, 0, after)?;
        let want = padded.conv2d(&w, pad_before, stride, 1, 1)?.broadcast_add(&bias.reshape((1, 10, 1, 1))?)?;
        let matrix = w.permute((0, 2, 3, 1))?.contiguous()?.flatten_from(1)?;
        let geometry = ConvGeometry { kernel, stride, pad_before, pad_after };
        let got = conv2d(&x.permute((0, 2, 3, 1))?, &matrix, &bias, geometry)?;
        check(&format!("{geometry:?} on {height}x{width}"), &got.permute((0, 3, 1, 2))?, &want)?;
    }
    Ok(())
}

/// Large enough for several bands of patches.
#[test]
fn convolution_in_bands_is_candles() -> TestResult {
    let (x, w, bias) = (random(1, &[1, 64, 150, 150])?, random(2, &[8, 64, 3, 3])?, random(3, &[8])?);
    let want = x.conv2d(&w, 1, 1, 1, 1)?.broadcast_add(&bias.reshape((1, 8, 1, 1))?)?;
    let matrix = w.permute((0, 2, 3, 1))?.contiguous()?.flatten_from(1)?;
    let geometry = ConvGeometry { kernel: 3, stride: 1, pad_before: 1, pad_after: 1 };
    let got = conv2d(&x.permute((0, 2, 3, 1))?, &matrix, &bias, geometry)?;
    check("bands", &got.permute((0, 3, 1, 2))?, &want)
}

#[test]
fn attention_is_its_definition() -> TestResult {
    for (n, m, heads, causal) in [(300, 77, 4, false), (77, 77, 2, true), (1, 5, 1, false), (129, 129, 1, true)] {
        let (q, k, v) = (random(1, &[2, n, 24])?, random(2, &[2, m, 24])?, random(3, &[2, m, 24])?);
        let want = attention_definition(&q, &k, &v, heads, causal)?;
        check(&format!("{n} to {m}, {heads} heads"), &attention(&q, &k, &v, heads, causal)?, &want)?;
    }
    Ok(())
}

/// Scores far beyond the range of the exponential: the largest is subtracted first.
#[test]
fn attention_survives_large_scores() -> TestResult {
    let q = (random(1, &[1, 20, 8])? * 1e4)?;
    let out = attention(&q, &q, &random(2, &[1, 20, 8])?, 1, false)?;
    assert!(out.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite());
    Ok(())
}

#[test]
fn norms_are_their_definitions() -> TestResult {
    // An offset much larger than the spread shows a variance that cancels.
    for offset in [0.0, 300.0] {
        let x = (random(1, &[2, 600, 24])? + offset)?;
        let (w, b) = (random(2, &[24])?, random(3, &[24])?);
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        for activation in [Activation::None, Activation::Silu] {
            let want = group_norm_definition(&wide(&x)?, &wide(&w)?, &wide(&b)?, 6, 1e-5, activation)?;
            check_loosely("group norm", &group_norm(&x, &w, &b, 6, 1e-5, activation)?, &want, offset)?;
        }
        let want = layer_norm_definition(&wide(&x)?, &wide(&w)?, &wide(&b)?, 1e-5)?;
        check_loosely("layer norm", &layer_norm(&x, &w, &b, 1e-5)?, &want, offset)?;
    }
    Ok(())
}

/// The input's own rounding, relative to its spread, is what remains: 300 * 2^-24 on a spread of one.
fn check_loosely(what: &str, got: &Tensor, want: &Tensor, offset: f64) -> TestResult {
    if offset == 0.0 {
        return check(what, got, want);
    }
    let error = (got.to_dtype(DType::F64)? - want)?.abs()?.max_all()?.to_scalar::<f64>()?;
    assert!(error < 5e-4, "{what}: {error:e}");
    Ok(())
}

#[test]
fn linear_is_a_product_and_a_sum() -> TestResult {
    let (x, w, b) = (random(1, &[3, 17, 33])?, random(2, &[9, 33])?, random(3, &[9])?);
    let want = x.broadcast_matmul(&w.t()?)?.broadcast_add(&b)?;
    check("tokens", &linear(&x, &w, &b)?, &want)?;
    check("rows", &linear(&x.narrow(1, 4, 1)?.squeeze(1)?, &w, &b)?, &want.narrow(1, 4, 1)?.squeeze(1)?)
}

/// Every image is computed by itself, in an order that its neighbours do not change.
#[test]
fn neighbours_in_a_batch_change_no_bit() -> TestResult {
    let bits = |t: &Tensor| -> tweedie::Result<Vec<u32>> {
        Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    };
    let geometry = ConvGeometry { kernel: 3, stride: 1, pad_before: 1, pad_after: 1 };
    let (w, b) = (random(1, &[16, 9 * 12])?, random(2, &[16])?);
    let x = random(3, &[5, 11, 13, 12])?;
    let all = conv2d(&x, &w, &b, geometry)?;
    let (lw, lb, tokens) = (random(4, &[40, 12])?, random(5, &[40])?, x.flatten(1, 2)?);
    let (all_linear, all_attention) = (linear(&tokens, &lw, &lb)?, attention(&tokens, &tokens, &tokens, 3, false)?);
    for i in 0..5 {
        let (one, one_tokens) = (x.narrow(0, i, 1)?, tokens.narrow(0, i, 1)?);
        assert_eq!(bits(&conv2d(&one, &w, &b, geometry)?)?, bits(&all.narrow(0, i, 1)?)?);
        assert_eq!(bits(&linear(&one_tokens, &lw, &lb)?)?, bits(&all_linear.narrow(0, i, 1)?)?);
        let alone = attention(&one_tokens, &one_tokens, &one_tokens, 3, false)?;
        assert_eq!(bits(&alone)?, bits(&all_attention.narrow(0, i, 1)?)?);
    }
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_errors() -> TestResult {
    let x = Tensor::zeros((1, 4, 4, 3), DType::F32, &Device::Cpu)?;
    let (w, b) = (Tensor::zeros((5, 9), DType::F32, &Device::Cpu)?, Tensor::zeros(5, DType::F32, &Device::Cpu)?);
    let geometry = ConvGeometry { kernel: 3, stride: 1, pad_before: 1, pad_after: 1 };
    assert!(conv2d(&x, &w, &b, geometry).is_err());
    assert!(linear(&x, &w, &b).is_err());
    Ok(())
}
