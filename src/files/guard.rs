//! A guard around libraries that read what others wrote.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread reads under the guard.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `read` gives; if it panics, what was said. Nothing is printed then, and the program goes on.
///
/// Decoders and parsers of other crates promise errors for damaged bytes, and now and then one has a case that was not thought
/// of: for whoever gives the file that is a damaged file too. Whatever `read` changes outside of itself is to be thrown away if
/// it fails. Memory that runs out and a stack that overflows end the program all the same: what is read is bounded first.
///
/// # Errors
/// If `read` panics in this thread.
pub fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let shown = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                shown(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(outer);
    outcome.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        format!("what reads it gave up: {}", text.unwrap_or("it does not say why"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_what_was_said() {
        let third = |list: Vec<u8>| list[2];
        assert_eq!(guarded(|| third(vec![1, 2, 3])), Ok(3));
        let said = "what reads it gave up: index out of bounds: the len is 1 but the index is 2";
        assert_eq!(guarded(|| third(vec![1])), Err(said.into()));
        let inner = guarded(|| (guarded(|| panic!("inside")), guarded(|| third(vec![]))));
        assert!(inner.is_ok_and(|(first, second): (Result<(), _>, _)| first.is_err() && second.is_err()));
        assert!(!GUARDED.get());
    }
}
