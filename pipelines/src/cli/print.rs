//! Text for the user: results on stdout, everything else on stderr.

use anyhow::Context;
use std::io::{ErrorKind, Write};

/// A result. That nobody reads it any more is no failure.
pub fn result(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// A warning of the library's.
pub fn warning(text: &str) {
    remark(&format!("warning: {}", super::flags::in_text(text)));
}

/// A remark. If it cannot be shown, the work goes on.
pub fn remark(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
