//! Troubles: observes what keeps Lockwatch from hearing or telling, and notes how long it lasts.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use super::alerts::{self, NewAlert, Topic};
use super::{StoreError, backlog, interval, self_checks, try_lock};
use crate::lockout::alerting::{AlertKind, Subscriber};
use crate::lockout::schedule::LASTING_FAILURES;
use crate::lockout::trouble::{
    ALL_ACCOUNTS, Course, Fact, INBOX_WAIT_LIMIT, QUARANTINE_WINDOW, SILENCE_DAYS, SILENCE_FACTOR,
    SILENCE_MIN, SILENCE_MIN_DAYS, Step, TroubleKind, next_step,
};

/// Two processes do not watch at once.
const WATCH_LOCK: i64 = 131_031_003;

/// A trouble that people were told of. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Trouble {
    /// Its id.
    pub id: i64,
    /// `callbacks_silent`, `subscription_lost`, `token_expiring`, `inbox_stuck`, `quarantined`,
    /// `lookups_failing` or `not_recording`.
    #[schema(example = "callbacks_silent")]
    pub kind: String,
    /// The account that it concerns, or `all`.
    pub waba_id: String,
    /// The facts, in a sentence.
    pub detail: String,
    /// The time at which it was first seen.
    #[serde(with = "time::serde::rfc3339")]
    pub began_at: OffsetDateTime,
    /// When it was over.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// The labels of the account.
    #[serde(skip)]
    pub labels: Vec<String>,
}

/// Lists the troubles that people were told of and that are not over.
pub async fn list_open(db: &PgPool, limit: i64) -> Result<Vec<Trouble>, StoreError> {
    let troubles = sqlx::query_as!(
        Trouble,
        r#"select id, kind, waba_id, detail, began_at, ended_at,
                  coalesce((select labels from accounts a where a.waba_id = t.waba_id), '{}')
                    as "labels!"
             from troubles t
            where ended_at is null and told_at is not null
            order by began_at, id
            limit $1"#,
        limit,
    );
    Ok(troubles.fetch_all(db).await?)
}

/// Finds troubles by their ids.
pub async fn find(db: &PgPool, ids: &[i64]) -> Result<Vec<Trouble>, StoreError> {
    let troubles = sqlx::query_as!(
        Trouble,
        r#"select id, kind, waba_id, detail, began_at, ended_at,
                  array[]::text[] as "labels!"
             from troubles
            where id = any($1)
            order by id"#,
        ids,
    );
    Ok(troubles.fetch_all(db).await?)
}

/// Returns what is wrong now.
pub async fn observe(db: &PgPool) -> Result<Vec<Fact>, StoreError> {
    let mut facts = Vec::new();
    facts.extend(observe_inbox(db).await?);
    facts.extend(observe_quarantine(db).await?);
    facts.extend(observe_lookups(db).await?);
    facts.extend(observe_silence(db).await?);
    facts.extend(self_checks::problems(db).await?);
    Ok(facts)
}

async fn observe_inbox(db: &PgPool) -> Result<Option<Fact>, StoreError> {
    let inbox = sqlx::query!(
        r#"select count(*) as "callbacks!",
                  coalesce(now() - min(appended_at) > $2, false) as "is_stuck!",
                  coalesce(extract(epoch from now() - min(appended_at)), 0)::bigint as "oldest!",
                  (select max(problem) from inbox where problem is not null) as problem
             from (select appended_at from inbox order by capture_id limit $1) i"#,
        backlog::COUNT_LIMIT,
        interval(INBOX_WAIT_LIMIT),
    )
    .fetch_one(db)
    .await?;
    Ok(inbox.is_stuck.then_some(Fact::InboxStuck {
        callbacks: inbox.callbacks,
        oldest: Duration::seconds(inbox.oldest),
        problem: inbox.problem,
    }))
}

