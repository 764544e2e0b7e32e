//! Files in the place of a model's components.

use candle_core::{Device, Tensor, safetensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tweedie::images::Photo;
use tweedie_pipelines::{LatentDiffusion, Model, TextToImageRequest};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A file of the embedded model, under another name.
fn embedded(folder: &Path, name: &str, copy: &str) -> TestResult<PathBuf> {
    let path = folder.join(copy);
    std::fs::write(&path, Model::Embedded.files()?.read(name)?)?;
    Ok(path)
}

fn request() -> TextToImageRequest {
    TextToImageRequest { prompt: "a fox on a blue background".into(), steps: Some(3), ..Default::default() }
}

/// The picture, and the names of the files of weights that its record has.
fn drawn(unet: Option<PathBuf>, text_encoders: Vec<PathBuf>) -> TestResult<(Photo, Vec<String>)> {
    let model = LatentDiffusion::builder().unet(unet).text_encoders(text_encoders).build()?;
    let settings = model.settle(&request())?;
    let picture = model.generate_settled(&settings)?.pictures.remove(0);
    let record = model.record(&settings).json(0);
    let sums = record["weights_sha256"].as_object().ok_or("the record has no sums")?;
    Ok((picture, sums.keys().cloned().collect()))
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const TEXT_ENCODER: &str = "text_encoder/model.safetensors";
const AUTOENCODER: &str = "vae/diffusion_pytorch_model.safetensors";

#[test]
fn a_component_is_as_good_in_a_file_of_its_own() -> TestResult {
    let folder = tempfile::tempdir()?;
    let unet = embedded(folder.path(), UNET, "other-unet.safetensors")?;
    let text = embedded(folder.path(), TEXT_ENCODER, "other-text.safetensors")?;
    let (picture, names) = drawn(None, Vec::new())?;
    assert_eq!(names, [TEXT_ENCODER, UNET, AUTOENCODER]);
    for (with, names) in [
        ((Some(unet.clone()), vec![]), [TEXT_ENCODER, "other-unet.safetensors", AUTOENCODER]),
        ((None, vec![text.clone()]), ["other-text.safetensors", UNET, AUTOENCODER]),
        ((Some(unet), vec![text]), ["other-text.safetensors", "other-unet.safetensors", AUTOENCODER]),
    ] {
        let (same, found) = drawn(with.0, with.1)?;
        assert_eq!((same.samples(), &found[..]), (picture.samples(), &names.map(str::to_owned)[..]));
    }
    Ok(())
}

#[test]
fn another_component_draws_another_picture() -> TestResult {
    let folder = tempfile::tempdir()?;
    let unet = embedded(folder.path(), UNET, "unet.safetensors")?;
    let mut tensors = safetensors::load(&unet, &Device::Cpu)?;
    let bias = tensors.get_mut("conv_out.bias").ok_or("the UNet has no last bias")?;
    *bias = (&*bias + 0.25)?;
    safetensors::save(&tensors, &unet)?;
    assert_ne!(drawn(Some(unet), Vec::new())?.0.samples(), drawn(None, Vec::new())?.0.samples());
    Ok(())
}

/// The same values under OpenCLIP's names: queries, keys and values joined, after a prefix.
#[test]
fn a_text_encoder_has_the_names_of_either_code_base() -> TestResult {
    const LAYER: [(&str, &str); 5] = [
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    ];
    let folder = tempfile::tempdir()?;
    let file = embedded(folder.path(), TEXT_ENCODER, "text.safetensors")?;
    let of_clip = safetensors::load(&file, &Device::Cpu)?;
    let get = |name: &str| of_clip.get(&format!("text_model.{name}")).cloned().ok_or_else(|| format!("no {name}"));
    let mut renamed: HashMap<String, Tensor> = HashMap::new();
    let mut put = |name: &str, tensor: Tensor| renamed.insert(format!("clip.{name}"), tensor);
    put("token_embedding.weight", get("embeddings.token_embedding.weight")?);
    put("positional_embedding", get("embeddings.position_embedding.weight")?);
    for parameter in ["weight", "bias"] {
        put(&format!("ln_final.{parameter}"), get(&format!("final_layer_norm.{parameter}"))?);
        for i in (0..).take_while(|i| get(&format!("encoder.layers.{i}.layer_norm1.weight")).is_ok()) {
            let (from, to) = (format!("encoder.layers.{i}"), format!("transformer.resblocks.{i}"));
            for (of_clip, of_open) in LAYER {
                put(&format!("{to}.{of_open}.{parameter}"), get(&format!("{from}.{of_clip}.{parameter}"))?);
            }
            let thirds = ["q", "k", "v"].map(|which| get(&format!("{from}.self_attn.{which}_proj.{parameter}")));
            let thirds = thirds.into_iter().collect::<Result<Vec<_>, _>>()?;
            put(&format!("{to}.attn.in_proj_{parameter}"), Tensor::cat(&thirds, 0)?);
        }
    }
    let open = folder.path().join("open.safetensors");
    safetensors::save(&renamed, &open)?;
    assert_eq!(drawn(None, vec![open])?.0.samples(), drawn(None, Vec::new())?.0.samples());
    Ok(())
}

#[test]
fn what_does_not_belong_to_the_model_is_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let unet = embedded(folder.path(), UNET, "unet.safetensors")?;
    let text = embedded(folder.path(), TEXT_ENCODER, "text.safetensors")?;
    let narrow = folder.path().join("narrow.safetensors");
    let embedding = Tensor::zeros((8, 5), candle_core::DType::F32, &Device::Cpu)?;
    let name = "text_model.embeddings.token_embedding.weight".to_owned();
    safetensors::save(&HashMap::from([(name, embedding)]), &narrow)?;
    for (with, parts) in [
        ((Some(text.clone()), vec![]), &["the unet in", "text.safetensors", "no tensors"][..]),
        ((None, vec![unet.clone()]), &["text encoder", "unet.safetensors", "token_embedding"]),
        ((None, vec![narrow]), &["narrow.safetensors", "5 wide", "192"]),
        ((None, vec![text.clone(), text]), &["text.safetensors", "already", "once"]),
        ((Some(folder.path().join("nothing.gguf")), vec![]), &["nothing.gguf"]),
    ] {
        let built = LatentDiffusion::builder().unet(with.0).text_encoders(with.1).build();
        let message = built.err().ok_or("it was built")?.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    Ok(())
}
