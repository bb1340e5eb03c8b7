//! Alerts: tells people of what happens to incidents, with the reason in the first message, and of
//! what keeps Lockwatch from hearing or telling.
//!
//! | part | does |
//! | --- | --- |
//! | `dispatch` | decides whom to tell of changes and notices, and writes an alert for each channel |
//! | `watch` | looks for [troubles](crate::lockout::trouble) and for incidents that stay open |
//! | `worker` | delivers the alerts of one channel: one that hangs keeps no other waiting |
//! | `firing` | tells an Alertmanager what is wrong now, again and again |
//! | `not_recording` | tells from memory that the database is away, and with it all of the above |
//! | [`channel`] | the receivers |
//! | [`file`](mod@file) | the channels of a file, read again when it changes |
//!
//! Any number of processes share the work, and no alert is lost with one of them. Each goes out at
//! least once: a crash between a delivery and its record tells it twice, with the same id.

pub mod channel;
mod dispatch;
pub mod file;
mod firing;
mod not_recording;
mod watch;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as watched;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::channel::Channel;
use self::file::AlertsFile;
use crate::error_chain::error_chain;
use crate::lockout::alerting::Subscriber;
use crate::metrics::AlertMetrics;
use crate::progress::Progress;
use crate::store::troubles::Trouble;
use crate::store::{Pool, StoreError};

/// The pause between two looks at the file of channels.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// A failure that lasts for longer is logged.
const PATIENCE: Duration = Duration::from_secs(60);

/// The channels to tell, and how people reach the dashboard.
#[derive(Debug, Default)]
pub struct Alerting {
    /// The channels that stay.
    pub channels: Vec<Channel>,
    /// The file with more of them.
    pub file: Option<AlertsFile>,
    /// The URL of the dashboard, for links.
    pub external_url: Option<String>,
}

/// The channels that are told at the moment.
#[derive(Debug, Clone)]
pub struct Roster {
    /// The channels.
    pub channels: Arc<[Channel]>,
    /// Why the file of channels, as it is now, is not used.
    pub problem: Option<String>,
}

impl Roster {
    fn subscribers(&self) -> Vec<Subscriber> {
        self.channels
            .iter()
            .filter_map(Channel::subscriber)
            .collect()
    }
}

impl Alerting {
    /// Returns the channels to begin with.
    #[must_use]
    pub fn roster(&self) -> Roster {
        let of_file = self.file.iter().flat_map(|file| file.channels().to_vec());
        Roster {
            channels: self.channels.iter().cloned().chain(of_file).collect(),
            problem: None,
        }
    }
}

/// The things that every part needs.
#[derive(Debug, Clone)]
struct Shared {
    db: Pool,
    roster: watched::Receiver<Arc<Roster>>,
    external_url: Option<Arc<str>>,
    metrics: AlertMetrics,
    /// The trouble that nothing is recorded, while it lasts.
    not_recording: watched::Receiver<Option<Trouble>>,
}

impl Shared {
    fn external_url(&self) -> Option<&str> {
        self.external_url.as_deref()
    }
}

/// Logs a failure that lasts. While the database is away, others say so.
#[derive(Debug, Default)]
struct Patience {
    failing_since: Option<Instant>,
    is_logged: bool,
}

impl Patience {
    fn note<T>(&mut self, failure: &str, result: Result<T, StoreError>) {
        let Err(error) = result else {
            *self = Self::default();
            return;
        };
        let error = error_chain(&error);
        debug!("{failure}: {error}");
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if !self.is_logged && since.elapsed() > PATIENCE {
            self.is_logged = true;
            warn!("{failure} for a minute: {error}");
        }
    }
}

/// Dispatches and delivers until told to stop. All but the trouble that nothing is recorded waits
/// until the tables are `migrated`.
pub async fn run(
    db: Pool,
    alerting: Alerting,
    roster: watched::Sender<Arc<Roster>>,
    progress: Progress,
    metrics: AlertMetrics,
    migrated: CancellationToken,
    stop: CancellationToken,
) {
    let (not_recording, is_not_recording) = watched::channel(None);
    let shared = Shared {
        not_recording: is_not_recording,
        db,
        roster: roster.subscribe(),
        external_url: alerting.external_url.as_deref().map(Arc::from),
        metrics,
    };
    let with_tables = async {
        if stop
            .run_until_cancelled(migrated.cancelled())
            .await
            .is_some()
        {
            tokio::join!(
                dispatch::run(shared.clone(), stop.clone()),
                watch::run(shared.clone(), stop.clone()),
                deliver(shared.clone(), stop.clone()),
            );
        }
    };
    tokio::join!(
        with_tables,
        not_recording::run(shared.clone(), progress, not_recording, stop.clone()),
        reload(alerting, roster, stop.clone()),
    );
}

/// Runs a worker for each channel, and other ones when the channels change. A worker that waits for
/// its receiver holds up no new one: leases keep their alerts apart.
async fn deliver(shared: Shared, stop: CancellationToken) {
    let mut roster = shared.roster.clone();
    let mut workers = JoinSet::new();
    while !stop.is_cancelled() {
        let channels = Arc::clone(&roster.borrow_and_update().channels);
        let until_changed = stop.child_token();
        for channel in channels.iter().cloned() {
            info!("alerts go to {}", channel.name());
            shared.metrics.add_channel(channel.name());
            let (shared, stop) = (shared.clone(), until_changed.clone());
            match channel.as_alertmanager() {
                Some(_) => workers.spawn(firing::run(shared, channel, stop)),
                None => workers.spawn(worker::run(shared, channel, stop)),
            };
        }
        let are_others = |roster: &Arc<Roster>| !Arc::ptr_eq(&roster.channels, &channels);
        let have_changed = async { roster.wait_for(are_others).await.is_ok() };
        tokio::select! {
            () = stop.cancelled() => {}
            have_changed = have_changed => if !have_changed { stop.cancelled().await },
        }
        until_changed.cancel();
        while workers.try_join_next().is_some() {}
    }
    while workers.join_next().await.is_some() {}
}

/// Reads the file of channels again whenever it changes.
async fn reload(
    mut alerting: Alerting,
    roster: watched::Sender<Arc<Roster>>,
    stop: CancellationToken,
) {
    while stop
        .run_until_cancelled(sleep(RELOAD_INTERVAL))
        .await
        .is_some()
    {
        let Some(file) = &mut alerting.file else {
            continue;
        };
        let names = alerting.channels.iter().map(Channel::name);
        match file.reload(names) {
            Ok(false) => {}
            Ok(true) => {
                info!("the file of channels was read again");
                roster.send_replace(Arc::new(alerting.roster()));
            }
            Err(problem) => {
                let problem = Some(problem.to_string());
                if roster.borrow().problem != problem {
                    let text = problem.as_deref().unwrap_or_default();
                    error!("the channels read earlier stay in use: {text}");
                    roster.send_modify(|roster| Arc::make_mut(roster).problem = problem);
                }
            }
        }
    }
}
