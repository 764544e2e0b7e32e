//! What does not fit between a checkpoint and a model, as one message.

use std::fmt;

/// How many names of each kind a message lists.
const LISTED: usize = 5;

/// The differences between the tensors that a model needs and those that a checkpoint has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightReport {
    /// The component: "unet", "vae", "text_encoder".
    pub component: String,
    /// The checkpoint's file or files.
    pub files: String,
    /// Needed, and not there.
    pub missing: Vec<String>,
    /// There, and not needed.
    pub unexpected: Vec<String>,
    /// There with another shape: name, needed, found.
    pub mis_shaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// There, with values that are not numbers.
    pub not_finite: Vec<String>,
    /// There more than once, by names that stand for the same tensor.
    pub doubled: Vec<String>,
    /// There, with an element type that weights do not have: name and type.
    pub wrong_type: Vec<(String, String)>,
    /// Whether more is missing or mis-shaped, which was not looked for since so much is.
    pub and_more: bool,
}

impl WeightReport {
    /// Whether checkpoint and model fit.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.unexpected.is_empty()
            && self.mis_shaped.is_empty()
            && self.not_finite.is_empty()
            && self.doubled.is_empty()
            && self.wrong_type.is_empty()
    }

    fn advice(&self) -> &'static str {
        if !self.not_finite.is_empty() {
            "the file is damaged or was saved with an overflow; get it again, or its f32 version"
        } else if !self.wrong_type.is_empty() {
            "it was quantised in a way that is not read; get its version in f32, f16, bf16 or fp8"
        } else if !self.doubled.is_empty() {
            "it cannot be told which of them is meant; leave one out of the file"
        } else if self.missing.is_empty() && self.mis_shaped.is_empty() {
            "the file holds more than the config describes; take the config.json that belongs to it"
        } else {
            "the file does not belong to its config.json, or is of another model family"
        }
    }
}

impl fmt::Display for WeightReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let differences = [
            listed("missing", &self.missing, Clone::clone),
            listed("unexpected", &self.unexpected, Clone::clone),
            listed("of another shape", &self.mis_shaped, |(name, needed, found)| {
                format!("{name} needed {needed:?}, found {found:?}")
            }),
            listed("with NaN or infinite values", &self.not_finite, Clone::clone),
            listed("there twice, by names of the same meaning", &self.doubled, Clone::clone),
            listed("of a type that is no float", &self.wrong_type, |(name, dtype)| format!("{name}: {dtype}")),
        ];
        let differences: Vec<String> = differences.into_iter().flatten().collect();
        let (component, files) = (&self.component, &self.files);
        let and_more = if self.and_more { " and more" } else { "" };
        write!(
            f,
            "the weights of the {component} in {files} do not fit: {}{and_more}; {}",
            differences.join("; "),
            self.advice()
        )
    }
}

impl std::error::Error for WeightReport {}

/// "7 tensors missing (a, b, ...)", or nothing if there are none.
fn listed<T>(what: &str, items: &[T], show: impl Fn(&T) -> String) -> Option<String> {
    let plural = match items.len() {
        0 => return None,
        1 => "tensor",
        _ => "tensors",
    };
    let mut shown: Vec<_> = items.iter().take(LISTED).map(show).collect();
    if items.len() > LISTED {
        shown.push("...".into());
    }
    Some(format!("{} {plural} {what} ({})", items.len(), shown.join(", ")))
}
