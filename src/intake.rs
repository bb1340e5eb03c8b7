//! Intake: what a callback holds, failed messages, account events and unreadable parts.
//!
//! A callback is a JSON object: `entry[]` (one per account), in it `changes[]`, and in a change
//! `value.statuses[]`, one per message
//! ([Meta: status webhooks](https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages/status)).
//! Each entry, change, status and error is parsed on its own. An unreadable element that may be
//! about a lockout is returned as the bytes that Meta sent, for the quarantine. It never affects
//! the elements beside it.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::meta::event::{AccountEvent, account_field, parse_event};
use crate::meta::ids::{IdError, PhoneNumberId, Text, WabaId};
use crate::meta::interest::{Interest, has_account_field};
use crate::meta::json::{elements, fields, repair_text, scalar};
use crate::meta::status::{
    AccountError, FailedMessage, Sender, parse_account_error, parse_failure,
};

/// What matters to Lockwatch in one callback.
#[derive(Debug, Default)]
pub struct Intake {
    /// The failed messages with a watched code, in the order of the callback.
    pub failures: Vec<FailedMessage>,
    /// The errors of accounts themselves with a watched code.
    pub account_errors: Vec<AccountError>,
    /// The events of accounts.
    pub events: Vec<AccountEvent>,
    /// The elements that may matter and could not be parsed.
    pub unreadable: Vec<UnreadablePart>,
}

/// Bytes with a valid signature that could not be parsed, for the quarantine.
#[derive(Debug, Clone)]
pub struct UnreadablePart {
    /// The account, if it is known.
    pub waba_id: Option<WabaId>,
    /// The reason, as a short English text.
    pub reason: Cow<'static, str>,
    /// The smallest element that could not be parsed, exactly as it was received. If the body had
    /// to be repaired before parsing (for example invalid UTF-8), this is the whole body, and the
    /// callback has only one such part.
    pub bytes: Bytes,
}

impl Intake {
    /// Parses a callback whose signature was verified.
    ///
    /// Never fails: an element that cannot be parsed is in `unreadable`. `interest` names the
    /// watched codes. `received_at` replaces the
    /// time of a failure if Meta's timestamp is unreadable or implausible.
    #[must_use]
    pub fn parse(body: &Bytes, interest: &Interest, received_at: OffsetDateTime) -> Self {
        let text = repair_text(body);
        let mut parser = Parser {
            body,
            interest,
            received_at,
            contents: Self::default(),
        };
        parser.parse_body(&text);
        parser.contents
    }

    /// Returns whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty()
            && self.account_errors.is_empty()
            && self.events.is_empty()
            && self.unreadable.is_empty()
    }
}

