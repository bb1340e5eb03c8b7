//! Meta's webhook signature: `X-Hub-Signature-256: sha256=<hex>`, an HMAC-SHA256 of the raw body
//! with the app secret as key
//! ([Meta: create a webhook endpoint](https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/create-webhook-endpoint)).
//!
//! Meta signs the bytes on the wire, escapes and white space included. JSON that is parsed and
//! written again has other bytes and another signature, so everything here works on bytes, never on
//! parsed JSON.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// The name of the header that carries the signature, in lower case.
pub const SIGNATURE_HEADER: &str = "x-hub-signature-256";

/// A well-formed signature that is not yet [verified](Verifier::verify).
#[derive(Debug, Clone, Copy)]
pub struct Signature([u8; 32]);

/// The error for a header that is not a well-formed signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not `sha256=` followed by 64 hexadecimal digits")]
pub struct MalformedSignature;

impl Signature {
    /// Parses the value of the header. Upper case digits are accepted.
    ///
    /// # Errors
    /// The value is not `sha256=` and 64 hexadecimal digits.
    pub fn parse(header: &[u8]) -> Result<Self, MalformedSignature> {
        let digits = header.strip_prefix(b"sha256=").ok_or(MalformedSignature)?;
        let mut mac = [0; 32];
        hex::decode_to_slice(digits, &mut mac).map_err(|_| MalformedSignature)?;
        Ok(Self(mac))
    }
}

impl fmt::Display for Signature {
    /// Writes the value of the header, in lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256={}", hex::encode(self.0))
    }
}

/// Verifies signatures against one or more app secrets.
///
/// There are several while a secret is rotated, or if several apps share the webhook's URL.
#[derive(Debug, Clone)]
pub struct Verifier {
    keys: Vec<Hmac<Sha256>>,
}

impl Verifier {
    /// Prepares the secrets. They are tried in this order.
    #[must_use]
    pub fn new(app_secrets: &[SecretString]) -> Self {
        Self {
            keys: app_secrets
                .iter()
                .map(|secret| hmac_with_key(secret.expose_secret()))
                .collect(),
        }
    }

    /// Returns the index of the secret that signed `body`, if one did.
    ///
    /// Each comparison takes constant time.
    #[must_use]
    pub fn verify(&self, body: &[u8], signature: &Signature) -> Option<usize> {
        self.keys.iter().position(|key| {
            key.clone()
                .chain_update(body)
                .verify_slice(&signature.0)
                .is_ok()
        })
    }
}

/// Signs a body as Meta does. Returns the value of [`SIGNATURE_HEADER`].
///
/// ```
/// let body = br#"{"object":"whatsapp_business_account","entry":[]}"#;
/// assert_eq!(
///     lockwatch::meta::signature::sign("test_app_secret", body),
///     "sha256=dec6a680679a968e7e0319355b23599cbfc54502c0784668e9618baa0c633756",
/// );
/// ```
#[must_use]
pub fn sign(app_secret: &str, body: &[u8]) -> String {
    format!("sha256={}", hmac_hex(app_secret, body))
}

/// Returns Meta's `appsecret_proof`, which proves that the sender of an access token also knows the
/// app secret: the HMAC-SHA256 of the token with the app secret as key, in hexadecimal
/// ([Meta: secure requests](https://developers.facebook.com/docs/graph-api/guides/secure-requests)).
#[must_use]
pub fn appsecret_proof(app_secret: &str, access_token: &str) -> String {
    hmac_hex(app_secret, access_token.as_bytes())
}

fn hmac_hex(key: &str, message: &[u8]) -> String {
    let mac = hmac_with_key(key).chain_update(message);
    hex::encode(mac.finalize().into_bytes())
}

fn hmac_with_key(key: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPACT: &[u8] = br#"{"object":"whatsapp_business_account","entry":[]}"#;
    const SPACED: &[u8] = br#"{"object": "whatsapp_business_account", "entry": []}"#;

    fn verify(secrets: &[&str], body: &[u8], signature: &Signature) -> Option<usize> {
        let secrets: Vec<_> = secrets.iter().map(|s| SecretString::from(*s)).collect();
        Verifier::new(&secrets).verify(body, signature)
    }

    #[test]
    fn known_signatures_match() {
        assert_eq!(
            sign("test_app_secret", SPACED),
            "sha256=56cbbaf4961c6cfdae48b7f116c047e5eb513d2c931baae63a2bc1afd26f803a"
        );
        let signature = Signature::parse(sign("test_app_secret", COMPACT).as_bytes()).unwrap();
        assert_eq!(verify(&["test_app_secret"], COMPACT, &signature), Some(0));
        assert_eq!(verify(&["test_app_secret"], SPACED, &signature), None);
    }

    #[test]
    fn verify_returns_the_index_of_the_secret() {
        let signature = Signature::parse(sign("second", COMPACT).as_bytes()).unwrap();
        assert_eq!(verify(&["first", "second"], COMPACT, &signature), Some(1));
        assert_eq!(verify(&["first", "third"], COMPACT, &signature), None);
    }

    #[test]
    fn only_64_hexadecimal_digits_are_well_formed() {
        let hex64 = "a".repeat(64);
        for header in [
            String::new(),
            "sha256=".into(),
            hex64.clone(),
            format!("sha1={hex64}"),
            format!("SHA256={hex64}"),
            format!("sha256={}", &hex64[1..]),
            format!("sha256={hex64}a"),
            format!("sha256= {hex64}"),
            format!("sha256={hex64} "),
            format!("sha256={}é", &hex64[2..]),
            format!("sha256={}", "g".repeat(64)),
        ] {
            assert_eq!(
                Signature::parse(header.as_bytes()).err(),
                Some(MalformedSignature),
                "{header}"
            );
        }
        assert!(Signature::parse(format!("sha256={}", "A".repeat(64)).as_bytes()).is_ok());
    }
}
