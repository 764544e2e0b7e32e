//! Each kernel against its definition in candle's own operations, on shapes that do not divide evenly.

use candle_core::{DType, Device, Tensor, Var};
use tweedie::kernels::{
    Activation, ConvGeometry, EightBitSums, EightBits, MatmulPrecision, PackedWeight, Pooling, add, attention,
    attention_definition, concat_channels, conv2d, conv2d_packed, conv2d_packed_plus, geglu, gelu, group_norm,
    group_norm_definition, layer_norm, layer_norm_definition, linear, linear_geglu_packed, linear_packed,
    linear_packed_plus, pool2d, pool2d_definition, quick_gelu, resize_nearest, silu,
};
use tweedie::noise::{NoiseSource, TorchNoise};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

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
        let geometry = ConvGeometry { pad_after: [pad_after; 2], ..ConvGeometry::square(kernel, stride, pad_before) };
        let got = conv2d(&x.permute((0, 2, 3, 1))?, &w, &bias, geometry)?;
        check(&format!("{geometry:?} on {height}x{width}"), &got.permute((0, 3, 1, 2))?, &want)?;
    }
    Ok(())
}

/// Rows of an image alone, padded only where the image ends, give the rows of the result to the bit if they begin at a multiple of
/// four: by Winograd's transform, by patches, and with rounded products. The gradients are those of the whole to the last roundings.
#[test]
fn rows_of_a_convolution_are_those_of_the_whole() -> TestResult {
    let (height, width) = (53, 21);
    for (channels, outputs, stride, padding) in
        [(32, 24, 1, [1, 1]), (5, 24, 1, [1, 1]), (32, 24, 2, [0, 1]), (32, 24, 2, [1, 1])]
    {
        let (x, w) = (random(1, &[1, height, width, channels])?, random(2, &[outputs, channels, 3, 3])?);
        let (x, bias) = (Var::from_tensor(&x)?, random(3, &[outputs])?);
        let [before, after] = padding;
        let geometry = ConvGeometry { pad_after: [after; 2], ..ConvGeometry::square(3, stride, before) };
        for products in [MatmulPrecision::Full, MatmulPrecision::Bf16] {
            let weight = PackedWeight::with_products(&w, products)?;
            let whole = conv2d_packed(&x, &weight, &bias, geometry)?;
            let rows = whole.dim(1)?;
            let edges: Vec<usize> = [0, 4, 16].into_iter().filter(|&edge| edge + 16 <= rows).chain([rows]).collect();
            let mut parts = Vec::new();
            for edge in edges.windows(2) {
                let first = (edge[0] * stride).saturating_sub(before);
                let end = ((edge[1] - 1) * stride + 3 - before).min(height);
                let above = if first == 0 { before } else { 0 };
                let below = if end == height { after } else { 0 };
                let part = conv2d_packed(
                    &x.narrow(1, first, end - first)?,
                    &weight,
                    &bias,
                    ConvGeometry { pad_before: [above, before], pad_after: [below, after], ..geometry },
                )?;
                assert_eq!(part.dim(1)?, edge[1] - edge[0]);
                parts.push(part);
            }
            assert!(parts.len() > 1);
            let parts = Tensor::cat(&parts, 1)?;
            let what = format!("{channels} channels, stride {stride}, {products:?}");
            assert_eq!(parts.flatten_all()?.to_vec1::<f32>()?, whole.flatten_all()?.to_vec1::<f32>()?, "{what}");
            let gradient = |y: &Tensor| -> TestResult<Tensor> {
                let grads = y.sqr()?.sum_all()?.backward()?;
                Ok(grads.get(&x).ok_or("no gradient")?.clone())
            };
            if products == MatmulPrecision::Full {
                check(&what, &gradient(&parts)?, &gradient(&whole)?)?;
            }
        }
    }
    Ok(())
}

