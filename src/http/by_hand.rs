//! Changes of an incident by hand, for the API and the dashboard: a person resolves it, opens it
//! again, or acknowledges it.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;

use super::auth::Login;
use super::error::Problem;
use crate::lockout::note::Note;
use crate::store::by_hand::{self, Done, Refusal};
use crate::store::{Pool, StoreError, bounded};

/// The largest body of a request to the admin listener: a note has 2000 characters at most.
pub(super) const ADMIN_BODY_LIMIT_BYTES: usize = 64 * 1024;

/// Resolves an incident, if it is open.
pub(super) async fn resolve(
    db: &Pool,
    id: i64,
    note: Option<String>,
    Login(by): Login,
) -> Result<(), Problem> {
    let note = Note::parse(note.as_deref())
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let db = db.clone();
    finish(async move { by_hand::resolve(&db, id, note.as_str(), by.as_ref()).await }).await
}

/// Opens an incident again, if it is over and the latest of its kind.
pub(super) async fn reopen(db: &Pool, id: i64, Login(by): Login) -> Result<(), Problem> {
    let db = db.clone();
    finish(async move { by_hand::reopen(&db, id, by.as_ref()).await }).await
}

/// Acknowledges an incident, if it is open.
pub(super) async fn acknowledge(db: &Pool, id: i64, Login(by): Login) -> Result<(), Problem> {
    let db = db.clone();
    finish(async move { by_hand::acknowledge(&db, id, by.as_ref()).await }).await
}

/// Runs a change in a task of its own: a caller that disconnects must not leave a transaction open.
async fn finish(
    change: impl Future<Output = Result<Done, StoreError>> + Send + 'static,
) -> Result<(), Problem> {
    let done = tokio::spawn(bounded(change)).await;
    let done = done.map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not done"))?;
    match done? {
        Ok(_) => Ok(()),
        Err(Refusal::Unknown(id)) => Err(Problem::no_incident(id)),
        Err(refusal) => Err(Problem::new(StatusCode::CONFLICT, refusal.to_string())),
    }
}

/// Returns a body that arrived complete, or the problem with it.
pub(super) fn complete_body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is over 64 KiB")
        }
        _ => Problem::new(StatusCode::BAD_REQUEST, "the body did not arrive whole"),
    })
}
