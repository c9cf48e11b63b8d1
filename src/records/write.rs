//! **Pure.** What stands behind a name, written as DNS records in the shapes of
//! Consul's own answers; `tests/conformance.rs` compares them, case by case.
//!
//! | behind the name | SRV | A, AAAA, ANY, TXT | other types |
//! | --- | --- | --- | --- |
//! | instances | one a target and port; address and TXT of each in additional | addresses of that family, ANY and TXT both; only host names: one CNAME | NODATA, or that CNAME |
//! | a node | NOERROR, empty, no SOA | its address (TXT in additional), ANY both, TXT its metadata | NOERROR, empty, no SOA |
//! | an `addr` name | the address in additional | the address if of that family | the address in additional |
//! | pointers | PTR, whatever the type | PTR | PTR |
//!
//! NODATA is NOERROR with the zone's SOA in authority, as NXDOMAIN has it.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use rand::{Rng, seq::SliceRandom as _};

use crate::{
    cache::stale::worn_ttl,
    consul::dns_settings::{DnsSettings, Soa},
    endpoint::{Answer, Freshness},
    error::ErrorKind,
    found::{Found, Host, Instance, NodeText, TargetKind},
    name::Domain,
    records::{Asked, wire_name::from_text as name},
};

/// Extended errors (RFC 8914, section 5.2).
const OTHER: u16 = 0;
pub(crate) const STALE_ANSWER: u16 = 3;
pub(crate) const NOT_READY: u16 = 14;
pub(crate) const STALE_NXDOMAIN: u16 = 19;
const FILTERED: u16 = 17;
const PROHIBITED: u16 = 18;
const NO_REACHABLE_AUTHORITY: u16 = 22;

/// TTL of this machine's own name, in seconds.
const LOCAL_TTL: u32 = 3600;

/// The sections of one answer, before it is made to fit a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sections {
    pub(crate) code: ResponseCode,
    /// Why, as an extended error (RFC 8914).
    pub(crate) extended: Option<u16>,
    /// There may be more than that, which no source gave: to be told with TC.
    pub(crate) partial: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Sections {
    fn new(code: ResponseCode) -> Self {
        Self {
            code,
            extended: None,
            partial: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    /// Not ours to answer.
    pub(crate) fn refused() -> Self {
        Self::new(ResponseCode::Refused)
    }

    /// Nothing that anybody answers.
    pub(crate) fn not_implemented() -> Self {
        Self::new(ResponseCode::NotImp)
    }

    /// No source answered, or none that may.
    pub(crate) fn failed(kind: ErrorKind) -> Self {
        let extended = match kind {
            ErrorKind::Denied => PROHIBITED,
            _ => NO_REACHABLE_AUTHORITY,
        };
        Self {
            extended: Some(extended),
            ..Self::new(ResponseCode::ServFail)
        }
    }

    /// A defect of ours ended the question.
    pub(crate) fn broken() -> Self {
        Self {
            extended: Some(OTHER),
            ..Self::new(ResponseCode::ServFail)
        }
    }

    /// There is no time for it now, and may be later.
    pub(crate) fn not_ready() -> Self {
        Self {
            extended: Some(NOT_READY),
            ..Self::new(ResponseCode::ServFail)
        }
    }

    /// Nothing but a code.
    pub(crate) fn code(code: ResponseCode) -> Self {
        Self::new(code)
    }

    /// NXDOMAIN, since what there is must not be given.
    pub(crate) fn filtered() -> Self {
        Self {
            extended: Some(FILTERED),
            ..Self::nowhere()
        }
    }

    /// NXDOMAIN in no zone of ours.
    fn nowhere() -> Self {
        Self::new(ResponseCode::NXDomain)
    }

    /// NXDOMAIN for a name in a top-level domain that is answered here, with its SOA (RFC 2308,
    /// section 3).
    pub(crate) fn nothing_local(asked: &Asked) -> Self {
        Self {
            authorities: vec![local_soa(asked)],
            ..Self::nowhere()
        }
    }

    /// NOERROR and nothing, not even an SOA.
    pub(crate) fn empty() -> Self {
        Self::new(ResponseCode::NoError)
    }

    pub(crate) fn no_such_name(zone: &Zone<'_>) -> Self {
        Self::nothing(ResponseCode::NXDomain, zone)
    }

    /// NXDOMAIN or NODATA, with the zone's SOA.
    fn nothing(code: ResponseCode, zone: &Zone<'_>) -> Self {
        Self {
            authorities: vec![zone.soa()],
            ..Self::new(code)
        }
    }
}

/// The names of a zone itself, in hickory's form: made once, and told with each name that does
/// not exist.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    apex: Name,
    ns: Name,
    hostmaster: Name,
}

impl Origin {
    /// A domain leaves room for a label before it, and has none that the wire does not carry.
    pub(crate) fn of(domain: &Domain) -> Self {
        let apex = name(domain.as_str()).unwrap_or_default();
        let within = |label: &[u8]| apex.prepend_label(label).unwrap_or_default();
        Self {
            ns: within(b"ns"),
            hostmaster: within(b"hostmaster"),
            apex,
        }
    }
}

/// The zone, as its SOA tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zone<'a> {
    pub(crate) origin: &'a Origin,
    pub(crate) serial: u32,
    /// How Consul's own DNS interface is set.
    pub(crate) settings: &'a DnsSettings,
}

