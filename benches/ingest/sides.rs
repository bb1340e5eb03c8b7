//! One side of a comparison: a database, the processes on it, and the load on them.

use std::error::Error;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockwatch::embedded::Embedded;
use lockwatch::store::Database;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::time::Instant;

use crate::load::Load;
use crate::peers::Process;
use crate::serve::Serve;
use crate::{Setup, What, median};

/// Failures that Postgres itself inserts in one statement.
const SQL_BATCH: u64 = 1000;

/// A side that is ready to work.
pub struct Side {
    worker: Worker,
    database: String,
    pids: Vec<u32>,
    rows_each: u64,
    speeds: Vec<f64>,
    refused: u64,
    done: u64,
    /// Of our processes, and of this database's backends.
    cpu: [Duration; 2],
    _processes: (Vec<Serve>, Option<Process>),
}

enum Worker {
    Load(Load),
    Sql { db: PgConnection, next: u64 },
}

impl Side {
    pub async fn start(postgres: &Embedded, setup: Setup) -> Result<Self, Box<dyn Error>> {
        let Setup {
            what,
            kind,
            connections,
        } = setup;
        let url = create_database(postgres).await?;
        let database = url
            .parse::<PgConnectOptions>()?
            .get_database()
            .unwrap_or_default()
            .to_owned();
        Database::parse(&url)?.migrate().await?;
        let mut db = PgConnection::connect(&url).await?;
        let (mut serves, mut peer) = (Vec::new(), None);
        match what {
            What::Serve {
                processes,
                capture,
                rows_before,
            } => {
                fill(&mut db, rows_before).await?;
                for _ in 0..processes {
                    serves.push(Serve::start(&url, &[("LOCKWATCH_CAPTURE", capture)])?);
                }
            }
            What::Peer(kind) => {
                // The same columns, indexes and unique keys.
                sqlx::query("create table plain_failures (like failed_deliveries including all)")
                    .execute(&mut db)
                    .await?;
                peer = Some(Process::start(kind, &url)?);
            }
            What::Sql => fill(&mut db, 1).await?,
        }
        let pids = serves
            .iter()
            .map(Serve::pid)
            .chain(peer.as_ref().map(Process::pid))
            .collect();
        let addresses: Vec<&str> = serves
            .iter()
            .map(|serve| serve.webhook.as_str())
            .chain(peer.as_ref().map(|p| p.address.as_str()))
            .collect();
        let worker = match what {
            What::Sql => Worker::Sql { db, next: 1 },
            What::Serve { .. } | What::Peer(_) => {
                Worker::Load(Load::connect(&addresses, connections, kind).await?)
            }
        };
        let rows_each = kind.rows().max(1);
        let (speeds, cpu) = (Vec::new(), [Duration::ZERO; 2]);
        Ok(Self {
            worker,
            database,
            pids,
            rows_each,
            speeds,
            refused: 0,
            done: 0,
            cpu,
            _processes: (serves, peer),
        })
    }

    /// Works for a while; callbacks, or rows where there are many in one, per second.
    pub async fn turn(&mut self, time: Duration) -> Result<f64, Box<dyn Error>> {
        if let Worker::Load(load) = &mut self.worker {
            load.prepare(usize::try_from(30_000 / self.rows_each)?);
        }
        let before = self.cpu_time();
        let (rows, elapsed) = match &mut self.worker {
            Worker::Load(load) => {
                let turn = load.turn(time).await?;
                self.refused += turn.refused;
                (turn.acknowledged * self.rows_each, turn.elapsed)
            }
            Worker::Sql { db, next } => insert_for(db, next, time).await?,
        };
        let after = self.cpu_time();
        for (sum, (before, after)) in self.cpu.iter_mut().zip(before.into_iter().zip(after)) {
            *sum += after.saturating_sub(before);
        }
        self.done += rows;
        let speed = rows as f64 / elapsed.as_secs_f64();
        self.speeds.push(speed);
        Ok(speed)
    }

