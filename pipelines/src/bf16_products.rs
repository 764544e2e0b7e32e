//! Whether products of bf16 pay on this machine, where its instructions do not tell: measured once, and remembered.
//!
//! A picture of a large model depends on the answer, so it must be the same in every run: it is kept in the user's folder of
//! caches, and measured on one thread, since the number of threads must change no picture. Where nothing can be written it is
//! measured every time, in a fifth of a second.

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tweedie::kernels::{InstructionSet, bf16_speedup, processor};

/// How many times as fast as those of f32 they have to be: what is measured varies by a tenth, and what is rounded costs exactness.
const MARGIN: f64 = 1.2;

/// Whether a large model is to be multiplied in bf16 on a CPU that has instructions for it. Asked for the first time, it may
/// measure.
pub(crate) fn pay() -> bool {
    static PAY: OnceLock<bool> = OnceLock::new();
    *PAY.get_or_init(|| {
        let machine = format!("{}, {}", processor(), InstructionSet::in_use());
        remembered(cache_file().as_deref(), &machine, bf16_speedup) >= MARGIN
    })
}

/// In the folder that the XDG base directory specification names.
fn cache_file() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = named.or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
    Some(caches.join("tweedie/bf16-speedup.json"))
}

/// What the file says of a machine; else what is measured, which is written there if that is possible. A file that is damaged or of
/// another version says nothing.
fn remembered(file: Option<&Path>, machine: &str, measure: impl FnOnce() -> f64) -> f64 {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let machines = |file: &Path| -> Option<Map<String, Value>> {
        let content: Map<String, Value> = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        content.get(VERSION)?.as_object().cloned()
    };
    // Several machines may share a home.
    let mut machines = file.and_then(machines).unwrap_or_default();
    if let Some(speedup) = machines.get(machine).and_then(Value::as_f64) {
        return speedup;
    }
    let speedup = measure();
    machines.insert(machine.into(), speedup.into());
    if let Some(file) = file {
        // Without the file the next run measures again.
        let _ = write(file, &Map::from_iter([(VERSION.into(), machines.into())]));
    }
    speedup
}

/// In one step, so that nobody reads half of it.
fn write(file: &Path, content: &Map<String, Value>) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = file.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&new, Value::Object(content.clone()).to_string())?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

    fn never() -> f64 {
        unreachable!("it is remembered")
    }

    #[test]
    fn each_machine_is_measured_once() -> TestResult {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("caches/tweedie/speedup.json");
        assert_eq!(remembered(Some(&file), "one", || 0.9), 0.9);
        assert_eq!(remembered(Some(&file), "other", || 1.5), 1.5);
        assert_eq!(remembered(Some(&file), "one", never), 0.9);
        assert_eq!(remembered(Some(&file), "other", never), 1.5);
        assert_eq!(std::fs::read_dir(file.parent().ok_or("no folder")?)?.count(), 1);
        Ok(())
    }

    #[test]
    fn damaged_files_and_those_of_other_versions_say_nothing() -> TestResult {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("speedup.json");
        for content in ["", "{", "[1]", r#"{"0.0.0": {"one": 9}}"#, r#"{"one": 9}"#] {
            std::fs::write(&file, content)?;
            assert_eq!(remembered(Some(&file), "one", || 0.5), 0.5, "{content}");
            assert_eq!(remembered(Some(&file), "one", never), 0.5, "{content}");
        }
        Ok(())
    }

    /// A file stands where the folder would be, which stops everybody.
    #[test]
    fn where_nothing_can_be_written_it_is_measured_every_time() -> TestResult {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        std::fs::write(&file, "")?;
        for speedup in [0.5, 1.5] {
            assert_eq!(remembered(Some(&file.join("speedup.json")), "one", || speedup), speedup);
            assert_eq!(remembered(None, "one", || speedup), speedup);
        }
        Ok(())
    }
}
