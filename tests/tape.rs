//! The kernels' own walk back gives candle's gradients whatever the graph, and leaves nothing behind.

use candle_core::{DType, Device, Result, Tensor, Var};
use tweedie::kernels::{add, in_pool, linear, silu, with_gradients};
use tweedie::noise::{NoiseSource, TorchNoise};

/// Relative to the largest derivative: sums of a few values in f64, in another order.
const TOLERANCE: f64 = 1e-12;

fn variable(seed: u64, shape: &[usize]) -> Result<Var> {
    let values = TorchNoise::shared(seed).normal(shape).map_err(candle_core::Error::wrap)?;
    Var::from_tensor(&values.to_dtype(DType::F64)?)
}

fn values(gradient: Option<&Tensor>) -> Result<Option<Vec<f64>>> {
    gradient.map(|gradient| gradient.to_dtype(DType::F64)?.flatten_all()?.to_vec1()).transpose()
}

/// Holds the gradients on the tape against those of candle.
fn check(what: &str, variables: &[&Var], loss: impl Fn() -> Result<Tensor>) -> Result<()> {
    let candle = loss()?.backward()?;
    let (value, (), taped) = with_gradients(|| Ok::<_, candle_core::Error>((loss()?, ())))?;
    assert!(!value.track_op(), "{what}");
    for (i, &variable) in variables.iter().enumerate() {
        let (Some(want), Some(got)) = (values(candle.get(variable))?, values(taped.get(variable))?) else {
            panic!("{what}: variable {i} has no gradient");
        };
        let largest = want.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        let apart = want.iter().zip(&got).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest > 0.0 && apart <= TOLERANCE * largest, "{what}: variable {i} is {apart:e} from candle's");
    }
    Ok(())
}

/// A loss that candle's own operations make.
fn sum(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.sum_all()
}

#[test]
fn graphs_of_kernels_and_candles_operations() -> Result<()> {
    let (x, w) = (&variable(1, &[4, 6])?, &variable(2, &[6, 6])?);
    let zeros = Tensor::zeros(6, DType::F64, &Device::Cpu)?;
    let layer = |x: &Tensor| linear(x, w, &zeros);
    check("one argument twice", &[x], || sum(&add(x, x)?))?;
    check("a loss that is a kernel's result", &[x], || silu(x))?;
    check("no kernel", &[x], || sum(x))?;
    check("arguments that are not contiguous", &[x], || sum(&add(&silu(&x.t()?)?, &x.t()?)?))?;
    check("a variable of both", &[x, w], || sum(&(layer(x)? * x.sin()?)?.matmul(w)?))?;
    check("a result that nobody uses", &[x], || {
        let between = x.sin()?;
        let used = silu(&between)?;
        silu(&add(&between, &used)?)?;
        sum(&used)
    })?;
    check("what candle made, read by all", &[x, w], || {
        let between = (layer(x)? * x.as_tensor())?;
        let product = (&between * between.cos()?)?;
        sum(&(add(&silu(&between)?, &layer(&product)?)? + &between)?)
    })
}

#[test]
fn kernels_on_other_threads_are_candles() -> Result<()> {
    let x = &variable(1, &[3, 5])?;
    check("a thread of the pool", &[x], || sum(&silu(&in_pool(|| silu(x))?)?))
}

/// The tape's sums of gradients are the kernel's, which has no half precision.
#[test]
fn variables_in_half_precision_are_read_by_several_kernels() -> Result<()> {
    let x = &Var::from_tensor(&variable(1, &[3, 5])?.to_dtype(DType::BF16)?)?;
    let wide = || x.to_dtype(DType::F32);
    check("a variable of bf16", &[x], || sum(&add(&silu(&wide()?)?, &wide()?)?))
}

#[test]
fn gradients_within_gradients_are_apart() -> Result<()> {
    let x = &variable(1, &[3, 5])?;
    check("a tape in a tape", &[x], || {
        let y = silu(x)?;
        let z = Var::from_tensor(&y.detach())?;
        let (_, (), inner) = with_gradients(|| Ok::<_, candle_core::Error>((sum(&add(&silu(&z)?, &y)?)?, ())))?;
        let slope = inner.get(&z).ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?.detach();
        sum(&add(&y, &(slope * &y)?)?)
    })
}

#[test]
fn errors_and_panics_leave_no_tape() -> Result<()> {
    let x = &variable(1, &[3, 5])?;
    let other = Tensor::zeros((2, 2), DType::F64, &Device::Cpu)?;
    assert!(with_gradients(|| Ok::<_, candle_core::Error>((add(x, &other)?, ()))).is_err());
    let panics = || with_gradients(|| -> Result<(Tensor, ())> { panic!("on purpose, on {:?}", silu(x)?.shape()) });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    assert!(silu(x)?.backward()?.get(x).is_some(), "candle walks back where there is no tape");
    Ok(())
}
