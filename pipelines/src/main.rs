//! The program `tweedie`.

mod cli;

use clap::Parser;
use std::process::ExitCode;
use tweedie::kernels::{RecyclingAllocator, make_pool};

#[global_allocator]
static ALLOCATOR: RecyclingAllocator = RecyclingAllocator;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    make_pool(arguments.threads());
    let status = cli::run(arguments).unwrap_or_else(|error| {
        cli::show_error(&error);
        ExitCode::FAILURE
    });
    cli::status_if_stopped().unwrap_or(status)
}
