//! Files and folders on the disk: what is written is there whole or not at all, and what others wrote is read under a guard.

mod durable_file;
mod guard;

pub use durable_file::{STAGED, remove_folder, replace_file, replace_folder, staged_name, sync_folder, write_synced};
pub use guard::guarded;
