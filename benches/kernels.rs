//! The kernels beside candle's own operations and the crate `gemm`, on the layers of Stable Diffusion 1.5 at 512x512:
//! `cargo bench --bench kernels`. The column of items counts floating-point operations.

#![allow(clippy::unwrap_used, missing_docs)]

use candle_core::{Device, Tensor};
use divan::Bencher;
use divan::counter::ItemsCount;
use tweedie::kernels::{self, Activation, ConvGeometry, PackedWeight, RecyclingAllocator};

#[global_allocator]
static ALLOCATOR: RecyclingAllocator = RecyclingAllocator;

fn main() {
    divan::main();
}

fn values(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7 + seed) as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Side, input and output channels of a convolution of two images.
type Conv = (usize, usize, usize);

const CONVOLUTIONS: [Conv; 5] = [(64, 320, 320), (64, 960, 320), (32, 640, 640), (16, 1280, 1280), (8, 1280, 1280)];

const SAME: ConvGeometry = ConvGeometry::square(3, 1, 1);

/// Tokens, inputs and outputs of a linear layer.
type Linear = (usize, usize, usize);

const LINEARS: [Linear; 5] =
    [(8192, 320, 320), (8192, 320, 2560), (8192, 1280, 320), (2048, 640, 5120), (512, 1280, 10240)];

/// Queries, keys and the size of each of eight heads, in two images.
type Heads = (usize, usize, usize);

const ATTENTIONS: [Heads; 4] = [(4096, 4096, 40), (4096, 77, 40), (1024, 1024, 80), (256, 256, 160)];

fn conv_operations((side, inputs, outputs): Conv) -> ItemsCount {
    ItemsCount::new(2 * 2 * side * side * 9 * inputs * outputs)
}

#[divan::bench(args = CONVOLUTIONS, sample_count = 5)]
fn conv3x3(bencher: Bencher<'_, '_>, size: Conv) {
    let (side, inputs, outputs) = size;
    let x = values(&[2, side, side, inputs], 1);
    let weight = PackedWeight::new(&values(&[outputs, inputs, 3, 3], 2)).unwrap();
    let bias = values(&[outputs], 3);
    bencher.counter(conv_operations(size)).bench(|| kernels::conv2d_packed(&x, &weight, &bias, SAME).unwrap());
}

#[divan::bench(args = CONVOLUTIONS, sample_count = 2)]
fn conv3x3_candle(bencher: Bencher<'_, '_>, size: Conv) {
    let (side, inputs, outputs) = size;
    let (x, weight) = (values(&[2, inputs, side, side], 1), values(&[outputs, inputs, 3, 3], 2));
    bencher.counter(conv_operations(size)).bench(|| x.conv2d(&weight, 1, 1, 1, 1).unwrap());
}

fn linear_operations((tokens, inputs, outputs): Linear) -> ItemsCount {
    ItemsCount::new(2 * tokens * inputs * outputs)
}

#[divan::bench(args = LINEARS, sample_count = 5)]
fn linear(bencher: Bencher<'_, '_>, size: Linear) {
    let (tokens, inputs, outputs) = size;
    let weight = PackedWeight::new(&values(&[outputs, inputs], 2)).unwrap();
    let (x, bias) = (values(&[1, tokens, inputs], 1), values(&[outputs], 3));
    bencher.counter(linear_operations(size)).bench(|| kernels::linear_packed(&x, &weight, &bias).unwrap());
}

/// candle's own product, which is that of the crate `gemm` on all cores.
#[divan::bench(args = LINEARS, sample_count = 5)]
fn linear_gemm(bencher: Bencher<'_, '_>, size: Linear) {
    let (tokens, inputs, outputs) = size;
    let (x, weight) = (values(&[tokens, inputs], 1), values(&[outputs, inputs], 2).t().unwrap());
    bencher.counter(linear_operations(size)).bench(|| x.matmul(&weight).unwrap());
}

fn attention_arguments((queries, keys, size): Heads) -> [Tensor; 3] {
    let width = 8 * size;
    [values(&[2, queries, width], 1), values(&[2, keys, width], 2), values(&[2, keys, width], 3)]
}

fn attention_operations((queries, keys, size): Heads) -> ItemsCount {
    ItemsCount::new(2 * 8 * 4 * queries * keys * size)
}

#[divan::bench(args = ATTENTIONS, sample_count = 3)]
fn attention(bencher: Bencher<'_, '_>, size: Heads) {
    let [q, k, v] = attention_arguments(size);
    bencher.counter(attention_operations(size)).bench(|| kernels::attention(&q, &k, &v, 8, false).unwrap());
}

#[divan::bench(args = ATTENTIONS, sample_count = 2)]
fn attention_candle(bencher: Bencher<'_, '_>, size: Heads) {
    let [q, k, v] = attention_arguments(size);
    bencher.counter(attention_operations(size)).bench(|| kernels::attention_definition(&q, &k, &v, 8, false).unwrap());
}

#[divan::bench(sample_count = 10)]
fn group_norm_silu(bencher: Bencher<'_, '_>) {
    let (x, weight, bias) = (values(&[2, 64, 64, 320], 1), values(&[320], 2), values(&[320], 3));
    bencher.bench(|| kernels::group_norm(&x, &weight, &bias, 32, 1e-5, Activation::Silu).unwrap());
}

#[divan::bench(sample_count = 3)]
fn group_norm_silu_candle(bencher: Bencher<'_, '_>) {
    let (x, weight, bias) = (values(&[2, 64, 64, 320], 1), values(&[320], 2), values(&[320], 3));
    bencher.bench(|| kernels::group_norm_definition(&x, &weight, &bias, 32, 1e-5, Activation::Silu).unwrap());
}

#[divan::bench(sample_count = 10)]
fn layer_norm(bencher: Bencher<'_, '_>) {
    let (x, weight, bias) = (values(&[2, 4096, 320], 1), values(&[320], 2), values(&[320], 3));
    bencher.bench(|| kernels::layer_norm(&x, &weight, &bias, 1e-5).unwrap());
}

#[divan::bench(sample_count = 10)]
fn gelu(bencher: Bencher<'_, '_>) {
    let x = values(&[2, 4096, 1280], 1);
    bencher.bench(|| kernels::gelu(&x).unwrap());
}

#[divan::bench(sample_count = 3)]
fn gelu_candle(bencher: Bencher<'_, '_>) {
    let x = values(&[2, 4096, 1280], 1);
    bencher.bench(|| x.gelu_erf().unwrap());
}
