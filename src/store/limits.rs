//! Whose look-ups rest: those that Meta throttles, and those that it refuses to a token.
//!
//! A refusal of the token is a fact about token and account: one number is tried again for all of
//! the account's, and when that is answered, the others are due.

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::claims::Claim;
use super::{StoreError, interval};
use crate::lockout::schedule::{self, DEFAULT_THROTTLE_INTERVAL, Progress};
use crate::meta::graph_error::{Denial, ThrottleScope};
use crate::meta::health::{Answer, Caller, LookupResult};
use crate::meta::ids::WabaId;

/// Returns until when Meta throttles this caller.
pub(super) async fn throttled_until(
    db: &mut PgConnection,
    caller: &Caller,
) -> Result<Option<OffsetDateTime>, StoreError> {
    let until = sqlx::query_scalar!(
        "select max(until)
           from graph_limits
          where until > now()
            and (scope = $1 and key = $2 or scope = $3 and key = $4)",
        ThrottleScope::App.as_str(),
        caller.app,
        ThrottleScope::User.as_str(),
        caller.token,
    );
    Ok(until.fetch_one(db).await?)
}

/// Notes what an answer says about the next look-ups of the account, or of everybody.
pub(super) async fn note_answer(
    db: &mut PgConnection,
    claim: &Claim,
    lookup: &LookupResult,
    chance: f64,
) -> Result<(), StoreError> {
    match &lookup.answer {
        Answer::Throttled {
            scope, retry_after, ..
        } => {
            let key = match (scope, &lookup.caller) {
                (ThrottleScope::App, Some(caller)) => &caller.app,
                (ThrottleScope::User, Some(caller)) => &caller.token,
                _ => claim.waba_id.as_str(),
            };
            let pause = retry_after.unwrap_or(DEFAULT_THROTTLE_INTERVAL);
            sqlx::query!(
                "insert into graph_limits as l (scope, key, until) values ($1, $2, now() + $3)
                 on conflict (scope, key) do update set until = greatest(l.until, excluded.until)",
                scope.as_str(),
                key,
                interval(pause),
            )
            .execute(db)
            .await?;
        }
        Answer::Unreachable(_) | Answer::Unexplained(_) => {}
        answer => match answer.denial().filter(|denial| denial.is_of_account()) {
            Some(denial) => note_denial(db, claim, lookup, denial, chance).await?,
            // Only Meta's own answer says that the token is good.
            None if matches!(answer, Answer::NotAsked { .. }) => {}
            None => note_access(db, claim, answer).await?,
        },
    }
    Ok(())
}

async fn note_denial(
    db: &mut PgConnection,
    claim: &Claim,
    lookup: &LookupResult,
    denial: Denial,
    chance: f64,
) -> Result<(), StoreError> {
    let pause = schedule::next_pause(&lookup.answer, Progress::default(), false, chance);
    sqlx::query!(
        "update accounts
            set denial = $2, denied_token = $3, denied_until = now() + $4
          where waba_id = $1",
        claim.waba_id.as_str(),
        denial.as_str(),
        lookup.caller.as_ref().map(|caller| &caller.token),
        interval(pause),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends the rest of the account, and of every account if it rested for a reason of all. Numbers
/// that were refused before are due now.
async fn note_access(
    db: &mut PgConnection,
    claim: &Claim,
    answer: &Answer,
) -> Result<(), StoreError> {
    let of_all: Vec<&str> = Denial::ALL
        .iter()
        .filter(|denial| denial.is_of_all_accounts())
        .map(|denial| denial.as_str())
        .collect();
    let freed = sqlx::query!(
        "update accounts a
            set denial = null, denied_token = null, denied_until = null
           from (select waba_id from accounts
                  where denial is not null and (waba_id = $1 or denial = any($2))
                  order by waba_id
                    for no key update skip locked) freed
          where a.waba_id = freed.waba_id",
        claim.waba_id.as_str(),
        &of_all as &[&str],
    )
    .execute(&mut *db)
    .await?;
    if answer.denial().is_none() || freed.rows_affected() > 0 {
        sqlx::query!(
            "update affected_numbers
                set check_due_at = now()
              where waba_id = $1 and phone_number_id <> $2 and check_due_at > now()
                and findings -> 'denied' <> 'null'",
            claim.waba_id.as_str(),
            claim.phone_number_id.as_str(),
        )
        .execute(db)
        .await?;
    }
    Ok(())
}

/// An account whose look-ups are refused.
#[derive(Debug)]
pub struct DeniedAccount {
    /// The account.
    pub waba_id: WabaId,
    /// The token that was refused, as a short hash; `None` if there was none.
    pub token: Option<String>,
}

/// Lists the accounts with an open incident whose look-ups are refused.
pub async fn denied_accounts(db: &PgPool) -> Result<Vec<DeniedAccount>, StoreError> {
    let accounts = sqlx::query_as!(
        DeniedAccount,
        r#"select a.waba_id as "waba_id: _",
                  case when a.denial is not null then a.denied_token
                       else (select token from health_checks c
                              where c.waba_id = a.waba_id
                              order by checked_at desc
                              limit 1) end as token
             from accounts a
            where exists (select from incidents i
                           where i.waba_id = a.waba_id and i.resolved_at is null
                             and (a.denial is not null or i.cause = 'lookup_denied'))"#
    );
    Ok(accounts.fetch_all(db).await?)
}

/// Makes one number of each of these accounts due now: there may be another token, or the reason of
/// the refusal may be gone. With `None`, of each account with an open incident whose look-ups are
/// refused.
///
/// # Errors
/// Nothing is changed.
pub async fn probe(db: &PgPool, accounts: Option<&[WabaId]>) -> Result<(), StoreError> {
    let mut transaction = db.begin().await?;
    // Locked in one order, so that two of these never wait for each other.
    let accounts = sqlx::query_scalar!(
        r#"select waba_id as "waba_id!: WabaId"
             from (select distinct waba_id
                     from incidents
                    where resolved_at is null
                      and (waba_id = any($1)
                           or $1 is null
                              and (cause = 'lookup_denied'
                                   or waba_id in (select waba_id from accounts
                                                   where denial is not null)))
                    order by waba_id) denied
             join lateral pg_advisory_xact_lock(hashtextextended(waba_id, 131031)) on true"#,
        accounts as Option<&[WabaId]>,
    )
    .fetch_all(&mut *transaction)
    .await?;
    sqlx::query!(
        "update accounts
            set denied_until = null, lookups_paused_until = null
          where waba_id = any($1)",
        &accounts as &[WabaId],
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "update affected_numbers n
            set check_due_at = now()
           from (select distinct on (waba_id) incident_id, waba_id, phone_number_id
                   from affected_numbers
                  where waba_id = any($1) and check_due_at is not null
                  order by waba_id, incident_id desc, failure_count desc) p
          where n.incident_id = p.incident_id and n.waba_id = p.waba_id
            and n.phone_number_id = p.phone_number_id and n.check_due_at > now()",
        &accounts as &[WabaId],
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}
