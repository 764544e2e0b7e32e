//! An allocator that hands large blocks out again instead of returning them to the system.
//!
//! A network frees and allocates the same few sizes in every step. Fresh pages have to be cleared and mapped by
//! the kernel each time, which took a fifth of a UNet's time here; and in pages of 4 KiB they strain the
//! address translation of every product. So blocks of a MiB and more are kept by size, in large pages
//! where Linux gives them. A program chooses it with `#[global_allocator]`.

use std::alloc::{GlobalAlloc, Layout, System};

/// The allocator; see the module's text. On other systems than Linux it is the system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecyclingAllocator;

impl RecyclingAllocator {
    /// From now on keeps as many bytes as were in use at once, and not some hundred MiB alone. A training step frees all
    /// that it has computed and takes as much again in the next, so that this costs no memory at the peak.
    pub fn keep_most_used() {
        #[cfg(target_os = "linux")]
        pool::keep_most_used();
    }
}

// SAFETY: every block comes from `pool` or from the system, by its size alone, and returns to where it came from.
unsafe impl GlobalAlloc for RecyclingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        #[cfg(target_os = "linux")]
        if pool::serves(layout) {
            return pool::take(layout.size(), false);
        }
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        #[cfg(target_os = "linux")]
        if pool::serves(layout) {
            return pool::take(layout.size(), true);
        }
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        #[cfg(target_os = "linux")]
        if pool::serves(layout) {
            // SAFETY: `pool::take` gave this block for this size.
            return unsafe { pool::give_back(block, layout.size()) };
        }
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        #[cfg(target_os = "linux")]
        if let Ok(new) = Layout::from_size_align(size, layout.align())
            && (pool::serves(layout) || pool::serves(new))
        {
            if pool::serves(layout) && pool::serves(new) && pool::class_size(size) == pool::class_size(layout.size()) {
                return block;
            }
            // SAFETY: both blocks hold the smaller of the sizes, and they are apart.
            unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(block, size.min(layout.size()));
                    self.dealloc(block, layout);
                }
                return moved;
            }
        }
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[cfg(target_os = "linux")]
mod pool {
    use std::alloc::Layout;
    use std::ptr::null_mut;
    use std::sync::{Mutex, PoisonError};

    /// The logarithm of the least size that is kept.
    const LEAST: u32 = 20;

    /// Sizes per power of two: a block is at most an eighth larger than it was asked for.
    const STEPS: u32 = 8;

    /// All sizes that an address can span.
    const CLASSES: usize = (STEPS * (48 - LEAST)) as usize;

    /// The most bytes that are kept and not in use, besides what [`keep_most_used`] adds.
    const MOST_KEPT: usize = 384 << 20;

    const PAGE: usize = 4096;
    const LARGE_PAGE: usize = 2 << 20;

    /// A free block; it lies in the block itself.
    struct Free {
        next: *mut Free,
    }

    /// Free blocks by size.
    struct Pool {
        blocks: [*mut Free; CLASSES],
        /// Bytes of the free blocks.
        bytes: usize,
        /// Bytes of the blocks in use, and the most that they have been.
        used: usize,
        most_used: usize,
        /// Whether to keep as many bytes as were in use at once.
        keeps_most_used: bool,
    }

    // SAFETY: the blocks of the lists belong to the pool alone.
    unsafe impl Send for Pool {}

    static POOL: Mutex<Pool> =
        Mutex::new(Pool { blocks: [null_mut(); CLASSES], bytes: 0, used: 0, most_used: 0, keeps_most_used: false });

    pub fn keep_most_used() {
        POOL.lock().unwrap_or_else(PoisonError::into_inner).keeps_most_used = true;
    }

    pub fn serves(layout: Layout) -> bool {
        layout.size() >= 1 << LEAST && layout.size() < 1 << 47 && layout.align() <= PAGE
    }

    /// The class of a size, and the size of its blocks.
    fn class(size: usize) -> (usize, usize) {
        let octave = size.ilog2();
        let step = 1usize << (octave - STEPS.ilog2());
        let steps = size.div_ceil(step);
        ((octave - LEAST) as usize * STEPS as usize + steps - STEPS as usize, steps * step)
    }

    pub fn class_size(size: usize) -> usize {
        class(size).1
    }

    pub fn take(size: usize, zeroed: bool) -> *mut u8 {
        let (class, size) = class(size);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.used += size;
        pool.most_used = pool.most_used.max(pool.used);
        let block = pool.blocks[class];
        if block.is_null() {
            pool.make_room(size);
            drop(pool);
            return map(size);
        }
        // SAFETY: a block in the list is large enough for a `Free`, which was written when it got there.
        pool.blocks[class] = unsafe { (*block).next };
        pool.bytes -= size;
        drop(pool);
        if zeroed {
            // SAFETY: the block has this size and belongs to nobody else now.
            unsafe { block.cast::<u8>().write_bytes(0, size) };
        }
        block.cast()
    }

