//! Tables and paragraphs for a terminal. All times are UTC and say so.

use std::io::{IsTerminal, stdout};

use anstyle::{AnsiColor, Color, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table};
use time::OffsetDateTime;

use crate::lockout::codes::Kind;
use crate::meta::health::Entity;
use crate::report::text::{
    describe_activity, describe_change, format_number, format_short_time, format_time, printable,
    state_word, was_noticed_later,
};
use crate::report::timeline::NumberHealth;
use crate::report::{IncidentReport, NumberReport};
use crate::store::accounts::Account;
use crate::store::alerts::Alert;
use crate::store::backlog::WaitingCallback;
use crate::store::captures::CaptureSummary;
use crate::store::changes::IncidentChange;
use crate::store::checks::HealthCheck;
use crate::store::incidents::Incident;

/// The widest that is used: longer lines are hard to read. Also the width without a terminal.
const MAX_WIDTH: usize = 120;
const MIN_WIDTH: usize = 60;
/// From this width on, tables show all their columns.
const WIDE_TABLE_WIDTH: usize = 110;
/// The most things that are listed as found beside the cause.
const ALSO_FOUND_LIMIT: usize = 12;
/// The indent of the values in the details of an incident.
const VALUE_INDENT: usize = 16;

pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const RED: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Red)));
pub(super) const GREEN: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
pub(super) const YELLOW: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));

/// Returns the width of the terminal in columns, within limits.
pub(super) fn terminal_width() -> usize {
    let width = if stdout().is_terminal() {
        rustix::termios::tcgetwinsize(stdout()).map_or(MAX_WIDTH, |size| usize::from(size.ws_col))
    } else {
        MAX_WIDTH
    };
    width.clamp(MIN_WIDTH, MAX_WIDTH)
}

/// A heading with an empty line before it.
pub(super) fn heading(text: &str) -> String {
    format!("\n{BOLD}{text}{BOLD:#}")
}

/// Wraps a text at the terminal's width, with every line indented.
pub(super) fn wrap_paragraph(indent: &str, text: &str) -> String {
    wrap_text(indent, indent, text)
}

/// Wraps a step to take, with an arrow before it.
pub(super) fn wrap_step(indent: &str, text: &str) -> String {
    wrap_text(&format!("{indent}→ "), &format!("{indent}  "), text)
}

/// Wraps a text. The first line has another indent than the rest.
pub(super) fn wrap_text(first_indent: &str, rest_indent: &str, text: &str) -> String {
    let options = textwrap::Options::new(terminal_width())
        .initial_indent(first_indent)
        .subsequent_indent(rest_indent)
        .break_words(false)
        // A link that is broken at a hyphen cannot be clicked.
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(&printable(text), options)
}

pub(super) fn incident_table(reports: &[IncidentReport]) -> String {
    if is_wide() {
        let header = [
            "ID",
            "ACCOUNT",
            "STATE",
            "OPENED",
            "LAST FAILURE",
            "FAILURES",
            "CAUSE",
        ];
        let rows = reports.iter().map(|IncidentReport { incident, .. }| {
            vec![
                incident.id.to_string(),
                incident.waba_id.to_string(),
                state_text(incident),
                format_time(incident.opened_at),
                format_time(incident.last_failure_at),
                incident.failure_count.to_string(),
                incident.cause.to_string(),
            ]
        });
        table(&header, &[0, 5], rows)
    } else {
        let header = ["ID", "ACCOUNT", "STATE", "OPENED (UTC)", "FAILED", "CAUSE"];
        let rows = reports.iter().map(|IncidentReport { incident, .. }| {
            vec![
                incident.id.to_string(),
                incident.waba_id.to_string(),
                state_text(incident),
                format_short_time(incident.opened_at),
                incident.failure_count.to_string(),
                incident.cause.to_string(),
            ]
        });
        table(&header, &[0, 4], rows)
    }
}

/// The state in a few words; of an open incident also whether messages still fail.
fn state_text(incident: &Incident) -> String {
    match incident.resolved_at {
        None => format!(
            "open, {}",
            describe_activity(incident, OffsetDateTime::now_utc())
        ),
        Some(_) => state_word(incident).to_owned(),
    }
}

