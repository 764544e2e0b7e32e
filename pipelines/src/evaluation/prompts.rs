//! Files of prompts, with what their pictures should show.

use serde_json::{Map, Value};
use std::path::Path;
use tweedie::files::read_text;
use tweedie::models::Shown;
use tweedie::{Error, ErrorKind, Result};

/// A prompt of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedPrompt {
    /// The text.
    pub prompt: String,
    /// What kind of prompt it is, by which scores are listed; empty where nothing is said.
    pub kind: String,
    /// What its pictures should show, if the file says it.
    pub shown: Option<Shown>,
}

/// The prompts of a file, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    prompts: Vec<AskedPrompt>,
}

impl PromptSet {
    /// Reads a file of prompts in one of two forms.
    ///
    /// - JSON: a list of objects, each with its `prompt`, perhaps its `kind`, and the fields of a [`Shown`]: `concepts`, one or two, the
    ///   left or upper one first; `background`, `style`, `position`, `size` and `relation`, null where the prompt leaves it open.
    ///   An object without `concepts` says nothing of what its pictures should show.
    /// - Any other text: a prompt a line.
    ///
    /// # Errors
    /// If the file cannot be read, has no prompt, or a prompt has a field of another form; the message names the line, or the
    /// prompt and the field.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text("file of prompts", path)?;
        let malformed = |reason: String| Error::malformed(ErrorKind::File, "file of prompts", path, reason);
        let prompts = match text.trim_start().starts_with('[') {
            true => {
                let list: Vec<Value> = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
                list.iter().enumerate().map(|(i, value)| of_json(i, value).map_err(malformed)).collect::<Result<_>>()?
            }
            false => of_lines(&text),
        };
        match prompts.is_empty() {
            true => Err(malformed("it has no prompt; give one a line, or a JSON list of objects".into())),
            false => Ok(Self { prompts }),
        }
    }

    /// The prompts, in the order of the file.
    pub fn prompts(&self) -> &[AskedPrompt] {
        &self.prompts
    }

    /// The kinds, in the order in which they come first.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = Vec::new();
        for AskedPrompt { kind, .. } in &self.prompts {
            if !kinds.contains(&kind.as_str()) {
                kinds.push(kind);
            }
        }
        kinds
    }

    /// Whether it is said of every prompt what its pictures should show, which a judge must know.
    ///
    /// # Errors
    /// If it is not; the message names a prompt.
    pub fn check_shown(&self) -> Result<()> {
        match self.prompts.iter().find(|prompt| prompt.shown.is_none()) {
            None => Ok(()),
            Some(AskedPrompt { prompt, .. }) => {
                let fix = "a judge must know what pictures should show: give it in a JSON list, as concepts and so on, or leave \
                           `judge` away to make pictures only";
                Err(Error::invalid(format!("what the prompt {prompt:?} asks for"), "not said", fix))
            }
        }
    }
}

fn of_lines(text: &str) -> Vec<AskedPrompt> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| AskedPrompt { prompt: line.into(), kind: String::new(), shown: None }).collect()
}

fn of_json(index: usize, value: &Value) -> Result<AskedPrompt, String> {
    let number = index + 1;
    let fields: &Map<String, Value> =
        value.as_object().ok_or_else(|| format!("prompt {number} is {value}; it must be an object"))?;
    let text = |field: &str| fields.get(field).and_then(Value::as_str).map(str::to_owned);
    let prompt = text("prompt").filter(|prompt| !prompt.trim().is_empty());
    let prompt = prompt.ok_or_else(|| format!("prompt {number} has no text in its field prompt"))?;
    let kind = match fields.get("kind") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(kind)) => kind.clone(),
        Some(other) => return Err(format!("prompt {number} ({prompt}): kind is {other}; it must be a name")),
    };
    let shown = fields.contains_key("concepts").then(|| Shown::from_json(fields));
    let shown = shown.transpose().map_err(|reason| format!("prompt {number} ({prompt}): {reason}"))?;
    Ok(AskedPrompt { prompt, kind, shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PromptSet> {
        let file = tempfile::NamedTempFile::new().map_err(Error::io("create", Path::new("file")))?;
        std::fs::write(file.path(), text).map_err(Error::io("write", file.path()))?;
        PromptSet::read(file.path())
    }

    #[test]
    fn both_forms_are_read() -> Result<()> {
        let lines = read("\n a fox \n\n[not json\n").is_ok();
        assert!(lines, "only a list starts with a bracket");
        assert_eq!(read("a fox\n  an owl\n\n")?.prompts()[1].prompt, "an owl");
        let set = read(
            r#"[{"prompt": "x", "kind": "b", "concepts": ["a"], "style": null}, {"prompt": "y", "kind": "a"},
                {"prompt": "z", "kind": "b", "concepts": ["a", "c"], "relation": "left"}]"#,
        )?;
        assert_eq!(set.kinds(), ["b", "a"]);
        assert_eq!(set.prompts()[2].shown.as_ref().map(|shown| shown.concepts.len()), Some(2));
        assert!(set.check_shown().is_err_and(|e| e.to_string().contains("\"y\"")));
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, parts) in [
            ("", ["no prompt", "a line"]),
            ("[]", ["no prompt", "JSON list"]),
            ("[\n{\"prompt\": \"a\"},\n{]", ["line 3", "column 2"]),
            ("[3]", ["prompt 1 is 3", "object"]),
            (r#"[{"prompt": "a"}, {"text": "b"}]"#, ["prompt 2", "field prompt"]),
            (r#"[{"prompt": "a", "kind": 1}]"#, ["prompt 1 (a)", "kind is 1"]),
            (r#"[{"prompt": "a", "concepts": "fox"}]"#, ["prompt 1 (a)", "concepts is \"fox\""]),
            (r#"[{"prompt": "a", "concepts": ["b"], "style": 2}]"#, ["prompt 1 (a)", "style is 2"]),
        ] {
            let message = read(text).map_or_else(|e| e.to_string(), |_| String::new());
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
        }
    }
}
