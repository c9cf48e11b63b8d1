//! **Pure.** A reply of Consul's DNS interface, read.
//!
//! Addresses come from the additional section, paired with SRV targets by owner,
//! or are decoded from the target itself (`0a000001.addr.dc1.consul.`); none is
//! ever guessed. Records of the additional section count only where their owner
//! lies in Consul's zone, and only for this reply: an address that Consul's
//! server tells of somebody else's host is left to the system's resolver.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, Record, RecordType},
};

use crate::{
    consul::dns_settings::Soa,
    found::{Found, Host, Instance, NodeText, TargetKind},
    name::{ConsulName, Domain, Subject, Target, classify_target},
    records::wire_name::to_text,
};

/// Longest chain of CNAME records that is followed.
const MOST_ALIASES: usize = 8;

/// Addresses that the instances of one reply may have together: so many, and so many more
/// for each of its records. Instances that share a target share its addresses: a thousand
/// ports of a host with a thousand addresses would be a million endpoints.
const MOST_ADDRESSES: (usize, usize) = (256, 4);

/// The question that brings all there is to know of a name, and how its reply is
/// read.
///
/// | name | question |
/// | --- | --- |
/// | service, mesh, ingress, prepared query | SRV: address questions can never be proven whole |
/// | node | ANY: address and metadata |
/// | virtual | A |
/// | reverse | PTR |
/// | the zone itself | NS |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asks(RecordType);

impl Asks {
    pub(crate) fn of(name: &ConsulName) -> Self {
        Self(match name.subject() {
            Subject::Service { .. }
            | Subject::Connect { .. }
            | Subject::Ingress { .. }
            | Subject::Query(_) => RecordType::SRV,
            Subject::Node(_) => RecordType::ANY,
            Subject::Virtual { .. } | Subject::Address(_) => RecordType::A,
            Subject::Reverse(_) => RecordType::PTR,
            Subject::Apex => RecordType::NS,
        })
    }

    pub(crate) fn kind(self) -> RecordType {
        self.0
    }

    /// What the reply tells, and its TTL; `None` where it holds nothing of the
    /// kind that was asked for.
    pub(crate) fn read(self, message: &Message, zones: &[Domain]) -> Option<(Found, Duration)> {
        let own = match self.0 {
            // Those of the zone, which may bear another name of its own.
            RecordType::NS => Own::all(message),
            _ => Own::asked_for(message),
        };
        let read = match self.0 {
            RecordType::SRV => instances(&own, zones),
            RecordType::PTR => pointers(&own),
            RecordType::NS => servers(&own),
            _ => host(&own, zones),
        };
        read.found.map(|found| (found, read.ttl))
    }
}

/// What a reply tells.
#[derive(Debug, PartialEq)]
struct Read {
    /// `None`: nothing of the kind that was asked for.
    found: Option<Found>,
    ttl: Duration,
}

/// The records of a message that count, by section.
struct Own<'a> {
    answers: Vec<&'a Record>,
    additionals: Vec<&'a Record>,
}

impl<'a> Own<'a> {
    fn all(message: &'a Message) -> Self {
        Self {
            answers: message.answers.iter().collect(),
            additionals: message.additionals.iter().collect(),
        }
    }

    /// Without answers that nobody asked for: only records of the name in question, and of
    /// those that it stands for, count. A name with several aliases stands for none: DNS
    /// allows one (RFC 2181, section 10.1), and to pick one would be a guess.
    fn asked_for(message: &'a Message) -> Self {
        let mut own = Self::all(message);
        let Some(question) = message.queries.first().map(Query::name) else {
            return own;
        };
        let is_plain = |record: &Record| !matches!(record.data, RData::CNAME(_));
        if (message.answers.iter()).all(|record| record.name == *question && is_plain(record))
            && message.additionals.iter().all(is_plain)
        {
            return own;
        }
        let mut aliases: HashMap<&Name, Option<&Name>> = HashMap::new();
        for record in message.answers.iter().chain(&message.additionals) {
            if let RData::CNAME(alias) = &record.data {
                let known = aliases.entry(&record.name).or_insert(Some(&alias.0));
                *known = known.filter(|known| **known == alias.0);
            }
        }
        let next = |name: &&Name| aliases.get(*name).copied().flatten();
        let chain: HashSet<&Name> = std::iter::successors(Some(question), next)
            .take(MOST_ALIASES + 1)
            .collect();
        let is_one = |record: &Record| is_plain(record) || next(&&record.name).is_some();
        own.answers
            .retain(|record| chain.contains(&record.name) && is_one(record));
        own.additionals.retain(|record| is_one(record));
        own
    }
}

