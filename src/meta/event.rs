//! Account events: callbacks about an account itself, such as `account_update`
//! ([Meta: account_update](https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/account_update)).
//!
//! Their shapes differ by field and by year, so few things are read: what happened, to which state,
//! until when, and the words that a person would want.

use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;

use super::ids::{Text, WabaId};
use super::json::{elements, fields, integer, scalar, string};
use super::status::{digest, plausible_time};

/// The fields of account events. A change with another field, and without a message, is none.
pub const ACCOUNT_FIELDS: [&str; 10] = [
    "account_update",
    "account_review_update",
    "account_alerts",
    "security",
    "phone_number_quality_update",
    "phone_number_name_update",
    "business_capability_update",
    "business_status_update",
    "message_template_status_update",
    "message_template_quality_update",
];

/// One thing that Meta reported about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountEvent {
    /// The account.
    pub waba_id: WabaId,
    /// The field of the change, such as `account_update`.
    pub field: Text,
    /// What happened, in Meta's word: `DISABLED_UPDATE`, `PIN_CHANGED`; the field without one.
    pub event: Text,
    /// The state that it led to, in Meta's words: of a ban, of a restriction (its types, separated
    /// by commas), of a review.
    pub state: Option<Text>,
    /// Meta's other words: the violation, the reason, the remediation, the name of a template.
    pub detail: Option<Text>,
    /// The end that Meta announced.
    pub expires_at: Option<OffsetDateTime>,
    /// The time of the event; the time it was received if Meta names none.
    pub occurred_at: OffsetDateTime,
    /// A SHA-256 over account, time and change. Two with the same digest are the same event.
    pub digest: [u8; 32],
}

/// Returns the field of an account event, if a change has one of them.
pub(crate) fn account_field(change: &RawValue) -> Option<Text> {
    let [field] = fields(change.get(), ["field"])?;
    let field = field.and_then(string)?;
    let is_known = ACCOUNT_FIELDS.contains(&&*field);
    is_known.then(|| Text::truncate(&field, Text::SHORT_BYTES))
}

/// Parses an account event. `time` is that of its entry.
///
/// # Errors
/// The reason why the change cannot be parsed.
pub(crate) fn parse_event(
    field: Text,
    change: &RawValue,
    entry: &WabaId,
    time: Option<&RawValue>,
    received_at: OffsetDateTime,
) -> Result<AccountEvent, &'static str> {
    let [value] = fields(change.get(), ["value"]).ok_or("the change is not an object")?;
    let value = value.ok_or("the account event has no `value`")?;
    let names = [
        "event",
        "decision",
        "waba_info",
        "ban_info",
        "violation_info",
        "restriction_info",
        "alert_info",
        "reason",
        "message_template_name",
        "disconnection_info",
    ];
    let parts = fields(value.get(), names).ok_or("the account event's `value` is no object")?;
    let [
        event,
        decision,
        waba,
        ban,
        violation,
        restrictions,
        alert,
        ..,
    ] = parts;
    let [.., reason, template, disconnection] = parts;
    let own_id = inner(waba, "waba_id").and_then(|id| WabaId::parse(&id).ok());
    let waba_id = own_id.unwrap_or_else(|| entry.clone());
    let restrictions = parse_restrictions(restrictions);
    let violation_type = inner(violation, "violation_type");
    let state = ban_state(ban)
        .or_else(|| restrictions.types())
        .or_else(|| violation_type.clone())
        .or_else(|| decision.and_then(text))
        .or_else(|| inner(alert, "alert_severity"));
    let details = [
        violation_type.filter(|kind| state.as_ref() != Some(kind)),
        inner(violation, "remediation"),
        restrictions.remediation.clone(),
        inner(alert, "alert_type"),
        inner(alert, "alert_description"),
        template.and_then(text),
        reason.and_then(text),
        inner(disconnection, "reason"),
    ];
    let details: Vec<String> = details.into_iter().flatten().collect();
    let occurred_at = time
        .and_then(integer)
        .and_then(|time| plausible_time(time, received_at));
    let event = event.and_then(text);
    Ok(AccountEvent {
        event: event.map_or_else(
            || field.clone(),
            |event| Text::truncate(&event, Text::SHORT_BYTES),
        ),
        state: state.map(|state| Text::truncate(&state, Text::SHORT_BYTES)),
        detail: (!details.is_empty())
            .then(|| Text::truncate(&details.join(": "), Text::LONG_BYTES)),
        expires_at: restrictions.expires_at,
        occurred_at: occurred_at.unwrap_or(received_at),
        digest: digest([
            waba_id.as_str(),
            time.map(RawValue::get).unwrap_or_default(),
            change.get(),
        ]),
        waba_id,
        field,
    })
}

/// What a list of restrictions says.
#[derive(Default)]
struct Restrictions {
    kinds: Vec<String>,
    remediation: Option<String>,
    /// The end of the last one that stops messages; without such a one, the last end.
    expires_at: Option<OffsetDateTime>,
}

impl Restrictions {
    fn types(&self) -> Option<String> {
        (!self.kinds.is_empty()).then(|| self.kinds.join(","))
    }
}

fn parse_restrictions(list: Option<&RawValue>) -> Restrictions {
    let mut restrictions = Restrictions::default();
    let mut ends = Vec::new();
    for restriction in list.and_then(elements).into_iter().flatten() {
        let names = ["restriction_type", "expiration", "remediation"];
        let Some([kind, expiration, remediation]) = fields(restriction.get(), names) else {
            continue;
        };
        let kind = kind.and_then(text).unwrap_or_default();
        if let Some(end) = expiration.and_then(expiration_time) {
            ends.push((kind.ends_with("_INITIATED_MESSAGING"), end));
        }
        if !kind.is_empty() {
            restrictions.kinds.push(kind);
        }
        restrictions.remediation = restrictions.remediation.or(remediation.and_then(text));
    }
    restrictions.expires_at = ends.into_iter().max().map(|(_, end)| end);
    restrictions
}

/// Meta writes an expiration as a number, as a text with a number, or as ISO 8601.
fn expiration_time(raw: &RawValue) -> Option<OffsetDateTime> {
    match integer(raw) {
        Some(seconds) => OffsetDateTime::from_unix_timestamp(seconds).ok(),
        None => OffsetDateTime::parse(&scalar(raw)?, &Rfc3339).ok(),
    }
    .filter(|end| *end > EARLIEST && *end < LATEST)
}

const EARLIEST: OffsetDateTime = datetime!(2020-01-01 00:00 UTC);
/// Postgres and people know later times, but no restriction ends so late.
const LATEST: OffsetDateTime = datetime!(2200-01-01 00:00 UTC);

/// The state of a ban is a word; it was a list of words once.
fn ban_state(ban: Option<&RawValue>) -> Option<String> {
    let [state] = fields(ban?.get(), ["waba_ban_state"])?;
    let state = state?;
    match elements(state) {
        Some(states) => states.last().and_then(|state| text(state)),
        None => text(state),
    }
}

fn inner(object: Option<&RawValue>, name: &str) -> Option<String> {
    let [value] = fields(object?.get(), [name])?;
    text(value?)
}

fn text(raw: &RawValue) -> Option<String> {
    let text = scalar(raw)?.trim().to_owned();
    (!text.is_empty() && text != "NONE").then_some(text)
}
