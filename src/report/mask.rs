//! Recipients are masked: their numbers wherever they stand, base64 in message ids included.

use std::ops::Range;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::store::deliveries::Delivery;

/// As many digits in a row may be a phone number.
const SHORTEST_NUMBER: usize = 7;
/// What stays readable of a recipient, to tell two of them apart.
const SHOWN: usize = 4;

/// A delivery that does not tell whom it was for. In texts it hides every long number, since people write
/// numbers in many ways and a text may name somebody else.
#[must_use]
pub fn delivery(delivery: Delivery) -> Delivery {
    let people: Vec<String> = [&delivery.recipient_id, &delivery.participant_id]
        .into_iter()
        .flatten()
        .flat_map(|name| names(name))
        .collect();
    let text = |text: Option<String>| {
        text.map(|text| {
            hide(&text, |bytes| {
                [written_numbers(bytes), occurrences(bytes, &people)].concat()
            })
        })
    };
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
    let hidden = if length < 2 * SHOWN {
        length
    } else {
        length - SHOWN
    };
    name.chars()
        .enumerate()
        .map(|(position, c)| if position < hidden { '*' } else { c })
        .collect()
}

/// The message's own part of its id stays; whatever may be a number in it does not.
fn message_id(id: &str, people: &[String]) -> String {
    hide(id, |bytes| {
        [numbers(bytes), occurrences(bytes, people)].concat()
    })
}

/// How somebody may be written: as it stands, and the digits alone.
fn names(name: &str) -> Vec<String> {
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    let mut names = vec![name.to_owned()];
    if digits.len() >= SHORTEST_NUMBER && digits != name {
        names.push(digits);
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Puts asterisks over what `find` finds, in the text and in whatever base64 it holds.
fn hide(text: &str, find: impl Fn(&[u8]) -> Vec<Range<usize>>) -> String {
    let mut hidden = vec![false; text.len()];
    let mut put = |range: Range<usize>| hidden[range.start..range.end.min(text.len())].fill(true);
    find(text.as_bytes()).into_iter().for_each(&mut put);
    for (alphabet, symbols) in [(&alphabet::STANDARD, b"+/"), (&alphabet::URL_SAFE, b"-_")] {
        let config = GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true);
        let engine = GeneralPurpose::new(alphabet, config);
        for run in runs(text.as_bytes(), |byte| {
            byte.is_ascii_alphanumeric() || symbols.contains(&byte)
        }) {
            // Shorter ones can hide no number.
            if run.len() < SHORTEST_NUMBER * 4 / 3 {
                continue;
            }
            // Nobody knows where in it a group of four begins.
            for start in run.start..run.start + 4 {
                let length = run.end - start;
                let groups = &text[start..run.end - usize::from(length % 4 == 1)];
                for bytes in find(&engine.decode(groups).unwrap_or_default()) {
                    // Three bytes are four characters; one that holds any bit of a byte is hidden with it.
                    put(start + bytes.start * 4 / 3..start + (bytes.end * 4).div_ceil(3));
                }
            }
        }
    }
    text.char_indices()
        .map(|(position, c)| if hidden[position] { '*' } else { c })
        .collect()
}

/// Where so many digits stand in a row that they may be a number.
fn numbers(bytes: &[u8]) -> Vec<Range<usize>> {
    runs(bytes, |byte| byte.is_ascii_digit())
        .filter(|run| run.len() >= SHORTEST_NUMBER)
        .collect()
}

/// The same as people write them: with blanks, brackets, dots and dashes in between, also in a URL.
fn written_numbers(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for mut run in runs(bytes, |byte| {
        byte.is_ascii_digit() || b" +()-./%".contains(&byte)
    }) {
        let is_digit = |at: &usize| bytes[*at].is_ascii_digit();
        if run.clone().filter(is_digit).count() >= SHORTEST_NUMBER {
            let first = run.find(is_digit).unwrap_or(run.start);
            let last = run.rev().find(is_digit).unwrap_or(first);
            found.push(first..last.max(first) + 1);
        }
    }
    found
}

fn occurrences(bytes: &[u8], names: &[String]) -> Vec<Range<usize>> {
    let of = |name: &String| {
        let length = name.len();
        memchr::memmem::find_iter(bytes, name)
            .map(|start| start..start + length)
            .collect::<Vec<_>>()
    };
    names.iter().flat_map(of).collect()
}

/// The stretches of such bytes.
fn runs(bytes: &[u8], is_part: impl Fn(u8) -> bool + Copy) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    let all = bytes
        .chunk_by(move |a, b| is_part(*a) == is_part(*b))
        .map(move |run| {
            end += run.len();
            end - run.len()..end
        });
    all.filter(move |run| is_part(bytes[run.start]))
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
        assert!(tells(&id), "the test can fail");
        let masked = mask(&id);
        assert!(!tells(&masked), "{masked}");
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
    fn however_a_text_writes_a_number_it_is_hidden() {
        let texts = "+1 650-555-1234|(650) 555-1234|650.555.1234|https://x/?to=%2B1%20650%20555%201234|16505551234@g.us";
        for text in texts.split('|') {
            let masked = hide(text, written_numbers);
            let digits = masked.bytes().filter(u8::is_ascii_digit).count();
            assert!(digits < 2, "{masked}");
        }
        assert_eq!(
            hide("error 131031 (code 4711)", written_numbers),
            "error 131031 (code 4711)"
        );
    }

    #[test]
    fn an_id_that_is_the_number_itself_and_texts_that_name_it_are_masked() {
        assert_eq!(mask("16505551234"), "***********");
        assert_eq!(
            mask("1650555123499999999"),
            "*******************",
            "another number in front of it or behind"
        );
        assert_eq!(mask("wamid.1"), "wamid.1");
        assert_eq!(mask("ж16505551234ж"), "ж***********ж");
        let people = names("+1 650 555 1234");
        assert_eq!(
            hide("for 16505551234, order 99887766", |b| occurrences(
                b, &people
            )),
            "for ***********, order 99887766"
        );
    }
}
