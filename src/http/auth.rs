//! Access to the admin listener.
//!
//! With a token, a request must carry it: as `Authorization: Bearer`, or as the password of HTTP
//! Basic, for which a browser asks. Without one, the listener is on a loopback address, but another
//! site's page could still reach it through a host name that resolves to it (DNS rebinding): the
//! `Host` must be a loopback one. Browsers send credentials by themselves, so a request that
//! changes something must come from our own pages, or not from a browser at all.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tower_http::csrf::ProtectionError;

use super::error::Problem;
use crate::lockout::person::Person;

/// The check that a request must pass.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    /// The token's SHA-256, so that the comparison takes the same time for every length.
    token: Option<Arc<[u8; 32]>>,
}

/// The reason for which a request is refused.
enum AccessError {
    MissingToken,
    WrongToken,
    ForeignHost,
}

impl Guard {
    pub(super) fn new(token: Option<&SecretString>) -> Self {
        let digest = token.map(|token| Sha256::digest(token.expose_secret()));
        Self {
            token: digest.map(|digest| Arc::new(digest.into())),
        }
    }

    fn check(&self, request: &Request) -> Result<(), AccessError> {
        let Some(token) = &self.token else {
            return if has_loopback_host(request) {
                Ok(())
            } else {
                Err(AccessError::ForeignHost)
            };
        };
        let (_, sent) = sent_credentials(request.headers()).ok_or(AccessError::MissingToken)?;
        let digest = <[u8; 32]>::from(Sha256::digest(sent));
        if bool::from(digest.ct_eq(token.as_ref())) {
            Ok(())
        } else {
            Err(AccessError::WrongToken)
        }
    }
}

/// Middleware: lets through the requests that the guard accepts.
pub(super) async fn require_access(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Response {
    match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

impl IntoResponse for AccessError {
    fn into_response(self) -> Response {
        const BASIC: &str =
            "Basic realm=\"Lockwatch: any user, the token as password\", charset=\"UTF-8\"";
        let (status, detail) = match self {
            Self::ForeignHost => (
                StatusCode::FORBIDDEN,
                "without LOCKWATCH_ADMIN_TOKEN only the hosts localhost, 127.0.0.1 and [::1] \
                 are served",
            ),
            Self::MissingToken => (
                StatusCode::UNAUTHORIZED,
                "send LOCKWATCH_ADMIN_TOKEN as Authorization: Bearer, or as the password in a \
                 browser",
            ),
            Self::WrongToken => (
                StatusCode::UNAUTHORIZED,
                "the token is not LOCKWATCH_ADMIN_TOKEN",
            ),
        };
        let mut response = Problem::new(status, detail).into_response();
        if status == StatusCode::UNAUTHORIZED {
            for challenge in [BASIC, "Bearer"] {
                let challenge = HeaderValue::from_static(challenge);
                let headers = response.headers_mut();
                headers.append(header::WWW_AUTHENTICATE, challenge);
            }
        }
        response
    }
}

/// The person who is logged in: the user of HTTP Basic, whom anybody may choose freely.
#[derive(Debug)]
pub(super) struct Login(pub(super) Option<Person>);

impl<S: Send + Sync> FromRequestParts<S> for Login {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let credentials = sent_credentials(&parts.headers);
        let user = credentials.and_then(|(user, _)| Person::parse(&String::from_utf8(user?).ok()?));
        Ok(Self(user))
    }
}

/// Returns the user, if one is named, and the token that a request sends, if it has exactly one
/// `Authorization` header.
fn sent_credentials(headers: &HeaderMap) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let value = value.as_bytes();
    let (scheme, rest) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
    let rest = rest.trim_ascii();
    match scheme.to_ascii_lowercase().as_slice() {
        b"bearer" => Some((None, rest.to_vec())),
        b"basic" => {
            let pair = BASE64_STANDARD.decode(rest).ok()?;
            let colon = pair.iter().position(|byte| *byte == b':')?;
            Some((Some(pair[..colon].to_vec()), pair[colon + 1..].to_vec()))
        }
        _ => None,
    }
}

/// Returns `true` if a request names this machine itself, not another name that resolves to it.
fn has_loopback_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let host = Authority::try_from(host.as_bytes());
    host.is_ok_and(|host| is_loopback(&host)) && request.uri().authority().is_none_or(is_loopback)
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    !authority.as_str().contains('@')
        && (host.eq_ignore_ascii_case("localhost") || ["127.0.0.1", "[::1]"].contains(&host))
}

/// Returns the answer to a change that another site's page requested through a browser.
pub(super) fn cross_site_response(_: ProtectionError) -> Response {
    let detail = "another site's page requested this change, or the browser does not say which \
                  page did: use Lockwatch's own page, over HTTPS or on localhost, or the command \
                  line";
    Problem::new(StatusCode::FORBIDDEN, detail).into_response()
}

/// Middleware: adds the security headers that every answer of the admin listener has.
pub(super) async fn add_security_headers(request: Request, next: Next) -> Response {
    const CSP: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                       connect-src 'self'; form-action 'self'; base-uri 'none'; \
                       frame-ancestors 'none'";
    const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
    const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CSP),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (OPENER_POLICY, "same-origin"),
        (RESOURCE_POLICY, "same-origin"),
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

    fn accepts(guard: &Guard, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.check(&request.body(Body::empty()).unwrap()).is_ok()
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
            assert!(accepts(&guard, &[("host", host)]), "{host}");
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
            assert!(!accepts(&guard, &[("host", host)]), "{host:?}");
        }
        assert!(!accepts(&guard, &[]), "no host");
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert!(!accepts(&guard, &twice), "two hosts");
        let absolute = Request::builder()
            .uri("http://evil.example/")
            .header("host", "localhost")
            .body(Body::empty());
        assert!(
            guard.check(&absolute.unwrap()).is_err(),
            "another host in the target"
        );
    }

    #[test]
    fn the_token_must_be_complete_and_sent_once() {
        let guard = Guard::new(Some(&"s3cret:token".into()));
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        for good in [
            "Bearer s3cret:token",
            "bearer  s3cret:token",
            &basic("any:s3cret:token"),
            &basic(":s3cret:token"),
        ] {
            let headers = [("authorization", good), ("host", "evil.example")];
            assert!(accepts(&guard, &headers), "{good}");
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
            let headers = [("authorization", bad), ("host", "localhost")];
            assert!(!accepts(&guard, &headers), "{bad:?}");
        }
        assert!(!accepts(&guard, &[("host", "localhost")]), "no token");
        let twice = [("authorization", "Bearer s3cret:token"); 2];
        assert!(!accepts(&guard, &twice), "two tokens");
    }
}
