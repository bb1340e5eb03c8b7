//! Errors of the database: one variant for each reaction of a caller.

/// A statement or a transaction failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refuses the data itself (SQLSTATE classes 22, 23 and 54). A retry changes
    /// nothing.
    #[error("the database refused a value")]
    BadData(#[source] sqlx::Error),
    /// Everything else: the database is unreachable, locked, read-only, or lacks our tables.
    #[error("the database failed")]
    Unavailable(#[source] sqlx::Error),
    /// The database did not answer in time.
    #[error("the database did not answer in time")]
    TimedOut,
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
    /// The database answers, but a migration failed.
    #[error("a migration failed")]
    Failed(#[from] sqlx::migrate::MigrateError),
}
