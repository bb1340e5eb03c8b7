//! Strict parsing of a request's path and query: a parameter that is unknown, malformed or given
//! twice is an error.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::error::Problem;
use crate::lockout::cause::LockoutCause;
use crate::meta::ids::WabaId;
use crate::report::Recipients;
use crate::report::text::parse_time;
use crate::store::incidents::{IncidentFilter, IncidentState};

/// The parameters of a query that are not taken yet.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let query = query.unwrap_or_default();
        Self(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// Parses the query of a form, which also sends the fields that were left empty: they are
    /// dropped.
    pub(super) fn parse_form(query: Option<&str>) -> Self {
        let Self(mut parameters) = Self::parse(query);
        parameters.retain(|(_, value)| !value.trim().is_empty());
        Self(parameters)
    }

    /// Takes a parameter and parses it.
    pub(super) fn take<T, E: AsRef<str>>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let Some(position) = self.0.iter().position(|(known, _)| known == name) else {
            return Ok(None);
        };
        let (_, value) = self.0.swap_remove(position);
        if self.0.iter().any(|(known, _)| known == name) {
            return Err(Problem::bad_parameter(name, "given twice"));
        }
        parse(&value)
            .map(Some)
            .map_err(|reason| Problem::bad_parameter(name, reason))
    }

    /// Takes a parameter whose value is one of a few words.
    pub(super) fn take_word<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, Problem> {
        self.take(name, |value| {
            let known = words.iter().find(|(word, _)| *word == value);
            known.map(|(_, meaning)| *meaning).ok_or_else(|| {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!("not one of {}", all.join(", "))
            })
        })
    }

    /// Takes a parameter that is a cursor of this list.
    pub(super) fn take_cursor(&mut self, name: &str, list: List) -> Result<Option<i64>, Problem> {
        self.take(name, |text| {
            list.parse_cursor(text).ok_or("not a cursor of this list")
        })
    }

    /// Rejects parameters that were not taken. A misspelt filter would otherwise be ignored, and
    /// the list would have everything.
    pub(super) fn reject_unknown(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                let reason = "not a parameter of this request";
                Err(Problem::bad_parameter(&name, reason))
            }
        }
    }
}

/// Parses the filters of a list of incidents.
pub(super) fn parse_filter(query: &mut Query) -> Result<IncidentFilter, Problem> {
    let states = [
        ("open", IncidentState::Open),
        ("resolved", IncidentState::Resolved),
        ("all", IncidentState::All),
    ];
    let state = query.take_word("state", &states)?.unwrap_or_default();
    let waba_id = query.take("waba_id", |text| {
        WabaId::parse(text).map_err(|error| error.to_string())
    })?;
    let causes = LockoutCause::ALL.map(|cause| (cause.as_str(), cause));
    let cause = query.take_word("cause", &causes)?;
    let since = query.take("since", parse_time)?;
    let until = query.take("until", parse_time)?;
    Ok(IncidentFilter {
        state,
        waba_id,
        cause,
        since,
        until,
        ..IncidentFilter::default()
    })
}

/// Parses `reveal`, which asks for recipients in full.
pub(super) fn parse_reveal(query: &mut Query) -> Result<Recipients, Problem> {
    let revealed = query.take_word("reveal", &[("recipients", Recipients::Revealed)])?;
    Ok(revealed.unwrap_or(Recipients::Masked))
}

/// The incident id of a path. A path that cannot hold an id is a 404.
#[derive(Debug, Clone, Copy)]
pub(super) struct IncidentId(pub(super) i64);

impl<S: Send + Sync> FromRequestParts<S> for IncidentId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(Path(id)) = Path::<String>::from_request_parts(parts, state).await else {
            return Err(Problem::no_incident("of that name"));
        };
        let number = id.parse().ok().filter(|number| *number > 0).map(Self);
        number.ok_or_else(|| Problem::no_incident(id.chars().take(32).collect::<String>()))
    }
}

/// A list that is sent in pages.
#[derive(Debug, Clone, Copy)]
pub(super) enum List {
    Incidents,
    Deliveries,
    Checks,
    Changes,
}

impl List {
    /// Formats the cursor of the page that starts before an id. A cursor names its list, so that it
    /// is not taken for one of another list. To a caller it is opaque.
    pub(super) fn format_cursor(self, before: i64) -> String {
        let letter = match self {
            Self::Incidents => 'i',
            Self::Deliveries => 'd',
            Self::Checks => 'c',
            Self::Changes => 'h',
        };
        format!("{letter}{before:016x}")
    }

    fn parse_cursor(self, text: &str) -> Option<i64> {
        let before = i64::from_str_radix(text.get(1..)?, 16).ok()?;
        (self.format_cursor(before) == text).then_some(before)
    }
}
