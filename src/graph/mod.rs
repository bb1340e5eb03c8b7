//! The Graph API client: every request is bounded in time and size, and no secret leaves in an answer.

mod health;
mod tokens;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};

use self::tokens::Token;
pub use self::tokens::{BadTokens, Tokens};
use crate::error_chain::error_chain;
use crate::meta::health::GraphError;
use crate::meta::ids::WabaId;
use crate::meta::signature::appsecret_proof;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One question may take this long, retries with another app secret included.
const GET_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read. A real one has one or two kilobytes.
const ANSWER_LIMIT_BYTES: usize = 256 * 1024;

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
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(GET_TIMEOUT)
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
        !self.tokens.is_empty()
    }

    /// Reads fields of a node that belongs to an account.
    ///
    /// # Errors
    /// [`NoReply`]: Meta was not asked, or did not answer.
    async fn get(&self, waba_id: &WabaId, node_id: &str, fields: &str) -> Result<Reply, NoReply> {
        let started = Instant::now();
        let not_asked = |reason: &str| Err(NoReply::NotAsked(reason.to_owned()));
        if node_id.is_empty() || !node_id.bytes().all(|byte| byte.is_ascii_digit()) {
            return not_asked("the node id is not a number, so it is not asked for");
        }
        let Some(token) = self.tokens.for_account(waba_id) else {
            return not_asked("no token configured");
        };
        let mut url = self.base.join(node_id).expect("digits join any URL");
        url.query_pairs_mut().append_pair("fields", fields);
        // The first secret signs, unless Meta calls its proof invalid: then the token is another app's.
        let remembered = token.proof_by.load(Ordering::Relaxed);
        for offset in 0..self.app_secrets.len() {
            let position = (remembered + offset) % self.app_secrets.len();
            let app_secret = &self.app_secrets[position];
            let reply = self.send(url.clone(), &token, app_secret, started).await?;
            let is_rejected =
                GraphError::parse(&reply.body).is_some_and(|error| error.is_about_the_proof());
            if !is_rejected {
                token.proof_by.store(position, Ordering::Relaxed);
            }
            if !is_rejected || offset + 1 == self.app_secrets.len() {
                return Ok(reply);
            }
        }
        not_asked("no app secret configured")
    }

    async fn send(
        &self,
        url: Url,
        token: &Token,
        app_secret: &SecretString,
        started: Instant,
    ) -> Result<Reply, NoReply> {
        let token = token.secret.expose_secret();
        let proof = appsecret_proof(app_secret.expose_secret(), token);
        let request = self
            .client
            .get(url)
            .query(&[("appsecret_proof", proof.as_str())])
            .bearer_auth(token)
            .timeout(GET_TIMEOUT.saturating_sub(started.elapsed()));
        let unreachable = |http_status, reason| NoReply::Unreachable {
            http_status,
            reason,
        };
        let response = request
            .send()
            .await
            .map_err(|error| unreachable(None, failure_text(error)))?;
        let http_status = response.status().as_u16();
        let usage = response
            .headers()
            .get("x-business-use-case-usage")
            .and_then(|value| value.to_str().ok())
            .map(ToOwned::to_owned);
        let body = read_body(response)
            .await
            .map_err(|reason| unreachable(Some(http_status), reason))?;
        Ok(Reply {
            http_status,
            usage,
            // Meta repeats a malformed token in its message. The database must not get it that way.
            body: remove_secret(&remove_secret(&body, token), &proof),
        })
    }
}

/// Meta's answer to one request, without our secrets.
struct Reply {
    http_status: u16,
    /// The header `X-Business-Use-Case-Usage`.
    usage: Option<String>,
    body: Vec<u8>,
}

/// The reason for which there is no [`Reply`].
enum NoReply {
    NotAsked(String),
    Unreachable {
        http_status: Option<u16>,
        reason: String,
    },
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failure_text)? {
        if body.len() + chunk.len() > ANSWER_LIMIT_BYTES {
            let kib = ANSWER_LIMIT_BYTES / 1024;
            return Err(format!("the answer is longer than {kib} KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the text of a failure, without the URL: it carries the proof.
fn failure_text(error: reqwest::Error) -> String {
    match (error.is_timeout(), error.is_connect()) {
        (true, true) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        (true, false) => format!("no complete answer within {} s", GET_TIMEOUT.as_secs()),
        (false, _) => error_chain(&error.without_url()),
    }
}

/// The body without a secret, however JSON or a URL may spell its signs: as they are, `\/`, `\u002f`, `%2F`.
fn remove_secret(body: &[u8], secret: &str) -> Vec<u8> {
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
        assert_eq!(
            remove_secret(b"TOKENx TOKEN", "TOKEN"),
            b"[removed]x [removed]"
        );
        assert_eq!(remove_secret(b"nothing", "TOKEN"), b"nothing");
        for spelled in [
            "a|b/c",
            r"a|b\/c",
            r"a\u007Cb\u002fc",
            "a%7Cb%2Fc",
            r"\u0061|b/\c",
        ] {
            let text = format!("<{spelled}>");
            assert_eq!(
                remove_secret(text.as_bytes(), "a|b/c"),
                b"<[removed]>",
                "{spelled}"
            );
        }
        assert_eq!(
            remove_secret(br"a\u007Cb\u002", "a|b/c"),
            br"a\u007Cb\u002",
            "not all of it"
        );
    }
}
