//! **Pure.** A reply that was encoded before: which of its bytes may be changed, and the
//! reply to another question made of it.

use std::net::IpAddr;

use super::{EXTENDED, HEADER, OPT, OVERHEAD, Plain, TYPE_OPT, pair};
use crate::records::write::{STALE_ANSWER, STALE_NXDOMAIN};

const A: u16 = 1;
const SOA: u16 = 6;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const ANY: u16 = 255;

/// There is no such name.
const NXDOMAIN: u8 = 3;

/// A pointer to the question's name.
const QUESTION: u16 = 0xC00C;

/// An encoded reply, and where it may be changed.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// Without OPT.
    pub(super) bytes: Box<[u8]>,
    /// Where the question ends.
    pub(crate) question: usize,
    /// Where each answer starts; empty where their order is not to be changed.
    starts: Box<[u16]>,
    /// Where the last answer ends.
    end: usize,
    /// Where a name behind the answers points into one of them.
    pointers: Box<[u16]>,
    /// Where a TTL stands, and where one of 0 does, which does not count down.
    ttls: Box<[u16]>,
    zeros: Box<[u16]>,
    /// Seconds that the TTLs are counted down by already.
    counted: u32,
    /// Extended error for clients that speak EDNS.
    extended: Option<u16>,
}

