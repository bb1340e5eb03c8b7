//! The client for Meta's Graph API. Requests are limited in time and in size, and secrets are
//! removed from the answers.

mod health;
mod self_check;
mod tokens;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::{Client, Proxy, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use self::tokens::Token;
pub use self::tokens::{Tokens, TokensError};
use crate::error_chain::error_chain;
use crate::meta::graph_error::{Denial, GraphError};
use crate::meta::health::Caller;
use crate::meta::ids::WabaId;
use crate::meta::node_fields::is_id;
use crate::meta::signature::appsecret_proof;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout of one call, including retries with other app secrets.
const GET_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest body that is read. Meta's have one or two kilobytes.
const ANSWER_LIMIT_BYTES: usize = 256 * 1024;

/// The settings of the client.
#[derive(Debug)]
pub struct GraphSettings {
    /// The base URL, such as `https://graph.facebook.com`.
    pub url: String,
    /// The version of the API, such as `v25.0`.
    pub version: String,
    /// The app secrets, for the `appsecret_proof` of the access tokens.
    pub app_secrets: Vec<SecretString>,
    /// The access tokens.
    pub tokens: Tokens,
    /// The proxy to reach Graph through, such as `http://proxy.example:3128`.
    pub proxy: Option<SecretString>,
}

/// The reason why the settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum GraphSettingsError {
    /// The base URL cannot be parsed.
    #[error("META_GRAPH_URL is not a URL: {0}")]
    Url(String),
    /// The base URL has plain HTTP to another machine: anyone on the network could read the token.
    #[error("META_GRAPH_URL must be https (plain http only to a loopback address)")]
    Insecure,
    /// The version does not look like `v25.0`.
    #[error("META_GRAPH_VERSION must look like v25.0")]
    Version,
    /// The proxy's URL cannot be used. It may hold a password, so it is not repeated.
    #[error("LOCKWATCH_GRAPH_PROXY must be a URL such as http://proxy.example:3128")]
    Proxy,
    /// The HTTP client could not be built.
    #[error("the HTTP client does not start: {0}")]
    Client(reqwest::Error),
}

/// The client for the Graph API.
#[derive(Debug)]
pub struct Graph {
    client: Client,
    base: Url,
    app_secrets: Vec<SecretString>,
    tokens: Tokens,
}

impl Graph {
    /// Makes a client. No request is sent.
    ///
    /// # Errors
    /// The settings are refused: see [`GraphSettingsError`].
    pub fn new(settings: GraphSettings) -> Result<Self, GraphSettingsError> {
        let GraphSettings {
            url,
            version,
            app_secrets,
            tokens,
            proxy,
        } = settings;
        if !is_valid_version(&version) {
            return Err(GraphSettingsError::Version);
        }
        let base = Url::parse(&format!("{}/{version}/", url.trim_end_matches('/')))
            .map_err(|error| GraphSettingsError::Url(error.to_string()))?;
        if base.scheme() != "https" && !(base.scheme() == "http" && is_loopback(&base)) {
            return Err(GraphSettingsError::Insecure);
        }
        // Variables such as HTTPS_PROXY are ignored: what they are set for is seldom this.
        let mut client = Client::builder().no_proxy();
        if let Some(proxy) = proxy {
            client = client.proxy(parse_proxy(proxy.expose_secret())?);
        }
        let client = client
            .redirect(redirect::Policy::none())
            .https_only(base.scheme() == "https")
            // No connection is reused: the server may just be closing it. The request would be
            // lost, and the cause would only be known after the next attempt.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(GET_TIMEOUT)
            .user_agent(concat!("lockwatch/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(GraphSettingsError::Client)?;
        Ok(Self {
            client,
            base,
            app_secrets,
            tokens,
        })
    }

    /// Returns whether any access token is configured.
    #[must_use]
    pub(crate) fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Returns who would ask about this account now, if there is a token for it.
    #[must_use]
    pub(crate) fn caller(&self, waba_id: &WabaId) -> Option<Caller> {
        let token = self.tokens.for_account(waba_id)?;
        Some(self.caller_with(&token))
    }

    fn caller_with(&self, token: &Token) -> Caller {
        let index = token.secret_index.load(Ordering::Relaxed);
        let app = self.app_secrets.get(index).map(short_hash);
        Caller {
            token: short_hash(&token.secret),
            app: app.unwrap_or_default(),
        }
    }

    /// Returns how often the access tokens have changed since the start.
    pub(crate) fn token_generation(&self) -> u64 {
        self.tokens.generation()
    }

    /// Reads fields of a node with this token.
    ///
    /// # Errors
    /// Meta was not asked, or did not answer.
    async fn get(
        &self,
        token: Option<&Token>,
        node_id: &str,
        fields: &str,
    ) -> Result<Reply, NoReply> {
        if !is_id(node_id) {
            return Err(NoReply::NotAsked {
                denial: Denial::UnknownNode,
                reason: "the node id is not a number; Meta was not asked",
            });
        }
        let mut url = self.base.join(node_id).expect("digits join any URL");
        url.query_pairs_mut().append_pair("fields", fields);
        self.get_url(token, url).await
    }

    /// Gets a URL of Graph with this token.
    ///
    /// # Errors
    /// Meta was not asked, or did not answer.
    async fn get_url(&self, token: Option<&Token>, url: Url) -> Result<Reply, NoReply> {
        let started = Instant::now();
        let not_asked = |denial, reason| Err(NoReply::NotAsked { denial, reason });
        let Some(token) = token else {
            return not_asked(Denial::NoToken, "no token configured");
        };
        // If Meta rejects the proof made with one secret, the token belongs to the app of another
        // one.
        let last_accepted = token.secret_index.load(Ordering::Relaxed);
        for offset in 0..self.app_secrets.len() {
            let index = (last_accepted + offset) % self.app_secrets.len();
            let app_secret = &self.app_secrets[index];
            let reply = self.send(url.clone(), token, app_secret, started).await?;
            let is_rejected =
                GraphError::parse(&reply.body).is_some_and(|error| error.is_invalid_proof());
            if !is_rejected {
                token.secret_index.store(index, Ordering::Relaxed);
            }
            if !is_rejected || offset + 1 == self.app_secrets.len() {
                return Ok(reply);
            }
        }
        not_asked(Denial::OtherApp, "no app secret configured")
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
            // Meta's message repeats a malformed token, which must not be stored.
            body: remove_secret(&remove_secret(&body, token), &proof),
        })
    }
}

