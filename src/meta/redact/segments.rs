//! Splits a body into segments: strings, numbers and the bytes between them.
//!
//! The body need not be valid JSON.

use crate::meta::json::{repair_text, string};

/// Fields whose value names a person or a group.
const PERSON_FIELDS: [&str; 20] = [
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
/// Fields that contain texts and profiles of people, at any depth.
const CONTENT_FIELDS: [&str; 6] = [
    "contact",
    "contacts",
    "history",
    "message_echoes",
    "messages",
    "state_sync",
];
/// Fields within content that contain no texts of people, at any depth.
const ERROR_FIELDS: [&str; 1] = ["errors"];
/// Fields within content whose own value says nothing about a person.
const TECHNICAL_FIELDS: [&str; 7] = [
    "id",
    "message_id",
    "mime_type",
    "sha256",
    "status",
    "timestamp",
    "type",
];

/// A part of a body. All segments together are the body.
pub(super) struct Segment<'b> {
    pub(super) kind: SegmentKind,
    /// The category of the key. List elements have that of the list.
    pub(super) category: FieldCategory,
    in_content: bool,
    pub(super) bytes: &'b [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentKind {
    /// From quote to quote, or to the end of the body.
    String,
    Number,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum FieldCategory {
    /// The segment is a key itself, or is outside every object.
    #[default]
    NoField,
    Person,
    Content,
    Errors,
    Technical,
    Other,
}

impl Segment<'_> {
    /// Returns whether the segment is a text or a profile of a person.
    pub(super) fn is_content(&self) -> bool {
        let has_content = !matches!(
            self.category,
            FieldCategory::NoField | FieldCategory::Technical
        );
        self.in_content && has_content
    }
}

impl FieldCategory {
    /// Returns the category of a key, which is given with its quotes.
    fn from_key(key: &[u8]) -> Self {
        let key = decode_string(key).unwrap_or_default();
        let key = key.as_str();
        if PERSON_FIELDS.contains(&key) {
            Self::Person
        } else if CONTENT_FIELDS.contains(&key) {
            Self::Content
        } else if ERROR_FIELDS.contains(&key) {
            Self::Errors
        } else if TECHNICAL_FIELDS.contains(&key) {
            Self::Technical
        } else {
            Self::Other
        }
    }
}

/// Iterates over the segments of a body.
pub(super) struct Segments<'b> {
    remaining: &'b [u8],
    category: FieldCategory,
    in_content: bool,
    /// For each open list or object: the state to restore at its end.
    enclosing: Vec<(FieldCategory, bool)>,
}

impl<'b> Segments<'b> {
    pub(super) fn new(body: &'b [u8]) -> Self {
        Self {
            remaining: body,
            category: FieldCategory::NoField,
            in_content: false,
            enclosing: Vec::new(),
        }
    }

    /// Enters or leaves a list or object. Any other byte changes nothing.
    fn handle_bracket(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                self.enclosing.push((self.category, self.in_content));
                match self.category {
                    FieldCategory::Content => self.in_content = true,
                    FieldCategory::Errors => self.in_content = false,
                    FieldCategory::NoField
                    | FieldCategory::Person
                    | FieldCategory::Technical
                    | FieldCategory::Other => {}
                }
                if byte == b'{' {
                    self.category = FieldCategory::NoField;
                }
            }
            b'}' | b']' => {
                (self.category, self.in_content) = self.enclosing.pop().unwrap_or_default();
            }
            _ => {}
        }
    }
}

impl<'b> Iterator for Segments<'b> {
    type Item = Segment<'b>;

    fn next(&mut self) -> Option<Segment<'b>> {
        let (kind, length) = match self.remaining {
            [] => return None,
            [b'"', inner @ ..] => (SegmentKind::String, 1 + string_length(inner)),
            [b'-' | b'0'..=b'9', ..] => (SegmentKind::Number, number_length(self.remaining)),
            _ => (SegmentKind::Other, other_length(self.remaining)),
        };
        let (bytes, remaining) = self.remaining.split_at(length);
        self.remaining = remaining;
        if kind == SegmentKind::Other {
            bytes.iter().for_each(|byte| self.handle_bracket(*byte));
        }
        let is_key = kind == SegmentKind::String && remaining.trim_ascii_start().starts_with(b":");
        let category = if is_key {
            self.category = FieldCategory::from_key(bytes);
            FieldCategory::NoField
        } else {
            self.category
        };
        Some(Segment {
            kind,
            category,
            in_content: self.in_content,
            bytes,
        })
    }
}

/// Returns the length of a string after its opening quote.
fn string_length(inner: &[u8]) -> usize {
    let mut is_escaped = false;
    let end = inner.iter().position(|byte| {
        let closes = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        closes
    });
    end.map_or(inner.len(), |end| end + 1)
}

fn number_length(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take_while(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte))
        .count()
}

/// Returns the number of bytes before the next string or number.
fn other_length(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|byte| matches!(byte, b'"' | b'-' | b'0'..=b'9'))
        .unwrap_or(bytes.len())
}

/// Returns the text of a string segment, if it is a JSON string.
pub(super) fn decode_string(segment: &[u8]) -> Option<String> {
    Some(string(serde_json::from_str(&repair_text(segment)).ok()?)?.into_owned())
}
