//! What the tensors of a file tell that holds a whole model in the layout of Stable Diffusion's code.

use super::{FilePrediction, Variant, file_prediction};
use crate::checkpoints::{StoredTensor, TensorFile};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device};
use std::path::Path;

/// The step at which the model of 2.x that predicts the noise was saved; the same architecture as the one that
/// predicts v.
const STEPS_OF_2_BASE: i64 = 875_000;

/// A tensor of 2.x whose values spread further in the models that predict v than in those that predict the noise: the only
/// trace that is known of the difference (ComfyUI goes by it, `supported_models.py`).
const TELLING: &str = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";

/// The least standard deviation of its values in those that predict v.
const LEAST_OF_V: f64 = 0.09;

/// Tensors by which other kinds of files are known: a part of a name, what the file is, what to do.
const FOREIGN: [(&str, &str, &str); 19] = [
    ("joint_blocks.", "Stable Diffusion 3", "take a model of Stable Diffusion 1.x, 2.x or XL"),
    ("double_blocks.", "Flux", "take a model of Stable Diffusion 1.x, 2.x or XL"),
    ("double_layers.", "AuraFlow", "take a model of Stable Diffusion 1.x, 2.x or XL"),
    ("down_blocks.0.0.channelwise", "Stable Cascade", "take a model of Stable Diffusion 1.x, 2.x or XL"),
    ("motion_modules.", "AnimateDiff motion weights", "take the model they were made for"),
    ("edm_mean", "Playground 2.5, whose latents have a mean of their own", "take another model of Stable Diffusion XL"),
    ("lora_unet_", "a LoRA", "give it with `lora`, and a model with `model`"),
    ("lora_te", "a LoRA", "give it with `lora`, and a model with `model`"),
    (".lora_A.", "a LoRA", "give it with `lora`, and a model with `model`"),
    (".lora.down.", "a LoRA", "give it with `lora`, and a model with `model`"),
    ("control_model.", "a ControlNet", "give it with `control`, and a model with `model`"),
    ("input_hint_block.", "a ControlNet", "give it with `control`, and a model with `model`"),
    ("adapter.body.", "a T2I-Adapter", "give it with `control`, and a model with `model`"),
    (
        "decoder.layers.2.conv.",
        "a tiny autoencoder alone",
        "give it with `vae` or `preview_vae`, and a model with `model`",
    ),
    ("controlnet_cond_embedding.", "a ControlNet", "give it with `control`, and a model with `model`"),
    ("emb_params", "an embedding", "give it with `embedding`, and a model with `model`"),
    (
        "down_blocks.",
        "the UNet of a diffusers folder alone",
        "give the folder that its folder lies in, or that of the rest of its model with `config`",
    ),
    ("input_blocks.0.0.weight", "a UNet alone", "give the folder of the rest of its model with `config`"),
    ("text_model.", "a text encoder alone", "give a file or a folder with the whole model"),
];

/// The sizes by which a family's UNet is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UNetSize {
    /// Channels of the first convolution.
    pub channels: usize,
    /// Width of the text that it looks at.
    pub text: usize,
}

/// What models of a family predict whose file does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsaid {
    /// The noise.
    Epsilon,
    /// The noise or v, in 2.x: the step at which it was saved tells it, or how far values spread.
    Guessed,
}

/// What is known of a file whose UNet has this size; nothing if it has another.
///
/// # Errors
/// If it is of this size and takes what no model does, or says what cannot be.
pub(super) fn recognise(file: &TensorFile, size: UNetSize, unsaid: Unsaid) -> Result<Option<Variant>> {
    let tensors = file.tensors();
    let Some((_, inputs)) = unet_size(&tensors).filter(|(of_file, _)| *of_file == size) else { return Ok(None) };
    if !matches!(inputs, 4 | 9) {
        let what = format!("the number of input channels of the UNet in {}", file.path().display());
        let fix = "models that draw take 4, inpainting models 9; give the folder of its configurations with `config`";
        return Err(Error::unusable(ErrorKind::Model, what, inputs, fix));
    }
    let inpainting = inputs == 9;
    let of_2_base = matches!(file, TensorFile::Torch(file) if file.global_step() == Some(STEPS_OF_2_BASE));
    let prediction = file_prediction::said_by(file, &|| {
        if unsaid != Unsaid::Guessed || inpainting || of_2_base {
            return Ok(None);
        }
        let is_v = spread(file, TELLING)?.is_none_or(|spread| spread > LEAST_OF_V);
        Ok(Some(if is_v { FilePrediction::V } else { FilePrediction::Epsilon }))
    })?;
    Ok(Some(Variant { inpainting, prediction, description: None }))
}

