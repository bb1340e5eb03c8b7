//! Writes callbacks as Meta does: for tests, demonstrations and load.

use serde_json::{Value, json};
use time::OffsetDateTime;

/// Builds the body of one status callback.
///
/// ```
/// use lockwatch::meta::compose::StatusCallback;
///
/// let body = StatusCallback::new()
///     .failed("102290129340398", "106540352242922", "wamid.1")
///     .sent("102290129340398", "106540352242922", "wamid.2")
///     .into_body();
/// assert!(std::str::from_utf8(&body).unwrap().contains("131031"));
/// ```
#[derive(Debug, Clone)]
pub struct StatusCallback {
    at: OffsetDateTime,
    entries: Vec<Value>,
}

impl Default for StatusCallback {
    fn default() -> Self {
        Self::new()
    }
}

impl StatusCallback {
    /// An empty callback whose statuses happened on 17 November 2025.
    #[must_use]
    pub fn new() -> Self {
        Self { at: time::macros::datetime!(2025-11-17 17:05:38 UTC), entries: Vec::new() }
    }

    /// The statuses added from here on happened at this time (whole seconds).
    #[must_use]
    pub fn at(mut self, at: OffsetDateTime) -> Self {
        self.at = at;
        self
    }

    /// Adds a message that failed with 131031.
    #[must_use]
    pub fn failed(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        let status = json!({
            "id": message_id,
            "status": "failed",
            "timestamp": self.at.unix_timestamp().to_string(),
            "recipient_id": "16505551234",
            "errors": [{
                "code": 131_031,
                "title": "Business Account locked",
                "message": "Business Account locked",
                "error_data": {"details": "Business account has been locked."},
                "href": "/documentation/business-messaging/whatsapp/support/error-codes",
            }],
        });
        self.status(waba_id, phone_number_id, status)
    }

    /// Adds a message that was sent: nothing for us.
    #[must_use]
    pub fn sent(self, waba_id: &str, phone_number_id: &str, message_id: &str) -> Self {
        let status = json!({
            "id": message_id,
            "status": "sent",
            "timestamp": self.at.unix_timestamp().to_string(),
            "recipient_id": "16505551234",
        });
        self.status(waba_id, phone_number_id, status)
    }

    /// Adds any `statuses[]` element. It joins the last entry and change if account and number are theirs.
    #[must_use]
    pub fn status(mut self, waba_id: &str, phone_number_id: &str, status: Value) -> Self {
        if self.entries.last().is_none_or(|entry| entry["id"] != waba_id) {
            self.entries.push(json!({"id": waba_id, "changes": []}));
        }
        let entry = self.entries.last_mut().expect("an entry was just added");
        let changes = entry["changes"].as_array_mut().expect("an entry's changes are a list");
        if changes.last().is_none_or(|change| change["value"]["metadata"]["phone_number_id"] != phone_number_id) {
            let metadata = json!({"display_phone_number": "15550783881", "phone_number_id": phone_number_id});
            changes.push(json!({
                "value": {"messaging_product": "whatsapp", "metadata": metadata, "statuses": []},
                "field": "messages",
            }));
        }
        let change = changes.last_mut().expect("a change was just added");
        change["value"]["statuses"].as_array_mut().expect("statuses are a list").push(status);
        self
    }

    /// The body to sign and post.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        json!({"object": "whatsapp_business_account", "entry": self.entries}).to_string().into_bytes()
    }
}
