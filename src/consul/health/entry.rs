//! **Pure.** One instance as Consul's JSON tells it: its shape, and what follows
//! from it alone. Unknown keys are ignored, `null` and missing mean empty, a
//! known key of a wrong type makes the entry unreadable.
//!
//! | worst check | answered | weight |
//! | --- | --- | --- |
//! | none, or passing | yes | `Weights.Passing` |
//! | warning | yes | `Weights.Warning` |
//! | a status that Consul does not know | yes | 1 |
//! | critical | no | |

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    endpoint::Health,
    found::{Facts, NodeText},
};

type Texts = BTreeMap<Box<str>, Box<str>>;

/// An element of `/v1/health/...`, or of a prepared query's `Nodes`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    pub(super) node: Node,
    pub(super) service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Node {
    pub(super) node: Box<str>,
    #[serde(default)]
    address: Option<Box<str>>,
    #[serde(default)]
    datacenter: Option<Box<str>>,
    #[serde(default)]
    tagged_addresses: Option<Texts>,
    #[serde(default)]
    pub(super) meta: Option<Texts>,
    #[serde(default)]
    peer_name: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Service {
    #[serde(rename = "ID", default)]
    id: Option<Box<str>>,
    #[serde(default)]
    pub(super) service: Option<Box<str>>,
    #[serde(default)]
    tags: Option<Box<[Box<str>]>>,
    #[serde(default)]
    address: Option<Box<str>>,
    #[serde(default)]
    tagged_addresses: Option<BTreeMap<Box<str>, Place>>,
    #[serde(default)]
    meta: Option<Texts>,
    #[serde(default)]
    port: Option<i64>,
    #[serde(default)]
    ports: Option<Vec<NamedPort>>,
    #[serde(default)]
    weights: Option<Weights>,
    #[serde(default)]
    peer_name: Option<Box<str>>,
    #[serde(default)]
    pub(super) namespace: Option<Box<str>>,
    #[serde(default)]
    pub(super) partition: Option<Box<str>>,
}

/// One of several addresses that an instance is registered with.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Place {
    #[serde(default)]
    address: Option<Box<str>>,
}

/// A port of a multi-port service (Consul 1.22).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NamedPort {
    #[serde(rename = "Name", default)]
    _name: Option<Box<str>>,
    #[serde(default)]
    port: Option<i64>,
    #[serde(default)]
    default: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    #[serde(default)]
    passing: Option<i64>,
    #[serde(default)]
    warning: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default)]
    status: Option<Box<str>>,
}

impl Entry {
    /// The worst of the checks of the node and of the instance.
    pub(super) fn health(&self) -> Health {
        let checks = self.checks.as_deref().unwrap_or_default();
        let all = checks
            .iter()
            .map(|check| Health::of_status(check.status.as_deref()));
        all.max_by_key(|health| health.rank())
            .unwrap_or(Health::Passing)
    }

    /// The weight that its health gives it; 1 where Consul's own range is left,
    /// as its catalog stores it.
    pub(super) fn weight(&self, health: Health) -> u16 {
        let weights = self.service.weights.as_ref();
        let stated = match health {
            Health::Passing => weights.and_then(|weights| weights.passing),
            Health::Warning => weights.and_then(|weights| weights.warning),
            Health::Unknown | Health::Critical => None,
        };
        let stated = stated.and_then(|weight| u16::try_from(weight).ok());
        match (health, stated) {
            (Health::Passing, Some(0)) | (_, None) => 1,
            (_, Some(weight)) => weight,
        }
    }

    pub(super) fn peer(&self) -> Option<&str> {
        filled(&self.service.peer_name).or_else(|| filled(&self.node.peer_name))
    }

    /// What the catalog knows beyond the SRV record.
    pub(super) fn into_facts(self, health: Health) -> Facts {
        Facts {
            id: filled(&self.service.id).map(Into::into),
            tags: self.service.tags.unwrap_or_default(),
            meta: self.service.meta.unwrap_or_default(),
            health: Some(health),
            others: Vec::new(),
        }
    }
}

impl Service {
    pub(super) fn address(&self) -> Option<&str> {
        filled(&self.address)
    }

    /// One of its addresses for others, as `wan`.
    pub(super) fn tagged(&self, tag: &str) -> Option<&str> {
        filled(&self.tagged_addresses.as_ref()?.get(tag)?.address)
    }

    /// Its port; where it has none the default one of its several, or its only
    /// one; else 0.
    pub(super) fn port(&self) -> Result<u16, Box<str>> {
        let several = self.ports.as_deref().unwrap_or_default();
        let port = match self.port.unwrap_or(0) {
            0 => several
                .iter()
                .find(|port| port.default == Some(true))
                .or(match several {
                    [only] => Some(only),
                    _ => None,
                })
                .and_then(|port| port.port)
                .unwrap_or(0),
            port => port,
        };
        u16::try_from(port).map_err(|_| format!("the port {port} is out of range").into())
    }
}

impl Node {
    pub(super) fn address(&self) -> Option<&str> {
        filled(&self.address)
    }

    pub(super) fn datacenter(&self) -> Option<&str> {
        filled(&self.datacenter)
    }

    /// Whether the agent put the address for other datacenters in place of the
    /// node's own. Then the node's name does not lead to it.
    pub(super) fn is_translated(&self) -> bool {
        let tagged = |tag: &str| self.tagged(tag);
        let address = self.address();
        tagged("lan").is_some_and(|own| address != Some(own))
            && ["wan", "wan_ipv4", "wan_ipv6"]
                .iter()
                .any(|tag| tagged(tag).is_some_and(|wan| address == Some(wan)))
    }

