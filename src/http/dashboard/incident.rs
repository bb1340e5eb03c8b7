//! `/incidents/{id}`: one incident: the next steps, the timeline, the evidence for the cause, the
//! numbers, the text for the appeal, the checks and the deliveries.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, Render, html};
use time::OffsetDateTime;

use super::chart::timeline_chart;
use super::checks::{PageBudget, check_verdict, checks_section, entities_table, fields_line};
use super::deliveries::deliveries_section;
use super::incident_query::PageQuery;
use super::{
    Refresh, badge, external_link, page_response, sentence_with_link, timestamp,
    timestamp_with_age, truncate, untrusted,
};
use crate::http::auth::Login;
use crate::http::by_hand::{self, complete_body};
use crate::http::error::Problem;
use crate::http::query::IncidentId;
use crate::lockout::cause::{LockoutCause, Scope, support_home_url};
use crate::lockout::codes::Kind;
use crate::lockout::note::Note;
use crate::report::appeal::{EXAMPLE_LIMIT, write_appeal};
use crate::report::text::{
    describe_activity, describe_change, describe_state, format_count, format_duration,
    format_number, was_noticed_later,
};
use crate::report::timeline::{CHART_BINS, Timeline, load_timeline};
use crate::report::{self, AlsoFound, IncidentReport, NumberReport, Page, Recipients};
use crate::store::Pool;
use crate::store::changes::IncidentChange;
use crate::store::checks::HealthCheck;
use crate::store::deliveries::Delivery;
use crate::store::incidents::Incident;

const DELIVERY_ROWS: i64 = 20;
const CHECK_ROWS: i64 = 8;
/// The most steps of its history. The API returns all.
const CHANGE_ROWS: i64 = 12;
/// The most numbers in the table. The API returns up to 100.
const NUMBER_ROWS: usize = 20;
/// The most numbers in the text for the appeal.
const APPEAL_NUMBER_LIMIT: usize = 25;
const APPEAL_LIMIT_CHARACTERS: usize = 4000;
/// A look-up may be this late before the page calls it overdue: it has to be claimed, asked and
/// saved.
const LOOKUP_GRACE_PERIOD: time::Duration = time::Duration::minutes(2);
/// The most things that are listed as found beside the cause. The API returns all.
const ALSO_FOUND_LIMIT: usize = 12;
/// The space for Meta's verdicts on the entities in the section about the cause.
const EVIDENCE_LIMIT_BYTES: usize = 8_000;
/// The size of the page without its frame. Checks show their details as long as they fit; with
/// Meta's usual answers all of them do.
const PAGE_LIMIT_BYTES: usize = 94_000;

/// The data of the page.
struct PageData {
    report: IncidentReport,
    timeline: Timeline,
    deliveries: Page<Delivery>,
    checks: Page<HealthCheck>,
    changes: Page<IncidentChange>,
}

impl PageData {
    async fn load(db: &Pool, query: &PageQuery, now: OffsetDateTime) -> Result<Self, Problem> {
        let PageQuery { id, recipients, .. } = *query;
        let unknown = || Problem::no_incident(id);
        let report = report::find_incident(db, id).await?;
        let report = report.ok_or_else(unknown)?;
        let timeline = load_timeline(db, &report, now, CHART_BINS).await?;
        let before = query.deliveries_before;
        let deliveries = report::list_deliveries(db, id, before, DELIVERY_ROWS, recipients).await?;
        let checks = report::list_checks(db, id, query.checks_before, CHECK_ROWS).await?;
        let changes = report::list_changes(db, id, None, CHANGE_ROWS).await?;
        Ok(Self {
            report,
            timeline,
            deliveries: deliveries.ok_or_else(unknown)?,
            checks: checks.ok_or_else(unknown)?,
            changes: changes.ok_or_else(unknown)?,
        })
    }
}

