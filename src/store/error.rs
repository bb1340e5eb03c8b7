//! Errors of the database, divided by what a caller does about them.

/// A statement or a transaction failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data itself is refused (SQLSTATE classes 22, 23 and 54): trying again changes nothing.
    #[error("the database refused a value")]
    BadData(#[source] sqlx::Error),
    /// Everything else: the database is away, locked, read-only, or lacks our tables.
    #[error("the database did not do its work")]
    Unavailable(#[source] sqlx::Error),
    /// It did not answer in time.
    #[error("the database did not answer in time")]
    TimedOut,
}

impl StoreError {
    /// What lies behind it, for a log.
    #[must_use]
    pub fn cause(&self) -> Option<String> {
        std::error::Error::source(self).map(ToString::to_string)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref().and_then(|code| code.get(..2)) {
            Some("22" | "23" | "54") => Self::BadData(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// Why the tables could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// No connection.
    #[error("the database cannot be reached")]
    Away(#[source] StoreError),
    /// The database is there and a migration failed.
    #[error("a migration failed")]
    Failed(#[from] sqlx::migrate::MigrateError),
}
