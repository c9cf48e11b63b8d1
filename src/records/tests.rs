//! Replies by the thousand, read by us and by another reader of DNS messages: what one
//! takes for an answer the other does, and both find the same addresses and ports.

#[path = "../../tests/support/oracle.rs"]
mod oracle;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use domain::{
    base::{Message, ParsedName, iana::Class, name::ToLabelIter},
    rdata::AllRecordData,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::*;
use crate::{
    records::read::Asks,
    source::dns::message::{Query, decode},
};

const ID: u16 = 0x1234;

const CASES: usize = 20_000;

type Places = BTreeSet<(IpAddr, u16)>;
type Labels = Vec<Vec<u8>>;
type Read<'a> = (Labels, AllRecordData<&'a [u8], ParsedName<&'a [u8]>>);

/// Writes names now in full, now with a pointer to what was written before.
struct Writer<'a> {
    bytes: Vec<u8>,
    known: BTreeMap<Labels, usize>,
    dice: &'a mut SmallRng,
}

impl Writer<'_> {
    fn name(&mut self, labels: &[&[u8]]) {
        for (at, label) in labels.iter().enumerate() {
            let suffix: Labels = labels[at..].iter().map(|label| label.to_vec()).collect();
            let known = self.known.get(&suffix).copied();
            if let Some(to) = known.filter(|_| self.dice.random_bool(0.8)) {
                let pointer = 0xC000 | u16::try_from(to).unwrap();
                return self.bytes.extend(pointer.to_be_bytes());
            }
            self.known.entry(suffix).or_insert(self.bytes.len());
            self.bytes.push(u8::try_from(label.len()).unwrap());
            self.bytes.extend(*label);
        }
        self.bytes.push(0);
    }

    fn record(&mut self, section: usize, owner: &[&[u8]], kind: u16, data: &Data<'_>) {
        self.bytes[section + 1] += 1;
        self.name(owner);
        let class: u16 = if self.dice.random_bool(0.97) { 1 } else { 3 };
        for number in [kind, class, 0, self.dice.random_range(0..100)] {
            self.bytes.extend(number.to_be_bytes());
        }
        let start = self.bytes.len() + 2;
        self.bytes.extend([0, 0]);
        match data {
            Data::Bytes(bytes) => self.bytes.extend(*bytes),
            Data::Names(before, names) => {
                self.bytes.extend(*before);
                names.iter().for_each(|name| self.name(name));
                if kind == 6 {
                    self.bytes.extend([0; 20]);
                }
            }
        }
        let length = u16::try_from(self.bytes.len() - start).unwrap();
        self.bytes[start - 2..start].copy_from_slice(&length.to_be_bytes());
    }
}

