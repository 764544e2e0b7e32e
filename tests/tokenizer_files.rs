//! Files of tokenizers that say what cannot be, or what no tokenizer of CLIP's kind is: one message each.

mod cases;

use cases::{TestResult, roots};
use serde_json::{Value, json};
use std::path::Path;
use tweedie::checkpoints::ModelFiles;
use tweedie::text::Tokenizer;

/// The golden `tokenizer.json`.
fn golden() -> TestResult<Value> {
    let path = roots()[0].join("tokenizer/json/tokenizer.json");
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// A tokenizer from the files that `write` puts into a folder.
fn tokenizer(write: &dyn Fn(&Path) -> TestResult) -> TestResult<tweedie::Result<Tokenizer>> {
    let folder = tempfile::tempdir()?;
    let at = folder.path().join("tokenizer");
    std::fs::create_dir(&at)?;
    write(&at)?;
    Ok(Tokenizer::from_files(&ModelFiles::folder(folder.path())?, "tokenizer"))
}

fn from_json(json: &Value) -> TestResult<tweedie::Result<Tokenizer>> {
    tokenizer(&|at| Ok(std::fs::write(at.join("tokenizer.json"), json.to_string())?))
}

fn refused(what: &str, made: tweedie::Result<Tokenizer>, part: &str) -> TestResult {
    let message = made.map(|_| ()).err().ok_or_else(|| format!("{what} was read"))?.to_string();
    println!("{message}");
    assert!(message.contains(part), "{what}: {part:?} is not in: {message}");
    Ok(())
}

#[test]
fn what_is_not_clips_is_refused_by_name() -> TestResult {
    let replace =
        |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let changes: [(&str, Value, &str); 17] = [
        ("/normalizer", replace("", "x"), "normalizer {\"type\":\"Replace\""),
        ("/normalizer", json!({"type": "Sequence", "normalizers": vec![replace("a", "aaaa"); 5]}), "normalizer {"),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""}), "Precompiled"),
        ("/normalizer", json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 99]}), "more than 16"),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "FixedLength"),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Removed", "invert": true}),
            "Split",
        ),
        ("/pre_tokenizer", Value::Null, "no ByteLevel"),
        ("/post_processor", json!({"type": "Mystery"}), "Mystery"),
        ("/model/dropout", json!(0.5), "dropout is 0.5"),
        ("/model/continuing_subword_prefix", json!("zzzzzzzzzz"), "continuing_subword_prefix is \"zzzzzzzzzz\""),
        ("/model/end_of_word_suffix", Value::Null, "end_of_word_suffix"),
        ("/model/type", json!("Unigram"), "\"Unigram\""),
        ("/model/unk_token", json!("[UNK]"), "[UNK]"),
        ("/model/merges", json!([]), "has no merges"),
        ("/model/merges/0", json!(["i", "zq"]), "is no token"),
        ("/model/vocab/!", json!(1), "the same id, 1"),
        ("/added_tokens/0/id", json!(7), "has the id 7"),
    ];
    for (place, value, part) in changes {
        let mut changed = golden()?;
        *changed.pointer_mut(place).ok_or_else(|| format!("there is no {place}"))? = value;
        refused(place, from_json(&changed)?, part)?;
    }
    Ok(())
}

/// Forms that say the same: one rule without its sequence, merges as lines, no pattern of words for the special tokens.
#[test]
fn other_forms_of_the_same_are_read() -> TestResult {
    let original = golden()?;
    let expected = from_json(&original)??;
    let prompt = "a Photograph  of naïve cats, 1920s; it's <|endoftext|> nice";
    let mut merges = original.clone();
    let lines = original["model"]["merges"].as_array().into_iter().flatten();
    merges["model"]["merges"] = lines
        .map(|pair| json!(format!("{} {}", pair[0].as_str().unwrap_or(""), pair[1].as_str().unwrap_or(""))))
        .collect();
    let mut without_special = original.clone();
    let pattern = &mut without_special["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
    let shorter = pattern.as_str().and_then(|pattern| pattern.split_once("'s").map(|(_, rest)| format!("'s{rest}")));
    *pattern = shorter.ok_or("no pattern")?.into();
    let mut unnamed = original.clone();
    unnamed["model"].as_object_mut().ok_or("no model")?.remove("type");
    for form in [merges, without_special, unnamed] {
        assert_eq!(from_json(&form)??.encode(prompt)?, expected.encode(prompt)?);
    }
    // What the file leaves out is left out.
    let mut plain = original.clone();
    plain["normalizer"] = Value::Null;
    assert_ne!(from_json(&plain)??.encode(prompt)?, expected.encode(prompt)?);
    Ok(())
}

#[test]
fn classic_files_are_checked_alike() -> TestResult {
    let model = roots()[0].join("models/sd15/tokenizer");
    let (vocab, merges) = (model.join("vocab.json"), model.join("merges.txt"));
    let (vocab, merges) = (std::fs::read_to_string(vocab)?, std::fs::read_to_string(merges)?);
    let made = |vocab: &str, merges: &str| {
        tokenizer(&|at| {
            std::fs::write(at.join("vocab.json"), vocab)?;
            Ok(std::fs::write(at.join("merges.txt"), merges)?)
        })
    };
    made(&vocab, &merges)??;
    refused("emptied merges", made(&vocab, "#version: 0.2\n")?, "has no merges")?;
    refused("a foreign merge", made(&vocab, &format!("{merges}\nzq zq\n"))?, "is no token")?;
    let twice = vocab.replacen('{', "{\"!\": 5,", 1);
    refused("a token twice", made(&twice, &merges)?, "has two ids")
}

/// Whatever bytes a file has, and whatever it says of tokens that are found as they are: nothing panics, here or with prompts.
#[test]
fn mutated_files_end_in_tokenizers_or_errors() -> TestResult {
    let prompts =
        ["", " ", "a  photo  x of <|endoftext|>  x <|startoftext|>", "İstanbul 🦊\u{301}  xx\n x ", "\u{0}\u{feff}ǅ"];
    let read = |json: &str| -> TestResult<bool> {
        let made = tokenizer(&|at| Ok(std::fs::write(at.join("tokenizer.json"), json)?))?;
        let Ok(made) = made else { return Ok(false) };
        for prompt in prompts {
            // What it says of a prompt, or that it cannot be read, is its own matter.
            let _ = made.encode(prompt);
        }
        Ok(true)
    };
    let original = golden()?;
    for flags in 0..32u32 {
        let mut changed = original.clone();
        let tokens = changed["added_tokens"].as_array_mut().ok_or("no added tokens")?;
        tokens.extend([json!({"id": 1514, "content": " x"}), json!({"id": 1515, "content": "x "})]);
        for token in tokens {
            for (i, name) in ["single_word", "lstrip", "rstrip", "normalized", "special"].into_iter().enumerate() {
                token[name] = (flags >> i & 1 == 1).into();
            }
        }
        assert!(read(&changed.to_string())?, "flags {flags:b}");
    }
    let text = original.to_string();
    let mut state = 1u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut readable = 0;
    for _ in 0..400 {
        let mut bytes = text.clone().into_bytes();
        for _ in 0..1 + next(3) {
            // Half of them where the rules are, and not the vocabulary.
            let place = if next(2) == 0 { next(bytes.len()) } else { next(bytes.len().min(2000)) };
            bytes[place] = b"\"0:,{}[]eanx \\"[next(14)];
        }
        readable += usize::from(read(&String::from_utf8_lossy(&bytes))?);
    }
    assert!(readable < 400, "some of it is no tokenizer");
    Ok(())
}
