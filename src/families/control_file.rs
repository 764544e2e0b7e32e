//! Control models in one file without a configuration: it follows from the tensors, and for what they do not tell, such
//! as the number of heads, from the UNet that the model was made for.

use super::inferred::{Shapes, shapes};
use super::original_names;
use crate::checkpoints::{Checkpoint, ComponentNames, SingleFile, TensorNames};
use crate::config::MOST_RESOLUTIONS;
use crate::models::unet::{AddedConditioning, BlockKind};
use crate::models::{ControlConfig, ControlNetConfig, T2iAdapterConfig, T2iAdapterKind, UNet2DConditionConfig};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device};

/// What a file calls its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A ControlNet in the code of its authors, after a prefix.
    ControlNet(&'static str),
    /// A ControlNet in diffusers.
    DiffusersControlNet,
    /// A T2I-Adapter in the code of its authors.
    Adapter,
    /// A T2I-Adapter in diffusers.
    DiffusersAdapter,
}

/// A tensor that each form has.
const FORMS: [(&str, Form); 7] = [
    ("control_model.input_hint_block.0.weight", Form::ControlNet("control_model.")),
    ("input_hint_block.0.weight", Form::ControlNet("")),
    ("controlnet_cond_embedding.conv_in.weight", Form::DiffusersControlNet),
    ("adapter.body.0.resnets.0.block1.weight", Form::DiffusersAdapter),
    ("body.0.block1.weight", Form::Adapter),
    ("body.0.body.0.block1.weight", Form::Adapter),
    ("adapter.body.0.in_conv.weight", Form::DiffusersAdapter),
];

/// Tensors of files that look alike and are something else.
const FOREIGN: [(&str, &str); 3] = [
    ("lora_controlnet", "a control LoRA, which is not supported; take the whole ControlNet"),
    ("difference", "the difference of a ControlNet from its UNet, which is not supported; take the whole ControlNet"),
    ("control_add_embedding.linear_1.weight", "a ControlNet for several kinds of pictures, which is not supported"),
];

/// The most blocks that are looked for.
const MOST: usize = 100;

impl SingleFile {
    /// The configuration of the control model that the file holds, for a UNet.
    ///
    /// That a ControlNet takes blue before green before red, or pools what it adds, as those for shuffled pictures do, no
    /// tensor tells: it is taken for one that does neither. A folder in diffusers layout can say so.
    ///
    /// # Errors
    /// If it holds none that is known.
    pub fn control_config(&self, unet: &UNet2DConditionConfig) -> Result<ControlConfig> {
        let tensors = self.file().tensors();
        let shapes = shapes(&tensors);
        let config = match self.form(&shapes)? {
            Form::ControlNet(prefix) => {
                let convolution = |i| format!("{prefix}input_hint_block.{}.weight", 2 * i);
                let embedding = embedding(&shapes, convolution);
                controlnet(unet, embedding, &shapes, |config| original_names::controlnet(config, prefix))
            }
            Form::DiffusersControlNet => {
                let convolution = |i| match i {
                    0 => "controlnet_cond_embedding.conv_in.weight".into(),
                    _ => format!("controlnet_cond_embedding.blocks.{}.weight", i - 1),
                };
                controlnet(unet, embedding(&shapes, convolution), &shapes, |_| TensorNames::plain(""))
            }
            Form::Adapter => adapter(&shapes, "", original_resnets(&shapes)),
            Form::DiffusersAdapter => {
                let resnets = (0..MOST)
                    .take_while(|j| shapes.contains_key(format!("adapter.body.0.resnets.{j}.block1.weight").as_str()));
                adapter(&shapes, "adapter.", resnets.count())
            }
        };
        let unknown = "a control model whose tensors do not have the shapes of any that is known";
        let config = config.ok_or_else(|| self.no_control(unknown))?;
        let checked = match &config {
            ControlConfig::Adapter(config) => config.check(),
            // Heads and groups are the UNet's, and say nothing of a ControlNet that is for another one.
            ControlConfig::ControlNet(config) if config.encoder.block_out_channels == unet.block_out_channels => {
                config.check().and_then(|()| config.encoder.check())
            }
            ControlConfig::ControlNet(config) => config.check(),
        };
        checked.map_err(|(field, expected)| {
            self.no_control(&format!("a control model whose {field} cannot be used ({expected})"))
        })?;
        Ok(config)
    }

    /// Its weights, under the names that the model of this configuration asks for.
    ///
    /// # Errors
    /// If it holds no control model.
    pub fn control_checkpoint(&self, config: &ControlConfig, dtype: DType, device: &Device) -> Result<Checkpoint> {
        let tensors = self.file().tensors();
        let names = match (self.form(&shapes(&tensors))?, config) {
            (Form::ControlNet(prefix), ControlConfig::ControlNet(config)) => original_names::controlnet(config, prefix),
            (Form::Adapter, ControlConfig::Adapter(config)) => original_names::t2i_adapter(config),
            _ => TensorNames::plain(""),
        };
        let names = ComponentNames { names, unused: Vec::new() };
        Ok(self.checkpoint("control model", names, None, dtype, device))
    }

    fn form(&self, shapes: &Shapes<'_>) -> Result<Form> {
        if let Some((_, what)) = FOREIGN.iter().find(|(name, _)| shapes.contains_key(name)) {
            return Err(self.no_control(what));
        }
        let form = FORMS.iter().find(|(name, _)| shapes.contains_key(name)).map(|(_, form)| *form);
        form.ok_or_else(|| {
            let some: Vec<&str> = shapes.keys().take(3).copied().collect();
            self.no_control(&format!("something else ({} tensors: {} ...)", shapes.len(), some.join(", ")))
        })
    }

