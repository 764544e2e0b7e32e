//! Textual inversions.

use super::cases::TestResult;
use super::golden;
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use tweedie::adapters::TextualInversion;
use tweedie::checkpoints::ModelFiles;
use tweedie::noise::TorchGenerator;
use tweedie::text::{Tokenizer, weighted_chunks};

/// A file of tensors of ones in a folder of its own, read as an embedding.
fn embedding(tensors: &[(&str, &[usize])], token: Option<&str>) -> TestResult<TextualInversion> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("my word.safetensors");
    let ones = tensors
        .iter()
        .map(|(name, shape)| Ok(((*name).to_owned(), Tensor::ones(*shape, DType::F32, &Device::Cpu)?)))
        .collect::<TestResult<HashMap<_, _>>>()?;
    candle_core::safetensors::save(&ones, &path)?;
    Ok(TextualInversion::read(&path, token)?)
}

#[test]
fn an_embedding_is_called_as_asked_or_as_its_file_says() -> TestResult {
    let token = |tensors: &[(&str, &[usize])], token| -> TestResult<String> {
        Ok(embedding(tensors, token)?.token().to_owned())
    };
    assert_eq!(token(&[("<thing>", &[2, 8])], None)?, "<thing>");
    assert_eq!(token(&[("<thing>", &[8])], Some("other"))?, "other");
    assert_eq!(token(&[("emb_params", &[2, 8])], None)?, "my word");
    for [l, g] in [["clip_l", "clip_g"], ["text_encoders_0", "text_encoders_1"]] {
        let both = embedding(&[(l, &[2, 8]), (g, &[2, 12])], None)?;
        assert_eq!((both.token(), both.encoders()), ("my word", 2));
    }
    // The original code calls every word `*` and has a dictionary around it; diffusers has its token.
    for (file, token) in [("thing.pt", "thing"), ("thing.ldm.pt", "thing.ldm"), ("thing.bin", "<thing>")] {
        let word = TextualInversion::read(&golden("models/embedding").join(file), None)?;
        assert_eq!((word.token(), word.encoders()), (token, 1), "{file}");
    }
    let refused = |tensors: &[(&str, &[usize])], part: &str| {
        let message = embedding(tensors, None).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(message.contains(part) && message.contains("my word.safetensors"), "{part}: {message}");
    };
    refused(&[("a", &[2, 8]), ("b", &[2, 8])], "2 tensors (a, b)");
    refused(&[("clip_l", &[2, 8]), ("clip_g", &[3, 12])], "different numbers");
    refused(&[("x", &[2, 2, 2])], "[2, 2, 2]");
    Ok(())
}

#[test]
fn the_token_of_a_textual_inversion_stands_for_all_its_tokens_in_any_syntax() -> TestResult {
    let mut tokenizer = Tokenizer::from_files(&ModelFiles::folder(&golden("models/sd15"))?, "tokenizer")?;
    let plain = tokenizer.encode_text("a cat")?;
    let ids = tokenizer.add_token("<thing>", 3)?;
    assert_eq!(ids, [ids[0], ids[0] + 1, ids[0] + 2], "the next that are free");
    assert_eq!(tokenizer.encode_text("a cat")?, plain);
    let with = tokenizer.encode_text("a <Thing> cat")?;
    assert_eq!(with, [&plain[..1], &ids, &plain[1..]].concat());
    assert_eq!(tokenizer.encode_text("<thing>_2")?, ids[2..]);
    let chunks = weighted_chunks(&tokenizer, "a (<thing>:1.5) cat")?;
    let weights: Vec<f32> = chunks[0].weights[1..].iter().take_while(|&&w| w == 1.5 || w == 1.0).copied().collect();
    assert_eq!(weights[..5], [1.0, 1.5, 1.5, 1.5, 1.0]);
    let again = tokenizer.add_token("<thing>", 1).map_err(|e| e.to_string());
    assert!(again.is_err_and(|message| message.contains("<thing>")));
    Ok(())
}

/// An embedding's file that is cut off or changed anywhere gives an error or a word.
#[test]
fn damaged_embeddings_are_survived() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("damaged.safetensors");
    let mut generator = TorchGenerator::new(2);
    let mut random = |below: usize| (generator.normal(1)[0].abs() * 1e6) as usize % below;
    let mut refused = 0;
    for i in 0..1200 {
        let whole = golden("models/embedding").join(["thing.safetensors", "thing.pt", "thing.ldm.pt"][i % 3]);
        let whole = std::fs::read(whole)?;
        let mut bytes = whole.clone();
        if i % 2 == 0 {
            bytes.truncate(random(whole.len()));
        } else {
            bytes[random(whole.len())] = random(256) as u8;
        }
        std::fs::write(&path, &bytes)?;
        if let Err(error) = TextualInversion::read(&path, None) {
            assert!(error.to_string().contains("damaged.safetensors"), "{error}");
            refused += 1;
        }
    }
    assert!(refused >= 600, "{refused}");
    Ok(())
}
