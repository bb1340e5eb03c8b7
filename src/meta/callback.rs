//! One callback: which failed deliveries are in it, and what in it could not be read.
//!
//! Every entry, change, status and error is read, each on its own. What is unreadable and might have
//! been about a lockout is handed on as the bytes it came in; its neighbours do not notice.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memmem;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::failure::{FailedDelivery, Sender, parse_failure};
use super::ids::{IdError, PhoneNumberId, TEST_ACCOUNT, Text, WabaId};
use super::json::{elements, fields, readable, scalar};

/// A callback without this text holds nothing for us. (A code spelled `1.31031e5` or with escaped digits
/// would pass unseen; Meta writes plain integers.)
const NEEDLE: &[u8] = b"131031";

/// Whether a callback may hold a lockout: a search over bytes, so that most callbacks are never parsed.
#[must_use]
pub fn may_hold_lockout(body: &[u8]) -> bool {
    memmem::find(body, NEEDLE).is_some()
}

/// What one callback holds for us.
#[derive(Debug, Default)]
pub struct CallbackContents {
    /// The first account in it that can be read.
    pub waba_id: Option<WabaId>,
    /// The failed deliveries, in the order of the callback.
    pub failures: Vec<FailedDelivery>,
    /// What may be one, and could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// Validly signed bytes that could not be read: kept in quarantine.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// The account, where it is known.
    pub waba_id: Option<WabaId>,
    /// What is wrong with them.
    pub reason: Cow<'static, str>,
    /// The smallest element that could not be read; the whole body, and only once, where the callback is
    /// not read byte for byte (invalid UTF-8 somewhere in it).
    pub bytes: Bytes,
}

impl CallbackContents {
    /// Reads a callback whose signature was verified. Never fails: what cannot be read is a finding.
    #[must_use]
    pub fn parse(body: &Bytes, received_at: OffsetDateTime) -> Self {
        let text = readable(body);
        let mut parser = Parser {
            body,
            received_at,
            contents: Self::default(),
        };
        parser.parse_body(&text);
        parser.contents
    }

    /// Nothing in it for us.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty() && self.unreadable.is_empty()
    }
}

struct Parser<'b> {
    body: &'b Bytes,
    received_at: OffsetDateTime,
    contents: CallbackContents,
}

