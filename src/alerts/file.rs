//! The file of channels, in TOML: one table for each channel, `[kind.name]`.
//!
//! Every error names the file, the line (of a value or of its table) and the key, and no value that
//! may be secret. A secret also
//! stands in a file of its own: `url_file` instead of `url`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use toml::Spanned;

use super::channel::{Channel, Preset, WebhookSecret};
use crate::lockout::alerting::Filter;

/// The file of channels, and what was read from it.
#[derive(Debug)]
pub struct AlertsFile {
    path: PathBuf,
    channels: Vec<Channel>,
    /// The file and those that it names, as they were when they were read.
    stamps: Vec<(PathBuf, Stamp)>,
}

/// The time of the last change of a file and its length, by which a change shows.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AlertsFileError {
    /// It cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Something in it cannot be used.
    #[error("{path}, line {line}: {problem}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The problem there.
        problem: String,
    },
}

impl AlertsFile {
    /// Reads a file. Its channels have other names than those that are there `already`.
    ///
    /// # Errors
    /// Something in it cannot be used.
    pub fn read<'n>(
        path: PathBuf,
        already: impl Iterator<Item = &'n str>,
    ) -> Result<Self, AlertsFileError> {
        let mut file = Self {
            path,
            channels: vec![],
            stamps: vec![],
        };
        file.channels = file.read_again(already)?;
        Ok(file)
    }

    /// The channels.
    #[must_use]
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// Reads the file again if it, or one that it names, has changed. Returns whether it was read.
    ///
    /// # Errors
    /// Something in it cannot be used: the channels stay.
    pub(super) fn reload<'n>(
        &mut self,
        already: impl Iterator<Item = &'n str>,
    ) -> Result<bool, AlertsFileError> {
        if self
            .stamps
            .iter()
            .all(|(path, before)| stamp(path) == *before)
        {
            return Ok(false);
        }
        self.channels = self.read_again(already)?;
        Ok(true)
    }

    fn read_again<'n>(
        &mut self,
        already: impl Iterator<Item = &'n str>,
    ) -> Result<Vec<Channel>, AlertsFileError> {
        let path = self.path.clone();
        // Before it is read: a change in between is read the next time.
        self.stamps = vec![(path.clone(), stamp(&path))];
        let text = fs::read_to_string(&path).map_err(|source| AlertsFileError::Unreadable {
            path: path.clone(),
            source,
        })?;
        let reader = Reader {
            path: &path,
            text: &text,
            stamps: &mut self.stamps,
        };
        reader.read(already)
    }
}

/// The tables, by kind and name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    #[serde(default)]
    webhook: BTreeMap<String, Spanned<WebhookTable>>,
    #[serde(default)]
    slack: BTreeMap<String, Spanned<SlackTable>>,
    #[serde(default)]
    email: BTreeMap<String, Spanned<EmailTable>>,
    #[serde(default)]
    alertmanager: BTreeMap<String, Spanned<AlertmanagerTable>>,
    #[serde(default)]
    json: BTreeMap<String, Spanned<JsonTable>>,
}

/// A table of a kind, with the keys that each has.
macro_rules! table {
    ($name:ident { $($field:ident: $type:ty,)* }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {
            $(#[serde(default)] $field: $type,)*
            #[serde(default)]
            kinds: Vec<String>,
            #[serde(default)]
            accounts: Vec<String>,
            #[serde(default)]
            labels: Vec<String>,
            reminders: Option<bool>,
        }

        impl $name {
            fn filter(&self) -> Result<Filter, String> {
                if let Some(word) = self.kinds.iter().find(|word| !Filter::knows_kind(word)) {
                    return Err(format!(
                        "{word} in kinds is no kind: there are incident, account, lockwatch, and \
                         single ones such as incident.opened"
                    ));
                }
                Ok(Filter {
                    kinds: self.kinds.clone(),
                    accounts: self.accounts.clone(),
                    labels: self.labels.clone(),
                    is_without_reminders: self.reminders == Some(false),
                })
            }
        }
    };
}

table! { WebhookTable {
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
    secret: Option<SecretString>,
    secret_file: Option<PathBuf>,
} }
table! { SlackTable {
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
} }
table! { EmailTable {
    to: Vec<String>,
    from: String,
    smtp_url: Option<SecretString>,
    smtp_url_file: Option<PathBuf>,
} }
table! { AlertmanagerTable {
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
} }
table! { JsonTable {
    preset: Option<String>,
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
    values: BTreeMap<String, SecretString>,
    headers: BTreeMap<String, String>,
    body: Option<toml::Value>,
} }

/// Builds the channels of a text.
struct Reader<'f> {
    path: &'f Path,
    text: &'f str,
    stamps: &'f mut Vec<(PathBuf, Stamp)>,
}

