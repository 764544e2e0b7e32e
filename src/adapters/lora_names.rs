//! What the tensors of a LoRA file are called, by the programs that write such files.
//!
//! | written by | the first factor of `unet` / `down_blocks.0.attentions.0.proj_in` |
//! |---|---|
//! | kohya's scripts, A1111, LyCORIS | `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight` |
//! | the same for SDXL | `lora_unet_input_blocks_1_1_proj_in.lora_down.weight` |
//! | LyCORIS by itself | `lycoris_down_blocks_0_attentions_0_proj_in.lora_down.weight` |
//! | PEFT | `unet.down_blocks.0.attentions.0.proj_in.lora_A.weight` |
//! | the same with an adapter's name | `unet.down_blocks.0.attentions.0.proj_in.lora_A.default_0.weight` |
//! | diffusers | `unet.down_blocks.0.attentions.0.proj_in.lora.down.weight` |
//! | diffusers before 0.20 | `down_blocks.0...attn1.processor.to_q_lora.down.weight` |
//!
//! Since one of them writes underscores for dots, all are compared in that form.

use super::{LoraTarget, sgm_names};

/// What a tensor of a file is in the change of its module's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The factor that lies at the input, A in the paper.
    Down,
    /// The factor that lies at the output, B in the paper.
    Up,
    /// The middle factor of a convolution in three parts (LyCORIS).
    Mid,
    /// What the product is multiplied by, times the rank.
    Alpha,
    /// The length of each row of the sum (DoRA), as PEFT stores it.
    Magnitude,
    /// The same as LyCORIS stores it: of each row, or of each column.
    Scale,
    /// The change itself.
    Difference,
    /// IA3's factor of each row, or of each column if the next says so.
    Activation,
    OnInput,
    /// LoHa's factors: first or second product, left or right factor.
    HadamardLeft1,
    HadamardRight1,
    HadamardCore1,
    HadamardLeft2,
    HadamardRight2,
    HadamardCore2,
    /// LoKr's factors, whole or in two or three parts.
    Kronecker1,
    KroneckerLeft1,
    KroneckerRight1,
    Kronecker2,
    KroneckerLeft2,
    KroneckerRight2,
    KroneckerCore2,
}

/// Endings of names, without a final `.weight`.
const ROLES: [(&str, Role); 28] = [
    (".lora_down", Role::Down),
    (".lora_up", Role::Up),
    (".lora_A", Role::Down),
    (".lora_B", Role::Up),
    (".lora.down", Role::Down),
    (".lora.up", Role::Up),
    (".lora_linear_layer.down", Role::Down),
    (".lora_linear_layer.up", Role::Up),
    ("_lora.down", Role::Down),
    ("_lora.up", Role::Up),
    (".lora_mid", Role::Mid),
    (".alpha", Role::Alpha),
    (".dora_scale", Role::Scale),
    (".lora_magnitude_vector", Role::Magnitude),
    (".diff", Role::Difference),
    (".w_norm", Role::Difference),
    (".hada_w1_a", Role::HadamardLeft1),
    (".hada_w1_b", Role::HadamardRight1),
    (".hada_t1", Role::HadamardCore1),
    (".hada_w2_a", Role::HadamardLeft2),
    (".hada_w2_b", Role::HadamardRight2),
    (".hada_t2", Role::HadamardCore2),
    (".lokr_w1", Role::Kronecker1),
    (".lokr_w1_a", Role::KroneckerLeft1),
    (".lokr_w1_b", Role::KroneckerRight1),
    (".lokr_w2", Role::Kronecker2),
    (".lokr_w2_a", Role::KroneckerLeft2),
    (".lokr_w2_b", Role::KroneckerRight2),
];

/// Endings of the names of changes of a bias.
const OF_BIAS: [&str; 2] = [".diff_b", ".b_norm"];

/// What PEFT puts an adapter's name after.
const NAMED_BY_PEFT: [&str; 3] = [".lora_A", ".lora_B", ".lora_magnitude_vector"];

