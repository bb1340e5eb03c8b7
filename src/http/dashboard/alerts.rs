//! `/alerts`: the channels for alerts, what each took last, and the latest alerts.

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use time::OffsetDateTime;

use super::{Pages, Refresh, page_response, timestamp, timestamp_with_age, untrusted};
use crate::alerts::Roster;
use crate::alerts::channel::Channel;
use crate::http::error::Problem;
use crate::report::text::format_number;
use crate::store::alerts::{self, Alert, ChannelState};
use crate::store::bounded;

/// The latest alerts that are shown. The command lists more.
const ALERT_ROWS: i64 = 30;
/// The characters of an answer.
const ANSWER_LIMIT_CHARACTERS: usize = 160;

pub(super) async fn show(State(pages): State<Pages>) -> Result<Response, Problem> {
    let now = OffsetDateTime::now_utc();
    let roster = pages.shown.roster.borrow().clone();
    let states = bounded(alerts::channel_states(&pages.db)).await?;
    let alerts = bounded(alerts::list(&pages.db, ALERT_ROWS)).await?;
    let main = html! {
        nav #crumbs .crumbs aria-label="Breadcrumb" { a href="/" { "All incidents" } " › Alerts" }
        div #headline data-live .headline { h1 { "Alerts" } }
        (channels_section(&roster, &states, now))
        (alerts_section(&alerts))
    };
    Ok(page_response("Alerts", Refresh::Always, now, &main))
}

fn channels_section(roster: &Roster, states: &[ChannelState], now: OffsetDateTime) -> Markup {
    let state_of = |name: &str| {
        let state = states.iter().find(|state| state.channel == name);
        state.cloned().unwrap_or_default()
    };
    let is_gone = |state: &&ChannelState| {
        let is_known = roster
            .channels
            .iter()
            .any(|channel| channel.name() == state.channel);
        !is_known && state.waiting + state.dead > 0
    };
    html! {
        section #channels data-live aria-labelledby="channels-heading" {
            h2 #channels-heading { "Channels" }
            @if let Some(problem) = &roster.problem {
                div .notice {
                    p { "The channels read earlier stay in use. " (untrusted(problem, 400)) }
                }
            }
            @if roster.channels.is_empty() {
                p {
                    "Nobody is told of a lockout: no channel is set. The quickest is "
                    code { "LOCKWATCH_ALERT_SLACK_URL" } ", an incoming webhook of Slack, "
                    "Mattermost or Discord. The README has the others."
                }
            } @else {
                div .scroll role="region" aria-label="Channels" tabindex="0" {
                    table {
                        thead {
                            tr {
                                th scope="col" { "Channel" }
                                th scope="col" { "Last accepted" }
                                th scope="col" .right { "Waiting" }
                                th scope="col" .right { "Given up" }
                                th scope="col" { "Last answer" }
                                th scope="col" { span .sr { "Test" } }
                            }
                        }
                        tbody {
                            @for channel in roster.channels.iter() {
                                (channel_row(channel, &state_of(channel.name()), now))
                            }
                        }
                    }
                }
            }
            @for state in states.iter().filter(is_gone) {
                p {
                    (format_number(state.waiting + state.dead)) " alerts are left for "
                    (untrusted(&state.channel, 64)) ", which is no channel of this process."
                }
            }
        }
    }
}

fn channel_row(channel: &Channel, state: &ChannelState, now: OffsetDateTime) -> Markup {
    let name = channel.name();
    html! {
        tr {
            th scope="row" {
                (untrusted(name, 64))
                @if channel.kind() != name { br; small { (channel.kind()) } }
            }
            td {
                @match state.accepted_at {
                    Some(at) => (timestamp_with_age(at, now)),
                    None => "never",
                }
                @if state.is_failing() { br; span .badge .open { "fails" } }
            }
            td .right { (format_number(state.waiting)) }
            td .right { (format_number(state.dead)) }
            td { (answer(state.last_answer.as_deref())) }
            td {
                form method="post" action={ "/alerts/" (name) "/test" } {
                    button .quiet { "Test" }
                }
            }
        }
    }
}

fn answer(answer: Option<&str>) -> Markup {
    untrusted(answer.unwrap_or_default(), ANSWER_LIMIT_CHARACTERS)
}

fn alerts_section(alerts: &[Alert]) -> Markup {
    html! {
        section #alerts data-live aria-labelledby="alerts-heading" {
            h2 #alerts-heading { "Latest alerts" }
            @if alerts.is_empty() {
                p { "No alert has been written." }
            } @else {
                div .scroll role="region" aria-label="Latest alerts" tabindex="0" {
                    table {
                        thead {
                            tr {
                                th scope="col" { "Written" }
                                th scope="col" { "Tells" }
                                th scope="col" { "Of" }
                                th scope="col" { "Channel" }
                                th scope="col" { "State" }
                                th scope="col" { "Answer" }
                            }
                        }
                        tbody {
                            @for alert in alerts { (alert_row(alert)) }
                        }
                    }
                }
                p { code { "lockwatch alerts list" } " has more." }
            }
        }
    }
}

fn alert_row(alert: &Alert) -> Markup {
    let state = match alert.state.as_str() {
        "dead" => "given up",
        "folded" => "told with another",
        state => state,
    };
    html! {
        tr {
            td { (timestamp(alert.created_at)) }
            td { (untrusted(&alert.kind, 64)) }
            td {
                @if let Some(id) = alert.incident_id {
                    a href={ "/incidents/" (id) } { "Incident " (id) } br;
                }
                small { (untrusted(&alert.waba_id, 64)) }
            }
            td { (untrusted(&alert.channel, 64)) }
            td {
                (untrusted(state, 32))
                @if alert.state == "waiting" && alert.attempts > 0 { ", tried " (alert.attempts) }
            }
            td { (answer(alert.last_answer.as_deref())) }
        }
    }
}

/// Handles the button: writes a test for the channel and sends the browser back to the page.
pub(super) async fn test(
    State(pages): State<Pages>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let roster = pages.shown.roster.borrow().clone();
    if !roster.channels.iter().any(|channel| channel.name() == name) {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "there is no such channel",
        ));
    }
    bounded(alerts::insert_test(&pages.db, &name)).await?;
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, "/alerts")]).into_response())
}