/// Large enough for several bands of patches.
#[test]
fn convolution_in_bands_is_candles() -> TestResult {
    let (x, w, bias) = (random(1, &[1, 64, 150, 150])?, random(2, &[8, 64, 3, 3])?, random(3, &[8])?);
    let want = x.conv2d(&w, 1, 1, 1, 1)?.broadcast_add(&bias.reshape((1, 8, 1, 1))?)?;
    let geometry = ConvGeometry::square(3, 1, 1);
    let got = conv2d(&x.permute((0, 2, 3, 1))?, &w, &bias, geometry)?;
    check("bands", &got.permute((0, 3, 1, 2))?, &want)
}

/// A function of three tensors and another way to write it, with arguments.
type Three<'a> = &'a dyn Fn(&Tensor, &Tensor, &Tensor) -> candle_core::Result<Tensor>;

/// The kernel's gradients in f32 against those that candle derives from the definition in f64.
fn check_gradients(what: &str, arguments: [Tensor; 3], kernel: Three<'_>, definition: Three<'_>) -> TestResult {
    let gradients = |f: Three<'_>, dtype: DType| -> candle_core::Result<Vec<Tensor>> {
        let vars: Vec<Var> =
            arguments.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype)?)).collect::<candle_core::Result<_>>()?;
        let y = f(&vars[0], &vars[1], &vars[2])?;
        let weights = TorchNoise::shared(77).normal(y.dims()).map_err(candle_core::Error::wrap)?.to_dtype(dtype)?;
        let grads = (y * weights)?.sum_all()?.backward()?;
        vars.iter().map(|var| grads.get(var).cloned().ok_or(candle_core::Error::Msg("no gradient".into()))).collect()
    };
    let (got, want) = (gradients(kernel, DType::F32)?, gradients(definition, DType::F64)?);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        check(&format!("{what}, argument {i}"), got, want)?;
    }
    Ok(())
}

#[test]
fn convolution_gradients_are_candles_on_any_geometry() -> TestResult {
    let square = |kernel, stride, before, after| ConvGeometry {
        pad_after: [after; 2],
        ..ConvGeometry::square(kernel, stride, before)
    };
    for (geometry, height, width, channels, outputs) in [
        (square(3, 1, 1, 1), 9, 5, 6, 10),
        (square(3, 1, 1, 1), 28, 28, 32, 17),
        (square(3, 1, 1, 1), 7, 7, 48, 40),
        (square(3, 1, 1, 1), 14, 13, 1, 33),
        (square(3, 1, 0, 0), 5, 6, 7, 3),
        (square(3, 2, 1, 1), 8, 6, 20, 5),
        (square(3, 2, 1, 1), 9, 7, 3, 18),
        (square(3, 2, 0, 1), 8, 10, 4, 7),
        (square(1, 1, 0, 0), 7, 3, 19, 35),
        (square(5, 1, 2, 2), 3, 4, 2, 16),
        (square(3, 1, 1, 1), 1, 1, 5, 4),
        (square(3, 1, 3, 3), 4, 5, 3, 2),
        (ConvGeometry::same([1, 7]), 5, 9, 6, 18),
        (ConvGeometry::same([7, 1]), 9, 4, 20, 5),
        (ConvGeometry { kernel: [2, 5], stride: 2, pad_before: [0, 3], pad_after: [1, 2] }, 8, 9, 4, 7),
        (ConvGeometry { kernel: [3, 3], stride: 1, pad_before: [1, 0], pad_after: [1, 2] }, 12, 13, 32, 16),
    ] {
        let ConvGeometry { kernel: [kernel_height, kernel_width], stride, pad_before, pad_after } = geometry;
        let x = random(1, &[3, height, width, channels])?;
        let w = (random(2, &[outputs, channels, kernel_height, kernel_width])? * 0.2)?;
        // As products of every tap's pixels and its slice of the weights.
        let definition = |x: &Tensor, w: &Tensor, b: &Tensor| {
            let padded = x.pad_with_zeros(1, pad_before[0], pad_after[0])?;
            let padded = padded.pad_with_zeros(2, pad_before[1], pad_after[1])?;
            let [out_height, out_width] = geometry.output_sides([height, width]);
            let rows = |first: usize, count: usize| {
                Tensor::from_iter((0..count).map(|i| (first + i * stride) as u32), &Device::Cpu)
            };
            let mut sum = b.reshape(((), 1, 1, outputs))?.broadcast_as((3, out_height, out_width, outputs))?;
            for tap in 0..kernel_height * kernel_width {
                let (down, right) = (tap / kernel_width, tap % kernel_width);
                let seen = padded.index_select(&rows(down, out_height)?, 1)?;
                let seen = seen.index_select(&rows(right, out_width)?, 2)?;
                let w = w.narrow(2, down, 1)?.narrow(3, right, 1)?.flatten_from(1)?.t()?;
                sum = (sum + seen.contiguous()?.broadcast_matmul(&w)?)?;
            }
            Ok(sum)
        };
        let kernel = |x: &Tensor, w: &Tensor, b: &Tensor| conv2d(x, w, b, geometry);
        for bias in [random(3, &[outputs])?, random(4, &[3, outputs])?] {
            let what = format!("{geometry:?} on {height}x{width}x{channels} to {outputs}");
            check(&what, &kernel(&x, &w, &bias)?, &definition(&x, &w, &bias)?)?;
            check_gradients(&what, [x.clone(), w.clone(), bias], &kernel, &definition)?;
        }
    }
    Ok(())
}

