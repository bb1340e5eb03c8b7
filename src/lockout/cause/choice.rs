//! The choice of the cause, from the findings of every affected number.
//!
//! A finding that explained the incident at any time counts for good, so the order in which answers
//! arrive does not matter, and a block keeps its cause while it is lifted.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::LockoutCause;
use super::findings::{
    Finding, Scope, Severity, Source, finding_of_state, findings_of_account, findings_of_entities,
    findings_of_number, other_account, verdict,
};
use crate::lockout::codes::{Kind, finding_of_code};
use crate::meta::graph_error::Denial;
use crate::meta::health::{Answer, CanSend};
use crate::meta::ids::WabaId;
use crate::meta::node_fields::NodeFields;

/// The findings of one number's checks in an incident.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NumberFindings {
    /// The best explanation of the account's lock, of all checks.
    pub account: Option<Shown>,
    /// The best explanation of this number's failures, of all checks.
    pub number: Option<Shown>,
    /// The findings of the latest answer that explain nothing.
    pub also: Vec<Finding>,
    /// The check in which Meta answered last.
    pub answered: Option<i64>,
    /// Why the latest look-up was refused, if it was.
    pub denied: Option<Denied>,
    /// Whether a field beside the health has explained the lock: then it tells when that is over.
    pub field_explained: bool,
}

/// A finding, and the check that showed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
    /// The id of the check.
    pub check_id: i64,
}

/// A refused look-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// The kind of refusal.
    pub denial: Denial,
    /// Meta's words, or ours where Meta was not asked.
    pub reason: String,
    /// The id of the check.
    pub check_id: i64,
}

/// How sure a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confidence {
    /// Meta blocks an entity with this reason, or names the state of the account.
    Stated,
    /// Meta shows something that can explain a lock, and no more.
    Inferred,
}

impl Confidence {
    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stated => "stated",
            Self::Inferred => "inferred",
        }
    }
}

/// A cause with its evidence.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// The kind of reason.
    pub kind: LockoutCause,
    /// What it is about; `None` if Meta named none.
    pub scope: Option<Scope>,
    /// How sure it is; `None` if Meta named none.
    pub confidence: Option<Confidence>,
    /// Why the look-up is refused, if that is the cause.
    pub denial: Option<Denial>,
    /// How much is stopped; `None` if Meta named no cause.
    pub severity: Option<Severity>,
    /// The verdict on the entity, in Meta's words; `None` if no entity is restricted.
    pub verdict: Option<String>,
    /// The cause in a sentence for a person.
    pub summary: String,
    /// The type of the entity with the reason.
    pub entity_type: Option<String>,
    /// The id of that entity.
    pub entity_id: Option<String>,
    /// Meta's code of the reason.
    pub error_code: Option<i64>,
    /// Meta's own advice.
    pub possible_solution: Option<String>,
    /// The check that showed the cause.
    pub check_id: Option<i64>,
}

/// A number of an incident, for the choice of the cause.
#[derive(Debug, Clone, Copy)]
pub struct NumberEvidence<'f> {
    /// Its failures in the incident.
    pub failure_count: i64,
    /// The codes of its failed messages that name a reason.
    pub error_codes: &'f [i32],
    /// What its checks have shown.
    pub findings: &'f NumberFindings,
    /// Whether its look-ups have failed for so long that nobody waits for an answer.
    pub is_given_up: bool,
}

/// Returns the findings in an answer and in the fields beside it.
#[must_use]
pub fn findings_of(
    answer: &Answer,
    fields: &NodeFields,
    waba_id: &WabaId,
    number: &str,
) -> Vec<Finding> {
    let mut findings = match answer {
        Answer::State(error) => vec![finding_of_state(error)],
        answer => findings_of_entities(answer.entities().unwrap_or_default(), waba_id),
    };
    if let Some(fields) = &fields.number {
        findings.extend(findings_of_number(number, fields));
    }
    if let Some(fields) = &fields.account {
        findings.extend(findings_of_account(fields));
    }
    findings
}

