//! The conclusions from a look-up: the incident's cause, the time of the next check, and its end.

use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::checks::{self, InsertedCheck};
use super::claims::{Claim, release};
use super::incident_life::End;
use super::{StoreError, Word, incident_life, interval, lock_account};
use crate::lockout::cause::{self, Evidence, Finding, LockoutCause};
use crate::lockout::incident::{ClearRun, Resolution, extend_clear_run, is_recovered};
use crate::lockout::schedule::{self, Progress};
use crate::meta::health::{Answer, CanSend, Entity, LookupResult, verdict};

/// The result of saving a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedCheck {
    /// The check is stored, and conclusions are drawn from it.
    Concluded,
    /// The check is stored, and nothing else changed: the incident was resolved in the meantime, or
    /// the claim expired and another process has taken it.
    Late,
}

/// Saves a look-up.
///
/// The check is always stored. While the claim holds and the incident is open, the cause is derived
/// again, the next check is scheduled, and the incident is resolved if it is over. `chance` (0.0 to
/// 1.0) spreads the time of the next check.
///
/// # Errors
/// Nothing is saved; the claim expires with its lease, and the number is looked up again.
pub async fn save(
    db: &PgPool,
    claim: &Claim,
    lookup: &LookupResult,
    chance: f64,
) -> Result<SavedCheck, StoreError> {
    let mut transaction = db.begin().await?;
    lock_account(&mut transaction, &claim.waba_id).await?;
    let check = checks::insert(&mut transaction, claim, lookup).await?;
    if let Answer::Throttled { retry_after, .. } = &lookup.answer {
        let pause = retry_after.unwrap_or(schedule::DEFAULT_THROTTLE_INTERVAL);
        sqlx::query!(
            "update accounts
                set lookups_paused_until = greatest(lookups_paused_until, now() + $2)
              where waba_id = $1",
            claim.waba_id.as_str(),
            interval(pause),
        )
        .execute(&mut *transaction)
        .await?;
    }
    let saved = match open_incident(&mut transaction, claim).await? {
        None => {
            release(&mut transaction, claim).await?;
            SavedCheck::Late
        }
        Some(incident) => {
            let step = Step {
                claim,
                lookup,
                check: &check,
                incident: &incident,
            };
            step.schedule_next(&mut transaction, chance).await?;
            step.conclude(&mut transaction).await?;
            SavedCheck::Concluded
        }
    };
    transaction.commit().await?;
    Ok(saved)
}

/// The open incident of a claim, with the state of the claim's number.
struct OpenIncident {
    last_failure_at: OffsetDateTime,
    /// Whether it was over when it was first seen: it waits only for its first answers.
    is_over: bool,
    cause: LockoutCause,
    severity: Option<CanSend>,
    clear_since: Option<OffsetDateTime>,
}

/// Returns the claim's incident; `None` if it was resolved in the meantime, or if another process
/// has the claim.
async fn open_incident(
    db: &mut PgConnection,
    claim: &Claim,
) -> Result<Option<OpenIncident>, StoreError> {
    let row = sqlx::query!(
        r#"select i.last_failure_at, i.ended_at is not null as "is_over!",
                  i.cause as "cause: Word<LockoutCause>", i.cause_severity, n.clear_since
             from affected_numbers n
             join incidents i on i.id = n.incident_id and i.waba_id = n.waba_id
            where n.incident_id = $1 and n.waba_id = $2 and n.phone_number_id = $3
              and n.check_attempt = $4 and i.resolved_at is null"#,
        claim.incident_id,
        claim.waba_id.as_str(),
        claim.phone_number_id.as_str(),
        claim.attempt,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| OpenIncident {
        last_failure_at: row.last_failure_at,
        is_over: row.is_over,
        // A cause of a later version counts as found, so that it is kept and not overwritten.
        cause: row.cause.known().unwrap_or(LockoutCause::OtherRestriction),
        severity: row.cause_severity.map(CanSend::from),
        clear_since: row.clear_since,
    }))
}

/// One look-up of a number in an open incident.
struct Step<'s> {
    claim: &'s Claim,
    lookup: &'s LookupResult,
    check: &'s InsertedCheck,
    incident: &'s OpenIncident,
}

