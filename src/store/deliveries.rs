//! Failed deliveries of an incident, page by page.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::StoreError;
use crate::meta::ids::{PhoneNumberId, WabaId};

/// A message that failed with 131031. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Delivery {
    /// Its number; later ones are larger.
    pub id: i64,
    /// The incident.
    pub incident_id: i64,
    /// The account.
    #[schema(value_type = String)]
    pub waba_id: WabaId,
    /// The business phone number that sent it.
    #[schema(value_type = String)]
    pub phone_number_id: PhoneNumberId,
    /// Meta's id of the message. It contains the recipient's number in base64, which is masked too.
    pub message_id: String,
    /// Whom it was for: a phone number, or a group.
    pub recipient_id: Option<String>,
    /// Whom in the group.
    pub participant_id: Option<String>,
    /// When it failed, as Meta says.
    #[serde(with = "time::serde::rfc3339")]
    pub failed_at: OffsetDateTime,
    /// When the callback came.
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    /// Always 131031.
    pub error_code: i32,
    /// Meta's title of the error.
    pub error_title: Option<String>,
    /// Meta's message.
    pub error_message: Option<String>,
    /// Meta's details.
    pub error_details: Option<String>,
    /// The business's own text, if it sent one along (`biz_opaque_callback_data`).
    pub callback_data: Option<String>,
    /// The capture it came in first, if that was kept.
    pub capture_id: Option<i64>,
}

/// The latest deliveries of an incident first, from before `before` on.
///
/// # Errors
/// The database does not answer.
pub async fn list(
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
