//! Account events and errors of accounts: recorded once, as evidence and as notices.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{KeptCaptures, ReadCallback};
use crate::lockout::cause::{Meaning, is_ban, meaning};
use crate::lockout::codes::{Kind, finding_of_code};
use crate::meta::event::AccountEvent;
use crate::meta::ids::{PhoneNumberId, Text, WabaId};
use crate::meta::status::AccountError;
use crate::store::incident_life::OpenedBy;
use crate::store::{StoreError, incident_life, interval};

/// Meta repeats a callback for seven days. Later, or after the incident has ended otherwise than by
/// silence, the same error is another one.
const REPEAT_WINDOW: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 60 * 60);
/// The account of the samples that Meta's test button sends. They open and end nothing.
const TEST_ACCOUNT: &str = "0";

/// Evidence that is no message: an error of an account, or a ban.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'b> {
    /// The id of its event.
    pub(super) id: i64,
    waba_id: &'b WabaId,
    kind: Kind,
    at: OffsetDateTime,
    pub(super) opened_by: OpenedBy,
    /// The number that it names.
    error: Option<&'b AccountError>,
}

impl<'b> Evidence<'b> {
    /// Returns whether it is an error with a code that names a reason.
    pub(super) fn names_a_reason(&self) -> bool {
        let code = self.error.map(|error| error.error_code);
        code.and_then(finding_of_code).is_some()
    }

    /// Its account and kind, and its time.
    pub(super) fn time(&self) -> ((&'b WabaId, Kind), OffsetDateTime) {
        ((self.waba_id, self.kind), self.at)
    }
}

/// The events of a batch that were not recorded before.
#[derive(Debug, Default)]
pub(super) struct FreshEvents<'b> {
    pub(super) evidence: Vec<Evidence<'b>>,
    /// The accounts that a notice says something new about, with its earliest time.
    pub(super) noticed: BTreeMap<&'b WabaId, OffsetDateTime>,
}

/// Records the errors and events of these callbacks that are not recorded yet.
pub(super) async fn insert<'b>(
    db: &mut PgConnection,
    callbacks: &'b [ReadCallback],
    kept: KeptCaptures,
) -> Result<FreshEvents<'b>, StoreError> {
    let mut fresh = FreshEvents::default();
    for callback in callbacks {
        let capture_id = callback.kept_capture(kept);
        for error in &callback.intake.account_errors {
            let kind = Kind::of_code(error.error_code);
            let is_test = error.waba_id.as_str() == TEST_ACCOUNT;
            let evidence_of = (!is_test).then_some(kind);
            if let Some(id) = insert_error(db, error, evidence_of, capture_id).await?
                && !is_test
            {
                fresh.evidence.push(Evidence {
                    id,
                    waba_id: &error.waba_id,
                    kind,
                    at: error.occurred_at,
                    opened_by: OpenedBy::Error,
                    error: Some(error),
                });
            }
        }
        for event in &callback.intake.events {
            let received_at = callback.received_at;
            let is_quality = event.field.as_str() == "phone_number_quality_update";
            let state = event.state.as_ref().map(Text::as_str);
            let meaning = meaning(event.field.as_str(), event.event.as_str(), state);
            let is_test = event.waba_id.as_str() == TEST_ACCOUNT;
            let evidence_of =
                (!is_test && is_ban(event.event.as_str(), meaning)).then_some(Kind::Lock);
            let Some(id) = insert_event(db, event, evidence_of, received_at, capture_id).await?
            else {
                continue;
            };
            if is_quality {
                read_quality(db, &event.waba_id).await?;
            }
            if is_test || meaning == Meaning::Nothing {
                continue;
            }
            let at = fresh
                .noticed
                .entry(&event.waba_id)
                .or_insert(event.occurred_at);
            *at = event.occurred_at.min(*at);
            if let Some(kind) = evidence_of {
                fresh.evidence.push(Evidence {
                    id,
                    waba_id: &event.waba_id,
                    kind,
                    at: event.occurred_at,
                    opened_by: OpenedBy::Event,
                    error: None,
                });
            }
        }
    }
    Ok(fresh)
}

