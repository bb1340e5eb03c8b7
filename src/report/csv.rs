//! Lists as CSV, for a spreadsheet.
//!
//! A spreadsheet reads a cell that starts with `=`, `+`, `-` or `@` as a formula, even after
//! blanks. A spreadsheet that separates cells by semicolons finds new cells inside a text. So every
//! character that could start a formula gets an apostrophe in front of it ([OWASP: CSV
//! injection](https://owasp.org/www-community/attacks/CSV_Injection)).

use serde::Serialize;
use serde_json::Value;

use super::IncidentReport;
use crate::store::changes::IncidentChange;
use crate::store::checks::HealthCheck;
use crate::store::deliveries::Delivery;

/// A type whose values are rows of a table. The columns are fields of its JSON object.
pub(crate) trait Row: Serialize {
    /// The names of the columns, in order.
    const COLUMNS: &[&str];
}

impl Row for IncidentReport {
    const COLUMNS: &[&str] = &[
        "id",
        "waba_id",
        "opened_at",
        "last_failure_at",
        "ended_at",
        "resolved_at",
        "resolution",
        "resolution_note",
        "failure_count",
        "affected_number_count",
        "cause",
        "cause_confidence",
        "cause_scope",
        "denial",
        "cause_severity",
        "cause_summary",
        "cause_entity_type",
        "cause_entity_id",
        "cause_error_code",
        "possible_solution",
        "cause_recorded_at",
        "previous_incident_id",
        "account_name",
        "portfolio_id",
        "kind",
        "opened_by",
        "next_steps",
    ];
}

impl Row for Delivery {
    const COLUMNS: &[&str] = &[
        "id",
        "incident_id",
        "waba_id",
        "phone_number_id",
        "message_id",
        "recipient_id",
        "participant_id",
        "failed_at",
        "received_at",
        "error_code",
        "error_title",
        "error_message",
        "error_details",
        "callback_data",
        "capture_id",
    ];
}

impl Row for IncidentChange {
    const COLUMNS: &[&str] = &["id", "incident_id", "kind", "at", "by", "detail"];
}

impl Row for HealthCheck {
    const COLUMNS: &[&str] = &[
        "id",
        "incident_id",
        "phone_number_id",
        "checked_at",
        "outcome",
        "http_status",
        "can_send_message",
        "denial",
        "error",
        "duration_ms",
        "entities",
        "fields",
        "response",
    ];
}

/// Formats a table with a header, as [RFC 4180](https://www.rfc-editor.org/rfc/rfc4180) describes
/// it.
#[must_use]
pub(crate) fn format_table<T: Row>(rows: &[T]) -> String {
    format_header::<T>() + &format_rows(rows)
}

/// Formats the first line of a table.
#[must_use]
pub(crate) fn format_header<T: Row>() -> String {
    T::COLUMNS.join(",") + "\r\n"
}

/// Formats the lines after the header.
#[must_use]
pub(crate) fn format_rows<T: Row>(rows: &[T]) -> String {
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    let in_memory = "writing to memory never fails";
    for row in rows {
        let object = serde_json::to_value(row).expect("the keys of our objects are text");
        let cells = T::COLUMNS
            .iter()
            .map(|column| format_cell(object.get(column).unwrap_or(&Value::Null)));
        writer.write_record(cells).expect(in_memory);
    }
    let bytes = writer.into_inner().expect(in_memory);
    String::from_utf8(bytes).expect("CSV of text is text")
}

fn format_cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escape_formulas(text),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            escape_formulas(&items.join(" | "))
        }
        Value::Array(_) | Value::Object(_) => escape_formulas(&value.to_string()),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Puts an apostrophe before each character that could start a formula.
fn escape_formulas(text: &str) -> String {
    // Some spreadsheets treat the full-width forms like the others.
    const FORMULA_STARTS: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
    let mut escaped = String::with_capacity(text.len());
    let mut at_start = true;
    for c in text.chars() {
        if at_start && FORMULA_STARTS.contains(&c) {
            escaped.push('\'');
        }
        at_start = c == ';' || c.is_control() || at_start && c.is_whitespace();
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_never_starts_a_formula() {
        for (text, escaped) in [
            ("=1+1", "'=1+1"),
            ("+1 650", "'+1 650"),
            ("@SUM(A1)", "'@SUM(A1)"),
            (" \u{a0}=1", " \u{a0}'=1"),
            ("\t=1\r-2", "\t'=1\r'-2"),
            ("a; =1", "a; '=1"),
            ("＝1", "'＝1"),
        ] {
            assert_eq!(format_cell(&Value::from(text)), escaped);
        }
        assert_eq!(format_cell(&Value::from("a=b")), "a=b");
        assert_eq!(
            format_cell(&Value::from(-5)),
            "-5",
            "our numbers stay numbers"
        );
        assert_eq!(format_cell(&serde_json::json!(["=a.", "b."])), "'=a. | b.");
        assert_eq!(
            format_cell(&serde_json::json!([{"a": "x;=1"}])),
            "[{\"a\":\"x;'=1\"}]"
        );
    }
}