/// Instances of a service: SRV records with their additional section.
fn instances(own: &Own<'_>, zones: &[Domain]) -> Read {
    let mut addresses: HashMap<&Name, Vec<IpAddr>> = HashMap::new();
    let mut aliases: HashMap<&Name, &Name> = HashMap::new();
    for record in &own.additionals {
        match &record.data {
            RData::A(address) => addresses
                .entry(&record.name)
                .or_default()
                .push(address.0.into()),
            RData::AAAA(address) => addresses
                .entry(&record.name)
                .or_default()
                .push(address.0.into()),
            RData::CNAME(alias) => {
                aliases.entry(&record.name).or_insert(&alias.0);
            }
            _ => {}
        }
    }
    for addresses in addresses.values_mut() {
        addresses.sort_unstable();
        addresses.dedup();
    }
    let records = own.answers.len().saturating_add(own.additionals.len());
    let (least, each) = MOST_ADDRESSES;
    let mut room = least.saturating_add(each.saturating_mul(records));
    let mut given = |target| {
        let found = follow(target, &addresses, &aliases);
        match room.checked_sub(found.len()) {
            Some(left) => {
                room = left;
                found.to_vec()
            }
            // As one that has none: the set is not whole, and says so.
            None => Vec::new(),
        }
    };
    let mut texts = Texts::new(&own.additionals);
    let mut instances = Vec::with_capacity(own.answers.len());
    for record in &own.answers {
        let RData::SRV(srv) = &record.data else {
            continue;
        };
        let text = texts.next_for(&srv.target);
        // RFC 2782: a target of "." says that the service is decidedly not there.
        if srv.target.is_root() {
            continue;
        }
        let target = to_text(&srv.target);
        let classified = classify_target(&target, zones);
        let (kind, found) = match classified {
            Target::Address(address) => (TargetKind::Address, vec![address]),
            Target::Node { .. } => (TargetKind::Node, given(&srv.target)),
            Target::Host { in_zone: true } => (TargetKind::Host, given(&srv.target)),
            Target::Host { in_zone: false } => (TargetKind::Host, Vec::new()),
        };
        let node = match classified {
            Target::Node { node } => Some(Arc::from(node)),
            _ => None,
        };
        instances.push(Instance {
            other: None,
            target: target.into(),
            kind,
            glued: !found.is_empty(),
            addresses: found,
            port: srv.port,
            priority: srv.priority,
            weight: srv.weight,
            node,
            text,
            facts: None,
        });
    }
    let found = (!instances.is_empty()).then_some(Found::Instances(instances));
    Read {
        found,
        ttl: lowest_ttl(&own.answers, |kind| kind == RecordType::SRV),
    }
}

/// A node or a virtual address: address records, an alias, node metadata.
fn host(own: &Own<'_>, zones: &[Domain]) -> Read {
    let mut host = Host::default();
    let mut any = false;
    for record in &own.answers {
        any |= matches!(
            record.record_type(),
            RecordType::A | RecordType::AAAA | RecordType::CNAME | RecordType::TXT
        );
        match &record.data {
            // Behind an alias into somebody else's zone only the alias counts.
            RData::A(_) | RData::AAAA(_) if !is_in_zone(&record.name, zones) => {}
            RData::A(address) => host.addresses.push(address.0.into()),
            RData::AAAA(address) => host.addresses.push(address.0.into()),
            RData::CNAME(alias) if host.alias.is_none() => {
                host.alias = Some(to_text(&alias.0).into());
            }
            RData::TXT(text) => host.text.push(text.txt_data.concat().into()),
            _ => {}
        }
    }
    Read {
        found: any.then_some(Found::Host(host)),
        ttl: lowest_ttl(&own.answers, |_| true),
    }
}

/// The names behind a reverse question.
fn pointers(own: &Own<'_>) -> Read {
    let names: Vec<Box<str>> = (own.answers.iter())
        .filter_map(|record| match &record.data {
            RData::PTR(name) => Some(to_text(&name.0).into()),
            _ => None,
        })
        .collect();
    let found = (!names.is_empty()).then_some(Found::Pointers(names));
    Read {
        found,
        ttl: lowest_ttl(&own.answers, |kind| kind == RecordType::PTR),
    }
}

/// The zone's own servers: NS records with their addresses.
fn servers(own: &Own<'_>) -> Read {
    let mut addresses: HashMap<&Name, Vec<IpAddr>> = HashMap::new();
    for record in &own.additionals {
        if let Some(address) = record.data.ip_addr() {
            addresses.entry(&record.name).or_default().push(address);
        }
    }
    // Each is named once: a server with thousands of addresses is not to have them
    // thousands of times.
    let servers: Vec<_> = (own.answers.iter())
        .filter_map(|record| match &record.data {
            RData::NS(name) => {
                let own = addresses.remove(&name.0).unwrap_or_default();
                Some((to_text(&name.0).into(), own))
            }
            _ => None,
        })
        .collect();
    let found = (!servers.is_empty()).then_some(Found::Servers(servers));
    Read {
        found,
        ttl: lowest_ttl(&own.answers, |kind| kind == RecordType::NS),
    }
}

