//! **Pure.** The default address of a service, the last rung of all: the fixed
//! `host:port` or URL that teams keep beside Consul today.
//!
//! | written | read |
//! | --- | --- |
//! | `10.0.0.1:8080`, `[2001:db8::1]:8080`, `web.internal:8080` | that host and port |
//! | `http://web.internal/api`, `https://10.0.0.1:8443` | host and port, 80 or 443 where there is none; the path has no use |
//!
//! From the environment it is `PROCONSUL_DEFAULT_<NAME>`, the service's name in
//! upper case with `-` and `.` as `_`; so is it looked up.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    consul::health::target::{Registered, addr_target, registered},
    found::{Found, Instance, TargetKind},
};

/// The start of the variables.
pub(crate) const PREFIX: &str = "PROCONSUL_DEFAULT_";

/// Default addresses by service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Defaults(BTreeMap<Box<str>, DefaultAddress>);

#[derive(Clone, Debug, PartialEq)]
struct DefaultAddress {
    host: Registered,
    port: u16,
}

impl Defaults {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the address of one service, by its own name or by the variable's.
    pub(crate) fn set(&mut self, service: &str, address: &str) -> Result<(), Box<str>> {
        self.0.insert(variable(service), read(address)?);
        Ok(())
    }

    /// The instance that stands in for a service. Its target is named in `domain`.
    pub(crate) fn find(&self, service: &str, domain: &str) -> Option<Found> {
        let DefaultAddress { host, port } = self.0.get(&variable(service))?;
        let (target, kind, addresses) = match host {
            Registered::Ip(ip) => {
                let target = addr_target(*ip, None, domain);
                (Arc::from(target), TargetKind::Address, vec![*ip])
            }
            Registered::Host(host) => (Arc::from(&**host), TargetKind::Host, Vec::new()),
        };
        Some(Found::Instances(vec![Instance {
            other: None,
            target,
            kind,
            glued: kind != TargetKind::Host,
            addresses,
            port: *port,
            priority: 1,
            weight: 1,
            node: None,
            text: None,
            facts: None,
        }]))
    }
}

/// `pay-api.v2` as `PAY_API_V2`.
fn variable(service: &str) -> Box<str> {
    let service = service.to_uppercase();
    service.replace(['-', '.'], "_").into()
}

fn read(address: &str) -> Result<DefaultAddress, Box<str>> {
    let wrong = || {
        let shown: String = address.chars().take(80).collect();
        let shown = shown.escape_debug();
        format!("\"{shown}\" is neither host:port nor a URL such as http://host:port").into()
    };
    let (rest, default) = match address.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (rest, Some(80)),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (rest, Some(443)),
        Some(_) => return Err(wrong()),
        None => (address, None),
    };
    let authority = match default {
        Some(_) => rest.split(['/', '?', '#']).next().unwrap_or_default(),
        None => rest,
    };
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse().ok().filter(|port| *port != 0);
            (host, port.ok_or_else(wrong)?)
        }
        _ => (authority, default.ok_or_else(wrong)?),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(wrong());
    }
    let host = registered(bare.unwrap_or(host))?;
    Ok(DefaultAddress { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(address: &str) -> String {
        let mut defaults = Defaults::default();
        defaults.set("pay-api", address).unwrap();
        match defaults.find("Pay.Api", "consul") {
            Some(Found::Instances(all)) => format!("{} {}", all[0].target, all[0].port),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_and_urls_are_read() {
        for (written, read) in [
            ("10.0.0.1:8080", "0a000001.addr.consul. 8080"),
            ("web.internal:81", "web.internal. 81"),
            ("http://web.internal", "web.internal. 80"),
            ("HTTPS://web.internal/api?x=1:2", "web.internal. 443"),
            ("https://10.0.0.1:8443/", "0a000001.addr.consul. 8443"),
            (
                "[::1]:81",
                "00000000000000000000000000000001.addr.consul. 81",
            ),
            (
                "http://[::1]/",
                "00000000000000000000000000000001.addr.consul. 80",
            ),
        ] {
            assert_eq!(found(written), read, "{written}");
        }
    }

    #[test]
    fn what_has_no_port_or_no_host_is_refused() {
        for bad in [
            "",
            "web",
            "web:",
            "web:0",
            "web:99999",
            "::1:80",
            "ftp://web:1",
            "http://",
            "0.0.0.0:80",
            "user@web:80",
        ] {
            assert!(Defaults::default().set("web", bad).is_err(), "{bad:?}");
        }
    }
}
