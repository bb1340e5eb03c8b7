//! What people are shown: the same objects and words for the API, the dashboard and the command line.
//!
//! Recipients are masked here, before anything leaves. Nothing here knows HTTP, HTML or a terminal.

pub mod appeal;
pub mod csv;
pub mod mask;
pub mod text;
pub mod timeline;

use std::collections::BTreeMap;

use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use crate::lockout::cause::{LockoutCause, next_steps};
use crate::meta::ids::PhoneNumberId;
use crate::store::checks::{self, HealthCheck};
use crate::store::deliveries::{self, Delivery};
use crate::store::incidents::{self, AffectedNumber, Incident, IncidentFilter, Numbers};
use crate::store::{Pool, StoreError, bounded};

/// Numbers that an incident shows in a list.
const NUMBERS_IN_LIST: i64 = 5;
/// Numbers that it shows when it is looked at.
const NUMBERS: i64 = 100;

/// An incident with its cause, the evidence for it, what to do next, and how its numbers are.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Incident)]
pub struct IncidentReport {
    #[serde(flatten)]
    #[allow(missing_docs, reason = "see there")]
    pub incident: Incident,
    /// What a person does next: sentences, in the order to act on them.
    pub next_steps: Vec<String>,
    /// The health check that the cause rests on, if there is one and retention has not taken it.
    pub evidence: Option<HealthCheck>,
    /// How many numbers are affected.
    pub affected_number_count: i64,
    /// Those with most failures, most first: up to 5 of each incident in a list, up to 100 of a single one.
    pub affected_numbers: Vec<NumberReport>,
}

/// A number with failures, and how it is.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AffectedNumber)]
pub struct NumberReport {
    #[serde(flatten)]
    #[allow(missing_docs, reason = "see there")]
    pub number: AffectedNumber,
    /// Its latest look-up, however that ended.
    pub latest_check: Option<HealthCheck>,
}

impl IncidentReport {
    /// The cause in a few words for a person.
    #[must_use]
    pub fn cause_title(&self) -> &str {
        self.cause()
            .map_or(self.incident.cause.as_str(), |cause| cause.title())
    }

    /// The cause; `None` for a word of a later version.
    #[must_use]
    pub fn cause(&self) -> Option<LockoutCause> {
        self.incident.cause.known()
    }
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// What is on it.
    pub data: Vec<T>,
    /// The id that the next page starts after. `None` on the last page.
    pub next: Option<i64>,
}

impl<T> Page<T> {
    /// Of one more than the page holds, which tells whether there is another.
    fn of(mut data: Vec<T>, limit: i64, id: impl Fn(&T) -> i64) -> Self {
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

/// Whether recipients can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipients {
    /// They cannot, neither in their own field nor inside message ids.
    Masked,
    /// They can: whoever asks for it leaves a line in the log.
    Revealed,
}

impl Recipients {
    /// Logs that the recipients of an incident were shown: seeing them leaves a trace.
    pub fn log_if_revealed(self, incident_id: i64) {
        if self == Self::Revealed {
            warn!(
                incident.id = incident_id,
                "recipients of incident {incident_id} were shown in full on request"
            );
        }
    }
}

/// The newest incidents first.
///
/// # Errors
/// The database does not answer.
pub async fn incidents(
    db: &Pool,
    filter: &IncidentFilter,
    limit: i64,
) -> Result<Page<IncidentReport>, StoreError> {
    bounded(async {
        let page = Page::of(
            incidents::list(db, filter, limit + 1).await?,
            limit,
            |incident| incident.id,
        );
        Ok(Page {
            data: report(db, page.data, NUMBERS_IN_LIST).await?,
            next: page.next,
        })
    })
    .await
}

/// One incident, if it exists.
///
/// # Errors
/// The database does not answer.
pub async fn incident(db: &Pool, id: i64) -> Result<Option<IncidentReport>, StoreError> {
    bounded(async {
        let found = incidents::find(db, id).await?;
        Ok(report(db, found.into_iter().collect(), NUMBERS)
            .await?
            .pop())
    })
    .await
}

/// The latest deliveries of an incident first; `None` where there is no such incident.
///
/// # Errors
/// The database does not answer.
pub async fn deliveries(
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
        let deliveries = deliveries::list(db, incident_id, before, limit + 1).await?;
        Ok(Some(
            Page::of(deliveries, limit, |delivery| delivery.id).map(|delivery| match recipients {
                Recipients::Masked => mask::delivery(delivery),
                Recipients::Revealed => delivery,
            }),
        ))
    })
    .await
}

/// The latest checks of an incident first; `None` where there is no such incident.
///
/// # Errors
/// The database does not answer.
pub async fn checks(
    db: &Pool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
) -> Result<Option<Page<HealthCheck>>, StoreError> {
    bounded(async {
        if incidents::find(db, incident_id).await?.is_none() {
            return Ok(None);
        }
        let checks = checks::list(db, incident_id, before, limit + 1).await?;
        Ok(Some(Page::of(checks, limit, |check| check.id)))
    })
    .await
}

async fn report(
    db: &Pool,
    incidents: Vec<Incident>,
    numbers: i64,
) -> Result<Vec<IncidentReport>, StoreError> {
    let ids: Vec<i64> = incidents.iter().map(|incident| incident.id).collect();
    let mut numbers = incidents::numbers(db, &ids, numbers).await?;
    let of_numbers: Vec<(i64, &PhoneNumberId)> = numbers
        .iter()
        .flat_map(|(id, numbers)| {
            numbers
                .top
                .iter()
                .map(|number| (*id, &number.phone_number_id))
        })
        .collect();
    let latest = checks::latest(db, &of_numbers).await?;
    let mut latest: BTreeMap<(i64, PhoneNumberId), HealthCheck> = latest
        .into_iter()
        .map(|check| ((check.incident_id, check.phone_number_id.clone()), check))
        .collect();
    let causes: Vec<(i64, &str)> = incidents
        .iter()
        .filter_map(|incident| Some((incident.cause_check_id?, incident.waba_id.as_str())))
        .collect();
    let mut evidence: BTreeMap<i64, HealthCheck> = checks::by_id(db, &causes)
        .await?
        .into_iter()
        .map(|check| (check.id, check))
        .collect();

    let report = incidents.into_iter().map(|incident| {
        let Numbers { top, count } = numbers.remove(&incident.id).unwrap_or_default();
        let affected_numbers = top.into_iter().map(|number| NumberReport {
            latest_check: latest.remove(&(incident.id, number.phone_number_id.clone())),
            number,
        });
        let cause = incident
            .cause
            .known()
            .unwrap_or(LockoutCause::OtherRestriction);
        IncidentReport {
            next_steps: next_steps(cause, incident.possible_solution.as_deref()),
            evidence: incident.cause_check_id.and_then(|id| evidence.remove(&id)),
            affected_number_count: count,
            affected_numbers: affected_numbers.collect(),
            incident,
        }
    });
    Ok(report.collect())
}