pub(super) fn incident_details(report: &IncidentReport) -> String {
    let incident = &report.incident;
    let mut lines = vec![format!(
        "{BOLD}Incident {}{BOLD:#}, account {}",
        incident.id,
        match &incident.account_name {
            Some(name) => printable(&format!("{} ({name})", incident.waba_id)),
            None => printable(incident.waba_id.as_str()),
        }
    )];
    let mut push_field = |name: &str, value: &str| {
        let label = format!("  {name:<width$}", width = VALUE_INDENT - 2);
        lines.push(wrap_text(&label, &" ".repeat(VALUE_INDENT), value));
    };
    push_field("State", &state_text(incident));
    if incident.kind != Kind::Lock {
        push_field("Kind", incident.kind.as_str());
    }
    push_field("Opened", &format_time(incident.opened_at));
    if incident.failure_count > 0 {
        push_field("Last failure", &format_time(incident.last_failure_at));
    }
    if let Some(at) = incident.ended_at.filter(|_| was_noticed_later(incident)) {
        push_field("Ended", &format_time(at));
    }
    if let Some(at) = incident.resolved_at {
        push_field("Resolved", &format_time(at));
    }
    if let Some(note) = &incident.resolution_note {
        push_field("Note", note);
    }
    if let Some(at) = incident.acknowledged_at {
        let by = incident.acknowledged_by.as_ref();
        let by = by.map_or_else(String::new, |by| format!(", by {by}"));
        push_field("Acknowledged", &format!("{}{by}", format_time(at)));
    }
    push_field("Failures", &format_number(incident.failure_count));
    match report.cause() {
        Some(cause) => push_field("Cause", &format!("{cause}: {}", cause.title())),
        None => push_field("Cause", &incident.cause.to_string()),
    }
    if let Some(summary) = &incident.cause_summary {
        push_field("", summary);
    }
    if let Some(denial) = &incident.denial {
        push_field("Refused", &denial.to_string());
    }
    if let Some(check) = &report.evidence {
        let checked_at = format_time(check.checked_at);
        push_field(
            "Evidence",
            &format!("health check {} of {checked_at}", check.id),
        );
    }
    if let Some(previous) = incident.previous_incident_id {
        push_field("Previous", &format!("incident {previous}"));
    }
    if !report.account_events.is_empty() {
        lines.push(heading("Meta's notices"));
        let events = report.account_events.iter().rev().take(ALSO_FOUND_LIMIT);
        lines.extend(events.map(|event| {
            let words = [event.state.as_deref(), event.detail.as_deref()];
            let words: Vec<&str> = words.into_iter().flatten().collect();
            let at = format_time(event.occurred_at);
            let words = words.join(": ").replace(",RESTRICTED", ", RESTRICTED");
            wrap_paragraph("  ", &format!("{at}  {} {words}", event.event))
        }));
    }
    if !report.also_found.is_empty() {
        lines.push(heading("Also found"));
        let found = report.also_found.iter().take(ALSO_FOUND_LIMIT);
        lines.extend(found.map(|found| wrap_paragraph("  ", &found.summary)));
    }
    if incident.resolved_at.is_none() {
        lines.push(heading("Next steps"));
        lines.extend(report.next_steps.iter().map(|step| wrap_step("  ", step)));
    }
    lines.join("\n")
}

/// Accounts with their names and labels.
pub(super) fn account_table(accounts: &[Account]) -> String {
    let header = [
        "ACCOUNT",
        "NAME",
        "LABELS",
        "PORTFOLIO",
        "OPEN",
        "LAST CALLBACK",
    ];
    let rows = accounts.iter().map(|account| {
        let portfolio = account
            .portfolio_name
            .as_ref()
            .or(account.portfolio_id.as_ref());
        vec![
            printable(&account.waba_id),
            printable(account.name.as_deref().unwrap_or_default()),
            printable(&match account.muted_at {
                Some(_) => format!("{} (muted)", account.labels.join(" ")),
                None => account.labels.join(" "),
            }),
            printable(portfolio.map_or("", String::as_str)),
            account.open_incidents.to_string(),
            account
                .last_callback_at
                .map_or_else(String::new, format_time),
        ]
    });
    table(&header, &[4], rows)
}

/// Alerts, with what became of each.
pub(super) fn alert_table(alerts: &[Alert]) -> String {
    let header = [
        "ID", "WRITTEN", "TELLS", "INCIDENT", "ACCOUNT", "CHANNEL", "STATE", "ANSWER",
    ];
    let rows = alerts.iter().map(|alert| {
        let state = match alert.state.as_str() {
            "waiting" if alert.attempts > 0 => format!("waiting, tried {}", alert.attempts),
            state => state.to_owned(),
        };
        let answer = alert.last_answer.as_deref().unwrap_or_default();
        vec![
            alert.id.to_string(),
            format_time(alert.created_at),
            printable(&alert.kind),
            alert
                .incident_id
                .map_or_else(String::new, |id| id.to_string()),
            printable(&alert.waba_id),
            alert.channel.clone(),
            state,
            printable(&answer.chars().take(40).collect::<String>()),
        ]
    });
    table(&header, &[0, 3], rows)
}

/// The history of an incident, the latest first.
pub(super) fn change_table(changes: &[IncidentChange]) -> String {
    let rows = changes.iter().map(|change| {
        vec![
            format_time(change.at),
            describe_change(change),
            printable(change.by.as_deref().unwrap_or_default()),
        ]
    });
    table(&["TIME", "WHAT", "BY"], &[], rows)
}