    /// One of its addresses for others, as `wan`.
    pub(super) fn tagged(&self, tag: &str) -> Option<&str> {
        let address = self.tagged_addresses.as_ref()?.get(tag);
        address.map(|address| &**address)
    }

    /// Its metadata as TXT strings.
    pub(super) fn strings(&self) -> Vec<Box<[u8]>> {
        let meta = self.meta.iter().flatten();
        meta.map(|(key, value)| txt(key, value)).collect()
    }

    /// The same with their owner, where there are any and DNS carries its name.
    pub(super) fn text(&self, owner: Option<&str>) -> Option<NodeText> {
        let strings = self.strings();
        match owner {
            Some(owner) if !strings.is_empty() => Some(NodeText {
                owner: owner.into(),
                strings,
            }),
            _ => None,
        }
    }
}

fn filled(text: &Option<Box<str>>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// `key=value` after RFC 1464: a backquote is doubled, and before `=` and before
/// the blanks around the key stands one. A key that begins with `rfc1035-` gives
/// its value alone.
fn txt(key: &str, value: &str) -> Box<[u8]> {
    let prefix = b"rfc1035-";
    let head = key.as_bytes().get(..prefix.len());
    if head.is_some_and(|head| head.eq_ignore_ascii_case(prefix)) {
        return value.as_bytes().into();
    }
    let inner = key.trim_matches(' ');
    let blanks = |text: &str, more: &str| text.len().saturating_sub(more.len());
    let leading = match inner.is_empty() {
        true => key.len(),
        false => blanks(key, key.trim_start_matches(' ')),
    };
    let trailing = blanks(key, inner).saturating_sub(leading);
    let inner = inner.replace('`', "``").replace('=', "`=");
    let value = value.replace('`', "``");
    let text = format!(
        "{}{inner}{}={value}",
        "` ".repeat(leading),
        "` ".repeat(trailing)
    );
    text.into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_encoded_as_consul_encodes_it() {
        // The first four: captures/node-addr-ptr-apex.txt.
        let cases = [
            ("e=q", "1", "e`=q=1"),
            ("owner", "team=x`y", "owner=team=x``y"),
            ("rack", "a1", "rack=a1"),
            ("rfc1035-txt", "v=plain a", "v=plain a"),
            ("RFC1035-x", "`", "`"),
            ("rfc1035", "x", "rfc1035=x"),
            ("a`b", "", "a``b="),
            (" a b  ", " c ", "` a b` ` = c "),
            ("  ", "x", "` ` =x"),
            ("", "x", "=x"),
            ("ключ", "знач", "ключ=знач"),
        ];
        for (key, value, expected) in cases {
            assert_eq!(&*txt(key, value), expected.as_bytes(), "{key:?}");
        }
    }

    fn entry(checks: &str, service: &str) -> String {
        format!(r#"{{"Node":{{"Node":"n"}},"Service":{{{service}}},"Checks":{checks}}}"#)
    }

    #[test]
    fn the_worst_check_decides_health_and_weight() {
        let weights = r#""Weights":{"Passing":10,"Warning":3}"#;
        for (checks, health, weight) in [
            ("null", Health::Passing, 10),
            ("[]", Health::Passing, 10),
            (r#"[{"Status":"passing"}]"#, Health::Passing, 10),
            (
                r#"[{"Status":"passing"},{"Status":"warning"}]"#,
                Health::Warning,
                3,
            ),
            (
                r#"[{"Status":"odd"},{"Status":"warning"}]"#,
                Health::Unknown,
                1,
            ),
            (r#"[{}]"#, Health::Unknown, 1),
            (
                r#"[{"Status":"critical"},{"Status":"odd"}]"#,
                Health::Critical,
                1,
            ),
        ] {
            let text = entry(checks, weights);
            let entry: Entry = serde_json::from_str(&text).unwrap();
            assert_eq!(entry.health(), health, "{checks}");
            assert_eq!(entry.weight(health), weight, "{checks}");
        }
    }

    #[test]
    fn a_weight_outside_consuls_range_is_one() {
        for (weights, passing, warning) in [
            ("null", 1, 1),
            ("{}", 1, 1),
            (r#"{"Passing":0,"Warning":0}"#, 1, 0),
            (r#"{"Passing":65535,"Warning":65536}"#, 65535, 1),
            (r#"{"Passing":-1,"Warning":-1}"#, 1, 1),
        ] {
            let text = entry("null", &format!("\"Weights\":{weights}"));
            let entry: Entry = serde_json::from_str(&text).unwrap();
            assert_eq!(entry.weight(Health::Passing), passing, "{weights}");
            assert_eq!(entry.weight(Health::Warning), warning, "{weights}");
        }
    }

    #[test]
    fn the_default_of_several_ports_stands_in_for_none() {
        for (service, port) in [
            (r#""Port":80"#, Some(80)),
            (r#""Port":0"#, Some(0)),
            (r#""Port":null"#, Some(0)),
            (r#""X":1"#, Some(0)),
            (r#""Ports":null"#, Some(0)),
            (
                r#""Port":80,"Ports":[{"Port":81,"Default":true}]"#,
                Some(80),
            ),
            (
                r#""Ports":[{"Name":"a","Port":1},{"Name":"b","Port":2,"Default":true}]"#,
                Some(2),
            ),
            (r#""Port":0,"Ports":[{"Name":"a","Port":1}]"#, Some(1)),
            (
                r#""Ports":[{"Name":"a","Port":1},{"Name":"b","Port":2}]"#,
                Some(0),
            ),
            (r#""Ports":[{"Port":70000}]"#, None),
            (r#""Port":70000"#, None),
            (r#""Port":-1"#, None),
        ] {
            let text = entry("null", service);
            let entry: Entry = serde_json::from_str(&text).unwrap();
            assert_eq!(entry.service.port().ok(), port, "{service}");
        }
    }
}
