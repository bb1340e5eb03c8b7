//! `/`: the open incidents first, then the resolved ones.

use std::collections::BTreeMap;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::picture::sparkline;
use super::{Refresh, badge, full_time, linked, page as whole_page, received, time_ago};
use crate::http::error::Problem;
use crate::http::query::{Query, cursor, filter, parse_cursor};
use crate::lockout::cause::LockoutCause;
use crate::report::text::{count, duration, ended, grouped, printable};
use crate::report::timeline::sparklines;
use crate::report::{self, IncidentReport, NumberReport, Page};
use crate::store::incidents::{self, IncidentFilter, IncidentState};
use crate::store::{Pool, bounded};

const OPEN: i64 = 20;
const RESOLVED: i64 = 25;
const LONGEST_SEARCH: usize = 64;

/// The query of the page: its filters, and the text that is searched for.
struct ListQuery {
    filter: IncidentFilter,
    /// What is searched for; empty: nothing.
    search: String,
}

impl ListQuery {
    fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let mut query = Query::parse_form(query);
        let mut filter = filter(&mut query)?;
        let search = query.take("q", |text| {
            let text = text.trim().trim_start_matches('+').replace('\0', "");
            if text.chars().count() > LONGEST_SEARCH {
                Err("longer than 64 characters")
            } else {
                Ok(text)
            }
        })?;
        filter.before = query.take("cursor", |text| {
            parse_cursor('i', text).ok_or("not a cursor of this list")
        })?;
        query.finish()?;
        Ok(Self {
            filter,
            search: search.unwrap_or_default(),
        })
    }

    fn is_filtered(&self) -> bool {
        let IncidentFilter {
            state,
            waba_id,
            cause,
            since,
            until,
            among: _,
            before,
        } = &self.filter;
        let has_words = waba_id.is_some() || cause.is_some() || !self.search.is_empty();
        *state != IncidentState::All
            || has_words
            || since.is_some()
            || until.is_some()
            || before.is_some()
    }

    /// Filters that the form has no field for.
    fn unseen(&self) -> Vec<(&'static str, String)> {
        let time = |time: Option<OffsetDateTime>| time?.format(&Rfc3339).ok();
        let IncidentFilter {
            waba_id,
            since,
            until,
            ..
        } = &self.filter;
        let filters = [
            ("waba_id", waba_id.as_ref().map(ToString::to_string)),
            ("since", time(*since)),
            ("until", time(*until)),
        ];
        filters
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// The same list in another state, from some incident on.
    fn link(&self, state: &str, before: Option<i64>) -> String {
        let mut query = form_urlencoded::Serializer::for_suffix(String::from("/?"), 2);
        query.append_pair("state", state);
        let search = Some(self.search.as_str()).filter(|search| !search.is_empty());
        let seen = [
            ("cause", self.filter.cause.map(LockoutCause::as_str)),
            ("q", search),
        ];
        query.extend_pairs(
            seen.into_iter()
                .filter_map(|(name, word)| Some((name, word?))),
        );
        query.extend_pairs(self.unseen());
        if let Some(before) = before {
            query.append_pair("cursor", &cursor('i', before));
        }
        query.finish()
    }
}

pub(super) async fn page(
    State(db): State<Pool>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = ListQuery::parse(query.as_deref())?;
    let now = OffsetDateTime::now_utc();
    let open_count = bounded(incidents::count_open(&db)).await?;
    if !query.search.is_empty() {
        query.filter.among = Some(bounded(incidents::search(&db, &query.search)).await?);
    }
    let open = some(&db, &query, IncidentState::Open, OPEN).await?;
    let resolved = some(&db, &query, IncidentState::Resolved, RESOLVED).await?;
    let open_reports = open.as_ref().map_or(&[][..], |page| &page.data);
    let sparks = sparklines(&db, open_reports, now).await?;
    let title = match open_count {
        0 => "No open incident".to_owned(),
        n => locked(n),
    };
    let is_empty = [&open, &resolved]
        .into_iter()
        .flatten()
        .all(|page| page.data.is_empty());
    let main = html! {
        (headline(&title, open_count))
        @if is_empty && !query.is_filtered() {
            (welcome())
        } @else {
            (filter_form(&query))
            @if let Some(open) = &open { (open_section(&query, open, &sparks, now)) }
            @if let Some(resolved) = &resolved { (resolved_section(&query, resolved)) }
        }
    };
    Ok(whole_page(&title, Refresh::Always, now, &main))
}

/// The incidents of one state, unless the filter leaves them out.
async fn some(
    db: &Pool,
    query: &ListQuery,
    state: IncidentState,
    limit: i64,
) -> Result<Option<Page<IncidentReport>>, Problem> {
    if query.filter.state != IncidentState::All && query.filter.state != state {
        return Ok(None);
    }
    let filter = IncidentFilter {
        state,
        ..query.filter.clone()
    };
    Ok(Some(report::incidents(db, &filter, limit).await?))
}

fn locked(n: i64) -> String {
    match n {
        1 => "1 account is locked".to_owned(),
        n => format!("{} accounts are locked", grouped(n)),
    }
}

fn headline(title: &str, open_count: i64) -> Markup {
    html! {
        div #headline data-live .headline .alarm[open_count > 0] {
            h1 { (title) }
        }
    }
}

