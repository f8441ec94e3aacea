//! x
use super::report::Report;
use super::scenario::Scenario;
pub(super) fn page(_r: &Report, _s: &[Scenario]) -> String {
    String::new()
}
