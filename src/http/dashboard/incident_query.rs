//! The query of an incident's page, read from its address and written into its links.

use crate::http::error::Problem;
use crate::http::query::{List, Query, parse_reveal};
use crate::report::Recipients;

/// The query of the page: the positions in its two lists, and whether recipients are shown.
#[derive(Clone, Copy)]
pub(super) struct PageQuery {
    pub(super) id: i64,
    pub(super) deliveries_before: Option<i64>,
    pub(super) checks_before: Option<i64>,
    pub(super) recipients: Recipients,
}

impl PageQuery {
    pub(super) fn parse(id: i64, query: Option<&str>) -> Result<Self, Problem> {
        let mut query = Query::parse_form(query);
        let recipients = parse_reveal(&mut query)?;
        let deliveries_before = query.take_cursor("deliveries", List::Deliveries)?;
        let checks_before = query.take_cursor("checks", List::Checks)?;
        query.reject_unknown()?;
        Ok(Self {
            id,
            deliveries_before,
            checks_before,
            recipients,
        })
    }

    pub(super) fn with_recipients(self, recipients: Recipients) -> Self {
        Self { recipients, ..self }
    }

    /// Returns the link to the page with this query.
    pub(super) fn link(&self, anchor: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(before) = self.deliveries_before {
            query.append_pair("deliveries", &List::Deliveries.format_cursor(before));
        }
        if let Some(before) = self.checks_before {
            query.append_pair("checks", &List::Checks.format_cursor(before));
        }
        if self.recipients == Recipients::Revealed {
            query.append_pair("reveal", "recipients");
        }
        format!("/incidents/{}?{}#{anchor}", self.id, query.finish())
    }
}