/// Returns whether none of these findings can explain a lock.
#[must_use]
pub fn explain_nothing(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.explains.is_none())
}

impl NumberFindings {
    /// Adds what a check showed, a denial included. A passing fault shows nothing, and is not
    /// added.
    pub fn add(
        &mut self,
        check_id: i64,
        answer: &Answer,
        fields: &NodeFields,
        findings: Vec<Finding>,
    ) {
        match answer.denial() {
            Some(denial) if explain_nothing(&findings) => {
                self.denied = Some(Denied {
                    denial,
                    reason: answer.error_text().unwrap_or_default(),
                    check_id,
                });
            }
            _ => {
                self.denied = None;
                self.answered = Some(check_id);
            }
        }
        // What was not read again still stands.
        let is_new = answer.denial().is_none() || answer.entities().is_some();
        self.also
            .retain(|finding| match (finding.source, finding.scope) {
                (Source::Field, Scope::Number) => fields.number.is_none(),
                (Source::Field, Scope::Account) => fields.account.is_none(),
                _ => !is_new,
            });
        let is_explaining_field =
            |finding: &Finding| finding.source == Source::Field && finding.explains.is_some();
        self.field_explained |= findings.iter().any(is_explaining_field);
        for finding in findings {
            let best = match (finding.explains, finding.scope) {
                (None, _) => {
                    self.also.push(finding);
                    continue;
                }
                (Some(_), Scope::Account) => &mut self.account,
                (Some(_), Scope::Number) => &mut self.number,
            };
            // Of two that are alike, the later one is better evidence: the earlier check is deleted
            // first.
            let shown = Shown { finding, check_id };
            if best
                .as_ref()
                .is_none_or(|best| rank(&shown.finding) <= rank(&best.finding))
            {
                *best = Some(shown);
            }
        }
    }

    /// Returns whether a check has shown a cause.
    #[must_use]
    pub fn has_shown_a_cause(&self) -> bool {
        let mut shown = self.account.iter().chain(&self.number);
        shown.any(|shown| shown.finding.explains.is_some_and(LockoutCause::is_found))
    }

    /// Returns whether the latest answer said that an entity which sends is limited.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        let is_limit = |finding: &Finding| finding.verdict.as_deref() == Some("LIMITED");
        let mut limits = self.also.iter().filter(|finding| is_limit(finding));
        limits.any(|finding| finding.entity_type.as_deref() != Some("APP"))
    }

    fn has_answer(&self) -> bool {
        self.answered.is_some() || self.denied.is_some()
    }
}

/// Returns whether a check shows that the number is clear of everything that can explain a lock. It
/// has to answer the question: what was blocked must have a verdict again, and an answer about
/// another account is none.
#[must_use]
pub fn is_clear(
    answer: &Answer,
    findings: &[Finding],
    fields: &NodeFields,
    before: &NumberFindings,
    waba_id: &WabaId,
) -> bool {
    let Answer::Health(entities) = answer else {
        return false;
    };
    let has_verdict = |kind: &str| {
        let mut of_kind = entities.iter().filter(|entity| entity.entity_type == kind);
        of_kind.any(|entity| entity.can_send_message != CanSend::Unstated)
    };
    let blocked = before.account.iter().chain(&before.number);
    let mut blocked = blocked
        .map(|shown| &shown.finding)
        .filter(|finding| finding.source == Source::Check)
        .filter_map(|finding| finding.entity_type.as_deref());
    explain_nothing(findings)
        && verdict(entities, waba_id).is_some()
        && other_account(entities, waba_id).is_none()
        && blocked.all(has_verdict)
        && (fields.number.is_some() || !before.field_explained)
}

/// A finding that explains, and the check that showed it; none if no check did.
type Reason<'f> = (&'f Finding, Option<i64>);

