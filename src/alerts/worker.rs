//! The worker of a channel: takes its alerts from the database, writes the messages, delivers them
//! and notes what the receiver answered.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Shared;
use super::channel::{Channel, Delivered};
use crate::error_chain::error_chain;
use crate::lockout::alerting;
use crate::report;
use crate::report::alert::{Digest, Message, Topic};
use crate::store::alerts::{self, Due, DueAlert, Outcome};
use crate::store::incidents::{self, IncidentFilter};
use crate::store::{StoreError, bounded, events, troubles};

/// The pause between two looks for what is due.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The rows of each kind that a digest lists for programs. The rest is counted.
const DIGEST_ROWS: usize = 500;
/// The ends that are told one by one where each closes something.
const ENDS_LIMIT: usize = 50;

pub(super) async fn run(shared: Shared, channel: Channel, stop: CancellationToken) {
    let mut worker = Worker::new(shared, channel);
    while !stop.is_cancelled() {
        worker.step(&stop).await;
        stop.run_until_cancelled(sleep(POLL_INTERVAL)).await;
    }
}

/// Delivers what the queue of a channel holds.
pub(super) struct Worker {
    shared: Shared,
    channel: Channel,
    is_failing: bool,
}

impl Worker {
    pub(super) fn new(shared: Shared, channel: Channel) -> Self {
        Self {
            shared,
            channel,
            is_failing: false,
        }
    }

    /// Takes what is due, and delivers it.
    pub(super) async fn step(&mut self, stop: &CancellationToken) {
        match bounded(alerts::claim(&self.shared.db, self.channel.name())).await {
            Ok(Due::Each(due)) => {
                self.deliver_each(&due, stop).await;
            }
            Ok(Due::Digest(due)) if self.channel.closes_threads() => {
                let (ends, rest): (Vec<_>, Vec<_>) = due.into_iter().partition(is_end);
                // What is not delivered within the lease is taken again.
                self.deliver_each(&ends[..ends.len().min(ENDS_LIMIT)], stop)
                    .await;
                self.deliver(&rest).await;
            }
            Ok(Due::Digest(due)) => self.deliver(&due).await,
            Err(error) => debug!("alerts wait for the database: {}", error_chain(&error)),
        }
    }

    async fn deliver_each(&mut self, alerts: &[DueAlert], stop: &CancellationToken) {
        for alert in alerts {
            if !stop.is_cancelled() {
                self.deliver(std::slice::from_ref(alert)).await;
            }
        }
    }

