//! Configuration: flags, environment, secrets.
//!
//! Every setting is a flag and an environment variable, except secrets: those come from the environment
//! or from a file (`NAME_FILE`), never from a command line that others can read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret, SecretString};

use crate::graph::{BadGraphSettings, BadTokens, Graph, GraphSettings, Tokens};
use crate::recorder::Capturing;
use crate::store::{BadDatabaseUrl, Database};

/// An app secret of Meta has 32 characters; a short one can be guessed.
const SHORTEST_APP_SECRET: usize = 16;

/// A setting that cannot be used: one line for whoever has to mend it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A required setting is missing.
    #[error("{name} is not set: {what}")]
    Missing {
        /// The setting.
        name: &'static str,
        /// What it is for.
        what: &'static str,
    },
    /// Set, but empty.
    #[error("{0} is set, but empty")]
    Empty(String),
    /// Both the variable and the one that names a file.
    #[error("{0} and {0}_FILE are both set: choose one")]
    Twice(&'static str),
    /// The file of a secret cannot be read.
    #[error("{name} {path}: {source}", path = path.display())]
    File {
        /// The setting that names it.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A secret that could be guessed.
    #[error(
        "META_APP_SECRET number {0} has fewer than 16 characters: copy it from the app's settings, Basic"
    )]
    ShortSecret(usize),
    /// The admin listener would be open to everybody.
    #[error(
        "LOCKWATCH_ADMIN_LISTEN {0} is not a loopback address: set LOCKWATCH_ADMIN_TOKEN as well"
    )]
    OpenAdmin(SocketAddr),
    /// The database's URL.
    #[error("DATABASE_URL is {0}")]
    Database(#[from] BadDatabaseUrl),
    /// The access tokens.
    #[error(transparent)]
    Tokens(#[from] BadTokens),
    /// Graph.
    #[error(transparent)]
    Graph(#[from] BadGraphSettings),
    /// Neither a folder given nor a home to put one in.
    #[error("LOCKWATCH_DATA_DIR is not set, and there is no HOME to choose a folder in")]
    NoHome,
}

/// Where the data lives.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Postgres to use (or DATABASE_URL_FILE). Unset: an embedded one in the data folder
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", value_parser = NonEmptyStringValueParser::new())]
    pub database_url: Option<String>,
    /// Folder of the embedded Postgres [default: $XDG_DATA_HOME/lockwatch, as root /var/lib/lockwatch]
    #[arg(long, env = "LOCKWATCH_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Folder of PostgreSQL's programs, where several are installed
    #[arg(long, env = "PG_BIN_DIR", value_name = "FOLDER")]
    pub pg_bin_dir: Option<PathBuf>,
}

impl DataArgs {
    /// The outside database, if one is named.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn database(&self) -> Result<Option<Database>, ConfigError> {
        let from_file = match &self.database_url {
            Some(_) if std::env::var_os("DATABASE_URL_FILE").is_some() => {
                return Err(ConfigError::Twice("DATABASE_URL"));
            }
            Some(_) => None,
            None => secret("DATABASE_URL")?,
        };
        let url = self
            .database_url
            .as_deref()
            .or(from_file.as_ref().map(ExposeSecret::expose_secret));
        Ok(url.map(Database::parse).transpose()?)
    }

    /// The folder of the embedded server.
    ///
    /// # Errors
    /// There is nowhere to put one.
    pub fn postgres_folder(&self) -> Result<PathBuf, ConfigError> {
        if let Some(folder) = &self.data_dir {
            return Ok(folder.join("postgres"));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/lockwatch/postgres"));
        }
        let set = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let share = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
        Ok(share.ok_or(ConfigError::NoHome)?.join("lockwatch/postgres"))
    }
}

/// Where to listen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listeners")]
pub struct ListenArgs {
    /// Public address: /webhook and /healthz, nothing else
    #[arg(
        long,
        env = "LOCKWATCH_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:8080"
    )]
    pub listen: SocketAddr,
    /// Admin address: dashboard, API, /metrics, /readyz. Not loopback: LOCKWATCH_ADMIN_TOKEN is required
    #[arg(
        long,
        env = "LOCKWATCH_ADMIN_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8081"
    )]
    pub admin_listen: SocketAddr,
}

impl ListenArgs {
    /// The admin listener's token. An address that others can reach needs one.
    ///
    /// # Errors
    /// It has none, or one that cannot be used.
    pub fn admin_token(&self) -> Result<Option<SecretString>, ConfigError> {
        let token = secret("LOCKWATCH_ADMIN_TOKEN")?;
        if token.is_none() && !self.admin_listen.ip().is_loopback() {
            return Err(ConfigError::OpenAdmin(self.admin_listen));
        }
        Ok(token)
    }
}

/// How to ask Meta.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Meta")]
pub struct GraphArgs {
    /// TOML with an access token per account: "102290129340398" = "EAA…"
    #[arg(long, env = "META_ACCESS_TOKENS_FILE", value_name = "FILE")]
    pub meta_access_tokens_file: Option<PathBuf>,
    /// The Graph API
    #[arg(
        long,
        env = "META_GRAPH_URL",
        value_name = "URL",
        default_value = "https://graph.facebook.com"
    )]
    pub meta_graph_url: String,
    /// The Graph API's version
    #[arg(
        long,
        env = "META_GRAPH_VERSION",
        value_name = "VERSION",
        default_value = "v25.0"
    )]
    pub meta_graph_version: String,
}

