//! The admin API: incidents, their deliveries and checks, as JSON or CSV, and resolving. What the attributes of
//! the handlers say about them becomes the description in [`openapi`].

mod openapi;
mod paging;

use std::sync::LazyLock;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::openapi::openapi;
use self::openapi::{BadParameter, Moment, NoIncident, OtherProblem, PageParameters, Reveal};
use self::paging::ListRequest;
use super::error::Problem;
use super::query::{IncidentId, Query, filter, recipients};
use super::resolve::{resolve_by_hand, whole_body};
use crate::lockout::cause::LockoutCause;
use crate::report::{self, IncidentReport};
use crate::store::Pool;
use crate::store::checks::HealthCheck;
use crate::store::deliveries::Delivery;
use crate::store::incidents::{IncidentFilter, IncidentState};

pub(super) fn router(db: Pool) -> Router {
    Router::new()
        .route("/openapi.json", get(openapi_json))
        .route("/api/v1/incidents", get(list))
        .route("/api/v1/incidents/{id}", get(show))
        .route("/api/v1/incidents/{id}/deliveries", get(deliveries))
        .route("/api/v1/incidents/{id}/checks", get(checks))
        .route("/api/v1/incidents/{id}/resolve", post(resolve))
        .with_state(db)
}

/// A page of incidents.
#[derive(Debug, Serialize, ToSchema)]
struct IncidentList {
    /// The newest first.
    data: Vec<IncidentReport>,
    /// Where the next page starts: give it as `cursor`. Null on the last page.
    next_cursor: Option<String>,
}

/// A page of failed deliveries.
#[derive(Debug, Serialize, ToSchema)]
struct DeliveryList {
    /// The latest first.
    data: Vec<Delivery>,
    /// Where the next page starts: give it as `cursor`. Null on the last page.
    next_cursor: Option<String>,
}

/// A page of health checks.
#[derive(Debug, Serialize, ToSchema)]
struct HealthCheckList {
    /// The latest first.
    data: Vec<HealthCheck>,
    /// Where the next page starts: give it as `cursor`. Null on the last page.
    next_cursor: Option<String>,
}

/// Why an incident is resolved by hand.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Resolution {
    /// For those who read it later.
    #[serde(default)]
    #[schema(max_length = 2000, example = "Meta granted the review")]
    note: Option<String>,
}

/// List incidents
///
/// The newest first.
#[utoipa::path(
    get, path = "/api/v1/incidents", operation_id = "list_incidents", tag = "incidents",
    params(
        ("state" = Option<IncidentState>, Query, description = "Only these"),
        ("waba_id" = Option<String>, Query, description = "Only of this account", pattern = "^[!-~]{1,64}$"),
        ("cause" = Option<LockoutCause>, Query, description = "Only with this cause"),
        ("since" = Option<Moment>, Query, example = "2026-11-22T18:00:00Z",
         description = "Opened at this time or later: RFC 3339, a day (`2026-11-22`), or so long ago (`3d`, `36h`, `10m`)"),
        ("until" = Option<Moment>, Query, example = "2026-11-23", description = "Opened before this time"),
        PageParameters,
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before", pattern = "^i[0-7][0-9a-f]{15}$"),
    ),
    responses(
        (status = 200, description = "A page", content(
            (IncidentList = "application/json"),
            (String = "text/csv")
        ), headers(("Link" = Option<String>, description = "The next page, if there is one"))),
        (status = 400, response = BadParameter),
        (status = "default", response = OtherProblem),
    )
)]
async fn list(State(db): State<Pool>, mut request: ListRequest) -> Result<Response, Problem> {
    let filter = filter(&mut request.query)?;
    let page = request.parse('i')?;
    let fetch = move |before, limit| {
        let (db, filter) = (db.clone(), filter.clone());
        let filter = IncidentFilter { before, ..filter };
        async move { report::incidents(&db, &filter, limit).await.map(Some) }
    };
    let body = |data, next_cursor| IncidentList { data, next_cursor };
    let response = page.respond(fetch, body).await?;
    Ok(response.expect("there is always a list of incidents"))
}

/// Get an incident
///
/// With its cause, the evidence for it, the next steps, and the latest check of each number.
#[utoipa::path(
    get, path = "/api/v1/incidents/{id}", operation_id = "get_incident", tag = "incidents",
    params(("id" = i64, Path, description = "The incident's number", minimum = 1)),
    responses(
        (status = 200, description = "The incident", body = IncidentReport),
        (status = 404, response = NoIncident),
        (status = "default", response = OtherProblem),
    )
)]
async fn show(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(query.as_deref()).finish()?;
    let report = report::incident(&db, id)
        .await?
        .ok_or_else(|| Problem::no_incident(id))?;
    Ok(json(&report))
}

