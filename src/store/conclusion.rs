//! The conclusions from a look-up: the incident's cause, the time of the next check, and its end.

use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::checks::{self, InsertedCheck};
use super::claims::{Claim, release};
use super::incident_life::{End, Hand};
use super::sending::ProvableIncident;
use super::{
    StoreError, Word, accounts, events, history, incident_life, interval, limits, lock_account,
};
use crate::lockout::cause::{
    self, Cause, Finding, LockoutCause, Meaning, Notice, NumberEvidence, NumberFindings, Scope,
    explain_nothing, findings_of, findings_of_notices, notice_times,
};
use crate::lockout::codes::{Kind, finding_of_code};
use crate::lockout::incident::{ClearRun, Resolution, extend_clear_run, is_recovered};
use crate::lockout::schedule::{self, Progress};
use crate::lockout::sending;
use crate::meta::health::{Answer, LookupResult};
use crate::meta::ids::WabaId;

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
/// The check is always stored. While the claim holds and the incident is open, the cause is chosen
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
    accounts::note_fields(&mut transaction, &claim.waba_id, lookup).await?;
    let progress = claim.progress().after(&lookup.answer);
    let saved = match open_incident(&mut transaction, claim).await? {
        None => {
            release(&mut transaction, claim).await?;
            SavedCheck::Late
        }
        Some(incident) => {
            let number = claim.phone_number_id.as_str();
            let about = About {
                id: claim.incident_id,
                waba_id: &claim.waba_id,
                kind: incident.kind,
                opened_at: incident.opened_at,
                ended_at: incident.ended_at,
            };
            let notices = about.notices(&mut transaction).await?;
            let step = Step {
                about,
                notices,
                claim,
                lookup,
                check: &check,
                findings: findings_of(&lookup.answer, &lookup.fields, &claim.waba_id, number),
                progress,
                incident: &incident,
                chance,
            };
            step.schedule_next(&mut transaction).await?;
            step.conclude(&mut transaction).await?;
            SavedCheck::Concluded
        }
    };
    limits::note_answer(&mut transaction, claim, lookup, chance).await?;
    transaction.commit().await?;
    Ok(saved)
}

/// Chooses the causes of an account's incidents again that are not over by this time, after a
/// notice of Meta's or a code that names a reason. A look-up is due when an end that Meta announced
/// has come. Returns whether there is one.
pub(super) async fn choose_again(
    db: &mut PgConnection,
    waba_id: &WabaId,
    since: OffsetDateTime,
) -> Result<bool, StoreError> {
    let incidents = sqlx::query!(
        r#"select id, kind as "kind: Word<Kind>", opened_at, ended_at, now() as "now!",
                  cause as "cause: Word<LockoutCause>"
             from incidents
            where waba_id = $1 and (resolved_at is null or ended_at > $2)"#,
        waba_id.as_str(),
        since,
    )
    .fetch_all(&mut *db)
    .await?;
    for incident in &incidents {
        let recorded = known_cause(&incident.cause);
        let about = About {
            id: incident.id,
            waba_id,
            kind: known_kind(&incident.kind),
            opened_at: incident.opened_at,
            ended_at: incident.ended_at,
        };
        let notices = about.notices(db).await?;
        let numbers = about.numbers(db).await?;
        if let Some(chosen) = about.choose(&numbers, &notices) {
            incident_life::set_cause(db, incident.id, waba_id, &chosen, recorded).await?;
        }
        if let Some(end) = next_announced_end(&notices, incident.now) {
            sqlx::query!(
                "update affected_numbers
                    set check_due_at = least(check_due_at, $3)
                  where incident_id = $1 and waba_id = $2 and check_due_at is not null",
                incident.id,
                waba_id.as_str(),
                end,
            )
            .execute(&mut *db)
            .await?;
        }
    }
    Ok(!incidents.is_empty())
}

/// The incident that a cause is chosen for. It lasts from its opening until its end.
struct About<'a> {
    id: i64,
    waba_id: &'a WabaId,
    kind: Kind,
    opened_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
}

