//! Quotas of a day and of a month: counted exactly, and not forgotten by a restart.

mod calendar;
mod counter;
mod entries;
mod file;
mod ledger;

pub use self::calendar::Period;
pub use self::ledger::{Ledger, Quota};
