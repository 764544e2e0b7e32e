//! Options from files: `tweedie.toml` where the program is started, then the user's own `config.toml`. What the command line
//! gives goes before both, the first of the files before the second, and both before what a model's `defaults.json` says.
//!
//! A file has options under their long names without dashes, for all commands that make pictures, or for one in a table of its
//! name; where to compute holds for every command. So the steps of a picture are not those of a training run.
//!
//! ```toml
//! device = "cpu"
//!
//! [txt2img]
//! model = "sd15"
//! steps = 20
//! ```

use super::Arguments;
use super::failure::WrongUsage;
use super::print;
use super::tips::with_tip;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::{Table, Value};
use tweedie::files::read_text;
use tweedie_pipelines::most_alike;

/// The file of a project, in the folder where the program is started.
const PROJECT_FILE: &str = "tweedie.toml";

/// Options that belong to one run: a file that is forgotten must not replace, destroy or repeat anything.
const OF_ONE_RUN: [&str; 7] = ["force", "help", "like", "no-config", "output", "resume", "version"];

/// The commands for which options stand outside of tables.
const DRAWING: [&str; 4] = ["img2img", "inpaint", "sample", "txt2img"];

/// Options that do so for all others too.
const OF_ALL: [&str; 6] = ["device", "dtype", "max-memory", "offline", "quiet", "threads"];

/// A picture that says what another file would.
const LIKE: &str = "like";

/// What the command line and the files say. Help and errors of the command line end the program, as clap does.
pub fn parse() -> anyhow::Result<Arguments> {
    let given: Vec<OsString> = std::env::args_os().collect();
    let with_files = match with_files(&given)? {
        Some(arguments) => arguments,
        None => given,
    };
    let mut root = Arguments::command();
    match root.try_get_matches_from_mut(with_files) {
        Ok(matches) => Ok(Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())),
        Err(error) => with_tip(error, &root).exit(),
    }
}

/// The command line with the options of the files, or nothing if it has all.
fn with_files(given: &[OsString]) -> anyhow::Result<Option<Vec<OsString>>> {
    let files = files();
    if files.is_empty() {
        return Ok(None);
    }
    let root = Arguments::command();
    // What is wrong with it is said later, to all of it.
    let Ok(matches) = root.clone().ignore_errors(true).try_get_matches_from(given) else { return Ok(None) };
    if matches.get_flag("no_config") {
        return Ok(None);
    }
    let Some(chosen) = Chosen::of(&root, &matches, given) else { return Ok(None) };
    let (mut added, mut keys) = (Vec::new(), Vec::new());
    for path in files {
        let taken = chosen.options(&path, &keys)?;
        if taken.is_empty() {
            continue;
        }
        let shown: Vec<String> = taken.iter().map(|option| option.shown()).collect();
        if !chosen.is_given("quiet") {
            print::remark(&format!("from {}: {}", path.display(), shown.join(", ")));
        }
        keys.extend(taken.iter().map(|option| option.key.clone()));
        added.extend(taken.into_iter().flat_map(Taken::into_arguments));
    }
    if added.is_empty() {
        return Ok(None);
    }
    let (before, after) = given.split_at(chosen.end);
    Ok(Some(before.iter().cloned().chain(added).chain(after.iter().cloned()).collect()))
}

/// The files that there are, the first of which goes before the second.
fn files() -> Vec<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = folder("XDG_CONFIG_HOME").or_else(|| match cfg!(windows) {
        true => folder("APPDATA"),
        false => folder("HOME").map(|home| home.join(".config")),
    });
    let user = user.map(|folder| folder.join("tweedie").join("config.toml"));
    [Some(PathBuf::from(PROJECT_FILE)), user].into_iter().flatten().filter(|path| path.is_file()).collect()
}

/// The command that was chosen.
struct Chosen<'a> {
    root: &'a Command,
    /// Its names from the program's on, and it: `train`, `train mnist`.
    path: Vec<String>,
    command: &'a Command,
    matches: &'a ArgMatches,
    /// Where its own arguments begin.
    end: usize,
}