/// List an incident's failed deliveries
///
/// The latest first. Recipients are masked, inside message ids too, unless `reveal=recipients` is asked for,
/// which is logged.
#[utoipa::path(
    get, path = "/api/v1/incidents/{id}/deliveries", operation_id = "list_deliveries", tag = "incidents",
    params(
        ("id" = i64, Path, description = "The incident's number", minimum = 1),
        ("reveal" = Option<Reveal>, Query, description = "Show recipients in full; this is logged"),
        PageParameters,
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before", pattern = "^d[0-7][0-9a-f]{15}$"),
    ),
    responses(
        (status = 200, description = "A page", content(
            (DeliveryList = "application/json"),
            (String = "text/csv")
        ), headers(("Link" = Option<String>, description = "The next page, if there is one"))),
        (status = 400, response = BadParameter),
        (status = 404, response = NoIncident),
        (status = "default", response = OtherProblem),
    )
)]
async fn deliveries(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    mut request: ListRequest,
) -> Result<Response, Problem> {
    let recipients = recipients(&mut request.query)?;
    let page = request.parse('d')?;
    let fetch = move |before, limit| {
        let db = db.clone();
        async move { report::deliveries(&db, id, before, limit, recipients).await }
    };
    let body = |data, next_cursor| DeliveryList { data, next_cursor };
    let response = page.respond(fetch, body).await?;
    let response = response.ok_or_else(|| Problem::no_incident(id))?;
    recipients.log_if_revealed(id);
    Ok(response)
}

/// List an incident's health checks
///
/// The latest first, each with Meta's answer as it came.
#[utoipa::path(
    get, path = "/api/v1/incidents/{id}/checks", operation_id = "list_checks", tag = "incidents",
    params(
        ("id" = i64, Path, description = "The incident's number", minimum = 1),
        PageParameters,
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before", pattern = "^c[0-7][0-9a-f]{15}$"),
    ),
    responses(
        (status = 200, description = "A page", content(
            (HealthCheckList = "application/json"),
            (String = "text/csv")
        ), headers(("Link" = Option<String>, description = "The next page, if there is one"))),
        (status = 400, response = BadParameter),
        (status = 404, response = NoIncident),
        (status = "default", response = OtherProblem),
    )
)]
async fn checks(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    request: ListRequest,
) -> Result<Response, Problem> {
    let page = request.parse('c')?;
    let fetch = move |before, limit| {
        let db = db.clone();
        async move { report::checks(&db, id, before, limit).await }
    };
    let body = |data, next_cursor| HealthCheckList { data, next_cursor };
    let response = page.respond(fetch, body).await?;
    response.ok_or_else(|| Problem::no_incident(id))
}

/// Resolve an incident
///
/// Says that it is over. Failures that come later open another.
#[utoipa::path(
    post, path = "/api/v1/incidents/{id}/resolve", operation_id = "resolve_incident", tag = "incidents",
    params(("id" = i64, Path, description = "The incident's number", minimum = 1)),
    request_body(content = Option<Resolution>, description = "Why; may be left out"),
    responses(
        (status = 200, description = "It is resolved", body = IncidentReport),
        (status = 400, description = "The body cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Another site's page asked for it", body = Problem, content_type = "application/problem+json"),
        (status = 404, response = NoIncident),
        (status = 409, description = "It was resolved before", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = Problem, content_type = "application/problem+json"),
        (status = "default", response = OtherProblem),
    )
)]
async fn resolve(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    Query::parse(query.as_deref()).finish()?;
    let body = whole_body(body)?;
    let resolution = if body.is_empty() {
        Resolution::default()
    } else {
        parse_resolution(&headers, &body)?
    };
    resolve_by_hand(&db, id, resolution.note).await?;
    let report = report::incident(&db, id)
        .await?
        .ok_or_else(|| Problem::no_incident(id))?;
    Ok(json(&report))
}

fn parse_resolution(headers: &HeaderMap, body: &[u8]) -> Result<Resolution, Problem> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let detail = "the body is to be application/json: {\"note\": \"…\"}, or empty";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    // A struct could be read from an array, and `null` stands for nothing.
    match body.trim_ascii() {
        b"null" => Ok(Resolution::default()),
        object if object.starts_with(b"{") => {
            serde_json::from_slice(object).map_err(|error| error.to_string())
        }
        _ => Err("not an object".to_owned()),
    }
    .map_err(|why| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not {{\"note\": \"…\"}}: {why}"),
        )
    })
}

fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("our objects have text for keys");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn openapi_json() -> Response {
    static DOCUMENT: LazyLock<String> = LazyLock::new(openapi);
    (
        [(header::CONTENT_TYPE, "application/json")],
        DOCUMENT.as_str(),
    )
        .into_response()
}
