//! **Pure.** One packet to a question or a refusal, and an answer to a packet
//! that fits.
//!
//! | packet | answer |
//! | --- | --- |
//! | below 12 bytes; QR set | none: two servers must not answer each other for ever |
//! | opcode other than QUERY | NOTIMP, header only |
//! | not exactly one question; [malformed](wire::shape); two OPT records, or one elsewhere than it belongs | FORMERR, header only |
//! | EDNS version above 0 | BADVERS (RFC 6891, section 6.1.3) |
//! | AXFR, IXFR | NOTIMP |
//! | class other than IN; a name outside Consul's zone | REFUSED |
//! | signed (TSIG, SIG(0)), for a name of Consul's | NOTAUTH: no key is shared with anybody |
//!
//! A reply that is too long first loses its TXT records, which nobody asked for.
//! Over UDP it then loses answers, keeps the addresses of those that are left, and
//! has TC set (RFC 2181, section 9), so that the client comes back over TCP. There
//! it loses its additional section before any answer.

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

mod encode;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz_lanes;

use std::collections::HashSet;

use hickory_proto::{
    op::{Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::opt::{ClientSubnet, EdnsCode, EdnsOption},
    },
    serialize::binary::{BinDecodable as _, BinDecoder, BinEncodable as _},
};

use self::encode::Parts;
use super::shortcut::{Room, Way};
use crate::{
    name::{Domain, NotAName, Subject},
    records::{
        Asked,
        wire::{self, EDNS_SUBNET, Shape},
        write::Sections,
    },
};

/// Length of a header.
const HEADER: usize = 12;

/// The least that an EDNS client takes.
const LEAST_PAYLOAD: u16 = 512;

/// Types that no record has, or none any more (RFC 6895, section 3.1): reserved, MD, MF,
/// OPT, TKEY, TSIG, MAILB, MAILA.
const OF_NO_RECORD: [u16; 9] = [0, 3, 4, 41, 249, 250, 253, 254, 65_535];

/// Extended errors (RFC 8914): the option's number and the codes that we use.
const EXTENDED_ERROR: u16 = 15;

/// What is to be done with a packet.
#[derive(Debug)]
pub(crate) enum Judged {
    /// Nothing: it is no question.
    Drop,
    /// Send this.
    Reply(Vec<u8>),
    Ask(Box<Question>),
}

/// Whether answers were left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Yes,
    No,
}

/// Whether names that are not Consul's are asked for elsewhere. As Consul: then every
/// answer says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recursion {
    Available,
    None,
}

/// One readable question.
#[derive(Debug)]
pub(crate) struct Question {
    metadata: Metadata,
    query: Query,
    /// EDNS size of the client, if it speaks EDNS.
    payload: Option<u16>,
    /// Network of the client's own client (RFC 7871).
    subnet: Option<ClientSubnet>,
    recursion: Recursion,
    pub(crate) asked: Asked,
}

/// The first look at a packet, which asks for no memory. What is no question is refused with a
/// header alone, or not answered at all.
pub(crate) fn first_look(packet: &[u8]) -> Result<(Metadata, Shape), Option<[u8; HEADER]>> {
    let head = packet.first_chunk::<HEADER>().ok_or(None)?;
    let header = Header::read(&mut BinDecoder::new(head)).map_err(|_| None)?;
    let metadata = header.metadata;
    if metadata.message_type == MessageType::Response {
        return Err(None);
    }
    if metadata.op_code != OpCode::Query {
        return Err(Some(bare(&metadata, ResponseCode::NotImp)));
    }
    let shape = wire::shape(packet).filter(|_| header.counts.queries == 1);
    let shape = shape.ok_or_else(|| Some(bare(&metadata, ResponseCode::FormErr)))?;
    Ok((metadata, shape))
}

/// What a packet asks, and says of whoever asks.
#[derive(Debug, PartialEq)]
struct Said {
    query: Query,
    /// Size and version, if the client speaks EDNS.
    edns: Option<(u16, u8)>,
    subnet: Option<ClientSubnet>,
}

/// Of a packet that has no more than a question, and an OPT record without options, as most have.
fn brief(packet: &[u8]) -> Option<Said> {
    let (head, body) = packet.split_first_chunk::<HEADER>()?;
    // Nothing is before a question that it could point to.
    let mut decoder = BinDecoder::new(body);
    let query = Query::read(&mut decoder).ok()?;
    let edns = match (head.last_chunk()?, body.get(decoder.index()..)?) {
        ([0, 0, 0, 0, 0, 0], _) => None,
        ([0, 0, 0, 0, 0, 1], opt) => {
            // The root, its type, size, upper bits of a code, version, flags, and no options.
            let [0, 0, 41, high, low, _, version, _, _, 0, 0] = opt else {
                return None;
            };
            // Less counts as so much (RFC 6891, section 6.2.3).
            let size = u16::from_be_bytes([*high, *low]).max(LEAST_PAYLOAD);
            Some((size, *version))
        }
        _ => return None,
    };
    Some(Said {
        query,
        edns,
        subnet: None,
    })
}