impl About<'_> {
    /// Reads Meta's notices. What was in force before a message proved that the account can send,
    /// explains nothing any more.
    async fn notices(&self, db: &mut PgConnection) -> Result<Vec<Notice>, StoreError> {
        if self.kind != Kind::Lock {
            return Ok(vec![]);
        }
        let mut notices = events::notices(db, self.waba_id, self.opened_at).await?;
        if !notices.is_empty() {
            let ends = history::proven_ends(db, self.waba_id).await?;
            let proven_end = ends.into_iter().filter(|end| *end <= self.opened_at).max();
            notices.retain(|notice| {
                let is_outdated = proven_end.is_some_and(|end| notice.occurred_at < end);
                !is_outdated || !matches!(notice.meaning(), Meaning::Locks(_))
            });
        }
        Ok(notices)
    }

    /// Reads its numbers. The codes of incidents of another kind at the same time can explain a
    /// lock, too.
    async fn numbers(&self, db: &mut PgConnection) -> Result<Vec<NumberState>, StoreError> {
        let mut numbers = NumberState::all(db, self.id, self.waba_id).await?;
        if self.kind != Kind::Lock {
            return Ok(numbers);
        }
        let others = sqlx::query!(
            "select n.phone_number_id, n.error_codes
               from incidents i
               join affected_numbers n on n.incident_id = i.id and n.waba_id = i.waba_id
              where i.waba_id = $1 and i.id <> $2 and i.kind <> 'lock'
                and i.opened_at < coalesce($4::timestamptz, 'infinity')
                and coalesce(i.ended_at, 'infinity') > $3",
            self.waba_id.as_str(),
            self.id,
            self.opened_at,
            self.ended_at,
        )
        .fetch_all(db)
        .await?;
        for other in others {
            let is_of_account = |code: &i32| {
                finding_of_code(*code).is_some_and(|finding| finding.scope == Scope::Account)
            };
            for number in &mut numbers {
                let is_same = number.phone_number_id.as_str() == other.phone_number_id;
                let codes = other.error_codes.iter();
                number
                    .error_codes
                    .extend(codes.filter(|code| is_same || is_of_account(code)));
            }
        }
        Ok(numbers)
    }

    /// Chooses the cause from the numbers, and from the notices.
    fn choose(&self, numbers: &[NumberState], notices: &[Notice]) -> Option<Cause> {
        let notices = findings_of_notices(notices, self.opened_at, self.ended_at);
        let evidence: Vec<_> = numbers.iter().map(NumberState::evidence).collect();
        cause::choose(self.kind, &evidence, &notices)
    }
}

/// Returns the open incidents of an account for which a sent message can prove the end.
pub(super) async fn open_with_proofs(
    db: &mut PgConnection,
    waba_id: &WabaId,
) -> Result<Vec<ProvableIncident>, StoreError> {
    let incidents = sqlx::query!(
        r#"select id, kind as "kind: Word<Kind>", opened_at,
                  greatest(last_failure_at, reopened_at,
                           (select max(occurred_at) from account_events
                             where waba_id = i.waba_id and evidence_of = i.kind
                               and occurred_at >= i.opened_at)) as "last_failure_at!",
                  failure_count > 0 as "has_failures!"
             from incidents i
            where waba_id = $1 and ended_at is null"#,
        waba_id.as_str(),
    )
    .fetch_all(&mut *db)
    .await?;
    let mut provable = Vec::new();
    for incident in incidents {
        let about = About {
            id: incident.id,
            waba_id,
            kind: known_kind(&incident.kind),
            opened_at: incident.opened_at,
            ended_at: None,
        };
        let notices = about.notices(db).await?;
        let numbers = about.numbers(db).await?;
        let cause = about.choose(&numbers, &notices);
        let is_limited = |number: &NumberState| number.findings.is_limited();
        let is_limited = numbers.iter().any(is_limited);
        if let Some(proof) = sending::proof(about.kind, cause.as_ref(), is_limited) {
            provable.push(ProvableIncident {
                id: incident.id,
                last_failure_at: incident.last_failure_at,
                has_failures: incident.has_failures,
                proof,
            });
        }
    }
    Ok(provable)
}

/// Returns the next end that Meta has announced.
fn next_announced_end(notices: &[Notice], now: OffsetDateTime) -> Option<OffsetDateTime> {
    let ends = notice_times(notices, &[]).ends.into_iter();
    let announced = ends.filter(|(_, resolution)| *resolution == Resolution::Expired);
    announced.map(|(at, _)| at).filter(|at| *at > now).min()
}

