//! Tells from memory that nothing is recorded. The database is away then, and with it every other
//! alert; so each process tells it by itself, and its end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Shared;
use super::channel::Channel;
use crate::lockout::alerting::{AlertKind, next_try};
use crate::lockout::trouble::{ALL_ACCOUNTS, Course, Step, TroubleKind, next_step};
use crate::progress::Progress;
use crate::report::alert::{Message, Topic};
use crate::store::troubles::Trouble;

/// The pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The longest wait for the database.
const READINESS_TIMEOUT: Duration = Duration::from_secs(3);
const KIND: TroubleKind = TroubleKind::NotRecording;

pub(super) async fn run(
    shared: Shared,
    progress: Progress,
    told: watch::Sender<Option<Trouble>>,
    stop: CancellationToken,
) {
    let mut course: Option<(Course, &'static str)> = None;
    let mut begun = Begun::default();
    let mut deliveries = JoinSet::new();
    while stop
        .run_until_cancelled(sleep(POLL_INTERVAL))
        .await
        .is_some()
    {
        let obstacle = progress.find_obstacle(&shared.db, READINESS_TIMEOUT).await;
        let now = OffsetDateTime::now_utc();
        let begin = |reason| {
            let course = Course {
                began_at: now,
                seen_at: now,
                is_told: false,
            };
            (course, reason)
        };
        let Some((current, reason)) = course.or_else(|| obstacle.map(begin)) else {
            continue;
        };
        let mut next = Course {
            seen_at: if obstacle.is_some() {
                now
            } else {
                current.seen_at
            },
            ..current
        };
        let step = next_step(KIND, &next, obstacle.is_some(), now);
        let trouble = |ended_at| Trouble {
            id: 0,
            kind: KIND.as_str().to_owned(),
            waba_id: ALL_ACCOUNTS.to_owned(),
            detail: format!("A process of Lockwatch is not ready: {reason}."),
            began_at: current.began_at,
            ended_at,
            labels: vec![],
        };
        course = match step {
            Step::Stay => Some((next, reason)),
            Step::TellBegin => {
                error!("nothing is recorded: {reason}");
                next.is_told = true;
                told.send_replace(Some(trouble(None)));
                begun = Begun {
                    cancel: stop.child_token(),
                    ..Begun::default()
                };
                let message = compose(&shared, AlertKind::Began(KIND), trouble(None));
                tell_begin(&shared, &message, &begun, &mut deliveries);
                Some((next, reason))
            }
            Step::TellEnd => {
                info!("callbacks are recorded again");
                told.send_replace(None);
                let over = trouble(Some(next.seen_at));
                let message = compose(&shared, AlertKind::Over(KIND), over);
                tell_end(&shared, &message, &begun, &mut deliveries, &stop);
                None
            }
            Step::Forget => None,
        };
        while deliveries.try_join_next().is_some() {}
    }
}

/// The channels that took the beginning. They alone are told of the end, and after that nobody is
/// told of the beginning any more.
#[derive(Debug, Default)]
struct Begun {
    cancel: CancellationToken,
    accepted: Arc<Mutex<BTreeSet<String>>>,
}

fn compose(shared: &Shared, kind: AlertKind, trouble: Trouble) -> Message {
    let began = trouble.began_at.unix_timestamp();
    let id = format!("{}_{began}", kind.name().replace('.', "_"));
    let now = OffsetDateTime::now_utc();
    let topic = Topic::Trouble(trouble);
    Message::new(id, &kind.name(), topic, shared.external_url(), now)
}

fn tell_begin(shared: &Shared, message: &Message, begun: &Begun, deliveries: &mut JoinSet<()>) {
    let kind = AlertKind::Began(KIND);
    for channel in shared.roster.borrow().channels.iter() {
        // An Alertmanager is told of it as long as it lasts.
        if channel.subscriber().is_some() && channel.filter().wants_kind(kind) {
            let (channel, message) = (channel.clone(), message.clone());
            let (cancel, accepted) = (begun.cancel.clone(), Arc::clone(&begun.accepted));
            deliveries.spawn(async move {
                let delivered = cancel
                    .run_until_cancelled(deliver(&channel, &message))
                    .await;
                if delivered == Some(true) {
                    let mut accepted = accepted.lock().unwrap_or_else(PoisonError::into_inner);
                    accepted.insert(channel.name().to_owned());
                }
            });
        }
    }
}

fn tell_end(
    shared: &Shared,
    message: &Message,
    begun: &Begun,
    deliveries: &mut JoinSet<()>,
    stop: &CancellationToken,
) {
    begun.cancel.cancel();
    let accepted = begun
        .accepted
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    for channel in shared.roster.borrow().channels.iter() {
        if accepted.contains(channel.name()) {
            let (channel, message, stop) = (channel.clone(), message.clone(), stop.clone());
            deliveries.spawn(async move {
                stop.run_until_cancelled(deliver(&channel, &message)).await;
            });
        }
    }
}

/// Delivers a message, with the pauses of any other alert. Returns whether it was taken.
async fn deliver(channel: &Channel, message: &Message) -> bool {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let delivered = channel.deliver(message).await;
        if delivered.is_accepted {
            return true;
        }
        let name = channel.name();
        warn!(
            "{name} does not take {}: {}",
            message.kind, delivered.answer
        );
        let age = OffsetDateTime::now_utc() - message.written_at;
        let age = Duration::try_from(age).unwrap_or_default();
        match next_try(attempts, age, fastrand::f64()) {
            Some(pause) if delivered.may_be_tried_again => sleep(pause).await,
            _ => return false,
        }
    }
}
