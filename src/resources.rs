//! What this process may use: descriptors, memory maps, address space, memory.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Address space that a thread takes when it starts, beside its stack: for the stack on which it handles an overflow,
/// without which the process aborts.
const SPARE: usize = 2 * 1024 * 1024;
/// What the allocator takes for a thread, if it is to be had; of glibc on machines of 64 bits.
const ARENA: usize = 64 * 1024 * 1024;
/// Memory that a connection may keep without being counted, with its thread's.
const MEMORY_OF_CONNECTION: usize = 128 * 1024;

/// How many connections there may be by default, each with a thread of this stack size.
///
/// A connection takes two file descriptors and a thread of some four memory maps. Near the limit of maps a starting
/// thread can abort the whole process instead of failing, so half of them are left alone.
pub(crate) fn connections(stack_size: usize) -> usize {
    let files = limit(Resource::Nofile).map_or(usize::MAX, |files| files.saturating_sub(64) / 2);
    let maps = read_number("/proc/sys/vm/max_map_count").map_or(usize::MAX, |maps| maps / 8);
    let space = address_space_left().map_or(usize::MAX, |left| left / 2 / stack_size.saturating_add(64 * 1024));
    let memory = memory().map_or(usize::MAX, |memory| memory / 2 / MEMORY_OF_CONNECTION);
    files.min(maps).min(space).min(memory).clamp(1, 10_000)
}

/// The least stack of this size or more with which a thread can start without harm, if there is address space for it.
pub(crate) fn stack_that_fits(stack_size: usize) -> Option<usize> {
    let Some(left) = address_space_left() else { return Some(stack_size) };
    let beside = left.checked_sub(stack_size).filter(|beside| *beside >= SPARE)?;
    // The allocator takes its part first, if it is there, and must not leave less than what is needed beside it. A larger
    // stack keeps it from that.
    let would_lack = (ARENA..ARENA + SPARE).contains(&beside);
    Some(if would_lack { stack_size + SPARE } else { stack_size })
}

pub(crate) fn is_address_space_limited() -> bool {
    limit(Resource::As).is_some()
}

/// The memory that the process may have, if that is limited: by the control groups it is in.
pub(crate) fn memory() -> Option<usize> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or("/"));
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        // In a container the path may be that outside of it; the group itself is the root then.
        let inside =
            Path::new(path).ancestors().map(|group| Path::new(root).join(group.strip_prefix("/").unwrap_or(group)));
        inside.filter_map(|group| read_number(group.join(file))).collect()
    });
    // Without a limit, version 1 has a number that is larger than any memory.
    limits.min().filter(|limit| *limit < 1 << 60)
}

/// `None`: it is not limited.
fn address_space_left() -> Option<usize> {
    let limit = limit(Resource::As)?;
    let used = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = used.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(pages * rustix::param::page_size()))
}

fn limit(resource: Resource) -> Option<usize> {
    getrlimit(resource).current.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

fn read_number(path: impl AsRef<Path>) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
