//! Small files that change what a model does: LoRA and its relatives, textual inversion.
//!
//! A LoRA's change of a weight goes one of two ways, and [`Loras`] is both.
//!
//! **Merged** ([`Loras::over`]) it is added to each weight on its way from the checkpoint to the layers. Weights are laid out once
//! for the kernels and a step costs what it costs without; another LoRA, or another weight for it, means loading again. The sum
//! is made in f32. Where weights are stored in half precision, rounding the sum to it moves a picture (measured
//! on the golden cases: by 0.16 to 0.26 of 255 in the mean for f16, 1.2 to 2.3 for bf16, where the agreement with
//! diffusers that is asked for is 0.1). So where the CPU takes products in full, a merged weight stays in f32,
//! and half precision saves memory only for weights that no LoRA touches. Where the factors of products are rounded
//! anyway, those with bf16 where [such products](crate::kernels::MatmulPrecision) were chosen and all on other devices, the sum is
//! rounded once to the type that was asked for, so that a LoRA costs neither speed nor memory.
//!
//! **Beside** ([`Loras::beside`]) it stands next to a weight that it does not touch, `y = W x + scale * up (down x)`, so that models
//! with and without it, or with other strengths, share one [`WeightStore`](crate::layers::WeightStore) and exist at the same time.
//! Its products are full whatever those of the weight are. That costs time in each step: with rank `r`, `r / in + r / out` of
//! the weight's own (LoRA, LoCon). LoHa, LoKr and whole differences have no such factors and are held as differences, in f32, of
//! the weight's size: they double the time, and need the memory. A DoRA rescales whole weights, and can only be merged.
//! Both ways agree to the rounding of f32 where weights are f32; where a weight is stored in half precision and rounded in sums,
//! what stands beside it is the more exact.
//!
//! # Examples
//!
//! ```
//! use tweedie::adapters::TextualInversion;
//! use tweedie::{DType, Device, Tensor};
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("fox.safetensors");
//! // Two vectors of a text encoder that is 8 wide.
//! TextualInversion::write("<fox>", &[Tensor::zeros((2, 8), DType::F32, &Device::Cpu)?], &file)?;
//! let inversion = TextualInversion::read(&file, None)?;
//! assert_eq!((inversion.token(), inversion.encoders()), ("<fox>", 1));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod adapted;
mod adapter_file;
mod beside;
mod lora_delta;
mod lora_file;
mod lora_names;
mod lora_target;
mod lora_writer;
mod loras;
mod merged;
mod sgm_names;
mod textual_inversion;

pub use adapted::AdaptedWeights;
pub use beside::AdapterSource;
pub(crate) use beside::WithAdapters;
pub use lora_file::LoraFile;
pub use lora_target::{LoraComponent, LoraTarget};
pub use lora_writer::{LoraForm, WrittenLora};
pub use loras::Loras;
pub use merged::MergedWeights;
pub use textual_inversion::TextualInversion;