/// The first affected numbers of an incident, each with the result of its latest look-up.
pub(super) fn number_table(report: &IncidentReport, limit: usize) -> String {
    let numbers = report.affected_numbers.iter().take(limit);
    let shown = i64::try_from(numbers.len()).unwrap_or(0);
    let table = if is_wide() {
        let header = [
            "NUMBER ID",
            "NUMBER",
            "FIRST FAILURE",
            "LAST FAILURE",
            "FAILURES",
            "HEALTH",
        ];
        let rows = numbers.map(|report| {
            let number = &report.number;
            vec![
                number.phone_number_id.to_string(),
                number.display_phone_number.clone().unwrap_or_default(),
                format_time(number.first_failure_at),
                format_time(number.last_failure_at),
                number.failure_count.to_string(),
                latest_health(report).to_owned(),
            ]
        });
        table(&header, &[4], rows)
    } else {
        let header = ["NUMBER ID", "NUMBER", "LAST (UTC)", "FAILED", "HEALTH"];
        let rows = numbers.map(|report| {
            let number = &report.number;
            vec![
                number.phone_number_id.to_string(),
                number.display_phone_number.clone().unwrap_or_default(),
                format_short_time(number.last_failure_at),
                number.failure_count.to_string(),
                latest_health(report).to_owned(),
            ]
        });
        table(&header, &[3], rows)
    };
    let not_shown = report.affected_number_count - shown;
    if not_shown > 0 {
        format!("{table}\n {DIM}and {not_shown} more{DIM:#}")
    } else {
        table
    }
}

fn latest_health(report: &NumberReport) -> &'static str {
    match &report.latest_check {
        Some(check) => NumberHealth::from_check(check).word(),
        None => "not yet",
    }
}

pub(super) fn check_table(checks: &[HealthCheck]) -> String {
    let rows = checks.iter().map(|check| {
        let result = check.error.as_ref().or(check.can_send_message.as_ref());
        vec![
            format_time(check.checked_at),
            check.phone_number_id.to_string(),
            check.outcome.to_string(),
            result.cloned().unwrap_or_default(),
        ]
    });
    table(&["CHECKED", "NUMBER ID", "OUTCOME", "RESULT"], &[], rows)
}

pub(super) fn inbox_table(callbacks: &[WaitingCallback]) -> String {
    let rows = callbacks.iter().map(|callback| {
        vec![
            callback.capture_id.to_string(),
            format_short_time(callback.appended_at),
            callback.body.len().to_string(),
            callback.attempts.to_string(),
            callback.retry_at.map(format_short_time).unwrap_or_default(),
            callback
                .problem
                .as_deref()
                .map(printable)
                .unwrap_or_default(),
        ]
    });
    let header = [
        "ID",
        "SINCE (UTC)",
        "BYTES",
        "ATTEMPTS",
        "NEXT (UTC)",
        "PROBLEM",
    ];
    table(&header, &[0, 2, 3], rows)
}

pub(super) fn capture_table(captures: &[CaptureSummary]) -> String {
    let (received, format_received): (_, fn(OffsetDateTime) -> String) = if is_wide() {
        ("RECEIVED", format_time)
    } else {
        ("RECEIVED (UTC)", format_short_time)
    };
    let header = ["ID", received, "ACCOUNT", "BYTES", "FAILURES", "STATE"];
    let rows = captures.iter().map(|capture| {
        let state = match (capture.waiting, capture.quarantined) {
            (true, _) => "in the inbox",
            (false, true) => "quarantined",
            (false, false) => "",
        };
        let accounts = match &capture.waba_ids[..] {
            [] => String::new(),
            [account] => account.clone(),
            [first, others @ ..] => format!("{first} + {}", others.len()),
        };
        vec![
            capture.id.to_string(),
            format_received(capture.received_at),
            accounts,
            capture.body_bytes.to_string(),
            capture.failure_count.to_string(),
            state.to_owned(),
        ]
    });
    table(&header, &[0, 3, 4], rows)
}

pub(super) fn entity_table(entities: &[Entity]) -> String {
    let rows = entities.iter().map(|entity| {
        vec![
            entity.entity_type.clone(),
            entity.id.clone(),
            entity.can_send_message.to_string(),
            entity_texts(entity).join(" "),
        ]
    });
    table(&["ENTITY", "ID", "CAN SEND", "WHAT META SAYS"], &[], rows)
}

/// Meta's words about an entity: its errors, then additional information.
fn entity_texts(entity: &Entity) -> Vec<String> {
    let mut texts = Vec::new();
    for error in &entity.errors {
        texts.push(match error.error_code {
            Some(code) => format!("({code}) {}", error.error_description),
            None => error.error_description.clone(),
        });
    }
    texts.extend(entity.additional_info.iter().cloned());
    texts
}

fn is_wide() -> bool {
    terminal_width() >= WIDE_TABLE_WIDTH
}

/// A table without lines that fits the terminal. The columns at the positions `right_aligned` are
/// aligned right.
fn table(
    header: &[&str],
    right_aligned: &[usize],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(u16::try_from(terminal_width()).unwrap_or(u16::MAX))
        .set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for position in right_aligned {
        if let Some(column) = table.column_mut(*position) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}