impl GraphArgs {
    /// The client, with the access tokens from environment and file.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub fn graph(&self, app_secrets: &[SecretString]) -> Result<Graph, ConfigError> {
        let tokens = Tokens::new(
            secret("META_ACCESS_TOKEN")?,
            self.meta_access_tokens_file.clone(),
        )?;
        Ok(Graph::new(GraphSettings {
            url: self.meta_graph_url.clone(),
            version: self.meta_graph_version.clone(),
            app_secrets: app_secrets.to_vec(),
            tokens,
        })?)
    }
}

/// What to keep, and for how long.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Retention")]
pub struct KeepArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see there")]
    pub capture: CaptureArgs,
    /// Days after which captures, deliveries, checks and quarantine leave; incidents stay. At least 8: Meta
    /// redelivers for 7
    #[arg(long, env = "LOCKWATCH_RETENTION_DAYS", value_name = "DAYS", default_value_t = 90, value_parser = retention_days)]
    pub retention_days: u32,
}

impl KeepArgs {
    /// The same as a duration.
    #[must_use]
    pub fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_days) * 24 * 3600)
    }
}

fn retention_days(text: &str) -> Result<u32, String> {
    let days = text.parse().ok().filter(|days| (8..=36_500).contains(days));
    days.ok_or_else(|| "not a number of days from 8 up: Meta redelivers for 7".to_owned())
}

/// Which callbacks to keep.
#[derive(Debug, Clone, Args)]
pub struct CaptureArgs {
    /// Callbacks kept byte for byte: lockouts, all (every one then waits for the database), or off
    #[arg(
        long,
        env = "LOCKWATCH_CAPTURE",
        value_name = "WHICH",
        default_value = "lockouts",
        hide_possible_values = true
    )]
    pub capture: Capturing,
}

/// How to write the log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Lines for people or for machines; levels by RUST_LOG
    #[arg(
        long,
        env = "LOCKWATCH_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The app secrets: `META_APP_SECRET`, several separated by commas.
///
/// # Errors
/// None, an empty or a short one.
pub fn app_secrets() -> Result<Vec<SecretString>, ConfigError> {
    app_secrets_for(
        "the app secret of your Meta app (App settings, Basic), without which nothing can be verified",
    )
}

fn app_secrets_for(what: &'static str) -> Result<Vec<SecretString>, ConfigError> {
    let secrets = secret("META_APP_SECRET")?.ok_or(ConfigError::Missing {
        name: "META_APP_SECRET",
        what,
    })?;
    let secrets: Vec<&str> = secrets.expose_secret().split(',').map(str::trim).collect();
    if let Some(short) = secrets
        .iter()
        .position(|secret| secret.chars().count() < SHORTEST_APP_SECRET)
    {
        return Err(ConfigError::ShortSecret(short + 1));
    }
    Ok(secrets.into_iter().map(SecretString::from).collect())
}

/// What to sign bodies with.
#[derive(Debug, Clone, Args)]
pub struct SigningArgs {
    /// File with the app secret to sign with (the first of several), instead of META_APP_SECRET
    #[arg(long, value_name = "FILE")]
    pub app_secret_file: Option<PathBuf>,
}

impl SigningArgs {
    /// The secret: the file's, or the first from the environment.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn app_secret(&self) -> Result<SecretString, ConfigError> {
        let Some(path) = &self.app_secret_file else {
            const WHAT: &str = "to sign with, give it, or --app-secret-file";
            return Ok(app_secrets_for(WHAT)?.swap_remove(0));
        };
        let text = read_secret("--app-secret-file".to_owned(), path)?;
        match text.split(',').next().unwrap_or_default().trim() {
            "" => Err(ConfigError::Empty(format!(
                "--app-secret-file {}",
                path.display()
            ))),
            secret => Ok(secret.into()),
        }
    }
}

/// The verify token of the handshake.
///
/// # Errors
/// There is none.
pub fn verify_token() -> Result<SecretString, ConfigError> {
    const WHAT: &str =
        "a word of your choice that you also enter in Meta's App Dashboard beside the callback URL";
    secret("META_VERIFY_TOKEN")?.ok_or(ConfigError::Missing {
        name: "META_VERIFY_TOKEN",
        what: WHAT,
    })
}

/// A secret from `NAME`, or from the file that `NAME_FILE` names, without the line's end.
///
/// # Errors
/// Empty, unreadable, or both set.
pub fn secret(name: &'static str) -> Result<Option<SecretString>, ConfigError> {
    let file_name = format!("{name}_FILE");
    let value = match (std::env::var_os(name), std::env::var_os(&file_name)) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(ConfigError::Twice(name)),
        (Some(value), None) => value
            .into_string()
            .map_err(|_| ConfigError::Empty(name.to_owned()))?,
        (None, Some(path)) if path.is_empty() => return Err(ConfigError::Empty(file_name)),
        (None, Some(path)) => read_secret(file_name, Path::new(&path))?,
    };
    if value.trim().is_empty() {
        return Err(ConfigError::Empty(name.to_owned()));
    }
    Ok(Some(value.into()))
}

fn read_secret(name: String, path: &Path) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| ConfigError::File {
        name,
        path: path.to_owned(),
        source,
    })?;
    Ok(text.trim_end().to_owned())
}
