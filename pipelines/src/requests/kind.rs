//! How text becomes an option's value.

use crate::requests::values::OptionValue;
use serde_json::{Map, Value};

/// How text becomes an option's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// Any text, which may begin with a hyphen.
    Text,
    /// A name of many.
    Name,
    /// One of few names.
    Choice(&'static [&'static str]),
    /// A whole number from 0 on.
    Count,
    /// A whole number from 0 on; for `random` and -1 one is drawn, of 32 bits as other programs take.
    Seed,
    /// A number.
    Number,
    /// Whole numbers with commas between.
    Counts,
    /// Whole numbers or names, with commas between.
    Names,
    /// Numbers with commas between.
    Numbers,
    /// Two numbers with a comma between.
    Interval,
    /// Height and width with an x between.
    Size,
    /// y and x with a comma between.
    Corner,
    /// Sides of a picture and their widths, as `left=64,top=32`.
    Margins,
    /// Given or not; if it is, it stands for this value.
    Flag(FlagValue),
    /// JSON alone can say it.
    Json,
}

/// What a flag stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlagValue {
    /// `true`.
    On,
    /// `false`: it turns off what is on by default.
    Off,
    /// An object whose fields all have their defaults.
    Defaults,
}

impl OptionKind {
    /// Whether a text holds several values with commas between, each of which [`Self::parse`] takes.
    pub fn is_list(self) -> bool {
        matches!(self, Self::Counts | Self::Names | Self::Numbers)
    }

    /// The JSON that a text stands for.
    ///
    /// # Errors
    /// If it stands for none; the message says what to give.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        fn whole<T: std::str::FromStr<Err = std::num::ParseIntError> + Into<Value>>(
            text: &str,
        ) -> Result<Value, String> {
            text.parse::<T>().map(Into::into).map_err(|e| match text.parse::<i128>() {
                Ok(number) if number < 0 => "give a whole number from 0 on".into(),
                Ok(_) => e.to_string(),
                Err(_) => "give a whole number".into(),
            })
        }
        match self {
            Self::Text | Self::Name => Ok(text.into()),
            Self::Choice(names) if names.contains(&text) => Ok(text.into()),
            Self::Choice(names) => Err(format!("it is none of {}", names.join(", "))),
            Self::Seed if text == "random" || text == "-1" => Ok(drawn_seed().into()),
            Self::Count => whole::<u64>(text),
            Self::Seed => whole::<u64>(text).map_err(|fix| format!("{fix}, or random")),
            Self::Counts => whole::<u32>(text),
            Self::Names => Ok(text.parse::<u32>().map_or_else(|_| text.into(), Value::from)),
            Self::Number | Self::Numbers => {
                text.parse::<f64>().map(|number| number.to_json()).map_err(|e| e.to_string())
            }
            Self::Interval => {
                pair::<f64>(text, ',').ok_or_else(|| "give two numbers with a comma between, such as 0.3,5".into())
            }
            Self::Size => pair::<usize>(text, 'x')
                .ok_or_else(|| "give height and width with an x between, such as 1024x768".into()),
            Self::Corner => {
                pair::<usize>(text, ',').ok_or_else(|| "give y and x with a comma between, such as 0,128".into())
            }
            Self::Margins => margins(text),
            Self::Flag(FlagValue::On) => Ok(true.into()),
            Self::Flag(FlagValue::Off) => Ok(false.into()),
            Self::Flag(FlagValue::Defaults) => Ok(Map::new().into()),
            Self::Json => serde_json::from_str(text).map_err(|e| e.to_string()),
        }
    }
}

/// From what the standard library draws its hashers' keys from.
fn drawn_seed() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::Instant::now()) as u32
}

fn pair<T: std::str::FromStr + OptionValue>(text: &str, separator: char) -> Option<Value> {
    let (first, second) = text.split_once(separator)?;
    Some((first.trim().parse::<T>().ok()?, second.trim().parse::<T>().ok()?).to_json())
}

/// Sides and their widths.
fn margins(text: &str) -> Result<Value, String> {
    let mut margins = Map::new();
    for part in text.split(',') {
        let (side, width) = part.split_once('=').ok_or_else(|| format!("{part:?} is not SIDE=N"))?;
        let width: usize = width.trim().parse().map_err(|_| format!("{width:?} is not a number of pixels"))?;
        let side = side.trim();
        if !["left", "right", "top", "bottom"].contains(&side) {
            return Err(format!("{side:?} is not a side; take left, right, top or bottom"));
        }
        margins.insert(side.into(), width.into());
    }
    if margins.values().all(|width| *width == 0) {
        return Err("every side is 0; give at least one a number of pixels".into());
    }
    Ok(margins.into())
}