/// Meta's answer to one request, with our secrets removed.
struct Reply {
    http_status: u16,
    /// The header `X-Business-Use-Case-Usage`.
    usage: Option<String>,
    body: Vec<u8>,
}

/// The reason why there is no [`Reply`].
enum NoReply {
    NotAsked {
        denial: Denial,
        reason: &'static str,
    },
    Unreachable {
        http_status: Option<u16>,
        reason: String,
    },
}

/// Returns the first half of a secret's SHA-256, in hex: enough to recognise it, and no way back.
fn short_hash(secret: &SecretString) -> String {
    let digest = Sha256::digest(secret.expose_secret());
    hex::encode(&digest[..16])
}

fn parse_proxy(url: &str) -> Result<Proxy, GraphSettingsError> {
    let is_http =
        Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let proxy = Proxy::all(url).ok().filter(|_| is_http);
    proxy.ok_or(GraphSettingsError::Proxy)
}

/// Returns whether a version looks like `v25.0`.
fn is_valid_version(version: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    version
        .strip_prefix('v')
        .and_then(|numbers| numbers.split_once('.'))
        .is_some_and(|(major, minor)| is_number(major) && is_number(minor))
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

/// Returns the text of a failure without the URL, which contains the proof.
fn failure_text(error: reqwest::Error) -> String {
    match (error.is_timeout(), error.is_connect()) {
        (true, true) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        (true, false) => format!("no complete answer within {} s", GET_TIMEOUT.as_secs()),
        (false, _) => error_chain(&error.without_url()),
    }
}

/// Removes a secret from a body.
///
/// JSON and URLs can spell each of its characters in four ways: as it is, `\/`, `\u002f`, `%2F`.
fn remove_secret(body: &[u8], secret: &str) -> Vec<u8> {
    let spellings: Vec<[String; 4]> = secret
        .bytes()
        .map(|byte| {
            let character = char::from(byte);
            [
                character.to_string(),
                format!("\\{character}"),
                format!("\\u{byte:04x}"),
                format!("%{byte:02x}"),
            ]
        })
        .collect();
    let mut cleaned = Vec::with_capacity(body.len());
    let mut remaining = body;
    while let Some((first, others)) = remaining.split_first() {
        if let Some(after_secret) = strip_secret(remaining, &spellings) {
            cleaned.extend_from_slice(b"[removed]");
            remaining = after_secret;
        } else {
            cleaned.push(*first);
            remaining = others;
        }
    }
    cleaned
}

/// Returns the bytes after the secret, or `None` if the text does not start with the secret.
///
/// Each character of the secret is given with all its spellings.
fn strip_secret<'t>(text: &'t [u8], spellings: &[[String; 4]]) -> Option<&'t [u8]> {
    let strip_ignoring_case = |text: &'t [u8], spelling: &String| {
        let (start, after) = text.split_at_checked(spelling.len())?;
        start
            .eq_ignore_ascii_case(spelling.as_bytes())
            .then_some(after)
    };
    let mut remaining = text;
    for character in spellings {
        remaining = character
            .iter()
            .find_map(|spelling| strip_ignoring_case(remaining, spelling))?;
    }
    Some(remaining)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str, version: &str) -> Result<Graph, GraphSettingsError> {
        let tokens = Tokens::new(None, None).unwrap();
        Graph::new(GraphSettings {
            url: url.into(),
            version: version.into(),
            app_secrets: vec![],
            tokens,
            proxy: None,
        })
    }

    #[test]
    fn the_url_is_https_or_on_this_machine() {
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
                Err(GraphSettingsError::Version)
            ));
        }
    }

    #[test]
    fn a_secret_is_removed_in_every_spelling() {
        assert_eq!(
            remove_secret(b"TOKENx TOKEN", "TOKEN"),
            b"[removed]x [removed]"
        );
        assert_eq!(remove_secret(b"nothing", "TOKEN"), b"nothing");
        for spelling in [
            "a|b/c",
            r"a|b\/c",
            r"a\u007Cb\u002fc",
            "a%7Cb%2Fc",
            r"\u0061|b/\c",
        ] {
            let text = format!("<{spelling}>");
            assert_eq!(
                remove_secret(text.as_bytes(), "a|b/c"),
                b"<[removed]>",
                "{spelling}"
            );
        }
        assert_eq!(
            remove_secret(br"a\u007Cb\u002", "a|b/c"),
            br"a\u007Cb\u002",
            "a part of the secret stays"
        );
    }
}
