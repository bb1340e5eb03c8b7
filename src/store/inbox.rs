//! The inbox: callbacks that are appended and not processed yet.

use std::time::Duration;

use bytes::Bytes;
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use super::database::{Database, PING_TIMEOUT};
use super::error::StoreError;
use crate::meta::signature::Signature;

/// The version of the reader that processes what this version appends. A version that reads more
/// from a callback has a higher one: an older one beside it then leaves its callbacks alone.
pub(super) const READER: i16 = 1;

/// A callback to append.
#[derive(Debug, Clone)]
pub struct NewCallback {
    /// The body.
    pub body: Bytes,
    /// The time it was received. `None` is now, by the database's clock.
    pub received_at: Option<OffsetDateTime>,
    /// The signature as it came.
    pub signature: Option<Signature>,
    /// The position of the app secret that matched it, from 1.
    pub app_secret: Option<i32>,
    /// Whether it may concern us. One that does not is kept, but never processed.
    pub is_of_interest: bool,
}

/// The connection that appends. It is never pooled, and closed by dropping it wherever its state is
/// in doubt.
#[derive(Debug)]
pub struct InboxConnection {
    connection: PgConnection,
    used: Instant,
}

impl InboxConnection {
    /// Opens a connection.
    ///
    /// While a commit of ours waits for a synchronous standby that is gone, it is refused: another
    /// commit would wait as well, and occupy one more session of the server. The caller limits the
    /// time.
    ///
    /// # Errors
    /// There is no connection, or commits hang.
    pub async fn open(database: &Database) -> Result<Self, StoreError> {
        let mut connection = database.connect_inbox().await?;
        let is_hanging = sqlx::query_scalar!(
            r#"select exists (select from pg_stat_activity
                               where application_name = 'lockwatch inbox'
                                 and datname = current_database() and wait_event = 'SyncRep'
                                 and state_change < now() - interval '1 second') as "hanging!""#
        )
        .fetch_one(&mut connection)
        .await?;
        if is_hanging {
            return Err(StoreError::CommitsHang);
        }
        Ok(Self {
            connection,
            used: Instant::now(),
        })
    }

    /// Returns the same connection, or a new one if it has been idle and does not answer: a
    /// database that restarted meanwhile should not cost the next callback.
    ///
    /// # Errors
    /// There is no new connection.
    pub async fn refreshed(mut self, database: &Database) -> Result<Self, StoreError> {
        const IDLE_LIMIT: Duration = Duration::from_secs(1);
        let is_idle = self.used.elapsed() > IDLE_LIMIT;
        self.used = Instant::now();
        let answers = !is_idle
            || matches!(
                timeout(PING_TIMEOUT, self.connection.ping()).await,
                Ok(Ok(()))
            );
        if answers {
            return Ok(self);
        }
        Self::open(database).await
    }

    /// Appends callbacks, all or none: they are committed when this returns.
    ///
    /// # Errors
    /// Nothing is appended, or the answer to the commit was lost.
    pub async fn append(&mut self, callbacks: &[&NewCallback]) -> Result<(), StoreError> {
        append(&mut self.connection, callbacks).await
    }

    /// Appends a callback and rolls it back: shows that an append works, and leaves nothing behind.
    ///
    /// # Errors
    /// An append would fail.
    pub async fn try_append(&mut self) -> Result<(), StoreError> {
        let trial = NewCallback {
            body: Bytes::new(),
            received_at: None,
            signature: None,
            app_secret: None,
            is_of_interest: true,
        };
        let mut transaction = self.connection.begin().await?;
        append(&mut transaction, &[&trial]).await?;
        Ok(transaction.rollback().await?)
    }
}

/// The columns of callbacks.
struct Columns<'c> {
    received_at: Vec<Option<OffsetDateTime>>,
    bodies: Vec<&'c [u8]>,
    signatures: Vec<Option<String>>,
    app_secrets: Vec<Option<i32>>,
}

impl<'c> Columns<'c> {
    fn of(callbacks: impl Iterator<Item = &'c NewCallback> + Clone) -> Self {
        Self {
            received_at: callbacks.clone().map(|c| c.received_at).collect(),
            bodies: callbacks.clone().map(|c| c.body.as_ref()).collect(),
            signatures: callbacks
                .clone()
                .map(|c| c.signature.as_ref().map(ToString::to_string))
                .collect(),
            app_secrets: callbacks.map(|c| c.app_secret).collect(),
        }
    }
}

async fn append(db: &mut PgConnection, callbacks: &[&NewCallback]) -> Result<(), StoreError> {
    let callbacks = callbacks.iter().copied();
    let ours = Columns::of(callbacks.clone().filter(|c| c.is_of_interest));
    let others = Columns::of(callbacks.filter(|c| !c.is_of_interest));
    sqlx::query!(
        "with ours as (
           insert into captures (received_at, body, signature, app_secret)
           select coalesce(c.received_at, now()), c.body, c.signature, c.app_secret
             from (select unnest($1::timestamptz[]) as received_at, unnest($2::bytea[]) as body,
                          unnest($3::text[]) as signature, unnest($4::int[]) as app_secret) c
           returning id
         ), others as (
           insert into captures (received_at, body, signature, app_secret)
           select coalesce(c.received_at, now()), c.body, c.signature, c.app_secret
             from (select unnest($5::timestamptz[]) as received_at, unnest($6::bytea[]) as body,
                          unnest($7::text[]) as signature, unnest($8::int[]) as app_secret) c
         )
         insert into inbox (capture_id, reader)
         select id, $9 from ours",
        &ours.received_at as &[Option<OffsetDateTime>],
        &ours.bodies as &[&[u8]],
        &ours.signatures as &[Option<String>],
        &ours.app_secrets as &[Option<i32>],
        &others.received_at as &[Option<OffsetDateTime>],
        &others.bodies as &[&[u8]],
        &others.signatures as &[Option<String>],
        &others.app_secrets as &[Option<i32>],
        READER,
    )
    .execute(db)
    .await?;
    Ok(())
}
