//! Where pictures go. An existing file is replaced only if the user says so.

use super::failure::wrong_usage;
use super::print;
use anyhow::{Context, anyhow, bail};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use tweedie::files::{Existing, folder_of, write_file, write_synced};
use tweedie::images::PictureFormat;

/// The longest part of a prompt in a file name.
const LONGEST_SLUG: usize = 48;

/// What stands for standard output in the place of a file.
const STDOUT: &str = "-";

/// The files of a request, known and checked before anything is computed.
#[derive(Debug)]
pub struct Output {
    paths: Vec<PathBuf>,
    format: PictureFormat,
    /// Whether the one picture goes to standard output.
    to_stdout: bool,
    /// Whether the folder around it is made where it is missing.
    makes_folder: bool,
    force: bool,
    /// Where files are whose names were taken by others in the meantime.
    moved: RefCell<BTreeMap<usize, PathBuf>>,
}

impl Output {
    /// Plans `count` files: the one that was asked for, with `-0`, `-1`, ... before its extension if there are
    /// several; or names made from prompt and seed that are still free, or whatever they are with `force`. `-` is standard output,
    /// for one picture.
    pub fn plan(asked: Option<&Path>, prompt: &str, seed: u64, count: usize, force: bool) -> anyhow::Result<Self> {
        let to_stdout = asked.is_some_and(|path| path == Path::new(STDOUT));
        let (paths, format) = match asked {
            Some(_) if to_stdout && count > 1 => {
                wrong_usage!("--output - takes one picture, and there are {count}; make one, or put them into a --grid")
            }
            Some(_) if to_stdout && std::io::stdout().is_terminal() => {
                wrong_usage!(
                    "--output - writes the picture's bytes, and standard output is a terminal; send it elsewhere (> fox.png)"
                )
            }
            Some(path) if to_stdout => (vec![path.into()], PictureFormat::Png),
            Some(path) => (numbered(path, count)?, PictureFormat::of_path(path)?),
            None => {
                let name = format!("{}-{seed}", slug(prompt));
                let paths = match force {
                    true => numbered(Path::new(&format!("{name}.png")), count)?,
                    false => unused_names(&name, count)?,
                };
                (paths, PictureFormat::Png)
            }
        };
        let output = Self { paths, to_stdout, ..Self::of_format(format, force) };
        if !to_stdout {
            output.check()?;
        }
        Ok(output)
    }

    /// Files in a folder, which is made with the first of them unless it is there: the number of a prompt, then its words. They
    /// may be there already.
    pub fn in_folder(folder: &Path, number: usize, prompt: &str, count: usize, force: bool) -> anyhow::Result<Self> {
        if folder.exists() && !folder.is_dir() {
            bail!("{} is there and is no folder; choose another --output for the pictures", folder.display());
        }
        let paths = numbered(&folder.join(format!("{number:04}-{}.png", slug(prompt))), count)?;
        Ok(Self { paths, makes_folder: true, ..Self::of_format(PictureFormat::Png, force) })
    }

    /// No file yet.
    fn of_format(format: PictureFormat, force: bool) -> Self {
        Self { paths: Vec::new(), format, to_stdout: false, makes_folder: false, force, moved: RefCell::default() }
    }

    /// One PNG file, of another option than `--output`.
    pub fn one(path: &Path, force: bool) -> anyhow::Result<Self> {
        let output = Self::plan(Some(path), "", 0, 1, force)?;
        if output.format != PictureFormat::Png || output.to_stdout {
            wrong_usage!("the output {} does not end in .png, and this is saved as PNG", path.display());
        }
        Ok(output)
    }

    /// The format of its pictures.
    pub fn format(&self) -> PictureFormat {
        self.format
    }

    /// Whether its picture goes to standard output, where nothing else may go then.
    pub fn is_stdout(&self) -> bool {
        self.to_stdout
    }

    /// That nothing but its picture goes to standard output if that goes there.
    pub fn spare_stdout(&self, json: bool) -> anyhow::Result<()> {
        if self.to_stdout && json {
            wrong_usage!("--json and --output - both write to standard output; leave one away");
        }
        Ok(())
    }

    /// Prints the names of its files, of which standard output is none.
    pub fn print_names(&self) -> anyhow::Result<()> {
        if self.to_stdout {
            return Ok(());
        }
        print::lines(self.paths().iter().map(|path| path.display().to_string()))
    }

