//! The failed deliveries of an incident, page by page.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::StoreError;
use crate::meta::ids::{PhoneNumberId, WabaId};

/// A message that failed with 131031. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Delivery {
    /// The id of the delivery. Later deliveries have larger ids.
    pub(crate) id: i64,
    /// The incident.
    pub(crate) incident_id: i64,
    /// The account.
    #[schema(value_type = String)]
    pub(crate) waba_id: WabaId,
    /// The business phone number that sent it.
    #[schema(value_type = String)]
    pub(crate) phone_number_id: PhoneNumberId,
    /// Meta's id of the message. It contains the recipient's number in base64, which is masked too.
    pub(crate) message_id: String,
    /// The recipient: a phone number, or a group.
    pub(crate) recipient_id: Option<String>,
    /// The recipient within the group.
    pub(crate) participant_id: Option<String>,
    /// The time it failed, as Meta reports it.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) failed_at: OffsetDateTime,
    /// The time the callback arrived.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) received_at: OffsetDateTime,
    /// The watched code: 131031, or another one if more are watched.
    pub(crate) error_code: i32,
    /// Meta's title of the error.
    pub(crate) error_title: Option<String>,
    /// Meta's message.
    pub(crate) error_message: Option<String>,
    /// Meta's details.
    pub(crate) error_details: Option<String>,
    /// The business's own text, if the message had one (`biz_opaque_callback_data`).
    pub(crate) callback_data: Option<String>,
    /// The capture of the callback that reported it first, if it was kept.
    pub(crate) capture_id: Option<i64>,
}

/// Lists the deliveries of an incident, the latest first; with `before`, those with smaller ids.
pub(crate) async fn list(
    db: &PgPool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    let deliveries = sqlx::query_as!(
        Delivery,
        r#"select id, incident_id, waba_id as "waba_id: _", phone_number_id as "phone_number_id: _",
                  message_id, recipient_id, participant_id, failed_at, received_at, error_code,
                  error_title, error_message, error_details, callback_data, capture_id
             from failed_deliveries
            where incident_id = $1 and ($2::bigint is null or id < $2)
            order by id desc
            limit $3"#,
        incident_id,
        before,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(deliveries)
}
