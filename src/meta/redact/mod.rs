//! Redaction: recipients become pseudonyms, so that a capture can be shown or committed.
//!
//! Who a body is about is read from the fields that name people (`recipient_id`, `wa_id`, `from` and the
//! like) and from the message ids, which contain the recipient's phone number in base64. Wherever one of
//! those numbers stands in the body, in base64 too, a pseudonym of the same length takes its place: the same
//! one everywhere under the same key, so that a repeated failure stays the same failure. What people wrote
//! (texts, names, addresses) becomes `xxx`. All else keeps its bytes. The result is another body: Meta's
//! signature no longer fits it.
//!
//! Nothing here needs valid JSON: what was quarantined can be redacted as well.

mod tokens;

use std::borrow::Cow;
use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::value::RawValue;
use sha2::Sha256;

use self::tokens::{Field, Kind, Token, Tokens, decoded};
use super::capture::Capture;
use super::json::readable;
use super::signature;

/// Shorter identifiers are replaced only where they are the whole value of such a field: anything may
/// contain a few digits.
const SHORTEST: usize = 7;
/// Longer ones, which no one of Meta's is, are replaced only there as well.
const LONGEST: usize = 256;
/// The shortest run of base64 that could hide one.
const SHORTEST_BASE64: usize = 10;

/// Makes pseudonyms. Without its key nobody can tell which number one stands for: there are few enough
/// phone numbers to try them all.
#[derive(Debug, Clone)]
pub struct Redaction {
    key: Hmac<Sha256>,
}

impl Redaction {
    /// Two redactions with the same key make the same pseudonyms.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self {
            key: Hmac::new_from_slice(key).expect("HMAC takes a key of any length"),
        }
    }

    /// A capture in which nobody is named; the signature, which no longer fits, is left out.
    ///
    /// ```
    /// use lockwatch::meta::{capture::Capture, compose::StatusCallback, redact::Redaction};
    ///
    /// let body = StatusCallback::new().failed("102290129340398", "106540352242922", "wamid.1").into_body();
    /// let redacted = Redaction::new(b"a key that is kept").capture(&Capture::from_body(body));
    /// assert!(!String::from_utf8_lossy(&redacted.body).contains("16505551234"));
    /// ```
    #[must_use]
    pub fn capture(&self, capture: &Capture) -> Capture {
        let mut redacted = Capture {
            body: self.body(&capture.body).into(),
            redacted: true,
            ..capture.clone()
        };
        redacted.headers.remove(signature::HEADER);
        redacted
    }

    /// A body in which nobody is named.
    #[must_use]
    pub fn body(&self, body: &[u8]) -> Vec<u8> {
        let is_json = serde_json::from_str::<&RawValue>(&readable(body)).is_ok();
        let people = self.people(body, is_json);
        let mut redacted = Vec::with_capacity(body.len());
        for token in Tokens::of(body) {
            match token.kind {
                Kind::Other if is_json => redacted.extend_from_slice(token.bytes),
                Kind::Other => redacted.extend(token.bytes.iter().map(masked_byte)),
                Kind::Number => redacted.extend_from_slice(self.number(&people, &token).as_bytes()),
                Kind::Text => match self.text(&people, &token) {
                    Some(changed) => redacted.extend_from_slice(changed.as_bytes()),
                    None => redacted.extend_from_slice(token.bytes),
                },
            }
        }
        redacted
    }

    fn people(&self, body: &[u8], is_json: bool) -> People {
        let mut names = BTreeSet::new();
        collect(body, is_json, true, &mut names);
        let names: Vec<String> = names
            .into_iter()
            .filter(|name| (SHORTEST..=LONGEST).contains(&name.len()))
            .collect();
        People::new(
            &names,
            names.iter().map(|name| self.pseudonym(name)).collect(),
        )
    }

    /// A string token, quotes and escapes included, if it changes.
    fn text(&self, people: &People, token: &Token<'_>) -> Option<String> {
        let (is_name, is_content) = (token.field == Field::Person, token.is_content());
        let Some(text) = decoded(token.bytes) else {
            // No JSON string: cut off, or with escapes of its own.
            let text = undecoded(token.bytes);
            let changed = people.replace(&text);
            let changed = if is_name || is_content {
                mask(&changed)
            } else {
                changed.into_owned()
            };
            return (changed != text).then(|| format!("\"{changed}"));
        };
        let changed = if is_name {
            self.identifier(&text)
        } else if is_content {
            mask(&people.replace(&text))
        } else {
            people.replace(&text).into_owned()
        };
        (changed != text).then(|| encoded(&changed, token.bytes))
    }

    fn number<'t>(&self, people: &People, token: &Token<'t>) -> Cow<'t, str> {
        let written = String::from_utf8_lossy(token.bytes);
        if token.field == Field::Person {
            let (mantissa, exponent) =
                written.split_at(written.find(['e', 'E']).unwrap_or(written.len()));
            return Cow::Owned(self.in_place_of_digits(mantissa) + exponent);
        }
        if token.is_content() {
            return Cow::Borrowed("0");
        }
        Cow::Owned(people.replace(&written).into_owned())
    }

    /// The whole value of a field that names somebody.
    fn identifier(&self, value: &str) -> String {
        if is_numbered(value) {
            self.in_place_of_digits(value)
        } else {
            self.pseudonym(value)
        }
    }

    fn in_place_of_digits(&self, value: &str) -> String {
        let pseudonym = self.pseudonym(&digits_of(value));
        let mut digits = pseudonym.chars();
        value
            .chars()
            .map(|c| {
                if c.is_ascii_digit() {
                    digits.next().unwrap_or(c)
                } else {
                    c
                }
            })
            .collect()
    }

    /// Digits for digits, letters for letters, as many bytes. It starts with no zero, since it may stand as
    /// a number.
    fn pseudonym(&self, name: &str) -> String {
        let seed = self.key.clone().chain_update(name).finalize().into_bytes();
        let stream = (0_u32..).flat_map(|block| {
            let block = self
                .key
                .clone()
                .chain_update(seed)
                .chain_update(block.to_be_bytes());
            <[u8; 32]>::from(block.finalize().into_bytes())
        });
        let is_long_number = name.len() >= 10 && name.bytes().all(|byte| byte.is_ascii_digit());
        let replaced = name
            .bytes()
            .zip(stream)
            .enumerate()
            .map(|(position, (byte, chance))| match byte {
                _ if is_long_number && position < 3 => b'9',
                b'0'..=b'9' if position == 0 => b'1' + chance % 9,
                b'0'..=b'9' => b'0' + chance % 10,
                b'a'..=b'z' => b'a' + chance % 26,
                b'A'..=b'Z' => b'A' + chance % 26,
                byte if byte.is_ascii() => byte,
                _ => b'x',
            });
        replaced.map(char::from).collect()
    }
}

