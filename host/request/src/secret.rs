//! A text that nobody is to read who only reads what the host says.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

/// A password, a token, a URL with one in it. Shown, logged or written, it is `***`.
///
/// Its one way out is [`Secret::reveal`]: whoever calls that sends it to where it belongs. Its schema is
/// `writeOnly`, by which a configuration knows not to show what stands there, readable or not.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Box<str>);

impl Secret {
    /// The text that is shown in place of a secret.
    pub const MASK: &str = "***";

    /// Returns the secret text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Self::MASK)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "writeOnly": true })
    }
}

/// A URL that may have a login in it, `https://user:password@host`: shown without that.
#[derive(Clone, PartialEq, Eq)]
pub struct UrlWithLogin {
    url: Secret,
    shown: Box<str>,
}

impl UrlWithLogin {
    /// Returns the URL with its login.
    pub fn reveal(&self) -> &str {
        self.url.reveal()
    }
}

impl From<String> for UrlWithLogin {
    fn from(url: String) -> Self {
        let shown = without_logins(&url).into();
        Self { url: url.into(), shown }
    }
}

impl fmt::Display for UrlWithLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for UrlWithLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shown)
    }
}

/// A text of somebody else's, an error's perhaps, without the logins of the URLs in it: what stands
/// between `://` and the last `@` of the same word is masked.
pub fn without_logins(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + "://".len());
        clean.push_str(before);
        let word = behind.find(|letter: char| letter.is_whitespace()).unwrap_or(behind.len());
        let login = behind[..word].rfind('@');
        if login.is_some() {
            clean.push_str(Secret::MASK);
        }
        rest = &behind[login.unwrap_or(0)..];
    }
    clean + rest
}

/// What somebody wrote in the place of a URL, a host or a repository, without a login: what stands
/// before the last `@` is masked, but for the scheme.
pub fn without_login(word: &str) -> String {
    let (scheme, rest) = match word.find("://") {
        Some(at) => word.split_at(at + "://".len()),
        None => ("", word),
    };
    match rest.rfind('@') {
        Some(at) => format!("{scheme}{}{}", Secret::MASK, &rest[at..]),
        None => word.to_owned(),
    }
}

/// Whole names of secrets, or the last words of them.
const SECRETS: &[&str] = &[
    "secret",
    "secrets",
    "password",
    "passwords",
    "passphrase",
    "passwd",
    "credential",
    "credentials",
    "authorization",
    "private_key",
    "secret_key",
    "access_key",
    "subscription_key",
    "api_key",
    "api_keys",
    "apikey",
    "access_token",
    "api_token",
    "auth_token",
    "bearer_token",
    "hf_token",
    "refresh_token",
    "security_token",
    "session_token",
];

/// Whether what has this name, a setting or a header, must not be shown.
///
/// Not every `*_token`: here, most of these are about what a model generates.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let ends_in = |secret: &&str| {
        name.strip_suffix(*secret).is_some_and(|before| before.is_empty() || before.ends_with('_'))
    };
    name == "token" || SECRETS.iter().any(ends_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_taken_out_of_every_url_of_a_text() {
        for (text, clean) in [
            ("nothing", "nothing"),
            ("https://hub/path?x=y", "https://hub/path?x=y"),
            ("https://me:s3cret@hub", "https://***@hub"),
            (
                "bad uri: http://s3cret@a, and https://b:s3@cret@c/d",
                "bad uri: http://***@a, and https://***@c/d",
            ),
            ("redis://me:s3/cr?et#x@host gone", "redis://***@host gone"),
            ("://@", "://***@"),
            ("write to me@example.com", "write to me@example.com"),
        ] {
            assert_eq!(without_logins(text), clean);
        }
        for (word, clean) in [
            ("https://me:s3@cret@hub/x", "https://***@hub/x"),
            ("me:s3cret@hub", "***@hub"),
            ("s3://cret@hub", "s3://***@hub"),
            ("llm.example:80", "llm.example:80"),
        ] {
            assert_eq!(without_login(word), clean);
        }
        let url = UrlWithLogin::from("https://me:s3cret@hub".to_owned());
        assert_eq!(format!("{url} {url:?}"), "https://***@hub \"https://***@hub\"");
        assert_eq!(url.reveal(), "https://me:s3cret@hub");
    }

    #[test]
    fn a_secret_is_known_by_the_last_words_of_its_name() {
        for name in ["token", "API-Key", "x-api-key", "smtp_password", "hf_token", "X-Auth-Token"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["since_token", "tokens", "keys", "apikeyless", "key", "max_token"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn nothing_shows_a_secret_but_whoever_reveals_it() {
        let secret = Secret::from("s3cret");
        assert_eq!(
            format!("{secret} {secret:?} {secret:#?} {:?}", Some(&secret)),
            "*** *** *** Some(***)"
        );
        assert_eq!(secret.reveal(), "s3cret");
    }
}
