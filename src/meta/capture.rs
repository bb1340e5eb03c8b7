//! Captures: callbacks as files, byte for byte.
//!
//! A capture file (`.jsonl`) holds one JSON object per line:
//!
//! ```json
//! {"v":1,"received_at":"2026-11-22T18:24:05.123456Z","method":"POST","path":"/webhook","headers":{"x-hub-signature-256":"sha256=…"},"body":"{\"object\":…}","body_sha256":"9f86…"}
//! ```
//!
//! | field | |
//! | --- | --- |
//! | `v` | the format's version, 1 |
//! | `received_at` | when the callback came first, RFC 3339; may be missing |
//! | `method`, `path` | `POST` and the path; both may be missing |
//! | `headers` | those that matter: the signature as Meta sent it, where it is known |
//! | `body` | the body, if it is UTF-8 |
//! | `body_base64` | the body otherwise |
//! | `redacted` | `true` where [recipients are pseudonyms](super::redact); otherwise missing |
//! | `body_sha256` | its SHA-256 in hexadecimal; may be missing. If it does not fit, the line is refused |
//!
//! A line may also be a bare callback, `{"object":…,"entry":[…]}`, as people find it in logs; it is then
//! the body itself, without the line's end. A file that does not start with either kind of line is taken
//! as one bare callback, every byte of it ([`Capture::from_bare`]).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::json::{fields, integer, readable};
use super::signature;

/// The version of the format that is written and read here.
const VERSION: i64 = 1;
const WEBHOOK: &str = "/webhook";

/// A callback to keep or to play back.
///
/// ```
/// use lockwatch::meta::capture::Capture;
///
/// // Odd white space, escapes, a newline at the end: all of it is what Meta signed.
/// let capture = Capture::from_body(&b"{ \"entry\":[], \"name\":\"\\u00e4\\/\" }\n"[..]);
/// let line = capture.to_line();
/// assert!(!line.contains('\n'));
/// assert_eq!(Capture::from_line(line.as_bytes()).unwrap(), capture);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// When it came first, where that is known.
    pub received_at: Option<OffsetDateTime>,
    /// The path it was posted to.
    pub path: String,
    /// The headers that matter, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Bytes,
    /// Whether people in it have [pseudonyms](super::redact).
    pub redacted: bool,
}

/// Why something is not a capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It is not JSON: what is wrong, and where in the text, counted from 1.
    #[error("not JSON: {what} (column {column})")]
    #[allow(missing_docs, reason = "said above")]
    NotJson {
        what: String,
        line: usize,
        column: usize,
    },
    /// It is JSON of another kind.
    #[error("neither a capture (an object with `v`) nor a callback (an object with `entry`)")]
    Neither,
    /// It is a capture with a field that cannot be used.
    #[error("a capture that cannot be read: {0}")]
    Field(String),
    /// It is a capture of a later version.
    #[error("a capture of version {0}: this lockwatch reads version 1")]
    Version(i64),
    /// The body is not the one that was kept.
    #[error("the body does not fit its body_sha256: the line was changed")]
    Changed,
}

impl CaptureError {
    /// The line of the text that the error is about, from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        match self {
            Self::NotJson { line, .. } => (*line).max(1),
            Self::Neither | Self::Field(_) | Self::Version(_) | Self::Changed => 1,
        }
    }
}

impl Capture {
    /// A capture of a body about which nothing else is known.
    #[must_use]
    pub fn from_body(body: impl Into<Bytes>) -> Self {
        Self {
            received_at: None,
            path: WEBHOOK.to_owned(),
            headers: BTreeMap::new(),
            body: body.into(),
            redacted: false,
        }
    }

    /// A bare callback, as people paste it from logs or from Meta's documentation. The body is every byte.
    ///
    /// # Errors
    /// It is not a JSON object with `entry`.
    pub fn from_bare(text: &[u8]) -> Result<Self, CaptureError> {
        serde_json::from_slice::<&RawValue>(text).map_err(|error| not_json(&error))?;
        match fields(&readable(text), ["entry"]) {
            Some([Some(_)]) => Ok(Self::from_body(Bytes::copy_from_slice(text))),
            _ => Err(CaptureError::Neither),
        }
    }

