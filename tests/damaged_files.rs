//! Whatever is in a file, it is read or refused, and takes a bounded multiple of its length in memory: good files of every kind
//! that is read, flipped, cut, repeated and filled, where they are checked by sums with the right ones.
//!
//! An allocator counts, so this is a program of its own with one test.

mod png_files;
mod readers;
mod torch_files;

use candle_core::{DType, Device, Tensor};
use png_files::{chunks_of, png_file};
use readers::TestResult;
use readers::memory::{SPARED, bounded};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use torch_files::zip;
use tweedie::checkpoints::{ModelFiles, TensorFile};
use tweedie::config::ConfigFields;
use tweedie::images::{ColorType, Photo, PictureFormat, Samples, TextChunk};
use tweedie::text::Tokenizer;
use tweedie::training::data::SplitMix64;
use tweedie_pipelines::{DTypeChoice, DeviceChoice, LatentDiffusion};

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
    let gguf = std::fs::read(golden("gguf/tensors.gguf"))?;
    let mut pickle = b"}(".to_vec();
    for i in 0..6u8 {
        torch_files::text(&mut pickle, &format!("layer.{i}"));
        torch_files::view(&mut pickle, "0", 6, 0, (&[2, 3], &[1, 2]));
    }
    pickle.extend(b"u.");
    assert!(
        [&safetensors, &torch, &gguf].into_iter().all(|file| readers::weights(folder, file).is_ok_and(|read| read))
    );
    let mut opened = [0; 5];
    for _ in 0..1500 {
        let files = [
            damage.of(&safetensors),
            with_header(&damage.of(good), rest),
            damage.of(&torch),
            zip(&[("archive/data.pkl", &damage.of(&pickle)), ("archive/data/0", &[0; 24])]),
            damage.of(&gguf),
        ];
        for (opened, file) in opened.iter_mut().zip(&files) {
            *opened += usize::from(readers::weights(folder, file)?);
        }
    }
    assert!(opened.iter().all(|&opened| (1..1500).contains(&opened)), "{opened:?} of 1500");
    // Instructions of a pickle alone, of all kinds, which build what they can.
    for _ in 0..1500 {
        let instructions: Vec<u8> = (0..damage.below(3000))
            .map(|_| b"]})(0t\x85\x86\x87seauNK\x01q\0h\0RbQl\x94\x88"[damage.below(26)])
            .collect();
        readers::weights(folder, &zip(&[("archive/data.pkl", &[b"]q\0(", &instructions[..], b"."].concat())]))?;
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
        readers::lora(&path, &bytes)?;
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
            read += usize::from(readers::configuration("unet", &bytes));
            tried += 1;
            if name.starts_with("unet") {
                std::fs::write(model.join(name), &bytes)?;
                readers::architecture(&model, bytes.len())?;
                std::fs::write(model.join("unet/diffusion_pytorch_model.safetensors.index.json"), damage.of(shards))?;
                readers::shards(&model, "unet", shards.len())?;
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
    let entries =
        std::fs::read_dir(golden("pictures/files"))?.map(|entry| Ok(entry?.path())).collect::<TestResult<Vec<_>>>()?;
    let mut files: Vec<_> = entries.into_iter().filter(|path| !path.to_string_lossy().contains("expected")).collect();
    files.sort();
    let (mut whole, mut texts) = (0, 0);
    for file in &files {
        let bytes = std::fs::read(file)?;
        for _ in 0..60 {
            whole += usize::from(readers::picture(&damage.of(&bytes)));
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
            whole += usize::from(readers::picture(&file));
            texts += usize::from(readers::picture_text(&file));
        }
    }
    assert!(whole > 50 && texts > 50, "{whole} pictures and {texts} texts of {} files were read", files.len());
    long_chunks()
}

/// A chunk beside the pixels of a WebP file that states more bytes than the file has takes no memory for them.
fn long_chunks() -> TestResult {
    let photo = Photo::new(4, 4, ColorType::Rgb, Samples::Eight(vec![7; 48]))?;
    let bytes = photo.encode(PictureFormat::WebP, &[TextChunk::new("parameters", "a fox")])?;
    assert!(readers::picture(&bytes) && readers::picture_text(&bytes));
    let exif = bytes.windows(4).position(|name| name == b"EXIF").ok_or("no EXIF data")?;
    for name in [b"EXIF", b"ICCP", b"XMP "] {
        let mut file = bytes.clone();
        file[exif..exif + 4].copy_from_slice(name);
        file[exif + 4..exif + 8].copy_from_slice(&0x2000_0000u32.to_le_bytes());
        assert!(!readers::picture_text(&file), "{name:?}");
        let (decode, path) = (|path| Photo::decode(&file, path), Path::new("x.webp"));
        let error = bounded("a picture", file.len(), 64, || decode(path)).err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains("truncated")), "{name:?}: {error:?}");
    }
    Ok(())
}

fn idx(damage: &mut Damage, folder: &Path) -> TestResult {
    let images = [&[0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 4][..], &[7; 80]].concat();
    let labels = [&[0, 0, 8, 1, 0, 0, 0, 5][..], &[0, 1, 2, 1, 0]].concat();
    let mut read = 0;
    for i in 0..600 {
        let damaged = [damage.of(&images), damage.of(&labels)];
        let images = if i % 3 == 0 { &images } else { &damaged[0] };
        let labels = if i % 3 == 1 { &labels } else { &damaged[1] };
        read += usize::from(readers::idx(folder, images, labels)?);
    }
    assert!((1..600).contains(&read), "{read}");
    Ok(())
}