    /// Forgets what was measured so far.
    pub fn forget(&mut self) {
        self.speeds.clear();
        (self.refused, self.done, self.cpu) = (0, 0, [Duration::ZERO; 2]);
        if let Worker::Load(load) = &mut self.worker {
            load.latencies.reset();
        }
    }

    pub fn median(&mut self) -> f64 {
        median(&mut self.speeds)
    }

    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Milliseconds.
    pub fn p99(&self) -> f64 {
        match &self.worker {
            Worker::Load(load) => load.latencies.value_at_quantile(0.99) as f64 / 1000.0,
            Worker::Sql { .. } => f64::NAN,
        }
    }

    /// Microseconds of server + Postgres for each row or callback.
    pub fn cpu(&self) -> String {
        let [server, postgres] = self
            .cpu
            .map(|time| time.as_micros() as f64 / self.done.max(1) as f64);
        format!("{server:.0} + {postgres:.0}")
    }

    /// What our processes and this database's backends have used so far.
    fn cpu_time(&self) -> [Duration; 2] {
        let backends = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
                let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
                (title.starts_with("postgres: ") && title.contains(&format!(" {} ", self.database)))
                    .then_some(pid)
            });
        let time = |ticks: u64| Duration::from_millis(ticks * 10);
        [
            time(self.pids.iter().copied().filter_map(ticks).sum()),
            time(backends.filter_map(ticks).sum()),
        ]
    }
}

/// User and system time of a process in hundredths of a second.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// A new database; its URL.
pub async fn create_database(postgres: &Embedded) -> Result<String, Box<dyn Error>> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("bench_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let options: PgConnectOptions = postgres.url().parse()?;
    let mut admin = PgConnection::connect_with(&options).await?;
    sqlx::query(AssertSqlSafe(format!("create database {name}")))
        .execute(&mut admin)
        .await?;
    admin.close().await?;
    Ok(options.database(&name).to_url_lossy().to_string())
}

const INSERT: &str = "
    insert into failed_deliveries (incident_id, waba_id, phone_number_id, message_id, recipient_id, failed_at, received_at,
                                   error_code, error_title, error_message, error_details, digest)
    select 1, '102290129340000', '106540352242922', 'wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI' || lpad(n::text, 18, '0') || 'AA==',
           '16505551234', now(), now(), 131031, 'Business Account locked', 'Business Account locked',
           'Business account has been locked.', sha256(n::text::bytea)
      from generate_series($1::bigint, $2::bigint) n";

/// An incident with so many failures.
async fn fill(db: &mut PgConnection, rows: u64) -> Result<(), Box<dyn Error>> {
    if rows > 0 {
        sqlx::raw_sql(
            "insert into accounts values ('102290129340000');
             insert into incidents (waba_id, opened_at, last_failure_at) values ('102290129340000', now(), now())",
        )
        .execute(&mut *db)
        .await?;
    }
    for first in (0..rows).step_by(100_000) {
        let last = rows.min(first + 100_000) - 1;
        sqlx::query(INSERT)
            .bind(i64::try_from(first)?)
            .bind(i64::try_from(last)?)
            .execute(&mut *db)
            .await?;
    }
    if rows > 1 {
        sqlx::raw_sql("vacuum analyze").execute(&mut *db).await?;
        sqlx::raw_sql("checkpoint").execute(db).await?;
    }
    Ok(())
}

async fn insert_for(
    db: &mut PgConnection,
    next: &mut u64,
    time: Duration,
) -> Result<(u64, Duration), Box<dyn Error>> {
    let (started, mut rows) = (Instant::now(), 0);
    while started.elapsed() < time {
        sqlx::query(INSERT)
            .bind(i64::try_from(*next)?)
            .bind(i64::try_from(*next + SQL_BATCH - 1)?)
            .execute(&mut *db)
            .await?;
        *next += SQL_BATCH;
        rows += SQL_BATCH;
    }
    Ok((rows, started.elapsed()))
}
