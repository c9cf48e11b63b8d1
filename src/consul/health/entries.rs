//! **Pure.** What the entries of one reply are together: which of them are left out, whether the
//! rest may be believed, and the instances or servers that are made of them.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use serde::de::IgnoredAny;

use super::{
    Read, Unread,
    ask::{Ask, Question},
    entry::Entry,
    not_json,
    target::{Registered, addr_target, node_target, registered, server_target},
};
use crate::{
    endpoint::Health,
    found::{Found, Instance, TargetKind},
};

/// Entries that are left out, and whether the rest may be believed.
#[derive(Default)]
struct Skipped {
    total: usize,
    /// Those that should not be in the reply at all.
    bad: usize,
    first: Option<Box<str>>,
}

impl Skipped {
    fn unusable(&mut self, at: usize, why: &str) {
        self.total = self.total.saturating_add(1);
        self.first
            .get_or_insert_with(|| format!("entry {}: {why}", at.saturating_add(1)).into());
    }

    fn bad(&mut self, at: usize, why: &str) {
        self.bad = self.bad.saturating_add(1);
        self.unusable(at, why);
    }

    /// Nothing left, or more than a tenth bad: the reply is refused.
    fn judge(&self, entries: usize, left: usize, unhealthy: usize) -> Result<(), Unread> {
        let first = self.first.as_deref().unwrap_or_default();
        if self.bad > entries / 10 {
            let bad = self.bad;
            let why = format!("{bad} of {entries} entries cannot be believed; {first}");
            return Err(Unread::Malformed(why.into()));
        }
        match (left, self.total) {
            (0, 0) => Err(Unread::NotFound { unhealthy }),
            (0, _) => {
                let why = format!("none of {entries} entries can be used; {first}");
                Err(Unread::Malformed(why.into()))
            }
            _ => Ok(()),
        }
    }
}

/// What the entries of a reply told so far.
pub(super) struct Entries<'q> {
    pub(super) question: &'q Question<'q>,
    translated: bool,
    /// The datacenter that answered, where the reply says it for all of them.
    pub(super) answered: Option<Box<str>>,
    /// What the first entry says of it otherwise.
    datacenter: Option<Box<str>>,
    count: usize,
    left: usize,
    unhealthy: usize,
    skipped: Skipped,
    /// Why none of them is believed.
    refused: Option<Unread>,
    gathered: Gathered,
}

/// What was made of them.
enum Gathered {
    Instances {
        instances: Vec<Instance>,
        /// Where which of them is, by node, address and port.
        seen: HashMap<(Box<str>, Box<str>, u16), usize>,
    },
    Servers(Vec<(Arc<str>, Vec<IpAddr>)>),
}

impl<'q> Entries<'q> {
    pub(super) fn new(question: &'q Question<'q>, translated: bool) -> Self {
        Self {
            question,
            translated,
            answered: None,
            datacenter: None,
            count: 0,
            left: 0,
            unhealthy: 0,
            skipped: Skipped::default(),
            refused: None,
            gathered: match question.ask {
                Ask::Servers => Gathered::Servers(Vec::new()),
                _ => Gathered::Instances {
                    instances: Vec::new(),
                    seen: HashMap::new(),
                },
            },
        }
    }

    /// The next entry, of which nobody knows yet whether it is JSON.
    pub(super) fn element(&mut self, bytes: &[u8]) {
        if self.refused.is_some() {
            return;
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => self.entry(text),
            Err(error) => self.refused = Some(not_json(&error.to_string())),
        }
    }

