//! Meta's identifiers and texts as values that Postgres can always store.

use std::fmt;

use serde::Serialize;

/// The longest account or phone number id that is taken, in bytes. Meta's have 15 to 17 digits.
pub const MAX_ID_BYTES: usize = 64;

/// What `entry.id` says for Meta's test numbers.
pub(super) const TEST_ACCOUNT: &str = "0";

/// An account: one WhatsApp Business Account (`entry.id` of a callback). Meta's test numbers send `"0"`
/// there; then the number itself stands for the account, as `phone:<phone_number_id>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct WabaId(String);

/// A business phone number's id: the node whose health is looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PhoneNumberId(String);

/// Why an id is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The id is the empty string.
    #[error("is empty")]
    Empty,
    /// The id is longer than [`MAX_ID_BYTES`].
    #[error("is longer than 64 bytes")]
    TooLong,
    /// The id holds a control character.
    #[error("holds a control character")]
    Control,
}

fn parse(id: &str) -> Result<String, IdError> {
    match id {
        "" => Err(IdError::Empty),
        _ if id.len() > MAX_ID_BYTES => Err(IdError::TooLong),
        _ if id.chars().any(char::is_control) => Err(IdError::Control),
        _ => Ok(id.to_owned()),
    }
}

impl WabaId {
    /// Reads an account id as it stands.
    ///
    /// # Errors
    /// Empty, longer than [`MAX_ID_BYTES`], or with a control character in it.
    pub fn parse(id: &str) -> Result<Self, IdError> {
        parse(id).map(Self)
    }

    /// Returns the account of a failure: the entry's own id, or the number's where the entry is `"0"`.
    #[must_use]
    pub fn of_failure(entry: &WabaId, number: &PhoneNumberId) -> Self {
        match entry.as_str() {
            TEST_ACCOUNT => Self(format!("phone:{number}")),
            _ => entry.clone(),
        }
    }

    /// Takes an id that was stored before.
    pub(crate) fn from_stored(id: String) -> Self {
        Self(id)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PhoneNumberId {
    /// Reads a phone number id as it stands.
    ///
    /// # Errors
    /// Empty, longer than [`MAX_ID_BYTES`], or with a control character in it.
    pub fn parse(id: &str) -> Result<Self, IdError> {
        parse(id).map(Self)
    }

    /// Takes an id that was stored before.
    pub(crate) fn from_stored(id: String) -> Self {
        Self(id)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WabaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for PhoneNumberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl PartialEq<&str> for WabaId {
    fn eq(&self, id: &&str) -> bool {
        self.0 == *id
    }
}

impl PartialEq<&str> for PhoneNumberId {
    fn eq(&self, id: &&str) -> bool {
        self.0 == *id
    }
}

/// Received text that Postgres takes: NUL replaced by U+FFFD, cut at a length in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// The longest title, message, detail or callback data that is kept, in bytes. Meta's own limit for
    /// `biz_opaque_callback_data` is 512 characters.
    pub const LONG: usize = 2048;
    /// The longest message id, recipient or display number that is kept, in bytes.
    pub const SHORT: usize = 512;

    /// Takes `text`, cut to at most `max` bytes on a character's border.
    #[must_use]
    pub fn cut(text: &str, max: usize) -> Self {
        let mut text = text.replace('\0', "\u{fffd}");
        text.truncate(text.floor_char_boundary(max));
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, owned.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_numbers_account_is_the_number_itself() {
        let number = PhoneNumberId::parse("106540352242922").unwrap();
        let account =
            |entry| WabaId::of_failure(&WabaId::parse(entry).unwrap(), &number).to_string();
        assert_eq!(account("0"), "phone:106540352242922");
        assert_eq!(account("102290129340398"), "102290129340398");
    }

    #[test]
    fn ids_are_short_and_printable() {
        assert_eq!(WabaId::parse(""), Err(IdError::Empty));
        assert_eq!(PhoneNumberId::parse(&"1".repeat(65)), Err(IdError::TooLong));
        assert_eq!(WabaId::parse("1\u{0}2"), Err(IdError::Control));
        assert!(WabaId::parse(&"1".repeat(64)).is_ok());
    }

    #[test]
    fn text_is_cut_on_a_characters_border_and_holds_no_nul() {
        assert_eq!(Text::cut("añb", 2).as_str(), "a");
        assert_eq!(Text::cut("a\0b", 64).as_str(), "a\u{fffd}b");
    }
}
