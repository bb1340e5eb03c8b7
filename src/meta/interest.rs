//! Interest: whether the bytes of a callback may concern Lockwatch.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

/// The error code 131031 as Meta writes it. Another spelling (`1.31031e5`, escaped digits) would be
/// missed, but Meta writes plain integers.
const LOCKOUT_CODE: &[u8] = b"131031";
/// What the names of the fields of account events have in common: most end in `_update`.
const ACCOUNT_FIELD_MARKS: [&[u8]; 3] = [b"_update\"", b"\"account_alerts\"", b"\"security\""];

/// The code first.
static SEARCHER: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let patterns = [LOCKOUT_CODE].into_iter().chain(ACCOUNT_FIELD_MARKS);
    AhoCorasick::new(patterns).expect("a few short patterns")
});

/// Returns whether a body may hold a failure with a watched code, or an account event. The code
/// counts only with no digit before or after it: inside a longer number, such as a time or a phone
/// number, it is no code.
///
/// Without any of these, the callback holds nothing that matters here. This is one pass over the
/// bytes, so most callbacks are never parsed and never stored.
///
/// ```
/// use lockwatch::meta::interest::may_concern_us;
///
/// assert!(may_concern_us(br#"{"errors":[{"code":131031}]}"#));
/// assert!(may_concern_us(br#"{"field":"account_update"}"#));
/// assert!(!may_concern_us(br#"{"timestamp":"1310311234"}"#));
/// ```
#[must_use]
pub fn may_concern_us(body: &[u8]) -> bool {
    SEARCHER
        .find_iter(body)
        .any(|found| found.pattern().as_usize() > 0 || is_code(body, found.start()))
}

/// Returns whether a body may hold a failure with a watched code.
#[must_use]
pub fn has_watched_code(body: &[u8]) -> bool {
    SEARCHER
        .find_iter(body)
        .any(|found| found.pattern().as_usize() == 0 && is_code(body, found.start()))
}

/// Returns whether the digits at this place stand alone.
fn is_code(body: &[u8], start: usize) -> bool {
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let before = start.checked_sub(1).and_then(|at| body.get(at));
    !is_digit(before) && !is_digit(body.get(start + LOCKOUT_CODE.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::event::ACCOUNT_FIELDS;

    #[test]
    fn every_account_field_is_of_interest() {
        for field in ACCOUNT_FIELDS {
            let body = format!(r#"{{"changes":[{{"field":"{field}","value":{{}}}}]}}"#);
            assert!(may_concern_us(body.as_bytes()), "{field}");
            assert!(!has_watched_code(body.as_bytes()), "{field}");
        }
        assert!(!may_concern_us(
            br#"{"field":"messages","text":"our security update"}"#
        ));
    }
}
