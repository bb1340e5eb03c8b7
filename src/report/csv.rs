//! Lists as CSV, for a spreadsheet.
//!
//! A spreadsheet takes a cell that starts with `=`, `+`, `-` or `@` for a formula, blanks before it or not, and
//! one that divides by semicolons finds cells of its own in a text. Whatever could start a formula gets an
//! apostrophe in front ([OWASP: CSV injection](https://owasp.org/www-community/attacks/CSV_Injection)).

use serde::Serialize;
use serde_json::Value;

use super::IncidentReport;
use crate::store::checks::HealthCheck;
use crate::store::deliveries::Delivery;

/// Something with a line in a table: its columns are some of its JSON object's fields.
pub trait Row: Serialize {
    /// The columns, in order.
    const COLUMNS: &[&str];
}

impl Row for IncidentReport {
    const COLUMNS: &[&str] = &[
        "id",
        "waba_id",
        "opened_at",
        "last_failure_at",
        "resolved_at",
        "resolution",
        "resolution_note",
        "failure_count",
        "affected_number_count",
        "cause",
        "cause_severity",
        "cause_summary",
        "cause_entity_type",
        "cause_entity_id",
        "cause_error_code",
        "possible_solution",
        "cause_recorded_at",
        "previous_incident_id",
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

impl Row for HealthCheck {
    const COLUMNS: &[&str] = &[
        "id",
        "incident_id",
        "phone_number_id",
        "checked_at",
        "outcome",
        "http_status",
        "can_send_message",
        "error",
        "duration_ms",
        "entities",
        "response",
    ];
}

/// A table with a header, as [RFC 4180](https://www.rfc-editor.org/rfc/rfc4180) has it.
#[must_use]
pub fn table<T: Row>(rows: &[T]) -> String {
    header::<T>() + &lines(rows)
}

/// The first line of a table.
#[must_use]
pub fn header<T: Row>() -> String {
    T::COLUMNS.join(",") + "\r\n"
}

/// The other lines.
#[must_use]
pub fn lines<T: Row>(rows: &[T]) -> String {
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    let in_memory = "a vector takes every byte";
    for row in rows {
        let object = serde_json::to_value(row).expect("our objects have text for keys");
        let cells = T::COLUMNS
            .iter()
            .map(|column| cell(object.get(column).unwrap_or(&Value::Null)));
        writer.write_record(cells).expect(in_memory);
    }
    let bytes = writer.into_inner().expect(in_memory);
    String::from_utf8(bytes).expect("text stays text")
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => safe(text),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            safe(&items.join(" | "))
        }
        Value::Array(_) | Value::Object(_) => safe(&value.to_string()),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn safe(text: &str) -> String {
    // The last four are full-width forms, which some spreadsheets take for the same.
    const STARTS: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
    let mut safe = String::with_capacity(text.len());
    let mut starts = true;
    for c in text.chars() {
        if starts && STARTS.contains(&c) {
            safe.push('\'');
        }
        starts = c == ';' || c.is_control() || starts && c.is_whitespace();
        safe.push(c);
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_never_a_formula() {
        for (text, safe) in [
            ("=1+1", "'=1+1"),
            ("+1 650", "'+1 650"),
            ("@SUM(A1)", "'@SUM(A1)"),
            (" \u{a0}=1", " \u{a0}'=1"),
            ("\t=1\r-2", "\t'=1\r'-2"),
            ("a; =1", "a; '=1"),
            ("＝1", "'＝1"),
        ] {
            assert_eq!(cell(&Value::from(text)), safe);
        }
        assert_eq!(cell(&Value::from("a=b")), "a=b");
        assert_eq!(cell(&Value::from(-5)), "-5", "a number of ours is a number");
        assert_eq!(cell(&serde_json::json!(["=a.", "b."])), "'=a. | b.");
        assert_eq!(
            cell(&serde_json::json!([{"a": "x;=1"}])),
            "[{\"a\":\"x;'=1\"}]"
        );
    }
}