/// Of any packet.
fn whole(packet: &[u8]) -> Option<Said> {
    let message = Message::read(&mut BinDecoder::new(packet)).ok()?;
    let edns = message.edns.as_ref();
    Some(Said {
        edns: edns.map(|edns| (edns.max_payload(), edns.version())),
        subnet: match edns.and_then(|edns| edns.option(EdnsCode::Subnet)) {
            Some(EdnsOption::Subnet(subnet)) => Some(*subnet),
            _ => None,
        },
        query: message.queries.into_iter().next()?,
    })
}

/// Reads a packet.
pub(crate) fn judge(packet: &[u8], domain: &Domain, recursion: Recursion) -> Judged {
    let (metadata, shape) = match first_look(packet) {
        Ok(seen) => seen,
        Err(None) => return Judged::Drop,
        Err(Some(refusal)) => return Judged::Reply(refusal.to_vec()),
    };
    let said = brief(packet).or_else(|| whole(packet));
    let Some(Said {
        query,
        edns,
        subnet,
    }) = said
    else {
        return Judged::Reply(bare(&metadata, ResponseCode::FormErr).to_vec());
    };
    let asked = Asked::new(query.name().clone(), query.query_type(), domain);
    let class = query.query_class();
    let question = Question {
        metadata,
        query,
        payload: edns.map(|(payload, _)| payload),
        subnet,
        recursion,
        asked,
    };
    let refusal = if edns.is_some_and(|(_, version)| version > 0) {
        Some(ResponseCode::BADVERS)
    } else if matches!(question.asked.kind, RecordType::AXFR | RecordType::IXFR) {
        Some(ResponseCode::NotImp)
    } else if class != DNSClass::IN {
        Some(ResponseCode::Refused)
    } else if shape.is_signed && question.asked.meaning != Err(NotAName::Elsewhere) {
        Some(ResponseCode::NotAuth)
    } else {
        None
    };
    match refusal {
        Some(code) => Judged::Reply(question.reply(&Sections::code(code), Way::Tcp)),
        None => Judged::Ask(Box::new(question)),
    }
}

/// SERVFAIL to a packet whose reading itself cannot be trusted: a header alone.
pub(crate) fn unread(packet: &[u8]) -> Option<Vec<u8>> {
    let header = Header::read(&mut BinDecoder::new(packet.get(..HEADER)?)).ok()?;
    let is_question = header.metadata.message_type == MessageType::Query;
    is_question.then(|| bare(&header.metadata, ResponseCode::ServFail).to_vec())
}

/// A header that says no.
fn bare(to: &Metadata, code: ResponseCode) -> [u8; HEADER] {
    let mut metadata = Metadata::response_from_request(to);
    metadata.response_code = code;
    metadata.recursion_available = false;
    metadata.truncation = false;
    encode::header(&metadata, [0; 4])
}

impl Question {
    /// The labels of the name, as they came.
    pub(crate) fn labels(&self) -> Vec<&[u8]> {
        self.asked.owner.iter().collect()
    }

    /// RD: others may be asked.
    pub(crate) fn wants_recursion(&self) -> bool {
        self.metadata.recursion_desired
    }

    /// No record has the type that is asked for.
    pub(crate) fn is_about_no_record(&self) -> bool {
        OF_NO_RECORD.contains(&self.asked.kind.into())
    }

    /// The reply, as long as its way and the client allow.
    pub(crate) fn reply(&self, sections: &Sections, way: Way) -> Vec<u8> {
        self.finish(self.body(sections, way), sections)
    }

    /// The reply without its OPT record.
    pub(crate) fn body(&self, sections: &Sections, way: Way) -> Vec<u8> {
        let room = Room::of(way, self.payload);
        let opt = self.opt(sections).map_or(0, |opt| opt.len());
        let limit = room.size.saturating_sub(opt);
        let Sections {
            answers,
            authorities,
            additionals,
            ..
        } = sections;
        let whole = || self.encode(sections, answers, authorities, additionals, Cut::No, limit);
        let addresses: Vec<Record> = additionals.iter().filter(is_address).cloned().collect();
        let lean = || self.encode(sections, answers, authorities, &addresses, Cut::No, limit);
        let alone = || match way {
            Way::Loopback | Way::Elsewhere => None,
            Way::Tcp => self.encode(sections, answers, authorities, &[], Cut::No, limit),
        };
        whole().or_else(lean).or_else(alone).unwrap_or_else(|| {
            // Whoever came over TCP has nowhere else to go for the answers.
            let kept = match way {
                Way::Loopback | Way::Elsewhere => &addresses[..],
                Way::Tcp => &[],
            };
            self.cut(sections, kept, limit)
        })
    }

