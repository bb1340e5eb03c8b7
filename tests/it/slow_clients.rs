//! Slow-client attacks on a real process, by connections that are opened and not used. Meanwhile
//! honest senders, on kept connections and on new ones, get 200 for every lockout, and 99 % of the
//! answers come within [`P99_LIMIT`]. Afterwards the process has released everything that the
//! attack took.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use reqwest::{Client, StatusCode};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::{APP_SECRET, client, eventually, one_failure, settle};

/// The time within which 99 % of the honest callbacks must be answered.
const P99_LIMIT: Duration = Duration::from_millis(250);
const SENDERS: usize = 8;
/// The interval between two callbacks of one sender.
const SEND_INTERVAL: Duration = Duration::from_millis(40);
const MEASURE_WINDOW: Duration = Duration::from_secs(11);
/// The number of measurements, of which one must be in time: the machine may be busy with other
/// things.
const MEASURE_ATTEMPTS: usize = 3;
/// Enough connections to take every slot of a listener, and some more.
const CONNECTIONS: usize = 10_500;
/// The descriptors that a process needs besides its connections.
const SPARE_DESCRIPTORS: usize = 700;

const HEALTH_REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

/// The behaviour of one hostile connection, until it is closed.
#[derive(Debug, Clone, Copy)]
enum Attack {
    /// Opens the connection and sends nothing.
    Silence,
    /// Sends one good request, and then nothing.
    Idle,
    /// Sends a header, one byte a second.
    SlowHeader,
    /// Sends a body with a well-formed signature, one byte a second.
    SlowBody,
    /// Sends a body of nearly the maximum size, and never its last byte.
    StalledBody,
    /// Sends requests as fast as possible, and never reads an answer.
    NeverRead,
}

impl Attack {
    async fn run(self, address: SocketAddr) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!(
            "POST /webhook HTTP/1.1\r\nhost: x\r\n{SIGNATURE_HEADER}: {}\r\n",
            sign("a guess", b"")
        );
        match self {
            Self::Silence => read_until_closed(stream).await,
            Self::Idle => {
                stream.write_all(HEALTH_REQUEST).await?;
                read_until_closed(stream).await
            }
            Self::SlowHeader => trickle(stream, head).await,
            Self::SlowBody => trickle(stream, head + "content-length: 1000\r\n\r\n").await,
            Self::StalledBody => {
                stream
                    .write_all((head + "content-length: 4194304\r\n\r\n").as_bytes())
                    .await?;
                stream.write_all(&vec![b' '; 4_194_303]).await?;
                read_until_closed(stream).await
            }
            Self::NeverRead => loop {
                stream.write_all(HEALTH_REQUEST).await?;
            },
        }
    }
}

async fn read_until_closed(mut stream: TcpStream) -> std::io::Result<()> {
    while stream.read(&mut [0; 512]).await? > 0 {}
    Ok(())
}

/// Sends the start at once and then one byte a second, until the server closes the connection.
async fn trickle(stream: TcpStream, start: String) -> std::io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let send = async {
        write.write_all(start.as_bytes()).await?;
        loop {
            sleep(Duration::from_secs(1)).await;
            write.write_all(b"x").await?;
        }
    };
    let closed = async {
        while read.read(&mut [0; 512]).await? > 0 {}
        Ok(())
    };
    tokio::select! {
        result = send => result,
        result = closed => result,
    }
}

/// A real process under attack.
struct AttackedServer {
    serve: Serve,
    address: SocketAddr,
    database: TestDatabase,
    /// The number of its descriptors before the attack.
    idle_descriptors: usize,
    /// [`P99_LIMIT`], or more if the machine is too busy for that even without an attack.
    p99_limit: Duration,
    sent: AtomicU32,
}

