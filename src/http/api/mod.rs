//! The admin API: incidents, their deliveries and checks, as JSON or CSV, and resolving an
//! incident. The attributes and comments of the handlers become its description in [`openapi`].

mod openapi;
mod paging;

use std::sync::LazyLock;
use std::time::Duration;

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
use super::auth::Login;
use super::by_hand::{self, complete_body};
use super::error::Problem;
use super::query::{IncidentId, List, Query, parse_filter, parse_reveal};
use crate::lockout::cause::LockoutCause;
use crate::progress::Progress;
use crate::report::{self, IncidentReport};
use crate::store::backlog::{self, Backlog};
use crate::store::changes::IncidentChange;
use crate::store::checks::HealthCheck;
use crate::store::deliveries::Delivery;
use crate::store::incidents::{self, IncidentFilter, IncidentState};
use crate::store::troubles::{self, Trouble};
use crate::store::{Pool, StoreError, bounded};

pub(super) fn router(db: Pool, progress: Progress) -> Router {
    let status = Router::new()
        .route("/api/v1/status", get(get_status))
        .with_state((db.clone(), progress));
    Router::new()
        .route("/openapi.json", get(get_openapi))
        .route("/api/v1/incidents", get(list_incidents))
        .route("/api/v1/incidents/{id}", get(get_incident))
        .route("/api/v1/incidents/{id}/deliveries", get(list_deliveries))
        .route("/api/v1/incidents/{id}/checks", get(list_checks))
        .route("/api/v1/incidents/{id}/changes", get(list_changes))
        .route(
            "/api/v1/incidents/{id}/acknowledge",
            post(acknowledge_incident),
        )
        .route("/api/v1/incidents/{id}/resolve", post(resolve_incident))
        .route("/api/v1/incidents/{id}/reopen", post(reopen_incident))
        .with_state(db)
        .merge(status)
}

/// The longest wait for the database's readiness.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);
/// The most troubles of the status.
const TROUBLES_LIMIT: i64 = 100;

/// A page of incidents.
#[derive(Debug, Serialize, ToSchema)]
struct IncidentList {
    /// The newest first.
    data: Vec<IncidentReport>,
    /// The start of the next page: give it as `cursor`. Null on the last page.
    next_cursor: Option<String>,
}

/// A page of failed deliveries.
#[derive(Debug, Serialize, ToSchema)]
struct DeliveryList {
    /// The latest first.
    data: Vec<Delivery>,
    /// The start of the next page: give it as `cursor`. Null on the last page.
    next_cursor: Option<String>,
}

/// A page of health checks.
#[derive(Debug, Serialize, ToSchema)]
struct HealthCheckList {
    /// The latest first.
    data: Vec<HealthCheck>,
    /// The start of the next page: give it as `cursor`. Null on the last page.
    next_cursor: Option<String>,
}

/// A page of changes of an incident.
#[derive(Debug, Serialize, ToSchema)]
struct IncidentChangeList {
    /// The latest first.
    data: Vec<IncidentChange>,
    /// The start of the next page: give it as `cursor`. Null on the last page.
    next_cursor: Option<String>,
}

/// The reason for which an incident is resolved by hand.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Resolution {
    /// A text for later readers.
    #[serde(default)]
    #[schema(max_length = 2000, example = "Meta granted the review")]
    note: Option<String>,
}

/// Whether lockouts are recorded, and what waits.
#[derive(Debug, Serialize, ToSchema)]
struct Status {
    /// `true` if lockouts can be recorded now, as `/readyz` says.
    ready: bool,
    /// The reason why not.
    obstacle: Option<String>,
    /// The incidents that are open.
    open_incidents: i64,
    /// The reasons why Lockwatch may not hear of a lock, or not tell its cause, the longest first: up
    /// to 100.
    troubles: Vec<Trouble>,
    /// What waits in the inbox, and what is in quarantine.
    #[serde(flatten)]
    backlog: Backlog,
}

/// Get the status
///
/// After a callback was answered with 200, its rows appear when it has left the inbox, usually
/// within milliseconds.
#[utoipa::path(
    get,
    path = "/api/v1/status",
    tag = "status",
    responses(
        (status = 200, description = "The status", body = Status),
        (status = "default", response = OtherProblem),
    )
)]
async fn get_status(State((db, progress)): State<(Pool, Progress)>) -> Result<Response, Problem> {
    let status = bounded(async {
        let obstacle = progress.find_obstacle(&db, STATUS_TIMEOUT).await;
        Ok::<_, StoreError>(Status {
            ready: obstacle.is_none(),
            obstacle: obstacle.map(ToOwned::to_owned),
            open_incidents: incidents::count_open(&db).await?,
            troubles: troubles::list_open(&db, TROUBLES_LIMIT).await?,
            backlog: backlog::fetch(&db).await?,
        })
    });
    Ok(json(&status.await?))
}

