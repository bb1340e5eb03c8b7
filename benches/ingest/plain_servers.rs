//! The plain servers that `serve` is compared with: less work, done in the simplest way. Each runs
//! as a process of its own.

use std::error::Error;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use clap::ValueEnum;
use lockwatch::intake::Intake;
use lockwatch::meta::ids::Text;
use lockwatch::meta::interest::Interest;
use lockwatch::meta::signature::{SIGNATURE_HEADER, Signature, Verifier};
use lockwatch::meta::status::FailedMessage;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use time::OffsetDateTime;

use crate::serve::APP_SECRET;

/// Tells this program to run as a plain server.
pub const FLAG: &str = "--plain-server";

/// The kinds of plain servers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PlainServer {
    /// Reads the body and answers 200.
    Bare,
    /// Also verifies the signature.
    Verifying,
    /// Also parses the callback and inserts each failure with a statement of its own, from a pool
    /// of 32 connections, into a table like ours: no incident, no count, no capture.
    Inserting,
}

/// Serves until the process is killed. [`PlainServerProcess::start`] starts such a process.
pub fn run(name: &str, database: &str) -> Result<(), Box<dyn Error>> {
    let server = PlainServer::from_str(name, false)?;
    tokio::runtime::Runtime::new()?.block_on(serve(server, database))
}

struct Shared {
    verifier: Verifier,
    pool: PgPool,
}

async fn serve(server: PlainServer, database: &str) -> Result<(), Box<dyn Error>> {
    let pool = PgPoolOptions::new()
        .max_connections(32)
        .test_before_acquire(false)
        .connect_lazy(database)?;
    let shared = Arc::new(Shared {
        verifier: Verifier::new(&[APP_SECRET.into()]),
        pool,
    });
    let handler = match server {
        PlainServer::Bare => post(async |_: Bytes| StatusCode::OK),
        PlainServer::Verifying => post(verify),
        PlainServer::Inserting => post(insert),
    };
    let router = Router::new()
        .route("/webhook", handler)
        .layer(DefaultBodyLimit::disable())
        .with_state(shared);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    Ok(axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |io| drop(io.set_nodelay(true))),
        router,
    )
    .await?)
}

impl Shared {
    fn is_signed(&self, headers: &HeaderMap, body: &Bytes) -> bool {
        let signature = headers
            .get(SIGNATURE_HEADER)
            .and_then(|value| Signature::parse(value.as_bytes()).ok());
        signature.is_some_and(|signature| self.verifier.verify(body, &signature).is_some())
    }
}

async fn verify(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if shared.is_signed(&headers, &body) {
        StatusCode::OK
    } else {
        StatusCode::UNAUTHORIZED
    }
}

async fn insert(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if !shared.is_signed(&headers, &body) {
        return StatusCode::UNAUTHORIZED;
    }
    for failure in Intake::parse(&body, &Interest::default(), OffsetDateTime::now_utc()).failures {
        if insert_failure(&shared.pool, &failure).await.is_err() {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
    }
    StatusCode::OK
}

fn optional(text: &Option<Text>) -> Option<String> {
    text.as_ref().map(|text| text.as_str().to_owned())
}

async fn insert_failure(pool: &PgPool, failure: &FailedMessage) -> sqlx::Result<()> {
    sqlx::query(
        "insert into plain_failures (incident_id, waba_id, phone_number_id, message_id,
                                     recipient_id, failed_at, received_at, error_code,
                                     error_title, error_message, error_details, digest)
         values (1, $1, $2, $3, $4, $5, $6, 131031, $7, $8, $9, $10)
             on conflict (waba_id, digest) do nothing",
    )
    .bind(failure.waba_id.as_str())
    .bind(failure.phone_number_id.as_str())
    .bind(failure.message_id.as_str())
    .bind(optional(&failure.recipient_id))
    .bind(failure.failed_at)
    .bind(failure.received_at)
    .bind(optional(&failure.error_title))
    .bind(optional(&failure.error_message))
    .bind(optional(&failure.error_details))
    .bind(failure.digest.as_slice())
    .execute(pool)
    .await?;
    Ok(())
}

/// The process of a plain server, killed when dropped.
pub struct PlainServerProcess {
    child: Child,
    pub address: String,
}

impl PlainServerProcess {
    pub fn start(server: PlainServer, database: &str) -> io::Result<Self> {
        let name = server.to_possible_value().expect("none is hidden");
        let mut child = Command::new(std::env::current_exe()?)
            .args([FLAG, name.get_name(), database])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut address)?;
        Ok(Self {
            child,
            address: address.trim().to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for PlainServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
