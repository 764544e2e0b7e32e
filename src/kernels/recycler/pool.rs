//! The blocks that are kept, and where new ones come from.

use super::account::Account;
use super::classes::{self, CLASSES, class};
use crate::kernels::dry_run;
use std::alloc::Layout;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;
const LARGE_PAGE: usize = 2 << 20;

/// A free block; it lies in the block itself.
struct Free {
    next: *mut Free,
}

/// Free blocks by size.
struct Pool {
    blocks: [*mut Free; CLASSES],
    account: Account,
}

// SAFETY: the blocks of the lists belong to the pool alone.
unsafe impl Send for Pool {}

static POOL: Mutex<Pool> = Mutex::new(Pool { blocks: [null_mut(); CLASSES], account: Account::new() });

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn keep_most_used() {
    pool().account.keep_most_used();
}

pub fn kept() -> u64 {
    pool().account.kept() as u64
}

pub fn serves(layout: Layout) -> bool {
    classes::is_kept(layout.size()) && layout.align() <= PAGE
}

/// In a dry run a new one always, which takes no memory before somebody writes into it.
pub fn take(size: usize, zeroed: bool) -> *mut u8 {
    let (class, size) = class(size);
    let mut pool = pool();
    if dry_run::is_dry_run() {
        pool.account.take_new(class);
        drop(pool);
        return map(size);
    }
    if !pool.account.take(class) {
        while let Some(largest) = pool.account.let_go_for(size) {
            let block = pool.pop(largest);
            // SAFETY: a block of this class was in its list, and is in no list now.
            unsafe { unmap(block, classes::size_of(largest)) };
        }
        drop(pool);
        return map(size);
    }
    let block = pool.pop(class);
    drop(pool);
    if zeroed {
        // SAFETY: the block has this size and belongs to nobody else now.
        unsafe { block.write_bytes(0, size) };
    }
    block
}

/// # Safety
/// `block` is from [`take`] with this size, and nobody uses it any more.
pub unsafe fn give_back(block: *mut u8, size: usize) {
    let (class, size) = class(size);
    let mut pool = pool();
    let is_kept = if dry_run::is_dry_run() {
        pool.account.let_go(class);
        false
    } else {
        pool.account.give_back(class)
    };
    if !is_kept {
        drop(pool);
        // SAFETY: the block was mapped with this size.
        return unsafe { unmap(block, size) };
    }
    let block = block.cast::<Free>();
    // SAFETY: the block is the pool's now, and large enough.
    unsafe { (*block).next = pool.blocks[class] };
    pool.blocks[class] = block;
}

impl Pool {
    /// Takes a block out of the list of its class, of which the account says that there is one.
    fn pop(&mut self, class: usize) -> *mut u8 {
        let block = self.blocks[class];
        if block.is_null() {
            // An allocator may not panic.
            std::process::abort();
        }
        // SAFETY: a block in the list is large enough for a `Free`, which was written when it got there.
        self.blocks[class] = unsafe { (*block).next };
        block.cast()
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
