//! `y = x W^T + b`.

use super::{Kernel, Real, add_product_transposed, apply, fill_rows, for_each_image, zeros};
use candle_core::{Result, Tensor};

/// A linear layer on tokens.
///
/// # Shapes
/// `x`: `[batch, tokens, in]` or `[batch, in]`; `weight`: `[out, in]`; `bias`: `[out]`; the result ends in
/// `out`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    apply(Linear, [x, weight, bias])
}

struct Linear;

impl Kernel for Linear {
    const NAME: &'static str = "linear";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let (&inputs, leading) = x.split_last()?;
        match (weight, bias) {
            (&[outputs, k], &[b]) if k == inputs && b == outputs && !leading.is_empty() => {
                Some([leading, &[outputs]].concat())
            }
            _ => None,
        }
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], [x_shape, weight_shape, _]: [&[usize]; 3]) -> Vec<T> {
        let (images, k, cols) = (x_shape[0], weight_shape[1], bias.len());
        let rows = x.len() / (images * k).max(1);
        let mut out = zeros::<T>(images * rows * cols);
        for_each_image((x, rows * k), (&mut out, rows * cols), |x, out, parallelism| {
            fill_rows(out, bias);
            add_product_transposed(out, x, weight, (rows, cols, k), parallelism);
        });
        out
    }

    fn backward(&self, [x, weight, _]: [&Tensor; 3], grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (cols, k) = weight.dims2()?;
        let grad_rows = grad.contiguous()?.reshape(((), cols))?;
        let grad_x = grad_rows.matmul(weight)?.reshape(x.shape())?;
        let grad_weight = grad_rows.t()?.matmul(&x.reshape(((), k))?)?;
        Ok([Some(grad_x), Some(grad_weight), Some(grad_rows.sum(0)?)])
    }
}