/// Chooses the cause of an incident of this kind, from the findings and the codes of its numbers,
/// and from Meta's notices about the account. `None` while no answer says enough: the recorded
/// cause stays.
#[must_use]
pub fn choose(kind: Kind, numbers: &[NumberEvidence<'_>], notices: &[Finding]) -> Option<Cause> {
    let codes: Vec<Vec<Finding>> = numbers
        .iter()
        .map(|number| {
            number
                .error_codes
                .iter()
                .copied()
                .filter_map(finding_of_code)
                .collect()
        })
        .collect();
    let is_of_kind = |finding: &Finding| {
        // Of these kinds the code says it all; what else restricts the account is another matter.
        let is_other = matches!(kind, Kind::Country | Kind::Limit) && finding.error_code.is_none();
        kind.cause()
            .is_none_or(|cause| finding.explains == Some(cause) && !is_other)
    };
    let of_scope = |scope: Scope, number: usize| {
        let shown = match scope {
            Scope::Account => &numbers[number].findings.account,
            Scope::Number => &numbers[number].findings.number,
        };
        let shown = shown
            .iter()
            .map(|shown| (&shown.finding, Some(shown.check_id)));
        let told = codes[number]
            .iter()
            .filter(move |finding| finding.scope == scope);
        let reasons = shown.chain(told.map(|finding| (finding, None)));
        reasons
            .filter(|(finding, _)| is_of_kind(finding))
            .min_by_key(|(finding, check_id)| (rank(finding), Reverse(*check_id)))
    };
    let of_account = (0..numbers.len())
        .filter_map(|number| of_scope(Scope::Account, number))
        .min_by_key(|(finding, check_id)| (rank(finding), Reverse(*check_id)));
    let best_notice = notices
        .iter()
        .filter(|notice| notice.explains.is_some())
        .min_by_key(|notice| rank(notice));
    // Of two that are alike, the notice says more: the violation, and the end.
    if let Some(notice) = best_notice
        && of_account.is_none_or(|(finding, _)| rank(notice) <= rank(finding))
    {
        return Some(Cause {
            summary: summary_of_notices(notices),
            ..cause_of((notice, None))
        });
    }
    if let Some(reason) = of_account
        && reason.0.explains.is_some_and(LockoutCause::is_found)
    {
        return Some(cause_of(reason));
    }
    let of_numbers: Vec<Option<Reason<'_>>> = (0..numbers.len())
        .map(|number| of_scope(Scope::Number, number))
        .collect();
    of_single_numbers(numbers, &of_numbers).unwrap_or_else(|| {
        of_account
            .map(cause_of)
            .or_else(|| of_silence(numbers, &of_numbers))
    })
}

/// Chooses the cause from the reasons of single numbers: all have to be explained. `Some(None)`
/// while the others wait for their answers.
fn of_single_numbers(
    numbers: &[NumberEvidence<'_>],
    reasons: &[Option<Reason<'_>>],
) -> Option<Option<Cause>> {
    // A node without failures has none to explain, unless there is no other.
    let has_failures = numbers.iter().any(|number| number.failure_count > 0);
    let affected = || {
        let all = numbers.iter().zip(reasons);
        all.filter(move |(number, _)| !has_failures || number.failure_count > 0)
    };
    let (_, most) = affected()
        .filter_map(|(number, reason)| Some((number.failure_count, (*reason)?)))
        .max_by_key(|(failures, (finding, _))| (*failures, Reverse(rank(finding))))?;
    let others = || affected().filter(|(_, reason)| reason.is_none());
    if others().next().is_none() {
        return Some(Some(cause_of(most)));
    }
    let waits = |number: &NumberEvidence<'_>| !number.findings.has_answer() && !number.is_given_up;
    others().all(|(number, _)| waits(number)).then_some(None)
}

/// Returns that Meta gives no reason, or why it cannot be asked.
fn of_silence(numbers: &[NumberEvidence<'_>], reasons: &[Option<Reason<'_>>]) -> Option<Cause> {
    // The evidence for "no reason" is a number without one of its own, if there is any.
    let answered = numbers
        .iter()
        .zip(reasons)
        .filter_map(|(number, reason)| Some((reason.is_none(), number.findings.answered?)))
        .max();
    if let Some((_, check_id)) = answered {
        let is_any_explained = reasons.iter().any(Option::is_some);
        return Some(unreported(check_id, is_any_explained));
    }
    numbers
        .iter()
        .filter_map(|number| number.findings.denied.as_ref())
        .min_by_key(|denied| (denied.denial, Reverse(denied.check_id)))
        .map(denied)
}

/// Returns what the notices that explain a lock say: the violation is in one of them, the end in
/// another.
fn summary_of_notices(notices: &[Finding]) -> String {
    const LIMIT: usize = 4;
    let explaining = notices.iter().filter(|notice| notice.explains.is_some());
    let mut texts: Vec<&str> = explaining.map(|notice| notice.summary.as_str()).collect();
    texts.dedup();
    texts[texts.len().saturating_sub(LIMIT)..].join(" ")
}

/// The order of explanations: those with a reason first, then by severity, by the order of causes,
/// and by the type of the entity.
fn rank(finding: &Finding) -> (bool, Reverse<Severity>, Option<LockoutCause>, usize) {
    const TYPES: [&str; 4] = ["PHONE_NUMBER", "WABA", "BUSINESS", "APP"];
    let entity_type = finding.entity_type.as_deref().unwrap_or_default();
    let place = match finding.source {
        // A notice or a code is about no entity, and says more than one.
        Source::Event | Source::Failure => Some(0),
        _ => TYPES.iter().position(|known| *known == entity_type),
    };
    (
        !finding.explains.is_some_and(LockoutCause::is_found),
        Reverse(finding.severity),
        finding.explains,
        place.unwrap_or(TYPES.len()),
    )
}

fn cause_of((finding, check_id): Reason<'_>) -> Cause {
    let kind = finding.explains.unwrap_or(LockoutCause::Unreported);
    let is_stated = finding.severity == Severity::Full
        && (kind != LockoutCause::OtherRestriction || finding.source != Source::Check);
    let confidence = match is_stated {
        true => Confidence::Stated,
        false => Confidence::Inferred,
    };
    Cause {
        kind,
        scope: kind.is_found().then_some(finding.scope),
        confidence: kind.is_found().then_some(confidence),
        denial: None,
        severity: kind.is_found().then_some(finding.severity),
        verdict: finding.verdict.clone(),
        summary: finding.summary.clone(),
        entity_type: finding.entity_type.clone(),
        entity_id: finding.entity_id.clone(),
        error_code: finding.error_code,
        possible_solution: finding.possible_solution.clone(),
        check_id,
    }
}

fn unreported(check_id: i64, is_any_number_explained: bool) -> Cause {
    let summary = match is_any_number_explained {
        true => "Meta's health check shows no block of the account, and gives no reason for one.",
        false => "Meta's health check shows no block and gives no reason for the lockout.",
    };
    Cause {
        check_id: Some(check_id),
        ..Cause::without_entity(LockoutCause::Unreported, summary.to_owned())
    }
}

fn denied(denied: &Denied) -> Cause {
    Cause {
        denial: Some(denied.denial),
        check_id: Some(denied.check_id),
        ..Cause::without_entity(
            LockoutCause::LookupDenied,
            format!("The reason could not be looked up: {}", denied.reason),
        )
    }
}

impl Cause {
    fn without_entity(kind: LockoutCause, summary: String) -> Self {
        Self {
            kind,
            scope: None,
            confidence: None,
            denial: None,
            severity: None,
            verdict: None,
            summary,
            entity_type: None,
            entity_id: None,
            error_code: None,
            possible_solution: None,
            check_id: None,
        }
    }
}