/// How long a negative reply holds: the lower of its SOA's TTL and minimum
/// (RFC 2308, section 5). `None` without an SOA.
pub(crate) fn negative_ttl(message: &Message) -> Option<Duration> {
    negatives(message).next().map(|(_, ttl)| seconds(ttl))
}

/// The numbers of the SOA, where it is one of Consul's zones that has it. A server
/// that asks others for us hands on their SOA, which tells nothing of our zone.
pub(crate) fn zone_soa(message: &Message, zones: &[Domain]) -> Option<Soa> {
    let is_apex = |owner: &Name| {
        let is = |zone: &Domain| {
            let labels = zone.as_str().split('.').map(str::as_bytes);
            usize::from(owner.num_labels()) == labels.clone().count()
                && (owner.iter().zip(labels)).all(|(one, other)| one.eq_ignore_ascii_case(other))
        };
        zones.iter().any(is)
    };
    let mut soas = (message.authorities.iter()).filter_map(|record| match &record.data {
        RData::SOA(soa) if is_apex(&record.name) => Some((record, soa)),
        _ => None,
    });
    soas.next().map(|(record, soa)| Soa {
        refresh: unsigned(soa.refresh),
        retry: unsigned(soa.retry),
        expire: unsigned(soa.expire),
        minimum: record.ttl.min(soa.minimum),
    })
}

fn unsigned(seconds: i32) -> u32 {
    u32::try_from(seconds).unwrap_or_default()
}

/// Owner and negative TTL of every SOA.
fn negatives(message: &Message) -> impl Iterator<Item = (&Name, u32)> {
    (message.authorities.iter()).filter_map(|record| match &record.data {
        RData::SOA(soa) => Some((&record.name, record.ttl.min(soa.minimum))),
        _ => None,
    })
}

/// Addresses of `target`, along its aliases.
fn follow<'a>(
    target: &Name,
    addresses: &'a HashMap<&Name, Vec<IpAddr>>,
    aliases: &HashMap<&Name, &Name>,
) -> &'a [IpAddr] {
    let mut name = target;
    for _ in 0..MOST_ALIASES {
        if let Some(found) = addresses.get(name) {
            return found;
        }
        match aliases.get(name) {
            Some(next) => name = next,
            None => break,
        }
    }
    &[]
}

fn is_in_zone(name: &Name, zones: &[Domain]) -> bool {
    !matches!(
        classify_target(&to_text(name), zones),
        Target::Host { in_zone: false }
    )
}

/// The lowest TTL of the records that were asked for (RFC 2181, section 5.2:
/// they ought to be equal).
fn lowest_ttl(records: &[&Record], wanted: impl Fn(RecordType) -> bool) -> Duration {
    let wanted = records.iter().filter(|record| wanted(record.record_type()));
    wanted
        .map(|record| seconds(record.ttl))
        .min()
        .unwrap_or_default()
}

/// A TTL in seconds. One with its high bit set is taken as very long, not as
/// zero (RFC 8767, section 4); the cache's cap bounds it.
fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(ttl.into())
}

/// Node metadata, dealt out to SRV records. Consul writes the additional section
/// in the order of the answers: for each SRV record its address, then the TXT
/// records of its node, whose owner is the node's name whatever the target is.
struct Texts<'a> {
    left: std::iter::Peekable<std::iter::Copied<std::slice::Iter<'a, &'a Record>>>,
    /// Equal texts are kept once.
    known: HashSet<Arc<NodeText>>,
}

impl<'a> Texts<'a> {
    fn new(additionals: &'a [&'a Record]) -> Self {
        Self {
            left: additionals.iter().copied().peekable(),
            known: HashSet::new(),
        }
    }

    /// The text that belongs to the next SRV record.
    fn next_for(&mut self, target: &'a Name) -> Option<Arc<NodeText>> {
        let mut owners = vec![target];
        while let Some(record) = self
            .left
            .next_if(|record| is_address(record) && owners.contains(&&record.name))
        {
            if let RData::CNAME(alias) = &record.data
                && owners.len() <= MOST_ALIASES
            {
                owners.push(&alias.0);
            }
        }
        let owner = self
            .left
            .peek()
            .filter(|record| is_text(record))
            .map(|record| &record.name)?;
        let mut strings: Vec<Box<[u8]>> = Vec::new();
        while let Some(record) = self.left.next_if(|r| is_text(r) && r.name == *owner) {
            if let RData::TXT(text) = &record.data {
                strings.push(text.txt_data.concat().into());
            }
        }
        strings.sort_unstable();
        strings.dedup();
        let text = NodeText {
            owner: to_text(owner).into(),
            strings,
        };
        if let Some(known) = self.known.get(&text) {
            return Some(Arc::clone(known));
        }
        let text = Arc::new(text);
        self.known.insert(Arc::clone(&text));
        Some(text)
    }
}

