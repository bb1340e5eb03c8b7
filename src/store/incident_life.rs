//! The life of an incident: opens it, sets its cause, ends and reopens it.
//!
//! Nothing else writes these columns. Each function expects that the caller has locked the account,
//! and records a [`Change`] in the same transaction.

use std::collections::BTreeMap;

use sqlx::{PgConnection, PgPool};
use time::{Duration, OffsetDateTime};

use super::claims::Claim;
use super::{StoreError, Word, changes, history, interval};
use crate::lockout::cause::{Cause, Confidence, LockoutCause, Scope};
use crate::lockout::change::{Change, ChangeKind};
use crate::lockout::codes::Kind;
use crate::lockout::incident::{QUIET_WINDOW, Resolution};
use crate::lockout::person::Person;
use crate::meta::graph_error::Denial;
use crate::meta::ids::WabaId;

/// The longest time that an incident that was over when it was first seen waits for Meta's answer.
const FIRST_ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// The evidence that opened an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenedBy {
    /// A failed message.
    Failure,
    /// An error of the account itself.
    Error,
    /// A ban that Meta announced.
    Event,
}

impl OpenedBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Error => "error",
            Self::Event => "event",
        }
    }
}

/// An incident to open.
#[derive(Debug, Clone)]
pub(super) struct NewIncident {
    pub(super) waba_id: WabaId,
    pub(super) kind: Kind,
    pub(super) opened_at: OffsetDateTime,
    pub(super) last_evidence_at: OffsetDateTime,
    /// The end of an incident that is over already. It is looked up once before it is resolved.
    pub(super) ended_at: Option<OffsetDateTime>,
    pub(super) opened_by: OpenedBy,
}

/// Opens incidents, and returns their ids in the same order. Each is linked to the account's
/// incident before it, and the one after it to this one.
pub(super) async fn open(
    db: &mut PgConnection,
    incidents: &[NewIncident],
) -> Result<Vec<i64>, StoreError> {
    let waba_ids: Vec<&str> = incidents.iter().map(|i| i.waba_id.as_str()).collect();
    let kinds: Vec<&str> = incidents.iter().map(|i| i.kind.as_str()).collect();
    let opened_at: Vec<OffsetDateTime> = incidents.iter().map(|i| i.opened_at).collect();
    sqlx::query!(
        "insert into accounts (waba_id)
         select distinct unnest($1::text[]) order by 1 on conflict do nothing",
        &waba_ids as &[&str],
    )
    .execute(&mut *db)
    .await?;
    let rows = sqlx::query!(
        r#"insert into incidents (waba_id, kind, opened_at, last_failure_at, last_evidence_at,
                                  ended_at, opened_by)
           select i.waba_id, i.kind, i.opened_at, i.last, i.last, i.ended_at, i.opened_by
             from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[],
                         $5::text[], $6::text[])
                  as i(waba_id, opened_at, last, ended_at, opened_by, kind)
           returning id, waba_id as "waba_id: WabaId", kind as "kind: Word<Kind>", opened_at"#,
        &waba_ids as &[&str],
        &opened_at,
        &incidents
            .iter()
            .map(|i| i.last_evidence_at)
            .collect::<Vec<_>>(),
        &incidents.iter().map(|i| i.ended_at).collect::<Vec<_>>() as &[Option<OffsetDateTime>],
        &incidents
            .iter()
            .map(|i| i.opened_by.as_str())
            .collect::<Vec<_>>() as &[&str],
        &kinds as &[&str],
    )
    .fetch_all(&mut *db)
    .await?;
    link(&mut *db, &waba_ids, &kinds, &opened_at).await?;
    let opened: Vec<Change> = rows
        .iter()
        .map(|row| Change {
            incident_id: row.id,
            waba_id: row.waba_id.clone(),
            kind: ChangeKind::Opened,
            by: None,
        })
        .collect();
    changes::record(db, &opened).await?;
    // Two incidents of an account and kind start at different times.
    let ids: BTreeMap<_, i64> = rows
        .iter()
        .map(|row| ((&row.waba_id, row.kind.known(), row.opened_at), row.id))
        .collect();
    let id_of = |incident: &NewIncident| {
        let key = (&incident.waba_id, Some(incident.kind), incident.opened_at);
        ids.get(&key).copied()
    };
    Ok(incidents.iter().filter_map(id_of).collect())
}