/// What LyCORIS and PEFT put before all names of a network that they were given by itself.
const WRAPPED: [&str; 2] = ["base_model.model.", "lycoris_"];

/// What the names of a module's bias end with; no weight's name has a dot.
const BIAS: &str = ".bias";

/// Which weight or bias of which component a tensor belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Module {
    /// The component's folder, such as `unet`.
    pub component: String,
    /// The tensor's name in diffusers, without `.weight`, with underscores for dots but for that of `.bias`.
    pub name: String,
}

impl Module {
    /// The module that a model's tensor belongs to, if it is a weight or a bias.
    pub fn of_tensor(component: &str, tensor: &str) -> Option<Self> {
        let (path, bias) = match tensor.strip_suffix(".weight") {
            Some(path) => (path, ""),
            None => (tensor.strip_suffix(BIAS)?, BIAS),
        };
        let name = format!("{}{bias}", without_text_model(&path.replace('.', "_")));
        Some(Self { component: component.into(), name })
    }

    /// Its bias.
    fn bias(self) -> Self {
        Self { name: self.name + BIAS, ..self }
    }
}

/// Takes a tensor's name apart; `None` if its ending is not known.
pub(super) fn parse(key: &str, target: &LoraTarget) -> Option<(Module, Role)> {
    if let Some(path) = OF_BIAS.iter().find_map(|ending| key.strip_suffix(ending)) {
        return Some((module(path, target)?.bias(), Role::Difference));
    }
    let bare = key.strip_suffix(".weight").unwrap_or(key);
    let named = bare.rsplit_once('.').filter(|(path, _)| NAMED_BY_PEFT.iter().any(|factor| path.ends_with(factor)));
    let bare = named.map_or(bare, |(path, _)| path);
    let ending = |known: &(&str, Role)| bare.strip_suffix(known.0).map(|path| (path, known.1));
    let (path, role) = match bare.strip_suffix(".lokr_t2") {
        Some(path) => (path, Role::KroneckerCore2),
        None => ROLES.iter().find_map(ending)?,
    };
    Some((module(path, target)?, role))
}

/// Takes the name of one of IA3's tensors apart (Liu et al. 2022), as LyCORIS has them: `PATH.weight` with a `PATH.on_input`
/// beside it, which `has` tells of.
pub(super) fn parse_ia3(key: &str, has: impl Fn(&str) -> bool, target: &LoraTarget) -> Option<(Module, Role)> {
    const FLAG: &str = ".on_input";
    if let Some(path) = key.strip_suffix(FLAG) {
        return Some((module(path, target)?, Role::OnInput));
    }
    let path = key.strip_suffix(".weight").filter(|path| has(&format!("{path}{FLAG}")))?;
    Some((module(path, target)?, Role::Activation))
}

fn module(path: &str, target: &LoraTarget) -> Option<Module> {
    let path = WRAPPED.iter().find_map(|prefix| path.strip_prefix(prefix)).unwrap_or(path);
    let (component, path) = target.component(path)?;
    let flat = path.replace(".processor", "").replace('.', "_");
    let name = match component.is_network {
        true => sgm_names::diffusers_name(&flat, target.layers_per_block).unwrap_or_else(|| {
            // The old attention processors call it `to_out_lora`.
            if flat.ends_with("_to_out") { format!("{flat}_0") } else { flat }
        }),
        false => without_text_model(&current_projection(&flat)).into(),
    };
    Some(Module { component: component.folder.into(), name })
}

/// Text encoders are asked for with and without this prefix.
fn without_text_model(name: &str) -> &str {
    name.strip_prefix("text_model_").unwrap_or(name)
}