async fn observe_quarantine(db: &PgPool) -> Result<Vec<Fact>, StoreError> {
    let rows = sqlx::query!(
        r#"select waba_id, count(*) as "parts!", max(reason) as "reason!"
             from quarantine
            where received_at > now() - $1::interval
              and waba_id not in (select waba_id from accounts where muted_at is not null)
            group by waba_id"#,
        interval(QUARANTINE_WINDOW),
    )
    .fetch_all(db)
    .await?;
    let facts = rows.into_iter().map(|row| Fact::Quarantined {
        waba_id: row.waba_id,
        parts: row.parts,
        reason: row.reason,
    });
    Ok(facts.collect())
}

async fn observe_lookups(db: &PgPool) -> Result<Vec<Fact>, StoreError> {
    let rows = sqlx::query!(
        r#"select n.waba_id, count(*) as "numbers!", max(n.check_failures) as "failures!",
                  (select c.error from health_checks c
                    where c.waba_id = n.waba_id and c.error is not null
                    order by c.checked_at desc
                    limit 1) as error
             from affected_numbers n
             join accounts a using (waba_id)
            where n.check_due_at is not null and n.check_failures >= $1 and a.muted_at is null
            group by n.waba_id"#,
        LASTING_FAILURES,
    )
    .fetch_all(db)
    .await?;
    let facts = rows.into_iter().map(|row| Fact::LookupsFailing {
        waba_id: row.waba_id,
        numbers: row.numbers,
        failures: row.failures,
        error: row.error,
    });
    Ok(facts.collect())
}

async fn observe_silence(db: &PgPool) -> Result<Vec<Fact>, StoreError> {
    let rows = sqlx::query!(
        r#"with heard as (
               select waba_id, last_callback_at as at
                 from accounts
                where last_callback_at < now() - $3::interval and muted_at is null
                union all
               select $5, max(last_callback_at)
                 from accounts
               having max(last_callback_at) is not null)
           select heard.waba_id as "waba_id!", heard.at as "at!",
                  extract(epoch from now() - heard.at)::bigint as "silence!",
                  extract(epoch from usual.longest)::bigint as "longest!"
             from heard
            cross join lateral (
                    select max(longest) as longest, count(*) as days
                      from callback_gaps g
                     where g.waba_id = heard.waba_id
                       and g.day > heard.at::date - $1::integer) usual
            where usual.days >= $2
              and now() - heard.at > greatest($3::interval, usual.longest * $4::integer)"#,
        SILENCE_DAYS,
        SILENCE_MIN_DAYS,
        interval(SILENCE_MIN),
        SILENCE_FACTOR,
        ALL_ACCOUNTS,
    )
    .fetch_all(db)
    .await?;
    let facts = rows.into_iter().map(|row| Fact::CallbacksSilent {
        waba_id: row.waba_id,
        last_at: row.at,
        silence: Duration::seconds(row.silence),
        usual: Duration::seconds(row.longest),
    });
    Ok(facts.collect())
}

/// A trouble that was observed, with the facts in a sentence.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Its kind.
    pub kind: TroubleKind,
    /// The account, or `all`.
    pub waba_id: String,
    /// The facts.
    pub detail: String,
}

type Key = (TroubleKind, String);

struct Row {
    id: i64,
    course: Course,
}

