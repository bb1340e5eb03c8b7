//! The text of an error with all its causes.

use std::error::Error;

/// Joins an error and its causes with colons. A cause whose text is already there is left out: some
/// libraries repeat it in their own message.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        source = cause.source();
    }
    text
}