/// List incidents
///
/// The newest first.
#[utoipa::path(
    get,
    path = "/api/v1/incidents",
    tag = "incidents",
    params(
        ("state" = Option<IncidentState>, Query, description = "Only incidents in this state"),
        ("waba_id" = Option<String>, Query, description = "Only incidents of this account",
         pattern = "^[!-~]{1,64}$"),
        ("cause" = Option<LockoutCause>, Query, description = "Only incidents with this cause"),
        ("since" = Option<Moment>, Query, example = "2026-11-22T18:00:00Z",
         description = "Only incidents opened at this time or later: RFC 3339, a day \
                        (`2026-11-22`), or a time ago (`3d`, `36h`, `10m`)"),
        ("until" = Option<Moment>, Query, example = "2026-11-23",
         description = "Only incidents opened before this time"),
        PageParameters,
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page",
         pattern = "^i[0-7][0-9a-f]{15}$"),
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
async fn list_incidents(
    State(db): State<Pool>,
    mut request: ListRequest,
) -> Result<Response, Problem> {
    let filter = parse_filter(&mut request.query)?;
    let page = request.parse(List::Incidents)?;
    let fetch = move |before, limit| {
        let (db, filter) = (db.clone(), filter.clone());
        let filter = IncidentFilter { before, ..filter };
        async move {
            let page = report::list_incidents(&db, &filter, limit).await?;
            Ok(Some(page))
        }
    };
    let body = |data, next_cursor| IncidentList { data, next_cursor };
    let response = page.respond(fetch, body).await?;
    Ok(response.expect("there is always a list of incidents"))
}

/// Get an incident
///
/// With its cause, the evidence for it, the next steps, and the latest check of each number.
#[utoipa::path(
    get,
    path = "/api/v1/incidents/{id}",
    tag = "incidents",
    params(("id" = i64, Path, description = "The incident's id", minimum = 1)),
    responses(
        (status = 200, description = "The incident", body = IncidentReport),
        (status = 404, response = NoIncident),
        (status = "default", response = OtherProblem),
    )
)]
async fn get_incident(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(query.as_deref()).reject_unknown()?;
    respond_with_incident(&db, id).await
}

/// List an incident's failed deliveries
///
/// The latest first. Recipients are masked, also inside message ids, unless `reveal=recipients` is
/// given, which is logged.
#[utoipa::path(
    get,
    path = "/api/v1/incidents/{id}/deliveries",
    tag = "incidents",
    params(
        ("id" = i64, Path, description = "The incident's id", minimum = 1),
        ("reveal" = Option<Reveal>, Query,
         description = "Show recipients in full; this is logged"),
        PageParameters,
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page",
         pattern = "^d[0-7][0-9a-f]{15}$"),
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
async fn list_deliveries(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    mut request: ListRequest,
) -> Result<Response, Problem> {
    let recipients = parse_reveal(&mut request.query)?;
    let page = request.parse(List::Deliveries)?;
    let fetch = move |before, limit| {
        let db = db.clone();
        async move { report::list_deliveries(&db, id, before, limit, recipients).await }
    };
    let body = |data, next_cursor| DeliveryList { data, next_cursor };
    let response = page.respond(fetch, body).await?;
    let response = response.ok_or_else(|| Problem::no_incident(id))?;
    recipients.log_if_revealed(id);
    Ok(response)
}

/// List an incident's health checks
///
/// The latest first, each with Meta's raw answer.
#[utoipa::path(
    get,
    path = "/api/v1/incidents/{id}/checks",
    tag = "incidents",
    params(
        ("id" = i64, Path, description = "The incident's id", minimum = 1),
        PageParameters,
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page",
         pattern = "^c[0-7][0-9a-f]{15}$"),
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
async fn list_checks(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    request: ListRequest,
) -> Result<Response, Problem> {
    let page = request.parse(List::Checks)?;
    let fetch = move |before, limit| {
        let db = db.clone();
        async move { report::list_checks(&db, id, before, limit).await }
    };
    let body = |data, next_cursor| HealthCheckList { data, next_cursor };
    let response = page.respond(fetch, body).await?;
    response.ok_or_else(|| Problem::no_incident(id))
}

/// List an incident's changes
///
/// Its history, the latest first: opened, causes, who acknowledged, resolved or reopened it.
#[utoipa::path(
    get,
    path = "/api/v1/incidents/{id}/changes",
    tag = "incidents",
    params(
        ("id" = i64, Path, description = "The incident's id", minimum = 1),
        PageParameters,
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page",
         pattern = "^h[0-7][0-9a-f]{15}$"),
    ),
    responses(
        (status = 200, description = "A page", content(
            (IncidentChangeList = "application/json"),
            (String = "text/csv")
        ), headers(("Link" = Option<String>, description = "The next page, if there is one"))),
        (status = 400, response = BadParameter),
        (status = 404, response = NoIncident),
        (status = "default", response = OtherProblem),
    )
)]
async fn list_changes(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    request: ListRequest,
) -> Result<Response, Problem> {
    let page = request.parse(List::Changes)?;
    let fetch = move |before, limit| {
        let db = db.clone();
        async move { report::list_changes(&db, id, before, limit).await }
    };
    let body = |data, next_cursor| IncidentChangeList { data, next_cursor };
    let response = page.respond(fetch, body).await?;
    response.ok_or_else(|| Problem::no_incident(id))
}

