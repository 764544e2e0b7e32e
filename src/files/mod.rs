//! Files and folders on the disk: what is written is there whole or not at all, and nobody else's gives way to it; what others
//! wrote is read under a guard.

mod durable_file;
mod guard;
mod space;

pub use durable_file::{
    Existing, folder_of, remove_folder, replace_file, replace_folder, sync_folder, unfinished, write_file,
    write_folder, write_synced,
};
pub use guard::guarded;
pub use space::free_space;
