//! Findings: what Meta's answers say, each with its scope, and whether it can explain a lock.
//!
//! | finding | explains |
//! | --- | --- |
//! | Graph's refusal that names the state of the account | the account's lock |
//! | an entity that is BLOCKED, or has a verdict that we don't know | by its code: the account's lock, or that of the number |
//! | 141006 on any entity, whatever its verdict | the account's lock: the payment method stops templates |
//! | a number that is BANNED, DELETED or DISCONNECTED | that number's failures |
//! | everything else: LIMITED entities, notes, the app that asks, entities of another account, reviews, quality | nothing; it is shown as "also found" |

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::LockoutCause;
use crate::meta::graph_error::GraphError;
use crate::meta::health::{CanSend, Entity, EntityError};
use crate::meta::ids::WabaId;
use crate::meta::node_fields::{AccountFields, NumberFields};

/// The code of a payment problem. It stops templates even where the entity can send.
const PAYMENT_CODE: i64 = 141_006;
/// Codes about calling, not messaging: SIP is not set up (138024 on the number, 138025 on the app).
const CALLING_CODES: [i64; 2] = [138_024, 138_025];

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The account: every number of it.
    Account,
    /// One number.
    Number,
}

impl Scope {
    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Number => "number",
        }
    }
}

/// Where a finding comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An entity of a health check.
    Check,
    /// A field that was read beside the health.
    Field,
    /// Graph's refusal of the look-up.
    Refusal,
    /// A notice of Meta's about the account.
    Event,
    /// The code of the failed messages.
    Failure,
}

/// How much is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Some messages, or we don't know.
    Partial,
    /// Every message.
    Full,
}

/// One thing that an answer of Meta's says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub scope: Scope,
    /// Where it comes from.
    pub source: Source,
    /// The cause, if it can explain a lock. [`LockoutCause::Unreported`]: Meta says that the
    /// account is locked, and not why.
    #[serde(default)]
    pub explains: Option<LockoutCause>,
    /// How much is stopped.
    pub severity: Severity,
    /// A sentence for a person.
    pub summary: String,
    /// The verdict on the entity, in Meta's words.
    #[serde(default)]
    pub verdict: Option<String>,
    /// The type of the entity.
    #[serde(default)]
    pub entity_type: Option<String>,
    /// The id of the entity.
    #[serde(default)]
    pub entity_id: Option<String>,
    /// Meta's code.
    #[serde(default)]
    pub error_code: Option<i64>,
    /// Meta's own advice.
    #[serde(default)]
    pub possible_solution: Option<String>,
}

/// Returns the worst verdict on the entities that decide whether this account's number can send:
/// not the app that asks, and not those of another account. `None` if no such entity has a verdict.
#[must_use]
pub fn verdict<'e>(entities: &'e [Entity], waba_id: &WabaId) -> Option<&'e CanSend> {
    let is_foreign = other_account(entities, waba_id).is_some();
    entities
        .iter()
        .filter(|entity| role(entity, is_foreign) == Role::Sender)
        .map(|entity| &entity.can_send_message)
        .filter(|verdict| **verdict != CanSend::Unstated)
        .max()
}

/// Returns the findings in the entities of an answer about a number of this account.
#[must_use]
pub(super) fn findings_of_entities(entities: &[Entity], waba_id: &WabaId) -> Vec<Finding> {
    let other_account = other_account(entities, waba_id);
    let mut findings: Vec<Finding> = entities
        .iter()
        .flat_map(|entity| match role(entity, other_account.is_some()) {
            Role::Sender => findings_of_sender(entity),
            Role::Bystander => findings_of_bystander(entity),
            Role::OfAnotherAccount => vec![],
        })
        .collect();
    if let Some(other) = other_account {
        findings.push(Finding {
            scope: Scope::Number,
            entity_type: Some("WABA".to_owned()),
            entity_id: Some(other.to_owned()),
            ..observation(
                Source::Check,
                format!("The number belongs to account {other} now."),
            )
        });
    }
    findings
}

/// Returns the finding in a refusal that names the state of the account.
#[must_use]
pub(super) fn finding_of_state(error: &GraphError) -> Finding {
    let cause = match error.code {
        368 => LockoutCause::PolicyViolation,
        131_042 => LockoutCause::Payment,
        131_031 => LockoutCause::Unreported,
        _ => LockoutCause::OtherRestriction,
    };
    let summary = match cause {
        LockoutCause::Unreported => {
            let error = error.to_string();
            let error = error.trim_end_matches('.');
            format!("Meta answers {error}. It gives no reason for the lockout.")
        }
        _ => format!("Meta refuses the look-up with {error}"),
    };
    Finding {
        explains: Some(cause),
        severity: Severity::Full,
        error_code: Some(error.code),
        ..observation(Source::Refusal, summary)
    }
}

