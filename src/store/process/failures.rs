//! Failed messages: inserts the new ones, and counts them by number and over time.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::sum_by;
use crate::lockout::codes::Kind;
use crate::meta::codes::ACCOUNT_LOCKED;
use crate::meta::ids::{PhoneNumberId, Text, WabaId};
use crate::meta::status::FailedMessage;
use crate::store::StoreError;

/// A failed message of a callback.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'b> {
    pub(super) failure: &'b FailedMessage,
    /// The capture of the callback, if it is kept.
    pub(super) capture_id: Option<i64>,
}

impl<'b> Item<'b> {
    /// Its account and kind, and the time it failed.
    pub(super) fn time(&self) -> ((&'b WabaId, Kind), OffsetDateTime) {
        let kind = Kind::of_code(self.failure.error_code);
        ((&self.failure.waba_id, kind), self.failure.failed_at)
    }
}

/// A failed message in its incident.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlacedItem<'b> {
    pub(super) item: Item<'b>,
    pub(super) incident_id: i64,
}

/// The failed messages of a number and a minute that were new.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) incident_id: i64,
    pub(super) waba_id: WabaId,
    pub(super) phone_number_id: PhoneNumberId,
    pub(super) error_code: i32,
    pub(super) minute: OffsetDateTime,
    pub(super) first: OffsetDateTime,
    pub(super) last: OffsetDateTime,
    pub(super) count: i64,
}

/// Inserts the failed messages that are not there yet, and returns what was new.
///
/// The long arrays become rows in a select list: in `from`, each is first written into a table of
/// its own.
pub(super) async fn insert(
    db: &mut PgConnection,
    items: &[PlacedItem<'_>],
) -> Result<Vec<Fresh>, StoreError> {
    let fresh = sqlx::query_as!(
        Fresh,
        r#"with fresh as (
             insert into failed_deliveries (incident_id, waba_id, phone_number_id, message_id,
                                            recipient_id, participant_id, failed_at, received_at,
                                            error_code, error_title, error_message, error_details,
                                            callback_data, digest, capture_id)
             select unnest($1::bigint[]), unnest($2::text[]), unnest($3::text[]),
                    unnest($4::text[]), unnest($5::text[]), unnest($6::text[]),
                    unnest($7::timestamptz[]), unnest($8::timestamptz[]), unnest($9::int[]),
                    unnest($10::text[]), unnest($11::text[]), unnest($12::text[]),
                    unnest($13::text[]), unnest($14::bytea[]), unnest($15::bigint[])
                 on conflict (waba_id, digest) do nothing
             returning incident_id, waba_id, phone_number_id, error_code, failed_at
           )
           select incident_id, waba_id as "waba_id: WabaId",
                  phone_number_id as "phone_number_id: PhoneNumberId", error_code,
                  date_bin('1 minute', failed_at, 'epoch') as "minute!",
                  min(failed_at) as "first!", max(failed_at) as "last!", count(*) as "count!"
             from fresh
            group by 1, 2, 3, 4, 5"#,
        &items.iter().map(|i| i.incident_id).collect::<Vec<_>>(),
        &column(items, |f| f.waba_id.as_str()) as &[&str],
        &column(items, |f| f.phone_number_id.as_str()) as &[&str],
        &column(items, |f| f.message_id.as_str()) as &[&str],
        &column(items, |f| optional(&f.recipient_id)) as &[Option<&str>],
        &column(items, |f| optional(&f.participant_id)) as &[Option<&str>],
        &column(items, |f| f.failed_at),
        &column(items, |f| f.received_at),
        &column(items, |f| f.error_code),
        &column(items, |f| optional(&f.error_title)) as &[Option<&str>],
        &column(items, |f| optional(&f.error_message)) as &[Option<&str>],
        &column(items, |f| optional(&f.error_details)) as &[Option<&str>],
        &column(items, |f| optional(&f.callback_data)) as &[Option<&str>],
        &column(items, |f| f.digest.as_slice()) as &[&[u8]],
        &items.iter().map(|i| i.item.capture_id).collect::<Vec<_>>() as &[Option<i64>],
    )
    .fetch_all(db)
    .await?;
    Ok(fresh)
}

fn column<'b, T>(items: &[PlacedItem<'b>], value: impl Fn(&'b FailedMessage) -> T) -> Vec<T> {
    items
        .iter()
        .map(|placed| value(placed.item.failure))
        .collect()
}

fn optional(text: &Option<Text>) -> Option<&str> {
    text.as_ref().map(Text::as_str)
}

/// The failures of a number.
struct NumberCount {
    first: OffsetDateTime,
    last: OffsetDateTime,
    count: i64,
}