#[test]
fn pooling_and_its_gradients_are_candles() -> TestResult {
    let windows = [
        ConvGeometry::square(2, 2, 0),
        ConvGeometry::square(3, 2, 0),
        ConvGeometry::square(3, 1, 1),
        ConvGeometry { kernel: [2, 5], stride: 3, pad_before: [0, 4], pad_after: [1, 2] },
    ];
    for (window, pooling) in windows
        .into_iter()
        .flat_map(|window| [Pooling::Max, Pooling::Mean, Pooling::PaddedMean].map(|pooling| (window, pooling)))
    {
        let x = random(1, &[2, 9, 7, 5])?;
        // The other arguments are there for their gradients to be compared too.
        let with = |y: Tensor, a: &Tensor, b: &Tensor| y.broadcast_mul(a)?.broadcast_add(b);
        let kernel = |x: &Tensor, a: &Tensor, b: &Tensor| with(pool2d(x, pooling, window)?, a, b);
        let definition =
            |x: &Tensor, a: &Tensor, b: &Tensor| with(pool2d_definition(x, pooling, window, [1, 2])?, a, b);
        let (a, b) = (random(2, &[5])?, random(3, &[5])?);
        let what = format!("{pooling:?} of {window:?}");
        check(&what, &kernel(&x, &a, &b)?, &definition(&x, &a, &b)?)?;
        check_gradients(&what, [x, a, b], &kernel, &definition)?;
    }
    let x = random(1, &[1, 4, 5, 3])?;
    assert!(pool2d(&x, Pooling::Max, ConvGeometry::square(5, 1, 0)).is_err());
    assert!(pool2d(&x, Pooling::Max, ConvGeometry::square(2, 1, 2)).is_err());
    assert!(pool2d_definition(&x, Pooling::Max, ConvGeometry::square(5, 1, 0), [1, 2]).is_err());
    Ok(())
}

/// The products of the transformed tiles are summed over many channels, which is where roundings would show.
#[test]
fn convolution_of_many_channels_is_candles_in_f64() -> TestResult {
    let geometry = ConvGeometry::square(3, 1, 1);
    for (batch, channels, outputs, height, width) in [(2, 640, 33, 18, 21), (1, 96, 64, 64, 61), (3, 1280, 16, 8, 8)] {
        let (x, w) = (random(1, &[batch, channels, height, width])?, random(2, &[outputs, channels, 3, 3])?);
        let bias = random(3, &[outputs])?;
        let want = x.to_dtype(DType::F64)?.conv2d(&w.to_dtype(DType::F64)?, 1, 1, 1, 1)?;
        let want = want.broadcast_add(&bias.to_dtype(DType::F64)?.reshape((1, outputs, 1, 1))?)?;
        let got = conv2d(&x.permute((0, 2, 3, 1))?, &w, &bias, geometry)?;
        check(&format!("{channels} to {outputs}"), &got.permute((0, 3, 1, 2))?, &want)?;
    }
    Ok(())
}

