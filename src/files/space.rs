//! Room on a disk.

use std::path::Path;

/// The bytes that are left for this user on the disk that a folder lies on; nothing where the system does not say.
pub fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_can_be_written_to_has_room() {
        if cfg!(any(target_os = "linux", target_os = "macos")) {
            assert!(free_space(&std::env::temp_dir()).is_some_and(|bytes| bytes > 0));
        }
        assert_eq!(free_space(Path::new("/no/such/folder")), None);
    }
}
