//! Redaction: recipients become pseudonyms, so that a capture can be shared.
//!
//! The people in a body are found in the fields that name people (`recipient_id`, `wa_id`, `from`
//! and others) and in the message ids, which contain the recipient's phone number in base64. Each
//! of these identifiers is replaced wherever it stands in the body, in base64 too:
//!
//! - An identifier becomes a pseudonym with the same length. With the same key it is the same
//!   pseudonym everywhere, so a repeated failure stays the same failure.
//! - Texts, names and addresses of people become `xxx`.
//! - Everything else keeps its bytes.
//!
//! The result is another body, so Meta's signature no longer matches. The body need not be valid
//! JSON: quarantined bytes can be redacted too.

mod segments;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine;
use base64::alphabet::{self, Alphabet};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::value::RawValue;
use sha2::Sha256;

use self::segments::{FieldCategory, Segment, SegmentKind, Segments, decode_string};
use super::capture::Capture;
use super::json::repair_text;
use super::signature;

/// A shorter identifier is replaced only if it is the whole value of a field that names a person:
/// any other value may contain a few digits by chance.
const MIN_IDENTIFIER_BYTES: usize = 7;
/// The same for a longer identifier. None of Meta's is that long.
const MAX_IDENTIFIER_BYTES: usize = 256;
/// The shortest base64 text that can contain an identifier.
const MIN_BASE64_BYTES: usize = 10;

/// Replaces people by pseudonyms.
///
/// A pseudonym cannot be traced back without the key. A plain hash could: there are few enough
/// phone numbers to try them all.
#[derive(Debug, Clone)]
pub struct Redactor {
    key: Hmac<Sha256>,
}

