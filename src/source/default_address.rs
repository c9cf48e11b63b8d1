//! **Pure.** The default address of a service, the last rung of all: the fixed
//! `host:port` or URL that teams keep beside Consul today.
//!
//! | written | read |
//! | --- | --- |
//! | `10.0.0.1:8080`, `[2001:db8::1]:8080`, `web.internal:8080` | that host and port |
//! | `http://web.internal/api`, `https://10.0.0.1:8443` | host and port, 80 or 443 where there is none; the path has no use |
//! | `postgres://app:secret@db.internal:5432/app` | host and port, which any other scheme has to say; user and password have no use |
//!
//! What is refused may hold a password, and is not repeated.
//!
//! From the environment it is `PROCONSUL_DEFAULT_<NAME>`, the service's name in
//! upper case with `-` and `.` as `_`; so is it looked up.

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
pub(crate) fn variable(service: &str) -> Box<str> {
    let service = service.to_uppercase();
    service.replace(['-', '.'], "_").into()
}

const WRONG: &str = "it is neither host:port nor a URL with a port such as http://host:port; it \
                     is not shown here, because such a URL may hold a password";

fn read(address: &str) -> Result<DefaultAddress, Box<str>> {
    let (authority, default) = match address.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let host = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host);
            (host, port_of(scheme))
        }
        None => (address, None),
    };
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().ok().filter(|port| *port != 0))
        }
        _ => (authority, default),
    };
    let port = port.ok_or(WRONG)?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(WRONG.into());
    }
    let host = registered(bare.unwrap_or(host)).map_err(|_| WRONG)?;
    Ok(DefaultAddress { host, port })
}

/// The port of a URL that says none.
fn port_of(scheme: &str) -> Option<u16> {
    let known = [("http", 80), ("https", 443)];
    let same = |(name, _): &&(&str, u16)| scheme.eq_ignore_ascii_case(name);
    known.iter().find(same).map(|(_, port)| *port)
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
            ("redis://cache:6379", "cache. 6379"),
            ("postgres://app:p@ss:1@db:5432/app?x=@y", "db. 5432"),
            (
                "amqp://app@[::1]:5672",
                "00000000000000000000000000000001.addr.consul. 5672",
            ),
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
            "ftp://web",
            "http://",
            "0.0.0.0:80",
            "hush@web:80",
            "app:hush@web:80",
            "postgres://app:hush@db",
            "postgres://app:hush@:5432",
            "postgres://app:hu/sh@db:5432",
            "postgres://app:5432@hush hush:5432",
        ] {
            let told = Defaults::default().set("web", bad).unwrap_err();
            assert!(
                told.contains("host:port") && !told.contains("hush"),
                "{told}"
            );
        }
    }
}
