//! A contender at work: a database, the processes on it, and the load on them.

use std::error::Error;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockwatch::embedded::EmbeddedPostgres;
use lockwatch::store::Database;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::time::{Instant, sleep};

use crate::load::Load;
use crate::plain_servers::PlainServerProcess;
use crate::serve::Serve;
use crate::{Contender, Setup, median};

/// The failures that Postgres itself inserts in one statement.
const SQL_BATCH_ROWS: u64 = 1000;

/// A turn, by what counts as done.
#[derive(Debug, Clone, Copy)]
pub enum Turn {
    /// Counts what is in its tables: the turn ends when the inbox is empty.
    Stored(Duration),
    /// Counts what is acknowledged. The rest of the inbox is processed after the turn.
    Acknowledged(Duration),
}

/// A contender that is ready to work.
pub struct RunningContender {
    work: Work,
    /// A session to look at the inbox.
    watcher: PgConnection,
    wal: f64,
    database: String,
    processes: Processes,
    rows_per_callback: u64,
    speeds: Vec<f64>,
    refused: u64,
    done: u64,
    cpu: CpuTime,
}

/// The work of a turn.
enum Work {
    /// Requests to servers.
    Load(Load),
    /// Statements in one session.
    Sql { db: PgConnection, next: u64 },
}

/// The CPU time of the servers, and of this database's backends.
#[derive(Debug, Clone, Copy, Default)]
struct CpuTime {
    servers: Duration,
    postgres: Duration,
}

/// The processes of the servers.
#[derive(Default)]
struct Processes {
    serves: Vec<Serve>,
    plain: Option<PlainServerProcess>,
}

impl RunningContender {
    pub async fn start(postgres: &EmbeddedPostgres, setup: Setup) -> Result<Self, Box<dyn Error>> {
        let url = create_database(postgres).await?;
        let database = url
            .parse::<PgConnectOptions>()?
            .get_database()
            .unwrap_or_default()
            .to_owned();
        Database::parse(&url)?.migrate().await?;
        let mut db = PgConnection::connect(&url).await?;
        let watcher = PgConnection::connect(&url).await?;
        let processes = Processes::start(setup.contender, &mut db, &url).await?;
        let work = match setup.contender {
            Contender::Postgres => Work::Sql { db, next: 1 },
            Contender::Serve { .. } | Contender::Plain(_) => {
                let addresses = processes.addresses();
                Work::Load(Load::connect(&addresses, setup.connections, setup.payload).await?)
            }
        };
        Ok(Self {
            work,
            watcher,
            wal: 0.0,
            database,
            processes,
            rows_per_callback: setup.payload.failures().max(1),
            speeds: Vec::new(),
            refused: 0,
            done: 0,
            cpu: CpuTime::default(),
        })
    }

    /// Works for a turn. Returns callbacks per second, or rows where a callback has many.
    pub async fn run_turn(&mut self, turn: Turn) -> Result<f64, Box<dyn Error>> {
        let (Turn::Stored(duration) | Turn::Acknowledged(duration)) = turn;
        if let Work::Load(load) = &mut self.work {
            let per_second = 60_000 * duration.as_millis() / 1000;
            load.prepare(usize::try_from(per_second)? / usize::try_from(self.rows_per_callback)?);
        }
        let (before, wal) = (self.cpu_time(), self.wal_position().await?);
        let started = Instant::now();
        let (rows, elapsed) = match &mut self.work {
            Work::Load(load) => {
                let outcome = load.run_turn(duration).await?;
                self.refused += outcome.refused;
                (
                    outcome.acknowledged * self.rows_per_callback,
                    outcome.elapsed,
                )
            }
            Work::Sql { db, next } => insert_for(db, next, duration).await?,
        };
        self.wait_for_empty_inbox().await?;
        let elapsed = match turn {
            Turn::Stored(_) => started.elapsed(),
            Turn::Acknowledged(_) => elapsed,
        };
        let after = self.cpu_time();
        self.cpu.servers += after.servers.saturating_sub(before.servers);
        self.cpu.postgres += after.postgres.saturating_sub(before.postgres);
        self.wal += self.wal_position().await? - wal;
        self.done += rows;
        let speed = rows as f64 / elapsed.as_secs_f64();
        self.speeds.push(speed);
        Ok(speed)
    }