pub(super) async fn show(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = PageQuery::parse(id, query.as_deref())?;
    let now = OffsetDateTime::now_utc();
    let data = PageData::load(&db, &query, now).await?;
    query.recipients.log_if_revealed(id);
    let refresh = match query.recipients {
        Recipients::Masked => Refresh::WithScript,
        // Every refresh would write a line to the log.
        Recipients::Revealed => Refresh::Never,
    };
    let incident = &data.report.incident;
    let title = format!("Account {} {}", incident.waba_id, data.report.state());
    let content = page_content(&query, &data, now);
    Ok(page_response(&title, refresh, now, &content))
}

fn page_content(query: &PageQuery, data: &PageData, now: OffsetDateTime) -> Markup {
    let report = &data.report;
    let is_open = report.incident.resolved_at.is_none();
    let before_checks = html! {
        (headline(report, is_open))
        (facts_list(report, now))
        @if is_open { (next_steps_section(report)) }
        section #timeline data-live aria-labelledby="timeline-heading" {
            h2 #timeline-heading { "Timeline" }
            (timeline_chart(report, &data.timeline))
        }
        (cause_section(report))
        (numbers_section(report, now))
        (history_section(&data.changes))
        (appeal_section(query, report, &data.deliveries.data, now))
        @if is_open { (resolve_section(report)) } @else { (reopen_section(report)) }
    };
    let deliveries = deliveries_section(query, &data.deliveries);
    let used = before_checks.0.len() + deliveries.0.len();
    let budget = PageBudget(PAGE_LIMIT_BYTES.saturating_sub(used));
    html! { (before_checks) (checks_section(query, &data.checks, budget)) (deliveries) }
}

fn headline(report: &IncidentReport, is_open: bool) -> Markup {
    let incident = &report.incident;
    html! {
        nav #crumbs .crumbs aria-label="Breadcrumb" {
            a href="/" { "All incidents" } " › Incident " (incident.id)
        }
        div #headline data-live .headline .alarm[is_open] {
            h1 {
                "Account " (account_name(incident))
                " " (report.state()) " "
                (badge(is_open, &describe_state(incident)))
            }
            p .cause {
                strong { (report.cause_title()) }
                @if let Some(summary) = &incident.cause_summary {
                    ": " (untrusted(summary, 400))
                }
            }
        }
    }
}

/// The name of the account with its id, or the id alone.
fn account_name(incident: &Incident) -> Markup {
    let id = untrusted(incident.waba_id.as_str(), 64);
    html! {
        @match &incident.account_name {
            Some(name) => { (untrusted(name, 60)) " " small { "(" (id) ")" } }
            None => (id)
        }
    }
}

fn facts_list(report: &IncidentReport, now: OffsetDateTime) -> Markup {
    let incident = &report.incident;
    let locked = report.opening_label();
    let opened = timestamp_with_age(incident.opened_at, now);
    let latest_failure = html! {
        @let activity = describe_activity(incident, now);
        @let is_open = incident.resolved_at.is_none();
        @if is_open && activity.starts_with("silent") {
            (timestamp(incident.last_failure_at)) " "
        } @else if incident.failure_count > 0 {
            (timestamp_with_age(incident.last_failure_at, now)) " "
        }
        @if is_open { (activity) }
    };
    html! {
        dl #facts data-live .facts {
            (fact(locked, opened))
            @if let Some(at) = incident.resolved_at {
                @let ended_at = incident.ended_at.unwrap_or(at);
                @if was_noticed_later(incident) {
                    (fact("Ended", resolution_time(ended_at, ended_at - incident.opened_at)))
                    (fact("Noticed", timestamp(at)))
                } @else {
                    (fact("Resolved", resolution_time(at, ended_at - incident.opened_at)))
                }
            }
            (fact("Messages failed", big_number(incident.failure_count)))
            (fact("Latest failure", latest_failure))
            (fact("Numbers affected", big_number(report.affected_number_count)))
            @if let Some(portfolio) = portfolio(incident) {
                (wide_fact("Business portfolio", portfolio))
            }
            @if let Some(note) = &incident.resolution_note {
                (wide_fact("Note", untrusted(note, Note::LIMIT_CHARACTERS)))
            }
            @if let Some(at) = incident.acknowledged_at {
                (fact("Acknowledged", html! {
                    (timestamp(at))
                    @if let Some(by) = &incident.acknowledged_by { " by " (untrusted(by, 60)) }
                }))
            }
            @if let Some(previous) = incident.previous_incident_id {
                (fact("Previous incident", incident_link(previous)))
            }
        }
    }
}

