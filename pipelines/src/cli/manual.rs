//! Scripts for shells, and manual pages, from the declarations of commands and options.

use super::Arguments;
use super::failure::wrong_usage;
use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

/// The script that completes commands and options.
pub fn completions(shell: Shell) -> anyhow::Result<String> {
    let mut script = Vec::new();
    generate(shell, &mut Arguments::command(), "tweedie", &mut script);
    Ok(String::from_utf8(script)?)
}

/// The manual page of the command that is reached by these names, in roff.
pub fn page(names: &[String]) -> anyhow::Result<String> {
    let mut command = Arguments::command();
    command.build();
    let mut called = "tweedie".to_owned();
    for name in names {
        let known: Vec<_> = command.get_subcommands().map(Command::get_name).map(str::to_owned).collect();
        let Some(found) = command.find_subcommand(name).cloned() else {
            wrong_usage!("`{called}` has no command `{name}`; it has {}", known.join(", "))
        };
        called = format!("{called}-{name}");
        command = found;
    }
    let mut page = Vec::new();
    Man::new(command.name(called)).render(&mut page).context("cannot write the page")?;
    Ok(String::from_utf8(page)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_every_command() -> anyhow::Result<()> {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            let script = completions(shell)?;
            for word in ["txt2img", "guidance-scale", "train", "mnist"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
        Ok(())
    }

    #[test]
    fn every_command_has_a_page() -> anyhow::Result<()> {
        fn check(command: &Command, names: &[String]) -> anyhow::Result<()> {
            let text = page(names)?;
            assert!(text.contains(".SH NAME") && text.contains("SYNOPSIS"), "{names:?}");
            command
                .get_subcommands()
                .try_for_each(|inner| check(inner, &[names, &[inner.get_name().to_owned()]].concat()))
        }
        check(&Arguments::command(), &[])?;
        let message = page(&["train".into(), "mnis".into()]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains("mnist"), "{message}");
        Ok(())
    }

    /// What clap itself finds wrong with the declarations: two options of one letter, say.
    #[test]
    fn the_declarations_are_sound() {
        Arguments::command().debug_assert();
    }
}
