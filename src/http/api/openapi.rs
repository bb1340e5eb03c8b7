//! The API's description, generated from the attributes of the handlers and types. Nothing here
//! affects an answer.

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

/// Returns the API's description: OpenAPI 3.1 in JSON.
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
        description = "WhatsApp lockouts (error 131031): incidents, causes and next steps.\n\n\
            Served on the admin listener. If LOCKWATCH_ADMIN_TOKEN is set, send it as a bearer \
            token or as the password of HTTP Basic; if not, use the host localhost. Errors are \
            application/problem+json."
    ),
    paths(
        super::list_incidents,
        super::get_incident,
        super::list_deliveries,
        super::list_checks,
        super::list_changes,
        super::acknowledge_incident,
        super::resolve_incident,
        super::reopen_incident,
        super::get_status
    ),
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

/// A time as [`parse_time`](crate::report::text::parse_time) accepts it.
pub(super) struct Moment;

impl PartialSchema for Moment {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let date_time = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        let date = SchemaFormat::KnownFormat(KnownFormat::Date);
        AnyOfBuilder::new()
            .item(text().format(Some(date_time)))
            .item(text().format(Some(date)))
            .item(text().pattern(Some("^[0-9]{1,5}[dhm]$")))
            .into()
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

/// The parameters that every list takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description is made from it")]
pub(super) struct PageParameters {
    /// The largest number of rows: 50 if not given; a CSV from the start of a list has all of them.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    /// The format; overrides the header Accept.
    format: Option<Format>,
}

/// The word that shows recipients in full.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code, reason = "the description is made from it")]
pub(super) enum Reveal {
    Recipients,
}
