//! What a process of ours does first when it runs a model that nobody trusts.

/// Ends with its parent, writes no core dump of a model's size, and gains no rights by what it executes.
/// Each of these is a precaution: where the system does not have it, the process runs without.
#[cfg(target_os = "linux")]
pub(super) fn settle() {
    use rustix::process::{Resource, Rlimit, Signal};
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    let _ = rustix::thread::set_no_new_privs(true);
}

/// Elsewhere there is nothing as simple.
#[cfg(not(target_os = "linux"))]
pub(super) fn settle() {}
