//! `/incidents/{id}`: one incident, whole: what to do, when what happened, why we say so.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use maud::{Markup, html};
use time::OffsetDateTime;

use super::{
    Refresh, badge, cut, full_time, linked, page as whole_page, picture, received, see_other,
    support_home, time_ago,
};
use crate::http::error::Problem;
use crate::http::query::{IncidentId, Query, cursor, parse_cursor, recipients};
use crate::http::resolve::{resolve_by_hand, whole_body};
use crate::lockout::cause::LockoutCause;
use crate::lockout::note::Note;
use crate::meta::health::Entity;
use crate::report::appeal::{EXAMPLES, appeal};
use crate::report::text::{count, duration, ended, grouped};
use crate::report::timeline::{self, NumberHealth, timeline};
use crate::report::{self, IncidentReport, NumberReport, Page, Recipients};
use crate::store::Pool;
use crate::store::checks::HealthCheck;
use crate::store::deliveries::Delivery;

const DELIVERIES: i64 = 20;
const CHECKS: i64 = 8;
/// Numbers with a row. All of them are in the API's answer.
const NUMBERS: usize = 20;
/// Numbers that the text for an appeal names, and how long it becomes.
const NUMBERS_IN_APPEAL: usize = 25;
const APPEAL: usize = 4000;
/// A look-up may be this late: it has to be claimed, asked and saved.
const LATE: time::Duration = time::Duration::minutes(2);
/// How much of a raw answer is shown. All of it is in the API's answer.
const ANSWER: usize = 1500;
/// Bytes for what Meta said of the entities, where the cause is told.
const EVIDENCE: usize = 8_000;
/// Bytes of a page, but for its frame. Checks tell their details while there is room: of what Meta answers
/// usually all of them do.
const ROOM: usize = 94_000;
/// Bytes of a check without its details.
const LINE: usize = 800;

/// Where the two lists on the page are, and whether recipients are shown.
struct PageQuery {
    id: i64,
    deliveries: Option<i64>,
    checks: Option<i64>,
    recipients: Recipients,
}

impl PageQuery {
    fn parse(id: i64, query: Option<&str>) -> Result<Self, Problem> {
        let mut query = Query::parse_form(query);
        let recipients = recipients(&mut query)?;
        let mut place = |name, list| {
            query.take(name, |text| {
                parse_cursor(list, text).ok_or("not a cursor of this list")
            })
        };
        let (deliveries, checks) = (place("deliveries", 'd')?, place("checks", 'c')?);
        query.finish()?;
        Ok(Self {
            id,
            deliveries,
            checks,
            recipients,
        })
    }

    /// The same page with the lists elsewhere.
    fn link(
        &self,
        deliveries: Option<i64>,
        checks: Option<i64>,
        recipients: Recipients,
        anchor: &str,
    ) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let places = [
            ("deliveries", deliveries.map(|id| cursor('d', id))),
            ("checks", checks.map(|id| cursor('c', id))),
        ];
        query.extend_pairs(
            places
                .into_iter()
                .filter_map(|(name, place)| Some((name, place?))),
        );
        if recipients == Recipients::Revealed {
            query.append_pair("reveal", "recipients");
        }
        format!("/incidents/{}?{}#{anchor}", self.id, query.finish())
    }
}