/// Returns the findings in the fields of a number.
#[must_use]
pub(super) fn findings_of_number(number: &str, fields: &NumberFields) -> Vec<Finding> {
    let finding = |text: String, explains: Option<LockoutCause>| Finding {
        scope: Scope::Number,
        explains,
        severity: Severity::Full,
        entity_type: Some("PHONE_NUMBER".to_owned()),
        entity_id: Some(number.to_owned()),
        ..observation(Source::Field, text)
    };
    let mut findings = Vec::new();
    if let Some(status) = &fields.status {
        let explains = cause_of_status(status);
        if explains.is_some() || status != "CONNECTED" {
            findings.push(Finding {
                verdict: Some(status.clone()),
                ..finding(
                    format!("Number {number} has the status {status}."),
                    explains,
                )
            });
        }
    }
    if fields.quality_rating.as_deref() == Some("RED") {
        findings.push(finding(
            format!("Number {number} has the quality rating RED."),
            None,
        ));
    }
    if fields.name_status.as_deref() == Some("DECLINED") {
        findings.push(finding(
            format!("The display name of number {number} was DECLINED."),
            None,
        ));
    }
    findings
}

fn cause_of_status(status: &str) -> Option<LockoutCause> {
    match status {
        "BANNED" => Some(LockoutCause::OtherRestriction),
        "DELETED" | "DISCONNECTED" => Some(LockoutCause::PhoneRegistration),
        _ => None,
    }
}

/// Returns whether a number with this status sends nothing, whatever its health says.
#[must_use]
pub fn is_stopped_by_status(status: &str) -> bool {
    cause_of_status(status).is_some()
}

/// Returns the findings in the fields of an account. None of them explains a lock.
#[must_use]
pub(super) fn findings_of_account(fields: &AccountFields) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(status) = &fields.account_review_status
        && status != "APPROVED"
    {
        findings.push(observation(
            Source::Field,
            format!("Meta's review of the account is {status}."),
        ));
    }
    if let Some(status) = &fields.business_verification_status
        && !status.eq_ignore_ascii_case("verified")
    {
        findings.push(observation(
            Source::Field,
            format!(
                "The verification of the business is {}.",
                status.replace('_', " ")
            ),
        ));
    }
    findings
}

/// The part of an entity in sending this account's messages.
#[derive(PartialEq, Eq)]
enum Role {
    /// A block of it stops them.
    Sender,
    /// It is about something else: the app that asks, a template, a flow.
    Bystander,
    /// It belongs to another account.
    OfAnotherAccount,
}

fn role(entity: &Entity, has_other_account: bool) -> Role {
    match entity.entity_type.as_str() {
        _ if !entity.sends() => Role::Bystander,
        "WABA" | "BUSINESS" if has_other_account => Role::OfAnotherAccount,
        _ => Role::Sender,
    }
}

/// Returns the account of the node, if that is another one. Meta's test numbers have no account id
/// in their callbacks, so theirs is not compared.
pub(super) fn other_account<'e>(entities: &'e [Entity], waba_id: &WabaId) -> Option<&'e str> {
    let is_known = !waba_id.as_str().starts_with("phone:");
    let mut accounts = entities
        .iter()
        .filter(|entity| entity.entity_type == "WABA" && !entity.id.is_empty())
        .map(|entity| entity.id.as_str());
    let first = accounts.next().filter(|_| is_known)?;
    let is_ours = |id: &str| id == waba_id.as_str();
    (!is_ours(first) && !accounts.any(is_ours)).then_some(first)
}

/// Returns the findings of an entity whose block stops the account's messages.
fn findings_of_sender(entity: &Entity) -> Vec<Finding> {
    let is_blocked = matches!(
        entity.can_send_message,
        CanSend::Blocked | CanSend::Other(_)
    );
    let mut findings: Vec<Finding> = messaging_errors(entity)
        .map(|error| {
            let explains = match error.error_code {
                Some(PAYMENT_CODE) => Some(LockoutCause::Payment),
                code => is_blocked.then(|| cause_of_code(code)),
            };
            finding_of_error(entity, error, explains)
        })
        .collect();
    let explains_block = findings.iter().any(|finding| finding.explains.is_some());
    if is_blocked && !explains_block {
        findings.insert(0, block_without_error(entity));
    } else if !is_blocked {
        findings.extend(finding_of_notes(entity));
    }
    findings
}

/// Returns the findings of an entity that stops no message, whatever its verdict.
fn findings_of_bystander(entity: &Entity) -> Vec<Finding> {
    let errors = messaging_errors(entity).map(|error| {
        let is_payment = error.error_code == Some(PAYMENT_CODE);
        finding_of_error(entity, error, is_payment.then_some(LockoutCause::Payment))
    });
    errors.chain(finding_of_notes(entity)).collect()
}

