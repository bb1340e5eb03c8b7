//! Errors of the database: one variant for each reaction of a caller.

use crate::error_chain::error_chain;

/// A statement or a transaction failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is unreachable, read-only, or short of resources, or two transactions met. The
    /// same work succeeds later.
    #[error("the database failed")]
    Unavailable(#[source] sqlx::Error),
    /// Somebody else's transaction holds a row or a table for too long.
    #[error("another transaction is in the way")]
    Busy(#[source] sqlx::Error),
    /// The database refuses the work. No SQLSTATE proves that the data is to blame: the same class
    /// comes from a sequence behind its table, a missing table, or a person's own constraint.
    #[error("the database refused")]
    Refused(#[source] sqlx::Error),
    /// The database did not answer in time.
    #[error("the database did not answer in time")]
    TimedOut,
    /// Commits wait for a synchronous standby that does not answer.
    #[error("commits wait for a synchronous standby that does not answer")]
    CommitsHang,
}

impl StoreError {
    /// The reason in the database's own words, if it gave one.
    #[must_use]
    pub fn reason(&self) -> String {
        let (Self::Unavailable(error) | Self::Busy(error) | Self::Refused(error)) = self else {
            return self.to_string();
        };
        match error.as_database_error() {
            Some(answer) => format!("{self}: {}", answer.message()),
            None => error_chain(self),
        }
    }

    /// Returns whether a unique key was violated, as when a sequence is behind its table.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        match self {
            Self::Refused(error) => sqlstate(error).as_deref() == Some("23505"),
            _ => false,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let Some(code) = sqlstate(&error) else {
            // The connection, the pool, or the protocol.
            return Self::Unavailable(error);
        };
        match (code.as_str(), code.get(..2).unwrap_or_default()) {
            // Lock not available; a statement that ran into its timeout.
            ("55P03" | "57014", _) => Self::Busy(error),
            // Read-only transaction.
            ("25006", _) | (_, "08" | "40" | "53" | "57" | "58") => Self::Unavailable(error),
            _ => Self::Refused(error),
        }
    }
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// The reason why the tables could not be updated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// There is no connection.
    #[error("the database cannot be reached")]
    Unreachable(#[source] StoreError),
    /// The tables were made by a build whose migration of this number was another one. Nothing that
    /// this build could do would be right.
    #[error(
        "the tables were made by another build of lockwatch (its migration {0} differs): \
         use that build, or another database"
    )]
    OtherBuild(i64),
    /// A pooler mixes the prepared statements of its clients.
    #[error(
        "DATABASE_URL leads to a pooler in transaction mode that does not know prepared statements \
         (PgBouncer before 1.21): use its session mode, or a newer one"
    )]
    OldPooler,
    /// The database answers, but a migration failed.
    #[error("a migration failed")]
    Failed(#[from] sqlx::migrate::MigrateError),
}

impl MigrateError {
    /// Returns whether a retry cannot help.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::OtherBuild(_) | Self::OldPooler)
    }
}