impl Zone<'_> {
    fn soa(&self) -> Record {
        let Origin {
            apex,
            ns,
            hostmaster,
        } = self.origin.clone();
        let Soa {
            refresh,
            retry,
            expire,
            minimum,
        } = self.settings.soa;
        let signed = |seconds| i32::try_from(seconds).unwrap_or(i32::MAX);
        let (refresh, retry, expire) = (signed(refresh), signed(retry), signed(expire));
        let soa = SOA::new(ns, hostmaster, self.serial, refresh, retry, expire, minimum);
        Record::from_rdata(apex, minimum, RData::SOA(soa))
    }
}

/// The answer to a question of type `kind` for `owner`, which is in the asker's
/// case. Instances are shuffled anew for every answer, as Consul does, so that
/// clients that take the first spread over all; no more than `most` of them are written down.
pub(crate) fn answer(
    answer: &Answer,
    asked: &Asked,
    zone: &Zone<'_>,
    most: usize,
    dice: &mut impl Rng,
) -> Sections {
    let (owner, kind) = (&asked.owner, asked.kind);
    let (ttl, extended) = match answer.freshness {
        Freshness::Fresh => (answer.ttl(), None),
        Freshness::Stale => (worn_ttl(answer.held.ttl), Some(STALE_ANSWER)),
    };
    let mut writer = Writer {
        owner,
        kind,
        ttl: whole_seconds(ttl),
        additional_text: zone.settings.additional_text,
        most,
        sections: Sections {
            extended,
            ..Sections::new(ResponseCode::NoError)
        },
    };
    match &answer.held.found {
        Found::Instances(instances) => {
            let mut shuffled: Vec<&Instance> = instances.iter().collect();
            shuffled.shuffle(dice);
            if kind == RecordType::SRV {
                writer.services(&shuffled);
            } else {
                writer.addresses(&shuffled);
            }
        }
        Found::Host(host) => {
            writer.host(host);
            return writer.sections;
        }
        Found::Pointers(names) => {
            let pointers = names.iter().filter_map(|target| name(target));
            let pointers = pointers.map(|target| writer.record(owner, RData::PTR(PTR(target))));
            writer.sections.answers = pointers.collect();
            if kind == RecordType::SOA {
                writer.sections.authorities.push(zone.soa());
            }
        }
        Found::Servers(_) => return apex(Some(answer), kind, zone),
    }
    if writer.sections.answers.is_empty() {
        return Sections::nothing(ResponseCode::NoError, zone);
    }
    writer.sections
}

/// The answer for an `addr` name: a record of another family than the asked one
/// goes to the additional section.
pub(crate) fn decoded(address: IpAddr, asked: &Asked, zone: &Zone<'_>) -> Sections {
    let mut sections = Sections::empty();
    let ttl = whole_seconds(zone.settings.node_ttl);
    let (owner, kind) = (&asked.owner, asked.kind);
    let record = Record::from_rdata(owner.to_lowercase(), ttl, address_data(address));
    if kind == record.record_type() || kind == RecordType::ANY {
        sections.answers.push(record);
    } else {
        sections.additionals.push(record);
    }
    sections
}

