//! `/`: the open incidents, then the resolved ones.

use std::collections::BTreeMap;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::chart::sparkline;
use super::{
    Pages, Refresh, badge, page_response, sentence_with_link, timestamp, timestamp_with_age,
    untrusted,
};
use crate::alerts::Roster;
use crate::http::error::Problem;
use crate::http::query::{List, Query, parse_filter};
use crate::lockout::cause::LockoutCause;
use crate::lockout::trouble::TroubleKind;
use crate::meta::codes::{ACCOUNT_LOCKED, WatchedCodes};
use crate::report::text::{
    describe_activity, describe_state, format_count, format_duration, format_number, printable,
};
use crate::report::timeline::load_sparklines;
use crate::report::{self, IncidentReport, NumberReport, Page};
use crate::store::alerts::{self, ChannelState};
use crate::store::incidents::{self, IncidentFilter, IncidentState};
use crate::store::troubles::{self, Trouble};
use crate::store::{Pool, backlog, bounded};

const OPEN_ROWS: i64 = 20;
const RESOLVED_ROWS: i64 = 25;
const SEARCH_LIMIT_CHARACTERS: usize = 64;
const BACKLOG_LIMIT_CHARACTERS: usize = 2000;
/// The most troubles that are named.
const TROUBLES_LIMIT: i64 = 10;

/// The query of the page: its filters and the text to search for.
struct ListQuery {
    filter: IncidentFilter,
    /// Empty if nothing is searched for.
    search: String,
}

impl ListQuery {
    fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let mut query = Query::parse_form(query);
        let mut filter = parse_filter(&mut query)?;
        let search = query.take("q", |text| {
            let text = text.trim().trim_start_matches('+').replace('\0', "");
            if text.chars().count() > SEARCH_LIMIT_CHARACTERS {
                Err("longer than 64 characters")
            } else {
                Ok(text)
            }
        })?;
        filter.before = query.take_cursor("cursor", List::Incidents)?;
        query.reject_unknown()?;
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
        *state != IncidentState::All
            || waba_id.is_some()
            || cause.is_some()
            || !self.search.is_empty()
            || since.is_some()
            || until.is_some()
            || before.is_some()
    }

    /// Returns the filters that have no field in the form.
    fn hidden_filters(&self) -> Vec<(&'static str, String)> {
        let format = |time: OffsetDateTime| time.format(&Rfc3339).ok();
        let waba_id = self.filter.waba_id.as_ref().map(ToString::to_string);
        let filters = [
            ("waba_id", waba_id),
            ("since", self.filter.since.and_then(format)),
            ("until", self.filter.until.and_then(format)),
        ];
        filters
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// Returns the link to the same list in one state, with the incidents before some id.
    fn link(&self, state: &str, before: Option<i64>) -> String {
        let mut query = form_urlencoded::Serializer::for_suffix(String::from("/?"), 2);
        query.append_pair("state", state);
        if let Some(cause) = self.filter.cause {
            query.append_pair("cause", cause.as_str());
        }
        if !self.search.is_empty() {
            query.append_pair("q", &self.search);
        }
        query.extend_pairs(self.hidden_filters());
        if let Some(before) = before {
            query.append_pair("cursor", &List::Incidents.format_cursor(before));
        }
        query.finish()
    }
}