impl Redactor {
    /// Makes a redactor. The same key (of any length) makes the same pseudonyms.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self {
            key: Hmac::new_from_slice(key).expect("HMAC takes a key of any length"),
        }
    }

    /// Returns a redacted copy of a capture, marked as such.
    ///
    /// The signature is left out, because it does not match the new body.
    ///
    /// ```
    /// use lockwatch::meta::capture::Capture;
    /// use lockwatch::meta::compose::StatusCallback;
    /// use lockwatch::meta::redact::Redactor;
    ///
    /// let body = StatusCallback::new()
    ///     .recipient("16505551234")
    ///     .failed("102290129340398", "106540352242922", "wamid.1")
    ///     .into_body();
    /// let redactor = Redactor::new(b"a key that you keep");
    /// let redacted = redactor.redact_capture(&Capture::from_body(body));
    /// assert!(!String::from_utf8_lossy(&redacted.body).contains("16505551234"));
    /// ```
    #[must_use]
    pub fn redact_capture(&self, capture: &Capture) -> Capture {
        let mut redacted = Capture {
            body: self.redact_body(&capture.body).into(),
            redacted: true,
            ..capture.clone()
        };
        redacted.headers.remove(signature::SIGNATURE_HEADER);
        redacted
    }

    /// Returns a redacted copy of a body, which need not be JSON.
    #[must_use]
    pub fn redact_body(&self, body: &[u8]) -> Vec<u8> {
        let is_json = serde_json::from_str::<&RawValue>(&repair_text(body)).is_ok();
        let pseudonyms = self.pseudonyms_for(body, is_json);
        let mut redacted = Vec::with_capacity(body.len());
        for segment in Segments::new(body) {
            match segment.kind {
                SegmentKind::Other if is_json => redacted.extend_from_slice(segment.bytes),
                SegmentKind::Other => redacted.extend(segment.bytes.iter().map(mask_byte)),
                SegmentKind::Number => {
                    let number = self.redact_number(&pseudonyms, &segment);
                    redacted.extend_from_slice(number.as_bytes());
                }
                SegmentKind::String => match self.redact_string(&pseudonyms, &segment) {
                    Some(string) => redacted.extend_from_slice(string.as_bytes()),
                    None => redacted.extend_from_slice(segment.bytes),
                },
            }
        }
        redacted
    }

    fn pseudonyms_for(&self, body: &[u8], is_json: bool) -> Pseudonyms {
        let mut identifiers = BTreeSet::new();
        collect_identifiers(body, is_json, &mut identifiers);
        let identifiers: Vec<String> = identifiers
            .into_iter()
            .filter(|identifier| {
                (MIN_IDENTIFIER_BYTES..=MAX_IDENTIFIER_BYTES).contains(&identifier.len())
            })
            .collect();
        let replacements = identifiers
            .iter()
            .map(|identifier| self.pseudonym(identifier))
            .collect();
        Pseudonyms::new(&identifiers, replacements)
    }

    /// Returns the new string with its quotes, or `None` if it is unchanged.
    fn redact_string(&self, pseudonyms: &Pseudonyms, segment: &Segment<'_>) -> Option<String> {
        let is_person = segment.category == FieldCategory::Person;
        let is_content = segment.is_content();
        let Some(text) = decode_string(segment.bytes) else {
            // Not a JSON string: it is cut off, or has unknown escapes.
            let text = undecoded_string(segment.bytes);
            let replaced = pseudonyms.replace(&text);
            let replaced = if is_person || is_content {
                mask_text(&replaced)
            } else {
                replaced.into_owned()
            };
            return (replaced != text).then(|| format!("\"{replaced}"));
        };
        let replaced = if is_person {
            self.replace_identifier(&text)
        } else if is_content {
            mask_text(&pseudonyms.replace(&text))
        } else {
            pseudonyms.replace(&text).into_owned()
        };
        (replaced != text).then(|| encode_string(&replaced, segment.bytes))
    }

    fn redact_number<'s>(&self, pseudonyms: &Pseudonyms, segment: &Segment<'s>) -> Cow<'s, str> {
        let number = String::from_utf8_lossy(segment.bytes);
        if segment.category == FieldCategory::Person {
            let mantissa = without_exponent(&number);
            let exponent = &number[mantissa.len()..];
            return Cow::Owned(self.replace_digits(mantissa) + exponent);
        }
        if segment.is_content() {
            return Cow::Borrowed("0");
        }
        Cow::Owned(pseudonyms.replace(&number).into_owned())
    }

    /// Replaces the whole value of a field that names a person.
    fn replace_identifier(&self, value: &str) -> String {
        if is_numeric_identifier(value) {
            self.replace_digits(value)
        } else {
            self.pseudonym(value)
        }
    }

    /// Replaces the digits of a value. Other characters stay.
    fn replace_digits(&self, value: &str) -> String {
        let pseudonym = self.pseudonym(&digits_of(value));
        let mut digits = pseudonym.chars();
        let mut replaced = String::with_capacity(value.len());
        for c in value.chars() {
            let digit = c.is_ascii_digit().then(|| digits.next()).flatten();
            replaced.push(digit.unwrap_or(c));
        }
        replaced
    }

    /// Returns a pseudonym: a digit for a digit, a letter for a letter.
    ///
    /// A number of ten or more digits becomes one that starts with 999. No number starts with 0,
    /// because it may stand in the body as a JSON number.
    fn pseudonym(&self, identifier: &str) -> String {
        let is_long_number =
            identifier.len() >= 10 && identifier.bytes().all(|byte| byte.is_ascii_digit());
        identifier
            .bytes()
            .zip(self.pseudorandom_bytes(identifier))
            .enumerate()
            .map(|(position, (byte, random))| match byte {
                _ if is_long_number && position < 3 => b'9',
                b'0'..=b'9' if position == 0 => b'1' + random % 9,
                b'0'..=b'9' => b'0' + random % 10,
                b'a'..=b'z' => b'a' + random % 26,
                b'A'..=b'Z' => b'A' + random % 26,
                byte if byte.is_ascii() => byte,
                _ => b'x',
            })
            .map(char::from)
            .collect()
    }

    /// Returns endless bytes that depend on the key and the identifier.
    fn pseudorandom_bytes(&self, identifier: &str) -> impl Iterator<Item = u8> {
        let seed = self.key.clone().chain_update(identifier).finalize();
        let seed = seed.into_bytes();
        (0_u32..).flat_map(move |block| {
            let block = self
                .key
                .clone()
                .chain_update(seed)
                .chain_update(block.to_be_bytes());
            <[u8; 32]>::from(block.finalize().into_bytes())
        })
    }
}

