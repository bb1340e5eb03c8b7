//! The text of an error with its causes.

use std::error::Error;

/// Returns an error and its causes in one line, each said once: some libraries repeat a cause in their
/// own message.
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
