//! Resolving an incident by hand and opening it again, for the API and the dashboard.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;

use super::error::Problem;
use crate::lockout::note::Note;
use crate::store::incident_life::{self, ManualReopening, ManualResolution};
use crate::store::{Pool, bounded};

/// The largest body of a request to the admin listener: a note has 2000 characters at most.
pub(super) const ADMIN_BODY_LIMIT_BYTES: usize = 64 * 1024;

/// Resolves an incident, if it is open.
pub(super) async fn resolve_by_hand(
    db: &Pool,
    id: i64,
    note: Option<String>,
) -> Result<(), Problem> {
    let note = Note::parse(note.as_deref())
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let db = db.clone();
    // A separate task: a caller that disconnects must not leave a transaction open.
    let resolving = tokio::spawn(async move {
        bounded(incident_life::resolve_by_hand(&db, id, note.as_str())).await
    });
    let resolved = resolving
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not resolved"))?;
    match resolved? {
        ManualResolution::Resolved(_) => Ok(()),
        ManualResolution::AlreadyResolved => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("incident {id} was resolved before; nothing changed"),
        )),
        ManualResolution::Unknown => Err(Problem::no_incident(id)),
    }
}

/// Opens an incident again, if it is over and the latest of its kind.
pub(super) async fn reopen_by_hand(db: &Pool, id: i64) -> Result<(), Problem> {
    let db = db.clone();
    // A separate task, as above.
    let reopening =
        tokio::spawn(async move { bounded(incident_life::reopen_by_hand(&db, id)).await });
    let reopened = reopening
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not reopened"))?;
    match reopened? {
        ManualReopening::Reopened(_) => Ok(()),
        ManualReopening::AlreadyOpen => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("incident {id} is open; nothing changed"),
        )),
        ManualReopening::Followed(later) => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("incident {later} of the account is later; nothing changed"),
        )),
        ManualReopening::Unknown => Err(Problem::no_incident(id)),
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