impl AttackedServer {
    async fn start() -> Self {
        let database = TestDatabase::create().await;
        let serve = Serve::on_database(&database.url, &[]);
        serve.wait_for_log("the database is ready");
        let address = serve
            .webhook
            .trim_start_matches("http://")
            .trim_end_matches("/webhook")
            .parse()
            .unwrap();
        let server = Self {
            serve,
            address,
            database,
            idle_descriptors: 0,
            p99_limit: P99_LIMIT,
            sent: AtomicU32::new(0),
        };
        server.send(&client()).await;
        let idle_descriptors = server.descriptors();
        let times = server.measure_senders(Duration::from_secs(3)).await;
        Self {
            idle_descriptors,
            p99_limit: P99_LIMIT.max(2 * percentile(&times, 99)),
            ..server
        }
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.serve.child.id()))
            .unwrap()
            .count()
    }

    /// Keeps this number of hostile connections open while honest senders work. A connection is
    /// replaced a second after it is closed.
    async fn withstand(&self, attack: Attack, connections: usize) {
        let attackers = join_all((0..connections).map(async |n| {
            // The start is spread over a second, so that not only the accept queue is attacked.
            let micros = 1_000_000 * n as u64 / connections as u64;
            sleep(Duration::from_micros(micros)).await;
            loop {
                let _ = attack.run(self.address).await;
                sleep(Duration::from_secs(1)).await;
            }
        }));
        let measurement = async {
            sleep(Duration::from_secs(1)).await;
            self.assert_responsive(&format!("{attack:?} × {connections}"))
                .await;
        };
        tokio::select! {
            _ = attackers => unreachable!("the attack never ends"),
            () = measurement => {}
        }
    }

    /// Sends lockouts for a while. Each must get 200 and be recorded, and 99 % of the answers must
    /// be in time, in one of [`MEASURE_ATTEMPTS`].
    async fn assert_responsive(&self, situation: &str) {
        for attempt in 1..=MEASURE_ATTEMPTS {
            let times = self.measure_senders(MEASURE_WINDOW).await;
            let [median, p99, worst] = [50, 99, 100].map(|percent| percentile(&times, percent));
            println!(
                "{situation}: {} callbacks, median {median:?}, p99 {p99:?}, worst {worst:?}",
                times.len()
            );
            let sent = i64::from(self.sent.load(Ordering::Relaxed));
            assert_eq!(self.count_recorded().await, sent);
            if p99 < self.p99_limit {
                return;
            }
            println!(
                "!! MISSED: window {attempt} of {MEASURE_ATTEMPTS}, {situation}: p99 {p99:?}, \
                 the limit is {:?}",
                self.p99_limit
            );
        }
        panic!("{situation}: honest callbacks take too long");
    }

    /// Sends callbacks, half on kept connections and half on new ones. Returns the time of each,
    /// sorted.
    async fn measure_senders(&self, time: Duration) -> Vec<Duration> {
        let end = Instant::now() + time;
        let senders = (0..SENDERS).map(|n| self.run_sender(n % 2, end));
        let mut times = join_all(senders).await.concat();
        times.sort();
        times
    }

    async fn run_sender(&self, kept_connections: usize, end: Instant) -> Vec<Duration> {
        let client = Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(kept_connections);
        let client = client.build().unwrap();
        let mut interval = interval(SEND_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut times = Vec::new();
        while Instant::now() < end {
            interval.tick().await;
            times.push(self.send(&client).await);
        }
        times
    }

    async fn send(&self, client: &Client) -> Duration {
        let n = self.sent.fetch_add(1, Ordering::Relaxed);
        let body = one_failure(&format!("wamid.{n}"));
        let request = client
            .post(&self.serve.webhook)
            .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
            .body(body);
        let started = Instant::now();
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        started.elapsed()
    }

    async fn count_recorded(&self) -> i64 {
        let db = self.database.database().pool();
        settle(&db).await;
        sqlx::query_scalar("select count(*) from failed_deliveries")
            .fetch_one(&db)
            .await
            .unwrap()
    }

    /// Waits until the descriptors of the attack are closed.
    async fn wait_until_released(&self) {
        eventually("the descriptors of the attack are closed", async || {
            self.descriptors() <= self.idle_descriptors + SENDERS
        })
        .await;
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Raises our own limit of descriptors, so that [`CONNECTIONS`] can be opened. A process that
/// starts later inherits the limit.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let maximum = limit
        .maximum
        .map_or(usize::MAX, |maximum| usize::try_from(maximum).unwrap());
    assert!(
        maximum > CONNECTIONS + SPARE_DESCRIPTORS,
        "{CONNECTIONS} connections need more than {maximum} descriptors (ulimit -n)"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while; .ci/run runs it"]
async fn silent_connections_do_not_delay_callbacks() {
    raise_descriptor_limit();
    let server = AttackedServer::start().await;
    server.withstand(Attack::Silence, CONNECTIONS).await;
    server.wait_until_released().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while; .ci/run runs it"]
async fn idle_connections_do_not_delay_callbacks() {
    raise_descriptor_limit();
    let server = AttackedServer::start().await;
    server.withstand(Attack::Idle, CONNECTIONS).await;
    server.wait_until_released().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while; .ci/run runs it"]
async fn slow_requests_do_not_delay_callbacks() {
    let server = AttackedServer::start().await;
    server.withstand(Attack::SlowHeader, 1000).await;
    server.withstand(Attack::SlowBody, 1000).await;
    server.wait_until_released().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while; .ci/run runs it"]
async fn stalled_bodies_do_not_delay_callbacks() {
    // Enough to fill the memory for bodies.
    let server = AttackedServer::start().await;
    server.withstand(Attack::StalledBody, 80).await;
    server.wait_until_released().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while; .ci/run runs it"]
async fn unread_answers_do_not_delay_callbacks() {
    let server = AttackedServer::start().await;
    server.withstand(Attack::NeverRead, 5).await;
    server.wait_until_released().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while; .ci/run runs it"]
async fn too_few_descriptors_do_not_delay_callbacks() {
    let server = AttackedServer::start().await;
    // The limit is lowered while the process runs and relies on a higher one, so that `accept`
    // fails.
    let pid = Pid::from_child(&server.serve.child);
    let normal = getrlimit(Resource::Nofile);
    let lowered = Rlimit {
        current: Some(u64::try_from(server.idle_descriptors).unwrap() + 100),
        ..normal
    };
    prlimit(Some(pid), Resource::Nofile, lowered).unwrap();
    server.withstand(Attack::Silence, 200).await;
    prlimit(Some(pid), Resource::Nofile, normal).unwrap();
    server.assert_responsive("after the attack").await;
    server.wait_until_released().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while; .ci/run runs it"]
async fn unused_connections_are_closed() {
    let server = AttackedServer::start().await;
    let mut connections = JoinSet::new();
    let attacks = [
        Attack::Silence,
        Attack::Idle,
        Attack::SlowHeader,
        Attack::SlowBody,
    ]
    .repeat(20);
    for attack in attacks.into_iter().chain([Attack::NeverRead; 2]) {
        let address = server.address;
        connections.spawn(async move { attack.run(address).await });
    }
    let all_closed = async { while connections.join_next().await.is_some() {} };
    timeout(Duration::from_secs(90), all_closed)
        .await
        .expect("every connection must be closed");
    server.wait_until_released().await;
}
