//! Accounts: their names, and the business portfolios that own them.

use sqlx::PgConnection;

use super::StoreError;
use crate::meta::health::LookupResult;
use crate::meta::ids::WabaId;
use crate::meta::node_fields::is_id;

/// Notes the names that a look-up brought, and the portfolio. A name that a person gave stays.
pub(super) async fn note_fields(
    db: &mut PgConnection,
    waba_id: &WabaId,
    lookup: &LookupResult,
) -> Result<(), StoreError> {
    let entities = lookup.answer.entities().unwrap_or_default();
    let business = entities
        .iter()
        .find(|entity| entity.entity_type == "BUSINESS" && is_id(&entity.id));
    let is_tried = lookup.tried_fields.1;
    let fields = lookup.fields.account.clone().unwrap_or_default();
    let portfolio_id = fields
        .portfolio_id
        .or_else(|| business.map(|business| business.id.clone()));
    if !is_tried && portfolio_id.is_none() {
        return Ok(());
    }
    sqlx::query!(
        "update accounts
            set name           = case when named_by = 'person' then name else coalesce($2, name) end,
                named_by       = case when named_by = 'person' or $2 is null then named_by
                                      else 'meta' end,
                portfolio_id   = coalesce($3, portfolio_id),
                portfolio_name = coalesce($4, portfolio_name),
                fields_read_at = case when $5 then now() else fields_read_at end
          where waba_id = $1
            and ($5 or portfolio_id is distinct from $3)",
        waba_id.as_str(),
        fields.name,
        portfolio_id,
        fields.portfolio_name,
        is_tried,
    )
    .execute(db)
    .await?;
    Ok(())
}
