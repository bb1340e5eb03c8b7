//! Poolers between us and Postgres: whether they know prepared statements.

use sqlx::{Connection, PgConnection};

use super::database::{Database, LOCK_TIMEOUT, STATEMENT_TIMEOUT, Session};
use super::error::StoreError;

/// A statement with this name exists, or does not: another client of the pooler prepared it.
const PREPARED_STATEMENT_CODES: [&str; 2] = ["42P05", "26000"];

impl Database {
    /// Returns whether prepared statements of one client stay its own. A pooler in transaction mode
    /// that does not know them, as PgBouncer before 1.21, mixes those of all clients: some
    /// statements work, and others fail for ever.
    ///
    /// # Errors
    /// The database does not answer. The caller limits the time.
    pub(super) async fn keeps_prepared_statements(&self) -> Result<bool, StoreError> {
        let session = || Session::new("lockwatch", STATEMENT_TIMEOUT, LOCK_TIMEOUT);
        let mut first = self.connect(&session()).await?;
        let mut second = self.connect(&session()).await?;
        // Both get the same name from their driver, and a pooler lends both the same session.
        let prepared = async {
            sqlx::query("select 1").execute(&mut first).await?;
            sqlx::query("select 'a text'").execute(&mut second).await?;
            sqlx::query("select 1").execute(&mut first).await
        };
        let prepared = prepared.await;
        close(first).await;
        close(second).await;
        match prepared {
            Ok(_) => Ok(true),
            Err(error) => {
                let code = error.as_database_error().and_then(|error| error.code());
                if code.is_some_and(|code| PREPARED_STATEMENT_CODES.contains(&&*code)) {
                    return Ok(false);
                }
                Err(error.into())
            }
        }
    }
}

/// Closes a connection. A failure changes nothing.
async fn close(connection: PgConnection) {
    let _ = connection.close().await;
}