/// Resolve an incident
///
/// Marks it as over. Failures that come later open a new one.
#[utoipa::path(
    post,
    path = "/api/v1/incidents/{id}/resolve",
    tag = "incidents",
    params(("id" = i64, Path, description = "The incident's id", minimum = 1)),
    request_body(content = Option<Resolution>, description = "The reason; optional"),
    responses(
        (status = 200, description = "It is resolved", body = IncidentReport),
        (status = 400, description = "The body cannot be used",
         body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Another site's page sent the request",
         body = Problem, content_type = "application/problem+json"),
        (status = 404, response = NoIncident),
        (status = 409, description = "It was resolved before",
         body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON",
         body = Problem, content_type = "application/problem+json"),
        (status = "default", response = OtherProblem),
    )
)]
async fn resolve_incident(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    RawQuery(query): RawQuery,
    by: Login,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    Query::parse(query.as_deref()).reject_unknown()?;
    let body = complete_body(body)?;
    let resolution = if body.is_empty() {
        Resolution::default()
    } else {
        parse_resolution(&headers, &body)?
    };
    by_hand::resolve(&db, id, resolution.note, by).await?;
    respond_with_incident(&db, id).await
}

/// Open an incident again
///
/// Undoes a wrong end: its seven days of silence start anew, and earlier clear checks no longer
/// count. An incident with a later one of its kind stays as it is.
#[utoipa::path(
    post,
    path = "/api/v1/incidents/{id}/reopen",
    tag = "incidents",
    params(("id" = i64, Path, description = "The incident's id", minimum = 1)),
    responses(
        (status = 200, description = "It is open again", body = IncidentReport),
        (status = 400, description = "The query cannot be used",
         body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Another site's page sent the request",
         body = Problem, content_type = "application/problem+json"),
        (status = 404, response = NoIncident),
        (status = 409, description = "It is open, or the account has a later one of its kind",
         body = Problem, content_type = "application/problem+json"),
        (status = "default", response = OtherProblem),
    )
)]
async fn reopen_incident(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    RawQuery(query): RawQuery,
    by: Login,
) -> Result<Response, Problem> {
    Query::parse(query.as_deref()).reject_unknown()?;
    by_hand::reopen(&db, id, by).await?;
    respond_with_incident(&db, id).await
}

/// Acknowledge an incident
///
/// Somebody has seen it: reminders stop. The user of HTTP Basic is kept as who did it.
#[utoipa::path(
    post,
    path = "/api/v1/incidents/{id}/acknowledge",
    tag = "incidents",
    params(("id" = i64, Path, description = "The incident's id", minimum = 1)),
    responses(
        (status = 200, description = "It is acknowledged", body = IncidentReport),
        (status = 400, description = "The query cannot be used",
         body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Another site's page sent the request",
         body = Problem, content_type = "application/problem+json"),
        (status = 404, response = NoIncident),
        (status = 409, description = "It was acknowledged or resolved before",
         body = Problem, content_type = "application/problem+json"),
        (status = "default", response = OtherProblem),
    )
)]
async fn acknowledge_incident(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    RawQuery(query): RawQuery,
    by: Login,
) -> Result<Response, Problem> {
    Query::parse(query.as_deref()).reject_unknown()?;
    by_hand::acknowledge(&db, id, by).await?;
    respond_with_incident(&db, id).await
}

fn parse_resolution(headers: &HeaderMap, body: &[u8]) -> Result<Resolution, Problem> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let detail = "the body must be application/json: {\"note\": \"…\"}, or empty";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    // serde would also read the struct from an array. `null` stands for no reason.
    let resolution = match body.trim_ascii() {
        b"null" => Ok(Resolution::default()),
        object if object.starts_with(b"{") => {
            serde_json::from_slice(object).map_err(|error| error.to_string())
        }
        _ => Err("not an object".to_owned()),
    };
    resolution.map_err(|reason| {
        let detail = format!("the body is not {{\"note\": \"…\"}}: {reason}");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}

async fn respond_with_incident(db: &Pool, id: i64) -> Result<Response, Problem> {
    let report = report::find_incident(db, id).await?;
    let report = report.ok_or_else(|| Problem::no_incident(id))?;
    Ok(json(&report))
}

fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("every key of our objects is a text");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn get_openapi() -> Response {
    static DOCUMENT: LazyLock<String> = LazyLock::new(openapi);
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, DOCUMENT.as_str()).into_response()
}