    /// Delivers these alerts in one message.
    async fn deliver(&mut self, alerts: &[DueAlert]) {
        let Some(latest) = alerts.last() else { return };
        let message = match self.compose(alerts).await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            // It is tried again when its lease is over.
            Err(error) => return debug!("an alert waits: {}", error_chain(&error)),
        };
        let delivered = self.channel.deliver(&message).await;
        let outcome = outcome_of(&delivered, latest);
        self.log(latest, &outcome, &delivered.answer);
        self.shared.metrics.count(self.channel.name(), &outcome);
        let ids: Vec<i64> = alerts.iter().map(|alert| alert.id).collect();
        let (db, name) = (&self.shared.db, self.channel.name());
        let noted = alerts::note_outcome(db, name, &ids, &outcome, &delivered.answer);
        if let Err(error) = bounded(noted).await {
            debug!("an alert's outcome is not noted: {}", error_chain(&error));
        }
    }

    fn log(&mut self, alert: &DueAlert, outcome: &Outcome, answer: &str) {
        let (id, name) = (alert.id, self.channel.name());
        match outcome {
            Outcome::Accepted if self.is_failing => info!("{name} takes alerts again"),
            Outcome::Accepted => {}
            Outcome::Dead => {
                warn!(alert.id = id, "alert {id} to {name} is given up: {answer}");
            }
            Outcome::Retry(_) if self.is_failing => {}
            Outcome::Retry(_) => warn!("{name} does not take alerts: {answer}"),
        }
        self.is_failing = *outcome != Outcome::Accepted;
    }

    async fn compose(&self, alerts: &[DueAlert]) -> Result<Option<Message>, StoreError> {
        let (url, now) = (self.shared.external_url(), OffsetDateTime::now_utc());
        let [alert] = alerts else {
            let digest = self.load_all(alerts).await?;
            let latest = alerts.iter().map(|alert| alert.id).max();
            return Ok(latest.map(|id| digest.write(format!("lockwatch_digest_{id}"), url, now)));
        };
        let id = match alert.topic {
            alerts::Topic::Change { id, .. } => format!("lockwatch_change_{id}"),
            alerts::Topic::Event(id) => format!("lockwatch_event_{id}"),
            alerts::Topic::Trouble(id) if alert.kind.ends_with("_over") => {
                format!("lockwatch_trouble_{id}_over")
            }
            alerts::Topic::Trouble(id) => format!("lockwatch_trouble_{id}"),
            alerts::Topic::Test => {
                return Ok(Some(Message::test(
                    format!("lockwatch_test_{}", alert.id),
                    now,
                )));
            }
        };
        let topic = self.load(alert.topic).await?;
        Ok(topic.map(|topic| Message::new(id, &alert.kind, topic, url, now)))
    }

    async fn load(&self, topic: alerts::Topic) -> Result<Option<Topic>, StoreError> {
        let db = &self.shared.db;
        Ok(match topic {
            alerts::Topic::Change { incident_id, .. } => {
                let report = report::find_incident(db, incident_id).await?;
                report.map(|report| Topic::Incident(Box::new(report)))
            }
            alerts::Topic::Event(id) => {
                let notice = bounded(events::find(db, &[id])).await?.pop();
                notice.map(Topic::Notice)
            }
            alerts::Topic::Trouble(id) => {
                let trouble = bounded(troubles::find(db, &[id])).await?.pop();
                trouble.map(Topic::Trouble)
            }
            alerts::Topic::Test => None,
        })
    }

    /// Loads what many alerts tell of, each thing once, and of very many the worst.
    async fn load_all(&self, alerts: &[DueAlert]) -> Result<Digest, StoreError> {
        let db = &self.shared.db;
        let (mut incidents, mut notices, mut troubles) = (vec![], vec![], vec![]);
        for alert in alerts {
            match alert.topic {
                alerts::Topic::Change { incident_id, .. } => incidents.push(incident_id),
                alerts::Topic::Event(id) => notices.push(id),
                alerts::Topic::Trouble(id) => troubles.push(id),
                alerts::Topic::Test => {}
            }
        }
        troubles.sort_unstable();
        troubles.dedup();
        let (notice_count, trouble_count) = (notices.len(), troubles.len());
        notices.truncate(DIGEST_ROWS);
        troubles.truncate(DIGEST_ROWS);
        let limit = i64::try_from(DIGEST_ROWS).unwrap_or(i64::MAX);
        let worst = bounded(incidents::worst(db, &incidents, limit)).await?;
        let filter = IncidentFilter {
            among: Some(worst.ids),
            ..IncidentFilter::default()
        };
        let reports = report::list_incidents(db, &filter, limit).await?.data;
        let notices = bounded(events::find(db, &notices)).await?;
        let troubles = bounded(troubles::find(db, &troubles)).await?;
        let reports = reports.into_iter().map(Box::new).map(Topic::Incident);
        let notices = notices.into_iter().map(Topic::Notice);
        let troubles = troubles.into_iter().map(Topic::Trouble);
        Ok(Digest {
            topics: reports.chain(notices).chain(troubles).collect(),
            incidents: worst.count,
            open: worst.open,
            notices: i64::try_from(notice_count).unwrap_or(i64::MAX),
            troubles: i64::try_from(trouble_count).unwrap_or(i64::MAX),
        })
    }
}

/// Returns whether an alert closes what an earlier one opened.
fn is_end(alert: &DueAlert) -> bool {
    alert.kind == "incident.resolved" || alert.kind.ends_with("_over")
}

fn outcome_of(delivered: &Delivered, alert: &DueAlert) -> Outcome {
    if delivered.is_accepted {
        return Outcome::Accepted;
    }
    let age = OffsetDateTime::now_utc() - alert.tried_since;
    let age = Duration::try_from(age).unwrap_or_default();
    let attempts = u32::try_from(alert.attempts).unwrap_or(u32::MAX);
    match alerting::next_try(attempts, age, fastrand::f64()) {
        Some(pause) if delivered.may_be_tried_again => {
            Outcome::Retry(delivered.retry_after.map_or(pause, |wish| wish.max(pause)))
        }
        _ => Outcome::Dead,
    }
}
