//! The values of options as JSON.

use crate::requests::inpaint::MaskFill;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::PathBuf;
use tweedie::denoising::{GuidanceShape, Projection};
use tweedie::images::{Margins, MaskResize};

/// A value of an option, as JSON has it.
pub(crate) trait OptionValue: Sized {
    /// What it must be, to say so where it is not.
    fn expected() -> String;

    /// The value that JSON stands for, if it is one.
    fn from_json(value: &Value) -> Option<Self>;

    /// The JSON that stands for it.
    fn to_json(&self) -> Value;
}

/// Values whose JSON is serde's, with what they must be.
macro_rules! values_by_serde {
    ($($type:ty: $expected:literal;)+) => {$(
        impl OptionValue for $type {
            fn expected() -> String {
                $expected.into()
            }

            fn from_json(value: &Value) -> Option<Self> {
                read(value)
            }

            fn to_json(&self) -> Value {
                write(self)
            }
        }
    )+};
}
pub(crate) use values_by_serde;

values_by_serde! {
    bool: "true or false";
    usize: "a whole number from 0 on";
    u64: "a whole number from 0 on";
    u32: "a whole number from 0 on";
    String: "a text";
    PathBuf: "a path";
    Map<String, Value>: "an object";
    GuidanceShape: "constant, linear or cosine";
    MaskFill: "original, surroundings, noise or nothing";
    MaskResize: "lanczos or max";
    Margins: "an object with left, top, right and bottom";
    Projection: "an object with eta, norm_threshold and momentum";
}

/// A value by serde.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

/// The JSON of a value by serde. All that options hold has some.
pub(crate) fn write<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// JSON has no infinities and no NaN; they are texts in it, so that whoever checks a number sees what was given.
impl OptionValue for f64 {
    fn expected() -> String {
        "a number".into()
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |text: &str| text.parse().ok().filter(|number: &f64| !number.is_finite());
        value.as_f64().or_else(|| value.as_str().and_then(text))
    }

    fn to_json(&self) -> Value {
        if self.is_finite() { (*self).into() } else { self.to_string().into() }
    }
}

impl<T: OptionValue> OptionValue for Option<T> {
    fn expected() -> String {
        T::expected()
    }

    fn from_json(value: &Value) -> Option<Self> {
        if value.is_null() { Some(None) } else { T::from_json(value).map(Some) }
    }

    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_json)
    }
}

impl<T: OptionValue> OptionValue for Vec<T> {
    fn expected() -> String {
        format!("a list, and each of it {}", T::expected())
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::from_json).collect()
    }

    fn to_json(&self) -> Value {
        self.iter().map(T::to_json).collect()
    }
}

impl<T: OptionValue> OptionValue for (T, T) {
    fn expected() -> String {
        format!("a list of two, and each of them {}", T::expected())
    }

    fn from_json(value: &Value) -> Option<Self> {
        match value.as_array()?.as_slice() {
            [first, second] => Some((T::from_json(first)?, T::from_json(second)?)),
            _ => None,
        }
    }

    fn to_json(&self) -> Value {
        Value::Array(vec![self.0.to_json(), self.1.to_json()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_json_lacks_are_texts() {
        assert_eq!(f64::INFINITY.to_json(), json!("inf"));
        assert_eq!(f64::from_json(&json!("inf")), Some(f64::INFINITY));
        assert!(f64::from_json(&f64::NAN.to_json()).is_some_and(f64::is_nan));
        assert_eq!(f64::from_json(&json!("5")), None);
        assert_eq!(f64::from_json(&json!(5)), Some(5.0));
    }

    #[test]
    fn pairs_and_lists_are_taken_whole_or_not_at_all() {
        assert_eq!(<(usize, usize)>::from_json(&json!([1, 2])), Some((1, 2)));
        assert_eq!(<(usize, usize)>::from_json(&json!([1, 2, 3])), None);
        assert_eq!(Vec::<f64>::from_json(&json!([1, "x"])), None);
        assert_eq!(Option::<usize>::from_json(&json!(null)), Some(None));
        assert_eq!(Option::<usize>::from_json(&json!(-1)), None);
    }
}