/// The answer for a name that means this machine (RFC 6761, section 6.3).
pub(crate) fn loopback(asked: &Asked) -> Sections {
    let mut sections = Sections::empty();
    let both = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    for address in both {
        let data = address_data(address);
        if asked.kind == data.record_type() || asked.kind == RecordType::ANY {
            let owner = asked.owner.clone();
            let record = Record::from_rdata(owner, LOCAL_TTL, data);
            sections.answers.push(record);
        }
    }
    if sections.answers.is_empty() {
        sections.authorities.push(local_soa(asked));
    }
    sections
}

/// The SOA of the top-level domain of a name that is answered here, from no zone.
fn local_soa(asked: &Asked) -> Record {
    let apex = asked.owner.trim_to(1).to_lowercase();
    let soa = SOA::new(apex.clone(), Name::root(), 1, 3_600, 600, 86_400, LOCAL_TTL);
    Record::from_rdata(apex, LOCAL_TTL, RData::SOA(soa))
}

/// The answer to SOA or NS for any name of the zone. Without `servers` the SOA
/// stands alone and NS has nothing to say.
pub(crate) fn apex(servers: Option<&Answer>, kind: RecordType, zone: &Zone<'_>) -> Sections {
    let mut sections = Sections::empty();
    let ttl = whole_seconds(servers.map_or(Duration::ZERO, Answer::ttl));
    let servers = servers.map(|answer| &answer.held.found);
    let mut records = Vec::new();
    if let Some(Found::Servers(servers)) = servers {
        let apex = &zone.origin.apex;
        for (server, addresses) in servers {
            let Some(server) = name(server) else { continue };
            for &address in addresses {
                let record = Record::from_rdata(server.clone(), ttl, address_data(address));
                sections.additionals.push(record);
            }
            records.push(Record::from_rdata(apex.clone(), ttl, RData::NS(NS(server))));
        }
    }
    if kind == RecordType::SOA {
        sections.answers.push(zone.soa());
        sections.authorities = records;
    } else {
        sections.answers = records;
    }
    sections
}

/// More answers than a message has room for: the least is a pointer to the question's name (2),
/// type, class, TTL and length (10) and an IPv4 address (4 bytes). What is behind them is not to
/// be written down only to be left out.
pub(crate) const MORE_THAN_FIT: usize = u16::MAX as usize / 16 + 1;

struct Writer<'a> {
    owner: &'a Name,
    kind: RecordType,
    ttl: u32,
    /// Metadata stands beside other records.
    additional_text: bool,
    /// Answers.
    most: usize,
    sections: Sections,
}