/// In every type that weights are stored in, results and gradients are bit by bit those of the widened weight.
#[test]
fn packed_weights_change_no_bit_of_result_or_gradient() -> TestResult {
    let x = |shape: &[usize]| Ok::<_, Box<dyn std::error::Error>>(Var::from_tensor(&random(3, shape)?)?);
    let compare = |what: &str,
                   x: &Var,
                   w: &Tensor,
                   plain: Apply<'_, Tensor>,
                   packed: Apply<'_, PackedWeight>|
     -> TestResult {
        let run = |y: Tensor| -> candle_core::Result<[Vec<f32>; 2]> {
            let grads = y.sqr()?.sum_all()?.backward()?;
            let grad = grads.get(x).ok_or(candle_core::Error::Msg("no gradient".into()))?;
            Ok([y.flatten_all()?.to_vec1()?, grad.flatten_all()?.to_vec1()?])
        };
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let stored = w.to_dtype(dtype)?;
            let weight = PackedWeight::with_products(&stored, MatmulPrecision::Full)?;
            assert_eq!((weight.dtype(), weight.shape()), (dtype, w.dims()));
            assert_eq!(run(plain(x, &stored.to_dtype(DType::F32)?)?)?, run(packed(x, &weight)?)?, "{what}, {dtype:?}");
        }
        // In eight bits, if there are whole parts: a kernel's taps one after the other.
        let (order, back) =
            if w.rank() == 4 { (&[0, 2, 3, 1][..], &[0, 3, 1, 2][..]) } else { (&[0, 1][..], &[0, 1][..]) };
        let rows = w.permute(order)?;
        let values = rows.flatten_all()?.to_vec1::<f32>()?;
        if values.len() / w.dim(0)? % EightBits::PART == 0 {
            let rounded = EightBits::round(&values);
            let widened =
                Tensor::new(rounded.widened(), w.device())?.reshape(rows.dims())?.permute(back)?.contiguous()?;
            let weight = PackedWeight::of_eight_bits(&rounded, w.dims(), EightBitSums::Full)?;
            assert_eq!(run(plain(x, &widened)?)?, run(packed(x, &weight)?)?, "{what}, eight bits");
            let difference = (weight.to_tensor()? - widened)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert_eq!(difference, 0.0, "{what}, as it was");
        }
        Ok(())
    };
    for (kernel, stride, channels, outputs) in
        [(3, 1, 32, 35), (3, 1, 64, 64), (3, 2, 5, 4), (1, 1, 7, 16), (3, 1, 3, 20)]
    {
        let geometry = ConvGeometry::square(kernel, stride, kernel / 2);
        let (w, bias) = (random(1, &[outputs, channels, kernel, kernel])?, random(2, &[outputs])?);
        let x = x(&[2, 9, 10, channels])?;
        let plain = |x: &Tensor, w: &Tensor| conv2d(x, w, &bias, geometry);
        compare(&format!("{geometry:?}"), &x, &w, &plain, &|x, w| conv2d_packed(x, w, &bias, geometry))?;
    }
    for (inputs, outputs) in [(12, 35), (700, 16), (672, 20)] {
        let (w, bias) = (random(1, &[outputs, inputs])?, random(2, &[outputs])?);
        let x = x(&[2, 9, inputs])?;
        compare("linear", &x, &w, &|x, w| linear(x, w, &bias), &|x, w| linear_packed(x, w, &bias))?;
    }
    Ok(())
}

