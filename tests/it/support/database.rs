//! One Postgres for the run, one database for each test.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use lockwatch::embedded::Embedded;
use lockwatch::store::Database;
use rustix::process::Pid;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// A database that is dropped at the end, unless the whole server goes anyway.
pub struct TestDatabase {
    pub url: String,
    outside: Option<String>,
}

/// The server of the run: DATABASE_URL's, or one of our own, which ends with the process.
fn server() -> &'static str {
    static SERVER: OnceLock<(String, Option<Embedded>)> = OnceLock::new();
    let (url, _) = SERVER.get_or_init(|| match std::env::var("DATABASE_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let embedded = Embedded::start_temporary(None, false, &CancellationToken::new())
                .expect("a Postgres for the tests");
            (embedded.url(), Some(embedded))
        }
    });
    url
}

fn is_outside() -> bool {
    std::env::var_os("DATABASE_URL").is_some()
}

/// The same server, another database.
fn url_of(name: &str) -> String {
    let options: sqlx::postgres::PgConnectOptions = server().parse().unwrap();
    options.database(name).to_url_lossy().to_string()
}

/// Databases are made one at a time: a template may have no other visitor.
static CREATING: Mutex<()> = Mutex::const_new(());

impl TestDatabase {
    /// Copied from a template with the tables of this version.
    pub async fn create() -> Self {
        let template = template().await;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "lockwatch_test_{}_{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let _one_at_a_time = CREATING.lock().await;
        execute(format!("create database {name} template {template}"))
            .await
            .unwrap();
        Self {
            url: url_of(&name),
            outside: is_outside().then_some(name),
        }
    }

    pub fn database(&self) -> Database {
        Database::parse(&self.url).unwrap()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if let Some(name) = self.outside.take() {
            let dropped = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(execute(format!(
                    "drop database if exists {name} with (force)"
                )))
            });
            let _ = dropped.join();
        }
    }
}

/// Migrated once per version of the migrations.
async fn template() -> String {
    static TEMPLATE: Mutex<Option<String>> = Mutex::const_new(None);
    let mut template = TEMPLATE.lock().await;
    if template.is_none() {
        let checksums: Vec<u8> = lockwatch::MIGRATOR
            .iter()
            .flat_map(|migration| migration.checksum.to_vec())
            .collect();
        let digest = checksums.chunks(8).fold([0_u8; 8], |mut sum, chunk| {
            sum.iter_mut()
                .zip(chunk)
                .for_each(|(sum, byte)| *sum = sum.rotate_left(3) ^ byte);
            sum
        });
        let name = format!("lockwatch_template_{}", hex::encode(digest));
        // Another run on the same server may have made it, or be at it.
        let _ = execute(format!("create database {name}")).await;
        Database::parse(&url_of(&name))
            .unwrap()
            .migrate()
            .await
            .unwrap();
        *template = Some(name);
    }
    template.clone().unwrap()
}

async fn execute(sql: String) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(server()).await?;
    sqlx::query(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await?;
    connection.close().await
}

/// A server of our own and all its backends, the server first.
pub fn processes(embedded: &Embedded) -> Vec<Pid> {
    let text = std::fs::read_to_string(embedded.folder().join("data/postmaster.pid")).unwrap();
    let postmaster: i32 = text.lines().next().unwrap().parse().unwrap();
    let children =
        std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    let numbers = children.split_whitespace().map(|pid| pid.parse().unwrap());
    std::iter::once(postmaster)
        .chain(numbers)
        .filter_map(Pid::from_raw)
        .collect()
}

/// Runs statements each on its own: `alter system` takes no company.
pub async fn run(embedded: &Embedded, statements: &[&'static str]) {
    let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
    for statement in statements {
        sqlx::raw_sql(*statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
}