/// The UNet's size and the channels that it takes; nothing of a file that holds something else.
fn unet_size(tensors: &[StoredTensor]) -> Option<(UNetSize, usize)> {
    const FIRST: &str = "model.diffusion_model.input_blocks.0.0.weight";
    let find = |is: &dyn Fn(&str) -> bool| tensors.iter().find(|t| is(&t.name)).map(|t| t.shape.as_slice());
    let text = |name: &str| name.starts_with("model.diffusion_model.") && name.ends_with("attn2.to_k.weight");
    match (find(&|name| name == FIRST), find(&text), find(&|name| name == "edm_mean")) {
        (Some(&[channels, inputs, ..]), Some(&[_, text, ..]), None) => Some((UNetSize { channels, text }, inputs)),
        _ => None,
    }
}

/// A message on a file that belongs to no family.
pub(super) fn unrecognised(file: &TensorFile) -> Error {
    let tensors = file.tensors();
    let Some((UNetSize { channels, text }, _)) = unet_size(&tensors) else { return foreign(file.path(), &tensors) };
    let value = format!("of {channels} channels that look at a text of width {text}");
    let fix = "no family is known that has these (1.x: 320 and 768, 2.x: 320 and 1024, XL: 320 and 2048, \
               its refiner: 384 and 1280); give the folder of its configurations with `config`";
    Error::unusable(ErrorKind::Model, format!("the UNet in {}", file.path().display()), value, fix)
}

/// The standard deviation of a tensor's values; nothing if it is not there or is no list of finite floats.
fn spread(file: &TensorFile, name: &str) -> Result<Option<f64>> {
    const MOST: usize = 1 << 16;
    let tensors = file.tensors();
    let usable = |tensor: &&StoredTensor| {
        tensor.name == name && tensor.dtype.float_type().is_some() && matches!(tensor.shape[..], [1..=MOST])
    };
    let Some(stored) = tensors.iter().find(usable) else { return Ok(None) };
    let Some(values) = file.read(stored, DType::F64, &Device::Cpu)? else { return Ok(None) };
    let mean = values.mean_all()?.to_scalar::<f64>()?;
    Ok(Some((values - mean)?.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt()))
}

/// A message on a file that is no whole model in its original layout.
fn foreign(path: &Path, tensors: &[StoredTensor]) -> Error {
    let holds = |part: &str| tensors.iter().any(|tensor| tensor.name.contains(part));
    let of_vae = |name: &str| {
        ["first_stage_model.", "decoder.up.", "decoder.up_blocks.", "vae.decoder."]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let (what, fix) = match FOREIGN.iter().find(|(part, _, _)| holds(part)) {
        Some((_, what, fix)) => (*what, *fix),
        None if tensors.iter().any(|tensor| of_vae(&tensor.name)) => {
            ("an autoencoder alone", "give it with `vae`, and a model with `model`")
        }
        None => (
            "of no known kind",
            "a whole model has tensors under model.diffusion_model., first_stage_model. and a text encoder",
        ),
    };
    let some: Vec<&str> = tensors.iter().take(3).map(|tensor| tensor.name.as_str()).collect();
    let value = format!("{what} ({} tensors: {} ...)", tensors.len(), some.join(", "));
    Error::unusable(ErrorKind::Model, format!("the model {}", path.display()), value, fix)
}