/// Notes all that was observed, what began with it and what is over, and writes alerts. Call it
/// from a task that nobody cancels.
///
/// # Errors
/// Nothing is changed.
pub async fn note(
    db: &PgPool,
    observed: &[Observed],
    subscribers: &[Subscriber],
) -> Result<(), StoreError> {
    let mut transaction = db.begin().await?;
    let Some(now) = try_lock(&mut transaction, WATCH_LOCK).await? else {
        return Ok(());
    };
    let mut known = list_known(&mut transaction).await?;
    let is_silent = |one: &Observed| one.kind == TroubleKind::CallbacksSilent;
    let is_all_silent = observed
        .iter()
        .any(|one| is_silent(one) && one.waba_id == ALL_ACCOUNTS);
    let (mut new, mut steps) = (Vec::new(), Steps::default());
    let mut seen: (Vec<i64>, Vec<&str>) = Default::default();
    for one in observed {
        match known.remove(&(one.kind, one.waba_id.clone())) {
            Some(row) => {
                seen.0.push(row.id);
                seen.1.push(&one.detail);
                steps.add((one.kind, one.waba_id.clone()), &row, true, now);
            }
            // Where nothing at all is heard, each account is silent, too.
            None if is_all_silent && is_silent(one) && one.waba_id != ALL_ACCOUNTS => {}
            None => new.push(one),
        }
    }
    note_seen(&mut transaction, &seen.0, &seen.1).await?;
    for (key, row) in begin(&mut transaction, &new, now).await? {
        steps.add(key, &row, true, now);
    }
    for (key, row) in known {
        steps.add(key, &row, false, now);
    }
    steps.take(&mut transaction, subscribers).await?;
    transaction.commit().await?;
    Ok(())
}

async fn list_known(db: &mut PgConnection) -> Result<BTreeMap<Key, Row>, StoreError> {
    let rows = sqlx::query!(
        r#"select id, kind, waba_id, began_at, seen_at, told_at is not null as "is_told!"
             from troubles
            where ended_at is null"#
    )
    .fetch_all(db)
    .await?;
    let rows = rows.into_iter().filter_map(|row| {
        let kind = TroubleKind::parse(&row.kind)?;
        let course = Course {
            began_at: row.began_at,
            seen_at: row.seen_at,
            is_told: row.is_told,
        };
        Some(((kind, row.waba_id), Row { id: row.id, course }))
    });
    Ok(rows.collect())
}