/// The business portfolio of the account: only its admins can appeal.
fn portfolio(incident: &Incident) -> Option<Markup> {
    let id = incident.portfolio_id.as_ref()?;
    Some(html! {
        @if let Some(name) = &incident.portfolio_name { (untrusted(name, 60)) " " }
        small { "ID " (untrusted(id, 64)) }
    })
}

fn fact(name: &str, value: impl Render) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn wide_fact(name: &str, value: impl Render) -> Markup {
    html! { div .wide { dt { (name) } dd { (value) } } }
}

fn big_number(n: i64) -> Markup {
    html! { span .big { (format_number(n)) } }
}

fn resolution_time(at: OffsetDateTime, after: time::Duration) -> Markup {
    html! { (timestamp(at)) " " span .ago { "(after " (format_duration(after)) ")" } }
}

fn incident_link(id: i64) -> Markup {
    html! { a href={ "/incidents/" (id) } { "Incident " (id) } }
}

fn next_steps_section(report: &IncidentReport) -> Markup {
    let support_home = support_home_url(report.incident.portfolio_id.as_deref());
    html! {
        section #steps data-live .todo aria-labelledby="steps-heading" {
            h2 #steps-heading { "What to do now" }
            @if is_probably_over(report) {
                p {
                    strong { "The lockout may be over: " }
                    "Meta's latest health checks show no block of any number. If the next checks "
                    "confirm it and no message fails until then, the incident resolves by itself. "
                    "To know it sooner, send a test message now."
                }
            }
            ol {
                @for step in &report.next_steps { li { (sentence_with_link(step)) } }
            }
            p {
                (external_link(&support_home, "Open Business Support Home")) " · "
                a href="#appeal" { "Text for the appeal" } " · "
                a href="#resolve" { "Mark as resolved" }
            }
            @if report.incident.acknowledged_at.is_none() {
                form method="post"
                    action={ "/incidents/" (report.incident.id) "/acknowledge" } {
                    button .quiet { "Acknowledge" } " "
                    small { "Tells others that somebody works on it, and stops reminders." }
                }
            }
        }
    }
}

/// Returns `true` if the latest check of every number was clear and the incident waits for a second
/// one.
fn is_probably_over(report: &IncidentReport) -> bool {
    let last_failure_at = report.incident.last_failure_at;
    let is_clear = |NumberReport { number, .. }: &NumberReport| {
        number.clear_since.is_some_and(|at| at > last_failure_at)
    };
    report.cause().is_some_and(LockoutCause::is_found)
        && report.affected_numbers.iter().all(is_clear)
}

fn cause_section(report: &IncidentReport) -> Markup {
    let incident = &report.incident;
    let cause = html! { code { (untrusted(incident.cause.as_str(), 64)) } };
    let entity = incident.cause_entity_type.as_ref().map(|kind| {
        let id = incident.cause_entity_id.as_deref().unwrap_or_default();
        html! { (untrusted(kind, 64)) " " (untrusted(id, 64)) }
    });
    html! {
        section #why data-live aria-labelledby="why-heading" {
            h2 #why-heading { "Why" }
            dl .facts {
                (fact("Cause", cause))
                @if let Some(at) = incident.cause_recorded_at {
                    (fact("Recorded", timestamp(at)))
                }
                @if let Some(denial) = &incident.denial {
                    (fact("Refused because of", html! { code { (untrusted(denial.as_str(), 32)) } }))
                }
                @if incident.cause_scope.as_deref() == Some("number") {
                    (fact("Concerns", "single numbers"))
                }
                @if incident.cause_confidence.as_deref() == Some("inferred") {
                    (fact("Confidence", "inferred: Meta does not state it"))
                }
                @if let Some(entity) = entity { (fact("Entity", entity)) }
                @if let Some(severity) = &incident.cause_severity {
                    (fact("Meta's verdict", untrusted(severity, 64)))
                }
                @if let Some(code) = incident.cause_error_code { (fact("Meta's code", code)) }
                @if let Some(advice) = &incident.possible_solution {
                    (wide_fact("Meta's advice", untrusted(advice, 600)))
                }
            }
            (evidence(report))
            (account_events(report))
            (also_found(report))
        }
    }
}

