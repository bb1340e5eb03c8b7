//! What an incident's findings say to a person: the cause with the failures that it explains, what
//! else was found, and what to do.

use std::collections::BTreeSet;

use serde::Serialize;
use utoipa::ToSchema;

use super::NumberReport;
use super::text::{format_count, format_number};
use crate::lockout::cause::{
    Advice, Finding, LockoutCause, Notice, Scope, findings_of_notices, next_steps,
};
use crate::lockout::schedule::LASTING_FAILURES;
use crate::store::events::AccountEvent;
use crate::store::incidents::{AffectedNumbers, Incident};

/// What was found beside the cause of an incident.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AlsoFound {
    /// What it is about: the account, or one number.
    pub scope: Scope,
    /// The number that it is about.
    pub phone_number_id: Option<String>,
    /// `true` if it can explain a lock, and another finding was the graver one.
    pub can_explain: bool,
    /// A sentence for a person.
    pub summary: String,
    /// The type of the entity.
    #[schema(example = "BUSINESS")]
    pub entity_type: Option<String>,
    /// The id of the entity.
    pub entity_id: Option<String>,
    /// Meta's code.
    #[schema(example = 141_010)]
    pub error_code: Option<i64>,
    /// Meta's own advice.
    pub possible_solution: Option<String>,
}

impl AlsoFound {
    fn new(finding: &Finding, phone_number_id: Option<String>) -> Self {
        Self {
            scope: finding.scope,
            phone_number_id,
            can_explain: finding.explains.is_some(),
            summary: finding.summary.clone(),
            entity_type: finding.entity_type.clone(),
            entity_id: finding.entity_id.clone(),
            error_code: finding.error_code,
            possible_solution: finding.possible_solution.clone(),
        }
    }
}

/// Returns the cause in a sentence, with the failures that it explains if those are not all.
pub(super) fn cause_summary(incident: &Incident, numbers: &AffectedNumbers) -> Option<String> {
    let summary = incident.cause_summary.as_deref()?;
    let failures = |n: i64| format_count(n, "failure", "failures");
    let total = incident.failure_count;
    let is_of_numbers = incident.cause_scope.as_deref() == Some(Scope::Number.as_str());
    let (with_cause, explained) = (numbers.failures_with_cause, numbers.explained_failures);
    Some(if is_of_numbers && numbers.count > 1 {
        format!(
            "{summary} This reason explains {} of {}.",
            format_number(with_cause),
            failures(total)
        )
    } else if incident.cause == LockoutCause::Unreported && explained > 0 {
        format!(
            "{summary} The state of single numbers explains {} of {}.",
            format_number(explained),
            failures(total)
        )
    } else {
        summary.to_owned()
    })
}

/// Returns what was found beside the cause, each thing once: about the account first.
pub(super) fn also_found(
    incident: &Incident,
    numbers: &AffectedNumbers,
    events: &[AccountEvent],
) -> Vec<AlsoFound> {
    let mut told: BTreeSet<&str> = incident.cause_summary.as_deref().into_iter().collect();
    let mut found = Vec::new();
    let notices: Vec<Notice> = events.iter().map(AccountEvent::to_notice).collect();
    let notices = findings_of_notices(&notices, incident.opened_at, incident.ended_at);
    let cause = incident.cause_summary.as_deref().unwrap_or_default();
    for notice in &notices {
        // The cause may quote several notices.
        if !cause.contains(&notice.summary) && told.insert(&notice.summary) {
            found.push(AlsoFound::new(notice, None));
        }
    }
    for scope in [Scope::Account, Scope::Number] {
        for number in &numbers.top {
            let findings = &number.findings;
            let explaining = findings.account.iter().chain(&findings.number);
            let all = explaining.map(|shown| &shown.finding).chain(&findings.also);
            for finding in all.filter(|finding| finding.scope == scope) {
                if told.insert(&finding.summary) {
                    let phone_number_id = number.phone_number_id.to_string();
                    let number = (scope == Scope::Number).then_some(phone_number_id);
                    found.push(AlsoFound::new(finding, number));
                }
            }
        }
    }
    found
}

/// Returns the next steps for a person.
pub(super) fn steps(incident: &Incident, numbers: &[NumberReport]) -> Vec<String> {
    let cause = incident
        .cause
        .known()
        .unwrap_or(LockoutCause::OtherRestriction);
    let also_found: Vec<Finding> = numbers
        .iter()
        .flat_map(|number| number.number.findings.also.iter().cloned())
        .collect();
    let failing = numbers
        .iter()
        .find(|number| number.number.check_failures >= LASTING_FAILURES);
    let fault = failing.and_then(|number| number.latest_check.as_ref()?.error.as_deref());
    next_steps(&Advice {
        cause,
        denial: incident.denial.as_ref().and_then(|denial| denial.known()),
        possible_solution: incident.possible_solution.as_deref(),
        also_found: &also_found,
        portfolio_id: incident.portfolio_id.as_deref(),
        fault,
    })
}
