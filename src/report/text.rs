//! Words and times as people read them.

use std::borrow::Cow;

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime, PrimitiveDateTime, UtcOffset};

use crate::store::Word;
use crate::store::incidents::Incident;

/// Received text that cannot move the cursor, change colours or turn the line around.
#[must_use]
pub fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|c| if c.is_control() || turns(c) { ' ' } else { c })
        .collect()
}

/// A moment as `2026-11-22 18:24:05 UTC`.
#[must_use]
pub fn moment(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC)
        .format(format_description!(
            "[year]-[month]-[day] [hour]:[minute]:[second] UTC"
        ))
        .unwrap_or_default()
}

/// A day, a time as RFC 3339 or as our tables show it, or so many days, hours or minutes ago.
///
/// # Errors
/// It is none of these: a sentence that shows some.
pub fn parse_moment(text: &str) -> Result<OffsetDateTime, String> {
    let ago = |unit: char| text.strip_suffix(unit)?.parse::<u32>().ok().map(i64::from);
    let ago = ago('d')
        .map(Duration::days)
        .or(ago('h').map(Duration::hours))
        .or(ago('m').map(Duration::minutes));
    let ago = ago.and_then(|ago| OffsetDateTime::now_utc().checked_sub(ago));
    let shown = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let day = format_description!("[year]-[month]-[day]");
    let moment = ago
        .or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok())
        .or_else(|| {
            PrimitiveDateTime::parse(text, shown)
                .map(PrimitiveDateTime::assume_utc)
                .ok()
        })
        .or_else(|| {
            Date::parse(text, day)
                .map(|date| date.midnight().assume_utc())
                .ok()
        });
    // Postgres does not know every year that can be written; before 1970 there was nothing to record.
    let moment = moment.map(|moment| moment.max(OffsetDateTime::UNIX_EPOCH));
    moment.ok_or_else(|| {
        "not a time: 2026-11-22, 2026-11-22T18:00:00Z, or 36h for so long ago".to_owned()
    })
}

/// A moment as `22 Nov 18:24`, for an axis that names its zone.
#[must_use]
pub fn short_moment(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC)
        .format(format_description!(
            "[day padding:none] [month repr:short] [hour]:[minute]"
        ))
        .unwrap_or_default()
}

/// A stretch of time in its largest unit, or in two where one says too little: `45 s`, `12 min`, `5 h 20 min`,
/// `3 days`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let seconds = duration.whole_seconds().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if seconds < 60 => format!("{seconds} s"),
        () if minutes < 60 => format!("{minutes} min"),
        () if hours < 10 && minutes % 60 > 0 => format!("{hours} h {} min", minutes % 60),
        () if hours < 48 => format!("{hours} h"),
        () => format!("{days} days"),
    }
}

/// A number with its noun.
#[must_use]
pub fn count(n: i64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n), if n == 1 { one } else { many })
}

/// A number whose digits are in groups: `12,345`.
#[must_use]
pub fn grouped(n: i64) -> String {
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

/// `open`, or how it ended.
#[must_use]
pub fn state(incident: &Incident) -> &str {
    incident.resolution.as_ref().map_or("open", Word::as_str)
}

/// `open`, or how it ended, in words.
#[must_use]
pub fn ended(incident: &Incident) -> Cow<'_, str> {
    match state(incident) {
        "quiet" => "quiet for 7 days".into(),
        "manual" => "resolved by hand".into(),
        word => printable(word).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_counts_read_well() {
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
            assert_eq!(duration(Duration::seconds(seconds)), text);
        }
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-1_234_567, "-1,234,567"),
        ] {
            assert_eq!(grouped(n), text);
        }
        assert_eq!(count(1, "failure", "failures"), "1 failure");
    }

    #[test]
    fn text_that_turns_the_line_around_is_taken_out() {
        assert_eq!(
            printable("a\u{202e}b\u{1b}[31m\u{2066}c\nd"),
            "a b [31m c d"
        );
        assert_eq!(printable("Grüße 👍 مرحبا"), "Grüße 👍 مرحبا");
    }
}
