//! The cost of the admin pages after years: 10,000 incidents, 1,000,000 deliveries (`pages.sql`).
//!
//! `cargo bench --bench pages`, with `-- --plans` for whole plans. One client requests one page of
//! `serve` after the other, all on this machine. Then Postgres logs how it found their rows. Exits
//! with 1 if a page is slower or larger than promised.

#![allow(unreachable_pub, reason = "a bench is no library")]

#[path = "support/serve.rs"]
mod serve;

use std::error::Error;
use std::fmt::Write;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lockwatch::embedded::EmbeddedPostgres;
use lockwatch::store::Database;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use serve::Serve;

/// The promised limits of a list and of a single incident.
const MEDIAN_LIMIT: Duration = Duration::from_millis(50);
const PAGE_BYTES_LIMIT: usize = 100_000;
/// The requests for each page, without the first.
const REQUEST_COUNT: usize = 100;
/// No row is deleted during the measurement.
const LONG_RETENTION: [(&str, &str); 1] = [("LOCKWATCH_RETENTION_DAYS", "3650")];
/// A table with fewer rows may be read whole.
const SMALL_TABLE_ROWS: f32 = 1000.0;

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let shows_whole_plans = std::env::args().any(|argument| argument == "--plans");
    let postgres = EmbeddedPostgres::start_temporary(None, false, &CancellationToken::new())?;
    Database::parse(&postgres.url())?.migrate().await?;
    let mut db = postgres
        .url()
        .parse::<sqlx::postgres::PgConnectOptions>()?
        .connect()
        .await?;
    seed(&mut db).await?;
    let pages = Page::all(&mut db).await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let is_kept = measure_pages(&pages, &client, &postgres).await?;
    log_every_plan(&mut db).await?;
    let large_tables = large_tables(&mut db).await?;
    db.close().await?;
    let server = Serve::start(&postgres.url(), &LONG_RETENTION)?;
    let mut log = File::open(postgres.folder().join("postgres.log"))?;
    for page in &pages {
        println!("\n{}", page.name);
        for plan in page.plans(&client, &server, &mut log).await? {
            if shows_whole_plans {
                print!("{plan}");
            } else {
                print!("{}", summarize_plan(&plan, &large_tables));
            }
        }
    }
    Ok(if is_kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints the cost of each page. Returns whether every promise is kept.
async fn measure_pages(
    pages: &[Page],
    client: &reqwest::Client,
    postgres: &EmbeddedPostgres,
) -> Result<bool, Box<dyn Error>> {
    println!(
        "\n{:<46} {:>9} {:>9} {:>9} {:>8}",
        "page", "first ms", "median ms", "p99 ms", "kB"
    );
    let server = Serve::start(&postgres.url(), &LONG_RETENTION)?;
    let mut is_kept = true;
    for page in pages {
        let cost = PageCost::measure(client, &server, &page.path).await?;
        let broken_promise = cost.broken_promise();
        println!(
            "{:<46} {cost}{}",
            page.name,
            broken_promise.unwrap_or_default()
        );
        is_kept &= broken_promise.is_none();
    }
    Ok(is_kept)
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

/// A kind of page.
struct Page {
    name: String,
    path: String,
}

/// The rows that the pages show.
struct Rows {
    /// The incident with the most failures.
    large: i64,
    large_waba_id: String,
    /// An open incident with few failures.
    small: i64,
    resolved: i64,
    /// Cursors into the lists of the large incident.
    delivery_cursor: String,
    check_cursor: String,
    incident_cursor: String,
}

fn cursor(list: char, id: i64) -> String {
    format!("{list}{id:016x}")
}

impl Rows {
    async fn find(db: &mut PgConnection) -> sqlx::Result<Self> {
        let (large, large_waba_id): (i64, String) =
            sqlx::query_as("select id, waba_id from incidents order by failure_count desc limit 1")
                .fetch_one(&mut *db)
                .await?;
        let small: i64 = sqlx::query_scalar(
            "select max(id) from incidents where resolved_at is null and id <> $1",
        )
        .bind(large)
        .fetch_one(&mut *db)
        .await?;
        let resolved: i64 =
            sqlx::query_scalar("select max(id) from incidents where resolved_at is not null")
                .fetch_one(&mut *db)
                .await?;
        let old_delivery: i64 = sqlx::query_scalar(
            "select id
               from (select id from failed_deliveries
                      where incident_id = $1 order by id limit 1000) d
              order by id desc limit 1",
        )
        .bind(large)
        .fetch_one(&mut *db)
        .await?;
        let old_check: i64 =
            sqlx::query_scalar("select min(id) + 5000 from health_checks where incident_id = $1")
                .bind(large)
                .fetch_one(db)
                .await?;
        Ok(Self {
            large,
            large_waba_id,
            small,
            resolved,
            delivery_cursor: cursor('d', old_delivery),
            check_cursor: cursor('c', old_check),
            incident_cursor: cursor('i', 1500),
        })
    }
}

impl Page {
    async fn all(db: &mut PgConnection) -> sqlx::Result<Vec<Self>> {
        let rows = Rows::find(db).await?;
        let mut pages = Self::html_pages(&rows);
        pages.extend(Self::api_pages(&rows));
        pages.push(Self {
            name: "metrics".to_owned(),
            path: "/metrics".to_owned(),
        });
        Ok(pages)
    }

    fn html_pages(rows: &Rows) -> Vec<Self> {
        let Rows {
            large,
            large_waba_id,
            small,
            resolved,
            delivery_cursor,
            check_cursor,
            incident_cursor,
        } = rows;
        let oldest_open = cursor('i', 1690);
        [
            ("list", "/".to_owned()),
            ("list, open", "/?state=open".to_owned()),
            (
                "list, open, the oldest",
                format!("/?state=open&cursor={oldest_open}"),
            ),
            ("list, resolved", "/?state=resolved".to_owned()),
            (
                "list, resolved, deep",
                format!("/?state=resolved&cursor={incident_cursor}"),
            ),
            ("list, one cause", "/?cause=payment".to_owned()),
            (
                "list, a cause without incidents",
                "/?cause=pending".to_owned(),
            ),
            ("list, q = an account", format!("/?q={large_waba_id}")),
            ("list, q = a number's id", "/?q=106540352150003".to_owned()),
            (
                "list, q = a displayed number",
                "/?q=%2B1+035+215+0003".to_owned(),
            ),
            ("list, q = no match", "/?q=nobody".to_owned()),
            ("incident, the large one", format!("/incidents/{large}")),
            ("incident, small, open", format!("/incidents/{small}")),
            ("incident, resolved", format!("/incidents/{resolved}")),
            (
                "incident, large, old deliveries and checks",
                format!("/incidents/{large}?deliveries={delivery_cursor}&checks={check_cursor}"),
            ),
        ]
        .into_iter()
        .map(|(name, path)| Self {
            name: name.to_owned(),
            path,
        })
        .collect()
    }

    fn api_pages(rows: &Rows) -> Vec<Self> {
        let Rows {
            large,
            large_waba_id,
            delivery_cursor,
            check_cursor,
            incident_cursor,
            ..
        } = rows;
        [
            "?limit=50",
            "?limit=200",
            "?limit=200&state=open",
            &format!("?limit=50&cursor={incident_cursor}"),
            &format!("?waba_id={large_waba_id}"),
            "?waba_id=102290129340150&state=resolved",
            "?cause=payment&limit=200",
            "?cause=pending",
            "?since=60d&until=30d",
            "?since=300d&until=299d",
            "?until=500d",
            "?limit=200&format=csv",
            "/{large}",
            "/{large}/deliveries",
            &format!("/{{large}}/deliveries?limit=200&cursor={delivery_cursor}"),
            "/{large}/deliveries?limit=200&format=csv",
            "/{large}/checks",
            &format!("/{{large}}/checks?limit=200&cursor={check_cursor}"),
            "/{large}/checks?limit=200&format=csv",
        ]
        .into_iter()
        .map(|path| Self {
            name: format!("API …{path}"),
            path: format!(
                "/api/v1/incidents{}",
                path.replace("{large}", &large.to_string())
            ),
        })
        .collect()
    }

    /// Requests the page and returns the plans that Postgres logs meanwhile.
    async fn plans(
        &self,
        client: &reqwest::Client,
        server: &Serve,
        log: &mut File,
    ) -> Result<Vec<String>, Box<dyn Error>> {
        log.seek(SeekFrom::End(0))?;
        client
            .get(server.admin_url(&self.path))
            .send()
            .await?
            .error_for_status()?
            .bytes()
            .await?;
        let mut logged = Vec::new();
        log.read_to_end(&mut logged)?;
        Ok(parse_plans(&String::from_utf8_lossy(&logged)))
    }
}

/// The cost of a page.
struct PageCost {
    first: Duration,
    sorted: Vec<Duration>,
    size: usize,
    is_html: bool,
}

impl PageCost {
    async fn measure(
        client: &reqwest::Client,
        server: &Serve,
        path: &str,
    ) -> reqwest::Result<Self> {
        let (mut times, mut size, mut is_html) = (Vec::with_capacity(REQUEST_COUNT + 1), 0, false);
        for _ in 0..=REQUEST_COUNT {
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

    /// Returns the promise that the page breaks.
    fn broken_promise(&self) -> Option<&'static str> {
        let is_slow = self.quantile(0.5) > MEDIAN_LIMIT;
        let is_large = self.is_html && self.size > PAGE_BYTES_LIMIT;
        match (is_slow, is_large) {
            (true, true) => Some("  TOO SLOW, TOO LARGE"),
            (true, false) => Some("  TOO SLOW"),
            (false, true) => Some("  TOO LARGE"),
            (false, false) => None,
        }
    }
}

impl std::fmt::Display for PageCost {
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

/// Makes Postgres log the plan of every statement on later connections. That costs time, so nothing
/// is measured afterwards.
async fn log_every_plan(db: &mut PgConnection) -> sqlx::Result<()> {
    for setting in [
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_buffers = on",
    ] {
        let sql = format!("alter database postgres set {setting}");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *db).await?;
    }
    Ok(())
}

/// Returns the names of the tables that must not be read whole.
async fn large_tables(db: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("select relname::text from pg_class where relkind = 'r' and reltuples > $1")
        .bind(SMALL_TABLE_ROWS)
        .fetch_all(db)
        .await
}

/// Returns the plans in a part of the log, each with its statement, without those of the pool and
/// of the background workers.
fn parse_plans(log: &str) -> Vec<String> {
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
    plans.retain(|plan| !is_background(plan));
    plans
}

/// Returns whether a plan is one of the pool's or of the background workers'.
fn is_background(plan: &str) -> bool {
    [
        "current_setting",
        "_sqlx_migrations",
        "with due",
        "for update",
        "delete from",
        "cause <> 'pending'",
    ]
    .iter()
    .any(|text| plan.contains(text))
}

/// Returns the time of a statement, its beginning, and the scan of each table in it. `!!!` marks a
/// large table that is read whole.
fn summarize_plan(plan: &str, large_tables: &[String]) -> String {
    let duration = plan
        .split("duration: ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("?");
    let statement = plan
        .lines()
        .find_map(|line| line.strip_prefix("Query Text: "))
        .unwrap_or_default();
    let mut text = format!("  {duration:>8} ms  {statement:.60}\n");
    for line in plan.lines() {
        if !line.contains("Scan ") || !line.contains("(cost") {
            continue;
        }
        let node = line.trim_start_matches([' ', '-', '>']);
        let scan = node.split("  (cost").next().unwrap_or_default();
        let actual = node.split("(actual ").nth(1).unwrap_or("never executed)");
        let is_whole = large_tables
            .iter()
            .any(|table| scan.contains(&format!("Seq Scan on {table}")));
        let mark = if is_whole { "!!! " } else { "" };
        let _ = writeln!(text, "      {mark}{scan} ({actual}");
    }
    text
}
