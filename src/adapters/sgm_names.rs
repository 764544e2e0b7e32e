//! The UNet's names in the original Stable Diffusion code, which LoRAs for SDXL use.

/// The name in diffusers of a UNet's module, both with underscores for dots; `None` if it is not one of the original
/// names. `layers` is the UNet's `layers_per_block`, by which the flat list of blocks is cut into resolutions.
pub(super) fn diffusers_name(name: &str, layers: usize) -> Option<String> {
    const WHOLE: [(&str, &str); 7] = [
        ("input_blocks_0_0", "conv_in"),
        ("time_embed_0", "time_embedding_linear_1"),
        ("time_embed_2", "time_embedding_linear_2"),
        ("label_emb_0_0", "add_embedding_linear_1"),
        ("label_emb_0_2", "add_embedding_linear_2"),
        ("out_0", "conv_norm_out"),
        ("out_2", "conv_out"),
    ];
    if let Some((_, current)) = WHOLE.iter().find(|(original, _)| *original == name) {
        return Some((*current).into());
    }
    // On the way up a resolution has one layer more, on the way down a convolution that ends it.
    let per_resolution = layers + 1;
    if let Some(rest) = name.strip_prefix("input_blocks_") {
        let (block, rest) = number(rest)?;
        let block = block.checked_sub(1)?;
        let (resolution, j) = (block / per_resolution, block % per_resolution);
        return match number(rest)? {
            (0, "op") => Some(format!("down_blocks_{resolution}_downsamplers_0_conv")),
            (0, part) => Some(format!("down_blocks_{resolution}_resnets_{j}_{}", resnet_part(part))),
            (1, part) => Some(format!("down_blocks_{resolution}_attentions_{j}_{part}")),
            _ => None,
        };
    }
    if let Some(rest) = name.strip_prefix("output_blocks_") {
        let (block, rest) = number(rest)?;
        let (resolution, j) = (block / per_resolution, block % per_resolution);
        return match number(rest)? {
            (0, part) => Some(format!("up_blocks_{resolution}_resnets_{j}_{}", resnet_part(part))),
            // Without a transformer the upsampling comes second, with one third.
            (1 | 2, "conv") => Some(format!("up_blocks_{resolution}_upsamplers_0_conv")),
            (1, part) => Some(format!("up_blocks_{resolution}_attentions_{j}_{part}")),
            _ => None,
        };
    }
    match number(name.strip_prefix("middle_block_")?)? {
        (0, part) => Some(format!("mid_block_resnets_0_{}", resnet_part(part))),
        (1, part) => Some(format!("mid_block_attentions_0_{part}")),
        (2, part) => Some(format!("mid_block_resnets_1_{}", resnet_part(part))),
        _ => None,
    }
}

/// A leading number and what follows the underscore after it.
fn number(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once('_')?;
    // More digits than any block has would not fit either.
    Some((number.parse::<u16>().ok()?.into(), rest))
}

fn resnet_part(name: &str) -> &str {
    match name {
        "in_layers_0" => "norm1",
        "in_layers_2" => "conv1",
        "emb_layers_1" => "time_emb_proj",
        "out_layers_0" => "norm2",
        "out_layers_3" => "conv2",
        "skip_connection" => "conv_shortcut",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs from the conversion of SDXL's base model, two layers at each of three resolutions.
    #[test]
    fn blocks_are_counted_by_resolution() {
        let name = |name| diffusers_name(name, 2);
        let expect = |original, current: &str| assert_eq!(name(original).as_deref(), Some(current), "{original}");
        expect("input_blocks_0_0", "conv_in");
        expect("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1");
        expect("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv");
        expect("input_blocks_4_0_skip_connection", "down_blocks_1_resnets_0_conv_shortcut");
        expect(
            "input_blocks_8_1_transformer_blocks_9_attn2_to_k",
            "down_blocks_2_attentions_1_transformer_blocks_9_attn2_to_k",
        );
        expect("middle_block_1_proj_in", "mid_block_attentions_0_proj_in");
        expect("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2");
        expect("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv");
        expect(
            "output_blocks_5_1_transformer_blocks_1_ff_net_0_proj",
            "up_blocks_1_attentions_2_transformer_blocks_1_ff_net_0_proj",
        );
        expect("output_blocks_6_0_emb_layers_1", "up_blocks_2_resnets_0_time_emb_proj");
        for strange in ["down_blocks_0", "input_blocks_99999999999999_0_op", "input_blocks_0_1_x", "middle_block_7_x"] {
            assert_eq!(name(strange), None, "{strange}");
        }
    }
}
