//! The person who changes an incident by hand.

/// The name of a person, as they gave it: the user of the login, or `--by`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person(String);

impl Person {
    /// The longest name, in characters.
    const LIMIT_CHARACTERS: usize = 100;

    /// Takes a name, cleaned and shortened. A blank text is no name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let printable = text.chars().filter(|c| !c.is_control());
        let name: String = printable.take(Self::LIMIT_CHARACTERS).collect();
        let name = name.trim();
        (!name.is_empty()).then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