/// A kind of a later version counts as a lock.
fn known_kind(kind: &Word<Kind>) -> Kind {
    kind.known().unwrap_or(Kind::Lock)
}

/// A cause of a later version counts as found.
fn known_cause(cause: &Word<LockoutCause>) -> LockoutCause {
    cause.known().unwrap_or(LockoutCause::OtherRestriction)
}

/// The open incident of a claim, with the state of the claim's number.
struct OpenIncident {
    kind: Kind,
    opened_at: OffsetDateTime,
    /// The time of the last failure, error of the account, or ban.
    last_failure_at: OffsetDateTime,
    /// The end of one that was over when it was first seen: it waits only for its first answers.
    ended_at: Option<OffsetDateTime>,
    cause: LockoutCause,
    findings: NumberFindings,
    clear_since: Option<OffsetDateTime>,
}

/// Returns the claim's incident; `None` if it was resolved in the meantime, or if another process
/// has the claim.
async fn open_incident(
    db: &mut PgConnection,
    claim: &Claim,
) -> Result<Option<OpenIncident>, StoreError> {
    let row = sqlx::query!(
        r#"select greatest(i.last_failure_at, (select max(occurred_at) from account_events
                                                where waba_id = i.waba_id and evidence_of = i.kind
                                                  and occurred_at >= i.opened_at))
                    as "last_failure_at!",
                  i.kind as "kind: Word<Kind>", i.opened_at, i.ended_at,
                  i.cause as "cause: Word<LockoutCause>", n.clear_since,
                  n.findings as "findings: Json<NumberFindings>"
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
        kind: known_kind(&row.kind),
        last_failure_at: row.last_failure_at,
        opened_at: row.opened_at,
        ended_at: row.ended_at,
        cause: known_cause(&row.cause),
        findings: row
            .findings
            .map(|Json(findings)| findings)
            .unwrap_or_default(),
        clear_since: row.clear_since,
    }))
}

/// One look-up of a number in an open incident.
struct Step<'s> {
    about: About<'s>,
    notices: Vec<Notice>,
    claim: &'s Claim,
    lookup: &'s LookupResult,
    check: &'s InsertedCheck,
    findings: Vec<Finding>,
    /// The progress with this look-up.
    progress: Progress,
    incident: &'s OpenIncident,
    chance: f64,
}

