//! Claims: the choice of the next numbers to look up, and the hourly budget of each account.

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::{StoreError, interval, limits, lock_account};
use crate::lockout::schedule::{
    ACCOUNT_IN_FLIGHT_LIMIT, CALLS_PER_HOUR, CLAIM_LEASE, FIELDS_INTERVAL, FIELDS_NUMBER_LIMIT,
    Progress, RESERVED_CALLS,
};
use crate::meta::health::Caller;
use crate::meta::ids::{PhoneNumberId, WabaId};

/// A number to look up, claimed until its lease expires.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The incident.
    pub incident_id: i64,
    /// The account.
    pub waba_id: WabaId,
    /// The number: the node to look up.
    pub phone_number_id: PhoneNumberId,
    /// The business portfolio of the account, if it is known.
    pub portfolio_id: Option<String>,
    /// Whether the number's fields are to be read as well, if its health explains nothing.
    pub wants_number_fields: bool,
    /// Whether the account's fields are to be read as well, if the health explains nothing.
    pub wants_account_fields: bool,
    /// Whether it stands for all numbers of an account that was refused.
    pub(super) is_probe: bool,
    pub(super) attempt: i32,
    pub(super) answers: i32,
    pub(super) failures: i32,
}

impl Claim {
    /// Returns whether it may use the calls that are kept for first look-ups and for tries after a
    /// refusal.
    fn may_use_reserve(&self) -> bool {
        self.answers == 0 || self.is_probe
    }

    /// The progress before this look-up.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            answers: self.answers,
            failures: self.failures,
        }
    }
}

/// Claims up to `limit` due checks, each with a lease and the next attempt number.
///
/// Accounts that rest are skipped, and no account waits for the backlog of another. First comes one
/// number of each incident without an answer, also where the account's look-ups are refused. Then
/// come all other due checks, first look-ups before repeats, at most [`ACCOUNT_IN_FLIGHT_LIMIT`] of
/// one account; of one that was refused, one at a time. `in_flight` has the account of each look-up
/// that the caller has in flight.
///
/// # Errors
/// Nothing is claimed.
pub async fn claim_due(
    db: &PgPool,
    limit: usize,
    in_flight: &[WabaId],
) -> Result<Vec<Claim>, StoreError> {
    // Another replica may claim some of them at the same moment, so twice as many are selected.
    let wanted = 2 * limit;
    let mut candidates = first_lookups(db, wanted, in_flight).await?;
    if candidates.len() < wanted {
        let mut busy = in_flight.to_vec();
        busy.extend(candidates.iter().map(|candidate| candidate.waba_id.clone()));
        let mut more = fair_share(db, wanted, &busy).await?;
        more.retain(|candidate| !candidates.contains(candidate));
        candidates.extend(more);
    }
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    claim(db, limit, &candidates).await
}

/// A number that may be claimed.
#[derive(PartialEq, Eq)]
struct Candidate {
    incident_id: i64,
    waba_id: WabaId,
    phone_number_id: PhoneNumberId,
}

/// Selects one number of each incident without an answer, the oldest incident first. An account
/// with a look-up in flight is skipped.
async fn first_lookups(
    db: &PgPool,
    limit: usize,
    in_flight: &[WabaId],
) -> Result<Vec<Candidate>, StoreError> {
    let candidates = sqlx::query_as!(
        Candidate,
        r#"select n.incident_id, n.waba_id as "waba_id: _",
                  n.phone_number_id as "phone_number_id: _"
             from incidents i
             join accounts a using (waba_id)
            cross join lateral (
                    select incident_id, waba_id, phone_number_id
                      from affected_numbers
                     where incident_id = i.id and waba_id = i.waba_id
                       and check_due_at <= now()
                       and (check_lease_until is null or check_lease_until <= now())
                     limit 1
                  ) n
            where i.cause = 'pending' and i.resolved_at is null and i.waba_id <> all($2)
              and (a.lookups_paused_until is null or a.lookups_paused_until <= now())
              and not exists (select from graph_limits l
                               where l.scope = 'account' and l.key = i.waba_id
                                 and l.until > now())
            order by i.id
            limit $1"#,
        to_bigint(limit),
        in_flight as _,
    )
    .fetch_all(db)
    .await?;
    Ok(candidates)
}

