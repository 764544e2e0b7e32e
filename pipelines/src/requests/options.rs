//! Options that are declared once: a field with its documentation, its default, and how text becomes its value.

use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::values::OptionValue;
use serde_json::{Map, Value};
use tweedie::Error;

/// All that there is to know of an option of a request, for a command line, a form or a list.
#[derive(Debug, Clone, PartialEq)]
pub struct OptionInfo {
    /// Where it stands in a request's JSON: its own key, after those of the objects around it.
    pub path: Vec<&'static str>,
    /// What it is called where all options stand side by side, in lower case with `_` between words.
    pub name: &'static str,
    /// What it does, in one paragraph without a full stop; other options stand in it as `` `name` ``.
    pub help: String,
    /// How text becomes its value.
    pub kind: OptionKind,
    /// What a value is called in such help, as "N".
    pub value_name: &'static str,
    /// What is taken where it is not given, in words; nothing where that goes without saying.
    pub default: Option<String>,
    /// Whether it must be given.
    pub required: bool,
    /// Whether a picture's record has it even at its default.
    pub always_recorded: bool,
    /// The heading that it stands under, if not with all others.
    pub heading: Option<&'static str>,
    /// Whether a short list leaves it away.
    pub rare: bool,
    /// The name of an option that excludes this one.
    pub excluded_by: Option<&'static str>,
    /// The name of an option without which this one means nothing.
    pub needs: Option<&'static str>,
}

/// An option that JSON gives a value that it does not take.
#[derive(Debug, Clone, PartialEq)]
pub struct WrongOption {
    /// Its key, after those of the objects around it, with dots between.
    pub name: String,
    /// What was given.
    pub value: Value,
    /// What to give.
    pub fix: String,
}

impl WrongOption {
    pub(crate) fn new(name: &str, value: Value, fix: impl Into<String>) -> Self {
        Self { name: name.into(), value, fix: fix.into() }
    }

    /// The same seen from outside an object.
    pub(crate) fn within(mut self, group: &str) -> Self {
        self.name = format!("{group}.{}", self.name);
        self
    }

    /// What was given on one line that is not too long.
    pub fn shown(&self) -> String {
        shortened(&self.value)
    }
}

