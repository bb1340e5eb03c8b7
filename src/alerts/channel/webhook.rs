//! A webhook of your own, signed as Standard Webhooks are
//! ([specification](https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md)).
//!
//! Headers `webhook-id`, `webhook-timestamp` and `webhook-signature`; the body is an object with
//! `type`, `timestamp` and `data`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretBox};
use serde_json::{Value, json};
use sha2::Sha256;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::http::Content;
use crate::report::IncidentReport;
use crate::report::alert::{Message, Topic};

/// The keys that sign a webhook: one, or several while one is replaced.
#[derive(Debug, Clone)]
pub struct WebhookSecret(Arc<SecretBox<Vec<Vec<u8>>>>);

/// The text is no secret of a Standard Webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be whsec_ and 24 to 64 bytes in base64, or several with \
     commas between them; make one: echo whsec_$(openssl rand -base64 32)"
)]
pub struct BadWebhookSecret;

impl WebhookSecret {
    /// Parses `whsec_…` secrets with commas between them.
    ///
    /// # Errors
    /// One of them is not well-formed.
    pub fn parse(text: &str) -> Result<Self, BadWebhookSecret> {
        let keys = text.split(',').map(|secret| {
            let key = secret
                .trim()
                .strip_prefix("whsec_")
                .ok_or(BadWebhookSecret)?;
            let key = STANDARD.decode(key).map_err(|_| BadWebhookSecret)?;
            (24..=64)
                .contains(&key.len())
                .then_some(key)
                .ok_or(BadWebhookSecret)
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        Ok(Self(Arc::new(SecretBox::new(Box::new(keys)))))
    }

    /// Returns the signatures of a message, one of each key.
    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signatures = self.0.expose_secret().iter().map(|key| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

pub(super) fn content(message: &Message, secret: &WebhookSecret) -> Content {
    let now = message.written_at;
    let body = json!({
        "type": message.kind,
        "timestamp": now.format(&Rfc3339).unwrap_or_default(),
        "data": data(message),
    });
    let content = Content::json(&body);
    let timestamp = now.unix_timestamp();
    let signature = secret.sign(&message.id, timestamp, content.body.as_bytes());
    content
        .with_header("webhook-id", &message.id)
        .with_header("webhook-timestamp", timestamp.to_string())
        .with_header("webhook-signature", signature)
}

/// An incident in a list of hundreds: receivers take bodies of some 100 kB.
fn lean(report: &IncidentReport) -> Value {
    let incident = &report.incident;
    let time = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
    json!({
        "id": incident.id,
        "waba_id": incident.waba_id,
        "account_name": incident.account_name,
        "cause": incident.cause,
        "failure_count": incident.failure_count,
        "opened_at": time(incident.opened_at),
        "ended_at": incident.ended_at.map(time),
    })
}

/// Returns the data for programs: one object, or in a digest a list of each kind.
fn data(message: &Message) -> Value {
    let mut data = json!({
        "title": message.title,
        "text": message.text(),
        "url": message.url,
        "severity": message.severity,
    });
    match &message.topics[..] {
        [] => {}
        [Topic::Incident(report)] => data["incident"] = json!(report),
        [Topic::Notice(notice)] => data["notice"] = json!(notice),
        [Topic::Trouble(trouble)] => data["trouble"] = json!(trouble),
        topics => {
            let (mut incidents, mut notices, mut troubles) = (vec![], vec![], vec![]);
            for topic in topics {
                match topic {
                    Topic::Incident(report) => incidents.push(lean(report)),
                    Topic::Notice(notice) => notices.push(notice),
                    Topic::Trouble(trouble) => troubles.push(trouble),
                }
            }
            data["incidents"] = json!(incidents);
            data["notices"] = json!(notices);
            data["troubles"] = json!(troubles);
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the specification's libraries.
    #[test]
    fn the_published_vector_matches() {
        let secret = WebhookSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = secret.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn several_secrets_sign_while_one_is_replaced() {
        let one = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let two = format!("{one}, whsec_{}", STANDARD.encode([7; 32]));
        let signatures = WebhookSecret::parse(&two).unwrap().sign("a", 1, b"b");
        assert_eq!(signatures.split(' ').count(), 2);
        for bad in [
            "",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_",
            "whsec_c2hvcnQ=",
            "whsec_?",
        ] {
            assert!(WebhookSecret::parse(bad).is_err(), "{bad}");
        }
    }
}
