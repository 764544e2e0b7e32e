//! The sizes of blocks.

/// The logarithm of the least size that is kept.
const LEAST: u32 = 20;

/// Sizes per power of two: a block is at most an eighth larger than it was asked for.
const STEPS: u32 = 8;

/// All sizes that an address can span.
pub const CLASSES: usize = (STEPS * (48 - LEAST)) as usize;

/// Whether blocks of a size are kept.
pub fn is_kept(size: usize) -> bool {
    (1 << LEAST..1 << 47).contains(&size)
}

/// The class of a size, and the size of its blocks.
pub fn class(size: usize) -> (usize, usize) {
    let octave = size.ilog2();
    let step = 1usize << (octave - STEPS.ilog2());
    let steps = size.div_ceil(step);
    ((octave - LEAST) as usize * STEPS as usize + steps - STEPS as usize, steps * step)
}

/// The size of a class's blocks.
pub fn size_of(class: usize) -> usize {
    let (octave, steps) = (class as u32 / STEPS + LEAST, class as u32 % STEPS + STEPS);
    (steps as usize) << (octave - STEPS.ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_in_order_and_waste_an_eighth_at_most() {
        let mut last = 0;
        for octave in LEAST..47 {
            for eighth in 0..64usize {
                let size = (1usize << octave) + (eighth << (octave - 6));
                for size in [size, size + 1] {
                    let (class, rounded) = class(size);
                    assert!(rounded >= size && rounded - size <= size / 8 && class < CLASSES);
                    assert!(class >= last && size_of(class) == rounded);
                    last = class;
                }
            }
        }
    }
}