/// Collects the identifiers of everybody in a body.
///
/// A string that contains JSON is searched too.
fn collect_identifiers(body: &[u8], is_json: bool, identifiers: &mut BTreeSet<String>) {
    for segment in strings_and_numbers(body) {
        let value = text_of(&segment);
        add_identifiers(&segment, &value, is_json, identifiers);
        if value.trim_start().starts_with(['{', '[']) {
            for inner in strings_and_numbers(value.as_bytes()) {
                add_identifiers(&inner, &text_of(&inner), true, identifiers);
            }
        }
    }
}

/// Adds the identifiers in one string or number.
///
/// If the body is not JSON, its fields are uncertain, so every run of digits is added.
fn add_identifiers(
    segment: &Segment<'_>,
    value: &str,
    is_json: bool,
    identifiers: &mut BTreeSet<String>,
) {
    if segment.category == FieldCategory::Person {
        let name = value.trim_end_matches('"');
        let number = if segment.kind == SegmentKind::Number {
            without_exponent(name)
        } else {
            name
        };
        identifiers.insert(if is_numeric_identifier(number) {
            digits_of(number)
        } else {
            name.to_owned()
        });
    }
    if !is_json {
        let runs = value.split(|c: char| !c.is_ascii_digit());
        identifiers.extend(runs.map(str::to_owned));
    }
    identifiers.extend(numbers_in_message_ids(value));
}

fn strings_and_numbers(body: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    Segments::new(body).filter(|segment| segment.kind != SegmentKind::Other)
}

fn text_of(segment: &Segment<'_>) -> String {
    match segment.kind {
        SegmentKind::String => {
            decode_string(segment.bytes).unwrap_or_else(|| undecoded_string(segment.bytes))
        }
        SegmentKind::Number | SegmentKind::Other => {
            String::from_utf8_lossy(segment.bytes).into_owned()
        }
    }
}

/// The identifiers in a body, each with its pseudonym.
struct Pseudonyms {
    /// Finds the identifiers. A match has the index of its replacement.
    search: AhoCorasick,
    replacements: Vec<String>,
}

impl Pseudonyms {
    fn new(identifiers: &[String], replacements: Vec<String>) -> Self {
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(identifiers);
        Self {
            search: search.expect("a body has few enough identifiers"),
            replacements,
        }
    }

    /// Replaces the identifiers in a text, in base64 too.
    fn replace<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.replacements.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut text = match self.replace_bytes(text.as_bytes()) {
            Some(bytes) => Cow::Owned(
                String::from_utf8(bytes).expect("identifiers and pseudonyms are whole texts"),
            ),
            None => Cow::Borrowed(text),
        };
        for alphabet in [&alphabet::STANDARD, &alphabet::URL_SAFE] {
            for run in base64_runs(&text, alphabet) {
                // Any of the first four characters may start a group of four.
                for start in run.start..run.start + 4 {
                    if let Some(replaced) = self.replace_base64(&text[start..run.end], alphabet) {
                        text.to_mut()
                            .replace_range(start..start + replaced.len(), &replaced);
                    }
                }
            }
        }
        text
    }

    fn replace_base64(&self, run: &str, alphabet: &Alphabet) -> Option<String> {
        let engine = base64_engine(alphabet);
        let groups = decodable_prefix(run);
        let bytes = engine.decode(groups).ok()?;
        let replaced_bytes = self.replace_bytes(&bytes)?;
        let mut replaced = engine.encode(&replaced_bytes);
        // An incomplete last group has unused bits, and two ids may differ only there: they are
        // kept.
        let (whole, last) = (groups.len() / 4 * 4, groups.len() / 4 * 3);
        if bytes[last..] == replaced_bytes[last..] {
            replaced.replace_range(whole.., &groups[whole..]);
        }
        Some(replaced)
    }

    /// Returns the bytes with pseudonyms, if they contain an identifier.
    fn replace_bytes(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.search
            .is_match(text)
            .then(|| self.search.replace_all_bytes(text, &self.replacements))
    }
}

/// Returns a string segment as it is, without its opening quote.
fn undecoded_string(segment: &[u8]) -> String {
    String::from_utf8_lossy(segment.strip_prefix(b"\"").unwrap_or(segment)).into_owned()
}

