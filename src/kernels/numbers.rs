//! Whole numbers of a weight, in a byte each or two in a byte.

use super::dry_run;
use super::panel_row::PANEL;
use rayon::prelude::*;
use std::ops::Range;

/// Lines of sixteen numbers.
#[derive(Debug)]
pub(super) enum Numbers {
    /// A byte each.
    Bytes(Vec<i8>),
    /// Half a byte each, above `least`: of a line the lower halves of eight bytes, then the upper ones.
    Halves { bytes: Vec<u8>, least: i8 },
}

/// Some of them.
#[derive(Debug, Clone, Copy)]
pub(super) enum NumberLines<'a> {
    Bytes(&'a [i8]),
    Halves { bytes: &'a [u8], least: i8 },
}

/// Bytes of a line of halves.
const HALF_LINE: usize = PANEL / 2;

/// Lines that one thread lays out at a time.
const LINES_OF_A_TASK: usize = 4096;

impl Numbers {
    /// Whole lines; in half the memory if all are among the sixteen numbers from this least one on.
    ///
    /// # Panics
    /// If one of them is below it or beyond these.
    pub fn new(numbers: Vec<i8>, least_of_sixteen: Option<i8>) -> Self {
        assert!(numbers.len().is_multiple_of(PANEL));
        let Some(least) = least_of_sixteen else { return Self::Bytes(numbers) };
        if dry_run::is_dry_run() {
            return Self::Halves { bytes: Vec::with_capacity(numbers.capacity() / 2), least };
        }
        let mut bytes = vec![0; numbers.len() / 2];
        let of_task =
            bytes.par_chunks_mut(LINES_OF_A_TASK * HALF_LINE).zip(numbers.par_chunks(LINES_OF_A_TASK * PANEL));
        of_task.for_each(|(bytes, numbers)| {
            let lines = bytes.as_chunks_mut::<HALF_LINE>().0.iter_mut().zip(numbers.as_chunks::<PANEL>().0);
            for (bytes, line) in lines {
                let above = line.map(|number| i16::from(number) - i16::from(least));
                assert!(above.iter().all(|above| (0..16).contains(above)), "numbers in four bits");
                let above = above.map(|above| above as u8);
                let (lower, upper) = above.split_at(HALF_LINE);
                let each = bytes.iter_mut().zip(lower.iter().zip(upper));
                each.for_each(|(byte, (lower, upper))| *byte = lower | upper << 4);
            }
        });
        Self::Halves { bytes, least }
    }

    /// All of them.
    pub fn lines(&self) -> NumberLines<'_> {
        match self {
            Self::Bytes(numbers) => NumberLines::Bytes(numbers),
            Self::Halves { bytes, least } => NumberLines::Halves { bytes, least: *least },
        }
    }
}

impl<'a> NumberLines<'a> {
    /// How many numbers there are.
    pub fn len(self) -> usize {
        match self {
            Self::Bytes(numbers) => numbers.len(),
            Self::Halves { bytes, .. } => 2 * bytes.len(),
        }
    }

    /// Some whole lines, by their numbers.
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Bytes(numbers) => Self::Bytes(&numbers[range]),
            Self::Halves { bytes, least } => {
                assert!(range.start.is_multiple_of(PANEL) && range.end.is_multiple_of(PANEL));
                Self::Halves { bytes: &bytes[range.start / 2..range.end / 2], least }
            }
        }
    }

    /// The numbers of a line.
    #[inline(always)]
    pub fn line(self, line: usize) -> [i8; PANEL] {
        match self {
            Self::Bytes(numbers) => numbers.as_chunks().0[line],
            Self::Halves { bytes, least } => {
                let bytes: &[u8; HALF_LINE] = &bytes.as_chunks().0[line];
                let mut numbers = [0; PANEL];
                let (lower, upper) = numbers.split_at_mut(HALF_LINE);
                for ((lower, upper), byte) in lower.iter_mut().zip(upper).zip(bytes) {
                    *lower = (byte & 15) as i8 + least;
                    *upper = (byte >> 4) as i8 + least;
                }
                numbers
            }
        }
    }

    /// All numbers, in `buffer` unless they have a byte each already.
    pub fn in_bytes<'b>(self, buffer: &'b mut Vec<i8>) -> &'b [i8]
    where
        'a: 'b,
    {
        match self {
            Self::Bytes(numbers) => numbers,
            Self::Halves { .. } => {
                buffer.resize(self.len(), 0);
                let lines = buffer.as_chunks_mut().0.iter_mut().enumerate();
                lines.for_each(|(i, line)| *line = self.line(i));
                buffer
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_in_half_the_memory() {
        for (least, most) in [(-8i8, 7i8), (0, 15), (-128, -113), (112, 127), (5, 5), (-8, 8), (-128, 127)] {
            let span = i16::from(most) - i16::from(least) + 1;
            let number = |i: usize| (i16::from(least) + (i * 7) as i16 % span) as i8;
            let mut all: Vec<i8> = (0..5 * PANEL).map(number).collect();
            all[..2].copy_from_slice(&[least, most]);
            // More than sixteen have a byte each.
            for least in [None, Some(least).filter(|_| span <= 16)] {
                let numbers = Numbers::new(all.clone(), least);
                assert_eq!(matches!(numbers, Numbers::Halves { .. }), least.is_some());
                let (lines, mut buffer) = (numbers.lines(), Vec::new());
                assert_eq!((lines.len(), lines.in_bytes(&mut buffer)), (all.len(), &all[..]));
                let part = lines.part(2 * PANEL..4 * PANEL);
                assert_eq!((part.len(), &part.line(1)[..]), (2 * PANEL, &all[3 * PANEL..4 * PANEL]));
            }
        }
        assert_eq!(Numbers::new(Vec::new(), Some(0)).lines().len(), 0);
    }

    #[test]
    #[should_panic(expected = "four bits")]
    fn numbers_of_more_bits_are_refused() {
        Numbers::new(vec![-128; PANEL], Some(120));
    }
}
