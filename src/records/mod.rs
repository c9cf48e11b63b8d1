//! **Pure.** Between what stands behind a name and DNS records, both ways:
//! [`read`] makes [`Found`](crate::found::Found) of a reply of Consul's,
//! [`write`] makes records in the shapes of Consul's own answers out of it, and
//! [`endpoints`] makes what the library's users see.

pub(crate) mod read;
pub(crate) mod write;

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use crate::{
    endpoint::Endpoint,
    found::{Found, TargetKind},
    name::{Domain, Target, classify_target},
};

/// Every address and port behind a name, once each, in the source's order.
pub(crate) fn endpoints(found: &Found, name: &str) -> Box<[Endpoint]> {
    let mut known = HashSet::new();
    let mut all = Vec::new();
    match found {
        Found::Instances(instances) => {
            for instance in instances {
                let facts = instance.facts.as_deref();
                for &address in &instance.addresses {
                    if known.insert((address, instance.port)) {
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
                        });
                    }
                }
            }
        }
        Found::Host(host) => {
            let target = host.alias.clone().unwrap_or_else(|| name.into());
            for &address in &host.addresses {
                if known.insert((address, 0)) {
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
                    });
                }
            }
        }
        Found::Pointers(_) | Found::Servers(_) => {}
    }
    all.into()
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

/// Writes the addresses of one such name where they belong.
pub(crate) fn resolve(found: &mut Found, name: &str, addresses: &[IpAddr]) {
    match found {
        Found::Instances(instances) => {
            for instance in instances
                .iter_mut()
                .filter(|instance| *instance.target == *name)
            {
                instance.addresses = addresses.to_vec();
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
