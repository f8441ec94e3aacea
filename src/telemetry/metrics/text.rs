//! Prometheus' text format (version 0.0.4), for the series that are written when they are asked for.

use std::fmt::{Display, Write as _};

/// Some series of one name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// What a family's values mean. There is no summary: it could not be added up over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rises, and starts at zero with the process or its engine.
    Counter,
    /// Is what it is now.
    Gauge,
    /// Counts by bucket.
    Histogram,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A page as it grows.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    /// Goes on where another writer ended.
    pub(super) fn after(text: String) -> Self {
        Self(text)
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// Begins a family; its samples follow.
    pub(super) fn family(&mut self, family: &Family) {
        let Family { name, kind, help } = family;
        let kind = kind.as_str();
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A family of one series without labels.
    pub(super) fn single(&mut self, family: &Family, value: impl Display) {
        self.family(family);
        self.part(family.name, "", &[], value);
    }

    /// One sample of the family that was begun last.
    pub(super) fn sample(&mut self, family: &Family, labels: &[(&str, &str)], value: impl Display) {
        self.part(family.name, "", labels, value);
    }

    /// One sample whose name ends in `suffix`.
    pub(super) fn part(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) {
        self.0.push_str(name);
        self.0.push_str(suffix);
        let mut before = '{';
        for (name, value) in labels {
            self.0.push(before);
            self.0.push_str(name);
            self.0.push_str("=\"");
            self.escaped(value);
            self.0.push('"');
            before = ',';
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        self.put(format_args!(" {value}\n"));
    }

    /// The samples of one series of a histogram: counts of what is in each bucket and in none before it,
    /// the last one for what is above every edge. Prometheus wants them summed up.
    pub(super) fn histogram(
        &mut self,
        family: &Family,
        labels: &[(&str, &str)],
        edges: &[impl Display],
        counts: &[u64],
        sum: impl Display,
    ) {
        let mut so_far = 0;
        for (index, count) in counts.iter().enumerate() {
            so_far += count;
            let edge = edges.get(index);
            let edge = edge.map_or_else(|| "+Inf".to_owned(), ToString::to_string);
            let labels = [labels, &[("le", &edge)]].concat();
            self.part(family.name, "_bucket", &labels, so_far);
        }
        self.part(family.name, "_sum", labels, sum);
        self.part(family.name, "_count", labels, so_far);
    }

    fn escaped(&mut self, value: &str) {
        for letter in value.chars() {
            match letter {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                letter => self.0.push(letter),
            }
        }
    }

    fn put(&mut self, what: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut text = Text::default();
        let family = Family {
            name: "a_total",
            kind: Kind::Counter,
            help: "Things.",
        };
        text.family(&family);
        text.sample(&family, &[("b", "\"} 1\n\\"), ("c", "")], 0.5);
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"\\\"} 1\\n\\\\\",c=\"\"} 0.5\n";
        assert_eq!(text.into_string(), expected);
    }
}