impl Step<'_> {
    /// Returns whether Meta answered the question. A refusal is an answer; one that nobody has told
    /// us may pass, and is an answer when it lasts.
    fn is_answered(&self) -> bool {
        match &self.lookup.answer {
            Answer::Throttled { .. } | Answer::Unreachable(_) => false,
            Answer::Unexplained(_) => self.progress.is_lasting_fault(),
            _ => true,
        }
    }

    /// Returns the time since which the number has been clear of everything that explains a lock,
    /// this look-up included.
    fn clear_since(&self) -> Option<OffsetDateTime> {
        let Self {
            lookup,
            check,
            incident,
            ..
        } = self;
        if !self.is_answered() {
            return incident.clear_since;
        }
        let is_clear = incident.cause.is_found()
            && cause::is_clear(
                &lookup.answer,
                &self.findings,
                &lookup.fields,
                &incident.findings,
                &self.claim.waba_id,
            );
        extend_clear_run(
            incident.clear_since,
            is_clear,
            check.checked_at,
            incident.last_failure_at,
        )
    }

    /// Returns what the checks of the number have shown, this look-up included.
    fn all_findings(&self) -> NumberFindings {
        let mut findings = self.incident.findings.clone();
        if self.is_answered() {
            let Self { lookup, check, .. } = self;
            let new = self.findings.clone();
            findings.add(check.id, &lookup.answer, &lookup.fields, new);
        }
        findings
    }

    /// Schedules the number's next check, and records what this one has shown.
    async fn schedule_next(&self, db: &mut PgConnection) -> Result<(), StoreError> {
        let Self {
            claim,
            lookup,
            check,
            progress,
            ..
        } = self;
        let clear_since = self.clear_since();
        let is_confirming = clear_since == Some(check.checked_at);
        let pause = schedule::next_pause(&lookup.answer, *progress, is_confirming, self.chance);
        let findings = self.all_findings();
        let announced_end = next_announced_end(&self.notices, check.checked_at);
        sqlx::query!(
            "update affected_numbers
                set check_due_at = least(now() + $5, $15), check_lease_until = null,
                    check_started_at = null,
                    check_answers = $6, check_failures = $7, clear_since = $8, findings = $12,
                    latest_check_id  = case when $9 then $10 else latest_check_id end,
                    latest_answer_at = case when $9 then $11 else latest_answer_at end,
                    fields_read_at   = case when $14 then null when $13 then now()
                                            else fields_read_at end
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
            Json(&findings) as _,
            lookup.tried_fields.0,
            findings.field_explained,
            announced_end,
        )
        .execute(db)
        .await?;
        Ok(())
    }

    /// Chooses the cause from the findings of every number, and resolves the incident if it is
    /// over.
    async fn conclude(&self, db: &mut PgConnection) -> Result<(), StoreError> {
        let Self {
            claim, incident, ..
        } = self;
        let (id, waba_id) = (claim.incident_id, &claim.waba_id);
        let numbers = self.about.numbers(db).await?;
        let chosen = self.about.choose(&numbers, &self.notices);
        if let Some(chosen) = &chosen {
            incident_life::set_cause(db, id, waba_id, chosen, incident.cause).await?;
        }
        if !self.is_answered() {
            return Ok(());
        }
        if !explain_nothing(&self.findings) {
            let at = self.check.checked_at;
            incident_life::note_evidence(db, claim, at).await?;
        }
        // Checks tell when it is over only if they have shown a cause: they do not lift a notice.
        let is_explained = chosen.is_some_and(|cause| cause.kind.is_found());
        let mut findings = numbers.iter().map(|number| &number.findings);
        let was_shown = findings.any(NumberFindings::has_shown_a_cause);
        let runs: Vec<_> = numbers.iter().map(|number| number.clear_run).collect();
        if incident.ended_at.is_some() && !numbers.iter().all(|number| number.is_answered) {
            return Ok(());
        }
        // An end that Meta announced has come, or it was over when it was first seen.
        let checked_at = self.check.checked_at;
        if incident_life::resolve_if_over(db, id, waba_id, checked_at).await? {
            return Ok(());
        }
        if is_explained && was_shown && is_recovered(&runs, incident.last_failure_at) {
            let end = End {
                resolution: Resolution::Recovered,
                at: runs.iter().flatten().map(|run| run.since).max(),
                hand: Hand::default(),
            };
            incident_life::resolve(db, id, waba_id, end).await?;
        }
        Ok(())
    }
}

/// The state of a number of an incident.
struct NumberState {
    phone_number_id: String,
    failure_count: i64,
    error_codes: Vec<i32>,
    findings: NumberFindings,
    is_given_up: bool,
    is_answered: bool,
    /// Its run of clear checks; `None` if the last one was not clear.
    clear_run: Option<ClearRun>,
}

impl NumberState {
    /// Reads the states of all numbers of an incident.
    async fn all(
        db: &mut PgConnection,
        incident_id: i64,
        waba_id: &WabaId,
    ) -> Result<Vec<Self>, StoreError> {
        let numbers = sqlx::query!(
            r#"select phone_number_id, failure_count, error_codes, latest_answer_at, clear_since,
                      check_answers, check_failures,
                      findings as "findings: Json<NumberFindings>"
                 from affected_numbers
                where incident_id = $1 and waba_id = $2
                order by phone_number_id"#,
            incident_id,
            waba_id.as_str(),
        )
        .fetch_all(db)
        .await?;
        let states = numbers.into_iter().map(|number| {
            let progress = Progress {
                answers: number.check_answers,
                failures: number.check_failures,
            };
            let run = number.clear_since.zip(number.latest_answer_at);
            Self {
                phone_number_id: number.phone_number_id,
                failure_count: number.failure_count,
                error_codes: number.error_codes,
                findings: number
                    .findings
                    .map(|Json(findings)| findings)
                    .unwrap_or_default(),
                is_given_up: progress.is_lasting_fault(),
                is_answered: progress.answers > 0,
                clear_run: run.map(|(since, until)| ClearRun { since, until }),
            }
        });
        Ok(states.collect())
    }

    fn evidence(&self) -> NumberEvidence<'_> {
        NumberEvidence {
            failure_count: self.failure_count,
            error_codes: &self.error_codes,
            findings: &self.findings,
            is_given_up: self.is_given_up,
        }
    }
}