impl Parser<'_> {
    fn parse_body(&mut self, text: &str) {
        let Some([entries]) = fields(text, ["entry"]) else {
            return self.add_unreadable(None, text, "the body is not a JSON object");
        };
        let Some(entries) = entries else {
            return self.add_unreadable(None, text, "the callback has no `entry`");
        };
        let Some(entries) = elements(entries) else {
            return self.add_unreadable(None, text, "`entry` is not a list");
        };
        for entry in entries {
            self.parse_entry(entry);
        }
    }

    fn parse_entry(&mut self, entry: &RawValue) {
        let Some([id, changes]) = fields(entry.get(), ["id", "changes"]) else {
            return self.add_unreadable(None, entry.get(), "the entry is not an object");
        };
        let id = id.and_then(scalar).ok_or(IdError::Empty);
        let id = match id.and_then(|id| WabaId::parse(&id)) {
            Ok(id) => id,
            Err(error) => {
                let reason = format!("the entry's id {error}");
                return self.add_unreadable(None, entry.get(), reason);
            }
        };
        if id.as_str() != TEST_ACCOUNT {
            self.contents.waba_id.get_or_insert_with(|| id.clone());
        }
        let Some(changes) = changes.and_then(elements) else {
            let reason = "the entry has no list of `changes`";
            return self.add_unreadable(Some(&id), entry.get(), reason);
        };
        for change in changes {
            self.parse_change(&id, change);
        }
    }

    /// Parses a change. One without `statuses` is another kind of notice, whatever its `field` says.
    fn parse_change(&mut self, entry: &WabaId, change: &RawValue) {
        let Some([value]) = fields(change.get(), ["value"]) else {
            let reason = "the change is not an object";
            return self.add_unreadable(Some(entry), change.get(), reason);
        };
        let value = value.and_then(|value| fields(value.get(), ["metadata", "statuses"]));
        let Some([metadata, statuses]) = value else {
            let reason = "the change has no object `value`";
            return self.add_unreadable(Some(entry), change.get(), reason);
        };
        let sender = parse_sender(entry, metadata);
        if let Ok(sender) = &sender {
            let waba_id = &mut self.contents.waba_id;
            waba_id.get_or_insert_with(|| sender.waba_id.clone());
        }
        let Some(statuses) = statuses.filter(|list| may_hold_lockout(list.get().as_bytes())) else {
            return;
        };
        match sender {
            Ok(sender) => self.parse_statuses(&sender, change, statuses),
            Err(error) => {
                let reason = format!("the phone number id {error}");
                self.add_unreadable(Some(entry), change.get(), reason);
            }
        }
    }

    fn parse_statuses(&mut self, sender: &Sender, change: &RawValue, statuses: &RawValue) {
        let waba_id = Some(&sender.waba_id);
        let Some(statuses) = elements(statuses) else {
            return self.add_unreadable(waba_id, change.get(), "`statuses` is not a list");
        };
        for status in statuses {
            match parse_failure(status, sender, self.received_at) {
                Ok(failure) => self.contents.failures.extend(failure),
                Err(reason) => self.add_unreadable(waba_id, status.get(), reason),
            }
        }
    }

    /// Keeps an element that is not readable, unless it cannot be about a lockout.
    fn add_unreadable(
        &mut self,
        waba_id: Option<&WabaId>,
        element: &str,
        reason: impl Into<Cow<'static, str>>,
    ) {
        if !may_hold_lockout(element.as_bytes()) {
            return;
        }
        let unreadable = &mut self.contents.unreadable;
        let bytes = if self.body.as_ptr_range().contains(&element.as_ptr()) {
            self.body.slice_ref(element.as_bytes())
        } else if unreadable.is_empty() {
            self.body.clone()
        } else {
            // No element is a slice of the mended text's original, so the whole body is kept already.
            return;
        };
        unreadable.push(Unreadable {
            waba_id: waba_id.cloned(),
            reason: reason.into(),
            bytes,
        });
    }
}