/// In f64 products with pairs of bf16 round the weight alone, so they are those of the rounded weight. The gradient is that in f32
/// too.
#[test]
fn rounded_weights_in_f64_give_the_products_of_the_rounded_weights() -> TestResult {
    let geometry = ConvGeometry::square(3, 1, 1);
    let random = |seed: u64, shape: &[usize]| -> TestResult<Tensor> { Ok(random(seed, shape)?.to_dtype(DType::F64)?) };
    let (w, bias) = (random(1, &[20, 32, 3, 3])?, random(2, &[20])?);
    let (matrix, image) = (w.narrow(2, 0, 1)?.narrow(3, 0, 1)?.reshape((20, 32))?.contiguous()?, [2, 5, 6, 32]);
    for dtype in [DType::F64, DType::F32] {
        let x = Var::from_tensor(&random(3, &image)?.to_dtype(dtype)?)?;
        let bias = bias.to_dtype(dtype)?;
        for weight in [&w, &matrix] {
            let packed = PackedWeight::with_products(weight, MatmulPrecision::Bf16)?;
            assert_eq!((packed.products(), packed.dtype()), (MatmulPrecision::Bf16, DType::BF16));
            let rounded = weight.to_dtype(DType::BF16)?.to_dtype(dtype)?;
            let [got, want] = match weight.rank() {
                4 => [conv2d_packed(&x, &packed, &bias, geometry)?, conv2d(&x, &rounded, &bias, geometry)?],
                _ => {
                    let x = x.reshape((2, 30, 32))?;
                    [linear_packed(&x, &packed, &bias)?, linear(&x, &rounded, &bias)?]
                }
            };
            if dtype == DType::F64 {
                check("result", &got, &want)?;
            }
            // Of a function whose gradient does not depend on its value, which in f32 is of rounded activations.
            let factors = random(4, got.dims())?.to_dtype(dtype)?;
            let gradient = |y: &Tensor| -> TestResult<Tensor> {
                let gradients = (y * &factors)?.sum_all()?.backward()?;
                Ok(gradients.get(&x).ok_or("no gradient")?.clone())
            };
            check("gradient", &gradient(&got)?, &gradient(&want)?)?;
        }
    }
    Ok(())
}

/// Bit by bit, though the patches are rounded by the linear layer and the pixels, once each, by the convolution: the sums are the
/// same, in the same order.
#[test]
fn rounded_convolutions_are_products_of_their_patches() -> TestResult {
    for (stride, channels, outputs, height, width) in [(1, 32, 40, 9, 7), (2, 64, 16, 12, 9), (1, 192, 33, 30, 31)] {
        let geometry = ConvGeometry::square(3, stride, 1);
        let (x, w) = (random(1, &[2, height, width, channels])?, random(2, &[outputs, channels, 3, 3])?);
        let bias = random(3, &[outputs])?;
        let got = conv2d_packed(&x, &PackedWeight::with_products(&w, MatmulPrecision::Bf16)?, &bias, geometry)?;
        let padded = x.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?;
        let seen = |first: usize, side: usize| {
            Tensor::from_iter((0..(side - 1) / stride + 1).map(|i| (first + i * stride) as u32), &Device::Cpu)
        };
        let taps =
            (0..9).map(|tap| padded.index_select(&seen(tap / 3, height)?, 1)?.index_select(&seen(tap % 3, width)?, 2));
        let patches = Tensor::cat(&taps.collect::<candle_core::Result<Vec<_>>>()?, 3)?.flatten(1, 2)?;
        let matrix = w.permute((0, 2, 3, 1))?.contiguous()?.flatten_from(1)?;
        let want = linear_packed(&patches, &PackedWeight::with_products(&matrix, MatmulPrecision::Bf16)?, &bias)?;
        assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, want.flatten_all()?.to_vec1::<f32>()?, "{channels} {stride}");
    }
    Ok(())
}

