//! Token ids of transformers' CLIPTokenizer.

mod cases;

use cases::{TestResult, roots};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;
use tweedie::checkpoints::ModelFiles;
use tweedie::text::{Tokenizer, clip_vocabulary};

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_u64().map(|v| v as u32)).collect()
}

/// A copy of a tokenizer's folder with the merges unpacked and another padding.
fn tokenizer(full: &Path, pad: &str) -> TestResult<Tokenizer> {
    let folder = tempfile::tempdir()?;
    let at = folder.path().join("tokenizer");
    std::fs::create_dir(&at)?;
    std::fs::copy(full.join("vocab.json"), at.join("vocab.json"))?;
    let mut merges = String::new();
    if full.join("merges.txt.gz").exists() {
        let packed = std::fs::File::open(full.join("merges.txt.gz"))?;
        flate2::read::GzDecoder::new(packed).read_to_string(&mut merges)?;
    } else {
        merges = std::fs::read_to_string(full.join("merges.txt"))?;
    }
    std::fs::write(at.join("merges.txt"), merges)?;
    let token = |content| serde_json::json!({"content": content, "normalized": true});
    let (start, end) = (token("<|startoftext|>"), token("<|endoftext|>"));
    let config = serde_json::json!({
        "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad, "model_max_length": 77
    });
    std::fs::write(at.join("tokenizer_config.json"), config.to_string())?;
    Ok(Tokenizer::from_files(&ModelFiles::folder(folder.path())?, "tokenizer")?)
}

#[test]
fn golden_token_ids_of_transformers() -> TestResult {
    let (mut checked, mut wrong) = (0, Vec::new());
    for root in roots().iter().map(|root| root.join("tokenizer")).filter(|folder| folder.is_dir()) {
        let prompts: Value = serde_json::from_str(&std::fs::read_to_string(root.join("prompts.json"))?)?;
        let plain = tokenizer(&root.join("full"), "<|endoftext|>")?;
        let zero = tokenizer(&root.join("full"), "!")?;
        for case in prompts["cases"].as_array().into_iter().flatten() {
            let prompt = case["prompt"].as_str().ok_or("no prompt")?;
            let tokens = plain.encode(prompt)?;
            let untruncated = plain.encode_untruncated(prompt)?;
            let right = tokens.ids == ids(&case["ids"])
                && zero.encode(prompt)?.ids == ids(&case["ids_pad0"])
                && untruncated == ids(&case["untruncated"])
                && tokens.cut.is_some() == (untruncated.len() > plain.max_length());
            if !right {
                wrong.push(format!("{prompt:?}"));
            }
            checked += 1;
        }
    }
    assert!(checked > 0, "no golden prompts were found");
    assert!(wrong.is_empty(), "{} of {checked}: {}", wrong.len(), wrong.join(", "));
    Ok(())
}

/// A list of merges alone, compressed, as a single checkpoint file's built-in tokenizer: the vocabulary follows from it.
#[test]
fn golden_vocabulary_follows_from_the_merges() -> TestResult {
    for root in roots().iter().map(|root| root.join("tokenizer/full")).filter(|folder| folder.is_dir()) {
        let mut merges = String::new();
        if root.join("merges.txt.gz").exists() {
            let packed = std::fs::File::open(root.join("merges.txt.gz"))?;
            flate2::read::GzDecoder::new(packed).read_to_string(&mut merges)?;
        } else {
            merges = std::fs::read_to_string(root.join("merges.txt"))?;
        }
        let vocabulary: HashMap<String, usize> =
            serde_json::from_str(&std::fs::read_to_string(root.join("vocab.json"))?)?;
        let made = clip_vocabulary(&merges);
        assert_eq!(made.len(), vocabulary.len());
        assert!(made.iter().enumerate().all(|(id, token)| vocabulary.get(token) == Some(&id)));

        let folder = tempfile::tempdir()?;
        let packed = std::fs::File::create(folder.path().join("merges.txt.gz"))?;
        let mut encoder = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
        encoder.write_all(merges.as_bytes())?;
        encoder.finish()?;
        let parent = folder.path().parent().ok_or("no parent")?;
        let name = folder.path().file_name().and_then(|name| name.to_str()).ok_or("no name")?;
        let alone = Tokenizer::from_files(&ModelFiles::folder(parent)?, name)?;
        let text = "A watercolour of naïve façades, 1920s, été";
        assert_eq!(alone.encode(text)?.ids, tokenizer(&root, "<|endoftext|>")?.encode(text)?.ids);
    }
    Ok(())
}

/// The newer form, one `tokenizer.json`, gives what the two classic files give.
#[test]
fn golden_tokenizer_json_is_the_classic_files() -> TestResult {
    let golden = &roots()[0];
    let newer = Tokenizer::from_files(&ModelFiles::folder(&golden.join("tokenizer"))?, "json")?;
    let classic = Tokenizer::from_files(&ModelFiles::folder(&golden.join("models/sd15"))?, "tokenizer")?;
    let prompts: Value = serde_json::from_str(&std::fs::read_to_string(golden.join("tokenizer/prompts.json"))?)?;
    for case in prompts["cases"].as_array().into_iter().flatten() {
        let prompt = case["prompt"].as_str().ok_or("no prompt")?;
        assert_eq!(newer.encode(prompt)?, classic.encode(prompt)?, "{prompt:?}");
    }
    assert_eq!(newer.max_length(), 77);
    Ok(())
}
