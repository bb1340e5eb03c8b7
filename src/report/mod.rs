//! Reports: the same objects and words for the API, the dashboard and the command line.
//!
//! Recipients are masked here, before anything leaves. Nothing here knows HTTP, HTML or a terminal.
//! Each function that reads the database fails when it does not answer.

pub mod alert;
pub(crate) mod appeal;
pub(crate) mod backlog;
pub(crate) mod csv;
pub(crate) mod explanation;
mod mask;
pub(crate) mod text;
pub mod timeline;
pub(crate) mod trouble;

use std::collections::BTreeMap;

use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

pub use self::explanation::AlsoFound;
use crate::lockout::cause::LockoutCause;
use crate::lockout::codes::Kind;
use crate::meta::ids::PhoneNumberId;
use crate::store::changes::{self, IncidentChange};
use crate::store::checks::{self, HealthCheck};
use crate::store::deliveries::{self, Delivery};
use crate::store::events::{self, AccountEvent};
use crate::store::incidents::{self, AffectedNumber, AffectedNumbers, Incident, IncidentFilter};
use crate::store::{Pool, StoreError, bounded};

/// The affected numbers that are shown for an incident in a list.
const LISTED_INCIDENT_NUMBER_LIMIT: i64 = 5;
/// The affected numbers that are shown for a single incident.
const SINGLE_INCIDENT_NUMBER_LIMIT: i64 = 100;

/// An incident with its cause, the evidence for it, the next steps, and the state of its numbers.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Incident)]
pub struct IncidentReport {
    #[serde(flatten)]
    #[allow(missing_docs, reason = "the type has its own documentation")]
    pub incident: Incident,
    /// The next steps for a person: sentences, in the order to act on them.
    pub next_steps: Vec<String>,
    /// What stands beside the cause. Most of it cannot explain a lock.
    pub also_found: Vec<AlsoFound>,
    /// What Meta reported about the account itself, from thirty days before the incident until its
    /// end, the earliest first.
    pub account_events: Vec<AccountEvent>,
    /// The health check that showed the cause, if there is one and retention has not deleted it.
    pub evidence: Option<HealthCheck>,
    /// The number of affected phone numbers.
    pub affected_number_count: i64,
    /// The numbers with the most failures, in descending order: up to 5 of each incident in a list,
    /// up to 100 of a single incident.
    pub affected_numbers: Vec<NumberReport>,
}

/// A number with failures, and its latest health check.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AffectedNumber)]
pub struct NumberReport {
    #[serde(flatten)]
    #[allow(missing_docs, reason = "the type has its own documentation")]
    pub number: AffectedNumber,
    /// The reason for the failures of this number alone, if its checks showed one.
    #[schema(value_type = Option<String>, example = "phone_registration")]
    pub cause: Option<LockoutCause>,
    /// That reason in a sentence.
    pub cause_summary: Option<String>,
    /// The latest look-up of the number, whatever its outcome.
    pub latest_check: Option<HealthCheck>,
}

impl NumberReport {
    fn new(number: AffectedNumber, latest_check: Option<HealthCheck>) -> Self {
        let reason = number.findings.number.as_ref().map(|shown| &shown.finding);
        Self {
            cause: reason.and_then(|finding| finding.explains),
            cause_summary: reason.map(|finding| finding.summary.clone()),
            latest_check,
            number,
        }
    }
}

impl IncidentReport {
    /// The cause in a few words for a person.
    #[must_use]
    pub fn cause_title(&self) -> &str {
        self.cause()
            .map_or(self.incident.cause.as_str(), |cause| cause.title())
    }

    /// What the account is or was, after its name in a sentence for a person.
    #[must_use]
    pub fn state(&self) -> &'static str {
        let kind = self.incident.kind.known().unwrap_or(Kind::Lock);
        kind.state(self.incident.resolved_at.is_none())
    }

    /// The name of the time of its opening, for a person.
    #[must_use]
    pub fn opening_label(&self) -> &'static str {
        let is_open = self.incident.resolved_at.is_none();
        match (self.incident.kind == Kind::Lock, is_open) {
            (true, true) => "Locked since",
            (true, false) => "Locked from",
            (false, true) => "Since",
            (false, false) => "From",
        }
    }

    /// The cause; `None` for a word of a later version.
    #[must_use]
    pub fn cause(&self) -> Option<LockoutCause> {
        self.incident.cause.known()
    }
}

/// A page of a list.
#[derive(Debug, Clone)]
pub(crate) struct Page<T> {
    /// The rows of the page.
    pub(crate) data: Vec<T>,
    /// The id that the next page starts after. `None` on the last page.
    pub(crate) next: Option<i64>,
}

impl<T> Page<T> {
    /// Makes a page of up to `limit` rows. The caller reads one row more: if it is there, another
    /// page follows.
    fn from_rows(mut data: Vec<T>, limit: i64, id: impl Fn(&T) -> i64) -> Self {
        let limit = usize::try_from(limit).unwrap_or_default();
        let has_more = data.len() > limit;
        data.truncate(limit);
        Self {
            next: data.last().filter(|_| has_more).map(id),
            data,
        }
    }

    fn map<U>(self, change: impl Fn(T) -> U) -> Page<U> {
        Page {
            data: self.data.into_iter().map(change).collect(),
            next: self.next,
        }
    }
}

/// The form in which recipients are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recipients {
    /// Masked, in their own field and inside message ids.
    Masked,
    /// In full. Each request for this leaves a line in the log.
    Revealed,
}

impl Recipients {
    /// Logs that the recipients of an incident were shown, so that it leaves a trace.
    pub(crate) fn log_if_revealed(self, incident_id: i64) {
        if self == Self::Revealed {
            warn!(
                incident.id = incident_id,
                "recipients of incident {incident_id} were shown in full on request"
            );
        }
    }
}

