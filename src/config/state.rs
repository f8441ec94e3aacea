//! Where what outlives a process is kept.

use std::path::PathBuf;

/// `$STATE_DIRECTORY` as systemd gives it, else `$XDG_STATE_HOME/sluicegate`, else
/// `~/.local/state/sluicegate`. The XDG Base Directory Specification has relative paths ignored.
#[must_use]
pub fn directory() -> Option<PathBuf> {
    from(|name| std::env::var_os(name).map(PathBuf::from))
}

fn from(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    // More than one directory is joined by colons; the first is as good as any.
    let given = absolute("STATE_DIRECTORY").and_then(|list| {
        let first = list.to_str()?.split(':').next()?;
        Some(PathBuf::from(first))
    });
    given.or_else(|| {
        let state = absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
        Some(state.join("sluicegate"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Option<String> {
        let found = from(|name| {
            let (_, value) = set.iter().find(|(key, _)| *key == name)?;
            Some(PathBuf::from(value))
        });
        found.map(|path| path.display().to_string())
    }

    #[test]
    fn the_supervisors_word_counts_first_then_the_users_then_the_home() {
        let all = [
            ("HOME", "/home/me"),
            ("XDG_STATE_HOME", "/state"),
            ("STATE_DIRECTORY", "/var/lib/sluicegate:/other"),
        ];
        assert_eq!(of(&all).as_deref(), Some("/var/lib/sluicegate"));
        assert_eq!(of(&all[..2]).as_deref(), Some("/state/sluicegate"));
        let home = Some("/home/me/.local/state/sluicegate");
        assert_eq!(of(&all[..1]).as_deref(), home);
        assert_eq!(of(&[("XDG_STATE_HOME", "here"), all[0]]).as_deref(), home);
        assert_eq!(of(&[]), None);
    }
}
