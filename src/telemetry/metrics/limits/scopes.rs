//! The names of scopes and limits: closed sets, so that no caller makes a series.

/// Whose limit it is, from the outside in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All callers of one organization together.
    Organization,
    /// One caller: a key, a token's subject, a certificate, or an address.
    Caller,
    /// One caller's use of one model.
    CallerOnModel,
    /// All callers of one model together.
    Model,
}

impl Scope {
    /// Every scope, in the order in which they are asked.
    pub const ALL: [Self; 4] = [
        Self::Organization,
        Self::Caller,
        Self::CallerOnModel,
        Self::Model,
    ];

    /// The name in answers, metrics and keys.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::Caller => "caller",
            Self::CallerOnModel => "caller_on_model",
            Self::Model => "model",
        }
    }
}

/// What is limited. Named as in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Limit {
    /// Streams at once.
    Streams,
    /// Of those, the ones that wait for their first token.
    Queued,
    /// Requests a minute.
    RequestsPerMinute,
    /// Requests in a day.
    RequestsPerDay,
    /// Requests in a month.
    RequestsPerMonth,
    /// Tokens a minute, in and out together.
    TokensPerMinute,
    /// Prompt tokens a minute.
    InputTokensPerMinute,
    /// Generated tokens a minute.
    OutputTokensPerMinute,
    /// Tokens in a day, in and out together.
    TokensPerDay,
    /// Tokens in a month, in and out together.
    TokensPerMonth,
}

/// The full names of every limit of one scope, in the order of [`Limit::ALL`].
macro_rules! names_of {
    ($scope:literal) => {
        [
            concat!($scope, ".streams"),
            concat!($scope, ".queued"),
            concat!($scope, ".requests_per_minute"),
            concat!($scope, ".requests_per_day"),
            concat!($scope, ".requests_per_month"),
            concat!($scope, ".tokens_per_minute"),
            concat!($scope, ".input_tokens_per_minute"),
            concat!($scope, ".output_tokens_per_minute"),
            concat!($scope, ".tokens_per_day"),
            concat!($scope, ".tokens_per_month"),
        ]
    };
}

impl Limit {
    /// Every limit, in the order in which they are asked: what costs nothing to give back first.
    pub const ALL: [Self; 10] = [
        Self::Streams,
        Self::Queued,
        Self::RequestsPerMinute,
        Self::RequestsPerDay,
        Self::RequestsPerMonth,
        Self::TokensPerMinute,
        Self::InputTokensPerMinute,
        Self::OutputTokensPerMinute,
        Self::TokensPerDay,
        Self::TokensPerMonth,
    ];

    const NAMES: [[&'static str; 10]; 4] = [
        names_of!("organization"),
        names_of!("caller"),
        names_of!("caller_on_model"),
        names_of!("model"),
    ];

    /// The name of this limit in this scope, as answers tell it: `caller.tokens_per_minute`.
    #[must_use]
    pub fn of(self, scope: Scope) -> &'static str {
        Self::NAMES[scope as usize][self as usize]
    }

    /// The name without its scope, as in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let name = self.of(Scope::Model);
        name.split_once('.').map_or(name, |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_says_its_scope_and_its_limit() {
        let mut seen = std::collections::HashSet::new();
        for scope in Scope::ALL {
            for limit in Limit::ALL {
                let name = limit.of(scope);
                assert_eq!(name, format!("{}.{}", scope.as_str(), limit.as_str()));
                assert!(seen.insert(name));
            }
        }
        let debugged = Limit::ALL.map(|limit| format!("{limit:?}").to_lowercase());
        for (limit, debugged) in Limit::ALL.iter().zip(debugged) {
            assert_eq!(limit.as_str().replace('_', ""), debugged);
        }
    }
}
