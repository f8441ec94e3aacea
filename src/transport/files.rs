//! Room for connections: each one is an open file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that the process has open beside public connections: those of the operator's port, listeners,
/// models, the runtime's own.
const OTHER_FILES: u64 = 160;

/// Raises this process's soft limit of open files towards `connections`, as far as the system lets it,
/// and says how many connections then fit. Many systems start programs with 1,024.
#[must_use]
pub fn make_room(connections: u64) -> u64 {
    let wanted = connections.saturating_add(OTHER_FILES);
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (
        limit.current.unwrap_or(u64::MAX),
        limit.maximum.unwrap_or(u64::MAX),
    );
    let mut granted = soft;
    if soft < wanted {
        let raised = Rlimit {
            current: Some(wanted.min(hard)),
            maximum: limit.maximum,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            granted = wanted.min(hard);
        }
    }
    granted.saturating_sub(OTHER_FILES).clamp(1, connections)
}
