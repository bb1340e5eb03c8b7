//! Strings and numbers in a body, with what the fields around them say. No valid JSON is needed.

use crate::meta::json::{readable, text};

/// Fields whose value names a person or a group.
const PEOPLE: [&str; 20] = [
    "customer",
    "from",
    "from_parent_user_id",
    "from_user_id",
    "group_id",
    "input",
    "new_wa_id",
    "parent_recipient_user_id",
    "parent_user_id",
    "participant_recipient_id",
    "recipient_id",
    "recipient_parent_user_id",
    "recipient_participant_id",
    "recipient_participant_parent_user_id",
    "recipient_participant_user_id",
    "recipient_user_id",
    "to",
    "to_user_id",
    "user_id",
    "wa_id",
];
/// What people wrote, and who they are, is in these.
const CONTENT: [&str; 6] = [
    "contact",
    "contacts",
    "history",
    "message_echoes",
    "messages",
    "state_sync",
];
/// But not in these, wherever they stand.
const NO_CONTENT: [&str; 1] = ["errors"];
/// Fields of content that say nothing about anybody.
const PLAIN: [&str; 7] = [
    "id",
    "message_id",
    "mime_type",
    "sha256",
    "status",
    "timestamp",
    "type",
];
/// What a body is made of, as far as it matters here. Together the tokens are the body.
pub(super) struct Token<'b> {
    /// What the object key before it says; the elements of a list have the list's.
    pub(super) field: Field,
    in_content: bool,
    pub(super) kind: Kind,
    pub(super) bytes: &'b [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// From quote to quote, or to the body's end.
    Text,
    Number,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Field {
    /// It is a key itself, or stands alone.
    #[default]
    None,
    Person,
    Content,
    NoContent,
    Plain,
    Other,
}

impl Field {
    fn of(key: &[u8]) -> Self {
        let key = decoded(key).unwrap_or_default();
        let is_one_of = |names: &[&str]| names.contains(&key.as_str());
        match () {
            () if is_one_of(&PEOPLE) => Self::Person,
            () if is_one_of(&CONTENT) => Self::Content,
            () if is_one_of(&NO_CONTENT) => Self::NoContent,
            () if is_one_of(&PLAIN) => Self::Plain,
            () => Self::Other,
        }
    }
}

impl Token<'_> {
    /// What somebody wrote.
    pub(super) fn is_content(&self) -> bool {
        self.in_content && !matches!(self.field, Field::None | Field::Plain)
    }
}

/// Takes a body apart without asking whether it is JSON.
pub(super) struct Tokens<'b> {
    rest: &'b [u8],
    field: Field,
    in_content: bool,
    /// What the two are again where the list or object ends.
    around: Vec<(Field, bool)>,
}

impl<'b> Tokens<'b> {
    pub(super) fn of(body: &'b [u8]) -> Self {
        Self {
            rest: body,
            field: Field::None,
            in_content: false,
            around: Vec::new(),
        }
    }

    fn bracket(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                self.around.push((self.field, self.in_content));
                self.in_content = match self.field {
                    Field::Content => true,
                    Field::NoContent => false,
                    Field::None | Field::Person | Field::Plain | Field::Other => self.in_content,
                };
                if byte == b'{' {
                    self.field = Field::None;
                }
            }
            b'}' | b']' => (self.field, self.in_content) = self.around.pop().unwrap_or_default(),
            _ => {}
        }
    }
}

impl<'b> Iterator for Tokens<'b> {
    type Item = Token<'b>;

    fn next(&mut self) -> Option<Token<'b>> {
        let is_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        let (kind, length) = match self.rest {
            [] => return None,
            [b'"', inner @ ..] => (Kind::Text, 1 + string_length(inner)),
            [b'-' | b'0'..=b'9', ..] => (
                Kind::Number,
                self.rest.iter().take_while(|byte| is_number(byte)).count(),
            ),
            _ => {
                let starts = |byte: &u8| *byte == b'"' || *byte == b'-' || byte.is_ascii_digit();
                (
                    Kind::Other,
                    self.rest.iter().position(starts).unwrap_or(self.rest.len()),
                )
            }
        };
        let (bytes, after) = self.rest.split_at(length);
        self.rest = after;
        if kind == Kind::Other {
            bytes.iter().for_each(|byte| self.bracket(*byte));
        }
        let is_key = kind == Kind::Text && after.trim_ascii_start().starts_with(b":");
        let field = if is_key { Field::None } else { self.field };
        if is_key {
            self.field = Field::of(bytes);
        }
        Some(Token {
            field,
            in_content: self.in_content,
            kind,
            bytes,
        })
    }
}

/// The length of a string after its opening quote, with the closing one.
fn string_length(inner: &[u8]) -> usize {
    let mut escaped = false;
    let end = inner.iter().position(|byte| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes
    });
    end.map_or(inner.len(), |end| end + 1)
}

/// The text of a string token, if it is a JSON string, or nearly.
pub(super) fn decoded(token: &[u8]) -> Option<String> {
    Some(text(serde_json::from_str(&readable(token)).ok()?)?.into_owned())
}
