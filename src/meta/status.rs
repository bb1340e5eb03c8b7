//! One failed message: a `statuses[]` element with `status: failed` and a watched error code
//! ([Meta: status webhooks](https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages/status)).

use std::borrow::Cow;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::codes::WatchedCodes;
use super::ids::{PhoneNumberId, Text, WabaId};
use super::json::{elements, fields, integer, scalar, string};

/// A message that Meta accepted and did not deliver: the account, or its number, is stopped.
///
/// Texts are truncated ([`Text`]); the digest is taken before that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedMessage {
    /// The account that sent the message.
    pub waba_id: WabaId,
    /// The business phone number that sent the message.
    pub phone_number_id: PhoneNumberId,
    /// The same number as people write it (`display_phone_number`).
    pub display_phone_number: Option<Text>,
    /// Meta's message id (`wamid.…`). It contains the recipient in base64.
    pub message_id: Text,
    /// The recipient: a phone number, a group id, or a user id.
    pub recipient_id: Option<Text>,
    /// In a group: the member that this failure is about.
    pub participant_id: Option<Text>,
    /// The time of the failure according to Meta, in whole seconds. If Meta's time is unreadable,
    /// before 2020 or more than a minute after `received_at`, it is `received_at`.
    pub failed_at: OffsetDateTime,
    /// The time at which the callback arrived.
    pub received_at: OffsetDateTime,
    /// The watched error code.
    pub error_code: i32,
    /// The error's `title`.
    pub error_title: Option<Text>,
    /// The error's `message`.
    pub error_message: Option<Text>,
    /// The error's `error_data.details` (in older callbacks `details`).
    pub error_details: Option<Text>,
    /// The `biz_opaque_callback_data` from the business.
    pub callback_data: Option<Text>,
    /// The identity within the account: two with the same digest are the same one, reported twice.
    /// A SHA-256 over the phone number id, message id, code and, in a group, participant, all of
    /// them before truncation. How the recipient is written does not matter: Meta tells one app its
    /// phone number and another its user id.
    pub digest: [u8; 32],
}

/// The business number that a list of statuses is about.
pub(crate) struct Sender {
    pub(crate) waba_id: WabaId,
    pub(crate) phone_number_id: PhoneNumberId,
    pub(crate) display_phone_number: Option<Text>,
}

/// An error of the account itself, without a message: an element of `value.errors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountError {
    /// The account.
    pub waba_id: WabaId,
    /// The number that the change is about, if it names one.
    pub phone_number_id: Option<PhoneNumberId>,
    /// The number, as Meta writes it.
    pub display_phone_number: Option<Text>,
    /// Meta's code.
    pub error_code: i32,
    /// Meta's words.
    pub detail: Text,
    /// The time it was received: the error has none of its own.
    pub occurred_at: OffsetDateTime,
    /// A SHA-256 over the number and the error. Two with the same digest, within the days in which
    /// Meta repeats a callback, are the same one.
    pub digest: [u8; 32],
}

/// Parses a list `value.errors`. Returns `None` without a watched code.
///
/// # Errors
/// The reason why the list cannot be parsed.
pub(crate) fn parse_account_error(
    errors: &RawValue,
    codes: &WatchedCodes,
    entry: &WabaId,
    sender: Option<&Sender>,
    received_at: OffsetDateTime,
) -> Result<Option<AccountError>, &'static str> {
    let Some(error) = find_watched_error(errors, codes)? else {
        return Ok(None);
    };
    let number = sender.map(|sender| sender.phone_number_id.clone());
    let words = [&error.title, &error.details];
    let words: Vec<&str> = words.into_iter().flatten().map(Text::as_str).collect();
    let code = error.code;
    let detail = format!("{code} {}", words.join(": "));
    Ok(Some(AccountError {
        waba_id: sender.map_or(entry, |sender| &sender.waba_id).clone(),
        digest: digest([
            number.as_ref().map_or("", PhoneNumberId::as_str),
            "error",
            &code.to_string(),
            errors.get(),
        ]),
        phone_number_id: number,
        display_phone_number: sender.and_then(|sender| sender.display_phone_number.clone()),
        error_code: code,
        detail: Text::truncate(detail.trim_end(), Text::LONG_BYTES),
        occurred_at: received_at,
    }))
}

