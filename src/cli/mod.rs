//! The command line, with one file per command. Data goes to stdout, everything else to stderr. The
//! exit code is 0 for success, 1 for a failure, and 2 for wrong usage or configuration; `check` has
//! two more.

mod accounts;
mod alerts;
mod captures;
mod chart;
mod check;
mod demo;
mod healthcheck;
mod inbox;
mod incidents;
mod migrate;
mod render;
mod replay;
mod serve;
mod sign;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, DataArgs, LogFormat};
use crate::embedded::EmbeddedPostgres;
use crate::error_chain::error_chain;
use crate::http::api::openapi;
use crate::store::{Database, Pool, Readiness, bounded, readiness};

const ABOUT: &str = "\
Tells a business within seconds that Meta has locked its WhatsApp Business Account (error 131031), \
why, and what to do about it. Register it as the webhook URL of a Meta app.";

/// The form of a list.
#[derive(Debug, Args)]
struct ListingArgs {
    /// List at most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ListingArgs {
    /// Prints rows as JSON or as a table, or says that there are none. Returns whether the table may
    /// have been cut.
    fn print<T: Serialize>(
        &self,
        rows: &[T],
        none: &str,
        table: fn(&[T]) -> String,
    ) -> Result<bool, Failure> {
        if self.json {
            print_line(format_args!("{:#}", json!(rows)))?;
        } else if rows.is_empty() {
            anstream::eprintln!("{none}");
        } else {
            print_line(table(rows))?;
            return Ok(i64::try_from(rows.len()).ok() == Some(self.limit));
        }
        Ok(false)
    }
}

#[derive(Debug, Parser)]
#[command(name = "lockwatch", version, about = ABOUT, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive callbacks, record lockouts and look up their causes
    Serve(serve::ServeArgs),
    /// Show how it works: a real Postgres, a simulated Meta, six locked accounts
    Demo(demo::DemoArgs),
    /// Create or update the database tables (serve does this by itself)
    Migrate(migrate::MigrateArgs),
    /// Ask a running serve whether it is alive; exit 0 if it is
    Healthcheck(healthcheck::HealthcheckArgs),
    /// List, show, acknowledge, resolve and reopen incidents
    #[command(subcommand)]
    Incidents(incidents::IncidentsCommand),
    /// Ask Meta now about the health of a phone number or an account
    Check(check::CheckArgs),
    /// List callbacks that are not processed yet, retry them, or give them up
    #[command(subcommand)]
    Inbox(inbox::InboxCommand),
    /// List accounts, and give them names and labels
    #[command(subcommand)]
    Accounts(accounts::AccountsCommand),
    /// List, test and retry alerts
    #[command(subcommand)]
    Alerts(alerts::AlertsCommand),
    /// List and export captures (callbacks kept byte for byte), or read quarantined ones again
    #[command(subcommand)]
    Captures(captures::CapturesCommand),
    /// Post captures to a webhook, or record them into the database
    Replay(replay::ReplayArgs),
    /// Print the signature header of a file, ready for curl
    Sign(sign::SignArgs),
    /// Print the OpenAPI 3.1 description of the admin API
    Openapi,
    /// Print a script that completes commands in your shell
    Completions {
        /// Shell that runs the script
        shell: Shell,
    },
}

/// The reason why a command does not exit with 0.
#[derive(Debug)]
enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// The command was tried and failed: exit code 1.
    Failed(anyhow::Error),
    /// The command failed and has printed the reason: exit code 1.
    Reported,
    /// The command has printed its result, which has this exit code.
    Code(u8),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(anyhow::Error::new(error))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Parses the command line, runs the command, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report_usage_error(&error),
    };
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = anyhow::Error::new(error).context("cannot start");
            return report_failure(Failure::Failed(error));
        }
    };
    let result = runtime.block_on(async {
        let result = run(cli.command).await;
        close_database().await;
        result
    });
    // A look-up that still waits for Meta must not delay the exit.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report_failure(failure),
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Healthcheck(args) => healthcheck::run(args).await,
        Command::Incidents(command) => incidents::run(command).await,
        Command::Check(args) => check::run(args).await,
        Command::Inbox(command) => inbox::run(command).await,
        Command::Accounts(command) => accounts::run(command).await,
        Command::Alerts(command) => alerts::run(command).await,
        Command::Captures(command) => captures::run(command).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Sign(args) => sign::run(&args),
        Command::Openapi => Ok(write!(stdout(), "{}", openapi())?),
        Command::Completions { shell } => Ok(stdout().write_all(&completion_script(shell))?),
    }
}

/// Builds the script in memory: clap_complete panics if it cannot write, and the reader may be
/// gone.
fn completion_script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lockwatch", &mut script);
    script
}

