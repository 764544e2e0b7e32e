//! The options that the library's messages name, as flags.

use super::Arguments;
use clap::{Command, CommandFactory};
use std::collections::BTreeSet;
use std::sync::LazyLock;
use tweedie::with_options;

/// Every flag of every command, without its dashes.
static FLAGS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    fn add(command: &Command, flags: &mut BTreeSet<String>) {
        flags.extend(command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned));
        command.get_subcommands().for_each(|command| add(command, flags));
    }
    let mut flags = BTreeSet::new();
    add(&Arguments::command(), &mut flags);
    flags
});

/// The flag of a request's field, if there is one.
fn flag(field: &str) -> Option<String> {
    let name = field.replace('_', "-");
    FLAGS.contains(&name).then(|| format!("--{name}"))
}

/// A message of the library's, with flags in it.
pub fn in_text(text: &str) -> String {
    with_options(text, &flag)
}

/// The message of one cause of an error.
pub fn in_error(cause: &(dyn std::error::Error + 'static)) -> String {
    match cause.downcast_ref::<tweedie::Error>() {
        Some(error) => error.message(&flag),
        None => cause.to_string(),
    }
}
