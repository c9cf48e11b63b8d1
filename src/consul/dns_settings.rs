//! **Pure.** What an agent's DNS interface is set to, read from
//! `/v1/agent/self` (Consul docs: Agent configuration, `dns_config`): without it
//! an answer made from the catalog could be told from Consul's own by its TTL.
//!
//! | setting | of |
//! | --- | --- |
//! | `service_ttl` | the service's lower-cased name: itself, else the longest `prefix*`, else 0 |
//! | `node_ttl` | nodes, `addr` names, the zone's servers |
//! | `soa` | the zone's SOA, and with `min_ttl` what does not exist |
//! | `only_passing` | instances with a warning are not given; prepared queries say that themselves |
//! | `enable_additional_node_meta_txt` | whether metadata stands beside other records |

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

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::health::go_duration;
use crate::name::{ConsulName, Subject};

/// The numbers of a zone's SOA, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Soa {
    pub(crate) refresh: u32,
    pub(crate) retry: u32,
    pub(crate) expire: u32,
    /// TTL of the SOA itself and of what does not exist.
    pub(crate) minimum: u32,
}

impl Default for Soa {
    /// Consul's own.
    fn default() -> Self {
        Self {
            refresh: 3600,
            retry: 600,
            expire: 86400,
            minimum: 0,
        }
    }
}

/// How an agent answers over DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsSettings {
    pub(crate) soa: Soa,
    pub(crate) node_ttl: Duration,
    /// By service, or by prefix with `*` at its end.
    service_ttl: BTreeMap<Box<str>, Duration>,
    pub(crate) only_passing: bool,
    pub(crate) additional_text: bool,
    /// Which names there can be at all, by the agent's version.
    lacks: Lacks,
}

/// What an agent does not know of, so that there is no such name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lacks {
    /// Namespaces, partitions, sameness groups: Consul Enterprise.
    places: bool,
    /// Peers: since 1.13.
    peers: bool,
    /// Virtual addresses: since 1.11.
    virtual_addresses: bool,
}

