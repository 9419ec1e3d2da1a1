//! What this machine has: the memory that the process may take.

/// How much memory this process may have, and what says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: u64,
    pub(crate) limit: &'static str,
}

/// The least of all limits; `None`: none is known here.
#[cfg(target_os = "linux")]
pub(crate) fn memory_of_machine() -> Option<Memory> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: String| read(&path)?.trim().parse().ok();
    let mut limits: Vec<(u64, &'static str)> = Vec::new();
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            some if some.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // Each group above it has a limit as well. In a container the path may be one of the host, and only the root is seen.
        for group in std::path::Path::new(path).ancestors() {
            let group = group.display().to_string();
            let found = number(format!("{root}/{}/{file}", group.trim_matches('/')));
            limits.extend(found.map(|bytes| (bytes, "the limit of its control group")));
        }
    }
    limits.extend(
        storage::address_space_limit()
            .map(|bytes| (bytes, "its limit of address space (ulimit -v)")),
    );
    let total = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    limits.extend(total.map(|kib| (kib.saturating_mul(1 << 10), "the memory of the machine")));
    let (bytes, limit) = limits.into_iter().min()?;
    Some(Memory { bytes, limit })
}

/// Not known on this system.
#[cfg(not(target_os = "linux"))]
pub(crate) fn memory_of_machine() -> Option<Memory> {
    None
}