/// Collects everybody who is named in a body; in a JSON text within it as well.
fn collect(body: &[u8], is_json: bool, and_within: bool, names: &mut BTreeSet<String>) {
    for token in Tokens::of(body).filter(|token| token.kind != Kind::Other) {
        let value = match token.kind {
            Kind::Text => decoded(token.bytes).unwrap_or_else(|| undecoded(token.bytes)),
            Kind::Number | Kind::Other => String::from_utf8_lossy(token.bytes).into_owned(),
        };
        if token.field == Field::Person {
            let value = value.trim_end_matches('"');
            let mantissa = if token.kind == Kind::Number {
                value.split(['e', 'E']).next().unwrap_or(value)
            } else {
                value
            };
            names.insert(if is_numbered(mantissa) {
                digits_of(mantissa)
            } else {
                value.to_owned()
            });
        }
        if !is_json {
            names.extend(
                value
                    .split(|c: char| !c.is_ascii_digit())
                    .map(str::to_owned),
            );
        }
        names.extend(numbers_in_message_ids(&value));
        if and_within && value.trim_start().starts_with(['{', '[']) {
            collect(value.as_bytes(), true, false, names);
        }
    }
}

/// Everybody who is named in a body, with a pseudonym each.
struct People {
    pseudonyms: Vec<String>,
    search: AhoCorasick,
}

impl People {
    fn new(names: &[String], pseudonyms: Vec<String>) -> Self {
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(names);
        Self {
            search: search.expect("a body has few enough names"),
            pseudonyms,
        }
    }

