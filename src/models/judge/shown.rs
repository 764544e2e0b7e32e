//! What a picture shows, or should show, in words.

use serde_json::{Map, Value};

/// What a composed picture shows, or what a prompt asks for.
///
/// In JSON it is an object: `concepts`, a list of one name or two, the left or upper one first; `background`, `style`, `position`,
/// `size` and `relation`, each a name, or null where there is nothing to say. Other fields are passed over. A `relation` of `left`
/// has the first concept to the left of the second, `above` has it above; `beside` has them next to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// One concept or two.
    pub concepts: Vec<String>,
    /// What is behind them.
    pub background: Option<String>,
    /// How they are drawn.
    pub style: Option<String>,
    /// Where the only concept is; nothing for the middle, or any place.
    pub position: Option<String>,
    /// How large it is.
    pub size: Option<String>,
    /// How two concepts stand to each other.
    pub relation: Option<String>,
}

impl Shown {
    /// From the fields of an object.
    ///
    /// # Errors
    /// If a field has another form; the message names it, not in backquotes, as it is no option.
    pub fn from_json(fields: &Map<String, Value>) -> Result<Self, String> {
        let name = |field: &str| match fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) if !name.trim().is_empty() => Ok(Some(name.clone())),
            Some(other) => Err(format!("{field} is {other}; it must be a name, or null")),
        };
        let concepts = fields.get("concepts").unwrap_or(&Value::Null);
        let names = concepts.as_array().and_then(|list| {
            let names = list.iter().map(|value| value.as_str().filter(|name| !name.trim().is_empty()));
            names.map(|name| name.map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        let Some(names) = names.filter(|names| (1..=2).contains(&names.len())) else {
            return Err(format!("concepts is {concepts}; it must be a list of one name or two"));
        };
        let shown = Self {
            background: name("background")?,
            style: name("style")?,
            position: name("position")?,
            size: name("size")?,
            relation: name("relation")?,
            concepts: names,
        };
        match &shown.relation {
            Some(relation) if shown.concepts.len() == 1 => {
                Err(format!("relation is {relation}; it is between two concepts, and there is one"))
            }
            _ => Ok(shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Shown, String> {
        Shown::from_json(value.as_object().ok_or("no object")?)
    }

    #[test]
    fn fields_that_are_absent_say_nothing() -> Result<(), String> {
        let shown = read(json!({"concepts": ["a fox"], "style": "flat", "size": null, "kind": 3}))?;
        assert_eq!((shown.concepts, shown.style), (vec!["a fox".to_owned()], Some("flat".to_owned())));
        assert_eq!((shown.background, shown.position, shown.size, shown.relation), (None, None, None, None));
        Ok(())
    }

    #[test]
    fn a_field_of_another_form_is_named() {
        for (value, field) in [
            (json!({}), "concepts"),
            (json!({"concepts": []}), "concepts"),
            (json!({"concepts": "a fox"}), "concepts"),
            (json!({"concepts": ["a", "b", "c"]}), "concepts"),
            (json!({"concepts": ["a", " "]}), "concepts"),
            (json!({"concepts": ["a"], "style": 3}), "style"),
            (json!({"concepts": ["a"], "background": ""}), "background"),
            (json!({"concepts": ["a"], "relation": "left"}), "relation"),
        ] {
            assert!(read(value).is_err_and(|message| message.starts_with(&format!("{field} is "))), "{field}");
        }
    }
}
