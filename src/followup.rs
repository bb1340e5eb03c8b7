//! The follow-up: claims the checks that are due, asks Graph, and saves the answers.
//!
//! No transaction is open during a request to Graph. A check is a row with a lease: any replica can
//! claim it, and if a replica dies, another one takes over when the lease has expired.

mod faults;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use self::faults::Faults;
use crate::error_chain::error_chain;
use crate::graph::Graph;
use crate::lookup::{Question, look_up};
use crate::meta::health::{Answer, Caller, LookupResult};
use crate::meta::ids::WabaId;
use crate::meta::node_fields::NodeFields;
use crate::metrics::FollowUpMetrics;
use crate::store::claims::{self, Claim};
use crate::store::conclusion::{self, SavedCheck};
use crate::store::{Pool, StoreError, bounded, incident_life, limits};
use crate::woken::Woken;

/// Look-ups in flight at once, per process.
const IN_FLIGHT_LIMIT: usize = 32;
/// The pause between two searches for due checks, unless the worker is woken. Checks also become
/// due by time, and by the work of other replicas.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Look-ups that end within this window share one claim for the next ones.
const COALESCE_WINDOW: Duration = Duration::from_millis(50);
/// The pause after the database failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// The pause between two searches for incidents that are over by silence.
const QUIET_SEARCH_INTERVAL: Duration = Duration::from_secs(15);
/// Attempts to save an answer. After them, the claim's lease has expired.
const SAVE_ATTEMPTS: u32 = 3;

/// The worker that looks up numbers.
#[derive(Debug, Clone)]
pub struct FollowUp {
    db: Pool,
    graph: Arc<Graph>,
    woken: Woken,
    metrics: FollowUpMetrics,
    faults: Faults,
    has_stale_refusal: Arc<AtomicBool>,
}

/// The accounts whose refused look-ups are tried again at once.
#[derive(Debug, Clone, Copy)]
enum Retry {
    /// All of them: the service starts.
    Denied,
    /// The ones with another token.
    NewTokens,
}

impl FollowUp {
    /// Creates a worker on this database, which `checks_due` wakes, and which wakes `changed`.
    #[must_use]
    pub fn new(db: Pool, graph: Arc<Graph>, woken: Woken, metrics: FollowUpMetrics) -> Self {
        Self {
            db,
            graph,
            woken,
            metrics,
            faults: Faults::default(),
            has_stale_refusal: Arc::default(),
        }
    }

    /// Works until told to stop, then waits for the look-ups in flight.
    pub async fn run(self, stop: CancellationToken) {
        let mut in_flight = InFlight::default();
        let mut next_quiet_search = Instant::now();
        let mut is_failing = false;
        let mut tokens = self.graph.token_generation();
        let mut retry = Some(Retry::Denied);
        while !stop.is_cancelled() {
            let generation = self.graph.token_generation();
            if std::mem::replace(&mut tokens, generation) != generation
                || self.has_stale_refusal.swap(false, Ordering::Relaxed)
            {
                retry = retry.or(Some(Retry::NewTokens));
            }
            if let Some(due) = retry
                && self.try_again(due).await
            {
                retry = None;
            }
            let pause = match self.step(&mut next_quiet_search, &mut in_flight).await {
                Ok(pause) => {
                    is_failing = false;
                    pause
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        error!(
                            "health checks wait for the database: {}",
                            error_chain(&error)
                        );
                    }
                    RETRY_INTERVAL
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(pause) => {}
                () = self.woken.checks_due.notified(), if in_flight.free_slots() > 0 => {}
                true = in_flight.next_ended() => self.coalesce().await,
            }
            while in_flight.next_ended().now_or_never() == Some(true) {}
        }
        while in_flight.next_ended().await {}
    }

    /// Waits a moment after a look-up has ended: others may end as well, and then share one claim.
    /// The first look-up of a new number does not wait for that.
    async fn coalesce(&self) {
        tokio::select! {
            () = sleep(COALESCE_WINDOW) => {}
            () = self.woken.checks_due.notified() => {}
        }
    }

    /// Claims due checks and starts their look-ups. Resolves quiet incidents when it is time for
    /// that. Returns the pause before the next step.
    async fn step(
        &self,
        next_quiet_search: &mut Instant,
        in_flight: &mut InFlight,
    ) -> Result<Duration, StoreError> {
        if *next_quiet_search <= Instant::now() {
            *next_quiet_search = Instant::now() + QUIET_SEARCH_INTERVAL;
            self.resolve_quiet().await;
        }
        let free = in_flight.free_slots();
        if free == 0 {
            return Ok(POLL_INTERVAL);
        }
        let claims = bounded(claims::claim_due(&self.db, free, &in_flight.accounts())).await?;
        if claims.is_empty() {
            return Ok(POLL_INTERVAL);
        }
        for claim in claims {
            let (waba_id, worker) = (claim.waba_id.clone(), self.clone());
            in_flight.start(waba_id, async move { worker.check(claim).await });
        }
        // More checks may be due: an account gets only its share at a time.
        Ok(COALESCE_WINDOW)
    }