    /// The text with pseudonyms for names, in base64 too.
    fn replace<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.pseudonyms.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut text = match self.replace_bytes(text.as_bytes()) {
            Some(bytes) => {
                Cow::Owned(String::from_utf8(bytes).expect("names and pseudonyms are whole texts"))
            }
            None => Cow::Borrowed(text),
        };
        for alphabet in [&alphabet::STANDARD, &alphabet::URL_SAFE] {
            for run in base64_runs(&text, alphabet) {
                // Nobody knows where in it a group of four begins.
                for start in run.start..run.start + 4 {
                    if let Some(changed) = self.replace_base64(&text[start..run.end], alphabet) {
                        text.to_mut()
                            .replace_range(start..start + changed.len(), &changed);
                    }
                }
            }
        }
        text
    }

    fn replace_base64(&self, run: &str, alphabet: &alphabet::Alphabet) -> Option<String> {
        let config = GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(true)
            .with_encode_padding(false);
        let engine = GeneralPurpose::new(alphabet, config);
        let groups = &run[..run.len() - usize::from(run.len() % 4 == 1)];
        let bytes = engine.decode(groups).ok()?;
        let changed_bytes = self.replace_bytes(&bytes)?;
        let mut changed = engine.encode(&changed_bytes);
        // The bits at the end of a last group that is not whole may tell ids apart.
        let (whole, last) = (groups.len() / 4 * 4, groups.len() / 4 * 3);
        if bytes[last..] == changed_bytes[last..] {
            changed.replace_range(whole.., &groups[whole..]);
        }
        Some(changed)
    }

    fn replace_bytes(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.search
            .is_match(text)
            .then(|| self.search.replace_all_bytes(text, &self.pseudonyms))
    }
}

/// A string token as it stands, without its opening quote.
fn undecoded(token: &[u8]) -> String {
    String::from_utf8_lossy(token.strip_prefix(b"\"").unwrap_or(token)).into_owned()
}

/// A string token as Meta writes it: ASCII, with slashes escaped where they were.
fn encoded(text: &str, like: &[u8]) -> String {
    use std::fmt::Write;
    let mut ascii = String::with_capacity(text.len() + 2);
    for c in serde_json::Value::from(text).to_string().chars() {
        let mut units = [0; 2];
        match c {
            '/' if like.windows(2).any(|two| two == b"\\/") => ascii.push_str("\\/"),
            c if c.is_ascii() => ascii.push(c),
            c => c.encode_utf16(&mut units).iter().for_each(|unit| {
                let _ = write!(ascii, "\\u{unit:04x}");
            }),
        }
    }
    ascii
}

fn mask(text: &str) -> String {
    let masked = |c: char| match c {
        c if c.is_alphabetic() => 'x',
        c if c.is_numeric() => '0',
        c => c,
    };
    text.chars().map(masked).collect()
}

fn masked_byte(byte: &u8) -> u8 {
    if byte.is_ascii_alphabetic() || !byte.is_ascii() {
        b'x'
    } else {
        *byte
    }
}

