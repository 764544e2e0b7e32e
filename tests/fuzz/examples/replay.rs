//! Runs targets on files, without a fuzzer, or writes the inputs that fuzzing starts from.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use tweedie_fuzz::{TARGETS, run, write_seeds};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((command, [folder])) if command == "seeds" => write_seeds(Path::new(folder)),
        Some((target, files)) if !files.is_empty() && TARGETS.iter().any(|(name, _)| name == target) => {
            replay(target, files)
        }
        _ => {
            let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            Err(format!("give TARGET FILE..., or seeds FOLDER; targets are {}", targets.join(", ")).into())
        }
    };
    if let Err(error) = &done {
        eprintln!("error: {error}");
    }
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a target on files, and on all in folders; the slowest is told.
fn replay(target: &str, given: &[String]) -> Outcome {
    let mut files: Vec<PathBuf> = Vec::new();
    for path in given.iter().map(PathBuf::from) {
        match path.is_dir() {
            true => files.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path())),
            false => files.push(path),
        }
    }
    let mut slowest = (0.0, PathBuf::new());
    for file in files.iter().filter(|file| file.is_file()) {
        let bytes = std::fs::read(file)?;
        let start = Instant::now();
        if let Err(panic) = std::panic::catch_unwind(|| run(target, &bytes)) {
            eprintln!("{} failed", file.display());
            std::panic::resume_unwind(panic);
        }
        let seconds = start.elapsed().as_secs_f64();
        if seconds >= slowest.0 {
            slowest = (seconds, file.clone());
        }
    }
    println!("{target}: {} files; the slowest took {:.3} s: {}", files.len(), slowest.0, slowest.1.display());
    Ok(())
}
