//! Captures: a file format that keeps callbacks byte for byte.
//!
//! A capture file (`.jsonl`) holds one JSON object per line:
//!
//! ```json
//! {"v":1,"received_at":"2026-11-22T18:24:05.123456Z","method":"POST","path":"/webhook","headers":{"x-hub-signature-256":"sha256=…"},"body":"{\"object\":…}","body_sha256":"9f86…"}
//! ```
//!
//! | field | meaning |
//! | --- | --- |
//! | `v` | the version of the format, 1 |
//! | `received_at` | the time of the first arrival, RFC 3339; may be missing |
//! | `method`, `path` | `POST` and the path; both may be missing |
//! | `headers` | the signature header as Meta sent it, if it is known |
//! | `body` | the body, if it is UTF-8 |
//! | `body_base64` | the body in base64, if it is not UTF-8 |
//! | `redacted` | `true` if the body is [redacted](super::redact), else missing |
//! | `body_sha256` | the body's SHA-256 in hexadecimal, checked; may be missing |
//!
//! A line may also be a bare callback, `{"object":…,"entry":[…]}`, as found in logs. Then the line
//! is the body, without the line break at its end. A file that starts with neither kind of line is
//! read as one bare callback, and every byte of it is the body ([`Capture::from_bare`]).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::json::{fields, integer, repair_text};
use super::signature;

/// The version of the format that is written and read here.
const FORMAT_VERSION: i64 = 1;
/// The path of a capture that names none.
const DEFAULT_PATH: &str = "/webhook";

/// A callback that is kept, or that can be replayed.
///
/// ```
/// use lockwatch::meta::capture::Capture;
///
/// // Meta signed every byte: white space, escapes and the line break.
/// let capture = Capture::from_body(&b"{ \"entry\":[], \"name\":\"\\u00e4\\/\" }\n"[..]);
/// let line = capture.to_line();
/// assert!(!line.contains('\n'));
/// assert_eq!(Capture::from_line(line.as_bytes()).unwrap(), capture);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The time at which the callback first arrived, if it is known.
    pub received_at: Option<OffsetDateTime>,
    /// The path to which it was posted.
    pub path: String,
    /// The headers that matter, with their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Bytes,
    /// True if the people in the body are [redacted](super::redact).
    pub redacted: bool,
}

/// The reason why a text is not a capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The text is not JSON.
    #[error("not JSON: {reason} (column {column})")]
    NotJson {
        /// The parser's message.
        reason: String,
        /// The line of the error, counted from 1; 0 if there is none.
        line: usize,
        /// The column of the error, counted from 1; 0 if there is none.
        column: usize,
    },
    /// The text is JSON, but neither a capture nor a callback.
    #[error("neither a capture (an object with `v`) nor a callback (an object with `entry`)")]
    OtherJson,
    /// A field of the capture is missing or invalid.
    #[error("a capture that cannot be read: {0}")]
    InvalidField(String),
    /// The capture has another version of the format.
    #[error("a capture of version {0}: this lockwatch reads version 1")]
    UnsupportedVersion(i64),
    /// The body does not match its `body_sha256`.
    #[error("the body does not fit its body_sha256: the line was changed")]
    DigestMismatch,
}

impl CaptureError {
    /// Returns the line of the error in the text, counted from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        match self {
            Self::NotJson { line, .. } => (*line).max(1),
            Self::OtherJson
            | Self::InvalidField(_)
            | Self::UnsupportedVersion(_)
            | Self::DigestMismatch => 1,
        }
    }
}

impl Capture {
    /// Makes a capture from a body about which nothing else is known.
    #[must_use]
    pub fn from_body(body: impl Into<Bytes>) -> Self {
        Self {
            received_at: None,
            path: DEFAULT_PATH.to_owned(),
            headers: BTreeMap::new(),
            body: body.into(),
            redacted: false,
        }
    }

    /// Makes a capture from a bare callback, as copied from logs or examples. Every byte of `text`
    /// is the body.
    ///
    /// # Errors
    /// The text is not a JSON object with `entry`.
    pub fn from_bare(text: &[u8]) -> Result<Self, CaptureError> {
        serde_json::from_slice::<&RawValue>(text).map_err(|error| not_json(&error))?;
        match fields(&repair_text(text), ["entry"]) {
            Some([Some(_)]) => Ok(Self::from_body(Bytes::copy_from_slice(text))),
            _ => Err(CaptureError::OtherJson),
        }
    }