    /// Reads one line of a capture file: a capture or a bare callback, without the line's end.
    ///
    /// # Errors
    /// It is neither, or damaged.
    pub fn from_line(line: &[u8]) -> Result<Self, CaptureError> {
        let text = readable(line);
        let Some(fields) = capture_fields(&text) else {
            return Self::from_bare(line);
        };
        if let Some(v) = fields[0].and_then(integer).filter(|v| *v != VERSION) {
            return Err(CaptureError::Version(v));
        }
        let line: Line = serde_json::from_slice(line).map_err(|error| field(&error))?;
        if !line.method.eq_ignore_ascii_case("POST") {
            return Err(CaptureError::Field(format!(
                "the method is {}, callbacks are POSTed",
                line.method
            )));
        }
        if line
            .received_at
            .is_some_and(|at| !(1970..=2200).contains(&at.year()))
        {
            return Err(CaptureError::Field(
                "received_at is not of these times".to_owned(),
            ));
        }
        let body = match (line.body, line.body_base64) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(text)) => BASE64
                .decode(text)
                .map_err(|error| CaptureError::Field(format!("body_base64: {error}")))?
                .into(),
            _ => {
                return Err(CaptureError::Field(
                    "it needs either `body` or `body_base64`".to_owned(),
                ));
            }
        };
        if line
            .body_sha256
            .is_some_and(|digest| !digest.eq_ignore_ascii_case(&digest_hex(&body)))
        {
            return Err(CaptureError::Changed);
        }
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

    /// Writes the line of a capture file, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        let text = std::str::from_utf8(&self.body).ok();
        let line = Line {
            v: VERSION,
            received_at: self.received_at,
            method: "POST".to_owned(),
            path: self.path.clone(),
            headers: self.headers.clone(),
            redacted: self.redacted,
            body: text.map(str::to_owned),
            body_base64: text.is_none().then(|| BASE64.encode(&self.body)),
            body_sha256: Some(digest_hex(&self.body)),
        };
        serde_json::to_string(&line).expect("texts and numbers are always JSON")
    }

    /// The signature as it came, where it is known.
    #[must_use]
    pub fn signature(&self) -> Option<&str> {
        self.headers.get(signature::HEADER).map(String::as_str)
    }

    /// The name of a file for this capture alone: when it came, and the start of its digest.
    #[must_use]
    pub fn file_name(&self) -> String {
        let digest = &digest_hex(&self.body)[..16];
        let format =
            time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
        let at = self
            .received_at
            .and_then(|at| at.to_offset(time::UtcOffset::UTC).format(format).ok());
        format!(
            "{}{digest}.jsonl",
            at.map(|at| at + "_").unwrap_or_default()
        )
    }
}

/// Whether a line is meant as a capture, readable or not: an object with `v`, or with one of the fields
/// that only captures have.
#[must_use]
pub fn is_capture(line: &[u8]) -> bool {
    capture_fields(&readable(line)).is_some()
}

/// `v` and the rest of them, if there is any.
fn capture_fields(text: &str) -> Option<[Option<&RawValue>; 4]> {
    fields(text, ["v", "body", "body_base64", "body_sha256"])
        .filter(|found| found.iter().any(Option::is_some))
}

#[derive(Serialize, Deserialize)]
struct Line {
    v: i64,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    received_at: Option<OffsetDateTime>,
    #[serde(default = "post")]
    method: String,
    #[serde(default = "webhook")]
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

fn post() -> String {
    "POST".to_owned()
}

fn webhook() -> String {
    WEBHOOK.to_owned()
}

fn digest_hex(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

fn not_json(error: &serde_json::Error) -> CaptureError {
    CaptureError::NotJson {
        what: without_place(error),
        line: error.line(),
        column: error.column(),
    }
}

fn field(error: &serde_json::Error) -> CaptureError {
    CaptureError::Field(without_place(error))
}

/// The lines that serde counts are those of a single line.
fn without_place(error: &serde_json::Error) -> String {
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
    fn every_body_survives_bit_for_bit() {
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
    fn a_line_says_all_that_is_known() {
        let mut capture = Capture::from_body(&b"{}"[..]);
        capture.received_at = Some(time::macros::datetime!(2026-11-22 18:24:05.25 UTC));
        capture
            .headers
            .insert("x-hub-signature-256".to_owned(), "sha256=00".to_owned());
        let line = r#"{"v":1,"received_at":"2026-11-22T18:24:05.25Z","method":"POST","path":"/webhook","headers":{"x-hub-signature-256":"sha256=00"},"body":"{}","body_sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}"#;
        assert_eq!(capture.to_line(), line);
        assert_eq!(
            capture.file_name(),
            "20261122T182405Z_44136fa355b3678a.jsonl"
        );
        assert_eq!(
            Capture::from_line(line.replace("x-hub", "X-Hub").as_bytes())
                .unwrap()
                .signature(),
            Some("sha256=00")
        );
    }

    #[test]
    fn bare_callbacks_are_bodies_as_they_stand() {
        let pasted = b"{\n  \"entry\": []\n}\n";
        assert_eq!(Capture::from_bare(pasted).unwrap().body, &pasted[..]);
        let line = br#"{"object":"whatsapp_business_account","entry":[]}"#;
        assert_eq!(
            Capture::from_line(line).unwrap(),
            Capture::from_body(&line[..])
        );
    }

    #[test]
    fn what_is_no_capture_is_refused_with_a_reason() {
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
                "a capture that cannot be read: received_at is not of these times",
            ),
        ] {
            let error = Capture::from_line(line.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{line}: {error}");
        }
    }
}
