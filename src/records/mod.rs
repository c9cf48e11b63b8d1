//! **Pure.** Between what stands behind a name and DNS records, both ways:
//! [`mod@read`] makes [`Found`] of a reply of Consul's,
//! [`mod@write`] makes records in the shapes of Consul's own answers out of it, and
//! [`endpoints`] makes what the library's users see.

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

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
pub(crate) mod read;
pub(crate) mod wire;
pub(crate) mod wire_name;
pub(crate) mod write;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    str::FromStr as _,
    sync::Arc,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType},
};

use crate::{
    endpoint::Endpoint,
    found::{Found, TargetKind},
    name::{self, ConsulName, Domain, NotAName, Subject, Target, classify_target},
    record::Section,
};

/// Every address and port behind a name, once each, in the source's order.
pub(crate) fn endpoints(found: &Found, name: &str) -> Box<[Endpoint]> {
    let mut all = Vec::new();
    match found {
        Found::Instances(instances) => {
            for instance in instances {
                let facts = instance.facts.as_deref();
                for &address in &instance.addresses {
                    all.push(Endpoint {
                        address,
                        port: instance.port,
                        priority: instance.priority,
                        weight: instance.weight,
                        target: Arc::clone(&instance.target),
                        node: instance.node.clone(),
                        id: facts.and_then(|facts| facts.id.clone()),
                        tags: facts.map(|facts| facts.tags.clone()),
                        meta: facts.map(|facts| Box::new(facts.meta.clone())),
                        health: facts.and_then(|facts| facts.health),
                        others: facts.map_or_else(Vec::new, |facts| facts.others.clone()),
                    });
                }
            }
        }
        Found::Host(host) => {
            let target = host.alias.clone().unwrap_or_else(|| name.into());
            for &address in &host.addresses {
                all.push(Endpoint {
                    address,
                    port: 0,
                    priority: 0,
                    weight: 0,
                    target: Arc::clone(&target),
                    node: None,
                    id: None,
                    tags: None,
                    meta: None,
                    health: None,
                    others: Vec::new(),
                });
            }
        }
        Found::Pointers(_) | Found::Servers(_) => {}
    }
    places(all).into()
}

/// Each address and port once, with all that is registered there.
pub(crate) fn places(all: impl IntoIterator<Item = Endpoint>) -> Vec<Endpoint> {
    let mut known = HashMap::<_, usize>::new();
    let mut places: Vec<Endpoint> = Vec::new();
    for one in all {
        match known.entry((one.address, one.port)) {
            Entry::Occupied(at) => {
                if let Some(place) = places.get_mut(*at.get()) {
                    place.join(one);
                }
            }
            Entry::Vacant(new) => {
                new.insert(places.len());
                places.push(one);
            }
        }
    }
    places
}

/// Whether two sets hold the same endpoints, in whatever order. Facts that one
/// source tells and the other does not are no difference.
pub(crate) fn same_members(one: &[Endpoint], other: &[Endpoint]) -> bool {
    let places = |all: &[Endpoint]| -> HashSet<_> {
        let place = |endpoint: &Endpoint| (endpoint.address, endpoint.port, endpoint.weight);
        all.iter().map(place).collect()
    };
    one.len() == other.len() && places(one) == places(other)
}

/// Names that stand in place of an address and were not resolved yet.
pub(crate) fn unresolved(found: &Found) -> impl Iterator<Item = &Arc<str>> {
    let (instances, host) = match found {
        Found::Instances(instances) => (instances.as_slice(), None),
        Found::Host(host) if host.addresses.is_empty() => (&[][..], host.alias.as_ref()),
        Found::Host(_) | Found::Pointers(_) | Found::Servers(_) => (&[][..], None),
    };
    let waits = |instance: &&crate::found::Instance| {
        instance.addresses.is_empty() && instance.kind != TargetKind::Address
    };
    instances
        .iter()
        .filter(waits)
        .map(|instance| &instance.target)
        .chain(host)
}

/// The addresses that one such name had when it was last resolved.
pub(crate) fn resolved<'a>(found: &'a Found, name: &str) -> &'a [IpAddr] {
    match found {
        Found::Instances(instances) => {
            let mut same = instances.iter().filter(|one| *one.target == *name);
            let resolved = same.find(|one| !one.addresses.is_empty());
            resolved.map_or(&[], |one| &one.addresses)
        }
        Found::Host(host) if host.alias.as_deref() == Some(name) => &host.addresses,
        Found::Host(_) | Found::Pointers(_) | Found::Servers(_) => &[],
    }
}

