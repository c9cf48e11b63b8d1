//! **Pure.** Records to bytes. hickory's own encoder stops to compress names after
//! the first few dozen, which costs a large answer half of its room; this one
//! compresses every owner, in linear time: a name is looked up by each of its
//! suffixes, and no more than [`MOST_SUFFIXES`] are remembered. A suffix is known by its
//! hash and compared where it was written: nothing of it is kept twice.
//!
//! Names keep their case: only equal bytes share a pointer. The target of an SRV
//! record is written in full (RFC 2782) and may be pointed to.

use std::{collections::HashMap, hash::BuildHasher as _};

use hickory_proto::{
    op::{Header, HeaderCounts, Metadata, Query},
    rr::{Name, RData, Record},
    serialize::binary::BinEncodable as _,
};

/// A pointer has 14 bits (RFC 1035, section 4.1.4).
const POINTABLE: usize = 0x4000;

/// Suffixes remembered; the 14 bits have room for few more.
const MOST_SUFFIXES: usize = 4_096;

/// Room for those of an ordinary answer.
const FEW_SUFFIXES: usize = 14;

/// Longest name on the wire (RFC 1035, section 2.3.4).
const NAME: usize = 255;

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
    let count = |records: &[Record]| u16::try_from(records.len()).ok();
    let mut metadata = parts.metadata;
    metadata.authentic_data = false;
    let counts = HeaderCounts {
        queries: 1,
        answers: count(parts.answers)?,
        authorities: count(parts.authorities)?,
        additionals: count(parts.additionals)?,
    };
    let mut writer = Writer {
        bytes: Header { metadata, counts }.to_bytes().ok()?,
        suffixes: HashMap::with_capacity(FEW_SUFFIXES),
        name: Vec::with_capacity(NAME),
    };
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Compressed,
    Full,
}

struct Writer {
    bytes: Vec<u8>,
    /// Where each suffix was written, by its hash.
    suffixes: HashMap<u64, u16>,
    /// The name that is being written.
    name: Vec<u8>,
}

impl Writer {
    fn u16(&mut self, number: u16) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn name(&mut self, name: &Name, form: Form) {
        let mut wire = std::mem::take(&mut self.name);
        wire.clear();
        for label in name {
            // Labels have at most 63 bytes.
            wire.push(u8::try_from(label.len()).unwrap_or(0));
            wire.extend_from_slice(label);
        }
        let (at, mut start) = (self.bytes.len(), 0);
        while let Some(&length) = wire.get(start) {
            let suffix = &wire[start..];
            let hash = self.suffixes.hasher().hash_one(suffix);
            let known = self.suffixes.get(&hash).copied();
            let known = known.filter(|offset| self.stands_at(usize::from(*offset), suffix));
            if let (Form::Compressed, Some(pointer)) = (form, known) {
                self.bytes.extend_from_slice(&wire[..start]);
                self.u16(0xC000 | pointer);
                self.name = wire;
                return;
            }
            if let (None, Ok(offset)) = (known, u16::try_from(at + start))
                && usize::from(offset) < POINTABLE
                && self.suffixes.len() < MOST_SUFFIXES
            {
                self.suffixes.insert(hash, offset);
            }
            start += 1 + usize::from(length);
        }
        self.bytes.extend_from_slice(&wire);
        self.bytes.push(0);
        self.name = wire;
    }

    /// Whether these labels, and no more, were written there.
    fn stands_at(&self, mut at: usize, mut labels: &[u8]) -> bool {
        loop {
            match self.bytes.get(at) {
                Some(0) => return labels.is_empty(),
                // Pointers lead back to what was written before.
                Some(&high @ 0xC0..) => {
                    let low = self.bytes.get(at + 1).copied().unwrap_or_default();
                    at = usize::from(u16::from_be_bytes([high, low]) & 0x3FFF);
                }
                Some(&length) => {
                    let next = 1 + usize::from(length);
                    let (label, other) = (labels.get(..next), self.bytes.get(at..at + next));
                    if label.is_none() || label != other {
                        return false;
                    }
                    (at, labels) = (at + next, &labels[next..]);
                }
                None => return false,
            }
        }
    }

    fn record(&mut self, record: &Record) -> Option<()> {
        self.name(&record.name, Form::Compressed);
        self.u16(record.record_type().into());
        self.u16(record.dns_class.into());
        self.u32(record.ttl);
        let length_at = self.bytes.len();
        self.u16(0);
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
        let length = u16::try_from(self.bytes.len() - length_at - 2).ok()?;
        self.bytes
            .get_mut(length_at..length_at + 2)?
            .copy_from_slice(&length.to_be_bytes());
        Some(())
    }
}
