//! Multi-head attention without projections: by this crate's kernel, by a device's fused one, or by its definition.

use super::Backend;
use crate::Result;
use crate::kernels::{self, MatmulPrecision};
use candle_core::Tensor;

/// Multi-head attention of queries to keys and values, without projections. `products` is how the kernels take them.
///
/// # Shapes
/// `q`: `[batch, n, heads * d]`; `k`, `v`: `[batch, m, heads * d]`; the result is as `q`.
///
/// # Errors
/// If the shapes do not fit.
pub fn scaled_dot_product_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    causal: bool,
    products: MatmulPrecision,
    backend: Backend,
) -> Result<Tensor> {
    match backend {
        Backend::Kernels => Ok(kernels::attention_with(q, k, v, heads, causal, products)?),
        #[cfg(feature = "flash-attn")]
        Backend::Candle if flash::serves(q, k, v, heads, causal) => flash::attention(q, k, v, heads, causal),
        #[cfg(feature = "metal")]
        Backend::Candle if metal::serves(q, k, v, heads, causal) => metal::attention(q, k, v, heads, causal),
        Backend::Candle => Ok(kernels::attention_definition(q, k, v, heads, causal)?),
    }
}

/// Whether a kernel without a gradient may compute this attention: nobody asks for one, and a causal query's own key
/// is the one at its position, whichever end the kernel counts from.
#[cfg(any(feature = "flash-attn", feature = "metal"))]
fn is_plain(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> bool {
    let lengths_fit = !causal || q.dims().get(1) == k.dims().get(1);
    lengths_fit && ![q, k, v].into_iter().any(Tensor::track_op)
}

/// FlashAttention-2 (Dao 2023), which CUDA has for half precision, without a gradient.
#[cfg(feature = "flash-attn")]
mod flash {
    use crate::Result;
    use candle_core::{DType, Tensor};

    /// The largest head that its kernels are compiled for.
    const LARGEST_HEAD: usize = 512;

    pub fn serves(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> bool {
        let head = q.dims().last().copied().unwrap_or(0) / heads;
        q.device().is_cuda()
            && matches!(q.dtype(), DType::F16 | DType::BF16)
            && head <= LARGEST_HEAD
            && head.is_multiple_of(8)
            && super::is_plain(q, k, v, causal)
    }

    pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
        let (batch, n, width) = q.dims3()?;
        let split = |x: &Tensor| x.contiguous()?.reshape((batch, x.dim(1)?, heads, width / heads));
        let scale = 1.0 / ((width / heads) as f32).sqrt();
        let mixed = candle_flash_attn::flash_attn(&split(q)?, &split(k)?, &split(v)?, scale, causal)?;
        Ok(mixed.reshape((batch, n, width))?)
    }
}

/// candle's fused attention on Metal, without a gradient. Its kernels are for certain heads; others are padded with zeros,
/// which change neither a score nor what is kept of the result.
#[cfg(any(feature = "metal", test))]
mod metal {
    use crate::Result;
    use candle_core::{D, DType, Tensor};

    /// The heads that there are kernels for.
    const HEADS: [usize; 8] = [32, 64, 72, 80, 96, 128, 256, 512];

    /// The head to pad to. In f32 the largest does not fit into a thread group's memory.
    pub fn padded_head(head: usize, dtype: DType) -> Option<usize> {
        let largest = match dtype {
            DType::F16 | DType::BF16 => 512,
            DType::F32 => 256,
            _ => 0,
        };
        HEADS.into_iter().find(|&size| size >= head && size <= largest)
    }

    /// From `[batch, n, heads * d]` to the kernel's `[batch, heads, n, padded d]` and back.
    pub fn on_padded_heads(
        [q, k, v]: [&Tensor; 3],
        heads: usize,
        padded: usize,
        attention: impl FnOnce([Tensor; 3], f32) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        let (batch, n, width) = q.dims3()?;
        let head = width / heads;
        let split = |x: &Tensor| {
            let x = x.reshape((batch, x.dim(1)?, heads, head))?.transpose(1, 2)?;
            x.pad_with_zeros(D::Minus1, 0, padded - head)?.contiguous()
        };
        let mixed = attention([split(q)?, split(k)?, split(v)?], 1.0 / (head as f32).sqrt())?;
        Ok(mixed.narrow(D::Minus1, 0, head)?.transpose(1, 2)?.contiguous()?.reshape((batch, n, width))?)
    }

    #[cfg(feature = "metal")]
    pub fn serves(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> bool {
        let head = q.dims().last().copied().unwrap_or(0) / heads;
        q.device().is_metal() && padded_head(head, q.dtype()).is_some() && super::is_plain(q, k, v, causal)
    }

    #[cfg(feature = "metal")]
    pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
        let head = q.dim(D::Minus1)? / heads;
        let padded = padded_head(head, q.dtype()).unwrap_or(head);
        on_padded_heads([q, k, v], heads, padded, |[q, k, v], scale| {
            candle_nn::ops::sdpa(&q, &k, &v, None, causal, scale, 1.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::metal::{on_padded_heads, padded_head};
    use super::*;
    use crate::noise::{NoiseSource, TorchNoise};
    use candle_core::{D, DType};

    /// Heads of 40, 80 and 160, as Stable Diffusion 1 has them, padded and given to a plain product of matrices.
    #[test]
    fn padded_heads_attend_as_they_are() -> Result<()> {
        let mut noise = TorchNoise::shared(3);
        for (head, expected) in [(40, 64), (80, 80), (160, 256)] {
            let padded = padded_head(head, DType::F32);
            assert_eq!(padded, Some(expected));
            let mut draw = |tokens| noise.normal(&[2, tokens, 3 * head]);
            let (q, k, v) = (draw(7)?, draw(5)?, draw(5)?);
            let mixed = on_padded_heads([&q, &k, &v], 3, expected, |[q, k, v], scale| {
                assert_eq!(q.dims(), [2, 3, 7, expected]);
                let scores = (q.matmul(&k.t()?)? * f64::from(scale))?;
                candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)
            })?;
            let direct = scaled_dot_product_attention(&q, &k, &v, 3, false, MatmulPrecision::Full, Backend::Kernels)?;
            let worst = (mixed - direct)?.abs()?.max_all()?.to_scalar::<f32>()?;
            // f32 sums of up to 160 terms of size 1.
            assert!(worst < 1e-5, "{worst}");
        }
        assert_eq!((padded_head(512, DType::F16), padded_head(512, DType::F32)), (Some(512), None));
        Ok(())
    }
}
