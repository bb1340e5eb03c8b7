//! Meta's ids and texts as values that Postgres can always store.

use std::fmt;

use serde::Serialize;

/// The longest id that is accepted, in bytes. Meta's have 15 to 17 digits.
pub const MAX_ID_BYTES: usize = 64;

/// The `entry.id` in callbacks for Meta's test numbers.
const TEST_ACCOUNT_ID: &str = "0";

/// The id of a WhatsApp Business Account (WABA): `entry.id` in a callback.
///
/// Meta's test numbers send `"0"` there. For them the number stands for the account, as
/// `phone:<phone_number_id>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct WabaId(String);

/// The id of a business phone number: the node whose health is looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PhoneNumberId(String);

/// The reason why an id is refused, as the end of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The id is missing or the empty string.
    #[error("is empty")]
    Empty,
    /// The id is longer than [`MAX_ID_BYTES`].
    #[error("is longer than 64 bytes")]
    TooLong,
    /// The id contains a control character.
    #[error("contains a control character")]
    ControlCharacter,
}

impl WabaId {
    /// Parses an account id. The text is kept unchanged.
    ///
    /// # Errors
    /// The id is refused: see [`IdError`].
    pub fn parse(id: &str) -> Result<Self, IdError> {
        parse_id(id).map(Self)
    }

    /// Returns an entry's account: its id, or `phone:<number>` for `"0"`.
    #[must_use]
    pub fn from_entry(entry: &WabaId, number: &PhoneNumberId) -> Self {
        match entry.as_str() {
            TEST_ACCOUNT_ID => Self(format!("phone:{number}")),
            _ => entry.clone(),
        }
    }

    /// Wraps an id from the database. It was checked before it was stored.
    pub(crate) fn from_stored(id: String) -> Self {
        Self(id)
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PhoneNumberId {
    /// Parses a phone number id. The text is kept unchanged.
    ///
    /// # Errors
    /// The id is refused: see [`IdError`].
    pub fn parse(id: &str) -> Result<Self, IdError> {
        parse_id(id).map(Self)
    }

    /// Wraps an id from the database. It was checked before it was stored.
    pub(crate) fn from_stored(id: String) -> Self {
        Self(id)
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn parse_id(id: &str) -> Result<String, IdError> {
    match id {
        "" => Err(IdError::Empty),
        _ if id.len() > MAX_ID_BYTES => Err(IdError::TooLong),
        _ if id.chars().any(char::is_control) => Err(IdError::ControlCharacter),
        _ => Ok(id.to_owned()),
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

/// A text from outside in a form that Postgres accepts: NUL is replaced by U+FFFD (a Postgres text
/// cannot contain NUL), and the text is truncated to a length in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// The length to which titles, messages, details and callback data are truncated, in bytes.
    /// Meta's own limit for `biz_opaque_callback_data` is 512 characters.
    pub const LONG_BYTES: usize = 2048;
    /// The length to which message ids, recipients and display numbers are truncated, in bytes.
    pub const SHORT_BYTES: usize = 512;

    /// Replaces NUL, and truncates to `max_bytes` or just before.
    #[must_use]
    pub fn truncate(text: &str, max_bytes: usize) -> Self {
        let mut text = text.replace('\0', "\u{fffd}");
        text.truncate(text.floor_char_boundary(max_bytes));
        Self(text)
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the text as an owned string.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_of_a_test_number_is_the_number() {
        let number = PhoneNumberId::parse("106540352242922").unwrap();
        let account =
            |entry| WabaId::from_entry(&WabaId::parse(entry).unwrap(), &number).to_string();
        assert_eq!(account("0"), "phone:106540352242922");
        assert_eq!(account("102290129340398"), "102290129340398");
    }

    #[test]
    fn empty_long_and_unprintable_ids_are_refused() {
        assert_eq!(WabaId::parse(""), Err(IdError::Empty));
        assert_eq!(PhoneNumberId::parse(&"1".repeat(65)), Err(IdError::TooLong));
        assert_eq!(WabaId::parse("1\u{0}2"), Err(IdError::ControlCharacter));
        assert!(WabaId::parse(&"1".repeat(64)).is_ok());
    }

    #[test]
    fn text_is_cut_between_characters_and_has_no_nul() {
        assert_eq!(Text::truncate("añb", 2).as_str(), "a");
        assert_eq!(Text::truncate("a\0b", 64).as_str(), "a\u{fffd}b");
    }
}
