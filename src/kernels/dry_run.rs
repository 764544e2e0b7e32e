//! Runs that compute nothing and take the memory that computing would, by which it is known beforehand.
//!
//! In a [`dry_run`] layers, networks and whole pipelines run as they always do, but kernels give results of the right shape that nobody
//! has filled, and weights are laid out with nothing in them. The allocator gives new memory for all of it, which the system does
//! not back before something is written there, and keeps an account of what would be in use and what it would have kept. So
//! what is predicted follows from what is run, whatever is added to it, and costs a few thousandths of the time. What is no kernel is
//! computed, such as a scheduler's steps and the tokens of a text.

use super::recycler::{Account, class, is_kept};
use std::cell::{Cell, RefCell};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static STATE: RefCell<State> = const { RefCell::new(State::new()) };
}

/// What a dry run would have in memory.
struct State {
    account: Account,
    /// The bytes of small blocks, which the system's allocator has, and the most that they were: it keeps them until it is told to
    /// return them.
    small: usize,
    most_small: usize,
    most: usize,
}

impl State {
    const fn new() -> Self {
        Self { account: Account::new(), small: 0, most_small: 0, most: 0 }
    }

    fn bytes(&self) -> usize {
        self.account.bytes() + self.most_small
    }

    fn note(&mut self) {
        self.most_small = self.most_small.max(self.small);
        self.most = self.most.max(self.bytes());
    }
}

/// A thread's state before, which it has again when this is dropped, also where work panics.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        ON.set(self.0);
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
    let before = Before(ON.replace(true));
    let result = work();
    drop(before);
    (result, STATE.with_borrow(|state| state.most) as u64)
}

/// Runs work of which a dry run of this thread, if there is one, is to know nothing: that of another caller, which a thread of a pool
/// may be given while it waits.
pub(super) fn without_dry_run<R>(work: impl FnOnce() -> R) -> R {
    let _before = Before(ON.replace(false));
    work()
}

/// Whether a dry run on this thread would tell anything: the program's allocator keeps an account, and the thread is none of the
/// pool's, which are given others' work.
pub fn can_dry_run() -> bool {
    const PROBE: usize = 1 << 16;
    rayon::current_thread_index().is_none()
        && dry_run(|| drop(std::hint::black_box(vec![0u8; PROBE]))).1 >= PROBE as u64
}

/// Whether this thread is in a dry run.
pub fn is_dry_run() -> bool {
    ON.get()
}

/// The bytes that a dry run would have in use now; 0 outside of one.
pub fn dry_run_bytes() -> u64 {
    if is_dry_run() { STATE.with_borrow(State::bytes) as u64 } else { 0 }
}

/// A block comes into use.
pub(super) fn took(size: usize) {
    change(|state| match is_kept(size) {
        true => {
            let (class, size) = class(size);
            if !state.account.take(class) {
                while state.account.let_go_for(size).is_some() {}
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

/// The system's allocator returns the small blocks that are free.
pub(super) fn trimmed() {
    // Elsewhere nobody tells it.
    if cfg!(all(target_os = "linux", target_env = "gnu")) {
        change(|state| state.most_small = state.small);
    }
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
