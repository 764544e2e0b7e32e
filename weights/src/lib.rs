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

/// A text-to-image model of emoji on backgrounds and in scenes, 128x128.
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
    "tokenizer/words.txt",
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

/// A classifier of handwritten digits, whose features they are compared by.
#[cfg(feature = "mnist")]
pub const LENET_DIGITS: Files = files!("lenet-digits":
    "classifier/config.json",
    "classifier/diffusion_pytorch_model.safetensors",
);

/// The configurations and the tokenizer of each family of Stable Diffusion, in diffusers layout without weights: what a
/// file of weights alone needs to run. The vocabulary follows from the merges, which are compressed.
#[cfg(feature = "stable-diffusion")]
pub mod stable_diffusion {
    use super::Files;

    /// CLIP's byte-pair merges, with gzip.
    pub const MERGES: &[u8] = include_bytes!("../clip-tokenizer/merges.txt.gz");

    macro_rules! json {
        ($name:literal) => {
            include_bytes!(concat!("../stable-diffusion/", $name, ".json"))
        };
    }

    /// Index, UNet, scheduler and autoencoder; then for each text encoder the end of its folder's name, its
    /// configuration and that of its tokenizer.
    macro_rules! family {
        ($index:literal, $unet:literal, $scheduler:literal, $vae:literal; $($n:literal $text:literal $pads:literal),+) => {
            &[
                ("model_index.json", json!($index)),
                ("unet/config.json", json!($unet)),
                ("scheduler/scheduler_config.json", json!($scheduler)),
                ("vae/config.json", json!($vae)),
                $(
                    (concat!("text_encoder", $n, "/config.json"), json!($text)),
                    (concat!("tokenizer", $n, "/tokenizer_config.json"), json!($pads)),
                    (concat!("tokenizer", $n, "/merges.txt.gz"), MERGES),
                )+
            ]
        };
    }

    macro_rules! one {
        ($index:literal, $unet:literal) => {
            family!($index, $unet, "scheduler", "vae"; "" "text-encoder-1" "tokenizer-pads-end")
        };
    }

    macro_rules! two {
        ($index:literal, $unet:literal, $scheduler:literal) => {
            family!($index, $unet, $scheduler, "vae"; "" "text-encoder-2" "tokenizer-pads-exclamation")
        };
    }

    macro_rules! xl {
        ($index:literal, $unet:literal, $scheduler:literal) => {
            family!(
                $index, $unet, $scheduler, "vae-xl";
                "" "text-encoder-1" "tokenizer-pads-end", "_2" "text-encoder-xl" "tokenizer-pads-exclamation"
            )
        };
    }

    /// 1.x.
    pub const ONE: Files = one!("index", "unet-1");
    /// 1.x, inpainting.
    pub const ONE_INPAINTING: Files = one!("index-inpainting", "unet-1-inpainting");
    /// 2.x that predicts the noise, 512x512.
    pub const TWO: Files = two!("index", "unet-2", "scheduler");
    /// 2.x that predicts v, 768x768.
    pub const TWO_V: Files = two!("index-2-v", "unet-2-v", "scheduler-2-v");
    /// 2.x, inpainting.
    pub const TWO_INPAINTING: Files = two!("index-inpainting", "unet-2-inpainting", "scheduler");
    /// XL.
    pub const XL: Files = xl!("index-xl", "unet-xl", "scheduler-xl");
    /// XL, inpainting.
    pub const XL_INPAINTING: Files = xl!("index-xl-inpainting", "unet-xl-inpainting", "scheduler-xl");
    /// The refiner of XL, which has the second text encoder alone.
    pub const XL_REFINER: Files = family!(
        "index-xl-refiner", "unet-xl-refiner", "scheduler-xl", "vae-xl";
        "_2" "text-encoder-xl" "tokenizer-pads-exclamation"
    );
}
