//! What reads the bytes of others, each with what it may take of memory: tests give it files that they damaged, fuzzing whatever it
//! comes upon.
//!
//! Each says whether anything was read.
#![allow(unsafe_code, dead_code)] // the allocator; every program uses a part

pub mod memory;
pub mod requests;
pub mod runs;

use memory::bounded;

use candle_core::{DType, Device};
use std::path::Path;
use tweedie::adapters::{Loras, TextualInversion};
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision, TensorFile};
use tweedie::config::ConfigFields;
use tweedie::families::{Families, Family, SD1, SDXL};
use tweedie::images::{Mask, Photo, read_picture_text};
use tweedie::text::{ForeignSyntax, Tokenizer, weighted_chunks};
use tweedie::training::data::{IDX_FILES, Split, read_idx};

pub type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Opens a file of weights, reads all of it, and looks for a whole model in it.
pub fn weights(folder: &Path, bytes: &[u8]) -> TestResult<bool> {
    std::fs::write(folder.join("x"), bytes)?;
    let files = ModelFiles::folder(folder)?;
    Ok(bounded("a file of weights", bytes.len(), 32, || {
        let Ok(file) = TensorFile::open(&files, "x") else { return false };
        for stored in file.tensors() {
            let _ = file.read(&stored, DType::F32, &Device::Cpu);
            let _ = file.scalar(&stored);
        }
        let _ = Families::built_in().detect_file(&file);
        true
    }))
}

/// Opens a LoRA file of Stable Diffusion XL, which also may be a textual inversion.
pub fn lora(path: &Path, bytes: &[u8]) -> TestResult<bool> {
    std::fs::write(path, bytes)?;
    Ok(bounded("a LoRA", bytes.len(), 64, || {
        let loras = Loras::open([(path, 1.0)], &SDXL.lora_target(2));
        let finished = loras.and_then(|loras| loras.embeddings().and_then(|_| loras.finish("a test's model")));
        assert!(finished.as_ref().is_err() || finished.as_ref().is_ok_and(|warnings| warnings.len() <= 1));
        let embedding = TextualInversion::read(path, None);
        finished.is_ok() || embedding.is_ok()
    }))
}

/// A component's configuration.
pub fn configuration(component: &'static str, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    bounded(component, bytes.len(), 64, || {
        let Ok(fields) = ConfigFields::from_json(component, &text, Path::new("config.json")) else { return false };
        let _ = fields.reject_unread();
        true
    })
}

/// The architecture of a model whose folder has configurations of so many bytes.
pub fn architecture(model: &Path, length: usize) -> TestResult<bool> {
    let files = ModelFiles::folder(model)?;
    Ok(bounded("an architecture", length, 64, || {
        let _ = Families::built_in().detect(&files);
        SD1.architecture(&files).is_ok()
    }))
}

/// A component's weights by an index of so many bytes.
pub fn shards(model: &Path, component: &str, length: usize) -> TestResult<bool> {
    let files = ModelFiles::folder(model)?;
    Ok(bounded("an index", length, 64, || {
        Checkpoint::open(&files, component, Precision::Full, DType::F32, &Device::Cpu).is_ok()
    }))
}

/// A picture, and the mask that it is.
pub fn picture(bytes: &[u8]) -> bool {
    let multiple = match (bytes.first(), bytes.get(12..16)) {
        // One colour takes no bytes however often: the limits of all pictures are all that there is.
        (_, Some(b"VP8L" | b"VP8X")) => (4 << 30) / bytes.len(),
        // Zeros take a thousandth of their length.
        (Some(0x89), _) => 8 * 1032,
        _ => 64 * 1032,
    };
    bounded("a picture", bytes.len(), multiple, || {
        Photo::decode(bytes, Path::new("x.png")).map(|photo| Mask::from_photo(&photo)).is_ok()
    })
}

/// Texts in a picture's file.
pub fn picture_text(bytes: &[u8]) -> bool {
    let path = Path::new("x.png");
    let text = bounded("a picture's text", bytes.len(), 64, || read_picture_text(bytes, path));
    text.is_ok_and(|chunks| !chunks.is_empty())
}

/// Images and labels for training, from a folder.
pub fn idx(folder: &Path, images: &[u8], labels: &[u8]) -> TestResult<bool> {
    let [images_name, labels_name, ..] = IDX_FILES.map(|name| folder.join(name.trim_end_matches(".gz")));
    std::fs::write(images_name, images)?;
    std::fs::write(labels_name, labels)?;
    // gzip makes a thousandth of zeros.
    let compressed = [images, labels].iter().any(|file| file.starts_with(b"\x1f\x8b"));
    let multiple = if compressed { 4 * 1032 } else { 64 };
    Ok(bounded("a set", images.len() + labels.len(), multiple, || read_idx(folder, Split::Train)).is_ok())
}

/// A tokenizer of so many bytes in a model's folder, and what it makes of prompts.
pub fn tokenizer(model: &Path, length: usize) -> TestResult<bool> {
    let files = ModelFiles::folder(model)?;
    Ok(bounded("a tokenizer", length, 256, || {
        let Ok(tokenizer) = Tokenizer::from_files(&files, "tokenizer") else { return false };
        for prompt in PROMPTS {
            // What it says of a prompt, or that it cannot be read, is its own matter.
            let _ = tokenizer.encode(prompt);
        }
        true
    }))
}

/// Prompts that have in them what tokenizers and their rules tell apart.
pub const PROMPTS: [&str; 5] =
    ["", " ", "a  photo  x of <|endoftext|>  x <|startoftext|>", "İstanbul 🦊\u{301}  xx\n x ", "\u{0}\u{feff}ǅ"];

/// A prompt, plain and weighted, with what other programs would act on.
pub fn prompt(tokenizer: &Tokenizer, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    bounded("a prompt", bytes.len(), 2000, || {
        let chunks = weighted_chunks(tokenizer, &text).map_err(|error| error.to_string());
        assert!(chunks.is_ok_and(|chunks| !chunks.is_empty()), "{text}");
        assert!(tokenizer.encode(&text).is_ok_and(|tokens| tokens.ids.len() == tokenizer.max_length()), "{text}");
        let _ = ForeignSyntax::of(&text);
        let _ = tokenizer.unknown_words(&text);
    });
}