enum Data<'a> {
    Bytes(&'a [u8]),
    Names(&'a [u8], Vec<&'a [&'a [u8]]>),
}

const ANSWER: usize = 6;
const AUTHORITY: usize = 8;
const ADDITIONAL: usize = 10;

const TARGETS: [&[&[u8]]; 10] = [
    &[b"0a000001", b"addr", b"dc1", b"consul"],
    &[b"0A0000fE", b"addr", b"dc1", b"CONSUL"],
    &[
        b"20010db8000000000000000000000001",
        b"addr",
        b"dc1",
        b"consul",
    ],
    &[b"vm1", b"node", b"dc1", b"consul"],
    &[b"VM1", b"Node", b"dc1", b"consul"],
    &[b"www", b"service", b"consul"],
    &[b"0a000001", b"addr"],
    &[b"bank", b"invalid"],
    // One label, with a dot in it.
    &[b"bank", b"evil.consul"],
    &[],
];

/// A reply to a question, as it might be.
fn built(dice: &mut SmallRng, question: &[u8]) -> Vec<u8> {
    let mut bytes = question.to_vec();
    bytes[2..4].copy_from_slice(&[0x85, 0]);
    bytes[10..12].fill(0);
    let mut owner: Vec<&[u8]> = Vec::new();
    let mut at = 12;
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        owner.push(&question[at + 1..end]);
        at = end;
    }
    let mut writer = Writer {
        bytes,
        known: BTreeMap::new(),
        dice,
    };
    for at in 0..owner.len() {
        let start = 12
            + owner[..at]
                .iter()
                .map(|label| label.len() + 1)
                .sum::<usize>();
        let suffix = owner[at..].iter().map(|label| label.to_vec()).collect();
        writer.known.insert(suffix, start);
    }
    for (section, most) in [(ANSWER, 8), (AUTHORITY, 2), (ADDITIONAL, 6)] {
        for _ in 0..writer.dice.random_range(0..most) {
            let name = *TARGETS.choose(writer.dice).unwrap();
            let other = *TARGETS.choose(writer.dice).unwrap();
            let owner = if section == ANSWER && writer.dice.random_bool(0.7) {
                &owner
            } else {
                name
            };
            let number = writer.dice.random::<u8>() % 4;
            match writer.dice.random_range(0..12) {
                0..6 if section == ANSWER => {
                    let place = [0, 1, 0, 1, 0, number];
                    writer.record(section, owner, 33, &Data::Names(&place, vec![other]));
                }
                0..=5 => writer.record(section, owner, 1, &Data::Bytes(&[10, 0, 1, number])),
                6 | 7 => writer.record(section, owner, 28, &Data::Bytes(&[number; 16])),
                8 => writer.record(section, owner, 5, &Data::Names(&[], vec![other])),
                9 => writer.record(section, owner, 16, &Data::Bytes(b"\x03a=b\0")),
                10 => writer.record(section, owner, 6, &Data::Names(&[], vec![name, other])),
                _ => writer.record(section, owner, 65_400, &Data::Bytes(&[number; 9])),
            }
        }
    }
    if writer.dice.random_bool(0.7) {
        writer.bytes[11] += 1;
        writer.bytes.extend(b"\0\0\x29\x0f\xfd\0\0\0\0\0\0");
    }
    writer.bytes
}

fn mutated(dice: &mut SmallRng, mut reply: Vec<u8>) -> Vec<u8> {
    match dice.random_range(0..12) {
        0 => reply.truncate(dice.random_range(0..=reply.len())),
        1 => reply.extend((0..dice.random_range(1..20)).map(|_| dice.random::<u8>())),
        2..5 => {
            for _ in 0..dice.random_range(1..3) {
                let at = dice.random_range(0..reply.len());
                reply[at] = dice.random();
            }
        }
        5 => {
            let at = dice.random_range(12..reply.len() - 1);
            let to = 0xC000 | u16::try_from(dice.random_range(0..reply.len())).unwrap();
            reply[at..at + 2].copy_from_slice(&to.to_be_bytes());
        }
        _ => {}
    }
    reply
}

/// What we find. `None`: it is no answer.
fn ours(query: &Query, asks: Asks, reply: &[u8]) -> Option<Places> {
    query.is_answered_by(ID, reply).ok()?;
    let message = decode(reply).ok()?;
    let found = asks.read(&message, &[Domain::default()]);
    let all = found.map(|(found, _)| endpoints(&found, "web.service.consul."));
    let places = all.unwrap_or_default();
    Some(
        places
            .iter()
            .map(|place| (place.address, place.port))
            .collect(),
    )
}

/// What the other reader finds.
fn theirs(question: &[u8], asks: Asks, reply: &[u8]) -> Result<Option<Places>, oracle::Foreign> {
    let Ok(message) = Message::from_octets(reply) else {
        return Ok(None);
    };
    let header = message.header();
    let asked = Message::from_octets(question).unwrap();
    let is_reply = header.id() == ID && header.qr() && header.opcode().to_int() == 0;
    let counts_one = message.header_counts().qdcount() == 1;
    let about = |message: &Message<&[u8]>| {
        let question = message.first_question()?;
        let name = labels(question.qname());
        Some((name, question.qtype(), question.qclass()))
    };
    // A name that stands elsewhere than in the question is another name.
    let is_written_out = reply.len() >= question.len() - 11;
    if !is_reply || !counts_one || !is_written_out || about(&message) != about(&asked) {
        return Ok(None);
    }
    if !oracle::is_well_formed(&message)? {
        return Ok(None);
    }
    let mut sections: [Vec<Read<'_>>; 3] = Default::default();
    let mut section = message.answer().unwrap();
    for records in &mut sections {
        for record in &mut section {
            let record = record.unwrap();
            if record.class() == Class::IN
                && let Ok(read) = record.to_any_record::<AllRecordData<_, _>>()
            {
                records.push((labels(read.owner()), read.data().clone()));
            }
        }
        if let Some(next) = section.next_section().unwrap() {
            section = next;
        } else {
            break;
        }
    }
    let [mut answers, _, mut additionals] = sections;
    only_asked_for(&question_name(&message), &mut answers, &mut additionals);
    Ok(Some(if asks.kind() == RecordType::SRV {
        instances(&answers, &additionals)
    } else {
        let within = answers.iter().filter(|(owner, _)| is_consuls(owner));
        within
            .filter_map(|(_, data)| address(data))
            .map(|address| (address, 0))
            .collect()
    }))
}

fn question_name(message: &Message<&[u8]>) -> Labels {
    let question = message.first_question().expect("it was compared");
    labels(question.qname())
}

/// Takes away what is about other names than the one in question and those that it stands
/// for, step by step; a name that stands for two stands for none.
fn only_asked_for(name: &Labels, answers: &mut Vec<Read<'_>>, additionals: &mut Vec<Read<'_>>) {
    let mut aliases: BTreeMap<Labels, BTreeSet<Labels>> = BTreeMap::new();
    for (owner, data) in answers.iter().chain(additionals.iter()) {
        if let AllRecordData::Cname(alias) = data {
            let alias = labels(alias.cname());
            aliases.entry(owner.clone()).or_default().insert(alias);
        }
    }
    aliases.retain(|_, stands_for| stands_for.len() == 1);
    let mut chain = vec![name.clone()];
    while chain.len() <= 8
        && let Some(next) = aliases.get(&chain[chain.len() - 1])
    {
        chain.extend(next.iter().cloned());
    }
    let is_one = |(owner, data): &Read<'_>| {
        !matches!(data, AllRecordData::Cname(_)) || aliases.contains_key(owner)
    };
    answers.retain(|record| chain.contains(&record.0) && is_one(record));
    additionals.retain(is_one);
}

fn instances(answers: &[Read<'_>], additionals: &[Read<'_>]) -> Places {
    let mut places = Places::new();
    for (_, data) in answers {
        let AllRecordData::Srv(srv) = data else {
            continue;
        };
        let target = labels(srv.target());
        let mut found = BTreeSet::new();
        if let [digits, addr, .., _] = &target[..]
            && is_consuls(&target)
            && addr == b"addr"
            && let Some(address) = unhex(digits)
        {
            found.insert(address);
        } else if is_consuls(&target) {
            let mut name = &target;
            // An address, or an alias of at most so many.
            for _ in 0..8 {
                let of = additionals.iter().filter(|(owner, _)| owner == name);
                found = of.clone().filter_map(|(_, data)| address(data)).collect();
                let mut aliases = of.filter_map(|(_, data)| match data {
                    AllRecordData::Cname(alias) => Some(labels(alias.cname())),
                    _ => None,
                });
                let next = aliases.next();
                let Some(next) = next.filter(|_| found.is_empty()) else {
                    break;
                };
                let known = additionals.iter().map(|(owner, _)| owner);
                let Some(next) = { known }.find(|owner| **owner == next) else {
                    break;
                };
                name = next;
            }
        }
        places.extend(found.into_iter().map(|address| (address, srv.port())));
    }
    places
}

/// Without the root's, in lower case.
fn labels(name: impl ToLabelIter) -> Labels {
    let labels = name
        .iter_labels()
        .map(|label| label.as_slice().to_ascii_lowercase());
    labels.filter(|label| !label.is_empty()).collect()
}

fn is_consuls(labels: &[Vec<u8>]) -> bool {
    labels.len() > 1 && labels.last().is_some_and(|last| last == b"consul")
}

fn address(data: &AllRecordData<&[u8], ParsedName<&[u8]>>) -> Option<IpAddr> {
    match data {
        AllRecordData::A(a) => Some(a.addr().into()),
        AllRecordData::Aaaa(aaaa) => Some(aaaa.addr().into()),
        _ => None,
    }
}

fn unhex(digits: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(digits).ok()?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    match text.len() {
        8 => Some(Ipv4Addr::from_bits(u32::from_str_radix(text, 16).ok()?).into()),
        32 => Some(Ipv6Addr::from_bits(u128::from_str_radix(text, 16).ok()?).into()),
        _ => None,
    }
}

#[test]
fn replies_are_read_as_another_reader_reads_them() {
    let seed = std::env::var("PROCONSUL_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut dice = SmallRng::seed_from_u64(seed);
    let (mut report, mut counts) = (String::new(), BTreeMap::new());
    for (name, most) in [("web", CASES), ("vm1.node.dc1.consul", CASES / 4)] {
        let name: ConsulName = name.parse().unwrap();
        let asks = Asks::of(&name);
        let query = Query::new(&name.to_string(), asks.kind(), 4_093).unwrap();
        let question = query.with_id(ID);
        let plain = query.clone().without_edns().with_id(ID);
        for _ in 0..most {
            let reply = built(&mut dice, &plain);
            let reply = mutated(&mut dice, reply);
            let ours = ours(&query, asks, &reply);
            let what = match theirs(&question, asks, &reply) {
                Err(oracle::Foreign) => "of foreign types",
                Ok(theirs) if theirs != ours => {
                    let hex = reply.iter().fold(String::new(), |mut hex, byte| {
                        _ = write!(hex, "{byte:02x}");
                        hex
                    });
                    _ = writeln!(report, "{hex}\n  ours {ours:?}\n  theirs {theirs:?}");
                    "otherwise"
                }
                Ok(None) => "no answer",
                Ok(Some(places)) if places.is_empty() => "without places",
                Ok(Some(_)) => "with places",
            };
            *counts.entry(what).or_insert(0) += 1;
        }
    }
    println!("seed {seed}: {counts:?}");
    let shown: Vec<_> = report.lines().take(12).collect();
    assert!(
        report.is_empty(),
        "seed {seed}: {counts:?}\n{}",
        shown.join("\n")
    );
    assert!(
        counts["with places"] > CASES / 4 && counts["no answer"] > CASES / 10,
        "{counts:?}"
    );
    assert!(
        counts
            .get("of foreign types")
            .is_none_or(|few| *few < CASES / 20),
        "{counts:?}"
    );
}
