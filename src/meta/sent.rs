//! Sent messages: `statuses[]` elements with `status: sent`. They show that a number can send.

use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::ids::{PhoneNumberId, WabaId};
use super::json::{elements, fields, integer, repair_text, scalar, string};
use super::status::plausible_time;

/// A message that Meta has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentMessage {
    /// The account that sent the message.
    pub waba_id: WabaId,
    /// The business phone number that sent the message.
    pub phone_number_id: PhoneNumberId,
    /// The time according to Meta, in whole seconds.
    pub sent_at: OffsetDateTime,
    /// Whether it was a template, if Meta tells its category. A reply passes where only templates
    /// are stopped.
    pub is_template: Option<bool>,
}

/// Returns the sent messages of a callback whose signature was verified. What cannot be read is
/// left out: the next message will show the same.
#[must_use]
pub fn sent_messages(body: &[u8], received_at: OffsetDateTime) -> Vec<SentMessage> {
    let text = repair_text(body);
    let mut sent = Vec::new();
    let entries = fields(&text, ["entry"]).and_then(|[entries]| entries.and_then(elements));
    for entry in entries.into_iter().flatten() {
        let Some([Some(id), Some(changes)]) = fields(entry.get(), ["id", "changes"]) else {
            continue;
        };
        let Some(account) = scalar(id).and_then(|id| WabaId::parse(&id).ok()) else {
            continue;
        };
        for change in elements(changes).into_iter().flatten() {
            read_change(change, &account, received_at, &mut sent);
        }
    }
    sent
}

fn read_change(
    change: &RawValue,
    account: &WabaId,
    received_at: OffsetDateTime,
    sent: &mut Vec<SentMessage>,
) {
    let Some([Some(value)]) = fields(change.get(), ["value"]) else {
        return;
    };
    let Some([Some(metadata), Some(statuses)]) = fields(value.get(), ["metadata", "statuses"])
    else {
        return;
    };
    let id = fields(metadata.get(), ["phone_number_id"]).and_then(|[id]| scalar(id?));
    let Some(number) = id.and_then(|id| PhoneNumberId::parse(&id).ok()) else {
        return;
    };
    for status in elements(statuses).into_iter().flatten() {
        let Some([word, timestamp, pricing]) =
            fields(status.get(), ["status", "timestamp", "pricing"])
        else {
            continue;
        };
        if word.and_then(string).as_deref() != Some("sent") {
            continue;
        }
        let seconds = timestamp.and_then(integer);
        let Some(sent_at) = seconds.and_then(|seconds| plausible_time(seconds, received_at)) else {
            continue;
        };
        let category = pricing
            .and_then(|pricing| fields(pricing.get(), ["category"]))
            .and_then(|[category]| string(category?));
        sent.push(SentMessage {
            waba_id: WabaId::from_entry(account, &number),
            phone_number_id: number.clone(),
            sent_at,
            is_template: category.map(|category| is_template(&category)),
        });
    }
}

fn is_template(category: &str) -> bool {
    ["marketing", "utility", "authentication"]
        .iter()
        .any(|kind| category.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

    #[test]
    fn only_sent_statuses_with_a_time_are_sent_messages() {
        let status = |status: &str, rest: &str| format!(r#"{{"status":"{status}"{rest}}}"#);
        let at = r#","timestamp":"1763399138""#;
        let body = |statuses: &[String]| {
            let statuses = statuses.join(",");
            format!(
                r#"{{"entry":[{{"id":"0","changes":[{{"value":{{
                    "metadata":{{"phone_number_id":"1065"}},"statuses":[{statuses}]}}}}]}}]}}"#
            )
        };
        let sent = |statuses: &[String]| sent_messages(body(statuses).as_bytes(), NOW);
        let plain = sent(&[status("sent", at)]);
        assert_eq!(plain[0].waba_id.as_str(), "phone:1065");
        assert_eq!(plain[0].sent_at.unix_timestamp(), 1_763_399_138);
        for (category, is_template) in [
            ("marketing_lite", Some(true)),
            ("authentication-international", Some(true)),
            ("service", Some(false)),
        ] {
            let priced = format!(r#"{at},"pricing":{{"category":"{category}"}}"#);
            assert_eq!(sent(&[status("sent", &priced)])[0].is_template, is_template);
        }
        let others = ["delivered", "read", "failed", "played"].map(|word| status(word, at));
        assert_eq!(sent(&others), []);
        assert_eq!(
            sent(&[status("sent", ""), status("sent", r#","timestamp":"0""#)]),
            []
        );
        assert_eq!(sent_messages(b"not JSON", NOW), []);
    }
}
