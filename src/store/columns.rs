//! Our own types as columns: ids, and the words that this program writes.

use std::fmt;

use serde::{Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use crate::lockout::cause::LockoutCause;
use crate::lockout::codes::Kind;
use crate::lockout::incident::Resolution;
use crate::meta::graph_error::Denial;
use crate::meta::health::Outcome;
use crate::meta::ids::{PhoneNumberId, WabaId};

/// A word of ours in a column.
///
/// Replicas of two versions share a database during an upgrade, so the older one may read a word
/// that only the newer one knows. It shows that word unchanged and draws no conclusion from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word<T> {
    /// A word that this version knows.
    Known(T),
    /// A word of a later version.
    Later(String),
}

/// The words of one column.
pub(super) trait Vocabulary: Copy + 'static {
    const WORDS: &'static [Self];
    fn as_word(self) -> &'static str;
}

impl<T: Copy> Word<T> {
    /// The meaning of the word, if this version knows it.
    #[must_use]
    pub fn known(&self) -> Option<T> {
        match self {
            Self::Known(meaning) => Some(*meaning),
            Self::Later(_) => None,
        }
    }
}

#[expect(private_bounds, reason = "the words are fixed")]
impl<T: Vocabulary> Word<T> {
    /// The word as it stands in the column.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(meaning) => meaning.as_word(),
            Self::Later(word) => word,
        }
    }

    fn from_text(text: String) -> Self {
        let meaning = T::WORDS.iter().find(|word| word.as_word() == text);
        meaning.map_or(Self::Later(text), |meaning| Self::Known(*meaning))
    }
}

impl<T: PartialEq> PartialEq<T> for Word<T> {
    fn eq(&self, meaning: &T) -> bool {
        matches!(self, Self::Known(known) if known == meaning)
    }
}

impl<T: Vocabulary> PartialEq<&str> for Word<T> {
    fn eq(&self, word: &&str) -> bool {
        self.as_str() == *word
    }
}

impl<T: Vocabulary> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<T: Vocabulary> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<T: Vocabulary> Type<Postgres> for Word<T> {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }

    fn compatible(info: &PgTypeInfo) -> bool {
        <String as Type<Postgres>>::compatible(info)
    }
}

impl<'r, T: Vocabulary> Decode<'r, Postgres> for Word<T> {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        <String as Decode<Postgres>>::decode(value).map(Self::from_text)
    }
}

macro_rules! vocabulary {
    ($($type:ty),*) => { $(
        impl Vocabulary for $type {
            const WORDS: &'static [Self] = &Self::ALL;

            fn as_word(self) -> &'static str {
                self.as_str()
            }
        }
    )* };
}

vocabulary!(Denial, Kind, LockoutCause, Outcome, Resolution);

macro_rules! id_column {
    ($($type:ty),*) => { $(
        impl Type<Postgres> for $type {
            fn type_info() -> PgTypeInfo {
                <String as Type<Postgres>>::type_info()
            }

            fn compatible(info: &PgTypeInfo) -> bool {
                <String as Type<Postgres>>::compatible(info)
            }
        }

        impl<'r> Decode<'r, Postgres> for $type {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                <String as Decode<Postgres>>::decode(value).map(Self::from_stored)
            }
        }

        impl Encode<'_, Postgres> for $type {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                <&str as Encode<Postgres>>::encode(self.as_str(), buffer)
            }
        }

        impl PgHasArrayType for $type {
            fn array_type_info() -> PgTypeInfo {
                <String as PgHasArrayType>::array_type_info()
            }
        }
    )* };
}

id_column!(WabaId, PhoneNumberId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_later_version_stays_unchanged() {
        let known: Word<LockoutCause> = Word::from_text("payment".to_owned());
        assert_eq!(
            (known.known(), known.as_str()),
            (Some(LockoutCause::Payment), "payment")
        );
        let later: Word<LockoutCause> = Word::from_text("eclipse".to_owned());
        assert_eq!((later.known(), later.as_str()), (None, "eclipse"));
        assert_eq!(serde_json::to_string(&later).unwrap(), "\"eclipse\"");
        assert_eq!(format!("{later:<9}|"), "eclipse  |", "tables can pad it");
    }
}
