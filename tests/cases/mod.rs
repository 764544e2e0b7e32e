//! The golden cases: numbers that diffusers computed, found by listing folders.
//!
//! Small cases are in `tests/golden`; if the variable `TWEEDIE_GOLDEN` names another folder of the same layout,
//! its cases run too.
#![allow(dead_code)] // every test binary uses a part

pub mod controls;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The folders that hold golden cases.
pub fn roots() -> Vec<PathBuf> {
    let mut roots = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")];
    roots.extend(std::env::var_os("TWEEDIE_GOLDEN").map(PathBuf::from));
    roots
}

/// A case: its folder, its description and the tensors of its stages.
pub struct Case {
    pub name: String,
    pub folder: PathBuf,
    pub root: PathBuf,
    pub json: Value,
    pub stages: HashMap<String, Tensor>,
}

/// All cases below `kind` ("cases", "schedulers") for which `wanted` holds.
pub fn cases(kind: &str, wanted: impl Fn(&Value) -> bool) -> TestResult<Vec<Case>> {
    let mut found = Vec::new();
    for root in roots() {
        let Ok(entries) = std::fs::read_dir(root.join(kind)) else { continue };
        let mut folders = entries.map(|entry| Ok(entry?.path())).collect::<TestResult<Vec<_>>>()?;
        folders.sort();
        for folder in folders {
            let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json"))?)?;
            if !wanted(&json) {
                continue;
            }
            let stages = candle_core::safetensors::load(folder.join("stages.safetensors"), &Device::Cpu)?;
            let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            found.push(Case { name, folder, root: root.clone(), json, stages });
        }
    }
    assert!(!found.is_empty(), "no golden case of kind {kind} was found");
    Ok(found)
}

impl Case {
    /// A tensor of the case.
    pub fn stage(&self, name: &str) -> TestResult<&Tensor> {
        self.stages.get(name).ok_or_else(|| format!("{}: no stage {name}", self.name).into())
    }

    /// A list of numbers of the case.
    pub fn numbers(&self, name: &str) -> TestResult<Vec<f64>> {
        Ok(self.stage(name)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
    }

    /// The folder of the case's model.
    pub fn model(&self) -> PathBuf {
        self.root.join("models").join(self.json["model"].as_str().unwrap_or_default())
    }

    /// The entries of a field that is absent, one object, or a list of them.
    pub fn one_or_more(&self, field: &str) -> impl Iterator<Item = &Value> {
        let value = self.json.get(field).filter(|value| !value.is_null());
        value.into_iter().flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice))
    }

    /// The scheduler's full configuration.
    pub fn scheduler_config(&self) -> Map<String, Value> {
        self.json["scheduler"]["config"].as_object().cloned().unwrap_or_default()
    }

    /// Whether the tensor differs by at most `tolerance` of the reference's largest value.
    pub fn check(&self, stage: &str, got: &Tensor, tolerance: f64) -> TestResult {
        let want = self.stage(stage)?;
        self.check_against(stage, got, want, tolerance)
    }

    pub fn check_against(&self, stage: &str, got: &Tensor, want: &Tensor, tolerance: f64) -> TestResult {
        if got.dims() != want.dims() {
            return Err(format!("{}: {stage} has shape {:?}, expected {:?}", self.name, got.dims(), want.dims()).into());
        }
        let (got, want) = (got.to_dtype(DType::F64)?, want.to_dtype(DType::F64)?);
        let largest = want.abs()?.max_all()?.to_scalar::<f64>()?.max(1e-12);
        let error = (got - want)?.abs()?.max_all()?.to_scalar::<f64>()? / largest;
        if std::env::var_os("TWEEDIE_GOLDEN_VERBOSE").is_some() {
            println!("{:40} {stage:34} {error:.1e}", self.name);
        }
        if error.is_nan() || error > tolerance {
            return Err(format!("{}: {stage} differs by {error:.2e}, tolerance {tolerance:.0e}", self.name).into());
        }
        Ok(())
    }
}

/// Runs every case and fails with all messages, not with the first.
pub fn run_all(cases: &[Case], run: impl Fn(&Case) -> TestResult) {
    let failures: Vec<String> = cases.iter().filter_map(|case| run(case).err()).map(|e| e.to_string()).collect();
    assert!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
    println!("{} cases", cases.len());
}
