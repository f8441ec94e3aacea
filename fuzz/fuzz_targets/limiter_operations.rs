//! Any schedule of requests against the limiter: nobody is charged for anything but what was delivered.
#![no_main]

/// All of the limiter but what other nodes and files have to do with it.
#[path = "../../src/limit"]
#[allow(dead_code, unused_imports, reason = "only a part of it is called here")]
mod limit {
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
    pub mod period;
    pub mod places;
    mod refusal;
    pub mod requests;
    mod standing;

    pub mod shared {
        pub mod config {
            /// There are no other nodes.
            #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
            pub struct Redis {}
        }
    }

    pub use self::admission::Admission;
    pub use self::bound::{Bound, Cell, Key, Left, Local, Store};
    pub use self::clock::{At, Clock};
    pub use self::limiter::{Ask, Limiter, Work};
    pub use self::standing::Standing;
    pub use crate::telemetry::{Limit, Scope};
}

/// What of it the limiter knows.
#[path = "../../src/generation"]
#[allow(dead_code, reason = "only callers, meters and refusals come from here")]
mod generation {
    mod caller;
    pub mod clock;
    mod failure;
    mod meter;
    mod outcome;

    pub use self::caller::Caller;
    pub use self::failure::{Failure, Kind};
    pub use self::meter::{Ending, Meter, UsedUp};
    pub use self::outcome::Outcome;

    pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

    /// Nobody waits for anybody here.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Class {
        Background,
        Normal,
        Interactive,
    }
}

/// The names, and metrics that count nothing.
#[path = "../../src/telemetry/metrics/limits"]
#[allow(dead_code, reason = "nothing is counted here")]
mod telemetry {
    mod scopes;

    pub use self::scopes::{Limit, Scope};

    pub struct Metrics {
        pub limits: Uncounted,
    }

    impl Metrics {
        pub fn new<'a>(_: impl IntoIterator<Item = &'a str>) -> Result<Self, std::fmt::Error> {
            Ok(Self { limits: Uncounted })
        }
    }

    pub struct Uncounted;

    impl Uncounted {
        pub fn refused(&self, _: Scope, _: Limit) {}
        pub fn ran_dry(&self, _: Scope, _: Limit) {}
        pub fn accounts(&self, _: usize) {}
        pub fn charged(&self, _: u64, _: u64) {}
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limit::fuzz::operations(bytes));