fn cause_of_code(code: Option<i64>) -> LockoutCause {
    match code {
        Some(141_005 | 141_014) => LockoutCause::PolicyViolation,
        Some(PAYMENT_CODE) => LockoutCause::Payment,
        Some(141_010) => LockoutCause::BusinessVerification,
        Some(141_000 | 131_045 | 133_010) => LockoutCause::PhoneRegistration,
        Some(133_005 | 133_006 | 133_008 | 133_009) => LockoutCause::TwoStepVerification,
        _ => LockoutCause::OtherRestriction,
    }
}

/// Returns the scope of a cause that an entity shows: some are always about one number.
fn scope_of(entity: &Entity, cause: Option<LockoutCause>) -> Scope {
    let is_of_number = matches!(
        cause,
        Some(LockoutCause::PhoneRegistration | LockoutCause::TwoStepVerification)
    );
    if is_of_number || entity.entity_type == "PHONE_NUMBER" && cause != Some(LockoutCause::Payment)
    {
        Scope::Number
    } else {
        Scope::Account
    }
}

fn messaging_errors(entity: &Entity) -> impl Iterator<Item = &EntityError> {
    entity.errors.iter().filter(|error| {
        let is_calling_code = error
            .error_code
            .is_some_and(|code| CALLING_CODES.contains(&code));
        !is_calling_code && !is_about_calling(&error.error_description)
    })
}

/// Returns whether a text is about SIP, and so about calls.
fn is_about_calling(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric())
        .any(|word| word == "SIP")
}

/// Returns the notes on an entity that are about messages.
fn notes(entity: &Entity) -> String {
    let notes = entity.additional_info.iter().map(|note| note.trim());
    let notes: Vec<&str> = notes
        .filter(|note| !note.is_empty() && !is_about_calling(note))
        .collect();
    notes.join(" ")
}

fn finding_of_error(
    entity: &Entity,
    error: &EntityError,
    explains: Option<LockoutCause>,
) -> Finding {
    let code = error.error_code;
    let code_text = code.map(|code| format!(" ({code})")).unwrap_or_default();
    let text = Some(error.error_description.trim().to_owned())
        .filter(|text| !text.is_empty())
        .or_else(|| Some(notes(entity)).filter(|text| !text.is_empty()));
    let state = describe_state(entity);
    let summary = match text {
        Some(text) => format!("{state}{code_text}: {text}"),
        None => format!("{state}{code_text}. Meta gives no further reason."),
    };
    finding(entity, explains, summary, Some(error))
}

fn block_without_error(entity: &Entity) -> Finding {
    let state = describe_state(entity);
    let summary = match notes(entity) {
        notes if notes.is_empty() => format!("{state}. Meta gives no further reason."),
        notes => format!("{state}: {notes}"),
    };
    finding(entity, Some(LockoutCause::OtherRestriction), summary, None)
}

/// Returns what an entity that can send is limited by, if there is anything to tell.
fn finding_of_notes(entity: &Entity) -> Option<Finding> {
    let state = describe_state(entity);
    let has_errors = messaging_errors(entity).next().is_some();
    let is_restricted = matches!(entity.can_send_message, CanSend::Limited | CanSend::Blocked);
    let summary = match notes(entity) {
        notes if !notes.is_empty() => format!("{state}: {notes}"),
        _ if is_restricted && !has_errors => format!("{state}."),
        _ => return None,
    };
    Some(finding(entity, None, summary, None))
}

fn finding(
    entity: &Entity,
    explains: Option<LockoutCause>,
    summary: String,
    error: Option<&EntityError>,
) -> Finding {
    let stops_everything = explains.is_some() && entity.can_send_message == CanSend::Blocked;
    Finding {
        scope: scope_of(entity, explains),
        explains,
        severity: if stops_everything {
            Severity::Full
        } else {
            Severity::Partial
        },
        verdict: (entity.can_send_message != CanSend::Unstated)
            .then(|| entity.can_send_message.to_string()),
        entity_type: Some(entity.entity_type.clone()).filter(|word| !word.is_empty()),
        entity_id: Some(entity.id.clone()).filter(|id| !id.is_empty()),
        error_code: error.and_then(|error| error.error_code),
        possible_solution: error.and_then(|error| error.possible_solution.clone()),
        ..observation(Source::Check, summary)
    }
}

/// Returns a finding about the account that explains nothing.
fn observation(source: Source, summary: String) -> Finding {
    Finding {
        scope: Scope::Account,
        source,
        explains: None,
        severity: Severity::Partial,
        summary,
        verdict: None,
        entity_type: None,
        entity_id: None,
        error_code: None,
        possible_solution: None,
    }
}

/// Says what an entity is, and whether it can send.
fn describe_state(entity: &Entity) -> String {
    let name = match (entity.entity_type.as_str(), entity.id.as_str()) {
        ("", "") => "An entity".to_owned(),
        ("", id) => format!("Entity {id}"),
        (kind, "") => kind.to_owned(),
        (kind, id) => format!("{kind} {id}"),
    };
    match &entity.can_send_message {
        CanSend::Unstated => format!("{name} has no verdict"),
        verdict => format!("{name} is {verdict}"),
    }
}