pub(super) async fn show(
    State(Pages { db, shown }): State<Pages>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = ListQuery::parse(query.as_deref())?;
    let now = OffsetDateTime::now_utc();
    let open_count = bounded(incidents::count_open(&db)).await?;
    if !query.search.is_empty() {
        query.filter.among = Some(bounded(incidents::search(&db, &query.search)).await?);
    }
    let open = load_page(&db, &query, IncidentState::Open, OPEN_ROWS).await?;
    let resolved = load_page(&db, &query, IncidentState::Resolved, RESOLVED_ROWS).await?;
    let open_reports = open.as_ref().map_or(&[][..], |page| &page.data);
    let sparklines = load_sparklines(&db, open_reports, now).await?;
    let mut notices = report::backlog::describe(&bounded(backlog::fetch(&db)).await?);
    let roster = shown.roster.borrow().clone();
    let channels = bounded(alerts::channel_states(&db)).await?;
    let troubles = bounded(troubles::list_open(&db, TROUBLES_LIMIT)).await?;
    notices.extend(describe_troubles(&troubles));
    notices.extend(describe_channels(&channels, &roster));
    let title = headline(open_count, &shown.codes);
    let is_empty = [&open, &resolved]
        .into_iter()
        .flatten()
        .all(|page| page.data.is_empty());
    let main = html! {
        div #headline data-live .headline .alarm[open_count > 0] .warned[!troubles.is_empty()] {
            h1 { (title) }
            @if open_count == 0 && !troubles.is_empty() {
                p { "But Lockwatch may not hear of one, or not tell why." }
            } @else if open_count == 0 {
                p { (calm(&shown.codes)) }
            }
        }
        @if !notices.is_empty() {
            div #backlog data-live .notice {
                @for sentence in &notices {
                    p { (sentence_with_commands(sentence)) }
                }
            }
        }
        @if roster.channels.is_empty() {
            p .untold {
                "Nobody is told of a lockout: no channel for alerts is set, such as "
                code { "LOCKWATCH_ALERT_SLACK_URL" } ". " a href="/alerts" { "Alerts" }
            }
        }
        @if is_empty && !query.is_filtered() {
            (welcome())
        } @else {
            (filter_form(&query))
            @if let Some(open) = &open {
                (open_section(&query, open, &sparklines, now))
            }
            @if let Some(resolved) = &resolved {
                (resolved_section(&query, resolved))
            }
        }
    };
    Ok(page_response(&title, Refresh::Always, now, &main))
}

/// Renders a sentence, with its commands between backticks as code.
fn sentence_with_commands(sentence: &str) -> Markup {
    html! {
        @for (n, part) in sentence.split('`').enumerate() {
            @if n % 2 == 1 { code { (part) } } @else { (untrusted(part, BACKLOG_LIMIT_CHARACTERS)) }
        }
    }
}

/// Loads a page of incidents in one state. `None` if the filter asks for the other state.
async fn load_page(
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
    Ok(Some(report::list_incidents(db, &filter, limit).await?))
}

fn headline(open_count: i64, codes: &WatchedCodes) -> String {
    match (open_count, codes.codes()) {
        (0, _) => "No open incident".to_owned(),
        (1, [ACCOUNT_LOCKED]) => "1 account is locked".to_owned(),
        (n, [ACCOUNT_LOCKED]) => format!("{} accounts are locked", format_number(n)),
        (n, _) => format_count(n, "open incident", "open incidents"),
    }
}

/// Describes the channels that do not take alerts, in sentences with commands between backticks.
fn describe_channels(states: &[ChannelState], roster: &Roster) -> Vec<String> {
    let problem = roster.problem.iter().map(|problem| {
        format!("The channels read earlier stay in use. LOCKWATCH_ALERTS_FILE {problem}")
    });
    let is_ours = |state: &&ChannelState| {
        let mut channels = roster.channels.iter();
        state.is_failing() && channels.any(|channel| channel.name() == state.channel)
    };
    let failing = states.iter().filter(is_ours).map(|state| {
        let waiting = match state.waiting {
            0 => String::new(),
            n => format!(" {}.", format_count(n, "alert waits", "alerts wait")),
        };
        let dead = match state.dead {
            0 => String::new(),
            n => format!(
                " {}.",
                format_count(n, "alert was given up", "alerts were given up")
            ),
        };
        let answer = state.last_answer.as_deref().unwrap_or("none yet");
        let retry = match state.waiting + state.dead {
            0 => "",
            _ => " `lockwatch alerts retry` sends them again.",
        };
        let channel = &state.channel;
        format!("{channel} does not take alerts.{waiting}{dead} Its last answer: {answer}.{retry}")
    });
    problem.chain(failing).collect()
}

