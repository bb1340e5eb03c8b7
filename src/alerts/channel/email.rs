//! Mail, sent through an SMTP server that encrypts. The messages about one incident are one thread
//! ([RFC 5322](https://www.rfc-editor.org/rfc/rfc5322#section-3.6.4)).

use std::time::Duration;

use lettre::address::Envelope;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Mailboxes, MessageBuilder};
use lettre::transport::smtp::Error as SmtpError;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

use super::Delivered;
use super::http::is_loopback;
use crate::error_chain::error_chain;
use crate::report::alert::Message;

/// The timeout of a delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Refusals of a login: somebody may correct it within the time that is tried.
const LOGIN_REFUSALS: [u16; 4] = [530, 534, 535, 538];

/// The settings of mail cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadEmail {
    /// An address is malformed.
    #[error("{0} is not an e-mail address")]
    Address(String),
    /// Nobody is to get it.
    #[error("there is no recipient")]
    NoRecipient,
    /// The URL is malformed. It may hold a password, so it is not repeated.
    #[error(
        "the SMTP server must be given as smtps://user:password@host, or smtp://… for STARTTLS; \
         special characters of user and password as %XX"
    )]
    Url,
}

/// Mail from one address to some.
#[derive(Debug, Clone)]
pub(super) struct Email {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Mailboxes,
}

impl Email {
    pub(super) fn new(
        smtp_url: &SecretString,
        from: &str,
        to: &[String],
    ) -> Result<Self, BadEmail> {
        let parse = |text: &str| -> Result<Mailbox, BadEmail> {
            let text = text.trim();
            text.parse().map_err(|_| BadEmail::Address(text.to_owned()))
        };
        if to.is_empty() {
            return Err(BadEmail::NoRecipient);
        }
        let url = encrypted_url(smtp_url.expose_secret())?;
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.as_str());
        Ok(Self {
            transport: transport
                .map_err(|_| BadEmail::Url)?
                .timeout(Some(DELIVERY_TIMEOUT))
                .build(),
            from: parse(from)?,
            to: to.iter().map(|to| parse(to)).collect::<Result<_, _>>()?,
        })
    }

    /// Sends to each recipient by itself: a mailbox that is gone keeps nobody else's mail away.
    pub(super) async fn send(&self, message: &Message) -> Delivered {
        let mail = match self.compose(message) {
            Ok(mail) => mail.formatted(),
            Err(error) => return Delivered::refused(&error_chain(&error), false),
        };
        let (mut taken, mut refused) = (None, Vec::new());
        let mut may_be_tried_again = false;
        for to in self.to.iter() {
            let envelope = Envelope::new(Some(self.from.email.clone()), vec![to.email.clone()]);
            let envelope = envelope.expect("there is a recipient");
            let sending = timeout(DELIVERY_TIMEOUT, self.transport.send_raw(&envelope, &mail));
            match sending.await {
                Ok(Ok(response)) => {
                    let line = response.message().next().unwrap_or_default().to_owned();
                    taken = Some(format!("{} {line}", response.code()));
                }
                Ok(Err(error)) => {
                    may_be_tried_again |= is_passing(&error);
                    refused.push(format!("{}: {}", to.email, error_chain(&error)));
                }
                Err(_) => {
                    may_be_tried_again = true;
                    refused.push("the SMTP server does not answer".to_owned());
                    // It would not answer for the next one either.
                    break;
                }
            }
        }
        let refused = refused.join("; ");
        match taken {
            None => Delivered::refused(&refused, may_be_tried_again),
            Some(taken) if refused.is_empty() => Delivered::accepted(&taken),
            Some(taken) => Delivered::accepted(&format!("{taken}, but not by {refused}")),
        }
    }

    /// A thread begins with the message that opens it, and keeps its subject: mail programs go by
    /// both.
    fn compose(&self, message: &Message) -> Result<lettre::Message, lettre::error::Error> {
        let thread = &message.thread;
        let id = |name: &str| format!("<{name}@{}>", self.from.email.domain());
        let root = id(&thread.id);
        let mail = MessageBuilder::new()
            .mailbox(lettre::message::header::To::from(self.to.clone()))
            .from(self.from.clone())
            .date(message.written_at.into())
            // A person does not expect an answer to come from somebody's absence.
            .header(AutoSubmitted);
        let mail = match thread.is_first {
            true => mail.message_id(Some(root)).subject(&thread.subject),
            false => mail
                .message_id(Some(id(&message.id)))
                .in_reply_to(root.clone())
                .references(root)
                .subject(format!("Re: {}", thread.subject)),
        };
        let mut body = format!("{}\n\n{}\n", message.title, message.text());
        if let Some(url) = &message.url {
            body.push_str(&format!("\n{url}\n"));
        }
        mail.header(ContentType::TEXT_PLAIN).body(body)
    }
}

