//! Processing: takes callbacks from the inbox and records what they hold.
//!
//! Everything happens in one transaction that holds the processor's lock, an advisory one: one
//! process at a time processes, and the lock survives no death. What is taken stays in the inbox
//! until the commit that records it.

mod events;
mod failures;
mod incidents;
mod quarantine;

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Connection, PgConnection, PgTransaction};
use time::OffsetDateTime;

use self::events::FreshEvents;
use self::failures::Item;
use super::conclusion;
use super::database::Database;
use super::error::StoreError;
use super::inbox::READER;
use crate::intake::Intake;
use crate::meta::ids::WabaId;

/// The key of the lock that one processor holds.
const PROCESSOR_LOCK: i64 = 131_031_000;
/// The most callbacks of a batch.
pub const BATCH_CALLBACKS: usize = 1000;
/// The bytes of bodies in a batch. A single body may be larger.
const BATCH_BYTES: i64 = 4 * 1024 * 1024;

/// The processor's connection. It is never pooled, and closed by dropping it wherever its state is
/// in doubt.
#[derive(Debug)]
pub struct ProcessorConnection {
    connection: PgConnection,
}

/// A callback from the inbox.
#[derive(Debug)]
pub struct InboxCallback {
    /// The id of its capture.
    pub capture_id: i64,
    /// The body.
    pub body: Vec<u8>,
    /// The time it was received.
    pub received_at: OffsetDateTime,
    /// The seconds since it was appended.
    pub waited: f64,
}

/// A callback and what it holds.
#[derive(Debug)]
pub struct ReadCallback {
    /// The id of its capture.
    pub capture_id: i64,
    /// The time it was received.
    pub received_at: OffsetDateTime,
    /// The seconds that it had waited when it was taken.
    pub waited: f64,
    /// What it holds.
    pub intake: Intake,
}

impl ReadCallback {
    /// The id of its capture, if that stays after it is processed.
    fn kept_capture(&self, kept: KeptCaptures) -> Option<i64> {
        let stays = kept != KeptCaptures::Quarantined || !self.intake.unreadable.is_empty();
        stays.then_some(self.capture_id)
    }
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Failed messages that were not there yet.
    pub new: u64,
    /// Failed messages that were there already, or came twice.
    pub repeated: u64,
    /// Parts that were not in quarantine yet.
    pub quarantined: u64,
    /// Whether a number now waits for a look-up.
    pub check_due: bool,
    /// Whether an incident changed.
    pub changed: bool,
}

/// Which captures stay after they are processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptCaptures {
    /// Those in which something was found.
    WithFindings,
    /// All.
    All,
    /// Only those with a part in quarantine.
    Quarantined,
}

impl ProcessorConnection {
    /// Opens a connection. The caller limits the time.
    ///
    /// # Errors
    /// There is no connection.
    pub async fn open(database: &Database) -> Result<Self, StoreError> {
        let connection = database.connect_processor().await?;
        Ok(Self { connection })
    }

    /// Starts a transaction that holds the processor's lock. `None`: another process holds it.
    ///
    /// # Errors
    /// The connection is in doubt.
    pub async fn begin(&mut self) -> Result<Option<Processing<'_>>, StoreError> {
        let mut transaction = self.connection.begin().await?;
        // Set here, they hold behind a pooler, too. Other accounts wait while we wait for
        // somebody's row, and a stopped processor must not keep the lock. A commit that a crash
        // undoes is undone whole, and its callbacks are in the inbox again: it need not wait for
        // the disk.
        let row = sqlx::query!(
            r#"select pg_try_advisory_xact_lock($1) as "is_locked!", clock_timestamp() as "now!",
                      set_config('lock_timeout', '200ms', true) as lock_timeout,
                      set_config('statement_timeout', '5s', true) as statement_timeout,
                      set_config('idle_in_transaction_session_timeout', '2s', true) as idle_timeout,
                      set_config('synchronous_commit', 'off', true) as synchronous_commit"#,
            PROCESSOR_LOCK,
        )
        .fetch_one(&mut *transaction)
        .await?;
        if !row.is_locked {
            transaction.rollback().await?;
            return Ok(None);
        }
        Ok(Some(Processing {
            transaction,
            now: row.now,
        }))
    }

    /// Notes that a callback cannot be processed, and when it is tried again: after 5 s, then after
    /// twice as long each time, up to 15 minutes.
    ///
    /// # Errors
    /// Nothing is noted.
    pub async fn note_problem(&mut self, id: i64, problem: &str) -> Result<(), StoreError> {
        sqlx::query!(
            "update inbox
                set attempts = attempts + 1, problem = $2,
                    retry_at = now() + least(5 * 2 ^ least(attempts, 10), 900) * interval '1 second'
              where capture_id = $1",
            id,
            problem,
        )
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Makes every callback with a problem due now.
    ///
    /// # Errors
    /// Nothing is changed.
    pub async fn make_due(&mut self) -> Result<(), StoreError> {
        sqlx::query!(
            "update inbox set retry_at = null where problem is not null and retry_at > now()"
        )
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }
}

