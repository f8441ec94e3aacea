//! What `/metrics` says.

use std::collections::BTreeMap;
use std::fmt;

/// One scrape.
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        let series = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        let parsed = series.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        });
        Self(parsed.collect())
    }

    /// The sum over every series of this name whose labels contain all of `labels`, such as
    /// `outcome="ok"`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let wanted = self.0.iter().filter(|(series, _)| {
            let rest = series
                .strip_prefix("sluicegate_")
                .and_then(|rest| rest.strip_prefix(name));
            rest.is_some_and(|rest| {
                (rest.is_empty() || rest.starts_with('{'))
                    && labels.iter().all(|label| rest.contains(label))
            })
        });
        let mut found = wanted.map(|(_, value)| *value).peekable();
        assert!(
            found.peek().is_some(),
            "there is no {name} with {labels:?} in\n{self}"
        );
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts, and small ones"
        )]
        {
            found.sum::<f64>() as u64
        }
    }

    /// The one series of this name.
    pub(crate) fn value(&self, name: &str) -> f64 {
        let value = self.0.get(&format!("sluicegate_{name}"));
        *value.unwrap_or_else(|| panic!("there is no {name} in\n{self}"))
    }

    /// Requests that ended in this way.
    pub(crate) fn ended(&self, outcome: &str) -> u64 {
        self.sum("requests_total", &[&format!("outcome=\"{outcome}\"")])
    }

    /// Requests that ended.
    pub(crate) fn ended_in_all(&self) -> u64 {
        self.sum("requests_total", &[])
    }

    /// Sequences whose reader is behind: out of the batch, and a few seconds later set aside.
    pub(crate) fn paused(&self) -> u64 {
        self.sum("sequences_paused", &[]) + self.sum("sequences_parked", &[])
    }

    /// Sequences in line.
    pub(crate) fn waiting(&self) -> u64 {
        self.sum("requests_waiting", &[])
    }

    /// Sequences in prefill or decode.
    pub(crate) fn running(&self) -> u64 {
        self.sum("requests_running", &[])
    }
}

impl fmt::Display for Metrics {
    /// The series that moved; buckets left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.0 {
            if *value != 0.0 && !name.contains("_bucket{") {
                writeln!(f, "{name} {value}")?;
            }
        }
        Ok(())
    }
}
