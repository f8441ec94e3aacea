//! Whether a request may begin: every scope grants it, or none is charged.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::account::{Account, Accounts, Cost, Terms, take};
use super::accounts::Callers;
use super::admission::{Admission, Hold, Reserved};
use super::config::{Class, Limits, Rates, WhenDry};
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
    /// Replaced whole when the configuration changes.
    rules: ArcSwap<Rules>,
    estimates: HashMap<Box<str>, Arc<Estimate>>,
    callers: Callers,
    store: Arc<dyn Store>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// What is configured, with the accounts of whoever is named there.
struct Rules {
    anonymous: Plan,
    classes: HashMap<Box<str>, Plan>,
    organizations: HashMap<Box<str>, Arc<Account>>,
    models: HashMap<Box<str>, Arc<Account>>,
    when_dry: WhenDry,
}

/// What a class of callers may use.
struct Plan {
    /// The class that it is of; empty for those who are not known.
    class: Box<str>,
    rates: Option<Arc<Shared>>,
    models: HashMap<Box<str>, Arc<Shared>>,
    weight: u16,
    priority: Option<generation::Class>,
}

/// Limits that each caller has, and the account of those for whom there is no room.
struct Shared {
    terms: Arc<Terms>,
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
        let rules = Rules::new(limits, None, &*store, &clock);
        Self {
            rules: ArcSwap::from_pointee(rules),
            estimates: models
                .into_iter()
                .map(|name| (name.into(), Arc::default()))
                .collect(),
            callers: Callers::new(most_accounts(limits)),
            store,
            clock,
            metrics,
        }
    }

    /// From now on these limits hold; what was used of those before is used of these. Not for `max_streams`,
    /// nor for where use is kept.
    pub fn set(&self, limits: &Limits) {
        self.callers.make_room(most_accounts(limits));
        let old = self.rules.load_full();
        let rules = Rules::new(limits, Some(&old), &*self.store, &self.clock);
        self.rules.store(Arc::new(rules));
    }

    /// Admits a request on every scope, or on none. What it took is given back as the admission ends.
    ///
    /// # Errors
    /// `Limited`, with the limit that refused and when to come back.
    pub async fn admit(&self, ask: &Ask<'_>) -> Result<Admission, Failure> {
        let rules = self.rules.load_full();
        let plan = rules.plan(ask.caller);
        let accounts = self.accounts(&rules, plan, ask);
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
            rules.when_dry,
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
        let rules = self.rules.load();
        let organization = caller.organization.as_deref();
        if let Some(account) = organization.and_then(|name| rules.organizations.get(name)) {
            standing.add(account, at);
        }
        if let Some(plan) = rules.plan(caller) {
            let on_model = model.and_then(|model| Some((plan.models.get(model)?, Some(model))));
            let scopes = [plan.rates.as_ref().map(|shared| (shared, None)), on_model];
            for (shared, model) in scopes.into_iter().flatten() {
                standing.add(&self.look(plan, shared, name, model), at);
            }
        }
        if let Some(account) = model.and_then(|model| rules.models.get(model)) {
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

    fn accounts(&self, rules: &Rules, plan: Option<&Plan>, ask: &Ask<'_>) -> Accounts {
        let organization = ask.caller.organization.as_deref();
        let rates = plan.and_then(|plan| plan.rates.as_ref());
        let on_model = plan.and_then(|plan| plan.models.get(ask.model));
        let name = Name::of(ask.caller);
        let open =
            |shared: Option<&Arc<Shared>>, model| Some(self.open(plan?, shared?, name, model));
        [
            organization.and_then(|name| rules.organizations.get(name).cloned()),
            open(rates, None),
            open(on_model, Some(ask.model)),
            rules.models.get(ask.model).cloned(),
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
        let make = |old: Option<&_>| self.account(old, shared, &name.text(), model, store);
        let key = self.key(plan, name, model);
        let is_anonymous = name.is_anonymous();
        let opened = self.callers.open(key, is_anonymous, &shared.terms, make);
        let account = opened.unwrap_or_else(|| {
            let make = || Arc::new(self.account(None, shared, OTHERS, model, store));
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
        let renew = |old: Option<&_>| self.account(old, shared, &name.text(), model, &*self.store);
        let key = self.key(plan, name, model);
        if let Some(account) = self.callers.find(key, &shared.terms, renew) {
            return account;
        }
        let peek = |name: &str| {
            let store = &Peek(&*self.store);
            Arc::new(self.account(None, shared, name, model, store))
        };
        if self.callers.has_room(name.is_anonymous()) {
            return peek(&name.text());
        }
        let others = shared.overflow.get().cloned();
        others.unwrap_or_else(|| peek(OTHERS))
    }

    fn account(
        &self,
        old: Option<&Account>,
        shared: &Shared,
        name: &str,
        model: Option<&str>,
        store: &dyn Store,
    ) -> Account {
        Account::new(old, &shared.terms, name, model, store, &self.clock)
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

impl Rules {
    /// The rules of `limits`; what is as it was in `old` is kept, and what is not goes on from there.
    fn new(limits: &Limits, old: Option<&Self>, store: &dyn Store, clock: &Clock) -> Self {
        let fixed = |scope, all: &BTreeMap<String, Rates>, old: Option<&HashMap<_, _>>| {
            let accounts = all.iter().filter_map(|(name, rates)| {
                let terms = Arc::new(terms(scope, rates.bounds())?);
                let old = old.and_then(|old| old.get(name.as_str()));
                let old = old.map(|account: &Arc<Account>| &**account);
                let account = Account::new(old, &terms, name, None, store, clock);
                Some((name.as_str().into(), Arc::new(account)))
            });
            accounts.collect()
        };
        let plan = |name: &str, class: &Class, old: Option<&Plan>| Plan {
            class: name.into(),
            rates: Shared::new(
                Scope::Caller,
                class.bounds(),
                old.and_then(|old| old.rates.as_ref()),
            ),
            models: class
                .models
                .iter()
                .filter_map(|(model, rates)| {
                    let old = old.and_then(|old| old.models.get(model.as_str()));
                    let shared = Shared::new(Scope::CallerOnModel, rates.bounds(), old)?;
                    Some((model.as_str().into(), shared))
                })
                .collect(),
            weight: class.weight.map_or(1, std::num::NonZeroU16::get),
            priority: class.priority.map(Into::into),
        };
        let classes = limits.classes.iter().map(|(name, class)| {
            let old = old.and_then(|old| old.classes.get(name.as_str()));
            (name.as_str().into(), plan(name, class, old))
        });
        Self {
            anonymous: plan("", &limits.anonymous, old.map(|old| &old.anonymous)),
            classes: classes.collect(),
            organizations: fixed(
                Scope::Organization,
                &limits.organizations,
                old.map(|old| &old.organizations),
            ),
            models: fixed(Scope::Model, &limits.models, old.map(|old| &old.models)),
            when_dry: limits.when_dry,
        }
    }

    fn plan(&self, caller: &Caller) -> Option<&Plan> {
        if caller.identity.is_none() {
            return Some(&self.anonymous);
        }
        let named = caller.class.as_deref();
        let named = named.and_then(|class| self.classes.get(class));
        named.or_else(|| self.classes.get(USUAL))
    }
}

impl Shared {
    /// The limits that are `old`'s if they are the same: then every caller keeps their account. Whoever
    /// shares one for want of room begins anew with others.
    fn new(
        scope: Scope,
        bounds: Vec<(Limit, Bound)>,
        old: Option<&Arc<Self>>,
    ) -> Option<Arc<Self>> {
        let terms = terms(scope, bounds)?;
        if let Some(old) = old.filter(|old| *old.terms == terms) {
            return Some(old.clone());
        }
        Some(Arc::new(Self {
            terms: Arc::new(terms),
            overflow: OnceLock::new(),
        }))
    }
}

fn terms(scope: Scope, bounds: Vec<(Limit, Bound)>) -> Option<Terms> {
    (!bounds.is_empty()).then_some(Terms { scope, bounds })
}

fn most_accounts(limits: &Limits) -> usize {
    usize::try_from(limits.max_accounts.get()).unwrap_or(usize::MAX)
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
