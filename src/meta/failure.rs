//! One failed delivery: a `statuses[]` element with `status: failed` and an error 131031
//! ([Meta: status webhooks](https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages/status)).

use std::borrow::Cow;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use super::ids::{PhoneNumberId, Text, WabaId};
use super::json::{elements, fields, integer, scalar, text};

/// "Business Account locked": the one error this product is about.
pub const ACCOUNT_LOCKED: i64 = 131_031;

/// One message that Meta accepted and then did not deliver, because the account is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedDelivery {
    /// The account.
    pub waba_id: WabaId,
    /// The number that sent.
    pub phone_number_id: PhoneNumberId,
    /// That number as people write it.
    pub display_phone_number: Option<Text>,
    /// Meta's message id (`wamid.…`). It contains the recipient's phone number in base64.
    pub message_id: Text,
    /// Who should have got the message: a phone number, a group's id, or a business-scoped user id.
    pub recipient_id: Option<Text>,
    /// In a group: the member this failure is about.
    pub participant_id: Option<Text>,
    /// When Meta says it failed; when received, if what it says is unreadable or outside 1970 … tomorrow.
    pub failed_at: OffsetDateTime,
    /// When the callback arrived.
    pub received_at: OffsetDateTime,
    /// The error's `title`.
    pub error_title: Option<Text>,
    /// The error's `message`.
    pub error_message: Option<Text>,
    /// The error's `error_data.details` (in older callbacks `details`).
    pub error_details: Option<Text>,
    /// The sender's own `biz_opaque_callback_data`.
    pub callback_data: Option<Text>,
    /// SHA-256 over the uncut number, message id, participant or recipient, and code: what makes a
    /// repeated failure the same one.
    pub digest: [u8; 32],
}

/// The business number that a list of statuses is about.
pub(super) struct Sender {
    pub(super) waba_id: WabaId,
    pub(super) phone_number_id: PhoneNumberId,
    pub(super) display_phone_number: Option<Text>,
}

/// Parses one `statuses[]` element. `Ok(None)` is a status that is not about a lockout.
///
/// # Errors
/// The reason, where the element is not readable as far as needed.
pub(super) fn parse_failure(
    element: &RawValue,
    sender: &Sender,
    received_at: OffsetDateTime,
) -> Result<Option<FailedDelivery>, &'static str> {
    let status = Status::parse(element).ok_or("the status is not an object")?;
    let word = status.status.and_then(text);
    if word.ok_or("the status has no readable `status`")? != "failed" {
        return Ok(None);
    }
    let Some(error) = status.errors.map(find_lockout_error).transpose()?.flatten() else {
        return Ok(None);
    };
    let id = status
        .id
        .and_then(scalar)
        .filter(|id| !id.is_empty())
        .ok_or("the failed status has no message id")?;
    let recipient = first_non_empty(status.recipients);
    let participant = first_non_empty(status.participants);
    let addressee = participant.as_deref().or(recipient.as_deref());
    let number = sender.phone_number_id.as_str();
    let failed_at = status.timestamp.and_then(integer);
    let failed_at = failed_at.and_then(|seconds| plausible_time(seconds, received_at));

    Ok(Some(FailedDelivery {
        digest: digest([number, &id, addressee.unwrap_or_default(), "131031"]),
        waba_id: sender.waba_id.clone(),
        phone_number_id: sender.phone_number_id.clone(),
        display_phone_number: sender.display_phone_number.clone(),
        message_id: Text::cut(&id, Text::SHORT),
        recipient_id: recipient.map(|id| Text::cut(&id, Text::SHORT)),
        participant_id: participant.map(|id| Text::cut(&id, Text::SHORT)),
        failed_at: failed_at.unwrap_or(received_at),
        received_at,
        error_title: error.title,
        error_message: error.message,
        error_details: error.details,
        callback_data: status
            .callback_data
            .and_then(scalar)
            .map(|data| Text::cut(&data, Text::LONG)),
    }))
}

/// The fields of a `statuses[]` element that are read.
struct Status<'s> {
    id: Option<&'s RawValue>,
    status: Option<&'s RawValue>,
    timestamp: Option<&'s RawValue>,
    errors: Option<&'s RawValue>,
    callback_data: Option<&'s RawValue>,
    /// The recipient under each of its names, the best first.
    recipients: [Option<&'s RawValue>; 4],
    /// The member of a group under each of its names, the best first.
    participants: [Option<&'s RawValue>; 3],
}

impl<'s> Status<'s> {
    const FIELDS: [&'static str; 12] = [
        "id",
        "status",
        "timestamp",
        "errors",
        "biz_opaque_callback_data",
        "recipient_id",
        "recipient_user_id",
        "recipient_parent_user_id",
        "parent_recipient_user_id",
        "recipient_participant_id",
        "participant_recipient_id",
        "recipient_participant_user_id",
    ];

    fn parse(element: &'s RawValue) -> Option<Self> {
        let [id, status, timestamp, errors, callback_data, names @ ..] =
            fields(element.get(), Self::FIELDS)?;
        let [
            recipient,
            user,
            parent,
            old_parent,
            member,
            old_member,
            member_user,
        ] = names;
        Some(Self {
            id,
            status,
            timestamp,
            errors,
            callback_data,
            recipients: [recipient, user, parent, old_parent],
            participants: [member, old_member, member_user],
        })
    }
}

/// Returns the first of these fields with a text in it.
fn first_non_empty<'a, const N: usize>(
    candidates: [Option<&'a RawValue>; N],
) -> Option<Cow<'a, str>> {
    candidates
        .into_iter()
        .flatten()
        .find_map(|raw| scalar(raw).filter(|text| !text.is_empty()))
}

struct LockoutError {
    title: Option<Text>,
    message: Option<Text>,
    details: Option<Text>,
}

/// The first 131031 among a status's errors; several of them in one status are one failure. An error
/// without a readable code is only a reason to refuse the status where it may have been the one.
fn find_lockout_error(errors: &RawValue) -> Result<Option<LockoutError>, &'static str> {
    let mut unreadable = None;
    for error in elements(errors).ok_or("`errors` is not a list")? {
        let Some([code, title, message, data, old_details]) = fields(
            error.get(),
            ["code", "title", "message", "error_data", "details"],
        ) else {
            unreadable = Some("an error is not an object");
            continue;
        };
        match code.and_then(integer) {
            Some(ACCOUNT_LOCKED) => {}
            Some(_) => continue,
            None => {
                unreadable = Some("an error has no readable `code`");
                continue;
            }
        }
        let long =
            |raw: Option<&RawValue>| raw.and_then(text).map(|text| Text::cut(&text, Text::LONG));
        let details = data.and_then(|data| match fields(data.get(), ["details"]) {
            Some([details]) => details,
            None => Some(data),
        });
        return Ok(Some(LockoutError {
            title: long(title),
            message: long(message),
            details: long(details).or_else(|| long(old_details)),
        }));
    }
    match unreadable {
        Some(reason) => Err(reason),
        None => Ok(None),
    }
}

/// Returns Unix seconds as a time, if between 1970 and a day from now.
fn plausible_time(seconds: i64, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    (at >= OffsetDateTime::UNIX_EPOCH && at <= now.saturating_add(Duration::DAY)).then_some(at)
}

fn digest(parts: [&str; 4]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