impl Recipe {
    /// Whether the reply says of itself that it is stale.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self.extended, Some(STALE_ANSWER | STALE_NXDOMAIN))
    }

    /// Of a reply without OPT. `None`: it is none that can be given again.
    pub(crate) fn of(reply: &[u8], extended: Option<u16>) -> Option<Self> {
        let mut records = Records::of(reply)?;
        let (mut starts, mut pointers) = (Vec::new(), Vec::new());
        let (mut ttls, mut zeros) = (Vec::new(), Vec::new());
        let question = records.at;
        let mut end = question;
        let mut first = None;
        let mut alike = true;
        for _ in 0..records.answers {
            let record = records.next()?;
            starts.push(small(record.start)?);
            let owner = pair(reply, record.start)?;
            alike &= owner == QUESTION && *first.get_or_insert(record.kind) == record.kind;
            match record.ttl {
                0 => zeros.push(small(record.ttl_at)?),
                _ => ttls.push(small(record.ttl_at)?),
            }
            end = records.at;
        }
        let turns = alike && matches!(first, Some(A | AAAA | SRV)) && end < 0x4000;
        if !turns || starts.len() < 2 {
            starts.clear();
        }
        for _ in 0..records.others {
            let record = records.next()?;
            match record.ttl {
                0 => zeros.push(small(record.ttl_at)?),
                _ => ttls.push(small(record.ttl_at)?),
            }
            if let Some(at) = record.pointer
                && (question..end).contains(&usize::from(pair(reply, at)? & 0x3FFF))
            {
                pointers.push(small(at)?);
            }
            if !matches!(record.kind, A | AAAA | TXT) {
                // Its data may point into the answers as well.
                starts.clear();
            }
        }
        if records.at != reply.len() {
            return None;
        }
        if starts.is_empty() {
            pointers.clear();
        }
        // What is copied from each question is not the first one's.
        let mut bytes: Box<[u8]> = reply.into();
        let head: &mut [u8; 4] = bytes.first_chunk_mut()?;
        *head = [0, 0, head[2] & !0x01, head[3] & !0x10];
        Some(Self {
            bytes,
            question,
            starts: starts.into(),
            end,
            pointers: pointers.into(),
            ttls: ttls.into(),
            zeros: zeros.into(),
            counted: 0,
            extended,
        })
    }

    /// Of a reply of somebody else's, and for how many seconds it holds. `None`: it is
    /// none to be kept. TTLs above `longest` are cut, that of what does not exist
    /// above `longest_negative`.
    pub(crate) fn of_forwarded(
        reply: &[u8],
        longest: u32,
        longest_negative: u32,
    ) -> Option<(Self, u32)> {
        // TC; NOERROR or NXDOMAIN.
        let (flags, code) = (*reply.get(2)?, *reply.get(3)? & 0x0F);
        if flags & 0x02 != 0 || !matches!(code, 0 | NXDOMAIN) {
            return None;
        }
        let mut records = Records::of(reply)?;
        let (question, answers) = (records.at, u32::from(records.answers));
        let total = answers.saturating_add(records.others);
        // NXDOMAIN and "nothing of that type" may stand behind aliases: they are about the
        // end of the chain (RFC 2308, section 2).
        let asked = pair(reply, question.checked_sub(4)?)?;
        let mut is_told = false;
        let (mut least, mut negative) = (None::<u32>, None);
        let (mut ttls, mut end, mut opts) = (Vec::new(), reply.len(), 0);
        let mut bytes = reply.to_vec();
        for at in 0..total {
            let record = records.next()?;
            let is_answer = at < answers;
            is_told |= is_answer && (record.kind == asked || asked == ANY);
            if record.kind == TYPE_OPT {
                // Ours takes its place, so it has to be the last. Its TTL is more code.
                if records.at != reply.len() || record.ttl >> 24 != 0 {
                    return None;
                }
                (end, opts) = (record.start, 1);
                continue;
            }
            // The highest bit means that it is too long (RFC 8767, section 4).
            let mut ttl = record.ttl.min(longest);
            if record.kind == SOA && !is_answer && (code == NXDOMAIN || !is_told) {
                let minimum = u32::from_be_bytes(*record.data.last_chunk()?);
                ttl = ttl.min(minimum).min(longest_negative);
                negative = Some(ttl);
            }
            put(&mut bytes, record.ttl_at, ttl.to_be_bytes())?;
            ttls.push(small(record.ttl_at)?);
            least = Some(least.map_or(ttl, |least| least.min(ttl)));
        }
        // Without an SOA nobody says how long nothing holds (RFC 2308, section 5).
        if code == NXDOMAIN || !is_told {
            negative?;
        }
        let holds = least?;
        if records.at != reply.len() {
            return None;
        }
        bytes.truncate(end);
        let additionals = pair(&bytes, 10)?.checked_sub(opts)?;
        put(&mut bytes, 10, additionals.to_be_bytes())?;
        let head: &mut [u8; 4] = bytes.first_chunk_mut()?;
        // Of AA and what is copied from each question.
        *head = [0, 0, head[2] & !0x05, head[3] & !0x10];
        let recipe = Self {
            bytes: bytes.into(),
            question,
            starts: Box::default(),
            end: question,
            pointers: Box::default(),
            ttls: ttls.into(),
            zeros: Box::default(),
            counted: 0,
            extended: None,
        };
        Some((recipe, holds))
    }

    /// Counts the TTLs down by so many seconds since it was made, for all replies from then on.
    pub(super) fn count_down(&mut self, elapsed: u32) {
        let more = elapsed.saturating_sub(self.counted);
        if more == 0 {
            return;
        }
        for &at in &self.ttls {
            let bytes = self.bytes.get_mut(usize::from(at)..);
            if let Some(ttl) = bytes.and_then(<[u8]>::first_chunk_mut) {
                *ttl = u32::from_be_bytes(*ttl).saturating_sub(more).to_be_bytes();
            }
        }
        self.counted = elapsed;
    }

    /// Writes the reply to a packet, so many seconds after it was made.
    pub(crate) fn give(
        &self,
        packet: &[u8],
        plain: &Plain,
        elapsed: u32,
        out: &mut [u8],
    ) -> Option<usize> {
        self.write(packet, plain, 0, Age::Fresh(elapsed), out)
    }

    /// Writes the reply to a packet, with that TTL and the extended error of what is
    /// stale.
    pub(crate) fn give_stale(
        &self,
        packet: &[u8],
        plain: &Plain,
        ttl: u32,
        out: &mut [u8],
    ) -> Option<usize> {
        self.write(packet, plain, 0, Age::Stale(ttl), out)
    }

    /// Bytes that a reply made of it may need.
    pub(crate) fn room(&self) -> usize {
        self.bytes.len().saturating_add(OPT + EXTENDED)
    }

    /// Bytes that it costs in a map, by this key.
    pub(crate) fn weigh(&self, key: &[u8]) -> usize {
        let places = [&self.starts, &self.pointers, &self.ttls, &self.zeros];
        let places = places.map(|places| size_of_val(&**places)).iter().sum();
        [OVERHEAD, key.len(), self.bytes.len(), places].iter().sum()
    }

    /// Writes the reply to a packet. `None`: it does not fit `out`.
    pub(super) fn write(
        &self,
        packet: &[u8],
        plain: &Plain,
        turn: usize,
        age: Age,
        out: &mut [u8],
    ) -> Option<usize> {
        let length = self.bytes.len();
        let mut extended = match age {
            Age::Fresh(_) => self.extended,
            Age::Stale(_) if self.bytes.get(3)? & 0x0F == NXDOMAIN => Some(STALE_NXDOMAIN),
            Age::Stale(_) => Some(STALE_ANSWER),
        };
        let room = plain.size.checked_sub(length)?;
        if plain.edns.is_some() {
            // What is said of a reply is worth less than the reply.
            let more = room.checked_sub(OPT)?;
            extended = extended.filter(|_| more >= EXTENDED);
        }
        let body = out.get_mut(..length)?;
        let start = self
            .starts
            .first()
            .map_or(self.end, |first| usize::from(*first));
        let middle = match turn.checked_rem(self.starts.len()) {
            None => start,
            Some(turn) => usize::from(*self.starts.get(turn)?),
        };
        if middle == start {
            body.copy_from_slice(&self.bytes);
        } else {
            let end = self.end;
            let mut rest = &mut *body;
            for (from, to) in [(0, start), (middle, end), (start, middle), (end, length)] {
                let part = self.bytes.get(from..to)?;
                let (place, more) = rest.split_at_mut_checked(part.len())?;
                place.copy_from_slice(part);
                rest = more;
            }
        }
        let turned = Turned {
            start,
            middle,
            end: self.end,
        };
        if middle != start {
            for &at in &self.pointers {
                let at = usize::from(at);
                let target = usize::from(pair(body, at)? & 0x3FFF);
                let moved = 0xC000 | small(turned.to(target))?;
                put(body, at, moved.to_be_bytes())?;
            }
        }
        let age = match age {
            Age::Fresh(elapsed) => Age::Fresh(elapsed.saturating_sub(self.counted)),
            Age::Stale(_) => age,
        };
        let (ttls, zeros): (&[u16], &[u16]) = match age {
            Age::Fresh(0) => (&[], &[]),
            Age::Fresh(_) => (&self.ttls, &[]),
            // One of 0 would have it asked for again at once (RFC 8767, section 4).
            Age::Stale(_) => (&self.ttls, &self.zeros),
        };
        for &at in ttls.iter().chain(zeros) {
            let at = turned.to(usize::from(at));
            let ttl: &mut [u8; 4] = body.get_mut(at..)?.first_chunk_mut()?;
            let told = match age {
                Age::Fresh(elapsed) => u32::from_be_bytes(*ttl).saturating_sub(elapsed),
                Age::Stale(ttl) => ttl,
            };
            *ttl = told.to_be_bytes();
        }
        // The question in the asker's case, its id, and what is copied of its flags.
        let question = self.question;
        if question != plain.end {
            return None;
        }
        body.get_mut(HEADER..question)?
            .copy_from_slice(packet.get(HEADER..question)?);
        body.get_mut(..2)?.copy_from_slice(packet.get(..2)?);
        *body.get_mut(2)? |= packet.get(2)? & 0x01;
        *body.get_mut(3)? |= packet.get(3)? & 0x10;
        let Some(size) = plain.edns else {
            return Some(length);
        };
        let more = write_opt(size, extended, out.get_mut(length..)?)?;
        let counted = pair(out, 10)?.checked_add(1)?;
        put(out, 10, counted.to_be_bytes())?;
        length.checked_add(more)
    }
}

