//! Keeping callbacks byte for byte, one row per distinct body.
//!
//! A body that tells of a failure for the first time was never here before: [`record`](super::record) keeps it
//! together with its failures and looks for it nowhere, since a unique index over all digests costs a callback
//! as much as the row itself. Only of the others, which usually are few, is it asked here whether they are
//! kept: as what one of their failures came in first, or else by their digest.
//!
//! A body can be kept twice where its failures become known at different times: when retention took them
//! before it, when a later version reads more in it, or when two replicas share it out while the database
//! refuses a part of it. Then each tells of its own.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;

use super::StoreError;
use super::record::{Item, Recorded, RecorderConnection};
use crate::meta::callback::UnreadablePart;
use crate::meta::ids::WabaId;

/// Stands for the account where none can be read.
const UNKNOWN_ACCOUNT: &str = "unknown";

/// A callback to keep.
#[derive(Debug, Clone)]
pub struct NewCapture {
    /// The first account in it.
    pub waba_id: Option<WabaId>,
    /// The body.
    pub body: Bytes,
    /// Its SHA-256.
    pub digest: [u8; 32],
    /// When it arrived.
    pub received_at: OffsetDateTime,
    /// The signature as it came.
    pub signature: Option<String>,
    /// The position of the app secret that matched it, from 1.
    pub app_secret: Option<i32>,
    /// The lockout failures in it.
    pub failure_count: i32,
}

impl NewCapture {
    /// The account it is filed under.
    pub(super) fn account(&self) -> &str {
        account(self.waba_id.as_ref())
    }
}

fn account(waba_id: Option<&WabaId>) -> &str {
    waba_id.map_or(UNKNOWN_ACCOUNT, WabaId::as_str)
}

/// The bodies of one batch of callbacks, each once.
#[derive(Debug, Default)]
pub struct Bodies<'b> {
    bodies: Vec<Body<'b>>,
    places: HashMap<&'b [u8; 32], usize>,
    of_callbacks: Vec<Option<usize>>,
}

/// A body, how often it is in this batch, and what became of it.
#[derive(Debug)]
pub(super) struct Body<'b> {
    pub(super) capture: &'b NewCapture,
    pub(super) first: OffsetDateTime,
    pub(super) last: OffsetDateTime,
    pub(super) times: i64,
    /// Its capture, once that is known.
    pub(super) id: Option<i64>,
    /// Whether that capture says that it came in this batch.
    counted: bool,
}

impl<'b> Bodies<'b> {
    /// Adds the next callback, which may not be one to keep.
    pub fn add(&mut self, capture: Option<&'b NewCapture>) {
        let place = capture.map(|capture| {
            let at = capture.received_at;
            let place = *self.places.entry(&capture.digest).or_insert_with(|| {
                self.bodies.push(Body {
                    capture,
                    first: at,
                    last: at,
                    times: 0,
                    id: None,
                    counted: false,
                });
                self.bodies.len() - 1
            });
            let body = &mut self.bodies[place];
            (body.first, body.last) = (body.first.min(at), body.last.max(at));
            body.times += 1;
            place
        });
        self.of_callbacks.push(place);
    }

    /// The place of a callback's body.
    pub(super) fn place(&self, callback: usize) -> Option<usize> {
        self.of_callbacks[callback]
    }

    pub(super) fn at(&self, place: usize) -> &Body<'b> {
        &self.bodies[place]
    }

    /// Whether some are not kept yet.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.bodies.iter().any(|body| !body.counted)
    }

    /// Notes what a transaction kept, once it is committed.
    pub(super) fn kept(&mut self, kept: impl IntoIterator<Item = (usize, i64)>) {
        for (place, id) in kept {
            (self.bodies[place].id, self.bodies[place].counted) = (Some(id), true);
        }
    }
}

