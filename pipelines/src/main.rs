//! The program `tweedie`.

mod cli;

use clap::Parser;
use std::process::ExitCode;
use tweedie::kernels::{RecyclingAllocator, make_pool};

#[global_allocator]
static ALLOCATOR: RecyclingAllocator = RecyclingAllocator;

fn main() -> ExitCode {
    make_pool();
    match cli::run(cli::Arguments::parse()) {
        Ok(status) => status,
        Err(error) => {
            cli::show_error(&message(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that are quoted already.
fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}