/// A residual is added to the complete sums, so results and gradients are bit by bit those of a sum afterwards: by patches, by
/// Winograd's transform, pointwise, in several tasks and pieces of a sum, with full products and rounded ones.
#[test]
fn residuals_in_products_are_sums_afterwards() -> TestResult {
    let conv = |kernel, stride, channels, outputs| {
        let geometry = ConvGeometry::square(kernel, stride, kernel / 2);
        (vec![2, 19, 22, channels], vec![outputs, channels, kernel, kernel], Some(geometry))
    };
    let cases = [
        conv(3, 1, 32, 35),
        conv(3, 1, 5, 20),
        conv(3, 2, 64, 40),
        conv(1, 1, 32, 33),
        (vec![2, 210, 700], vec![35, 700], None),
        (vec![3, 96], vec![50, 96], None),
        (vec![1, 7, 5], vec![3, 5], None),
    ];
    for (x_shape, w_shape, geometry) in cases {
        let (x, w) = (Var::from_tensor(&random(1, &x_shape)?)?, random(2, &w_shape)?);
        let bias = random(3, &w_shape[..1])?;
        for (dtype, products) in [
            (DType::F32, MatmulPrecision::Full),
            (DType::F32, MatmulPrecision::Bf16),
            (DType::F64, MatmulPrecision::Full),
            (DType::F64, MatmulPrecision::Bf16),
        ] {
            let (x, bias) = (Var::from_tensor(&x.to_dtype(dtype)?)?, bias.to_dtype(dtype)?);
            let w = PackedWeight::with_products(&w.to_dtype(dtype)?, products)?;
            let product = || match geometry {
                Some(geometry) => conv2d_packed(&x, &w, &bias, geometry),
                None => linear_packed(&x, &w, &bias),
            };
            let residual = Var::from_tensor(&random(4, product()?.dims())?.to_dtype(dtype)?)?;
            let plus = match geometry {
                Some(geometry) => conv2d_packed_plus(&x, &w, &bias, &residual, geometry)?,
                None => linear_packed_plus(&x, &w, &bias, &residual)?,
            };
            let run = |y: Tensor| -> TestResult<[Vec<f64>; 3]> {
                let gradients = y.sqr()?.sum_all()?.backward()?;
                let of = |x: &Var| gradients.get(x).ok_or("no gradient");
                let values = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1();
                Ok([values(&y)?, values(of(&x)?)?, values(of(&residual)?)?])
            };
            assert!(run(plus)? == run(add(&product()?, &residual)?)?, "{w_shape:?} {dtype:?} {products:?}");
        }
    }
    Ok(())
}

/// Bit by bit, and so are the gradients: of more columns than a task computes at a time, of halves that end within a panel, and
/// of rows that end within a task's.
#[test]
fn gated_layers_are_their_parts() -> TestResult {
    for (x_shape, outputs) in [(vec![2, 210, 96], 1312), (vec![5, 64], 32), (vec![1, 9, 7], 96), (vec![1, 9, 32], 40)] {
        for dtype in [DType::F32, DType::F64] {
            let x = Var::from_tensor(&random(1, &x_shape)?.to_dtype(dtype)?)?;
            let bias = Var::from_tensor(&random(3, &[outputs])?.to_dtype(dtype)?)?;
            let w = random(2, &[outputs, x.dim(x.rank() - 1)?])?.to_dtype(dtype)?;
            for products in [MatmulPrecision::Full, MatmulPrecision::Bf16] {
                let w = PackedWeight::with_products(&w, products)?;
                // The values, and the gradients of the bias and of `x`, if it has any.
                let run = |y: Tensor| -> TestResult<Vec<Vec<f64>>> {
                    let gradients = y.sqr()?.sum_all()?.backward()?;
                    let tensors = [Some(&y), Some(gradients.get(&bias).ok_or("no gradient")?), gradients.get(&x)];
                    let values = |t: &Tensor| Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?);
                    tensors.into_iter().flatten().map(values).collect()
                };
                let parts = run(geglu(&linear_packed(&x, &w, &bias)?)?)?;
                let kept = run(linear_geglu_packed(&x, &w, &bias)?)?;
                let fused = run(linear_geglu_packed(&x.detach(), &w, &bias)?)?;
                assert!(parts.len() == 3 && kept == parts, "{x_shape:?} to {outputs}, {dtype:?}, {products:?}");
                assert!(fused == parts[..2], "{x_shape:?} to {outputs}, {dtype:?}, {products:?}");
            }
        }
    }
    let odd = PackedWeight::new(&random(1, &[33, 8])?)?;
    assert!(linear_geglu_packed(&random(2, &[3, 8])?, &odd, &random(3, &[33])?).is_err());
    Ok(())
}

