//! Masking: hides the numbers of recipients wherever they appear, also in base64 inside message
//! ids.

use std::ops::Range;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::store::deliveries::Delivery;

/// The fewest digits in a row that may be a phone number.
const MIN_NUMBER_DIGITS: usize = 7;
/// The characters of a recipient that stay readable, so that two recipients can be told apart.
const VISIBLE_CHARACTERS: usize = 4;

/// Masks the recipient of a delivery in every field. In texts, every long number is masked: people
/// write numbers in many ways, and a text may name another person.
#[must_use]
pub(super) fn mask_delivery(delivery: Delivery) -> Delivery {
    let spellings: Vec<String> = [&delivery.recipient_id, &delivery.participant_id]
        .into_iter()
        .flatten()
        .flat_map(|name| spellings_of(name))
        .collect();
    let mask_text = |text: Option<String>| {
        text.map(|text| mask_matches(&text, |bytes| find_people(bytes, &spellings)))
    };
    Delivery {
        message_id: mask_message_id(&delivery.message_id, &spellings),
        recipient_id: delivery.recipient_id.as_deref().map(mask_person),
        participant_id: delivery.participant_id.as_deref().map(mask_person),
        error_title: mask_text(delivery.error_title),
        error_message: mask_text(delivery.error_message),
        error_details: mask_text(delivery.error_details),
        callback_data: mask_text(delivery.callback_data),
        ..delivery
    }
}

/// Masks a person's number or id except for its end: `*******1234`.
fn mask_person(name: &str) -> String {
    let length = name.chars().count();
    let hidden = if length < 2 * VISIBLE_CHARACTERS {
        length
    } else {
        length - VISIBLE_CHARACTERS
    };
    name.chars()
        .enumerate()
        .map(|(position, c)| if position < hidden { '*' } else { c })
        .collect()
}

/// Masks everything in a message id that may be a number. The rest, which is the message's own
/// part, stays.
fn mask_message_id(id: &str, spellings: &[String]) -> String {
    mask_matches(id, |bytes| {
        [find_numbers(bytes), find_spellings(bytes, spellings)].concat()
    })
}

/// Returns the ways in which a person may be written: unchanged, and the digits alone.
fn spellings_of(name: &str) -> Vec<String> {
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    let mut spellings = vec![name.to_owned()];
    if digits.len() >= MIN_NUMBER_DIGITS && digits != name {
        spellings.push(digits);
    }
    spellings.retain(|spelling| !spelling.is_empty());
    spellings
}

/// Replaces the matches of `find` with asterisks, in the text and in base64 inside it.
fn mask_matches(text: &str, find: impl Fn(&[u8]) -> Vec<Range<usize>>) -> String {
    let mut hidden = vec![false; text.len()];
    let mut matches = find(text.as_bytes());
    matches.extend(find_in_base64(text, find));
    for range in matches {
        hidden[range.start..range.end.min(text.len())].fill(true);
    }
    text.char_indices()
        .map(|(position, c)| if hidden[position] { '*' } else { c })
        .collect()
}

/// Decodes everything that may be base64, and returns the positions of the characters that hold a
/// match of `find`.
fn find_in_base64(text: &str, find: impl Fn(&[u8]) -> Vec<Range<usize>>) -> Vec<Range<usize>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let mut matches = Vec::new();
    for (alphabet, symbols) in [(&alphabet::STANDARD, b"+/"), (&alphabet::URL_SAFE, b"-_")] {
        let engine = GeneralPurpose::new(alphabet, config);
        let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || symbols.contains(&byte);
        for run in find_runs(text.as_bytes(), is_base64) {
            // A shorter run cannot hold a number.
            if run.len() < MIN_NUMBER_DIGITS * 4 / 3 {
                continue;
            }
            // A group of four characters may begin at any of these positions.
            for start in run.start..run.start + 4 {
                let length = run.end - start;
                let groups = &text[start..run.end - usize::from(length % 4 == 1)];
                for bytes in find(&engine.decode(groups).unwrap_or_default()) {
                    // Three bytes are four characters. A character that holds any bit of a match is
                    // part of it.
                    matches.push(start + bytes.start * 4 / 3..start + (bytes.end * 4).div_ceil(3));
                }
            }
        }
    }
    matches
}

/// Finds these people and every other written number in a text.
fn find_people(bytes: &[u8], spellings: &[String]) -> Vec<Range<usize>> {
    [
        find_written_numbers(bytes),
        find_spellings(bytes, spellings),
    ]
    .concat()
}

/// Finds every row of digits that is long enough to be a number.
fn find_numbers(bytes: &[u8]) -> Vec<Range<usize>> {
    find_runs(bytes, |byte| byte.is_ascii_digit())
        .filter(|run| run.len() >= MIN_NUMBER_DIGITS)
        .collect()
}

