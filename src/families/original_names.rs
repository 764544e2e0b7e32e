//! What the code bases that Stable Diffusion comes from call tensors (Rombach et al.'s `ldm`, OpenCLIP, the ControlNet's and
//! T2I-Adapter's authors' code), by a component's configuration.

use crate::checkpoints::TensorNames;
use crate::models::{
    AutoencoderConfig, ClipTextConfig, ControlNetConfig, T2iAdapterConfig, T2iAdapterKind, UNet2DConditionConfig,
};

/// The parts of a residual block, under names that differ between the UNet and the autoencoder.
fn resnet(names: &mut TensorNames, model: &str, file: &str, parts: &[(&str, &str)]) {
    for (of_model, of_file) in parts {
        names.pair(format!("{model}{of_model}."), format!("{file}{of_file}."));
    }
}

/// The UNet's.
pub(super) fn unet(config: &UNet2DConditionConfig, prefix: &str) -> TensorNames {
    const RESNET: [(&str, &str); 6] = [
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("time_emb_proj", "emb_layers.1"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("conv_shortcut", "skip_connection"),
    ];
    let mut names = TensorNames::plain(prefix);
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
    resnet(&mut names, "mid_block.resnets.0.", "middle_block.0.", &RESNET);
    names.pair("mid_block.attentions.0.", "middle_block.1.");
    resnet(&mut names, "mid_block.resnets.1.", "middle_block.2.", &RESNET);

    // The file numbers all blocks on the way down in a row, downsampling included, and so on the way up.
    let blocks = config.block_out_channels.len();
    let mut input = 1;
    for i in 0..blocks {
        for j in 0..config.layers_per_block[i] {
            resnet(&mut names, &format!("down_blocks.{i}.resnets.{j}."), &format!("input_blocks.{input}.0."), &RESNET);
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
            resnet(&mut names, &format!("up_blocks.{i}.resnets.{j}."), &format!("output_blocks.{output}.0."), &RESNET);
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
pub(super) fn controlnet(config: &ControlNetConfig, prefix: &str) -> TensorNames {
    let mut names = unet(&config.encoder, prefix);
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
pub(super) fn t2i_adapter(config: &T2iAdapterConfig) -> TensorNames {
    let mut names = TensorNames::plain("");
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
pub(super) fn autoencoder(config: &AutoencoderConfig, prefix: &str) -> TensorNames {
    const SHORTCUT: [(&str, &str); 1] = [("conv_shortcut", "nin_shortcut")];
    const ATTENTION: [(&str, &str); 5] =
        [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];
    let mut names = TensorNames::plain(prefix);
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
                resnet(&mut names, &format!("{model}.{i}.resnets.{j}."), &format!("{file}.{at}.block.{j}."), &SHORTCUT);
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
pub(super) fn open_clip(config: &ClipTextConfig, projects: bool, prefix: &str) -> TensorNames {
    const LAYER: [(&str, &str); 5] = [
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    ];
    let mut names = TensorNames::plain(prefix);
    names.pair("text_model.embeddings.token_embedding.", "token_embedding.");
    names.pair("text_model.embeddings.position_embedding.weight", "positional_embedding");
    names.pair("text_model.final_layer_norm.", "ln_final.");
    if projects {
        names.transpose("text_projection.weight", "text_projection");
    }
    for i in 0..config.num_hidden_layers {
        let (model, file) = (format!("text_model.encoder.layers.{i}."), format!("transformer.resblocks.{i}."));
        for (of_model, of_file) in LAYER {
            names.pair(format!("{model}{of_model}."), format!("{file}{of_file}."));
        }
        for parameter in ["weight", "bias"] {
            let joined = format!("{file}attn.in_proj_{parameter}");
            let thirds = ["q", "k", "v"].map(|which| format!("{model}self_attn.{which}_proj.{parameter}"));
            names.join(thirds, joined);
        }
    }
    names
}
