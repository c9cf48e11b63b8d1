//! **Pure.** Who is asked for names that are not Consul's: which servers, for which
//! domains, and which names nobody is asked for (RFC 6761, RFC 7686).

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
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    str::FromStr,
};

use crate::{
    error::{Error, ErrorKind},
    name,
};

/// The port of DNS.
const PORT: u16 = 53;

/// Servers that are read from resolv.conf; more are not looked at there either
/// (resolv.conf(5)).
const MOST_SYSTEM: usize = 3;

/// The labels of a domain, from left to right.
type Labels = Box<[Box<[u8]>]>;

/// Servers for names that are not in Consul's domain, as `serve --upstream` takes them.
///
/// ```
/// use proconsul::stub::Upstreams;
///
/// let upstreams = Upstreams::parse(["system", "corp.example=10.0.0.53"])?;
/// # Ok::<(), proconsul::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstreams {
    /// The servers of `/etc/resolv.conf` for what no other route is for.
    system: bool,
    /// For all names.
    servers: Vec<SocketAddr>,
    /// For names in a domain, the longest first.
    routes: Vec<(Labels, Vec<SocketAddr>)>,
    /// Answers with private addresses are not handed on.
    stop_rebind: bool,
}

impl Upstreams {
    /// Nobody: other names are refused.
    pub fn none() -> Self {
        Self::default()
    }

    /// The servers of `/etc/resolv.conf`, followed as it changes.
    pub fn system() -> Self {
        Self {
            system: true,
            ..Self::default()
        }
    }

    /// Reads `system`, `none`, addresses (`10.0.0.53`, `10.0.0.53:5353`,
    /// `[::1]:53`), and addresses for one domain (`corp.example=10.0.0.53`). Several
    /// servers for the same names are asked in turn.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for anything else, and for `none` beside others.
    pub fn parse<T: AsRef<str>>(words: impl IntoIterator<Item = T>) -> Result<Self, Error> {
        let mut all = Self::default();
        let (mut others, mut none) = (false, false);
        for word in words {
            let word = word.as_ref().trim();
            others |= none;
            if word.eq_ignore_ascii_case("none") {
                others |= !all.is_none();
                none = true;
            } else if word.eq_ignore_ascii_case("system") {
                all.system = true;
            } else if let Some((domain, server)) = word.split_once('=') {
                let (domain, server) = (labels(domain)?, address(server)?);
                match all.routes.iter_mut().find(|(known, _)| *known == domain) {
                    Some((_, servers)) => servers.push(server),
                    None => all.routes.push((domain, vec![server])),
                }
            } else {
                all.servers.push(address(word)?);
            }
        }
        if others {
            let message = "--upstream none turns forwarding off: it cannot stand beside others";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        all.routes
            .sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        Ok(all)
    }

    /// Does not hand on answers that lead into this network (loopback, private,
    /// link-local addresses): a name on the Internet that does so may be meant to make
    /// a browser talk to a machine of ours (DNS rebinding). Domains with servers of
    /// their own are trusted. Default: everything is handed on.
    #[must_use]
    pub fn stop_rebind(mut self, stop: bool) -> Self {
        self.stop_rebind = stop;
        self
    }

    /// Whether nobody is asked.
    pub fn is_none(&self) -> bool {
        !self.system && self.servers.is_empty() && self.routes.is_empty()
    }

    /// Whether a reply about the labels of a name may be handed on. `addresses`: those
    /// in it, asked for only where they count; `None`: it cannot be read, though a client
    /// may make something of it.
    pub(crate) fn trusts(
        &self,
        labels: &[&[u8]],
        addresses: impl FnOnce() -> Option<Vec<IpAddr>>,
    ) -> bool {
        let is_outside = |all: Vec<IpAddr>| !all.into_iter().any(is_inside);
        !self.stop_rebind || self.route(labels).is_some() || addresses().is_some_and(is_outside)
    }

    /// Whether resolv.conf is to be read.
    pub(crate) fn wants_system(&self) -> bool {
        self.system
    }

    /// The servers for the labels of a name, in the order in which they are asked.
    /// `system`: those of resolv.conf.
    pub(crate) fn of(&self, labels: &[&[u8]], system: &[SocketAddr]) -> Vec<SocketAddr> {
        match self.route(labels) {
            Some((_, servers)) => servers.clone(),
            None => self.servers.iter().chain(system).copied().collect(),
        }
    }

    /// All servers that are named, and those of resolv.conf, once each.
    pub(crate) fn all(&self, system: &[SocketAddr]) -> BTreeSet<SocketAddr> {
        let of_routes = self.routes.iter().flat_map(|(_, servers)| servers);
        let all = self.servers.iter().chain(of_routes).chain(system);
        all.copied().collect()
    }

    /// The labels of the domain that the name's servers are for; none where they are for all.
    pub(crate) fn domain(&self, labels: &[&[u8]]) -> impl Iterator<Item = &[u8]> {
        let route = self.route(labels).into_iter();
        route.flat_map(|(domain, _)| domain.iter().map(AsRef::as_ref))
    }

    /// Whether one of the domains that have servers of their own is below that label.
    pub(crate) fn has_below(&self, top: &str) -> bool {
        let mut tops = self.routes.iter().filter_map(|(domain, _)| domain.last());
        tops.any(|last| last.eq_ignore_ascii_case(top.as_bytes()))
    }

    /// The longest domain that the name is in, and its servers.
    fn route(&self, labels: &[&[u8]]) -> Option<&(Labels, Vec<SocketAddr>)> {
        self.routes.get(self.route_number(labels)?)
    }

    /// Which of the domains that is; `None`: the name's servers are for all.
    pub(crate) fn route_number(&self, labels: &[&[u8]]) -> Option<usize> {
        let is_within =
            |(domain, _): &(Labels, _)| name::below(labels, domain.iter().rev()).is_some();
        self.routes.iter().position(is_within)
    }
}

fn labels(domain: &str) -> Result<Labels, Error> {
    let domain = domain.trim().trim_matches('.');
    let fits = |label: &str| (1..=63).contains(&label.len());
    if domain.is_empty() || !domain.split('.').all(fits) {
        let message = format!("--upstream {domain:?}=...: that is no domain");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let labels = domain.split('.').map(|label| label.as_bytes().into());
    Ok(labels.collect())
}

fn address(text: &str) -> Result<SocketAddr, Error> {
    let text = text.trim();
    let bare = IpAddr::from_str(text.trim_matches(['[', ']']));
    let address = match bare {
        Ok(ip) => Some(SocketAddr::new(ip, PORT)),
        Err(_) => text.parse().ok(),
    };
    address
        .filter(|address| address.port() != 0)
        .ok_or_else(|| {
            let message = format!(
                "--upstream {text:?}: write an address as 10.0.0.53 or 10.0.0.53:5353, one for a \
             domain as corp.example=10.0.0.53, or system, or none"
            );
            Error::new(ErrorKind::Invalid, message)
        })
}

/// The name servers in the text of a resolv.conf, without those that are ours. `zone`: the number
/// of a network interface (RFC 4007, section 11); a server behind one that there is not is left
/// out.
pub(crate) fn resolv_conf(
    text: &str,
    own: &[SocketAddr],
    zone: impl Fn(&str) -> Option<u32>,
) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let word = words.next().filter(|word| *word == "nameserver")?;
        debug_assert_eq!(word, "nameserver");
        let word = words.next()?;
        match word.split_once('%') {
            None => Some(SocketAddr::new(word.parse().ok()?, PORT)),
            Some((ip, name)) => {
                let number = name.parse().ok().or_else(|| zone(name))?;
                Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, number).into())
            }
        }
    });
    servers
        .take(MOST_SYSTEM)
        .filter(|server| !is_ours(*server, own))
        .collect()
}