/// A transaction of the processor.
#[derive(Debug)]
pub struct Processing<'c> {
    transaction: PgTransaction<'c>,
    now: OffsetDateTime,
}

impl Processing<'_> {
    /// Takes the oldest callbacks after a position, without some others, up to the size of a batch.
    ///
    /// # Errors
    /// Nothing is taken.
    pub async fn take_after(
        &mut self,
        position: i64,
        except: &[i64],
    ) -> Result<Vec<InboxCallback>, StoreError> {
        let callbacks = sqlx::query_as!(
            InboxCallback,
            r#"select id as capture_id, body, received_at, waited as "waited!"
                 from (select id, body, received_at, waited,
                              sum(octet_length(body)) over (order by id) - octet_length(body)
                              as before
                         from (select c.id, c.body, c.received_at,
                                      (extract(epoch from now() - i.appended_at))::float8 as waited
                                 from inbox i
                                 join captures c on c.id = i.capture_id
                                where i.capture_id > $1 and i.capture_id <> all($2)
                                  and i.reader <= $3
                                  and (i.retry_at is null or i.retry_at <= now())
                                order by i.capture_id
                                limit $4) oldest) sized
                where before < $5
                order by id"#,
            position,
            except,
            READER,
            i64::try_from(BATCH_CALLBACKS).unwrap_or(i64::MAX),
            BATCH_BYTES,
        );
        Ok(callbacks.fetch_all(&mut *self.transaction).await?)
    }

    /// Takes these callbacks, as far as they are still in the inbox.
    ///
    /// # Errors
    /// Nothing is taken.
    pub async fn take(&mut self, ids: &[i64]) -> Result<Vec<InboxCallback>, StoreError> {
        let callbacks = sqlx::query_as!(
            InboxCallback,
            r#"select c.id as capture_id, c.body, c.received_at,
                      (extract(epoch from now() - i.appended_at))::float8 as "waited!"
                 from inbox i
                 join captures c on c.id = i.capture_id
                where i.capture_id = any($1)
                order by c.id"#,
            ids,
        );
        Ok(callbacks.fetch_all(&mut *self.transaction).await?)
    }

    /// Takes the locks of these accounts, and returns those that somebody else holds. With
    /// `checks_rows`, an account with a locked row counts as held: nobody waits for it.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn lock_accounts(
        &mut self,
        accounts: &BTreeSet<WabaId>,
        checks_rows: bool,
    ) -> Result<BTreeSet<WabaId>, StoreError> {
        let ids: Vec<&str> = accounts.iter().map(WabaId::as_str).collect();
        let held = sqlx::query_scalar!(
            r#"select waba_id as "waba_id!: WabaId"
                 from unnest($1::text[]) as a(waba_id)
                where not pg_try_advisory_xact_lock(hashtextextended(waba_id, 131031))"#,
            &ids as &[&str],
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let mut held: BTreeSet<WabaId> = held.into_iter().collect();
        if checks_rows {
            held.extend(incidents::accounts_with_locked_rows(&mut self.transaction, &ids).await?);
        }
        Ok(held)
    }

    /// Records what these callbacks hold. Their accounts must be locked.
    ///
    /// # Errors
    /// The transaction cannot be committed any more.
    pub async fn write(
        &mut self,
        callbacks: &[ReadCallback],
        kept: KeptCaptures,
    ) -> Result<Written, StoreError> {
        let mut written = Written::default();
        let db = &mut *self.transaction;
        let mut items = Vec::new();
        for callback in callbacks {
            let capture_id = callback.kept_capture(kept);
            let failures = callback.intake.failures.iter();
            items.extend(failures.map(|failure| Item {
                failure,
                capture_id,
            }));
        }
        let fresh = events::insert(db, callbacks, kept).await?;
        if !(items.is_empty() && fresh.evidence.is_empty() && fresh.noticed.is_empty()) {
            record(db, items, &fresh, self.now, &mut written).await?;
        }
        written.quarantined = quarantine::insert(db, callbacks).await?;
        let unkept = callbacks.iter().filter(|callback| match kept {
            KeptCaptures::All => false,
            KeptCaptures::WithFindings => callback.intake.is_empty(),
            KeptCaptures::Quarantined => true,
        });
        delete_captures(db, &unkept.map(|c| c.capture_id).collect::<Vec<_>>()).await?;
        let ids: Vec<i64> = callbacks.iter().map(|c| c.capture_id).collect();
        sqlx::query!("delete from inbox where capture_id = any($1)", &ids)
            .execute(db)
            .await?;
        Ok(written)
    }

    /// Commits.
    ///
    /// # Errors
    /// Nothing is recorded, or the answer to the commit was lost.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit().await?)
    }
}

