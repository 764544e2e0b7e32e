//! Ctrl-C.

use super::print;
use anyhow::Context;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the user asked to stop. The first Ctrl-C asks; a second one ends the program at once.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub fn listen() -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = asked.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(1);
            }
            // Below the terminal's own ^C.
            print::remark("");
            print::remark("stopping after this step; press Ctrl-C again to stop at once");
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Self(asked))
    }

    /// Whether to go on. From here on nobody asks again, so the next Ctrl-C ends the program at once.
    pub fn end(self) -> ControlFlow<()> {
        if self.0.swap(true, Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Whether to go on.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.0.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
