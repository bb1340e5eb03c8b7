//! Recipients are masked: their numbers wherever they stand, base64 in message ids included.

use std::ops::{Range, RangeInclusive};

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::store::details::Delivery;

/// As many digits in a row may be a phone number: [E.164](https://www.itu.int/rec/T-REC-E.164) has up to 15.
const NUMBER: RangeInclusive<usize> = 7..=15;
/// What stays readable of a recipient, to tell two of them apart.
const SHOWN: usize = 4;

/// A delivery that does not tell whom it was for.
#[must_use]
pub fn delivery(delivery: Delivery) -> Delivery {
    let people: Vec<String> =
        [&delivery.recipient_id, &delivery.participant_id].into_iter().flatten().flat_map(|name| names(name)).collect();
    let text = |text: Option<String>| text.map(|text| hide(&text, |bytes| occurrences(bytes, &people)));
    Delivery {
        message_id: message_id(&delivery.message_id, &people),
        recipient_id: delivery.recipient_id.as_deref().map(person),
        participant_id: delivery.participant_id.as_deref().map(person),
        error_title: text(delivery.error_title),
        error_message: text(delivery.error_message),
        error_details: text(delivery.error_details),
        callback_data: text(delivery.callback_data),
        ..delivery
    }
}

/// All but the end of whoever is named: `*******1234`.
fn person(name: &str) -> String {
    let length = name.chars().count();
    let hidden = if length < 2 * SHOWN { length } else { length - SHOWN };
    name.chars().enumerate().map(|(position, c)| if position < hidden { '*' } else { c }).collect()
}

/// The message's own part of its id stays; whatever may be a number in it does not.
fn message_id(id: &str, people: &[String]) -> String {
    hide(id, |bytes| [numbers(bytes), occurrences(bytes, people)].concat())
}

/// How somebody may be written: as it stands, and the digits alone.
fn names(name: &str) -> Vec<String> {
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    let mut names = vec![name.to_owned()];
    if digits.len() >= *NUMBER.start() && digits != name {
        names.push(digits);
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Puts asterisks over what `find` finds, in the text and in whatever base64 it holds.
fn hide(text: &str, find: impl Fn(&[u8]) -> Vec<Range<usize>>) -> String {
    let mut hidden = find(text.as_bytes());
    for alphabet in [&alphabet::STANDARD, &alphabet::URL_SAFE] {
        let config = GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true);
        let engine = GeneralPurpose::new(alphabet, config);
        for run in runs(text.as_bytes(), alphabet) {
            // Nobody knows where in it a group of four begins.
            for start in run.start..run.end.min(run.start + 4) {
                let length = run.end - start;
                let groups = &text[start..run.end - usize::from(length % 4 == 1)];
                let found = find(&engine.decode(groups).unwrap_or_default());
                // Three bytes are four characters; one that holds any bit of a byte is hidden with it.
                hidden
                    .extend(found.iter().map(|bytes| start + bytes.start * 4 / 3..start + (bytes.end * 4).div_ceil(3)));
            }
        }
    }
    let is_hidden = |position: usize| hidden.iter().any(|range| range.contains(&position));
    text.char_indices().map(|(position, c)| if is_hidden(position) { '*' } else { c }).collect()
}

/// Where so many digits stand in a row that they may be a number.
fn numbers(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    for run in bytes.split_inclusive(|byte| !byte.is_ascii_digit()) {
        let length = run.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if NUMBER.contains(&length) {
            found.push(start..start + length);
        }
        start += run.len();
    }
    found
}

fn occurrences(bytes: &[u8], names: &[String]) -> Vec<Range<usize>> {
    let of = |name: &String| {
        let name = name.as_bytes().to_owned();
        memchr::memmem::find_iter(bytes, &name).map(|start| start..start + name.len()).collect::<Vec<_>>()
    };
    names.iter().flat_map(of).collect()
}

/// The places that may be base64 of this alphabet.
fn runs(bytes: &[u8], alphabet: &alphabet::Alphabet) -> Vec<Range<usize>> {
    let of_alphabet = |byte: &u8| alphabet.as_str().as_bytes().contains(byte);
    let mut start = 0;
    let mut found = Vec::new();
    for run in bytes.split_inclusive(|byte| !of_alphabet(byte)) {
        let length = run.iter().take_while(|byte| of_alphabet(byte)).count();
        // Shorter ones can hide no number.
        if length >= NUMBER.start() * 4 / 3 {
            found.push(start..start + length);
        }
        start += run.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};

    use super::*;
    use crate::meta::compose::message_id as wamid;

    const RECIPIENT: &str = "16505551234";

    fn mask(id: &str) -> String {
        message_id(id, &names(RECIPIENT))
    }

    /// Whether the recipient can be read, or decoded from any place.
    fn tells(text: &str) -> bool {
        let decodes = |start: usize, end: usize| {
            let bytes = BASE64_STANDARD_NO_PAD.decode(&text.as_bytes()[start..end]).unwrap_or_default();
            memchr::memmem::find(&bytes, RECIPIENT.as_bytes()).is_some()
        };
        text.contains(RECIPIENT) || (0..text.len()).any(|start| (start..text.len()).any(|end| decodes(start, end)))
    }

    #[test]
    fn a_message_id_keeps_its_own_part_and_not_the_recipient() {
        let id = wamid(RECIPIENT, "3EB0C431C26A1916E07E");
        assert!(tells(&id), "the test can fail");
        let masked = mask(&id);
        assert!(!tells(&masked), "{masked}");
        assert_eq!(masked.len(), id.len());
        assert!(masked.starts_with("wamid.") && masked.contains("****"), "{masked}");
        assert_ne!(mask(&wamid(RECIPIENT, "3EB0C431C26A1916E07E")), mask(&wamid(RECIPIENT, "3EB0C431C26A1916E07F")));
    }

    #[test]
    fn wherever_in_base64_the_recipient_begins_it_is_hidden() {
        for before in 0..8 {
            for after in 0..4 {
                let text = [&"x".repeat(before), RECIPIENT, &"y".repeat(after)].concat();
                let text = format!("{}{}", "A".repeat(before % 3), BASE64_STANDARD.encode(text));
                let masked = hide(&text, |bytes| occurrences(bytes, &names(RECIPIENT)));
                assert!(!tells(&masked), "{text} {masked}");
            }
        }
    }

    #[test]
    fn people_keep_only_their_end_and_short_ones_nothing() {
        assert_eq!(person("16505551234"), "*******1234");
        assert_eq!(person("US.13491208655302741918"), "*******************1918");
        assert_eq!(person("12345"), "*****");
        assert_eq!(person(""), "");
    }

    #[test]
    fn an_id_that_is_the_number_itself_and_texts_that_name_it_are_masked() {
        assert_eq!(mask("16505551234"), "***********");
        assert_eq!(mask("wamid.1"), "wamid.1");
        assert_eq!(mask("ж16505551234ж"), "ж***********ж");
        let people = names("+1 650 555 1234");
        assert_eq!(
            hide("for 16505551234, order 99887766", |b| occurrences(b, &people)),
            "for ***********, order 99887766"
        );
    }
}
