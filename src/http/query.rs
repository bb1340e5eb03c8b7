//! What a request asks for, read strictly: what is not known, not readable or given twice is told.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::error::Problem;
use crate::lockout::cause::LockoutCause;
use crate::meta::ids::WabaId;
use crate::report::Recipients;
use crate::report::text::parse_moment;
use crate::store::incidents::{IncidentFilter, IncidentState};

/// The parameters that were not taken yet.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        Self(
            form_urlencoded::parse(query.unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// As a form sends it: what was left empty was not given.
    pub(super) fn parse_form(query: Option<&str>) -> Self {
        let Self(mut parameters) = Self::parse(query);
        parameters.retain(|(_, value)| !value.trim().is_empty());
        Self(parameters)
    }

    /// Takes a parameter and reads it.
    pub(super) fn take<T, E: AsRef<str>>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let Some(position) = self.0.iter().position(|(known, _)| known == name) else {
            return Ok(None);
        };
        let (_, value) = self.0.swap_remove(position);
        if self.0.iter().any(|(known, _)| known == name) {
            return Err(Problem::parameter(name, "given twice"));
        }
        read(&value)
            .map(Some)
            .map_err(|why| Problem::parameter(name, why))
    }

    /// Takes a parameter that is one of a few words.
    pub(super) fn word<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, Problem> {
        self.take(name, |value| {
            let known = words
                .iter()
                .find(|(word, _)| *word == value)
                .map(|(_, meaning)| *meaning);
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            known.ok_or_else(|| format!("not one of {}", all.join(", ")))
        })
    }

    /// Sees to it that nothing is left: a misspelt filter would otherwise seem to find everything.
    pub(super) fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                Err(Problem::parameter(&name, "not a parameter of this request"))
            }
        }
    }
}

/// What the filters of a list of incidents say.
pub(super) fn filter(query: &mut Query) -> Result<IncidentFilter, Problem> {
    let states = [
        ("open", IncidentState::Open),
        ("resolved", IncidentState::Resolved),
        ("all", IncidentState::All),
    ];
    let state = query.word("state", &states)?.unwrap_or_default();
    let waba_id = query.take("waba_id", |text| {
        WabaId::parse(text).map_err(|error| error.to_string())
    })?;
    let causes = LockoutCause::ALL.map(|cause| (cause.as_str(), cause));
    let cause = query.word("cause", &causes)?;
    let since = query.take("since", parse_moment)?;
    let until = query.take("until", parse_moment)?;
    Ok(IncidentFilter {
        state,
        waba_id,
        cause,
        since,
        until,
        ..IncidentFilter::default()
    })
}

/// The incident that a path names: one that there may be.
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

/// Whether recipients are asked for in full.
pub(super) fn recipients(query: &mut Query) -> Result<Recipients, Problem> {
    let revealed = query.word("reveal", &[("recipients", Recipients::Revealed)])?;
    Ok(revealed.unwrap_or(Recipients::Masked))
}

/// An id, and of which list: whoever gets one need not know.
pub(super) fn cursor(list: char, id: i64) -> String {
    format!("{list}{id:016x}")
}

pub(super) fn parse_cursor(list: char, text: &str) -> Option<i64> {
    let id = i64::from_str_radix(text.strip_prefix(list)?, 16).ok()?;
    (cursor(list, id) == text).then_some(id)
}