/// Renders what Meta reported about the account itself.
fn account_events(report: &IncidentReport) -> Markup {
    html! {
        @if !report.account_events.is_empty() {
            div .scroll role="region" aria-label="Meta's notices about the account" tabindex="0" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Meta's notice" }
                            th scope="col" { "State" }
                            th scope="col" { "What Meta says" }
                            th scope="col" { "Until" }
                        }
                    }
                    tbody {
                        @for event in report.account_events.iter().rev().take(ALSO_FOUND_LIMIT) {
                            tr {
                                th scope="row" {
                                    (untrusted(&event.event, 64)) br;
                                    small { (timestamp(event.occurred_at)) }
                                }
                                td {
                                    @let states = event.state.as_deref().unwrap_or_default();
                                    @for state in states.split(',') {
                                        (untrusted(state, 64)) " "
                                    }
                                }
                                td { (untrusted(event.detail.as_deref().unwrap_or_default(), 300)) }
                                td { @if let Some(at) = event.expires_at { (timestamp(at)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Renders what stands beside the cause.
fn also_found(report: &IncidentReport) -> Markup {
    let found = || report.also_found.iter().take(ALSO_FOUND_LIMIT);
    let explaining = |scope: Scope| {
        let found = found().filter(|found| found.can_explain && found.scope == scope);
        found.collect::<Vec<_>>()
    };
    let (lesser, of_numbers) = (explaining(Scope::Account), explaining(Scope::Number));
    let cannot: Vec<_> = found().filter(|found| !found.can_explain).collect();
    let list = |found: &[&AlsoFound]| {
        html! { ul { @for found in found { li { (untrusted(&found.summary, 300)) } } } }
    };
    html! {
        @if !lesser.is_empty() {
            p { "Also found, and less grave:" }
            (list(&lesser))
        }
        @if !of_numbers.is_empty() {
            p { "Also found. It explains the failures of single numbers:" }
            (list(&of_numbers))
        }
        @if !cannot.is_empty() {
            p { "Also found. None of this can explain why the account is locked:" }
            (list(&cannot))
        }
    }
}

fn evidence(report: &IncidentReport) -> Markup {
    let Some(check) = &report.evidence else {
        return html! {
            @if report.cause() == Some(LockoutCause::Pending) {
                @if report.incident.resolved_at.is_none() {
                    p { "Meta has not answered yet. Lockwatch asks again until it does." }
                    (latest_fault(report))
                } @else {
                    p { "Meta had not answered when the incident ended." }
                }
            } @else if report.incident.cause_check_id.is_some() {
                p { "The health check behind this was deleted after the retention time." }
            } @else {
                p { "The cause comes from Meta's own notice about the account." }
            }
        };
    };
    html! {
        p {
            "The cause comes from health check " (check.id) " of number "
            (untrusted(check.phone_number_id.as_str(), 64)) " at " (timestamp(check.checked_at)) ":"
            @if let Some(error) = &check.error {
                " " (untrusted(error, 400))
            }
        }
        (fields_line(check))
        (PageBudget(EVIDENCE_LIMIT_BYTES).take(entities_table(check)))
    }
}

/// Renders how the latest look-up failed, in Meta's words.
fn latest_fault(report: &IncidentReport) -> Markup {
    let failed = report
        .affected_numbers
        .iter()
        .filter(|number| number.number.check_failures > 0)
        .find_map(|number| {
            let check = number.latest_check.as_ref()?;
            Some((number.number.check_failures, check, check.error.as_ref()?))
        });
    html! {
        @if let Some((failures, check, error)) = failed {
            p {
                "The look-up has failed " (format_count(failures.into(), "time", "times"))
                " in a row, the last time at " (timestamp(check.checked_at)) ": "
                (untrusted(error, 400))
            }
        }
    }
}

fn numbers_section(report: &IncidentReport, now: OffsetDateTime) -> Markup {
    let shown = report.affected_numbers.len().min(NUMBER_ROWS);
    let more = report.affected_number_count - i64::try_from(shown).unwrap_or_default();
    let api = format!("/api/v1/incidents/{}", report.incident.id);
    html! {
        section #numbers data-live aria-labelledby="numbers-heading" {
            h2 #numbers-heading { "Affected numbers" }
            div .scroll role="region" aria-labelledby="numbers-heading" tabindex="0" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Number" }
                            th scope="col" { "Health" }
                            th scope="col" .right { "Failures" }
                            th scope="col" { "First" }
                            th scope="col" { "Latest" }
                            th scope="col" { "Next look-up" }
                        }
                    }
                    tbody {
                        @for number in &report.affected_numbers[..shown] {
                            (number_row(number, now))
                        }
                    }
                }
            }
            @if more > 0 {
                p {
                    "And " (format_count(more, "more number", "more numbers")) ". The "
                    a href=(api) { "API" } " returns up to 100."
                }
            }
        }
    }
}

fn number_row(report: &NumberReport, now: OffsetDateTime) -> Markup {
    let NumberReport {
        number,
        latest_check,
        cause_summary,
        ..
    } = report;
    html! {
        tr {
            th scope="row" {
                @if let Some(display) = &number.display_phone_number {
                    (untrusted(display, 40))
                    br;
                }
                small {
                    "ID " (untrusted(number.phone_number_id.as_str(), 64))
                }
            }
            td {
                @match latest_check {
                    Some(check) => (check_verdict(check)),
                    None => "not looked up yet"
                }
                @if let Some(summary) = cause_summary {
                    br;
                    small { (untrusted(summary, 300)) }
                }
            }
            td .right { (format_number(number.failure_count)) }
            td { (timestamp(number.first_failure_at)) }
            td { (timestamp(number.last_failure_at)) }
            td { (next_lookup(number.check_due_at, now)) }
        }
    }
}

fn next_lookup(due_at: Option<OffsetDateTime>, now: OffsetDateTime) -> String {
    match due_at {
        None => "none".to_owned(),
        Some(at) if at + LOOKUP_GRACE_PERIOD < now => {
            format!("overdue by {}", format_duration(now - at))
        }
        Some(at) if at <= now => "now".to_owned(),
        Some(at) => format!("in {}", format_duration(at - now)),
    }
}

fn appeal_section(
    query: &PageQuery,
    report: &IncidentReport,
    deliveries: &[Delivery],
    now: OffsetDateTime,
) -> Markup {
    let example_count = usize::try_from(EXAMPLE_LIMIT).unwrap_or_default();
    let examples = &deliveries[..deliveries.len().min(example_count)];
    let recipients = query.recipients;
    let text = write_appeal(report, APPEAL_NUMBER_LIMIT, examples, recipients, now);
    let text = truncate(&text, APPEAL_LIMIT_CHARACTERS);
    let reveal = query.with_recipients(Recipients::Revealed).link("appeal");
    html! {
        section #appeal data-live aria-labelledby="appeal-heading" {
            h2 #appeal-heading { "Copy for the appeal" }
            p {
                label for="appeal-text" {
                    "The details that Meta's support asks for. Paste them into the request for a "
                    "review."
                }
            }
            textarea #appeal-text readonly rows=(text.lines().count() + 1) spellcheck="false" {
                (text)
            }
            p {
                button type="button" .copy data-copy="appeal-text" { "Copy" } " "
                span role="status" data-copied="appeal-text" {}
                @if recipients == Recipients::Masked {
                    " Message IDs are left out because they contain recipients' numbers. "
                    a href=(reveal) { "Add some" } " (this is logged)."
                }
            }
        }
    }
}

