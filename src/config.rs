//! Configuration: flags, environment variables and secrets.
//!
//! Every setting is a flag and an environment variable. Secrets are the exception: they come from
//! the environment or from a file (`NAME_FILE`), never from a command line that other users can
//! read.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret, SecretString};

use crate::alerts::Alerting;
use crate::alerts::channel::{Channel, WebhookSecret};
use crate::alerts::file::{AlertsFile, AlertsFileError};
use crate::graph::{Graph, GraphSettings, GraphSettingsError, Tokens, TokensError};
use crate::inbox::Capturing;
use crate::meta::codes::WatchedCodes;
use crate::store::{BadDatabaseUrl, Database};

/// The fewest characters of an app secret. Meta's have 32; a short secret can be guessed.
const APP_SECRET_MIN_CHARACTERS: usize = 16;

/// A setting that cannot be used. The text is one line for the person who has to correct it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{name} is not set: {purpose}")]
    Missing {
        name: &'static str,
        purpose: &'static str,
    },
    #[error("{0} is set, but empty")]
    Empty(String),
    #[error("{name} {path} is an empty file", path = path.display())]
    EmptyFile { name: String, path: PathBuf },
    #[error("{0} is not valid UTF-8")]
    NotUnicode(&'static str),
    #[error("{0} and {0}_FILE are both set: choose one")]
    Conflict(&'static str),
    #[error("{name} {path}: {source}", path = path.display())]
    UnreadableFile {
        name: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "META_APP_SECRET number {0} has fewer than {APP_SECRET_MIN_CHARACTERS} characters: \
         copy it from the app's settings, Basic"
    )]
    ShortSecret(usize),
    #[error(
        "META_APP_SECRET number {0} contains white space or another character that no app secret \
         has: copy it from the app's settings, Basic"
    )]
    MalformedSecret(usize),
    #[error(
        "LOCKWATCH_ADMIN_LISTEN {0} is not a loopback address: set LOCKWATCH_ADMIN_TOKEN as well"
    )]
    UnprotectedAdmin(SocketAddr),
    #[error("DATABASE_URL is {0}")]
    Database(#[from] BadDatabaseUrl),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error(transparent)]
    Graph(#[from] GraphSettingsError),
    #[error("{name} {problem}")]
    Channel { name: &'static str, problem: String },
    #[error("LOCKWATCH_ALERTS_FILE {0}")]
    AlertsFile(#[from] AlertsFileError),
    #[error("{0} is in quotation marks: remove them")]
    Quoted(&'static str),
    #[error("{0} is a placeholder, not a secret: put the real one there")]
    Placeholder(&'static str),
    #[error("no data folder: LOCKWATCH_DATA_DIR and HOME are not set; set LOCKWATCH_DATA_DIR")]
    NoDataFolder,
}

/// The database to use.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataArgs {
    /// Use this Postgres (DATABASE_URL_FILE may name a file with the URL). Without it: an embedded
    /// Postgres in the data folder
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub(crate) database_url: Option<String>,
    /// Keep the embedded Postgres in this folder [default: $XDG_DATA_HOME/lockwatch, as root
    /// /var/lib/lockwatch]
    #[arg(long, env = "LOCKWATCH_DATA_DIR", value_name = "FOLDER")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Use the PostgreSQL programs in this folder, if several versions are installed
    #[arg(long, env = "PG_BIN_DIR", value_name = "FOLDER")]
    pub(crate) pg_bin_dir: Option<PathBuf>,
}

impl DataArgs {
    /// Returns the external database, if a URL is given. Fails if the URL is malformed.
    pub(crate) fn external_database(&self) -> Result<Option<Database>, ConfigError> {
        let Some(url) = &self.database_url else {
            let url = read_secret("DATABASE_URL")?;
            let database = url.map(|url| Database::parse(url.expose_secret()));
            return Ok(database.transpose()?);
        };
        if env::var_os("DATABASE_URL_FILE").is_some() {
            return Err(ConfigError::Conflict("DATABASE_URL"));
        }
        Ok(Some(Database::parse(url)?))
    }

    /// Returns the folder of the embedded server. Fails if no variable leads to one.
    pub(crate) fn postgres_folder(&self) -> Result<PathBuf, ConfigError> {
        if let Some(folder) = &self.data_dir {
            return Ok(folder.join("postgres"));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/lockwatch/postgres"));
        }
        let data_home = folder_from_environment("XDG_DATA_HOME")
            .or_else(|| Some(folder_from_environment("HOME")?.join(".local/share")))
            .ok_or(ConfigError::NoDataFolder)?;
        Ok(data_home.join("lockwatch/postgres"))
    }
}

/// The addresses of the two listeners.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listeners")]
pub(crate) struct ListenArgs {
    /// Public address: serves /webhook and /healthz, nothing else
    #[arg(
        long,
        env = "LOCKWATCH_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:8080"
    )]
    pub(crate) listen: SocketAddr,
    /// Admin address: serves the dashboard, the API, /metrics and /readyz. Any address but loopback
    /// requires LOCKWATCH_ADMIN_TOKEN
    #[arg(
        long,
        env = "LOCKWATCH_ADMIN_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8081"
    )]
    pub(crate) admin_listen: SocketAddr,
}