impl Reader<'_> {
    fn read<'n>(
        mut self,
        already: impl Iterator<Item = &'n str>,
    ) -> Result<Vec<Channel>, AlertsFileError> {
        let tables: Tables = toml::from_str(self.text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let problem = without_values(error.message());
            let problem = self.key_at(start) + &problem;
            self.error(start, problem)
        })?;
        let mut names: Vec<String> = already.map(ToOwned::to_owned).collect();
        let mut channels = Vec::new();
        /// Builds the channels of a kind.
        macro_rules! build {
            ($kind:ident) => {
                for (name, table) in tables.$kind {
                    let start = table.span().start;
                    let table = table.into_inner();
                    let at = format!("{}.{name}", stringify!($kind));
                    if !is_name(&name) {
                        let problem = format!(
                            "{at}: a name has up to 50 letters, digits, hyphens and underscores"
                        );
                        return Err(self.error(start, problem));
                    }
                    if names.contains(&name) {
                        let problem = format!("{at}: there is a channel of that name already");
                        return Err(self.error(start, problem));
                    }
                    let channel = table
                        .filter()
                        .and_then(|filter| Ok(self.$kind(&name, table)?.with_filter(filter)))
                        .map_err(|problem| self.error(start, format!("{at}: {problem}")))?;
                    names.push(name);
                    channels.push(channel);
                }
            };
        }
        build!(webhook);
        build!(slack);
        build!(email);
        build!(alertmanager);
        build!(json);
        Ok(channels)
    }

    /// Returns the key that stands before a value, with a colon.
    fn key_at(&self, start: usize) -> String {
        let before = self.text.get(..start).unwrap_or_default();
        let line = before.lines().next_back().unwrap_or_default();
        match line.split_once('=') {
            Some((key, _)) if !before.ends_with('\n') => format!("{}: ", key.trim()),
            _ => String::new(),
        }
    }

    fn error(&self, start: usize, problem: String) -> AlertsFileError {
        let before = self.text.get(..start).unwrap_or_default();
        AlertsFileError::Line {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            problem,
        }
    }

    fn webhook(&mut self, name: &str, table: WebhookTable) -> Result<Channel, String> {
        let url = self.secret("url", table.url, table.url_file)?;
        let secret = self.secret("secret", table.secret, table.secret_file)?;
        let secret = WebhookSecret::parse(secret.expose_secret()).map_err(of_key("secret"))?;
        Channel::webhook(name, &url, secret).map_err(of_key("url"))
    }

    fn slack(&mut self, name: &str, table: SlackTable) -> Result<Channel, String> {
        let url = self.secret("url", table.url, table.url_file)?;
        Channel::slack(name, &url).map_err(of_key("url"))
    }

    fn email(&mut self, name: &str, table: EmailTable) -> Result<Channel, String> {
        let url = self.secret("smtp_url", table.smtp_url, table.smtp_url_file)?;
        let email = Channel::email(name, &url, &table.from, &table.to);
        email.map_err(|error| error.to_string())
    }

    fn alertmanager(&mut self, name: &str, table: AlertmanagerTable) -> Result<Channel, String> {
        let url = self.secret("url", table.url, table.url_file)?;
        Channel::alertmanager(name, &url).map_err(of_key("url"))
    }

    fn json(&mut self, name: &str, table: JsonTable) -> Result<Channel, String> {
        let mut preset = match (&table.preset, table.body) {
            (Some(_), Some(_)) => return Err("preset and body: choose one".to_owned()),
            (None, None) => return Err("preset or body is missing".to_owned()),
            (Some(name), None) => Preset::find(name).map_err(|error| error.to_string())?,
            (None, Some(body)) => Preset {
                body: serde_json::to_value(body).map_err(|error| format!("body: {error}"))?,
                ..Preset::default()
            },
        };
        preset.headers.extend(table.headers);
        let values = self.values(table.values)?;
        let (template, url) = preset.fill(values).map_err(|error| error.to_string())?;
        let url = match (url, &table.url, &table.url_file) {
            (Some(url), None, None) => url,
            _ => self.secret("url", table.url, table.url_file)?,
        };
        Channel::json(name, &url, template).map_err(of_key("url"))
    }

    /// A value `token_file` is the file with the value `token`.
    fn values(
        &mut self,
        values: BTreeMap<String, SecretString>,
    ) -> Result<BTreeMap<String, SecretString>, String> {
        let mut read = BTreeMap::new();
        for (name, value) in values {
            let (name, value) = match name.strip_suffix("_file") {
                Some(name) => {
                    let path = PathBuf::from(value.expose_secret());
                    (name.to_owned(), self.secret(name, None, Some(path))?)
                }
                None => (name, value),
            };
            read.insert(name, value);
        }
        Ok(read)
    }

    /// Returns a secret that stands here, or in the file that is named here.
    fn secret(
        &mut self,
        key: &str,
        value: Option<SecretString>,
        file: Option<PathBuf>,
    ) -> Result<SecretString, String> {
        let secret = match (value, file) {
            (Some(_), Some(_)) => return Err(format!("{key} and {key}_file: choose one")),
            (None, None) => return Err(format!("{key} or {key}_file is missing")),
            (Some(value), None) => value,
            (None, Some(file)) => {
                let file = match self.path.parent() {
                    Some(folder) => folder.join(file),
                    None => file,
                };
                self.stamps.push((file.clone(), stamp(&file)));
                let text = fs::read_to_string(&file).map_err(|error| {
                    match file.to_string_lossy().contains("://") {
                        // The secret itself, put there by mistake.
                        true => format!("{key}_file is a URL, not a file"),
                        false => format!("{key}_file {}: {error}", file.display()),
                    }
                })?;
                text.trim_end().into()
            }
        };
        if secret.expose_secret().trim().is_empty() {
            return Err(format!("{key} is empty"));
        }
        Ok(secret)
    }
}

