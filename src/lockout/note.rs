//! The note of a person who resolves an incident.

/// A note for people who read the incident later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Note(Option<String>);

/// The error for a note that is longer than [`Note::LIMIT_CHARACTERS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the note is longer than 2000 characters")]
pub(crate) struct NoteTooLong;

impl Note {
    /// The longest note, in characters.
    pub(crate) const LIMIT_CHARACTERS: usize = 2000;

    /// Parses a note and removes the blanks around it. A blank text is no note.
    ///
    /// # Errors
    /// The note is too long.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, NoteTooLong> {
        // Postgres cannot store NUL.
        let note = text
            .map(|text| text.trim().replace('\0', "\u{fffd}"))
            .filter(|text| !text.is_empty());
        let characters = note.as_ref().map_or(0, |note| note.chars().count());
        if characters > Self::LIMIT_CHARACTERS {
            return Err(NoteTooLong);
        }
        Ok(Self(note))
    }

    /// The text of the note, if there is one.
    #[must_use]
    pub(crate) fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }
}
