//! Interest: whether the bytes of a callback may concern Lockwatch.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::codes::WatchedCodes;
use super::event::ACCOUNT_FIELDS;

/// The key whose value says what a change is about. Inside a text its quotation marks are escaped.
const FIELD_KEY: &[u8] = b"\"field\"";
/// The key of the errors of a failed message.
const ERRORS_KEY: &[u8] = b"\"errors\"";
/// A shorter code stands by chance in a number of many callbacks, and counts only beside errors.
const LONG_CODE_DIGITS: usize = 6;

static FIELD_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(FIELD_KEY));
static ERRORS_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(ERRORS_KEY));

/// What a callback has to hold to concern us: a watched code, or an account event.
///
/// ```
/// use lockwatch::meta::interest::Interest;
///
/// let interest = Interest::default();
/// assert!(interest.may_concern_us(br#"{"errors":[{"code":131031}]}"#));
/// assert!(interest.may_concern_us(br#"{"field":"account_update"}"#));
/// assert!(!interest.may_concern_us(br#"{"field":"messages","timestamp":"1310311234"}"#));
/// ```
#[derive(Debug, Clone)]
pub struct Interest {
    codes: WatchedCodes,
    /// A searcher for each code as Meta writes it. Another spelling (`1.31031e5`, escaped digits)
    /// would be missed, but Meta writes plain integers.
    finders: Vec<Finder<'static>>,
}

impl Interest {
    /// Creates an interest in these codes, and in account events.
    #[must_use]
    pub fn new(codes: WatchedCodes) -> Self {
        let finder = |code: &i32| Finder::new(&code.to_string()).into_owned();
        let finders = codes.codes().iter().map(finder).collect();
        Self { codes, finders }
    }

    /// An interest in every account-level code.
    #[must_use]
    pub fn of_everything() -> Self {
        Self::new(WatchedCodes::account_level())
    }

    /// The watched codes.
    #[must_use]
    pub fn codes(&self) -> &WatchedCodes {
        &self.codes
    }

    /// Returns whether a body may hold a failure with a watched code, or an account event.
    ///
    /// If not, the callback holds nothing that matters here. These are a few passes over the bytes,
    /// so most callbacks are never parsed and never stored.
    #[must_use]
    pub fn may_concern_us(&self, body: &[u8]) -> bool {
        self.has_watched_code(body) || has_account_field(body)
    }

    /// Returns whether a body contains a watched code with no digit before or after it: inside a
    /// longer number, such as a time or a phone number, it is no code.
    #[must_use]
    pub fn has_watched_code(&self, body: &[u8]) -> bool {
        self.finders.iter().any(|finder| {
            let length = finder.needle().len();
            let stands_alone = |start: usize| {
                let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
                let before = start.checked_sub(1).and_then(|at| body.get(at));
                !is_digit(before) && !is_digit(body.get(start + length))
            };
            finder.find_iter(body).any(stands_alone)
                && (length >= LONG_CODE_DIGITS || ERRORS_FINDER.find(body).is_some())
        })
    }
}

impl Default for Interest {
    fn default() -> Self {
        Self::new(WatchedCodes::default())
    }
}

/// Returns whether a change in a body has the field of an account event.
pub(crate) fn has_account_field(body: &[u8]) -> bool {
    FIELD_FINDER.find_iter(body).any(|start| {
        let value = trim_start(&body[start + FIELD_KEY.len()..]);
        let value = value.strip_prefix(b":").unwrap_or_default();
        let value = trim_start(value);
        let value = value.strip_prefix(b"\"").unwrap_or_default();
        ACCOUNT_FIELDS.iter().any(|field| {
            value
                .strip_prefix(field.as_bytes())
                .is_some_and(|rest| rest.starts_with(b"\""))
        })
    })
}

/// Skips spaces, and control bytes: a body that has any outside of strings is read as if they were
/// spaces.
fn trim_start(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| *byte > b' ');
    &bytes[start.unwrap_or(bytes.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_account_field_is_of_interest() {
        let interest = Interest::default();
        for field in ACCOUNT_FIELDS {
            for body in [
                format!(r#"{{"changes":[{{"field":"{field}","value":{{}}}}]}}"#),
                format!("{{\"field\" :\n \"{field}\"}}"),
                format!("{{\"field\"\x01:\0\0\"{field}\"}}"),
            ] {
                assert!(interest.may_concern_us(body.as_bytes()), "{body}");
                assert!(!interest.has_watched_code(body.as_bytes()), "{body}");
            }
        }
        for body in [
            r#"{"field":"messages","text":"our security update"}"#,
            r#"{"field":"account_updates"}"#,
            r#"{"text":"\"field\":\"security\""}"#,
            r#"{"field""#,
            r#"{"field":"#,
            r#"{"field":7}"#,
        ] {
            assert!(!interest.may_concern_us(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn a_code_counts_alone_and_a_short_one_beside_errors() {
        let watched = Interest::of_everything();
        for (body, is_of_interest) in [
            (r#"{"code":131042}"#, true),
            (r#"{"code":"133010"}"#, true),
            (r#"{"code":1310421}"#, false),
            (r#"{"id":"wamid.368","timestamp":"1763399138"}"#, false),
            (r#"{"errors":[{"code":368}]}"#, true),
            (r#"{"errors":[{"code":3680,"timestamp":1368}]}"#, false),
        ] {
            assert_eq!(
                watched.has_watched_code(body.as_bytes()),
                is_of_interest,
                "{body}"
            );
            assert!(
                !Interest::default().has_watched_code(body.as_bytes()),
                "{body}"
            );
        }
    }
}
