//! **Word.** [`HttpAddress`]: where an agent's HTTP API listens, as Consul's own
//! tools read it from `CONSUL_HTTP_ADDR`.
//!
//! | text | means |
//! | --- | --- |
//! | `host`, `host:port` | http, or https where TLS is asked for |
//! | `http://host[:port][/prefix]` | the same: it does not undo `CONSUL_HTTP_SSL=true` |
//! | `https://host[:port][/prefix]` | https |
//! | `unix://path` | http over a unix socket |
//!
//! No port is added but the scheme's own, 80 and 443. IPv6 stands in brackets. A
//! path after the host goes before the path of each request. A user and a
//! password in it are refused, and no error repeats them.

// What comes from outside is read here: nothing that it says may end in a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
};

/// Where an agent's HTTP API listens. `Display` prints it as a URL; it never
/// holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HttpAddress {
    /// A host and a port.
    Tcp {
        tls: bool,
        /// Lower case; IPv6 without its brackets.
        host: Box<str>,
        port: u16,
        /// Goes before each path: empty, or begins with `/` and does not end so.
        prefix: Box<str>,
    },
    /// A unix socket, which is never asked over TLS.
    Unix(PathBuf),
}

impl HttpAddress {
    /// Reads one address. `ssl` is what `CONSUL_HTTP_SSL` says.
    pub(crate) fn parse(text: &str, ssl: bool) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            let bare = text.strip_suffix('/').unwrap_or(text);
            if bare.contains('/') {
                return Err(AddressError::BarePath);
            }
            return tcp(ssl, bare, "");
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" => url(ssl, rest),
            "https" => url(true, rest),
            "unix" if rest.is_empty() => Err(AddressError::NoPath),
            "unix" if rest.contains(char::is_control) => Err(AddressError::Character),
            "unix" => Ok(Self::Unix(rest.into())),
            other => Err(AddressError::scheme(other)),
        }
    }

    /// Whether requests to it go over TLS.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tcp { tls: true, .. })
    }

    /// The socket's path, of a unix address.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp { .. } => None,
        }
    }
}

fn url(tls: bool, rest: &str) -> Result<HttpAddress, AddressError> {
    match rest.split_once('/') {
        Some((authority, prefix)) => tcp(tls, authority, prefix),
        None => tcp(tls, rest, ""),
    }
}

fn tcp(tls: bool, authority: &str, prefix: &str) -> Result<HttpAddress, AddressError> {
    if authority.contains('@') {
        return Err(AddressError::UserInfo);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inner, port) = rest.split_once(']').ok_or(AddressError::Brackets)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| AddressError::Brackets)?;
            let port = match port.strip_prefix(':') {
                None if !port.is_empty() => return Err(AddressError::Brackets),
                port => port,
            };
            (ip.to_string(), port)
        }
        None if authority.matches(':').count() > 1 => return Err(AddressError::Brackets),
        None => match authority.split_once(':') {
            Some((host, port)) => (host_name(host)?, Some(port)),
            None => (host_name(authority)?, None),
        },
    };
    let port = match port {
        None if tls => 443,
        None => 80,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(AddressError::Port)?,
        Some(_) => return Err(AddressError::Port),
    };
    Ok(HttpAddress::Tcp {
        tls,
        host: host.into(),
        port,
        prefix: path_prefix(prefix)?,
    })
}

fn host_name(host: &str) -> Result<String, AddressError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(legal) {
        return Err(AddressError::Host);
    }
    Ok(host.to_ascii_lowercase())
}

/// What may stand in a path and means only itself there: no query, no fragment,
/// no step upwards.
fn path_prefix(prefix: &str) -> Result<Box<str>, AddressError> {
    let prefix = prefix.trim_end_matches('/');
    if prefix.is_empty() {
        return Ok(Box::default());
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
    let lower = prefix.to_ascii_lowercase().replace("%2e", ".");
    let steps = lower.split('/').any(|part| matches!(part, "." | ".."));
    if steps || !prefix.bytes().all(legal) {
        return Err(AddressError::Character);
    }
    Ok(format!("/{prefix}").into())
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp {
                tls,
                host,
                port,
                prefix,
            } => {
                let scheme = if *tls { "https" } else { "http" };
                match host.parse() {
                    Ok(IpAddr::V6(ip)) => write!(f, "{scheme}://[{ip}]:{port}{prefix}"),
                    _ => write!(f, "{scheme}://{host}:{port}{prefix}"),
                }
            }
        }
    }
}

/// Why a text is no address. None of them repeats more of it than a scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AddressError {
    Empty,
    Scheme(Box<str>),
    UserInfo,
    Host,
    Port,
    Brackets,
    BarePath,
    NoPath,
    Character,
}

