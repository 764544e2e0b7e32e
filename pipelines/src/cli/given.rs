//! The options of a request on the command line, from where they are declared.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use serde_json::{Map, Value};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use tweedie::with_options;
use tweedie_pipelines::{OptionInfo, OptionKind, Options};

/// The options of `R` that the command line gives, as JSON.
#[derive(Debug, Clone)]
pub struct Given<R> {
    fields: Map<String, Value>,
    like: Option<PathBuf>,
    prompts: Option<PathBuf>,
    of: PhantomData<R>,
}

impl<R> Given<R> {
    /// They, by their keys.
    pub fn fields(&self) -> Map<String, Value> {
        self.fields.clone()
    }

    /// The picture whose settings hold for all that is not given.
    pub fn like(&self) -> Option<&Path> {
        self.like.as_deref()
    }

    /// The file with a prompt a line.
    pub fn prompts(&self) -> Option<&Path> {
        self.prompts.as_deref()
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
        let path = |name: &str| matches.try_get_one::<PathBuf>(name).ok().flatten().cloned();
        Self { fields, like: path(LIKE), prompts: path(PROMPTS), of: PhantomData }
    }
}

impl<R: Options> Args for Given<R> {
    fn augment_args(command: Command) -> Command {
        let command = on_the_command_line::<R>().fold(command, |command, option| command.arg(argument(&option)));
        if !on_the_command_line::<R>().any(|option| option.name == PROMPT) {
            return command;
        }
        let alone = Arg::new(ALONE).value_name("PROMPT").help("The prompt, in the place of --prompt");
        let like = Arg::new(LIKE).long(LIKE).value_name("PICTURE").value_parser(value_parser!(PathBuf)).help(
            "Take all settings that are not given from this picture, which this program or one like A1111's web UI has made",
        );
        let alone =
            alone.help_heading("Prompt").conflicts_with(PROMPT).value_parser(|text: &str| OptionKind::Text.parse(text));
        let prompts = Arg::new(PROMPTS).long(PROMPTS).value_name("FILE").value_parser(value_parser!(PathBuf));
        let prompts = prompts.hide_short_help(true).help(
            "Make the pictures of each line of this file, a prompt or a JSON object with options of a request, in the folder --output; \
             those that are there already are left",
        );
        let prompts = prompts.help_heading("Prompt").conflicts_with_all([PROMPT, ALONE]);
        command.arg(alone).arg(like.help_heading("Prompt")).arg(prompts)
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

/// What else options are called: by one letter, as in stable-diffusion.cpp, and in other programs.
const OTHER_NAMES: [(&str, Option<char>, &[&str]); 10] = [
    (PROMPT, Some('p'), &[]),
    ("negative_prompt", Some('n'), &[]),
    ("width", Some('W'), &[]),
    ("height", Some('H'), &[]),
    ("seed", Some('s'), &[]),
    ("guidance_scale", None, &["cfg-scale", "cfg"]),
    ("scheduler", None, &["sampling-method", "sampler"]),
    ("num_images", None, &["batch-count"]),
    ("min_snr_gamma", None, &["snr-gamma"]),
    ("snr_gamma", None, &["min-snr-gamma"]),
];

/// The option that may also stand alone, without its name.
const PROMPT: &str = "prompt";
/// How it is called then.
const ALONE: &str = "prompt alone";

/// A file of prompts.
const PROMPTS: &str = "prompts";

/// A picture that has the prompt and all else.
const LIKE: &str = "like";

/// Options that text can give.
fn on_the_command_line<R: Options>() -> impl Iterator<Item = OptionInfo> {
    R::options().into_iter().filter(|option| option.kind != OptionKind::Json)
}

fn argument(option: &OptionInfo) -> Arg {
    let kind = option.kind;
    let argument = Arg::new(option.name)
        .long(dashed(option.name))
        .help(help(option))
        .required(option.required && option.name != PROMPT)
        .hide_short_help(option.rare)
        .allow_hyphen_values(matches!(
            kind,
            OptionKind::Text
                | OptionKind::Counts
                | OptionKind::Names
                | OptionKind::Numbers
                | OptionKind::Interval
                | OptionKind::Size
                | OptionKind::Corner
                | OptionKind::Margins
        ))
        .allow_negative_numbers(matches!(kind, OptionKind::Count | OptionKind::Seed | OptionKind::Number));
    let argument = option.heading.into_iter().fold(argument, Arg::help_heading);
    let (short, long) =
        OTHER_NAMES.iter().find(|names| names.0 == option.name).map_or((None, &[][..]), |names| (names.1, names.2));
    let argument = short.into_iter().fold(argument, Arg::short).visible_aliases(long);
    let argument = match (option.name, option.required) {
        (PROMPT, true) => argument.required_unless_present_any([ALONE, LIKE, PROMPTS]),
        _ => argument,
    };
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
        _ if option.name == PROMPT => {
            let alone = || matches.try_get_one::<Value>(ALONE).ok().flatten();
            matches.get_one::<Value>(option.name).or_else(alone).cloned()
        }
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
    fn names_of_other_programs_mean_the_same() -> Result<(), clap::Error> {
        let want = given::<TextToImageRequest>(&[
            "--prompt",
            "a",
            "--negative-prompt",
            "b",
            "--width",
            "64",
            "--height",
            "32",
            "--seed",
            "3",
            "--guidance-scale",
            "2",
            "--scheduler",
            "Euler a",
            "--num-images",
            "2",
        ])?;
        let short =
            ["-n", "b", "-W", "64", "-H", "32", "-s", "3", "--sampling-method", "Euler a", "--batch-count", "2"];
        for prompt in [&["-p", "a"][..], &["a"]] {
            for guidance in ["--cfg-scale", "--cfg"] {
                assert_eq!(given::<TextToImageRequest>(&[prompt, &short, &[guidance, "2"]].concat())?, want);
            }
        }
        assert!(given::<TextToImageRequest>(&["a", "--prompt", "b"]).is_err());
        Ok(())
    }

    #[test]
    fn options_exclude_each_other_and_must_be_given() {
        assert!(given::<TextToImageRequest>(&[]).is_err());
        assert!(given::<TextToImageRequest>(&["--prompt", "x", "--sigmas", "1,0", "--timesteps", "1"]).is_err());
        assert!(given::<InpaintRequest>(&["--blend", "1", "--no-composite"]).is_err());
        let classes = given::<PixelRequest>(&["--classes", "1,x"]).map(|request| request["classes"].clone());
        assert_eq!(classes.ok(), Some(serde_json::json!([1, "x"])));
        assert!(given::<ImageToImageRequest>(&["--strength", "-1"]).is_ok());
    }

    /// What a help text calls an option is one, of the same command.
    #[test]
    fn options_that_help_names_are_there() {
        use clap::CommandFactory;
        fn check(command: &Command, path: &str) {
            let known = |name: &str| {
                let names = |argument: &Arg| {
                    argument
                        .get_long()
                        .into_iter()
                        .chain(argument.get_all_aliases().into_iter().flatten())
                        .any(|n| n == name)
                };
                command.get_arguments().any(names) || ["help", "version"].contains(&name)
            };
            for argument in command.get_arguments() {
                let texts = [argument.get_help(), argument.get_long_help()].into_iter().flatten();
                let text = texts.map(ToString::to_string).collect::<Vec<_>>().join(" ");
                for part in text.split("--").skip(1) {
                    let name: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
                    let name = name.trim_end_matches('-');
                    assert!(name.is_empty() || known(name), "{path}: the help of {} names --{name}", argument.get_id());
                }
            }
            command.get_subcommands().for_each(|inner| check(inner, &format!("{path} {}", inner.get_name())));
        }
        check(&crate::cli::Arguments::command(), "tweedie");
    }

    /// A number that cannot be is answered as a value, and not as an option that there is none of.
    #[test]
    fn negative_numbers_are_values() {
        for (option, value) in [
            ("--steps", "-5"),
            ("--width", "-64"),
            ("--num-images", "-1"),
            ("--sigmas", "-1"),
            ("--crop-top-left", "-1,2"),
        ] {
            let message = given::<TextToImageRequest>(&["--prompt", "x", option, value]).err().map(|e| e.to_string());
            let message = message.unwrap_or_default();
            assert!(
                option == "--sigmas" || message.contains(&format!("invalid value '{value}' for '{option}")),
                "{message}"
            );
        }
    }

    #[test]
    fn a_seed_can_be_drawn() -> Result<(), clap::Error> {
        let seeds = ["random", "-1", "random", "-1"]
            .map(|seed| given::<TextToImageRequest>(&["--prompt", "x", "--seed", seed]));
        let seeds =
            seeds.into_iter().map(|given| Ok(given?["seed"].as_u64())).collect::<Result<Vec<_>, clap::Error>>()?;
        assert!(seeds.iter().all(|seed| seed.is_some_and(|seed| u32::try_from(seed).is_ok())), "{seeds:?}");
        assert!(seeds.iter().any(|seed| *seed != seeds[0]), "{seeds:?}");
        assert!(given::<TextToImageRequest>(&["--prompt", "x", "--seed", "-2"]).is_err());
        Ok(())
    }
}
