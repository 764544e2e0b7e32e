//! Whatever is in a file, it is read or refused, and takes a bounded multiple of its length in memory: good files of every kind
//! that is read, flipped, cut, repeated and filled, where they are checked by sums with the right ones.
//!
//! An allocator counts, so this is a program of its own with one test.
#![allow(unsafe_code)]

mod png_files;
mod torch_files;

use candle_core::{DType, Device, Tensor};
use png_files::{chunks_of, png_file};
use serde_json::Value;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use torch_files::zip;
use tweedie::adapters::{Loras, TextualInversion};
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision, TensorFile};
use tweedie::config::ConfigFields;
use tweedie::families::{Families, Family, SD1, SDXL};
use tweedie::images::{Mask, Photo, read_png_text};
use tweedie::text::{Tokenizer, weighted_chunks};
use tweedie::training::data::{IDX_FILES, Split, SplitMix64, read_idx};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The system's allocator, which counts what is held and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grown(size: usize) {
    let held = HELD.fetch_add(size, Relaxed) + size;
    MOST.fetch_max(held, Relaxed);
}

// SAFETY: all is done by the system's allocator, with the arguments as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are those that are needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that reading may take beside the multiple: buffers, tables, what threads keep.
const SPARED: usize = 16 << 20;

/// What reading gives, and that it takes no more than `multiple` of the bytes of input.
fn bounded<T>(what: &str, length: usize, multiple: usize, read: impl FnOnce() -> T) -> T {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let result = read();
    let taken = MOST.load(Relaxed).saturating_sub(before);
    assert!(taken <= multiple * length + SPARED, "{what} of {length} bytes took {taken}");
    result
}

struct Damage(SplitMix64);

impl Damage {
    fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit.max(1) as u64) as usize
    }

    /// A few changes of bytes: some flipped or set, a part cut out, repeated, or put in.
    fn of(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(64)).min(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let part = bytes[at..end].repeat(1 + self.below(200));
                    bytes.splice(at..at, part);
                }
                3 => {
                    let part: Vec<u8> = (0..self.below(40)).map(|_| self.below(256) as u8).collect();
                    bytes.splice(at..at, part);
                }
                4 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                5 if at < bytes.len() => bytes[at] = [0, 0xff, 0x7f, 0x80][self.below(4)],
                // What numbers and names in text are made of.
                _ if at < bytes.len() => bytes[at] = b"0123456789-.,:{}[]()\"\\ _eE"[self.below(26)],
                _ => {}
            }
        }
        bytes
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Opens a file of weights and reads all of it.
fn read_weights(folder: &Path, bytes: &[u8]) -> TestResult<bool> {
    std::fs::write(folder.join("x"), bytes)?;
    let files = ModelFiles::folder(folder)?;
    Ok(bounded("a file of weights", bytes.len(), 32, || {
        let Ok(file) = TensorFile::open(&files, "x") else { return false };
        for stored in file.tensors() {
            let _ = file.read(&stored, DType::F32, &Device::Cpu);
            let _ = file.scalar(&stored);
        }
        true
    }))
}

/// Headers and configurations of millions of bytes, of small values: each a small multiple, or not even read.
fn long_headers(folder: &Path) -> TestResult {
    let dimensions =
        format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{}1],\"data_offsets\":[0,4]}}}}", "1,".repeat(2 << 20));
    let said = format!(
        "{{\"__metadata__\":{{{}\"\":\"\"}}}}",
        (0..200_000).map(|i| format!("\"{i}\":\"\",")).collect::<String>()
    );
    let one = |i: usize| format!("\"{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let many = |count: usize| format!("{{{}}}", (0..count).map(one).collect::<Vec<_>>().join(","));
    for (header, rest, good) in [
        (dimensions, 4, true),
        (said, 0, true),
        (many(90_000), 0, true),
        (many(110_000), 0, false),
        (" ".repeat(40 << 20), 0, false),
    ] {
        std::fs::write(folder.join("x"), with_header(header.as_bytes(), &[0; 4][..rest]))?;
        let files = ModelFiles::folder(folder)?;
        let read = bounded("a long header", header.len(), 16, || TensorFile::open(&files, "x").is_ok());
        assert_eq!(read, good, "{} bytes", header.len());
    }
    Ok(())
}

