//! A folder of captioned pictures.

use super::evenly_spaced;
use super::listing::{METADATA, in_line, is_picture, list, no_picture, walk};
use crate::files::{hexadecimal, read_text};
use crate::images::{CropBox, Photo, Picture};
use crate::text::Tokenizer;
use crate::{Error, ErrorKind, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Pictures that are looked at before one that is none is reported.
const CHUNK: usize = 512;
/// Bytes of the largest file of captions of one picture.
const LARGEST_CAPTIONS: u64 = 1 << 20;

/// Pictures with captions, which stay in their files.
#[derive(Debug, Clone)]
pub struct CaptionedPictures {
    pictures: Vec<CaptionedPicture>,
    source: CaptionSource,
    /// The number of the first picture of a class that is to be kept, if there are such.
    class: Option<usize>,
}

/// Where captions come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CaptionSource {
    /// A list of pictures.
    List(PathBuf),
    /// A file beside each picture.
    Beside,
    /// No file.
    Given,
}

/// A picture's file and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionedPicture {
    /// The file.
    pub path: PathBuf,
    /// Its captions, at least one, none of which is empty.
    pub captions: Vec<String>,
    /// Its line in the list, counted from 1, if there is one.
    line: Option<usize>,
}

/// Of each picture, the token ids of each of its captions, all of one length.
pub type PictureTokens = Vec<Vec<Vec<u32>>>;

/// Finds the captioned pictures of a folder, or of the folder `train` in it if there is one, in the order of their names.
///
/// Captions come from a `metadata.jsonl`, one JSON object a line with `file_name` and `text` (or `caption`), which is a string
/// or a list of several; without one, from a `.txt` file beside each picture that has its name, a caption a line. Pictures of
/// the folder that a list does not name are passed over.
///
/// # Errors
/// If there is no picture, one that is named is not there, one has no caption, a caption is empty or has no picture, or the list
/// cannot be read; the message names the file and the line.
pub fn read_captioned(folder: &Path) -> Result<CaptionedPictures> {
    if !folder.is_dir() {
        let fix = "there is no such folder; give one with pictures and a metadata.jsonl, or with a .txt file beside each picture";
        return Err(Error::missing("the data folder", folder.display(), fix));
    }
    let folder = &training_part(folder);
    let metadata = folder.join(METADATA);
    if metadata.exists() { from_list(folder, &metadata) } else { from_text_files(folder) }
}

/// The folder `train` in a folder if there is one, else that one.
pub(super) fn training_part(folder: &Path) -> PathBuf {
    let train = folder.join("train");
    if train.is_dir() { train } else { folder.to_path_buf() }
}

/// Whether a folder, or the folder `train` in it if there is one, has captions for any picture, as [`read_captioned`] looks for them.
///
/// # Errors
/// If it cannot be read.
pub fn has_captions(folder: &Path) -> Result<bool> {
    let folder = training_part(folder);
    if !folder.is_dir() || folder.join(METADATA).exists() {
        return Ok(folder.is_dir());
    }
    let mut texts = Vec::new();
    walk(&folder, &mut Vec::new(), &is_text, &mut texts)?;
    Ok(!texts.is_empty())
}

fn from_list(folder: &Path, metadata: &Path) -> Result<CaptionedPictures> {
    let fail = |line: usize, reason: String| {
        Err(Error::malformed(ErrorKind::File, "list of pictures", metadata, format!("line {line}: {reason}")))
    };
    let listing = list(folder)?;
    let Some(captions) = listing.captions else {
        return fail(1, "it has no text; give each picture's caption as text, a string or a list of several".into());
    };
    let mut pictures = Vec::with_capacity(listing.paths.len());
    for ((path, captions), line) in listing.paths.into_iter().zip(captions).zip(listing.lines) {
        if !path.is_file() {
            return fail(line, format!("there is no picture {}", path.display()));
        }
        if captions.iter().any(|caption| caption.trim().is_empty()) {
            return fail(line, format!("a caption of {} is empty", path.display()));
        }
        pictures.push(CaptionedPicture { path, captions, line: Some(line) });
    }
    Ok(CaptionedPictures { pictures, source: CaptionSource::List(metadata.to_path_buf()), class: None })
}