/// Lists incidents, the newest first.
pub(crate) async fn list_incidents(
    db: &Pool,
    filter: &IncidentFilter,
    limit: i64,
) -> Result<Page<IncidentReport>, StoreError> {
    bounded(async {
        let rows = incidents::list(db, filter, limit + 1).await?;
        let page = Page::from_rows(rows, limit, |incident| incident.id);
        Ok(Page {
            data: build_reports(db, page.data, LISTED_INCIDENT_NUMBER_LIMIT).await?,
            next: page.next,
        })
    })
    .await
}

/// Finds an incident; `None` if there is no such incident.
pub async fn find_incident(db: &Pool, id: i64) -> Result<Option<IncidentReport>, StoreError> {
    bounded(async {
        let incidents = incidents::find(db, id).await?.into_iter().collect();
        let mut reports = build_reports(db, incidents, SINGLE_INCIDENT_NUMBER_LIMIT).await?;
        Ok(reports.pop())
    })
    .await
}

/// Lists the deliveries of an incident, the latest first; `None` if there is no such incident.
pub(crate) async fn list_deliveries(
    db: &Pool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
    recipients: Recipients,
) -> Result<Option<Page<Delivery>>, StoreError> {
    bounded(async {
        if incidents::find(db, incident_id).await?.is_none() {
            return Ok(None);
        }
        let rows = deliveries::list(db, incident_id, before, limit + 1).await?;
        let page = Page::from_rows(rows, limit, |delivery| delivery.id);
        Ok(Some(match recipients {
            Recipients::Masked => page.map(mask::mask_delivery),
            Recipients::Revealed => page,
        }))
    })
    .await
}

/// Lists the health checks of an incident, the latest first; `None` if there is no such incident.
pub(crate) async fn list_checks(
    db: &Pool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
) -> Result<Option<Page<HealthCheck>>, StoreError> {
    bounded(async {
        if incidents::find(db, incident_id).await?.is_none() {
            return Ok(None);
        }
        let rows = checks::list(db, incident_id, before, limit + 1).await?;
        Ok(Some(Page::from_rows(rows, limit, |check| check.id)))
    })
    .await
}

/// Lists the changes of an incident, the latest first; `None` if there is no such incident.
pub(crate) async fn list_changes(
    db: &Pool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
) -> Result<Option<Page<IncidentChange>>, StoreError> {
    bounded(async {
        if incidents::find(db, incident_id).await?.is_none() {
            return Ok(None);
        }
        let rows = changes::list(db, incident_id, before, limit + 1).await?;
        Ok(Some(Page::from_rows(rows, limit, |change| change.id)))
    })
    .await
}

/// Adds the affected numbers, up to `number_limit` of each incident, and the health checks.
async fn build_reports(
    db: &Pool,
    incidents: Vec<Incident>,
    number_limit: i64,
) -> Result<Vec<IncidentReport>, StoreError> {
    let ids: Vec<i64> = incidents.iter().map(|incident| incident.id).collect();
    let mut numbers = incidents::list_numbers(db, &ids, number_limit).await?;
    let mut latest_checks = latest_checks(db, &numbers).await?;
    let mut evidence = evidence(db, &incidents).await?;
    let mut events = events::of_incidents(db, &ids).await?;

    let mut reports = Vec::new();
    for incident in incidents {
        let numbers = numbers.remove(&incident.id).unwrap_or_default();
        let affected_number_count = numbers.count;
        let account_events = events.remove(&incident.id).unwrap_or_default();
        let also_found = explanation::also_found(&incident, &numbers, &account_events);
        let summary = explanation::cause_summary(&incident, &numbers);
        let affected_numbers: Vec<NumberReport> = numbers
            .top
            .into_iter()
            .map(|number| {
                let key = (incident.id, number.phone_number_id.clone());
                NumberReport::new(number, latest_checks.remove(&key))
            })
            .collect();
        reports.push(IncidentReport {
            next_steps: explanation::steps(&incident, &affected_numbers),
            evidence: incident.cause_check_id.and_then(|id| evidence.remove(&id)),
            affected_number_count,
            affected_numbers,
            also_found,
            account_events,
            incident: Incident {
                cause_summary: summary,
                ..incident
            },
        });
    }
    Ok(reports)
}

/// Returns the latest check of each number, by incident and number.
async fn latest_checks(
    db: &Pool,
    numbers: &BTreeMap<i64, AffectedNumbers>,
) -> Result<BTreeMap<(i64, PhoneNumberId), HealthCheck>, StoreError> {
    let mut keys: Vec<(i64, &PhoneNumberId)> = Vec::new();
    for (incident_id, numbers) in numbers {
        keys.extend(
            numbers
                .top
                .iter()
                .map(|number| (*incident_id, &number.phone_number_id)),
        );
    }
    let checks = checks::latest(db, &keys).await?;
    let by_number = checks
        .into_iter()
        .map(|check| ((check.incident_id, check.phone_number_id.clone()), check));
    Ok(by_number.collect())
}

/// Returns the checks that showed the causes of these incidents, by their ids.
async fn evidence(
    db: &Pool,
    incidents: &[Incident],
) -> Result<BTreeMap<i64, HealthCheck>, StoreError> {
    let keys: Vec<(i64, &str)> = incidents
        .iter()
        .filter_map(|incident| Some((incident.cause_check_id?, incident.waba_id.as_str())))
        .collect();
    let checks = checks::by_id(db, &keys).await?;
    Ok(checks.into_iter().map(|check| (check.id, check)).collect())
}
