//! Paging, shared by every list of the API: parses the request, fetches a page, and answers with
//! that page or, for a CSV without a limit, with the whole list.

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::future::ready;
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::json;
use crate::http::error::Problem;
use crate::http::query::{List, Query};
use crate::report::Page;
use crate::report::csv::{self, Row};
use crate::store::StoreError;

const CSV: &str = "text/csv; charset=utf-8; header=present";
/// The rows of a page, unless the request says otherwise.
const DEFAULT_ROWS: i64 = 50;
const PAGE_LIMIT_ROWS: i64 = 200;

/// JSON or CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum Format {
    Json,
    Csv,
}

/// A request for a list. The handler takes the list's own filters out of `query`; then
/// [`parse`](Self::parse) takes the rest.
pub(super) struct ListRequest {
    pub(super) query: Query,
    uri: Uri,
    headers: HeaderMap,
}

impl<S: Send + Sync> FromRequestParts<S> for ListRequest {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self {
            query: Query::parse(parts.uri.query()),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
        })
    }
}

impl ListRequest {
    /// Parses the parameters that every list takes. A cursor is valid only for the list it came
    /// from.
    pub(super) fn parse(self, list: List) -> Result<PageRequest, Problem> {
        let Self {
            mut query,
            uri,
            headers,
        } = self;
        let before = query.take_cursor("cursor", list)?;
        let limit = query.take("limit", |text| {
            let limit = text.parse().ok();
            limit
                .filter(|rows| (1..=PAGE_LIMIT_ROWS).contains(rows))
                .ok_or("not a number from 1 to 200")
        })?;
        let format = query.take_word("format", &[("json", Format::Json), ("csv", Format::Csv)])?;
        query.reject_unknown()?;
        Ok(PageRequest {
            list,
            before,
            limit,
            format: format.unwrap_or_else(|| preferred_format(&headers)),
            uri,
        })
    }
}

/// A request for a page of a list.
pub(super) struct PageRequest {
    list: List,
    before: Option<i64>,
    limit: Option<i64>,
    format: Format,
    uri: Uri,
}

impl PageRequest {
    /// Answers with the page that `fetch` returns for a start (the id before which the page starts)
    /// and a limit. `None` if the list's incident does not exist. `body` makes the JSON object.
    pub(super) async fn respond<T, L, F>(
        self,
        fetch: impl Fn(Option<i64>, i64) -> F + Send + 'static,
        body: impl FnOnce(Vec<T>, Option<String>) -> L,
    ) -> Result<Option<Response>, Problem>
    where
        T: Row + Send + 'static,
        L: Serialize,
        F: Future<Output = Result<Option<Page<T>>, StoreError>> + Send + 'static,
    {
        let is_csv = self.format == Format::Csv;
        // Without a limit a CSV is complete: people who download one do not look for a next page.
        let is_whole = is_csv && self.limit.is_none() && self.before.is_none();
        if is_whole {
            let first = fetch(None, PAGE_LIMIT_ROWS).await?;
            return Ok(first.map(|first| whole_table(first, fetch)));
        }
        let limit = self.limit.unwrap_or(DEFAULT_ROWS);
        let page = fetch(self.before, limit).await?;
        Ok(page.map(|page| self.page_response(page, body)))
    }

    fn page_response<T: Row, L: Serialize>(
        &self,
        page: Page<T>,
        body: impl FnOnce(Vec<T>, Option<String>) -> L,
    ) -> Response {
        let next = page.next.map(|id| self.list.format_cursor(id));
        let link = next.as_deref().map(|next| next_link(&self.uri, next));
        let mut response = match self.format {
            Format::Csv => {
                let table = csv::format_table(&page.data);
                ([(header::CONTENT_TYPE, CSV)], table).into_response()
            }
            Format::Json => json(&body(page.data, next)),
        };
        let headers = response.headers_mut();
        if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
            headers.insert(header::LINK, link);
        }
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
        response
    }
}

/// Returns the format that the header `Accept` prefers.
fn preferred_format(headers: &HeaderMap) -> Format {
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

/// Answers with a whole list as CSV. It is read page by page while it is sent, so only one page is
/// in memory. If the database fails meanwhile, the answer ends without its last chunk, which
/// clients notice.
fn whole_table<T, F>(
    first: Page<T>,
    fetch: impl Fn(Option<i64>, i64) -> F + Send + 'static,
) -> Response
where
    T: Row + Send + 'static,
    F: Future<Output = Result<Option<Page<T>>, StoreError>> + Send + 'static,
{
    let start = csv::format_header::<T>() + &csv::format_rows(&first.data);
    let rest = stream::try_unfold((first.next, fetch), async |(before, fetch)| {
        if before.is_none() {
            return Ok(None);
        }
        let page = fetch(before, PAGE_LIMIT_ROWS).await?;
        Ok(page.map(|page| (csv::format_rows(&page.data), (page.next, fetch))))
    });
    let body = stream::once(ready(Ok::<_, StoreError>(start))).chain(rest);
    let headers = [(header::CONTENT_TYPE, CSV), (header::VARY, "accept")];
    (headers, Body::from_stream(body)).into_response()
}

/// Returns the link to the next page: the same request with another cursor ([RFC
/// 8288](https://www.rfc-editor.org/rfc/rfc8288)).
fn next_link(uri: &Uri, cursor: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    let given = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    query.extend_pairs(given.filter(|(name, _)| name != "cursor"));
    query.append_pair("cursor", cursor);
    format!("<{}?{}>; rel=\"next\"", uri.path(), query.finish())
}