/// Adds the new failures to their numbers. A number that is new to its incident is due for a
/// look-up, unless the incident is among the `resolved`. Returns whether there is one.
pub(super) async fn count_by_number(
    db: &mut PgConnection,
    items: &[PlacedItem<'_>],
    resolved: &[i64],
    fresh: &[Fresh],
) -> Result<bool, StoreError> {
    let counts = fresh.iter().map(|f| {
        let key = (f.incident_id, &f.waba_id, &f.phone_number_id);
        let (first, last, count) = (f.first, f.last, f.count);
        (key, NumberCount { first, last, count })
    });
    let numbers = sum_by(counts, |sum, more| {
        sum.first = sum.first.min(more.first);
        sum.last = sum.last.max(more.last);
        sum.count += more.count;
    });
    let mut names: BTreeMap<(i64, &PhoneNumberId), &str> = BTreeMap::new();
    for PlacedItem { item, incident_id } in items {
        if let Some(name) = optional(&item.failure.display_phone_number) {
            names.insert((*incident_id, &item.failure.phone_number_id), name);
        }
    }
    let name =
        |(id, _, number): &(i64, &WabaId, &PhoneNumberId)| names.get(&(*id, *number)).copied();
    let due = sqlx::query_scalar!(
        r#"insert into affected_numbers as n (incident_id, waba_id, phone_number_id,
                                              display_phone_number, first_failure_at,
                                              last_failure_at, failure_count, check_due_at)
           select f.*, case when f.incident_id <> all($8) then now() end
             from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[],
                         $6::timestamptz[], $7::bigint[])
                  as f(incident_id, waba_id, phone_number_id, name, first, last, n)
               on conflict (incident_id, phone_number_id, waba_id) do update
              set display_phone_number = coalesce(excluded.display_phone_number,
                                                  n.display_phone_number),
                  first_failure_at = least(n.first_failure_at, excluded.first_failure_at),
                  last_failure_at  = greatest(n.last_failure_at, excluded.last_failure_at),
                  failure_count    = n.failure_count + excluded.failure_count
           returning n.check_due_at is not null and n.check_attempt = 0 as "due!""#,
        &numbers.keys().map(|(id, ..)| *id).collect::<Vec<_>>(),
        &numbers
            .keys()
            .map(|(_, id, _)| id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &numbers
            .keys()
            .map(|(.., id)| id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &numbers.keys().map(name).collect::<Vec<_>>() as &[Option<&str>],
        &numbers.values().map(|n| n.first).collect::<Vec<_>>(),
        &numbers.values().map(|n| n.last).collect::<Vec<_>>(),
        &numbers.values().map(|n| n.count).collect::<Vec<_>>(),
        resolved,
    )
    .fetch_all(db)
    .await?;
    Ok(due.contains(&true))
}

/// Notes the codes of the new failures that name a reason. Returns the accounts that have learned
/// of one, and since when.
pub(super) async fn note_codes(
    db: &mut PgConnection,
    fresh: &[Fresh],
) -> Result<Vec<(WabaId, OffsetDateTime)>, StoreError> {
    let named = fresh
        .iter()
        .filter(|fresh| fresh.error_code != ACCOUNT_LOCKED)
        .map(|f| {
            let key = (f.incident_id, &f.waba_id, &f.phone_number_id, f.error_code);
            (key, f.first)
        });
    let named = sum_by(named, |first, other| *first = other.min(*first));
    let mut accounts = Vec::new();
    for ((incident_id, waba_id, phone_number_id, code), first) in named {
        let noted = sqlx::query!(
            "update affected_numbers
                set error_codes = error_codes || $4::int
              where incident_id = $1 and waba_id = $2 and phone_number_id = $3
                and $4 <> all(error_codes)",
            incident_id,
            waba_id.as_str(),
            phone_number_id.as_str(),
            code,
        )
        .execute(&mut *db)
        .await?;
        if noted.rows_affected() > 0 {
            accounts.push((waba_id.clone(), first));
        }
    }
    Ok(accounts)
}

/// Adds the new failures to the minutes and hours of their incidents.
pub(super) async fn count_over_time(
    db: &mut PgConnection,
    fresh: &[Fresh],
) -> Result<(), StoreError> {
    let minutes = fresh
        .iter()
        .map(|f| ((f.incident_id, &f.waba_id, f.minute), f.count));
    let minutes = sum_by(minutes, |sum, more| *sum += more);
    sqlx::query!(
        "insert into failures_by_minute as m (incident_id, waba_id, minute, failure_count)
         select * from unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::bigint[])
             on conflict (incident_id, minute, waba_id) do update
            set failure_count = m.failure_count + excluded.failure_count",
        &minutes.keys().map(|(id, ..)| *id).collect::<Vec<_>>(),
        &minutes
            .keys()
            .map(|(_, id, _)| id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &minutes.keys().map(|(.., at)| *at).collect::<Vec<_>>(),
        &minutes.values().copied().collect::<Vec<_>>(),
    )
    .execute(&mut *db)
    .await?;
    let hours = minutes.iter().map(|((id, waba_id, minute), count)| {
        let seconds = minute.unix_timestamp();
        (
            (
                *id,
                *waba_id,
                *minute - time::Duration::seconds(seconds.rem_euclid(3600)),
            ),
            *count,
        )
    });
    let hours = sum_by(hours, |sum, more| *sum += more);
    sqlx::query!(
        "insert into failures_by_hour as h (incident_id, waba_id, hour, failure_count)
         select * from unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::bigint[])
             on conflict (incident_id, hour, waba_id) do update
            set failure_count = h.failure_count + excluded.failure_count",
        &hours.keys().map(|(id, ..)| *id).collect::<Vec<_>>(),
        &hours
            .keys()
            .map(|(_, id, _)| id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &hours.keys().map(|(.., at)| *at).collect::<Vec<_>>(),
        &hours.values().copied().collect::<Vec<_>>(),
    )
    .execute(db)
    .await?;
    Ok(())
}