/// Returns the URL with encryption required, unless the server is on this machine.
fn encrypted_url(text: &str) -> Result<Url, BadEmail> {
    let mut url = Url::parse(text).map_err(|_| BadEmail::Url)?;
    match url.scheme() {
        "smtps" => {}
        "smtp" if is_loopback(&url) => {}
        "smtp" => url.set_query(Some("tls=required")),
        _ => return Err(BadEmail::Url),
    }
    Ok(url)
}

/// Returns whether the same mail may be taken later.
fn is_passing(error: &SmtpError) -> bool {
    let code = error.status().map(u16::from);
    !error.is_permanent() || code.is_some_and(|code| LOGIN_REFUSALS.contains(&code))
}

/// The header of mail that no person wrote ([RFC 3834](https://www.rfc-editor.org/rfc/rfc3834)).
#[derive(Debug, Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_leaves_this_machine_only_encrypted() {
        for (url, encrypted) in [
            ("smtp://mail.example", "smtp://mail.example?tls=required"),
            (
                "smtp://mail.example?tls=opportunistic",
                "smtp://mail.example?tls=required",
            ),
            (
                "smtps://u:p%40@mail.example:465",
                "smtps://u:p%40@mail.example:465",
            ),
            ("smtp://localhost:25", "smtp://localhost:25"),
            (
                "smtp://localhost?tls=required",
                "smtp://localhost?tls=required",
            ),
        ] {
            assert_eq!(encrypted_url(url).unwrap().as_str(), encrypted, "{url}");
        }
        for url in ["", "mail.example:25", "http://mail.example"] {
            assert!(encrypted_url(url).is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn the_mail_of_an_incident_is_one_thread() {
        let url = "smtp://localhost".into();
        let to = [
            "Ops <ops@example.com>".to_owned(),
            "b@example.com".to_owned(),
        ];
        let email = Email::new(&url, "Lockwatch <lockwatch@example.org>", &to).unwrap();
        let mut message = Message::test(
            "lockwatch_test_1".to_owned(),
            time::OffsetDateTime::UNIX_EPOCH,
        );
        let first = String::from_utf8(email.compose(&message).unwrap().formatted()).unwrap();
        message.thread.is_first = false;
        message.id = "lockwatch_test_2".to_owned();
        let second = String::from_utf8(email.compose(&message).unwrap().formatted()).unwrap();
        let root = format!("<{}@example.org>", message.thread.id);
        assert!(first.contains(&format!("Message-ID: {root}")), "{first}");
        assert!(
            first.contains("To: Ops <ops@example.com>, b@example.com"),
            "{first}"
        );
        assert!(second.contains(&format!("In-Reply-To: {root}")), "{second}");
        assert!(
            second.contains("Subject: Re: Lockwatch: a test alert"),
            "{second}"
        );
        assert!(!second.contains(&format!("Message-ID: {root}")), "{second}");
    }

    #[test]
    fn addresses_are_checked() {
        let url: SecretString = "smtps://mail.example".into();
        for (from, to, error) in [
            ("ops", vec!["a@b.example"], "ops is not an e-mail address"),
            ("a@b.example", vec!["c@"], "c@ is not an e-mail address"),
            ("a@b.example", vec![], "there is no recipient"),
        ] {
            let to: Vec<String> = to.into_iter().map(ToOwned::to_owned).collect();
            let result = Email::new(&url, from, &to);
            assert_eq!(result.unwrap_err().to_string(), error);
        }
    }
}
