//! Being asked to stop: by Ctrl-C, and on Unix by SIGTERM and SIGHUP too.

use super::print;
use anyhow::Context;
use std::ops::ControlFlow;
use std::process::ExitCode;
#[cfg(feature = "server")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicI32, Ordering};

/// The number of the signal that asked; [`NOBODY`] or [`NOT_ANY_MORE`].
static ASKED: AtomicI32 = AtomicI32::new(NOBODY);
const NOBODY: i32 = 0;
/// The program is beyond what can be stopped in order.
const NOT_ANY_MORE: i32 = -1;

/// Whether to stop when asked is what the program is to do, as for a server.
#[cfg(feature = "server")]
static IS_SERVICE: AtomicBool = AtomicBool::new(false);

/// Ctrl-C.
const SIGINT: i32 = 2;

/// Whether the user asked to stop. The first signal asks; a second one ends the program at once.
#[derive(Debug, Clone)]
pub struct Interrupt(());

impl Interrupt {
    /// Listens from now on.
    pub fn listen() -> anyhow::Result<Self> {
        listen(asked).context("cannot listen for Ctrl-C")?;
        Ok(Self(()))
    }

    /// Listens from now on, and to have been asked to stop is success.
    #[cfg(feature = "server")]
    pub fn listen_as_service() -> anyhow::Result<Self> {
        IS_SERVICE.store(true, Ordering::SeqCst);
        Self::listen()
    }

    /// Whether to go on. From here on nobody asks again, so the next Ctrl-C ends the program at once.
    pub fn end(self) -> ControlFlow<()> {
        match ASKED.compare_exchange(NOBODY, NOT_ANY_MORE, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// Whether to go on.
    pub fn flow(&self) -> ControlFlow<()> {
        if ASKED.load(Ordering::SeqCst) > NOBODY { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// The status of a program that was asked to stop, as shells give it: 128 and the signal's number. Nothing if nobody asked.
pub fn status() -> Option<ExitCode> {
    #[cfg(feature = "server")]
    if IS_SERVICE.load(Ordering::SeqCst) {
        return None;
    }
    let signal = ASKED.load(Ordering::SeqCst);
    (signal > NOBODY).then(|| ExitCode::from(status_of(signal)))
}

fn status_of(signal: i32) -> u8 {
    128u8.saturating_add(u8::try_from(signal).unwrap_or_default())
}

/// What a signal does.
fn asked(signal: i32) {
    if ASKED.swap(signal, Ordering::SeqCst) != NOBODY {
        std::process::exit(status_of(signal).into());
    }
    let again = if signal == SIGINT { "; press Ctrl-C again to stop at once" } else { "" };
    // Below the terminal's own ^C.
    print::remark("");
    print::remark(&format!("stopping after this step{again}"));
}

#[cfg(unix)]
fn listen(asked: fn(i32)) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    if !ignores_hangup() {
        signals.add_signal(SIGHUP)?;
    }
    let listen = move || signals.forever().for_each(asked);
    std::thread::Builder::new().name("signals".into()).spawn(listen).map(|_| ())
}

/// Whether whoever started the program told it to outlive its terminal, as `nohup` does; to listen would undo that. Where the
/// system does not say, that output goes elsewhere tells.
#[cfg(unix)]
fn ignores_hangup() -> bool {
    use std::io::IsTerminal;
    let masks = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = masks.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    match ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
        Some(mask) => mask & 1 << (signal_hook::consts::SIGHUP - 1) != 0,
        None => !std::io::stdout().is_terminal() && !std::io::stderr().is_terminal(),
    }
}

#[cfg(not(unix))]
fn listen(asked: fn(i32)) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || asked(SIGINT))
}