/// An OPT record that says our version and the client's own size, as Consul does.
pub(in crate::stub) fn write_opt(
    size: u16,
    extended: Option<u16>,
    out: &mut [u8],
) -> Option<usize> {
    let [high, low] = size.to_be_bytes();
    let head = [0, 0, 41, high, low, 0, 0, 0, 0, 0, 0];
    out.get_mut(..OPT)?.copy_from_slice(&head);
    let Some(code) = extended else {
        return Some(OPT);
    };
    let [high, low] = code.to_be_bytes();
    *out.get_mut(OPT - 1)? = 6;
    out.get_mut(OPT..OPT + EXTENDED)?
        .copy_from_slice(&[0, 15, 0, 2, high, low]);
    Some(OPT + EXTENDED)
}

/// How a reply's TTLs are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// So many seconds less.
    Fresh(u32),
    /// All the same.
    Stale(u32),
}

/// Where a byte stands after the answers were turned.
struct Turned {
    start: usize,
    middle: usize,
    end: usize,
}

impl Turned {
    fn to(&self, at: usize) -> usize {
        if !(self.start..self.end).contains(&at) {
            at
        } else if at < self.middle {
            at.saturating_add(self.end.saturating_sub(self.middle))
        } else {
            at.saturating_sub(self.middle.saturating_sub(self.start))
        }
    }
}