    async fn wait_for_empty_inbox(&mut self) -> Result<(), Box<dyn Error>> {
        let is_empty = "select not exists (select from inbox)";
        while !sqlx::query_scalar::<_, bool>(is_empty)
            .fetch_one(&mut self.watcher)
            .await?
        {
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// The bytes of WAL that the whole server has written. Only one contender works at a time.
    async fn wal_position(&mut self) -> Result<f64, Box<dyn Error>> {
        let position = "select (pg_current_wal_insert_lsn() - '0/0')::float8";
        Ok(sqlx::query_scalar(position)
            .fetch_one(&mut self.watcher)
            .await?)
    }

    /// Forgets all measurements so far.
    pub fn reset(&mut self) {
        self.speeds.clear();
        self.refused = 0;
        self.done = 0;
        self.wal = 0.0;
        self.cpu = CpuTime::default();
        if let Work::Load(load) = &mut self.work {
            load.reset_latencies();
        }
    }

    pub fn median(&mut self) -> f64 {
        median(&mut self.speeds)
    }

    pub fn refused(&self) -> u64 {
        self.refused
    }

    pub fn p99_ms(&self) -> f64 {
        match &self.work {
            Work::Load(load) => load.p99_ms(),
            Work::Sql { .. } => f64::NAN,
        }
    }

    /// Microseconds of servers + Postgres for each row or callback.
    pub fn cpu(&self) -> String {
        let [servers, postgres] = [self.cpu.servers, self.cpu.postgres]
            .map(|time| time.as_micros() as f64 / self.done.max(1) as f64);
        format!("{servers:.0} + {postgres:.0}")
    }

    /// The same, added up.
    pub fn cpu_per_row(&self) -> f64 {
        (self.cpu.servers + self.cpu.postgres).as_micros() as f64 / self.done.max(1) as f64
    }

    pub fn wal_per_row(&self) -> f64 {
        self.wal / self.done.max(1) as f64
    }

    /// The CPU time used so far.
    fn cpu_time(&self) -> CpuTime {
        CpuTime {
            servers: sum_cpu_time(self.processes.pids()),
            postgres: sum_cpu_time(backend_pids(&self.database)),
        }
    }
}

impl Processes {
    /// Fills the database as the contender needs it, and starts its servers.
    async fn start(
        contender: Contender,
        db: &mut PgConnection,
        url: &str,
    ) -> Result<Self, Box<dyn Error>> {
        let mut started = Self::default();
        match contender {
            Contender::Serve {
                processes,
                rows_before,
            } => {
                fill(db, rows_before).await?;
                for _ in 0..processes {
                    let serve = Serve::start(url, &[])?;
                    started.serves.push(serve);
                }
            }
            Contender::Plain(server) => {
                // The same columns, indexes and unique keys as ours.
                sqlx::query("create table plain_failures (like failed_deliveries including all)")
                    .execute(db)
                    .await?;
                started.plain = Some(PlainServerProcess::start(server, url)?);
            }
            Contender::Postgres => fill(db, 1).await?,
        }
        Ok(started)
    }

    fn addresses(&self) -> Vec<&str> {
        let serves = self.serves.iter().map(|serve| serve.webhook.as_str());
        let plain = self.plain.as_ref().map(|plain| plain.address.as_str());
        serves.chain(plain).collect()
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        let plain = self.plain.as_ref().map(PlainServerProcess::pid);
        self.serves.iter().map(Serve::pid).chain(plain)
    }
}

/// Returns the processes of Postgres that work on a database.
fn backend_pids(database: &str) -> impl Iterator<Item = u32> {
    let in_title = format!(" {database} ");
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(move |entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            (title.starts_with("postgres: ") && title.contains(&in_title)).then_some(pid)
        })
}

fn sum_cpu_time(pids: impl Iterator<Item = u32>) -> Duration {
    let ticks: u64 = pids.filter_map(cpu_ticks).sum();
    Duration::from_millis(ticks * 10)
}

/// The user and system time of a process in hundredths of a second.
fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Creates a database and returns its URL.
pub async fn create_database(postgres: &EmbeddedPostgres) -> Result<String, Box<dyn Error>> {
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

/// The rows are of the accounts of the load, in turn, and of their incidents 1 to 20.
const INSERT: &str = "
    insert into failed_deliveries (incident_id, waba_id, phone_number_id, message_id, recipient_id,
                                   failed_at, received_at, error_code, error_title, error_message,
                                   error_details, digest, capture_id)
    select 1 + n % 20, '10229012934' || lpad((n % 20)::text, 4, '0'), '106540352242922',
           'wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI' || lpad(n::text, 18, '0') || 'AA==',
           '16505551234', now(), now(), 131031, 'Business Account locked',
           'Business Account locked', 'Business account has been locked.', sha256(n::text::bytea), n
      from generate_series($1::bigint, $2::bigint) n";

/// Inserts the incidents of the load's accounts with this number of failures, or nothing for 0.
async fn fill(db: &mut PgConnection, rows: u64) -> Result<(), Box<dyn Error>> {
    if rows > 0 {
        sqlx::raw_sql(
            "insert into accounts
             select '10229012934' || lpad(n::text, 4, '0') from generate_series(0, 19) n;
             insert into incidents (waba_id, opened_at, last_failure_at, last_evidence_at)
             select waba_id, now(), now(), now() from accounts order by waba_id",
        )
        .execute(&mut *db)
        .await?;
    }
    for first in (0..rows).step_by(100_000) {
        let last = rows.min(first + 100_000) - 1;
        insert_range(db, first, last).await?;
    }
    if rows > 1 {
        sqlx::raw_sql("vacuum analyze").execute(&mut *db).await?;
        sqlx::raw_sql("checkpoint").execute(db).await?;
    }
    Ok(())
}

/// Inserts batches until the time is over. Returns the number of rows and the time it took.
async fn insert_for(
    db: &mut PgConnection,
    next: &mut u64,
    duration: Duration,
) -> Result<(u64, Duration), Box<dyn Error>> {
    let (started, mut rows) = (Instant::now(), 0);
    while started.elapsed() < duration {
        insert_range(db, *next, *next + SQL_BATCH_ROWS - 1).await?;
        *next += SQL_BATCH_ROWS;
        rows += SQL_BATCH_ROWS;
    }
    Ok((rows, started.elapsed()))
}

async fn insert_range(db: &mut PgConnection, first: u64, last: u64) -> Result<(), Box<dyn Error>> {
    sqlx::query(INSERT)
        .bind(i64::try_from(first)?)
        .bind(i64::try_from(last)?)
        .execute(db)
        .await?;
    Ok(())
}
