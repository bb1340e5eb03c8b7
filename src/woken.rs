//! What the parts of the service wake in one another. The rows in the database say what there is to
//! do; a part that misses a call finds it by itself a little later.

use std::sync::Arc;

use tokio::sync::Notify;

/// The calls. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Woken {
    /// Callbacks were appended to the inbox.
    pub appended: Arc<Notify>,
    /// Numbers are due for a look-up.
    pub checks_due: Arc<Notify>,
    /// Incidents have changed.
    pub changed: Arc<Notify>,
}