/// A name stands in tables, links and metrics.
fn is_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=50).contains(&name.len()) && name.bytes().all(is_plain)
}

fn of_key<E: Display>(key: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{key} {error}")
}

/// The parser repeats a value that it does not expect. It may be a secret.
fn without_values(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    match (line.split_once("invalid "), line.rsplit_once(", expected ")) {
        (Some(("", _)), Some((_, expected))) => format!("another value, expected {expected}"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<AlertsFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alerts.toml");
        fs::write(&path, text).unwrap();
        fs::write(
            folder.path().join("slack"),
            "https://hooks.slack.com/services/T/B/X\n",
        )
        .unwrap();
        fs::write(folder.path().join("key"), "0123456789abcdef\n").unwrap();
        AlertsFile::read(path.clone(), ["webhook"].into_iter()).map_err(|error| {
            let error = error.to_string();
            error.replace(&path.display().to_string(), "alerts.toml")
        })
    }

    #[tokio::test]
    async fn every_kind_of_channel_is_read() {
        let file = read_text(
            r#"
            [slack.ops]
            url_file = "slack"
            kinds = ["incident", "lockwatch.callbacks_silent"]
            reminders = false

            [webhook.erp]
            url = "http://localhost:9/hooks"
            secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
            accounts = ["1022"]
            labels = ["eu"]

            [email.team]
            to = ["oncall@example.com", "Boss <boss@example.com>"]
            from = "lockwatch@example.com"
            smtp_url = "smtps://user:pw@mail.example.com"

            [alertmanager.prom]
            url = "http://localhost:9093"

            [json.pager]
            preset = "pagerduty"
            values = { routing_key_file = "key" }

            [json.own]
            url = "https://own.example"
            headers = { Authorization = "Bearer {token}" }
            values = { token = "t" }
            [json.own.body]
            text = "{title}"
            parts = [{ kind = "{type}", n = 1 }]
            "#,
        )
        .unwrap();
        let names: Vec<String> = file
            .channels()
            .iter()
            .map(|channel| format!("{} {}", channel.kind(), channel.name()))
            .collect();
        assert_eq!(
            names,
            [
                "webhook erp",
                "slack ops",
                "email team",
                "alertmanager prom",
                "json own",
                "json pager"
            ]
        );
        let filter = file.channels()[1].filter();
        assert!(filter.is_without_reminders);
        assert_eq!(filter.kinds.len(), 2);
    }

    /// The README's example is read as it stands.
    #[tokio::test]
    async fn the_example_of_the_readme_can_be_used() {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = fs::read_to_string(readme).unwrap();
        let (_, rest) = readme.split_once("```toml\n[slack.ops]").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, secret) in [
            ("slack_url", "https://hooks.slack.com/services/T/B/X"),
            ("erp_secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            ("smtp_url", "smtp://user:password@mail.example.com"),
            ("pagerduty_key", "0123456789abcdef0123456789abcdef"),
            ("telegram_token", "1:a"),
            ("teams_url", "https://teams.example.com/workflow"),
            ("own_token", "t"),
        ] {
            fs::write(folder.path().join(name), secret).unwrap();
        }
        let example = format!("[slack.ops]{example}").replace("/run/secrets/", "");
        let path = folder.path().join("alerts.toml");
        fs::write(&path, example).unwrap();
        let file = AlertsFile::read(path, std::iter::empty()).unwrap();
        assert_eq!(file.channels().len(), 9);
    }

    #[test]
    fn every_error_names_the_line_and_the_key_and_no_secret() {
        for (text, error) in [
            (
                "[slack.ops]\nurl = \"ftp://hush\"",
                "line 1: slack.ops: url must be a URL that starts with https://",
            ),
            (
                "\n[slack.ops]\nurll = \"hush\"",
                "line 3: unknown field `urll`, expected one of",
            ),
            (
                "[pager.x]\nurl = \"hush\"",
                "line 1: unknown field `pager`, expected one of",
            ),
            (
                "[slack.ops]\n",
                "line 1: slack.ops: url or url_file is missing",
            ),
            (
                "[slack.ops]\nurl_file = \"nowhere\"",
                "line 1: slack.ops: url_file ",
            ),
            (
                "[email.a]\nto = \"hush\"",
                "line 2: to: another value, expected a sequence",
            ),
            ("[slack.ops]\nurl = hush", "line 2: "),
            (
                "[json.a]\nvalues = { token = 4711 }",
                "line 2: values: another value, expected a",
            ),
            (
                "[slack.a]\nurl_file = \"https://hush\"",
                "line 1: slack.a: url_file is a URL, not a file",
            ),
            (
                "[slack.\"a/b\"]\nurl = \"https://hush\"",
                "line 1: slack.a/b: a name has up to 50 letters",
            ),
            (
                "[slack.webhook]\nurl = \"https://hush\"",
                "line 1: slack.webhook: there is a channel of that name already",
            ),
            (
                "[slack.a]\nurl = \"https://a.example\"\n[json.a]\nurl = \"https://hush\"",
                "line 3: json.a: there is a channel of that name already",
            ),
            (
                "[slack.a]\nurl = \"https://hush\"\nkinds = [\"incident.open\"]",
                "line 1: slack.a: incident.open in kinds is no kind",
            ),
            (
                "[json.a]\npreset = \"pagerduty\"",
                "line 1: json.a: {routing_key} has no value",
            ),
            (
                "[json.a]\nurl = \"https://hush\"",
                "line 1: json.a: preset or body is missing",
            ),
        ] {
            let shown = read_text(text).unwrap_err();
            assert!(
                shown.starts_with(&format!("alerts.toml, {error}")),
                "{text}: {shown}"
            );
            assert!(
                !shown.contains("hush") && !shown.contains("4711"),
                "{shown}"
            );
        }
    }
}
