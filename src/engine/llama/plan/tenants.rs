//! Fairness between tenants: a virtual clock for each, which runs by the engine time it was served.
//!
//! The least served is next. Who was away is lifted to the least served of those who were there: time
//! that one did not ask for is not saved up. Who had more than its share keeps its debt when it goes,
//! until the others have caught up; then it is forgotten.

use super::{Class, Stage, State, TenantId, Waiting};

/// Clocks count in 256ths of a microsecond, so that weights divide without losing much.
const UNIT: u64 = 256;

/// More tenants than this that are gone with a debt are forgiven, so that memory stays bounded.
const MOST_GONE: usize = 1024;

/// One tenant.
#[derive(Debug)]
pub(super) struct Account {
    tenant: TenantId,
    weight: u64,
    /// Engine time served, divided by the weight.
    clock: u64,
    /// It had a sequence at the last step.
    active: bool,
    here: bool,
    /// Ids and private cells it holds.
    pub(super) ids: u64,
    pub(super) cells: u64,
    /// What it was admitted for and not yet charged, divided by the weight. Without this, the first
    /// of two equals would get all free ids at once.
    ahead: u64,
    /// When it last had a running sequence, by class.
    ran_us: [u64; 3],
}

impl Account {
    /// Since when a sequence that arrived then has waited with none of its tenant and class running.
    /// A long line of a tenant that is being served does not rise above other tenants' newcomers.
    pub(super) fn neglected_since(&self, class: Class, arrived_us: u64) -> u64 {
        self.ran_us[class as usize].max(arrived_us)
    }

    /// Its place in line; the least comes first.
    pub(super) fn time(&self) -> u64 {
        self.clock + self.ahead
    }

    /// Its turn: of those who were served the same, who has run last is last. What is left to the names is
    /// nobody's to choose.
    pub(super) fn turn(&self) -> (u64, u64) {
        let [background, normal, interactive] = self.ran_us;
        (self.time(), background.max(normal).max(interactive))
    }

    fn add_ahead(&mut self, us: u64) {
        self.ahead += us * UNIT / self.weight;
    }

    /// How far one that starts moves it back in line.
    pub(super) fn cost(&self, state: &State<'_>, sequence: &Waiting) -> u64 {
        let us = u64::from(sequence.prompt) * row_us(state) + decode_us(state);
        us * UNIT / self.weight
    }
}

#[derive(Debug, Default)]
pub(super) struct Tenants {
    /// Sorted by tenant.
    accounts: Vec<Account>,
    /// The least clock of those who were active. Nobody comes in below it.
    floor: u64,
    /// All weights of those who are here.
    weights: u64,
    /// Positions of accounts, in the order of `State::running` and `State::waiting`.
    running: Vec<u32>,
    waiting: Vec<u32>,
}

impl Tenants {
    /// Finds out who is here and what each holds.
    pub(super) fn settle(&mut self, state: &State<'_>) {
        let floor = self.floor;
        let gone = self.accounts.iter().filter(|a| !a.active).count();
        if gone > 0 {
            self.accounts
                .retain(|a| a.active || (a.clock > floor && gone <= MOST_GONE));
        }
        for account in &mut self.accounts {
            account.here = false;
            account.ids = 0;
            account.cells = 0;
            account.ahead = 0;
        }
        // A new account moves others, so then all are looked up once more.
        while !self.find_all(state) {}
        let row_us = row_us(state);
        let decode_us = decode_us(state);
        for (sequence, &at) in state.running.iter().zip(&self.running) {
            let account = &mut self.accounts[at as usize];
            account.here = true;
            account.weight = u64::from(sequence.weight.max(1));
            account.ids += 1;
            account.cells += u64::from(sequence.cells);
            account.ran_us[sequence.class as usize] = state.now_us;
            let prompt = match sequence.stage {
                Stage::Prefill { done, total } => u64::from(total.saturating_sub(done)),
                Stage::Decode => 0,
            };
            account.add_ahead(prompt * row_us + decode_us);
        }
        for (sequence, &at) in state.waiting.iter().zip(&self.waiting) {
            let account = &mut self.accounts[at as usize];
            account.here = true;
            account.weight = u64::from(sequence.weight.max(1));
        }
        let stayed = self.accounts.iter().filter(|a| a.here && a.active);
        if let Some(least) = stayed.map(|a| a.clock).min() {
            self.floor = self.floor.max(least);
        }
        self.weights = 0;
        for account in &mut self.accounts {
            if account.here {
                self.weights += account.weight;
                if !account.active {
                    account.clock = account.clock.max(self.floor);
                }
            }
            account.active = account.here;
        }
    }

