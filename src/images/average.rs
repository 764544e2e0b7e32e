//! Resampling by area: each pixel of the result is the mean of what it covers.

use rayon::prelude::*;

/// For each target pixel along an axis, the source pixels that it covers and the share that each has of it.
fn coverage(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = from as f64 / to as f64;
    let covered = |i: usize| {
        let (start, end) = (i as f64 * scale, (i + 1) as f64 * scale);
        let pixels = start as usize..(end.ceil() as usize).min(from);
        let share = |pixel: usize| (end.min((pixel + 1) as f64) - start.max(pixel as f64)) / scale;
        pixels.map(|pixel| (pixel, share(pixel) as f32)).collect()
    };
    (0..to).map(covered).collect()
}

/// Samples of `channels` values a pixel in another size; where it grows, pixels are repeated. Each mean is rounded to a byte once.
pub(super) fn averaged(
    data: &[u8],
    channels: usize,
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
) -> Vec<u8> {
    let (columns, rows) = (coverage(width, to_width), coverage(height, to_height));
    let mut out = vec![0u8; channels * to_width * to_height];
    out.par_chunks_exact_mut(channels * to_width).zip(&rows).for_each(|(out, covered)| {
        // The mean of the rows, then of the columns.
        let mut row = vec![0f32; channels * width];
        for &(y, share) in covered {
            let source = &data[channels * width * y..channels * width * (y + 1)];
            row.iter_mut().zip(source).for_each(|(sum, &value)| *sum += share * f32::from(value));
        }
        for (pixel, covered) in out.chunks_exact_mut(channels).zip(&columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                let sum: f32 = covered.iter().map(|&(x, share)| share * row[channels * x + channel]).sum();
                *value = sum.round() as u8;
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_factors_give_the_means_of_squares() {
        let data: Vec<u8> = (0..4 * 6).map(|i| (i * 29 % 251) as u8).collect();
        let mean = |x: usize, y: usize| {
            let sum: u32 =
                [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(i, j)| data[4 * (2 * y + j) + 2 * x + i].into()).iter().sum();
            (f64::from(sum) / 4.0).round() as u8
        };
        let want: Vec<u8> = (0..6).map(|i| mean(i % 2, i / 2)).collect();
        assert_eq!(averaged(&data, 1, (4, 6), (2, 3)), want);
        assert_eq!(averaged(&data, 1, (4, 6), (4, 6)), data);
    }

    /// A mean of means over equal areas is the mean of all, whatever the factor.
    #[test]
    fn other_factors_keep_the_mean() {
        let data: Vec<u8> = (0..3 * 50 * 50).map(|i| (i * 97 % 256) as u8).collect();
        let mean = |data: &[u8], channel: usize| {
            let values: Vec<f64> = data.iter().skip(channel).step_by(3).map(|&value| value.into()).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        for to in [(32, 17), (64, 50), (1, 1)] {
            let small = averaged(&data, 3, (50, 50), to);
            for channel in 0..3 {
                // Rounding of each pixel.
                assert!((mean(&small, channel) - mean(&data, channel)).abs() < 0.51, "{to:?}");
            }
        }
    }
}
