//! Splits the broker's URLs into addresses without logins, and the login. The client library does not use a URL's login
//! by itself, and it writes addresses to its debug log.

use async_nats::{ConnectOptions, ServerAddr};

/// Where to connect, and as whom.
pub(crate) struct Servers {
    /// The addresses, without logins.
    pub(crate) addresses: Vec<ServerAddr>,
    /// Whether one of them asks for TLS, which makes it mandatory for all.
    pub(crate) over_tls: bool,
    login: Option<Login>,
}

enum Login {
    User(String, String),
    Token(String),
}

impl Servers {
    /// Parses URLs separated by commas; `None` if one of them is invalid. The first login among them is used for all.
    pub(crate) fn parse(urls: &str) -> Option<Servers> {
        let mut servers = Servers {
            addresses: Vec::new(),
            over_tls: false,
            login: None,
        };
        for url in urls.split(',') {
            let address: ServerAddr = url.trim().parse().ok()?;
            if address.host().is_empty() {
                return None;
            }
            if let Some(user) = address.username() {
                let login = Login::parse(user, address.password())?;
                servers.login.get_or_insert(login);
            }
            servers.over_tls |= address.tls_required();
            let mut bare = address.into_inner();
            bare.set_username("").ok()?;
            bare.set_password(None).ok()?;
            servers.addresses.push(ServerAddr::from_url(bare).ok()?);
        }
        Some(servers)
    }

    /// `options` with the login added.
    pub(crate) fn login(&self, options: ConnectOptions) -> ConnectOptions {
        match &self.login {
            Some(Login::User(user, password)) => options.user_and_password(user.clone(), password.clone()),
            Some(Login::Token(token)) => options.token(token.clone()),
            None => options,
        }
    }
}

impl Login {
    fn parse(user: &str, password: Option<&str>) -> Option<Login> {
        let user = decode(user)?;
        Some(match password {
            Some(password) => Login::User(user, decode(password)?),
            None => Login::Token(user),
        })
    }
}

/// Decodes a URL's percent-encoding.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_taken_out_of_the_addresses() {
        let servers = Servers::parse("nats://a:1, tls://us%40er:p%3Aw@b:2,c").unwrap();
        let shown: Vec<&str> = servers.addresses.iter().map(ServerAddr::as_url_str).collect();
        assert_eq!(shown, ["nats://a:1", "tls://b:2", "nats://c"]);
        assert!(servers.over_tls && !Servers::parse("nats://a:1").unwrap().over_tls);
        assert!(
            matches!(servers.login, Some(Login::User(user, password)) if user == "us@er" && password == "p:w")
        );
    }

    #[test]
    fn a_user_without_a_password_is_a_token() {
        let servers = Servers::parse("nats://s3cret@a:1").unwrap();
        assert!(matches!(servers.login, Some(Login::Token(token)) if token == "s3cret"));
    }

    #[test]
    fn what_is_no_url_of_a_broker_is_refused() {
        for text in [
            "",
            "nats://",
            "http://a:1",
            "nats://a:1,,",
            "nats://a:b",
            "nats://%zz@a:1",
            ":::",
        ] {
            assert!(Servers::parse(text).is_none(), "{text}");
        }
    }
}
