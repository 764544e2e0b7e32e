//! What to do about a command line that is not understood, where clap's own tips would lead astray.

use super::config_file::argument_of;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

/// The error with a tip of this program's, if it has one.
pub fn with_tip(mut error: Error, root: &Command) -> Error {
    let tip = match (error.kind(), text(&error, ContextKind::InvalidArg), text(&error, ContextKind::InvalidSubcommand))
    {
        (ErrorKind::UnknownArgument, Some(given), _) => of_argument(&given, root),
        (ErrorKind::InvalidSubcommand, _, Some(given)) if given.contains(' ') => {
            Some(format!("a picture of a text: tweedie txt2img {given:?}"))
        }
        _ => None,
    };
    if let Some(tip) = tip {
        for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::TrailingArg] {
            error.remove(kind);
        }
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

fn text(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// Of an argument that a command does not take: a word of a prompt without quotes, or an option of other commands.
fn of_argument(given: &str, root: &Command) -> Option<String> {
    let Some(name) = given.strip_prefix("--") else {
        return (!given.starts_with('-')).then(|| "a prompt of several words stands in quotes".to_owned());
    };
    // Those that a prompt is given to.
    let has = |command: &&Command| ["prompt", name].iter().all(|long| argument_of(command, long).is_some());
    let those: Vec<_> = root.get_subcommands().filter(has).map(Command::get_name).collect();
    (!those.is_empty()).then(|| format!("{given} is an option of {}", those.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn what_is_meant_is_said() {
        for (line, tip) in [
            (&["txt2img", "a", "fox"][..], "a prompt of several words stands in quotes"),
            (&["txt2img", "a", "--strength", "0.5"], "--strength is an option of img2img and inpaint"),
            (&["a fox on a beach"], "tweedie txt2img \"a fox on a beach\""),
            (&["txt2img", "a", "--stepz", "3"], "--steps"),
        ] {
            let mut root = crate::cli::Arguments::command();
            let parsed = root.try_get_matches_from_mut(["tweedie"].iter().chain(line));
            let message = parsed.err().map(|error| with_tip(error, &root).to_string()).unwrap_or_default();
            assert!(message.contains(tip), "{message}");
        }
    }
}