pub(super) async fn page(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = PageQuery::parse(id, query.as_deref())?;
    let now = OffsetDateTime::now_utc();
    let none = || Problem::no_incident(id);
    let report = report::incident(&db, query.id).await?.ok_or_else(none)?;
    let timeline = timeline(&db, &report, now, timeline::PICTURE_BINS).await?;
    let deliveries = report::deliveries(
        &db,
        query.id,
        query.deliveries,
        DELIVERIES,
        query.recipients,
    )
    .await?;
    let deliveries = deliveries.ok_or_else(none)?;
    let checks = report::checks(&db, query.id, query.checks, CHECKS)
        .await?
        .ok_or_else(none)?;
    query.recipients.log_if_revealed(query.id);

    let incident = &report.incident;
    let is_open = incident.resolved_at.is_none();
    let title = format!(
        "Account {} {} locked",
        incident.waba_id,
        if is_open { "is" } else { "was" }
    );
    let before = html! {
        nav #crumbs .crumbs aria-label="Breadcrumb" { a href="/" { "All incidents" } " › Incident " (incident.id) }
        div #headline data-live .headline .alarm[is_open] {
            h1 { "Account " (received(incident.waba_id.as_str(), 64)) (if is_open { " is locked" } else { " was locked" }) " " (badge(is_open, &ended(incident))) }
            p .cause { strong { (report.cause_title()) } @if let Some(summary) = &incident.cause_summary { ": " (received(summary, 400)) } }
        }
        (facts(&report, now))
        @if is_open { (what_to_do(&report)) }
        section #timeline data-live aria-labelledby="timeline-heading" {
            h2 #timeline-heading { "Timeline" }
            (picture::timeline(&report, &timeline))
        }
        (why(&report))
        (numbers(&report, now))
        (for_the_appeal(&query, &report, &deliveries.data, now))
        @if is_open { (resolve_form(&report)) }
    };
    let after = deliveries_list(&query, &deliveries);
    let room = ROOM.saturating_sub(before.0.len() + after.0.len());
    let main = html! { (before) (checks_list(&query, &checks, room)) (after) };
    let refresh = match query.recipients {
        Recipients::Masked => Refresh::WithScript,
        // Each look leaves a line in the log.
        Recipients::Revealed => Refresh::Never,
    };
    Ok(whole_page(&title, refresh, now, &main))
}

fn facts(report: &IncidentReport, now: OffsetDateTime) -> Markup {
    let incident = &report.incident;
    html! {
        dl #facts data-live .facts {
            div {
                dt { (if incident.resolved_at.is_none() { "Locked since" } else { "Locked from" }) }
                dd { (time_ago(incident.opened_at, now)) }
            }
            @if let Some(at) = incident.resolved_at {
                div { dt { "Resolved" } dd { (full_time(at)) " " span .ago { "(after " (duration(at - incident.opened_at)) ")" } } }
            }
            div { dt { "Messages failed" } dd { span .big { (grouped(incident.failure_count)) } } }
            div { dt { "Latest failure" } dd { (time_ago(incident.last_failure_at, now)) } }
            div { dt { "Numbers affected" } dd { span .big { (grouped(report.affected_number_count)) } } }
            @if let Some(note) = &incident.resolution_note { div .wide { dt { "Note" } dd { (received(note, Note::LIMIT_CHARACTERS)) } } }
            @if let Some(previous) = incident.previous_incident_id {
                div { dt { "Incident before" } dd { a href={ "/incidents/" (previous) } { "Incident " (previous) } } }
            }
        }
    }
}

fn what_to_do(report: &IncidentReport) -> Markup {
    html! {
        section #steps data-live .todo aria-labelledby="steps-heading" {
            h2 #steps-heading { "What to do now" }
            @if seems_over(report) {
                p { strong { "It may be over: " } "Meta's latest checks find every number clear. If the next ones confirm it and nothing fails until then, this incident ends by itself. A test message now tells you sooner." }
            }
            ol { @for step in &report.next_steps { li { (linked(step)) } } }
            p { (support_home("Open Business Support Home")) " · " a href="#appeal" { "Text for the appeal" } " · " a href="#resolve" { "Mark as resolved" } }
        }
    }
}

fn why(report: &IncidentReport) -> Markup {
    let incident = &report.incident;
    html! {
        section #why data-live aria-labelledby="why-heading" {
            h2 #why-heading { "Why" }
            dl .facts {
                div { dt { "Cause" } dd { code { (received(incident.cause.as_str(), 64)) } } }
                @if let Some(at) = incident.cause_recorded_at { div { dt { "Recorded" } dd { (full_time(at)) } } }
                @if let Some(kind) = &incident.cause_entity_type {
                    div { dt { "Entity" } dd { (received(kind, 64)) " " (received(incident.cause_entity_id.as_deref().unwrap_or_default(), 64)) } }
                }
                @if let Some(severity) = &incident.cause_severity { div { dt { "Meta's verdict" } dd { (received(severity, 64)) } } }
                @if let Some(code) = incident.cause_error_code { div { dt { "Meta's code" } dd { (code) } } }
                @if let Some(advice) = &incident.possible_solution { div .wide { dt { "Meta's advice" } dd { (received(advice, 600)) } } }
            }
            @match &report.evidence {
                Some(check) => {
                    p {
                        "We say so because of health check " (check.id) " of number " (received(check.phone_number_id.as_str(), 64)) " at " (full_time(check.checked_at))
                        @match &check.error { Some(error) => { ": " (received(error, 400)) } None => { ":" } }
                    }
                    (within(&mut { EVIDENCE }, entities(check)))
                }
                None if report.cause() == Some(LockoutCause::Pending) => p { "Meta was asked and has not answered yet; it is asked again until it does." },
                None => p { "The health check that showed it is older than what is kept." },
            }
        }
    }
}

