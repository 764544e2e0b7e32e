//! Starts the program and looks at what it did.
#![allow(dead_code)] // every test binary uses a part

pub mod digits;
pub mod frozen;
pub mod kills;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

pub type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A run of the program in a folder of its own.
pub struct Tweedie {
    pub folder: tempfile::TempDir,
}

/// Starts the program, and kills it as soon as a file is there, if it has not ended before.
pub fn kill_when_there(command: &mut Command, file: &Path) -> TestResult {
    let mut child = command.spawn()?;
    while !file.is_file() && child.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// What a run printed and how it ended.
pub struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Tweedie {
    pub fn new() -> TestResult<Self> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn run(&self, arguments: &[&str]) -> TestResult<Outcome> {
        self.run_with(arguments, &[])
    }

    pub fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> TestResult<Outcome> {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_tweedie"))
            .args(arguments)
            // Options that whoever runs the tests has chosen for himself.
            .env("XDG_CONFIG_HOME", self.folder.path())
            .envs(environment.iter().copied())
            .current_dir(self.folder.path())
            .output()?;
        Ok(Outcome {
            status: status.code().unwrap_or(-1),
            stdout: String::from_utf8(stdout)?,
            stderr: String::from_utf8(stderr)?,
        })
    }

    /// Starts it, and what it says can be read when it has ended.
    pub fn spawn(&self, arguments: &[&str]) -> TestResult<Child> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
        command.args(arguments).current_dir(self.folder.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// The program after a line of bash in the same process, such as `ulimit -f 16`.
    pub fn after(&self, line: &str, arguments: &[&str]) -> Command {
        let script = format!("{line}; exec '{}' \"$@\"", env!("CARGO_BIN_EXE_tweedie"));
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]).args(arguments).current_dir(self.folder.path());
        command
    }

    /// The same with files of so many KiB at most, which stands for a full disk: writing more fails.
    pub fn with_small_files(&self, kib: u32, arguments: &[&str]) -> Command {
        self.after(&format!("trap '' XFSZ; ulimit -f {kib}"), arguments)
    }

    /// The names of the files in the folder.
    pub fn files(&self) -> TestResult<Vec<String>> {
        let entries = std::fs::read_dir(self.folder.path())?;
        let mut names =
            entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect::<TestResult<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}

impl Outcome {
    /// Fails unless the program succeeded.
    pub fn success(self) -> TestResult<Self> {
        if self.status == 0 { Ok(self) } else { Err(format!("status {}: {}", self.status, self.stderr).into()) }
    }

    /// What the program warned of, of a run that was not asked to be quiet.
    pub fn warnings(&self) -> Vec<String> {
        self.stderr.lines().filter_map(|line| line.strip_prefix("warning: ")).map(str::to_owned).collect()
    }

    pub fn json(&self) -> TestResult<Value> {
        Ok(serde_json::from_str(&self.stdout)?)
    }

    /// Fails unless it ended with this status and one message that has all these parts.
    pub fn fails(self, status: i32, parts: &[&str]) -> TestResult {
        assert_eq!(self.status, status, "{}", self.stderr);
        assert_eq!(self.stdout, "", "nothing belongs on stdout");
        assert_eq!(self.stderr.matches("error:").count(), 1, "one message: {}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        Ok(())
    }
}

/// The RGB bytes of a picture.
pub fn pixels(path: &Path) -> TestResult<(u32, u32, Vec<u8>)> {
    let picture = image::open(path).map_err(|e| format!("{}: {e}", path.display()))?.to_rgb8();
    Ok((picture.width(), picture.height(), picture.into_raw()))
}

/// Fails if two pictures differ by more than 2 levels of 255, or 0.1 in the mean.
pub fn check_same_picture(got: &Path, want: &Path) -> TestResult {
    let ((width, height, got), (w, h, expected)) = (pixels(got)?, pixels(want)?);
    if (width, height) != (w, h) {
        return Err(format!("{}: {width}x{height}, expected {w}x{h}", want.display()).into());
    }
    let differences = got.iter().zip(&expected).map(|(a, b)| u64::from(a.abs_diff(*b)));
    let (max, sum) = differences.fold((0, 0), |(max, sum), d| (d.max(max), sum + d));
    let mean = sum as f64 / got.len() as f64;
    if max > 2 || mean > 0.1 {
        return Err(format!("{}: differs by up to {max}, {mean:.3} in the mean", want.display()).into());
    }
    Ok(())
}

/// The folder of small golden cases.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// A copy of a model that a test can change.
pub fn copy_folder(from: &Path, to: &Path) -> TestResult {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::write(target, std::fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

pub fn read_json(path: &Path) -> TestResult<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}