/// A layer's function of its input and a weight in some form.
type Apply<'a, W> = &'a dyn Fn(&Tensor, &W) -> candle_core::Result<Tensor>;

#[test]
fn gradients_of_norms_are_their_definitions() -> TestResult {
    let activations = [Activation::None, Activation::Silu];
    for (pixels, channels, groups) in [(600, 24, 6), (49, 64, 8), (1, 32, 4), (784, 7, 1), (300, 5, 5)] {
        let arguments = [random(1, &[3, pixels, channels])?, random(2, &[channels])?, random(3, &[channels])?];
        for activation in activations {
            check_gradients(
                &format!("group norm {pixels} {channels} {groups} {activation:?}"),
                arguments.clone(),
                &|x, w, b| group_norm(x, w, b, groups, 1e-5, activation),
                &|x, w, b| group_norm_definition(x, w, b, groups, 1e-5, activation),
            )?;
            let [x, ..] = arguments.clone();
            check_gradients(
                &format!("adaptive group norm {pixels} {channels} {groups} {activation:?}"),
                [x, random(2, &[3, channels])?, random(3, &[3, channels])?],
                &|x, w, b| group_norm(x, w, b, groups, 1e-5, activation),
                &|x, w, b| group_norm_definition(x, w, b, groups, 1e-5, activation),
            )?;
        }
        let what = format!("layer norm {pixels} {channels}");
        check_gradients(&what, arguments, &|x, w, b| layer_norm(x, w, b, 1e-5), &|x, w, b| {
            layer_norm_definition(x, w, b, 1e-5)
        })?;
    }
    Ok(())
}

#[test]
fn gradients_of_attention_are_its_definitions() -> TestResult {
    for (n, m, width, heads, causal) in [
        (300, 77, 24, 4, false),
        (77, 77, 24, 2, true),
        (2, 5, 24, 1, false),
        (49, 49, 64, 8, false),
        (100, 1100, 40, 2, false),
        (1100, 1100, 6, 1, true),
    ] {
        let arguments = [random(1, &[2, n, width])?, random(2, &[2, m, width])?, random(3, &[2, m, width])?];
        check_gradients(
            &format!("attention {n} {m} {width} {heads} {causal}"),
            arguments,
            &|q, k, v| attention(q, k, v, heads, causal),
            &|q, k, v| attention_definition(q, k, v, heads, causal),
        )?;
    }
    Ok(())
}

#[test]
fn gradients_of_linear_layers_are_their_products() -> TestResult {
    for (rows, inputs, outputs) in [(17, 33, 9), (64, 1, 20), (1, 40, 1), (700, 12, 100), (200, 3, 16)] {
        let arguments = [random(1, &[2, rows, inputs])?, random(2, &[outputs, inputs])?, random(3, &[outputs])?];
        check_gradients(&format!("linear {rows} {inputs} {outputs}"), arguments, &linear, &|x, w, b| {
            x.broadcast_matmul(&w.t()?)?.broadcast_add(b)
        })?;
    }
    Ok(())
}

/// The derivative of candle's own GELU has constants of six digits.
#[test]
fn activations_and_their_gradients_are_candles() -> TestResult {
    let x = (random(1, &[3, 1001])? * 3.0)?;
    let definitions: [(&str, Three<'_>, Three<'_>); 3] = [
        ("silu", &|x, _, _| silu(x), &|x, _, _| x.silu()),
        ("gelu", &|x, _, _| gelu(x), &|x, _, _| x * (((x * 0.5f64.sqrt())?.erf()? + 1.0)? * 0.5)?),
        ("quick gelu", &|x, _, _| quick_gelu(x), &|x, _, _| (x * 1.702)?.silu()? / 1.702),
    ];
    for (what, kernel, definition) in definitions {
        check(what, &kernel(&x, &x, &x)?, &definition(&x, &x, &x)?)?;
        let arguments = [x.clone(), random(2, &[3, 1001])?, random(3, &[3, 1001])?];
        check_gradients(what, arguments, &|a, b, c| (kernel(a, b, c)? * b)? + c, &|a, b, c| {
            (definition(a, b, c)? * b)? + c
        })?;
    }
    Ok(())
}

