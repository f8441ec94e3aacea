//! Which settings hold from a reload on, and which need a restart.
//!
//! Every key is in exactly one of two lists, by its own name or by its section's; the longest name that fits
//! decides. A test holds the lists against all keys there are, so a new one is decided on or noticed.

/// What a reload changes.
const LIVE: &[&str] = &[
    "auth.keys_file",
    "auth.on_removed",
    "auth.allow_anonymous",
    "auth.keys",
    "auth.jwt",
    "stream.stall_timeout",
    "stream.keep_alive",
    "stream.queue_notice",
    "deadlines",
    "limits.when_dry",
    "limits.max_accounts",
    "limits.anonymous",
    "limits.classes",
    "limits.organizations",
    "limits.models",
    "drain",
    "telemetry.log",
    "telemetry.traces",
    "telemetry.slo",
    "profile",
];

/// What is built once: sockets, memory, engines, threads.
const RESTART: &[&str] = &[
    "server",
    "http2",
    "tls",
    "ops",
    "auth.max_tickets",
    "auth.ticket_lifetime",
    "auth.lineage_lifetime",
    "auth.token_lifetime",
    "auth.max_early_ids",
    "auth.max_held",
    "auth.require_proof",
    "quic",
    "stream.ring",
    "stream.send_budget",
    "stream.resume",
    "stream.resume_time",
    "stream.resume_bytes",
    "stream.resume_streams",
    "limits.max_streams",
    "limits.quota_file",
    "limits.redis",
    "models",
    "engine",
    "telemetry.format",
    "telemetry.metrics",
    "telemetry.otlp_endpoint",
    "telemetry.otlp_protocol",
];

/// What is not shown, whatever it is.
const SECRET: &[&str] = &["auth.keys.hash", "limits.redis.url"];

/// What a reload changes: keys, and sections with all that is in them.
pub(super) fn live() -> &'static [&'static str] {
    LIVE
}

/// Whether a reload changes this key; without the numbers of list entries.
pub(super) fn is_live(key: &str) -> bool {
    longest(LIVE, key) > longest(RESTART, key)
}

/// Whether the value of this key is nobody's business.
pub(super) fn is_secret(key: &str) -> bool {
    longest(SECRET, key) > 0
}

/// The length of the longest of `names` that is `key` or a section above it.
fn longest(names: &[&str], key: &str) -> usize {
    let fits = |name: &&&str| {
        let rest = key.strip_prefix(**name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let lengths = names.iter().filter(fits).map(|name| name.len());
    lengths.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn every_key_is_decided_on() {
        let all = keys::all();
        let is_section = |key: &str| {
            all.iter()
                .any(|other| other.starts_with(&format!("{key}.")))
        };
        for key in all.iter().filter(|key| !is_section(key)) {
            let (live, restart) = (longest(LIVE, key), longest(RESTART, key));
            assert!(
                live != restart,
                "{key}: does it hold from a reload on, or need a restart?"
            );
        }
    }

    #[test]
    fn no_name_in_the_lists_is_out_of_date_or_there_twice() {
        let all = keys::all();
        for name in [LIVE, RESTART, SECRET].concat() {
            assert!(all.iter().any(|key| key == name), "there is no {name}");
        }
        for name in LIVE {
            assert!(!RESTART.contains(name), "{name}");
        }
    }

    #[test]
    fn the_longest_name_decides() {
        assert!(is_live("deadlines.queue") && is_live("limits.classes.a.streams"));
        assert!(!is_live("limits.max_streams") && !is_live("stream.resume_time"));
        assert!(is_secret("limits.redis.url") && !is_secret("limits.redis.prefix"));
    }
}
