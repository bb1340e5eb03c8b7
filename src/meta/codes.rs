//! The watched error codes: which failed messages are recorded.

use std::fmt;
use std::str::FromStr;

/// The code of the error "Business Account locked"
/// ([Meta: error codes](https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes)).
pub const ACCOUNT_LOCKED: i32 = 131_031;

/// The codes that are about an account or a number, not about a single message; the gravest first.
pub const ACCOUNT_CODES: [i32; 7] = [
    ACCOUNT_LOCKED,
    368,
    131_042,
    131_045,
    133_010,
    130_497,
    131_064,
];

/// The codes to watch, the gravest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedCodes(Vec<i32>);

impl WatchedCodes {
    /// Every account-level code.
    #[must_use]
    pub fn account_level() -> Self {
        Self(ACCOUNT_CODES.to_vec())
    }

    /// The codes, the gravest first.
    #[must_use]
    pub fn codes(&self) -> &[i32] {
        &self.0
    }

    /// Returns the place of a code in the order of gravity, if it is watched.
    #[must_use]
    pub fn rank(&self, code: i64) -> Option<usize> {
        self.0
            .iter()
            .position(|watched| i64::from(*watched) == code)
    }
}

impl Default for WatchedCodes {
    /// 131031 alone.
    fn default() -> Self {
        Self(vec![ACCOUNT_LOCKED])
    }
}

impl fmt::Display for WatchedCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, code) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{code}")?;
        }
        Ok(())
    }
}

/// The text is no list of account-level codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no account-level code: use `account` for all of them, or a list of 131031, 368, \
     131042, 131045, 133010, 130497, 131064"
)]
pub struct UnknownCode(String);

impl FromStr for WatchedCodes {
    type Err = UnknownCode;

    /// Parses `account`, or codes with commas between them. 131031 is always watched.
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        if text.trim() == "account" {
            return Ok(Self::account_level());
        }
        let mut codes = vec![ACCOUNT_LOCKED];
        for word in text.split(',').map(str::trim) {
            let code = word
                .parse()
                .ok()
                .filter(|code| ACCOUNT_CODES.contains(code));
            codes.push(code.ok_or_else(|| UnknownCode(word.to_owned()))?);
        }
        let is_wanted = |code: &i32| codes.contains(code);
        Ok(Self(ACCOUNT_CODES.into_iter().filter(is_wanted).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_parsed_in_the_order_of_gravity() {
        let parse = |text: &str| text.parse::<WatchedCodes>().map(|codes| codes.to_string());
        assert_eq!(parse("131031").unwrap(), "131031");
        assert_eq!(parse(" 130497, 368 ").unwrap(), "131031, 368, 130497");
        assert_eq!(
            parse("account").unwrap(),
            "131031, 368, 131042, 131045, 133010, 130497, 131064"
        );
        for unknown in ["", "131026", "all", "131031;368", "131031,"] {
            assert!(parse(unknown).is_err(), "{unknown:?}");
        }
    }
}
