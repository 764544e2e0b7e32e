//! Where weights come from: every form of checkpoint becomes a [`crate::layers::WeightSource`].

mod checkpoint;
mod component;
mod eight_bit;
mod files;
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
mod writer;
mod zip_file;

pub use checkpoint::{Checkpoint, Precision, weight_file, weight_files};
pub use component::ComponentKind;
pub use files::{ModelFiles, file_sha256, sha256, tensors_sha256};
pub(crate) use mapped::float_type;
pub use names::{TensorNames, TensorPart};
pub(crate) use npz_file::{NumpyArray, read_npz, write_npz};
pub use random::RandomWeights;
pub use report::WeightReport;
pub use safetensors_bytes::safetensors_bytes;
pub use safetensors_file::{SafetensorsFile, StoredTensor};
pub use single_file::{ComponentNames, FileLayout, SingleFile};
pub use tensor_file::TensorFile;
pub use torch_file::TorchFile;
pub(crate) use writer::{Planned, write_safetensors};
