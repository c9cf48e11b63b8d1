//! **Pure.** What the catalog tells of services and their instances, healthy or not: the
//! JSON of `/v1/catalog/services` and `/v1/health/service/X`, for who wants to see all of
//! it. Look-ups read the same through [`health`](super::health), which judges it.

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

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::Deserialize;

use crate::{
    endpoint::Health,
    found::{self, Found},
};

/// A name in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceName {
    /// The service.
    pub name: Box<str>,
    /// The tags of all its instances.
    pub tags: Box<[Box<str>]>,
}

/// One instance as it is registered, whatever its health.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// The service.
    pub service: Arc<str>,
    /// Unique on its node.
    pub id: Box<str>,
    /// The node that it is registered on.
    pub node: Box<str>,
    /// An address, or a host name: its own, else its node's.
    pub address: Box<str>,
    /// 0: it was registered without one.
    pub port: u16,
    /// Its tags.
    pub tags: Box<[Box<str>]>,
    /// Its metadata.
    pub meta: BTreeMap<Box<str>, Box<str>>,
    /// The worst of its checks and its node's.
    pub health: Health,
    /// Its checks and its node's.
    pub checks: Box<[CheckState]>,
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckState {
    /// Unique on its node.
    pub id: Box<str>,
    /// What it is called.
    pub name: Box<str>,
    /// How it ended.
    pub health: Health,
    /// What it printed, at most 4 kB of it.
    pub output: Box<str>,
    /// A text of whoever set it up: the reason of maintenance.
    pub notes: Box<str>,
    /// It is the node's, and counts for all that runs there.
    pub of_node: bool,
}

impl fmt::Display for Instance {
    /// `10.0.0.1:8080`, `[2001:db8::1]:8080`, `web.example:8080`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address.contains(':') {
            true => write!(f, "[{}]:{}", self.address, self.port),
            false => write!(f, "{}:{}", self.address, self.port),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: Box<str>,
    #[serde(default)]
    address: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID", default)]
    id: Option<Box<str>>,
    #[serde(default)]
    address: Option<Box<str>>,
    #[serde(default)]
    port: Option<i64>,
    #[serde(default)]
    tags: Option<Box<[Box<str>]>>,
    #[serde(default)]
    meta: Option<BTreeMap<Box<str>, Box<str>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID", default)]
    check_id: Option<Box<str>>,
    #[serde(default)]
    name: Option<Box<str>>,
    #[serde(default)]
    status: Option<Box<str>>,
    #[serde(default)]
    output: Option<Box<str>>,
    #[serde(default)]
    notes: Option<Box<str>>,
    #[serde(rename = "ServiceID", default)]
    service_id: Option<Box<str>>,
}

/// Reads `/v1/catalog/services`.
pub(crate) fn services(body: &[u8]) -> Result<Vec<ServiceName>, serde_json::Error> {
    type Tags = Option<Box<[Box<str>]>>;
    let read: Option<BTreeMap<Box<str>, Tags>> = serde_json::from_slice(body)?;
    let one = |(name, tags): (Box<str>, Tags)| ServiceName {
        name,
        tags: tags.unwrap_or_default(),
    };
    Ok(read.unwrap_or_default().into_iter().map(one).collect())
}

/// Reads `/v1/health/service/X`.
pub(crate) fn instances(service: &str, body: &[u8]) -> Result<Vec<Instance>, serde_json::Error> {
    let read: Option<Vec<Entry>> = serde_json::from_slice(body)?;
    let name: Arc<str> = service.into();
    let one = |entry: Entry| {
        let checks: Box<[_]> = entry
            .checks
            .unwrap_or_default()
            .into_iter()
            .map(check)
            .collect();
        let own = entry.service.address.filter(|address| !address.is_empty());
        Instance {
            service: Arc::clone(&name),
            id: entry.service.id.unwrap_or_default(),
            node: entry.node.node,
            address: own.or(entry.node.address).unwrap_or_default(),
            port: (entry.service.port).map_or(0, |port| u16::try_from(port).unwrap_or_default()),
            tags: entry.service.tags.unwrap_or_default(),
            meta: entry.service.meta.unwrap_or_default(),
            health: worst(checks.iter().map(|check| check.health)),
            checks,
        }
    };
    Ok(read.unwrap_or_default().into_iter().map(one).collect())
}

/// The same of instances that nobody has registered: somebody has written them down.
pub(crate) fn written(service: &str, found: &Found) -> Vec<Instance> {
    let Found::Instances(all) = found else {
        return Vec::new();
    };
    let name: Arc<str> = service.into();
    let one = |one: &found::Instance| {
        let host = || one.target.trim_end_matches('.').to_owned();
        let address = one.addresses.first().map(ToString::to_string);
        let facts = one.facts.as_deref();
        Instance {
            service: Arc::clone(&name),
            id: facts.and_then(|facts| facts.id.clone()).unwrap_or_default(),
            node: Box::default(),
            address: address.unwrap_or_else(host).into(),
            port: one.port,
            tags: facts.map(|facts| facts.tags.clone()).unwrap_or_default(),
            meta: facts.map(|facts| facts.meta.clone()).unwrap_or_default(),
            health: Health::Unknown,
            checks: Box::default(),
        }
    };
    all.iter().map(one).collect()
}

fn check(check: Check) -> CheckState {
    CheckState {
        id: check.check_id.unwrap_or_default(),
        name: check.name.unwrap_or_default(),
        health: Health::of_status(check.status.as_deref()),
        output: cut(check.output.unwrap_or_default()),
        notes: check.notes.unwrap_or_default(),
        of_node: check.service_id.is_none_or(|id| id.is_empty()),
    }
}

/// As much of what a check printed as is kept: Consul's own `check_output_max_size`, unless
/// that was set.
const OUTPUT: usize = 4 << 10;

fn cut(output: Box<str>) -> Box<str> {
    if output.len() <= OUTPUT {
        return output;
    }
    let whole = (0..=OUTPUT).rfind(|at| output.is_char_boundary(*at));
    output[..whole.unwrap_or(0)].into()
}

fn worst(all: impl Iterator<Item = Health>) -> Health {
    all.max_by_key(|health| health.rank())
        .unwrap_or(Health::Passing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_missing_mean_nothing_and_garbage_is_an_error() {
        assert_eq!(services(b"null").unwrap(), []);
        assert_eq!(services(br#"{"web":null}"#).unwrap()[0].tags.len(), 0);
        assert!(services(b"[]").is_err() && services(b"<html>").is_err());
        let read = instances("web", br#"[{"Node":{"Node":"n"},"Service":{"Port":-1}}]"#).unwrap();
        assert_eq!((read[0].port, read[0].health), (0, Health::Passing));
        assert_eq!(instances("web", b"null").unwrap(), []);
    }

    #[test]
    fn the_worst_check_counts() {
        let body =
            br#"[{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"web-1","Port":80},
            "Checks":[{"CheckID":"serfHealth","Status":"passing"},
                      {"CheckID":"a","Status":"warning","Output":"hot","ServiceID":"web-1"}]}]"#;
        let read = instances("web", body).unwrap();
        let one = &read[0];
        assert_eq!(
            (one.health, one.to_string()),
            (Health::Warning, "10.0.0.1:80".into())
        );
        assert_eq!(
            (one.checks[0].of_node, one.checks[1].of_node),
            (true, false)
        );
        assert_eq!(&*one.checks[1].output, "hot");
    }
}
