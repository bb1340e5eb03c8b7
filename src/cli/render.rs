//! Tables and paragraphs for a terminal. Times are UTC and say so.

use std::io::{IsTerminal, stdout};

use crate::meta::health::Entity;
use crate::report::text::{grouped, moment, printable, short_moment, state};
use crate::report::timeline::NumberHealth;
use crate::report::{IncidentReport, NumberReport};
use crate::store::captures::Summary;
use crate::store::checks::HealthCheck;
use anstyle::{AnsiColor, Color, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table};

/// Wider lines are hard to read, and 120 is what the width is without a terminal.
const WIDEST: usize = 120;
const NARROWEST: usize = 60;
/// From here on tables show all their columns.
const WIDE: usize = 110;

pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const RED: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Red)));
pub(super) const GREEN: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
pub(super) const YELLOW: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));

/// How many columns there are.
pub(super) fn width() -> usize {
    let terminal = stdout()
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(stdout()).ok())
        .flatten();
    terminal
        .map_or(WIDEST, |size| usize::from(size.ws_col))
        .clamp(NARROWEST, WIDEST)
}

pub(super) fn heading(text: &str) -> String {
    format!("\n{BOLD}{text}{BOLD:#}")
}

/// Text wrapped to the width, every line indented.
pub(super) fn paragraph(indent: &str, text: &str) -> String {
    hanging(indent, indent, text)
}

/// A step to take, with an arrow before it.
pub(super) fn step(indent: &str, text: &str) -> String {
    hanging(&format!("{indent}→ "), &format!("{indent}  "), text)
}

pub(super) fn hanging(first: &str, rest: &str, text: &str) -> String {
    let options = textwrap::Options::new(width())
        .initial_indent(first)
        .subsequent_indent(rest)
        .break_words(false);
    // A link broken at a hyphen cannot be clicked.
    let options = options.word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(&printable(text), options)
}

pub(super) fn incidents(reports: &[IncidentReport]) -> String {
    let is_wide = width() >= WIDE;
    let when = |at| {
        if is_wide {
            moment(at)
        } else {
            short_moment(at)
        }
    };
    let rows = reports.iter().map(|IncidentReport { incident, .. }| {
        let last = is_wide.then(|| when(incident.last_failure_at));
        let mut row = vec![
            incident.id.to_string(),
            incident.waba_id.to_string(),
            state(incident).to_owned(),
        ];
        row.push(when(incident.opened_at));
        row.extend(last);
        row.extend([
            incident.failure_count.to_string(),
            incident.cause.to_string(),
        ]);
        row
    });
    match is_wide {
        true => table(
            &[
                "ID",
                "ACCOUNT",
                "STATE",
                "OPENED",
                "LAST FAILURE",
                "FAILURES",
                "CAUSE",
            ],
            &[0, 5],
            rows,
        ),
        false => table(
            &["ID", "ACCOUNT", "STATE", "OPENED (UTC)", "FAILED", "CAUSE"],
            &[0, 4],
            rows,
        ),
    }
}

pub(super) fn incident(report: &IncidentReport) -> String {
    let incident = &report.incident;
    let mut lines = vec![format!(
        "{BOLD}Incident {}{BOLD:#}, account {}",
        incident.id,
        printable(incident.waba_id.as_str())
    )];
    let mut field = |name: &str, value: String| {
        lines.push(hanging(&format!("  {name:<14}"), &" ".repeat(16), &value));
    };
    field("State", state(incident).to_owned());
    field("Opened", moment(incident.opened_at));
    field("Last failure", moment(incident.last_failure_at));
    if let Some(at) = incident.resolved_at {
        field("Resolved", moment(at));
    }
    if let Some(note) = &incident.resolution_note {
        field("Note", note.clone());
    }
    field("Failures", grouped(incident.failure_count));
    field(
        "Cause",
        report.cause().map_or_else(
            || incident.cause.to_string(),
            |cause| format!("{cause}: {}", cause.title()),
        ),
    );
    if let Some(summary) = &incident.cause_summary {
        field("", summary.clone());
    }
    if let Some(check) = &report.evidence {
        field(
            "Evidence",
            format!("health check {} of {}", check.id, moment(check.checked_at)),
        );
    }
    if let Some(previous) = incident.previous_incident_id {
        field("Previous", format!("incident {previous}"));
    }
    if incident.resolved_at.is_none() {
        lines.push(heading("Next steps"));
        lines.extend(report.next_steps.iter().map(|text| step("  ", text)));
    }
    lines.join("\n")
}