impl std::fmt::Display for WrongOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` is {}; {}", self.name, self.shown(), self.fix)
    }
}

impl std::error::Error for WrongOption {}

impl From<WrongOption> for Error {
    fn from(wrong: WrongOption) -> Self {
        Self::invalid(format!("`{}`", wrong.name), wrong.shown(), wrong.fix)
    }
}

/// JSON on one line that is not too long.
pub(crate) fn shortened(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// What has options that JSON can give.
pub trait Options {
    /// Its options, in the order in which they are listed. Those of a request that it contains are asked of that.
    fn options() -> Vec<OptionInfo>;

    /// The keys that [`Self::take`] looks for.
    fn keys() -> Vec<&'static str>;

    /// Takes what concerns it out of `fields`. Options that are not there keep their values.
    ///
    /// # Errors
    /// If a value is of another type than its option, which is named.
    fn take(&mut self, fields: &mut Map<String, Value>) -> Result<(), WrongOption>;

    /// Puts its options into `fields`: those that are not at their defaults, and those that are always recorded.
    fn put(&self, fields: &mut Map<String, Value>);

    /// Takes everything in `fields`.
    ///
    /// # Errors
    /// If a value is of another type than its option, or no option has that name.
    fn read(&mut self, mut fields: Map<String, Value>) -> Result<(), WrongOption> {
        self.take(&mut fields)?;
        match fields.into_iter().next() {
            None => Ok(()),
            Some((name, value)) => Err(WrongOption::new(&name, value, "there is no such option")),
        }
    }

    /// Its options as an object: see [`Self::put`].
    fn write(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        self.put(&mut fields);
        fields
    }
}

/// An option of a kind. What else there is to say of it is added by the methods of [`OptionInfo`].
pub(crate) fn option(kind: OptionKind, value_name: &'static str) -> OptionInfo {
    OptionInfo {
        path: Vec::new(),
        name: "",
        help: String::new(),
        kind,
        value_name,
        default: None,
        required: false,
        always_recorded: false,
        heading: None,
        rare: false,
        excluded_by: None,
        needs: None,
    }
}

/// An option that is given or not.
pub(crate) fn flag(value: FlagValue) -> OptionInfo {
    option(OptionKind::Flag(value), "")
}

/// An option that JSON alone can say.
pub(crate) fn json() -> OptionInfo {
    option(OptionKind::Json, "")
}

impl OptionInfo {
    /// What is taken where it is not given, in words; an empty text says nothing of it.
    pub(crate) fn default(mut self, words: &str) -> Self {
        self.default = Some(words.into());
        self
    }

    /// Another name than its key.
    pub(crate) fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    pub(crate) fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub(crate) fn always_recorded(mut self) -> Self {
        self.always_recorded = true;
        self
    }

    pub(crate) fn under(mut self, heading: &'static str) -> Self {
        self.heading = Some(heading);
        self
    }

    pub(crate) fn rarely(mut self) -> Self {
        self.rare = true;
        self
    }

    pub(crate) fn excluded_by(mut self, name: &'static str) -> Self {
        self.excluded_by = Some(name);
        self
    }

    pub(crate) fn needs(mut self, name: &'static str) -> Self {
        self.needs = Some(name);
        self
    }

    /// With what its declaration says: its key, the lines of its documentation, and its default as JSON.
    pub(crate) fn declared(mut self, key: &'static str, lines: &[&str], default: &Value) -> Self {
        self.path = vec![key];
        if self.name.is_empty() {
            self.name = key;
        }
        let paragraph: Vec<_> = lines.iter().map(|line| line.trim()).take_while(|line| !line.is_empty()).collect();
        // rustdoc takes brackets for links where they are not escaped.
        self.help = paragraph.join(" ").trim_end_matches('.').replace("\\[", "[").replace("\\]", "]");
        let in_words = self.in_words(default);
        self.default = self.default.or(in_words).filter(|words| !words.is_empty());
        self
    }

    /// The same with another default, where that has words.
    pub(crate) fn with_default(mut self, default: &Value) -> Self {
        self.default = self.in_words(default).or(self.default);
        self
    }

    fn in_words(&self, default: &Value) -> Option<String> {
        match default {
            _ if matches!(self.kind, OptionKind::Flag(_) | OptionKind::Json) || self.required => None,
            Value::String(name) => Some(name.clone()),
            Value::Number(number) => {
                Some(number.as_f64().map_or_else(|| number.to_string(), |number| number.to_string()))
            }
            _ => None,
        }
    }

    /// The same inside an object.
    pub(crate) fn inside(mut self, group: &'static str) -> Self {
        self.path.insert(0, group);
        self
    }

    /// Puts its value where it belongs in a request's JSON.
    pub fn put(&self, value: Value, fields: &mut Map<String, Value>) {
        let Some((key, groups)) = self.path.split_last() else { return };
        let mut object = fields;
        for group in groups {
            let inner = object.entry(*group).or_insert_with(|| Map::new().into());
            let Value::Object(inner) = inner else { return };
            object = inner;
        }
        object.insert((*key).into(), value);
    }
}

/// Declares a structure of options.
///
/// - `given`: fields that come with it and are no options, such as pictures;
/// - `flat`: another such structure, whose options stand beside its own in JSON;
/// - `options`: each with its documentation, whose first paragraph is its help, its default, and an [`OptionInfo`];
/// - `groups`: other such structures, each of which is an object in JSON.
///
/// `of` makes one from what is given, with every option at its default.
macro_rules! options {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $(given { $($(#[$given_doc:meta])+ $given:ident: $given_type:ty;)+ })?
            $(flat { $(#[$flat_doc:meta])+ $flat:ident: $flat_type:ty; })?
            $(options { $($(#[doc = $help:literal])+ $option:ident: $type:ty = $default:expr => $info:expr;)+ })?
            $(groups { $($(#[$group_doc:meta])+ $group:ident: $group_type:ty;)+ })?
        }
    ) => {
        $(#[$attribute])*
        pub struct $name {
            $($($(#[$given_doc])+ pub $given: $given_type,)+)?
            $($(#[$flat_doc])+ pub $flat: $flat_type,)?
            $($($(#[doc = $help])+ pub $option: $type,)+)?
            $($($(#[$group_doc])+ pub $group: $group_type,)+)?
        }

        impl $name {
            /// One with every option at its default.
            pub fn of($($($given: $given_type,)+)? $($flat: $flat_type,)?) -> Self {
                Self {
                    $($($given,)+)?
                    $($flat,)?
                    $($($option: $default,)+)?
                    $($($group: <$group_type>::default(),)+)?
                }
            }
        }

        impl $crate::requests::options::Options for $name {
            fn options() -> Vec<$crate::requests::options::OptionInfo> {
                use $crate::requests::values::OptionValue;
                #[allow(unused_mut)] // where there are no groups
                let mut options = vec![$($({
                    let default: $type = $default;
                    $info.declared(stringify!($option), &[$($help),+], &default.to_json())
                },)+)?];
                $($(
                    let inside = <$group_type as $crate::requests::options::Options>::options();
                    options.extend(inside.into_iter().map(|option| option.inside(stringify!($group))));
                )+)?
                options
            }

            fn keys() -> Vec<&'static str> {
                #[allow(unused_mut)] // where nothing is flat
                let mut keys = vec![$($(stringify!($option),)+)? $($(stringify!($group),)+)?];
                $(keys.extend(<$flat_type as $crate::requests::options::Options>::keys());)?
                keys
            }

            fn take(
                &mut self,
                fields: &mut serde_json::Map<String, serde_json::Value>,
            ) -> Result<(), $crate::requests::options::WrongOption> {
                $($(
                    $crate::requests::options::take_option(&mut self.$option, stringify!($option), fields)?;
                )+)?
                $($(
                    $crate::requests::options::take_group(&mut self.$group, stringify!($group), fields)?;
                )+)?
                $(self.$flat.take(fields)?;)?
                Ok(())
            }

            fn put(&self, fields: &mut serde_json::Map<String, serde_json::Value>) {
                $(self.$flat.put(fields);)?
                $($(
                    let default: $type = $default;
                    $crate::requests::options::put_option(&self.$option, &default, stringify!($option), &$info, fields);
                )+)?
                $($(
                    let group = $crate::requests::options::Options::write(&self.$group);
                    if !group.is_empty() {
                        fields.insert(stringify!($group).into(), group.into());
                    }
                )+)?
            }
        }
    };
}
pub(crate) use options;

/// Structures of options that nothing else is given to, as serde structures: an object, and by default an empty one.
macro_rules! serde_by_options {
    ($($name:ty),+ $(,)?) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::requests::options::Options::write(self).serialize(serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let mut value = Self::default();
                let fields = serde::Deserialize::deserialize(deserializer)?;
                let read = $crate::requests::options::Options::read(&mut value, fields);
                read.map_err(<D::Error as serde::de::Error>::custom)?;
                Ok(value)
            }
        }
    )+};
}
pub(crate) use serde_by_options;

/// Takes an option's value out of `fields`, if it is there.
pub(crate) fn take_option<T: OptionValue>(
    option: &mut T,
    key: &str,
    fields: &mut Map<String, Value>,
) -> Result<(), WrongOption> {
    if let Some(value) = fields.shift_remove(key) {
        *option = match T::from_json(&value) {
            Some(read) => read,
            None => return Err(WrongOption::new(key, value, format!("it must be {}", T::expected()))),
        };
    }
    Ok(())
}

/// Takes an object of options out of `fields`, if it is there.
pub(crate) fn take_group(
    group: &mut impl Options,
    key: &str,
    fields: &mut Map<String, Value>,
) -> Result<(), WrongOption> {
    match fields.shift_remove(key) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(inner)) => group.read(inner).map_err(|wrong| wrong.within(key)),
        Some(value) => Err(WrongOption::new(key, value, "it must be an object")),
    }
}

/// Puts an option's value into `fields`, if its record has it.
pub(crate) fn put_option<T: OptionValue>(
    option: &T,
    default: &T,
    key: &str,
    info: &OptionInfo,
    fields: &mut Map<String, Value>,
) {
    let value = option.to_json();
    if info.always_recorded || value != default.to_json() {
        fields.insert(key.into(), value);
    }
}
