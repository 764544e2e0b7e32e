//! What happens to gradients between the backward pass and the optimiser.

use rayon::prelude::*;

/// Values that one thread takes at a time; partial sums are those of these pieces, however many threads there are.
const PIECE: usize = 1 << 14;

/// The Euclidean norm of all gradients together.
pub fn global_norm(gradients: &[f32]) -> f64 {
    let square = |piece: &[f32]| piece.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    let sums: Vec<f64> = gradients.par_chunks(PIECE).map(square).collect();
    sums.iter().sum::<f64>().sqrt()
}

/// Scales all gradients so that their norm is at most `max_norm` (Pascanu et al. 2013, algorithm 1), as PyTorch's
/// `clip_grad_norm_` does. Gives the norm before.
pub fn clip_global_norm(gradients: &mut [f32], max_norm: f64) -> f64 {
    let norm = global_norm(gradients);
    // PyTorch's guard against a norm of zero.
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        scale(gradients, factor);
    }
    norm
}

/// Every value times `factor`.
pub(super) fn scale(gradients: &mut [f32], factor: f64) {
    gradients.par_chunks_mut(PIECE).for_each(|piece| piece.iter_mut().for_each(|g| *g *= factor as f32));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_gradients_are_cut_and_short_ones_left_alone() {
        let mut gradients = vec![3.0f32, 4.0];
        assert_eq!(clip_global_norm(&mut gradients, 10.0), 5.0);
        assert_eq!(gradients, [3.0, 4.0]);
        assert_eq!(clip_global_norm(&mut gradients, 0.5), 5.0);
        assert!((global_norm(&gradients) - 0.5).abs() < 1e-6 && (gradients[0] - 0.3).abs() < 1e-6);
        assert_eq!(clip_global_norm(&mut [0.0], 1.0), 0.0);
    }
}