    /// Parses a line of a capture file, given without the line break.
    ///
    /// # Errors
    /// The line is neither a capture nor a callback, or it is invalid.
    pub fn from_line(line: &[u8]) -> Result<Self, CaptureError> {
        let text = repair_text(line);
        let Some(fields) = capture_fields(&text) else {
            return Self::from_bare(line);
        };
        if let Some(v) = fields[0].and_then(integer).filter(|v| *v != FORMAT_VERSION) {
            return Err(CaptureError::UnsupportedVersion(v));
        }
        let mut line: CaptureLine = serde_json::from_slice(line)
            .map_err(|error| CaptureError::InvalidField(message_without_position(&error)))?;
        line.check_origin()?;
        let body = line.decode_body()?;
        let headers = line
            .headers
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        Ok(Self {
            received_at: line.received_at,
            path: line.path,
            headers,
            body,
            redacted: line.redacted,
        })
    }

    /// Returns the line for a capture file, without the line break.
    #[must_use]
    pub fn to_line(&self) -> String {
        let text = std::str::from_utf8(&self.body).ok();
        let line = CaptureLine {
            v: FORMAT_VERSION,
            received_at: self.received_at,
            method: default_method(),
            path: self.path.clone(),
            headers: self.headers.clone(),
            redacted: self.redacted,
            body: text.map(str::to_owned),
            body_base64: text.is_none().then(|| BASE64.encode(&self.body)),
            body_sha256: Some(digest_hex(&self.body)),
        };
        serde_json::to_string(&line).expect("texts and numbers are always JSON")
    }

    /// Returns the signature header as Meta sent it, if it is known.
    #[must_use]
    pub fn signature(&self) -> Option<&str> {
        self.headers
            .get(signature::SIGNATURE_HEADER)
            .map(String::as_str)
    }

    /// Returns a unique file name.
    ///
    /// It is the time of arrival (in UTC, if it is known) and the first 16 hexadecimal digits of
    /// the body's SHA-256.
    #[must_use]
    pub fn file_name(&self) -> String {
        let digest = &digest_hex(&self.body)[..16];
        let format =
            time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
        let time = self
            .received_at
            .and_then(|at| at.to_offset(time::UtcOffset::UTC).format(format).ok());
        match time {
            Some(time) => format!("{time}_{digest}.jsonl"),
            None => format!("{digest}.jsonl"),
        }
    }
}

/// Returns whether a line is meant as a capture, valid or not: a JSON object with `v`, `body`,
/// `body_base64` or `body_sha256`.
#[must_use]
pub fn has_capture_fields(line: &[u8]) -> bool {
    capture_fields(&repair_text(line)).is_some()
}

/// Returns the fields that only captures have, `v` first, if there are any.
fn capture_fields(text: &str) -> Option<[Option<&RawValue>; 4]> {
    fields(text, ["v", "body", "body_base64", "body_sha256"])
        .filter(|found| found.iter().any(Option::is_some))
}

#[derive(Serialize, Deserialize)]
struct CaptureLine {
    v: i64,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    received_at: Option<OffsetDateTime>,
    #[serde(default = "default_method")]
    method: String,
    #[serde(default = "default_path")]
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    redacted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_sha256: Option<String>,
}

impl CaptureLine {
    /// Checks the method, and that the time is between 1970 and 2200.
    fn check_origin(&self) -> Result<(), CaptureError> {
        if !self.method.eq_ignore_ascii_case("POST") {
            return Err(CaptureError::InvalidField(format!(
                "the method is {}, callbacks are POSTed",
                self.method
            )));
        }
        let year = self.received_at.map(OffsetDateTime::year);
        if year.is_some_and(|year| !(1970..=2200).contains(&year)) {
            let reason = "received_at is not between 1970 and 2200";
            return Err(CaptureError::InvalidField(reason.to_owned()));
        }
        Ok(())
    }

    /// Takes the body out of the line and checks its digest.
    fn decode_body(&mut self) -> Result<Bytes, CaptureError> {
        let body = match (self.body.take(), self.body_base64.take()) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(text)) => BASE64
                .decode(text)
                .map_err(|error| CaptureError::InvalidField(format!("body_base64: {error}")))?
                .into(),
            _ => {
                let reason = "it needs either `body` or `body_base64`";
                return Err(CaptureError::InvalidField(reason.to_owned()));
            }
        };
        let digest = self.body_sha256.as_deref();
        if digest.is_some_and(|digest| !digest.eq_ignore_ascii_case(&digest_hex(&body))) {
            return Err(CaptureError::DigestMismatch);
        }
        Ok(body)
    }
}

fn default_method() -> String {
    "POST".to_owned()
}

