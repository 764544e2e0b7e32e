//! Settings that are one of few names.

use crate::requests::values::{self, OptionValue};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tweedie::DType;
use tweedie::adapters::LoraForm;
use tweedie::kernels::{InstructionSet, MatmulPrecision};
use tweedie::training::{Decay, LowRankModules};

/// An enum whose variants have one name in files and on a command line.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$about])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// Every name, in the order of the choices.
            pub const NAMES: &'static [&'static str] = &[$($text),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl OptionValue for $name {
            fn expected() -> String {
                format!("one of {}", Self::NAMES.join(", "))
            }

            fn from_json(value: &Value) -> Option<Self> {
                values::read(value)
            }

            fn to_json(&self) -> Value {
                self.name().into()
            }
        }
    };
}

named! {
    /// What the network learns to predict.
    PredictionChoice {
        /// The noise.
        Epsilon = "epsilon",
        /// `v = alpha epsilon - sigma x0`.
        V = "v_prediction",
        /// The clean image.
        Sample = "sample",
        /// Rectified flow's velocity.
        Flow = "flow",
    }
}

named! {
    /// How betas grow.
    BetaChoice {
        /// Evenly, from 0.0001 to 0.02.
        Linear = "linear",
        /// As `cos^2` has it.
        Cosine = "squaredcos_cap_v2",
        /// Along a logistic curve.
        Sigmoid = "sigmoid",
    }
}

named! {
    /// How betas grow in latent diffusion.
    LatentBetaChoice {
        /// As `cos^2` has it, which suits small latents.
        Cosine = "squaredcos_cap_v2",
        /// Their roots grow evenly, from those of 0.00085 to 0.012: Stable Diffusion's.
        ScaledLinear = "scaled_linear",
    }
}

named! {
    /// What the learning rate does after the warm-up.
    DecayChoice {
        /// It stays.
        Constant = "constant",
        /// It falls to zero along half a cosine.
        Cosine = "cosine",
        /// It stays for half of the run, then falls evenly to zero.
        LateLinear = "late-linear",
    }
}

named! {
    /// The number format of the finished model's weights.
    StoredChoice {
        /// 32 bits.
        F32 = "f32",
        /// 16 bits.
        F16 = "f16",
    }
}

named! {
    /// How the weights of a model that is not trained are held.
    HeldChoice {
        /// As they are stored.
        Stored = "stored",
        /// In 16 bits.
        F16 = "f16",
        /// In 8 bits.
        Q8 = "q8",
        /// In 4 bits.
        Q4 = "q4",
    }
}

named! {
    /// Which weights a LoRA changes.
    LoraModulesChoice {
        /// Those of attention.
        Attention = "attention",
        /// All of transformer blocks.
        Transformers = "transformers",
        /// Those of residual blocks too.
        All = "all",
    }
}

named! {
    /// How a LoRA's file calls its tensors.
    LoraFormChoice {
        /// As kohya's scripts do.
        Kohya = "kohya",
        /// As PEFT and diffusers do.
        Peft = "peft",
    }
}

named! {
    /// Which products of a training step are of numbers rounded to bf16. Weights, sums, norms and the gradients of weights are
    /// in f32 in any case.
    MixedPrecisionChoice {
        /// None.
        No = "no",
        /// Those of weights with activations and with their gradients, and those of attention, but for its gradients.
        Bf16 = "bf16",
    }
}

impl MixedPrecisionChoice {
    /// What a user should know of it on this machine.
    pub(super) fn warning(self) -> Option<String> {
        let slow = "`mixed_precision` bf16 is many times slower than no on this CPU, which has no instructions for products of bf16";
        (self == Self::Bf16 && !InstructionSet::in_use().multiplies_bf16()).then(|| slow.to_owned())
    }
}

impl From<DecayChoice> for Decay {
    fn from(choice: DecayChoice) -> Self {
        match choice {
            DecayChoice::Constant => Self::Constant,
            DecayChoice::Cosine => Self::Cosine,
            DecayChoice::LateLinear => Self::LateLinear,
        }
    }
}

impl From<StoredChoice> for DType {
    fn from(choice: StoredChoice) -> Self {
        match choice {
            StoredChoice::F32 => Self::F32,
            StoredChoice::F16 => Self::F16,
        }
    }
}

impl From<LoraModulesChoice> for LowRankModules {
    fn from(choice: LoraModulesChoice) -> Self {
        match choice {
            LoraModulesChoice::Attention => Self::Attention,
            LoraModulesChoice::Transformers => Self::Transformers,
            LoraModulesChoice::All => Self::All,
        }
    }
}

impl From<LoraFormChoice> for LoraForm {
    fn from(choice: LoraFormChoice) -> Self {
        match choice {
            LoraFormChoice::Kohya => Self::Kohya,
            LoraFormChoice::Peft => Self::Peft,
        }
    }
}

impl From<MixedPrecisionChoice> for MatmulPrecision {
    fn from(choice: MixedPrecisionChoice) -> Self {
        match choice {
            MixedPrecisionChoice::No => Self::Full,
            MixedPrecisionChoice::Bf16 => Self::Bf16,
        }
    }
}
