//! The dashboard: which accounts are locked, since when, why, and the next steps.
//!
//! Every page is rendered completely here and works without script. A small script refreshes it and
//! copies the text for the appeal. Received text is hostile: [`untrusted`] escapes it, limits its
//! length, and removes characters that would change the direction of a line.

mod alerts;
mod chart;
mod checks;
mod deliveries;
mod incident;
mod incident_query;
mod list;

use std::sync::LazyLock;

use axum::Router;
use axum::extract::{FromRef, Request};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use maud::{DOCTYPE, Markup, html};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Shown;
use super::error::Problem;
use crate::report::text::{format_duration, format_time, printable};
use crate::store::Pool;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
const ICON: &str = include_str!("icon.svg");

/// The site of Meta's tools for businesses.
const META_BUSINESS: &str = "https://business.facebook.com/";

/// What the pages need.
#[derive(Debug, Clone)]
struct Pages {
    db: Pool,
    shown: Shown,
}

impl FromRef<Pages> for Pool {
    fn from_ref(pages: &Pages) -> Self {
        pages.db.clone()
    }
}

pub(super) fn router(db: Pool, shown: Shown) -> Router {
    let style = || async { asset_response("text/css; charset=utf-8", STYLE) };
    let script = || async { asset_response("text/javascript; charset=utf-8", SCRIPT) };
    let icon = || async { asset_response("image/svg+xml", ICON) };
    Router::new()
        .route("/", get(list::show))
        .route("/incidents/{id}", get(incident::show))
        .route("/incidents/{id}/acknowledge", post(incident::acknowledge))
        .route("/incidents/{id}/resolve", post(incident::resolve))
        .route("/incidents/{id}/reopen", post(incident::reopen))
        .route("/alerts", get(alerts::show))
        .route("/alerts/{channel}/test", post(alerts::test))
        .route("/assets/style.css", get(style))
        .route("/assets/page.js", get(script))
        .route("/assets/icon.svg", get(icon))
        .with_state(Pages { db, shown })
}

/// Returns an asset. Browsers may cache it for ever: its address has the [version](ASSET_VERSION).
fn asset_response(content_type: &'static str, text: &'static str) -> Response {
    const CACHE_CONTROL: &str = "private, max-age=31536000, immutable";
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, CACHE_CONTROL),
    ];
    (headers, text).into_response()
}

/// A digest of all assets: their addresses change with their content.
static ASSET_VERSION: LazyLock<String> = LazyLock::new(|| {
    let digest = Sha256::new()
        .chain_update(STYLE)
        .chain_update(SCRIPT)
        .chain_update(ICON)
        .finalize();
    hex::encode(&digest[..6])
});

/// The way in which a page stays up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refresh {
    /// The script refreshes it. Without script, the browser reloads it.
    Always,
    /// Only the script refreshes it: a reload would delete what somebody types.
    WithScript,
    /// It stays as it is.
    Never,
}

/// Lays out a page. The script adds, replaces and removes the parts of `main` by their id; it
/// replaces only those with `data-live`.
fn layout(title: &str, refresh: Refresh, now: OffsetDateTime, main: &Markup) -> Markup {
    let version = ASSET_VERSION.as_str();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Other sites learn nothing. Our own forms must send their origin: without it, a
                // browser that uses plain HTTP could not change anything.
                meta name="referrer" content="same-origin";
                title { (printable(title)) " · Lockwatch" }
                link rel="icon" href={ "/assets/icon.svg?" (version) } type="image/svg+xml";
                link rel="stylesheet" href={ "/assets/style.css?" (version) };
                script src={ "/assets/page.js?" (version) } defer {}
                @if refresh == Refresh::Always {
                    noscript { meta http-equiv="refresh" content="30"; }
                }
            }
            body data-refresh[refresh != Refresh::Never] {
                a .skip href="#main" { "Skip to the content" }
                header .bar {
                    a .brand href="/" { "Lockwatch" }
                    p .asof #asof {
                        "As of " (timestamp(now))
                        @if refresh == Refresh::Never {
                            ", not refreshed"
                        }
                    }
                }
                main #main tabindex="-1" { (main) }
                footer {
                    p {
                        "Times are UTC. "
                        a href="/alerts" { "Alerts" } " · "
                        a href="/api/v1/incidents" { "API" } " · "
                        a href="/openapi.json" { "OpenAPI" } " · "
                        a href="/metrics" { "Metrics" } " · "
                        a href="/readyz" { "Readiness" }
                        " · Lockwatch " (env!("CARGO_PKG_VERSION"))
                    }
                }
            }
        }
    }
}

