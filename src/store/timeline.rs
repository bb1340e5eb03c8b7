//! Failures and health of an incident over time, in equal bins.

use std::collections::BTreeMap;

use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

use super::{StoreError, Word};
use crate::meta::health::Outcome;
use crate::meta::ids::PhoneNumberId;

/// A period of time, divided into equal bins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bins {
    /// The start of the first bin: a whole minute, or a whole hour if bins are whole hours.
    pub start: OffsetDateTime,
    /// The length of a bin: whole minutes.
    pub width: Duration,
    /// The number of bins.
    pub count: usize,
}

impl Bins {
    /// Returns the start of a bin. The bin after the last one starts at the end of the period.
    #[must_use]
    pub fn start_of(&self, bin: usize) -> OffsetDateTime {
        let seconds = self
            .width
            .whole_seconds()
            .saturating_mul(i64::try_from(bin).unwrap_or(i64::MAX));
        self.start.saturating_add(Duration::seconds(seconds))
    }
}

/// Counts the failures of each incident in each bin. A failure outside of the bins counts for the
/// nearest one. Bins of whole hours use the hourly counts, so that even for a long incident only a
/// few thousand rows are read.
pub async fn failures_over_time(
    db: &PgPool,
    bins: &[(i64, Bins)],
) -> Result<BTreeMap<i64, Vec<u64>>, StoreError> {
    let column = |value: fn(Bins) -> i64| bins.iter().map(move |(_, bins)| value(*bins));
    let seconds = column(|bins| bins.width.whole_seconds());
    let counts = column(|bins| i64::try_from(bins.count).unwrap_or(i64::MAX));
    let rows = sqlx::query!(
        r#"select b.incident_id as "incident_id!",
                  least(greatest(extract(epoch from f.at - b.start)::bigint / b.seconds, 0),
                        b.count - 1) as "bin!",
                  sum(f.failure_count)::bigint as "failures!"
             from unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::bigint[])
                  as b(incident_id, start, seconds, count)
            cross join lateral (select minute as at, failure_count
                                  from failures_by_minute
                                 where incident_id = b.incident_id and b.seconds % 3600 <> 0
                                 union all
                                select hour, failure_count
                                  from failures_by_hour
                                 where incident_id = b.incident_id and b.seconds % 3600 = 0) f
            group by 1, 2"#,
        &bins.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        &bins.iter().map(|(_, bins)| bins.start).collect::<Vec<_>>(),
        &seconds.collect::<Vec<_>>(),
        &counts.collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let mut failures: BTreeMap<i64, Vec<u64>> = bins
        .iter()
        .map(|(id, bins)| (*id, vec![0; bins.count]))
        .collect();
    for row in rows {
        let bin = failures
            .get_mut(&row.incident_id)
            .and_then(|bins| bins.get_mut(usize::try_from(row.bin).ok()?));
        if let Some(bin) = bin {
            *bin += u64::try_from(row.failures).unwrap_or_default();
        }
    }
    Ok(failures)
}

/// The health of a number in a bin, as some look-ups reported it.
#[derive(Debug, Clone)]
pub struct BinHealth {
    /// The number.
    pub phone_number_id: PhoneNumberId,
    /// The position of the bin.
    pub bin: usize,
    /// `true` if the look-ups were in the bin; `false` for the latest one before it.
    pub is_within: bool,
    /// The outcome of the look-ups.
    pub outcome: Word<Outcome>,
    /// The verdict of the look-ups, in Meta's words.
    pub can_send_message: Option<String>,
}

/// Returns the health of each number in each bin, from its last few look-ups there and the latest
/// one before it. The number of rows is limited, however many look-ups there were.
pub async fn health_over_time(
    db: &PgPool,
    incident_id: i64,
    numbers: &[&str],
    bins: Bins,
) -> Result<Vec<BinHealth>, StoreError> {
    let starts: Vec<OffsetDateTime> = (0..bins.count).map(|bin| bins.start_of(bin)).collect();
    let ends: Vec<OffsetDateTime> = (1..=bins.count).map(|bin| bins.start_of(bin)).collect();
    let rows = sqlx::query!(
        r#"select n.phone_number_id as "phone_number_id!: PhoneNumberId",
                  b.position as "position!", c.is_within as "is_within!",
                  c.outcome as "outcome!: Word<Outcome>", c.can_send_message
             from unnest($2::text[]) as n(phone_number_id)
            cross join unnest($3::timestamptz[], $4::timestamptz[])
                       with ordinality as b(start, until, position)
            cross join lateral (
                    (select false as is_within, outcome, can_send_message
                       from health_checks
                      where incident_id = $1 and phone_number_id = n.phone_number_id
                        and checked_at < b.start
                      order by checked_at desc
                      limit 1)
                     union all
                    select distinct true, outcome, can_send_message
                      from (select outcome, can_send_message
                              from health_checks
                             where incident_id = $1 and phone_number_id = n.phone_number_id
                               and checked_at >= b.start and checked_at < b.until
                             order by checked_at desc
                             limit 6) latest
                  ) c"#,
        incident_id,
        numbers as &[&str],
        &starts,
        &ends,
    )
    .fetch_all(db)
    .await?;
    let health = rows.into_iter().map(|row| BinHealth {
        phone_number_id: row.phone_number_id,
        bin: usize::try_from(row.position - 1).expect("ordinality counts from one"),
        is_within: row.is_within,
        outcome: row.outcome,
        can_send_message: row.can_send_message,
    });
    Ok(health.collect())
}