/// Describes what keeps Lockwatch from hearing or telling, each in a sentence.
fn describe_troubles(troubles: &[Trouble]) -> Vec<String> {
    // The inbox and the quarantine are described anyway.
    let is_described = |trouble: &&Trouble| {
        let kind = TroubleKind::parse(&trouble.kind);
        !matches!(
            kind,
            Some(TroubleKind::InboxStuck | TroubleKind::Quarantined)
        )
    };
    let shown = troubles.iter().filter(is_described);
    let sentences = shown.map(|trouble| {
        format!(
            "{}. {} {}",
            trouble.title(),
            trouble.detail,
            trouble.advice()
        )
    });
    sentences.collect()
}

/// Says what is watched while nothing is wrong.
fn calm(codes: &WatchedCodes) -> String {
    match codes.codes() {
        [ACCOUNT_LOCKED] => {
            "No account is locked (131031). Other errors are not watched.".to_owned()
        }
        _ => format!("No account and no number is stopped. Watched errors: {codes}."),
    }
}

/// Renders the steps that connect Meta, for a database without incidents.
fn welcome() -> Markup {
    html! {
        section .welcome #welcome data-live {
            h2 { "No incident yet" }
            p {
                "This is good news if Meta's callbacks arrive here. To connect them:"
            }
            ol {
                li {
                    "Make Lockwatch's public address reachable over HTTPS, with a certificate that "
                    "browsers accept."
                }
                li {
                    "In the " strong { "App Dashboard" } " of your Meta app open "
                    strong { "WhatsApp › Configuration" } ", enter " code { "https://…/webhook" }
                    " as the callback URL and your " code { "META_VERIFY_TOKEN" }
                    " as the verify token."
                }
                li {
                    "Subscribe to the fields " code { "messages" } " (it reports failed "
                    "deliveries) and " code { "account_update" } " (bans and violations, often hours before)."
                }
                li {
                    "Subscribe each account to the app ("
                    code { "POST /<WABA_ID>/subscribed_apps" }
                    "). An account has one callback URL per app: to keep the one you have, use a "
                    "second app."
                }
            }
            p {
                "When a message fails because Meta locked its account, Lockwatch records it within a "
                "second, and this page shows it at its next refresh. The cause follows a moment later."
            }
        }
    }
}

fn filter_form(query: &ListQuery) -> Markup {
    const STATES: [(IncidentState, &str, &str); 3] = [
        (IncidentState::All, "all", "Open and resolved"),
        (IncidentState::Open, "open", "Open"),
        (IncidentState::Resolved, "resolved", "Resolved"),
    ];
    let IncidentFilter { state, cause, .. } = &query.filter;
    html! {
        form #filter .filter role="search" method="get" action="/" {
            label {
                "Account or number"
                input type="search" name="q" value=(printable(&query.search))
                    maxlength=(SEARCH_LIMIT_CHARACTERS) autocomplete="off";
            }
            label {
                "State"
                select name="state" {
                    @for (known, word, text) in STATES {
                        option value=(word) selected[known == *state] {
                            (text)
                        }
                    }
                }
            }
            label {
                "Cause"
                select name="cause" {
                    option value="" { "Any" }
                    @for known in LockoutCause::ALL {
                        option value=(known) selected[*cause == Some(known)] {
                            (known.title())
                        }
                    }
                }
            }
            button { "Filter" }
            // Filters without a field stay when the form is sent.
            @for (name, value) in query.hidden_filters() {
                input type="hidden" name=(name) value=(value);
            }
            @if query.is_filtered() { a .clear href="/" { "Clear" } }
        }
    }
}

fn open_section(
    query: &ListQuery,
    page: &Page<IncidentReport>,
    sparklines: &BTreeMap<i64, Vec<u64>>,
    now: OffsetDateTime,
) -> Markup {
    html! {
        section #open data-live aria-labelledby="open-title" {
            h2 #open-title { "Open" }
            @if page.data.is_empty() {
                p .none {
                    (if query.is_filtered() { "No incident matches." } else { "None." })
                }
            }
            @for report in &page.data {
                (incident_card(report, sparklines.get(&report.incident.id), now))
            }
            @if let Some(next) = page.next {
                p {
                    a .older href=(query.link("open", Some(next))) { "Older open incidents" }
                }
            }
        }
    }
}

