//! `y = x W^T + b`.

use super::{Real, add_product_transposed, contiguous, fill_rows, for_real, output, zeros};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

/// A linear layer on tokens.
///
/// # Shapes
/// `x`: `[batch, tokens, in]` or `[batch, in]`; `weight`: `[out, in]`; `bias`: `[out]`; the result ends in
/// `out`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (cols, k) = weight_layout.shape().dims2()?;
        let mut dims = x_layout.dims().to_vec();
        if dims.last() != Some(&k) || bias_layout.dims() != [cols] {
            candle_core::bail!("linear: input {dims:?}, weight [{cols}, {k}], bias {:?}", bias_layout.dims());
        }
        let images = dims[0];
        let last = dims.len() - 1;
        dims[last] = cols;
        for_real!(x, self.name(), T => {
            let (x, weight, bias) = (
                contiguous::<T>(x, x_layout, self.name())?,
                contiguous::<T>(weight, weight_layout, self.name())?,
                contiguous::<T>(bias, bias_layout, self.name())?,
            );
            output(forward(x, weight, bias, images, k), dims)
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (cols, k) = weight.dims2()?;
        let grad_rows = grad.contiguous()?.reshape(((), cols))?;
        let grad_x = grad_rows.matmul(weight)?.reshape(x.shape())?;
        let grad_weight = grad_rows.t()?.matmul(&x.reshape(((), k))?)?;
        Ok((Some(grad_x), Some(grad_weight), Some(grad_rows.sum(0)?)))
    }
}

fn forward<T: Real>(x: &[T], weight: &[T], bias: &[T], images: usize, k: usize) -> Vec<T> {
    let cols = bias.len();
    let rows = x.len() / k / images.max(1);
    let mut out = zeros::<T>(images * rows * cols);
    for (x, out) in x.chunks_exact(rows * k).zip(out.chunks_exact_mut(rows * cols)) {
        fill_rows(out, bias);
        add_product_transposed(out, x, weight, rows, cols, k);
    }
    out
}