struct Parser<'b> {
    body: &'b Bytes,
    interest: &'b Interest,
    received_at: OffsetDateTime,
    contents: Intake,
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
        let Some([id, changes, time]) = fields(entry.get(), ["id", "changes", "time"]) else {
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
        let Some(changes) = changes.and_then(elements) else {
            let reason = "the entry has no list of `changes`";
            return self.add_unreadable(Some(&id), entry.get(), reason);
        };
        for change in changes {
            let is_event = has_account_field(change.get().as_bytes());
            match account_field(change).filter(|_| is_event) {
                Some(field) => self.parse_event(&id, time, field, change),
                None => self.parse_change(&id, change),
            }
        }
    }

    fn parse_event(
        &mut self,
        entry: &WabaId,
        time: Option<&RawValue>,
        field: Text,
        change: &RawValue,
    ) {
        match parse_event(field, change, entry, time, self.received_at) {
            Ok(event) => self.contents.events.push(event),
            Err(reason) => self.add_unreadable(Some(entry), change.get(), reason),
        }
    }

    /// Parses a change.
    ///
    /// Without `statuses` and `errors` it is another kind of notice. Its `field` is ignored.
    fn parse_change(&mut self, entry: &WabaId, change: &RawValue) {
        let Some([value]) = fields(change.get(), ["value"]) else {
            let reason = "the change is not an object";
            return self.add_unreadable(Some(entry), change.get(), reason);
        };
        let value = value.and_then(|value| fields(value.get(), ["metadata", "statuses", "errors"]));
        let Some([metadata, statuses, errors]) = value else {
            let reason = "the change has no object `value`";
            return self.add_unreadable(Some(entry), change.get(), reason);
        };
        let sender = parse_sender(entry, metadata);
        if let Some(errors) = errors {
            self.parse_account_errors(entry, sender.as_ref().ok(), change, errors);
        }
        let is_watched = |list: &&RawValue| self.interest.has_watched_code(list.get().as_bytes());
        let Some(statuses) = statuses.filter(is_watched) else {
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

    fn parse_account_errors(
        &mut self,
        entry: &WabaId,
        sender: Option<&Sender>,
        change: &RawValue,
        errors: &RawValue,
    ) {
        let codes = self.interest.codes();
        match parse_account_error(errors, codes, entry, sender, self.received_at) {
            Ok(error) => self.contents.account_errors.extend(error),
            Err(reason) => {
                let waba_id = sender.map_or(entry, |sender| &sender.waba_id).clone();
                self.add_unreadable(Some(&waba_id), change.get(), reason);
            }
        }
    }

    fn parse_statuses(&mut self, sender: &Sender, change: &RawValue, statuses: &RawValue) {
        let waba_id = Some(&sender.waba_id);
        let Some(statuses) = elements(statuses) else {
            return self.add_unreadable(waba_id, change.get(), "`statuses` is not a list");
        };
        for status in statuses {
            match parse_failure(status, self.interest.codes(), sender, self.received_at) {
                Ok(failure) => self.contents.failures.extend(failure),
                Err(reason) => self.add_unreadable(waba_id, status.get(), reason),
            }
        }
    }

    /// Records an unreadable element if it may be about a lockout.
    fn add_unreadable(
        &mut self,
        waba_id: Option<&WabaId>,
        element: &str,
        reason: impl Into<Cow<'static, str>>,
    ) {
        if !self.interest.may_concern_us(element.as_bytes()) {
            return;
        }
        let unreadable = &mut self.contents.unreadable;
        let bytes = if self.body.as_ptr_range().contains(&element.as_ptr()) {
            self.body.slice_ref(element.as_bytes())
        } else if unreadable.is_empty() {
            self.body.clone()
        } else {
            // The body was repaired, and is already kept as a whole.
            return;
        };
        unreadable.push(UnreadablePart {
            waba_id: waba_id.cloned(),
            reason: reason.into(),
            bytes,
        });
    }
}

/// Parses the business phone number that a change is about.
fn parse_sender(entry: &WabaId, metadata: Option<&RawValue>) -> Result<Sender, IdError> {
    let names = ["phone_number_id", "display_phone_number"];
    let metadata = metadata.and_then(|metadata| fields(metadata.get(), names));
    let [id, display] = metadata.unwrap_or_default();
    let id = id.and_then(scalar).ok_or(IdError::Empty)?;
    let phone_number_id = PhoneNumberId::parse(&id)?;
    let display = display.and_then(scalar);
    Ok(Sender {
        waba_id: WabaId::from_entry(entry, &phone_number_id),
        phone_number_id,
        display_phone_number: display.map(|display| Text::truncate(&display, Text::SHORT_BYTES)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: OffsetDateTime = time::macros::datetime!(2026-11-22 12:00 UTC);

    fn parse(body: &[u8]) -> Intake {
        Intake::parse(&Bytes::copy_from_slice(body), &Interest::default(), NOW)
    }

    fn parse_json(body: &Value) -> Intake {
        parse(body.to_string().as_bytes())
    }

    /// A callback of one account and one number with these statuses.
    fn callback(statuses: Value) -> Value {
        let metadata = json!({"display_phone_number": "15550783881", "phone_number_id": "1065"});
        let value = json!({
            "messaging_product": "whatsapp",
            "metadata": metadata,
            "statuses": statuses,
        });
        let changes = json!([{"field": "messages", "value": value}]);
        json!({
            "object": "whatsapp_business_account",
            "entry": [{"id": "1022", "changes": changes}],
        })
    }

    fn failed(id: &str) -> Value {
        json!({
            "id": id,
            "status": "failed",
            "timestamp": "1763399138",
            "recipient_id": "16505551234",
            "errors": [{"code": 131031, "title": "Business Account locked"}],
        })
    }

    fn with_field(mut status: Value, field: &str, value: Value) -> Value {
        status[field] = value;
        status
    }

    /// The only failure of a callback in which everything is readable.
    fn single_failure(contents: &Intake) -> &FailedMessage {
        assert_eq!(contents.failures.len(), 1, "{contents:?}");
        assert_eq!(contents.unreadable.len(), 0, "{contents:?}");
        &contents.failures[0]
    }

    #[test]
    fn every_entry_change_and_status_is_read() {
        let mut body = callback(json!([failed("a"), {"id": "s", "status": "sent"}, failed("b")]));
        let mut other_number = body["entry"][0]["changes"][0].clone();
        other_number["value"]["metadata"]["phone_number_id"] = json!("1066");
        body["entry"][0]["changes"]
            .as_array_mut()
            .unwrap()
            .push(other_number);
        let mut other_account = body["entry"][0].clone();
        other_account["id"] = json!("1033");
        body["entry"].as_array_mut().unwrap().push(other_account);

        let contents = parse_json(&body);
        let parsed: Vec<[&str; 3]> = contents
            .failures
            .iter()
            .map(|failure| {
                [
                    failure.waba_id.as_str(),
                    failure.phone_number_id.as_str(),
                    failure.message_id.as_str(),
                ]
            })
            .collect();
        let expected = [
            ["1022", "1065", "a"],
            ["1022", "1065", "b"],
            ["1022", "1066", "a"],
            ["1022", "1066", "b"],
            ["1033", "1065", "a"],
            ["1033", "1065", "b"],
            ["1033", "1066", "a"],
            ["1033", "1066", "b"],
        ];
        assert_eq!(parsed, expected);
        assert!(contents.unreadable.is_empty());
    }

    #[test]
    fn a_failure_keeps_every_field_from_meta() {
        let mut status = failed("wamid.1");
        status["biz_opaque_callback_data"] = json!("campaign-42");
        status["errors"] = json!([
            {"code": 131000, "title": "Something went wrong"},
            {
                "code": "131031",
                "title": "Business Account locked",
                "message": "m",
                "error_data": {"details": "Business account has been locked."},
            },
        ]);
        let contents = parse_json(&callback(json!([status])));
        let failure = single_failure(&contents);
        assert_eq!(failure.failed_at.unix_timestamp(), 1_763_399_138);
        for (text, expected) in [
            (&failure.callback_data, "campaign-42"),
            (&failure.error_title, "Business Account locked"),
            (&failure.error_message, "m"),
            (&failure.error_details, "Business account has been locked."),
            (&failure.display_phone_number, "15550783881"),
            (&failure.recipient_id, "16505551234"),
        ] {
            assert_eq!(text.as_ref().map(Text::as_str), Some(expected));
        }
    }

    #[test]
    fn two_lockout_errors_in_one_status_are_one_failure() {
        let errors = json!([
            {"code": 131031, "title": "first"},
            {"code": 131031, "title": "second"},
        ]);
        let status = with_field(failed("a"), "errors", errors);
        let contents = parse_json(&callback(json!([status])));
        let title = single_failure(&contents).error_title.as_ref();
        assert_eq!(title.unwrap().as_str(), "first");
    }

    #[test]
    fn of_two_watched_codes_the_graver_counts() {
        let interest = Interest::new("account".parse().unwrap());
        let parse = |errors: Value| {
            let body = callback(json!([with_field(failed("a"), "errors", errors)]));
            let body = Bytes::from(body.to_string());
            let contents = Intake::parse(&body, &interest, NOW);
            contents.failures.first().map(|failure| failure.error_code)
        };
        let code = |code: i32| json!({"code": code});
        assert_eq!(parse(json!([code(131_042), code(131_031)])), Some(131_031));
        assert_eq!(
            parse(json!([code(131_064), code(368), code(131_042)])),
            Some(368)
        );
        assert_eq!(parse(json!([code(131_026), code(133_010)])), Some(133_010));
        assert_eq!(parse(json!([code(131_026), code(1368)])), None);
    }

    #[test]
    fn a_callback_that_only_mentions_the_code_is_empty() {
        let other_error = json!([{"code": 131026, "title": "like 131031"}]);
        let incoming = json!({
            "metadata": {"phone_number_id": "1"},
            "messages": [{
                "text": {"body": "what is 131031?"},
                "errors": [{"code": 131031}],
            }],
        });
        let changes = json!([{"field": "messages", "value": incoming}]);
        for body in [
            callback(json!([with_field(failed("a"), "status", json!("sent"))])),
            callback(json!([with_field(failed("a"), "errors", other_error)])),
            callback(json!([{"id": "wamid.131031", "status": "delivered"}])),
            json!({"entry": [{"id": "1", "changes": changes}]}),
            json!({"entry": [{"id": "131031", "changes": []}]}),
        ] {
            assert!(parse_json(&body).is_empty(), "{body}");
        }
    }

    #[test]
    fn an_error_of_the_account_itself_is_read() {
        let errors = json!([{"code": 131031, "title": "Business Account locked"}]);
        let value = |metadata: Value| json!({"metadata": metadata, "errors": errors});
        let body = |value: Value| {
            let changes = json!([{"field": "messages", "value": value}]);
            parse_json(&json!({"entry": [{"id": "1022", "changes": changes}]}))
        };
        let contents = body(value(json!({"phone_number_id": "1065"})));
        let error = &contents.account_errors[0];
        assert_eq!(error.waba_id.as_str(), "1022");
        assert_eq!(error.phone_number_id.as_ref().unwrap().as_str(), "1065");
        assert_eq!(error.detail.as_str(), "131031 Business Account locked");
        assert_eq!(error.occurred_at, NOW);
        assert!(!contents.is_empty() && contents.failures.is_empty());
        let nameless = body(value(json!({})));
        assert_eq!(nameless.account_errors[0].phone_number_id, None);
        assert!(nameless.unreadable.is_empty());
        let odd = body(json!({"errors": {"code": 131031}}));
        assert_eq!(odd.unreadable[0].reason, "`errors` is not a list");
        let other = json!({"errors": [{"code": 131000, "title": "not 131031"}]});
        assert!(body(other).is_empty());
    }

    #[test]
    fn an_account_field_in_escapes_is_no_event() {
        for field in [r#""f\u0069eld":"security""#, r#""field":"securit\u0079""#] {
            let change = format!(r#"{{{field},"value":{{"event":"PIN_CHANGED"}}}}"#);
            let body = format!(r#"{{"entry":[{{"id":"1022","changes":[{change}]}}]}}"#);
            assert!(
                !Interest::default().may_concern_us(body.as_bytes()),
                "{body}"
            );
            assert!(parse(body.as_bytes()).is_empty(), "{body}");
        }
    }

    #[test]
    fn an_implausible_time_becomes_the_time_received() {
        let failed_at = |timestamp: Value| {
            let status = with_field(failed("a"), "timestamp", timestamp);
            single_failure(&parse_json(&callback(json!([status])))).failed_at
        };
        for plausible in [json!(1_763_399_138), json!(1_763_399_138.0)] {
            assert_eq!(failed_at(plausible).unix_timestamp(), 1_763_399_138);
        }
        let soon = NOW + time::Duration::seconds(60);
        let too_late = NOW + time::Duration::seconds(61);
        assert_eq!(failed_at(json!(soon.unix_timestamp())), soon);
        for implausible in [
            json!("-1"),
            json!("soon"),
            json!(null),
            json!([1]),
            json!(1_763_399_138_000_i64),
            json!(too_late.unix_timestamp()),
            json!(1_577_836_799),
        ] {
            assert_eq!(failed_at(implausible.clone()), NOW, "{implausible}");
        }
    }

    #[test]
    fn a_recipient_is_a_phone_a_user_or_missing() {
        let errors = json!([{"code": 131031}]);
        let user = json!({
            "id": "a",
            "status": "failed",
            "recipient_user_id": "US.1",
            "errors": errors,
        });
        let contents = parse_json(&callback(json!([user])));
        let recipient = single_failure(&contents).recipient_id.as_ref();
        assert_eq!(recipient.unwrap().as_str(), "US.1");

        let nobody = json!({"id": "a", "status": "failed", "errors": errors});
        let contents = parse_json(&callback(json!([nobody])));
        assert!(single_failure(&contents).recipient_id.is_none());
    }

    #[test]
    fn each_group_participant_has_its_own_failure() {
        let member = |id: &str| {
            let status = with_field(failed("a"), "recipient_type", json!("group"));
            with_field(status, "recipient_participant_id", json!(id))
        };
        let contents = parse_json(&callback(json!([member("1"), member("2"), member("1")])));
        let digests: Vec<_> = contents.failures.iter().map(|f| f.digest).collect();
        assert_ne!(digests[0], digests[1]);
        assert_eq!(digests[0], digests[2]);

        let unnamed =
            |user: &str| with_field(member(""), "recipient_participant_user_id", json!(user));
        let contents = parse_json(&callback(json!([unnamed("US.1"), unnamed("US.2")])));
        assert_ne!(
            contents.failures[0].digest, contents.failures[1].digest,
            "an empty id counts as missing, so the next field is used"
        );
    }

    #[test]
    fn message_ids_that_differ_after_the_cut_stay_distinct() {
        let long = "x".repeat(9000);
        let statuses = json!([failed(&format!("{long}1")), failed(&format!("{long}2"))]);
        let contents = parse_json(&callback(statuses));
        let [first, second] = &contents.failures[..] else {
            panic!("two failures: {}", contents.failures.len())
        };
        assert_eq!(first.message_id, second.message_id);
        assert_ne!(first.digest, second.digest);
        assert_eq!(first.message_id.as_str().len(), Text::SHORT_BYTES);
    }

    #[test]
    fn an_unreadable_status_is_kept_and_its_neighbours_are_read() {
        let errors = |errors: Value| with_field(failed("z"), "errors", errors);
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
            (errors(json!({"code": 131031})), "`errors` is not a list"),
            (
                errors(json!([{"code": "#131031"}])),
                "an error has no readable `code`",
            ),
            (errors(json!(["131031"])), "an error is not an object"),
        ] {
            let body = callback(json!([failed("a"), strange, failed("b")]));
            let contents = parse_json(&body);
            assert_eq!(contents.failures.len(), 2, "{strange}");
            assert_eq!(contents.unreadable.len(), 1, "{strange}");
            assert_eq!(contents.unreadable[0].reason, reason);
            assert_eq!(contents.unreadable[0].bytes, strange.to_string().as_bytes());
        }
    }

    #[test]
    fn an_unreadable_entry_is_kept_and_its_neighbours_are_read() {
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
            let contents = parse_json(&body);
            assert_eq!(contents.failures.len(), 1, "{reason}");
            assert_eq!(contents.unreadable.len(), 1, "{reason}");
            assert_eq!(contents.unreadable[0].reason, reason);
        }
    }

    #[test]
    fn an_unreadable_body_with_the_code_is_kept_whole() {
        for body in [
            "131031",
            "[131031]",
            "{\"code\":131031",
            "{\"entry\":131031}",
            "{\"x\":131031}",
            "\u{feff}{}131031",
        ] {
            let contents = parse(body.as_bytes());
            assert_eq!(contents.unreadable.len(), 1, "{body}");
            assert_eq!(contents.unreadable[0].bytes, body.as_bytes());
        }
        assert!(parse(b"not for us").is_empty());
    }

    #[test]
    fn a_failure_beside_a_hostile_status_is_read() {
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
            assert_eq!(parse(body.as_bytes()).failures.len(), 1, "{neighbour:.60}");
        }
    }

    #[test]
    fn a_body_with_invalid_utf8_is_read_and_kept_unchanged() {
        let unreadable = json!({"errors": "131031"});
        let statuses = json!([failed("HERE"), unreadable, unreadable]);
        let mut body = callback(statuses).to_string().into_bytes();
        let position = body
            .windows(4)
            .position(|window| window == b"HERE")
            .unwrap();
        body[position] = 0xff;
        let contents = parse(&body);
        assert_eq!(contents.failures[0].message_id.as_str(), "\u{fffd}ERE");
        assert_eq!(
            contents.unreadable[0].bytes, body,
            "the bytes are those that came, not the repaired ones"
        );
        assert_eq!(
            contents.unreadable.len(),
            1,
            "the body is kept once, even with several unreadable elements"
        );
    }
}