/// Renders an open incident: account, cause, age, failures, numbers and the next step.
fn incident_card(
    report: &IncidentReport,
    failures: Option<&Vec<u64>>,
    now: OffsetDateTime,
) -> Markup {
    let incident = &report.incident;
    let url = format!("/incidents/{}", incident.id);
    let has_one_number = report.affected_number_count == 1;
    html! {
        article .card {
            header {
                h3 {
                    a href=(url) { "Account " (untrusted(incident.waba_id.as_str(), 64)) }
                    @if let Some(name) = &incident.account_name { " " (untrusted(name, 60)) }
                }
                (badge(true, "open"))
            }
            p .cause {
                strong { (report.cause_title()) }
                @if let Some(summary) = &incident.cause_summary {
                    ": " (untrusted(summary, 240))
                }
            }
            div .facts {
                p {
                    span .label { (report.opening_label()) }
                    (timestamp_with_age(incident.opened_at, now))
                }
                p {
                    span .label { "Failures" }
                    span .big { (format_number(incident.failure_count)) } " "
                    @if let Some(failures) = failures {
                        (sparkline(failures))
                    }
                    span .ago { (describe_activity(incident, now)) }
                }
                p {
                    span .label {
                        (if has_one_number { "Number" } else { "Numbers" })
                    }
                    (affected_numbers(report))
                }
            }
            @if let Some(step) = report.next_steps.first() {
                p .next {
                    span .label { "Next step" } (sentence_with_link(step))
                }
            }
        }
    }
}

fn affected_numbers(report: &IncidentReport) -> Markup {
    let listed = i64::try_from(report.affected_numbers.len()).unwrap_or_default();
    let more = report.affected_number_count - listed;
    let name = |NumberReport { number, .. }: &NumberReport| {
        let id = number.phone_number_id.as_str();
        untrusted(number.display_phone_number.as_deref().unwrap_or(id), 40)
    };
    html! {
        @for (position, number) in report.affected_numbers.iter().enumerate() {
            @if position > 0 { ", " }
            span .number { (name(number)) }
        }
        @if more > 0 { " and " (format_count(more, "more", "more")) }
    }
}

fn resolved_section(query: &ListQuery, page: &Page<IncidentReport>) -> Markup {
    let empty = if query.is_filtered() {
        "No incident matches."
    } else {
        "None yet."
    };
    html! {
        section #resolved data-live aria-labelledby="resolved-title" {
            h2 #resolved-title { "Resolved" }
            @if page.data.is_empty() {
                p .none { (empty) }
            } @else {
                div .scroll role="region" aria-labelledby="resolved-title" tabindex="0" {
                    table {
                        thead {
                            tr {
                                th scope="col" { "Account" }
                                th scope="col" { "Cause" }
                                th scope="col" { "Opened" }
                                th scope="col" { "Lasted" }
                                th scope="col" .right { "Failures" }
                                th scope="col" { "Ended" }
                            }
                        }
                        tbody {
                            @for report in &page.data { (resolved_row(report)) }
                        }
                    }
                }
            }
            @if let Some(next) = page.next {
                p {
                    a .older href=(query.link("resolved", Some(next))) {
                        "Older resolved incidents"
                    }
                }
            }
        }
    }
}

fn resolved_row(report: &IncidentReport) -> Markup {
    let incident = &report.incident;
    let url = format!("/incidents/{}", incident.id);
    let lasted = incident.ended_at.map(|at| at - incident.opened_at);
    html! {
        tr {
            th scope="row" {
                a href=(url) { (untrusted(incident.waba_id.as_str(), 64)) }
            }
            td { (report.cause_title()) }
            td { (timestamp(incident.opened_at)) }
            td { (lasted.map(format_duration).unwrap_or_default()) }
            td .right { (format_number(incident.failure_count)) }
            td { (describe_state(incident)) }
        }
    }
}