/// Renders what happened to the incident, and who did it.
fn history_section(changes: &Page<IncidentChange>) -> Markup {
    html! {
        section #history data-live aria-labelledby="history-heading" {
            h2 #history-heading { "History" }
            ol .history {
                @for change in &changes.data {
                    li {
                        (timestamp(change.at)) " " (describe_change(change))
                        @if let Some(by) = &change.by { ", by " (untrusted(by, 60)) }
                    }
                }
            }
            @if changes.next.is_some() {
                p { "Earlier steps are in the API." }
            }
        }
    }
}

fn resolve_section(report: &IncidentReport) -> Markup {
    html! {
        section #resolve aria-labelledby="resolve-heading" {
            h2 #resolve-heading { "Mark as resolved" }
            p {
                (automatic_resolution(report))
                " If you know that the lockout is over, resolve it here. If messages fail again, a "
                "new incident opens."
            }
            form method="post" action={ "/incidents/" (report.incident.id) "/resolve" } {
                label for="note" { "Note for later readers" }
                input #note name="note" maxlength=(Note::LIMIT_CHARACTERS) autocomplete="off"
                    placeholder="Meta granted the review";
                button { "Resolve" }
            }
        }
    }
}

/// A form for an end that was wrong.
fn reopen_section(report: &IncidentReport) -> Markup {
    html! {
        section #reopen aria-labelledby="reopen-heading" {
            h2 #reopen-heading { "Not over?" }
            p {
                "If the lockout goes on, open the incident again. Its numbers are looked up at "
                "once, and its 7 days of silence start anew."
            }
            form method="post" action={ "/incidents/" (report.incident.id) "/reopen" } {
                button { "Open again" }
            }
        }
    }
}

