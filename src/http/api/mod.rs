//! The admin API: incidents, their deliveries and checks, as JSON or CSV, and resolving. What the attributes of
//! the handlers say about them becomes the description in [`openapi`].

mod openapi;

use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use futures_util::future::ready;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::ToSchema;

pub use self::openapi::openapi;
use self::openapi::{BadParameter, Moment, NoIncident, OtherProblem, PageParameters, Reveal};
use super::error::Problem;
use super::query::{IncidentId, Query, cursor, filter, read_cursor, recipients};
use super::resolve::{resolve_by_hand, whole};
use crate::lockout::cause::LockoutCause;
use crate::report::csv::{self, Row};
use crate::report::{self, IncidentReport, Page, Recipients};
use crate::store::details::{Delivery, HealthCheck};
use crate::store::incidents::{Filter, State as IncidentState};
use crate::store::{Pool, StoreError};

const CSV: &str = "text/csv; charset=utf-8; header=present";
/// How many a page holds if nothing else is asked for, and at the most.
const LIMIT: i64 = 50;
const LONGEST_PAGE: i64 = 200;

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

/// JSON or CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
enum Format {
    Json,
    Csv,
}

/// What every page takes.
#[derive(Clone, Copy)]
struct PageRequest {
    before: Option<i64>,
    limit: i64,
    format: Format,
    /// Without a limit a CSV has everything: nobody who downloads one looks for a next page.
    is_whole: bool,
}

impl PageRequest {
    /// A cursor fits the list that it came from.
    fn take(query: &mut Query, headers: &HeaderMap, list: char) -> Result<Self, Problem> {
        let before = query.take("cursor", |text| {
            read_cursor(list, text).ok_or("not a cursor of this list")
        })?;
        let limit = query.take("limit", |text| {
            text.parse()
                .ok()
                .filter(|n| (1..=LONGEST_PAGE).contains(n))
                .ok_or("not a number from 1 to 200")
        })?;
        let format = query.word("format", &[("json", Format::Json), ("csv", Format::Csv)])?;
        let format = format.unwrap_or_else(|| preferred(headers));
        let is_whole = format == Format::Csv && limit.is_none() && before.is_none();
        Ok(Self {
            before,
            limit: limit.unwrap_or(if is_whole { LONGEST_PAGE } else { LIMIT }),
            format,
            is_whole,
        })
    }
}

