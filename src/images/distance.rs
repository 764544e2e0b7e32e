//! The Euclidean distance transform.

use rayon::prelude::*;

/// For every pixel the squared distance to the nearest pixel that `is_target`, row by row; `u32::MAX` everywhere if
/// there is none. Exact, and its cost depends on the picture's size alone.
///
/// Meijster, Roerdink and Hesselink, "A General Algorithm for Computing Distance Transforms in Linear Time" (2000): the
/// distance within each column, then, along each row, the lower envelope of one parabola per column.
pub(super) fn squared_distances(width: usize, height: usize, is_target: impl Fn(usize) -> bool) -> Vec<u32> {
    // Longer than every distance in the picture, so it never wins against a real one.
    let far = (width + height) as u32;
    let mut found = false;
    let mut column = vec![far; width * height];
    for y in 0..height {
        for x in 0..width {
            let i = y * width + x;
            if is_target(i) {
                (column[i], found) = (0, true);
            } else if y > 0 {
                column[i] = far.min(column[i - width] + 1);
            }
        }
    }
    if !found {
        return vec![u32::MAX; width * height];
    }
    for i in (0..width * (height - 1)).rev() {
        column[i] = column[i].min(column[i + width] + 1);
    }
    column.par_chunks_exact_mut(width).for_each_init(Envelope::default, |envelope, row| envelope.lower(row));
    column
}

/// The parabolas that are lowest somewhere on a row, from left to right: whose each is, and from where on it is lowest.
#[derive(Default)]
struct Envelope {
    column: Vec<i64>,
    start: Vec<i64>,
}

impl Envelope {
    /// Distances along columns become squared distances.
    fn lower(&mut self, row: &mut [u32]) {
        let distance = |column: i64| i64::from(row[column as usize]);
        let height = |x: i64, column: i64| (x - column).pow(2) + distance(column).pow(2);
        let width = row.len() as i64;
        (self.column, self.start) = (vec![0], vec![0]);
        for new in 1..width {
            while let (Some(&last), Some(&start)) = (self.column.last(), self.start.last()) {
                if height(start, last) <= height(start, new) {
                    break;
                }
                self.column.pop();
                self.start.pop();
            }
            // Beyond this x the new parabola is below the last.
            let start = self.column.last().map_or(0, |&last| {
                let rise = new.pow(2) - last.pow(2) + distance(new).pow(2) - distance(last).pow(2);
                1 + rise.div_euclid(2 * (new - last))
            });
            if start < width {
                self.column.push(new);
                self.start.push(start);
            }
        }
        let mut squared = Vec::with_capacity(row.len());
        for (i, &column) in self.column.iter().enumerate() {
            let end = self.start.get(i + 1).copied().unwrap_or(width);
            squared.extend((self.start[i]..end).map(|x| height(x, column) as u32));
        }
        row.copy_from_slice(&squared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_trying_every_pixel() {
        let mut state = 1u32;
        for (width, height, rarity) in [(1, 1, 1), (1, 9, 3), (13, 1, 5), (7, 11, 2), (23, 17, 10), (20, 31, 200)] {
            let is_target: Vec<bool> = (0..width * height)
                .map(|_| {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    (state >> 16).is_multiple_of(rarity)
                })
                .collect();
            let distances = squared_distances(width, height, |i| is_target[i]);
            for (i, &found) in distances.iter().enumerate() {
                let targets = (0..width * height).filter(|&j| is_target[j]);
                let squared =
                    |j: usize| (i % width).abs_diff(j % width).pow(2) + (i / width).abs_diff(j / width).pow(2);
                let expected = targets.map(squared).min().map_or(u32::MAX, |least| least as u32);
                assert_eq!(found, expected, "pixel {i} of {width}x{height}");
            }
        }
    }
}
