//! The command line of experiments.

use super::{Experiment, Outcome};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::exit;
use std::str::FromStr;
use tweedie_pipelines::{PixelModel, PixelPipeline};

/// An option of the command line.
#[derive(Debug, Clone, Copy)]
pub struct CommandOption {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// What its value is; nothing for one that takes none.
    pub value: &'static str,
    /// What it says.
    pub about: &'static str,
}

const fn option(name: &'static str, value: &'static str, about: &'static str) -> CommandOption {
    CommandOption { name, value, about }
}

/// Options of all experiments.
const COMMON: [CommandOption; 6] = [
    option("output", "DIR", "the folder of the results"),
    option(
        "size",
        "hour|night",
        "how much is measured: about an hour's work of two cores, or a night's [default: hour]",
    ),
    option("resume", "", "go on with the results that are in the folder"),
    option("data", "DIR", "the folder of MNIST's four IDX files [default: mnist]"),
    option("samples", "N", "digits that are drawn and judged in every row, in the place of the size's"),
    option(
        "rows",
        "SETTINGS|...",
        "measure only rows that have all settings of one of these lists, such as 'eta 0.0, steps 10'",
    ),
];

/// Steps of trainings.
pub const STEPS: CommandOption = option("steps", "N", "steps of the longest training, in the place of the size's");
/// Another model.
pub const MODEL: CommandOption =
    option("model", "DIR", "a model of digits from `tweedie train mnist` [default: the embedded one]");
/// Guidance.
pub const GUIDANCE_SCALE: CommandOption =
    option("guidance-scale", "F", "scale of classifier-free guidance [default: 1, which is without]");

/// How much an experiment measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// What two cores do in about an hour.
    Hour,
    /// What they do in a night.
    Night,
}

impl Size {
    /// The value for this size.
    pub fn pick<T>(self, hour: T, night: T) -> T {
        match self {
            Self::Hour => hour,
            Self::Night => night,
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "hour" => Ok(Self::Hour),
            "night" => Ok(Self::Night),
            _ => Err("it is hour or night".into()),
        }
    }
}

/// What was given.
#[derive(Debug)]
pub struct Arguments {
    /// The folder of the results.
    pub output: PathBuf,
    /// How much is measured.
    pub size: Size,
    /// Whether results that are there are gone on with.
    pub resume: bool,
    /// The folder of MNIST.
    pub data: PathBuf,
    /// Lists of settings; a row is measured if it has all settings of one of them, or if there are none.
    pub rows: Vec<Vec<String>>,
    given: BTreeMap<&'static str, String>,
}

impl Experiment {
    /// Reads the command line. The program ends here where help is asked for, and where something cannot be used.
    pub fn arguments(&self) -> Arguments {
        let given: Vec<String> = std::env::args().skip(1).collect();
        if given.iter().any(|argument| argument == "--help" || argument == "-h") {
            println!("{}", self.usage());
            exit(0);
        }
        self.read(given).unwrap_or_else(|wrong| {
            eprintln!("error: {wrong}\n\n{}", self.usage());
            exit(2)
        })
    }

    fn known(&self) -> impl Iterator<Item = &'static CommandOption> {
        COMMON.iter().chain(self.options)
    }

    /// The options of a command line.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn read(&self, arguments: Vec<String>) -> Result<Arguments, String> {
        let mut given = BTreeMap::new();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let option = self.known().find(|option| name.strip_prefix("--") == Some(option.name));
            let option = option.ok_or_else(|| format!("there is no option {name}"))?;
            let value = match value {
                None if option.value.is_empty() => String::new(),
                Some(_) if option.value.is_empty() => return Err(format!("{name} takes no value")),
                Some(value) => value,
                None => arguments.next().ok_or_else(|| format!("{name} needs a value, {}", option.value))?,
            };
            if given.insert(option.name, value).is_some() {
                return Err(format!("{name} was given twice"));
            }
        }
        let path = |name| given.get(name).map(PathBuf::from);
        Ok(Arguments {
            output: path("output").ok_or("--output is missing")?,
            size: parsed(&given, "size")?.unwrap_or(Size::Hour),
            resume: given.contains_key("resume"),
            data: path("data").unwrap_or_else(|| "mnist".into()),
            rows: given.get("rows").map(|rows| rows.split('|').map(settings).collect()).unwrap_or_default(),
            given,
        })
    }

    fn usage(&self) -> String {
        let mut lines = vec![
            format!("{}\n", self.title),
            format!("usage: cargo run --release --example {} -- --output DIR [OPTIONS]\n", self.name),
        ];
        for CommandOption { name, value, about } in self.known() {
            lines.push(format!("  {:<24} {about}", format!("--{name} {value}")));
        }
        lines.join("\n")
    }
}

/// Settings that are told on one line.
pub fn settings(line: &str) -> Vec<String> {
    line.split(',').map(|setting| setting.trim().to_owned()).collect()
}

/// The value of an option, if it was given.
fn parsed<T: FromStr<Err: ToString>>(given: &BTreeMap<&str, String>, name: &str) -> Result<Option<T>, String> {
    let wrong = |text: &String, e: T::Err| format!("--{name} is {text}: {}", e.to_string());
    given.get(name).map(|text| text.parse().map_err(|e| wrong(text, e))).transpose()
}

impl Arguments {
    /// The digits of every row, which are so many where nothing is said.
    ///
    /// # Errors
    /// If it is no number, or there are too few for any figure.
    pub fn samples(&self, of_size: usize) -> Outcome<usize> {
        match parsed(&self.given, "samples")?.unwrap_or(of_size) {
            few @ 0..10 => Err(format!("--samples is {few}: figures need 10 at least").into()),
            samples => Ok(samples),
        }
    }

    /// The steps of the longest training, which are so many where nothing is said.
    ///
    /// # Errors
    /// If it is no number, or 0.
    pub fn steps(&self, of_size: u64) -> Outcome<u64> {
        match parsed(&self.given, STEPS.name)?.unwrap_or(of_size) {
            0 => Err("--steps is 0: give 1 or more".into()),
            steps => Ok(steps),
        }
    }

    /// The scale of classifier-free guidance.
    ///
    /// # Errors
    /// If it is no number.
    pub fn guidance_scale(&self) -> Outcome<f64> {
        Ok(parsed(&self.given, GUIDANCE_SCALE.name)?.unwrap_or(1.0))
    }

    /// The model of digits that samples are drawn from.
    ///
    /// # Errors
    /// If there is none.
    pub fn pipeline(&self) -> Outcome<PixelPipeline> {
        let model = match self.given.get(MODEL.name) {
            Some(path) => PixelModel::at(path.into())?,
            None => PixelModel::Mnist,
        };
        Ok(PixelPipeline::builder().model(model).build()?)
    }
}