impl ListenArgs {
    /// Reads the token of the admin listener. An address that other machines can reach needs one.
    pub(crate) fn read_admin_token(&self) -> Result<Option<SecretString>, ConfigError> {
        let token = read_secret("LOCKWATCH_ADMIN_TOKEN")?;
        if token.is_none() && !self.admin_listen.ip().is_loopback() {
            return Err(ConfigError::UnprotectedAdmin(self.admin_listen));
        }
        Ok(token)
    }
}

/// The access to Meta's Graph API.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Meta")]
pub(crate) struct GraphArgs {
    /// Read access tokens from this TOML file, one line per account: "102290129340398" = "EAA…"
    #[arg(long, env = "META_ACCESS_TOKENS_FILE", value_name = "FILE")]
    pub(crate) meta_access_tokens_file: Option<PathBuf>,
    /// Base URL of the Graph API
    #[arg(
        long,
        env = "META_GRAPH_URL",
        value_name = "URL",
        default_value = "https://graph.facebook.com"
    )]
    pub(crate) meta_graph_url: String,
    /// Version of the Graph API
    #[arg(
        long,
        env = "META_GRAPH_VERSION",
        value_name = "VERSION",
        default_value = "v25.0"
    )]
    pub(crate) meta_graph_version: String,
}

impl GraphArgs {
    /// Builds the client, with the access tokens from the environment and from the file.
    pub(crate) fn build_client(&self, app_secrets: &[SecretString]) -> Result<Graph, ConfigError> {
        let tokens = Tokens::new(
            read_secret("META_ACCESS_TOKEN")?,
            self.meta_access_tokens_file.clone(),
        )?;
        Ok(Graph::new(GraphSettings {
            url: self.meta_graph_url.clone(),
            version: self.meta_graph_version.clone(),
            app_secrets: app_secrets.to_vec(),
            tokens,
            proxy: read_secret(PROXY)?,
        })?)
    }
}

/// The variable of the proxy to reach Graph through. It may hold a password.
const PROXY: &str = "LOCKWATCH_GRAPH_PROXY";

/// Returns a variable that names a proxy, although ours does not: somebody may expect that it is
/// used.
pub(crate) fn ignored_proxy() -> Option<&'static str> {
    const NAMES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let file_name = format!("{PROXY}_FILE");
    NAMES
        .into_iter()
        .find(|name| is_set(name) && !is_set(PROXY) && !is_set(&file_name))
}

/// The data to keep, and for how long.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Retention")]
pub(crate) struct RetentionArgs {
    #[command(flatten)]
    pub(crate) capture: CaptureArgs,
    /// Delete captures, deliveries, checks and quarantine after this many days; incidents stay. At
    /// least 8, because Meta redelivers for 7
    #[arg(
        long,
        env = "LOCKWATCH_RETENTION_DAYS",
        value_name = "DAYS",
        default_value_t = 90,
        value_parser = parse_retention_days
    )]
    pub(crate) retention_days: u32,
}

impl RetentionArgs {
    /// Returns the retention days as a duration.
    pub(crate) fn period(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_days) * 24 * 3600)
    }
}

fn parse_retention_days(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(days) if (8..=36_500).contains(&days) => Ok(days),
        _ => Err("not a number of days between 8 and 36500 (Meta redelivers for 7)".to_owned()),
    }
}

