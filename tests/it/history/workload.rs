//! What is sent, and how: as Meta sends it, as forgers do, and as networks break it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{HEADER, sign};
use reqwest::{Client, StatusCode};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::fleet::Replica;
use super::ledger::{Callback, Ledger, Outcome};
use super::people::People;
use super::world::World;
use crate::support::APP_SECRET;

const SENDERS: usize = 12;
/// Who gets no answer for so long, from a process that lives, has been forgotten.
const PATIENCE: Duration = Duration::from_secs(20);
/// Accounts that most is sent about, and that people look at most.
pub const HOT: usize = 3;
/// The most failures in a callback.
const LARGEST: usize = 1000;
/// The longest pause of a sender between two requests, in milliseconds.
const PAUSE_MILLIS: u64 = 100;

/// An account and its numbers.
#[derive(Debug, Clone)]
pub struct Account {
    pub waba_id: String,
    pub numbers: Vec<String>,
}

/// The hot ones come first. One of them has so many numbers that its look-ups of an hour are soon spent.
pub fn accounts() -> Vec<Account> {
    let account = |n: usize| {
        let numbers = match n {
            0 => 60,
            1..HOT => 6,
            _ => 2,
        };
        let numbers = (0..numbers)
            .map(|number| format!("1065{n:04}{number:04}"))
            .collect();
        Account {
            waba_id: format!("1022{n:04}"),
            numbers,
        }
    };
    (0..25).map(account).collect()
}

/// Sends for as long as it is told to, and keeps the books.
pub struct Workload<'w> {
    accounts: &'w [Account],
    fleet: &'w [Replica],
    ledger: &'w Ledger,
    client: Client,
    stop: AtomicBool,
}

