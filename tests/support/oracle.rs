//! What the stub must say to a packet, told by another reader of DNS messages than its
//! own, and by rules that are written out here once more.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeSet;

use domain::{
    base::{
        Message, ParsedName, Rtype,
        iana::OptionCode,
        message::RecordSection,
        name::ToLabelIter as _,
        opt::{ClientSubnet, Opt, UnknownOptData},
    },
    rdata::AllRecordData,
};

/// Types whose data both readers know, and those that nobody does.
pub(crate) const KNOWN: [u16; 14] = [1, 2, 5, 6, 12, 15, 16, 24, 28, 33, 41, 250, 65_400, 65_280];

/// What a packet comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Silence,
    /// A header with this code, and no more.
    Header(u8),
    /// The question again, one of these codes (of 12 bits), so many answers if that is
    /// known, and an OPT record if there was one.
    Reply {
        codes: &'static [u16],
        answers: Option<usize>,
        /// The size that the client says it takes.
        edns: Option<u16>,
    },
    /// Its records are of types that only one reader knows.
    Unknown,
}

const NOTIMP: u8 = 4;
const FORMERR: u8 = 1;

/// What is known of a packet that is well formed.
#[derive(Default)]
struct Seen {
    edns: Option<(u16, u8)>,
    is_signed: bool,
    has_foreign_types: bool,
}

pub(crate) fn expected(packet: &[u8]) -> Expected {
    let Ok(message) = Message::from_octets(packet) else {
        return Expected::Silence;
    };
    let header = message.header();
    if header.qr() {
        return Expected::Silence;
    }
    if header.opcode().to_int() != 0 {
        return Expected::Header(NOTIMP);
    }
    if message.header_counts().qdcount() != 1 {
        return Expected::Header(FORMERR);
    }
    let Some(seen) = well_formed(&message) else {
        return Expected::Header(FORMERR);
    };
    if seen.has_foreign_types {
        return Expected::Unknown;
    }
    let question = message.sole_question().unwrap();
    let (kind, class) = (question.qtype().to_int(), question.qclass().to_int());
    let labels: Vec<Vec<u8>> = (question.qname().iter_labels())
        .map(|label| label.as_slice().to_ascii_lowercase())
        .filter(|label| !label.is_empty())
        .collect();
    let is_ours = labels.last().is_some_and(|last| last == b"consul");
    let is_reverse = matches!(&labels[..], [.., zone, arpa] if arpa == b"arpa" && (zone == b"in-addr" || zone == b"ip6"));
    // Eight hexadecimal digits are an address.
    let address = matches!(&labels[..], [digits, addr, _] if digits.len() == 8
        && digits.iter().all(u8::is_ascii_hexdigit) && addr == b"addr" && is_ours);
    let edns = seen.edns.map(|(size, _)| size);
    let (codes, answers): (&[u16], _) = if seen.edns.is_some_and(|(_, version)| version > 0) {
        (&[16], Some(0))
    } else if kind == 251 || kind == 252 {
        (&[4], Some(0))
    } else if class != 1 {
        (&[5], Some(0))
    } else if seen.is_signed && (is_ours || is_reverse) {
        (&[9], Some(0))
    } else if is_reverse {
        (&[0, 2, 3], None)
    } else if !is_ours {
        (&[5], Some(0))
    } else if kind == 6 || kind == 2 {
        // Of the zone, whatever the name.
        (&[0], Some(usize::from(kind == 6)))
    } else if address {
        (&[0], Some(usize::from(kind == 1 || kind == 255)))
    } else {
        (&[0, 2, 3], Some(0))
    };
    Expected::Reply {
        codes,
        answers,
        // A refusal has none, as Consul's.
        edns: edns.filter(|_| codes != [5]),
    }
}

/// Its records are of types that only one reader knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreign;

/// Whether a message can be read to its end.
pub(crate) fn is_well_formed(message: &Message<&[u8]>) -> Result<bool, Foreign> {
    match well_formed(message) {
        Some(seen) if seen.has_foreign_types => Err(Foreign),
        seen => Ok(seen.is_some()),
    }
}

fn well_formed(message: &Message<&[u8]>) -> Option<Seen> {
    let bytes = message.as_slice();
    let mut pointers = Pointers {
        hops: bytes.len() / 2,
        letters: 32 * bytes.len(),
    };
    pointers.are_good(bytes, 12)?;
    message.sole_question().ok()?;
    let mut seen = Seen::default();
    let mut section = message.answer().ok()?;
    for number in 0..3 {
        if number > 0 {
            section = section.next_section().ok()??;
        }
        records(bytes, &mut section, number == 2, &mut pointers, &mut seen)?;
    }
    (section.pos() == bytes.len()).then_some(seen)
}