    /// The account of a running sequence, by its position.
    pub(super) fn of_running(&self, at: usize) -> &Account {
        &self.accounts[self.running[at] as usize]
    }

    /// The position of a waiting sequence's account, by its own position.
    pub(super) fn of_waiting(&self, at: usize) -> u32 {
        self.waiting[at]
    }

    /// The account at a position that `of_waiting` told.
    pub(super) fn at(&self, account: u32) -> &Account {
        &self.accounts[account as usize]
    }

    /// Whether two are of one tenant.
    pub(super) fn same(&self, running: usize, account: u32) -> bool {
        self.running[running] == account
    }

    /// Notes that a waiting sequence was started.
    pub(super) fn started(&mut self, state: &State<'_>, at: usize) {
        let sequence = &state.waiting[at];
        let account = &mut self.accounts[self.waiting[at] as usize];
        account.ids += 1;
        account.cells += u64::from(sequence.cells_now);
        account.ran_us[sequence.class as usize] = state.now_us;
        account.ahead += account.cost(state, sequence);
    }

    /// A tenant's part of `count`, by weight among those who are here; at least one.
    pub(super) fn share(&self, account: &Account, count: u64) -> u64 {
        (count * account.weight / self.weights.max(1)).max(1)
    }

    /// Charges `part` of `total` of a time.
    pub(super) fn charge(&mut self, tenant: TenantId, us: u64, part: u64, total: u64) {
        if let Ok(at) = self.accounts.binary_search_by_key(&tenant, |a| a.tenant) {
            let account = &mut self.accounts[at];
            account.clock += us * UNIT * part / (total.max(1) * account.weight);
        }
    }

    /// How many tenants are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Looks up the accounts of all sequences; false if one was made.
    fn find_all(&mut self, state: &State<'_>) -> bool {
        let count = self.accounts.len();
        let accounts = &mut self.accounts;
        self.running.clear();
        self.waiting.clear();
        let mut last = (TenantId(u64::MAX), u32::MAX);
        let running = state.running.iter().map(|s| s.tenant);
        for tenant in running.chain(state.waiting.iter().map(|s| s.tenant)) {
            if last.1 == u32::MAX || last.0 != tenant {
                last = (tenant, find(accounts, tenant));
            }
            if self.running.len() < state.running.len() {
                self.running.push(last.1);
            } else {
                self.waiting.push(last.1);
            }
        }
        self.accounts.len() == count
    }
}

/// The position of a tenant's account.
fn find(accounts: &mut Vec<Account>, tenant: TenantId) -> u32 {
    let at = accounts
        .binary_search_by_key(&tenant, |a| a.tenant)
        .unwrap_or_else(|at| {
            let account = Account {
                tenant,
                weight: 1,
                clock: 0,
                active: false,
                here: false,
                ids: 0,
                cells: 0,
                ahead: 0,
                ran_us: [0; 3],
            };
            accounts.insert(at, account);
            at
        });
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Before anything was measured, every row and every call counts the same.
fn row_us(state: &State<'_>) -> u64 {
    (state.rates.prefill_row_ns / 1000).max(1)
}

fn decode_us(state: &State<'_>) -> u64 {
    state.rates.decode_us.max(1)
}