impl Writer<'_> {
    fn services(&mut self, instances: &[&Instance]) {
        let mut known = HashSet::new();
        for instance in instances {
            if self.sections.answers.len() >= self.most {
                return;
            }
            let Some(target) = name(&instance.target) else {
                continue;
            };
            if !known.insert((&instance.target, instance.port, &instance.node)) {
                continue;
            }
            let srv = SRV::new(
                instance.priority,
                instance.weight,
                instance.port,
                target.clone(),
            );
            self.sections
                .answers
                .push(self.record(self.owner, RData::SRV(srv)));
            for &address in &instance.addresses {
                // Where a registered host name leads is for the asker to find out.
                if instance.kind != TargetKind::Host || instance.glued {
                    let glue = self.record(&target, address_data(address));
                    self.sections.additionals.push(glue);
                }
            }
            if let Some(text) = &instance.text
                && self.additional_text
            {
                self.node_text(text);
            }
        }
    }

    fn node_text(&mut self, text: &NodeText) {
        let Some(owner) = name(&text.owner) else {
            return;
        };
        for string in &text.strings {
            let record = self.record(&owner, text_data(string));
            self.sections.additionals.push(record);
        }
    }

    /// Addresses win over host names; of host names only one is told, because a
    /// name has one CNAME at most.
    fn addresses(&mut self, instances: &[&Instance]) {
        let mut known = HashSet::new();
        for instance in instances
            .iter()
            .filter(|instance| instance.kind != TargetKind::Host)
        {
            let alone = matches!(self.kind, RecordType::A | RecordType::AAAA);
            let other = instance.other.as_ref().filter(|_| alone);
            for &address in instance.addresses.iter().chain(other) {
                if self.sections.answers.len() >= self.most {
                    return;
                }
                if self.wants(address) && known.insert(address) {
                    let record = self.record(self.owner, address_data(address));
                    self.sections.answers.push(record);
                }
            }
        }
        if !self.sections.answers.is_empty() {
            return;
        }
        let Some(host) = instances
            .iter()
            .find(|instance| instance.kind == TargetKind::Host)
        else {
            return;
        };
        let glue = if host.glued { &host.addresses[..] } else { &[] };
        self.alias(&host.target, glue);
    }

    fn alias(&mut self, target: &Arc<str>, addresses: &[IpAddr]) {
        let Some(target) = name(target) else { return };
        let alias = self.record(self.owner, RData::CNAME(CNAME(target.clone())));
        self.sections.answers.push(alias);
        // Consul follows an alias within its zone for every type, whatever was asked.
        let wanted: Vec<Record> = (addresses.iter())
            .map(|address| self.record(&target, address_data(*address)))
            .collect();
        self.sections.answers.extend(wanted);
    }

    fn host(&mut self, host: &Host) {
        let texts: Vec<_> = host
            .text
            .iter()
            .map(|string| self.record(self.owner, text_data(string)))
            .collect();
        match self.kind {
            RecordType::TXT => self.sections.answers = texts,
            RecordType::A | RecordType::AAAA | RecordType::ANY => {
                match &host.alias {
                    Some(alias) => self.alias(alias, &[]),
                    None => {
                        for &address in &host.addresses {
                            if self.kind == RecordType::ANY || self.wants(address) {
                                let record = self.record(self.owner, address_data(address));
                                self.sections.answers.push(record);
                            }
                        }
                    }
                }
                if self.kind == RecordType::ANY {
                    self.sections.answers.extend(texts);
                } else if self.additional_text {
                    self.sections.additionals = texts;
                }
            }
            _ => {}
        }
    }

    /// Whether a question of this type is answered with this address. Consul
    /// answers TXT for a service with its addresses.
    fn wants(&self, address: IpAddr) -> bool {
        match self.kind {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            kind => kind == RecordType::ANY || kind == RecordType::TXT,
        }
    }

    fn record(&self, owner: &Name, data: RData) -> Record {
        Record::from_rdata(owner.clone(), self.ttl, data)
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn text_data(string: &[u8]) -> RData {
    // One string holds 255 bytes (RFC 1035, section 3.3.14); a longer value goes
    // on in the next.
    let chunks: Vec<&[u8]> = if string.is_empty() {
        vec![string]
    } else {
        string.chunks(255).collect()
    };
    RData::TXT(TXT::from_bytes(chunks))
}

/// TTL on the wire. Rounded up: what holds for half a second more is not over.
fn whole_seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn of_a_set_beyond_measure_a_message_is_given_a_record_more_than_it_holds_and_others_all() {
        let instance = |at: u32| Instance {
            target: format!("i{at}.").into(),
            kind: TargetKind::Node,
            addresses: vec![Ipv4Addr::from_bits(at).into()],
            other: None,
            glued: true,
            port: 80,
            priority: 1,
            weight: 1,
            node: None,
            text: None,
            facts: None,
        };
        let all: Vec<Instance> = (0..10_000).map(instance).collect();
        let owner = name("web.service.consul.").unwrap();
        let written = |most: usize, kind| {
            let mut writer = Writer {
                owner: &owner,
                kind,
                ttl: 0,
                additional_text: true,
                most,
                sections: Sections::empty(),
            };
            let all: Vec<&Instance> = all.iter().collect();
            match kind {
                RecordType::SRV => writer.services(&all),
                _ => writer.addresses(&all),
            }
            writer.sections
        };
        for kind in [RecordType::SRV, RecordType::A] {
            assert_eq!(written(usize::MAX, kind).answers.len(), 10_000);
            let sections = written(MORE_THAN_FIT, kind);
            assert_eq!(sections.answers.len(), MORE_THAN_FIT);
            assert!(sections.additionals.len() <= MORE_THAN_FIT);
            assert!(MORE_THAN_FIT * 16 > usize::from(u16::MAX));
        }
    }
}
