//! Who asks, and what they may do.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Trace;

/// Who asks. The default is nobody in particular, where nobody is asked who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The peer's address, where the transport has one.
    pub address: Option<IpAddr>,
    /// Who the caller has proved to be: `key:…`, `jwt:…`, `cert:…`. Callers with different identities
    /// share no cached prefix; those without one share theirs.
    pub identity: Option<Arc<str>>,
    /// Who pays: what several callers may have in common.
    pub organization: Option<Arc<str>>,
    /// The name of the class of limits that holds for the caller; `None` is the usual one.
    pub class: Option<Arc<str>>,
    /// What the caller may do. Decided before a request comes to an engine, and not told to it.
    #[serde(skip)]
    pub rights: Rights,
    /// When what the caller has shown ends to be believed, in seconds since 1970.
    #[serde(skip)]
    pub until: Option<u64>,
    /// Another one for another secret of the same identity: whoever had the old one has nothing.
    #[serde(skip)]
    pub stamp: u64,
    /// The trace of what they ask now.
    #[serde(skip)]
    pub trace: Trace,
}

/// What a caller may do. The default is everything, as where nobody is asked who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// The kinds of work.
    pub scopes: Scopes,
    /// The models, by configured name; `None` is all of them.
    pub models: Option<Arc<[Box<str>]>>,
}

impl Rights {
    /// Whether a model of this configured name may be used.
    #[must_use]
    pub fn allow_model(&self, name: &str) -> bool {
        let listed = |models: &Arc<[Box<str>]>| models.iter().any(|model| **model == *name);
        self.models.as_ref().is_none_or(listed)
    }
}

/// A set of kinds of work. The default is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Texts: chats, completions, tokenizing.
    pub const GENERATE: Self = Self(1);
    /// Vectors and scores.
    pub const EMBED: Self = Self(2);
    /// Seeing what an operator sees.
    pub const OPS_READ: Self = Self(4);
    /// Changing what an operator changes.
    pub const OPS_WRITE: Self = Self(8);
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(15);

    const NAMES: [(Self, &'static str); 4] = [
        (Self::GENERATE, "generate"),
        (Self::EMBED, "embed"),
        (Self::OPS_READ, "ops:read"),
        (Self::OPS_WRITE, "ops:write"),
    ];

    /// The scope of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut all = Self::NAMES.into_iter();
        all.find_map(|(scope, known)| (known == name).then_some(scope))
    }

    /// The names of those in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = Self::NAMES.into_iter();
        all.filter_map(move |(scope, name)| self.contain(scope).then_some(name))
    }

    /// Whether all of `others` are in the set.
    #[must_use]
    pub fn contain(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Those of either set.
    #[must_use]
    pub fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

impl Default for Scopes {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_is_found_by_its_name_and_no_other() {
        let mut gathered = Scopes::NONE;
        for name in Scopes::ALL.names() {
            let scope = Scopes::parse(name).unwrap();
            assert!(scope.names().eq([name]));
            assert!(!gathered.contain(scope));
            gathered = gathered.with(scope);
        }
        assert_eq!(gathered, Scopes::ALL);
        assert_eq!(Scopes::parse("ops"), None);
    }

    #[test]
    fn a_list_of_models_allows_no_other() {
        let some = Rights {
            models: Some(["a".into()].into()),
            ..Rights::default()
        };
        assert!(some.allow_model("a") && !some.allow_model("ab") && !some.allow_model(""));
        assert!(Rights::default().allow_model("ab"));
    }
}
