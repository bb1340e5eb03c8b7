//! Words, numbers and times in the form that people read.

use std::borrow::Cow;

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime, PrimitiveDateTime, UtcOffset};

use crate::lockout::change::ChangeKind;
use crate::store::Word;
use crate::store::changes::IncidentChange;
use crate::store::incidents::Incident;

/// Replaces characters of received text that move the cursor, change colours or change the
/// direction of the line.
#[must_use]
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || is_direction_mark(c) {
                ' '
            } else {
                c
            }
        })
        .collect()
}

fn is_direction_mark(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Formats a time as `2026-11-22 18:24:05 UTC`.
#[must_use]
pub(crate) fn format_time(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC)
        .format(format_description!(
            "[year]-[month]-[day] [hour]:[minute]:[second] UTC"
        ))
        .unwrap_or_default()
}

/// Formats a time as `22 Nov 18:24`, for an axis that names its zone.
#[must_use]
pub(crate) fn format_short_time(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC)
        .format(format_description!(
            "[day padding:none] [month repr:short] [hour]:[minute]"
        ))
        .unwrap_or_default()
}

/// Parses a day, a time (in RFC 3339, or as [`format_time`] writes it), or a number of days, hours
/// or minutes before now, such as `36h`.
///
/// # Errors
/// The text is none of these. The error is a sentence with examples.
pub(crate) fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    parse_time_ago(text)
        .or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok())
        .or_else(|| parse_formatted_time(text))
        .or_else(|| parse_day(text))
        // Postgres cannot store every year that can be written; before 1970 there was nothing to
        // record.
        .map(|time| time.max(OffsetDateTime::UNIX_EPOCH))
        .ok_or_else(|| {
            "not a time: use 2026-11-22, 2026-11-22T18:00:00Z, or 36h for 36 hours ago".to_owned()
        })
}

fn parse_time_ago(text: &str) -> Option<OffsetDateTime> {
    let number_before = |unit: char| -> Option<i64> {
        let number: u32 = text.strip_suffix(unit)?.parse().ok()?;
        Some(i64::from(number))
    };
    let ago = number_before('d')
        .map(Duration::days)
        .or(number_before('h').map(Duration::hours))
        .or(number_before('m').map(Duration::minutes))?;
    OffsetDateTime::now_utc().checked_sub(ago)
}

fn parse_formatted_time(text: &str) -> Option<OffsetDateTime> {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let time = PrimitiveDateTime::parse(text, format).ok()?;
    Some(time.assume_utc())
}

fn parse_day(text: &str) -> Option<OffsetDateTime> {
    let date = Date::parse(text, format_description!("[year]-[month]-[day]")).ok()?;
    Some(date.midnight().assume_utc())
}

/// Formats a duration in its largest unit, or in two units if one is too coarse: `45 s`, `12 min`,
/// `5 h 20 min`, `3 days`.
#[must_use]
pub(crate) fn format_duration(duration: Duration) -> String {
    let seconds = duration.whole_seconds().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if minutes < 1 {
        format!("{seconds} s")
    } else if hours < 1 {
        format!("{minutes} min")
    } else if hours < 10 && minutes % 60 > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if hours < 48 {
        format!("{hours} h")
    } else {
        format!("{days} days")
    }
}

/// Formats a number with its noun: `1 failure`, `2 failures`.
#[must_use]
pub(crate) fn format_count(n: i64, singular: &str, plural: &str) -> String {
    format!(
        "{} {}",
        format_number(n),
        if n == 1 { singular } else { plural }
    )
}

/// Formats a number with its digits in groups: `12,345`.
#[must_use]
pub(crate) fn format_number(n: i64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns `open`, or the word for the incident's resolution.
#[must_use]
pub(crate) fn state_word(incident: &Incident) -> &str {
    incident.resolution.as_ref().map_or("open", Word::as_str)
}

/// Describes the incident's state in a few words: `open`, or the reason why it is resolved.
#[must_use]
pub(crate) fn describe_state(incident: &Incident) -> Cow<'_, str> {
    match &incident.resolution {
        Some(Word::Known(resolution)) => resolution.describe().into(),
        None => state_word(incident).into(),
        Some(Word::Later(word)) => printable(word).into(),
    }
}

/// Describes a change of an incident in a few words.
#[must_use]
pub(crate) fn describe_change(change: &IncidentChange) -> String {
    match ChangeKind::parse(&change.kind, change.detail.as_deref()) {
        Some(ChangeKind::Opened) => "opened".to_owned(),
        Some(ChangeKind::CauseFound(cause)) => format!("cause: {}", cause.title()),
        Some(ChangeKind::CauseChanged(cause)) => format!("cause changed: {}", cause.title()),
        Some(ChangeKind::Acknowledged) => "acknowledged".to_owned(),
        Some(ChangeKind::Reminded) => "still open: reminder".to_owned(),
        Some(ChangeKind::Resolved(resolution)) => resolution.describe().to_owned(),
        Some(ChangeKind::Reopened) => "open again".to_owned(),
        None => printable(&change.kind),
    }
}

/// Says whether messages of an open incident still fail: `still failing`, or `silent for 3 h`. An
/// error of the account itself opens an incident before any message fails.
#[must_use]
pub(crate) fn describe_activity(incident: &Incident, now: OffsetDateTime) -> String {
    /// Without a failure for this long, an account is silent.
    const SILENCE: Duration = Duration::HOUR;
    let silent_for = now - incident.last_failure_at;
    if incident.failure_count == 0 {
        "no message has failed yet".to_owned()
    } else if silent_for < SILENCE {
        "still failing".to_owned()
    } else {
        format!("silent for {}", format_duration(silent_for))
    }
}

/// Returns whether an incident was over for a while before that was noticed.
pub(crate) fn was_noticed_later(incident: &Incident) -> bool {
    let noticed = incident.ended_at.zip(incident.resolved_at);
    noticed.is_some_and(|(ended_at, resolved_at)| resolved_at - ended_at > Duration::MINUTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_numbers_are_formatted() {
        for (seconds, text) in [
            (-5, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h"),
            (19_200, "5 h 20 min"),
            (36_000, "10 h"),
            (172_799, "47 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(format_duration(Duration::seconds(seconds)), text);
        }
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-1_234_567, "-1,234,567"),
        ] {
            assert_eq!(format_number(n), text);
        }
        assert_eq!(format_count(1, "failure", "failures"), "1 failure");
    }

    #[test]
    fn characters_that_change_the_direction_are_removed() {
        assert_eq!(
            printable("a\u{202e}b\u{1b}[31m\u{2066}c\nd"),
            "a b [31m c d"
        );
        assert_eq!(printable("Grüße 👍 مرحبا"), "Grüße 👍 مرحبا");
    }
}
