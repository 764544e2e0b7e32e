//! Which pictures a folder has, and of which classes.

use crate::files::read_text;
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// The file of labels and texts in Hugging Face's imagefolder.
pub(super) const METADATA: &str = "metadata.jsonl";
/// Bytes of the largest one that is read.
const LARGEST_METADATA: u64 = 1 << 30;
/// Numbered classes are counted from 0, so a large number would make as many.
const LARGEST_CLASS: u64 = 99_999;

/// What a folder says of its pictures; at least one.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub paths: Vec<PathBuf>,
    pub labels: Option<Vec<u32>>,
    pub classes: Vec<String>,
    /// Each picture's texts, at least one.
    pub captions: Option<Vec<Vec<String>>>,
    /// What each picture's line has under `shows`; empty if there is no list.
    pub shows: Vec<Option<Value>>,
    /// The line of each picture in the list, counted from 1; empty if there is no list.
    pub lines: Vec<usize>,
}

/// Lists a folder.
pub(super) fn list(folder: &Path) -> Result<Listing> {
    let metadata = folder.join(METADATA);
    if metadata.exists() { by_metadata(folder, &metadata) } else { by_folders(folder) }
}

/// Pictures in the folder itself have no label; those in sub-folders have the sub-folder's name.
fn by_folders(folder: &Path) -> Result<Listing> {
    let mut direct = Vec::new();
    let mut others = Vec::new();
    let mut groups = Vec::new();
    for path in visible(folder)? {
        if path.is_dir() {
            let mut pictures = Vec::new();
            walk(&path, &mut vec![real(folder)?], &is_picture, &mut pictures)?;
            if !pictures.is_empty() {
                groups.push((name_of(&path)?, pictures));
            }
        } else if is_picture(&path) {
            direct.push(path);
        } else {
            others.push(path);
        }
    }
    match (direct.first(), groups.first()) {
        (None, None) => Err(no_picture(folder, &others)),
        (Some(_), None) => Ok(Listing { paths: direct, ..Listing::default() }),
        (Some(direct), Some((name, _))) => {
            let value = format!("beside the sub-folder {name}");
            let fix = "sub-folders are classes; put every picture into one, or all of them beside each other";
            Err(Error::unusable(ErrorKind::File, format!("the picture {}", direct.display()), value, fix))
        }
        (None, Some(_)) => {
            let classes = ordered(groups.iter().map(|(name, _)| name.clone()).collect());
            let position = |name: &String| classes.iter().position(|class| class == name).unwrap_or_default();
            groups.sort_by_key(|(name, _)| position(name));
            let mut listing = Listing { labels: Some(Vec::new()), ..Listing::default() };
            for (label, (_, pictures)) in (0u32..).zip(groups) {
                listing.labels.iter_mut().for_each(|labels| labels.extend(pictures.iter().map(|_| label)));
                listing.paths.extend(pictures);
            }
            listing.classes = classes;
            Ok(listing)
        }
    }
}

pub(super) fn no_picture(folder: &Path, others: &[PathBuf]) -> Error {
    let found = match others {
        [] => "empty".to_owned(),
        [one, ..] => format!("without a picture ({} other files, such as {})", others.len(), one.display()),
    };
    let fix = "give a folder of PNG, JPEG or WebP files, with labels in a metadata.jsonl or by sub-folders if there are \
               any, or a folder of IDX files (train-images-idx3-ubyte.gz and so on)";
    Error::unusable(ErrorKind::File, format!("the data folder {}", folder.display()), found, fix)
}

/// All files below a folder that are `wanted`. `above` are the folders that lead to it: a link to one of them is not followed.
pub(super) fn walk(
    folder: &Path,
    above: &mut Vec<PathBuf>,
    wanted: &dyn Fn(&Path) -> bool,
    files: &mut Vec<PathBuf>,
) -> Result<()> {
    let real = real(folder)?;
    if above.contains(&real) {
        return Ok(());
    }
    above.push(real);
    for path in visible(folder)? {
        if path.is_dir() {
            walk(&path, above, wanted, files)?;
        } else if wanted(&path) {
            files.push(path);
        }
    }
    above.pop();
    Ok(())
}

fn real(folder: &Path) -> Result<PathBuf> {
    folder.canonicalize().map_err(Error::io("read", folder))
}

