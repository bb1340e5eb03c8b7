//! What keeping callbacks costs: acknowledged callbacks per second with captures and without.
//!
//! `cargo bench --bench ingest`. Server, Postgres and load share this machine, so figures are ratios taken
//! in one run: short rounds of either kind take turns, each on a database of its own.

use std::error::Error;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockwatch::embedded::Embedded;
use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::meta::signature::{HEADER, sign};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const APP_SECRET: &str = "an-app-secret-of-the-bench";
/// Short turns, many of them: the machine has other things to do now and then, and both sides get their
/// share of that.
const TURNS: usize = 30;
const TURN: Duration = Duration::from_millis(500);
const WARM_UP: usize = 3;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let postgres = Embedded::start_temporary(None, true, &CancellationToken::new())?;
    println!("PostgreSQL {}, fsync on; medians of {TURNS} turns of {} ms each\n", postgres.version(), TURN.as_millis());
    println!("{:<24} {:>11} {:>9} {:>9} {:>7}", "acknowledged callbacks", "connections", "off /s", "on /s", "on/off");
    for (connections, failures, what) in [(64, 1, "one failure"), (256, 1, "one failure"), (64, 100, "100 failures")] {
        let mut off = Side::start(&postgres, "off", connections, failures).await?;
        let mut on = Side::start(&postgres, "lockouts", connections, failures).await?;
        let (mut speeds_off, mut speeds_on, mut ratios) = (vec![], vec![], vec![]);
        for turn in 0..WARM_UP + TURNS {
            let (off, on) = (off.turn(failures).await?, on.turn(failures).await?);
            if turn >= WARM_UP {
                speeds_off.push(off);
                speeds_on.push(on);
                ratios.push(on / off);
            }
        }
        let [off, on, ratio] = [speeds_off, speeds_on, ratios].map(median);
        println!("{what:<24} {connections:>11} {off:>9.0} {on:>9.0} {ratio:>7.2}");
    }
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

async fn create_database(postgres: &Embedded, name: &str) -> sqlx::Result<String> {
    let options: sqlx::postgres::PgConnectOptions = postgres.url().parse()?;
    let mut admin = PgConnection::connect_with(&options).await?;
    sqlx::query(AssertSqlSafe(format!("create database bench_{name}"))).execute(&mut admin).await?;
    admin.close().await?;
    Ok(options.database(&format!("bench_{name}")).to_url_lossy().to_string())
}

/// A server and its clients.
struct Side {
    _server: Server,
    streams: Vec<TcpStream>,
}

impl Side {
    async fn start(
        postgres: &Embedded,
        capture: &str,
        connections: usize,
        failures: u64,
    ) -> Result<Self, Box<dyn Error>> {
        let database = create_database(postgres, &format!("{capture}_{connections}_{failures}")).await?;
        let server = Server::start(&database, capture)?;
        let mut streams = Vec::with_capacity(connections);
        for _ in 0..connections {
            let stream = TcpStream::connect(&server.address).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        Ok(Self { _server: server, streams })
    }

    /// Callbacks acknowledged per second in one turn.
    async fn turn(&mut self, failures: u64) -> io::Result<f64> {
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for mut stream in self.streams.drain(..) {
            clients.spawn(async move {
                let mut acknowledged = 0_u32;
                while started.elapsed() < TURN {
                    stream.write_all(&request(failures)).await?;
                    acknowledged += u32::from(read_status(&mut stream).await? == 200);
                }
                io::Result::Ok((stream, acknowledged))
            });
        }
        let mut acknowledged = 0;
        while let Some(client) = clients.join_next().await {
            let (stream, more) = client??;
            self.streams.push(stream);
            acknowledged += more;
        }
        Ok(f64::from(acknowledged) / started.elapsed().as_secs_f64())
    }
}

/// A signed callback that nobody has sent before.
fn request(failures: u64) -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(failures, Ordering::Relaxed);
    let account = format!("10229012934{:04}", n / failures % 20);
    let mut callback = StatusCallback::new().at(OffsetDateTime::now_utc());
    for n in n..n + failures {
        callback = callback.failed(&account, "106540352242922", &message_id("16505551234", &format!("{n:018X}")));
    }
    let body = callback.into_body();
    let head = format!(
        "POST /webhook HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{HEADER}: {}\r\ncontent-length: {}\r\n\r\n",
        sign(APP_SECRET, &body),
        body.len()
    );
    [head.into_bytes(), body].concat()
}

/// The status of an answer, which is read to its end.
async fn read_status(stream: &mut TcpStream) -> io::Result<u16> {
    let mut answer = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return head
                    .split(' ')
                    .nth(1)
                    .and_then(|status| status.parse().ok())
                    .ok_or(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

/// A `serve` process.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(database: &str, capture: &str) -> io::Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lockwatch"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .env_remove("DATABASE_URL_FILE")
            .envs([
                ("DATABASE_URL", database),
                ("LOCKWATCH_CAPTURE", capture),
                ("META_APP_SECRET", APP_SECRET),
                ("META_VERIFY_TOKEN", "unused"),
            ])
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut address = String::new();
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("webhook http://") {
                address = rest.split('/').next().unwrap_or_default().to_owned();
            }
            if line.contains("the database is ready") {
                break;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, address })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