/// Whether a question to that server would come back to us.
pub(crate) fn is_ours(server: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|own| {
        let same = own.ip() == server.ip();
        // What is sent to no address in particular goes to this machine.
        let is_here = server.ip().is_loopback() || server.ip().is_unspecified();
        let is_loopback = own.ip().is_loopback() && server.ip().is_unspecified();
        let every = own.ip().is_unspecified() && is_here || is_loopback;
        own.port() == server.port() && (same || every)
    })
}

/// Whether an address is one of this machine's or of a private network.
fn is_inside(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
        }
    }
}

/// What is answered here, whatever is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// This machine (RFC 6761, section 6.3).
    Loopback,
    /// There is no such name (RFC 6761, sections 6.2 and 6.4; RFC 7686).
    NoSuchName,
}

/// Whether the labels of a name are answered here. `uses_test`: somebody is named who knows names
/// below `test`, so that it exists.
pub(crate) fn local(labels: &[&[u8]], uses_test: impl FnOnce() -> bool) -> Option<Local> {
    let last = labels.last()?.to_ascii_lowercase();
    match last.as_slice() {
        b"localhost" => Some(Local::Loopback),
        b"invalid" | b"onion" => Some(Local::NoSuchName),
        b"test" => (!uses_test()).then_some(Local::NoSuchName),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels_of(name: &str) -> Vec<&[u8]> {
        let labels = name.split('.').filter(|label| !label.is_empty());
        labels.map(str::as_bytes).collect()
    }

    fn of(upstreams: &Upstreams, name: &str) -> Vec<String> {
        let system = ["192.0.2.1:53".parse().unwrap()];
        let system: &[SocketAddr] = if upstreams.wants_system() {
            &system
        } else {
            &[]
        };
        let servers = upstreams.of(&labels_of(name), system);
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_longest_domain_has_its_own_servers() {
        let words = [
            "10.0.0.1",
            "corp.example=10.0.0.2:54",
            "a.corp.example=10.0.0.3",
            "Corp.Example=[::1]:55",
        ];
        let upstreams = Upstreams::parse(words).unwrap();
        assert_eq!(of(&upstreams, "www.example.com."), ["10.0.0.1:53"]);
        assert_eq!(of(&upstreams, "corp.example."), ["10.0.0.2:54"]);
        assert_eq!(of(&upstreams, "X.Corp.EXAMPLE."), ["10.0.0.2:54"]);
        assert_eq!(of(&upstreams, "b.a.corp.example."), ["10.0.0.3:53"]);
        assert_eq!(of(&upstreams, "mycorp.example."), ["10.0.0.1:53"]);
    }

    #[test]
    fn the_systems_servers_come_after_those_that_are_named() {
        let both = Upstreams::parse(["system", "10.0.0.1"]).unwrap();
        assert_eq!(of(&both, "example.com."), ["10.0.0.1:53", "192.0.2.1:53"]);
        assert_eq!(of(&Upstreams::system(), "example.com."), ["192.0.2.1:53"]);
        assert!(of(&Upstreams::parse(["none"]).unwrap(), "example.com.").is_empty());
    }

    #[test]
    fn what_is_no_server_is_refused_with_what_to_write() {
        for bad in [
            "",
            "dns",
            "10.0.0.1:0",
            "=10.0.0.1",
            "a..b=10.0.0.1",
            "corp=",
        ] {
            let error = Upstreams::parse([bad]).unwrap_err();
            assert!(error.to_string().contains("--upstream"), "{bad}");
        }
        assert!(Upstreams::parse(["none", "system"]).is_err());
    }

    #[test]
    fn resolv_conf_is_read_without_our_own_addresses() {
        let text = "# nameserver 10.0.0.9\nsearch corp.example\nnameserver 127.0.0.1\n\
                    nameserver 10.0.0.1 # first\n  nameserver fe80::1%eth0\nnameserver 10.0.0.2\nnameserver x\n";
        let elsewhere = "nameserver fe80::1%wlan0\nnameserver fe80::2%7\nnameserver fe80::3\n";
        let zone = |name: &str| (name == "eth0").then_some(2);
        let own = ["127.0.0.1:53".parse().unwrap()];
        let read = |own: &[SocketAddr]| -> Vec<String> {
            resolv_conf(text, own, zone)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(read(&own), ["10.0.0.1:53", "[fe80::1%2]:53"]);
        assert_eq!(
            read(&["0.0.0.0:53".parse().unwrap()]),
            ["10.0.0.1:53", "[fe80::1%2]:53"]
        );
        assert_eq!(read(&["127.0.0.1:8653".parse().unwrap()]).len(), 3);
        let servers = resolv_conf(elsewhere, &own, zone);
        let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["[fe80::2%7]:53", "[fe80::3]:53"]);
    }

    #[test]
    fn an_upstream_that_is_ourselves_is_known_by_every_address_of_ours() {
        for (server, own, ours) in [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "0.0.0.0:53", true),
            ("127.0.0.2:53", "0.0.0.0:53", true),
            ("0.0.0.0:53", "127.0.0.1:53", true),
            ("0.0.0.0:53", "0.0.0.0:53", true),
            ("[::]:53", "[::1]:53", true),
            ("127.0.0.1:54", "127.0.0.1:53", false),
            ("127.0.0.2:53", "127.0.0.1:53", false),
            ("10.0.0.1:53", "127.0.0.1:53", false),
            ("0.0.0.0:53", "10.0.0.1:53", false),
        ] {
            let (server, own) = (server.parse().unwrap(), own.parse().unwrap());
            assert_eq!(is_ours(server, &[own]), ours, "{server} for {own}");
        }
    }

    #[test]
    fn addresses_that_lead_into_this_network_are_told_from_those_of_the_internet() {
        let all = Upstreams::parse(["10.0.0.53", "corp.example=10.0.0.54"]);
        let strict = all.unwrap().stop_rebind(true);
        let trusts = |name: &str, address: &str| {
            let address = address.parse().unwrap();
            strict.trusts(&labels_of(name), || Some(vec![address]))
        };
        for inside in [
            "127.0.0.1",
            "127.9.9.9",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
        ] {
            assert!(!trusts("evil.example", inside), "{inside}");
            assert!(trusts("a.corp.example", inside), "{inside}");
        }
        for outside in ["203.0.113.1", "172.32.0.1", "2001:db8::1", "100.64.0.1"] {
            assert!(trusts("good.example", outside), "{outside}");
        }
        // What cannot be read may still be read by a client.
        assert!(!strict.trusts(&labels_of("evil.example"), || None));
    }

    #[test]
    fn some_names_are_answered_here() {
        let local = |name: &str| local(&labels_of(name), || false);
        assert_eq!(local("LocalHost."), Some(Local::Loopback));
        assert_eq!(local("a.localhost."), Some(Local::Loopback));
        assert_eq!(local("x.invalid."), Some(Local::NoSuchName));
        assert_eq!(local("x.onion."), Some(Local::NoSuchName));
        assert_eq!(local("x.Test."), Some(Local::NoSuchName));
        assert_eq!(super::local(&labels_of("x.test."), || true), None);
        assert_eq!(local("localhost.example."), None);
        assert_eq!(local("."), None);
    }
}
