//! **Word.** What a source found at a name, before anybody asks for it in a
//! certain form: endpoints for the library, records for a DNS client. Both forms
//! are made in [`crate::records`].

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Endpoint, Health, Source, Transport};

/// What stands behind a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Found {
    /// Instances of a service, a prepared query, a mesh or ingress name.
    Instances(Vec<Instance>),
    /// One host: a node, an `addr` name, a virtual address.
    Host(Host),
    /// Names behind a reverse question, absolute.
    Pointers(Vec<Box<str>>),
    /// The zone's own servers: absolute name and addresses.
    Servers(Vec<(Arc<str>, Vec<IpAddr>)>),
}

impl Found {
    /// How many instances, addresses or names.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Instances(instances) => instances.len(),
            Self::Host(host) => host.addresses.len(),
            Self::Pointers(names) => names.len(),
            Self::Servers(servers) => servers.len(),
        }
    }

    /// Adds the instances of another set that this one does not have; gives how many.
    pub(crate) fn add_missing(&mut self, other: &Self) -> usize {
        let (Self::Instances(own), Self::Instances(others)) = (self, other) else {
            return 0;
        };
        let place = |instance: &Instance| (instance.target.to_ascii_lowercase(), instance.port);
        let known: BTreeSet<_> = own.iter().map(place).collect();
        let missing = others.iter().filter(|other| !known.contains(&place(other)));
        let before = own.len();
        own.extend(missing.cloned());
        own.len() - before
    }
}

/// One registered instance, as one SRV record tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// SRV target, absolute, in its registered case, as [`crate::name::text()`]
    /// writes it.
    pub(crate) target: Arc<str>,
    /// What kind of name the target is.
    pub(crate) kind: TargetKind,
    /// Addresses of the target; empty as long as nobody resolved it.
    pub(crate) addresses: Vec<IpAddr>,
    /// Beside the address of one family that of the other, for who asks for it alone.
    #[serde(default)]
    pub(crate) other: Option<IpAddr>,
    /// The addresses are Consul's own word, not the system resolver's.
    pub(crate) glued: bool,
    pub(crate) port: u16,
    pub(crate) priority: u16,
    pub(crate) weight: u16,
    pub(crate) node: Option<Arc<str>>,
    /// The node's metadata as TXT strings (RFC 1464), and the owner they have.
    pub(crate) text: Option<Arc<NodeText>>,
    /// What only the catalog knows.
    pub(crate) facts: Option<Box<Facts>>,
}

impl Instance {
    /// Whether a catalog says that none of its checks fails or warns.
    pub(crate) fn is_passing(&self) -> bool {
        let health = self.facts.as_ref().and_then(|facts| facts.health);
        health == Some(Health::Passing)
    }

    /// Takes in another registration of the same place: the healthiest stands for all.
    pub(crate) fn join(&mut self, mut other: Self) {
        let health = |one: &Self| one.facts.as_ref().and_then(|facts| facts.health);
        if Health::is_better(health(&other), health(self)) {
            mem::swap(self, &mut other);
        }
        if let (Some(own), Some(other)) = (&mut self.facts, other.facts) {
            own.add(*other);
        }
    }
}

/// What a catalog knows of an instance beyond its SRV record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) id: Option<Box<str>>,
    pub(crate) tags: Box<[Box<str>]>,
    pub(crate) meta: BTreeMap<Box<str>, Box<str>>,
    #[serde(with = "health")]
    pub(crate) health: Option<Health>,
    /// The same of others that are registered at the same place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) others: Vec<Self>,
}

impl Facts {
    /// Those of another one, and of all that it stands for.
    fn add(&mut self, mut other: Self) {
        let more = mem::take(&mut other.others);
        self.others.push(other);
        self.others.extend(more);
    }
}

/// A state by Consul's own word: what is public promises no other form.
mod health {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Health;

    pub(super) fn serialize<S: Serializer>(
        health: &Option<Health>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        health.map(Health::as_str).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Health>, D::Error> {
        let word = Option::<Box<str>>::deserialize(deserializer)?;
        Ok(word.map(|word| match &*word {
            "passing" => Health::Passing,
            "warning" => Health::Warning,
            "critical" => Health::Critical,
            _ => Health::Unknown,
        }))
    }
}

/// The three sorts of SRV target that Consul gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TargetKind {
    /// `<hex>.addr.<dc>.<domain>`: the instance's own IP address in the name.
    Address,
    /// `<node>.node.<dc>.<domain>`: the instance has its node's address.
    Node,
    /// Any other name: registered as the address by the operator. Asked for an
    /// address, Consul answers with a CNAME to it.
    Host,
}

/// A node, or another name that stands for one host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) addresses: Vec<IpAddr>,
    /// The name that stands in place of an address, absolute.
    pub(crate) alias: Option<Arc<str>>,
    /// The node's metadata as TXT strings.
    pub(crate) text: Vec<Box<[u8]>>,
}

/// A node's metadata in the form that DNS carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct NodeText {
    /// Owner of the TXT records: `<node>.node.<dc>.<domain>`, absolute.
    pub(crate) owner: Box<str>,
    /// One string a metadata pair.
    pub(crate) strings: Vec<Box<[u8]>>,
}

/// A set as the cache holds it and as every answer shares it.
///
/// In this order: what every hit reads stands beside the count of those who share
/// the set, and comes from memory with it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Held {
    /// The name as the cache knows it; short ones are written in place.
    pub(crate) key: CompactString,
    pub(crate) endpoints: Box<[Endpoint]>,
    /// As the source said it; the cache's floor and cap are not in it.
    pub(crate) ttl: Duration,
    pub(crate) source: Source,
    pub(crate) transport: Transport,
    pub(crate) complete: bool,
    /// No source gave all instances, as far as that is known. A host name without an address
    /// makes a set incomplete too, but no part.
    pub(crate) part: bool,
    /// Since when addresses of host names, or instances, in it are those of a set before, as
    /// nobody told them anew.
    pub(crate) carried: Option<Instant>,
    pub(crate) name: Box<str>,
    pub(crate) found: Found,
    pub(crate) warnings: Box<[Box<str>]>,
}
