//! Channels: the ways to people. Each posts a message to its receiver and tells what it answered.

mod slack;
mod webhook;

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};

use crate::error_chain::error_chain;
use crate::report::alert::Message;

pub use self::webhook::{BadWebhookSecret, WebhookSecret};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of a delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The part of an answer that is kept.
const ANSWER_LIMIT_BYTES: usize = 300;

/// A way to people.
#[derive(Debug)]
pub struct Channel {
    name: String,
    client: Client,
    url: SecretString,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Webhook(WebhookSecret),
    Slack,
}

/// The reason why a channel cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The URL cannot be used. It may hold a secret, so it is not repeated.
    #[error("{0} must be a URL that starts with https:// (http:// only to a loopback address)")]
    Url(&'static str),
    /// The HTTP client could not be built.
    #[error("the HTTP client does not start: {0}")]
    Client(reqwest::Error),
}

/// A receiver's answer to a message.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// `true` if it took the message.
    pub is_accepted: bool,
    /// `true` if it may take the message later.
    pub may_be_tried_again: bool,
    /// The pause that it asks for.
    pub retry_after: Option<Duration>,
    /// Its answer, shortened, or why there is none.
    pub answer: String,
}

impl Channel {
    /// A webhook that takes Standard Webhooks. `variable` is where its URL stands.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn webhook(
        variable: &'static str,
        url: SecretString,
        secret: WebhookSecret,
    ) -> Result<Self, ChannelError> {
        Self::new("webhook", variable, url, Format::Webhook(secret))
    }

    /// An incoming webhook of Slack, or of one that takes the same.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn slack(variable: &'static str, url: SecretString) -> Result<Self, ChannelError> {
        Self::new("slack", variable, url, Format::Slack)
    }

    fn new(
        name: &str,
        variable: &'static str,
        url: SecretString,
        format: Format,
    ) -> Result<Self, ChannelError> {
        let parsed = Url::parse(url.expose_secret()).map_err(|_| ChannelError::Url(variable))?;
        let is_loopback = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if parsed.scheme() != "https" && !(parsed.scheme() == "http" && is_loopback) {
            return Err(ChannelError::Url(variable));
        }
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(DELIVERY_TIMEOUT)
            .user_agent(concat!("lockwatch/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ChannelError::Client)?;
        Ok(Self {
            name: name.to_owned(),
            client,
            url,
            format,
        })
    }

    /// Its name in the tables.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Delivers a message. Never fails: the answer says what happened.
    pub async fn deliver(&self, message: &Message) -> Delivered {
        let request = self.client.post(self.url.expose_secret());
        let request = match &self.format {
            Format::Webhook(secret) => webhook::request(request, message, secret),
            Format::Slack => slack::request(request, message),
        };
        send(request).await
    }
}

async fn send(request: RequestBuilder) -> Delivered {
    match request.send().await {
        Ok(response) => judge(response).await,
        Err(error) => Delivered {
            is_accepted: false,
            may_be_tried_again: true,
            retry_after: None,
            // The URL may hold a secret.
            answer: error_chain(&error.without_url()),
        },
    }
}

/// Any 2xx is accepted. Too many requests and faults of the server may pass; anything else would be
/// answered in the same way again.
async fn judge(mut response: Response) -> Delivered {
    let status = response.status();
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(|seconds: u64| Duration::from_secs(seconds.min(3600)));
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
