//! What the admin pages cost after years: 10,000 incidents and 1,000,000 deliveries (`pages.sql`).
//!
//! `cargo bench --bench pages`, with `-- --plans` for whole plans. One client asks `serve` for one page after
//! the other, all on this machine; then Postgres tells how it found what is on them. Exits with 1 where a page
//! is slower or larger than promised.

#![allow(unreachable_pub, reason = "a bench is no library")]

#[path = "support/serve.rs"]
mod serve;

use std::error::Error;
use std::fmt::Write;
use std::io::{Read, Seek, SeekFrom};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lockwatch::embedded::Embedded;
use lockwatch::store::Database;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use serve::Serve;

/// What is promised of a list and of a single incident.
const SLOWEST: Duration = Duration::from_millis(50);
const LARGEST_PAGE: usize = 100_000;
/// Requests for each page, the first not counted.
const TIMES: usize = 100;
/// Nothing leaves while it is measured.
const FOREVER: [(&str, &str); 1] = [("LOCKWATCH_RETENTION_DAYS", "3650")];
/// A table of fewer rows may be read whole.
const SMALL_TABLE: f32 = 1000.0;

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let whole_plans = std::env::args().any(|argument| argument == "--plans");
    let postgres = Embedded::start_temporary(None, false, &CancellationToken::new())?;
    Database::parse(&postgres.url())?.migrate().await?;
    let mut db = postgres
        .url()
        .parse::<sqlx::postgres::PgConnectOptions>()?
        .connect()
        .await?;
    seed(&mut db).await?;
    let pages = pages(&mut db).await?;

    println!(
        "\n{:<46} {:>9} {:>9} {:>9} {:>8}",
        "page", "first ms", "median ms", "p99 ms", "kB"
    );
    let server = Serve::start(&postgres.url(), &FOREVER)?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut all_kept = true;
    for (name, path) in &pages {
        let figures = Figures::take(&client, &server, path).await?;
        let broken = figures.broken();
        println!("{name:<46} {figures}{}", broken.unwrap_or_default());
        all_kept &= broken.is_none();
    }
    drop(server);

    explain_everything(&mut db).await?;
    let large: Vec<(String, f32)> = sqlx::query_as(
        "select relname::text, reltuples from pg_class where relkind = 'r' and reltuples > $1",
    )
    .bind(SMALL_TABLE)
    .fetch_all(&mut db)
    .await?;
    db.close().await?;
    let server = Serve::start(&postgres.url(), &FOREVER)?;
    let mut log = std::fs::File::open(postgres.folder().join("postgres.log"))?;
    for (name, path) in &pages {
        log.seek(SeekFrom::End(0))?;
        client
            .get(server.admin_url(path))
            .send()
            .await?
            .error_for_status()?
            .bytes()
            .await?;
        let mut said = Vec::new();
        log.read_to_end(&mut said)?;
        println!("\n{name}");
        for plan in plans(&String::from_utf8_lossy(&said)) {
            print!(
                "{}",
                if whole_plans {
                    plan.clone()
                } else {
                    compact(&plan, &large)
                }
            );
        }
    }
    Ok(if all_kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn seed(db: &mut PgConnection) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    sqlx::raw_sql(include_str!("pages.sql"))
        .execute(&mut *db)
        .await?;
    sqlx::raw_sql("vacuum analyze").execute(&mut *db).await?;
    println!("Postgres with, after {} s:", started.elapsed().as_secs());
    for table in [
        "incidents",
        "affected_numbers",
        "failed_deliveries",
        "failures_by_minute",
        "failures_by_hour",
        "health_checks",
    ] {
        let sql =
            format!("select count(*), pg_total_relation_size('{table}') / 1000000 from {table}");
        let (rows, size): (i64, i64) = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(&mut *db)
            .await?;
        println!("{rows:>10} {table} ({size} MB)");
    }
    Ok(())
}