/// Selects due numbers, first look-ups before repeats, and of each account no more than its share.
async fn fair_share(
    db: &PgPool,
    limit: usize,
    in_flight: &[WabaId],
) -> Result<Vec<Candidate>, StoreError> {
    // An account whose share is in flight is skipped, however many of its checks are due. A few
    // hundred numbers of the other accounts are enough to choose from: the next ones follow when
    // these are claimed.
    let candidates = sqlx::query_as!(
        Candidate,
        r#"with waiting as (
             select n.incident_id, n.waba_id, n.phone_number_id, n.check_answers > 0 as again,
                    n.check_due_at, case when a.denial is null then $3 else 1 end as share
               from affected_numbers n
               join accounts a using (waba_id)
              where n.check_due_at <= now()
                and (n.check_lease_until is null or n.check_lease_until <= now())
                and (a.lookups_paused_until is null or a.lookups_paused_until <= now())
                and (a.denied_until is null or a.denied_until <= now())
                and (a.denial is null or n.waba_id <> all($2))
                and not exists (select from graph_limits l
                                 where l.scope = 'account' and l.key = n.waba_id
                                   and l.until > now())
                and n.waba_id <> all(array(select b
                                             from unnest($2::text[]) as b
                                            group by b
                                           having count(*) >= $3))
              order by n.check_answers > 0, n.check_due_at
              limit 256
           ), placed as (
             select *, row_number() over (partition by waba_id order by again, check_due_at)
                       + (select count(*) from unnest($2) as b where b = waba_id) as place
               from waiting
           )
           select incident_id, waba_id as "waba_id: _", phone_number_id as "phone_number_id: _"
             from placed
            where place <= share
            order by again, place, check_due_at
            limit $1"#,
        to_bigint(limit),
        in_flight as _,
        ACCOUNT_IN_FLIGHT_LIMIT,
    )
    .fetch_all(db)
    .await?;
    Ok(candidates)
}

/// Claims the first of these candidates that are still free. A number is left alone while a look-up
/// of it is in flight for an incident that was resolved meanwhile.
async fn claim(
    db: &PgPool,
    limit: usize,
    candidates: &[Candidate],
) -> Result<Vec<Claim>, StoreError> {
    let claims = sqlx::query_as!(
        Claim,
        r#"with due as materialized (
             select n.incident_id, n.waba_id, n.phone_number_id
               from unnest($1::bigint[], $2::text[], $3::text[]) with ordinality
                    as c(incident_id, waba_id, phone_number_id, place)
               join affected_numbers n using (incident_id, waba_id, phone_number_id)
              where n.check_due_at <= now()
                and (n.check_lease_until is null or n.check_lease_until <= now())
                and not exists (select from affected_numbers o
                                 where o.waba_id = n.waba_id
                                   and o.phone_number_id = n.phone_number_id
                                   and o.incident_id <> n.incident_id
                                   and o.check_lease_until > now())
              order by c.place
              limit $4
                for update of n skip locked
           )
           update affected_numbers n
              set check_attempt = n.check_attempt + 1, check_lease_until = now() + $5,
                  check_started_at = null
             from due
             join accounts a using (waba_id)
            where n.incident_id = due.incident_id and n.waba_id = due.waba_id
              and n.phone_number_id = due.phone_number_id
           returning n.incident_id, n.waba_id as "waba_id: _",
                     n.phone_number_id as "phone_number_id: _", n.check_attempt as attempt,
                     n.check_answers as answers, n.check_failures as failures, a.portfolio_id,
                     coalesce(n.fields_read_at < now() - $6::interval, true)
                       and ($7 >= (select count(*) from affected_numbers
                                    where incident_id = n.incident_id)
                            or coalesce(n.findings ->> 'field_explained' = 'true', false))
                       as "wants_number_fields!",
                     coalesce(a.fields_read_at < now() - $6::interval, true)
                       as "wants_account_fields!",
                     a.denial is not null as "is_probe!""#,
        &candidates.iter().map(|c| c.incident_id).collect::<Vec<_>>(),
        &candidates.iter().map(|c| &c.waba_id).collect::<Vec<_>>() as _,
        &candidates
            .iter()
            .map(|c| &c.phone_number_id)
            .collect::<Vec<_>>() as _,
        to_bigint(limit),
        interval(CLAIM_LEASE),
        interval(FIELDS_INTERVAL),
        FIELDS_NUMBER_LIMIT,
    )
    .fetch_all(db)
    .await?;
    Ok(claims)
}

