//! The account that a callback begins with, read without parsing the rest.

use super::ids::WabaId;

/// Returns the account of the first entry, where the body begins as Meta's do:
/// `{"object":"…","entry":[{"id":"…"`. Anything else is `None`: this is for counting, not for rules.
#[must_use]
pub fn first_account(body: &[u8]) -> Option<WabaId> {
    let rest = open(body, b'{')?;
    let (name, rest) = string(rest)?;
    let rest = match name {
        b"object" => {
            let (_, rest) = string(open(rest, b':')?)?;
            let (name, rest) = string(open(rest, b',')?)?;
            (name == b"entry").then_some(rest)?
        }
        b"entry" => rest,
        _ => return None,
    };
    let rest = open(open(open(rest, b':')?, b'[')?, b'{')?;
    let (name, rest) = string(rest)?;
    let (id, _) = string(open(rest, b':').filter(|_| name == b"id")?)?;
    // Meta's test numbers have no account.
    let is_account = id.iter().all(u8::is_ascii_digit) && id != b"0";
    WabaId::parse(std::str::from_utf8(id).ok().filter(|_| is_account)?).ok()
}

/// Returns what follows a character, after white space.
fn open(text: &[u8], character: u8) -> Option<&[u8]> {
    text.trim_ascii_start().strip_prefix(&[character])
}

/// Returns a string without escapes, and what follows it.
fn string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = open(text, b'"')?;
    let end = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
    (rest[end] == b'"').then(|| (&rest[..end], &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_read_off_the_start() {
        for (body, account) in [
            (
                r#"{"object":"whatsapp_business_account","entry":[{"id":"1022","#,
                Some("1022"),
            ),
            ("{ \"entry\" : [\n{ \"id\" : \"1022\" , \"x", Some("1022")),
            (
                r#"{"object":"whatsapp_business_account","entry":[{"id":"0","#,
                None,
            ),
            (
                r#"{"object":"whatsapp_business_account","entry":[{"changes":[{"id":"7""#,
                None,
            ),
            (r#"{"object":"a\"b","entry":[{"id":"1022""#, None),
            (
                r#"{"object":"whatsapp_business_account","entry":[{"id":1022"#,
                None,
            ),
            ("", None),
            ("[", None),
            (r#"{"entry":[{"id":"10 22""#, None),
        ] {
            let read = first_account(body.as_bytes());
            assert_eq!(read.as_ref().map(WabaId::as_str), account, "{body}");
        }
    }
}
