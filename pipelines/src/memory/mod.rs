//! How much memory there is, before it is asked for, and how much it was.

mod prediction;

pub use prediction::checked;

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tweedie::kernels::dry_run_bytes;
use tweedie::models::{Memory, Strips};

/// The most that the process may have resident.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// What kernels and strips have besides maps, with the blocks that the allocator keeps.
const IN_HAND: u64 = 640 << 20;

/// What Linux says of this process.
const STATUS: &str = "/proc/self/status";

/// Lets the process have so many bytes resident at most: what it can do in less, it does, and what it cannot it refuses as far as
/// that is known before. It is not measured while something is computed.
pub fn limit_to(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// The bytes that this process can still have: of what is free on the machine, in its control groups, below its own limit and below
/// that of [`limit_to`], the least. Nothing where the system does not say.
pub fn available() -> Option<u64> {
    Some(obtainable()?.min(below_given()))
}

/// The bytes that are left of what [`limit_to`] allows.
fn below_given() -> u64 {
    LIMIT.load(Ordering::Relaxed).saturating_sub(of_process("VmRSS:")).saturating_sub(dry_run_bytes())
}

/// The bytes that the system gives this process, whatever was said to [`limit_to`].
pub(crate) fn obtainable() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let free = of_machine("MemAvailable:")?;
    let groups = in_groups(&read("/proc/self/cgroup").unwrap_or_default(), Path::new("/sys/fs/cgroup"));
    // What a dry run has is in no memory, but it has its addresses.
    let least = [Some(free), groups].into_iter().flatten().min()?.saturating_sub(dry_run_bytes());
    let limit = read("/proc/self/limits").and_then(|limits| field(&limits, "Max address space"));
    let below_limit = limit.map(|limit| limit.saturating_sub(of_process("VmSize:")));
    Some(below_limit.map_or(least, |below| below.min(least)))
}

fn of_machine(name: &str) -> Option<u64> {
    field(&std::fs::read_to_string("/proc/meminfo").ok()?, name).map(|kib| kib * 1024)
}

/// What the system says of this process in bytes, 0 if it does not.
fn of_process(name: &str) -> u64 {
    std::fs::read_to_string(STATUS).ok().and_then(|status| field(&status, name)).map_or(0, |kib| kib * 1024)
}

/// What this process can still have before the system kills something: what can go to the disk gives way.
fn with_swap() -> Option<u64> {
    Some(obtainable()?.saturating_add(of_machine("SwapFree:").unwrap_or(0)).min(below_given()))
}

/// The same with what it had at first.
fn in_all() -> Option<u64> {
    let first = resident_at_first().unwrap_or(0);
    Some(with_swap()?.saturating_add(first).min(LIMIT.load(Ordering::Relaxed)))
}

/// How a half of an autoencoder that takes so much goes about a picture of this width: at once if there is memory for that.
pub(crate) fn strips(memory: Memory, width: usize) -> Strips {
    match available() {
        Some(available) if memory.at_once.saturating_add(IN_HAND) > available => {
            Strips::for_width(width, available.saturating_sub(IN_HAND))
        }
        _ => Strips::NONE,
    }
}

/// What the process had resident when this was first asked, where the system tells it. A dry run leaves something of its own.
fn resident_at_first() -> Option<u64> {
    static RESIDENT: OnceLock<u64> = OnceLock::new();
    Some(*RESIDENT.get_or_init(|| of_process("VmRSS:"))).filter(|&resident| resident > 0)
}

/// The most memory that the process has had resident, in MiB, where the system tells it.
pub fn peak_mb() -> Option<u64> {
    field(&std::fs::read_to_string(STATUS).ok()?, "VmHWM:").map(|kib| kib / 1024)
}

/// The number after a name at the beginning of a line; nothing if something else is there.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// What is left in the control group of a process and in all that it is in. `groups` is `/proc/self/cgroup`.
fn in_groups(groups: &str, root: &Path) -> Option<u64> {
    let number = |path: &Path, name: &str| std::fs::read_to_string(path.join(name)).ok()?.trim().parse::<u64>().ok();
    let left = |folder: &Path, limit: &str, used: &str, cached: &str| {
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        // Files that can be read again give way.
        let used = number(folder, used)?.saturating_sub(field(&stat, cached).unwrap_or(0));
        Some(number(folder, limit)?.saturating_sub(used))
    };
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let path = path.trim_start_matches('/');
        let (root, limit, used, cached) = match controllers {
            "" => (root.to_path_buf(), "memory.max", "memory.current", "inactive_file "),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            }
            _ => continue,
        };
        // In a container the path is one of the outside: then the root is the group.
        for folder in root.join(path).ancestors().take_while(|folder| folder.starts_with(&root)) {
            least = least.into_iter().chain(left(folder, limit, used, cached)).min();
        }
    }
    least
}

/// Bytes as text.
pub(crate) fn in_words(bytes: u64) -> String {
    if bytes < 1_000_000_000 { format!("{} MB", bytes / 1_000_000) } else { format!("{:.1} GB", bytes as f64 / 1e9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_linux_writes_them() {
        assert_eq!(field("MemTotal:  9 kB\nMemAvailable:   1234 kB\n", "MemAvailable:"), Some(1234));
        let limits = "Max address space         8192000000           unlimited            bytes\n";
        assert_eq!(field(limits, "Max address space"), Some(8_192_000_000));
        assert_eq!(field("Max address space         unlimited            unlimited\n", "Max address space"), None);
    }

    #[test]
    fn the_narrowest_group_counts() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let write = |path: &str, text: &str| -> std::io::Result<()> {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(path, text)
        };
        write("a/memory.max", "1000\n")?;
        write("a/memory.current", "700\n")?;
        write("a/memory.stat", "anon 5\ninactive_file 100\n")?;
        write("a/b/memory.max", "max\n")?;
        write("a/b/memory.current", "600\n")?;
        assert_eq!(in_groups("0::/a/b\n", root.path()), Some(400));
        write("a/b/memory.max", "650\n")?;
        assert_eq!(in_groups("0::/a/b\n", root.path()), Some(50));
        assert_eq!(in_groups("0::/elsewhere\n", root.path()), None);
        write("memory/memory.limit_in_bytes", "90")?;
        write("memory/memory.usage_in_bytes", "30")?;
        assert_eq!(in_groups("3:cpu,memory:/docker/x\n1:pids:/\n", root.path()), Some(60));
        Ok(())
    }
}
