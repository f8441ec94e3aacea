//! Whether a request may begin: every scope grants it, or none is charged.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::account::{Account, Accounts, Cost, Terms, take};
use super::accounts::Callers;
use super::admission::{Admission, Hold, Reserved};
use super::config::{Limits, Rates, WhenDry};
use super::estimate::Estimate;
use super::standing::Standing;
use super::{Bound, Cell, Clock, Key, Limit, Scope, Store, refusal};
use crate::generation::{self, Caller, Failure};
use crate::telemetry::Metrics;

/// How often idle accounts are forgotten.
const SWEEP: Duration = Duration::from_secs(30);

/// The class of known callers who have no other.
pub(super) const USUAL: &str = "default";

/// Every limit of every caller.
pub struct Limiter {
    anonymous: Plan,
    classes: HashMap<Box<str>, Plan>,
    organizations: HashMap<Box<str>, Arc<Account>>,
    models: HashMap<Box<str>, Arc<Account>>,
    estimates: HashMap<Box<str>, Arc<Estimate>>,
    callers: Callers,
    when_dry: WhenDry,
    store: Arc<dyn Store>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// What a class of callers may use.
struct Plan {
    /// The class that it is of; empty for those who are not known.
    class: Box<str>,
    rates: Option<Shared>,
    models: HashMap<Box<str>, Shared>,
    weight: u16,
    priority: Option<generation::Class>,
}

/// Limits that each caller has, and the account of those for whom there is no room.
struct Shared {
    terms: Terms,
    overflow: OnceLock<Arc<Account>>,
}

/// The account's name of those for whom there is no room.
const OTHERS: &str = "others";

/// Looks into a store, and leaves nothing behind in it.
struct Peek<'a>(&'a dyn Store);

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Who asks; authenticated.
    pub caller: &'a Caller,
    /// The configured name of the model.
    pub model: &'a str,
    /// Bytes of text in the prompts.
    pub text_bytes: u64,
    /// Tokens in the prompts, where they are tokens already.
    pub tokens: u64,
    /// What is to be done.
    pub work: Work,
}

/// What is to be done with the prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Text is generated.
    Generate {
        /// How many answers.
        choices: u32,
        /// Most tokens of each, if that is bounded.
        max_tokens: Option<u32>,
    },
    /// Vectors or scores are computed.
    Embed,
    /// Tokens are counted; nothing is computed.
    Count,
}

/// Whose account it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Name<'a> {
    Known(&'a str),
    Address(IpAddr),
    /// Nothing is known, not even an address: all of them are one.
    Nobody,
}

impl<'a> Name<'a> {
    fn of(caller: &'a Caller) -> Self {
        match (&caller.identity, caller.address) {
            (Some(identity), _) => Self::Known(identity),
            (None, Some(address)) => Self::Address(site(address)),
            (None, None) => Self::Nobody,
        }
    }

    fn is_anonymous(self) -> bool {
        !matches!(self, Self::Known(_))
    }

    fn text(self) -> String {
        match self {
            Self::Known(name) => name.to_owned(),
            Self::Address(address) => address.to_string(),
            Self::Nobody => "nobody".to_owned(),
        }
    }
}

