//! What the gateway says of itself: sums over its Prometheus series.

/// The sum of all series of this name whose labels hold all of `labels`.
pub(crate) fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (found, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let has = |label: &&str| found.split(',').any(|one| one == *label);
        labels
            .iter()
            .all(has)
            .then(|| value.trim().parse::<f64>().ok())?
    };
    text.lines().filter_map(value).sum()
}

/// How many series there are.
pub(crate) fn series(text: &str) -> u64 {
    let lines = text.lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .count() as u64
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these are whole numbers")]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_labels() {
        let text = "# TYPE t counter\nt{a=\"1\",b=\"x\"} 3\nt{a=\"2\",b=\"x\"} 4\ntt 100\ng 7\n";
        assert_eq!(sum(text, "t", &[]), 7.0);
        assert_eq!(sum(text, "t", &["a=\"2\""]), 4.0);
        assert_eq!(sum(text, "t", &["a=\"2\"", "b=\"y\""]), 0.0);
        assert_eq!(sum(text, "g", &[]), 7.0);
        assert_eq!(sum(text, "nothing", &[]), 0.0);
        assert_eq!(series(text), 4);
    }
}
