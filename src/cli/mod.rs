//! The command line: one file a command. Data goes to stdout, everything else to stderr; exit codes are
//! 0 for ok, 1 for failed, 2 for wrong usage or configuration.

mod check;
mod demo;
mod healthcheck;
mod incidents;
mod migrate;
mod render;
mod serve;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write, stderr};
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, DataArgs, LogFormat};
use crate::embedded::Embedded;
use crate::store::{Database, Pool, Readiness, bounded, readiness};

const ABOUT: &str = "\
Tells a business within seconds that Meta has locked its WhatsApp Business Account (error 131031), why, \
and what to do about it. Register it as the webhook URL of a Meta app.";

#[derive(Debug, Parser)]
#[command(name = "lockwatch", version, about = ABOUT, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive callbacks, record lockouts, look up their causes
    Serve(serve::ServeArgs),
    /// See it work in ten seconds: real Postgres, simulated Meta, six locked accounts
    Demo(demo::DemoArgs),
    /// Create or update the database's tables (serve does so by itself)
    Migrate(migrate::MigrateArgs),
    /// Ask a running serve whether it is alive; exit 0 if so
    Healthcheck(healthcheck::HealthcheckArgs),
    /// List, show and resolve incidents
    #[command(subcommand)]
    Incidents(incidents::IncidentsCommand),
    /// Look up a phone number or account at Meta, now
    Check(check::CheckArgs),
}

/// How a command ends if not well.
#[derive(Debug)]
enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// It was tried and failed: exit code 1.
    Failed(anyhow::Error),
    /// What went wrong was told already: exit code 1.
    Told,
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

/// Parses the command line, runs the command, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report(Failure::Failed(anyhow::Error::new(error).context("cannot start"))),
    };
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Migrate(args) => migrate::run(args).await,
            Command::Healthcheck(args) => healthcheck::run(args).await,
            Command::Incidents(command) => incidents::run(command).await,
            Command::Check(args) => check::run(args).await,
        }
    });
    // A look-up that still waits for Meta must not hold up the end.
    runtime.shutdown_background();
    ended.map_or_else(report, |()| ExitCode::SUCCESS)
}

fn report(failure: Failure) -> ExitCode {
    match failure {
        Failure::Usage(message) => {
            anstream::eprintln!("lockwatch: {message}");
            ExitCode::from(2)
        }
        Failure::Failed(error) => {
            // Whoever read our output has gone, as `head` does: nobody is left to tell.
            let is_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
            if !error.downcast_ref().is_some_and(is_pipe) {
                anstream::eprintln!("lockwatch: {error:#}");
            }
            ExitCode::FAILURE
        }
        Failure::Told => ExitCode::FAILURE,
    }
}

/// A wrong value is one line; help and wrong words are clap's to print.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        let text = error.to_string();
        let first: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
        return report(Failure::Usage(first.join(" ").trim_start_matches("error: ").to_owned()));
    }
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Starts the log on stderr. `default` holds where RUST_LOG says nothing.
fn start_log(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Writes a line to stdout, in colours if that is a terminal.
fn say(text: impl Display) -> io::Result<()> {
    writeln!(anstream::stdout(), "{text}")
}

/// The database that `serve` uses: `DATABASE_URL`, else the embedded one if it runs.
fn database(args: &DataArgs) -> Result<Database, Failure> {
    if let Some(database) = args.database()? {
        return Ok(database);
    }
    let folder = args.postgres_folder()?;
    let Some(url) = Embedded::running(&folder) else {
        let opened = std::fs::read_dir(&folder);
        let folder = folder.display();
        return Err(Failure::Failed(match opened {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                anyhow::anyhow!("{folder} may only be read by the user who runs lockwatch serve: be that user")
            }
            _ => anyhow::anyhow!("no database: DATABASE_URL is not set, and no lockwatch serve runs on {folder}"),
        }));
    };
    Ok(Database::parse(&url).map_err(ConfigError::from)?)
}

/// A pool on a database that has its tables.
async fn connect(args: &DataArgs) -> Result<Pool, Failure> {
    let database = database(args)?;
    let db = database.pool();
    let location = database.location();
    let readiness = bounded(readiness(&db)).await.with_context(|| format!("cannot use the database at {location}"))?;
    if readiness == Readiness::Unmigrated {
        let error = anyhow::anyhow!("the database at {location} lacks this version's tables: run lockwatch migrate");
        return Err(Failure::Failed(error));
    }
    Ok(db)
}