/// Links the incidents of these accounts and kinds, from these openings on, to those before them.
pub(super) async fn link(
    db: &mut PgConnection,
    waba_ids: &[&str],
    kinds: &[&str],
    opened_at: &[OffsetDateTime],
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents i
            set previous_incident_id = (select p.id from incidents p
                                         where p.waba_id = i.waba_id and p.kind = i.kind
                                           and p.opened_at < i.opened_at
                                         order by p.opened_at desc
                                         limit 1)
           from (select waba_id, kind, min(opened_at) as since
                   from unnest($1::text[], $2::timestamptz[], $3::text[])
                        as n(waba_id, opened_at, kind)
                  group by waba_id, kind) n
          where i.waba_id = n.waba_id and i.kind = n.kind and i.opened_at >= n.since",
        waba_ids as &[&str],
        opened_at,
        kinds as &[&str],
    )
    .execute(db)
    .await?;
    Ok(())
}

async fn record(
    db: &mut PgConnection,
    incident_id: i64,
    waba_id: &WabaId,
    kind: ChangeKind,
) -> Result<(), StoreError> {
    record_by(db, incident_id, waba_id, kind, None).await
}

async fn record_by(
    db: &mut PgConnection,
    incident_id: i64,
    waba_id: &WabaId,
    kind: ChangeKind,
    by: Option<&Person>,
) -> Result<(), StoreError> {
    let change = Change {
        incident_id,
        waba_id: waba_id.clone(),
        kind,
        by: by.cloned(),
    };
    changes::record(db, &[change]).await
}

/// Sets the cause of an incident. It is a change only if the `recorded` cause was another
/// one: the same cause may have got new evidence.
pub(super) async fn set_cause(
    db: &mut PgConnection,
    incident_id: i64,
    waba_id: &WabaId,
    cause: &Cause,
    recorded: LockoutCause,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set cause_recorded_at = case when cause = $3 then cause_recorded_at
                                         else clock_timestamp() end,
                cause = $3, cause_severity = $4, cause_summary = $5, cause_entity_type = $6,
                cause_entity_id = $7, cause_error_code = $8, possible_solution = $9,
                cause_check_id = $10, cause_confidence = $11, denial = $12, cause_scope = $13
          where id = $1 and waba_id = $2",
        incident_id,
        waba_id.as_str(),
        cause.kind.as_str(),
        cause.verdict,
        cause.summary,
        cause.entity_type,
        cause.entity_id,
        cause.error_code,
        cause.possible_solution,
        cause.check_id,
        cause.confidence.map(Confidence::as_str),
        cause.denial.map(Denial::as_str),
        cause.scope.map(Scope::as_str),
    )
    .execute(&mut *db)
    .await?;
    if cause.kind == recorded {
        return Ok(());
    }
    let kind = match recorded {
        LockoutCause::Pending => ChangeKind::CauseFound(cause.kind),
        _ => ChangeKind::CauseChanged(cause.kind),
    };
    record(db, incident_id, waba_id, kind).await
}

/// Notes that a check still showed the lock: seven days of silence begin anew. An incident that was
/// over when it was first seen stays so: the check is about now.
pub(super) async fn note_evidence(
    db: &mut PgConnection,
    claim: &Claim,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set last_evidence_at = greatest(last_evidence_at, $3)
          where id = $1 and waba_id = $2 and ended_at is null",
        claim.incident_id,
        claim.waba_id.as_str(),
        at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Notes an error of an account, or a ban: seven days of silence begin anew.
pub(super) async fn note_event(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    at: OffsetDateTime,
    opened_by: OpenedBy,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set opened_by        = case when $3 < opened_at then $4 else opened_by end,
                opened_at        = least(opened_at, $3),
                last_evidence_at = greatest(last_evidence_at, $3)
          where id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
        at,
        opened_by.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What ends an incident.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'e> {
    pub(super) resolution: Resolution,
    /// When it was over. `None` is now.
    pub(super) at: Option<OffsetDateTime>,
    pub(super) hand: Hand<'e>,
}

/// The person who ends it, if one does, and the reason.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hand<'h> {
    pub(super) by: Option<&'h Person>,
    pub(super) note: Option<&'h str>,
}