impl Default for DnsSettings {
    /// Consul's own.
    fn default() -> Self {
        Self {
            soa: Soa::default(),
            node_ttl: Duration::ZERO,
            service_ttl: BTreeMap::new(),
            only_passing: false,
            additional_text: true,
            lacks: Lacks::default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Myself {
    #[serde(default)]
    config: Option<Configured>,
    debug_config: Option<Debugged>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configured {
    #[serde(default)]
    version: Option<Box<str>>,
}

/// Durations as Go writes them. What is missing or unreadable is Consul's default.
#[derive(Deserialize)]
struct Debugged {
    #[serde(rename = "DNSNodeTTL", default)]
    node_ttl: Option<Box<str>>,
    #[serde(rename = "DNSServiceTTL", default)]
    service_ttl: Option<BTreeMap<Box<str>, Box<str>>>,
    #[serde(rename = "DNSSOA", default)]
    soa: Option<DebuggedSoa>,
    #[serde(rename = "DNSOnlyPassing", default)]
    only_passing: Option<bool>,
    #[serde(rename = "DNSNodeMetaTXT", default)]
    additional_text: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DebuggedSoa {
    refresh: u32,
    retry: u32,
    expire: u32,
    minttl: u32,
}

impl DnsSettings {
    /// Reads the body of `/v1/agent/self`. `None`: it tells nothing of DNS.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let myself: Myself = serde_json::from_slice(body).ok()?;
        let told = myself.debug_config?;
        let version = myself.config.and_then(|config| config.version);
        let default = Self::default();
        let ttls = told.service_ttl.unwrap_or_default().into_iter();
        Some(Self {
            soa: told.soa.map_or(default.soa, |soa| Soa {
                refresh: soa.refresh,
                retry: soa.retry,
                expire: soa.expire,
                minimum: soa.minttl,
            }),
            node_ttl: told
                .node_ttl
                .and_then(|text| go_duration(&text))
                .unwrap_or(default.node_ttl),
            service_ttl: ttls
                .filter_map(|(name, ttl)| Some((name, go_duration(&ttl)?)))
                .collect(),
            only_passing: told.only_passing.unwrap_or(default.only_passing),
            additional_text: told.additional_text.unwrap_or(default.additional_text),
            lacks: version.map_or(default.lacks, |version| Lacks::of(&version)),
        })
    }

    /// The TTL of what stands behind a name. `service`: what a prepared query found
    /// instances of.
    pub(crate) fn ttl(&self, name: &ConsulName, service: Option<&str>) -> Duration {
        match name.subject() {
            Subject::Service { service, .. }
            | Subject::Connect { service }
            | Subject::Ingress { service } => self.service_ttl(service),
            Subject::Query(_) => service.map_or(Duration::ZERO, |name| self.service_ttl(name)),
            // As Consul: a pointer has none, whatever is set.
            Subject::Reverse(_) => Duration::ZERO,
            Subject::Node(_) | Subject::Address(_) | Subject::Apex | Subject::Virtual { .. } => {
                self.node_ttl
            }
        }
    }

    fn service_ttl(&self, service: &str) -> Duration {
        let service = service.to_lowercase();
        if let Some(ttl) = self.service_ttl.get(&*service) {
            return *ttl;
        }
        let fitting = self.service_ttl.iter().filter_map(|(pattern, ttl)| {
            let prefix = pattern.strip_suffix('*')?;
            service.starts_with(prefix).then_some((prefix.len(), *ttl))
        });
        fitting
            .max_by_key(|(length, _)| *length)
            .map_or(Duration::ZERO, |(_, ttl)| ttl)
    }

    /// Whether the agent does not know of such names. Asked over HTTP it would give
    /// local instances for some of them.
    pub(crate) fn has_no_such(&self, name: &ConsulName) -> bool {
        self.lacks.has(name)
    }

    /// Whether an agent leaves out instances with a warning behind this name.
    pub(crate) fn gives_only_passing(&self, name: &ConsulName) -> bool {
        let by_service = matches!(
            name.subject(),
            Subject::Service { .. } | Subject::Connect { .. } | Subject::Ingress { .. }
        );
        self.only_passing && by_service
    }
}

impl Lacks {
    /// All that some edition or version does not know.
    pub(crate) fn everything() -> Self {
        Self {
            places: true,
            peers: true,
            virtual_addresses: true,
        }
    }

    /// Whether a name asks for something of it.
    pub(crate) fn has(self, name: &ConsulName) -> bool {
        let place = name.locality();
        let is_virtual = matches!(name.subject(), Subject::Virtual { .. });
        let apart = [&place.namespace, &place.partition, &place.sameness_group];
        self.places && apart.iter().any(|part| part.is_some())
            || self.peers && place.peer.is_some()
            || self.virtual_addresses && is_virtual
    }

    /// By a version such as `1.8.7` or `1.18.0+ent`; nothing by one that is none.
    fn of(version: &str) -> Self {
        let mut numbers = version
            .split('.')
            .map_while(|part| part.parse::<u32>().ok());
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            return Self::default();
        };
        Self {
            places: !version.contains("+ent"),
            peers: (major, minor) < (1, 13),
            virtual_addresses: (major, minor) < (1, 11),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Domain;

    const SELF: &str = r#"{"Config": {"Datacenter": "dc1"}, "DebugConfig": {
        "DNSNodeTTL": "30s", "DNSOnlyPassing": true, "DNSNodeMetaTXT": false,
        "DNSSOA": {"Expire": 5000, "Minttl": 60, "Refresh": 1200, "Retry": 300},
        "DNSServiceTTL": {"*": "5s", "ma*": "10s", "many*": "1m0s", "web": "31s"}}}"#;

    fn ttl(name: &str) -> u64 {
        let settings = DnsSettings::read(SELF.as_bytes()).unwrap();
        let name = ConsulName::parse(name, &Domain::default()).unwrap();
        settings.ttl(&name, Some("web")).as_secs()
    }

    #[test]
    fn the_longest_prefix_gives_a_service_its_ttl() {
        assert_eq!(ttl("web.service.consul"), 31);
        assert_eq!(ttl("WEB.service.dc2.consul"), 31);
        assert_eq!(ttl("v2.web.service.consul"), 31);
        assert_eq!(ttl("many5.service.consul"), 60);
        assert_eq!(ttl("mail.service.consul"), 10);
        assert_eq!(ttl("v4only.service.consul"), 5);
        assert_eq!(ttl("web.connect.consul"), 31);
    }

    #[test]
    fn nodes_have_their_own_and_pointers_none() {
        assert_eq!(ttl("node-a.node.consul"), 30);
        assert_eq!(ttl("0a000001.addr.consul"), 30);
        assert_eq!(ttl("1.0.0.10.in-addr.arpa"), 0);
        assert_eq!(ttl("webq.query.consul"), 31);
    }

    #[test]
    fn names_that_a_version_does_not_know_are_not_there() {
        let has = |version: &str, name: &str| {
            let body = format!(r#"{{"Config": {{"Version": "{version}"}}, "DebugConfig": {{}}}}"#);
            let name = ConsulName::parse(name, &Domain::default()).unwrap();
            !DnsSettings::read(body.as_bytes())
                .unwrap()
                .has_no_such(&name)
        };
        for (version, places, peers) in [
            ("1.8.7", false, false),
            ("1.13.0", false, true),
            ("1.22.0+ent", true, true),
            ("2.0.0-rc1", false, true),
            ("unknown", true, true),
        ] {
            assert!(has(version, "web.service.dc1.consul"));
            assert_eq!(has(version, "web.service.p.ap.consul"), places, "{version}");
            assert_eq!(
                has(version, "web.service.ns1.ns.consul"),
                places,
                "{version}"
            );
            assert_eq!(
                has(version, "web.service.x.peer.consul"),
                peers,
                "{version}"
            );
            assert_eq!(has(version, "web.virtual.consul"), peers, "{version}");
        }
    }

    #[test]
    fn what_is_not_told_is_as_consul_is_by_itself() {
        let soa = DnsSettings::read(SELF.as_bytes()).unwrap().soa;
        assert_eq!((soa.refresh, soa.expire, soa.minimum), (1200, 5000, 60));
        let read = |text: &str| DnsSettings::read(text.as_bytes());
        assert_eq!(read(r#"{"DebugConfig": {}}"#), Some(DnsSettings::default()));
        let odd = r#"{"DebugConfig": {"DNSNodeTTL": "soon", "DNSServiceTTL": {"web": "-3s"}}}"#;
        assert_eq!(read(odd), Some(DnsSettings::default()));
        for none in ["", "null", "[]", "{}", r#"{"DebugConfig": null}"#, "<html>"] {
            assert_eq!(read(none), None, "{none}");
        }
    }
}
