//! Interest: whether the bytes of a callback may concern Lockwatch.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// The error code 131031 as Meta writes it. Another spelling (`1.31031e5`, escaped digits) would be
/// missed, but Meta writes plain integers.
const LOCKOUT_CODE: &[u8] = b"131031";

static LOCKOUT_CODE_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(LOCKOUT_CODE));

/// Returns whether a body contains a watched code with no digit before or after it: inside a longer
/// number, such as a time or a phone number, it is no code.
///
/// Without it, the callback holds no failure that matters here. This is one pass over the bytes, so
/// most callbacks are never parsed and never stored.
///
/// ```
/// use lockwatch::meta::interest::may_concern_us;
///
/// assert!(may_concern_us(br#"{"errors":[{"code":131031}]}"#));
/// assert!(!may_concern_us(br#"{"timestamp":"1310311234"}"#));
/// ```
#[must_use]
pub fn may_concern_us(body: &[u8]) -> bool {
    LOCKOUT_CODE_FINDER.find_iter(body).any(|start| {
        let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
        let before = start.checked_sub(1).and_then(|at| body.get(at));
        !is_digit(before) && !is_digit(body.get(start + LOCKOUT_CODE.len()))
    })
}
