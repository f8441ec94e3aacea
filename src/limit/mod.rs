//! Who may use how much: limits of organizations, callers and models, exact and with roll-back.
//!
//! Every limit on a rate or a quota is a [`Cell`] of an account. A request takes from the cells of all
//! its scopes or of none. Tokens are reserved before anything is computed, charged as they are
//! delivered, and what is left of the reservation is given back when the stream ends. Nothing here
//! knows HTTP.
//!
//! * [`cell`]: tokens a minute, with refunds and debt; ours, because governor has neither.
//! * [`requests`]: requests a minute, decided by governor over a state that can be rolled back.
//! * [`quota`]: requests and tokens in a day or a month of UTC, kept over restarts.
//! * [`shared`]: rates and quotas of which several nodes take, through Redis.
//! * [`Store`]: makes cells; [`Kept`] does, in this process and, for quotas and shared limits, beyond it.

mod account;
mod accounts;
mod admission;
mod bound;
pub mod cell;
mod clock;
pub mod config;
mod estimate;
pub mod fuzz;
mod limiter;
pub mod places;
pub mod quota;
mod refusal;
pub mod requests;
pub mod shared;
mod standing;
mod store;
#[cfg(test)]
mod tests;

pub use self::admission::Admission;
pub use self::bound::{Bound, Cell, Key, Left, Store};
pub use self::clock::{At, Clock};
pub use self::limiter::{Ask, Limiter, Work};
pub use self::standing::Standing;
pub use self::store::Kept;
pub use crate::telemetry::{Limit, Scope};