    /// Makes one number due of each account whose look-ups are refused; after a change of tokens,
    /// only of those with another one now. Returns `false` if the database failed.
    async fn try_again(&self, retry: Retry) -> bool {
        let tried = async {
            let accounts = match retry {
                Retry::Denied => None,
                Retry::NewTokens => Some(self.accounts_with_new_tokens().await?),
            };
            match accounts {
                Some(accounts) if accounts.is_empty() => Ok(()),
                accounts => bounded(limits::probe(&self.db, accounts.as_deref())).await,
            }
        };
        match tried.await {
            Ok(()) => true,
            Err(error) => {
                debug!(
                    "refused look-ups wait for the database: {}",
                    error_chain(&error)
                );
                false
            }
        }
    }

    /// Returns the accounts that were refused with another token than they have now.
    async fn accounts_with_new_tokens(&self) -> Result<Vec<WabaId>, StoreError> {
        let denied = bounded(limits::denied_accounts(&self.db)).await?;
        let token_of = |waba_id: &WabaId| Some(self.graph.caller(waba_id)?.token);
        Ok(denied
            .into_iter()
            .filter(|account| token_of(&account.waba_id) != account.token)
            .map(|account| account.waba_id)
            .collect())
    }

    /// Resolves quiet incidents. After an error, the next search tries again.
    async fn resolve_quiet(&self) {
        match bounded(incident_life::resolve_quiet(&self.db)).await {
            Ok(true) => self.woken.changed.notify_one(),
            Ok(false) => {}
            Err(error) => debug!("quiet incidents stay open for now: {}", error_chain(&error)),
        }
    }

    /// Does one look-up: takes it from the budget, asks Graph and saves the answer. If the database
    /// fails, the look-up is done again when the lease expires.
    async fn check(&self, claim: Claim) {
        let caller = self.graph.caller(&claim.waba_id);
        match bounded(claims::take_from_budget(&self.db, &claim, caller.as_ref())).await {
            Ok(true) => {}
            Ok(false) => {
                debug!(
                    waba.id = %claim.waba_id,
                    "no look-up is granted now: the account's hour is used up, Meta throttles, or \
                     the claim is lost"
                );
                return;
            }
            Err(error) => {
                warn!(
                    "a health check waits for the database: {}",
                    error_chain(&error)
                );
                return;
            }
        }
        let question = Question {
            waba_id: &claim.waba_id,
            node_id: claim.phone_number_id.as_str(),
            portfolio_id: claim.portfolio_id.as_deref(),
            wants_number_fields: claim.wants_number_fields,
            account_to_read: claim.wants_account_fields.then_some(&claim.waba_id),
        };
        let lookup = look_up(&self.graph, &question).await;
        self.metrics.count_lookup(&lookup);
        self.faults.note(&claim, &lookup.answer);
        let token = |caller: Option<Caller>| Some(caller?.token);
        let was_refused = lookup.answer.denial().is_some();
        let asked_with = token(lookup.caller.clone());
        match self.save(&claim, lookup).await {
            Ok(SavedCheck::Concluded) => self.woken.changed.notify_one(),
            Ok(SavedCheck::Late) => debug!(
                incident.id = claim.incident_id,
                "a health check was stored, but came too late for its incident"
            ),
            Err(error) => error!(
                incident.id = claim.incident_id,
                "a health check was not saved and will be done again: {}",
                error_chain(&error)
            ),
        }
        // A refusal of the old token that comes when there is a new one.
        if was_refused && asked_with != token(self.graph.caller(&claim.waba_id)) {
            self.has_stale_refusal.store(true, Ordering::Relaxed);
        }
    }

    /// Saves an answer, with retries: it used up a look-up of the budget, and the lease still
    /// holds.
    async fn save(
        &self,
        claim: &Claim,
        mut lookup: LookupResult,
    ) -> Result<SavedCheck, StoreError> {
        let mut attempt = 1;
        loop {
            let saved = conclusion::save(&self.db, claim, &lookup, fastrand::f64());
            match bounded(saved).await {
                Err(error @ StoreError::Refused(_)) if lookup.response.is_some() => {
                    error!(
                        incident.id = claim.incident_id,
                        "the database refuses an answer of Graph: {}",
                        error_chain(&error)
                    );
                    lookup.response = None;
                    lookup.fields = NodeFields::default();
                    lookup.answer = Answer::Unreachable("the answer cannot be stored".to_owned());
                }
                Err(_) if attempt < SAVE_ATTEMPTS => sleep(RETRY_INTERVAL).await,
                saved => return saved,
            }
            attempt += 1;
        }
    }
}

/// The look-ups in flight, with their accounts.
#[derive(Default)]
struct InFlight {
    tasks: JoinSet<()>,
    accounts: HashMap<Id, WabaId>,
}

impl InFlight {
    fn free_slots(&self) -> usize {
        IN_FLIGHT_LIMIT - self.tasks.len()
    }

    fn accounts(&self) -> Vec<WabaId> {
        self.accounts.values().cloned().collect()
    }

    fn start(&mut self, waba_id: WabaId, look_up: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(look_up).id();
        self.accounts.insert(id, waba_id);
    }

    /// Waits until a look-up has ended. Returns `false` if none is in flight.
    async fn next_ended(&mut self) -> bool {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => self.accounts.remove(&id),
            Some(Err(error)) => self.accounts.remove(&error.id()),
            None => return false,
        };
        true
    }
}