/// Resolves an incident. One that was over before, by silence or by Meta's word, ends by that,
/// whatever is noticed now. Returns the resolution, or `None` if it was resolved before.
pub(super) async fn resolve(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    end: End<'_>,
) -> Result<Option<Resolution>, StoreError> {
    let Some(incident) = Unresolved::find(db, id, waba_id).await? else {
        return Ok(None);
    };
    let at = end.at.unwrap_or(incident.now);
    let over = incident.over_by_rule(db, waba_id, at).await?;
    let (at, resolution) = over.unwrap_or_else(|| {
        let after_evidence = incident.last_evidence_at + Duration::MICROSECOND;
        (at.max(after_evidence), end.resolution)
    });
    finish(db, id, waba_id, (at, resolution), end.hand).await?;
    Ok(Some(resolution))
}

/// Resolves an incident if it is over by the rule at this time. Returns whether it is.
pub(super) async fn resolve_if_over(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let Some(incident) = Unresolved::find(db, id, waba_id).await? else {
        return Ok(false);
    };
    let over = incident.over_by_rule(db, waba_id, now).await?;
    if let Some(end) = over {
        finish(db, id, waba_id, end, Hand::default()).await?;
    }
    Ok(over.is_some())
}

/// An incident that is not resolved.
struct Unresolved {
    id: i64,
    kind: Word<Kind>,
    opened_at: OffsetDateTime,
    last_evidence_at: OffsetDateTime,
    now: OffsetDateTime,
}

impl Unresolved {
    async fn find(
        db: &mut PgConnection,
        id: i64,
        waba_id: &WabaId,
    ) -> Result<Option<Self>, StoreError> {
        let incident = sqlx::query_as!(
            Self,
            r#"select id, kind as "kind: _", opened_at, last_evidence_at, now() as "now!"
                 from incidents
                where id = $1 and waba_id = $2 and resolved_at is null"#,
            id,
            waba_id.as_str(),
        );
        Ok(incident.fetch_optional(db).await?)
    }

    /// Returns when and how it has ended by the rule: by silence or by Meta's word.
    async fn over_by_rule(
        &self,
        db: &mut PgConnection,
        waba_id: &WabaId,
        now: OffsetDateTime,
    ) -> Result<Option<(OffsetDateTime, Resolution)>, StoreError> {
        let Some(kind) = self.kind.known() else {
            return Ok(None);
        };
        let account = history::load_account(db, (waba_id, kind), self.opened_at).await?;
        let Some(position) = account.position(self.id) else {
            return Ok(None);
        };
        let history = &account.history;
        Ok((!history.is_open(position, now)).then(|| history.ending(position)))
    }
}

async fn finish(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    (at, resolution): (OffsetDateTime, Resolution),
    Hand { by, note }: Hand<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set ended_at = $3, resolved_at = clock_timestamp(), resolution = $4,
                resolution_note = $5
          where id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
        at,
        resolution.as_str(),
        note,
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "update affected_numbers
            set check_due_at = null
          where incident_id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
    )
    .execute(&mut *db)
    .await?;
    record_by(db, id, waba_id, ChangeKind::Resolved(resolution), by).await
}

/// Ends an incident at this time, as the rule has it. It is resolved at once, unless it is new and
/// still waits for the first answer of one of its numbers.
pub(super) async fn end(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    end: (OffsetDateTime, Resolution),
) -> Result<(), StoreError> {
    let waits = sqlx::query_scalar!(
        r#"update incidents
              set ended_at = $3
            where id = $1 and waba_id = $2 and created_at + $4 > now()
              and exists (select from affected_numbers
                           where incident_id = $1 and waba_id = $2 and check_answers = 0)
           returning true as "waits!""#,
        id,
        waba_id.as_str(),
        end.0,
        interval(FIRST_ANSWER_TIMEOUT),
    )
    .fetch_optional(&mut *db)
    .await?;
    match waits {
        Some(_) => Ok(()),
        None => finish(db, id, waba_id, end, Hand::default()).await,
    }
}