fn from_text_files(folder: &Path) -> Result<CaptionedPictures> {
    let mut files = Vec::new();
    walk(folder, &mut Vec::new(), &|path| is_picture(path) || is_text(path), &mut files)?;
    let (paths, texts): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| is_picture(path));
    if paths.is_empty() {
        return Err(no_picture(folder, &texts));
    }
    let beside: BTreeSet<PathBuf> = paths.iter().map(|path| path.with_extension("txt")).collect();
    if let Some(text) = texts.iter().find(|text| !beside.contains(*text)) {
        let fix =
            "put its picture beside it, under the same name with the ending png, jpg, jpeg or webp, or take it away";
        return Err(Error::missing(format!("the picture of the captions {}", text.display()), "missing", fix));
    }
    let pictures = paths.into_iter().map(|path| {
        let captions = captions_beside(&path)?;
        Ok(CaptionedPicture { path, captions, line: None })
    });
    Ok(CaptionedPictures { pictures: pictures.collect::<Result<_>>()?, source: CaptionSource::Beside, class: None })
}

fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "txt")
}

/// The captions in the text file beside a picture.
fn captions_beside(picture: &Path) -> Result<Vec<String>> {
    let path = picture.with_extension("txt");
    let fail = |reason: String| Err(Error::malformed(ErrorKind::File, "file of captions", &path, reason));
    if !path.is_file() {
        let fix = format!("write it into {}, a caption a line, or all captions into a {METADATA}", path.display());
        return Err(Error::missing(format!("the caption of {}", picture.display()), "missing", fix));
    }
    let size = path.metadata().map_err(Error::io("read", &path))?.len();
    if size > LARGEST_CAPTIONS {
        return fail(format!("it has {size} bytes, and at most {LARGEST_CAPTIONS} are read"));
    }
    let text = read_text("file of captions", &path)?;
    let text = text.trim_end();
    if let Some(line) = text.lines().position(|line| line.trim().is_empty()) {
        return fail(format!("line {}: the caption is empty", line + 1));
    }
    match text.is_empty() {
        true => fail("line 1: the caption is empty".into()),
        false => Ok(text.lines().map(|line| line.trim().to_owned()).collect()),
    }
}

/// The pictures of a folder, or of the folder `train` in it if there is one, in the order of their names, all with the same captions.
///
/// # Errors
/// If there is no picture or no caption, or a caption is empty.
pub fn with_captions(folder: &Path, captions: &[String]) -> Result<CaptionedPictures> {
    if captions.is_empty() || captions.iter().any(|caption| caption.trim().is_empty()) {
        return Err(Error::invalid("the caption of all pictures", "empty", "say what they show"));
    }
    if !folder.is_dir() {
        let fix = "there is no such folder; give one with pictures";
        return Err(Error::missing("the data folder", folder.display(), fix));
    }
    let folder = &training_part(folder);
    let mut paths = Vec::new();
    walk(folder, &mut Vec::new(), &is_picture, &mut paths)?;
    if paths.is_empty() {
        return Err(no_picture(folder, &[]));
    }
    let pictures = paths.into_iter().map(|path| CaptionedPicture { path, captions: captions.to_vec(), line: None });
    Ok(CaptionedPictures { pictures: pictures.collect(), source: CaptionSource::Given, class: None })
}

