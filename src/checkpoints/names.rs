//! What the original code bases call tensors, and what diffusers calls them.
//!
//! Models ask for diffusers' names. A file in the original layout (Rombach et al.'s `ldm`, OpenCLIP) has others, and a
//! few tensors joined or transposed. The two are related by a table that follows from a component's configuration,
//! read in one direction to load and in the other to convert.

use crate::models::{
    AutoencoderConfig, ClipTextConfig, ControlNetConfig, T2iAdapterConfig, T2iAdapterKind, UNet2DConditionConfig,
};
use std::collections::HashMap;

/// Which part of a stored tensor a model's tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// One of three equal parts along the first dimension.
    Third(usize),
    Transposed,
}

/// The table of one component.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// What all of the component's names in the file start with.
    pub prefix: String,
    /// From the beginning of a model's name, or all of it, to that in the file; and back.
    to_file: HashMap<String, String>,
    to_model: HashMap<String, String>,
    /// From the file's name of three joined tensors to the model's three; and back, with the number.
    joined: HashMap<String, [String; 3]>,
    parts: HashMap<String, (String, usize)>,
    /// From the model's name to that of a matrix that the file has the other way round.
    transposed: Vec<(String, String)>,
}

impl Names {
    /// A component whose names differ by their prefix alone.
    pub fn plain(prefix: &str) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// What the models call the parts of a tensor of the file, whose name is given without the prefix.
    pub fn in_model(&self, name: &str) -> Vec<(String, Part)> {
        if let Some(thirds) = self.joined.get(name) {
            return thirds.iter().enumerate().map(|(i, third)| (third.clone(), Part::Third(i))).collect();
        }
        if let Some((model, _)) = self.transposed.iter().find(|(_, file)| file == name) {
            return vec![(model.clone(), Part::Transposed)];
        }
        vec![(replaced(name, &self.to_model), Part::Whole)]
    }

    /// What the file calls a model's tensor, prefix and all, and which part of it the tensor is.
    pub fn in_file(&self, name: &str) -> (String, Part) {
        let (file, part) = if let Some((file, third)) = self.parts.get(name) {
            (file.clone(), Part::Third(*third))
        } else if let Some((_, file)) = self.transposed.iter().find(|(model, _)| model == name) {
            (file.clone(), Part::Transposed)
        } else {
            (replaced(name, &self.to_file), Part::Whole)
        };
        (format!("{}{file}", self.prefix), part)
    }

    pub fn pair(&mut self, model: impl Into<String>, file: impl Into<String>) {
        let (model, file) = (model.into(), file.into());
        self.to_file.insert(model.clone(), file.clone());
        self.to_model.insert(file, model);
    }

    /// The parts of a residual block, under names that differ between the UNet and the autoencoder.
    fn resnet(&mut self, model: &str, file: &str, parts: &[(&str, &str)]) {
        for (of_model, of_file) in parts {
            self.pair(format!("{model}{of_model}."), format!("{file}{of_file}."));
        }
    }

    /// The UNet's.
    pub fn of_unet(config: &UNet2DConditionConfig, prefix: &str) -> Self {
        const RESNET: [(&str, &str); 6] = [
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
            ("conv_shortcut", "skip_connection"),
        ];
        let mut names = Self::plain(prefix);
        for (model, file) in [
            ("conv_in.", "input_blocks.0.0."),
            ("time_embedding.linear_1.", "time_embed.0."),
            ("time_embedding.linear_2.", "time_embed.2."),
            ("time_embedding.cond_proj.", "time_embed.cond_proj."),
            ("add_embedding.linear_1.", "label_emb.0.0."),
            ("add_embedding.linear_2.", "label_emb.0.2."),
            ("conv_norm_out.", "out.0."),
            ("conv_out.", "out.2."),
        ] {
            names.pair(model, file);
        }
        names.resnet("mid_block.resnets.0.", "middle_block.0.", &RESNET);
        names.pair("mid_block.attentions.0.", "middle_block.1.");
        names.resnet("mid_block.resnets.1.", "middle_block.2.", &RESNET);

        // The file numbers all blocks on the way down in a row, downsampling included, and so on the way up.
        let blocks = config.block_out_channels.len();
        let mut input = 1;
        for i in 0..blocks {
            for j in 0..config.layers_per_block[i] {
                names.resnet(&format!("down_blocks.{i}.resnets.{j}."), &format!("input_blocks.{input}.0."), &RESNET);
                names.pair(format!("down_blocks.{i}.attentions.{j}."), format!("input_blocks.{input}.1."));
                input += 1;
            }
            if i + 1 < blocks {
                names.pair(format!("down_blocks.{i}.downsamplers.0.conv."), format!("input_blocks.{input}.0.op."));
                input += 1;
            }
        }
        let mut output = 0;
        for i in 0..blocks {
            let attends = config.attends_up(i);
            for j in 0..=config.layers_per_block[blocks - 1 - i] {
                names.resnet(&format!("up_blocks.{i}.resnets.{j}."), &format!("output_blocks.{output}.0."), &RESNET);
                if attends {
                    names.pair(format!("up_blocks.{i}.attentions.{j}."), format!("output_blocks.{output}.1."));
                }
                output += 1;
            }
            // Upsampling shares the number of the block's last layer.
            let place = format!("output_blocks.{}.{}.conv.", output - 1, if attends { 2 } else { 1 });
            names.pair(format!("up_blocks.{i}.upsamplers.0.conv."), place);
        }
        names
    }