/// Parses the business number of a change.
fn parse_sender(entry: &WabaId, metadata: Option<&RawValue>) -> Result<Sender, IdError> {
    let names = ["phone_number_id", "display_phone_number"];
    let metadata = metadata.and_then(|metadata| fields(metadata.get(), names));
    let [id, display] = metadata.unwrap_or_default();
    let id = id.and_then(scalar).ok_or(IdError::Empty)?;
    let phone_number_id = PhoneNumberId::parse(&id)?;
    let display = display.and_then(scalar);
    Ok(Sender {
        waba_id: WabaId::of_failure(entry, &phone_number_id),
        phone_number_id,
        display_phone_number: display.map(|display| Text::cut(&display, Text::SHORT)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: OffsetDateTime = time::macros::datetime!(2026-11-22 12:00 UTC);

    fn read(body: &[u8]) -> CallbackContents {
        CallbackContents::parse(&Bytes::copy_from_slice(body), NOW)
    }

    fn read_json(body: &Value) -> CallbackContents {
        read(body.to_string().as_bytes())
    }

    /// A callback of one account and number with these statuses.
    fn callback(statuses: Value) -> Value {
        json!({"object": "whatsapp_business_account", "entry": [{"id": "1022", "changes": [{
            "field": "messages",
            "value": {"messaging_product": "whatsapp",
                      "metadata": {"display_phone_number": "15550783881", "phone_number_id": "1065"},
                      "statuses": statuses}}]}]})
    }

    fn failed(id: &str) -> Value {
        json!({"id": id, "status": "failed", "timestamp": "1763399138", "recipient_id": "16505551234",
               "errors": [{"code": 131031, "title": "Business Account locked"}]})
    }

    fn with(mut status: Value, field: &str, value: Value) -> Value {
        status[field] = value;
        status
    }

    fn only(findings: &CallbackContents) -> &FailedDelivery {
        assert_eq!(
            (findings.failures.len(), findings.unreadable.len()),
            (1, 0),
            "{findings:?}"
        );
        &findings.failures[0]
    }

    #[test]
    fn everything_in_the_batch_is_read() {
        let mut body = callback(json!([failed("a"), {"id": "s", "status": "sent"}, failed("b")]));
        let second = body["entry"][0]["changes"][0].clone();
        body["entry"][0]["changes"]
            .as_array_mut()
            .unwrap()
            .push(second);
        body["entry"][0]["changes"][1]["value"]["metadata"]["phone_number_id"] = json!("1066");
        let other = body["entry"][0].clone();
        body["entry"].as_array_mut().unwrap().push(other);
        body["entry"][1]["id"] = json!("1033");

        let findings = read_json(&body);
        let seen: Vec<_> = findings
            .failures
            .iter()
            .map(|f| {
                (
                    f.waba_id.as_str(),
                    f.phone_number_id.as_str(),
                    f.message_id.as_str(),
                )
            })
            .collect();
        let number = |waba, number| [(waba, number, "a"), (waba, number, "b")];
        let expected = [
            number("1022", "1065"),
            number("1022", "1066"),
            number("1033", "1065"),
            number("1033", "1066"),
        ]
        .concat();
        assert_eq!(seen, expected);
        assert!(findings.unreadable.is_empty());
    }

    #[test]
    fn a_failure_carries_what_meta_said() {
        let status = with(
            with(
                failed("wamid.1"),
                "biz_opaque_callback_data",
                json!("campaign-42"),
            ),
            "errors",
            json!([{"code": 131000, "title": "Something went wrong"},
                   {"code": "131031", "title": "Business Account locked", "message": "m",
                    "error_data": {"details": "Business account has been locked."}}]),
        );
        let findings = read_json(&callback(json!([status])));
        let failure = only(&findings);
        let text = |text: &Option<Text>| text.as_ref().map(|t| t.as_str().to_owned());
        assert_eq!(failure.failed_at.unix_timestamp(), 1_763_399_138);
        assert_eq!(text(&failure.callback_data).as_deref(), Some("campaign-42"));
        assert_eq!(
            text(&failure.error_title).as_deref(),
            Some("Business Account locked")
        );
        assert_eq!(text(&failure.error_message).as_deref(), Some("m"));
        assert_eq!(
            text(&failure.error_details).as_deref(),
            Some("Business account has been locked.")
        );
        assert_eq!(
            text(&failure.display_phone_number).as_deref(),
            Some("15550783881")
        );
        assert_eq!(text(&failure.recipient_id).as_deref(), Some("16505551234"));
    }

    #[test]
    fn two_lockout_errors_in_one_status_are_one_failure() {
        let errors =
            json!([{"code": 131031, "title": "first"}, {"code": 131031, "title": "second"}]);
        let findings = read_json(&callback(json!([with(failed("a"), "errors", errors)])));
        assert_eq!(
            only(&findings).error_title.as_ref().unwrap().as_str(),
            "first"
        );
    }

    #[test]
    fn what_only_mentions_the_code_is_no_failure() {
        for body in [
            callback(json!([with(failed("a"), "status", json!("sent"))])),
            callback(json!([with(
                failed("a"),
                "errors",
                json!([{"code": 131026, "title": "like 131031"}])
            )])),
            callback(json!([{"id": "wamid.131031", "status": "delivered"}])),
            json!({"entry": [{"id": "1", "changes": [{"field": "messages", "value": {
                "metadata": {"phone_number_id": "1"},
                "errors": [{"code": 131031}],
                "messages": [{"text": {"body": "what is 131031?"}, "errors": [{"code": 131031}]}]}}]}]}),
            json!({"entry": [{"id": "131031", "changes": []}]}),
        ] {
            assert!(read_json(&body).is_empty(), "{body}");
        }
    }

    #[test]
    fn times_out_of_reason_become_the_time_received() {
        let at = |timestamp: Value| {
            only(&read_json(&callback(json!([with(
                failed("a"),
                "timestamp",
                timestamp
            )]))))
            .failed_at
        };
        assert_eq!(at(json!(1_763_399_138)).unix_timestamp(), 1_763_399_138);
        assert_eq!(at(json!(1_763_399_138.0)).unix_timestamp(), 1_763_399_138);
        assert_eq!(
            at(json!((NOW + time::Duration::hours(23)).unix_timestamp())),
            NOW + time::Duration::hours(23)
        );
        let two_days_on = json!((NOW + time::Duration::days(2)).unix_timestamp());
        for unreasonable in [
            json!("-1"),
            json!("soon"),
            json!(null),
            json!([1]),
            json!(1_763_399_138_000_i64),
            two_days_on,
        ] {
            assert_eq!(at(unreasonable.clone()), NOW, "{unreasonable}");
        }
    }

    #[test]
    fn recipients_are_phones_users_or_nobody_and_participants_tell_rows_apart() {
        let bsuid = json!({"id": "a", "status": "failed", "recipient_user_id": "US.1", "errors": [{"code": 131031}]});
        assert_eq!(
            only(&read_json(&callback(json!([bsuid]))))
                .recipient_id
                .as_ref()
                .unwrap()
                .as_str(),
            "US.1"
        );
        let nobody = json!({"id": "a", "status": "failed", "errors": [{"code": 131031}]});
        assert!(
            only(&read_json(&callback(json!([nobody]))))
                .recipient_id
                .is_none()
        );

        let member = |id: &str| {
            with(
                with(failed("a"), "recipient_type", json!("group")),
                "recipient_participant_id",
                json!(id),
            )
        };
        let findings = read_json(&callback(json!([member("1"), member("2"), member("1")])));
        let digests: Vec<_> = findings.failures.iter().map(|f| f.digest).collect();
        assert_ne!(digests[0], digests[1]);
        assert_eq!(digests[0], digests[2]);

        let unnamed = |user: &str| with(member(""), "recipient_participant_user_id", json!(user));
        let findings = read_json(&callback(json!([unnamed("US.1"), unnamed("US.2")])));
        assert_ne!(
            findings.failures[0].digest, findings.failures[1].digest,
            "an empty field is none"
        );
    }

    #[test]
    fn long_message_ids_are_told_apart_beyond_what_is_kept() {
        let long = "x".repeat(9000);
        let findings = read_json(&callback(json!([
            failed(&format!("{long}1")),
            failed(&format!("{long}2"))
        ])));
        assert_eq!(
            findings.failures[0].message_id,
            findings.failures[1].message_id
        );
        assert_ne!(findings.failures[0].digest, findings.failures[1].digest);
        assert_eq!(findings.failures[0].message_id.as_str().len(), Text::SHORT);
    }

    #[test]
    fn an_unreadable_element_is_kept_as_bytes_and_costs_no_neighbour() {
        for (strange, reason) in [
            (json!("131031"), "the status is not an object"),
            (
                json!({"id": "z", "errors": [{"code": 131031}]}),
                "the status has no readable `status`",
            ),
            (
                json!({"status": "failed", "recipient_id": "1", "errors": [{"code": 131031}]}),
                "the failed status has no message id",
            ),
            (
                with(failed("z"), "errors", json!({"code": 131031})),
                "`errors` is not a list",
            ),
            (
                with(failed("z"), "errors", json!([{"code": "#131031"}])),
                "an error has no readable `code`",
            ),
            (
                with(failed("z"), "errors", json!(["131031"])),
                "an error is not an object",
            ),
        ] {
            let body = callback(json!([failed("a"), strange, failed("b")]));
            let findings = read_json(&body);
            assert_eq!(findings.failures.len(), 2, "{strange}");
            assert_eq!(findings.unreadable.len(), 1, "{strange}");
            assert_eq!(findings.unreadable[0].reason, reason);
            assert_eq!(findings.unreadable[0].bytes, strange.to_string().as_bytes());
        }
    }

    #[test]
    fn a_missing_account_or_number_is_kept_and_costs_no_neighbour() {
        let good = callback(json!([failed("a")]));
        let mut no_id = good.clone();
        no_id["entry"][0].as_object_mut().unwrap().remove("id");
        let mut long_id = good.clone();
        long_id["entry"][0]["id"] = json!("1".repeat(65));
        let mut no_number = good.clone();
        no_number["entry"][0]["changes"][0]["value"]["metadata"] = json!({});
        let mut no_statuses = good.clone();
        no_statuses["entry"][0]["changes"][0]["value"]["statuses"] = json!({"code": 131031});
        let mut no_changes = good.clone();
        no_changes["entry"][0]["changes"] = json!("131031");
        for (strange, reason) in [
            (no_id, "the entry's id is empty"),
            (long_id, "the entry's id is longer than 64 bytes"),
            (no_number, "the phone number id is empty"),
            (no_statuses, "`statuses` is not a list"),
            (no_changes, "the entry has no list of `changes`"),
        ] {
            let mut body = good.clone();
            body["entry"]
                .as_array_mut()
                .unwrap()
                .insert(0, strange["entry"][0].clone());
            let findings = read_json(&body);
            assert_eq!(
                (findings.failures.len(), findings.unreadable.len()),
                (1, 1),
                "{reason}"
            );
            assert_eq!(findings.unreadable[0].reason, reason);
        }
    }

    #[test]
    fn a_body_that_cannot_be_read_is_kept_whole_if_it_may_be_about_a_lockout() {
        for body in [
            "131031",
            "[131031]",
            "{\"code\":131031",
            "{\"entry\":131031}",
            "{\"x\":131031}",
            "\u{feff}{}131031",
        ] {
            let findings = read(body.as_bytes());
            assert_eq!(findings.unreadable.len(), 1, "{body}");
            assert_eq!(findings.unreadable[0].bytes, body.as_bytes());
        }
        assert!(read(b"not for us").is_empty());
    }

    #[test]
    fn hostile_neighbours_cost_nothing() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for neighbour in [
            r#"{"id":"\u0000","status":"sent"}"#.to_owned(),
            r#"{"id":"\ud800","status":"\udfff"}"#.to_owned(),
            "{\"id\":\"\0\",\"status\":\"sent\"}".to_owned(),
            r#"{"id":1e999999,"status":"sent","status":"read"}"#.to_owned(),
            format!(r#"{{"id":"d","status":"sent","x":{deep}}}"#),
        ] {
            let body = callback(json!(["HERE", failed("b")]))
                .to_string()
                .replace("\"HERE\"", &neighbour);
            assert_eq!(read(body.as_bytes()).failures.len(), 1, "{neighbour:.60}");
        }
    }

    #[test]
    fn invalid_utf8_is_read_lossily_and_kept_as_it_came() {
        let mut body =
            callback(json!([failed("HERE"), {"errors": "131031"}, {"errors": "131031"}]))
                .to_string()
                .into_bytes();
        let at = memmem::find(&body, b"HERE").unwrap();
        body[at] = 0xff;
        let findings = read(&body);
        assert_eq!(findings.failures[0].message_id.as_str(), "\u{fffd}ERE");
        assert_eq!(
            findings.unreadable[0].bytes, body,
            "the original bytes, not the mended ones"
        );
        assert_eq!(
            findings.unreadable.len(),
            1,
            "and once, however many elements cannot be read"
        );
    }
}
