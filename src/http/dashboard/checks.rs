//! The health checks on an incident's page, and Meta's verdicts in them.

use maud::{Markup, html};

use super::chart::health_class;
use super::incident_query::PageQuery;
use super::{timestamp, untrusted};
use crate::meta::health::Entity;
use crate::meta::node_fields::NodeFields;
use crate::report::Page;
use crate::report::timeline::NumberHealth;
use crate::store::checks::HealthCheck;

/// The part of a raw answer that is shown. The API returns all of it.
const ANSWER_LIMIT_CHARACTERS: usize = 1500;
/// The size of a check without its details.
const SUMMARY_BYTES: usize = 800;

/// The bytes that are left for parts of a page.
pub(super) struct PageBudget(pub(super) usize);

impl PageBudget {
    /// Returns the part and subtracts its size; a short notice instead if the part is too large.
    pub(super) fn take(&mut self, part: Markup) -> Markup {
        match self.0.checked_sub(part.0.len()) {
            Some(left) => {
                self.0 = left;
                part
            }
            None => html! { p { "Too long for this page. The API returns all of it." } },
        }
    }
}

/// Renders a page of checks, with their details as far as the budget allows.
pub(super) fn checks_section(
    query: &PageQuery,
    checks: &Page<HealthCheck>,
    budget: PageBudget,
) -> Markup {
    // Every check is shown with its summary, and with a notice if its details do not fit.
    let summaries = checks.data.len() * SUMMARY_BYTES;
    let mut budget = PageBudget(budget.0.saturating_sub(summaries));
    let link = |before| {
        let query = PageQuery {
            checks_before: before,
            ..*query
        };
        query.link("checks")
    };
    let csv = format!("/api/v1/incidents/{}/checks?format=csv", query.id);
    html! {
        section #checks data-live[query.checks_before.is_none()] aria-labelledby="checks-heading" {
            h2 #checks-heading { "Health checks" }
            @if checks.data.is_empty() { p .none { "None yet." } }
            @for check in &checks.data {
                (check_details(check, &mut budget))
            }
            p .pages {
                @if query.checks_before.is_some() {
                    a href=(link(None)) { "Latest checks" } " "
                }
                @if let Some(next) = checks.next {
                    a .older href=(link(Some(next))) { "Older checks" } " "
                }
                a href=(csv) download { "All as CSV" }
            }
        }
    }
}

fn check_details(check: &HealthCheck, budget: &mut PageBudget) -> Markup {
    let answer = check.response.as_deref().unwrap_or_default();
    let details = html! {
        @if let Some(error) = &check.error {
            p { (untrusted(error, 400)) }
        }
        (fields_line(check))
        (entities_table(check))
        @if !answer.is_empty() {
            p { "Meta's raw answer:" }
            pre { (untrusted(answer, ANSWER_LIMIT_CHARACTERS)) }
        }
    };
    html! {
        details #{ "check-" (check.id) } {
            summary {
                (timestamp(check.checked_at)) " " (check_verdict(check)) " "
                (untrusted(check.phone_number_id.as_str(), 64)) " "
                span .ago {
                    (untrusted(check.outcome.as_str(), 32))
                    @if let Some(status) = check.http_status {
                        ", HTTP " (status)
                    }
                    ", " (check.duration_ms) " ms"
                }
            }
            (budget.take(details))
        }
    }
}

/// Renders the fields that were read beside the health.
pub(super) fn fields_line(check: &HealthCheck) -> Markup {
    let fields: NodeFields = check
        .fields
        .clone()
        .and_then(|fields| serde_json::from_value(fields).ok())
        .unwrap_or_default();
    let texts = fields.texts();
    html! {
        @if !texts.is_empty() {
            p {
                "Read beside the health: "
                @for (position, (name, value)) in texts.iter().enumerate() {
                    @if position > 0 { ", " }
                    (name) " " strong { (untrusted(value, 64)) }
                }
            }
        }
    }
}

/// Renders Meta's verdict on each entity.
pub(super) fn entities_table(check: &HealthCheck) -> Markup {
    let entities: Vec<Entity> = check
        .entities
        .clone()
        .and_then(|entities| serde_json::from_value(entities).ok())
        .unwrap_or_default();
    if entities.is_empty() {
        return html! {};
    }
    html! {
        div .scroll role="region" aria-label="Meta's verdict on each entity" tabindex="0" {
            table {
                thead {
                    tr {
                        th scope="col" { "Entity" }
                        th scope="col" { "Can send" }
                        th scope="col" { "What Meta says" }
                    }
                }
                tbody {
                    @for entity in entities.iter().take(8) { (entity_row(entity)) }
                }
            }
        }
    }
}

fn entity_row(entity: &Entity) -> Markup {
    let health = NumberHealth::from_verdict(&entity.can_send_message);
    html! {
        tr {
            th scope="row" {
                (untrusted(&entity.entity_type, 32)) " " (untrusted(&entity.id, 64))
            }
            td { (verdict(health, &entity.can_send_message.to_string())) }
            td {
                @for error in entity.errors.iter().take(3) {
                    p {
                        @if let Some(code) = error.error_code {
                            "(" (code) ") "
                        }
                        (untrusted(&error.error_description, 300))
                    }
                }
                @for info in entity.additional_info.iter().take(3) {
                    p { (untrusted(info, 300)) }
                }
            }
        }
    }
}

/// Renders the verdict that a check brought.
pub(super) fn check_verdict(check: &HealthCheck) -> Markup {
    let health = NumberHealth::from_check(check);
    let word = match health {
        NumberHealth::Other => check.can_send_message.as_deref().unwrap_or("no verdict"),
        known => known.word(),
    };
    verdict(health, word)
}

/// Renders a verdict in the colour of its health. The word says the same as the colour.
fn verdict(health: NumberHealth, word: &str) -> Markup {
    html! { span .verdict .(health_class(health)) { (untrusted(word, 32)) } }
}