/// The failures to record, and the callbacks to keep byte for byte.
#[derive(Debug, Clone, Args)]
pub(crate) struct CaptureArgs {
    /// Record failures with these error codes: 131031 (account locked), a list, or account for
    /// 131031, 368, 131042, 131045, 133010, 130497 and 131064. The same on every replica
    #[arg(
        long,
        env = "LOCKWATCH_CODES",
        value_name = "CODES",
        default_value = "131031"
    )]
    pub(crate) codes: WatchedCodes,
    /// Keep these callbacks byte for byte: lockouts, all (then every callback waits for the
    /// database), or off
    #[arg(
        long,
        env = "LOCKWATCH_CAPTURE",
        value_name = "MODE",
        default_value = "lockouts",
        hide_possible_values = true
    )]
    pub(crate) capture: Capturing,
}

/// The channels to tell, and how people reach the dashboard.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Alerts")]
pub(crate) struct AlertArgs {
    /// URL by which people reach the dashboard, for the links in alerts
    #[arg(
        long,
        env = "LOCKWATCH_EXTERNAL_URL",
        value_name = "URL",
        value_parser = parse_external_url
    )]
    pub(crate) external_url: Option<String>,
    #[command(flatten)]
    pub(crate) channels: ChannelArgs,
}

/// The channels of alerts that are no secrets.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Alerts")]
pub(crate) struct ChannelArgs {
    /// Tell the channels in this TOML file: a table [KIND.NAME] each, of webhook, slack, email,
    /// alertmanager and json. It is read again when it changes
    #[arg(long, env = "LOCKWATCH_ALERTS_FILE", value_name = "FILE")]
    pub(crate) alerts_file: Option<PathBuf>,
    /// Mail alerts to these addresses, through LOCKWATCH_SMTP_URL
    #[arg(
        long,
        env = "LOCKWATCH_ALERT_EMAIL_TO",
        value_name = "ADDRESSES",
        value_delimiter = ','
    )]
    pub(crate) alert_email_to: Vec<String>,
    /// Sender of that mail
    #[arg(
        long,
        env = "LOCKWATCH_ALERT_EMAIL_FROM",
        value_name = "ADDRESS",
        requires = "alert_email_to"
    )]
    pub(crate) alert_email_from: Option<String>,
}

impl AlertArgs {
    /// Reads the channels from the environment and from the file.
    pub(crate) fn alerting(&self) -> Result<Alerting, ConfigError> {
        let alerting = self.channels.read()?;
        Ok(Alerting {
            external_url: self.external_url.clone(),
            ..alerting
        })
    }
}

impl ChannelArgs {
    /// Reads the channels from the environment and from the file.
    pub(crate) fn read(&self) -> Result<Alerting, ConfigError> {
        let mut channels = Vec::new();
        channels.extend(read_webhook()?);
        if let Some(url) = read_secret(SLACK_URL)? {
            channels.push(Channel::slack("slack", &url).map_err(of_variable(SLACK_URL))?);
        }
        channels.extend(self.read_email()?);
        if let Some(url) = read_secret(ALERTMANAGER_URL)? {
            let channel = Channel::alertmanager("alertmanager", &url);
            channels.push(channel.map_err(of_variable(ALERTMANAGER_URL))?);
        }
        let file = match &self.alerts_file {
            Some(path) => {
                let already = channels.iter().map(Channel::name);
                Some(AlertsFile::read(path.clone(), already)?)
            }
            None => None,
        };
        Ok(Alerting {
            channels,
            file,
            external_url: None,
        })
    }

    fn read_email(&self) -> Result<Option<Channel>, ConfigError> {
        let missing = |name, purpose| Err(ConfigError::Missing { name, purpose });
        let smtp_url = read_secret(SMTP_URL)?;
        match (&self.alert_email_to[..], &self.alert_email_from, smtp_url) {
            ([], _, None) => Ok(None),
            ([], _, Some(_)) => missing(
                "LOCKWATCH_ALERT_EMAIL_TO",
                "LOCKWATCH_SMTP_URL is set, and mails alerts there",
            ),
            (_, None, _) => missing(
                "LOCKWATCH_ALERT_EMAIL_FROM",
                "it is the sender of the mail to LOCKWATCH_ALERT_EMAIL_TO",
            ),
            (_, _, None) => missing(
                SMTP_URL,
                "it leads to the mail server, as smtps://user:password@host or smtp://…",
            ),
            (to, Some(from), Some(url)) => {
                let channel = Channel::email("email", &url, from, to);
                Ok(Some(channel.map_err(of_variable("LOCKWATCH_ALERT_EMAIL"))?))
            }
        }
    }
}