impl Step<'_> {
    /// Returns whether Meta answered the question. A refusal is an answer.
    fn is_answered(&self) -> bool {
        let answer = &self.lookup.answer;
        !matches!(answer, Answer::Throttled { .. } | Answer::Unreachable(_))
    }

    /// Returns the time since which the number has been clear of the recorded cause, this look-up
    /// included.
    fn clear_since(&self) -> Option<OffsetDateTime> {
        let incident = self.incident;
        if !self.is_answered() {
            return incident.clear_since;
        }
        let severity = incident.severity.as_ref();
        let is_clear = incident.cause.is_found()
            && self
                .lookup
                .answer
                .entities()
                .is_some_and(|entities| cause::is_clear(entities, incident.cause, severity));
        extend_clear_run(
            incident.clear_since,
            is_clear,
            self.check.checked_at,
            incident.last_failure_at,
        )
    }

    /// Returns whether this look-up shows that the account is still locked.
    fn shows_block(&self) -> bool {
        let entities = self.lookup.answer.entities();
        entities.and_then(verdict) == Some(&CanSend::Blocked)
    }

    /// Schedules the number's next check, and makes this one its evidence if Meta answered.
    async fn schedule_next(&self, db: &mut PgConnection, chance: f64) -> Result<(), StoreError> {
        let Self {
            claim,
            lookup,
            check,
            ..
        } = self;
        let clear_since = self.clear_since();
        let before = Progress {
            answers: claim.answers,
            failures: claim.failures,
        };
        let progress = before.after(&lookup.answer);
        let is_confirming = clear_since == Some(check.checked_at);
        let pause = schedule::next_pause(&lookup.answer, progress, is_confirming, chance);
        sqlx::query!(
            "update affected_numbers
                set check_due_at = now() + $5, check_lease_until = null, check_started_at = null,
                    check_answers = $6, check_failures = $7, clear_since = $8,
                    latest_check_id  = case when $9 then $10 else latest_check_id end,
                    latest_answer_at = case when $9 then $11 else latest_answer_at end
              where incident_id = $1 and waba_id = $2 and phone_number_id = $3
                and check_attempt = $4",
            claim.incident_id,
            claim.waba_id.as_str(),
            claim.phone_number_id.as_str(),
            claim.attempt,
            interval(pause),
            progress.answers,
            progress.failures,
            clear_since,
            self.is_answered(),
            check.id,
            check.checked_at,
        )
        .execute(db)
        .await?;
        Ok(())
    }

    /// Derives the cause from the evidence of every number, and resolves the incident if it is
    /// over.
    async fn conclude(&self, db: &mut PgConnection) -> Result<(), StoreError> {
        if !self.is_answered() {
            return Ok(());
        }
        let Self {
            claim, incident, ..
        } = self;
        let NumberStates {
            evidence,
            runs,
            are_all_answered,
        } = number_states(db, claim).await?;
        let severity = incident.severity.as_ref();
        let derived = cause::derive(&evidence)
            .filter(|cause| cause::supersedes(cause, incident.cause, severity));
        if let Some(cause) = derived {
            incident_life::set_cause(db, claim, &cause, incident.cause).await?;
        }
        if self.shows_block() {
            let at = self.check.checked_at;
            incident_life::note_evidence(db, claim, at).await?;
        }
        let end = if incident.is_over && are_all_answered {
            End::QUIET
        } else if incident.cause.is_found() && is_recovered(&runs, incident.last_failure_at) {
            End {
                resolution: Resolution::Recovered,
                at: runs.iter().flatten().map(|run| run.since).max(),
                note: None,
            }
        } else {
            return Ok(());
        };
        incident_life::resolve(db, claim.incident_id, &claim.waba_id, end).await?;
        Ok(())
    }
}

/// The states of the numbers of an incident.
struct NumberStates {
    evidence: Vec<Evidence>,
    /// The run of clear checks of each number; `None` if its last check was not clear.
    runs: Vec<Option<ClearRun>>,
    are_all_answered: bool,
}

/// Reads the states of the numbers of the claim's incident.
async fn number_states(db: &mut PgConnection, claim: &Claim) -> Result<NumberStates, StoreError> {
    let numbers = sqlx::query!(
        r#"select n.latest_answer_at, n.clear_since, n.check_answers, c.id as "check_id?", c.error,
                  c.entities as "entities: Json<Vec<Entity>>"
             from affected_numbers n
             left join health_checks c on c.id = n.latest_check_id and c.waba_id = n.waba_id
            where n.incident_id = $1 and n.waba_id = $2"#,
        claim.incident_id,
        claim.waba_id.as_str(),
    )
    .fetch_all(db)
    .await?;
    let are_all_answered = numbers.iter().all(|number| number.check_answers > 0);
    let mut evidence = Vec::new();
    let mut runs = Vec::new();
    for number in numbers {
        let run = number.clear_since.zip(number.latest_answer_at);
        runs.push(run.map(|(since, until)| ClearRun { since, until }));
        if let Some(check_id) = number.check_id {
            let finding = match number.entities {
                Some(Json(entities)) => Finding::Health(entities),
                None => Finding::Denied(number.error.unwrap_or_default()),
            };
            evidence.push(Evidence { check_id, finding });
        }
    }
    Ok(NumberStates {
        evidence,
        runs,
        are_all_answered,
    })
}