/// Writes the addresses of one such name where they belong. Those of a name in
/// one of Consul's zones are Consul's own word.
pub(crate) fn resolve(found: &mut Found, name: &str, addresses: &[IpAddr], zones: &[Domain]) {
    let glued = zones.iter().any(|zone| is_within(name, zone));
    match found {
        Found::Instances(instances) => {
            for instance in instances
                .iter_mut()
                .filter(|instance| *instance.target == *name)
            {
                instance.addresses = addresses.to_vec();
                instance.glued = glued;
            }
        }
        Found::Host(host) => host.addresses = addresses.to_vec(),
        Found::Pointers(_) | Found::Servers(_) => {}
    }
}

/// Whether an absolute name lies in a zone.
pub(crate) fn is_within(fqdn: &str, zone: &Domain) -> bool {
    classify_target(fqdn, std::slice::from_ref(zone)) != Target::Host { in_zone: false }
}

/// One question for records, as it came and as it is meant.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// In the asker's case.
    pub(crate) owner: Name,
    pub(crate) kind: RecordType,
    pub(crate) meaning: Result<ConsulName, NotAName>,
}

impl Asked {
    /// A question off the wire.
    pub(crate) fn new(owner: Name, kind: RecordType, domain: &Domain) -> Self {
        let labels: Vec<&[u8]> = owner.iter().collect();
        let meaning = ConsulName::from_labels(&labels, kind == RecordType::SRV, domain);
        Self {
            owner,
            kind,
            meaning,
        }
    }

    /// A name that is known to be one, with a type as it is written. `None`: no
    /// such type.
    pub(crate) fn about(name: &ConsulName, kind: &str, domain: &Domain) -> Option<Self> {
        let upper = kind.to_ascii_uppercase();
        let kind = RecordType::from_str(&upper).ok().or_else(|| {
            upper
                .strip_prefix("TYPE")
                .and_then(|digits| digits.parse::<u16>().ok())
                .map(RecordType::from)
        })?;
        let owner = wire_name::from_text(&name.fqdn(domain))?;
        Some(Self {
            owner,
            kind,
            meaning: Ok(name.clone()),
        })
    }

    /// Asks for the zone itself, whatever name of the zone it asks about.
    pub(crate) fn is_about_the_zone(&self) -> bool {
        matches!(self.kind, RecordType::SOA | RecordType::NS)
            && self.meaning != Err(NotAName::Elsewhere)
            && !self.is_reverse()
    }

    /// Asks who has an address.
    pub(crate) fn is_reverse(&self) -> bool {
        let is_arpa = |last: &[u8]| last.eq_ignore_ascii_case(b"arpa");
        let may_be = self.owner.iter().next_back().is_some_and(is_arpa);
        may_be && name::is_reverse(&self.owner.iter().collect::<Vec<_>>())
    }

    /// A type that a node has no records of. Consul says so without looking
    /// whether there is such a node.
    pub(crate) fn is_nothing_of_a_node(&self) -> bool {
        let known = [
            RecordType::A,
            RecordType::AAAA,
            RecordType::ANY,
            RecordType::TXT,
        ];
        matches!(&self.meaning, Ok(name) if matches!(name.subject(), Subject::Node(_)))
            && !known.contains(&self.kind)
    }
}

/// The sections of an answer, for a person.
pub(crate) fn printed(sections: &write::Sections) -> (Box<str>, Box<[crate::record::Record]>) {
    let code = match sections.code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        other => format!("{other:?}").to_ascii_uppercase(),
    };
    let section = |section, records: &[Record]| -> Vec<crate::record::Record> {
        let print = |record: &Record| crate::record::Record {
            section,
            name: wire_name::to_text(&record.name).into(),
            kind: record.record_type().to_string().into(),
            ttl: record.ttl,
            data: data(&record.data).into(),
        };
        records.iter().map(print).collect()
    };
    let mut all = section(Section::Answer, &sections.answers);
    all.extend(section(Section::Authority, &sections.authorities));
    all.extend(section(Section::Additional, &sections.additionals));
    (code.into(), all.into())
}

/// Data in presentation form.
fn data(data: &RData) -> String {
    match data {
        RData::SRV(srv) => {
            let target = wire_name::to_text(&srv.target);
            format!("{} {} {} {target}", srv.priority, srv.weight, srv.port)
        }
        RData::CNAME(name) => wire_name::to_text(&name.0),
        RData::NS(name) => wire_name::to_text(&name.0),
        RData::PTR(name) => wire_name::to_text(&name.0),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