/// Adds evidence to its incidents, and its numbers.
pub(super) async fn note(
    db: &mut PgConnection,
    evidence: &[Evidence<'_>],
    incident_ids: &[i64],
    resolved: &[i64],
) -> Result<(), StoreError> {
    for (evidence, id) in evidence.iter().zip(incident_ids) {
        let Evidence { waba_id, at, .. } = *evidence;
        incident_life::note_event(db, *id, waba_id, at, evidence.opened_by).await?;
        add_number(db, evidence, *id, !resolved.contains(id)).await?;
    }
    Ok(())
}

/// Inserts an error, and returns the id of its row; `None` if it is there already.
async fn insert_error(
    db: &mut PgConnection,
    error: &AccountError,
    evidence_of: Option<Kind>,
    capture_id: Option<i64>,
) -> Result<Option<i64>, StoreError> {
    let id = sqlx::query_scalar!(
        "insert into account_events (waba_id, field, event, state, detail, occurred_at, received_at,
                                     digest, capture_id, evidence_of)
         select $1, 'messages', 'error', $2, $3, $4, $4, $5, $6, $8
          where not exists (select from account_events e
                             where waba_id = $1 and digest = $5
                               and not exists (select from incidents i
                                                where i.waba_id = $1 and i.resolution <> 'quiet'
                                                  and i.kind = $8
                                                  and i.ended_at > e.received_at
                                                  and i.ended_at <= $4)
                               and received_at between $4::timestamptz - $7::interval
                                                   and $4::timestamptz + $7::interval)
         returning id",
        error.waba_id.as_str(),
        error.error_code.to_string(),
        error.detail.as_str(),
        error.occurred_at,
        error.digest.as_slice(),
        capture_id,
        interval(REPEAT_WINDOW),
        evidence_of.map(Kind::as_str),
    );
    Ok(id.fetch_optional(db).await?)
}

/// Inserts an event, and returns the id of its row; `None` if it is there already.
async fn insert_event(
    db: &mut PgConnection,
    event: &AccountEvent,
    evidence_of: Option<Kind>,
    received_at: OffsetDateTime,
    capture_id: Option<i64>,
) -> Result<Option<i64>, StoreError> {
    let id = sqlx::query_scalar!(
        "insert into account_events (waba_id, field, event, state, detail, expires_at, occurred_at,
                                     received_at, digest, capture_id, evidence_of)
         select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11
          where not exists (select from account_events where waba_id = $1 and digest = $9)
         returning id",
        event.waba_id.as_str(),
        event.field.as_str(),
        event.event.as_str(),
        event.state.as_ref().map(Text::as_str),
        event.detail.as_ref().map(Text::as_str),
        event.expires_at,
        event.occurred_at,
        received_at,
        event.digest.as_slice(),
        capture_id,
        evidence_of.map(Kind::as_str),
    );
    Ok(id.fetch_optional(db).await?)
}

/// Has the quality of an account's numbers read, in its open incidents: it has changed.
async fn read_quality(db: &mut PgConnection, waba_id: &WabaId) -> Result<(), StoreError> {
    sqlx::query!(
        "update affected_numbers n
            set fields_read_at = null, check_due_at = least(n.check_due_at, now())
           from incidents i
          where i.id = n.incident_id and i.waba_id = n.waba_id and i.waba_id = $1
            and i.ended_at is null",
        waba_id.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Adds the number of an error to its incident, without a failure. Evidence without a number has
/// the account's own node looked up.
async fn add_number(
    db: &mut PgConnection,
    evidence: &Evidence<'_>,
    incident_id: i64,
    is_open: bool,
) -> Result<(), StoreError> {
    let waba_id = evidence.waba_id.as_str();
    let node = evidence
        .error
        .and_then(|error| error.phone_number_id.as_ref());
    let code = evidence.error.map(|error| error.error_code);
    let codes: Vec<i32> = code
        .filter(|code| finding_of_code(*code).is_some())
        .into_iter()
        .collect();
    let display = evidence
        .error
        .and_then(|error| error.display_phone_number.as_ref());
    sqlx::query!(
        "insert into affected_numbers (incident_id, waba_id, phone_number_id, display_phone_number,
                                       first_failure_at, last_failure_at, failure_count,
                                       check_due_at, error_codes)
         values ($1, $2, $3, $4, $5, $5, 0, case when $6 then now() end, $7)
             on conflict (incident_id, phone_number_id, waba_id) do update
            set error_codes = affected_numbers.error_codes || excluded.error_codes
          where not affected_numbers.error_codes @> excluded.error_codes",
        incident_id,
        waba_id,
        node.map_or(waba_id, PhoneNumberId::as_str),
        display.map(Text::as_str),
        evidence.at,
        is_open,
        &codes,
    )
    .execute(db)
    .await?;
    Ok(())
}