/// The largest part of a picture's middle that has the proportions of a height and width, resampled (Lanczos) if it is not of that
/// size.
pub(super) fn fitted(picture: Picture, (height, width): (usize, usize)) -> Result<Picture> {
    if (picture.height(), picture.width()) == (height, width) {
        return Ok(picture);
    }
    let (inner_height, inner_width) = match picture.width() * height > picture.height() * width {
        true => (picture.height(), (picture.height() * width / height).max(1)),
        false => ((picture.width() * height / width).max(1), picture.width()),
    };
    let (left, top) = ((picture.width() - inner_width) / 2, (picture.height() - inner_height) / 2);
    picture.crop(&CropBox { left, top, width: inner_width, height: inner_height })?.resized(width, height)
}

impl CaptionedPictures {
    /// The number of pictures; never 0.
    #[allow(clippy::len_without_is_empty)] // a set has at least one picture
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// These, and others of the class that they are of, which a model is to keep drawing as it does: the prior preservation of
    /// DreamBooth (Ruiz et al. 2023, section 3.2). [`LatentBatches`](super::LatentBatches) have as many of the ones as of the others.
    #[must_use]
    pub fn with_class(mut self, others: Self) -> Self {
        self.class = Some(self.len());
        // Their lines are those of another list.
        self.pictures.extend(others.pictures.into_iter().map(|picture| CaptionedPicture { line: None, ..picture }));
        self
    }

    /// The number of the first picture of a class that is to be kept, if there are such.
    pub fn class(&self) -> Option<usize> {
        self.class
    }

    /// How many pictures a pass sees where `trained` are trained on: those, or where there is a class that is to be kept, as many of
    /// one kind as of the other.
    pub fn seen_in_epoch(&self, trained: &[usize]) -> usize {
        let of_class = self.class.map_or(0, |class| trained.iter().filter(|&&picture| picture >= class).count());
        match (trained.len() - of_class, of_class) {
            (own, 0) | (0, own) => own,
            (own, of_class) => 2 * own.max(of_class),
        }
    }

    /// The pictures.
    pub fn pictures(&self) -> &[CaptionedPicture] {
        &self.pictures
    }

    /// All captions of all pictures.
    pub fn captions(&self) -> impl Iterator<Item = &str> {
        self.pictures.iter().flat_map(|picture| picture.captions.iter().map(String::as_str))
    }

    /// The first caption that is not as it must be, after where it stands: a file and a line of it, or a picture's file.
    pub fn first_that_fails(&self, fits: impl Fn(&str) -> bool) -> Option<(String, &str)> {
        let each = self.pictures.iter().flat_map(|picture| (0..picture.captions.len()).map(move |i| (picture, i)));
        let (picture, i) = each.into_iter().find(|(picture, i)| !fits(&picture.captions[*i]))?;
        let place = match (&self.source, picture.line) {
            (CaptionSource::List(list), Some(line)) => format!("{}, line {line}", list.display()),
            // A caption a line, none of which is empty.
            (CaptionSource::Beside, _) => format!("{}, line {}", picture.path.with_extension("txt").display(), i + 1),
            _ => picture.path.display().to_string(),
        };
        Some((place, &picture.captions[i]))
    }

    /// Captions of so many pictures at even distances, the first of each; as many as there are pictures at most.
    pub fn some_captions(&self, count: usize) -> Vec<String> {
        evenly_spaced(self.len(), count).into_iter().map(|i| self.pictures[i].captions[0].clone()).collect()
    }

    /// Every picture's captions by their numbers among [`Self::captions`], each in the place of token ids.
    pub fn numbered_captions(&self) -> PictureTokens {
        let mut numbers = 0u32..;
        let of_picture = |picture: &CaptionedPicture| {
            numbers.by_ref().take(picture.captions.len()).map(|number| vec![number]).collect()
        };
        self.pictures.iter().map(of_picture).collect()
    }

