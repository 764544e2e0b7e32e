//! The program `tweedie`.

mod cli;

use clap::Parser;
use std::process::ExitCode;
use tweedie::kernels::{RecyclingAllocator, make_pool};

#[global_allocator]
static ALLOCATOR: RecyclingAllocator = RecyclingAllocator;

fn main() -> ExitCode {
    make_pool();
    let status = cli::run(cli::Arguments::parse()).unwrap_or_else(|error| {
        cli::show_error(&error);
        ExitCode::FAILURE
    });
    cli::status_if_stopped().unwrap_or(status)
}