fn page_response(title: &str, refresh: Refresh, now: OffsetDateTime, main: &Markup) -> Response {
    let html = layout(title, refresh, now, main).into_string();
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
}

/// Renders received text: escaped, truncated, and isolated from the direction of the text around
/// it.
fn untrusted(text: &str, limit: usize) -> Markup {
    html! { bdi { (printable(&truncate(text, limit))) } }
}

/// Returns the start of a text: at most `limit` characters, and at most twice as many bytes of
/// HTML. A text of quotes would grow sixfold, and the page with it.
fn truncate(text: &str, limit: usize) -> String {
    let mut bytes_left = limit * 2;
    let fits = |c: &char| {
        let size = match c {
            '"' => "&quot;".len(),
            '&' => "&amp;".len(),
            '<' | '>' => "&lt;".len(),
            c => c.len_utf8(),
        };
        bytes_left
            .checked_sub(size)
            .map(|left| bytes_left = left)
            .is_some()
    };
    let mut start: String = text.chars().take(limit).take_while(fits).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

/// Renders a time, to the second.
fn timestamp(at: OffsetDateTime) -> Markup {
    let datetime = at.format(&Rfc3339).unwrap_or_default();
    html! { time datetime=(datetime) { (format_time(at)) } }
}

/// Renders a time, and how long ago that was.
fn timestamp_with_age(at: OffsetDateTime, now: OffsetDateTime) -> Markup {
    html! { (timestamp(at)) " " span .ago { "(" (format_duration(now - at)) " ago)" } }
}

/// Renders a sentence of ours. A place in it that is followed by its address, as in `Business
/// Support Home (https://…)`, becomes a link.
fn sentence_with_link(sentence: &str) -> Markup {
    const PLACES: [&str; 2] = ["Business Support Home", "Billing & payments"];
    let sentence = printable(&truncate(sentence, 500));
    let parts = PLACES.iter().find_map(|place| {
        let (before, rest) = sentence.split_once(&format!("{place} ({META_BUSINESS}"))?;
        let (path, after) = rest.split_once(')')?;
        is_path(path).then(|| (before, *place, format!("{META_BUSINESS}{path}"), after))
    });
    html! {
        @match parts {
            Some((before, place, url, after)) => { (before) (external_link(&url, place)) (after) }
            None => bdi { (sentence) }
        }
    }
}

/// Returns whether a text can only be a path and a query: a sentence may quote Meta.
fn is_path(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_-?=".contains(c);
    text.chars().all(is_plain)
}

fn external_link(url: &str, text: &str) -> Markup {
    html! {
        a href=(url) rel="noopener noreferrer" target="_blank" {
            (text)
            span .out aria-hidden="true" { " ↗" }
            span .sr { " (opens a new tab)" }
        }
    }
}

/// Renders the state of an incident.
fn badge(is_open: bool, state: &str) -> Markup {
    html! { span .badge .open[is_open] { (state) } }
}

/// Middleware: a browser that asked for a page gets a [`Problem`] as a page.
pub(super) async fn render_problem_pages(request: Request, next: Next) -> Response {
    let is_page = !request.uri().path().starts_with("/api/") && accepts_html(request.headers());
    let response = next.run(request).await;
    let problem = response.extensions().get::<Problem>();
    let Some(problem) = problem.filter(|_| is_page) else {
        return response;
    };
    let main = html! {
        section .problem {
            h1 { (problem.title) }
            p { (untrusted(&problem.detail, 600)) }
            p { a href="/" { "All incidents" } }
        }
    };
    let now = OffsetDateTime::now_utc();
    let page = page_response(problem.title, Refresh::Never, now, &main);
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let (page, body) = page.into_parts();
    parts.headers.extend(page.headers);
    Response::from_parts(parts, body)
}

fn accepts_html(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|range| range.trim_start().starts_with("text/html"))
}
