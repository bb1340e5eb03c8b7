//! `lockwatch serve`

use anyhow::Context;
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Failure, start_log};
use crate::config::{
    AlertArgs, DataArgs, GraphArgs, ListenArgs, LogArgs, RetentionArgs, ignored_proxy,
    read_app_secrets, read_verify_token,
};
use crate::embedded::{EmbeddedError, EmbeddedPostgres};
use crate::service::{Service, Settings};
use crate::store::Database;

/// The fewest characters of an admin token that cannot be guessed.
const ADMIN_TOKEN_MIN_CHARACTERS: usize = 16;

/// The levels of the log. The users of a lost connection log that, not its pool in sqlx's words.
const DEFAULT_LOG_FILTER: &str = "info,sqlx_core::pool=error";

const SECRETS_HELP: &str = "\
Secrets come from the environment, or from a file that NAME_FILE names:
  META_APP_SECRET        required; your Meta app's secret, or several with commas
  META_VERIFY_TOKEN      required; your choice, the same in Meta's App Dashboard
  META_ACCESS_TOKEN      token of a system user; needed to look up causes
  LOCKWATCH_ADMIN_TOKEN  required if the admin address is not loopback
  LOCKWATCH_GRAPH_PROXY  http or https proxy to reach the Graph API through
  LOCKWATCH_ALERT_SLACK_URL       incoming webhook of Slack, or one that takes the same
  LOCKWATCH_ALERT_WEBHOOK_URL     webhook of yours that takes signed alerts, with
  LOCKWATCH_ALERT_WEBHOOK_SECRET  its secret: whsec_ and base64
  LOCKWATCH_SMTP_URL              mail server: smtps://user:password@host, or smtp://… (STARTTLS)
  LOCKWATCH_ALERTMANAGER_URL      Prometheus' Alertmanager";

#[derive(Debug, Args)]
#[command(after_help = SECRETS_HELP)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    graph: GraphArgs,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    alerts: AlertArgs,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let app_secrets = read_app_secrets()?;
    let verify_token = read_verify_token()?;
    let admin_token = args.listen.read_admin_token()?;
    let graph = args.graph.build_client(&app_secrets)?;
    let alerting = args.alerts.alerting()?;
    let external_database = args.data.external_database()?;
    start_log(args.log.log_format, DEFAULT_LOG_FILTER)?;
    let mut stop = StopSignals::install()?;

    warn_if_guessable(admin_token.as_ref());
    if !graph.has_tokens() {
        warn!("no META_ACCESS_TOKEN: lockouts are recorded, but their causes cannot be looked up");
    }
    if let Some(name) = ignored_proxy() {
        warn!("{name} is ignored: to reach Graph through a proxy, set LOCKWATCH_GRAPH_PROXY");
    }
    let (database, embedded) = match external_database {
        Some(database) => {
            info!("data lives at {}", database.location());
            for name in database.ignored_parameters() {
                warn!("{name} in DATABASE_URL has no effect");
            }
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
        codes: args.retention.capture.codes.clone(),
        capturing: args.retention.capture.capture,
        retention: args.retention.period(),
        alerting,
    };
    let mut service = Service::start(settings).await.map_err(anyhow::Error::new)?;
    info!(
        "listening: webhook http://{}/webhook, admin http://{}",
        service.address, service.admin_address
    );

    let result = tokio::select! {
        signal = stop.wait() => {
            info!("{signal}: stopping");
            Ok(())
        }
        () = service.wait_for_failure() => Err(Failure::Reported),
    };
    service.stop().await;
    // Dropping the embedded server shuts it down, and waits until it has written its checkpoint.
    let _ = spawn_blocking(move || drop(embedded)).await;
    info!("stopped");
    result
}

fn warn_if_guessable(admin_token: Option<&SecretString>) {
    let Some(token) = admin_token else { return };
    if token.expose_secret().chars().count() < ADMIN_TOKEN_MIN_CHARACTERS {
        warn!(
            "LOCKWATCH_ADMIN_TOKEN has fewer than {ADMIN_TOKEN_MIN_CHARACTERS} characters: \
             it can be guessed"
        );
    }
}

/// Starts the embedded database. Returns `None` if a signal came first.
async fn start_embedded(
    data: &DataArgs,
    stop: &mut StopSignals,
) -> Result<Option<(Database, EmbeddedPostgres)>, Failure> {
    let folder = data.postgres_folder()?;
    let bin = data.pg_bin_dir.clone();
    let start =
        move |cancel: &CancellationToken| EmbeddedPostgres::start(&folder, bin.as_deref(), cancel);
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

/// The signals that stop a command: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (the terminal was closed).
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// Installs the handlers. From now on these signals no longer end the process by themselves.
    pub(super) fn install() -> Result<Self, Failure> {
        let handle = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            terminate: handle(SignalKind::terminate())?,
            interrupt: handle(SignalKind::interrupt())?,
            hangup: handle(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal, and returns its name.
    pub(super) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// Runs `start`, which starts an embedded server and blocks. Returns `None` if a signal came
    /// first.
    pub(super) async fn start_postgres(
        &mut self,
        start: impl FnOnce(&CancellationToken) -> Result<EmbeddedPostgres, EmbeddedError>
        + Send
        + 'static,
    ) -> Result<Option<EmbeddedPostgres>, Failure> {
        let cancel = CancellationToken::new();
        let mut starting = spawn_blocking({
            let cancel = cancel.clone();
            move || start(&cancel)
        });
        tokio::select! {
            started = &mut starting => {
                let embedded = started.context("the embedded PostgreSQL")?;
                Ok(Some(embedded.context("the embedded PostgreSQL")?))
            }
            _ = self.wait() => {
                cancel.cancel();
                // A server that did start is stopped and cleaned up when it is dropped.
                let clean_up = move || drop(Handle::current().block_on(starting));
                let _ = spawn_blocking(clean_up).await;
                Ok(None)
            }
        }
    }
}
