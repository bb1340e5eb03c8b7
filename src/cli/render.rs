//! Tables and paragraphs for a terminal. Times are UTC and say so.

use std::io::{IsTerminal, stdout};

use anstyle::{AnsiColor, Color, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::meta::health::Entity;
use crate::store::captures::Summary;
use crate::store::incidents::{AffectedNumber, HealthCheck, Incident};

/// Wider lines are hard to read, and 120 is what the width is without a terminal.
const WIDEST: usize = 120;
const NARROWEST: usize = 60;

pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const RED: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Red)));
pub(super) const GREEN: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
pub(super) const YELLOW: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));

/// How many columns there are.
pub(super) fn width() -> usize {
    let terminal = stdout().is_terminal().then(|| rustix::termios::tcgetwinsize(stdout()).ok()).flatten();
    terminal.map_or(WIDEST, |size| usize::from(size.ws_col)).clamp(NARROWEST, WIDEST)
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

fn hanging(first: &str, rest: &str, text: &str) -> String {
    let options = textwrap::Options::new(width()).initial_indent(first).subsequent_indent(rest).break_words(false);
    // A link broken at a hyphen cannot be clicked.
    let options = options.word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(&printable(text), options)
}

/// Received text cannot move the cursor, change colours or turn the line around.
pub(super) fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { ' ' } else { c }).collect()
}

/// A moment as `2026-11-22 18:24:05 UTC`.
pub(super) fn moment(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC"))
        .unwrap_or_default()
}

pub(super) fn state(incident: &Incident) -> String {
    incident.resolution.clone().unwrap_or_else(|| "open".to_owned())
}

pub(super) fn incidents(incidents: &[Incident]) -> String {
    let rows = incidents.iter().map(|incident| {
        vec![
            incident.id.to_string(),
            incident.waba_id.clone(),
            state(incident),
            moment(incident.opened_at),
            moment(incident.last_failure_at),
            incident.failure_count.to_string(),
            incident.cause.clone(),
        ]
    });
    table(&["ID", "ACCOUNT", "STATE", "OPENED", "LAST FAILURE", "FAILURES", "CAUSE"], &[0, 5], rows)
}

pub(super) fn incident(incident: &Incident) -> String {
    let mut lines = vec![format!("{BOLD}Incident {}{BOLD:#}, account {}", incident.id, printable(&incident.waba_id))];
    let mut field = |name: &str, value: String| {
        lines.push(hanging(&format!("  {name:<14}"), &" ".repeat(16), &value));
    };
    field("State", state(incident));
    field("Opened", moment(incident.opened_at));
    field("Last failure", moment(incident.last_failure_at));
    if let Some(at) = incident.resolved_at {
        field("Resolved", moment(at));
    }
    if let Some(note) = &incident.resolution_note {
        field("Note", note.clone());
    }
    field("Failures", incident.failure_count.to_string());
    field("Cause", incident.cause.clone());
    if let Some(summary) = &incident.cause_summary {
        field("", summary.clone());
    }
    if let Some(previous) = incident.previous_incident_id {
        field("Previous", format!("incident {previous}"));
    }
    if incident.resolved_at.is_none() {
        lines.push(heading("Next steps"));
        lines.extend(incident.next_steps().iter().map(|text| step("  ", text)));
    }
    lines.join("\n")
}

pub(super) fn numbers(numbers: &[AffectedNumber]) -> String {
    let rows = numbers.iter().map(|number| {
        vec![
            number.phone_number_id.clone(),
            number.display_phone_number.clone().unwrap_or_default(),
            moment(number.first_failure_at),
            moment(number.last_failure_at),
            number.failure_count.to_string(),
        ]
    });
    table(&["NUMBER ID", "NUMBER", "FIRST FAILURE", "LAST FAILURE", "FAILURES"], &[4], rows)
}

pub(super) fn checks(checks: &[HealthCheck]) -> String {
    let rows = checks.iter().map(|check| {
        let result = check.error.as_ref().or(check.can_send_message.as_ref()).cloned().unwrap_or_default();
        vec![moment(check.checked_at), check.phone_number_id.clone(), check.outcome.clone(), result]
    });
    table(&["CHECKED", "NUMBER ID", "OUTCOME", "RESULT"], &[], rows)
}

pub(super) fn captures(captures: &[Summary]) -> String {
    let rows = captures.iter().map(|capture| {
        vec![
            capture.id.to_string(),
            moment(capture.received_at),
            capture.waba_id.clone(),
            capture.body_bytes.to_string(),
            capture.times_received.to_string(),
            capture.failure_count.to_string(),
            if capture.quarantined { "yes".to_owned() } else { String::new() },
        ]
    });
    let header = ["ID", "RECEIVED", "ACCOUNT", "BYTES", "TIMES", "FAILURES", "QUARANTINED"];
    table(&header, &[0, 3, 4, 5], rows)
}

pub(super) fn entities(entities: &[Entity]) -> String {
    let rows = entities.iter().map(|entity| {
        let errors = entity.errors.iter().map(|error| match error.error_code {
            Some(code) => format!("({code}) {}", error.error_description),
            None => error.error_description.clone(),
        });
        let said: Vec<String> = errors.chain(entity.additional_info.iter().cloned()).collect();
        vec![entity.entity_type.clone(), entity.id.clone(), entity.can_send_message.to_string(), said.join(" ")]
    });
    table(&["ENTITY", "ID", "CAN SEND", "WHAT META SAYS"], &[], rows)
}

/// A table without lines, which fits the width; the numbered columns are flush right.
pub(super) fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(width()).unwrap_or(u16::MAX)).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