/// Finds the bodies that are kept already, as far as deliveries refer to them.
///
/// # Errors
/// The database does not answer.
pub async fn recall(
    connection: &mut RecorderConnection,
    items: &[Item<'_>],
    bodies: &mut Bodies<'_>,
) -> Result<(), StoreError> {
    let unknown = items.iter().filter_map(|item| {
        let place = bodies
            .place(item.callback)
            .filter(|place| bodies.at(*place).id.is_none())?;
        Some((place, item.failure, bodies.at(place).capture))
    });
    let unknown: Vec<_> = unknown.collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let found = sqlx::query!(
        r#"select f.place as "place!", min(c.id) as "id!"
             from unnest($1::bigint[], $2::text[], $3::bytea[], $4::bytea[]) as f(place, waba_id, failure, body)
             join failed_deliveries d on d.waba_id = f.waba_id and d.digest = f.failure
             join captures c on c.id = d.capture_id and c.digest = f.body
            group by f.place"#,
        &unknown.iter().map(|(place, ..)| i64::try_from(*place).expect("a batch is small")).collect::<Vec<_>>(),
        &unknown.iter().map(|(_, failure, _)| failure.waba_id.as_str()).collect::<Vec<_>>() as &[&str],
        &unknown.iter().map(|(_, failure, _)| failure.digest.as_slice()).collect::<Vec<_>>() as &[&[u8]],
        &unknown.iter().map(|(.., capture)| capture.digest.as_slice()).collect::<Vec<_>>() as &[&[u8]],
    )
    .fetch_all(&mut connection.connection)
    .await?;
    for row in found {
        let place = usize::try_from(row.place).expect("a place is not negative");
        bodies.bodies[place].id = Some(row.id);
    }
    Ok(())
}

/// Bytes for the quarantine, and what they came in.
#[derive(Debug)]
pub struct Quarantined {
    /// What could not be read, and why.
    pub unreadable: UnreadablePart,
    /// When it came.
    pub received_at: OffsetDateTime,
    /// The position of the callback it came in.
    pub callback: usize,
}

/// Keeps in one transaction what recorded failures left over: the bodies that told nothing new, and bytes
/// that could not be read. The same bytes are kept once.
///
/// # Errors
/// Nothing is kept.
pub async fn keep(
    connection: &mut RecorderConnection,
    items: &[Item<'_>],
    quarantined: &[Quarantined],
    bodies: &mut Bodies<'_>,
) -> Result<Recorded, StoreError> {
    recall(connection, items, bodies).await?;
    let mut transaction = connection.connection.begin().await?;
    count(&mut transaction, bodies).await?;
    insert(&mut transaction, bodies).await?;
    let quarantined = quarantine(&mut transaction, quarantined, bodies).await?;
    transaction.commit().await?;
    Ok(Recorded {
        quarantined,
        ..Recorded::default()
    })
}

/// Counts those that were kept by an earlier batch.
async fn count(db: &mut PgConnection, bodies: &mut Bodies<'_>) -> Result<(), StoreError> {
    let known: Vec<&mut Body<'_>> = bodies
        .bodies
        .iter_mut()
        .filter(|b| b.id.is_some() && !b.counted)
        .collect();
    if known.is_empty() {
        return Ok(());
    }
    // Locked in the order of their ids: two replicas never wait for each other.
    let counted: HashSet<i64> = sqlx::query_scalar!(
        "with locked as materialized (
           select c.id, c.waba_id, b.times, b.first, b.last
             from unnest($1::bigint[], $2::bigint[], $3::timestamptz[], $4::timestamptz[]) as b(id, times, first, last)
             join captures c using (id)
            order by c.id
              for update of c
         )
         update captures c
            set times_received   = c.times_received + b.times,
                received_at      = least(c.received_at, b.first),
                last_received_at = greatest(c.last_received_at, b.last)
           from locked b
          where c.id = b.id and c.waba_id = b.waba_id
         returning c.id",
        &known.iter().filter_map(|b| b.id).collect::<Vec<_>>(),
        &known.iter().map(|b| b.times).collect::<Vec<_>>(),
        &known.iter().map(|b| b.first).collect::<Vec<_>>(),
        &known.iter().map(|b| b.last).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .collect();
    for body in known {
        // One that left in the meantime, for its age, is kept anew.
        body.id = body.id.filter(|id| counted.contains(id));
        body.counted = body.id.is_some();
    }
    Ok(())
}

/// Inserts the others, in the order of their digests for the same reason, or counts those that are there.
async fn insert(db: &mut PgConnection, bodies: &mut Bodies<'_>) -> Result<(), StoreError> {
    let mut rest: Vec<&mut Body<'_>> = bodies.bodies.iter_mut().filter(|b| !b.counted).collect();
    if rest.is_empty() {
        return Ok(());
    }
    rest.sort_unstable_by_key(|b| b.capture.digest);
    let kept = sqlx::query!(
        "insert into captures as c (waba_id, digest, body, signature, app_secret, received_at, last_received_at,
                                    failure_count, times_received, told_first)
         select *, false
           from unnest($1::text[], $2::bytea[], $3::bytea[], $4::text[], $5::int[], $6::timestamptz[],
                       $7::timestamptz[], $8::int[], $9::bigint[])
             on conflict (digest, waba_id) where not told_first do update
            set times_received   = c.times_received + excluded.times_received,
                received_at      = least(c.received_at, excluded.received_at),
                last_received_at = greatest(c.last_received_at, excluded.last_received_at)
         returning id, digest",
        &rest.iter().map(|b| b.capture.account()).collect::<Vec<_>>() as &[&str],
        &rest.iter().map(|b| b.capture.digest.as_slice()).collect::<Vec<_>>() as &[&[u8]],
        &rest.iter().map(|b| b.capture.body.as_ref()).collect::<Vec<_>>() as &[&[u8]],
        &rest.iter().map(|b| b.capture.signature.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &rest.iter().map(|b| b.capture.app_secret).collect::<Vec<_>>() as &[Option<i32>],
        &rest.iter().map(|b| b.first).collect::<Vec<_>>(),
        &rest.iter().map(|b| b.last).collect::<Vec<_>>(),
        &rest.iter().map(|b| b.capture.failure_count).collect::<Vec<_>>(),
        &rest.iter().map(|b| b.times).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let ids: HashMap<Vec<u8>, i64> = kept.into_iter().map(|row| (row.digest, row.id)).collect();
    for body in rest {
        body.id = ids.get(&body.capture.digest[..]).copied();
        body.counted = true;
    }
    Ok(())
}

async fn quarantine(
    db: &mut PgConnection,
    quarantined: &[Quarantined],
    bodies: &Bodies<'_>,
) -> Result<u64, StoreError> {
    if quarantined.is_empty() {
        return Ok(0);
    }
    let kept = sqlx::query!(
        "insert into quarantine (waba_id, received_at, reason, body, digest, capture_id)
         select *
           from unnest($1::text[], $2::timestamptz[], $3::text[], $4::bytea[], $5::bytea[], $6::bigint[])
                as q(waba_id, received_at, reason, body, digest, capture_id)
          order by q.digest, q.waba_id
             on conflict (waba_id, digest) do nothing",
        &quarantined.iter().map(|q| account(q.unreadable.waba_id.as_ref())).collect::<Vec<_>>() as &[&str],
        &quarantined.iter().map(|q| q.received_at).collect::<Vec<_>>(),
        &quarantined.iter().map(|q| q.unreadable.reason.to_string()).collect::<Vec<_>>(),
        &quarantined.iter().map(|q| q.unreadable.bytes.as_ref()).collect::<Vec<_>>() as &[&[u8]],
        &quarantined.iter().map(|q| Sha256::digest(&q.unreadable.bytes).to_vec()).collect::<Vec<_>>(),
        &quarantined.iter().map(|q| bodies.at(bodies.place(q.callback)?).id).collect::<Vec<_>>() as &[Option<i64>],
    )
    .execute(db)
    .await?;
    Ok(kept.rows_affected())
}
