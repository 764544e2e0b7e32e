//! What in a prompt has no effect is said, and what belongs together is read together.

mod cases;

use candle_core::{DType, Device, Tensor};
use cases::{TestResult, roots};
use std::path::Path;
use tweedie::adapters::TextualInversion;
use tweedie::checkpoints::ModelFiles;
use tweedie::text::{Tokenizer, weighted_chunks};
use tweedie_pipelines::{
    Adapters, DTypeChoice, DeviceChoice, EmbeddingChoice, LatentDiffusion, PromptSyntax, TextToImageRequest,
};

/// The width of the golden model's text encoder.
const WIDTH: usize = 32;

fn model() -> std::path::PathBuf {
    roots()[0].join("models/sd15")
}

fn embedding(folder: &Path, name: &str, tensor: &str) -> TestResult<EmbeddingChoice> {
    let path = folder.join(format!("{name}.safetensors"));
    TextualInversion::write(tensor, &[Tensor::ones((2, WIDTH), DType::F32, &Device::Cpu)?], &path)?;
    // The token's name is the metadata's too; files of other programs have none.
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    candle_core::safetensors::save(&tensors, &path)?;
    Ok(EmbeddingChoice { path, token: None })
}

/// What a user is told of a prompt of one step, with embeddings.
fn warnings(embeddings: &[EmbeddingChoice], request: TextToImageRequest) -> TestResult<Vec<String>> {
    let adapters = Adapters { embeddings: embeddings.to_vec(), ..Adapters::default() };
    let builder = LatentDiffusion::builder().model_folder(model()).adapters(adapters);
    let model = builder.device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build()?;
    Ok(model.generate(&TextToImageRequest { steps: Some(1), ..request })?.warnings)
}

#[test]
fn what_other_programs_act_on_is_named() -> TestResult {
    let told = |prompt: &str, prompt_syntax: PromptSyntax| {
        warnings(&[], TextToImageRequest { prompt: prompt.into(), prompt_syntax, ..TextToImageRequest::default() })
    };
    let weighted = told("a fox <lora:ink:0.8> AND a [cat:dog:0.5]", PromptSyntax::Weighted)?;
    let expected = "the prompt has <lora:ink:0.8>, AND, [cat:dog:0.5], which A1111's web UI acts on and which are plain words \
                    here; LoRAs are given with `lora`";
    assert_eq!(weighted, [expected]);
    let plain = told("a fox <lora:ink:0.8> AND a cat", PromptSyntax::Plain)?;
    assert!(matches!(&plain[..], [warning] if warning.contains("has <lora:ink:0.8>, which")), "{plain:?}");
    assert_eq!(told("a (red:1.2) fox, [cat], BREAK sand", PromptSyntax::Weighted)?, Vec::<String>::new());
    let negative_prompt = Some("[a|b]".to_owned());
    let negative = TextToImageRequest { negative_prompt, prompt_syntax: PromptSyntax::Weighted, ..Default::default() };
    assert!(matches!(&warnings(&[], negative)?[..], [warning] if warning.contains("the negative prompt has [a|b]")));
    Ok(())
}

#[test]
fn an_embedding_that_no_prompt_uses_is_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let hands = embedding(folder.path(), "badhands", "emb_params")?;
    let told = |prompt: &str, negative: &str, guidance: f64, prompt_syntax: PromptSyntax| -> TestResult<Vec<String>> {
        let request = TextToImageRequest {
            prompt: prompt.into(),
            negative_prompt: Some(negative.into()),
            guidance_scale: Some(guidance),
            prompt_syntax,
            ..TextToImageRequest::default()
        };
        warnings(std::slice::from_ref(&hands), request)
    };
    for syntax in [PromptSyntax::Plain, PromptSyntax::Weighted] {
        assert_eq!(told("a fox, BadHands", "", 7.0, syntax)?, Vec::<String>::new());
        assert_eq!(told("a fox", "badhands", 7.0, syntax)?, Vec::<String>::new());
        let unused = told("a fox, bad-hands", "", 7.0, syntax)?;
        assert!(
            matches!(&unused[..], [warning] if warning.contains("\"badhands\"") && warning.contains("in no prompt;"))
        );
    }
    let unread = told("a fox", "badhands", 1.0, PromptSyntax::Plain)?;
    assert!(
        unread.iter().any(|warning| warning.contains("\"badhands\"") && warning.contains("no guidance")),
        "{unread:?}"
    );
    // A list of embeddings that was flattened has the file's name for its word.
    let flat = embedding(folder.path(), "flat", "string_to_param.*")?;
    let request = TextToImageRequest { prompt: "a flat fox".into(), ..TextToImageRequest::default() };
    assert_eq!(warnings(&[flat], request)?, Vec::<String>::new());
    Ok(())
}

/// As in A1111's web UI; a word that no chunk has room for is cut all the same.
#[test]
fn a_learned_word_is_not_cut_where_a_chunk_ends() -> TestResult {
    let mut tokenizer = Tokenizer::from_files(&ModelFiles::folder(&model())?, "tokenizer")?;
    let word = tokenizer.encode_text("a")?[0];
    let learned = tokenizer.add_token("<thing>", 4)?;
    let long = tokenizer.add_token("<long>", 80)?;
    let chunks = |before: usize, token: &str| -> TestResult<Vec<Vec<u32>>> {
        let prompt = format!("{}{token} a", "a ".repeat(before));
        Ok(weighted_chunks(&tokenizer, &prompt)?.into_iter().map(|chunk| chunk.ids).collect())
    };
    let words = |count: usize| vec![word; count];
    let whole =
        |before: usize| vec![tokenizer.padded(&words(before)), tokenizer.padded(&[&learned[..], &[word]].concat())];
    for before in [72, 73, 74] {
        assert_eq!(chunks(before, "<thing>")?, whole(before), "{before}");
    }
    let fits = vec![tokenizer.padded(&[words(71), learned.clone()].concat()), tokenizer.padded(&[word])];
    assert_eq!(chunks(71, "<thing>")?, fits);
    let cut = vec![
        tokenizer.padded(&[&words(10)[..], &long[..65]].concat()),
        tokenizer.padded(&[&long[65..], &[word]].concat()),
    ];
    assert_eq!(chunks(10, "<long>")?, cut);
    Ok(())
}

#[test]
fn options_of_guidance_that_do_nothing_are_named() -> TestResult {
    let model = LatentDiffusion::builder().model_folder(model()).device(DeviceChoice::Cpu).dtype(DTypeChoice::F32);
    let model = model.build()?;
    let told = |request: TextToImageRequest| -> TestResult<Vec<String>> { Ok(model.settle(&request)?.warnings) };
    let request = |guidance_scale: f64| TextToImageRequest {
        guidance_scale: Some(guidance_scale),
        guidance_interval: Some((0.3, 5.0)),
        negative_prompt: Some("blurry".into()),
        ..TextToImageRequest::default()
    };
    assert_eq!(told(request(7.0))?, Vec::<String>::new());
    let off = told(request(1.0))?;
    let expected = "`guidance_interval`, `negative_prompt` have no effect: there is no guidance at a `guidance_scale` of 1 or less";
    assert_eq!(off, [expected]);
    let nowhere = told(TextToImageRequest { guidance_interval: Some((5000.0, 6000.0)), ..request(7.0) })?;
    assert!(matches!(&nowhere[..], [warning] if warning.contains("`guidance_interval` 5000,6000")), "{nowhere:?}");
    Ok(())
}