    /// # Safety
    /// `block` is from [`take`] with this size, and nobody uses it any more.
    pub unsafe fn give_back(block: *mut u8, size: usize) {
        let (class, size) = class(size);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.used -= size;
        if !pool.has_room(size) {
            drop(pool);
            // SAFETY: the block was mapped with this size.
            return unsafe { unmap(block, size) };
        }
        let block = block.cast::<Free>();
        // SAFETY: the block is the pool's now, and large enough.
        unsafe { (*block).next = pool.blocks[class] };
        pool.blocks[class] = block;
        pool.bytes += size;
    }

    impl Pool {
        /// Whether a further block of this size may be kept, or mapped, beside the free ones.
        fn has_room(&self, size: usize) -> bool {
            let unused = if self.keeps_most_used { self.most_used - self.used } else { 0 };
            self.bytes + size <= MOST_KEPT + unused
        }

        /// Lets go of the largest blocks, so that a change of sizes does not add to what is in use.
        fn make_room(&mut self, size: usize) {
            for class in (0..CLASSES).rev() {
                while !self.has_room(size) && !self.blocks[class].is_null() {
                    let block = self.blocks[class];
                    let (octave, steps) = (class as u32 / STEPS + LEAST, class as u32 % STEPS + STEPS);
                    let size = (steps as usize) << (octave - STEPS.ilog2());
                    // SAFETY: the block is in the list of its size and is taken out of it.
                    unsafe {
                        self.blocks[class] = (*block).next;
                        unmap(block.cast(), size);
                    }
                    self.bytes -= size;
                }
            }
        }
    }

    /// Fresh zeroed memory, null if there is none.
    fn map(size: usize) -> *mut u8 {
        let aligned = if size >= LARGE_PAGE { LARGE_PAGE } else { PAGE };
        let length = size.next_multiple_of(PAGE);
        let spare = aligned - PAGE;
        // SAFETY: a new private mapping, of which the ends before and after the aligned block are given back.
        unsafe {
            let start = libc::mmap(
                null_mut(),
                length + spare,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if start == libc::MAP_FAILED {
                return null_mut();
            }
            let before = start.align_offset(aligned);
            let block = start.cast::<u8>().add(before);
            if before > 0 {
                libc::munmap(start, before);
            }
            if before < spare {
                libc::munmap(block.add(length).cast(), spare - before);
            }
            if size >= LARGE_PAGE {
                libc::madvise(block.cast(), length, libc::MADV_HUGEPAGE);
            }
            block
        }
    }

    /// # Safety
    /// The block was mapped with this size, and nobody uses it.
    unsafe fn unmap(block: *mut u8, size: usize) {
        // SAFETY: as the caller promises.
        unsafe { libc::munmap(block.cast(), size.next_multiple_of(PAGE)) };
    }

    #[cfg(test)]
    mod tests {
        use super::{CLASSES, LEAST, class};

        #[test]
        fn classes_are_in_order_and_waste_an_eighth_at_most() {
            let mut last = 0;
            for octave in LEAST..47 {
                for eighth in 0..64usize {
                    let size = (1usize << octave) + (eighth << (octave - 6));
                    for size in [size, size + 1] {
                        let (class, rounded) = class(size);
                        assert!(rounded >= size && rounded - size <= size / 8 && class < CLASSES);
                        assert!(class >= last);
                        last = class;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RecyclingAllocator;
    use std::alloc::{GlobalAlloc, Layout, LayoutError};

    /// Blocks of many sizes, reallocated and freed in an order of their own, keep what was written into them.
    #[test]
    fn blocks_keep_their_values_and_do_not_overlap() -> Result<(), LayoutError> {
        let allocator = RecyclingAllocator;
        let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let intact = |block: *mut u8, layout: Layout, mark: u8| {
            // SAFETY: only blocks of this layout that are in use are asked about.
            (0..layout.size()).step_by(4093).all(|i| unsafe { *block.add(i) } == mark)
        };
        for i in 0..400u64 {
            let mark = (i % 251) as u8 + 1;
            let layout = Layout::from_size_align(500_000 + random(6_000_000) as usize, 8)?;
            // SAFETY: every block is used within its layout, and freed once with the layout that it has.
            unsafe {
                let zeroed = random(2) == 0;
                let block = if zeroed { allocator.alloc_zeroed(layout) } else { allocator.alloc(layout) };
                assert!(!block.is_null() && (!zeroed || intact(block, layout, 0)));
                block.write_bytes(mark, layout.size());
                live.push((block, layout, mark));
                if live.len() > 12 {
                    let (block, layout, mark) = live.swap_remove(random(12) as usize);
                    assert!(intact(block, layout, mark));
                    let size = 500_000 + random(6_000_000) as usize;
                    let moved = allocator.realloc(block, layout, size);
                    let new = Layout::from_size_align(size, 8)?;
                    let common = Layout::from_size_align(size.min(layout.size()), 8)?;
                    assert!(intact(moved, common, mark));
                    allocator.dealloc(moved, new);
                }
            }
        }
        for (block, layout, mark) in live {
            assert!(intact(block, layout, mark));
            // SAFETY: as above.
            unsafe { allocator.dealloc(block, layout) };
        }
        Ok(())
    }
}
