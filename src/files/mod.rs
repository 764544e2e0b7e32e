//! Files and folders on the disk: what is written is there whole or not at all, and nobody else's gives way to it; what others
//! wrote is read under a guard.
//!
//! # Examples
//!
//! ```
//! use tweedie::files::{replace_file, replace_folder, write_synced};
//!
//! let folder = tempfile::tempdir()?;
//! replace_file(&folder.path().join("notes.txt"), b"there whole, or as it was before")?;
//! // A folder whose making fails is not there.
//! let failed = replace_folder(&folder.path().join("model"), |staged| {
//!     write_synced(&staged.join("config.json"), b"{}")?;
//!     Err(tweedie::Error::Cancelled)
//! });
//! assert!(failed.is_err() && !folder.path().join("model").exists());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod durable_file;
mod guard;
mod scratch;
mod space;
mod sums;
mod text;

pub use durable_file::{
    Existing, folder_of, remove_folder, replace_file, replace_folder, sync_folder, unfinished, write_file,
    write_folder, write_synced,
};
pub use guard::guarded;
pub(crate) use scratch::{Place, ScratchFile};
pub use space::free_space;
pub use sums::{bytes_sha256, file_sha256, hexadecimal, sha256};
pub use text::read_text;
pub(crate) use text::text_of;
