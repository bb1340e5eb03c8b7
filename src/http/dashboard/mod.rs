//! The dashboard: what is locked, since when, why, and what to do now.
//!
//! Pages are rendered here, whole; they work without script. A small script refreshes them quietly and
//! copies the text for the appeal. Received text is hostile: maud escapes it, and what would turn a line
//! around or run away with the page is taken out ([`received`]).

mod incident;
mod list;
mod picture;

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use maud::{DOCTYPE, Markup, html};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::Problem;
use crate::report::text::{duration, moment, printable};
use crate::store::Pool;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
const ICON: &str = include_str!("icon.svg");

/// Where people appeal.
const SUPPORT_HOME: &str = "https://business.facebook.com/business-support-home";

pub(super) fn router(db: Pool) -> Router {
    Router::new()
        .route("/", get(list::page))
        .route("/incidents/{id}", get(incident::page))
        .route("/incidents/{id}/resolve", post(incident::resolve))
        .route(
            "/assets/style.css",
            get(|| async { asset("text/css; charset=utf-8", STYLE) }),
        )
        .route(
            "/assets/page.js",
            get(|| async { asset("text/javascript; charset=utf-8", SCRIPT) }),
        )
        .route(
            "/assets/icon.svg",
            get(|| async { asset("image/svg+xml", ICON) }),
        )
        .with_state(db)
}

/// An asset's address changes with what is in it.
fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (
            header::CACHE_CONTROL,
            "private, max-age=31536000, immutable",
        ),
    ];
    (headers, text).into_response()
}

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let digest = Sha256::new()
        .chain_update(STYLE)
        .chain_update(SCRIPT)
        .chain_update(ICON)
        .finalize();
    hex::encode(&digest[..6])
});

/// How a page stays up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refresh {
    /// By the script; without it by loading the page again.
    Always,
    /// By the script alone: loading it again would take away what somebody types.
    WithScript,
    /// Not at all.
    Never,
}

/// A whole page. Each part of `main` has an id, so that it can come and go; those with `data-live` change.
fn layout(title: &str, refresh: Refresh, now: OffsetDateTime, main: &Markup) -> Markup {
    let version = VERSION.as_str();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Other sites learn nothing from us. Our own forms must say where they come from, or a browser
                // that reached us over plain HTTP could not change anything.
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
                        "As of " (full_time(now))
                        @if refresh == Refresh::Never { ", not refreshed" }
                    }
                }
                main #main tabindex="-1" { (main) }
                footer {
                    p {
                        "Times are UTC. "
                        a href="/api/v1/incidents" { "API" } " · "
                        a href="/openapi.json" { "OpenAPI" } " · "
                        a href="/metrics" { "Metrics" } " · "
                        a href="/readyz" { "Readiness" } " · Lockwatch " (env!("CARGO_PKG_VERSION"))
                    }
                }
            }
        }
    }
}

fn page(title: &str, refresh: Refresh, now: OffsetDateTime, main: &Markup) -> Response {
    let html = layout(title, refresh, now, main).into_string();
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
}

/// Text of somebody else's, cut, in its own direction.
fn received(text: &str, at_most: usize) -> Markup {
    html! { bdi { (printable(&cut(text, at_most))) } }
}

/// The start of a text: so many characters, and at most twice as many bytes of HTML. A text of quotes would
/// grow sixfold, and the page with it.
fn cut(text: &str, at_most: usize) -> String {
    let mut room = at_most * 2;
    let fits = |c: &char| {
        let size = match c {
            '"' => "&quot;".len(),
            '&' => "&amp;".len(),
            '<' | '>' => "&lt;".len(),
            c => c.len_utf8(),
        };
        room.checked_sub(size).map(|left| room = left).is_some()
    };
    let mut start: String = text.chars().take(at_most).take_while(fits).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

/// A moment, to the second.
fn full_time(at: OffsetDateTime) -> Markup {
    html! { time datetime=(at.format(&Rfc3339).unwrap_or_default()) { (moment(at)) } }
}

/// How long ago a moment was, then the moment.
fn time_ago(at: OffsetDateTime, now: OffsetDateTime) -> Markup {
    html! { (full_time(at)) " " span .ago { "(" (duration(now - at)) " ago)" } }
}

/// A sentence of ours, or of Meta's, in which the addresses we know are links.
fn linked(sentence: &str) -> Markup {
    let sentence = printable(&cut(sentence, 400));
    let Some(start) = sentence.find(SUPPORT_HOME) else {
        return html! { bdi { (sentence) } };
    };
    let (before, rest) = sentence.split_at(start);
    let after = &rest[SUPPORT_HOME.len()..];
    // Ours stand in brackets after the name of the place: the name is enough.
    match (
        before.strip_suffix("Business Support Home ("),
        after.strip_prefix(')'),
    ) {
        (Some(before), Some(after)) => {
            html! { (before) (support_home("Business Support Home")) (after) }
        }
        _ => html! { bdi { (sentence) } },
    }
}

fn support_home(text: &str) -> Markup {
    html! { a href=(SUPPORT_HOME) rel="noopener noreferrer" target="_blank" { (text) span .out aria-hidden="true" { " ↗" } span .sr { " (opens a new tab)" } } }
}

/// The badge of a state.
fn badge(is_open: bool, word: &str) -> Markup {
    html! { span .badge .open[is_open] { (word) } }
}

/// A browser that asked for a page gets its problem as a page.
pub(super) async fn problems_as_pages(request: Request, next: Next) -> Response {
    let is_page = !request.uri().path().starts_with("/api/") && accepts_html(request.headers());
    let response = next.run(request).await;
    let Some(problem) = response.extensions().get::<Problem>().filter(|_| is_page) else {
        return response;
    };
    let main = html! {
        section .problem {
            h1 { (problem.title) }
            p { (received(&problem.detail, 600)) }
            p { a href="/" { "All incidents" } }
        }
    };
    let page = page(
        problem.title,
        Refresh::Never,
        OffsetDateTime::now_utc(),
        &main,
    );
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

/// Sends a browser on after it changed something.
fn see_other(location: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}