#[test]
fn channels_are_put_beside_each_other_and_taken_apart() -> TestResult {
    let arguments = [random(1, &[2, 700, 5])?, random(2, &[2, 700, 3])?, random(3, &[2, 700, 8])?];
    check_gradients("concat", arguments, &|a, b, c| concat_channels(a, b)? * c, &|a, b, c| Tensor::cat(&[a, b], 2)? * c)
}

#[test]
fn resampling_takes_the_pixel_that_the_formula_says() -> TestResult {
    let x = random(1, &[2, 5, 3, 4])?;
    for (height, width) in [(10, 6), (7, 8), (5, 3), (2, 2)] {
        let y = resize_nearest(&x, height, width)?;
        for (i, j) in (0..height).flat_map(|i| (0..width).map(move |j| (i, j))) {
            let at = |t: &Tensor, i, j| t.narrow(1, i, 1)?.narrow(2, j, 1)?.flatten_all()?.to_vec1::<f32>();
            assert_eq!(at(&y, i, j)?, at(&x, i * 5 / height, j * 3 / width)?, "{height}x{width} at {i}, {j}");
        }
    }
    Ok(())
}

#[test]
fn attention_is_its_definition() -> TestResult {
    for (n, m, heads, causal) in [
        (300, 77, 4, false),
        (77, 77, 2, true),
        (1, 5, 1, false),
        (129, 129, 1, true),
        (40, 1300, 2, false),
        (700, 700, 3, true),
    ] {
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
    let geometry = ConvGeometry::square(3, 1, 1);
    let (w, b) = (random(1, &[16, 12, 3, 3])?, random(2, &[16])?);
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
    let odd = random(1, &[2, 3])?;
    assert!(geglu(&odd).is_err() && add(&odd, &random(1, &[3, 2])?).is_err());
    let x = Tensor::zeros((1, 4, 4, 3), DType::F32, &Device::Cpu)?;
    let (w, b) = (Tensor::zeros((5, 4, 3, 3), DType::F32, &Device::Cpu)?, Tensor::zeros(5, DType::F32, &Device::Cpu)?);
    let geometry = ConvGeometry::square(3, 1, 1);
    assert!(conv2d(&x, &w, &b, geometry).is_err());
    assert!(linear(&x, &w, &b).is_err());
    let (x, w) = (random(1, &[2, 3])?, PackedWeight::new(&random(2, &[5, 3])?)?);
    let b = b.to_dtype(DType::F32)?;
    assert!(linear_packed_plus(&x, &w, &b, &random(3, &[2, 5])?).is_ok());
    assert!(linear_packed_plus(&x, &w, &b, &random(3, &[5, 2])?).is_err());
    Ok(())
}

#[test]
fn sums_and_gated_units_and_their_gradients_are_their_definitions() -> TestResult {
    for shape in [[3, 7, 10], [1, 1, 2], [2, 400, 96]] {
        let halves = |x: &Tensor| -> candle_core::Result<Tensor> {
            let halves = x.chunk(2, 2)?;
            &halves[0] * halves[1].contiguous()?.gelu_erf()?
        };
        let (x, y) = (random(1, &shape)?, random(2, &shape)?);
        check("geglu", &geglu(&x)?, &halves(&x)?)?;
        let zero = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let kernel = |x: &Tensor, y: &Tensor, z: &Tensor| geglu(&add(x, y)?)?.broadcast_add(z);
        let definition = |x: &Tensor, y: &Tensor, z: &Tensor| halves(&(x + y)?)?.broadcast_add(z);
        check_gradients("geglu of a sum", [x, y, zero], &kernel, &definition)?;
    }
    Ok(())
}