/// Records failed messages, each once, and other evidence in the right incidents, and counts
/// exactly the new messages. What Meta's notices and the codes say about a cause is heard at once.
async fn record(
    db: &mut PgConnection,
    items: Vec<Item<'_>>,
    events: &FreshEvents<'_>,
    now: OffsetDateTime,
    written: &mut Written,
) -> Result<(), StoreError> {
    let all = items.len() as u64;
    let placed = incidents::place(db, items, &events.evidence, &events.noticed, now).await?;
    events::note(db, &events.evidence, &placed.others, &placed.resolved).await?;
    let mut explained: BTreeMap<&WabaId, OffsetDateTime> = events.noticed.clone();
    let mut named: Vec<(WabaId, OffsetDateTime)> = placed.explained;
    for evidence in events.evidence.iter().filter(|e| e.names_a_reason()) {
        let ((waba_id, _), at) = evidence.time();
        named.push((waba_id.clone(), at));
    }
    written.check_due = placed.reopened || !placed.others.is_empty();
    if all > 0 {
        let fresh = failures::insert(db, &placed.items).await?;
        incidents::count(db, &fresh).await?;
        written.check_due |=
            failures::count_by_number(db, &placed.items, &placed.resolved, &fresh).await?;
        failures::count_over_time(db, &fresh).await?;
        named.extend(failures::note_codes(db, &fresh).await?);
        written.new = fresh.iter().map(|fresh| fresh.count.unsigned_abs()).sum();
        written.repeated = all - written.new;
    }
    written.changed = placed.changed;
    for (waba_id, since) in &named {
        let earliest = explained.entry(waba_id).or_insert(*since);
        *earliest = since.to_owned().min(*earliest);
    }
    for (waba_id, since) in explained {
        written.changed |= conclusion::choose_again(db, waba_id, since).await?;
    }
    Ok(())
}

/// Deletes captures to which the quarantine does not refer.
async fn delete_captures(db: &mut PgConnection, ids: &[i64]) -> Result<(), StoreError> {
    if !ids.is_empty() {
        sqlx::query!(
            "delete from captures c
              where c.id = any($1)
                and not exists (select from quarantine where capture_id = c.id)",
            ids,
        )
        .execute(db)
        .await?;
    }
    Ok(())
}

/// Adds up values by key.
fn sum_by<K: Ord, V>(
    values: impl IntoIterator<Item = (K, V)>,
    add: impl Fn(&mut V, V),
) -> BTreeMap<K, V> {
    let mut sums: BTreeMap<K, V> = BTreeMap::new();
    for (key, value) in values {
        match sums.get_mut(&key) {
            Some(sum) => add(sum, value),
            None => {
                sums.insert(key, value);
            }
        }
    }
    sums
}
