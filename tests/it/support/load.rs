//! A load of callbacks while faults are injected.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use lockwatch::intake::Intake;
use lockwatch::meta::interest::Interest;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::store::Database;
use reqwest::{Client, StatusCode};
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{APP_SECRET, client, eventually, one_failure, settle};

const SENDERS: u32 = 16;

/// Sends distinct failures from many senders and records every answer.
pub struct Load {
    client: Client,
    webhook: String,
    next_id: AtomicU32,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

impl Load {
    pub fn new(webhook: String) -> Self {
        Self {
            client: client(),
            webhook,
            next_id: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            acknowledged: Mutex::default(),
            refused: Mutex::default(),
            slowest: Mutex::default(),
        }
    }

    /// Continues at another address.
    pub fn to(self, webhook: String) -> Self {
        Self { webhook, ..self }
    }

    /// Sends one failure. `None` if there is no answer.
    pub async fn send(&self, id: &str) -> Option<StatusCode> {
        let body = one_failure(id);
        let request = self
            .client
            .post(&self.webhook)
            .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
            .body(body);
        let started = Instant::now();
        let status = request.send().await.ok().map(|answer| answer.status());
        let mut slowest = self.slowest.lock().unwrap();
        *slowest = slowest.max(started.elapsed());
        status
    }

    /// The client of all senders.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The address to which they send.
    pub fn webhook(&self) -> &str {
        &self.webhook
    }

    /// The longest time that an answer took.
    pub fn slowest(&self) -> Duration {
        *self.slowest.lock().unwrap()
    }

    /// The number of callbacks that were not acknowledged.
    pub fn refusals(&self) -> usize {
        self.refused.lock().unwrap().len()
    }

    /// Ends [`run`](Self::run).
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Sends from all senders until told to stop.
    pub async fn run(&self) {
        join_all((0..SENDERS).map(|_| self.run_sender())).await;
    }

    async fn run_sender(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = format!("wamid.{}", self.next_id.fetch_add(1, Ordering::Relaxed));
            match self.send(&id).await {
                Some(StatusCode::OK) => self.acknowledged.lock().unwrap().push(id),
                None | Some(StatusCode::SERVICE_UNAVAILABLE) => {
                    self.refused.lock().unwrap().push(id);
                }
                Some(other) => panic!("a callback is answered with {other}"),
            }
        }
    }

    /// Waits until more than this number of further callbacks are acknowledged.
    pub async fn wait_for_acknowledgements(&self, more: usize) {
        let before = self.acknowledged.lock().unwrap().len();
        eventually("callbacks are acknowledged", async || {
            self.acknowledged.lock().unwrap().len() > before + more
        })
        .await;
    }

    /// Waits until more than this number of further callbacks are refused.
    pub async fn wait_for_refusals(&self, more: usize) {
        let before = self.refused.lock().unwrap().len();
        eventually("callbacks are refused", async || {
            self.refused.lock().unwrap().len() > before + more
        })
        .await;
    }

    /// Checks that every acknowledged failure is stored, recorded or in the inbox. Then sends the
    /// refused ones again, and checks that every failure is recorded once.
    pub async fn check_database(&self, url: &str) {
        let acknowledged: HashSet<String> = self.acknowledged.lock().unwrap().drain(..).collect();
        let stored = stored_ids(url).await;
        let lost: Vec<_> = acknowledged.difference(&stored).collect();
        assert!(
            lost.is_empty(),
            "{} of {} acknowledged failures are lost: {lost:?}",
            lost.len(),
            acknowledged.len()
        );

        let refused: Vec<String> = self.refused.lock().unwrap().drain(..).collect();
        let answers = join_all(refused.iter().map(|id| self.send(id))).await;
        assert!(answers.iter().all(|answer| *answer == Some(StatusCode::OK)));
        let sent = i64::try_from(acknowledged.len() + refused.len()).unwrap();
        settle(&Database::parse(url).unwrap().pool()).await;
        assert_counts(url, sent).await;
        // A backend that works may be in a transaction for a moment.
        eventually("no backend is left in a transaction", async || {
            backends_in_transaction(url).await == 0
        })
        .await;
    }
}

/// The ids of the failures that are recorded, and of those in the inbox.
async fn stored_ids(url: &str) -> HashSet<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    // One statement, so that nothing moves from one to the other meanwhile.
    let stored: Vec<(Option<String>, Option<Vec<u8>>)> = sqlx::query_as(
        "select message_id, null from failed_deliveries
          union all
         select null, c.body from inbox i join captures c on c.id = i.capture_id",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let mut ids = HashSet::new();
    for (recorded, waiting) in stored {
        ids.extend(recorded);
        let body = Bytes::from(waiting.unwrap_or_default());
        let failures =
            Intake::parse(&body, &Interest::default(), OffsetDateTime::now_utc()).failures;
        ids.extend(
            failures
                .iter()
                .map(|failure| failure.message_id.as_str().to_owned()),
        );
    }
    ids
}

/// Checks that this number of failures is stored and counted, in one open incident.
async fn assert_counts(url: &str, failures: i64) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let counts: (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from failed_deliveries),
                (select sum(failure_count)::bigint from incidents),
                (select sum(failure_count)::bigint from affected_numbers)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(counts, (failures, failures, failures));
    let open: i64 = sqlx::query_scalar("select count(*) from incidents where resolved_at is null")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(open, 1);
}

async fn backends_in_transaction(url: &str) -> i64 {
    let idle = "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(idle)
        .fetch_one(&mut connection)
        .await
        .unwrap()
}
