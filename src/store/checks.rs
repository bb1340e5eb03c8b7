//! Health checks: what a look-up came to, and what that changes.

use std::time::Duration;

use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::claims::{Claim, give_back};
use super::{StoreError, interval, lock_account};
use crate::lockout::cause::{self, Cause, Evidence, Finding, LockoutCause};
use crate::lockout::incident::{ClearRun, Resolution, clear_run, recovered};
use crate::lockout::schedule::{self, Progress};
use crate::meta::health::{Answer, CanSend, Entity, verdict};

/// One look-up, done.
#[derive(Debug, Clone)]
pub struct Check {
    /// What it came to.
    pub answer: Answer,
    /// The answer's status, if there was one.
    pub http_status: Option<u16>,
    /// The answer's body, cut and cleaned.
    pub response: Option<String>,
    /// How long it took.
    pub duration: Duration,
}

/// What a look-up came to, in the words of `health_checks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Meta told the health.
    Answered,
    /// Meta answered without it.
    NoHealth,
    /// Meta was not asked.
    NotAsked,
    /// Meta refused.
    Refused,
    /// Too many calls.
    Throttled,
    /// No answer that means anything.
    Unreachable,
}

impl Outcome {
    /// Every outcome, in the order of the declaration.
    pub const ALL: [Self; 6] = [
        Self::Answered,
        Self::NoHealth,
        Self::NotAsked,
        Self::Refused,
        Self::Throttled,
        Self::Unreachable,
    ];

    /// The outcome of this answer.
    #[must_use]
    pub fn of(answer: &Answer) -> Self {
        match answer {
            Answer::Health(_) => Self::Answered,
            Answer::NoHealth => Self::NoHealth,
            Answer::NotAsked(_) => Self::NotAsked,
            Answer::Refused(_) => Self::Refused,
            Answer::Throttled { .. } => Self::Throttled,
            Answer::Unreachable(_) => Self::Unreachable,
        }
    }

    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoHealth => "no_health",
            Self::NotAsked => "not_asked",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What saving a check changed about its incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// The check is kept, and the incident is as it was.
    Kept,
    /// The incident has this cause now.
    Caused(LockoutCause),
    /// The incident is over.
    Recovered,
    /// The check is kept and nothing else was touched: the incident was resolved meanwhile, or the claim
    /// had run out and another has taken it.
    Late,
}

/// Saves a look-up. The check is always kept; while its claim holds and the incident is open, the cause is
/// derived anew, the next check gets its time, and the incident may turn out to be over. `chance` spreads
/// the next check (0.0 … 1.0).
///
/// # Errors
/// Nothing is saved; the claim runs out with its lease, and the number is looked up again.
pub async fn save(
    db: &PgPool,
    claim: &Claim,
    check: &Check,
    chance: f64,
) -> Result<Saved, StoreError> {
    let mut transaction = db.begin().await?;
    lock_account(&mut transaction, &claim.waba_id).await?;
    let kept = keep(&mut transaction, claim, check).await?;
    if let Answer::Throttled { rest, .. } = &check.answer {
        let rest = rest.unwrap_or(schedule::REST);
        sqlx::query!(
            "update accounts set lookups_paused_until = greatest(lookups_paused_until, now() + $2) where waba_id = $1",
            claim.waba_id,
            interval(rest),
        )
        .execute(&mut *transaction)
        .await?;
    }
    let saved = match open_incident(&mut transaction, claim).await? {
        None => {
            give_back(&mut transaction, claim).await?;
            Saved::Late
        }
        Some(incident) => {
            let answered =
                reschedule(&mut transaction, claim, check, &kept, &incident, chance).await?;
            if answered {
                conclude(&mut transaction, claim, &incident).await?
            } else {
                Saved::Kept
            }
        }
    };
    transaction.commit().await?;
    Ok(saved)
}

/// A check's row.
struct Kept {
    id: i64,
    checked_at: OffsetDateTime,
}

async fn keep(db: &mut PgConnection, claim: &Claim, check: &Check) -> Result<Kept, StoreError> {
    let entities = check.answer.entities();
    let kept = sqlx::query_as!(
        Kept,
        r#"insert into health_checks (incident_id, waba_id, phone_number_id, checked_at, outcome, http_status,
                                      can_send_message, entities, response, error, duration_ms)
           values ($1, $2, $3, clock_timestamp(), $4, $5, $6, $7, $8, $9, $10)
           returning id, checked_at"#,
        claim.incident_id,
        claim.waba_id,
        claim.phone_number_id,
        Outcome::of(&check.answer).as_str(),
        check.http_status.map(i32::from),
        entities.and_then(verdict).map(ToString::to_string),
        entities.map(Json) as _,
        check.response,
        check.answer.trouble(),
        i32::try_from(check.duration.as_millis()).unwrap_or(i32::MAX),
    )
    .fetch_one(db)
    .await?;
    Ok(kept)
}

/// The claim's incident while it is open, and the claim's number in it.
struct OpenIncident {
    last_failure_at: OffsetDateTime,
    cause: LockoutCause,
    severity: Option<CanSend>,
    clear_since: Option<OffsetDateTime>,
}

/// `None` where the incident was resolved meanwhile, or another has taken the claim.
async fn open_incident(
    db: &mut PgConnection,
    claim: &Claim,
) -> Result<Option<OpenIncident>, StoreError> {
    let row = sqlx::query!(
        r#"select i.last_failure_at, i.cause, i.cause_severity, n.clear_since
             from affected_numbers n
             join incidents i on i.id = n.incident_id and i.waba_id = n.waba_id
            where n.incident_id = $1 and n.waba_id = $2 and n.phone_number_id = $3
              and n.check_attempt = $4 and i.resolved_at is null"#,
        claim.incident_id,
        claim.waba_id,
        claim.phone_number_id,
        claim.attempt,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| OpenIncident {
        last_failure_at: row.last_failure_at,
        // A cause of a later version counts as found: better kept than overwritten.
        cause: LockoutCause::parse(&row.cause).unwrap_or(LockoutCause::OtherRestriction),
        severity: row.cause_severity.map(CanSend::from),
        clear_since: row.clear_since,
    }))
}

