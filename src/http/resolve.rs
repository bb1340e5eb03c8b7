//! Resolving an incident by hand, as the API and the dashboard do.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;

use super::error::Problem;
use crate::lockout::note::Note;
use crate::store::incident_life::{self, ManualResolution};
use crate::store::{Pool, bounded};

/// Of a request: a note has 2000 characters at the most.
pub(super) const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// Resolves an incident, if it is open.
pub(super) async fn resolve_by_hand(
    db: &Pool,
    id: i64,
    note: Option<String>,
) -> Result<(), Problem> {
    let note = Note::parse(note.as_deref())
        .map_err(|why| Problem::new(StatusCode::BAD_REQUEST, why.to_string()))?;
    let db = db.clone();
    // A task of its own: who goes away must not leave a transaction behind.
    let resolving = tokio::spawn(async move {
        bounded(incident_life::resolve_by_hand(&db, id, note.as_str())).await
    });
    let resolved = resolving
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not resolved"))?;
    match resolved? {
        ManualResolution::Resolved(change) => {
            incident_life::log(&change);
            Ok(())
        }
        ManualResolution::AlreadyResolved => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("incident {id} was resolved before; nothing changed"),
        )),
        ManualResolution::Unknown => Err(Problem::no_incident(id)),
    }
}

/// A whole body, or why there is none.
pub(super) fn whole_body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is over 64 KiB")
        }
        _ => Problem::new(StatusCode::BAD_REQUEST, "the body did not arrive whole"),
    })
}
