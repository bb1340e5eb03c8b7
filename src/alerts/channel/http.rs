//! A receiver that is reached by HTTP: posts a body, and judges the answer.

use std::net::Ipv4Addr;
use std::time::Duration;

use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};

use super::Delivered;
use crate::error_chain::error_chain;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of a delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause that a receiver can ask for.
const RETRY_AFTER_LIMIT_SECONDS: u64 = 3600;
/// The part of an answer that is kept.
const ANSWER_LIMIT_BYTES: usize = 300;
/// The fewest bytes of a part of a URL, or of a value, that is taken for a secret.
const SECRET_MIN_BYTES: usize = 6;

/// The URL cannot be used. It may hold a secret, so it is not repeated.
#[derive(Debug, thiserror::Error)]
pub enum BadUrl {
    /// It is none, or not an encrypted one.
    #[error("must be a URL that starts with https:// (http:// only within a private network)")]
    NotEncrypted,
    /// The HTTP client could not be built.
    #[error("cannot be used, the HTTP client does not start: {0}")]
    Client(#[from] reqwest::Error),
}

/// A request to post.
#[derive(Debug)]
pub(super) struct Content {
    /// The headers.
    pub(super) headers: Vec<(String, String)>,
    /// The body.
    pub(super) body: String,
}

impl Content {
    /// A body of JSON.
    pub(super) fn json(body: &serde_json::Value) -> Self {
        Self {
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.to_string(),
        }
    }

    /// The same with another header.
    pub(super) fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A receiver at a URL, which may be secret.
#[derive(Debug, Clone)]
pub(super) struct HttpReceiver {
    client: Client,
    url: SecretString,
}

impl HttpReceiver {
    pub(super) fn new(url: &SecretString) -> Result<Self, BadUrl> {
        let parsed = Url::parse(url.expose_secret()).map_err(|_| BadUrl::NotEncrypted)?;
        if parsed.scheme() != "https" && !(parsed.scheme() == "http" && is_private(&parsed)) {
            return Err(BadUrl::NotEncrypted);
        }
        Ok(Self {
            client: Client::builder()
                .no_proxy()
                .redirect(redirect::Policy::none())
                .pool_max_idle_per_host(0)
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(DELIVERY_TIMEOUT)
                .user_agent(concat!("lockwatch/", env!("CARGO_PKG_VERSION")))
                .build()?,
            url: url.clone(),
        })
    }

    /// Takes the parts of the URL out of an answer that repeats them, as "Cannot POST /…" does.
    fn redact_url(&self, answer: &str) -> String {
        let Ok(url) = Url::parse(self.url.expose_secret()) else {
            return answer.to_owned();
        };
        let path = url.path_segments().into_iter().flatten();
        let values: Vec<_> = url.query_pairs().map(|(_, value)| value).collect();
        path.chain(values.iter().map(AsRef::as_ref))
            .chain([url.username(), url.password().unwrap_or_default()])
            .fold(answer.to_owned(), |answer, part| redact(&answer, part))
    }

    /// Posts this. Never fails: the answer says what happened.
    pub(super) async fn send(&self, content: Content) -> Delivered {
        let mut request = self.client.post(self.url.expose_secret());
        for (name, value) in &content.headers {
            request = request.header(name, value);
        }
        match request.body(content.body).send().await {
            Ok(response) => {
                let delivered = judge(response).await;
                let answer = self.redact_url(&delivered.answer);
                Delivered {
                    answer,
                    ..delivered
                }
            }
            // The URL may hold a secret.
            Err(error) => Delivered::refused(&error_chain(&error.without_url()), true),
        }
    }
}

/// Takes a secret out of an answer that repeats it. A short one may be any word.
pub(super) fn redact(answer: &str, secret: &str) -> String {
    match secret.len() {
        ..SECRET_MIN_BYTES => answer.to_owned(),
        _ => answer.replace(secret, "…"),
    }
}

/// Returns whether a URL leads to a private network: by its address, or by a name without a dot, as
/// containers have.
fn is_private(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let is_private_address = host
        .parse()
        .is_ok_and(|address: Ipv4Addr| address.is_private());
    is_loopback(url) || is_private_address || !host.is_empty() && !host.contains(['.', ':'])
}

/// Returns whether a URL leads to this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

/// Any 2xx is accepted. Too many requests and faults of the server may pass; anything else would be
/// answered in the same way again.
async fn judge(mut response: Response) -> Delivered {
    let status = response.status();
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(|seconds: u64| Duration::from_secs(seconds.min(RETRY_AFTER_LIMIT_SECONDS)));
    let mut text = Vec::new();
    while text.len() < ANSWER_LIMIT_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        text.extend_from_slice(&chunk);
    }
    text.truncate(ANSWER_LIMIT_BYTES);
    let text = String::from_utf8_lossy(&text).replace(['\0', '\n', '\r'], " ");
    let code = status.as_u16();
    Delivered {
        is_accepted: (200..300).contains(&code),
        may_be_tried_again: code >= 500 || matches!(code, 408 | 425 | 429),
        retry_after,
        answer: format!("{code} {}", text.trim()).trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alert_leaves_a_private_network_only_encrypted() {
        for (url, is_taken) in [
            ("https://hooks.example.com/x", true),
            ("http://localhost:9093", true),
            ("http://[::1]:9093", true),
            ("http://alertmanager:9093", true),
            ("http://10.1.2.3:9093", true),
            ("http://192.168.1.2", true),
            ("http://8.8.8.8", false),
            ("http://hooks.example.com", false),
            ("http://[2001:db8::1]", false),
            ("ftp://localhost", false),
            ("hooks.example.com", false),
        ] {
            assert_eq!(HttpReceiver::new(&url.into()).is_ok(), is_taken, "{url}");
        }
    }
}