impl<'a> Chosen<'a> {
    fn of(root: &'a Command, matches: &'a ArgMatches, given: &[OsString]) -> Option<Self> {
        let (mut command, mut matches) = (root, matches);
        let (mut path, mut end) = (Vec::<String>::new(), 1);
        while let Some((name, inner)) = matches.subcommand() {
            command = command.find_subcommand(name)?;
            end += 1 + given.get(end..)?.iter().position(|argument| argument == name)?;
            path.push(path.last().map_or_else(|| name.to_owned(), |outer| format!("{outer} {name}")));
            matches = inner;
        }
        (!path.is_empty()).then_some(Self { root, path, command, matches, end })
    }

    fn is_given(&self, id: &str) -> bool {
        self.matches.ids().any(|known| known == id) && self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// The options of a file that the command has, and that neither the command line nor a file before has given.
    fn options(&self, path: &Path, before: &[String]) -> anyhow::Result<Vec<Taken>> {
        let text = read_text("file of options", path)?;
        let table: Table = toml::from_str(&text).map_err(|error| {
            let line = 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count());
            WrongUsage(format!("{}: line {line}: {}", path.display(), error.message()))
        })?;
        check_tables(self.root, &table, "").map_err(|fault| WrongUsage(format!("{}: {fault}", path.display())))?;
        let mut found: Vec<Taken> = Vec::new();
        // What is said for the command itself goes before what is said for more.
        for (name, table) in self.tables(&table) {
            for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
                let taken = self.option(key, value, &name).map_err(|fault| {
                    let place = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    WrongUsage(format!("{}: {place} {fault}", path.display()))
                })?;
                let fresh =
                    |taken: &Taken| !before.contains(&taken.key) && found.iter().all(|other| other.key != taken.key);
                found.extend(taken.filter(fresh));
            }
        }
        Ok(found)
    }

    /// Tables that concern the command, with their names: its own, that of the commands around it, that of all.
    fn tables<'t>(&self, root: &'t Table) -> Vec<(String, &'t Table)> {
        let inner = |name: &String| {
            let table = name.split(' ').try_fold(root, |table, part| table.get(part)?.as_table())?;
            Some((name.replace(' ', "."), table))
        };
        self.path.iter().rev().filter_map(inner).chain([(String::new(), root)]).collect()
    }

    /// The option of the command whose name is like another.
    fn nearest(&self, key: &str) -> String {
        nearest(key, self.command.get_arguments().filter_map(Arg::get_long))
    }

    /// What a key stands for: nothing if the command does not have it, or has been given it or another in its place.
    fn option(&self, key: &str, value: &Value, table: &str) -> Result<Option<Taken>, String> {
        if OF_ONE_RUN.contains(&key) {
            return Err("belongs to one run, on the command line".into());
        }
        let for_all = table.is_empty();
        let of_all = || argument_of(self.root, key).filter(|argument| argument.is_global_set());
        let Some(argument) = argument_of(self.command, key).or_else(of_all) else {
            let known = for_all && somewhere(self.root, key);
            return if known { Ok(None) } else { Err(format!("is no option of these commands{}", self.nearest(key))) };
        };
        if for_all && !DRAWING.contains(&self.path[0].as_str()) && !OF_ALL.contains(&key) {
            return Ok(None);
        }
        // Either of the two may be the one that says so.
        let excludes = |one: &Arg, other: &Arg| {
            self.command.get_arg_conflicts_with(one).iter().any(|found| found.get_id() == other.get_id())
        };
        let excluded = |other: &Arg| {
            self.is_given(other.get_id().as_str()) && (excludes(other, argument) || excludes(argument, other))
        };
        let taken_by_picture = self.is_given(LIKE) && key != "model" && !OF_ALL.contains(&key);
        if self.is_given(argument.get_id().as_str()) || self.command.get_arguments().any(excluded) || taken_by_picture {
            return Ok(None);
        }
        let values = match (value, argument.get_action()) {
            (Value::Boolean(false), ArgAction::SetTrue) => return Ok(None),
            (Value::Boolean(true), ArgAction::SetTrue) => Vec::new(),
            (_, ArgAction::SetTrue) => return Err("is true or false".into()),
            (Value::Array(values), _) => {
                values.iter().map(text).collect::<Option<_>>().ok_or("has a value of no use")?
            }
            (value, _) => vec![text(value).ok_or("has a value of no use")?],
        };
        Ok(Some(Taken { key: key.into(), values }))
    }
}

