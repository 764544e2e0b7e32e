//! The models that are compiled into the `tweedie` binary, file by file, in diffusers layout.
//!
//! `weights/README.md` says where each comes from and under which licence.

/// Path in the layout and contents of each file of a model.
pub type Files = &'static [(&'static str, &'static [u8])];

macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../", $folder, "/", $name)))),*]
    };
}

/// A text-to-image model of emoji on plain backgrounds, 64x64.
pub const EMOJI_LDM: Files = files!("emoji-ldm":
    "model_index.json",
    "defaults.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
);

/// A class-conditional model of handwritten digits in pixel space, 28x28.
#[cfg(feature = "mnist")]
pub const MNIST_DDPM: Files = files!("mnist-ddpm":
    "model_index.json",
    "defaults.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
);