async fn begin(
    db: &mut PgConnection,
    new: &[&Observed],
    now: OffsetDateTime,
) -> Result<Vec<(Key, Row)>, StoreError> {
    let rows = sqlx::query!(
        "insert into troubles (kind, waba_id, detail, began_at, seen_at)
         select kind, waba_id, detail, $4, $4
           from unnest($1::text[], $2::text[], $3::text[]) as n(kind, waba_id, detail)
         returning id, kind, waba_id",
        &new.iter().map(|one| one.kind.as_str()).collect::<Vec<_>>() as &[&str],
        &new.iter()
            .map(|one| one.waba_id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &new.iter()
            .map(|one| one.detail.as_str())
            .collect::<Vec<_>>() as &[&str],
        now,
    )
    .fetch_all(db)
    .await?;
    let course = Course {
        began_at: now,
        seen_at: now,
        is_told: false,
    };
    let rows = rows.into_iter().filter_map(|row| {
        let kind = TroubleKind::parse(&row.kind)?;
        Some(((kind, row.waba_id), Row { id: row.id, course }))
    });
    Ok(rows.collect())
}

async fn note_seen(db: &mut PgConnection, ids: &[i64], details: &[&str]) -> Result<(), StoreError> {
    sqlx::query!(
        "update troubles t
            set seen_at = now(), detail = s.detail
           from unnest($1::bigint[], $2::text[]) as s(id, detail)
          where t.id = s.id",
        ids,
        details as &[&str],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What becomes of the troubles in a round.
#[derive(Debug, Default)]
struct Steps {
    forgotten: Vec<i64>,
    told: Vec<(i64, Key)>,
    ended: Vec<(i64, Key)>,
}

impl Steps {
    fn add(&mut self, key: Key, row: &Row, is_there: bool, now: OffsetDateTime) {
        match next_step(key.0, &row.course, is_there, now) {
            Step::Stay => {}
            Step::Forget => self.forgotten.push(row.id),
            Step::TellBegin => self.told.push((row.id, key)),
            Step::TellEnd => self.ended.push((row.id, key)),
        }
    }

    async fn take(
        self,
        db: &mut PgConnection,
        subscribers: &[Subscriber],
    ) -> Result<(), StoreError> {
        if self.forgotten.is_empty() && self.told.is_empty() && self.ended.is_empty() {
            return Ok(());
        }
        sqlx::query!("delete from troubles where id = any($1)", &self.forgotten)
            .execute(&mut *db)
            .await?;
        sqlx::query!(
            "update troubles
                set told_at  = coalesce(told_at, now()),
                    ended_at = case when id = any($2) then seen_at end
              where id = any($1) or id = any($2)",
            &self.told.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            &self.ended.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        )
        .execute(&mut *db)
        .await?;
        let began = self
            .told
            .into_iter()
            .map(|(id, key)| (id, AlertKind::Began(key.0), key.1));
        let over = self
            .ended
            .into_iter()
            .map(|(id, key)| (id, AlertKind::Over(key.0), key.1));
        let alerts: Vec<(i64, AlertKind, String)> = began.chain(over).collect();
        let accounts: Vec<String> = alerts.iter().map(|(.., account)| account.clone()).collect();
        let rows = sqlx::query!(
            r#"select waba_id, labels, muted_at is not null as "is_muted!"
                 from accounts
                where waba_id = any($1)"#,
            &accounts,
        )
        .fetch_all(&mut *db)
        .await?;
        let accounts: BTreeMap<&str, _> = rows
            .iter()
            .map(|row| (row.waba_id.as_str(), (&row.labels[..], row.is_muted)))
            .collect();
        let mut new = Vec::new();
        for (id, kind, waba_id) in alerts {
            let (labels, is_muted) = accounts.get(waba_id.as_str()).copied().unwrap_or_default();
            if !is_muted {
                new.push(NewAlert {
                    topic: Topic::Trouble(id),
                    channels: Subscriber::wanting(subscribers, kind, &waba_id, labels),
                    waba_id,
                    kind,
                });
            }
        }
        alerts::insert(db, &new).await
    }
}

/// The first and the latest callback of an account, since they were last noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeardAccount {
    /// The account, or `all`.
    pub waba_id: String,
    /// The time of the first callback.
    pub first: OffsetDateTime,
    /// The time of the latest one.
    pub last: OffsetDateTime,
}

/// Notes when accounts were heard, each of them once, and how long they were silent before. Rows
/// are written in the order of the accounts, so that two processes do not block each other. What
/// came before a pause of ours is no silence of Meta's: then `has_paused`.
///
/// # Errors
/// Some accounts may not be noted.
pub async fn note_heard(
    db: &PgPool,
    heard: &[HeardAccount],
    has_paused: bool,
) -> Result<(), StoreError> {
    let accounts: Vec<&str> = heard.iter().map(|one| one.waba_id.as_str()).collect();
    let last: Vec<OffsetDateTime> = heard.iter().map(|one| one.last).collect();
    let mut transaction = db.begin().await?;
    sqlx::query!(
        "insert into callback_gaps as g (waba_id, day, longest)
         select h.waba_id, h.last::date,
                case when $5 then interval '0'
                     else greatest(h.first - coalesce(before.at, h.first), interval '0') end
           from unnest($1::text[], $2::timestamptz[], $3::timestamptz[])
                as h(waba_id, first, last)
           left join lateral (
                  select case when h.waba_id = $4
                              then (select max(last_callback_at) from accounts)
                              else (select last_callback_at from accounts a
                                     where a.waba_id = h.waba_id) end as at) before on true
          order by h.waba_id
             on conflict (waba_id, day) do update
            set longest = greatest(g.longest, excluded.longest)",
        &accounts as &[&str],
        &heard.iter().map(|one| one.first).collect::<Vec<_>>(),
        &last,
        ALL_ACCOUNTS,
        has_paused,
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "insert into accounts as a (waba_id, last_callback_at)
         select waba_id, last
           from unnest($1::text[], $2::timestamptz[]) as h(waba_id, last)
          where waba_id <> $3
          order by waba_id
             on conflict (waba_id) do update
            set last_callback_at = greatest(a.last_callback_at, excluded.last_callback_at)",
        &accounts as &[&str],
        &last,
        ALL_ACCOUNTS,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}