fn records(
    bytes: &[u8],
    section: &mut RecordSection<'_, &[u8]>,
    is_additional: bool,
    pointers: &mut Pointers,
    seen: &mut Seen,
) -> Option<()> {
    loop {
        let at = section.pos();
        let Some(record) = section.next() else {
            return Some(());
        };
        let record = record.ok()?;
        // Nothing comes behind a signature.
        if seen.is_signed {
            return None;
        }
        pointers.are_good(bytes, at)?;
        let kind = record.rtype().to_int();
        if !KNOWN.contains(&kind) {
            seen.has_foreign_types = true;
        }
        if matches!(record.rtype(), Rtype::TSIG | Rtype::SIG) {
            seen.is_signed = is_additional;
            is_additional.then_some(())?;
        }
        let length = usize::from(record.rdlen());
        if record.rtype() == Rtype::OPT {
            let is_first = seen.edns.is_none() && is_additional;
            (is_first && record.owner().is_root()).then_some(())?;
            let [.., version, _, _] = record.ttl().as_secs().to_be_bytes();
            seen.edns = Some((record.class().to_int(), version));
            let record = record.to_record::<Opt<_>>().ok()??;
            options(record.data())?;
            continue;
        }
        // A record without data is none.
        (length > 0).then_some(())?;
        if seen.has_foreign_types {
            continue;
        }
        let start = section.pos() - length;
        let first = match kind {
            2 | 5 | 6 | 12 | 250 => Some(start),
            15 => Some(start + 2),
            33 => Some(start + 6),
            _ => None,
        };
        if let Some(first) = first {
            let second = pointers.are_good(bytes, first)?;
            if kind == 6 {
                pointers.are_good(bytes, second)?;
            }
        }
        // Nobody here reads the data of a signature by a public key.
        if kind != 24 {
            record
                .to_any_record::<AllRecordData<&[u8], ParsedName<&[u8]>>>()
                .ok()?;
        }
    }
}

fn options<'a>(opt: &'a Opt<&'a [u8]>) -> Option<()> {
    let mut count = 0;
    for option in opt.iter::<UnknownOptData<&[u8]>>() {
        let option = option.ok()?;
        count += 1;
        let length = option.as_slice().len();
        let is_cookie = option.code() == OptionCode::COOKIE;
        if is_cookie && length != 8 && !(16..=40).contains(&length) {
            return None;
        }
    }
    for subnet in opt.iter::<ClientSubnet>() {
        subnet.ok()?;
    }
    (count <= 32).then_some(())
}

/// What may yet be followed, and written out of names.
struct Pointers {
    hops: usize,
    letters: usize,
}

impl Pointers {
    /// Follows a name. `None`: it leads on, into the header, or too far. Otherwise where
    /// it ends, where it stands.
    fn are_good(&mut self, bytes: &[u8], start: usize) -> Option<usize> {
        let (mut part, mut at, mut end) = (start, start, None);
        let mut before = bytes.len();
        loop {
            if at >= before {
                return None;
            }
            let byte = usize::from(*bytes.get(at)?);
            if byte >= 0xC0 {
                let to = (byte & 0x3F) << 8 | usize::from(*bytes.get(at + 1)?);
                if to < 12 || to >= part {
                    return None;
                }
                self.hops = self.hops.checked_sub(1)?;
                end = end.or(Some(at + 2));
                (before, part, at) = (part, to, to);
            } else if byte > 63 {
                return None;
            } else if byte == 0 {
                return end.or(Some(at + 1));
            } else {
                self.letters = self.letters.checked_sub(byte + 1)?;
                at += byte + 1;
            }
        }
    }
}

/// Where a reply is not what was expected.
pub(crate) fn fault(packet: &[u8], reply: &[u8], expected: &Expected) -> Option<String> {
    let (codes, answers, edns) = match expected {
        Expected::Silence => return Some("an answer".to_owned()),
        Expected::Unknown => return None,
        Expected::Header(code) => {
            let flags = [0x80 | packet[2] & 0x79, packet[3] & 0x10 | code];
            let header = [&packet[..2], &flags, &[0; 8]].concat();
            return (reply != header).then(|| format!("not {header:02x?}"));
        }
        Expected::Reply {
            codes,
            answers,
            edns,
        } => (codes, answers, edns),
    };
    let Ok(message) = Message::from_octets(reply) else {
        return Some("no header".to_owned());
    };
    let Some(seen) = well_formed(&message) else {
        return Some("malformed".to_owned());
    };
    let header = message.header();
    let code = message.opt_rcode().to_int();
    let mut faults = BTreeSet::new();
    let mut check = |is_good: bool, fault: &str| {
        if !is_good {
            faults.insert(fault.to_owned());
        }
    };
    check(reply[..2] == packet[..2], "another id");
    check(header.qr() && header.opcode().to_int() == 0, "no reply");
    check(header.rd() == (packet[2] & 1 != 0), "another RD");
    check(header.cd() == (packet[3] & 0x10 != 0), "another CD");
    check(
        !header.ad() && !header.z() && !header.ra() && !header.tc(),
        "AD, Z, RA or TC",
    );
    check(codes.contains(&code), &format!("code {code} of {codes:?}"));
    let count = usize::from(message.header_counts().ancount());
    check(
        answers.is_none_or(|answers| answers == count),
        "other answers",
    );
    let end = 12
        + packet[12..]
            .iter()
            .position(|byte| *byte == 0)
            .map_or(0, |at| at + 5);
    // No name of a question has a nought but at its end, unless it is within a label.
    let question = reply.len() >= end && reply[12..end] == packet[12..end];
    check(question, "another question");
    check(
        seen.edns.is_some() == edns.is_some(),
        "an OPT record, or none",
    );
    check(
        seen.edns.is_none_or(|(_, version)| version == 0),
        "another version of EDNS",
    );
    let most = usize::from(edns.unwrap_or(512)).clamp(512, 4_096);
    check(reply.len() <= most, "too long");
    (!faults.is_empty()).then(|| format!("{faults:?}"))
}