/// What the header Accept asks for.
fn preferred(headers: &HeaderMap) -> Format {
    let accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut best = (0.0, Format::Json);
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let format = match parts.next().map(str::to_ascii_lowercase).as_deref() {
            Some("text/csv") => Format::Csv,
            Some("application/json" | "application/*" | "*/*") => Format::Json,
            _ => continue,
        };
        let weight = parts
            .find_map(|part| part.strip_prefix("q=")?.parse().ok())
            .unwrap_or(1.0);
        // Among equals the first counts.
        if weight > best.0 {
            best = (weight, format);
        }
    }
    best.1
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
async fn list(
    State(db): State<Pool>,
    uri: Uri,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let filter = filter(&mut query)?;
    let request = PageRequest::take(&mut query, &headers, 'i')?;
    query.finish()?;
    let filter = Filter {
        before: request.before,
        ..filter
    };
    let page = report::incidents(&db, &filter, request.limit).await?;
    if request.is_whole {
        return Ok(whole_table(page, move |before| {
            let (db, filter) = (
                db.clone(),
                Filter {
                    before: Some(before),
                    ..filter.clone()
                },
            );
            async move {
                report::incidents(&db, &filter, LONGEST_PAGE)
                    .await
                    .map(Some)
            }
        }));
    }
    Ok(answer(&uri, 'i', &request, page, |data, next_cursor| {
        IncidentList { data, next_cursor }
    }))
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
    uri: Uri,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let recipients = recipients(&mut query)?;
    let request = PageRequest::take(&mut query, &headers, 'd')?;
    query.finish()?;
    let page = report::deliveries(&db, id, request.before, request.limit, recipients).await?;
    let page = page.ok_or_else(|| Problem::no_incident(id))?;
    tell_revealed(recipients, id);
    if request.is_whole {
        return Ok(whole_table(page, move |before| {
            let db = db.clone();
            async move { report::deliveries(&db, id, Some(before), LONGEST_PAGE, recipients).await }
        }));
    }
    Ok(answer(&uri, 'd', &request, page, |data, next_cursor| {
        DeliveryList { data, next_cursor }
    }))
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
    uri: Uri,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let request = PageRequest::take(&mut query, &headers, 'c')?;
    query.finish()?;
    let page = report::checks(&db, id, request.before, request.limit).await?;
    let page = page.ok_or_else(|| Problem::no_incident(id))?;
    if request.is_whole {
        return Ok(whole_table(page, move |before| {
            let db = db.clone();
            async move { report::checks(&db, id, Some(before), LONGEST_PAGE).await }
        }));
    }
    Ok(answer(&uri, 'c', &request, page, |data, next_cursor| {
        HealthCheckList { data, next_cursor }
    }))
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
    let body = whole(body)?;
    let resolution = if body.is_empty() {
        Resolution::default()
    } else {
        read_json(&headers, &body)?
    };
    resolve_by_hand(&db, id, resolution.note).await?;
    let report = report::incident(&db, id)
        .await?
        .ok_or_else(|| Problem::no_incident(id))?;
    Ok(json(&report))
}

fn read_json(headers: &HeaderMap, body: &[u8]) -> Result<Resolution, Problem> {
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

/// Who looks at recipients leaves a trace.
pub(super) fn tell_revealed(recipients: Recipients, id: i64) {
    match recipients {
        Recipients::Revealed => warn!(
            incident.id = id,
            "recipients of incident {id} were shown in full on request"
        ),
        Recipients::Masked => {}
    }
}

fn answer<T: Row, L: Serialize>(
    uri: &Uri,
    list: char,
    request: &PageRequest,
    page: Page<T>,
    body: impl FnOnce(Vec<T>, Option<String>) -> L,
) -> Response {
    let next = page.next.map(|id| cursor(list, id));
    let link = next.as_deref().map(|next| next_link(uri, next));
    let mut response = match request.format {
        Format::Csv => ([(header::CONTENT_TYPE, CSV)], csv::table(&page.data)).into_response(),
        Format::Json => json(&body(page.data, next)),
    };
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// A whole list as CSV, read page by page while it is sent: little of it is ever in memory. Where the database
/// goes away meanwhile the answer breaks off, which whoever reads it notices.
fn whole_table<T, F>(first: Page<T>, next: impl Fn(i64) -> F + Send + 'static) -> Response
where
    T: Row + Send + 'static,
    F: Future<Output = Result<Option<Page<T>>, StoreError>> + Send + 'static,
{
    let start = csv::header::<T>() + &csv::lines(&first.data);
    let rest = stream::try_unfold((first.next, next), async |(before, next)| {
        let Some(before) = before else {
            return Ok(None);
        };
        let page = next(before).await?;
        Ok(page.map(|page| (csv::lines(&page.data), (page.next, next))))
    });
    let body = stream::once(ready(Ok::<_, StoreError>(start))).chain(rest);
    let headers = [(header::CONTENT_TYPE, CSV), (header::VARY, "accept")];
    (headers, Body::from_stream(body)).into_response()
}

/// The same request with another cursor ([RFC 8288](https://www.rfc-editor.org/rfc/rfc8288)).
fn next_link(uri: &Uri, cursor: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    let given = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    query.extend_pairs(given.filter(|(name, _)| name != "cursor"));
    query.append_pair("cursor", cursor);
    format!("<{}?{}>; rel=\"next\"", uri.path(), query.finish())
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