/// Some of a page if there is room for it, else where to find it; takes from the room what it needs.
fn within(room: &mut usize, part: Markup) -> Markup {
    match room.checked_sub(part.0.len()) {
        Some(left) => {
            *room = left;
            part
        }
        None => html! { p { "Too long for this page: all of it is in the API's answer." } },
    }
}

/// What Meta said of each entity.
fn entities(check: &HealthCheck) -> Markup {
    let entities: Vec<Entity> = check
        .entities
        .clone()
        .and_then(|entities| serde_json::from_value(entities).ok())
        .unwrap_or_default();
    html! {
        @if !entities.is_empty() {
            div .scroll role="region" aria-label="What Meta said" tabindex="0" {
                table {
                    thead { tr { th scope="col" { "Entity" } th scope="col" { "Can send" } th scope="col" { "What Meta says" } } }
                    tbody {
                        @for entity in entities.iter().take(8) {
                            tr {
                                th scope="row" { (received(&entity.entity_type, 32)) " " (received(&entity.id, 64)) }
                                td { (health(NumberHealth::from_verdict(&entity.can_send_message), &entity.can_send_message.to_string())) }
                                td {
                                    @for error in entity.errors.iter().take(3) {
                                        p { @if let Some(code) = error.error_code { "(" (code) ") " } (received(&error.error_description, 300)) }
                                    }
                                    @for info in entity.additional_info.iter().take(3) { p { (received(info, 300)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn numbers(report: &IncidentReport, now: OffsetDateTime) -> Markup {
    let shown = report.affected_numbers.len().min(NUMBERS);
    let more = report.affected_number_count - i64::try_from(shown).unwrap_or_default();
    html! {
        section #numbers data-live aria-labelledby="numbers-heading" {
            h2 #numbers-heading { "Affected numbers" }
            div .scroll role="region" aria-labelledby="numbers-heading" tabindex="0" {
                table {
                    thead { tr {
                        th scope="col" { "Number" } th scope="col" { "Health" } th scope="col" .right { "Failures" }
                        th scope="col" { "First" } th scope="col" { "Latest" } th scope="col" { "Next look" }
                    } }
                    tbody {
                        @for NumberReport { number, latest_check } in report.affected_numbers.iter().take(NUMBERS) {
                            tr {
                                th scope="row" {
                                    @if let Some(display) = &number.display_phone_number { (received(display, 40)) br; }
                                    small { "ID " (received(number.phone_number_id.as_str(), 64)) }
                                }
                                td { @match latest_check { Some(check) => (check_health(check)), None => "not looked up yet" } }
                                td .right { (grouped(number.failure_count)) }
                                td { (full_time(number.first_failure_at)) }
                                td { (full_time(number.last_failure_at)) }
                                td { (next_look(number.check_due_at, now)) }
                            }
                        }
                    }
                }
            }
            @if more > 0 { p { "And " (count(more, "more number", "more numbers")) ", in the " a href={ "/api/v1/incidents/" (report.incident.id) } { "API's answer" } "." } }
        }
    }
}

fn next_look(due_at: Option<OffsetDateTime>, now: OffsetDateTime) -> Markup {
    html! {
        @match due_at {
            None => "none",
            Some(at) if at + LATE < now => { "overdue by " (duration(now - at)) }
            Some(at) if at <= now => "now",
            Some(at) => { "in " (duration(at - now)) }
        }
    }
}

fn check_health(check: &HealthCheck) -> Markup {
    let health_of = NumberHealth::from_check(check);
    let word = match health_of {
        NumberHealth::Other => check.can_send_message.as_deref().unwrap_or("no verdict"),
        known => known.word(),
    };
    health(health_of, word)
}

/// A verdict with its colour; the word says the same.
fn health(health: NumberHealth, word: &str) -> Markup {
    html! { span .verdict .(picture::class(health)) { (received(word, 32)) } }
}

fn for_the_appeal(
    query: &PageQuery,
    report: &IncidentReport,
    deliveries: &[Delivery],
    now: OffsetDateTime,
) -> Markup {
    let examples = &deliveries[..deliveries
        .len()
        .min(usize::try_from(EXAMPLES).unwrap_or_default())];
    let text = appeal(report, NUMBERS_IN_APPEAL, examples, query.recipients, now);
    let text = cut(&text, APPEAL);
    html! {
        section #appeal data-live aria-labelledby="appeal-heading" {
            h2 #appeal-heading { "Copy for the appeal" }
            p { label for="appeal-text" { "What Meta's support asks for, ready to be pasted into the request for a review." } }
            textarea #appeal-text readonly rows=(text.lines().count() + 1) spellcheck="false" { (text) }
            p {
                button type="button" .copy data-copy="appeal-text" { "Copy" } " "
                span role="status" data-copied="appeal-text" {}
                @if query.recipients == Recipients::Masked {
                    " Message IDs are left out, since they contain recipients' numbers. "
                    a href=(query.link(query.deliveries, query.checks, Recipients::Revealed, "appeal")) { "Add some" } " (this is logged)."
                }
            }
        }
    }
}

/// When an incident ends without anybody's help.
fn ends_by_itself(report: &IncidentReport) -> &'static str {
    match report.cause() {
        Some(LockoutCause::Unreported) => {
            "Meta's health checks show nothing of this lockout, so Lockwatch ends it only after 7 days without a failure."
        }
        Some(LockoutCause::LookupDenied | LockoutCause::Pending) => {
            "Lockwatch cannot see Meta's health checks, and cannot tell when this is over."
        }
        _ => {
            "Lockwatch ends this once Meta's health checks have been clear twice, or after 7 days without a failure."
        }
    }
}

/// Whether the latest look at every number found it clear, while the incident still waits to be sure.
fn seems_over(report: &IncidentReport) -> bool {
    let is_clear = |NumberReport { latest_check, .. }: &NumberReport| {
        latest_check
            .as_ref()
            .is_some_and(|check| NumberHealth::from_check(check) == NumberHealth::Available)
    };
    report.cause().is_some_and(LockoutCause::is_found)
        && report.affected_numbers.iter().all(is_clear)
}

fn resolve_form(report: &IncidentReport) -> Markup {
    html! {
        section #resolve aria-labelledby="resolve-heading" {
            h2 #resolve-heading { "Mark as resolved" }
            p { (ends_by_itself(report)) " If you know better, say so. Should messages go on failing, a new incident opens." }
            form method="post" action={ "/incidents/" (report.incident.id) "/resolve" } {
                label for="note" { "Note, for those who read it later" }
                input #note name="note" maxlength=(Note::LIMIT_CHARACTERS) autocomplete="off" placeholder="Meta granted the review";
                button { "Resolve" }
            }
        }
    }
}

fn checks_list(query: &PageQuery, checks: &Page<HealthCheck>, room: usize) -> Markup {
    // Each has its line and a word on what is missing, whatever there is room for.
    let mut room = room.saturating_sub(checks.data.len() * LINE);
    html! {
        section #checks data-live[query.checks.is_none()] aria-labelledby="checks-heading" {
            h2 #checks-heading { "Health checks" }
            @if checks.data.is_empty() { p .none { "None yet." } }
            @for check in &checks.data { (check_details(check, &mut room)) }
            p .pages {
                @if query.checks.is_some() { a href=(query.link(query.deliveries, None, query.recipients, "checks")) { "Latest checks" } " " }
                @if let Some(next) = checks.next { a .older href=(query.link(query.deliveries, Some(next), query.recipients, "checks")) { "Older checks" } " " }
                a href={ "/api/v1/incidents/" (query.id) "/checks?format=csv" } download { "All as CSV" }
            }
        }
    }
}

fn check_details(check: &HealthCheck, room: &mut usize) -> Markup {
    let answer = check.response.as_deref().unwrap_or_default();
    let details = html! {
        @if let Some(error) = &check.error { p { (received(error, 400)) } }
        (entities(check))
        @if !answer.is_empty() { p { "Meta's answer as it came:" } pre { (received(answer, ANSWER)) } }
    };
    html! {
        details #{ "check-" (check.id) } {
            summary {
                (full_time(check.checked_at)) " " (check_health(check)) " " (received(check.phone_number_id.as_str(), 64)) " "
                span .ago { (received(check.outcome.as_str(), 32)) @if let Some(status) = check.http_status { ", HTTP " (status) } ", " (check.duration_ms) " ms" }
            }
            (within(room, details))
        }
    }
}

fn deliveries_list(query: &PageQuery, deliveries: &Page<Delivery>) -> Markup {
    let is_masked = query.recipients == Recipients::Masked;
    let reveal = if is_masked { "" } else { "&reveal=recipients" };
    let csv = format!(
        "/api/v1/incidents/{}/deliveries?format=csv{reveal}",
        query.id
    );
    let has_references = deliveries
        .data
        .iter()
        .any(|delivery| delivery.callback_data.is_some());
    html! {
        section #deliveries data-live[query.deliveries.is_none()] aria-labelledby="deliveries-heading" {
            h2 #deliveries-heading { "Failed deliveries" }
            p {
                @if is_masked {
                    "Recipients are masked. "
                    a href=(query.link(query.deliveries, query.checks, Recipients::Revealed, "deliveries")) { "Show recipients" } " (this is logged)."
                } @else {
                    "Recipients are shown, and that was logged. "
                    a href=(query.link(query.deliveries, query.checks, Recipients::Masked, "deliveries")) { "Mask them" } "."
                }
            }
            @if deliveries.data.is_empty() {
                p .none { "None is kept any more: they leave after the time that LOCKWATCH_RETENTION_DAYS says." }
            } @else {
                div .scroll role="region" aria-labelledby="deliveries-heading" tabindex="0" {
                    table {
                        thead { tr {
                            th scope="col" { "Failed at" } th scope="col" { "Recipient" } th scope="col" { "Number ID" }
                            th scope="col" { "Error" } th scope="col" { "Message ID" }
                            @if has_references { th scope="col" { "Your reference" } }
                        } }
                        tbody { @for delivery in &deliveries.data { (delivery_row(delivery, has_references)) } }
                    }
                }
            }
            p .pages {
                @if query.deliveries.is_some() { a href=(query.link(None, query.checks, query.recipients, "deliveries")) { "Latest deliveries" } " " }
                @if let Some(next) = deliveries.next { a .older href=(query.link(Some(next), query.checks, query.recipients, "deliveries")) { "Older deliveries" } " " }
                a href=(csv) download { (if is_masked { "All as CSV, masked" } else { "All as CSV, with recipients (logged)" }) }
            }
        }
    }
}

/// Your reference is what the business sent along (`biz_opaque_callback_data`).
fn delivery_row(delivery: &Delivery, has_references: bool) -> Markup {
    let Delivery {
        error_title,
        error_message,
        error_details,
        ..
    } = delivery;
    let said = error_details
        .as_ref()
        .or(error_message.as_ref())
        .or(error_title.as_ref());
    html! {
        tr {
            td { (full_time(delivery.failed_at)) }
            td {
                (received(delivery.recipient_id.as_deref().unwrap_or("unknown"), 64))
                @if let Some(participant) = &delivery.participant_id { br; small { "participant " (received(participant, 64)) } }
            }
            td { (received(delivery.phone_number_id.as_str(), 64)) }
            td { (delivery.error_code) @if let Some(said) = said { " " (received(said, 120)) } }
            td { code { (received(&delivery.message_id, 120)) } }
            @if has_references { td { (received(delivery.callback_data.as_deref().unwrap_or_default(), 120)) } }
        }
    }
}

/// The form's answer: the page again, with what changed.
pub(super) async fn resolve(
    State(db): State<Pool>,
    IncidentId(id): IncidentId,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "a form is expected; programs use /api/v1",
        ));
    }
    let body = whole_body(body)?;
    let note = form_urlencoded::parse(&body)
        .find(|(name, _)| name == "note")
        .map(|(_, note)| note.into_owned());
    resolve_by_hand(&db, id, note).await?;
    Ok(see_other(&format!("/incidents/{id}")))
}