    /// The files, in the order of the images; of those that are written, where they are.
    pub fn paths(&self) -> Vec<PathBuf> {
        let moved = self.moved.borrow();
        let paths = self.paths.iter().enumerate();
        paths.map(|(index, path)| moved.get(&index).unwrap_or(path).clone()).collect()
    }

    /// Makes sure that no two of a run's options name the same file.
    pub fn apart(outputs: &[&Self]) -> anyhow::Result<()> {
        let (mut places, mut folders) = (HashSet::new(), HashMap::new());
        for path in outputs.iter().flat_map(|output| &output.paths) {
            let folder = folder_of(path);
            let real = folders.entry(folder).or_insert_with(|| folder.canonicalize().unwrap_or_else(|_| folder.into()));
            if !places.insert(real.join(path.file_name().unwrap_or_default())) {
                wrong_usage!("two options name the output {}; give each another one", path.display());
            }
        }
        Ok(())
    }

    /// Whether every file can be made, so that nothing is computed in vain.
    fn check(&self) -> anyhow::Result<()> {
        let mut tried = HashSet::new();
        for path in &self.paths {
            let folder = folder_of(path);
            if !folder.is_dir() {
                bail!("the output folder {} does not exist; create it or choose another --output", folder.display());
            }
            if path.is_dir() || path.as_os_str().to_string_lossy().ends_with(std::path::MAIN_SEPARATOR) {
                wrong_usage!(
                    "the output {} is a folder; give a file name in it, such as {}",
                    path.display(),
                    path.join("picture.png").display()
                );
            }
            // A link that leads nowhere is there too.
            match path.symlink_metadata() {
                Ok(_) if !self.force => {
                    bail!("{} exists; choose another --output, or --force to replace it", path.display())
                }
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot write {}", path.display()));
                }
                _ => {}
            }
            if tried.insert(folder)
                && let Err(error) = tempfile::tempfile_in(folder)
            {
                bail!("the output folder {} cannot be written to: {}", folder.display(), error.kind());
            }
        }
        Ok(())
    }

    /// Makes sure that none of the files that a run reads would be replaced.
    pub fn spare(&self, inputs: &[&Path]) -> anyhow::Result<()> {
        for path in &self.paths {
            let Ok(target) = path.canonicalize() else { continue };
            if inputs.iter().any(|input| input.canonicalize().is_ok_and(|input| input == target)) {
                bail!("the output {} is an input too, which is never replaced; choose another", path.display());
            }
        }
        Ok(())
    }

    /// Writes a file whole or not at all, and gives where it is: if another process has taken its name since it was found free,
    /// under the next one.
    pub fn write(&self, index: usize, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let path = &self.paths[index];
        if self.to_stdout {
            return print::bytes(bytes).map(|()| path.clone());
        }
        if self.makes_folder {
            make_folder(folder_of(path))?;
        }
        if write(path, bytes, self.force)? {
            return Ok(path.clone());
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        for stem in again(&stem).skip(1) {
            let path = path.with_file_name(with_extension_of(path, &stem));
            if write(&path, bytes, false)? {
                self.moved.borrow_mut().insert(index, path.clone());
                return Ok(path);
            }
        }
        bail!("every name like {} is taken; choose another --output", path.display())
    }
}

/// A folder that is made for a run's files.
#[derive(Debug)]
pub struct NewFolder {
    path: PathBuf,
    force: bool,
}

impl NewFolder {
    /// Plans a folder: one that is not there yet, or is empty; with `force` any.
    pub fn plan(path: &Path, force: bool) -> anyhow::Result<Self> {
        let empty = match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !folder_of(path).is_dir() {
                    bail!("the folder {} does not exist; create it first", folder_of(path).display());
                }
                true
            }
            Err(error) => bail!("{} cannot be a folder for files: {}", path.display(), error.kind()),
        };
        if !empty && !force {
            bail!("the folder {} is not empty; choose a new one, or --force to write into it", path.display());
        }
        Ok(Self { path: path.to_path_buf(), force })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file in it whole or not at all; the first one makes the folder.
    pub fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        make_folder(&self.path)?;
        let path = self.path.join(name);
        if !write(&path, bytes, self.force)? {
            bail!("{} is there by now; choose a new folder, or --force to write into it", path.display());
        }
        Ok(())
    }
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path)
        .map_err(|error| anyhow!("cannot create the folder {}: {}", path.display(), error.kind()))
}

