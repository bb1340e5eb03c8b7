//! The access tokens: one for every account, or one per account from a file.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};
use tracing::{error, info};

use crate::meta::ids::WabaId;

/// The access tokens: one for every account, or one per account from a file.
pub struct Tokens {
    default: Option<Arc<Token>>,
    file: Option<TokensFile>,
}

pub(super) struct Token {
    pub(super) secret: SecretString,
    /// The position of the app secret whose proof Meta took last.
    pub(super) proof_by: AtomicUsize,
}

struct TokensFile {
    path: PathBuf,
    read: Mutex<(Option<Stamp>, TokensByAccount)>,
}

type TokensByAccount = HashMap<String, Arc<Token>>;

/// What tells that a file changed.
type Stamp = (SystemTime, u64);

/// A token, or the file of tokens, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadTokens {
    /// The token could not be sent in a header.
    #[error("an access token is empty or holds a character that no token has")]
    Malformed,
    /// The file cannot be read.
    #[error("META_ACCESS_TOKENS_FILE {path} cannot be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a list of `"<waba id>" = "<token>"`.
    #[error("META_ACCESS_TOKENS_FILE {path} must be TOML with lines like \"<waba id>\" = \"<token>\"", path = path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
    },
}

impl Tokens {
    /// Takes the token for every account, and the file with those of single accounts.
    ///
    /// # Errors
    /// [`BadTokens`].
    pub fn new(default: Option<SecretString>, file: Option<PathBuf>) -> Result<Self, BadTokens> {
        let file = match file {
            Some(path) => {
                let stamp = stamp(&path);
                let tokens = read_file(&path)?;
                Some(TokensFile {
                    path,
                    read: Mutex::new((stamp, tokens)),
                })
            }
            None => None,
        };
        Ok(Self {
            default: default.map(Token::new).transpose()?,
            file,
        })
    }

    /// Whether there is any token at all.
    pub(super) fn is_empty(&self) -> bool {
        self.default.is_none() && self.file.is_none()
    }

    /// The account's own token, else the one for all. Reads the file again if it changed; while the new
    /// one is broken, the old tokens go on.
    pub(super) fn for_account(&self, waba_id: &WabaId) -> Option<Arc<Token>> {
        let own = self.file.as_ref().and_then(|file| file.token(waba_id));
        own.or_else(|| self.default.clone())
    }
}

impl TokensFile {
    fn token(&self, waba_id: &WabaId) -> Option<Arc<Token>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        if read.0 != now {
            read.0 = now;
            match read_file(&self.path) {
                Ok(tokens) => {
                    info!(
                        tokens = tokens.len(),
                        "the file of access tokens was read again"
                    );
                    read.1 = tokens;
                }
                Err(error) => error!("the tokens read before go on: {error}"),
            }
        }
        read.1.get(waba_id.as_str()).cloned()
    }
}

fn stamp(path: &PathBuf) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read_file(path: &PathBuf) -> Result<TokensByAccount, BadTokens> {
    let text = std::fs::read_to_string(path).map_err(|source| BadTokens::Unreadable {
        path: path.clone(),
        source,
    })?;
    // The parser's own error would repeat the line, token and all.
    let tokens: HashMap<String, String> =
        toml::from_str(&text).map_err(|_| BadTokens::NotToml { path: path.clone() })?;
    tokens
        .into_iter()
        .map(|(waba_id, token)| Ok((waba_id, Token::new(token.into())?)))
        .collect()
}

impl Token {
    fn new(secret: SecretString) -> Result<Arc<Self>, BadTokens> {
        let token = secret.expose_secret();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadTokens::Malformed);
        }
        Ok(Arc::new(Self {
            secret,
            proof_by: AtomicUsize::new(0),
        }))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_no_header_can_carry_are_refused() {
        for token in ["", "a b", "a\nb", "é"] {
            assert!(Tokens::new(Some(token.into()), None).is_err(), "{token:?}");
        }
    }

    #[test]
    fn a_changed_file_of_tokens_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, "\"1022\" = \"first\"\n").unwrap();
        let tokens = Tokens::new(Some("default".into()), Some(path.clone())).unwrap();
        let token = |waba| {
            tokens
                .for_account(&WabaId::parse(waba).unwrap())
                .unwrap()
                .secret
                .expose_secret()
                .to_owned()
        };
        assert_eq!(
            (token("1022"), token("1033")),
            ("first".to_owned(), "default".to_owned())
        );
        std::fs::write(&path, "\"1022\" = \"second one\"").unwrap();
        assert_eq!(token("1022"), "first", "a token with a space is none");
        std::fs::write(&path, "\"1022\" = \"the-third\"\n\"1033\" = \"own\"").unwrap();
        assert_eq!(
            (token("1022"), token("1033")),
            ("the-third".to_owned(), "own".to_owned())
        );
        std::fs::write(&path, "secret-but-not-toml").unwrap();
        assert_eq!(token("1022"), "the-third");
        let error = Tokens::new(None, Some(path)).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
