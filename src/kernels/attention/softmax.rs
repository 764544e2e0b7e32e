//! A softmax whose values come in blocks (Milakov and Gimelshein 2018).

use super::super::Real;
use super::super::simd::multiversion;

/// A softmax whose values come in blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunningSoftmax<T> {
    max: T,
    /// Of the exponentials of the differences from the largest value.
    pub sum: T,
}

impl<T: Real> RunningSoftmax<T> {
    pub fn new() -> Self {
        Self { max: T::NEG_INFINITY, sum: T::zero() }
    }

    /// Makes exponentials of the first `seen` scores and zeros of the rest; what was summed with the
    /// exponentials before has to be multiplied by the result.
    pub fn add(&mut self, seen: usize, row: &mut [T]) -> T {
        let (scores, unseen) = row.split_at_mut(seen);
        unseen.fill(T::zero());
        if seen == 0 {
            return T::one();
        }
        let largest = max_of(scores);
        let max = if largest > self.max { largest } else { self.max };
        let factor = if self.sum == T::zero() { T::zero() } else { (self.max - max).exp_approx::<false>() };
        self.sum = self.sum * factor + exponentials(scores, max);
        self.max = max;
        factor
    }

    /// Makes probabilities of the first `seen` scores and zeros of the rest.
    pub fn probabilities(&self, seen: usize, row: &mut [T]) {
        let (scores, unseen) = row.split_at_mut(seen);
        unseen.fill(T::zero());
        exponentials(scores, self.max);
        let inverse = T::one() / self.sum;
        scores.iter_mut().for_each(|p| *p *= inverse);
    }
}

/// Several running values at a time, so that a loop is not one chain of dependent operations.
const LANES: usize = 16;

multiversion! {
    fn max_of<T: Real>(row: &[T]) -> T {
        let (chunks, rest) = row.as_chunks::<LANES>();
        let mut largest = [T::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (largest, &x) in largest.iter_mut().zip(chunk) {
                *largest = if x > *largest { x } else { *largest };
            }
        }
        largest.iter().chain(rest).fold(T::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }
}

multiversion! {
    /// `exp(x - max)` in place, and the sum.
    fn exponentials<T: Real, FUSED>(row: &mut [T], max: T) -> T {
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        let mut sums = [T::zero(); LANES];
        for chunk in chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = (*x - max).exp_approx::<FUSED>();
                *sum += *x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *x = (*x - max).exp_approx::<FUSED>();
            *sum += *x;
        }
        sums.into_iter().fold(T::zero(), |a, b| a + b)
    }
}