/// The addresses in the records of a reply, and those that SVCB and HTTPS hint at (RFC 9460,
/// section 7.3); `None` where it cannot be read.
pub(crate) fn addresses(reply: &[u8]) -> Option<Vec<IpAddr>> {
    let mut records = Records::of(reply)?;
    let mut found = Vec::new();
    for _ in 0..u32::from(records.answers).saturating_add(records.others) {
        let record = records.next()?;
        match record.kind {
            A => found.push(IpAddr::from(<[u8; 4]>::try_from(record.data).ok()?)),
            AAAA => found.push(IpAddr::from(<[u8; 16]>::try_from(record.data).ok()?)),
            SVCB | HTTPS => hints(record.data, &mut found)?,
            _ => {}
        }
    }
    Some(found)
}

/// The addresses that a service binding hints at. Its target is not compressed.
fn hints(data: &[u8], found: &mut Vec<IpAddr>) -> Option<()> {
    const IPV4: u16 = 4;
    const IPV6: u16 = 6;
    let mut rest = data.get(2..)?;
    loop {
        let (&length, more) = rest.split_first()?;
        rest = more.get(usize::from(length)..)?;
        if length == 0 {
            break;
        }
    }
    while !rest.is_empty() {
        let (key, length) = (pair(rest, 0)?, usize::from(pair(rest, 2)?));
        let (value, more) = rest.get(4..)?.split_at_checked(length)?;
        match key {
            IPV4 => found.extend(value.as_chunks::<4>().0.iter().map(|ip| IpAddr::from(*ip))),
            IPV6 => found.extend(value.as_chunks::<16>().0.iter().map(|ip| IpAddr::from(*ip))),
            _ => {}
        }
        rest = more;
    }
    Some(())
}

/// Writes over what stands there.
fn put<const LENGTH: usize>(bytes: &mut [u8], at: usize, new: [u8; LENGTH]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = new;
    Some(())
}

fn small(number: usize) -> Option<u16> {
    u16::try_from(number).ok()
}

/// The records of a message, one after the other.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    answers: u16,
    others: u32,
}

struct Record<'a> {
    start: usize,
    /// Where the pointer at the end of the owner stands, if it has one.
    pointer: Option<usize>,
    kind: u16,
    ttl_at: usize,
    ttl: u32,
    data: &'a [u8],
}

impl<'a> Records<'a> {
    /// Behind the one question.
    fn of(bytes: &'a [u8]) -> Option<Self> {
        if pair(bytes, 4)? != 1 {
            return None;
        }
        let mut records = Self {
            bytes,
            at: HEADER,
            answers: pair(bytes, 6)?,
            others: u32::from(pair(bytes, 8)?).saturating_add(pair(bytes, 10)?.into()),
        };
        records.name()?;
        records.skip(4)?;
        Some(records)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.at = self.at.checked_add(length)?;
        Some(())
    }

    /// Skips a name; where its pointer stands, if it ends with one.
    fn name(&mut self) -> Option<Option<usize>> {
        loop {
            let length = usize::from(*self.bytes.get(self.at)?);
            match length {
                0 => {
                    self.skip(1)?;
                    return Some(None);
                }
                1..=63 => self.skip(length.checked_add(1)?)?,
                0xC0.. => {
                    let pointer = self.at;
                    self.skip(2)?;
                    return Some(Some(pointer));
                }
                _ => return None,
            }
        }
    }

    fn next(&mut self) -> Option<Record<'a>> {
        let start = self.at;
        let pointer = self.name()?;
        let kind = pair(self.bytes, self.at)?;
        // Type and class.
        self.skip(4)?;
        let ttl_at = self.at;
        let ttl = *self.bytes.get(ttl_at..)?.first_chunk()?;
        self.skip(4)?;
        let length = usize::from(pair(self.bytes, self.at)?);
        self.skip(2)?;
        let data = self.bytes.get(self.at..)?.get(..length)?;
        self.skip(length)?;
        Some(Record {
            start,
            pointer,
            kind,
            ttl_at,
            ttl: u32::from_be_bytes(ttl),
            data,
        })
    }
}
