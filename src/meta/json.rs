//! Lenient reading of JSON, one level at a time.
//!
//! Meta's callbacks are read element by element, so that one strange element never costs its
//! neighbours. That rules out derived structs: they refuse a repeated field, a lone surrogate in a
//! key and a number out of range wherever it stands. Here every value stays raw until it is asked for.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Picks the named fields out of a JSON object; of a repeated field the last one counts.
/// A field that is absent or `null` is `None`; anything but an object is `None` as a whole.
pub(super) fn fields<'a, const N: usize>(
    json: &'a str,
    names: [&str; N],
) -> Option<[Option<&'a RawValue>; N]> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let picked = reader.deserialize_map(Pick { names }).ok()?;
    reader.end().ok()?;
    Some(picked)
}

/// The elements of a JSON array, unread. `None` where it is not an array.
pub(super) fn elements(json: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(json.get()).ok()
}

/// A JSON string. Lone surrogates, which JSON can spell and text cannot hold, become U+FFFD.
pub(super) fn text(json: &RawValue) -> Option<Cow<'_, str>> {
    struct Lossy;
    impl<'de> Visitor<'de> for Lossy {
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
    if !json.get().starts_with('"') {
        return None;
    }
    serde_json::Deserializer::from_str(json.get())
        .deserialize_bytes(Lossy)
        .ok()
}

/// A JSON string, or the digits of a JSON number: ids come as either.
pub(super) fn scalar(json: &RawValue) -> Option<Cow<'_, str>> {
    let raw = json.get();
    if raw.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return Some(raw.into());
    }
    text(json)
}

/// An integer, written as integer, as integral float (`131031.0`) or as decimal string.
pub(super) fn integer(json: &RawValue) -> Option<i64> {
    let written = scalar(json)?;
    if let Ok(integer) = written.trim().parse::<i64>() {
        return Some(integer);
    }
    // 2^53: above it a float no longer tells neighbours apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match written.parse::<f64>() {
        Ok(float)
            if !json.get().starts_with('"') && float.fract() == 0.0 && float.abs() <= EXACT =>
        {
            Some(float as i64)
        }
        _ => None,
    }
}

struct Pick<'n, const N: usize> {
    names: [&'n str; N],
}

impl<'de, const N: usize> Visitor<'de> for Pick<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut picked = [None; N];
        while let Some(position) = map.next_key_seed(Position { names: &self.names })? {
            let value: &RawValue = map.next_value()?;
            if let Some(position) = position {
                picked[position] = (value.get() != "null").then_some(value);
            }
        }
        Ok(picked)
    }
}

/// Reads a key as bytes (a key may hold a lone surrogate) and says which of the names it is.
struct Position<'n> {
    names: &'n [&'n str],
}

impl<'de> DeserializeSeed<'de> for Position<'_> {
    type Value = Option<usize>;
    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Position<'_> {
    type Value = Option<usize>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_bytes<E: Error>(self, key: &[u8]) -> Result<Self::Value, E> {
        Ok(self.names.iter().position(|name| name.as_bytes() == key))
    }
}

/// The text of received bytes: invalid UTF-8 is replaced, and control bytes, which JSON forbids inside
/// strings and ignores outside, become spaces. Borrowed where there is nothing to mend.
pub(super) fn readable(bytes: &[u8]) -> Cow<'_, str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> &RawValue {
        serde_json::from_str(json).expect("valid JSON")
    }

    #[test]
    fn the_last_of_a_repeated_field_counts_and_null_is_absent() {
        let [a, b, c] = fields(r#"{"a":1,"a":2,"b":null,"z":1e999999}"#, ["a", "b", "c"]).unwrap();
        assert_eq!(a.unwrap().get(), "2");
        assert!(b.is_none() && c.is_none());
    }

    #[test]
    fn a_key_with_a_lone_surrogate_costs_nothing() {
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
    fn integers_come_as_integers_integral_floats_or_decimal_strings() {
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
    fn lone_surrogates_in_text_are_replaced() {
        assert_eq!(
            text(raw(r#""a\ud83dz""#)).unwrap(),
            "a\u{fffd}\u{fffd}\u{fffd}z"
        );
        assert_eq!(text(raw(r#""\ud83d\udc4d \u00e9 \/""#)).unwrap(), "👍 é /");
        assert_eq!(text(raw("[1]")), None);
    }

    #[test]
    fn control_bytes_and_invalid_utf8_are_mended_only_where_needed() {
        assert!(matches!(readable(b"{\n \"a\": 1 }"), Cow::Borrowed(_)));
        assert_eq!(readable(b"{\"a\":\"x\0y\"}"), "{\"a\":\"x y\"}");
        assert_eq!(readable(b"{\"a\":\"\xff\"}"), "{\"a\":\"\u{fffd}\"}");
    }
}
