//! The note of a person who resolves an incident.

/// A note for the people who read the incident later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note(Option<String>);

/// A note is longer than [`Note::LIMIT_CHARACTERS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the note is longer than 2000 characters")]
pub struct NoteTooLong;

impl Note {
    /// The longest note, in characters.
    pub const LIMIT_CHARACTERS: usize = 2000;

    /// A note without blanks around it; without words it is none.
    ///
    /// # Errors
    /// It is too long.
    pub fn parse(text: Option<&str>) -> Result<Self, NoteTooLong> {
        // Postgres has no NUL.
        let note = text
            .map(|text| text.trim().replace('\0', "\u{fffd}"))
            .filter(|text| !text.is_empty());
        match note
            .as_ref()
            .is_some_and(|note| note.chars().count() > Self::LIMIT_CHARACTERS)
        {
            true => Err(NoteTooLong),
            false => Ok(Self(note)),
        }
    }

    /// Its text, if there is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }
}