    fn no_control(&self, what: &str) -> Error {
        let fix = "give a ControlNet or T2I-Adapter as one file, or its folder in diffusers layout";
        Error::unusable(ErrorKind::Model, format!("the control model {}", self.path().display()), what, fix)
    }
}

/// Channels of the pictures, and at each resolution of their embedding, whose convolutions have these names, two at each.
fn embedding(shapes: &Shapes<'_>, convolution: impl Fn(usize) -> String) -> Option<(usize, Vec<usize>)> {
    let shape = |i: usize| shapes.get(convolution(i).as_str()).copied();
    let pictures = *shape(0)?.get(1)?;
    let channels = (0..MOST_RESOLUTIONS).map_while(|resolution| shape(2 * resolution)?.first().copied());
    Some((pictures, channels.collect()))
}

/// How many residual blocks each resolution of a T2I-Adapter has in its authors' code, by where the second one starts.
fn original_resnets(shapes: &Shapes<'_>) -> usize {
    let has = |name: String| shapes.contains_key(name.as_str());
    if has("body.0.in_conv.weight".into()) {
        return (0..MOST).take_while(|j| has(format!("body.0.body.{j}.block1.weight"))).count();
    }
    (1..MOST).find(|i| has(format!("body.{i}.in_conv.weight"))).unwrap_or(2)
}

fn adapter(shapes: &Shapes<'_>, prefix: &str, num_res_blocks: usize) -> Option<ControlConfig> {
    let shape = |name: String| shapes.get(format!("{prefix}{name}.weight").as_str()).copied();
    let light = shape("conv_in".into()).is_none();
    let &[_, inputs, ..] = shape(if light { "body.0.in_conv".into() } else { "conv_in".into() })? else { return None };
    // Squares of 8x8 pixels, or 16x16 for Stable Diffusion XL, of one channel or three.
    let (in_channels, downscale_factor) = match inputs {
        64 => (1, 8),
        192 => (3, 8),
        256 => (1, 16),
        768 => (3, 16),
        _ => return None,
    };
    let in_a_row = prefix.is_empty() && !light;
    let outputs = |i: usize| {
        let name = match light {
            true => format!("body.{i}.out_conv"),
            false if in_a_row => format!("body.{}.block1", i * num_res_blocks),
            false => format!("body.{i}.resnets.0.block1"),
        };
        shape(name)?.first().copied()
    };
    let mut channels: Vec<usize> = (0..MOST).map_while(outputs).collect();
    if light {
        // It has one block more, of the last one's channels.
        channels.pop();
    }
    let kind = match (light, downscale_factor) {
        (true, _) => T2iAdapterKind::Light,
        (_, 16) => T2iAdapterKind::FullXl,
        _ => T2iAdapterKind::Full,
    };
    let config = T2iAdapterConfig { in_channels, channels, num_res_blocks, downscale_factor, kind };
    (num_res_blocks > 0 && !config.channels.is_empty()).then_some(ControlConfig::Adapter(config))
}

/// The UNet's configuration, in which what the tensors tell is the ControlNet's own.
fn controlnet(
    unet: &UNet2DConditionConfig,
    embedding: Option<(usize, Vec<usize>)>,
    shapes: &Shapes<'_>,
    names: impl Fn(&ControlNetConfig) -> TensorNames,
) -> Option<ControlConfig> {
    let (conditioning_channels, embedding_channels) = embedding?;
    let encoder = unet.clone();
    let config = ControlNetConfig { encoder, conditioning_channels, embedding_channels, bgr: false, pools: false };
    let names = names(&config);
    let shape = |name: &str| shapes.get(names.in_file(&format!("{name}.weight")).0.as_str()).copied();
    let mut encoder = config.encoder.clone();
    encoder.in_channels = *shape("conv_in")?.get(1)?;
    let layers = |block: &str| {
        let layer = |k: &usize| shape(&format!("{block}.attentions.0.transformer_blocks.{k}.norm1")).is_some();
        (0..MOST).take_while(layer).count()
    };
    let kind = |layers: usize| if layers > 0 { BlockKind::CrossAttention } else { BlockKind::Plain };
    let mid = layers("mid_block");
    encoder.mid_block = shape("mid_block.resnets.0.conv1").map(|_| kind(mid));
    for i in 0..encoder.block_out_channels.len() {
        let block = format!("down_blocks.{i}");
        if let Some(&[channels, ..]) = shape(&format!("{block}.resnets.0.conv1")) {
            encoder.block_out_channels[i] = channels;
        }
        let last = i + 1 == encoder.block_out_channels.len();
        let count = layers(&block);
        encoder.down_blocks[i] = kind(count);
        match (count, mid) {
            (0, mid) if last && mid > 0 => encoder.transformer_layers_per_block[i] = mid,
            (0, _) => {}
            (count, _) => encoder.transformer_layers_per_block[i] = count,
        }
        let text = shape(&format!("{block}.attentions.0.transformer_blocks.0.attn2.to_k"));
        if let Some(&[_, width]) = text {
            encoder.cross_attention_dim = vec![width; encoder.cross_attention_dim.len()];
        }
    }
    encoder.time_cond_proj_dim = shape("time_embedding.cond_proj").and_then(|shape| shape.get(1).copied());
    if shape("add_embedding.pool.k_proj").is_none() {
        encoder.text_pooling_heads = None;
    }
    encoder.addition = shape("add_embedding.linear_1").and_then(|shape| shape.get(1)).map(|&embedding_input| {
        // The width of each number is the same in all models of this kind.
        let time_width = unet.addition.map_or(256, |addition| addition.time_width);
        AddedConditioning { time_width, embedding_input }
    });
    Some(ControlConfig::ControlNet(Box::new(ControlNetConfig { encoder, ..config })))
}
