//! **Pure.** Records to bytes. hickory's own encoder stops to compress names after
//! the first few dozen, which costs a large answer half of its room; this one
//! compresses every owner, in linear time: a name is looked up by each of its
//! suffixes, and no more than [`MOST_SUFFIXES`] are remembered. A suffix is known by its
//! hash and compared where it was written: nothing of it is kept twice.
//!
//! Names keep their case: only equal bytes share a pointer. The target of an SRV
//! record is written in full (RFC 2782) and may be pointed to.

use std::{collections::HashMap, hash::BuildHasher as _};

use foldhash::fast::RandomState;
use hickory_proto::{
    op::{MessageType, Metadata, Query},
    rr::{Name, RData, Record},
    serialize::binary::BinEncodable as _,
};

/// A pointer has 14 bits (RFC 1035, section 4.1.4).
const POINTABLE: usize = 0x4000;

/// Suffixes remembered; the 14 bits have room for few more.
const MOST_SUFFIXES: usize = 4_096;

/// Room for those of an ordinary answer, and for its bytes.
const FEW_SUFFIXES: usize = 14;
const ORDINARY: usize = 512;

/// The sections of one message.
pub(super) struct Parts<'a> {
    pub(super) metadata: Metadata,
    pub(super) query: &'a Query,
    pub(super) answers: &'a [Record],
    pub(super) authorities: &'a [Record],
    pub(super) additionals: &'a [Record],
}

/// The message, at most `limit` bytes long; `None` if it is longer, or if it
/// holds what cannot be written.
pub(super) fn message(parts: &Parts<'_>, limit: usize) -> Option<Vec<u8>> {
    let mut writer = Writer {
        bytes: Vec::with_capacity(ORDINARY),
        suffixes: HashMap::with_capacity_and_hasher(FEW_SUFFIXES, RandomState::default()),
    };
    let count = |records: &[Record]| u16::try_from(records.len()).ok();
    let counts = [
        1,
        count(parts.answers)?,
        count(parts.authorities)?,
        count(parts.additionals)?,
    ];
    let head = header(&parts.metadata, counts);
    writer.bytes.extend_from_slice(&head);
    writer.name(parts.query.name(), Form::Compressed);
    writer.u16(parts.query.query_type().into());
    writer.u16(parts.query.query_class().into());
    for record in parts
        .answers
        .iter()
        .chain(parts.authorities)
        .chain(parts.additionals)
    {
        writer.record(record)?;
        if writer.bytes.len() > limit {
            return None;
        }
    }
    (writer.bytes.len() <= limit).then_some(writer.bytes)
}

/// A header (RFC 1035, section 4.1.1), with the records of each section counted. AD (RFC 4035,
/// section 3.2.3) is never set: nothing is validated here.
pub(super) fn header(metadata: &Metadata, counts: [u16; 4]) -> [u8; 12] {
    let bit = |flag: bool, place: u8| u8::from(flag) << place;
    let mut header = [0; 12];
    header[..2].copy_from_slice(&metadata.id.to_be_bytes());
    header[2] = bit(metadata.message_type == MessageType::Response, 7)
        | u8::from(metadata.op_code) << 3
        | bit(metadata.authoritative, 2)
        | bit(metadata.truncation, 1)
        | bit(metadata.recursion_desired, 0);
    header[3] = bit(metadata.recursion_available, 7)
        | bit(metadata.checking_disabled, 4)
        | metadata.response_code.low();
    for (place, count) in header[4..].as_chunks_mut().0.iter_mut().zip(counts) {
        *place = count.to_be_bytes();
    }
    header
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Compressed,
    Full,
}

struct Writer {
    bytes: Vec<u8>,
    /// Where each suffix was written, by its hash.
    suffixes: HashMap<u64, u16, RandomState>,
}

impl Writer {
    fn u16(&mut self, number: u16) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn name(&mut self, name: &Name, form: Form) {
        let mut start = self.bytes.len();
        for label in name {
            // Labels have at most 63 bytes.
            self.bytes.push(u8::try_from(label.len()).unwrap_or(0));
            self.bytes.extend_from_slice(label);
        }
        while let Some(suffix @ [length, ..]) = self.bytes.get(start..) {
            let next = usize::from(*length).saturating_add(1);
            let hash = self.suffixes.hasher().hash_one(suffix);
            let known = self.suffixes.get(&hash).copied();
            let known = known.filter(|offset| self.stands_at(usize::from(*offset), suffix));
            if let (Form::Compressed, Some(pointer)) = (form, known) {
                self.bytes.truncate(start);
                self.u16(0xC000 | pointer);
                return;
            }
            if let (None, Ok(offset)) = (known, u16::try_from(start))
                && usize::from(offset) < POINTABLE
                && self.suffixes.len() < MOST_SUFFIXES
            {
                self.suffixes.insert(hash, offset);
            }
            start = start.saturating_add(next);
        }
        self.bytes.push(0);
    }

    /// Whether these labels, and no more, were written there.
    fn stands_at(&self, mut at: usize, mut labels: &[u8]) -> bool {
        loop {
            let written = self.bytes.get(at..).unwrap_or_default();
            match written {
                [0, ..] => return labels.is_empty(),
                // Pointers lead back to what was written before.
                &[high @ 0xC0..=0xFF, low, ..] => {
                    at = usize::from(u16::from_be_bytes([high, low]) & 0x3FFF);
                }
                &[length, ..] => {
                    let next = usize::from(length).saturating_add(1);
                    match (labels.split_at_checked(next), written.get(..next)) {
                        (Some((label, rest)), Some(other)) if label == other => labels = rest,
                        _ => return false,
                    }
                    at = at.saturating_add(next);
                }
                [] => return false,
            }
        }
    }

    fn record(&mut self, record: &Record) -> Option<()> {
        self.name(&record.name, Form::Compressed);
        self.u16(record.record_type().into());
        self.u16(record.dns_class.into());
        self.u32(record.ttl);
        self.u16(0);
        let start = self.bytes.len();
        match &record.data {
            RData::A(address) => self.bytes.extend_from_slice(&address.0.octets()),
            RData::AAAA(address) => self.bytes.extend_from_slice(&address.0.octets()),
            RData::SRV(srv) => {
                self.u16(srv.priority);
                self.u16(srv.weight);
                self.u16(srv.port);
                self.name(&srv.target, Form::Full);
            }
            RData::CNAME(name) => self.name(&name.0, Form::Compressed),
            RData::NS(name) => self.name(&name.0, Form::Compressed),
            RData::PTR(name) => self.name(&name.0, Form::Compressed),
            RData::SOA(soa) => {
                self.name(&soa.mname, Form::Compressed);
                self.name(&soa.rname, Form::Compressed);
                self.u32(soa.serial);
                for time in [soa.refresh, soa.retry, soa.expire] {
                    self.u32(time.cast_unsigned());
                }
                self.u32(soa.minimum);
            }
            // TXT, and whatever else has no name in it.
            other => self.bytes.extend(other.to_bytes().ok()?),
        }
        let length = u16::try_from(self.bytes.len().checked_sub(start)?).ok()?;
        *self.bytes.get_mut(..start)?.last_chunk_mut()? = length.to_be_bytes();
        Some(())
    }
}