fn digits_of(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

/// Whether an identifier is its digits: a phone number, or a business-scoped user id (`US.1349…`,
/// `US.ENT.1181…`), of which the country stays.
fn is_numbered(identifier: &str) -> bool {
    let rest = match identifier.as_bytes() {
        [b'A'..=b'Z', b'A'..=b'Z', b'.', ..] => identifier[3..].trim_start_matches("ENT."),
        _ => identifier,
    };
    rest.contains(|c: char| c.is_ascii_digit())
        && rest
            .chars()
            .all(|c| c.is_ascii_digit() || "+-() .".contains(c))
}

/// The phone numbers in message ids: base64 of a protocol buffer, in which a text is its length and its
/// bytes. Of an id that is cut off, what is left of the number.
fn numbers_in_message_ids(text: &str) -> Vec<String> {
    const TEXT_FIELD: u8 = 0x18;
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(
        &alphabet::STANDARD,
        config.with_decode_padding_mode(DecodePaddingMode::RequireNone),
    );
    let mut numbers = Vec::new();
    for rest in text.split("wamid.").skip(1) {
        let of_id = |c: &char| c.is_ascii_alphanumeric() || "+/-_".contains(*c);
        let id: String = rest
            .chars()
            .take_while(of_id)
            .map(|c| {
                if c == '-' {
                    '+'
                } else if c == '_' {
                    '/'
                } else {
                    c
                }
            })
            .collect();
        let bytes = engine
            .decode(&id[..id.len() - usize::from(id.len() % 4 == 1)])
            .unwrap_or_default();
        for (position, head) in bytes
            .windows(2)
            .enumerate()
            .filter(|(_, head)| head[0] == TEXT_FIELD)
        {
            let number = &bytes[position + 2..];
            let number = &number[..number.len().min(usize::from(head[1]))];
            if number.len() >= SHORTEST && number.iter().all(u8::is_ascii_digit) {
                numbers.push(String::from_utf8_lossy(number).into_owned());
            }
        }
    }
    numbers
}

/// The places that may be base64 of this alphabet.
fn base64_runs(text: &str, alphabet: &alphabet::Alphabet) -> Vec<std::ops::Range<usize>> {
    let of_alphabet = |byte: &u8| alphabet.as_str().as_bytes().contains(byte);
    let mut start = 0;
    let mut runs = Vec::new();
    for run in text.as_bytes().split_inclusive(|byte| !of_alphabet(byte)) {
        let end = start + run.iter().filter(|byte| of_alphabet(byte)).count();
        if end - start >= SHORTEST_BASE64 {
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

    fn redaction() -> Redaction {
        Redaction::new(b"a key of the tests")
    }

    fn redacted(body: &str) -> String {
        String::from_utf8(redaction().body(body.as_bytes())).unwrap()
    }

    /// The body's text with every piece of base64 in it decoded, at every offset.
    fn everything_in(body: &str) -> String {
        let mut all = body.to_owned();
        for start in 0..body.len() {
            let run: String = body[start..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "+/".contains(*c))
                .collect();
            let run = &run[..run.len() / 4 * 4];
            all.push_str(&String::from_utf8_lossy(
                &STANDARD.decode(run).unwrap_or_default(),
            ));
        }
        all
    }

    #[test]
    fn a_recipient_is_nowhere_left_not_even_in_base64() {
        let number = "5215512345678";
        let id = message_id(number, "EECECA125C8C2E22C3");
        let hidden = STANDARD.encode(format!("order of {number}"));
        let body = format!(
            r#"{{"id":"{id}","recipient_id":"{number}","x":"to +{number}!","y":"id_{}","n":{number},"z":"data-{hidden}",
               "e":"\u0035215512345678","{number}":1}}"#,
            &id[6..]
        );
        let redacted = redacted(&body);
        assert!(everything_in(&body).matches(number).count() >= 6);
        assert!(!everything_in(&redacted).contains(number), "{redacted}");
        assert!(
            !serde_json::from_str::<serde_json::Value>(&redacted).unwrap()["e"]
                .as_str()
                .unwrap()
                .contains(number)
        );
        assert_eq!(
            redacted.len(),
            body.len() - "\\u0035".len() + 1,
            "{redacted}"
        );
    }

    #[test]
    fn a_number_that_only_a_message_id_knows_is_found() {
        let id = message_id("16505551234", "0123456789ABCDEF01");
        let body = format!(
            r#"{{"id":"{id}","recipient_user_id":"US.13491208655302741918","note":"16505551234"}}"#
        );
        let redacted = redacted(&body);
        assert!(
            !everything_in(&redacted).contains("16505551234"),
            "{redacted}"
        );
        assert!(
            redacted.contains(r#""US."#) && !redacted.contains("13491208655302741918"),
            "{redacted}"
        );
    }

    #[test]
    fn pseudonyms_are_the_same_everywhere_and_change_with_the_key() {
        let id = message_id("16505551234", "EECECA125C8C2E22C3");
        let status = format!(r#"{{"id":"{id}","recipient_id":"16505551234"}}"#);
        let alone = redacted(&status);
        let among = redacted(&format!(r#"[{{"recipient_id":"4915112345678"}},{status}]"#));
        assert!(among.contains(&alone), "{among}");
        assert_ne!(alone, status);
        assert_ne!(
            Redaction::new(b"another").body(status.as_bytes()),
            alone.as_bytes()
        );
    }

    #[test]
    fn what_names_nobody_keeps_its_bytes() {
        let body = "{ \"a\" : \"\\u00e4\\/\", \"b\":[1.50, -2e3,\"x\\\"y\"],\t\"code\":131031 }\n";
        assert_eq!(redacted(body), body);
    }

    #[test]
    fn what_people_wrote_is_masked_and_stays_escaped_as_meta_does() {
        let body = r#"{"contacts":[{"profile":{"name":"J\u00f6rg"}}],"messages":[{"type":"text","text":{"body":"caf\u00e9 \ud83d\udc4d 2\/3"},"latitude":48.1,"strange":["Anna"],"errors":[{"code":131051,"title":"Unsupported"}]}],"title":"stays"}"#;
        let expected = r#"{"contacts":[{"profile":{"name":"xxxx"}}],"messages":[{"type":"text","text":{"body":"xxxx \ud83d\udc4d 0\/0"},"latitude":0,"strange":["xxxx"],"errors":[{"code":131051,"title":"Unsupported"}]}],"title":"stays"}"#;
        assert_eq!(redacted(body), expected);
    }

    #[test]
    fn short_and_strange_recipients_are_replaced_where_they_stand() {
        let body = r#"{"recipient_id":"165","timestamp":"1650000000","from":"+1 (650) 555-1234","to":["16505551234"],
                       "group_id":"Y2FwaV9ncm91cA","note":"in Y2FwaV9ncm91cA","user_id":42}"#;
        let redacted = redacted(body);
        assert!(
            redacted.contains("1650000000") && !redacted.contains("\"165\""),
            "{redacted}"
        );
        assert!(
            !redacted.contains("Y2FwaV9ncm91cA") && !redacted.contains("16505551234"),
            "{redacted}"
        );
        assert!(
            redacted.contains("\"from\":\"+") && !redacted.contains("(650) 555"),
            "{redacted}"
        );
        assert!(!redacted.contains(":42}"), "{redacted}");
    }

    #[test]
    fn a_number_is_found_however_its_message_id_is_written() {
        let id = message_id("5215512345678", "EECECA125C8C2E22C3");
        for strange in [
            id.replace('A', "_"),
            format!("{}_retry1", id.trim_end_matches('=')),
            format!("see {id}!"),
            format!(r#"{{\"id\":\"{id}\",\"wa_id\":\"16505551234\"}}"#),
            id[..25].to_owned(),
        ] {
            let everything = everything_in(&redacted(&format!(
                r#"{{"x":"{strange}","note":"16505551234"}}"#
            )));
            assert!(!everything.contains("521551234"), "{strange}: {everything}");
            assert!(
                !strange.contains("wa_id") || !everything.contains("16505551234"),
                "{strange}: {everything}"
            );
        }
    }

    #[test]
    fn fields_are_known_however_they_are_written() {
        let body = r#"{"recipient\u005fid":"16505551234","wa_id":4915112345678.0,"to":1.65e10,"new_wa_id":"33612345678"}"#;
        let redacted = redacted(body);
        for number in ["16505551234", "4915112345678", "1.65", "33612345678"] {
            assert!(!redacted.contains(number), "{number}: {redacted}");
        }
        assert!(
            serde_json::from_str::<serde_json::Value>(&redacted).is_ok(),
            "{redacted}"
        );
    }

    #[test]
    fn what_was_readable_stays_readable_and_what_was_different_stays_different() {
        let body = b"{\"messages\":[{\"text\":\"A\nB\\u00e9\xff \\u0031\\u0036505551234\"}],\"wa_id\":\"16505551234\"}";
        let redacted = String::from_utf8(redaction().body(body)).unwrap();
        assert!(
            serde_json::from_str::<serde_json::Value>(&redacted).is_ok(),
            "{redacted}"
        );
        let id = message_id("16505551234", "EECECA125C8C2E22C3");
        let ids: BTreeSet<String> = ["AAAA", "AAAB", "AAAC", "AAAD"]
            .map(|end| {
                super::tests::redacted(&format!(r#"{{"id":"{}{end}=="}}"#, &id[..id.len() - 6]))
            })
            .into();
        assert_eq!(ids.len(), 4);
    }

    #[test]
    fn hostile_names_take_no_time() {
        let names: Vec<String> = (0..20_000)
            .map(|n| format!(r#"{{"wa_id":"1650{n:07}"}}"#))
            .collect();
        let body = format!(
            r#"{{"from":"{}","contacts":[{}]}}"#,
            "ab-".repeat(100_000),
            names.join(",")
        );
        let redacted = redacted(&body);
        assert_eq!(redacted.len(), body.len());
    }

    #[test]
    fn broken_bodies_are_redacted_too() {
        for broken in [
            r#"{"title":"a"b","code":131031,"recipient_id":"16505551234","id":"wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI="}"#,
            "{'code':131031,'recipient_id':'16505551234','id':'wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI='}",
            "code=131031&recipient_id=16505551234&id=wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI=",
        ] {
            let everything = everything_in(&redacted(broken));
            assert!(
                everything.contains("131031") && !everything.contains("16505551234"),
                "{everything}"
            );
        }
        let cut = r#"{"recipient_id":"16505551234","x":"\q 16505551234","id":"tail 16505551234"#;
        assert!(!redacted(cut).contains("16505551234"));
        let cut = r#"{"errors":131031,"recipient_id":"16505551234"#;
        assert!(!redacted(cut).contains("16505551234"));
        let invalid = b"{\"recipient_id\":\"16505551234\",\"x\":\"\xff 16505551234\xff\"} \xff";
        let redacted = redaction().body(invalid);
        assert!(!String::from_utf8_lossy(&redacted).contains("16505551234"));
        assert_eq!(self::redacted("hello 16505551234 131031")[17..], *" 131031");
        assert!(!self::redacted("Anna: 16505551234 131031").contains("Anna"));
    }
}
