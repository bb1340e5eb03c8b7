//! The follow-up: takes the checks that are due, asks Graph, and saves what it answers.
//!
//! No transaction is open while Graph is asked. A check is a row of state with a lease, so that any
//! replica can take it, and one that dies leaves it to the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::graph::Graph;
use crate::lockout::cause::LockoutCause;
use crate::meta::health::Answer;
use crate::metrics::FollowUpMetrics;
use crate::store::checks::{self, Check, Saved};
use crate::store::claims::{self, Claim};
use crate::store::{Pool, StoreError, bounded, incidents};

/// Look-ups under way at once, per process.
const IN_FLIGHT: usize = 32;
/// How often due checks are looked for without being woken: other replicas' and those in the future.
const IDLE: Duration = Duration::from_secs(1);
/// What ends within this time of another look-up is made up for by the same claim.
const BREATH: Duration = Duration::from_millis(50);
const AFTER_ERROR: Duration = Duration::from_secs(2);
/// How often quiet incidents are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How often saving is tried; the claim's lease is over then.
const SAVE_ATTEMPTS: u32 = 3;

/// The worker.
#[derive(Debug, Clone)]
pub struct FollowUp {
    db: Pool,
    graph: Arc<Graph>,
    checks_due: Arc<Notify>,
    metrics: FollowUpMetrics,
}

impl FollowUp {
    /// A worker on this database, which `checks_due` wakes.
    #[must_use]
    pub fn new(
        db: Pool,
        graph: Arc<Graph>,
        checks_due: Arc<Notify>,
        metrics: FollowUpMetrics,
    ) -> Self {
        Self {
            db,
            graph,
            checks_due,
            metrics,
        }
    }

    /// Works until told to stop; the look-ups under way then finish.
    pub async fn run(self, stop: CancellationToken) {
        let mut under_way = UnderWay::default();
        let mut next_sweep = Instant::now();
        let mut failing = false;
        if let Err(error) = bounded(checks::ask_denied_again(&self.db)).await {
            debug!(%error, "denied look-ups keep their time");
        }
        while !stop.is_cancelled() {
            let pause = match self.step(&mut next_sweep, &under_way).await {
                Ok(claims) => {
                    failing = false;
                    // Where something was due there may be more: an account gets its share at a time.
                    let pause = if claims.is_empty() { IDLE } else { BREATH };
                    for claim in claims {
                        let (waba_id, worker) = (claim.waba_id.clone(), self.clone());
                        under_way.start(waba_id, async move { worker.check(claim).await });
                    }
                    pause
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        error!(
                            cause = error.cause(),
                            "health checks wait for the database: {error}"
                        );
                    }
                    AFTER_ERROR
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(pause) => {}
                () = self.checks_due.notified(), if under_way.free() > 0 => {}
                true = under_way.one_ended() => self.breathe().await,
            }
            while under_way.one_ended().now_or_never() == Some(true) {}
        }
        while under_way.one_ended().await {}
    }

    /// Where one look-up ended others may be about to: they share a claim. A new number does not wait for that.
    async fn breathe(&self) {
        tokio::select! {
            () = sleep(BREATH) => {}
            () = self.checks_due.notified() => {}
        }
    }

    /// Claims what is due, and now and then resolves what has been quiet.
    async fn step(
        &self,
        next_sweep: &mut Instant,
        under_way: &UnderWay,
    ) -> Result<Vec<Claim>, StoreError> {
        if *next_sweep <= Instant::now() {
            *next_sweep = Instant::now() + SWEEP;
            self.sweep().await;
        }
        match under_way.free() {
            0 => Ok(Vec::new()),
            free => bounded(claims::claim_due(&self.db, free, &under_way.accounts())).await,
        }
    }

    /// Resolves the incidents that have been quiet. What fails here is tried again with the next sweep.
    async fn sweep(&self) {
        match bounded(incidents::resolve_quiet(&self.db)).await {
            Ok(resolved) => {
                for (id, waba_id) in resolved {
                    info!(
                        incident.id = id,
                        waba.id = waba_id,
                        "incident {id} of {waba_id} is over: seven quiet days"
                    );
                }
            }
            Err(error) => debug!(
                cause = error.cause(),
                "quiet incidents stay open for now: {error}"
            ),
        }
    }

    /// One look-up, from budget to row. What fails here is tried again when the lease runs out.
    async fn check(&self, claim: Claim) {
        match bounded(claims::take_from_budget(&self.db, &claim)).await {
            Ok(true) => {}
            Ok(false) => {
                return debug!(
                    waba.id = claim.waba_id,
                    "the account's look-ups of this hour are spent"
                );
            }
            Err(error) => {
                return warn!(
                    cause = error.cause(),
                    "a health check waits for the database: {error}"
                );
            }
        }
        let check = self
            .graph
            .look_up(&claim.waba_id, &claim.phone_number_id)
            .await;
        self.metrics.looked_up(&check);
        match self.save(&claim, check).await {
            Ok(saved) => tell(&claim, &saved),
            Err(error) => error!(
                incident.id = claim.incident_id,
                cause = error.cause(),
                "a health check was not saved and will be done again: {error}"
            ),
        }
    }

    /// Saves an answer, patiently: it cost a look-up, and the lease still lasts.
    async fn save(&self, claim: &Claim, mut check: Check) -> Result<Saved, StoreError> {
        let mut attempt = 1;
        loop {
            match bounded(checks::save(&self.db, claim, &check, fastrand::f64())).await {
                Err(StoreError::BadData(error)) if check.response.is_some() => {
                    error!(incident.id = claim.incident_id, %error, "the database refuses an answer of Graph");
                    check.response = None;
                    check.answer = Answer::Unreachable("the answer cannot be stored".to_owned());
                }
                Err(_) if attempt < SAVE_ATTEMPTS => sleep(AFTER_ERROR).await,
                saved => return saved,
            }
            attempt += 1;
        }
    }
}

/// The look-ups under way, and the account of each.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<()>,
    accounts: HashMap<Id, String>,
}

impl UnderWay {
    fn free(&self) -> usize {
        IN_FLIGHT - self.tasks.len()
    }

    fn accounts(&self) -> Vec<String> {
        self.accounts.values().cloned().collect()
    }

    fn start(&mut self, waba_id: String, look_up: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(look_up).id();
        self.accounts.insert(id, waba_id);
    }

    /// Waits until one has ended. `false`: none is under way.
    async fn one_ended(&mut self) -> bool {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => self.accounts.remove(&id),
            Some(Err(error)) => self.accounts.remove(&error.id()),
            None => return false,
        };
        true
    }
}

fn tell(claim: &Claim, saved: &Saved) {
    let Claim {
        incident_id,
        waba_id,
        ..
    } = claim;
    match saved {
        Saved::Caused(LockoutCause::LookupDenied) => {
            warn!(
                incident.id = incident_id,
                waba.id = waba_id,
                "the cause of incident {incident_id} cannot be looked up: see `lockwatch incidents show {incident_id}`"
            );
        }
        Saved::Caused(cause) => {
            warn!(
                incident.id = incident_id,
                waba.id = waba_id,
                "cause of incident {incident_id}: {cause}"
            );
        }
        Saved::Recovered => {
            info!(
                incident.id = incident_id,
                waba.id = waba_id,
                "incident {incident_id} of {waba_id} is over: recovered"
            );
        }
        Saved::Kept | Saved::Late => debug!(
            incident.id = incident_id,
            waba.id = waba_id,
            ?saved,
            "health check saved"
        ),
    }
}