/// The first of the numbers, each with what its latest look-up said.
pub(super) fn numbers(report: &IncidentReport, at_most: usize) -> String {
    let is_wide = width() >= WIDE;
    let rows = report.affected_numbers.iter().take(at_most).map(
        |NumberReport {
             number,
             latest_check,
         }| {
            let health = latest_check
                .as_ref()
                .map(|check| NumberHealth::from_check(check).word());
            let mut row = vec![
                number.phone_number_id.to_string(),
                number.display_phone_number.clone().unwrap_or_default(),
            ];
            row.extend(is_wide.then(|| moment(number.first_failure_at)));
            row.push(if is_wide {
                moment(number.last_failure_at)
            } else {
                short_moment(number.last_failure_at)
            });
            row.extend([
                number.failure_count.to_string(),
                health.unwrap_or("not yet").to_owned(),
            ]);
            row
        },
    );
    let table = match is_wide {
        true => table(
            &[
                "NUMBER ID",
                "NUMBER",
                "FIRST FAILURE",
                "LAST FAILURE",
                "FAILURES",
                "HEALTH",
            ],
            &[4],
            rows,
        ),
        false => table(
            &["NUMBER ID", "NUMBER", "LAST (UTC)", "FAILED", "HEALTH"],
            &[3],
            rows,
        ),
    };
    let more = report.affected_number_count
        - i64::try_from(report.affected_numbers.len().min(at_most)).unwrap_or(0);
    if more > 0 {
        format!("{table}\n {DIM}and {more} more{DIM:#}")
    } else {
        table
    }
}

pub(super) fn checks(checks: &[HealthCheck]) -> String {
    let rows = checks.iter().map(|check| {
        let result = check
            .error
            .as_ref()
            .or(check.can_send_message.as_ref())
            .cloned()
            .unwrap_or_default();
        vec![
            moment(check.checked_at),
            check.phone_number_id.to_string(),
            check.outcome.to_string(),
            result,
        ]
    });
    table(&["CHECKED", "NUMBER ID", "OUTCOME", "RESULT"], &[], rows)
}

pub(super) fn captures(captures: &[Summary]) -> String {
    let is_wide = width() >= WIDE;
    let rows = captures.iter().map(|capture| {
        vec![
            capture.id.to_string(),
            if is_wide {
                moment(capture.received_at)
            } else {
                short_moment(capture.received_at)
            },
            capture.waba_id.clone(),
            capture.body_bytes.to_string(),
            capture.times_received.to_string(),
            capture.failure_count.to_string(),
            if capture.quarantined {
                "yes".to_owned()
            } else {
                String::new()
            },
        ]
    });
    let received = if is_wide {
        "RECEIVED"
    } else {
        "RECEIVED (UTC)"
    };
    let header = [
        "ID",
        received,
        "ACCOUNT",
        "BYTES",
        "TIMES",
        "FAILURES",
        "QUARANTINED",
    ];
    table(&header, &[0, 3, 4, 5], rows)
}

pub(super) fn entities(entities: &[Entity]) -> String {
    let rows = entities.iter().map(|entity| {
        let errors = entity.errors.iter().map(|error| match error.error_code {
            Some(code) => format!("({code}) {}", error.error_description),
            None => error.error_description.clone(),
        });
        let said: Vec<String> = errors
            .chain(entity.additional_info.iter().cloned())
            .collect();
        vec![
            entity.entity_type.clone(),
            entity.id.clone(),
            entity.can_send_message.to_string(),
            said.join(" "),
        ]
    });
    table(&["ENTITY", "ID", "CAN SEND", "WHAT META SAYS"], &[], rows)
}

/// A table without lines, which fits the width; the numbered columns are flush right.
pub(super) fn table(
    header: &[&str],
    right: &[usize],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table
        .set_width(u16::try_from(width()).unwrap_or(u16::MAX))
        .set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}
