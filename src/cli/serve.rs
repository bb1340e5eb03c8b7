//! `lockwatch serve`

use anyhow::Context;
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Failure, start_log};
use crate::config::{
    DataArgs, GraphArgs, KeepArgs, ListenArgs, LogArgs, app_secrets, verify_token,
};
use crate::embedded::{Embedded, EmbeddedError};
use crate::service::{Service, Settings};
use crate::store::Database;

#[derive(Debug, Args)]
#[command(after_help = SECRETS)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    graph: GraphArgs,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// An admin token with fewer characters can be guessed.
const GUESSABLE_CHARACTERS: usize = 16;

const SECRETS: &str = "\
Secrets (environment only; or NAME_FILE names a file that holds it):
  META_APP_SECRET        required; the app's secret, several separated by commas
  META_VERIFY_TOKEN      required; a word of your choice, the same as in Meta's App Dashboard
  META_ACCESS_TOKEN      a system user's token; without it causes cannot be looked up
  LOCKWATCH_ADMIN_TOKEN  required as soon as the admin address is not loopback";

pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let app_secrets = app_secrets()?;
    let verify_token = verify_token()?;
    let admin_token = args.listen.admin_token()?;
    let graph = args.graph.graph(&app_secrets)?;
    let database = args.data.database()?;
    start_log(args.log.log_format, "info")?;
    let mut stop = StopSignals::install()?;

    warn_of_guessable(admin_token.as_ref());
    if !graph.has_tokens() {
        warn!("no META_ACCESS_TOKEN: lockouts are recorded, but their causes cannot be looked up");
    }
    let (database, embedded) = match database {
        Some(database) => {
            info!("data lives at {}", database.location());
            (database, None)
        }
        None => match start_embedded(&args.data, &mut stop).await? {
            Some((database, embedded)) => (database, Some(embedded)),
            None => return Ok(()),
        },
    };
    let settings = Settings {
        database,
        listen: args.listen.listen,
        admin_listen: args.listen.admin_listen,
        admin_token,
        app_secrets,
        verify_token,
        graph,
        capturing: args.keep.capture.capture,
        retention: args.keep.retention(),
    };
    let mut service = Service::start(settings).await.map_err(anyhow::Error::new)?;
    info!(
        "listening: webhook http://{}/webhook, admin http://{}",
        service.address, service.admin_address
    );

    let ended = tokio::select! {
        signal = stop.wait() => {
            info!("{signal}: stopping");
            Ok(())
        }
        () = service.wait_for_failure() => Err(Failure::Told),
    };
    service.stop().await;
    // The server's own shutdown writes its checkpoint; dropping it waits for that.
    let _ = spawn_blocking(move || drop(embedded)).await;
    info!("stopped");
    ended
}

fn warn_of_guessable(admin_token: Option<&SecretString>) {
    let characters = admin_token.map(|token| token.expose_secret().chars().count());
    if characters.is_some_and(|count| count < GUESSABLE_CHARACTERS) {
        warn!(
            "LOCKWATCH_ADMIN_TOKEN has fewer than {GUESSABLE_CHARACTERS} characters: it can be guessed"
        );
    }
}

/// Starts the embedded database; `None` where a signal came first.
async fn start_embedded(
    data: &DataArgs,
    stop: &mut StopSignals,
) -> Result<Option<(Database, Embedded)>, Failure> {
    let folder = data.postgres_folder()?;
    let bin = data.pg_bin_dir.clone();
    let start = move |stop: &CancellationToken| Embedded::start(&folder, bin.as_deref(), stop);
    let Some(embedded) = stop.start_postgres(start).await? else {
        return Ok(None);
    };
    let database = Database::parse(&embedded.url()).context("the embedded PostgreSQL")?;
    info!(
        "data lives in {}, PostgreSQL {}",
        embedded.folder().join("data").display(),
        embedded.version()
    );
    Ok(Some((database, embedded)))
}

/// SIGTERM, Ctrl-C, and the end of the terminal.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl StopSignals {
    pub(super) fn install() -> Result<Self, Failure> {
        let handle = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            terminate: handle(SignalKind::terminate())?,
            interrupt: handle(SignalKind::interrupt())?,
            hangup: handle(SignalKind::hangup())?,
        })
    }

    /// Starts an embedded server, which blocks; `None` where a signal came first.
    pub(super) async fn start_postgres(
        &mut self,
        start: impl FnOnce(&CancellationToken) -> Result<Embedded, EmbeddedError> + Send + 'static,
    ) -> Result<Option<Embedded>, Failure> {
        let cancel = CancellationToken::new();
        let mut started = spawn_blocking({
            let cancel = cancel.clone();
            move || start(&cancel)
        });
        tokio::select! {
            started = &mut started => {
                let started = started.context("the embedded PostgreSQL")?;
                Ok(Some(started.context("the embedded PostgreSQL")?))
            }
            _ = self.wait() => {
                cancel.cancel();
                // Whatever it came to, it is stopped and cleaned up when dropped.
                let _ = spawn_blocking(move || drop(tokio::runtime::Handle::current().block_on(started))).await;
                Ok(None)
            }
        }
    }

    pub(super) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
