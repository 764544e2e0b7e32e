//! FID, KID, inception score, precision and recall against the programs that people cite.

mod cases;

use cases::{TestResult, roots};
use serde_json::Value;
use tweedie::files::Existing;
use tweedie::metrics::{
    Bootstrap, FeatureStatistics, Features, FrechetReference, KernelDistanceOptions, feature_statistics,
    inception_score, kernel_distance, manifold_figures,
};
use tweedie::noise::TorchGenerator;

/// Relative.
const TOLERANCE: f64 = 1e-6;

fn check(name: &str, got: f64, want: &Value) -> TestResult {
    let want = want.as_f64().ok_or_else(|| format!("no {name}"))?;
    assert!((got - want).abs() <= TOLERANCE * want.abs(), "{name}: {got}, expected {want}");
    Ok(())
}

/// The features that the script made: sums of four values of `torch.rand`, in the same order.
fn features(of: &Value) -> TestResult<Features> {
    let whole = |name: &str| of[name].as_u64();
    let float = |name: &str| of[name].as_f64().map(|value| value as f32);
    let (seed, count) = whole("seed").zip(whole("count")).ok_or("no features")?;
    let (width, count) = (whole("width").unwrap_or(16) as usize, count as usize);
    let (scale, shift) = (float("scale").unwrap_or(1.0), float("shift").unwrap_or(0.0));
    let uniform = TorchGenerator::new(seed).uniform(4 * count * width);
    let of_place = |at: usize| (0..4).map(|i| uniform[i * count * width + at]).sum::<f32>() - 2.0;
    let plain: Vec<f32> = (0..count * width).map(|at| of_place(at) * scale + shift).collect();
    let before = |at: usize| if at.is_multiple_of(width) { 0.0 } else { 0.5 * plain[at - 1] };
    Ok(Features::from_values(width, (0..plain.len()).map(|at| plain[at] + before(at)).collect())?)
}

fn described() -> TestResult<Vec<Value>> {
    let files = roots().into_iter().map(|root| root.join("metrics/figures.json")).filter(|file| file.is_file());
    files.map(|file| Ok(serde_json::from_str(&std::fs::read_to_string(file)?)?)).collect()
}

#[test]
fn golden_distances_and_manifolds() -> TestResult {
    let mut checked = 0;
    for case in described()?.iter().flat_map(|file| file["cases"].as_array().into_iter().flatten()) {
        let (samples, reference) = (features(&case["samples"])?, features(&case["reference"])?);
        let prepared = FrechetReference::new(&feature_statistics(&reference)?);
        let fid = prepared.distance(&feature_statistics(&samples)?)?.distance;
        check("fid", fid, &case["fid"])?;
        check("fid_of_torch_fidelity", fid, &case["fid_of_torch_fidelity"])?;

        let size = case["kid_of_first"].as_u64().ok_or("no size")? as usize;
        let first: Vec<usize> = (0..size).collect();
        let options = KernelDistanceOptions { subsets: 1, subset_size: size, seed: 0 };
        let (a, b) = (samples.selected(&first), reference.selected(&first));
        check("kid", kernel_distance(&a, &b, &options, &Bootstrap::NONE)?.distance.value, &case["kid"])?;

        let nearest = case["nearest"].as_u64().ok_or("no neighbour")? as usize;
        let got = manifold_figures(&samples, &reference, nearest, &Bootstrap::NONE)?;
        for (name, figure) in
            [("precision", got.precision), ("recall", got.recall), ("density", got.density), ("coverage", got.coverage)]
        {
            check(name, figure.value, &case[name])?;
        }
        checked += 1;
    }
    assert!(checked >= 2);
    Ok(())
}

#[test]
fn golden_inception_scores() -> TestResult {
    let mut checked = 0;
    for file in described()? {
        let logits = features(&file["logits"])?;
        for case in file["scores"].as_array().into_iter().flatten() {
            let splits = case["splits"].as_u64().ok_or("no splits")? as usize;
            let got = inception_score(&logits, splits, None, &Bootstrap::NONE)?;
            check("is", got.score.value, &case["is"])?;
            check("is_std", got.deviation, &case["is_std"])?;
            checked += 1;
        }
    }
    assert!(checked >= 2);
    Ok(())
}

/// Files that NumPy wrote, and one of this library with the same contents.
#[test]
fn golden_statistics_files() -> TestResult {
    let mut checked = 0;
    for (root, described) in roots().into_iter().zip(described()?) {
        let want = feature_statistics(&features(&described["cases"][0]["samples"])?)?;
        let folder = tempfile::tempdir()?;
        let mine = folder.path().join("mine.npz");
        assert!(want.write(&mine, Existing::Stays)?);
        let of_numpy = ["plain", "compressed"].map(|name| root.join(format!("metrics/statistics-{name}.npz")));
        for (path, count) in of_numpy.iter().map(|path| (path, None)).chain([(&mine, want.count())]) {
            let got = FeatureStatistics::read(path)?;
            assert_eq!((got.width(), got.count()), (16, count));
            let pairs = got.mean().iter().zip(want.mean()).chain(got.covariance().iter().zip(want.covariance()));
            pairs.for_each(|(got, want)| assert!((got - want).abs() < 1e-13, "{got} {want}"));
            checked += 1;
        }
    }
    assert!(checked >= 3);
    Ok(())
}