/// The header of a safetensors file, and the rest.
fn header(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    rest.split_at_checked(u64::from_le_bytes(*length) as usize)
}

fn with_header(header: &[u8], rest: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, rest].concat()
}

fn weights(damage: &mut Damage, folder: &Path) -> TestResult {
    let tensors: BTreeMap<String, Tensor> = (0..6)
        .map(|i| Ok((format!("layer.{i}.weight"), Tensor::zeros((i + 1, 3), DType::F32, &Device::Cpu)?)))
        .collect::<TestResult<_>>()?;
    let safetensors = safetensors::serialize(&tensors, None)?;
    let (good, rest) = header(&safetensors).ok_or("no header")?;
    let torch = torch_files::checkpoint(&tensors)?;
    let mut pickle = b"}(".to_vec();
    for i in 0..6u8 {
        torch_files::text(&mut pickle, &format!("layer.{i}"));
        torch_files::view(&mut pickle, "0", 6, 0, (&[2, 3], &[1, 2]));
    }
    pickle.extend(b"u.");
    assert!(read_weights(folder, &safetensors)? && read_weights(folder, &torch)?);
    let mut opened = [0; 4];
    for _ in 0..1500 {
        let files = [
            damage.of(&safetensors),
            with_header(&damage.of(good), rest),
            damage.of(&torch),
            zip(&[("archive/data.pkl", &damage.of(&pickle)), ("archive/data/0", &[0; 24])]),
        ];
        for (opened, file) in opened.iter_mut().zip(&files) {
            *opened += usize::from(read_weights(folder, file)?);
        }
    }
    assert!(opened.iter().all(|&opened| (1..1500).contains(&opened)), "{opened:?} of 1500");
    // Instructions of a pickle alone, of all kinds, which build what they can.
    for _ in 0..1500 {
        let instructions: Vec<u8> = (0..damage.below(3000))
            .map(|_| b"]})(0t\x85\x86\x87seauNK\x01q\0h\0RbQl\x94\x88"[damage.below(26)])
            .collect();
        read_weights(folder, &zip(&[("archive/data.pkl", &[b"]q\0(", &instructions[..], b"."].concat())]))?;
    }
    Ok(())
}

/// Names made of what names of all programs are made of.
fn lora_names(damage: &mut Damage, folder: &Path) -> TestResult {
    const PARTS: [&str; 32] = [
        "lora_unet_",
        "lora_te_",
        "lora_te2_",
        "lycoris_",
        "base_model.model.",
        "unet.",
        "text_encoder.",
        "clip_g.",
        "bundle_emb.",
        "word",
        "down_blocks",
        "_0_",
        ".0.",
        "attn1",
        "to_q",
        "input_blocks_",
        "99",
        "text_model.",
        ".lora_A",
        ".lora_down",
        ".default",
        ".weight",
        ".alpha",
        ".diff_b",
        ".on_input",
        ".lokr_t2",
        ".string_to_param.*",
        ".oft_blocks",
        "..",
        "é",
        "\u{1b}",
        "",
    ];
    let path = folder.join("names.safetensors");
    let one = Tensor::ones((2, 2), DType::F32, &Device::Cpu)?;
    for _ in 0..400 {
        let name = |damage: &mut Damage| {
            (0..1 + damage.below(7)).map(|_| PARTS[damage.below(PARTS.len())]).collect::<String>()
        };
        let tensors: BTreeMap<String, &Tensor> = (0..1 + damage.below(8)).map(|_| (name(damage), &one)).collect();
        let tensors: BTreeMap<String, Tensor> =
            tensors.into_iter().map(|(name, tensor)| (name, tensor.clone())).collect();
        let bytes = safetensors::serialize(&tensors, None)?;
        std::fs::write(&path, &bytes)?;
        bounded("a LoRA", bytes.len(), 64, || {
            let loras = Loras::open([(path.as_path(), 1.0)], &SDXL.lora_target(2));
            let finished = loras.and_then(|loras| loras.embeddings().and_then(|_| loras.finish("a test's model")));
            assert!(finished.is_err() || !finished.is_ok_and(|warnings| warnings.len() > 1));
            let _ = TextualInversion::read(&path, None);
        });
    }
    Ok(())
}

