//! One Postgres server for the run, and one database for each test.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use lockwatch::embedded::EmbeddedPostgres;
use lockwatch::store::Database;
use rustix::process::Pid;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::proxy::{Proxy, Upstream};

/// The database of one test. Dropped at the end, unless the whole server ends with the run.
pub struct TestDatabase {
    pub url: String,
    /// The name, where the server is not ours and the database has to be dropped.
    name_to_drop: Option<String>,
}

/// The URL of the run's server: DATABASE_URL, or a server of our own, which ends with the process.
fn server_url() -> &'static str {
    static SERVER: OnceLock<(String, Option<EmbeddedPostgres>)> = OnceLock::new();
    let (url, _) = SERVER.get_or_init(|| match std::env::var("DATABASE_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let embedded =
                EmbeddedPostgres::start_temporary(None, false, &CancellationToken::new())
                    .expect("a Postgres for the tests must start");
            (embedded.url(), Some(embedded))
        }
    });
    url
}

fn has_external_server() -> bool {
    std::env::var_os("DATABASE_URL").is_some()
}

/// The URL of another database on the same server.
fn database_url(name: &str) -> String {
    let options: sqlx::postgres::PgConnectOptions = server_url().parse().unwrap();
    options.database(name).to_url_lossy().to_string()
}

/// Allows one `create database` at a time: it fails while another connection uses the template.
static CREATE_LOCK: Mutex<()> = Mutex::const_new(());

impl TestDatabase {
    /// Copies a template that has the tables of this version.
    pub async fn create() -> Self {
        let template = template_name().await;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "lockwatch_test_{}_{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let _guard = CREATE_LOCK.lock().await;
        execute(format!("create database {name} template {template}"))
            .await
            .unwrap();
        Self {
            url: database_url(&name),
            name_to_drop: has_external_server().then_some(name),
        }
    }

    pub fn database(&self) -> Database {
        Database::parse(&self.url).unwrap()
    }

    /// Starts a link to the database, and returns it with the URL through it.
    pub async fn link(&self) -> (Proxy, String) {
        let options: PgConnectOptions = self.url.parse().unwrap();
        let port = options.get_port();
        let upstream = match options.get_socket() {
            Some(folder) => Upstream::Unix(folder.join(format!(".s.PGSQL.{port}"))),
            None => {
                let host = (options.get_host().to_owned(), port);
                Upstream::Tcp(tokio::net::lookup_host(host).await.unwrap().next().unwrap())
            }
        };
        let link = Proxy::start(upstream).await;
        let through = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(link.address.port())
            .username(options.get_username())
            .database(options.get_database().unwrap());
        let url = through.to_url_lossy().to_string();
        (link, url)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if let Some(name) = self.name_to_drop.take() {
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

/// The name of the template, which is migrated once per version of the migrations.
async fn template_name() -> String {
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
        // Another run on the same server may have created it, or may be creating it.
        let _ = execute(format!("create database {name}")).await;
        Database::parse(&database_url(&name))
            .unwrap()
            .migrate()
            .await
            .unwrap();
        *template = Some(name);
    }
    template.clone().unwrap()
}

async fn execute(sql: String) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(server_url()).await?;
    sqlx::query(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await?;
    connection.close().await
}

/// The postmaster of the server whose data is in this folder's `data`.
pub fn postmaster_of(folder: &Path) -> Pid {
    let text = std::fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap()
}

/// The processes of that server: the postmaster first, then its children.
pub fn server_processes(folder: &Path) -> Vec<Pid> {
    let postmaster = postmaster_of(folder);
    let children =
        std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    std::iter::once(postmaster)
        .chain(children.filter_map(Pid::from_raw))
        .collect()
}

/// Runs each statement on its own: `alter system` does not run in a transaction.
pub async fn run_statements(embedded: &EmbeddedPostgres, statements: &[&'static str]) {
    let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
    for statement in statements {
        sqlx::raw_sql(*statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
}