    /// Decodes every picture, to see that it is one, and gives their heights and widths.
    ///
    /// # Errors
    /// If one cannot be read; the message names the picture and its line in the list.
    pub fn sizes(&self) -> Result<Vec<(usize, usize)>> {
        let mut sizes = Vec::with_capacity(self.len());
        for chunk in self.pictures.chunks(CHUNK) {
            let size = |picture| self.photo(picture).map(|photo| (photo.height(), photo.width()));
            // The first that fails, in their order, is the one reported.
            let read: Vec<_> = chunk.par_iter().map(size).collect();
            for size in read {
                sizes.push(size?);
            }
        }
        Ok(sizes)
    }

    /// The one height and width of pictures of these sizes.
    ///
    /// # Errors
    /// If they have several; the message names two.
    pub fn one_size(&self, sizes: &[(usize, usize)]) -> Result<(usize, usize)> {
        let first = sizes.first().copied().unwrap_or_default();
        let Some(other) = sizes.iter().position(|size| *size != first) else { return Ok(first) };
        let of = |i: usize| format!("{}x{} in {}", sizes[i].1, sizes[i].0, self.pictures[i].path.display());
        let fix = "all pictures of a set have one size; make them so, or give `resize`, which cuts out each one's centre and \
                   resamples it to N by N";
        Err(Error::unusable(ErrorKind::File, "the pictures' size", format!("{} and {}", of(0), of(other)), fix))
    }

    /// A picture at a height and width: the largest part of its middle that has their proportions, resampled (Lanczos) if
    /// it is not of that size.
    ///
    /// # Errors
    /// If there is no such picture, or it cannot be read.
    pub fn picture(&self, index: usize, (height, width): (usize, usize)) -> Result<Picture> {
        let fix = format!("there are {}", self.len());
        let picture = self.pictures.get(index).ok_or_else(|| Error::invalid("the number of a picture", index, fix))?;
        fitted(self.photo(picture)?.to_picture(), (height, width))
    }

    /// A picture as its file has it; what is wrong with it is told with its line in the list.
    fn photo(&self, picture: &CaptionedPicture) -> Result<Photo> {
        Photo::read(&picture.path).map_err(|error| match (&self.source, picture.line) {
            (CaptionSource::List(list), Some(line)) => in_line(&error, list, line),
            _ => error,
        })
    }

    /// Every picture's captions as token ids; how many captions were too long, and the rest of one of them.
    ///
    /// # Errors
    /// If a caption cannot be tokenized.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<(PictureTokens, Option<(usize, String)>)> {
        let encode = |picture: &CaptionedPicture| -> Result<(Vec<Vec<u32>>, Vec<String>)> {
            let mut cuts = Vec::new();
            let ids = picture.captions.iter().map(|caption| {
                let tokens = tokenizer.encode(caption)?;
                cuts.extend(tokens.cut);
                Ok(tokens.ids)
            });
            Ok((ids.collect::<Result<_>>()?, cuts))
        };
        let encoded = self.pictures.par_iter().map(encode).collect::<Result<Vec<_>>>()?;
        let (tokens, cuts): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
        let mut cuts = cuts.into_iter().flatten();
        let cut = cuts.next().map(|example| (1 + cuts.count(), example));
        Ok((tokens, cut))
    }

    /// The SHA-256 of the pictures' files and all captions, in hexadecimal: what a resumed run compares.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let digest = |picture: &CaptionedPicture| {
            let bytes = std::fs::read(&picture.path).map_err(Error::io("read", &picture.path))?;
            Ok::<_, Error>(Sha256::digest(bytes))
        };
        let digests = self.pictures.par_iter().map(digest).collect::<Result<Vec<_>>>()?;
        let mut hasher = Sha256::new();
        for (digest, picture) in digests.iter().zip(&self.pictures) {
            hasher.update(digest);
            hasher.update((picture.captions.len() as u64).to_le_bytes());
            for caption in &picture.captions {
                hasher.update((caption.len() as u64).to_le_bytes());
                hasher.update(caption);
            }
        }
        Ok(hexadecimal(&hasher.finalize()))
    }
}
