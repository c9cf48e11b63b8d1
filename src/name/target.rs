//! **Word.** Addresses in names (`addr` labels, reverse names) and the names that
//! SRV records point to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Domain, text};

/// What an SRV target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `<hex>.addr[.anything].<zone>`.
    Address(IpAddr),
    /// `<node>.node.<place>.<zone>`, with the node's name in its registered case
    /// and without escapes.
    Node { node: Box<str> },
    /// Any other name.
    Host {
        /// It is Consul's to answer.
        in_zone: bool,
    },
}

/// Reads an absolute SRV target, in canonical text; `zones` are the domains that Consul answers for.
pub(crate) fn classify_target(fqdn: &str, zones: &[Domain]) -> Target {
    let bare = fqdn.strip_suffix('.').unwrap_or(fqdn);
    let Some(rest) = zones.iter().find_map(|zone| strip_zone(bare, zone)) else {
        return Target::Host { in_zone: false };
    };
    let labels: Vec<&str> = rest.split('.').collect();
    let is = |label: &str, word: &str| label.eq_ignore_ascii_case(word);
    if let [digits, addr, ..] = labels[..]
        && is(addr, "addr")
        && let Some(address) = unhex(digits)
    {
        return Target::Address(address);
    }
    // Consul always says the place of a node; without one it is a name that the
    // operator registered.
    let node = match labels[..] {
        [ref node @ .., word, _datacenter] if is(word, "node") => node,
        [ref node @ .., word, _peer, peer] if is(word, "node") && is(peer, "peer") => node,
        _ => return Target::Host { in_zone: true },
    };
    if node.is_empty() {
        return Target::Host { in_zone: true };
    }
    Target::Node {
        node: text::readable(&node.join(".")).into(),
    }
}

fn strip_zone<'a>(name: &'a str, zone: &Domain) -> Option<&'a str> {
    let start = name
        .len()
        .checked_sub(zone.as_str().len())?
        .checked_sub(1)?;
    let (rest, end) = (name.get(..start)?, name.get(start..)?);
    let end = end.strip_prefix('.')?;
    end.eq_ignore_ascii_case(zone.as_str()).then_some(rest)
}

/// 8 hex digits for IPv4, 32 for IPv6; an IPv4-mapped address stays IPv6.
pub(crate) fn hex(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:08x}", address.to_bits()),
        IpAddr::V6(address) => format!("{:032x}", address.to_bits()),
    }
}

pub(super) fn unhex(digits: &str) -> Option<IpAddr> {
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match digits.len() {
        8 => u32::from_str_radix(digits, 16)
            .ok()
            .map(|bits| Ipv4Addr::from_bits(bits).into()),
        32 => u128::from_str_radix(digits, 16)
            .ok()
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
        _ => None,
    }
}

/// `1.0.0.10.in-addr.arpa`, or 32 nibbles and `ip6.arpa` (RFC 1035, section 3.5;
/// RFC 3596, section 2.5).
pub(super) fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", address.to_bits());
            let mut name: String = digits
                .chars()
                .rev()
                .flat_map(|digit| [digit, '.'])
                .collect();
            name.push_str("ip6.arpa");
            name
        }
    }
}

/// The address of a whole reverse name. Lower case.
pub(super) fn unreverse(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [octets @ .., "in-addr", "arpa"] => {
            let octets: &[&str; 4] = octets.try_into().ok()?;
            let mut address = [0; 4];
            for (octet, label) in address.iter_mut().rev().zip(octets) {
                // One way to write each: no leading zero, no sign.
                *octet = label
                    .parse()
                    .ok()
                    .filter(|octet: &u8| octet.to_string() == *label)?;
            }
            Some(Ipv4Addr::from(address).into())
        }
        [nibbles @ .., "ip6", "arpa"] => {
            let nibbles: &[&str; 32] = nibbles.try_into().ok()?;
            let mut bits = 0_u128;
            for label in nibbles.iter().rev() {
                if label.len() != 1 {
                    return None;
                }
                bits = bits << 4 | u128::from(u8::from_str_radix(label, 16).ok()?);
            }
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}
