//! The workload: requests as Meta sends them, as forgers send them, and as a network breaks them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use reqwest::{Client, StatusCode};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::environment::Environment;
use super::ledger::{Callback, Ledger, Outcome};
use super::operator::Operator;
use super::replica::Replica;
use crate::support::APP_SECRET;

const SENDERS: usize = 12;
/// The time within which a running process must answer. A request without an answer after that is a
/// forgotten request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The number of accounts that get most of the callbacks and most of the operator's visits.
pub const HOT_ACCOUNTS: usize = 3;
/// The maximum number of failures in a callback.
const FAILURES_LIMIT: usize = 1000;
/// The longest pause of a sender between two requests, in milliseconds.
const PAUSE_LIMIT_MILLIS: u64 = 100;
/// The number of times that a resend may be refused while there is no fault.
const RESEND_LIMIT: usize = 20;

/// An account and its numbers.
#[derive(Debug, Clone)]
pub struct Account {
    pub waba_id: String,
    pub numbers: Vec<String>,
}

/// Creates the accounts, the hot ones first. One hot account has so many numbers that its hourly
/// budget of look-ups is soon spent.
pub fn create_accounts() -> Vec<Account> {
    (0..25).map(create_account).collect()
}

fn create_account(n: usize) -> Account {
    let numbers = match n {
        0 => 60,
        1..HOT_ACCOUNTS => 6,
        _ => 2,
    };
    Account {
        waba_id: format!("1022{n:04}"),
        numbers: (0..numbers)
            .map(|number| format!("1065{n:04}{number:04}"))
            .collect(),
    }
}

/// Sends requests until told to stop, and records every one in the ledger.
pub struct Workload<'e> {
    accounts: &'e [Account],
    replicas: &'e [Replica],
    ledger: &'e Ledger,
    client: Client,
    stop: AtomicBool,
}