fn report_failure(failure: Failure) -> ExitCode {
    match failure {
        Failure::Usage(message) => {
            anstream::eprintln!("lockwatch: {message}");
            ExitCode::from(2)
        }
        Failure::Failed(error) => {
            // The reader of our output is gone, as with `head`: an error text would reach nobody.
            if !is_broken_pipe(&error) {
                anstream::eprintln!("lockwatch: {}", error_chain(error.as_ref()));
            }
            ExitCode::FAILURE
        }
        Failure::Reported => ExitCode::FAILURE,
        Failure::Code(code) => ExitCode::from(code),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Reports a wrong value in one line. Help and unknown arguments are printed by clap.
fn report_usage_error(error: &clap::Error) -> ExitCode {
    let is_wrong_value = matches!(
        error.kind(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
    );
    if !is_wrong_value {
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.to_string();
    let first_paragraph: Vec<&str> = text
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let message = first_paragraph.join(" ");
    let message = message.trim_start_matches("error: ");
    report_failure(Failure::Usage(match environment_variable(error) {
        Some(name) => format!("{name}: {message}"),
        None => message.to_owned(),
    }))
}

/// Returns the environment variable of the flag that an error is about. In most cases the wrong
/// value comes from there.
fn environment_variable(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let long = flag.strip_prefix("--")?.split(' ').next()?;
    let command = Cli::command();
    let argument = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .find(|argument| argument.get_long() == Some(long))?;
    Some(argument.get_env()?.to_string_lossy().into_owned())
}

/// Starts the log on stderr, with a filter to use if RUST_LOG is not set.
fn start_log(format: LogFormat, default_filter: &str) -> Result<(), Failure> {
    let directives = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let filter = parse_log_filter(directives.as_deref().unwrap_or(default_filter))?;
    // A log that cannot be written, because of a full disk or a dead collector, stops nothing.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .log_internal_errors(false)
        .with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Parses RUST_LOG strictly: a misspelt level would pass as the name of a module, and silence all
/// other modules.
fn parse_log_filter(directives: &str) -> Result<EnvFilter, Failure> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_known = directives.split(',').all(|directive| {
        let directive = directive.trim().to_lowercase();
        directive.contains(['=', ':', '[']) || LEVELS.contains(&directive.as_str())
    });
    let filter = EnvFilter::try_new(directives).ok().filter(|_| is_known);
    filter.ok_or_else(|| {
        Failure::Usage(format!(
            "RUST_LOG {directives:?} is neither a level ({}) nor module=level",
            LEVELS.join(", ")
        ))
    })
}

/// Writes a line to stdout, in colours if stdout is a terminal.
fn print_line(text: impl Display) -> io::Result<()> {
    writeln!(anstream::stdout(), "{text}")
}

/// Refuses an empty range of time: it can only be a mistake.
fn check_time_range(
    since: Option<OffsetDateTime>,
    until: Option<OffsetDateTime>,
) -> Result<(), Failure> {
    match (since, until) {
        (Some(since), Some(until)) if since >= until => {
            Err(Failure::Usage("--since is not before --until".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Connects to the database, which must have this version's tables.
async fn connect(args: &DataArgs) -> Result<Pool, Failure> {
    Ok(open_database(args).await?.pool())
}

/// The database of the command.
static OPENED: OnceLock<Database> = OnceLock::new();

/// Says goodbye to the database: a server logs every connection that just breaks off.
async fn close_database() {
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
    if let Some(database) = OPENED.get() {
        let _ = timeout(CLOSE_TIMEOUT, database.close_pools()).await;
    }
}

/// Opens the database, which must answer and have this version's tables.
async fn open_database(args: &DataArgs) -> Result<Database, Failure> {
    let database = locate_database(args)?;
    let _ = OPENED.set(database.clone());
    let location = database.location();
    database
        .check_connection()
        .await
        .with_context(|| format!("cannot reach the database at {location}"))?;
    let readiness = bounded(readiness(&database.pool()))
        .await
        .with_context(|| format!("cannot use the database at {location}"))?;
    if readiness == Readiness::Unmigrated {
        let error = anyhow!(
            "the database at {location} lacks this version's tables: run lockwatch migrate"
        );
        return Err(Failure::Failed(error));
    }
    Ok(database)
}

/// Returns the database that `serve` uses: `DATABASE_URL`, or else the embedded one if it runs.
fn locate_database(args: &DataArgs) -> Result<Database, Failure> {
    if let Some(database) = args.external_database()? {
        return Ok(database);
    }
    let folder = args.postgres_folder()?;
    match EmbeddedPostgres::running_url(&folder) {
        Some(url) => Ok(Database::parse(&url).map_err(ConfigError::from)?),
        None => Err(Failure::Failed(no_database_error(&folder))),
    }
}

fn no_database_error(folder: &Path) -> anyhow::Error {
    let opened = std::fs::read_dir(folder);
    let folder = folder.display();
    match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => anyhow!(
            "only the user who runs lockwatch serve can read {folder}: \
             run this command as that user"
        ),
        _ => anyhow!(
            "no database: DATABASE_URL is not set, and no lockwatch serve runs on {folder}; \
             start one, or set DATABASE_URL"
        ),
    }
}
