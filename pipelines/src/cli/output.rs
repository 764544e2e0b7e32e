//! Where pictures go. An existing file is replaced only if the user says so.

use anyhow::{Context, anyhow, bail};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The longest part of a prompt in a file name.
const LONGEST_SLUG: usize = 48;

/// The files of a request, known and checked before anything is computed.
#[derive(Debug)]
pub struct Output {
    paths: Vec<PathBuf>,
    force: bool,
}

impl Output {
    /// Plans `count` files: the one that was asked for, with `-0`, `-1`, ... before its extension if there are
    /// several; or names made from prompt and seed that are still free.
    pub fn plan(asked: Option<&Path>, prompt: &str, seed: u64, count: usize, force: bool) -> anyhow::Result<Self> {
        let paths = match asked {
            Some(path) => numbered(path, count)?,
            None => unused_names(&format!("{}-{seed}", slug(prompt)), count)?,
        };
        let output = Self { paths, force };
        output.check()?;
        Ok(output)
    }

    /// The files, in the order of the images.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether every file can be made, so that nothing is computed in vain.
    fn check(&self) -> anyhow::Result<()> {
        for path in &self.paths {
            let folder = folder_of(path);
            if !folder.is_dir() {
                bail!("the output folder {} does not exist; create it or choose another --output", folder.display());
            }
            if path.is_dir() || path.as_os_str().to_string_lossy().ends_with(std::path::MAIN_SEPARATOR) {
                bail!(
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
            if let Err(error) = tempfile::tempfile_in(folder) {
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

    /// Writes a file whole or not at all.
    pub fn write(&self, index: usize, bytes: &[u8]) -> anyhow::Result<&Path> {
        let path = &self.paths[index];
        write(path, bytes, self.force)?;
        Ok(path)
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
        std::fs::create_dir_all(&self.path)
            .map_err(|error| anyhow!("cannot create the folder {}: {}", self.path.display(), error.kind()))?;
        write(&self.path.join(name), bytes, self.force)
    }
}

fn write(path: &Path, bytes: &[u8], force: bool) -> anyhow::Result<()> {
    let save = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut staged = builder.prefix(".tweedie-").suffix(".part").tempfile_in(folder_of(path))?;
        staged.write_all(bytes)?;
        staged.as_file().sync_all()?;
        if force { staged.persist(path) } else { staged.persist_noclobber(path) }?;
        Ok(())
    };
    save().map_err(|error| anyhow!("cannot write {}: {}", path.display(), error.kind()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn numbered(path: &Path, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    if path.file_name().is_some_and(|name| name == ".png") {
        bail!("the output {} has no name before .png", path.display());
    }
    if extension.as_deref() != Some("png") {
        bail!("the output {} does not end in .png; pictures are saved as PNG", path.display());
    }
    if count == 1 {
        return Ok(vec![path.to_path_buf()]);
    }
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((0..count).map(|i| path.with_file_name(format!("{stem}-{i}.png"))).collect())
}

/// Names in the current folder of which none is taken: `stem`, then `stem-again`, `stem-again-2`, ...
fn unused_names(stem: &str, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    for attempt in 0..10_000 {
        let stem = match attempt {
            0 => stem.to_owned(),
            1 => format!("{stem}-again"),
            n => format!("{stem}-again-{n}"),
        };
        let paths = numbered(Path::new(&format!("{stem}.png")), count)?;
        if paths.iter().all(|path| !path.exists()) {
            return Ok(paths);
        }
    }
    bail!("every name made from the prompt is taken; choose one with --output")
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
    fn several_files_are_numbered_before_the_extension() -> anyhow::Result<()> {
        let names = numbered(Path::new("out/fox.PNG"), 2)?;
        assert_eq!(names, [Path::new("out/fox-0.png"), Path::new("out/fox-1.png")]);
        assert!(numbered(Path::new("fox.jpg"), 1).is_err());
        Ok(())
    }
}
