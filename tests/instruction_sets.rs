//! Every instruction set of the machine and any number of threads compute the same: each in a process of its own, since
//! both are chosen once.

use std::error::Error;
use std::process::Command;
use tweedie::Tensor;
use tweedie::kernels::{
    Activation, ConvGeometry, InstructionSet, MatmulPrecision, PackedWeight, attention, attention_with, conv2d_packed,
    conv2d_packed_plus, geglu, gelu, group_norm, layer_norm, linear_geglu_packed, linear_packed, linear_packed_plus,
    silu,
};
use tweedie::noise::{NoiseSource, TorchNoise};

type TestResult<T = ()> = Result<T, Box<dyn Error>>;

/// In the child's environment: where to write the results.
const RESULTS: &str = "TWEEDIE_TEST_KERNEL_RESULTS";

/// Of the largest value of each result: some sets round after a product and some do not.
const TOLERANCE: f32 = 1e-5;

fn random(seed: u64, shape: &[usize]) -> tweedie::Result<Tensor> {
    TorchNoise::shared(seed).normal(shape)
}

/// The same of attention with products in bf16: a probability that differs in its last bit may be rounded to another
/// neighbour, 2^-8 from the first, and a result is the mean over probabilities.
const ROUNDED_TOLERANCE: f32 = 1e-3;

/// The forward kernels on shapes that leave remainders of every tile, and on some that do not; and how far each may be off.
fn results() -> TestResult<Vec<(Tensor, f32)>> {
    let mut results = Vec::new();
    for (n, m, width, heads) in [(37, 77, 40, 1), (300, 300, 80, 2)] {
        let (q, k, v) = (random(1, &[2, n, width])?, random(2, &[2, m, width])?, random(3, &[2, m, width])?);
        results.push((attention_with(&q, &k, &v, heads, false, MatmulPrecision::Bf16)?, ROUNDED_TOLERANCE));
    }
    let exact =
        [MatmulPrecision::Full, MatmulPrecision::Bf16].map(results_with).into_iter().collect::<TestResult<Vec<_>>>()?;
    results.extend(exact.into_iter().flatten().map(|result| (result, TOLERANCE)));
    Ok(results)
}

fn results_with(products: MatmulPrecision) -> TestResult<Vec<Tensor>> {
    let mut results = Vec::new();
    // The third one's tiles are blocks of several sizes, of as many as a thread has alone.
    for (side, inputs, outputs, kernel, stride) in [
        (13, 48, 70, 3, 1),
        (16, 32, 32, 3, 1),
        (50, 16, 16, 3, 1),
        (9, 5, 33, 3, 2),
        (6, 20, 7, 5, 1),
        (20, 64, 64, 1, 1),
    ] {
        let pad = kernel / 2;
        let geometry = ConvGeometry::square(kernel, stride, pad);
        let weight = PackedWeight::with_products(&random(2, &[outputs, inputs, kernel, kernel])?, products)?;
        let (x, bias) = (random(1, &[2, side, side, inputs])?, random(3, &[2, outputs])?);
        let y = conv2d_packed(&x, &weight, &bias, geometry)?;
        results.push(conv2d_packed_plus(&x, &weight, &bias, &random(4, y.dims())?, geometry)?);
        results.push(y);
    }
    for (rows, inputs, outputs) in [(1, 7, 5), (13, 700, 40), (200, 64, 96), (23, 33, 1)] {
        let weight = PackedWeight::with_products(&random(2, &[outputs, inputs])?, products)?;
        let (x, bias) = (random(1, &[1, rows, inputs])?, random(3, &[outputs])?);
        results.push(linear_packed(&x, &weight, &bias)?);
        results.push(linear_packed_plus(&x, &weight, &bias, &random(4, &[1, rows, outputs])?)?);
    }
    for (rows, inputs, outputs) in [(13, 700, 32), (200, 64, 704)] {
        let weight = PackedWeight::with_products(&random(2, &[outputs, inputs])?, products)?;
        results.push(linear_geglu_packed(&random(1, &[1, rows, inputs])?, &weight, &random(3, &[outputs])?)?);
    }
    for (n, m, width, heads, causal) in [(37, 77, 40, 1, false), (300, 300, 64, 2, false), (77, 77, 48, 3, true)] {
        let (q, k, v) = (random(1, &[2, n, width])?, random(2, &[2, m, width])?, random(3, &[2, m, width])?);
        results.push(attention(&q, &k, &v, heads, causal)?);
    }
    let (x, weight, bias) = (random(1, &[2, 11, 13, 48])?, random(2, &[48])?, random(3, &[48])?);
    results.push(group_norm(&x, &weight, &bias, 8, 1e-5, Activation::Silu)?);
    results.push(layer_norm(&x, &weight, &bias, 1e-5)?);
    results.extend([silu(&x)?, gelu(&x)?, geglu(&x)?]);
    Ok(results)
}

/// Runs this very test again with the variables, and reads what it computed.
fn computed_with(variables: &[(&str, &str)]) -> TestResult<Vec<Vec<f32>>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("results");
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["--exact", "sets_and_threads_agree", "--test-threads", "1"]).env(RESULTS, &path);
    let output = child.envs(variables.iter().copied()).output()?;
    assert!(output.status.success(), "{variables:?}: {}", String::from_utf8_lossy(&output.stdout));
    let text = std::fs::read_to_string(path)?;
    // The first value is the tolerance.
    text.lines().map(|line| Ok(line.split(' ').map(str::parse).collect::<Result<_, _>>()?)).collect()
}

#[test]
fn sets_and_threads_agree() -> TestResult {
    if let Some(path) = std::env::var_os(RESULTS) {
        let line = |(tensor, tolerance): &(Tensor, f32)| -> TestResult<String> {
            let values = [vec![*tolerance], tensor.flatten_all()?.to_vec1::<f32>()?].concat();
            Ok(values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let lines = results()?.iter().map(line).collect::<TestResult<Vec<_>>>()?;
        return Ok(std::fs::write(path, lines.join("\n"))?);
    }
    let portable = computed_with(&[("TWEEDIE_ISA", "portable")])?;
    let best = InstructionSet::of_machine();
    for set in InstructionSet::ALL.into_iter().filter(|&set| set <= best) {
        let [one, two] = ["1", "2"].map(|threads| {
            computed_with(&[("TWEEDIE_ISA", set.name()), ("RAYON_NUM_THREADS", threads)]).map_err(|e| e.to_string())
        });
        let (one, two) = (one?, two?);
        assert!(one == two, "{set}: one thread and two differ");
        for (i, (got, want)) in one.iter().zip(&portable).enumerate() {
            let (tolerance, got, want) = (want[0], &got[1..], &want[1..]);
            let largest = want.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let error = got.iter().zip(want).fold(0f32, |error, (a, b)| error.max((a - b).abs()));
            assert!(
                got.len() == want.len() && error <= tolerance * largest,
                "{set}, result {i}: {error:e} of {largest}"
            );
        }
    }
    Ok(())
}

#[test]
fn an_unknown_set_is_an_error_that_lists_the_machines() -> TestResult {
    // Read in a child, since other tests of this process read the environment too.
    if std::env::var_os(RESULTS).is_some() {
        let message = InstructionSet::from_environment().map_err(|e| e.to_string());
        assert!(message.as_ref().is_err_and(|m| m.contains("mmx") && m.contains("portable")), "{message:?}");
        return Ok(());
    }
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["--exact", "an_unknown_set_is_an_error_that_lists_the_machines"]);
    let output = child.env(RESULTS, "unused").env("TWEEDIE_ISA", "mmx").output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