/// Encodes a JSON string in ASCII, as Meta does. Slashes are escaped as in `original`.
fn encode_string(text: &str, original: &[u8]) -> String {
    let escapes_slashes = original.windows(2).any(|pair| pair == b"\\/");
    let mut encoded = String::with_capacity(text.len() + 2);
    for c in serde_json::Value::from(text).to_string().chars() {
        match c {
            '/' if escapes_slashes => encoded.push_str("\\/"),
            c if c.is_ascii() => encoded.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(encoded, "\\u{unit:04x}");
                }
            }
        }
    }
    encoded
}

/// Replaces every letter by `x` and every digit by `0`.
fn mask_text(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_alphabetic() => 'x',
            c if c.is_numeric() => '0',
            c => c,
        })
        .collect()
}

fn mask_byte(byte: &u8) -> u8 {
    if byte.is_ascii_alphabetic() || !byte.is_ascii() {
        b'x'
    } else {
        *byte
    }
}

fn digits_of(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

/// Returns a JSON number up to its exponent.
fn without_exponent(number: &str) -> &str {
    number.split(['e', 'E']).next().unwrap_or(number)
}

/// Returns whether only the digits of an identifier matter: it is a phone number, or a
/// business-scoped user id (`US.1349…`, `US.ENT.1181…`). The country of a user id stays as it is.
fn is_numeric_identifier(identifier: &str) -> bool {
    let number = match identifier.as_bytes() {
        [b'A'..=b'Z', b'A'..=b'Z', b'.', ..] => identifier[3..].trim_start_matches("ENT."),
        _ => identifier,
    };
    number.contains(|c: char| c.is_ascii_digit())
        && number
            .chars()
            .all(|c| c.is_ascii_digit() || "+-() .".contains(c))
}

/// Returns the phone numbers in the message ids of a text.
///
/// An id is the base64 of a protocol buffer, in which a text is a tag, its length and its bytes.
/// For a truncated id, this returns the remaining part of the number.
fn numbers_in_message_ids(text: &str) -> Vec<String> {
    const TEXT_TAG: u8 = 0x18;
    let mut numbers = Vec::new();
    for id in text.split("wamid.").skip(1) {
        let bytes = decode_message_id(id);
        for (position, head) in bytes.windows(2).enumerate() {
            let [TEXT_TAG, length] = *head else { continue };
            let number = &bytes[position + 2..];
            let number = &number[..number.len().min(usize::from(length))];
            if number.len() >= MIN_IDENTIFIER_BYTES && number.iter().all(u8::is_ascii_digit) {
                numbers.push(String::from_utf8_lossy(number).into_owned());
            }
        }
    }
    numbers
}

/// Decodes the message id at the start of a text, without its `wamid.`.
fn decode_message_id(text: &str) -> Vec<u8> {
    let id: String = text
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || "+/-_".contains(*c))
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            c => c,
        })
        .collect();
    base64_engine(&alphabet::STANDARD)
        .decode(decodable_prefix(&id))
        .unwrap_or_default()
}

/// Returns an engine for base64 without padding, which may be cut off.
fn base64_engine(alphabet: &Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true)
        .with_encode_padding(false);
    GeneralPurpose::new(alphabet, config)
}

/// Drops a character that is alone in its group of four: it is no byte.
fn decodable_prefix(base64: &str) -> &str {
    &base64[..base64.len() - usize::from(base64.len() % 4 == 1)]
}