/// What is in a folder, by name, but for hidden files and what macOS leaves in archives.
fn visible(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b".") && name != "__MACOSX" {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

pub(super) fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["png", "jpg", "jpeg", "webp"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

fn name_of(folder: &Path) -> Result<String> {
    let name = folder.file_name().and_then(|name| name.to_str()).map(String::from);
    name.ok_or_else(|| {
        Error::unusable(
            ErrorKind::File,
            "the sub-folder",
            folder.display(),
            "its name is a class and must be UTF-8; rename it",
        )
    })
}

/// Names in their order: by number if all are numbers.
fn ordered(names: BTreeSet<String>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().collect();
    let numbers: Option<Vec<u64>> = names.iter().map(|name| name.parse().ok()).collect();
    if numbers.is_some() {
        names.sort_by_key(|name| name.parse::<u64>().unwrap_or_default());
    }
    names
}

/// What one line says.
struct Line {
    number: usize,
    path: PathBuf,
    label: Option<Value>,
    texts: Option<Vec<String>>,
    shows: Option<Value>,
}

fn by_metadata(folder: &Path, metadata: &Path) -> Result<Listing> {
    let size = metadata.metadata().map_err(Error::io("read", metadata))?.len();
    if size > LARGEST_METADATA {
        let reason = format!("it has {size} bytes, and at most {LARGEST_METADATA} are read");
        return Err(Error::malformed(ErrorKind::File, "list of pictures", metadata, reason));
    }
    let text = read_text("list of pictures", metadata)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut lines = lines
        .map(|(i, line)| {
            parse(folder, i + 1, line)
                .map_err(|reason| Error::malformed(ErrorKind::File, "list of pictures", metadata, reason))
        })
        .collect::<Result<Vec<_>>>()?;
    lines.sort_by(|a, b| a.path.cmp(&b.path));
    let fail = |reason: String| Error::malformed(ErrorKind::File, "list of pictures", metadata, reason);
    if lines.is_empty() {
        return Err(fail("it names no picture; give a JSON object with file_name on each line".into()));
    }
    if let Some(pair) = lines.windows(2).find(|pair| pair[0].path == pair[1].path) {
        let path = pair[0].path.display();
        return Err(fail(format!("lines {} and {} both name {path}; keep one", pair[0].number, pair[1].number)));
    }
    let (labels, classes) = labels(&lines).map_err(fail)?;
    let captions = for_all(&lines, "text", |line| line.texts.clone()).map_err(fail)?;
    let mut listing = Listing { labels, classes, captions, ..Listing::default() };
    for Line { number, path, shows, .. } in lines {
        listing.lines.push(number);
        listing.paths.push(path);
        listing.shows.push(shows);
    }
    Ok(listing)
}

fn parse(folder: &Path, number: usize, line: &str) -> Result<Line, String> {
    let fields: Map<String, Value> = serde_json::from_str(line).map_err(|e| format!("line {number}: {e}"))?;
    let one_of = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name)).filter(|value| !value.is_null());
    let name = fields.get("file_name").and_then(Value::as_str);
    let name = Path::new(name.ok_or_else(|| format!("line {number} has no file_name"))?);
    if !name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("line {number}: file_name is {}, which is not below this folder", name.display()));
    }
    let texts = one_of(["text", "caption"]).map(|value| {
        texts(value)
            .ok_or_else(|| format!("line {number}: the text is {value}; it must be a string, or a list of some"))
    });
    Ok(Line {
        number,
        path: folder.join(name),
        label: one_of(["label", "class"]).cloned(),
        texts: texts.transpose()?,
        shows: fields.get("shows").filter(|value| !value.is_null()).cloned(),
    })
}

/// One text, or several.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(values) if !values.is_empty() => {
            values.iter().map(|value| value.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    }
}

/// A field of every line, or of none.
fn for_all<T>(lines: &[Line], field: &str, get: impl Fn(&Line) -> Option<T>) -> Result<Option<Vec<T>>, String> {
    let values: Vec<Option<T>> = lines.iter().map(get).collect();
    let without = values.iter().position(Option::is_none).map(|i| lines[i].number);
    let with = values.iter().position(Option::is_some).map(|i| lines[i].number);
    match (with, without) {
        (None, _) => Ok(None),
        (Some(_), None) => Ok(Some(values.into_iter().flatten().collect())),
        (Some(with), Some(without)) => {
            Err(format!("line {with} has a {field} and line {without} has none; give it to all or to none"))
        }
    }
}

/// What is wrong with a picture of a list, with the line that names it.
pub(super) fn in_line(error: &Error, list: &Path, line: usize) -> Error {
    Error::malformed(ErrorKind::File, "list of pictures", list, format!("line {line}: {error}"))
}

/// Labels and the names of their classes: numbers from 0, or names.
fn labels(lines: &[Line]) -> Result<(Option<Vec<u32>>, Vec<String>), String> {
    let Some(values) = for_all(lines, "label", |line| line.label.clone())? else { return Ok((None, Vec::new())) };
    if let Some(numbers) = values.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>() {
        let largest = numbers.iter().max().copied().unwrap_or_default();
        if largest > LARGEST_CLASS {
            return Err(format!(
                "the label {largest} is too large; numbered classes end at {LARGEST_CLASS}, names do not"
            ));
        }
        let labels = numbers.into_iter().map(|number| number as u32).collect();
        return Ok((Some(labels), (0..=largest).map(|class| class.to_string()).collect()));
    }
    let names: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
    let names = names.ok_or("labels must all be whole numbers from 0, or all names")?;
    let classes = ordered(names.iter().map(|name| (*name).to_owned()).collect());
    let positions: std::collections::BTreeMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let labels = names.iter().map(|name| positions[name]).collect();
    Ok((Some(labels), classes))
}