/// Describes when the incident resolves without a person.
fn automatic_resolution(report: &IncidentReport) -> String {
    let incident = &report.incident;
    let mut ends = Vec::new();
    // A country may be blocked whatever else is sent.
    if incident.kind != Kind::Country {
        ends.push("when a message is sent that the lock would have stopped");
    }
    if incident.kind == Kind::Lock {
        ends.push("when Meta lifts the lock and says so");
    }
    // Only what checks have shown can be gone from them.
    if incident.cause_check_id.is_some() && report.cause().is_some_and(LockoutCause::is_found) {
        ends.push("after two clear health checks of every number");
    }
    if incident.failure_count > 0 {
        ends.push("after 7 days without a failure or a notice of a lock");
    }
    format!("Lockwatch resolves the incident {}.", ends.join(", or "))
}

/// Handles the form: resolves the incident and sends the browser back to its page.
pub(super) async fn resolve(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    by: Login,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if !content_type.starts_with("application/x-www-form-urlencoded") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "a form is expected; programs use /api/v1",
        ));
    }
    let body = complete_body(body)?;
    let note = form_urlencoded::parse(&body)
        .find(|(name, _)| name == "note")
        .map(|(_, note)| note.into_owned());
    by_hand::resolve(&db, id, note, by).await?;
    Ok(back_to_incident(id))
}

/// Handles the form: opens the incident again and sends the browser back to its page.
pub(super) async fn reopen(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    by: Login,
) -> Result<Response, Problem> {
    by_hand::reopen(&db, id, by).await?;
    Ok(back_to_incident(id))
}

/// Handles the form: notes who has seen the incident and sends the browser back to its page.
pub(super) async fn acknowledge(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    by: Login,
) -> Result<Response, Problem> {
    by_hand::acknowledge(&db, id, by).await?;
    Ok(back_to_incident(id))
}

fn back_to_incident(id: i64) -> Response {
    let location = format!("/incidents/{id}");
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}
