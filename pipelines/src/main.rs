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
            cli::show_error(&error);
            ExitCode::FAILURE
        }
    }
}