const WEBHOOK_URL: &str = "LOCKWATCH_ALERT_WEBHOOK_URL";
const WEBHOOK_SECRET: &str = "LOCKWATCH_ALERT_WEBHOOK_SECRET";
const SLACK_URL: &str = "LOCKWATCH_ALERT_SLACK_URL";
const ALERTMANAGER_URL: &str = "LOCKWATCH_ALERTMANAGER_URL";
const SMTP_URL: &str = "LOCKWATCH_SMTP_URL";

fn of_variable<E: Display>(name: &'static str) -> impl FnOnce(E) -> ConfigError {
    move |error| ConfigError::Channel {
        name,
        problem: error.to_string(),
    }
}

fn read_webhook() -> Result<Option<Channel>, ConfigError> {
    let missing = |name, purpose| Err(ConfigError::Missing { name, purpose });
    match (read_secret(WEBHOOK_URL)?, read_secret(WEBHOOK_SECRET)?) {
        (Some(url), Some(secret)) => {
            let secret = WebhookSecret::parse(secret.expose_secret());
            let secret = secret.map_err(of_variable(WEBHOOK_SECRET))?;
            let channel = Channel::webhook("webhook", &url, secret);
            Ok(Some(channel.map_err(of_variable(WEBHOOK_URL))?))
        }
        (Some(_), None) => missing(
            WEBHOOK_SECRET,
            "it signs the alerts that go to LOCKWATCH_ALERT_WEBHOOK_URL; make one: \
             echo whsec_$(openssl rand -base64 32)",
        ),
        (None, Some(_)) => missing(
            WEBHOOK_URL,
            "LOCKWATCH_ALERT_WEBHOOK_SECRET is set, and signs what goes there",
        ),
        (None, None) => Ok(None),
    }
}

fn parse_external_url(text: &str) -> Result<String, String> {
    match text.starts_with("http://") || text.starts_with("https://") {
        true => Ok(text.to_owned()),
        false => Err("not a URL that starts with http:// or https://".to_owned()),
    }
}

/// The format of the log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub(crate) struct LogArgs {
    /// Write the log in this format. RUST_LOG sets the levels
    #[arg(
        long,
        env = "LOCKWATCH_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
}

/// The format of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

/// The app secret that signs bodies.
#[derive(Debug, Clone, Args)]
pub(crate) struct SigningArgs {
    /// Sign with the app secret in this file (the first of several) instead of META_APP_SECRET
    #[arg(long, value_name = "FILE")]
    pub(crate) app_secret_file: Option<PathBuf>,
}

impl SigningArgs {
    /// Reads the app secret: the first in the file, or else the first in the environment.
    pub(crate) fn read_app_secret(&self) -> Result<SecretString, ConfigError> {
        let Some(path) = &self.app_secret_file else {
            const PURPOSE: &str = "set it to sign callbacks, or use --app-secret-file";
            return Ok(read_app_secrets_for(PURPOSE)?.swap_remove(0));
        };
        let text = read_secret_file("--app-secret-file".to_owned(), path)?;
        let first = text.split(',').next().unwrap_or_default().trim();
        if first.is_empty() {
            return Err(ConfigError::EmptyFile {
                name: "--app-secret-file".to_owned(),
                path: path.clone(),
            });
        }
        Ok(first.into())
    }
}

/// Reads the app secrets from `META_APP_SECRET`: one, or several separated by commas. Fails if
/// there is none, or if one cannot be an app secret.
pub(crate) fn read_app_secrets() -> Result<Vec<SecretString>, ConfigError> {
    read_app_secrets_for(
        "set it to the app secret of your Meta app (App settings, Basic); \
         without it no signature can be verified",
    )
}

fn read_app_secrets_for(purpose: &'static str) -> Result<Vec<SecretString>, ConfigError> {
    const NAME: &str = "META_APP_SECRET";
    let secrets = read_secret(NAME)?.ok_or(ConfigError::Missing {
        name: NAME,
        purpose,
    })?;
    let secrets: Vec<&str> = secrets.expose_secret().split(',').map(str::trim).collect();
    let short = secrets
        .iter()
        .position(|secret| secret.chars().count() < APP_SECRET_MIN_CHARACTERS);
    if let Some(position) = short {
        return Err(ConfigError::ShortSecret(position + 1));
    }
    let malformed = secrets
        .iter()
        .position(|secret| !secret.bytes().all(|byte| byte.is_ascii_graphic()));
    if let Some(position) = malformed {
        return Err(ConfigError::MalformedSecret(position + 1));
    }
    Ok(secrets.into_iter().map(SecretString::from).collect())
}