impl<'w> Workload<'w> {
    pub fn of(
        World {
            accounts,
            fleet,
            ledger,
            ..
        }: &'w World,
    ) -> Self {
        let client = Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .pool_idle_timeout(Duration::from_secs(5));
        Self {
            accounts,
            fleet,
            ledger,
            client: client.build().unwrap(),
            stop: AtomicBool::new(false),
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Sends until told to stop.
    pub async fn run(&self, rng: &mut Rng) {
        let senders = join_all((0..SENDERS).map(|_| self.send(rng.fork())));
        let people = People {
            client: &self.client,
            accounts: self.accounts,
            fleet: self.fleet,
            ledger: self.ledger,
        };
        tokio::join!(senders, people.visit(rng.fork(), &self.stop));
    }

    async fn send(&self, mut rng: Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            let replica = rng.choice(self.fleet).unwrap();
            match rng.u8(..100) {
                0..6 => self.forge(replica, &mut rng).await,
                6..16 => self.send_another(replica, &mut rng).await,
                16..22 => self.hang_up(replica, &mut rng).await,
                _ => {
                    let callback = self.callback(&mut rng);
                    self.post(replica, &callback).await;
                }
            }
            sleep(Duration::from_millis(rng.u64(..PAUSE_MILLIS))).await;
        }
    }

    /// Mostly a new one.
    fn callback(&self, rng: &mut Rng) -> Callback {
        match rng.u8(..10) {
            0 => self.repeated(rng),
            1 => self.mixed(rng),
            2 => {
                let owed = self.ledger.book().owed(rng);
                owed.unwrap_or_else(|| self.new_callback(rng))
            }
            _ => self.new_callback(rng),
        }
    }

    /// Failures that were never sent before, of one account or of many.
    fn new_callback(&self, rng: &mut Rng) -> Callback {
        let size = match rng.u8(..100) {
            0..70 => 1,
            70..95 => rng.usize(2..=20),
            95..99 => rng.usize(20..=100),
            _ => rng.usize(100..=LARGEST),
        };
        let alone = match rng.u8(..10) {
            0..4 => rng.choice(&self.accounts[..HOT]),
            4..7 => rng.choice(self.accounts),
            _ => None,
        };
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
        let mut book = self.ledger.book();
        let failures = (0..size).map(|_| {
            let account = alone.unwrap_or_else(|| rng.choice(self.accounts).unwrap());
            let number = rng.choice(&account.numbers).unwrap();
            let ago = match rng.u8(..16) {
                // It comes late, perhaps after its incident is over.
                0..4 => rng.i64(0..90),
                // Meta's clock is ahead of ours.
                4 => rng.i64(-5..0),
                _ => rng.i64(0..3),
            };
            book.add(&account.waba_id, number, now - time::Duration::seconds(ago))
        });
        failures.collect()
    }

    /// A callback of before, as it was.
    fn repeated(&self, rng: &mut Rng) -> Callback {
        let earlier = self.ledger.book().earlier(rng);
        earlier.unwrap_or_else(|| self.new_callback(rng))
    }

    /// Failures of before and new ones, in any order.
    fn mixed(&self, rng: &mut Rng) -> Callback {
        let (new, before, more) = (
            self.new_callback(rng),
            self.repeated(rng),
            self.repeated(rng),
        );
        let mut failures = [&new[..], &before[..], &more[..]].concat();
        failures.truncate(LARGEST);
        rng.shuffle(&mut failures);
        failures.into()
    }

    /// Sends a callback and notes the answer.
    pub async fn post(&self, replica: &Replica, callback: &Callback) -> Outcome {
        let body = self.ledger.sending(callback);
        let signature = sign(APP_SECRET, &body);
        let outcome = match self.ask(replica, body, Some(signature)).await {
            Some(StatusCode::OK) => Outcome::Acknowledged,
            Some(StatusCode::SERVICE_UNAVAILABLE) => Outcome::Refused,
            None => Outcome::Unanswered,
            Some(other) => panic!("a callback is answered with {other}"),
        };
        self.ledger.answered(callback, outcome);
        outcome
    }

    async fn ask(
        &self,
        replica: &Replica,
        body: Vec<u8>,
        signature: Option<String>,
    ) -> Option<StatusCode> {
        let life = replica.life();
        let mut request = self.client.post(&life.webhook).body(body);
        if let Some(signature) = signature {
            request = request.header(HEADER, signature);
        }
        Some(replica.answer(&life, request).await?.status())
    }

    /// What is not Meta's leaves nothing, whatever state the database is in.
    async fn forge(&self, replica: &Replica, rng: &mut Rng) {
        let account = rng.choice(self.accounts).unwrap();
        let body = StatusCallback::new()
            .failed(&account.waba_id, &account.numbers[0], "wamid.forged")
            .into_body();
        let another = sign("another-secret-than-ours", &body);
        let answer = self.ask(replica, body, rng.bool().then_some(another)).await;
        assert!(
            matches!(answer, None | Some(StatusCode::UNAUTHORIZED)),
            "a forgery is answered with {answer:?}"
        );
        self.ledger.book().count(Outcome::Forged);
    }

    /// What is not about lockouts is none of the database's business.
    async fn send_another(&self, replica: &Replica, rng: &mut Rng) {
        let account = rng.choice(self.accounts).unwrap();
        let body = StatusCallback::new()
            .delivered(&account.waba_id, &account.numbers[0], "wamid.delivered")
            .into_body();
        let signature = sign(APP_SECRET, &body);
        let answer = self.ask(replica, body, Some(signature)).await;
        assert!(
            matches!(answer, None | Some(StatusCode::OK)),
            "a delivery is answered with {answer:?}"
        );
        self.ledger.book().count(Outcome::NotAboutLockouts);
    }

    /// Sends a callback, or only a part of it, and is gone.
    async fn hang_up(&self, replica: &Replica, rng: &mut Rng) {
        let callback = self.new_callback(rng);
        let body = self.ledger.sending(&callback);
        let life = replica.life();
        let address = life
            .webhook
            .strip_prefix("http://")
            .unwrap()
            .strip_suffix("/webhook")
            .unwrap();
        let (length, signature) = (body.len(), sign(APP_SECRET, &body));
        let head = format!(
            "POST /webhook HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n{HEADER}: {signature}\r\n\r\n"
        );
        let part = if rng.bool() {
            length
        } else {
            rng.usize(..length)
        };
        if let Ok(mut connection) = TcpStream::connect(address).await {
            let _ = connection
                .write_all(&[head.as_bytes(), &body[..part]].concat())
                .await;
            sleep(Duration::from_millis(rng.u64(..30))).await;
        }
        self.ledger.answered(&callback, Outcome::Unanswered);
    }

    /// Sends everything again that nobody was told to be recorded, until everybody is.
    pub async fn resend(&self) {
        let unacknowledged = self.ledger.book().unacknowledged();
        for callbacks in unacknowledged.chunks(SENDERS) {
            join_all(
                callbacks
                    .iter()
                    .enumerate()
                    .map(|(n, callback)| async move {
                        let replica = &self.fleet[n % self.fleet.len()];
                        let mut tries = 0;
                        while self.post(replica, callback).await != Outcome::Acknowledged {
                            tries += 1;
                            assert!(tries < 20, "a callback is refused in calm weather");
                            sleep(Duration::from_millis(500)).await;
                        }
                    }),
            )
            .await;
        }
    }
}