/// Every kind of page, with a name for each.
async fn pages(db: &mut PgConnection) -> sqlx::Result<Vec<(String, String)>> {
    let cursor = |list: char, id: i64| format!("{list}{id:016x}");
    let (large, waba_id): (i64, String) =
        sqlx::query_as("select id, waba_id from incidents order by failure_count desc limit 1")
            .fetch_one(&mut *db)
            .await?;
    let small: i64 =
        sqlx::query_scalar("select max(id) from incidents where resolved_at is null and id <> $1")
            .bind(large)
            .fetch_one(&mut *db)
            .await?;
    let resolved: i64 =
        sqlx::query_scalar("select max(id) from incidents where resolved_at is not null")
            .fetch_one(&mut *db)
            .await?;
    let old = format!(
        "select id from (select id from failed_deliveries where incident_id = {large} order by id limit 1000) d order by id desc limit 1"
    );
    let old: i64 = sqlx::query_scalar(AssertSqlSafe(old))
        .fetch_one(&mut *db)
        .await?;
    let old_check: i64 =
        sqlx::query_scalar("select min(id) + 5000 from health_checks where incident_id = $1")
            .bind(large)
            .fetch_one(db)
            .await?;
    let (d, c, i) = (cursor('d', old), cursor('c', old_check), cursor('i', 1500));
    let html = [
        ("list", "/".to_owned()),
        ("list, open", "/?state=open".to_owned()),
        (
            "list, open, the oldest",
            format!("/?state=open&cursor={}", cursor('i', 1690)),
        ),
        ("list, resolved", "/?state=resolved".to_owned()),
        (
            "list, resolved, deep",
            format!("/?state=resolved&cursor={i}"),
        ),
        ("list, one cause", "/?cause=payment".to_owned()),
        ("list, a cause that none has", "/?cause=pending".to_owned()),
        ("list, q = an account", format!("/?q={waba_id}")),
        ("list, q = a number's id", "/?q=106540352150003".to_owned()),
        (
            "list, q = a displayed number",
            "/?q=%2B1+035+215+0003".to_owned(),
        ),
        ("list, q = what none has", "/?q=nobody".to_owned()),
        ("incident, the large one", format!("/incidents/{large}")),
        ("incident, small, open", format!("/incidents/{small}")),
        ("incident, resolved", format!("/incidents/{resolved}")),
        (
            "incident, large, old deliveries and checks",
            format!("/incidents/{large}?deliveries={d}&checks={c}"),
        ),
    ];
    let api = [
        ("", "limit=50".to_owned()),
        ("", "limit=200".to_owned()),
        ("", "limit=200&state=open".to_owned()),
        ("", format!("limit=50&cursor={i}")),
        ("", format!("waba_id={waba_id}")),
        ("", "waba_id=102290129340150&state=resolved".to_owned()),
        ("", "cause=payment&limit=200".to_owned()),
        ("", "cause=pending".to_owned()),
        ("", "since=60d&until=30d".to_owned()),
        ("", "since=300d&until=299d".to_owned()),
        ("", "until=500d".to_owned()),
        ("", "limit=200&format=csv".to_owned()),
        ("/{large}", String::new()),
        ("/{large}/deliveries", String::new()),
        ("/{large}/deliveries", format!("limit=200&cursor={d}")),
        ("/{large}/deliveries", "limit=200&format=csv".to_owned()),
        ("/{large}/checks", String::new()),
        ("/{large}/checks", format!("limit=200&cursor={c}")),
        ("/{large}/checks", "limit=200&format=csv".to_owned()),
    ];
    let html = html.into_iter().map(|(name, path)| (name.to_owned(), path));
    let api = api.into_iter().map(|(path, query)| {
        let question = if query.is_empty() { "" } else { "?" };
        let url = format!(
            "/api/v1/incidents{}{question}{query}",
            path.replace("{large}", &large.to_string())
        );
        (format!("API …{path}{question}{query}"), url)
    });
    Ok(html
        .chain(api)
        .chain([("metrics".to_owned(), "/metrics".to_owned())])
        .collect())
}

