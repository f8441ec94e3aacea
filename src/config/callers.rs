//! Whether everybody who can reach a listener is meant to: what `serve` and `check` ask of `[auth]`.

use std::net::SocketAddr;

use super::tree::Step;
use super::{Config, key};
use crate::auth::Callers;
use crate::auth::callers::Unusable;
use crate::auth::jwt::config::Jwt;
use crate::transport::tls::config::ClientAuth;

/// How to say who may come.
const HOW: &str =
    "make a key with `sluicegate key` and put its entry into [[auth.keys]] or auth.keys_file";

/// What is wrong with the keys, and with who is not asked for one.
pub(super) fn conflicts(config: &Config) -> Vec<(Vec<Step>, String)> {
    let auth = &config.auth;
    let mut found = Vec::new();
    for wrong in Callers::new(auth, config.limits.class_names())
        .err()
        .into_iter()
        .flatten()
    {
        found.push(match wrong {
            Unusable::Inline {
                index,
                field,
                message,
            } => {
                let place = vec![key("auth"), key("keys"), Step::Index(index), key(field)];
                (place, message)
            }
            Unusable::File(message) => (vec![key("auth"), key("keys_file")], message),
            // Told below, with its place.
            Unusable::Jwt(_) => continue,
        });
    }
    for (name, message) in auth.jwt.iter().flat_map(Jwt::conflicts) {
        found.push((vec![key("auth"), key("jwt"), key(name)], message));
    }
    if auth.is_on() {
        return found;
    }
    let ops = &config.ops;
    if let Some(at) = public(&ops.listen) {
        let message = format!("{at} is not loopback, where operators must show a key; {HOW}");
        found.push((vec![key("ops"), key("listen")], message));
    } else if ops.require_key {
        let message = format!("there is no key that could be shown; {HOW}");
        found.push((vec![key("ops"), key("require_key")], message));
    }
    if auth.allow_anonymous {
        return found;
    }
    let mut doors = vec![("server", &config.server.listen)];
    if config.tls.is_on() && config.tls.client_auth != ClientAuth::Required {
        doors.push(("tls", &config.tls.listen));
    }
    for (section, listen) in doors {
        if let Some(at) = public(listen) {
            let message = format!(
                "{at} is not loopback, and nobody is asked who they are; {HOW}, or say \
                 auth.allow_anonymous = true"
            );
            found.push((vec![key(section), key("listen")], message));
        }
    }
    found
}

fn public(listen: &[SocketAddr]) -> Option<&SocketAddr> {
    listen.iter().find(|at| !at.ip().is_loopback())
}
