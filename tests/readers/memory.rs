//! An allocator that counts, and bounds for what a reader takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, which counts what is held and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
/// Beyond it nothing is given.
static CEILING: AtomicUsize = AtomicUsize::new(usize::MAX);

/// By how much the ceiling lies above a bound: what goes beyond the bound is told in words, what goes far beyond it ends the program
/// before it takes the machine's memory.
const ABOVE: usize = 1 << 30;

/// Bytes that reading may take beside the multiple: buffers, tables, what threads keep.
pub const SPARED: usize = 16 << 20;

/// Whether so many bytes more can be given.
fn grown(size: usize) -> bool {
    let held = HELD.fetch_add(size, Relaxed).saturating_add(size);
    if held > CEILING.load(Relaxed) {
        HELD.fetch_sub(size, Relaxed);
        return false;
    }
    MOST.fetch_max(held, Relaxed);
    true
}

// SAFETY: all is done by the system's allocator, with the arguments as they are; what is refused is null, as where memory runs out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !grown(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are those that are needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !grown(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !grown(size) {
            return std::ptr::null_mut();
        }
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What reading gives, and that it takes no more than `multiple` of the bytes of input.
pub fn bounded<T>(what: &str, length: usize, multiple: usize, read: impl FnOnce() -> T) -> T {
    let (before, bound) = (HELD.load(Relaxed), multiple * length + SPARED);
    MOST.store(before, Relaxed);
    CEILING.store(before + bound + ABOVE, Relaxed);
    let result = read();
    CEILING.store(usize::MAX, Relaxed);
    let taken = MOST.load(Relaxed).saturating_sub(before);
    assert!(taken <= bound, "{what} of {length} bytes took {taken}, and at most {bound} are allowed");
    result
}
