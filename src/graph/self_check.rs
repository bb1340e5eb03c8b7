//! Questions about ourselves: our tokens, and the apps that an account reports to.

use super::health::successful;
use super::{Graph, Reply};
use crate::meta::ids::WabaId;
use crate::meta::node_fields::is_id;
use crate::meta::self_check::{TokenInfo, subscribed_apps};

impl Graph {
    /// Asks about the token of an account. `None`: there is none, or no answer about it.
    pub(crate) async fn token_info(&self, waba_id: &WabaId) -> Option<TokenInfo> {
        let token = self.tokens.for_account(waba_id)?;
        let mut url = self.base.join("debug_token").ok()?;
        url.query_pairs_mut()
            .append_pair("input_token", token.exposed());
        let reply = self.get_url(Some(&token), url).await.ok()?;
        TokenInfo::parse(&reply.body)
    }

    /// Returns the ids of the apps that an account reports to. `None`: there is no answer about it.
    pub(crate) async fn subscribed_apps(&self, waba_id: &WabaId) -> Option<Vec<String>> {
        if !is_id(waba_id.as_str()) {
            return None;
        }
        let token = self.tokens.for_account(waba_id);
        let url = self.base.join(&format!("{waba_id}/subscribed_apps")).ok()?;
        let reply: Reply = self.get_url(token.as_deref(), url).await.ok()?;
        subscribed_apps(&successful(&reply)?.body)
    }

    /// Returns whether an account has a token of its own.
    pub(crate) fn has_own_token(&self, waba_id: &WabaId) -> bool {
        self.tokens.has_own(waba_id)
    }
}