impl<'e> Workload<'e> {
    pub fn new(environment: &'e Environment) -> Self {
        let client = Client::builder()
            .no_proxy()
            .timeout(REQUEST_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(5));
        Self {
            accounts: &environment.accounts,
            replicas: &environment.replicas,
            ledger: &environment.ledger,
            client: client.build().unwrap(),
            stop: AtomicBool::new(false),
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Runs all senders and the operator until told to stop.
    pub async fn run(&self, rng: &mut Rng) {
        let senders = join_all((0..SENDERS).map(|_| self.run_sender(rng.fork())));
        let operator = Operator {
            client: &self.client,
            accounts: self.accounts,
            replicas: self.replicas,
            ledger: self.ledger,
        };
        tokio::join!(senders, operator.run(rng.fork(), &self.stop));
    }

    /// Sends every callback again that has an unacknowledged failure, until each one is
    /// acknowledged.
    pub async fn resend_unacknowledged(&self) {
        let unacknowledged = self.ledger.lock().unacknowledged();
        for callbacks in unacknowledged.chunks(SENDERS) {
            let replicas = self.replicas.iter().cycle();
            let resends = callbacks.iter().zip(replicas);
            join_all(resends.map(|(callback, replica)| self.resend(replica, callback))).await;
        }
    }

    async fn resend(&self, replica: &Replica, callback: &Callback) {
        let mut refusals = 0;
        while self.post(replica, callback).await != Outcome::Acknowledged {
            refusals += 1;
            assert!(
                refusals < RESEND_LIMIT,
                "a callback is refused although there is no fault"
            );
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn run_sender(&self, mut rng: Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            let replica = rng.choice(self.replicas).unwrap();
            match rng.u8(..100) {
                0..6 => self.send_forgery(replica, &mut rng).await,
                6..16 => self.send_unrelated(replica, &mut rng).await,
                16..22 => self.send_and_disconnect(replica, &mut rng).await,
                _ => {
                    let callback = self.choose_callback(&mut rng);
                    self.post(replica, &callback).await;
                }
            }
            sleep(Duration::from_millis(rng.u64(..PAUSE_LIMIT_MILLIS))).await;
        }
    }

    /// Chooses a callback to send, mostly a new one.
    fn choose_callback(&self, rng: &mut Rng) -> Callback {
        match rng.u8(..10) {
            0 => self.repeat_callback(rng),
            1 => self.mix_callbacks(rng),
            2 => {
                let retry = self.ledger.lock().take_retry(rng);
                retry.unwrap_or_else(|| self.create_callback(rng))
            }
            _ => self.create_callback(rng),
        }
    }

    /// Creates a callback with failures that were never sent before, of one account or of many.
    fn create_callback(&self, rng: &mut Rng) -> Callback {
        let size = match rng.u8(..100) {
            0..70 => 1,
            70..95 => rng.usize(2..=20),
            95..99 => rng.usize(20..=100),
            _ => rng.usize(100..=FAILURES_LIMIT),
        };
        let only_account = match rng.u8(..10) {
            0..4 => rng.choice(&self.accounts[..HOT_ACCOUNTS]),
            4..7 => rng.choice(self.accounts),
            _ => None,
        };
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
        let mut ledger = self.ledger.lock();
        let failures = (0..size).map(|_| {
            let account = only_account.unwrap_or_else(|| rng.choice(self.accounts).unwrap());
            let number = rng.choice(&account.numbers).unwrap();
            let seconds_ago = match rng.u8(..16) {
                // The callback comes late, perhaps after its incident was resolved.
                0..4 => rng.i64(0..90),
                // Meta's clock is ahead of ours.
                4 => rng.i64(-5..0),
                _ => rng.i64(0..3),
            };
            let failed_at = now - time::Duration::seconds(seconds_ago);
            ledger.add_failure(&account.waba_id, number, failed_at)
        });
        failures.collect()
    }

    /// Repeats an earlier callback unchanged.
    fn repeat_callback(&self, rng: &mut Rng) -> Callback {
        let earlier = self.ledger.lock().choose_earlier(rng);
        earlier.unwrap_or_else(|| self.create_callback(rng))
    }

    /// Mixes earlier failures and new ones, in random order.
    fn mix_callbacks(&self, rng: &mut Rng) -> Callback {
        let parts = [
            self.create_callback(rng),
            self.repeat_callback(rng),
            self.repeat_callback(rng),
        ];
        let mut failures = parts.concat();
        failures.truncate(FAILURES_LIMIT);
        rng.shuffle(&mut failures);
        failures.into()
    }

    /// Sends a callback and records the outcome.
    async fn post(&self, replica: &Replica, callback: &Callback) -> Outcome {
        let body = self.ledger.record_sending(callback);
        let signature = sign(APP_SECRET, &body);
        let outcome = match self.post_body(replica, body, Some(signature)).await {
            Some(StatusCode::OK) => Outcome::Acknowledged,
            Some(StatusCode::SERVICE_UNAVAILABLE) => Outcome::Refused,
            None => Outcome::Unanswered,
            Some(other) => panic!("a callback is answered with {other}"),
        };
        self.ledger.record_outcome(callback, outcome);
        outcome
    }

    async fn post_body(
        &self,
        replica: &Replica,
        body: Vec<u8>,
        signature: Option<String>,
    ) -> Option<StatusCode> {
        let process = replica.process();
        let mut request = self.client.post(&process.webhook).body(body);
        if let Some(signature) = signature {
            request = request.header(SIGNATURE_HEADER, signature);
        }
        Some(replica.send(&process, request).await?.status())
    }

    /// Sends a forged callback. It must be rejected, whatever the state of the database is.
    async fn send_forgery(&self, replica: &Replica, rng: &mut Rng) {
        let account = rng.choice(self.accounts).unwrap();
        let body = StatusCallback::new()
            .failed(&account.waba_id, &account.numbers[0], "wamid.forged")
            .into_body();
        let wrong_signature = sign("another-secret-than-ours", &body);
        let signature = rng.bool().then_some(wrong_signature);
        let status = self.post_body(replica, body, signature).await;
        assert!(
            matches!(status, None | Some(StatusCode::UNAUTHORIZED)),
            "a forgery is answered with {status:?}"
        );
        self.ledger.lock().count_outcome(Outcome::Forged);
    }

    /// Sends a callback that is not about a lockout. It must be acknowledged without the database.
    async fn send_unrelated(&self, replica: &Replica, rng: &mut Rng) {
        let account = rng.choice(self.accounts).unwrap();
        let body = StatusCallback::new()
            .delivered(&account.waba_id, &account.numbers[0], "wamid.delivered")
            .into_body();
        let signature = sign(APP_SECRET, &body);
        let status = self.post_body(replica, body, Some(signature)).await;
        assert!(
            matches!(status, None | Some(StatusCode::OK)),
            "a delivery is answered with {status:?}"
        );
        self.ledger.lock().count_outcome(Outcome::NotAboutLockouts);
    }

    /// Sends a callback, or only a part of it, and closes the connection without waiting for an
    /// answer.
    async fn send_and_disconnect(&self, replica: &Replica, rng: &mut Rng) {
        let callback = self.create_callback(rng);
        let body = self.ledger.record_sending(&callback);
        let process = replica.process();
        let address = process
            .webhook
            .strip_prefix("http://")
            .unwrap()
            .strip_suffix("/webhook")
            .unwrap();
        let (length, signature) = (body.len(), sign(APP_SECRET, &body));
        let head = format!(
            "POST /webhook HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\
             {SIGNATURE_HEADER}: {signature}\r\n\r\n"
        );
        let sent_length = if rng.bool() {
            length
        } else {
            rng.usize(..length)
        };
        if let Ok(mut connection) = TcpStream::connect(address).await {
            let _ = connection
                .write_all(&[head.as_bytes(), &body[..sent_length]].concat())
                .await;
            sleep(Duration::from_millis(rng.u64(..30))).await;
        }
        self.ledger.record_outcome(&callback, Outcome::Unanswered);
    }
}
