//! What the values of a stored tensor are.

use super::BlockFormat;
use candle_core::DType;
use safetensors::tensor::Dtype;
use std::fmt;

/// How a file stores the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// One after the other.
    Plain(Dtype),
    /// In blocks that share scales, as GGUF files have them.
    Blocks(BlockFormat),
}

impl ElementType {
    /// That of one of candle's floats.
    pub fn of(dtype: DType) -> Self {
        Self::Plain(match dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::F64 => Dtype::F64,
            _ => Dtype::F32,
        })
    }

    /// The bytes of so many values; `None` if they are no whole blocks, or too many to count.
    pub fn bytes_of(self, values: usize) -> Option<usize> {
        let (block, bytes) = match self {
            Self::Plain(dtype) => (1, dtype.bitsize() / 8),
            Self::Blocks(format) => (format.values(), format.bytes()),
        };
        if values.is_multiple_of(block) { (values / block).checked_mul(bytes) } else { None }
    }

    /// The narrowest of candle's element types that has all its values, if those are floats that weights come in.
    pub(crate) fn float_type(self) -> Option<DType> {
        match self {
            Self::Plain(dtype) => super::mapped::float_type(dtype),
            Self::Blocks(_) => Some(DType::F32),
        }
    }
}

impl From<Dtype> for ElementType {
    fn from(dtype: Dtype) -> Self {
        Self::Plain(dtype)
    }
}

impl fmt::Display for ElementType {
    /// "F16", "Q4_K", ...
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(format) => write!(f, "{format:?}"),
        }
    }
}