/// Parses a `statuses[]` element. Returns `None` if it is no failure with a watched code.
///
/// # Errors
/// The reason why the element cannot be parsed.
pub(crate) fn parse_failure(
    element: &RawValue,
    codes: &WatchedCodes,
    sender: &Sender,
    received_at: OffsetDateTime,
) -> Result<Option<FailedMessage>, &'static str> {
    let status = Status::parse(element).ok_or("the status is not an object")?;
    let word = status.status.and_then(string);
    if word.ok_or("the status has no readable `status`")? != "failed" {
        return Ok(None);
    }
    let find = |errors| find_watched_error(errors, codes);
    let Some(error) = status.errors.map(find).transpose()?.flatten() else {
        return Ok(None);
    };
    let id = status
        .id
        .and_then(scalar)
        .filter(|id| !id.is_empty())
        .ok_or("the failed status has no message id")?;
    let recipient = first_non_empty(status.recipients);
    let participant = first_non_empty(status.participants);
    let number = sender.phone_number_id.as_str();
    let failed_at = status.timestamp.and_then(integer);
    let failed_at = failed_at.and_then(|seconds| plausible_time(seconds, received_at));

    Ok(Some(FailedMessage {
        digest: digest([
            number,
            &id,
            &error.code.to_string(),
            participant.as_deref().unwrap_or_default(),
        ]),
        waba_id: sender.waba_id.clone(),
        phone_number_id: sender.phone_number_id.clone(),
        display_phone_number: sender.display_phone_number.clone(),
        message_id: Text::truncate(&id, Text::SHORT_BYTES),
        recipient_id: recipient.map(|id| Text::truncate(&id, Text::SHORT_BYTES)),
        participant_id: participant.map(|id| Text::truncate(&id, Text::SHORT_BYTES)),
        failed_at: failed_at.unwrap_or(received_at),
        received_at,
        error_code: error.code,
        error_title: error.title,
        error_message: error.message,
        error_details: error.details,
        callback_data: status
            .callback_data
            .and_then(scalar)
            .map(|data| Text::truncate(&data, Text::LONG_BYTES)),
    }))
}

/// The fields of a `statuses[]` element that are used.
struct Status<'s> {
    id: Option<&'s RawValue>,
    status: Option<&'s RawValue>,
    timestamp: Option<&'s RawValue>,
    errors: Option<&'s RawValue>,
    callback_data: Option<&'s RawValue>,
    /// The recipient by field name, the preferred name first.
    recipients: [Option<&'s RawValue>; 4],
    /// The group member by field name, the preferred name first.
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

/// Returns the first field that is present and not empty.
fn first_non_empty<'a, const N: usize>(
    candidates: [Option<&'a RawValue>; N],
) -> Option<Cow<'a, str>> {
    candidates
        .into_iter()
        .flatten()
        .find_map(|raw| scalar(raw).filter(|text| !text.is_empty()))
}

struct WatchedError {
    code: i32,
    title: Option<Text>,
    message: Option<Text>,
    details: Option<Text>,
}

/// Returns the gravest watched error of a list, and of equal ones the first. Several are one
/// failure.
///
/// # Errors
/// There is no readable watched error, but an unreadable one may be watched.
fn find_watched_error(
    errors: &RawValue,
    codes: &WatchedCodes,
) -> Result<Option<WatchedError>, &'static str> {
    const FIELDS: [&str; 5] = ["code", "title", "message", "error_data", "details"];
    let mut unreadable = None;
    let mut gravest: Option<(usize, WatchedError)> = None;
    for error in elements(errors).ok_or("`errors` is not a list")? {
        let Some([code, title, message, data, old_details]) = fields(error.get(), FIELDS) else {
            unreadable = Some("an error is not an object");
            continue;
        };
        let Some(code) = code.and_then(integer) else {
            unreadable = Some("an error has no readable `code`");
            continue;
        };
        let is_graver = |rank: &usize| gravest.as_ref().is_none_or(|(before, _)| rank < before);
        let Some(rank) = codes.rank(code).filter(is_graver) else {
            continue;
        };
        let details = data.and_then(|data| match fields(data.get(), ["details"]) {
            Some([details]) => details,
            None => Some(data),
        });
        let error = WatchedError {
            code: codes.codes()[rank],
            title: long_text(title),
            message: long_text(message),
            details: long_text(details).or_else(|| long_text(old_details)),
        };
        gravest = Some((rank, error));
    }
    match gravest {
        Some((_, error)) => Ok(Some(error)),
        None => unreadable.map_or(Ok(None), Err),
    }
}

fn long_text(field: Option<&RawValue>) -> Option<Text> {
    let text = string(field?)?;
    Some(Text::truncate(&text, Text::LONG_BYTES))
}

/// Converts Unix seconds, if they are in 2020 or later and at most a minute after `received_at`. A
/// wrong time would open an incident of its own.
pub(super) fn plausible_time(seconds: i64, received_at: OffsetDateTime) -> Option<OffsetDateTime> {
    const EARLIEST: OffsetDateTime = datetime!(2020-01-01 00:00 UTC);
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    (at >= EARLIEST && at <= received_at.saturating_add(Duration::MINUTE)).then_some(at)
}

/// Hashes the parts, each after its length: different parts never look equal.
pub(super) fn digest<const N: usize>(parts: [&str; N]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
