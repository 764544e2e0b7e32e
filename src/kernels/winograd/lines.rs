//! The transforms in a line, and their transposes, which gradients take; sixteen channels at a time.

use super::super::Real;
use super::super::panel_row::PANEL;

/// Two of the points, with [`FAR`]. On white noise of 640 channels in f32 the largest error is 4e-6 of the largest
/// value, where the paper's 1 and 2 give 1.4e-5 and plain sums 2.7e-6; and their powers are exact.
pub(super) const NEAR: f64 = 0.75;

/// See [`NEAR`].
pub(super) const FAR: f64 = 1.5;

/// Output pixels along a side of a tile.
pub(in crate::kernels) const TILE: usize = 4;

/// Input pixels along a side of a tile.
pub(super) const SEEN: usize = 6;

/// Sixteen neighbouring channels.
pub(super) type Lanes<T> = [T; PANEL];

#[inline(always)]
pub(super) fn lanes<T: Real>(f: impl Fn(usize) -> T) -> Lanes<T> {
    let mut lanes = [T::zero(); PANEL];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = f(i);
    }
    lanes
}

/// The transform of six input pixels in a line, `B^T d`.
#[inline(always)]
pub(super) fn pixels_in_a_line<T: Real>(d: [&Lanes<T>; SEEN]) -> [Lanes<T>; SEEN] {
    let [near, far, near2, far2] = [NEAR, FAR, NEAR * NEAR, FAR * FAR].map(T::from_f64);
    let (sum, product) = (near2 + far2, near2 * far2);
    [
        lanes(|i| product * d[0][i] - sum * d[2][i] + d[4][i]),
        lanes(|i| (d[4][i] - far2 * d[2][i]) + near * (d[3][i] - far2 * d[1][i])),
        lanes(|i| (d[4][i] - far2 * d[2][i]) - near * (d[3][i] - far2 * d[1][i])),
        lanes(|i| (d[4][i] - near2 * d[2][i]) + far * (d[3][i] - near2 * d[1][i])),
        lanes(|i| (d[4][i] - near2 * d[2][i]) - far * (d[3][i] - near2 * d[1][i])),
        lanes(|i| product * d[1][i] - sum * d[3][i] + d[5][i]),
    ]
}

/// The transform of three weights in a line, `G g`.
#[inline(always)]
pub(super) fn weights_in_a_line<T: Real>(g: [&Lanes<T>; 3]) -> [Lanes<T>; SEEN] {
    let (near2, far2) = (NEAR * NEAR, FAR * FAR);
    let [at_zero, at_near, at_far] =
        [near2 * far2, 2.0 * near2 * (near2 - far2), 2.0 * far2 * (far2 - near2)].map(|d| T::from_f64(1.0 / d));
    let [near, far, near2, far2] = [NEAR, FAR, near2, far2].map(T::from_f64);
    [
        lanes(|i| g[0][i] * at_zero),
        lanes(|i| (g[0][i] + near2 * g[2][i] + near * g[1][i]) * at_near),
        lanes(|i| (g[0][i] + near2 * g[2][i] - near * g[1][i]) * at_near),
        lanes(|i| (g[0][i] + far2 * g[2][i] + far * g[1][i]) * at_far),
        lanes(|i| (g[0][i] + far2 * g[2][i] - far * g[1][i]) * at_far),
        *g[2],
    ]
}

/// The transform of six sums in a line to four output pixels, `A^T m`.
#[inline(always)]
pub(super) fn sums_in_a_line<T: Real>(m: [&Lanes<T>; SEEN]) -> [Lanes<T>; TILE] {
    let [near, far, near2, far2] = [NEAR, FAR, NEAR * NEAR, FAR * FAR].map(T::from_f64);
    let (near3, far3) = (near2 * near, far2 * far);
    [
        lanes(|i| m[0][i] + (m[1][i] + m[2][i]) + (m[3][i] + m[4][i])),
        lanes(|i| near * (m[1][i] - m[2][i]) + far * (m[3][i] - m[4][i])),
        lanes(|i| near2 * (m[1][i] + m[2][i]) + far2 * (m[3][i] + m[4][i])),
        lanes(|i| near3 * (m[1][i] - m[2][i]) + far3 * (m[3][i] - m[4][i]) + m[5][i]),
    ]
}

/// The transpose of [`sums_in_a_line`], `A g`.
#[inline(always)]
pub(super) fn gradients_in_a_line<T: Real>(g: [&Lanes<T>; TILE]) -> [Lanes<T>; SEEN] {
    let [near, far, near2, far2] = [NEAR, FAR, NEAR * NEAR, FAR * FAR].map(T::from_f64);
    let even = |i: usize, square: T| g[0][i] + square * g[2][i];
    let odd = |i: usize, point: T, square: T| point * (g[1][i] + square * g[3][i]);
    [
        *g[0],
        lanes(|i| even(i, near2) + odd(i, near, near2)),
        lanes(|i| even(i, near2) - odd(i, near, near2)),
        lanes(|i| even(i, far2) + odd(i, far, far2)),
        lanes(|i| even(i, far2) - odd(i, far, far2)),
        *g[3],
    ]
}

/// The transpose of [`weights_in_a_line`], `G^T m`.
#[inline(always)]
pub(super) fn products_in_a_line<T: Real>(m: [&Lanes<T>; SEEN]) -> [Lanes<T>; 3] {
    let (near2, far2) = (NEAR * NEAR, FAR * FAR);
    let [at_zero, at_near, at_far] =
        [near2 * far2, 2.0 * near2 * (near2 - far2), 2.0 * far2 * (far2 - near2)].map(|d| T::from_f64(1.0 / d));
    let [near, far, near2, far2] = [NEAR, FAR, near2, far2].map(T::from_f64);
    [
        lanes(|i| m[0][i] * at_zero + (m[1][i] + m[2][i]) * at_near + (m[3][i] + m[4][i]) * at_far),
        lanes(|i| near * ((m[1][i] - m[2][i]) * at_near) + far * ((m[3][i] - m[4][i]) * at_far)),
        lanes(|i| near2 * ((m[1][i] + m[2][i]) * at_near) + far2 * ((m[3][i] + m[4][i]) * at_far) + m[5][i]),
    ]
}
