//! Runs that compute nothing and take the memory that computing would, by which it is known beforehand.
//!
//! In a [`dry_run`] layers, networks and whole pipelines run as they always do, but kernels give results of the right shape that nobody
//! has filled, and weights are laid out with nothing in them. The allocator gives new memory for all of it, which the system does
//! not back before something is written there, and keeps an account of what would be in use and what it would have kept. So
//! what is predicted follows from what is run, whatever is added to it, and costs a few thousandths of the time.

use super::recycler::{Account, class, is_kept};
use std::cell::{Cell, RefCell};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static STATE: RefCell<State> = const { RefCell::new(State::new()) };
}

/// What a dry run would have in memory.
struct State {
    account: Account,
    /// The bytes of small blocks, which the system's allocator has, and the most that they were: it keeps them.
    small: usize,
    most_small: usize,
    /// What threads have for themselves while a kernel runs.
    scratch: usize,
    most: usize,
}

impl State {
    const fn new() -> Self {
        Self { account: Account::new(), small: 0, most_small: 0, scratch: 0, most: 0 }
    }

    fn bytes(&self) -> usize {
        self.account.bytes() + self.most_small + self.scratch
    }

    fn note(&mut self) {
        self.most_small = self.most_small.max(self.small);
        self.most = self.most.max(self.bytes());
    }
}

/// Ends a dry run, also where it panics.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        ON.set(false);
    }
}

/// Runs work on this thread without computing. With its result comes the most memory in bytes that the work would have had at a
/// time if it were computed; 0 if the program's allocator is not [`RecyclingAllocator`](super::RecyclingAllocator), or this is a
/// part of another dry run.
pub fn dry_run<R>(work: impl FnOnce() -> R) -> (R, u64) {
    if ON.get() {
        return (work(), 0);
    }
    STATE.set(State::new());
    ON.set(true);
    let end = End;
    let result = work();
    drop(end);
    (result, STATE.with_borrow(|state| state.most) as u64)
}

/// Whether this thread is in a dry run.
pub fn is_on() -> bool {
    ON.get()
}

/// The bytes that a dry run would have in use now; 0 outside of one.
pub fn in_dry_run() -> u64 {
    if is_on() { STATE.with_borrow(State::bytes) as u64 } else { 0 }
}

/// A block comes into use.
pub(super) fn took(size: usize) {
    change(|state| match is_kept(size) {
        true => {
            let (class, size) = class(size);
            if !state.account.take(class) {
                while state.account.to_let_go(size).is_some() {}
            }
        }
        false => state.small += size,
    });
}

/// A block goes out of use.
pub(super) fn gave_back(size: usize) {
    change(|state| match is_kept(size) {
        true => _ = state.account.give_back(class(size).0),
        false => state.small = state.small.saturating_sub(size),
    });
}

/// A kernel has so many bytes for itself while it runs.
pub(super) fn had(scratch: usize) {
    change(|state| state.scratch = scratch);
    change(|state| state.scratch = 0);
}

/// What is borrowed already is changed by nobody: the state allocates nothing.
fn change(change: impl FnOnce(&mut State)) {
    if ON.get() {
        STATE.with_borrow_mut(|state| {
            change(state);
            state.note();
        });
    }
}