fn tokenizers(damage: &mut Damage, folder: &Path) -> TestResult {
    let classic = golden("models/sd15/tokenizer");
    let json = std::fs::read(golden("tokenizer/json/tokenizer.json"))?;
    let (vocab, merges) = (std::fs::read(classic.join("vocab.json"))?, std::fs::read(classic.join("merges.txt"))?);
    let (mut read, mut tried) = (0, 0);
    let mut made = |name: &str, files: &[(&str, &[u8])]| -> TestResult {
        let at = folder.join(name).join("tokenizer");
        std::fs::create_dir_all(&at)?;
        files.iter().try_for_each(|(name, bytes)| std::fs::write(at.join(name), bytes))?;
        read += usize::from(readers::tokenizer(&folder.join(name), files.iter().map(|file| file.1.len()).sum())?);
        tried += 1;
        Ok(())
    };
    made("good", &[("vocab.json", &vocab), ("merges.txt", &merges)])?;
    for _ in 0..60 {
        made("json", &[("tokenizer.json", &damage.of(&json))])?;
        made("vocabulary", &[("vocab.json", &damage.of(&vocab)), ("merges.txt", &merges)])?;
        made("merges", &[("vocab.json", &vocab), ("merges.txt", &damage.of(&merges))])?;
    }
    assert!((2..tried).contains(&read), "{read} of {tried}");
    Ok(())
}

fn prompts(damage: &mut Damage) -> TestResult {
    let tokenizer = Tokenizer::from_files(&ModelFiles::folder(&golden("models/sd15"))?, "tokenizer")?;
    let prompt = "a (fluffy:1.3) [cat] (((and))) a \\(dog\\) BREAK on <lora:ink:0.8> a {hill}, 日本, [a:b:0.5]";
    for _ in 0..600 {
        readers::prompt(&tokenizer, &damage.of(prompt.as_bytes()));
    }
    for nested in ["[a|", "(", "<lora:", ":", "BREAK "] {
        readers::prompt(&tokenizer, nested.repeat(20_000).as_bytes());
    }
    readers::prompt(&tokenizer, ("[a|".repeat(20_000) + &"]".repeat(20_000)).as_bytes());
    Ok(())
}

fn run_folders(damage: &mut Damage, folder: &Path) -> TestResult {
    let good = readers::runs::good_files(&folder.join("saved"))?;
    let mut read = 0;
    for i in 0..300 {
        let mut files = good.clone();
        if i > 0 {
            let chosen = damage.below(files.len());
            files[chosen] = damage.of(&files[chosen]);
        }
        let run = tempfile::tempdir_in(folder)?;
        read += usize::from(readers::runs::run_folder(run.path(), &files)?);
        assert!(i > 0 || read == 1, "a run that went well cannot go on");
    }
    assert!((2..300).contains(&read), "{read} of 300");
    let [_, log, ..] = good;
    let drawn = (0..60).map(|_| readers::runs::run_log(tempfile::tempdir_in(folder)?.path(), &damage.of(&log)));
    let drawn = drawn.collect::<TestResult<Vec<_>>>()?;
    assert!(drawn.contains(&true), "no log was drawn");
    Ok(())
}

/// Requests and the settings of pictures, for a small model.
fn requests(damage: &mut Damage, folder: &Path) -> TestResult {
    let builder = LatentDiffusion::builder().model_folder(golden("models/sd15"));
    let model = builder.device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build()?;
    let request = json!({
        "prompt": "a (red:1.2) fox", "negative_prompt": "blurry", "prompt_syntax": "weighted", "steps": 3, "guidance_scale": 7.5,
        "guidance_interval": [0.3, 5.0], "apg": {"eta": 0.0}, "scheduler": "dpm++2m-karras", "seed": 7, "width": 64, "height": 64,
        "scheduler_config": {"beta_start": 0.001}, "clip_skip": 1, "num_images": 2,
    });
    let settled = model.settle(&serde_json::from_value::<tweedie_pipelines::TextToImageRequest>(request.clone())?)?;
    let settings = model.record(&settled).json(7);
    let (request, settings) = (request.to_string(), settings.to_string());
    assert!(readers::requests::request(&model, request.as_bytes()));
    assert!(readers::requests::settings(&model, folder, settings.as_bytes())?);
    let mut read = [0; 2];
    for _ in 0..300 {
        read[0] += usize::from(readers::requests::request(&model, &damage.of(request.as_bytes())));
        read[1] += usize::from(readers::requests::settings(&model, folder, &damage.of(settings.as_bytes()))?);
    }
    assert!(read.iter().all(|&read| (1..300).contains(&read)), "{read:?} of 300");
    // As other programs write settings.
    let chunks = model.record(&settled).chunks(7);
    let parameters = chunks.iter().find(|chunk| chunk.keyword == TextChunk::PARAMETERS).ok_or("no parameters")?;
    for _ in 0..300 {
        readers::requests::settings(&model, folder, &damage.of(parameters.text.as_bytes()))?;
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
    tokenizers(&mut damage, folder.path())?;
    prompts(&mut damage)?;
    run_folders(&mut damage, folder.path())?;
    requests(&mut damage, folder.path())?;
    // The counting counts.
    let caught = std::panic::catch_unwind(|| bounded("nothing", 0, 1, || vec![1u8; SPARED + 1].len()));
    assert!(caught.is_err());
    let value: Value = serde_json::from_str("[1]")?;
    assert!(bounded("little", 3, 1, || value.clone()) == value);
    Ok(())
}