    /// The next entry: what is healthy and asked for is kept.
    pub(super) fn entry(&mut self, text: &str) {
        let at = self.count;
        self.count = self.count.saturating_add(1);
        let entry: Result<Entry, Box<str>> = match text.starts_with('{') {
            true => serde_json::from_str(text).map_err(|error| error.to_string().into()),
            false => Err("not an object".into()),
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(why) => {
                // It may be no JSON at all.
                if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
                    self.refused = Some(not_json(&error.to_string()));
                }
                return self.skipped.bad(at, &why);
            }
        };
        let port = || entry.service.port();
        if let Err(why) = belongs(self.question, &entry).and_then(|()| port()) {
            return self.skipped.bad(at, &why);
        }
        match entry.health() {
            Health::Critical => self.unhealthy = self.unhealthy.saturating_add(1),
            health => match self.take(entry, health) {
                Ok(taken) => self.left = self.left.saturating_add(taken),
                Err(why) => self.skipped.unusable(at, &why),
            },
        }
    }

    /// How many it is more, or why it cannot be used.
    fn take(&mut self, entry: Entry, health: Health) -> Result<usize, Box<str>> {
        if self.datacenter.is_none() {
            self.datacenter = entry.node.datacenter().map(Into::into);
        }
        match &mut self.gathered {
            Gathered::Instances { instances, seen } => {
                let (node, address, port) = (
                    &*entry.node.node,
                    entry.service.address().unwrap_or_default(),
                    entry.service.port()?,
                );
                let key: (Box<str>, Box<str>, u16) = (node.into(), address.into(), port);
                let answered = self.answered.as_deref();
                let instance = instance(self.question, entry, health, answered, self.translated)?;
                // As Consul: one SRV for a node, an address and a port.
                if let Some(same) = seen.get(&key).and_then(|at| instances.get_mut(*at)) {
                    same.join(instance);
                    return Ok(0);
                }
                seen.insert(key, instances.len());
                instances.push(instance);
            }
            Gathered::Servers(servers) => server(self.question, &entry, servers)?,
        }
        Ok(1)
    }

    pub(super) fn end(self) -> Result<Read, Unread> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        (self.skipped).judge(self.count, self.left, self.unhealthy)?;
        Ok(Read {
            found: match self.gathered {
                // It is kept for long.
                Gathered::Instances { mut instances, .. } => {
                    instances.shrink_to_fit();
                    Found::Instances(instances)
                }
                Gathered::Servers(servers) => Found::Servers(servers),
            },
            skipped: self.skipped.total,
            first_reason: self.skipped.first,
            ttl: None,
            service: None,
            datacenter: self.answered.or(self.datacenter),
        })
    }
}

/// Whether the entry is what was asked for. Agents that do not know a parameter
/// ignore it in silence, and what stands between may mix replies up.
fn belongs(question: &Question<'_>, entry: &Entry) -> Result<(), Box<str>> {
    let check = |what: &str, asked: Option<&str>, told: Option<&str>| match (asked, told) {
        (Some(asked), Some(told)) if !asked.eq_ignore_ascii_case(told) => {
            let (asked, told) = (asked.escape_debug(), told.escape_debug());
            Err(format!("{what} {told} where {asked} was asked for").into())
        }
        _ => Ok(()),
    };
    let place = &question.place;
    match question.ask {
        Ask::Service { name, .. } => {
            check("service", Some(name), entry.service.service.as_deref())?
        }
        Ask::Servers => check("service", Some("consul"), entry.service.service.as_deref())?,
        Ask::Connect { .. }
        | Ask::Ingress { .. }
        | Ask::Node { .. }
        | Ask::Query { .. }
        | Ask::Reverse { .. } => {}
    }
    check(
        "namespace",
        place.namespace,
        entry.service.namespace.as_deref().or(Some("none")),
    )?;
    check(
        "partition",
        place.partition,
        entry.service.partition.as_deref().or(Some("none")),
    )?;
    match (place.peer, place.sameness_group, question.ask) {
        // Where a query fails over to, or which member of a group answers, is
        // Consul's business.
        (_, Some(_), _) | (_, _, Ask::Query { .. }) => Ok(()),
        (Some(peer), ..) => check(
            "instance of peer",
            Some(peer),
            Some(entry.peer().unwrap_or("none")),
        ),
        (None, ..) => check("datacenter", place.datacenter, entry.node.datacenter()),
    }
}