/// What to do when nothing ever came.
fn welcome() -> Markup {
    html! {
        section .welcome #welcome data-live {
            h2 { "No incident yet" }
            p { "That is good news, if Meta's callbacks arrive here. To connect them:" }
            ol {
                li { "Make Lockwatch's public address reachable over HTTPS, with a certificate that browsers accept." }
                li {
                    "In the " strong { "App Dashboard" } " of your Meta app open " strong { "WhatsApp › Configuration" }
                    ", enter " code { "https://…/webhook" } " as the callback URL and your "
                    code { "META_VERIFY_TOKEN" } " as the verify token."
                }
                li { "Subscribe to the field " code { "messages" } ": failed deliveries come with it." }
                li {
                    "Subscribe each account to the app (" code { "POST /<WABA_ID>/subscribed_apps" }
                    "). An account has one callback URL per app: to keep the one you have, use a second app."
                }
            }
            p { "When Meta locks an account, it is here within a second, and why a moment later." }
        }
    }
}

fn filter_form(query: &ListQuery) -> Markup {
    let IncidentFilter { state, cause, .. } = &query.filter;
    html! {
        form #filter .filter role="search" method="get" action="/" {
            label { "Account or number" input type="search" name="q" value=(printable(&query.search)) maxlength=(LONGEST_SEARCH) autocomplete="off"; }
            label {
                "State"
                select name="state" {
                    @for (which, word, text) in [(IncidentState::All, "all", "Open and resolved"), (IncidentState::Open, "open", "Open"), (IncidentState::Resolved, "resolved", "Resolved")] {
                        option value=(word) selected[which == *state] { (text) }
                    }
                }
            }
            label {
                "Cause"
                select name="cause" {
                    option value="" { "Any" }
                    @for known in LockoutCause::ALL {
                        option value=(known) selected[*cause == Some(known)] { (known.title()) }
                    }
                }
            }
            button { "Filter" }
            // What only an address says goes on with the form.
            @for (name, value) in query.unseen() { input type="hidden" name=(name) value=(value); }
            @if query.is_filtered() { a .clear href="/" { "Clear" } }
        }
    }
}

fn open_section(
    query: &ListQuery,
    page: &Page<IncidentReport>,
    sparks: &BTreeMap<i64, Vec<u64>>,
    now: OffsetDateTime,
) -> Markup {
    html! {
        section #open data-live aria-labelledby="open-title" {
            h2 #open-title { "Open" }
            @if page.data.is_empty() { p .none { @if query.is_filtered() { "None that fits." } @else { "None." } } }
            @for report in &page.data { (card(report, sparks.get(&report.incident.id), now)) }
            @if let Some(next) = page.next { p { a .older href=(query.link("open", Some(next))) { "Older open incidents" } } }
        }
    }
}

/// An open incident: who, why, since when, how many, and what now.
fn card(report: &IncidentReport, spark: Option<&Vec<u64>>, now: OffsetDateTime) -> Markup {
    let incident = &report.incident;
    let url = format!("/incidents/{}", incident.id);
    html! {
        article .card {
            header {
                h3 { a href=(url) { "Account " (received(incident.waba_id.as_str(), 64)) } }
                (badge(true, "open"))
            }
            p .cause { strong { (report.cause_title()) } @if let Some(summary) = &incident.cause_summary { ": " (received(summary, 240)) } }
            div .facts {
                p { span .label { "Locked since" } (time_ago(incident.opened_at, now)) }
                p {
                    span .label { "Failures" }
                    span .big { (grouped(incident.failure_count)) } " "
                    @if let Some(spark) = spark { (sparkline(spark)) }
                    span .ago { "latest " (duration(now - incident.last_failure_at)) " ago" }
                }
                p { span .label { (if report.affected_number_count == 1 { "Number" } else { "Numbers" }) } (numbers(report)) }
            }
            @if let Some(step) = report.next_steps.first() {
                p .next { span .label { "Next step" } (linked(step)) }
            }
        }
    }
}

fn numbers(report: &IncidentReport) -> Markup {
    let more = report.affected_number_count
        - i64::try_from(report.affected_numbers.len()).unwrap_or_default();
    html! {
        @for (position, NumberReport { number, .. }) in report.affected_numbers.iter().enumerate() {
            @if position > 0 { ", " }
            span .number { (received(number.display_phone_number.as_deref().unwrap_or(number.phone_number_id.as_str()), 40)) }
        }
        @if more > 0 { " and " (count(more, "more", "more")) }
    }
}

fn resolved_section(query: &ListQuery, page: &Page<IncidentReport>) -> Markup {
    html! {
        section #resolved data-live aria-labelledby="resolved-title" {
            h2 #resolved-title { "Resolved" }
            @if page.data.is_empty() {
                p .none { @if query.is_filtered() { "None that fits." } @else { "None yet." } }
            } @else {
                div .scroll role="region" aria-labelledby="resolved-title" tabindex="0" {
                    table {
                        thead { tr {
                            th scope="col" { "Account" } th scope="col" { "Cause" } th scope="col" { "Opened" }
                            th scope="col" { "Lasted" } th scope="col" .right { "Failures" } th scope="col" { "Ended" }
                        } }
                        tbody { @for report in &page.data { (row(report)) } }
                    }
                }
            }
            @if let Some(next) = page.next { p { a .older href=(query.link("resolved", Some(next))) { "Older resolved incidents" } } }
        }
    }
}

fn row(report: &IncidentReport) -> Markup {
    let incident = &report.incident;
    let lasted = incident
        .resolved_at
        .map(|at| duration(at - incident.opened_at))
        .unwrap_or_default();
    html! {
        tr {
            th scope="row" { a href={ "/incidents/" (incident.id) } { (received(incident.waba_id.as_str(), 64)) } }
            td { (report.cause_title()) }
            td { (full_time(incident.opened_at)) }
            td { (lasted) }
            td .right { (grouped(incident.failure_count)) }
            td { (ended(incident)) }
        }
    }
}
