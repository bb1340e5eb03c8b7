//! Writes callbacks as Meta does: for tests, demonstrations and load.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::failure::ACCOUNT_LOCKED;

const ERROR_CODES: &str = "/documentation/business-messaging/whatsapp/support/error-codes";

/// Builds the body of one status callback, to be signed and posted.
///
/// ```
/// use lockwatch::meta::compose::{StatusCallback, message_id};
/// use lockwatch::meta::signature::sign;
///
/// let (account, number) = ("102290129340398", "106540352242922");
/// let body = StatusCallback::new()
///     .failed(account, number, "wamid.1")
///     .to("4915112345678")
///     .delivered(account, number, &message_id("4915112345678", "EECECA125C8C2E22C3"))
///     .failed_with(account, number, "wamid.2", 131_026, "Message undeliverable")
///     .into_body();
/// let signature = sign("the-app-secret-of-your-app", &body);
/// assert!(signature.starts_with("sha256="));
/// // Post the body to your handler, with the header X-Hub-Signature-256.
/// ```
#[derive(Debug, Clone)]
pub struct StatusCallback {
    at: OffsetDateTime,
    recipient: String,
    entries: Vec<Value>,
}

impl Default for StatusCallback {
    fn default() -> Self {
        Self::new()
    }
}

impl StatusCallback {
    /// An empty callback. Unless told otherwise its statuses happened on 17 November 2025, to the number
    /// 16505551234, which belongs to nobody.
    #[must_use]
    pub fn new() -> Self {
        let at = time::macros::datetime!(2025-11-17 17:05:38 UTC);
        Self {
            at,
            recipient: "16505551234".to_owned(),
            entries: Vec::new(),
        }
    }

    /// The statuses added from here on happened at this time (whole seconds).
    #[must_use]
    pub fn at(mut self, at: OffsetDateTime) -> Self {
        self.at = at;
        self
    }

    /// The messages added from here on went to this recipient.
    #[must_use]
    pub fn to(mut self, recipient: &str) -> Self {
        recipient.clone_into(&mut self.recipient);
        self
    }

    /// Adds a message that failed with 131031.
    #[must_use]
    pub fn failed(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        let mut error = error(ACCOUNT_LOCKED, "Business Account locked");
        error["error_data"] = json!({"details": "Business account has been locked."});
        self.message(waba_id, phone_number_id, message_id, "failed", Some(error))
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
        self.message(
            waba_id,
            phone_number_id,
            message_id,
            "failed",
            Some(error(code, title)),
        )
    }

    /// Adds a message that was sent.
    #[must_use]
    pub fn sent(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        self.message(waba_id, phone_number_id, message_id, "sent", None)
    }

    /// Adds a message that was delivered.
    #[must_use]
    pub fn delivered(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        self.message(waba_id, phone_number_id, message_id, "delivered", None)
    }

    /// Adds a message that was read.
    #[must_use]
    pub fn read(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        self.message(waba_id, phone_number_id, message_id, "read", None)
    }

    fn message(
        self,
        waba_id: &str,
        number: &str,
        message_id: &str,
        status: &str,
        error: Option<Value>,
    ) -> Self {
        let mut message = json!({
            "id": message_id,
            "status": status,
            "timestamp": self.at.unix_timestamp().to_string(),
            "recipient_id": self.recipient,
        });
        if let Some(error) = error {
            message["errors"] = json!([error]);
        }
        self.status(waba_id, number, message)
    }

    /// Adds any `statuses[]` element. It joins the last entry and change if account and number are theirs.
    #[must_use]
    pub fn status(mut self, waba_id: &str, phone_number_id: &str, status: Value) -> Self {
        if self
            .entries
            .last()
            .is_none_or(|entry| entry["id"] != waba_id)
        {
            self.entries.push(json!({"id": waba_id, "changes": []}));
        }
        let entry = self.entries.last_mut().expect("an entry was just added");
        let changes = entry["changes"]
            .as_array_mut()
            .expect("an entry's changes are a list");
        if changes
            .last()
            .is_none_or(|change| change["value"]["metadata"]["phone_number_id"] != phone_number_id)
        {
            let metadata =
                json!({"display_phone_number": "15550783881", "phone_number_id": phone_number_id});
            changes.push(json!({
                "value": {"messaging_product": "whatsapp", "metadata": metadata, "statuses": []},
                "field": "messages",
            }));
        }
        let change = changes.last_mut().expect("a change was just added");
        change["value"]["statuses"]
            .as_array_mut()
            .expect("statuses are a list")
            .push(status);
        self
    }

    /// The body, as compact as Meta's.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        json!({"object": "whatsapp_business_account", "entry": self.entries})
            .to_string()
            .into_bytes()
    }
}

fn error(code: i64, title: &str) -> Value {
    json!({"code": code, "title": title, "message": title, "href": ERROR_CODES})
}

/// A message id as Meta makes them: base64 of a protocol buffer that holds the recipient's phone number
/// and an id, mostly 18 hexadecimal digits. Both have up to 127 bytes.
///
/// ```
/// let id = lockwatch::meta::compose::message_id("16505551234", "EECECA125C8C2E22C3");
/// assert_eq!(id, "wamid.HBgLMTY1MDU1NTEyMzQVAgARGBJFRUNFQ0ExMjVDOEMyRTIyQzMA");
/// ```
#[must_use]
pub fn message_id(recipient: &str, id: &str) -> String {
    let text = |text: &str| {
        [
            &[0x18, u8::try_from(text.len()).unwrap_or(127)],
            text.as_bytes(),
        ]
        .concat()
    };
    let bytes = [
        &[0x1c],
        &text(recipient)[..],
        &[0x15, 2, 0, 0x11],
        &text(id),
        &[0],
    ]
    .concat();
    format!("wamid.{}", BASE64.encode(bytes))
}
