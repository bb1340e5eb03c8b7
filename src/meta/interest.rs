//! Interest: whether the bytes of a callback may concern Lockwatch.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::event::ACCOUNT_FIELDS;

/// The error code 131031 as Meta writes it. Another spelling (`1.31031e5`, escaped digits) would be
/// missed, but Meta writes plain integers.
const LOCKOUT_CODE: &[u8] = b"131031";
/// The key whose value says what a change is about. Inside a text its quotation marks are escaped.
const FIELD_KEY: &[u8] = b"\"field\"";

static LOCKOUT_CODE_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(LOCKOUT_CODE));
static FIELD_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(FIELD_KEY));

/// Returns whether a body may hold a failure with a watched code, or an account event.
///
/// If not, the callback holds nothing that matters here. These are two passes over the bytes, so
/// most callbacks are never parsed and never stored.
///
/// ```
/// use lockwatch::meta::interest::may_concern_us;
///
/// assert!(may_concern_us(br#"{"errors":[{"code":131031}]}"#));
/// assert!(may_concern_us(br#"{"field":"account_update"}"#));
/// assert!(!may_concern_us(br#"{"field":"messages","timestamp":"1310311234"}"#));
/// ```
#[must_use]
pub fn may_concern_us(body: &[u8]) -> bool {
    has_watched_code(body) || has_account_field(body)
}

/// Returns whether a body contains a watched code with no digit before or after it: inside a longer
/// number, such as a time or a phone number, it is no code.
#[must_use]
pub fn has_watched_code(body: &[u8]) -> bool {
    LOCKOUT_CODE_FINDER.find_iter(body).any(|start| {
        let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
        let before = start.checked_sub(1).and_then(|at| body.get(at));
        !is_digit(before) && !is_digit(body.get(start + LOCKOUT_CODE.len()))
    })
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
        for field in ACCOUNT_FIELDS {
            for body in [
                format!(r#"{{"changes":[{{"field":"{field}","value":{{}}}}]}}"#),
                format!("{{\"field\" :\n \"{field}\"}}"),
                format!("{{\"field\"\x01:\0\0\"{field}\"}}"),
            ] {
                assert!(may_concern_us(body.as_bytes()), "{body}");
                assert!(!has_watched_code(body.as_bytes()), "{body}");
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
            assert!(!may_concern_us(body.as_bytes()), "{body}");
        }
    }
}
