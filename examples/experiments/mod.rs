//! What experiments have alike: an experiment measures figures of rows, each of which has settings of its own. `README.md` lists
//! them and says what is in the folder of one.
//!
//! ```text
//! arguments -> begin -> Results::measure: a row -> (train) -> Judge::judge -> figures -> Results::finish: table, plots
//! ```

#![allow(dead_code)] // every experiment uses a part

pub mod arguments;
pub mod judge;
pub mod plots;
pub mod progress;
pub mod results;
pub mod table;
pub mod training;

pub use arguments::{Arguments, CommandOption};
pub use judge::Judge;
pub use progress::RowProgress;
pub use results::{Figures, Results};
pub use table::Column;

/// How an experiment, or a part of it, ends.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Starts an experiment, or goes on with it, in the folder that the arguments say. Rows have so many digits, and real ones have been
/// judged before the first.
///
/// # Errors
/// As [`Results::open`]; if the digits to judge by are not there.
pub fn begin(
    experiment: Experiment,
    arguments: &Arguments,
    settings: serde_json::Value,
    samples: usize,
) -> Outcome<(Results, Judge)> {
    let mut results = Results::open(experiment, arguments, settings)?;
    let judge = Judge::open(&arguments.data, samples)?;
    results.measure_floor(&judge)?;
    Ok((results, judge))
}

/// What an experiment is.
#[derive(Debug, Clone, Copy)]
pub struct Experiment {
    /// The name of its example.
    pub name: &'static str,
    /// What it compares, in a few words.
    pub title: &'static str,
    /// Options that it takes besides those of all experiments.
    pub options: &'static [CommandOption],
    /// The columns of its table: settings of rows, then figures.
    pub columns: &'static [Column],
}
