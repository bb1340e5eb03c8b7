//! The API's description, made from the handlers' own attributes. What stands here is only described: what is
//! taken and answered is in the handlers.

use utoipa::openapi::schema::{
    AnyOfBuilder, KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type,
};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{RefOr, SecurityRequirement};
use utoipa::{IntoParams, Modify, OpenApi, PartialSchema, ToResponse, ToSchema};

use super::paging::Format;
use crate::http::error::Problem;
use crate::lockout::cause::LockoutCause;
use crate::store::incidents::IncidentState;

/// The API's description as OpenAPI 3.1, in JSON.
#[must_use]
pub fn openapi() -> String {
    Description::openapi()
        .to_pretty_json()
        .expect("the description is plain data")
        + "\n"
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lockwatch",
        description = "WhatsApp lockouts (error 131031): incidents, their causes and what to do next.\n\n\
            Served on the admin listener. Where LOCKWATCH_ADMIN_TOKEN is set, give it as a bearer token or as the \
            password of HTTP Basic; where it is not, ask as localhost. Problems are told as \
            application/problem+json."
    ),
    paths(super::list, super::show, super::deliveries, super::checks, super::resolve),
    components(
        schemas(IncidentState, LockoutCause, Moment, Format, Reveal),
        responses(BadParameter, NoIncident, OtherProblem)
    ),
    modifiers(&Security)
)]
struct Description;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        for (name, scheme) in [
            ("bearer", HttpAuthScheme::Bearer),
            ("basic", HttpAuthScheme::Basic),
        ] {
            components.add_security_scheme(name, SecurityScheme::Http(Http::new(scheme)));
        }
        let none: [&str; 0] = [];
        document.security = Some(vec![
            SecurityRequirement::default(),
            SecurityRequirement::new("bearer", none),
            SecurityRequirement::new("basic", none),
        ]);
    }
}

/// As [`parse_moment`](crate::report::text::parse_moment) reads it.
pub(super) struct Moment;

impl PartialSchema for Moment {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let format = |known| text().format(Some(SchemaFormat::KnownFormat(known)));
        let moment = AnyOfBuilder::new()
            .item(format(KnownFormat::DateTime))
            .item(format(KnownFormat::Date))
            .item(text().pattern(Some("^[0-9]{1,5}[dhm]$")));
        moment.into()
    }
}

impl ToSchema for Moment {}

/// A parameter of the query cannot be used.
#[derive(ToResponse)]
#[response(content_type = "application/problem+json")]
#[allow(dead_code, reason = "the description is made from it")]
pub(super) struct BadParameter(Problem);

/// There is no such incident.
#[derive(ToResponse)]
#[response(content_type = "application/problem+json")]
#[allow(dead_code, reason = "the description is made from it")]
pub(super) struct NoIncident(Problem);

/// Another problem.
#[derive(ToResponse)]
#[response(content_type = "application/problem+json")]
#[allow(dead_code, reason = "the description is made from it")]
pub(super) struct OtherProblem(Problem);

/// What every list takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description is made from it")]
pub(super) struct PageParameters {
    /// How many at the most; 50 if not given, but everything in a CSV from its start.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    /// Instead of the header Accept.
    format: Option<Format>,
}

/// The one word that shows recipients.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code, reason = "the description is made from it")]
pub(super) enum Reveal {
    Recipients,
}
