//! CPU kernels behind candle custom operations, which have a tape of their own where gradients are taken ([`with_gradients`]);
//! nothing else in the crate knows an instruction set.
//!
//! Every kernel has a *definition*, the same function written with candle's own differentiable operations.
//! The definition is what other devices run and what tests hold the kernel and its gradient against. Activations are channels-last,
//! `[batch, height, width, channels]`, or tokens, `[batch, tokens, channels]`. Each image of a batch is
//! computed by itself, in an order that does not depend on the number of threads, so neither the batch
//! size nor the thread count changes a bit of a picture.
//!
//! The files build on each other without circles. On the ground are the machine (`instruction_set`, `simd`) and numbers (`real`,
//! `half_precision`); then what a product is made of: where results go (`output`, `addend`), the factors (`rows`, `panels`,
//! `eight_bits`, `right_factor`), the tiles (`panel_row`, `tile`, `bf16`, `int8`), and the `product` itself. Kernels stand on these and on `operation`,
//! which is their way into candle and onto the `tape`.
//!
//! # Examples
//!
//! ```
//! use tweedie::kernels::{InstructionSet, threads};
//!
//! println!("{} threads of {}", threads(), InstructionSet::in_use().name());
//! ```
#![allow(unsafe_code)]

mod activation;
mod add;
mod addend;
mod attention;
mod backpropagation;
mod bf16;
mod concat;
mod conv;
mod dry_run;
mod eight_bits;
mod gated_linear;
mod group_norm;
mod half_precision;
mod instruction_set;
mod int8;
mod largest;
mod layer_norm;
mod linear;
mod mean_rows;
mod meter;
mod numbers;
mod operation;
mod output;
mod packed_weight;
mod panel_row;
mod panels;
mod peak;
mod pool;
mod pooling;
mod product;
mod real;
mod recomputation;
mod recycler;
mod resample;
mod reshape;
mod right_factor;
mod rows;
mod simd;
mod tape;
mod tile;
mod transpose;
mod turned;
mod values;
mod weight_layout;
mod winograd;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use add::add;
pub use attention::{attention, attention_definition, attention_with};
pub use backpropagation::with_gradients;
pub use bf16::MatmulPrecision;
pub use concat::concat_channels;
pub use conv::{ConvGeometry, conv2d, conv2d_packed, conv2d_packed_plus, conv2d_with};
pub(crate) use conv::{LEAST_SIDE, ROWS_TOGETHER, taps_first};
pub use dry_run::{can_dry_run, dry_run, dry_run_bytes, is_dry_run};
pub use eight_bits::{EightBitSums, EightBits, RoundedTo};
pub use gated_linear::linear_geglu_packed;
pub use group_norm::{Activation, group_norm, group_norm_definition};
pub(crate) use group_norm::{ChannelSums, group_norm_of_part};
pub(crate) use half_precision::{round_to_bf16, widen_bf16, widen_f16, widened};
pub use instruction_set::{InstructionSet, processor};
pub(crate) use largest::{largest_of_rows, lengths_of_rows};
pub use layer_norm::{layer_norm, layer_norm_definition};
pub use linear::{linear, linear_packed, linear_packed_plus, linear_with};
pub(crate) use mean_rows::{RowGroups, mean_rows, mean_rows_definition};
pub use meter::{Meter, Pass, Tally};
pub(crate) use operation::compute_with;
pub use packed_weight::PackedWeight;
pub use peak::{bf16_speedup, measured_peak};
pub use pool::{in_pool, make_pool, threads};
pub use pooling::{Pooling, pool2d, pool2d_definition};
pub use recomputation::{recomputed, recomputes, recomputing};
pub use recycler::RecyclingAllocator;
pub use resample::resize_nearest;
pub use reshape::reshape;

use operation::{Kernel, Needed, apply, apply_1, apply_2, contiguous, for_real, on_cpu, to_storage};
use product::Product;
use real::Real;
use values::{copy_to, written, zeros};
