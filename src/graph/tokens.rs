//! The access tokens: a default one, and a file with those of single accounts.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};
use tracing::{error, info};

use crate::meta::ids::WabaId;

/// The access tokens: a default one, and a file with those of single accounts.
pub struct Tokens {
    default: Option<Arc<Token>>,
    file: Option<TokensFile>,
}

pub(super) struct Token {
    pub(super) secret: SecretString,
    /// The index of the app secret whose proof Meta accepted last.
    pub(super) secret_index: AtomicUsize,
}

struct TokensFile {
    path: PathBuf,
    loaded: Mutex<LoadedTokens>,
}

struct LoadedTokens {
    stamp: Option<FileStamp>,
    /// The number of changes of the file since the start.
    generation: u64,
    by_account: TokensByAccount,
}

type TokensByAccount = HashMap<String, Arc<Token>>;

/// A file's modification time and size. If they differ, the file was changed.
type FileStamp = (SystemTime, u64);

/// The reason why a token, or the file of tokens, is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// A token cannot be sent in an HTTP header.
    #[error("{0} is empty or contains white space or another character that no access token has")]
    Malformed(String),
    /// The file cannot be read.
    #[error("META_ACCESS_TOKENS_FILE {path} cannot be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a list of `"<waba id>" = "<token>"`.
    #[error(
        "META_ACCESS_TOKENS_FILE {path} must be TOML with lines like \"<waba id>\" = \"<token>\"",
        path = path.display()
    )]
    NotToml {
        /// The file.
        path: PathBuf,
    },
}

impl Tokens {
    /// Takes the default token, and reads the file of tokens.
    ///
    /// # Errors
    /// A token is malformed, or the file cannot be read or parsed.
    pub fn new(default: Option<SecretString>, file: Option<PathBuf>) -> Result<Self, TokensError> {
        let file = match file {
            Some(path) => {
                let loaded = LoadedTokens {
                    stamp: file_stamp(&path),
                    generation: 0,
                    by_account: read_file(&path)?,
                };
                Some(TokensFile {
                    path,
                    loaded: Mutex::new(loaded),
                })
            }
            None => None,
        };
        Ok(Self {
            default: default
                .map(|token| Token::new(token, || "META_ACCESS_TOKEN".to_owned()))
                .transpose()?,
            file,
        })
    }

    /// Returns whether no token is configured.
    pub(super) fn is_empty(&self) -> bool {
        self.default.is_none() && self.file.is_none()
    }

    /// Returns how often the file of tokens has changed. Reads it again if it changed.
    pub(super) fn generation(&self) -> u64 {
        let Some(file) = &self.file else { return 0 };
        file.reload();
        let loaded = file.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.generation
    }

    /// Returns the account's own token, or the default.
    ///
    /// Reads the file again if it changed. If the new file is invalid, the old tokens stay in use.
    pub(super) fn for_account(&self, waba_id: &WabaId) -> Option<Arc<Token>> {
        let own = self.file.as_ref().and_then(|file| file.token(waba_id));
        own.or_else(|| self.default.clone())
    }
}

impl Tokens {
    /// Returns whether an account has a token of its own.
    pub(super) fn has_own(&self, waba_id: &WabaId) -> bool {
        let own = self.file.as_ref().and_then(|file| file.token(waba_id));
        own.is_some()
    }
}

impl TokensFile {
    fn token(&self, waba_id: &WabaId) -> Option<Arc<Token>> {
        self.reload();
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.by_account.get(waba_id.as_str()).cloned()
    }

    fn reload(&self) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = file_stamp(&self.path);
        if loaded.stamp != stamp {
            loaded.stamp = stamp;
            loaded.generation += 1;
            match read_file(&self.path) {
                Ok(tokens) => {
                    info!(
                        tokens = tokens.len(),
                        "the file of access tokens was read again"
                    );
                    loaded.by_account = tokens;
                }
                Err(error) => error!("the access tokens read earlier stay in use: {error}"),
            }
        }
    }
}

fn file_stamp(path: &Path) -> Option<FileStamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read_file(path: &Path) -> Result<TokensByAccount, TokensError> {
    let text = std::fs::read_to_string(path).map_err(|source| TokensError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    // The parser's error is dropped: it would repeat the line with the token.
    let tokens: HashMap<String, String> =
        toml::from_str(&text).map_err(|_| TokensError::NotToml {
            path: path.to_owned(),
        })?;
    tokens
        .into_iter()
        .map(|(waba_id, token)| {
            let place = || {
                let path = path.display();
                format!("META_ACCESS_TOKENS_FILE {path}: the token of account {waba_id}")
            };
            let token = Token::new(token.into(), place)?;
            Ok((waba_id, token))
        })
        .collect()
}

impl Token {
    /// The token itself.
    pub(super) fn exposed(&self) -> &str {
        self.secret.expose_secret()
    }

    /// Checks the token. An error tells its `place`.
    fn new(secret: SecretString, place: impl Fn() -> String) -> Result<Arc<Self>, TokensError> {
        let token = secret.expose_secret();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokensError::Malformed(place()));
        }
        Ok(Arc::new(Self {
            secret,
            secret_index: AtomicUsize::new(0),
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
    fn a_token_that_no_header_can_carry_is_refused_and_its_place_is_told() {
        for token in ["", "a b", "a\nb", "é"] {
            let error = Tokens::new(Some(token.into()), None).unwrap_err();
            let error = error.to_string();
            assert!(
                error.starts_with("META_ACCESS_TOKEN is empty or"),
                "{error}"
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, "\"1022\" = \"own\"\n\"1033\" = \"the secret\"\n").unwrap();
        let error = Tokens::new(None, Some(path)).unwrap_err().to_string();
        assert!(
            error.contains("tokens.toml: the token of account 1033") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn a_changed_file_is_read_again_unless_it_is_invalid() {
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
        assert_eq!(token("1022"), "first", "a token with a space is refused");
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
