//! Lenient parsing of JSON, one level at a time.
//!
//! Meta's callbacks are parsed element by element, so that one odd element never affects its
//! neighbours. Derived structs cannot do that: they refuse a repeated field, a lone surrogate in a
//! key, and a number out of range, wherever it stands. Here every value stays raw JSON until it is
//! needed.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Returns the named fields of a JSON object, in the order of `names`.
///
/// A field that is absent or `null` is `None`. If a field is repeated, the last one counts. The
/// result is `None` as a whole if `json` is not an object.
pub(crate) fn fields<'a, const N: usize>(
    json: &'a str,
    names: [&str; N],
) -> Option<[Option<&'a RawValue>; N]> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let found = deserializer.deserialize_map(FieldsVisitor { names }).ok()?;
    deserializer.end().ok()?;
    Some(found)
}

/// Returns the elements of a JSON array, or `None` if it is not an array.
pub(crate) fn elements(json: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(json.get()).ok()
}

/// Returns the text of a JSON string, or `None` if it is not a string.
///
/// A lone surrogate, which Rust text cannot contain, becomes U+FFFD.
pub(crate) fn string(json: &RawValue) -> Option<Cow<'_, str>> {
    if !json.get().starts_with('"') {
        return None;
    }
    serde_json::Deserializer::from_str(json.get())
        .deserialize_bytes(LossyStringVisitor)
        .ok()
}

/// Returns the text of a JSON string or number. Meta sends ids as either.
pub(crate) fn scalar(json: &RawValue) -> Option<Cow<'_, str>> {
    let raw = json.get();
    if raw.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return Some(raw.into());
    }
    string(json)
}

/// Returns an integer.
///
/// It may be written as an integer, a float without fraction (`131031.0`) or a decimal string.
pub(crate) fn integer(json: &RawValue) -> Option<i64> {
    let written = scalar(json)?;
    if let Ok(integer) = written.trim().parse::<i64>() {
        return Some(integer);
    }
    // 2^53: above it, two neighbouring integers may be the same float.
    const EXACT_FLOAT_LIMIT: f64 = 9_007_199_254_740_992.0;
    if json.get().starts_with('"') {
        return None;
    }
    let float = written.parse::<f64>().ok()?;
    let is_exact = float.fract() == 0.0 && float.abs() <= EXACT_FLOAT_LIMIT;
    is_exact.then_some(float as i64)
}

/// Decodes received bytes as text that a JSON parser accepts.
///
/// Invalid UTF-8 is replaced by U+FFFD. If the text is no valid JSON, control bytes become spaces:
/// JSON forbids them inside strings and ignores them outside. Borrows the input if nothing had to
/// be repaired.
pub(crate) fn repair_text(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    if !text.bytes().any(|byte| byte < 0x20) {
        return text;
    }
    if serde_json::from_str::<&RawValue>(&text).is_ok() {
        return text;
    }
    Cow::Owned(
        text.chars()
            .map(|c| if c < ' ' { ' ' } else { c })
            .collect(),
    )
}

struct FieldsVisitor<'n, const N: usize> {
    names: [&'n str; N],
}

impl<'de, const N: usize> Visitor<'de> for FieldsVisitor<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(index) = map.next_key_seed(KeySeed { names: &self.names })? {
            let value: &RawValue = map.next_value()?;
            if let Some(index) = index {
                found[index] = (value.get() != "null").then_some(value);
            }
        }
        Ok(found)
    }
}

/// Reads an object key and returns its index in `names`.
///
/// The key is read as bytes, because it may contain a lone surrogate.
struct KeySeed<'n> {
    names: &'n [&'n str],
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_bytes(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E: Error>(self, key: &[u8]) -> Result<Self::Value, E> {
        Ok(self.names.iter().position(|name| name.as_bytes() == key))
    }
}

struct LossyStringVisitor;

impl<'de> Visitor<'de> for LossyStringVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Cow<'de, str>, E> {
        Ok(String::from_utf8_lossy(bytes))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Cow<'de, str>, E> {
        Ok(String::from_utf8_lossy(bytes).into_owned().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> &RawValue {
        serde_json::from_str(json).expect("valid JSON")
    }

    #[test]
    fn the_last_repeated_field_wins_and_null_is_absent() {
        let [a, b, c] = fields(r#"{"a":1,"a":2,"b":null,"z":1e999999}"#, ["a", "b", "c"]).unwrap();
        assert_eq!(a.unwrap().get(), "2");
        assert!(b.is_none() && c.is_none());
    }

    #[test]
    fn a_key_with_a_lone_surrogate_is_skipped() {
        let [a] = fields(r#"{"\ud800":1,"\u0061":2}"#, ["a"]).unwrap();
        assert_eq!(a.unwrap().get(), "2");
    }

    #[test]
    fn only_objects_have_fields() {
        for json in ["[1]", "\"a\"", "7", "null", "{} {}", "{"] {
            assert!(fields(json, ["a"]).is_none(), "{json}");
        }
    }

    #[test]
    fn integers_are_read_from_numbers_and_strings() {
        for json in [
            "131031",
            "131031.0",
            "\"131031\"",
            "1.31031e5",
            "\" 131031 \"",
        ] {
            assert_eq!(integer(raw(json)), Some(131_031), "{json}");
        }
        for json in [
            "131031.5",
            "\"131031.0\"",
            "\"x\"",
            "1e999999",
            "true",
            "[131031]",
            "99999999999999999999",
        ] {
            assert_eq!(integer(raw(json)), None, "{json}");
        }
    }

    #[test]
    fn lone_surrogates_in_strings_are_replaced() {
        assert_eq!(
            string(raw(r#""a\ud83dz""#)).unwrap(),
            "a\u{fffd}\u{fffd}\u{fffd}z"
        );
        assert_eq!(
            string(raw(r#""\ud83d\udc4d \u00e9 \/""#)).unwrap(),
            "👍 é /"
        );
        assert_eq!(string(raw("[1]")), None);
    }

    #[test]
    fn text_is_repaired_only_where_needed() {
        assert!(matches!(repair_text(b"{\n \"a\": 1 }"), Cow::Borrowed(_)));
        assert_eq!(repair_text(b"{\"a\":\"x\0y\"}"), "{\"a\":\"x y\"}");
        assert_eq!(repair_text(b"{\"a\":\"\xff\"}"), "{\"a\":\"\u{fffd}\"}");
    }
}