/// Who has one address of a /64 has all of them (RFC 6177, section 2, RFC 4291, section 2.5.4).
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let site = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(site))
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Limiter {
    /// A limiter for these models, with its cells from `store`.
    #[must_use]
    pub fn new<'a>(
        limits: &Limits,
        models: impl IntoIterator<Item = &'a str>,
        store: Arc<dyn Store>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let fixed = |scope, all: &std::collections::BTreeMap<String, Rates>| {
            let accounts = all.iter().filter_map(|(name, rates)| {
                let terms = terms(scope, rates.bounds())?;
                let account = Account::new(&terms, name, None, &*store, &clock);
                Some((name.as_str().into(), Arc::new(account)))
            });
            accounts.collect()
        };
        let plan = |name: &str, class: &super::config::Class| Plan {
            class: name.into(),
            rates: Shared::new(Scope::Caller, class.bounds()),
            models: class
                .models
                .iter()
                .filter_map(|(model, rates)| {
                    let shared = Shared::new(Scope::CallerOnModel, rates.bounds())?;
                    Some((model.as_str().into(), shared))
                })
                .collect(),
            weight: class.weight.map_or(1, std::num::NonZeroU16::get),
            priority: class.priority.map(Into::into),
        };
        let classes = limits.classes.iter();
        Self {
            anonymous: plan("", &limits.anonymous),
            classes: classes
                .map(|(name, class)| (name.as_str().into(), plan(name, class)))
                .collect(),
            organizations: fixed(Scope::Organization, &limits.organizations),
            models: fixed(Scope::Model, &limits.models),
            estimates: models
                .into_iter()
                .map(|name| (name.into(), Arc::default()))
                .collect(),
            callers: Callers::new(usize::try_from(limits.max_accounts.get()).unwrap_or(usize::MAX)),
            when_dry: limits.when_dry,
            store,
            clock,
            metrics,
        }
    }

    /// Admits a request on every scope, or on none. What it took is given back as the admission ends.
    ///
    /// # Errors
    /// `Limited`, with the limit that refused and when to come back.
    pub async fn admit(&self, ask: &Ask<'_>) -> Result<Admission, Failure> {
        let plan = self.plan(ask.caller);
        let accounts = self.accounts(plan, ask);
        let estimate = self.estimates.get(ask.model);
        let cost = cost(ask, estimate.map(|estimate| &**estimate));
        if let Err(short) = take(&accounts, cost, &self.clock).await {
            self.metrics.limits.refused(short.scope, short.limit);
            return Err(refusal::failure(&short));
        }
        let hold = Hold::new(
            Reserved {
                accounts,
                cost,
                at: self.clock.at(),
                text_bytes: ask.text_bytes,
                work: ask.work,
            },
            estimate.cloned(),
            self.when_dry,
            self.clock.clone(),
            self.metrics.clone(),
        );
        let weight = plan.map_or(1, |plan| plan.weight);
        Ok(Admission::new(
            hold,
            weight,
            plan.and_then(|plan| plan.priority),
        ))
    }

    /// Where a caller stands, on one model or on all; `None` if nothing limits them. Makes no state.
    #[must_use]
    pub fn standing(&self, caller: &Caller, model: Option<&str>) -> Option<Standing> {
        let at = self.clock.at();
        let mut standing = Standing::default();
        let name = Name::of(caller);
        let organization = caller.organization.as_deref();
        if let Some(account) = organization.and_then(|name| self.organizations.get(name)) {
            standing.add(account, at);
        }
        if let Some(plan) = self.plan(caller) {
            let on_model = model.and_then(|model| Some((plan.models.get(model)?, Some(model))));
            let scopes = [plan.rates.as_ref().map(|shared| (shared, None)), on_model];
            for (shared, model) in scopes.into_iter().flatten() {
                standing.add(&self.look(plan, shared, name, model), at);
            }
        }
        if let Some(account) = model.and_then(|model| self.models.get(model)) {
            standing.add(account, at);
        }
        (!standing.is_empty()).then_some(standing)
    }

    /// Forgets idle accounts every now and then, off the threads that carry streams. Runs until it is
    /// dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let limiter = self.clone();
            // It ends by itself; a panic in it would be a defect, and the next round tries again.
            let _ = tokio::task::spawn_blocking(move || limiter.sweep()).await;
        }
    }

    /// Forgets the accounts that are as good as new.
    pub fn sweep(&self) {
        self.callers.sweep(self.clock.at());
        self.metrics.limits.accounts(self.callers.count());
    }

    /// Accounts of callers that are kept now.
    #[must_use]
    pub fn accounts_kept(&self) -> usize {
        self.callers.count()
    }

    fn plan(&self, caller: &Caller) -> Option<&Plan> {
        if caller.identity.is_none() {
            return Some(&self.anonymous);
        }
        let named = caller.class.as_deref();
        let named = named.and_then(|class| self.classes.get(class));
        named.or_else(|| self.classes.get(USUAL))
    }

    fn accounts(&self, plan: Option<&Plan>, ask: &Ask<'_>) -> Accounts {
        let organization = ask.caller.organization.as_deref();
        let rates = plan.and_then(|plan| plan.rates.as_ref());
        let on_model = plan.and_then(|plan| plan.models.get(ask.model));
        let name = Name::of(ask.caller);
        let open = |shared: Option<&Shared>, model| Some(self.open(plan?, shared?, name, model));
        [
            organization.and_then(|name| self.organizations.get(name).cloned()),
            open(rates, None),
            open(on_model, Some(ask.model)),
            self.models.get(ask.model).cloned(),
        ]
    }

    /// A caller's account, or the one that those share for whom there is no room.
    fn open(
        &self,
        plan: &Plan,
        shared: &Shared,
        name: Name<'_>,
        model: Option<&str>,
    ) -> Arc<Account> {
        let store = &*self.store;
        let make = || self.account(shared, &name.text(), model, store);
        let key = self.key(plan, name, model);
        let opened = self.callers.open(key, name.is_anonymous(), make);
        let account = opened.unwrap_or_else(|| {
            let make = || Arc::new(self.account(shared, OTHERS, model, store));
            shared.overflow.get_or_init(make).clone()
        });
        self.metrics.limits.accounts(self.callers.count());
        account
    }

    /// The account that [`Self::open`] would open, but it is not opened.
    fn look(
        &self,
        plan: &Plan,
        shared: &Shared,
        name: Name<'_>,
        model: Option<&str>,
    ) -> Arc<Account> {
        if let Some(account) = self.callers.find(self.key(plan, name, model)) {
            return account;
        }
        let peek = |name: &str| Arc::new(self.account(shared, name, model, &Peek(&*self.store)));
        if self.callers.has_room(name.is_anonymous()) {
            return peek(&name.text());
        }
        let others = shared.overflow.get().cloned();
        others.unwrap_or_else(|| peek(OTHERS))
    }

    fn account(
        &self,
        shared: &Shared,
        name: &str,
        model: Option<&str>,
        store: &dyn Store,
    ) -> Account {
        Account::new(&shared.terms, name, model, store, &self.clock)
    }

    /// A caller who changes class begins anew: the limits are others. Who names a class that is not there
    /// has those of the usual one, and its account, whatever the name.
    fn key(&self, plan: &Plan, name: Name<'_>, model: Option<&str>) -> u128 {
        self.callers.key((name, &plan.class, model))
    }
}

