//! What models are made of.
//!
//! A model's file says how layers are joined; a layer decides how it is computed. Layers are made from
//! [`Weights`], whatever form those come in, and multiply with them as [`Weight`]s: another number format is another
//! [`WeightForm`], an adapter stands beside a weight, and neither changes a layer or a model. Every layer is differentiable throughout.
//!
//! # Examples
//!
//! ```
//! use tweedie::checkpoints::RandomWeights;
//! use tweedie::layers::{Linear, Weights};
//! use tweedie::{DType, Device, Tensor};
//!
//! // `layer.weight` and `layer.bias`, of whatever the source is.
//! let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
//! let layer = Linear::new(&Weights::new(&source).at("layer"), 3, 2)?;
//! assert_eq!(layer.forward(&Tensor::zeros((5, 3), DType::F32, &Device::Cpu)?)?.dims(), [5, 2]);
//! # Ok::<_, tweedie::Error>(())
//! ```

mod activation;
mod attention;
mod cache;
mod conv;
mod dot_product_attention;
mod embedding;
mod feature_map;
mod linear;
mod log_softmax;
mod norm;
mod on_device;
mod residual;
mod timestep;
mod weight;
mod weights;

pub use crate::kernels::{Pooling, recomputed, recomputes, recomputing};
pub use activation::{Activation, geglu};
pub use attention::{Attention, AttentionConfig};
pub use cache::{Cache, LayerId};
pub use conv::{Conv2d, ConvGeometry};
pub use dot_product_attention::scaled_dot_product_attention;
pub use embedding::Embedding;
pub use feature_map::FeatureMap;
pub use linear::Linear;
pub use log_softmax::log_softmax;
pub use norm::{GroupNorm, LayerNorm};
pub use on_device::{on_device, with_gradients};
pub use residual::add_residual;
pub use timestep::{FourierEmbedding, GuidanceEmbedding, SinusoidalEmbedding, TimestepEmbedding};
pub use weight::{Adapter, Dense, Packed, Weight, WeightDelta, WeightForm, WeightRecorder, WeightStore};
pub use weights::{Backend, Computation, WeightSource, Weights};
