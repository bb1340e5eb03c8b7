//! Channels: the ways to people. Each hands a message to its receiver and tells what it answered.

pub(super) mod alertmanager;
mod email;
mod http;
mod json;
mod slack;
mod webhook;

use std::time::Duration;

use secrecy::SecretString;

use self::alertmanager::Alertmanager;
pub use self::email::BadEmail;
use self::email::Email;
pub use self::http::BadUrl;
use self::http::HttpReceiver;
pub(super) use self::json::Preset;
pub use self::json::{BadTemplate, PRESETS, Template};
pub use self::webhook::{BadWebhookSecret, WebhookSecret};
use crate::lockout::alerting::{Filter, Subscriber};
use crate::report::alert::Message;

/// A way to people. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Channel {
    name: String,
    filter: Filter,
    receiver: Receiver,
}

#[derive(Debug, Clone)]
enum Receiver {
    Webhook(HttpReceiver, WebhookSecret),
    Slack(HttpReceiver),
    Json(HttpReceiver, Template),
    Email(Box<Email>),
    Alertmanager(Alertmanager),
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

/// The part of an answer that is kept.
const ANSWER_LIMIT_CHARACTERS: usize = 300;

impl Delivered {
    fn accepted(answer: &str) -> Self {
        let line = answer.replace(['\0', '\n', '\r'], " ");
        Self {
            is_accepted: true,
            may_be_tried_again: false,
            retry_after: None,
            answer: line.chars().take(ANSWER_LIMIT_CHARACTERS).collect(),
        }
    }

    fn refused(answer: &str, may_be_tried_again: bool) -> Self {
        Self {
            is_accepted: false,
            may_be_tried_again,
            ..Self::accepted(answer)
        }
    }
}

impl Channel {
    /// A webhook that takes Standard Webhooks.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn webhook(name: &str, url: &SecretString, secret: WebhookSecret) -> Result<Self, BadUrl> {
        let receiver = HttpReceiver::new(url)?;
        Ok(Self::new(name, Receiver::Webhook(receiver, secret)))
    }

    /// An incoming webhook of Slack, or of one that takes the same.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn slack(name: &str, url: &SecretString) -> Result<Self, BadUrl> {
        let receiver = HttpReceiver::new(url)?;
        Ok(Self::new(name, Receiver::Slack(receiver)))
    }

    /// A service that takes JSON.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn json(name: &str, url: &SecretString, template: Template) -> Result<Self, BadUrl> {
        let receiver = HttpReceiver::new(url)?;
        Ok(Self::new(name, Receiver::Json(receiver, template)))
    }

    /// Mail through an SMTP server.
    ///
    /// # Errors
    /// An address or the URL cannot be used.
    pub fn email(
        name: &str,
        smtp_url: &SecretString,
        from: &str,
        to: &[String],
    ) -> Result<Self, BadEmail> {
        let email = Email::new(smtp_url, from, to)?;
        Ok(Self::new(name, Receiver::Email(Box::new(email))))
    }

    /// Prometheus' Alertmanager, which is told what is wrong at the moment, again and again.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn alertmanager(name: &str, url: &SecretString) -> Result<Self, BadUrl> {
        let receiver = Alertmanager::new(url)?;
        Ok(Self::new(name, Receiver::Alertmanager(receiver)))
    }

    fn new(name: &str, receiver: Receiver) -> Self {
        Self {
            name: name.to_owned(),
            filter: Filter::default(),
            receiver,
        }
    }

    /// The same, told only of what the filter chooses.
    #[must_use]
    pub fn with_filter(self, filter: Filter) -> Self {
        Self { filter, ..self }
    }

    /// Its name in the tables.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The choice of what it is told of.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The kind of its receiver, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.receiver {
            Receiver::Webhook(..) => "webhook",
            Receiver::Slack(_) => "slack",
            Receiver::Json(..) => "json",
            Receiver::Email(_) => "email",
            Receiver::Alertmanager(_) => "alertmanager",
        }
    }

    /// Returns whether each message about an end closes something of its own at the receiver.
    pub(super) fn closes_threads(&self) -> bool {
        matches!(&self.receiver, Receiver::Json(_, template) if template.closes_threads())
    }

    /// Returns it as a reader of the queue. One that is told of states has no queue.
    #[must_use]
    pub fn subscriber(&self) -> Option<Subscriber> {
        self.as_alertmanager().is_none().then(|| Subscriber {
            name: self.name.clone(),
            filter: self.filter.clone(),
        })
    }

    pub(super) fn as_alertmanager(&self) -> Option<&Alertmanager> {
        match &self.receiver {
            Receiver::Alertmanager(receiver) => Some(receiver),
            _ => None,
        }
    }

    /// Delivers a message. Never fails: the answer says what happened.
    pub async fn deliver(&self, message: &Message) -> Delivered {
        match &self.receiver {
            Receiver::Webhook(receiver, secret) => {
                receiver.send(webhook::content(message, secret)).await
            }
            Receiver::Slack(receiver) => receiver.send(slack::content(message)).await,
            Receiver::Json(receiver, template) => {
                let delivered = receiver.send(template.content(message)).await;
                template.redact(delivered)
            }
            Receiver::Email(email) => email.send(message).await,
            Receiver::Alertmanager(receiver) => receiver.send_message(message).await,
        }
    }
}
