//! The Graph API client: one look-up, bounded in every direction, that never repeats a token.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use tracing::{error, info};

use crate::meta::health::{self, Answer};
use crate::meta::ids::Text;
use crate::meta::signature::appsecret_proof;
use crate::store::checks::Check;
use crate::with_causes;

const CONNECT: Duration = Duration::from_secs(3);
const WHOLE: Duration = Duration::from_secs(10);
/// A real answer has one or two kilobytes.
const READ_AT_MOST: usize = 256 * 1024;
/// How much of an answer is kept, in bytes.
const KEEP_AT_MOST: usize = 16 * 1024;

/// What the client needs to know.
#[derive(Debug)]
pub struct GraphSettings {
    /// Where Graph is, such as `https://graph.facebook.com`.
    pub url: String,
    /// The version, such as `v25.0`.
    pub version: String,
    /// The app secrets, for `appsecret_proof`.
    pub app_secrets: Vec<SecretString>,
    /// The access tokens.
    pub tokens: Tokens,
}

/// Graph is not where it may be.
#[derive(Debug, thiserror::Error)]
pub enum BadGraphSettings {
    /// Not a URL.
    #[error("META_GRAPH_URL is not a URL: {0}")]
    Url(String),
    /// A token over plain HTTP could be read by anyone on the way.
    #[error("META_GRAPH_URL must be https (plain http only to a loopback address)")]
    Insecure,
    /// The version is not like `v25.0`.
    #[error("META_GRAPH_VERSION must look like v25.0")]
    Version,
    /// The HTTP client does not start.
    #[error("the HTTP client does not start: {0}")]
    Client(reqwest::Error),
}

/// The client.
#[derive(Debug)]
pub struct Graph {
    client: Client,
    base: Url,
    app_secrets: Vec<SecretString>,
    tokens: Tokens,
}