impl AddressError {
    /// A scheme that is none is not repeated: a password might be part of it.
    fn scheme(scheme: &str) -> Self {
        let named = scheme.len() <= 16 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Self::Scheme(if named { scheme.into() } else { Box::default() })
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme(scheme) => {
                return match &**scheme {
                    "" => write!(f, "unknown scheme; use http, https or unix"),
                    _ => write!(f, "unknown scheme {scheme}; use http, https or unix"),
                };
            }
            Self::Empty => "the address is empty",
            Self::UserInfo => {
                "the address holds a user or a password; give a token by CONSUL_HTTP_TOKEN or a token file"
            }
            Self::Host => "the host is not a name or an IP address",
            Self::Port => "the port is not a number from 1 to 65535",
            Self::Brackets => "an IPv6 address stands in brackets, as in [::1]:8500",
            Self::BarePath => {
                "a path needs its scheme, as in http://host:8500/prefix or unix:///run/consul.sock"
            }
            Self::NoPath => "the path of the unix socket is missing",
            Self::Character => "the path holds what cannot stand in a path",
        })
    }
}

impl std::error::Error for AddressError {}

/// A boolean as Go reads it (`strconv.ParseBool`), which is how Consul's tools
/// read `CONSUL_HTTP_SSL` and `CONSUL_HTTP_SSL_VERIFY`; `None` where it is none.
pub(crate) fn go_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Some(true),
        "0" | "f" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_of_consuls_own_tools_is_read() {
        let cases = [
            ("127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("consul.internal:8500", "http://consul.internal:8500"),
            ("Consul.Internal", "http://consul.internal:80"),
            ("http://localhost:8500", "http://localhost:8500"),
            ("http://localhost:8500/", "http://localhost:8500"),
            ("http://localhost", "http://localhost:80"),
            ("https://localhost", "https://localhost:443"),
            ("HTTPS://localhost:8501", "https://localhost:8501"),
            ("https://proxy:1/a/b//", "https://proxy:1/a/b"),
            ("[::1]:8500", "http://[::1]:8500"),
            ("[2001:DB8::1]", "http://[2001:db8::1]:80"),
            ("https://[::1]:8501/c", "https://[::1]:8501/c"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
            ("unix://run/consul.sock", "unix://run/consul.sock"),
            ("  127.0.0.1:8500\n", "http://127.0.0.1:8500"),
        ];
        for (text, printed) in cases {
            let address = HttpAddress::parse(text, false).unwrap();
            assert_eq!(address.to_string(), printed, "{text}");
        }
    }

    #[test]
    fn asked_for_tls_holds_for_bare_and_http_addresses_and_not_for_sockets() {
        for (text, printed) in [
            ("127.0.0.1:8501", "https://127.0.0.1:8501"),
            ("localhost", "https://localhost:443"),
            ("http://127.0.0.1:8501", "https://127.0.0.1:8501"),
            ("unix:///s", "unix:///s"),
        ] {
            let address = HttpAddress::parse(text, true).unwrap();
            assert_eq!(address.to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        use AddressError as E;
        let cases = [
            ("", E::Empty),
            (" ", E::Empty),
            ("ftp://x", E::Scheme("ftp".into())),
            ("tcp://127.0.0.1:8500", E::Scheme("tcp".into())),
            ("://x", E::Scheme("".into())),
            ("http://", E::Host),
            ("http:///v1", E::Host),
            ("http://a b", E::Host),
            ("http://a?b", E::Host),
            (":8500", E::Host),
            ("host:", E::Port),
            ("host:0", E::Port),
            ("host:65536", E::Port),
            ("host:+80", E::Port),
            ("host:http", E::Port),
            ("::1", E::Brackets),
            ("::1:8500", E::Brackets),
            ("[::1", E::Brackets),
            ("[::1]8500", E::Brackets),
            ("[fe80::1%eth0]:8500", E::Brackets),
            ("[10.0.0.1]:8500", E::Brackets),
            ("/run/consul.sock", E::BarePath),
            ("host:8500/prefix", E::BarePath),
            ("unix://", E::NoPath),
            ("http://h/a?b", E::Character),
            ("http://h/a#b", E::Character),
            ("http://h/a/../b", E::Character),
            ("http://h/a/%2E./b", E::Character),
            ("unix://a\0b", E::Character),
        ];
        for (text, error) in cases {
            assert_eq!(HttpAddress::parse(text, false), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for text in [
            "http://me:hush@host:8500",
            "me:hush@host:8500",
            "hush@host",
            "https://hush@[::1]:8501/x",
            "me:hush@host://x",
            "hush!://x",
        ] {
            let error = HttpAddress::parse(text, false).unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(!told.contains("hush"), "{told}");
        }
    }

    #[test]
    fn booleans_are_gos() {
        for text in ["1", "t", "T", "true", "TRUE", "True", " true "] {
            assert_eq!(go_bool(text), Some(true));
        }
        for text in ["0", "f", "F", "false", "FALSE"] {
            assert_eq!(go_bool(text), Some(false));
        }
        for text in ["", "yes", "no", "2", "on", "truee"] {
            assert_eq!(go_bool(text), None);
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_back_the_same(text in "\\PC{0,40}", ssl: bool) {
            if let Ok(address) = HttpAddress::parse(&text, ssl) {
                let again = HttpAddress::parse(&address.to_string(), false);
                prop_assert_eq!(again, Ok(address));
            }
        }

        #[test]
        fn likely_text_prints_back_the_same(text in "(https?://|unix://)?[a-z\\[\\]:./%@0-9]{0,20}") {
            if let Ok(address) = HttpAddress::parse(&text, false) {
                let again = HttpAddress::parse(&address.to_string(), false);
                prop_assert_eq!(again, Ok(address));
            }
        }
    }
}