    /// A ControlNet's: the way down of a UNet, and what is its own.
    pub fn of_controlnet(config: &ControlNetConfig, prefix: &str) -> Self {
        let mut names = Self::of_unet(&config.encoder, prefix);
        // Activations stand between the convolutions of the picture's embedding, two of which are at each resolution.
        let last = 2 * config.embedding_channels.len() - 1;
        for i in 0..=last {
            let model = match i {
                0 => "conv_in".into(),
                _ if i == last => "conv_out".into(),
                _ => format!("blocks.{}", i - 1),
            };
            names.pair(format!("controlnet_cond_embedding.{model}."), format!("input_hint_block.{}.", 2 * i));
        }
        let states = config.encoder.block_out_channels.len() + config.encoder.layers_per_block.iter().sum::<usize>();
        for i in 0..states {
            names.pair(format!("controlnet_down_blocks.{i}."), format!("zero_convs.{i}.0."));
        }
        names.pair("controlnet_mid_block.", "middle_block_out.0.");
        names
    }

    /// A T2I-Adapter's in its authors' code, which numbers all blocks of a full one in a row.
    pub fn of_t2i_adapter(config: &T2iAdapterConfig) -> Self {
        let mut names = Self::plain("");
        names.pair("adapter.conv_in.", "conv_in.");
        let (light, blocks) = (config.kind == T2iAdapterKind::Light, config.num_res_blocks);
        for i in 0..=config.channels.len() {
            for j in 0..blocks {
                let file = if light { format!("body.{i}.body.{j}.") } else { format!("body.{}.", i * blocks + j) };
                names.pair(format!("adapter.body.{i}.resnets.{j}."), file);
            }
            for conv in ["in_conv", "out_conv"] {
                let at = if light { i } else { i * blocks };
                names.pair(format!("adapter.body.{i}.{conv}."), format!("body.{at}.{conv}."));
            }
        }
        names
    }

    /// The autoencoder's.
    pub fn of_autoencoder(config: &AutoencoderConfig, prefix: &str) -> Self {
        const SHORTCUT: [(&str, &str); 1] = [("conv_shortcut", "nin_shortcut")];
        const ATTENTION: [(&str, &str); 5] =
            [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];
        let mut names = Self::plain(prefix);
        let blocks = config.block_out_channels.len();
        for half in ["encoder", "decoder"] {
            names.pair(format!("{half}.mid_block.resnets.0."), format!("{half}.mid.block_1."));
            names.pair(format!("{half}.mid_block.resnets.1."), format!("{half}.mid.block_2."));
            for (model, file) in ATTENTION {
                names.pair(format!("{half}.mid_block.attentions.0.{model}."), format!("{half}.mid.attn_1.{file}."));
            }
            names.pair(format!("{half}.conv_norm_out."), format!("{half}.norm_out."));
        }
        let sides = [("encoder.down_blocks", "encoder.down", 0), ("decoder.up_blocks", "decoder.up", 1)];
        for (model, file, more) in sides {
            for i in 0..blocks {
                // Both count from the pixels in the file; diffusers counts the decoder from the latents.
                let at = if more == 0 { i } else { blocks - 1 - i };
                for j in 0..config.layers_per_block + more {
                    names.resnet(&format!("{model}.{i}.resnets.{j}."), &format!("{file}.{at}.block.{j}."), &SHORTCUT);
                    names.pair(format!("{model}.{i}.resnets.{j}."), format!("{file}.{at}.block.{j}."));
                }
            }
        }
        for i in 0..blocks {
            names.pair(
                format!("encoder.down_blocks.{i}.downsamplers.0.conv."),
                format!("encoder.down.{i}.downsample.conv."),
            );
            names.pair(
                format!("decoder.up_blocks.{i}.upsamplers.0.conv."),
                format!("decoder.up.{}.upsample.conv.", blocks - 1 - i),
            );
        }
        names
    }

    /// The text encoder's as OpenCLIP has it: queries, keys and values joined, the projection, if the model has one,
    /// transposed.
    pub fn of_open_clip(config: &ClipTextConfig, projects: bool, prefix: &str) -> Self {
        const LAYER: [(&str, &str); 5] = [
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn.out_proj", "attn.out_proj"),
        ];
        let mut names = Self::plain(prefix);
        names.pair("text_model.embeddings.token_embedding.", "token_embedding.");
        names.pair("text_model.embeddings.position_embedding.weight", "positional_embedding");
        names.pair("text_model.final_layer_norm.", "ln_final.");
        if projects {
            names.transposed.push(("text_projection.weight".into(), "text_projection".into()));
        }
        for i in 0..config.num_hidden_layers {
            let (model, file) = (format!("text_model.encoder.layers.{i}."), format!("transformer.resblocks.{i}."));
            for (of_model, of_file) in LAYER {
                names.pair(format!("{model}{of_model}."), format!("{file}{of_file}."));
            }
            for parameter in ["weight", "bias"] {
                let joined = format!("{file}attn.in_proj_{parameter}");
                let thirds = ["q", "k", "v"].map(|which| format!("{model}self_attn.{which}_proj.{parameter}"));
                for (third, name) in thirds.iter().enumerate() {
                    names.parts.insert(name.clone(), (joined.clone(), third));
                }
                names.joined.insert(joined, thirds);
            }
        }
        names
    }
}

/// The name with its longest known beginning, which ends at a dot or with the name, replaced.
fn replaced(name: &str, table: &HashMap<String, String>) -> String {
    if let Some(whole) = table.get(name) {
        return whole.clone();
    }
    let dots = name.rmatch_indices('.').map(|(at, _)| at + 1);
    let found = dots.filter_map(|end| Some((table.get(&name[..end])?, &name[end..]))).next();
    found.map_or_else(|| name.into(), |(beginning, rest)| format!("{beginning}{rest}"))
}