impl Graph {
    /// Prepares the client. Contacts nobody.
    ///
    /// # Errors
    /// [`BadGraphSettings`].
    pub fn new(settings: GraphSettings) -> Result<Self, BadGraphSettings> {
        let GraphSettings {
            url,
            version,
            app_secrets,
            tokens,
        } = settings;
        let valid_version = version
            .strip_prefix('v')
            .and_then(|v| v.split_once('.'))
            .is_some_and(|(major, minor)| {
                [major, minor]
                    .iter()
                    .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
            });
        if !valid_version {
            return Err(BadGraphSettings::Version);
        }
        let base = Url::parse(&format!("{}/{version}/", url.trim_end_matches('/')))
            .map_err(|error| BadGraphSettings::Url(error.to_string()))?;
        if base.scheme() != "https" && !(base.scheme() == "http" && is_loopback(&base)) {
            return Err(BadGraphSettings::Insecure);
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .https_only(base.scheme() == "https")
            // Nothing is sent on a connection that the other side may be closing: it would come to nothing, and
            // the cause would have to wait for the next attempt.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            .user_agent(concat!("lockwatch/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(BadGraphSettings::Client)?;
        Ok(Self {
            client,
            base,
            app_secrets,
            tokens,
        })
    }

    /// Whether there is any access token at all.
    #[must_use]
    pub fn has_tokens(&self) -> bool {
        self.tokens.default.is_some() || self.tokens.file.is_some()
    }

    /// Asks for the health of a node of an account. Never fails: what went wrong is an answer too.
    pub async fn look_up(&self, waba_id: &str, node_id: &str) -> Check {
        let started = Instant::now();
        let not_asked = |reason: &str| Check {
            answer: Answer::NotAsked(reason.to_owned()),
            http_status: None,
            response: None,
            duration: started.elapsed(),
        };
        if node_id.is_empty() || !node_id.bytes().all(|byte| byte.is_ascii_digit()) {
            return not_asked("the node id is not a number, so it is not asked for");
        }
        let Some(token) = self.tokens.of(waba_id) else {
            return not_asked("no token configured");
        };
        // The first secret signs, unless Meta calls its proof invalid: then the token is another app's.
        let remembered = token.proof_by.load(Ordering::Relaxed);
        for offset in 0..self.app_secrets.len() {
            let position = (remembered + offset) % self.app_secrets.len();
            let check = self
                .ask(node_id, &token, &self.app_secrets[position], started)
                .await;
            let rejected =
                matches!(&check.answer, Answer::Refused(error) if error.is_about_the_proof());
            if !rejected {
                token.proof_by.store(position, Ordering::Relaxed);
            }
            if !rejected || offset + 1 == self.app_secrets.len() {
                return check;
            }
        }
        not_asked("no app secret configured")
    }

    async fn ask(
        &self,
        node_id: &str,
        token: &Token,
        app_secret: &SecretString,
        started: Instant,
    ) -> Check {
        let proof = appsecret_proof(app_secret.expose_secret(), token.secret.expose_secret());
        let Ok(url) = self.base.join(node_id) else {
            unreachable!("digits join any URL")
        };
        let request = self
            .client
            .get(url)
            .query(&[
                ("fields", "health_status"),
                ("appsecret_proof", proof.as_str()),
            ])
            .bearer_auth(token.secret.expose_secret())
            .timeout(WHOLE.saturating_sub(started.elapsed()));
        let unreachable = |http_status, reason: String| Check {
            answer: Answer::Unreachable(reason),
            http_status,
            response: None,
            duration: started.elapsed(),
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return unreachable(None, describe(error)),
        };
        let status = response.status().as_u16();
        let usage = response
            .headers()
            .get("x-business-use-case-usage")
            .and_then(|value| value.to_str().ok())
            .map(ToOwned::to_owned);
        let body = match read(response).await {
            Ok(body) => body,
            Err(reason) => return unreachable(Some(status), reason),
        };
        // Meta repeats a malformed token in its message. It must not get into the database that way.
        let body = without(&without(&body, token.secret.expose_secret()), &proof);
        Check {
            answer: health::read(status, usage.as_deref(), &body),
            http_status: Some(status),
            response: Some(Text::cut(&String::from_utf8_lossy(&body), KEEP_AT_MOST).into_string()),
            duration: started.elapsed(),
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

async fn read(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(describe)? {
        if body.len() + chunk.len() > READ_AT_MOST {
            return Err(format!(
                "the answer is longer than {} KiB",
                READ_AT_MOST / 1024
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What went wrong, without the URL: it carries the proof.
fn describe(error: reqwest::Error) -> String {
    match (error.is_timeout(), error.is_connect()) {
        (true, true) => format!("no connection within {} s", CONNECT.as_secs()),
        (true, false) => format!("no complete answer within {} s", WHOLE.as_secs()),
        (false, _) => with_causes(&error.without_url()),
    }
}

/// The body without a secret, however JSON or a URL may spell its signs: as they are, `\/`, `\u002f`, `%2F`.
fn without(body: &[u8], secret: &str) -> Vec<u8> {
    let spelled: Vec<[String; 4]> = secret
        .bytes()
        .map(|byte| {
            let sign = char::from(byte);
            [
                sign.to_string(),
                format!("\\{sign}"),
                format!("\\u{byte:04x}"),
                format!("%{byte:02x}"),
            ]
        })
        .collect();
    let mut cleaned = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some((first, others)) = rest.split_first() {
        match after(&spelled, rest) {
            Some(text) => {
                cleaned.extend_from_slice(b"[removed]");
                rest = text;
            }
            None => {
                cleaned.push(*first);
                rest = others;
            }
        }
    }
    cleaned
}

/// What follows the secret, where a text begins with it.
fn after<'t>(spelled: &[[String; 4]], text: &'t [u8]) -> Option<&'t [u8]> {
    spelled.iter().try_fold(text, |text, ways| {
        let begins_with = |way: &String| {
            let (head, rest) = text.split_at_checked(way.len())?;
            head.eq_ignore_ascii_case(way.as_bytes()).then_some(rest)
        };
        ways.iter().find_map(begins_with)
    })
}

/// The access tokens: one for every account, or one per account from a file.
pub struct Tokens {
    default: Option<Arc<Token>>,
    file: Option<TokensFile>,
}

struct Token {
    secret: SecretString,
    /// The position of the app secret whose proof Meta took last.
    proof_by: AtomicUsize,
}

struct TokensFile {
    path: PathBuf,
    read: Mutex<(Option<Stamp>, TokensByAccount)>,
}

type TokensByAccount = HashMap<String, Arc<Token>>;

/// What tells that a file changed.
type Stamp = (SystemTime, u64);

/// A token, or the file of tokens, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadTokens {
    /// The token could not be sent in a header.
    #[error("an access token is empty or holds a character that no token has")]
    Malformed,
    /// The file cannot be read.
    #[error("META_ACCESS_TOKENS_FILE {path} cannot be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a list of `"<waba id>" = "<token>"`.
    #[error("META_ACCESS_TOKENS_FILE {path} must be TOML with lines like \"<waba id>\" = \"<token>\"", path = path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
    },
}

impl Tokens {
    /// Takes the token for every account, and the file with those of single accounts.
    ///
    /// # Errors
    /// [`BadTokens`].
    pub fn new(default: Option<SecretString>, file: Option<PathBuf>) -> Result<Self, BadTokens> {
        let file = match file {
            Some(path) => {
                let stamp = stamp(&path);
                let tokens = read_file(&path)?;
                Some(TokensFile {
                    path,
                    read: Mutex::new((stamp, tokens)),
                })
            }
            None => None,
        };
        Ok(Self {
            default: default.map(Token::new).transpose()?,
            file,
        })
    }

    /// The account's own token, else the one for all. Reads the file again if it changed; while the new
    /// one is broken, the old tokens go on.
    fn of(&self, waba_id: &str) -> Option<Arc<Token>> {
        let own = self.file.as_ref().and_then(|file| file.token(waba_id));
        own.or_else(|| self.default.clone())
    }
}

impl TokensFile {
    fn token(&self, waba_id: &str) -> Option<Arc<Token>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        if read.0 != now {
            read.0 = now;
            match read_file(&self.path) {
                Ok(tokens) => {
                    info!(
                        tokens = tokens.len(),
                        "the file of access tokens was read again"
                    );
                    read.1 = tokens;
                }
                Err(error) => error!("the tokens read before go on: {error}"),
            }
        }
        read.1.get(waba_id).cloned()
    }
}

fn stamp(path: &PathBuf) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read_file(path: &PathBuf) -> Result<TokensByAccount, BadTokens> {
    let text = std::fs::read_to_string(path).map_err(|source| BadTokens::Unreadable {
        path: path.clone(),
        source,
    })?;
    // The parser's own error would repeat the line, token and all.
    let tokens: HashMap<String, String> =
        toml::from_str(&text).map_err(|_| BadTokens::NotToml { path: path.clone() })?;
    tokens
        .into_iter()
        .map(|(waba_id, token)| Ok((waba_id, Token::new(token.into())?)))
        .collect()
}

impl Token {
    fn new(secret: SecretString) -> Result<Arc<Self>, BadTokens> {
        let token = secret.expose_secret();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadTokens::Malformed);
        }
        Ok(Arc::new(Self {
            secret,
            proof_by: AtomicUsize::new(0),
        }))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str, version: &str) -> Result<Graph, BadGraphSettings> {
        let tokens = Tokens::new(None, None).unwrap();
        Graph::new(GraphSettings {
            url: url.into(),
            version: version.into(),
            app_secrets: vec![],
            tokens,
        })
    }

    #[test]
    fn graph_is_asked_over_https_or_on_this_machine() {
        for url in [
            "https://graph.facebook.com",
            "http://127.0.0.1:9/",
            "http://[::1]:9",
            "http://localhost:9",
        ] {
            assert!(settings(url, "v25.0").is_ok(), "{url}");
        }
        for url in [
            "http://graph.facebook.com",
            "ftp://127.0.0.1",
            "graph",
            "",
            "http://127.0.0.1.evil.example",
        ] {
            assert!(settings(url, "v25.0").is_err(), "{url}");
        }
        for version in ["25.0", "v25", "v.", "v25.0/../me", ""] {
            assert!(matches!(
                settings("https://graph.facebook.com", version),
                Err(BadGraphSettings::Version)
            ));
        }
    }

    #[test]
    fn a_repeated_secret_is_removed_wherever_it_stands() {
        assert_eq!(without(b"TOKENx TOKEN", "TOKEN"), b"[removed]x [removed]");
        assert_eq!(without(b"nothing", "TOKEN"), b"nothing");
        for spelled in [
            "a|b/c",
            r"a|b\/c",
            r"a\u007Cb\u002fc",
            "a%7Cb%2Fc",
            r"\u0061|b/\c",
        ] {
            let text = format!("<{spelled}>");
            assert_eq!(
                without(text.as_bytes(), "a|b/c"),
                b"<[removed]>",
                "{spelled}"
            );
        }
        assert_eq!(
            without(br"a\u007Cb\u002", "a|b/c"),
            br"a\u007Cb\u002",
            "not all of it"
        );
    }

    #[test]
    fn tokens_that_no_header_can_carry_are_refused() {
        for token in ["", "a b", "a\nb", "é"] {
            assert!(Tokens::new(Some(token.into()), None).is_err(), "{token:?}");
        }
    }

    #[test]
    fn a_changed_file_of_tokens_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, "\"1022\" = \"first\"\n").unwrap();
        let tokens = Tokens::new(Some("default".into()), Some(path.clone())).unwrap();
        let token = |waba| tokens.of(waba).unwrap().secret.expose_secret().to_owned();
        assert_eq!(
            (token("1022"), token("1033")),
            ("first".to_owned(), "default".to_owned())
        );
        std::fs::write(&path, "\"1022\" = \"second one\"").unwrap();
        assert_eq!(token("1022"), "first", "a token with a space is none");
        std::fs::write(&path, "\"1022\" = \"the-third\"\n\"1033\" = \"own\"").unwrap();
        assert_eq!(
            (token("1022"), token("1033")),
            ("the-third".to_owned(), "own".to_owned())
        );
        std::fs::write(&path, "secret-but-not-toml").unwrap();
        assert_eq!(token("1022"), "the-third");
        let error = Tokens::new(None, Some(path)).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