fn instance(
    question: &Question<'_>,
    entry: Entry,
    health: Health,
    answered: Option<&str>,
    translated: bool,
) -> Result<Instance, Box<str>> {
    let domain = question.domain;
    let node = &entry.node;
    let told = node.datacenter();
    let peer = entry.peer().map(|peer| format!("{peer}.peer"));
    let node_locality = peer.as_deref().or(told).or(question.place.datacenter);
    // The datacenter looked up; one that imports from a peer has no place in it.
    let addr_locality = match peer {
        Some(_) => None,
        None => answered.or(told).or(question.place.datacenter),
    };
    let node_name = node_target(&node.node, node_locality, domain);

    let own = match entry.service.address().map(registered).transpose()? {
        // A service whose address is its own name has its node's address. Consul
        // compares with case; a cache that is shared by askers cannot.
        Some(Registered::Host(host)) if host.eq_ignore_ascii_case(question.name) => None,
        own => own,
    };
    let is_own = own.is_some();
    let place = match own {
        Some(place) => place,
        None => registered(
            node.address()
                .ok_or("neither service nor node has an address")?,
        )?,
    };
    let (target, kind, addresses) = match (place, &node_name) {
        (Registered::Host(host), _) => (Arc::from(host), TargetKind::Host, Vec::new()),
        (Registered::Ip(ip), Some(name)) if !(is_own || translated && node.is_translated()) => {
            (Arc::from(&**name), TargetKind::Node, vec![ip])
        }
        // Also where DNS does not carry the node's name: better than to lose it.
        (Registered::Ip(ip), _) => {
            let target = addr_target(ip, addr_locality, domain);
            (Arc::from(target), TargetKind::Address, vec![ip])
        }
    };
    Ok(Instance {
        target,
        kind,
        glued: kind != TargetKind::Host,
        other: other_family(&entry, &addresses, translated),
        addresses,
        port: entry.service.port()?,
        priority: 1,
        weight: entry.weight(health),
        node: Some(Arc::from(&*node.node)),
        text: node.text(node_name.as_deref()).map(Arc::new),
        facts: Some(Box::new(entry.into_facts(health))),
    })
}

/// The address of the other family than the one that is told, where the agent put
/// those for other datacenters in their place: over DNS, A and AAAA have one each.
fn other_family(entry: &Entry, told: &[IpAddr], translated: bool) -> Option<IpAddr> {
    let told = *told.first().filter(|_| translated)?;
    let tagged = |tag| match entry.service.address() {
        Some(_) => entry.service.tagged(tag),
        None => entry.node.tagged(tag),
    };
    let parsed = |tag| tagged(tag)?.parse::<IpAddr>().ok();
    let forms = ["wan", "wan_ipv4", "wan_ipv6"];
    if !forms.iter().any(|tag| parsed(tag) == Some(told)) {
        return None;
    }
    let own = if told.is_ipv4() {
        "wan_ipv6"
    } else {
        "wan_ipv4"
    };
    let mut others = [own, "wan"].into_iter().filter_map(parsed);
    others.find(|other| other.is_ipv4() != told.is_ipv4())
}

/// The servers are named by their nodes, in lower case; those that DNS does not
/// carry are left out, as Consul leaves them.
fn server(
    question: &Question<'_>,
    entry: &Entry,
    servers: &mut Vec<(Arc<str>, Vec<IpAddr>)>,
) -> Result<(), Box<str>> {
    let locality = entry.node.datacenter().or(question.place.datacenter);
    let target = server_target(&entry.node.node, locality, question.domain)
        .ok_or("no host has such a name")?;
    let address = entry.node.address().ok_or("the node has no address")?;
    let Registered::Ip(ip) = registered(address)? else {
        return Err("the node has no IP address".into());
    };
    match servers.iter_mut().find(|(name, _)| **name == *target) {
        Some((_, addresses)) if addresses.contains(&ip) => {}
        Some((_, addresses)) => addresses.push(ip),
        None => servers.push((target.into(), vec![ip])),
    }
    Ok(())
}
