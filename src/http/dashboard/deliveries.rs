//! The failed deliveries on an incident's page.

use maud::{Markup, html};

use super::incident_query::PageQuery;
use super::{timestamp, untrusted};
use crate::report::{Page, Recipients};
use crate::store::deliveries::Delivery;

/// Renders a page of deliveries.
pub(super) fn deliveries_section(query: &PageQuery, deliveries: &Page<Delivery>) -> Markup {
    let is_first = query.deliveries_before.is_none();
    html! {
        section #deliveries data-live[is_first] aria-labelledby="deliveries-heading" {
            h2 #deliveries-heading { "Failed deliveries" }
            (recipients_switch(query))
            @if deliveries.data.is_empty() {
                p .none {
                    "None are left: deliveries are deleted after LOCKWATCH_RETENTION_DAYS days."
                }
            } @else {
                (deliveries_table(&deliveries.data))
            }
            (page_links(query, deliveries.next))
        }
    }
}

/// Renders the link that shows recipients in full, or masks them.
fn recipients_switch(query: &PageQuery) -> Markup {
    let link = |recipients| query.with_recipients(recipients).link("deliveries");
    html! {
        p {
            @match query.recipients {
                Recipients::Masked => {
                    "Recipients are masked. "
                    a href=(link(Recipients::Revealed)) { "Show recipients" } " (this is logged)."
                }
                Recipients::Revealed => {
                    "Recipients are shown, and that was logged. "
                    a href=(link(Recipients::Masked)) { "Mask them" } "."
                }
            }
        }
    }
}

fn deliveries_table(deliveries: &[Delivery]) -> Markup {
    let has_references = deliveries
        .iter()
        .any(|delivery| delivery.callback_data.is_some());
    html! {
        div .scroll role="region" aria-labelledby="deliveries-heading" tabindex="0" {
            table {
                thead {
                    tr {
                        th scope="col" { "Failed at" }
                        th scope="col" { "Recipient" }
                        th scope="col" { "Number ID" }
                        th scope="col" { "Error" }
                        th scope="col" { "Message ID" }
                        @if has_references {
                            th scope="col" { "Your reference" }
                        }
                    }
                }
                tbody {
                    @for delivery in deliveries {
                        (delivery_row(delivery, has_references))
                    }
                }
            }
        }
    }
}

/// Renders a delivery. The reference is the text that the business sent with the message
/// (`biz_opaque_callback_data`).
fn delivery_row(delivery: &Delivery, has_references: bool) -> Markup {
    let recipient = delivery.recipient_id.as_deref().unwrap_or("unknown");
    let reference = delivery.callback_data.as_deref().unwrap_or_default();
    let error_text = delivery
        .error_details
        .as_ref()
        .or(delivery.error_message.as_ref())
        .or(delivery.error_title.as_ref());
    html! {
        tr {
            td { (timestamp(delivery.failed_at)) }
            td {
                (untrusted(recipient, 64))
                @if let Some(participant) = &delivery.participant_id {
                    br;
                    small { "participant " (untrusted(participant, 64)) }
                }
            }
            td { (untrusted(delivery.phone_number_id.as_str(), 64)) }
            td {
                (delivery.error_code)
                @if let Some(text) = error_text {
                    " " (untrusted(text, 120))
                }
            }
            td { code { (untrusted(&delivery.message_id, 120)) } }
            @if has_references { td { (untrusted(reference, 120)) } }
        }
    }
}

fn page_links(query: &PageQuery, next: Option<i64>) -> Markup {
    let link = |before| {
        let query = PageQuery {
            deliveries_before: before,
            ..*query
        };
        query.link("deliveries")
    };
    let (reveal, csv_text) = match query.recipients {
        Recipients::Masked => ("", "All as CSV, masked"),
        Recipients::Revealed => ("&reveal=recipients", "All as CSV, with recipients (logged)"),
    };
    let id = query.id;
    let csv = format!("/api/v1/incidents/{id}/deliveries?format=csv{reveal}");
    html! {
        p .pages {
            @if query.deliveries_before.is_some() {
                a href=(link(None)) { "Latest deliveries" } " "
            }
            @if let Some(next) = next {
                a .older href=(link(Some(next))) { "Older deliveries" } " "
            }
            a href=(csv) download { (csv_text) }
        }
    }
}
