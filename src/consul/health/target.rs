//! **Pure.** Where an instance stands: its address, and the name that an SRV
//! record gives it.
//!
//! | registered address | target |
//! | --- | --- |
//! | an IP address of its own | `<hex>.addr.<locality>.<domain>.` |
//! | none: the node's | `<node>.node.<locality>.<domain>.` |
//! | a host name | that name |

use std::net::IpAddr;

use crate::name::{canonical, hex};

/// An address as people register it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Registered {
    Ip(IpAddr),
    /// A host name, absolute, in its registered case.
    Host(Box<str>),
}

/// Reads a registered address. What nobody can connect to (`0.0.0.0`, `::`, a
/// network, an address with a zone) is refused, as is what is no host name.
pub(crate) fn registered(text: &str) -> Result<Registered, Box<str>> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        // Consul takes an IPv4-mapped address for the IPv4 address in it.
        let ip = ip.to_canonical();
        return match ip.is_unspecified() {
            true => Err(format!("the address {ip} means every address").into()),
            false => Ok(Registered::Ip(ip)),
        };
    }
    if is_host(text) {
        let name = text.strip_suffix('.').unwrap_or(text);
        return Ok(Registered::Host(format!("{name}.").into()));
    }
    let shown: String = text.chars().take(80).collect();
    Err(format!(
        "the address \"{}\" is neither an IP address nor a host name",
        shown.escape_debug()
    )
    .into())
}

fn is_host(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    // The last label of a host name is not a number (RFC 1123, section 2.1), so
    // that 10.0.0.300 is a mistake and not a name.
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    !numeric && is_name(name)
}

/// Whether DNS carries it, and without an escape.
fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    name.len() <= 253
        && name
            .split('.')
            .all(|label| matches!(label.len(), 1..=63) && label.bytes().all(legal))
}

/// `0a000001.addr.dc1.consul.`; with no locality `0a000001.addr.consul.`.
pub(crate) fn addr_target(ip: IpAddr, locality: Option<&str>, domain: &str) -> String {
    let mut name = format!("{}.addr.", hex(ip));
    end(&mut name, locality, domain);
    name
}

/// `Node-Upper.node.dc1.consul.`: the node in its registered case, with any
/// byte in its name, `bad\032node.node.dc1.consul.`; dots and backslashes mean
/// what they mean in names, as to Consul. `None` for a node whose name DNS does
/// not carry.
pub(crate) fn node_target(node: &str, locality: Option<&str>, domain: &str) -> Option<String> {
    let mut name = format!("{node}.node.");
    end(&mut name, locality, domain);
    canonical(&name)
}

/// The same in lower case, for a server: `None` where it is no host name, as
/// Consul leaves those out.
pub(crate) fn server_target(node: &str, locality: Option<&str>, domain: &str) -> Option<String> {
    let name = node_target(node, locality, domain)?;
    is_name(name.strip_suffix('.')?).then(|| name.to_lowercase())
}

/// The end of a name in Consul's zone.
pub(super) fn end(name: &mut String, locality: Option<&str>, domain: &str) {
    if let Some(locality) = locality.filter(|locality| !locality.is_empty()) {
        name.push_str(locality);
        name.push('.');
    }
    name.push_str(domain.trim_end_matches('.'));
    name.push('.');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_host_names_and_from_mistakes() {
        let ip = |text: &str| Ok(Registered::Ip(text.parse().unwrap()));
        let host = |text: &str| Ok(Registered::Host(text.into()));
        let cases = [
            ("10.0.0.1", ip("10.0.0.1")),
            ("2001:DB8::1", ip("2001:db8::1")),
            ("::ffff:10.0.0.1", ip("10.0.0.1")),
            ("www.example.com", host("www.example.com.")),
            ("WWW.Example.COM.", host("WWW.Example.COM.")),
            ("localhost", host("localhost.")),
            ("under_score", host("under_score.")),
        ];
        for (text, expected) in cases {
            assert_eq!(registered(text), expected, "{text}");
        }
        for text in [
            "",
            ".",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "10.0.0.300",
            "10.0.0.0/8",
            "10.0.0",
            "fe80::1%eth0",
            "a b",
            "a..b",
            "[::1]",
            "http://x",
            "x:80",
            "a\nb",
            "bücher.example",
        ] {
            assert!(registered(text).is_err(), "{text:?}");
        }
        assert!(registered(&"a".repeat(64)).is_err());
        assert!(registered(&["a"; 128].join(".")).is_err());
    }

    #[test]
    fn targets_are_consuls() {
        let ip = "10.1.1.2".parse().unwrap();
        assert_eq!(
            addr_target(ip, Some("dc1"), "consul"),
            "0a010102.addr.dc1.consul."
        );
        assert_eq!(
            addr_target(ip, None, "corp.example."),
            "0a010102.addr.corp.example."
        );
        let ip = "2001:db8::1:1".parse().unwrap();
        assert_eq!(
            addr_target(ip, Some("dc1"), "consul"),
            "20010db8000000000000000000010001.addr.dc1.consul."
        );
        let node = |node| node_target(node, Some("dc1"), "consul");
        assert_eq!(
            node("Node-Upper").as_deref(),
            Some("Node-Upper.node.dc1.consul.")
        );
        assert_eq!(
            node("node.with.dots").as_deref(),
            Some("node.with.dots.node.dc1.consul.")
        );
        for (odd, target) in [
            ("a b", r"a\032b.node.dc1.consul."),
            ("a/b", "a/b.node.dc1.consul."),
            ("bücher", r"b\195\188cher.node.dc1.consul."),
            (r"a\.b", r"a\046b.node.dc1.consul."),
            (r"a\", r"a\046node.dc1.consul."),
        ] {
            assert_eq!(node(odd).as_deref(), Some(target), "{odd:?}");
            assert_eq!(server_target(odd, Some("dc1"), "consul"), None, "{odd:?}");
        }
        for bad in ["", "a..b", &"a".repeat(64), r"\256"] {
            assert_eq!(node(bad), None, "{bad:?}");
        }
    }
}
