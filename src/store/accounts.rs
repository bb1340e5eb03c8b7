//! Accounts: their names and labels, and the business portfolios that own them.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::StoreError;
use crate::meta::health::LookupResult;
use crate::meta::ids::WabaId;
use crate::meta::node_fields::is_id;

/// An account. The fields are columns.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Account {
    pub(crate) waba_id: String,
    pub(crate) name: Option<String>,
    pub(crate) labels: Vec<String>,
    pub(crate) portfolio_id: Option<String>,
    pub(crate) portfolio_name: Option<String>,
    /// Its incidents that are not resolved.
    pub(crate) open_incidents: i64,
    /// The time since which a person wants to hear nothing of it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) muted_at: Option<OffsetDateTime>,
    /// The latest callback of any kind.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) last_callback_at: Option<OffsetDateTime>,
}

/// Lists accounts: those with open incidents first, then by name.
pub(crate) async fn list(db: &PgPool, limit: i64) -> Result<Vec<Account>, StoreError> {
    let accounts = sqlx::query_as!(
        Account,
        r#"select waba_id, name, labels, portfolio_id, portfolio_name, last_callback_at, muted_at,
                  (select count(*) from incidents i
                    where i.waba_id = a.waba_id and i.resolved_at is null) as "open_incidents!"
             from accounts a
            order by 8 desc, name nulls last, waba_id
            limit $1"#,
        limit,
    );
    Ok(accounts.fetch_all(db).await?)
}

/// A person's description of an account. A part that is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) waba_id: WabaId,
    /// An empty name leaves it to Meta.
    pub(crate) name: Option<String>,
    pub(crate) labels: Option<Vec<String>>,
}

/// Notes what a person says about accounts, also of one that was never heard of.
///
/// # Errors
/// Nothing is changed.
pub(crate) async fn describe(db: &PgPool, descriptions: &[Description]) -> Result<(), StoreError> {
    let labels = descriptions.iter().map(|one| {
        let labels = one.labels.as_ref();
        labels.map(|labels| labels.join("\n"))
    });
    let names = descriptions.iter().map(|one| one.name.as_deref());
    let mut transaction = db.begin().await?;
    insert(
        &mut transaction,
        descriptions.iter().map(|one| &one.waba_id),
    )
    .await?;
    sqlx::query!(
        r"update accounts a
             set name     = case when d.name is null or d.name = '' and a.named_by = 'meta'
                                 then a.name else nullif(d.name, '') end,
                 named_by = case when d.name <> '' then 'person'
                                 when d.name = '' and a.named_by = 'person' then null
                                 else a.named_by end,
                 labels   = case when d.labels is null then a.labels
                                 else coalesce(string_to_array(nullif(d.labels, ''), E'\n'), '{}')
                                 end
            from unnest($1::text[], $2::text[], $3::text[]) as d(waba_id, name, labels)
           where a.waba_id = d.waba_id",
        &descriptions
            .iter()
            .map(|one| one.waba_id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &names.collect::<Vec<_>>() as &[Option<&str>],
        &labels.collect::<Vec<_>>() as &[Option<String>],
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

/// Notes whether a person wants to hear nothing of an account.
///
/// # Errors
/// Nothing is changed.
pub(crate) async fn set_muted(
    db: &PgPool,
    waba_id: &WabaId,
    is_muted: bool,
) -> Result<(), StoreError> {
    let mut transaction = db.begin().await?;
    insert(&mut transaction, [waba_id].into_iter()).await?;
    sqlx::query!(
        "update accounts
            set muted_at = case when $2 then coalesce(muted_at, now()) end
          where waba_id = $1",
        waba_id.as_str(),
        is_muted,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

/// Inserts the accounts that are not there yet.
async fn insert(
    db: &mut PgConnection,
    accounts: impl Iterator<Item = &WabaId>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into accounts (waba_id)
         select distinct unnest($1::text[]) order by 1 on conflict do nothing",
        &accounts.map(WabaId::as_str).collect::<Vec<_>>() as &[&str],
    )
    .execute(db)
    .await?;
    Ok(())
}

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
