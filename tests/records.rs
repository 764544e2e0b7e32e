//! What pictures say in the text that other programs read: A1111's web UI and sites of pictures, which know files by hashes.

mod cases;

use candle_core::{DType, Device, Tensor};
use cases::{TestResult, roots};
use std::path::Path;
use tweedie::adapters::TextualInversion;
use tweedie::checkpoints::ModelFiles;
use tweedie::files::sha256;
use tweedie_pipelines::{
    Adapters, DTypeChoice, DeviceChoice, EmbeddingChoice, LatentDiffusion, LoraChoice, Model, TextToImageRequest,
};

/// The width of the golden model's text encoder.
const WIDTH: usize = 32;

/// A LoRA of one layer, with something in its metadata.
fn write_lora(path: &Path, trained: &str) -> TestResult {
    let module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let factor = |role: &str, shape: (usize, usize)| -> TestResult<_> {
        Ok((format!("{module}.lora_{role}.weight"), Tensor::full(0.1f32, shape, &Device::Cpu)?))
    };
    let tensors = [factor("down", (2, 24))?, factor("up", (24, 2))?];
    let metadata = std::collections::HashMap::from([("ss_output_name".to_owned(), trained.to_owned())]);
    Ok(std::fs::write(path, safetensors::serialize(tensors, Some(metadata))?)?)
}

fn hash(bytes: &[u8], digits: usize) -> TestResult<String> {
    Ok(sha256(bytes)?[..digits].to_owned())
}

#[test]
fn files_are_known_by_the_hashes_that_others_have() -> TestResult {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    write_lora(&at("ink, old.safetensors"), "one")?;
    write_lora(&at("storm.safetensors"), "another")?;
    let (thing, unused) = (at("file.safetensors"), at("unused.safetensors"));
    for (token, path) in [("<thing>", &thing), ("nothing-else", &unused)] {
        TextualInversion::write(token, &[Tensor::ones((1, WIDTH), DType::F32, &Device::Cpu)?], path)?;
    }
    let golden = roots()[0].join("models/sd15");
    let vae = at("soft.safetensors");
    std::fs::copy(golden.join("vae/diffusion_pytorch_model.safetensors"), &vae)?;

    let lora = |name: &str| LoraChoice { path: at(name), weight: 0.5 };
    let word = |path: &Path| EmbeddingChoice { path: path.into(), token: None };
    let adapters = Adapters {
        loras: vec![lora("ink, old.safetensors"), lora("storm.safetensors")],
        embeddings: vec![word(&thing), word(&unused)],
        ..Adapters::default()
    };
    let builder = LatentDiffusion::builder().model_folder(&golden).adapters(adapters);
    let builder = builder.vae(Some(Model::File { path: vae.clone(), config: None }));
    let model = builder.device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build()?;
    let request = TextToImageRequest { prompt: "a fox, <Thing>".into(), ..TextToImageRequest::default() };
    let record = model.record(&model.settle(&request)?);
    let chunks = record.chunks(0);
    let text = &chunks.iter().find(|chunk| chunk.keyword == "parameters").ok_or("no parameters")?.text;

    // Of a LoRA only what follows the header counts, so two with the same tensors are the same one.
    let bytes = std::fs::read(at("storm.safetensors"))?;
    let header = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let ink = hash(&bytes[8 + header..], 12)?;
    assert!(text.contains(&format!(", Lora hashes: \"ink old: {ink}, storm: {ink}\"")), "{text}");
    let word = hash(&std::fs::read(&thing)?, 12)?;
    assert!(text.contains(&format!(", TI hashes: \"<thing>: {word}\", Version: ")), "{text}");
    let vae = hash(&std::fs::read(&vae)?, 10)?;
    let unet = ModelFiles::folder(&golden)?.sha256("unet/diffusion_pytorch_model.safetensors")?;
    let expected = format!(", Model hash: {}, Model: sd15, VAE hash: {vae}, VAE: soft.safetensors", &unet[..10]);
    assert!(text.contains(&expected), "{expected} is not in: {text}");
    Ok(())
}