fn default_path() -> String {
    DEFAULT_PATH.to_owned()
}

fn digest_hex(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

fn not_json(error: &serde_json::Error) -> CaptureError {
    CaptureError::NotJson {
        reason: message_without_position(error),
        line: error.line(),
        column: error.column(),
    }
}

/// Returns the message of a parser error without its position.
///
/// The parser sees a single line, so its line number would mislead.
fn message_without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ")
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_is_kept_byte_for_byte() {
        let bodies: [&[u8]; 6] = [
            b"",
            br#"{ "a" : "\u00e4 \/ \ud83d\udc4d",	"b":1.50 }"#,
            b"{\"entry\":[]}\r\n",
            "{\"a\":\"\u{e4}\u{2028}\u{0}\"}".as_bytes(),
            b"\xff\xfe{",
            b"\xef\xbb\xbf{}",
        ];
        for body in bodies {
            let capture = Capture::from_body(body);
            let line = capture.to_line();
            assert!(!line.contains(['\n', '\r']), "{line}");
            assert_eq!(Capture::from_line(line.as_bytes()).unwrap(), capture);
        }
    }

    #[test]
    fn a_line_has_every_known_field() {
        let mut capture = Capture::from_body(&b"{}"[..]);
        capture.received_at = Some(time::macros::datetime!(2026-11-22 18:24:05.25 UTC));
        capture
            .headers
            .insert("x-hub-signature-256".to_owned(), "sha256=00".to_owned());
        let line = concat!(
            r#"{"v":1,"received_at":"2026-11-22T18:24:05.25Z","method":"POST","path":"/webhook","#,
            r#""headers":{"x-hub-signature-256":"sha256=00"},"body":"{}","body_sha256":"#,
            r#""44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}"#,
        );
        assert_eq!(capture.to_line(), line);
        assert_eq!(
            capture.file_name(),
            "20261122T182405Z_44136fa355b3678a.jsonl"
        );
        let other_case = line.replace("x-hub", "X-Hub");
        let parsed = Capture::from_line(other_case.as_bytes()).unwrap();
        assert_eq!(parsed.signature(), Some("sha256=00"));
    }

    #[test]
    fn a_bare_callback_is_kept_byte_for_byte() {
        let pasted = b"{\n  \"entry\": []\n}\n";
        assert_eq!(Capture::from_bare(pasted).unwrap().body, &pasted[..]);
        let line = br#"{"object":"whatsapp_business_account","entry":[]}"#;
        assert_eq!(
            Capture::from_line(line).unwrap(),
            Capture::from_body(&line[..])
        );
    }

    #[test]
    fn an_invalid_capture_is_refused_with_a_reason() {
        for (line, reason) in [
            ("", "not JSON: EOF while parsing a value (column 0)"),
            (
                "{\"v\":1",
                "not JSON: EOF while parsing an object (column 6)",
            ),
            ("hello", "not JSON: expected value (column 1)"),
            (
                "[]",
                "neither a capture (an object with `v`) nor a callback (an object with `entry`)",
            ),
            (
                "{\"entry\":null}",
                "neither a capture (an object with `v`) nor a callback (an object with `entry`)",
            ),
            (
                "{\"v\":2,\"body\":\"\"}",
                "a capture of version 2: this lockwatch reads version 1",
            ),
            (
                "{\"v\":1}",
                "a capture that cannot be read: it needs either `body` or `body_base64`",
            ),
            (
                "{\"body\":\"\"}",
                "a capture that cannot be read: missing field `v`",
            ),
            (
                "{\"v\":1,\"body\":{}}",
                "a capture that cannot be read: invalid type: map, expected a string",
            ),
            (
                "{\"v\":1,\"body_base64\":\"%\"}",
                "a capture that cannot be read: body_base64: ",
            ),
            (
                "{\"v\":1,\"body\":\"\",\"method\":\"GET\"}",
                "a capture that cannot be read: the method is GET, callbacks are POSTed",
            ),
            (
                "{\"v\":1,\"body\":\"\",\"body_sha256\":\"00\"}",
                "the body does not fit its body_sha256: the line was changed",
            ),
            (
                "{\"v\":1,\"body\":\"\",\"received_at\":\"soon\"}",
                "a capture that cannot be read: ",
            ),
            (
                "{\"v\":1,\"body\":\"\",\"received_at\":\"0001-01-01T00:00:00Z\"}",
                "a capture that cannot be read: received_at is not between 1970 and 2200",
            ),
        ] {
            let error = Capture::from_line(line.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{line}: {error}");
        }
    }
}
