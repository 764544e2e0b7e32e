//! `judge/config.json`.

use super::{GROUPS, JudgeClasses};
use crate::Result;
use crate::config::{ConfigFields, Flaw};
use serde_json::{Map, Value, json};

/// The field of `judge/config.json` that says how often the judge is right.
const ACCURACY: &str = "accuracy";

/// The field that says what a style is read off.
const STYLE_OF: &str = "style_of";
const LOOKS: &str = "looks";

/// The sizes of a [`Judge`](super::Judge), and what it tells apart.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeConfig {
    /// Height and width of what it looks at; pictures are averaged to it.
    pub sample_size: usize,
    /// Channels of the first convolution, then of each stage, which halves the resolution; at least two stages.
    pub block_out_channels: Vec<usize>,
    /// Width of the summary of the whole picture.
    pub summary_size: usize,
    /// What it tells apart.
    pub classes: JudgeClasses,
    /// How often it is right, as it was measured when it was trained; null where nothing was.
    pub accuracy: Value,
}

impl JudgeConfig {
    /// From the fields of a `config.json`.
    ///
    /// # Errors
    /// If a field has an unusable value, or is not known.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        fields.only("_class_name", &[json!("Judge")])?;
        if fields.fields().get(STYLE_OF) != Some(&json!(LOOKS)) {
            return Err(fields.wrong(STYLE_OF, "judges of earlier versions tell styles in another way; train it anew"));
        }
        let classes = JudgeClasses::from_fields(fields.fields()).map_err(|(name, fix)| fields.wrong(name, fix))?;
        let names: Vec<String> = classes.fields().keys().cloned().collect();
        fields.ignore(&names.iter().map(String::as_str).chain([ACCURACY, STYLE_OF]).collect::<Vec<_>>());
        let config = Self {
            sample_size: fields.usize("sample_size", 64)?,
            block_out_channels: fields.usize_list("block_out_channels", &[])?,
            summary_size: fields.usize("summary_size", 128)?,
            classes,
            accuracy: fields.fields().get(ACCURACY).cloned().unwrap_or_default(),
        };
        fields.reject_unread()?;
        config.check().map_err(|(field, expected)| fields.wrong(field, expected))?;
        Ok(config)
    }

    /// Which field cannot be used, and what it may be.
    pub(super) fn check(&self) -> Result<(), Flaw> {
        let wide = |width: &usize| (GROUPS..=4096).contains(width) && width.is_multiple_of(GROUPS);
        let stages = self.block_out_channels.len().saturating_sub(1);
        let flaw = |field, expected: String| Err((field, expected));
        match () {
            () if !(2..=8).contains(&stages) || !self.block_out_channels.iter().all(wide) => {
                flaw("block_out_channels", format!("give 3 to 9 multiples of {GROUPS}, up to 4096"))
            }
            () if !(1..=1024).contains(&self.sample_size) || !self.sample_size.is_multiple_of(1 << stages) => {
                let fix = format!("{stages} times it is halved: give a multiple of {}, up to 1024", 1 << stages);
                flaw("sample_size", fix)
            }
            () if !(1..=4096).contains(&self.summary_size) => flaw("summary_size", "it must be from 1 to 4096".into()),
            () if self.classes.concepts.is_empty() => flaw("concepts", "there must be one at least".into()),
            () if self.classes.concepts.len() > 100_000 => flaw("concepts", "there may be 100000 at most".into()),
            () => Ok(()),
        }
    }

    /// The fields of the `config.json`.
    pub fn fields(&self) -> Map<String, Value> {
        let mut fields = self.network_fields();
        fields.insert(ACCURACY.into(), self.accuracy.clone());
        fields
    }

    /// The same without what was measured.
    pub fn network_fields(&self) -> Map<String, Value> {
        let sizes = [
            ("_class_name", json!("Judge")),
            (STYLE_OF, json!(LOOKS)),
            ("sample_size", json!(self.sample_size)),
            ("block_out_channels", json!(self.block_out_channels)),
            ("summary_size", json!(self.summary_size)),
        ];
        let sizes = sizes.into_iter().map(|(name, value)| (name.to_owned(), value));
        sizes.chain(self.classes.fields()).collect()
    }
}
