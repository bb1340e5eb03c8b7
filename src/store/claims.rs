//! Claims: who looks up which number next, and within which budget.

use sqlx::{PgConnection, PgPool};

use super::{StoreError, interval, lock_account};
use crate::lockout::schedule::{AT_ONCE, LEASE, LOOKUPS_PER_HOUR};

/// A number to look up, claimed for as long as the lease.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The incident.
    pub incident_id: i64,
    /// The account.
    pub waba_id: String,
    /// The node to look up.
    pub phone_number_id: String,
    pub(super) attempt: i32,
    pub(super) answers: i32,
    pub(super) failures: i32,
}

/// Claims up to `limit` checks that are due, each under a lease and the next attempt number. Accounts that
/// rest are left alone, and no account waits for another's backlog: first comes one number of every incident
/// that has no answer yet, then whatever is due, first look-ups before repeats, and of each account
/// [`AT_ONCE`] at most. `under_way` names the account of each look-up that the caller is at.
///
/// # Errors
/// Nothing is claimed.
pub async fn claim_due(
    db: &PgPool,
    limit: usize,
    under_way: &[String],
) -> Result<Vec<Claim>, StoreError> {
    // Another replica may be taking the same: so twice as many are looked at as are wanted.
    let enough = 2 * limit;
    let mut candidates = unheard(db, enough, under_way).await?;
    if candidates.len() < enough {
        let of_candidates = candidates.iter().map(|candidate| candidate.waba_id.clone());
        let under_way: Vec<String> = under_way.iter().cloned().chain(of_candidates).collect();
        let mut more = in_turn(db, enough, &under_way).await?;
        more.retain(|candidate| !candidates.contains(candidate));
        candidates.extend(more);
    }
    match candidates.is_empty() {
        true => Ok(Vec::new()),
        false => take(db, limit, &candidates).await,
    }
}

/// A number that may be claimed.
#[derive(PartialEq, Eq)]
struct Candidate {
    incident_id: i64,
    waba_id: String,
    phone_number_id: String,
}

/// One number of each incident that has no answer yet and that the caller is not at, the oldest incident
/// first.
async fn unheard(
    db: &PgPool,
    limit: usize,
    under_way: &[String],
) -> Result<Vec<Candidate>, StoreError> {
    let candidates = sqlx::query_as!(
        Candidate,
        "select n.incident_id, n.waba_id, n.phone_number_id
           from incidents i
           join accounts a using (waba_id)
          cross join lateral (
                  select incident_id, waba_id, phone_number_id
                    from affected_numbers
                   where incident_id = i.id and waba_id = i.waba_id
                     and check_due_at <= now() and (check_lease_until is null or check_lease_until <= now())
                   limit 1
                ) n
          where i.cause = 'pending' and i.resolved_at is null and i.waba_id <> all($2)
            and (a.lookups_paused_until is null or a.lookups_paused_until <= now())
          order by i.id
          limit $1",
        count(limit),
        under_way,
    )
    .fetch_all(db)
    .await?;
    Ok(candidates)
}

/// Whatever is due: first look-ups before repeats, and of each account no more than its share.
async fn in_turn(
    db: &PgPool,
    limit: usize,
    under_way: &[String],
) -> Result<Vec<Candidate>, StoreError> {
    // An account with its share under way is passed over, however much of it is due. Of the others the first
    // few hundred numbers are enough to choose from: as they are taken, the next come into sight.
    let candidates = sqlx::query_as!(
        Candidate,
        "with waiting as (
           select n.incident_id, n.waba_id, n.phone_number_id, n.check_answers > 0 as again, n.check_due_at
             from affected_numbers n
             join accounts a using (waba_id)
            where n.check_due_at <= now() and (n.check_lease_until is null or n.check_lease_until <= now())
              and (a.lookups_paused_until is null or a.lookups_paused_until <= now())
              and n.waba_id <> all(array(select b from unnest($2::text[]) as b group by b having count(*) >= $3))
            order by n.check_answers > 0, n.check_due_at
            limit 256
         ), placed as (
           select *, row_number() over (partition by waba_id order by again, check_due_at)
                     + (select count(*) from unnest($2) as b where b = waba_id) as place
             from waiting
         )
         select incident_id, waba_id, phone_number_id
           from placed
          where place <= $3
          order by again, place, check_due_at
          limit $1",
        count(limit),
        under_way,
        AT_ONCE,
    )
    .fetch_all(db)
    .await?;
    Ok(candidates)
}

