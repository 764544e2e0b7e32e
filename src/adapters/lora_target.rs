//! What a model makes of the names in LoRA files.

/// The model that LoRAs are for, as far as it decides what the names in their files mean. Its family makes it:
/// [`Family::lora_target`](crate::families::Family::lora_target).
#[derive(Debug, Clone, Default)]
pub struct LoraTarget {
    /// Its components that LoRAs change.
    pub components: Vec<LoraComponent>,
    /// Layers at each resolution of its UNet, by which the original code numbers the blocks.
    pub layers_per_block: usize,
    /// The families that are known, by the width of the text that their networks look at.
    pub families: Vec<(usize, &'static str)>,
}

/// A component that LoRAs change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoraComponent {
    /// Its folder.
    pub folder: &'static str,
    /// Whether it is the denoising network; else it is a text encoder.
    pub is_network: bool,
    /// What the names of its tensors begin with, in files of any kind.
    pub prefixes: &'static [&'static str],
}

impl LoraTarget {
    /// The component that a path in a file leads into, and the rest of the path. Where it does not say, text encoders are known
    /// by how transformers' models begin.
    pub(super) fn component<'a>(&self, path: &'a str) -> Option<(LoraComponent, &'a str)> {
        let stated = |component: &LoraComponent| {
            let rest = component.prefixes.iter().find_map(|prefix| path.strip_prefix(prefix))?;
            Some((*component, rest))
        };
        let implied = |component: &&LoraComponent| component.is_network != path.starts_with("text_model");
        let implied = || self.components.iter().find(implied).map(|component| (*component, path));
        self.components.iter().find_map(stated).or_else(implied)
    }

    /// The family whose networks look at texts of a width.
    pub(super) fn family(&self, text_width: usize) -> Option<&'static str> {
        self.families.iter().find(|(width, _)| *width == text_width).map(|(_, name)| *name)
    }
}