/// Whether a file was written, which it is not if its name is taken.
fn write(path: &Path, bytes: &[u8], force: bool) -> anyhow::Result<bool> {
    let existing = if force { Existing::GivesWay } else { Existing::Stays };
    Ok(write_file(path, existing, |staged| write_synced(staged, bytes))?)
}

fn numbered(path: &Path, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    if [".png", ".jpg", ".jpeg", ".webp"].contains(&stem.as_str()) {
        wrong_usage!("the output {} has no name before {stem}", path.display());
    }
    if count == 1 {
        return Ok(vec![path.to_path_buf()]);
    }
    Ok((0..count).map(|i| path.with_file_name(with_extension_of(path, &format!("{stem}-{i}")))).collect())
}

/// Another name with a path's extension.
fn with_extension_of(path: &Path, stem: &str) -> String {
    match path.extension() {
        Some(extension) => format!("{stem}.{}", extension.to_string_lossy()),
        None => stem.to_owned(),
    }
}

/// Names in the current folder of which none is taken: `stem`, then `stem-again`, `stem-again-2`, ...
fn unused_names(stem: &str, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    for stem in again(stem) {
        let paths = numbered(Path::new(&format!("{stem}.png")), count)?;
        if paths.iter().all(|path| !path.exists()) {
            return Ok(paths);
        }
    }
    bail!("every name made from the prompt is taken; choose one with --output")
}

/// A name, and those to take if it is taken.
fn again(stem: &str) -> impl Iterator<Item = String> {
    (0..10_000).map(move |attempt| match attempt {
        0 => stem.to_owned(),
        1 => format!("{stem}-again"),
        n => format!("{stem}-again-{n}"),
    })
}

/// Letters and digits of a prompt, joined by hyphens.
fn slug(prompt: &str) -> String {
    let words: Vec<String> =
        prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    let mut slug = String::new();
    for word in words {
        if slug.len() + word.len() >= LONGEST_SLUG {
            break;
        }
        if !slug.is_empty() {
            slug.push('-');
        }
        slug += &word;
    }
    if slug.is_empty() { "picture".into() } else { slug }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_words_of_the_prompt() {
        assert_eq!(slug("A fox, on a (blue) background!"), "a-fox-on-a-blue-background");
        assert_eq!(slug("../../etc"), "etc");
        assert_eq!(slug("???"), "picture");
        assert!(slug(&"word ".repeat(100)).len() <= LONGEST_SLUG);
    }

    #[test]
    fn a_name_that_was_taken_in_the_meantime_costs_no_picture() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("fox.png");
        let outputs = (0..3).map(|_| Output::plan(Some(&path), "", 0, 1, false)).collect::<Result<Vec<_>, _>>()?;
        let written = outputs.iter().map(|output| output.write(0, b"picture")).collect::<Result<Vec<_>, _>>()?;
        let names = ["fox.png", "fox-again.png", "fox-again-2.png"].map(|name| folder.path().join(name));
        assert_eq!(written, names);
        assert_eq!(outputs[2].paths(), names[2..]);
        assert!(names.iter().all(|name| std::fs::read(name).is_ok_and(|bytes| bytes == b"picture")));
        assert!(Output::plan(Some(&path), "", 0, 1, false).is_err(), "it is there");
        Ok(())
    }

    #[test]
    fn two_options_cannot_name_one_file() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let plan = |name: &str, count| Output::plan(Some(&folder.path().join(name)), "", 0, count, true);
        let [one, same, other] = [plan("a-0.png", 1)?, plan("a.png", 2)?, plan("b.png", 1)?];
        assert!(Output::apart(&[&one, &other]).is_ok());
        assert!(Output::apart(&[&other, &one, &same]).is_err());
        Ok(())
    }

    #[test]
    fn several_files_are_numbered_before_the_extension() -> anyhow::Result<()> {
        let names = numbered(Path::new("out/fox.PNG"), 2)?;
        assert_eq!(names, [Path::new("out/fox-0.PNG"), Path::new("out/fox-1.PNG")]);
        assert!(numbered(Path::new("out/.webp"), 1).is_err());
        Ok(())
    }
}