/// That every table is one of a command.
fn check_tables(command: &Command, table: &Table, around: &str) -> Result<(), String> {
    let tables = table.iter().filter_map(|(name, value)| Some((name, value.as_table()?)));
    for (name, inner) in tables {
        let place = if around.is_empty() { name.clone() } else { format!("{around}.{name}") };
        let Some(command) = command.find_subcommand(name) else {
            let nearest = nearest(name, command.get_subcommands().map(Command::get_name));
            return Err(format!("the table [{place}] is of no command{nearest}"));
        };
        check_tables(command, inner, &place)?;
    }
    Ok(())
}

/// What was perhaps meant by a name that is none of those that there are.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    most_alike(name, known).map_or(String::new(), |known| format!("; did you mean {known}?"))
}

/// The option of a command with a long name.
pub(super) fn argument_of<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| argument.get_long() == Some(key))
}

/// Whether a command or one inside it has an option.
fn somewhere(command: &Command, key: &str) -> bool {
    argument_of(command, key).is_some() || command.get_subcommands().any(|inner| somewhere(inner, key))
}

/// A value as the command line has it.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        _ => None,
    }
}

/// An option of a file.
#[derive(Debug, Clone, PartialEq)]
struct Taken {
    key: String,
    /// None if it is given or not.
    values: Vec<String>,
}

impl Taken {
    fn shown(&self) -> String {
        format!("{} {}", self.key, self.values.join(" ")).trim_end().to_owned()
    }

    fn into_arguments(self) -> Vec<OsString> {
        let flag = format!("--{}", self.key);
        match self.values.is_empty() {
            true => vec![flag.into()],
            false => self.values.into_iter().map(|value| format!("{flag}={value}").into()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    /// What a file adds to a command line.
    fn added(file: &str, line: &[&str]) -> anyhow::Result<Vec<String>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("tweedie.toml");
        std::fs::write(&path, file)?;
        let given: Vec<OsString> = ["tweedie"].iter().chain(line).map(OsString::from).collect();
        let root = Arguments::command();
        let matches = root.clone().ignore_errors(true).try_get_matches_from(&given)?;
        let chosen = Chosen::of(&root, &matches, &given).context("no command")?;
        let taken = chosen.options(&path, &[])?;
        Ok(taken.into_iter().flat_map(Taken::into_arguments).map(|part| part.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn the_command_line_goes_first_and_the_commands_own_table_before_all() -> anyhow::Result<()> {
        let file = "steps = 5\nquiet = true\nlora = [\"a\", \"b:0.5\"]\n[txt2img]\nsteps = 7\nwidth = 64\n[img2img]\nsteps = 9\n[train.mnist]\nlearning-rate = 1e-3";
        let all = added(file, &["txt2img", "a fox"])?;
        assert_eq!(all, ["--steps=7", "--width=64", "--lora=a", "--lora=b:0.5", "--quiet"]);
        let some = added(file, &["txt2img", "--steps", "3", "--lora=c", "a fox", "--size", "8x8"])?;
        assert_eq!(some, ["--quiet"], "--size is width and height");
        assert_eq!(
            added(file, &["train", "mnist", "--data", "x", "--output", "y"])?,
            ["--learning-rate=0.001", "--quiet"]
        );
        assert_eq!(added(file, &["txt2img", "--like", "a.png"])?, ["--quiet"]);
        assert_eq!(added("threads = 3", &["model", "info"])?, ["--threads=3"]);
        Ok(())
    }

    #[test]
    fn what_a_file_cannot_mean_is_named_with_its_place() {
        for (file, parts) in [
            ("force = true", vec!["force", "command line"]),
            ("[txt2img]\noutput = \"x\"", vec!["txt2img.output", "command line"]),
            ("stepz = 3", vec!["stepz", "no option"]),
            ("[txt2img]\nlearning-rate = 3", vec!["txt2img.learning-rate", "no option"]),
            ("quiet = 3", vec!["quiet", "true or false"]),
            ("steps = ", vec!["tweedie.toml: line 1: "]),
            ("[txt2im]\nsteps = 3", vec!["[txt2im]", "did you mean txt2img?"]),
            ("[train.mnisd]\nsteps = 3", vec!["[train.mnisd]", "did you mean mnist?"]),
            ("stepss = 3", vec!["did you mean steps?"]),
        ] {
            let message = added(file, &["txt2img", "a"]).err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(parts.iter().all(|part| message.contains(part)), "{file}: {message}");
        }
    }
}
