//! Builds callbacks as Meta sends them, for tests and demonstrations.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::codes::ACCOUNT_LOCKED;

const ERROR_CODES_PATH: &str = "/documentation/business-messaging/whatsapp/support/error-codes";

/// Builds the body of one status callback, to be signed and posted
/// ([Meta: status webhooks](https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages/status)).
///
/// ```
/// use lockwatch::meta::compose::{StatusCallback, message_id};
/// use lockwatch::meta::signature::sign;
///
/// let (account, number) = ("102290129340398", "106540352242922");
/// let body = StatusCallback::new()
///     .failed(account, number, "wamid.1")
///     .recipient("4915112345678")
///     .delivered(account, number, &message_id("4915112345678", "EECECA125C8C2E22C3"))
///     .failed_with(account, number, "wamid.2", 131_026, "Message undeliverable")
///     .into_body();
/// let signature = sign("the-app-secret-of-your-app", &body);
/// assert!(signature.starts_with("sha256="));
/// // Post the body to your handler, with the header X-Hub-Signature-256.
/// ```
#[derive(Debug, Clone)]
pub struct StatusCallback {
    timestamp: OffsetDateTime,
    recipient: String,
    entries: Vec<Value>,
}

impl Default for StatusCallback {
    fn default() -> Self {
        Self::new()
    }
}

impl StatusCallback {
    /// Starts an empty callback.
    ///
    /// By default its statuses happened on 17 November 2025, and the recipient is 16505551234, a
    /// number that belongs to nobody.
    #[must_use]
    pub fn new() -> Self {
        Self {
            timestamp: time::macros::datetime!(2025-11-17 17:05:38 UTC),
            recipient: "16505551234".to_owned(),
            entries: Vec::new(),
        }
    }

    /// Sets the time of the statuses that are added after this call.
    ///
    /// Meta sends whole seconds, so fractions are dropped.
    #[must_use]
    pub fn timestamp(mut self, timestamp: OffsetDateTime) -> Self {
        self.timestamp = timestamp;
        self
    }

    /// Sets the recipient of the messages that are added after this call.
    ///
    /// Meta writes a phone number with digits only.
    #[must_use]
    pub fn recipient(mut self, recipient: &str) -> Self {
        recipient.clone_into(&mut self.recipient);
        self
    }

    /// Adds a message that failed because the account is locked (131031).
    #[must_use]
    pub fn failed(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        let mut error = error_object(ACCOUNT_LOCKED.into(), "Business Account locked");
        error["error_data"] = json!({"details": "Business account has been locked."});
        self.add_message(waba_id, phone_number_id, message_id, "failed", Some(error))
    }

    /// Adds a message that failed with another error.
    #[must_use]
    pub fn failed_with(
        self,
        waba_id: &str,
        phone_number_id: &str,
        message_id: &str,
        code: i64,
        title: &str,
    ) -> Self {
        let error = error_object(code, title);
        self.add_message(waba_id, phone_number_id, message_id, "failed", Some(error))
    }

    /// Adds a message with the status `sent`.
    #[must_use]
    pub fn sent(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        self.add_message(waba_id, phone_number_id, message_id, "sent", None)
    }

    /// Adds a message with the status `delivered`.
    #[must_use]
    pub fn delivered(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        self.add_message(waba_id, phone_number_id, message_id, "delivered", None)
    }

    /// Adds a message with the status `read`.
    #[must_use]
    pub fn read(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        self.add_message(waba_id, phone_number_id, message_id, "read", None)
    }

    /// Adds any `statuses[]` element, unchanged.
    ///
    /// It joins the last entry and change if they have the same account and number; otherwise it
    /// starts new ones.
    #[must_use]
    pub fn status(mut self, waba_id: &str, phone_number_id: &str, status: Value) -> Self {
        let last_entry = self.entries.last();
        if last_entry.is_none_or(|entry| entry["id"] != waba_id) {
            self.entries.push(json!({"id": waba_id, "changes": []}));
        }
        let entry = self.entries.last_mut().expect("an entry was just added");
        let changes = entry["changes"]
            .as_array_mut()
            .expect("an entry's changes are a list");
        let last_change = changes.last();
        if last_change
            .is_none_or(|change| change["value"]["metadata"]["phone_number_id"] != phone_number_id)
        {
            changes.push(empty_change(phone_number_id));
        }
        let change = changes.last_mut().expect("a change was just added");
        change["value"]["statuses"]
            .as_array_mut()
            .expect("statuses are a list")
            .push(status);
        self
    }

    /// Returns the body as JSON without white space, as Meta sends it.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        json!({"object": "whatsapp_business_account", "entry": self.entries})
            .to_string()
            .into_bytes()
    }

    fn add_message(
        self,
        waba_id: &str,
        phone_number_id: &str,
        message_id: &str,
        status: &str,
        error: Option<Value>,
    ) -> Self {
        let mut message = json!({
            "id": message_id,
            "status": status,
            "timestamp": self.timestamp.unix_timestamp().to_string(),
            "recipient_id": self.recipient,
        });
        if let Some(error) = error {
            message["errors"] = json!([error]);
        }
        self.status(waba_id, phone_number_id, message)
    }
}

fn empty_change(phone_number_id: &str) -> Value {
    json!({
        "value": {
            "messaging_product": "whatsapp",
            "metadata": {
                "display_phone_number": "15550783881",
                "phone_number_id": phone_number_id,
            },
            "statuses": [],
        },
        "field": "messages",
    })
}

fn error_object(code: i64, title: &str) -> Value {
    json!({"code": code, "title": title, "message": title, "href": ERROR_CODES_PATH})
}

/// Returns a message id in Meta's format: `wamid.` and the base64 of a protocol buffer, which
/// contains the recipient's phone number and an id. Meta's ids mostly have 18 hexadecimal digits.
/// Both texts may have up to 127 bytes.
///
/// ```
/// let id = lockwatch::meta::compose::message_id("16505551234", "EECECA125C8C2E22C3");
/// assert_eq!(id, "wamid.HBgLMTY1MDU1NTEyMzQVAgARGBJFRUNFQ0ExMjVDOEMyRTIyQzMA");
/// ```
#[must_use]
pub fn message_id(recipient: &str, id: &str) -> String {
    let mut bytes = vec![0x1c];
    bytes.extend(text_field(recipient));
    bytes.extend([0x15, 2, 0, 0x11]);
    bytes.extend(text_field(id));
    bytes.push(0);
    format!("wamid.{}", BASE64.encode(bytes))
}

/// Returns a text field of the protocol buffer: tag, length and bytes.
fn text_field(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(127);
    [&[0x18, length], text.as_bytes()].concat()
}
