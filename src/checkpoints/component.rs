//! Kinds of components.

/// What a component of a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComponentKind {
    /// Text to what the network is conditioned on; transformers' part of a folder in diffusers layout.
    TextEncoder,
    /// Noise to data.
    Network,
    /// Pixels to latents and back.
    Autoencoder,
}

impl ComponentKind {
    /// The kind of a folder in diffusers layout, in which text encoders are called `text_encoder`, `text_encoder_2`, ...;
    /// all others keep their weights as networks do.
    pub fn of_folder(folder: &str) -> Self {
        match folder {
            text if text.starts_with("text_encoder") => Self::TextEncoder,
            "vae" => Self::Autoencoder,
            _ => Self::Network,
        }
    }

    /// What diffusers and transformers call the files of its weights.
    pub fn file_stem(self) -> &'static str {
        match self {
            Self::TextEncoder => "model",
            Self::Network | Self::Autoencoder => "diffusion_pytorch_model",
        }
    }
}