/// Claims the first of these that are still to be had. A number is left alone while a look-up of it is under
/// way for an incident that was resolved meanwhile.
async fn take(
    db: &PgPool,
    limit: usize,
    candidates: &[Candidate],
) -> Result<Vec<Claim>, StoreError> {
    let claims = sqlx::query_as!(
        Claim,
        "with due as materialized (
           select n.incident_id, n.waba_id, n.phone_number_id
             from unnest($1::bigint[], $2::text[], $3::text[]) with ordinality
                  as c(incident_id, waba_id, phone_number_id, place)
             join affected_numbers n using (incident_id, waba_id, phone_number_id)
            where n.check_due_at <= now() and (n.check_lease_until is null or n.check_lease_until <= now())
              and not exists (select from affected_numbers o
                               where o.waba_id = n.waba_id and o.phone_number_id = n.phone_number_id
                                 and o.incident_id <> n.incident_id and o.check_lease_until > now())
            order by c.place
            limit $4
              for update of n skip locked
         )
         update affected_numbers n
            set check_attempt = n.check_attempt + 1, check_lease_until = now() + $5, check_started_at = null
           from due
          where n.incident_id = due.incident_id and n.waba_id = due.waba_id
            and n.phone_number_id = due.phone_number_id
         returning n.incident_id, n.waba_id, n.phone_number_id, n.check_attempt as attempt,
                   n.check_answers as answers, n.check_failures as failures",
        &candidates.iter().map(|c| c.incident_id).collect::<Vec<_>>(),
        &candidates.iter().map(|c| c.waba_id.clone()).collect::<Vec<_>>(),
        &candidates.iter().map(|c| c.phone_number_id.clone()).collect::<Vec<_>>(),
        count(limit),
        interval(LEASE),
    )
    .fetch_all(db)
    .await?;
    Ok(claims)
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Takes one look-up from the account's hourly budget. `false`: it is spent; the claim is given back, and
/// the account rests until the oldest look-up of the last hour is an hour old.
///
/// # Errors
/// Nothing is taken; the claim runs out with its lease.
pub async fn take_from_budget(db: &PgPool, claim: &Claim) -> Result<bool, StoreError> {
    let mut transaction = db.begin().await?;
    lock_account(&mut transaction, &claim.waba_id).await?;
    let granted = sqlx::query!(
        "update affected_numbers
            set check_started_at = now()
          where incident_id = $1 and waba_id = $2 and phone_number_id = $3 and check_attempt = $4
            and $5 > (select count(*) from health_checks
                       where waba_id = $2 and checked_at > now() - interval '1 hour' and outcome <> 'not_asked')
                   + (select count(*) from affected_numbers
                       where waba_id = $2 and check_started_at is not null and check_lease_until > now())",
        claim.incident_id,
        claim.waba_id,
        claim.phone_number_id,
        claim.attempt,
        LOOKUPS_PER_HOUR,
    )
    .execute(&mut *transaction)
    .await?
    .rows_affected()
        == 1;
    // Nothing was granted: the budget is spent, or the claim is no longer ours and there is nothing to do.
    let given_back = !granted && give_back(&mut transaction, claim).await?;
    if given_back {
        sqlx::query!(
            "update accounts
                set lookups_paused_until = greatest(lookups_paused_until, now() + interval '10 seconds',
                      (select min(checked_at) + interval '1 hour' from health_checks
                        where waba_id = $1 and checked_at > now() - interval '1 hour' and outcome <> 'not_asked'))
              where waba_id = $1",
            claim.waba_id
        )
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(granted)
}

/// Ends a claim before its lease does; `false` where another has taken it.
pub(super) async fn give_back(db: &mut PgConnection, claim: &Claim) -> Result<bool, StoreError> {
    let given_back = sqlx::query!(
        "update affected_numbers set check_lease_until = null
          where incident_id = $1 and waba_id = $2 and phone_number_id = $3 and check_attempt = $4",
        claim.incident_id,
        claim.waba_id,
        claim.phone_number_id,
        claim.attempt,
    )
    .execute(db)
    .await?;
    Ok(given_back.rows_affected() == 1)
}
