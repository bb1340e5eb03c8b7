//! A webhook of your own, signed as Standard Webhooks are
//! ([specification](https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md)).
//!
//! Headers `webhook-id`, `webhook-timestamp` and `webhook-signature`; the body is an object with
//! `type`, `timestamp` and `data`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::RequestBuilder;
use secrecy::{ExposeSecret, SecretBox};
use serde_json::json;
use sha2::Sha256;
use time::format_description::well_known::Rfc3339;

use crate::report::alert::Message;

/// The keys that sign a webhook: one, or several while one is replaced.
#[derive(Debug)]
pub struct WebhookSecret(SecretBox<Vec<Vec<u8>>>);

/// The text is no secret of a Standard Webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "LOCKWATCH_ALERT_WEBHOOK_SECRET must be whsec_ and 24 to 64 bytes in base64, or several with \
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
        Ok(Self(SecretBox::new(Box::new(keys))))
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

pub(super) fn request(
    request: RequestBuilder,
    message: &Message,
    secret: &WebhookSecret,
) -> RequestBuilder {
    let now = message.written_at;
    let mut data = json!({
        "title": message.title,
        "text": message.lines.join("\n"),
        "url": message.url,
    });
    match &message.reports[..] {
        [report] => data["incident"] = json!(report),
        reports => data["incidents"] = json!(reports),
    }
    let body = json!({
        "type": message.webhook_type(),
        "timestamp": now.format(&Rfc3339).unwrap_or_default(),
        "data": data,
    });
    let body = body.to_string();
    let timestamp = now.unix_timestamp();
    let signature = secret.sign(&message.id, timestamp, body.as_bytes());
    request
        .header("content-type", "application/json")
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", timestamp.to_string())
        .header("webhook-signature", signature)
        .body(body)
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