/// What one page costs.
struct Figures {
    first: Duration,
    sorted: Vec<Duration>,
    size: usize,
    is_html: bool,
}

impl Figures {
    async fn take(client: &reqwest::Client, server: &Serve, path: &str) -> reqwest::Result<Self> {
        let (mut times, mut size, mut is_html) = (Vec::with_capacity(TIMES + 1), 0, false);
        for _ in 0..=TIMES {
            let started = Instant::now();
            let answer = client
                .get(server.admin_url(path))
                .send()
                .await?
                .error_for_status()?;
            is_html = answer.headers()["content-type"]
                .to_str()
                .is_ok_and(|kind| kind.starts_with("text/html"));
            size = answer.bytes().await?.len();
            times.push(started.elapsed());
        }
        let first = times.remove(0);
        times.sort();
        Ok(Self {
            first,
            sorted: times,
            size,
            is_html,
        })
    }

    fn quantile(&self, q: f64) -> Duration {
        self.sorted[((self.sorted.len() - 1) as f64 * q).round() as usize]
    }

    /// Which promise does not hold.
    fn broken(&self) -> Option<&'static str> {
        let (slow, large) = (
            self.quantile(0.5) > SLOWEST,
            self.is_html && self.size > LARGEST_PAGE,
        );
        match (slow, large) {
            (true, true) => Some("  TOO SLOW, TOO LARGE"),
            (true, false) => Some("  TOO SLOW"),
            (false, true) => Some("  TOO LARGE"),
            (false, false) => None,
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [first, median, p99] = [self.first, self.quantile(0.5), self.quantile(0.99)]
            .map(|time| time.as_secs_f64() * 1000.0);
        write!(
            f,
            "{first:>9.1} {median:>9.1} {p99:>9.1} {:>8.1}",
            self.size as f64 / 1000.0
        )
    }
}

/// From the next connection on, every statement's plan is in the server's log. It costs time, so nothing is
/// measured after this.
async fn explain_everything(db: &mut PgConnection) -> sqlx::Result<()> {
    for setting in [
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_buffers = on",
    ] {
        sqlx::query(AssertSqlSafe(format!(
            "alter database postgres set {setting}"
        )))
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// The plans in a piece of the log, each with its statement; not those of what the pool and the workers ask.
fn plans(log: &str) -> Vec<String> {
    let mut plans: Vec<String> = Vec::new();
    for line in log.lines() {
        if line.contains(" LOG:  duration: ") {
            plans.push(String::new());
        }
        if let Some(plan) = plans.last_mut() {
            plan.push_str(line.trim_start_matches('\t'));
            plan.push('\n');
        }
    }
    let others = [
        "current_setting",
        "_sqlx_migrations",
        "with due",
        "for update",
        "delete from",
        "cause <> 'pending'",
    ];
    plans.retain(|plan| !others.iter().any(|other| plan.contains(other)));
    plans
}

/// A statement's table and time, and how each table in it is read.
fn compact(plan: &str, large_tables: &[(String, f32)]) -> String {
    let after = |text: &str| {
        plan.split(text)
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next())
            .unwrap_or("?")
            .to_owned()
    };
    let statement = plan
        .lines()
        .find_map(|line| line.strip_prefix("Query Text: "))
        .unwrap_or_default();
    let mut text = format!("  {:>8} ms  {statement:.60}\n", after("duration: "));
    for line in plan
        .lines()
        .filter(|line| line.contains("Scan ") && line.contains("(cost"))
    {
        let node = line.trim_start_matches([' ', '-', '>']);
        let what = node.split("  (cost").next().unwrap_or_default();
        let actual = node.split("(actual ").nth(1).unwrap_or("never executed)");
        let is_whole = large_tables
            .iter()
            .any(|(table, _)| what.contains(&format!("Seq Scan on {table}")));
        let _ = writeln!(
            text,
            "      {}{what} ({actual}",
            if is_whole { "!!! " } else { "" }
        );
    }
    text
}