fn configurations(damage: &mut Damage, folder: &Path) -> TestResult {
    let path = Path::new("config.json");
    let model = folder.join("model");
    std::fs::create_dir_all(model.join("unet"))?;
    let shards =
        br#"{"metadata": {}, "weight_map": {"conv_in.weight": "part-1.safetensors", "b": "part-2.safetensors"}}"#;
    let (mut read, mut tried) = (0, 0);
    for name in ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"] {
        let original = std::fs::read(golden("models/sd15").join(name))?;
        for _ in 0..400 {
            let bytes = damage.of(&original);
            let text = String::from_utf8_lossy(&bytes);
            read += usize::from(bounded(name, bytes.len(), 64, || {
                let Ok(fields) = ConfigFields::from_json("unet", &text, path) else { return false };
                let _ = fields.reject_unread();
                true
            }));
            tried += 1;
            if name.starts_with("unet") {
                std::fs::write(model.join(name), &bytes)?;
                let files = ModelFiles::folder(&model)?;
                bounded(name, bytes.len(), 64, || {
                    let _ = Families::built_in().detect(&files);
                    let _ = SD1.architecture(&files);
                });
                std::fs::write(model.join("unet/diffusion_pytorch_model.safetensors.index.json"), damage.of(shards))?;
                bounded("an index", shards.len(), 64, || {
                    let _ = Checkpoint::open(&files, "unet", Precision::Full, DType::F32, &Device::Cpu);
                });
            }
        }
    }
    assert!((1..tried).contains(&read), "{read} of {tried}");
    // A value of JSON takes 72 bytes, and a list of them twice as much while it grows; what is longer than any is not even read.
    let long = format!("{{\"a\": [{}0]}}", "0,".repeat(3 << 19));
    assert!(bounded("a long configuration", long.len(), 108, || ConfigFields::from_json("unet", &long, path)).is_ok());
    let longer = format!("{{\"a\": [{}0]}}", "0,".repeat(5 << 20));
    assert!(bounded("a longer one", longer.len(), 1, || ConfigFields::from_json("unet", &longer, path)).is_err());
    Ok(())
}

fn pictures(damage: &mut Damage) -> TestResult {
    let path = Path::new("x.png");
    let read = |bytes: &[u8]| {
        let multiple = match (bytes.first(), bytes.get(12..16)) {
            // One colour takes no bytes however often: the limits of all pictures are all that there is.
            (_, Some(b"VP8L" | b"VP8X")) => (4 << 30) / bytes.len(),
            // Zeros take a thousandth of their length.
            (Some(0x89), _) => 8 * 1032,
            _ => 64 * 1032,
        };
        bounded("a picture", bytes.len(), multiple, || {
            let photo = Photo::decode(bytes, path);
            let mask = photo.as_ref().ok().map(Mask::from_photo);
            (photo.is_ok(), mask.is_some())
        })
        .0
    };
    let entries =
        std::fs::read_dir(golden("pictures/files"))?.map(|entry| Ok(entry?.path())).collect::<TestResult<Vec<_>>>()?;
    let mut files: Vec<_> = entries.into_iter().filter(|path| !path.to_string_lossy().contains("expected")).collect();
    files.sort();
    let (mut whole, mut texts) = (0, 0);
    for file in &files {
        let bytes = std::fs::read(file)?;
        for _ in 0..60 {
            whole += usize::from(read(&damage.of(&bytes)));
        }
        // Past the sums that PNG protects its chunks by.
        let Some(chunks) = chunks_of(&bytes) else { continue };
        for _ in 0..60 {
            let mut chunks = chunks.clone();
            let text = [&b"tweedie\0"[..], &damage.of(b"{\"seed\": 1, \"prompt\": \"a fox\"}")].concat();
            chunks.insert(1, (*[b"tEXt", b"iTXt", b"zTXt"][damage.below(3)], text));
            let chosen = damage.below(chunks.len());
            chunks[chosen].1 = damage.of(&chunks[chosen].1);
            let file = png_file(chunks.iter().map(|(name, data)| (name, data.as_slice())));
            whole += usize::from(read(&file));
            let text = bounded("a picture's text", file.len(), 64, || read_png_text(&file, path));
            texts += usize::from(text.is_ok_and(|chunks| !chunks.is_empty()));
        }
    }
    assert!(whole > 50 && texts > 50, "{whole} pictures and {texts} texts of {} files were read", files.len());
    Ok(())
}

