//! The options of a request on the command line, from where they are declared.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Map, Value};
use std::marker::PhantomData;
use tweedie::with_options;
use tweedie_pipelines::{OptionInfo, OptionKind, Options};

/// The options of `R` that the command line gives, as JSON.
#[derive(Debug, Clone)]
pub struct Given<R> {
    fields: Map<String, Value>,
    of: PhantomData<R>,
}

impl<R> Given<R> {
    /// They, by their keys.
    pub fn fields(&self) -> Map<String, Value> {
        self.fields.clone()
    }
}

impl<R: Options> Given<R> {
    fn read(matches: &ArgMatches) -> Self {
        let mut fields = Map::new();
        for option in on_the_command_line::<R>() {
            if let Some(value) = value(&option, matches) {
                option.put(value, &mut fields);
            }
        }
        Self { fields, of: PhantomData }
    }
}

impl<R: Options> Args for Given<R> {
    fn augment_args(command: Command) -> Command {
        on_the_command_line::<R>().fold(command, |command, option| command.arg(argument(&option)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<R: Options> FromArgMatches for Given<R> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::read(matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::read(matches);
        Ok(())
    }
}

/// Options that text can give.
fn on_the_command_line<R: Options>() -> impl Iterator<Item = OptionInfo> {
    R::options().into_iter().filter(|option| option.kind != OptionKind::Json)
}

fn argument(option: &OptionInfo) -> Arg {
    let kind = option.kind;
    let argument = Arg::new(option.name)
        .long(dashed(option.name))
        .help(help(option))
        .required(option.required)
        .help_heading(option.heading)
        .allow_hyphen_values(kind == OptionKind::Text)
        .allow_negative_numbers(kind == OptionKind::Number);
    let argument = match kind {
        OptionKind::Flag(_) => argument.action(ArgAction::SetTrue),
        OptionKind::Choice(names) => {
            argument.value_name(option.value_name).value_parser(PossibleValuesParser::new(names).map(Value::from))
        }
        _ => argument.value_name(option.value_name).value_parser(move |text: &str| kind.parse(text)),
    };
    let argument = if kind.is_list() { argument.value_delimiter(',').action(ArgAction::Append) } else { argument };
    let argument = option.excluded_by.into_iter().fold(argument, |argument, other| argument.conflicts_with(other));
    option.needs.into_iter().fold(argument, |argument, other| argument.requires(other))
}

fn value(option: &OptionInfo, matches: &ArgMatches) -> Option<Value> {
    match option.kind {
        OptionKind::Flag(_) => matches.get_flag(option.name).then(|| option.kind.parse("").ok())?,
        kind if kind.is_list() => Some(matches.get_many::<Value>(option.name)?.cloned().collect()),
        _ => matches.get_one::<Value>(option.name).cloned(),
    }
}

/// The help of an option, in which others are called as here.
fn help(option: &OptionInfo) -> String {
    let default = option.default.as_ref().map(|words| format!(" [default: {words}]")).unwrap_or_default();
    let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let flag = |text: &str| is_name(text).then(|| format!("--{}", dashed(text)));
    with_options(&(option.help.clone() + &default), &flag)
}

fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tweedie_pipelines::{ImageToImageRequest, InpaintRequest, PixelRequest, TextToImageRequest};

    /// What the command line gives of `arguments`, as JSON.
    fn given<R: Options>(arguments: &[&str]) -> Result<Value, clap::Error> {
        let command = Given::<R>::augment_args(Command::new("test").no_binary_name(true));
        Ok(Given::<R>::from_arg_matches(&command.try_get_matches_from(arguments)?)?.fields().into())
    }

    #[test]
    fn text_becomes_the_json_of_a_request() -> Result<(), clap::Error> {
        let arguments = ["--prompt", "-x", "--guidance-interval", "0.3,5", "--apg", "--sigmas", "3,0"];
        let more = ["--prompt-syntax", "weighted", "--crop-top-left", "1,2", "--seed", "18446744073709551615"];
        let want = serde_json::json!({
            "prompt": "-x", "guidance_interval": [0.3, 5.0], "apg": {}, "sigmas": [3.0, 0.0],
            "prompt_syntax": "weighted", "xl": {"sizes": {"crop_top_left": [1, 2]}}, "seed": u64::MAX,
        });
        assert_eq!(given::<TextToImageRequest>(&[&arguments[..], &more].concat())?, want);
        let got = given::<InpaintRequest>(&["--outpaint", "left=4, top=0", "--no-composite", "--mask-grow", "2"])?;
        let want = serde_json::json!({"outpaint": {"left": 4, "top": 0}, "composite": false, "mask_grow": 2});
        assert_eq!(got["inpaint"], want);
        Ok(())
    }

    #[test]
    fn options_exclude_each_other_and_must_be_given() {
        assert!(given::<TextToImageRequest>(&[]).is_err());
        assert!(given::<TextToImageRequest>(&["--prompt", "x", "--sigmas", "1,0", "--timesteps", "1"]).is_err());
        assert!(given::<InpaintRequest>(&["--blend", "1", "--no-composite"]).is_err());
        assert!(given::<PixelRequest>(&["--classes", "1,x"]).is_err());
        assert!(given::<ImageToImageRequest>(&["--strength", "-1"]).is_ok());
    }
}
