//! Which blocks are kept, without the blocks.

use super::classes::{CLASSES, size_of};

/// The most bytes that are kept and not in use, besides what [`Account::keep_most_used`] adds.
const MOST_KEPT: usize = 384 << 20;

/// What is in use and what is kept. The pool acts on it; a dry run has one of its own, of blocks that nobody fills.
#[derive(Debug)]
pub struct Account {
    /// How many blocks of each class are kept.
    kept: [u32; CLASSES],
    /// Their bytes.
    kept_bytes: usize,
    /// Bytes of the blocks in use, and the most that they have been.
    used: usize,
    most_used: usize,
    keeps_most_used: bool,
}

impl Account {
    /// Of no blocks.
    pub const fn new() -> Self {
        Self { kept: [0; CLASSES], kept_bytes: 0, used: 0, most_used: 0, keeps_most_used: false }
    }

    /// From now on keeps as many bytes as were in use at once.
    pub fn keep_most_used(&mut self) {
        self.keeps_most_used = true;
    }

    /// The bytes of all blocks, those that are kept included.
    pub fn bytes(&self) -> usize {
        self.used + self.kept_bytes
    }

    /// The bytes of those that are kept.
    pub fn kept(&self) -> usize {
        self.kept_bytes
    }

    /// Takes a block of a class into use: whether it is one that was kept. A new one is made after [`Self::let_go_for`] has nothing
    /// more to name.
    pub fn take(&mut self, class: usize) -> bool {
        let size = size_of(class);
        self.used += size;
        self.most_used = self.most_used.max(self.used);
        let is_kept = self.kept[class] > 0;
        if is_kept {
            self.remove(class);
        }
        is_kept
    }

    /// The class of a block that is kept no more, so that a new one of a size does not add to what is in use: the largest.
    pub fn let_go_for(&mut self, size: usize) -> Option<usize> {
        if self.has_room(size) {
            return None;
        }
        let largest = (0..CLASSES).rev().find(|&class| self.kept[class] > 0)?;
        self.remove(largest);
        Some(largest)
    }

    /// Takes a block of a class out of use: whether it is kept.
    pub fn give_back(&mut self, class: usize) -> bool {
        let size = size_of(class);
        self.used = self.used.saturating_sub(size);
        let is_kept = self.has_room(size);
        if is_kept {
            self.kept[class] += 1;
            self.kept_bytes += size;
        }
        is_kept
    }

    /// A block of a class comes into use that is not one that was kept.
    pub fn take_new(&mut self, class: usize) {
        self.used += size_of(class);
    }

    /// A block of a class goes out of use and is not kept.
    pub fn let_go(&mut self, class: usize) {
        self.used = self.used.saturating_sub(size_of(class));
    }

    fn remove(&mut self, class: usize) {
        self.kept[class] -= 1;
        self.kept_bytes -= size_of(class);
    }

    /// Whether a further block of this size may be kept, or made, beside those that are.
    fn has_room(&self, size: usize) -> bool {
        let unused = if self.keeps_most_used { self.most_used.saturating_sub(self.used) } else { 0 };
        self.kept_bytes + size <= MOST_KEPT + unused
    }
}
