//! The query of a request, read strictly: what is not known, not readable or given twice is told.

use super::error::Problem;

/// The parameters that were not taken yet.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// As a form sends it: what was left empty was not given.
    pub(super) fn of_form(query: Option<&str>) -> Self {
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
        read(&value).map(Some).map_err(|why| Problem::parameter(name, why))
    }

    /// Takes a parameter that is one of a few words.
    pub(super) fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Problem> {
        self.take(name, |value| {
            let known = words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
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
