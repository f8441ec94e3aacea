//! Whether the names in `[limits]` are those of `[[models]]`.

use super::tree::Step;
use super::{Config, key};
use crate::engine::Plan;

/// What is wrong with the limits.
pub(super) fn conflicts(config: &Config) -> Vec<(Vec<Step>, String)> {
    let served = config.models.iter().map(|model| model.name.as_str());
    let mut served: Vec<_> = served.collect();
    if served.is_empty() {
        served.push(Plan::DEMO);
    }
    let conflicts = config.limits.conflicts(&served).into_iter();
    conflicts
        .map(|(path, message)| {
            let path = path.iter().map(|step| key(step));
            (
                std::iter::once(key("limits")).chain(path).collect(),
                message,
            )
        })
        .collect()
}