impl Store for Peek<'_> {
    fn cell(&self, key: Key<'_>, bound: Bound, clock: &Clock) -> Box<dyn Cell> {
        self.0.peek(key, bound, clock)
    }

    fn peek(&self, key: Key<'_>, bound: Bound, clock: &Clock) -> Box<dyn Cell> {
        self.0.peek(key, bound, clock)
    }
}

impl Shared {
    fn new(scope: Scope, bounds: Vec<(Limit, Bound)>) -> Option<Self> {
        Some(Self {
            terms: terms(scope, bounds)?,
            overflow: OnceLock::new(),
        })
    }
}

fn terms(scope: Scope, bounds: Vec<(Limit, Bound)>) -> Option<Terms> {
    (!bounds.is_empty()).then_some(Terms { scope, bounds })
}

fn cost(ask: &Ask<'_>, estimate: Option<&Estimate>) -> Cost {
    let text = estimate.map_or(0, |estimate| estimate.input(ask.text_bytes));
    let input = ask.tokens.saturating_add(text);
    match ask.work {
        Work::Generate {
            choices,
            max_tokens,
        } => {
            let each = max_tokens.map_or_else(|| estimate.map_or(0, Estimate::output), u64::from);
            Cost {
                streams: 1,
                queued: 1,
                requests: 1,
                input,
                output: each.saturating_mul(u64::from(choices)),
            }
        }
        Work::Embed => Cost {
            streams: 1,
            requests: 1,
            input,
            ..Cost::default()
        },
        Work::Count => Cost {
            requests: 1,
            ..Cost::default()
        },
    }
}
