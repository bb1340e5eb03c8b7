//! Errors of the admin listener as problem details ([RFC
//! 9457](https://www.rfc-editor.org/rfc/rfc9457)). A browser gets them as a page.

use std::any::Any;
use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use crate::error_chain::error_chain;
use crate::store::StoreError;

/// An error, as the API answers with it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Problem {
    /// Always `about:blank`: the status names the kind of problem.
    #[serde(rename = "type")]
    #[schema(rename = "type", example = "about:blank")]
    kind: &'static str,
    /// The status in words.
    #[schema(example = "Bad Request")]
    pub(super) title: &'static str,
    /// The HTTP status.
    #[schema(example = 400, minimum = 400, maximum = 599)]
    pub(super) status: u16,
    /// The error of this request, and how to correct it.
    #[schema(example = "limit: not a number from 1 to 200")]
    pub(super) detail: String,
    /// The parameter that caused the problem, if one did.
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

    /// Creates the problem of a query parameter that cannot be used.
    pub(super) fn bad_parameter(name: &str, reason: impl AsRef<str>) -> Self {
        let detail = format!("{name}: {}", reason.as_ref());
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
    fn from(error: StoreError) -> Self {
        warn!(
            "a request cannot be answered from the database: {}",
            error_chain(&error)
        );
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{error}; try again soon"),
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
        // A browser's page is made from this.
        response.extensions_mut().insert(self);
        response
    }
}
