//! Where weights come from: every form of checkpoint becomes a [`crate::layers::WeightSource`].
//!
//! # Examples
//!
//! ```
//! use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
//! use tweedie::layers::WeightSource;
//! use tweedie::training::runs::write_tensors;
//! use tweedie::{DType, Device, Tensor};
//!
//! let folder = tempfile::tempdir()?;
//! std::fs::create_dir(folder.path().join("unet"))?;
//! let scale = Tensor::new(&[1f32, 2.0], &Device::Cpu)?;
//! let file = folder.path().join("unet/diffusion_pytorch_model.safetensors");
//! write_tensors(&file, [("scale".to_owned(), scale)].into())?;
//!
//! let files = ModelFiles::folder(folder.path())?;
//! let checkpoint = Checkpoint::open(&files, "unet", Precision::Full, DType::F32, &Device::Cpu)?;
//! assert_eq!(checkpoint.tensor("scale", &[2])?.to_vec1::<f32>()?, [1.0, 2.0]);
//! // What a network does not ask for, or asks for in another shape, is one error that names all of it.
//! checkpoint.finish(&[])?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod checkpoint;
mod component;
mod eight_bit;
mod element_type;
mod files;
mod gguf;
mod mapped;
mod names;
mod npz_file;
mod pickle;
mod random;
mod report;
mod safetensors_bytes;
mod safetensors_file;
mod safetensors_header;
mod single_file;
mod tensor_file;
mod torch_file;
mod torch_stream;
mod weight_files;
mod writer;
mod zip_file;

pub use checkpoint::{Checkpoint, Held};
pub use component::ComponentKind;
pub use element_type::ElementType;
pub use files::{ModelFiles, tensors_sha256};
pub use gguf::{BlockFormat, GgufFile};
pub(crate) use gguf::{stored_as, write_gguf};
pub use names::{TensorNames, TensorPart};
pub(crate) use npz_file::{NumpyArray, read_npz, write_npz};
pub use random::RandomWeights;
pub use report::WeightReport;
pub use safetensors_bytes::safetensors_bytes;
pub use safetensors_file::{SafetensorsFile, StoredTensor};
pub use single_file::{ComponentNames, FileLayout, SingleFile};
pub use tensor_file::TensorFile;
pub use torch_file::TorchFile;
pub use weight_files::{Precision, weight_file, weight_files};
pub(crate) use writer::{Planned, write_safetensors};