/// Finds numbers as people write them: with blanks, brackets, dots and dashes between the digits,
/// also in a URL.
fn find_written_numbers(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut numbers = Vec::new();
    for mut run in find_runs(bytes, |byte| {
        byte.is_ascii_digit() || b" +()-./%".contains(&byte)
    }) {
        let is_digit = |at: &usize| bytes[*at].is_ascii_digit();
        if run.clone().filter(is_digit).count() >= MIN_NUMBER_DIGITS {
            let first = run.find(is_digit).unwrap_or(run.start);
            let last = run.rev().find(is_digit).unwrap_or(first);
            numbers.push(first..last.max(first) + 1);
        }
    }
    numbers
}

fn find_spellings(bytes: &[u8], spellings: &[String]) -> Vec<Range<usize>> {
    let mut matches = Vec::new();
    for spelling in spellings {
        let starts = memchr::memmem::find_iter(bytes, spelling);
        matches.extend(starts.map(|start| start..start + spelling.len()));
    }
    matches
}

/// Returns each longest run of bytes for which `is_part` is true.
fn find_runs(
    bytes: &[u8],
    is_part: impl Fn(u8) -> bool + Copy,
) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    bytes
        .chunk_by(move |a, b| is_part(*a) == is_part(*b))
        .map(move |run| {
            end += run.len();
            end - run.len()..end
        })
        .filter(move |run| is_part(bytes[run.start]))
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};

    use super::*;
    use crate::meta::compose::message_id as wamid;

    const RECIPIENT: &str = "16505551234";

    fn mask(id: &str) -> String {
        mask_message_id(id, &spellings_of(RECIPIENT))
    }

    /// Returns whether the recipient can be read, or decoded from any position.
    fn reveals_recipient(text: &str) -> bool {
        let decodes = |start: usize, end: usize| {
            let bytes = BASE64_STANDARD_NO_PAD
                .decode(&text.as_bytes()[start..end])
                .unwrap_or_default();
            memchr::memmem::find(&bytes, RECIPIENT.as_bytes()).is_some()
        };
        text.contains(RECIPIENT)
            || (0..text.len()).any(|start| (start..text.len()).any(|end| decodes(start, end)))
    }

    #[test]
    fn a_message_id_keeps_its_own_part_and_not_the_recipient() {
        let id = wamid(RECIPIENT, "3EB0C431C26A1916E07E");
        assert!(reveals_recipient(&id), "the check can see the recipient");
        let masked = mask(&id);
        assert!(!reveals_recipient(&masked), "{masked}");
        assert_eq!(masked.len(), id.len());
        assert!(
            masked.starts_with("wamid.") && masked.contains("****"),
            "{masked}"
        );
        assert_ne!(
            mask(&wamid(RECIPIENT, "3EB0C431C26A1916E07E")),
            mask(&wamid(RECIPIENT, "3EB0C431C26A1916E07F"))
        );
    }

    #[test]
    fn a_recipient_is_masked_at_any_position_in_base64() {
        for before in 0..8 {
            for after in 0..4 {
                let text = [&"x".repeat(before), RECIPIENT, &"y".repeat(after)].concat();
                let text = format!("{}{}", "A".repeat(before % 3), BASE64_STANDARD.encode(text));
                let masked = mask_matches(&text, |bytes| {
                    find_spellings(bytes, &spellings_of(RECIPIENT))
                });
                assert!(!reveals_recipient(&masked), "{text} {masked}");
            }
        }
    }

    #[test]
    fn a_person_keeps_the_end_and_a_short_one_nothing() {
        assert_eq!(mask_person("16505551234"), "*******1234");
        assert_eq!(
            mask_person("US.13491208655302741918"),
            "*******************1918"
        );
        assert_eq!(mask_person("12345"), "*****");
        assert_eq!(mask_person(""), "");
    }

    #[test]
    fn numbers_are_masked_in_every_spelling() {
        for text in [
            "+1 650-555-1234",
            "(650) 555-1234",
            "650.555.1234",
            "https://x/?to=%2B1%20650%20555%201234",
            "16505551234@g.us",
        ] {
            let masked = mask_matches(text, find_written_numbers);
            let digits = masked.bytes().filter(u8::is_ascii_digit).count();
            assert!(digits < 2, "{masked}");
        }
        assert_eq!(
            mask_matches("error 131031 (code 4711)", find_written_numbers),
            "error 131031 (code 4711)"
        );
    }

    #[test]
    fn an_id_that_is_only_a_number_is_masked() {
        assert_eq!(mask("16505551234"), "***********");
        assert_eq!(
            mask("1650555123499999999"),
            "*******************",
            "with other digits before or after it"
        );
        assert_eq!(mask("wamid.1"), "wamid.1");
        assert_eq!(mask("ж16505551234ж"), "ж***********ж");
        let spellings = spellings_of("+1 650 555 1234");
        assert_eq!(
            mask_matches("for 16505551234, order 99887766", |bytes| {
                find_spellings(bytes, &spellings)
            }),
            "for ***********, order 99887766"
        );
    }
}
