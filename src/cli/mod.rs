//! The command line: one file a command. Data goes to stdout, everything else to stderr; exit codes are
//! 0 for ok, 1 for failed, 2 for wrong usage or configuration.

mod captures;
mod chart;
mod check;
mod demo;
mod healthcheck;
mod incidents;
mod migrate;
mod render;
mod replay;
mod serve;
mod sign;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;

use anyhow::Context;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, DataArgs, LogFormat};
use crate::embedded::Embedded;
use crate::error_chain::error_chain;
use crate::http::api::openapi;
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
    /// List and export the callbacks that were kept
    #[command(subcommand)]
    Captures(captures::CapturesCommand),
    /// Play captures back, to a webhook or into the database
    Replay(replay::ReplayArgs),
    /// Print the header that signs a file's bytes, ready for curl
    Sign(sign::SignArgs),
    /// Print the description of the admin API (OpenAPI 3.1)
    Openapi,
    /// Print the script that completes commands in a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
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
        Err(error) => {
            return report(Failure::Failed(
                anyhow::Error::new(error).context("cannot start"),
            ));
        }
    };
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Migrate(args) => migrate::run(args).await,
            Command::Healthcheck(args) => healthcheck::run(args).await,
            Command::Incidents(command) => incidents::run(command).await,
            Command::Check(args) => check::run(args).await,
            Command::Captures(command) => captures::run(command).await,
            Command::Replay(args) => replay::run(args).await,
            Command::Sign(args) => sign::run(&args),
            Command::Openapi => Ok(write!(stdout(), "{}", openapi())?),
            Command::Completions { shell } => Ok(stdout().write_all(&completions(shell))?),
        }
    });
    // A look-up that still waits for Meta must not hold up the end.
    runtime.shutdown_background();
    ended.map_or_else(report, |()| ExitCode::SUCCESS)
}

/// Into memory first: whoever reads the output may have gone.
fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lockwatch", &mut script);
    script
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
                anstream::eprintln!("lockwatch: {}", error_chain(error.as_ref()));
            }
            ExitCode::FAILURE
        }
        Failure::Told => ExitCode::FAILURE,
    }
}

/// A wrong value is one line; help and wrong words are clap's to print.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
    ) {
        let text = error.to_string();
        let first: Vec<&str> = text
            .lines()
            .take_while(|line| !line.trim().is_empty())
            .map(str::trim)
            .collect();
        let variable = variable(error)
            .map(|name| format!("{name}: "))
            .unwrap_or_default();
        return report(Failure::Usage(format!(
            "{variable}{}",
            first.join(" ").trim_start_matches("error: ")
        )));
    }
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The environment variable behind the flag that an error is about: the value mostly came from there.
fn variable(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let long = flag.strip_prefix("--")?.split(' ').next()?;
    let command = Cli::command();
    let mut arguments = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments);
    let variable = arguments
        .find(|argument| argument.get_long() == Some(long))?
        .get_env()?;
    Some(variable.to_string_lossy().into_owned())
}

/// Starts the log on stderr. `default` holds where RUST_LOG says nothing.
fn start_log(format: LogFormat, default: &str) -> Result<(), Failure> {
    let directives = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let filter = log_filter(directives.as_deref().unwrap_or(default))?;
    // A log that cannot be written, for a full disk or a collector that died, stops nothing.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .log_internal_errors(false);
    let log = log.with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A misspelt level would be taken for the name of some module, and silence all others.
fn log_filter(directives: &str) -> Result<EnvFilter, Failure> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_known = |word: &str| {
        word.contains(['=', ':', '[']) || LEVELS.contains(&word.to_lowercase().as_str())
    };
    let filter = EnvFilter::try_new(directives).ok();
    filter
        .filter(|_| {
            directives
                .split(',')
                .all(|directive| is_known(directive.trim()))
        })
        .ok_or_else(|| {
            Failure::Usage(format!(
                "RUST_LOG {directives:?} is neither a level ({}) nor module=level",
                LEVELS.join(", ")
            ))
        })
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
                anyhow::anyhow!(
                    "{folder} may only be read by the user who runs lockwatch serve: be that user"
                )
            }
            _ => anyhow::anyhow!(
                "no database: DATABASE_URL is not set, and no lockwatch serve runs on {folder}; start one, or set it"
            ),
        }));
    };
    Ok(Database::parse(&url).map_err(ConfigError::from)?)
}

/// A pool on a database that has its tables.
async fn connect(args: &DataArgs) -> Result<Pool, Failure> {
    Ok(ready_database(args).await?.pool())
}

/// A database that is there and has its tables.
async fn ready_database(args: &DataArgs) -> Result<Database, Failure> {
    let database = database(args)?;
    let location = database.location();
    database
        .reach()
        .await
        .with_context(|| format!("cannot reach the database at {location}"))?;
    let readiness = bounded(readiness(&database.pool())).await;
    if readiness.with_context(|| format!("cannot use the database at {location}"))?
        == Readiness::Unmigrated
    {
        let error = anyhow::anyhow!(
            "the database at {location} lacks this version's tables: run lockwatch migrate"
        );
        return Err(Failure::Failed(error));
    }
    Ok(database)
}
