//! **Pure.** Records to bytes. hickory's own encoder stops to compress names after
//! the first few dozen, which costs a large answer half of its room; this one
//! compresses every owner, in linear time: a name is looked up by each of its
//! suffixes, and no more than [`MOST_SUFFIXES`] are remembered.
//!
//! Names keep their case: only equal bytes share a pointer. The target of an SRV
//! record is written in full (RFC 2782) and may be pointed to.

use std::collections::HashMap;

use hickory_proto::{
    op::{Header, HeaderCounts, Metadata, Query},
    rr::{Name, RData, Record},
    serialize::binary::BinEncodable as _,
};

/// A pointer has 14 bits (RFC 1035, section 4.1.4).
const POINTABLE: usize = 0x4000;

/// Suffixes remembered; the 14 bits have room for few more.
const MOST_SUFFIXES: usize = 4_096;

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
        suffixes: HashMap::new(),
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
    /// Where each suffix was written, by its bytes.
    suffixes: HashMap<Box<[u8]>, u16>,
}

impl Writer {
    fn u16(&mut self, number: u16) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn name(&mut self, name: &Name, form: Form) {
        let mut wire = Vec::with_capacity(name.len() + 1);
        let mut starts = Vec::with_capacity(8);
        for label in name {
            starts.push(wire.len());
            // Labels have at most 63 bytes.
            wire.push(u8::try_from(label.len()).unwrap_or(0));
            wire.extend_from_slice(label);
        }
        wire.push(0);
        let at = self.bytes.len();
        for start in starts {
            let suffix = &wire[start..];
            let known = self.suffixes.get(suffix).copied();
            if let (Form::Compressed, Some(pointer)) = (form, known) {
                self.bytes.extend_from_slice(&wire[..start]);
                self.u16(0xC000 | pointer);
                return;
            }
            if let (None, Ok(offset)) = (known, u16::try_from(at + start))
                && usize::from(offset) < POINTABLE
                && self.suffixes.len() < MOST_SUFFIXES
            {
                self.suffixes.insert(suffix.into(), offset);
            }
        }
        self.bytes.extend_from_slice(&wire);
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