/// Reads the token that Meta sends when it verifies the callback URL.
pub(crate) fn read_verify_token() -> Result<SecretString, ConfigError> {
    const NAME: &str = "META_VERIFY_TOKEN";
    read_secret(NAME)?.ok_or(ConfigError::Missing {
        name: NAME,
        purpose: "set it to a word of your choice, and enter the same word in Meta's \
                  App Dashboard, next to the callback URL",
    })
}

/// Reads a secret from `NAME`, or from the file that `NAME_FILE` names, without the white space at
/// its end. Fails if both are set, or if the secret is empty or unreadable.
fn read_secret(name: &'static str) -> Result<Option<SecretString>, ConfigError> {
    let file_name = format!("{name}_FILE");
    let value = match (env::var_os(name), env::var_os(&file_name)) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(ConfigError::Conflict(name)),
        (Some(value), None) => value
            .into_string()
            .map_err(|_| ConfigError::NotUnicode(name))?,
        (None, Some(path)) if path.is_empty() => return Err(ConfigError::Empty(file_name)),
        (None, Some(path)) => {
            let path = PathBuf::from(path);
            let value = read_secret_file(file_name.clone(), &path)?;
            if value.is_empty() {
                let name = file_name;
                return Err(ConfigError::EmptyFile { name, path });
            }
            value
        }
    };
    if value.trim().is_empty() {
        return Err(ConfigError::Empty(name.to_owned()));
    }
    if is_quoted(&value) || value.split(',').any(is_quoted) {
        return Err(ConfigError::Quoted(name));
    }
    if value.split(',').all(is_placeholder) {
        return Err(ConfigError::Placeholder(name));
    }
    Ok(Some(value.into()))
}

/// Returns whether a value is in quotation marks: some tools pass those of an env file on.
fn is_quoted(value: &str) -> bool {
    let value = value.trim();
    ["\"", "'", "`"]
        .into_iter()
        .any(|mark| value.len() > 1 && value.starts_with(mark) && value.ends_with(mark))
        || value.starts_with('“') && value.ends_with('”')
}

/// Returns whether a value is what stands in an example, not a secret.
fn is_placeholder(value: &str) -> bool {
    const WORDS: [&str; 3] = ["changeme", "placeholder", "todo"];
    const YOURS: [&str; 6] = ["app", "secret", "token", "verify", "access", "meta"];
    let value = value.trim();
    let letters: String = value
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let is_framed = [('<', '>'), ('[', ']'), ('{', '}')]
        .into_iter()
        .any(|(open, close)| value.starts_with(open) && value.ends_with(close));
    let variable = value.strip_prefix('$').unwrap_or_default();
    let variable = variable.trim_start_matches('{').trim_end_matches('}');
    let is_variable = !variable.is_empty()
        && variable
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let is_described = letters
        .strip_prefix("your")
        .is_some_and(|rest| YOURS.iter().any(|word| rest.starts_with(word)));
    let is_one_letter = letters.len() > 3 && letters.bytes().all(|b| b == letters.as_bytes()[0]);
    let is_dotted = value.ends_with("...") || value.ends_with('…');
    is_framed
        || is_variable
        || is_described
        || is_one_letter
        || is_dotted
        || WORDS.contains(&letters.as_str())
}

fn read_secret_file(name: String, path: &Path) -> Result<String, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(ConfigError::UnreadableFile {
            name,
            path: path.to_owned(),
            source,
        }),
    }
}

fn folder_from_environment(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name)?;
    (!value.is_empty()).then(|| PathBuf::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_placeholders_are_no_secrets() {
        for quoted in ["\"abc\"", "'abc'", " `abc` ", "“abc”"] {
            assert!(is_quoted(quoted), "{quoted}");
        }
        for placeholder in [
            "changeme",
            "change-me",
            "<app secret>",
            "${META_APP_SECRET}",
            "$SECRET",
            "{{ secret }}",
            "your_app_secret_here",
            "xxxxxxxxxxxxxxxxxxxx",
            "EAAG...",
            "EAA…",
            "TODO",
        ] {
            assert!(is_placeholder(placeholder), "{placeholder}");
        }
        for secret in [
            "0123456789abcdef0123456789abcdef",
            "EAAtestsAccessToken1234567890",
            "verify-me",
            "$k9fXq2mVb7",
            "yourbrand-webhook-8f2c",
            "token",
            "a \"quoted\" word",
            "it's",
            "\"",
            "s3cret:token",
        ] {
            assert!(!is_quoted(secret) && !is_placeholder(secret), "{secret}");
        }
    }
}
