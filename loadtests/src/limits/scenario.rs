//! What is measured: one scenario for each promise.

use std::time::Duration;

use anyhow::Result;

use super::{cost, exact, fair, flood, overload, refusal, shared, strangers};
use crate::gateway::Program;
use crate::table::Figure;

/// A promise that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scenario {
    /// What saying no costs.
    Refusal,
    /// Keys that nobody knows.
    Strangers,
    /// Tokens and requests against the bound.
    Exact,
    /// What identity and limits cost who is served.
    Cost,
    /// One who asks for ten times its share.
    Flood,
    /// Equal callers.
    Equal,
    /// Callers of different weights.
    Weights,
    /// More than the machine can do.
    Overload,
    /// Two gateways, one quota.
    Shared,
    /// The same while Redis is away.
    Outage,
}

/// How scenarios are run.
pub(super) struct Bench {
    /// The gateway.
    pub(super) program: Program,
    /// How long each takes, about.
    pub(super) time: Duration,
    /// Which round it is.
    pub(super) round: u64,
}

/// What came of a scenario.
#[derive(Debug)]
pub(super) enum Measured {
    /// Its figures.
    Figures(Vec<Figure>),
    /// Why there are none, although nothing is wrong.
    Skipped(&'static str),
}

impl Scenario {
    /// All, in the order of the report.
    pub(super) const ALL: [Self; 10] = [
        Self::Refusal,
        Self::Strangers,
        Self::Exact,
        Self::Cost,
        Self::Flood,
        Self::Equal,
        Self::Weights,
        Self::Overload,
        Self::Shared,
        Self::Outage,
    ];

    /// For `--only`, the report and the SLO file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Strangers => "strangers",
            Self::Exact => "exact",
            Self::Cost => "cost",
            Self::Flood => "flood",
            Self::Equal => "equal",
            Self::Weights => "weights",
            Self::Overload => "overload",
            Self::Shared => "shared",
            Self::Outage => "outage",
        }
    }

    /// What is done.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Refusal => "accepted one-token requests, 429s and 401s in turn, 4 connections",
            Self::Strangers => "100,000 requests, each with another unknown key",
            Self::Exact => {
                "64 streams against a token budget, a third of them hang up; a request rate"
            }
            Self::Cost => "64 streams without and with a key and limits, in turn",
            Self::Flood => {
                "four callers, a fifth at its share and at ten times that, in turn; demo model"
            }
            Self::Equal => "five equal callers who ask for more than there is; demo model",
            Self::Weights => {
                "three callers of weights 1, 2, 4 who ask for more than there is; demo model"
            }
            Self::Overload => {
                "arrivals at 0.8, 2 and 0.8 times the capacity, with deadlines; demo model"
            }
            Self::Shared => "two gateways and Redis, one request rate, twice as many arrivals",
            Self::Outage => "the same while Redis is stopped, goes on, and is killed",
        }
    }

    /// Measures it. Needs a `LocalSet`.
    ///
    /// # Errors
    /// A program does not start, or something came that does not belong to the scenario.
    pub(super) async fn measure(self, bench: &Bench) -> Result<Measured> {
        let figures = match self {
            Self::Refusal => refusal::measure(bench).await?,
            Self::Strangers => strangers::measure(bench).await?,
            Self::Exact => exact::measure(bench).await?,
            Self::Cost => cost::measure(bench).await?,
            Self::Flood => flood::measure(bench).await?,
            Self::Equal => fair::equal(bench).await?,
            Self::Weights => fair::weights(bench).await?,
            Self::Overload => overload::measure(bench).await?,
            Self::Shared => return shared::quota(bench).await,
            Self::Outage => return shared::outage(bench).await,
        };
        Ok(Measured::Figures(figures))
    }
}

/// The scenarios whose names have one of these texts in them; all, if there is none.
pub(super) fn chosen(only: &[String]) -> Vec<Scenario> {
    let wanted = |scenario: &Scenario| {
        only.is_empty()
            || only
                .iter()
                .any(|only| scenario.name().contains(only.as_str()))
    };
    Scenario::ALL.into_iter().filter(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_parts_of_their_names() {
        assert_eq!(chosen(&[]).len(), Scenario::ALL.len());
        assert_eq!(chosen(&["flood".to_owned()]), [Scenario::Flood]);
        assert!(chosen(&["drought".to_owned()]).is_empty());
    }
}