    /// Adds the OPT record, if the client speaks EDNS.
    pub(crate) fn finish(&self, mut body: Vec<u8>, sections: &Sections) -> Vec<u8> {
        if let Some(opt) = self.opt(sections)
            && let Some([.., high, low]) = body.first_chunk_mut::<12>()
        {
            // A message of 64 KiB has no room for so many.
            let counted = u16::from_be_bytes([*high, *low]).saturating_add(1);
            [*high, *low] = counted.to_be_bytes();
            body.extend(opt);
        }
        body
    }

    /// As Consul: a refusal carries no OPT, everything else the client's size.
    fn opt(&self, sections: &Sections) -> Option<Vec<u8>> {
        let payload = self
            .payload
            .filter(|_| sections.code != ResponseCode::Refused)?;
        // The root, type, size, the upper bits of the code, version, flags; the length of the
        // options (RFC 6891, section 6.1.2).
        let [high, low] = payload.to_be_bytes();
        let mut opt = vec![0, 0, 41, high, low, sections.code.high(), 0, 0, 0, 0, 0];
        let start = opt.len();
        let mut add = |number: u16, data: &[u8]| {
            opt.extend_from_slice(&number.to_be_bytes());
            opt.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
            opt.extend_from_slice(data);
            Some(())
        };
        if let Some(code) = sections.extended {
            add(EXTENDED_ERROR, &code.to_be_bytes())?;
        }
        if let Some(subnet) = self.subnet_told(sections.code) {
            add(EDNS_SUBNET, &subnet.to_bytes().ok()?)?;
        }
        let length = u16::try_from(opt.len().checked_sub(start)?).ok()?;
        *opt.get_mut(..start)?.last_chunk_mut()? = length.to_be_bytes();
        Some(opt)
    }

    /// The client's network as it goes back (RFC 7871, section 7.2.1). As Consul: only
    /// what a prepared query finds may depend on who asks.
    fn subnet_told(&self, code: ResponseCode) -> Option<ClientSubnet> {
        let mut subnet = self.subnet?;
        let is_query =
            matches!(&self.asked.meaning, Ok(name) if matches!(name.subject(), Subject::Query(_)));
        let scope = match code {
            ResponseCode::NoError if is_query => subnet.source_prefix(),
            _ => 0,
        };
        subnet.set_scope_prefix(scope);
        Some(subnet)
    }

    /// As many answers as fit, with their addresses.
    fn cut(&self, sections: &Sections, addresses: &[Record], limit: usize) -> Vec<u8> {
        let keep = |count: usize| {
            let left = sections.answers.get(..count)?;
            self.encode(sections, left, &[], &glue(left, addresses), Cut::Yes, limit)
        };
        let (mut best, mut good, mut bad) = (keep(0), 0, sections.answers.len());
        let mut middle = usize::midpoint(good, bad);
        while middle > good {
            match keep(middle) {
                None => bad = middle,
                fitting => (best, good) = (fitting, middle),
            }
            middle = usize::midpoint(good, bad);
        }
        best.unwrap_or_default()
    }

    fn encode(
        &self,
        sections: &Sections,
        answers: &[Record],
        authorities: &[Record],
        additionals: &[Record],
        cut: Cut,
        limit: usize,
    ) -> Option<Vec<u8>> {
        let mut metadata = Metadata::response_from_request(&self.metadata);
        metadata.response_code = sections.code;
        // A server that refuses speaks for nobody.
        metadata.authoritative = !matches!(
            sections.code,
            ResponseCode::Refused | ResponseCode::BADVERS | ResponseCode::NotAuth
        );
        metadata.recursion_available = self.recursion == Recursion::Available;
        metadata.checking_disabled = self.metadata.checking_disabled;
        metadata.truncation = cut == Cut::Yes || sections.partial;
        let parts = Parts {
            metadata,
            query: &self.query,
            answers,
            authorities,
            additionals,
        };
        encode::message(&parts, limit)
    }
}

fn is_address(record: &&Record) -> bool {
    matches!(
        record.record_type(),
        RecordType::A | RecordType::AAAA | RecordType::CNAME
    )
}

/// The addresses that belong to these SRV records, once each.
fn glue(answers: &[Record], addresses: &[Record]) -> Vec<Record> {
    let targets: HashSet<&Name> = (answers.iter())
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(&srv.target),
            _ => None,
        })
        .collect();
    let mut known = HashSet::new();
    let mut wanted = |record: &&Record| {
        targets.contains(&record.name) && known.insert((record.name.clone(), record.data.clone()))
    };
    addresses
        .iter()
        .filter(|record| wanted(record))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests;