/// Returns the places in a text that may be base64 in this alphabet.
fn base64_runs(text: &str, alphabet: &Alphabet) -> Vec<Range<usize>> {
    let is_in_alphabet = |byte: &u8| alphabet.as_str().as_bytes().contains(byte);
    let mut start = 0;
    let mut runs = Vec::new();
    for run in text
        .as_bytes()
        .split_inclusive(|byte| !is_in_alphabet(byte))
    {
        let end = start + run.iter().filter(|byte| is_in_alphabet(byte)).count();
        if end - start >= MIN_BASE64_BYTES {
            runs.push(start..end);
        }
        start += run.len();
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::compose::message_id;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;

    const MESSAGE: &str = "EECECA125C8C2E22C3";

    fn redactor() -> Redactor {
        Redactor::new(b"a key of the tests")
    }

    fn redact(body: &str) -> String {
        String::from_utf8(redactor().redact_body(body.as_bytes())).unwrap()
    }

    fn is_json(text: &str) -> bool {
        serde_json::from_str::<Value>(text).is_ok()
    }

    /// The body, and all base64 in it decoded, from every offset.
    fn with_base64_decoded(body: &str) -> String {
        let mut all = body.to_owned();
        for start in 0..body.len() {
            let run: String = body[start..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "+/".contains(*c))
                .collect();
            let groups = &run[..run.len() / 4 * 4];
            let bytes = STANDARD.decode(groups).unwrap_or_default();
            all.push_str(&String::from_utf8_lossy(&bytes));
        }
        all
    }

    #[test]
    fn a_recipient_is_replaced_everywhere_even_in_base64() {
        let number = "5215512345678";
        let id = message_id(number, MESSAGE);
        let hidden = STANDARD.encode(format!("order of {number}"));
        let body = format!(
            r#"{{"id":"{id}","recipient_id":"{number}","x":"to +{number}!","y":"id_{}",
               "n":{number},"z":"data-{hidden}","e":"\u0035215512345678","{number}":1}}"#,
            &id[6..]
        );
        let redacted = redact(&body);
        assert!(with_base64_decoded(&body).matches(number).count() >= 6);
        assert!(
            !with_base64_decoded(&redacted).contains(number),
            "{redacted}"
        );
        let parsed: Value = serde_json::from_str(&redacted).unwrap();
        assert!(!parsed["e"].as_str().unwrap().contains(number));
        let expected_length = body.len() - "\\u0035".len() + 1;
        assert_eq!(redacted.len(), expected_length, "{redacted}");
    }

    #[test]
    fn a_number_in_a_message_id_is_replaced_elsewhere_too() {
        let id = message_id("16505551234", "0123456789ABCDEF01");
        let user = "13491208655302741918";
        let body =
            format!(r#"{{"id":"{id}","recipient_user_id":"US.{user}","note":"16505551234"}}"#);
        let redacted = redact(&body);
        assert!(
            !with_base64_decoded(&redacted).contains("16505551234"),
            "{redacted}"
        );
        assert!(redacted.contains(r#""US."#), "{redacted}");
        assert!(!redacted.contains(user), "{redacted}");
    }

    #[test]
    fn pseudonyms_depend_only_on_the_identifier_and_the_key() {
        let id = message_id("16505551234", MESSAGE);
        let status = format!(r#"{{"id":"{id}","recipient_id":"16505551234"}}"#);
        let alone = redact(&status);
        let among = redact(&format!(r#"[{{"recipient_id":"4915112345678"}},{status}]"#));
        assert!(among.contains(&alone), "{among}");
        assert_ne!(alone, status);
        let other_key = Redactor::new(b"another").redact_body(status.as_bytes());
        assert_ne!(other_key, alone.as_bytes());
    }

    #[test]
    fn a_body_without_people_keeps_its_bytes() {
        let body = concat!(
            r#"{ "a" : "\u00e4\/", "b":[1.50, -2e3,"x\"y"],"#,
            "\t\"code\":131031 }\n",
        );
        assert_eq!(redact(body), body);
    }

    #[test]
    fn texts_of_people_are_masked_and_keep_metas_escapes() {
        let body = concat!(
            r#"{"contacts":[{"profile":{"name":"J\u00f6rg"}}],"messages":[{"type":"text","#,
            r#""text":{"body":"caf\u00e9 \ud83d\udc4d 2\/3"},"latitude":48.1,"#,
            r#""strange":["Anna"],"errors":[{"code":131051,"title":"Unsupported"}]}],"#,
            r#""title":"stays"}"#,
        );
        let expected = concat!(
            r#"{"contacts":[{"profile":{"name":"xxxx"}}],"messages":[{"type":"text","#,
            r#""text":{"body":"xxxx \ud83d\udc4d 0\/0"},"latitude":0,"#,
            r#""strange":["xxxx"],"errors":[{"code":131051,"title":"Unsupported"}]}],"#,
            r#""title":"stays"}"#,
        );
        assert_eq!(redact(body), expected);
    }

    #[test]
    fn short_and_odd_recipients_are_replaced_in_their_fields() {
        let body = r#"{"recipient_id":"165","timestamp":"1650000000",
                       "from":"+1 (650) 555-1234","to":["16505551234"],
                       "group_id":"Y2FwaV9ncm91cA","note":"in Y2FwaV9ncm91cA","user_id":42}"#;
        let redacted = redact(body);
        for kept in ["1650000000", "\"from\":\"+"] {
            assert!(redacted.contains(kept), "{kept}: {redacted}");
        }
        for replaced in [
            "\"165\"",
            "Y2FwaV9ncm91cA",
            "16505551234",
            "(650) 555",
            ":42}",
        ] {
            assert!(!redacted.contains(replaced), "{replaced}: {redacted}");
        }
    }

    #[test]
    fn a_number_is_found_in_any_form_of_its_message_id() {
        let id = message_id("5215512345678", MESSAGE);
        for odd in [
            id.replace('A', "_"),
            format!("{}_retry1", id.trim_end_matches('=')),
            format!("see {id}!"),
            format!(r#"{{\"id\":\"{id}\",\"wa_id\":\"16505551234\"}}"#),
            id[..25].to_owned(),
        ] {
            let redacted = redact(&format!(r#"{{"x":"{odd}","note":"16505551234"}}"#));
            let all = with_base64_decoded(&redacted);
            assert!(!all.contains("521551234"), "{odd}: {all}");
            assert!(
                !odd.contains("wa_id") || !all.contains("16505551234"),
                "{odd}: {all}"
            );
        }
    }

    #[test]
    fn keys_and_numbers_are_known_in_any_notation() {
        let body = concat!(
            r#"{"recipient\u005fid":"16505551234","wa_id":4915112345678.0,"#,
            r#""to":1.65e10,"new_wa_id":"33612345678"}"#,
        );
        let redacted = redact(body);
        for number in ["16505551234", "4915112345678", "1.65", "33612345678"] {
            assert!(!redacted.contains(number), "{number}: {redacted}");
        }
        assert!(is_json(&redacted), "{redacted}");
    }

    #[test]
    fn a_readable_body_stays_readable() {
        let body = b"{\"messages\":[{\"text\":\"A\nB\\u00e9\xff \\u0031\\u0036505551234\"}],\
                     \"wa_id\":\"16505551234\"}";
        let redacted = String::from_utf8(redactor().redact_body(body)).unwrap();
        assert!(is_json(&redacted), "{redacted}");
    }

    #[test]
    fn ids_that_differ_in_their_last_bits_stay_different() {
        let id = message_id("16505551234", MESSAGE);
        let id = &id[..id.len() - 6];
        let ids = ["AAAA", "AAAB", "AAAC", "AAAD"]
            .map(|end| redact(&format!(r#"{{"id":"{id}{end}=="}}"#)));
        let distinct: BTreeSet<String> = ids.into();
        assert_eq!(distinct.len(), 4);
    }

    #[test]
    fn a_body_with_many_names_is_redacted_quickly() {
        let contacts: Vec<String> = (0..20_000)
            .map(|n| format!(r#"{{"wa_id":"1650{n:07}"}}"#))
            .collect();
        let body = format!(
            r#"{{"from":"{}","contacts":[{}]}}"#,
            "ab-".repeat(100_000),
            contacts.join(",")
        );
        assert_eq!(redact(&body).len(), body.len());
    }

    #[test]
    fn broken_bodies_are_redacted_too() {
        for broken in [
            concat!(
                r#"{"title":"a"b","code":131031,"recipient_id":"16505551234","#,
                r#""id":"wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI="}"#,
            ),
            concat!(
                "{'code':131031,'recipient_id':'16505551234',",
                "'id':'wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI='}",
            ),
            "code=131031&recipient_id=16505551234&id=wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI=",
        ] {
            let all = with_base64_decoded(&redact(broken));
            assert!(all.contains("131031"), "{all}");
            assert!(!all.contains("16505551234"), "{all}");
        }
        for cut in [
            r#"{"recipient_id":"16505551234","x":"\q 16505551234","id":"tail 16505551234"#,
            r#"{"errors":131031,"recipient_id":"16505551234"#,
        ] {
            assert!(!redact(cut).contains("16505551234"));
        }
        let invalid = b"{\"recipient_id\":\"16505551234\",\"x\":\"\xff 16505551234\xff\"} \xff";
        let redacted = redactor().redact_body(invalid);
        assert!(!String::from_utf8_lossy(&redacted).contains("16505551234"));
        assert_eq!(redact("hello 16505551234 131031")[17..], *" 131031");
        assert!(!redact("Anna: 16505551234 131031").contains("Anna"));
    }
}
