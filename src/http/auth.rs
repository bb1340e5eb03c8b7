//! Who gets in on the admin listener.
//!
//! With a token: whoever sends it, as `Authorization: Bearer`, or as the password of HTTP Basic, which is
//! what a browser asks for. Without one the listener is on a loopback address, and a page of somebody else's
//! could still reach it through a name of its own that resolves to it (DNS rebinding): the `Host` must be a
//! loopback one. Browsers send credentials by themselves, so what changes state must come from our own
//! pages, or from no browser at all.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tower_http::csrf::ProtectionError;

use super::error::Problem;

/// Lets in who may come in.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    /// The token's SHA-256: compared in constant time whatever its length.
    token: Option<Arc<[u8; 32]>>,
}

impl Guard {
    pub(super) fn new(token: Option<&SecretString>) -> Self {
        Self {
            token: token.map(|token| Arc::new(Sha256::digest(token.expose_secret()).into())),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        match &self.token {
            Some(token) => {
                let given = credentials(request.headers()).ok_or(Refusal::NoToken)?;
                let is_right = <[u8; 32]>::from(Sha256::digest(given)).ct_eq(token.as_ref());
                if bool::from(is_right) {
                    Ok(())
                } else {
                    Err(Refusal::WrongToken)
                }
            }
            None if is_local(request) => Ok(()),
            None => Err(Refusal::Host),
        }
    }
}

enum Refusal {
    NoToken,
    WrongToken,
    Host,
}

pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(Refusal::Host) => {
            let detail = "without LOCKWATCH_ADMIN_TOKEN this is only served as localhost, 127.0.0.1 or [::1]";
            Problem::new(StatusCode::FORBIDDEN, detail).into_response()
        }
        Err(refused) => {
            let detail = match refused {
                Refusal::NoToken => {
                    "give LOCKWATCH_ADMIN_TOKEN as Authorization: Bearer, or as a browser's password"
                }
                Refusal::WrongToken | Refusal::Host => "that is not LOCKWATCH_ADMIN_TOKEN",
            };
            let mut response = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
            let challenge = HeaderValue::from_static(
                "Basic realm=\"Lockwatch: any user, the token as password\", charset=\"UTF-8\"",
            );
            response
                .headers_mut()
                .append(header::WWW_AUTHENTICATE, challenge);
            response
                .headers_mut()
                .append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

/// The one token in the one header.
fn credentials(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let value = value.as_bytes();
    let (scheme, rest) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
    let rest = rest.trim_ascii();
    match scheme.to_ascii_lowercase().as_slice() {
        b"bearer" => Some(rest.to_vec()),
        b"basic" => {
            let pair = BASE64_STANDARD.decode(rest).ok()?;
            let colon = pair.iter().position(|byte| *byte == b':')?;
            Some(pair[colon + 1..].to_vec())
        }
        _ => None,
    }
}

/// Whether a request names this machine, and nothing that merely resolves to it.
fn is_local(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let is_local = |authority: &Authority| {
        let host = authority.host();
        !authority.as_str().contains('@')
            && (host.eq_ignore_ascii_case("localhost") || ["127.0.0.1", "[::1]"].contains(&host))
    };
    let named = Authority::try_from(host.as_bytes()).is_ok_and(|host| is_local(&host));
    named && request.uri().authority().is_none_or(is_local)
}

/// A state change that a page of somebody else's asked a browser for.
pub(super) fn cross_site(_: ProtectionError) -> Response {
    let detail = "this change was asked for by another site's page, or the browser does not say by whose: \
                  use Lockwatch's own page, over HTTPS or on localhost, or the command line";
    Problem::new(StatusCode::FORBIDDEN, detail).into_response()
}

/// What every answer of the admin listener carries.
pub(super) async fn add_security_headers(request: Request, next: Next) -> Response {
    const CSP: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                       form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CSP),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn without_a_token_only_a_loopback_host_gets_in() {
        let guard = Guard::new(None);
        for host in [
            "localhost",
            "localhost:8081",
            "LOCALHOST:1",
            "127.0.0.1",
            "127.0.0.1:65535",
            "[::1]",
            "[::1]:80",
        ] {
            assert!(guard.check(&request(&[("host", host)])).is_ok(), "{host}");
        }
        for host in [
            "",
            "localhost.evil.example",
            "evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.2",
            "0.0.0.0",
            "[::]",
            "localhost@evil.example",
            "evil@localhost",
            "::1",
            "localhost:80:80",
            "localhost/",
            "localhost ",
        ] {
            assert!(
                guard.check(&request(&[("host", host)])).is_err(),
                "{host:?}"
            );
        }
        assert!(guard.check(&request(&[])).is_err(), "none");
        assert!(
            guard
                .check(&request(&[("host", "localhost"), ("host", "evil.example")]))
                .is_err(),
            "two"
        );
        let absolute = Request::builder()
            .uri("http://evil.example/")
            .header("host", "localhost");
        assert!(
            guard.check(&absolute.body(Body::empty()).unwrap()).is_err(),
            "another in the target"
        );
    }

    #[test]
    fn with_a_token_it_must_be_given_whole_and_once() {
        let guard = Guard::new(Some(&"s3cret:token".into()));
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        for good in [
            "Bearer s3cret:token",
            "bearer  s3cret:token",
            &basic("any:s3cret:token"),
            &basic(":s3cret:token"),
        ] {
            assert!(
                guard
                    .check(&request(&[
                        ("authorization", good),
                        ("host", "evil.example")
                    ]))
                    .is_ok(),
                "{good}"
            );
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer s3cret",
            "Bearer s3cret:token2",
            "Digest s3cret:token",
            "s3cret:token",
            "Basic s3cret:token",
            &basic("s3cret:token"),
            &basic("any:"),
            &basic("any"),
        ] {
            assert!(
                guard
                    .check(&request(&[("authorization", bad), ("host", "localhost")]))
                    .is_err(),
                "{bad:?}"
            );
        }
        assert!(
            guard.check(&request(&[("host", "localhost")])).is_err(),
            "none"
        );
        let twice = [
            ("authorization", "Bearer s3cret:token"),
            ("authorization", "Bearer s3cret:token"),
        ];
        assert!(guard.check(&request(&twice)).is_err(), "two");
    }
}
