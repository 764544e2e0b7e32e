//! An allocator that hands large blocks out again instead of returning them to the system.
//!
//! A network frees and allocates the same few sizes in every step. Fresh pages have to be cleared and mapped by
//! the kernel each time, which took a fifth of a UNet's time here; and in pages of 4 KiB they strain the
//! address translation of every product. So blocks of a MiB and more are kept by size, in large pages
//! where Linux gives them. A program chooses it with `#[global_allocator]`.

mod account;
mod classes;
#[cfg(target_os = "linux")]
mod pool;

pub(super) use account::Account;
pub(super) use classes::{class, is_kept};

use super::dry_run;
use std::alloc::{GlobalAlloc, Layout, System};

/// The allocator; see the module's text. On other systems than Linux it is the system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecyclingAllocator;

impl RecyclingAllocator {
    /// The bytes that are kept and not in use.
    pub fn kept() -> u64 {
        #[cfg(target_os = "linux")]
        return pool::kept();
        #[cfg(not(target_os = "linux"))]
        return 0;
    }

    /// Returns to the system what its own allocator keeps of freed small blocks, where that is glibc's: for who has dropped
    /// many, such as a network's weights. Left alone it returns the end of its heap only, which is more in one run than in another.
    pub fn trim() {
        dry_run::trimmed();
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        if !dry_run::is_dry_run() {
            // SAFETY: it may be called at any time.
            unsafe { libc::malloc_trim(0) };
        }
    }

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
        dry_run::took(layout.size());
        #[cfg(target_os = "linux")]
        if pool::serves(layout) {
            return pool::take(layout.size(), false);
        }
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        dry_run::took(layout.size());
        #[cfg(target_os = "linux")]
        if pool::serves(layout) {
            return pool::take(layout.size(), true);
        }
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        dry_run::gave_back(layout.size());
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
            if pool::serves(layout) && pool::serves(new) && classes::class(size) == classes::class(layout.size()) {
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
        dry_run::gave_back(layout.size());
        dry_run::took(size);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.realloc(block, layout, size) }
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
