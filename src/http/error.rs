//! Errors of the admin listener as problem details
//! ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)). A browser gets the same as a page.

use std::any::Any;
use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use crate::error_chain::error_chain;
use crate::store::StoreError;

/// The reason for which a request was not answered as asked.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    #[schema(rename = "type", example = "about:blank")]
    kind: &'static str,
    /// The status in words.
    #[schema(example = "Bad Request")]
    pub(super) title: &'static str,
    /// The HTTP status.
    #[schema(example = 400, minimum = 400, maximum = 599)]
    pub(super) status: u16,
    /// What is wrong with this request, and what to do about it.
    #[schema(example = "limit: not a number from 1 to 200")]
    pub(super) detail: String,
    /// The parameter that is to blame, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "limit")]
    parameter: Option<String>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self {
            kind: "about:blank",
            title,
            status: status.as_u16(),
            detail: detail.into(),
            parameter: None,
        }
    }

    /// A parameter of the query that cannot be used.
    pub(super) fn parameter(name: &str, why: impl AsRef<str>) -> Self {
        let detail = format!("{name}: {}", why.as_ref());
        Self {
            parameter: Some(name.to_owned()),
            ..Self::new(StatusCode::BAD_REQUEST, detail)
        }
    }

    pub(super) fn no_incident(id: impl Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no incident {id}"))
    }
}

/// Returns the answer to a request whose handler panicked; the panic itself is in the log.
pub(super) fn panic_response(_: Box<dyn Any + Send>) -> Response {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "this page cannot be shown; the log says why",
    )
    .into_response()
}

impl From<StoreError> for Problem {
    fn from(failed: StoreError) -> Self {
        warn!("a page cannot be read: {}", error_chain(&failed));
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{failed}; try again soon"),
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).expect("a problem is plain data");
        let mut response = (
            status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            body,
        )
            .into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        // For the page that a browser gets instead.
        response.extensions_mut().insert(self);
        response
    }
}
