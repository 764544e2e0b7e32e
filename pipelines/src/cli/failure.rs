//! How a run ends that does not succeed: what is said, and with which status.

use super::{flags, interrupt, print};
use std::fmt;
use std::process::ExitCode;
use tweedie_pipelines::{Error, ErrorKind, WrongOption};

/// The status of a run that was asked for what cannot be done, as of one whose options are not understood.
const WRONG_USAGE: u8 = 2;

/// Options that cannot be meant so, which nobody but the command line knows of.
#[derive(Debug)]
pub struct WrongUsage(pub String);

/// A run that ended before its time because it was asked to; what there is of it.
#[derive(Debug)]
pub struct Stopped(pub String);

impl fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}
impl std::error::Error for Stopped {}

/// What work came to, or that it was stopped and what there is of it.
pub fn unless_stopped<T>(result: Result<T, Error>, what_there_is: &str) -> anyhow::Result<T> {
    match result {
        Err(Error::Cancelled) => Err(Stopped(format!("stopped; {what_there_is}")).into()),
        result => Ok(result?),
    }
}

/// Returns a [`WrongUsage`] with a formatted message.
macro_rules! wrong_usage {
    ($($message:tt)*) => {
        return Err($crate::cli::failure::WrongUsage(format!($($message)*)).into())
    };
}
pub(super) use wrong_usage;

/// Shows why a run failed: the error and its causes, without those that are quoted already. The status is that of the signal
/// that stopped it, 2 for wrong usage, else 1.
pub fn show(error: &anyhow::Error) -> ExitCode {
    let message = error.chain().map(flags::in_error).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    });
    // To be stopped is no error.
    let stopped =
        error.chain().any(|cause| cause.is::<Stopped>() || matches!(cause.downcast_ref(), Some(Error::Cancelled)));
    print::remark(&if stopped { message } else { format!("error: {message}") });
    let status = if error.chain().any(is_wrong_usage) { ExitCode::from(WRONG_USAGE) } else { ExitCode::FAILURE };
    interrupt::status().unwrap_or(status)
}

/// Whether somebody should have asked for something else, as could be told before anything ran.
fn is_wrong_usage(cause: &(dyn std::error::Error + 'static)) -> bool {
    let of_library = match cause.downcast_ref::<Error>() {
        Some(error @ (Error::Invalid { .. } | Error::Config { .. })) => error.kind() == ErrorKind::Request,
        _ => false,
    };
    of_library || cause.is::<WrongUsage>() || cause.is::<WrongOption>()
}