fn idx(damage: &mut Damage, folder: &Path) -> TestResult {
    let [images, labels, ..] = IDX_FILES.map(|name| folder.join(name.trim_end_matches(".gz")));
    let of_images = [&[0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 4][..], &[7; 80]].concat();
    let of_labels = [&[0, 0, 8, 1, 0, 0, 0, 5][..], &[0, 1, 2, 1, 0]].concat();
    let mut read = 0;
    for i in 0..600 {
        let damaged = [damage.of(&of_images), damage.of(&of_labels)];
        std::fs::write(&images, if i % 3 == 0 { &of_images } else { &damaged[0] })?;
        std::fs::write(&labels, if i % 3 == 1 { &of_labels } else { &damaged[1] })?;
        let length = damaged.iter().map(Vec::len).sum();
        read += usize::from(bounded("a set", length, 64, || read_idx(folder, Split::Train)).is_ok());
    }
    assert!((1..600).contains(&read), "{read}");
    Ok(())
}

fn prompts(damage: &mut Damage) -> TestResult {
    let tokenizer = Tokenizer::from_files(&ModelFiles::folder(&golden("models/sd15"))?, "tokenizer")?;
    let prompt = "a (fluffy:1.3) [cat] (((and))) a \\(dog\\) BREAK on <lora:ink:0.8> a {hill}, 日本, [a:b:0.5]";
    for _ in 0..600 {
        let bytes = damage.of(prompt.as_bytes());
        let text = String::from_utf8_lossy(&bytes);
        bounded("a prompt", bytes.len(), 2000, || {
            let chunks = weighted_chunks(&tokenizer, &text).map_err(|error| error.to_string());
            assert!(chunks.is_ok_and(|chunks| !chunks.is_empty()), "{text}");
            assert!(tokenizer.encode(&text).is_ok_and(|tokens| tokens.ids.len() == tokenizer.max_length()), "{text}");
        });
    }
    Ok(())
}

#[test]
fn damaged_files_are_read_or_refused_in_bounded_memory() -> TestResult {
    let folder = tempfile::tempdir()?;
    let mut damage = Damage(SplitMix64::new(7));
    // What is made once, such as the threads, is no reader's.
    let _: Vec<usize> = rayon::broadcast(|context| context.index());
    weights(&mut damage, folder.path())?;
    long_headers(folder.path())?;
    lora_names(&mut damage, folder.path())?;
    configurations(&mut damage, folder.path())?;
    pictures(&mut damage)?;
    idx(&mut damage, folder.path())?;
    prompts(&mut damage)?;
    // The counting counts.
    let caught = std::panic::catch_unwind(|| bounded("nothing", 0, 1, || vec![1u8; SPARED + 1].len()));
    assert!(caught.is_err());
    let value: Value = serde_json::from_str("[1]")?;
    assert!(bounded("little", 3, 1, || value.clone()) == value);
    Ok(())
}