/// Old files call a text encoder's projections as the UNet's are called.
fn current_projection(name: &str) -> String {
    let renamed = [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")];
    let stem = renamed.into_iter().find_map(|(old, new)| Some((name.strip_suffix(old)?, new)));
    match stem {
        Some((stem, new)) if stem.ends_with("self_attn_") => format!("{stem}{new}"),
        _ => name.into(),
    }
}

/// The kind of adapter that an unknown ending belongs to.
pub(super) fn unsupported_kind(key: &str) -> Option<&'static str> {
    const KINDS: [(&str, &str); 8] = [
        (".lora_A.bias", "a changed bias of PEFT's"),
        (".lora_B.bias", "a changed bias of PEFT's"),
        (".oft_", "OFT"),
        (".boft_", "BOFT"),
        (".ia3_l", "PEFT's IA3"),
        (".vera_", "VeRA"),
        (".set_weight", "a replaced weight"),
        (".set_bias", "a replaced bias"),
    ];
    if [".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight", ".bm1.weight", ".bm2.weight"]
        .iter()
        .any(|glora| key.ends_with(glora))
    {
        return Some("GLoRA");
    }
    KINDS.iter().find(|(mark, _)| key.contains(mark)).map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::{Family, SDXL};

    #[test]
    fn every_naming_means_the_same_weight() {
        let weight = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight";
        let wanted = Module::of_tensor("unet", weight);
        for key in [
            "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.default.weight",
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.my ink_2.weight",
            "lycoris_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "base_model.model.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora.down.weight",
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
            "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        ] {
            let (module, role) = parse(key, &SDXL.lora_target(2)).unzip();
            assert_eq!(module, wanted, "{key}");
            assert_eq!(role, Some(Role::Down), "{key}");
        }
        let out = parse(
            "up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
            &SDXL.lora_target(2),
        );
        let wanted = Module::of_tensor("unet", "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.weight");
        assert_eq!(out.unzip(), (wanted, Some(Role::Up)));
    }

    #[test]
    fn text_encoders_are_told_apart() {
        for (key, component) in [
            ("lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha", "text_encoder"),
            ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj.alpha", "text_encoder"),
            ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj.alpha", "text_encoder_2"),
            ("lycoris_text_model_encoder_layers_3_self_attn_q_proj.alpha", "text_encoder"),
            ("clip_l.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight", "text_encoder"),
            ("clip_g.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight", "text_encoder_2"),
            ("text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.up.weight", "text_encoder"),
            (
                "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight",
                "text_encoder_2",
            ),
        ] {
            let wanted = Module::of_tensor(component, "text_model.encoder.layers.3.self_attn.q_proj.weight");
            assert_eq!(parse(key, &SDXL.lora_target(2)).map(|(module, _)| module), wanted, "{key}");
        }
        let bare = Module::of_tensor("text_encoder", "encoder.layers.3.self_attn.q_proj.weight");
        assert_eq!(bare, Module::of_tensor("text_encoder", "text_model.encoder.layers.3.self_attn.q_proj.weight"));
        let bias = |key: &str| parse(key, &SDXL.lora_target(2)).map(|(module, role)| (Some(module), role));
        let wanted = Module::of_tensor("unet", "down_blocks.0.resnets.0.norm1.bias");
        assert_eq!(bias("lora_unet_down_blocks_0_resnets_0_norm1.b_norm"), Some((wanted, Role::Difference)));
        let wanted = Module::of_tensor("text_encoder_2", "text_model.encoder.layers.3.mlp.fc1.bias");
        assert_eq!(bias("lora_te2_text_model_encoder_layers_3_mlp_fc1.diff_b"), Some((wanted, Role::Difference)));
        assert_eq!(Module::of_tensor("unet", "conv.scale"), None);
    }

    #[test]
    fn an_unknown_ending_is_no_part() {
        assert_eq!(parse("lora_unet_conv_in.oft_blocks", &SDXL.lora_target(2)), None);
        assert_eq!(unsupported_kind("lora_unet_conv_in.oft_blocks"), Some("OFT"));
        assert_eq!(unsupported_kind("first_stage_model.x"), None);
    }
}