/// Opens an incident again that evidence shows to go on, and makes its numbers due for a look-up.
pub(super) async fn reopen(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    by: Option<&Person>,
) -> Result<(), StoreError> {
    let before = sqlx::query!(
        r#"with old as (select id, resolved_at from incidents where id = $1 and waba_id = $2)
           update incidents i
              set ended_at = null, resolved_at = null, resolution = null,
                  resolution_note = null, acknowledged_at = null, acknowledged_by = null
             from old
            where i.id = old.id and i.waba_id = $2
           returning old.resolved_at is not null as "was_resolved!""#,
        id,
        waba_id.as_str(),
    )
    .fetch_one(&mut *db)
    .await?;
    if !before.was_resolved {
        return Ok(());
    }
    sqlx::query!(
        "update affected_numbers
            set check_due_at = now(), clear_since = null, sent_at = null
          where incident_id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
    )
    .execute(&mut *db)
    .await?;
    record_by(db, id, waba_id, ChangeKind::Reopened, by).await
}

/// Moves the end of an incident, as the rule has it.
pub(super) async fn move_end(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    (ended_at, resolution): (OffsetDateTime, Resolution),
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set ended_at = $3, resolution = case when resolved_at is not null then $4 end
          where id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
        ended_at,
        resolution.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Lets the seven days of silence of an incident start anew.
pub(super) async fn start_silence_anew(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set reopened_at = now(), last_evidence_at = greatest(last_evidence_at, now())
          where id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Whether something could be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// It is done.
    Done,
    /// It was done before.
    DoneBefore,
    /// The incident is over.
    TooLate,
}

/// Notes that a person has seen an open incident.
pub(super) async fn acknowledge(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    by: Option<&Person>,
) -> Result<Deed, StoreError> {
    let before = sqlx::query!(
        r#"select resolved_at is not null as "is_over!",
                  acknowledged_at is not null as "is_acknowledged!"
             from incidents
            where id = $1 and waba_id = $2"#,
        id,
        waba_id.as_str(),
    )
    .fetch_one(&mut *db)
    .await?;
    if before.is_over {
        return Ok(Deed::TooLate);
    }
    if before.is_acknowledged {
        return Ok(Deed::DoneBefore);
    }
    sqlx::query!(
        "update incidents
            set acknowledged_at = clock_timestamp(), acknowledged_by = $3
          where id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
        by.map(Person::as_str),
    )
    .execute(&mut *db)
    .await?;
    record_by(db, id, waba_id, ChangeKind::Acknowledged, by).await?;
    Ok(Deed::Done)
}

/// Resolves some incidents that are over by seven days of silence. An account that another
/// transaction has locked is left for the next time. Returns whether there were any.
///
/// # Errors
/// Nothing is changed.
pub async fn resolve_quiet(db: &PgPool) -> Result<bool, StoreError> {
    let mut transaction = db.begin().await?;
    // What a ban holds open is read in vain, and must not be in the way of the others.
    let candidates = sqlx::query!(
        r#"select id, waba_id as "waba_id: WabaId", now() as "now!"
             from (select id, waba_id
                     from incidents
                    where resolved_at is null
                      and (last_evidence_at + $1 <= now() and ended_at is null and failure_count > 0
                           or created_at + $2 <= now() and ended_at is not null)
                    order by random()
                    limit 100) candidates
            where pg_try_advisory_xact_lock(hashtextextended(waba_id, 131031))"#,
        interval(QUIET_WINDOW),
        interval(FIRST_ANSWER_TIMEOUT),
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut is_any_over = false;
    for row in candidates {
        // Read again behind the lock: a failure may have come in between.
        is_any_over |= resolve_if_over(&mut transaction, row.id, &row.waba_id, row.now).await?;
    }
    transaction.commit().await?;
    Ok(is_any_over)
}