fn is_text(record: &Record) -> bool {
    record.record_type() == RecordType::TXT
}

fn is_address(record: &Record) -> bool {
    matches!(
        record.record_type(),
        RecordType::A | RecordType::AAAA | RecordType::CNAME
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME, NS, SOA, SRV};

    /// No such name, say the SOA of these zones: owner, TTL, minimum.
    fn nothing(zones: &[(&str, u32, u32)]) -> Message {
        let mut message = Message::query();
        for &(owner, ttl, minimum) in zones {
            let owner = Name::from_ascii(owner).unwrap();
            let soa = SOA::new(owner.clone(), owner.clone(), 1, 2, 3, 4, minimum);
            let record = Record::from_rdata(owner, ttl, RData::SOA(soa));
            message.authorities.push(record);
        }
        message
    }

    #[test]
    fn only_the_zones_own_soa_tells_the_zones_minimum() {
        let zones = ["corp.example".parse().unwrap(), Domain::default()];
        for (soas, minimum) in [
            (&[][..], None),
            (&[("consul.", 60, 30)], Some(30)),
            (&[("consul.", 20, 30)], Some(20)),
            (&[("Corp.Example.", 60, 30)], Some(30)),
            (&[("example.", 60, 30)], None),
            (&[("sub.consul.", 60, 30)], None),
            (&[("in-addr.arpa.", 60, 30)], None),
            (&[(".", 60, 30)], None),
            (&[("example.", 900, 900), ("consul.", 60, 30)], Some(30)),
        ] {
            let told = zone_soa(&nothing(soas), &zones).map(|soa| soa.minimum);
            assert_eq!(told, minimum, "{soas:?}");
        }
    }

    /// If each record were compared with each other one, these would take minutes.
    #[test]
    fn a_hundred_thousand_records_are_read_as_quickly_as_one_after_the_other() {
        let many = 100_000_u32;
        let name = |at: u32| Name::from_ascii(format!("n{at}.node.consul.")).unwrap();
        let zones = [Domain::default()];
        let mut message = Message::query();
        for at in 0..many {
            let ns = RData::NS(NS(name(at)));
            message.answers.push(Record::from_rdata(name(0), 0, ns));
            let address = RData::A(A(at.into()));
            message
                .additionals
                .push(Record::from_rdata(name(at), 0, address));
        }
        let servers = servers(&Own::all(&message)).found.unwrap();
        assert_eq!(servers.len(), many as usize);

        // One target, and a chain of aliases that all could be its.
        message.answers = vec![Record::from_rdata(
            name(0),
            0,
            RData::SRV(SRV::new(1, 1, 80, name(0))),
        )];
        message.additionals.clear();
        for at in 0..many {
            let alias = RData::CNAME(CNAME(name(at + 1)));
            message
                .additionals
                .push(Record::from_rdata(name(at), 0, alias));
        }
        let found = instances(&Own::all(&message), &zones).found.unwrap();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn instances_that_share_a_target_do_not_multiply_its_addresses_without_end() {
        let target = Name::from_ascii("n1.node.consul.").unwrap();
        let reply = |instances: u16, addresses: u32| {
            let mut message = Message::query();
            for port in 0..instances {
                let srv = RData::SRV(SRV::new(1, 1, port, target.clone()));
                let record = Record::from_rdata(target.clone(), 0, srv);
                message.answers.push(record);
            }
            for at in 0..addresses {
                let record = Record::from_rdata(target.clone(), 0, RData::A(A(at.into())));
                message.additionals.push(record);
            }
            let found = super::instances(&Own::all(&message), &[Domain::default()]).found;
            let Some(Found::Instances(all)) = found else {
                panic!("no instances");
            };
            all.iter()
                .map(|one| one.addresses.len())
                .collect::<Vec<_>>()
        };
        // A host with two addresses and a thousand ports, and one with many addresses.
        assert!(reply(1_000, 2).iter().all(|count| *count == 2));
        assert!(reply(10, 20).iter().all(|count| *count == 20));
        let hostile = reply(2_000, 2_000);
        assert_eq!(hostile.len(), 2_000);
        assert!(hostile.iter().sum::<usize>() <= 256 + 4 * 4_000);
        // Whoever is left without says so: the set is not whole.
        assert!(hostile.contains(&0) && hostile.contains(&2_000));
    }

    #[test]
    fn a_negative_reply_holds_as_long_as_its_soa_says_whosever_it_is() {
        let reply = nothing(&[("example.", 900, 600)]);
        assert_eq!(negative_ttl(&reply), Some(Duration::from_secs(600)));
        assert_eq!(negative_ttl(&nothing(&[])), None);
    }
}
