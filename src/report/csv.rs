//! Lists as CSV, for a spreadsheet.
//!
//! A spreadsheet takes a cell that starts with `=`, `+`, `-`, `@` or a tab for a formula, and received text
//! may start with anything: such a cell gets an apostrophe in front
//! ([OWASP: CSV injection](https://owasp.org/www-community/attacks/CSV_Injection)).

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::IncidentReport;
use crate::store::details::{Delivery, HealthCheck};

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
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    let in_memory = "a vector takes every byte";
    writer.write_record(T::COLUMNS).expect(in_memory);
    for row in rows {
        let object = serde_json::to_value(row).expect("our objects have text for keys");
        let cells = T::COLUMNS.iter().map(|column| cell(object.get(column).unwrap_or(&Value::Null)));
        writer.write_record(cells).expect(in_memory);
    }
    let bytes = writer.into_inner().expect(in_memory);
    String::from_utf8(bytes).expect("text stays text")
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => safe(text).into_owned(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            safe(&items.join(" ")).into_owned()
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn safe(text: &str) -> Cow<'_, str> {
    // The last four are full-width forms, which some spreadsheets take for the same.
    match text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']) {
        true => Cow::Owned(format!("'{text}")),
        false => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_never_a_formula() {
        for text in ["=1+1", "+1 650", "-2", "@SUM(A1)", "\t=1", "\r=1", "＝1"] {
            assert_eq!(cell(&Value::from(text)), format!("'{text}"));
        }
        assert_eq!(cell(&Value::from("a=b")), "a=b");
        assert_eq!(cell(&Value::from(-5)), "-5", "a number of ours is a number");
        assert_eq!(cell(&serde_json::json!(["=a.", "b."])), "'=a. b.");
    }
}
