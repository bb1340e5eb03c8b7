//! Alerts: tells people of what happens to incidents, with the reason in the first message.
//!
//! A change of an incident becomes a message for each channel, in the database, and is delivered
//! from there: any number of processes share the work, and none is lost with one of them. At least
//! once; a crash between a delivery and its record tells it twice, with the same id.

pub mod channel;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::channel::{Channel, Delivered};
use crate::error_chain::error_chain;
use crate::lockout::alerting;
use crate::report;
use crate::report::alert::Message;
use crate::store::alerts::{self, Due, DueAlert, Outcome};
use crate::store::incidents::IncidentFilter;
use crate::store::{Pool, StoreError, bounded};

/// The pause between two looks for what is to be told.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The channels to tell, and how people reach the dashboard.
#[derive(Debug, Default)]
pub struct Alerting {
    /// The channels.
    pub channels: Vec<Channel>,
    /// The URL of the dashboard, for links.
    pub external_url: Option<String>,
}

/// Dispatches and delivers until told to stop.
pub async fn run(db: Pool, alerting: Arc<Alerting>, stop: CancellationToken) {
    let names: Vec<&str> = alerting.channels.iter().map(Channel::name).collect();
    for name in &names {
        info!("alerts go to {name}");
    }
    let mut workers = JoinSet::new();
    for position in 0..alerting.channels.len() {
        let worker = Worker {
            db: db.clone(),
            alerting: Arc::clone(&alerting),
            position,
        };
        workers.spawn(worker.run(stop.clone()));
    }
    while !stop.is_cancelled() {
        match bounded(alerts::dispatch(&db, &names)).await {
            Ok(0) => {}
            Ok(messages) => debug!(messages, "alerts are due"),
            Err(error) => debug!("alerts wait for the database: {}", error_chain(&error)),
        }
        stop.run_until_cancelled(sleep(POLL_INTERVAL)).await;
    }
    while workers.join_next().await.is_some() {}
}

/// Delivers the messages of one channel: one that hangs keeps no other waiting.
struct Worker {
    db: Pool,
    alerting: Arc<Alerting>,
    position: usize,
}

impl Worker {
    async fn run(self, stop: CancellationToken) {
        let channel = &self.alerting.channels[self.position];
        let mut is_failing = false;
        while !stop.is_cancelled() {
            match bounded(alerts::claim(&self.db, channel.name())).await {
                Ok(Due::Each(due)) => {
                    for alert in due {
                        self.deliver(channel, &[alert], &mut is_failing).await;
                    }
                }
                Ok(Due::Digest(due)) => self.deliver(channel, &due, &mut is_failing).await,
                Err(error) => debug!("alerts wait for the database: {}", error_chain(&error)),
            }
            stop.run_until_cancelled(sleep(POLL_INTERVAL)).await;
        }
    }

    /// Delivers these alerts in one message.
    async fn deliver(&self, channel: &Channel, alerts: &[DueAlert], is_failing: &mut bool) {
        let Some(latest) = alerts.last() else { return };
        let message = match self.compose(alerts).await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            // It is tried again when its lease is over.
            Err(error) => return debug!("an alert waits: {}", error_chain(&error)),
        };
        let delivered = channel.deliver(&message).await;
        let outcome = outcome_of(&delivered, latest);
        match (&outcome, is_failing) {
            (Outcome::Accepted, failing @ true) => {
                *failing = false;
                info!("{} takes alerts again", channel.name());
            }
            (Outcome::Accepted, _) => {}
            (Outcome::Dead, _) => warn!(
                alert.id = latest.id,
                incident.id = latest.incident_id,
                "alert {} to {} is given up: {}",
                latest.id,
                channel.name(),
                delivered.answer
            ),
            (Outcome::Retry(_), failing @ false) => {
                *failing = true;
                warn!(
                    "{} does not take alerts: {}",
                    channel.name(),
                    delivered.answer
                );
            }
            (Outcome::Retry(_), _) => {}
        }
        let ids: Vec<i64> = alerts.iter().map(|alert| alert.id).collect();
        let noted = alerts::note_outcome(&self.db, &ids, &outcome, &delivered.answer);
        if let Err(error) = bounded(noted).await {
            debug!("an alert's outcome is not noted: {}", error_chain(&error));
        }
    }

    async fn compose(&self, alerts: &[DueAlert]) -> Result<Option<Message>, StoreError> {
        let (url, now) = (
            self.alerting.external_url.as_deref(),
            OffsetDateTime::now_utc(),
        );
        let [alert] = alerts else {
            let ids = alerts.iter().map(|alert| alert.incident_id).collect();
            let filter = IncidentFilter {
                among: Some(ids),
                ..IncidentFilter::default()
            };
            let limit = i64::try_from(alerts.len()).unwrap_or(i64::MAX);
            let reports = report::list_incidents(&self.db, &filter, limit).await?.data;
            let latest = alerts.iter().map(|alert| alert.change_id).max();
            return Ok(latest.map(|id| Message::digest(id, reports, url, now)));
        };
        let report = report::find_incident(&self.db, alert.incident_id).await?;
        Ok(report.map(|report| Message::new(&alert.kind, alert.change_id, report, url, now)))
    }
}

fn outcome_of(delivered: &Delivered, alert: &DueAlert) -> Outcome {
    if delivered.is_accepted {
        return Outcome::Accepted;
    }
    let age = OffsetDateTime::now_utc() - alert.created_at;
    let age = Duration::try_from(age).unwrap_or_default();
    let attempts = u32::try_from(alert.attempts).unwrap_or(u32::MAX);
    match alerting::next_try(attempts, age, fastrand::f64()) {
        Some(pause) if delivered.may_be_tried_again => {
            Outcome::Retry(delivered.retry_after.map_or(pause, |wish| wish.max(pause)))
        }
        _ => Outcome::Dead,
    }
}