fn to_bigint(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Takes a look-up from the hourly budget of the account and the caller's token. Returns `false` if
/// that is used up, or if Meta throttles the caller: then the claim is released, and the number
/// rests until the next one is possible; the account does if its reserve is used up as well.
///
/// # Errors
/// Nothing is taken; the claim expires with its lease.
pub async fn take_from_budget(
    db: &PgPool,
    claim: &Claim,
    caller: Option<&Caller>,
) -> Result<bool, StoreError> {
    let mut transaction = db.begin().await?;
    lock_account(&mut transaction, &claim.waba_id).await?;
    let throttled_until = match caller {
        Some(caller) => limits::throttled_until(&mut transaction, caller).await?,
        None => None,
    };
    let granted = if let Some(until) = throttled_until {
        if release(&mut transaction, claim).await? {
            postpone(&mut transaction, claim, until).await?;
        }
        false
    } else {
        let granted = grant(&mut transaction, claim, caller).await?;
        // Without a grant the budget is used up, or another process has the claim and there is
        // nothing to do.
        if !granted && release(&mut transaction, claim).await? {
            let until = room_at(&mut transaction, claim, caller).await?;
            if claim.may_use_reserve() {
                pause_account(&mut transaction, claim, until).await?;
            } else {
                postpone(&mut transaction, claim, until).await?;
            }
        }
        granted
    };
    transaction.commit().await?;
    Ok(granted)
}

/// Marks the claim's look-up as started if the calls of the last hour about the account with this
/// token, those in flight included, leave room for it. Some are kept for first look-ups and for
/// tries after a refusal.
async fn grant(
    db: &mut PgConnection,
    claim: &Claim,
    caller: Option<&Caller>,
) -> Result<bool, StoreError> {
    let reserved = match claim.may_use_reserve() {
        true => 0,
        false => RESERVED_CALLS,
    };
    let granted = sqlx::query!(
        "update affected_numbers
            set check_started_at = now()
          where incident_id = $1 and waba_id = $2 and phone_number_id = $3 and check_attempt = $4
            and $5 > (select coalesce(sum(calls), 0)
                        from health_checks
                       where waba_id = $2 and checked_at > now() - interval '1 hour'
                         and outcome <> 'not_asked' and token is not distinct from $6)
                   + (select count(*)
                        from affected_numbers
                       where waba_id = $2 and check_started_at is not null
                         and check_lease_until > now())",
        claim.incident_id,
        claim.waba_id.as_str(),
        claim.phone_number_id.as_str(),
        claim.attempt,
        CALLS_PER_HOUR - reserved,
        caller.map(|caller| &caller.token),
    )
    .execute(db)
    .await?;
    Ok(granted.rows_affected() == 1)
}

/// Returns when the oldest look-up of the last hour with this token is an hour old.
async fn room_at(
    db: &mut PgConnection,
    claim: &Claim,
    caller: Option<&Caller>,
) -> Result<OffsetDateTime, StoreError> {
    let at = sqlx::query_scalar!(
        r#"select greatest(min(checked_at) + interval '1 hour', now() + interval '10 seconds')
                  as "at!"
             from health_checks
            where waba_id = $1 and checked_at > now() - interval '1 hour'
              and outcome <> 'not_asked' and token is not distinct from $2"#,
        claim.waba_id.as_str(),
        caller.map(|caller| &caller.token),
    );
    Ok(at.fetch_one(db).await?)
}

/// Lets an account rest until this time.
async fn pause_account(
    db: &mut PgConnection,
    claim: &Claim,
    until: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update accounts set lookups_paused_until = greatest(lookups_paused_until, $2)
          where waba_id = $1",
        claim.waba_id.as_str(),
        until,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Lets the number of a claim rest until this time.
async fn postpone(
    db: &mut PgConnection,
    claim: &Claim,
    until: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update affected_numbers
            set check_due_at = greatest(check_due_at, $4)
          where incident_id = $1 and waba_id = $2 and phone_number_id = $3",
        claim.incident_id,
        claim.waba_id.as_str(),
        claim.phone_number_id.as_str(),
        until,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends a claim before its lease expires. Returns `false` if another process has taken it.
pub(super) async fn release(db: &mut PgConnection, claim: &Claim) -> Result<bool, StoreError> {
    let released = sqlx::query!(
        "update affected_numbers
            set check_lease_until = null
          where incident_id = $1 and waba_id = $2 and phone_number_id = $3 and check_attempt = $4",
        claim.incident_id,
        claim.waba_id.as_str(),
        claim.phone_number_id.as_str(),
        claim.attempt,
    )
    .execute(db)
    .await?;
    Ok(released.rows_affected() == 1)
}
