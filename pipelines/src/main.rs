//! The program `tweedie`.

mod cli;

use std::process::ExitCode;
use tweedie::kernels::{RecyclingAllocator, make_pool};

#[global_allocator]
static ALLOCATOR: RecyclingAllocator = RecyclingAllocator;

fn main() -> ExitCode {
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(error) => return cli::show_failure(&error),
    };
    make_pool(arguments.threads());
    if let Some(bytes) = arguments.max_memory() {
        tweedie_pipelines::memory::limit_to(bytes);
    }
    match cli::run(arguments) {
        Ok(status) => cli::status_if_stopped().unwrap_or(status),
        Err(error) => cli::show_failure(&error),
    }
}