/// Gives the number's next check its time, and makes this one its evidence if Meta answered; says whether.
async fn reschedule(
    db: &mut PgConnection,
    claim: &Claim,
    check: &Check,
    kept: &Kept,
    incident: &OpenIncident,
    chance: f64,
) -> Result<bool, StoreError> {
    let answered = !matches!(
        check.answer,
        Answer::Throttled { .. } | Answer::Unreachable(_)
    );
    let clear = incident.cause.is_found()
        && check
            .answer
            .entities()
            .is_some_and(|e| cause::is_clear(e, incident.cause, incident.severity.as_ref()));
    let clear_since = match answered {
        true => clear_run(
            incident.clear_since,
            clear,
            kept.checked_at,
            incident.last_failure_at,
        ),
        false => incident.clear_since,
    };
    let progress = Progress {
        answers: claim.answers,
        failures: claim.failures,
    }
    .after(&check.answer);
    let confirming = clear_since == Some(kept.checked_at);
    let pause = schedule::pause(&check.answer, progress, confirming, chance);
    sqlx::query!(
        "update affected_numbers
            set check_due_at = now() + $5, check_lease_until = null, check_started_at = null,
                check_answers = $6, check_failures = $7, clear_since = $8,
                latest_check_id  = case when $9 then $10 else latest_check_id end,
                latest_answer_at = case when $9 then $11 else latest_answer_at end
          where incident_id = $1 and waba_id = $2 and phone_number_id = $3 and check_attempt = $4",
        claim.incident_id,
        claim.waba_id,
        claim.phone_number_id,
        claim.attempt,
        interval(pause),
        progress.answers,
        progress.failures,
        clear_since,
        answered,
        kept.id,
        kept.checked_at,
    )
    .execute(db)
    .await?;
    Ok(answered)
}

/// Derives the cause from every number's evidence, and sees whether the incident is over.
async fn conclude(
    db: &mut PgConnection,
    claim: &Claim,
    incident: &OpenIncident,
) -> Result<Saved, StoreError> {
    let numbers = sqlx::query!(
        r#"select n.latest_answer_at, n.clear_since, c.id as "check_id?", c.error,
                  c.entities as "entities: Json<Vec<Entity>>"
             from affected_numbers n
             left join health_checks c on c.id = n.latest_check_id and c.waba_id = n.waba_id
            where n.incident_id = $1 and n.waba_id = $2"#,
        claim.incident_id,
        claim.waba_id,
    )
    .fetch_all(&mut *db)
    .await?;
    let mut evidence = Vec::new();
    let mut runs = Vec::new();
    for number in numbers {
        runs.push(
            number
                .clear_since
                .zip(number.latest_answer_at)
                .map(|(since, until)| ClearRun { since, until }),
        );
        if let Some(check_id) = number.check_id {
            let finding = match number.entities {
                Some(Json(entities)) => Finding::Health(entities),
                None => Finding::Denied(number.error.unwrap_or_default()),
            };
            evidence.push(Evidence { check_id, finding });
        }
    }

    let mut saved = Saved::Kept;
    let supersedes =
        |cause: &Cause| cause::supersedes(cause, incident.cause, incident.severity.as_ref());
    if let Some(cause) = cause::derive(&evidence).filter(supersedes) {
        set_cause(db, claim, &cause).await?;
        if cause.kind != incident.cause {
            saved = Saved::Caused(cause.kind);
        }
    }
    if incident.cause.is_found() && recovered(&runs, incident.last_failure_at) {
        super::incidents::close(
            db,
            claim.incident_id,
            &claim.waba_id,
            Resolution::Recovered,
            None,
        )
        .await?;
        saved = Saved::Recovered;
    }
    Ok(saved)
}

async fn set_cause(db: &mut PgConnection, claim: &Claim, cause: &Cause) -> Result<(), StoreError> {
    let (entity_type, entity_id) = cause.entity.clone().unzip();
    sqlx::query!(
        "update incidents
            set cause_recorded_at = case when cause = $3 then cause_recorded_at else clock_timestamp() end,
                cause = $3, cause_severity = $4, cause_summary = $5, cause_entity_type = $6, cause_entity_id = $7,
                cause_error_code = $8, possible_solution = $9, cause_check_id = $10
          where id = $1 and waba_id = $2",
        claim.incident_id,
        claim.waba_id,
        cause.kind.as_str(),
        cause.severity.as_ref().map(ToString::to_string),
        cause.summary,
        entity_type,
        entity_id,
        cause.error_code,
        cause.possible_solution,
        cause.check_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Makes the numbers due whose look-up was denied: somebody may just have given us the token.
///
/// # Errors
/// Nothing is changed.
pub async fn ask_denied_again(db: &PgPool) -> Result<(), StoreError> {
    sqlx::query!(
        "with denied as (
           select waba_id from accounts
            where waba_id in (select waba_id from incidents where resolved_at is null and cause = 'lookup_denied')
            order by waba_id
              for update
         )
         update affected_numbers n
            set check_due_at = now()
           from denied
          where n.waba_id = denied.waba_id and n.check_due_at > now()"
    )
    .execute(db)
    .await?;
    Ok(())
}
