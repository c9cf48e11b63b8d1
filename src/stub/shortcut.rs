//! **Pure.** The fast lane's memory: replies that were encoded before, found by the
//! bytes of a question and made to fit it.
//!
//! | of a question | in the reply |
//! | --- | --- |
//! | id, RD, CD; the name in its case | copied |
//! | EDNS | an OPT record with the client's own size |
//! | EDNS size | picks the reply that was cut to 512, 1,232, 1,400 or 4,096 bytes |
//!
//! TTLs are counted down by whole seconds. Answers of one type (A, AAAA, SRV) are
//! rotated by one at each hit, so that clients that take the first spread over all.
//!
//! Whatever is unusual about a packet is left to [`answer`](super::answer): only what
//! is understood whole is answered here. A hit takes no lock and allocates nothing.

use std::time::{Duration, Instant};

use lru::LruCache;

use crate::cache::fate::Fate;

/// Length of a header.
const HEADER: usize = 12;

/// Longest name on the wire (RFC 1035, section 2.3.4).
const NAME: usize = 255;

/// Length of an OPT record without options.
pub(crate) const OPT: usize = 11;

/// Length of an extended error without text (RFC 8914, section 2), as an option.
pub(crate) const EXTENDED: usize = 6;

/// An entry is made anew after so long at most: what it was asked is told then.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

/// While one question renews an entry, the others are given the old one for so long.
const GRACE: Duration = Duration::from_millis(20);

/// Bytes that the map and an entry cost beside what they point to.
const OVERHEAD: usize = 256;

const A: u16 = 1;
const SOA: u16 = 6;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const TYPE_OPT: u16 = 41;
const EDNS_SUBNET: u16 = 8;

/// Extended error: Stale Answer (RFC 8914, section 4.4).
const STALE_ANSWER: u16 = 3;

/// A pointer to the question's name.
const QUESTION: u16 = 0xC00C;

/// How long a reply may be, by what the client says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Replies for one bucket serve all clients in it.
    bucket: u8,
    /// Bytes, the OPT record among them.
    pub(crate) size: usize,
}

impl Room {
    /// `edns`: the client's size (RFC 6891, section 6.2.3), if it speaks EDNS. Sizes
    /// in between count as the one below, so that few replies serve all clients.
    pub(crate) fn udp(edns: Option<u16>) -> Self {
        let (bucket, size) = match edns {
            None => (0, 512),
            Some(..1232) => (1, 512),
            Some(1232..1400) => (2, 1232),
            Some(1400..4096) => (3, 1400),
            Some(4096..) => (4, 4096),
        };
        Self { bucket, size }
    }

    pub(crate) fn tcp(edns: Option<u16>) -> Self {
        Self {
            bucket: 5 + u8::from(edns.is_some()),
            size: usize::from(u16::MAX),
        }
    }
}

/// The name of a reply: the question's name in lower case, its type, the room, and the
/// flags that may change what is answered (RD, AD, CD).
#[derive(Clone, Copy)]
pub(crate) struct Key {
    bytes: [u8; NAME + 4],
    length: usize,
}

impl Key {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?})", self.as_bytes().escape_ascii().to_string())
    }
}

/// A packet that is understood whole: one ordinary question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    /// Where the question ends.
    end: usize,
    /// The client's EDNS size.
    edns: Option<u16>,
    /// It asks for signatures (RFC 3225).
    pub(crate) wants_signatures: bool,
    /// Bytes that it can take.
    size: usize,
    pub(crate) key: Key,
}

/// Reads a packet, if it is an ordinary question of class IN. `tcp`: it came by a
/// connection.
pub(crate) fn read(packet: &[u8], tcp: bool) -> Option<Plain> {
    let header: &[u8; HEADER] = packet.first_chunk()?;
    // QR, opcode, TC; one question, no answers, at most one more record.
    let &[_, _, flags, _, 0, 1, 0, 0, 0, 0, 0, more @ (0 | 1)] = header else {
        return None;
    };
    if flags & 0b1111_1010 != 0 {
        return None;
    }
    let mut key = Key {
        bytes: [0; NAME + 4],
        length: 0,
    };
    let rest = packet.get(HEADER..)?;
    let mut at = 0;
    loop {
        let length = usize::from(*rest.get(at)?);
        // Pointers and what there is not.
        if length > 63 || at + length + 1 > NAME {
            return None;
        }
        let label = rest.get(at..=at + length)?;
        let lower = key.bytes.get_mut(at..=at + length)?;
        for (lower, byte) in lower.iter_mut().zip(label) {
            *lower = byte.to_ascii_lowercase();
        }
        at += length + 1;
        if length == 0 {
            break;
        }
    }
    let (kind, class) = (pair(rest, at)?, pair(rest, at + 2)?);
    if class != 1 {
        return None;
    }
    let end = HEADER + at + 4;
    let (edns, wants_signatures) = match more {
        0 => (None, false),
        _ => {
            let (size, signatures) = opt(packet.get(end..)?)?;
            (Some(size), signatures)
        }
    };
    if more == 0 && packet.len() != end {
        return None;
    }
    let room = if tcp {
        Room::tcp(edns)
    } else {
        Room::udp(edns)
    };
    let [high, low] = kind.to_be_bytes();
    key.bytes.get_mut(at..at + 4)?.copy_from_slice(&[
        high,
        low,
        room.bucket,
        header[2] & 0x01 | header[3] & 0x30,
    ]);
    key.length = at + 4;
    Some(Plain {
        end,
        edns,
        wants_signatures,
        size: room.size,
        key,
    })
}

/// The size in an ordinary OPT record, which is the rest of the packet, and whether it
/// asks for signatures.
fn opt(record: &[u8]) -> Option<(u16, bool)> {
    let (
        &[
            root,
            kind_high,
            kind_low,
            size_high,
            size_low,
            _,
            version,
            flags,
        ],
        _,
    ) = record.split_first_chunk()?;
    if root != 0 {
        return None;
    }
    let kind = u16::from_be_bytes([kind_high, kind_low]);
    let length = usize::from(pair(record, 9)?);
    if kind != TYPE_OPT || version != 0 || record.len() != OPT + length {
        return None;
    }
    // One pass over the options: only one of them is answered.
    let mut rest = record.get(OPT..)?;
    while !rest.is_empty() {
        let (code, length) = (pair(rest, 0)?, usize::from(pair(rest, 2)?));
        if code == EDNS_SUBNET {
            return None;
        }
        rest = rest.get(4 + length..)?;
    }
    let size = u16::from_be_bytes([size_high, size_low]);
    Some((size, flags & 0x80 != 0))
}

fn pair(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([two[0], two[1]]))
}

/// An encoded reply, and where it may be changed.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// Without OPT.
    bytes: Box<[u8]>,
    /// Where the question ends.
    question: usize,
    /// Where each answer starts; empty where their order is not to be changed.
    starts: Box<[u16]>,
    /// Where the last answer ends.
    end: usize,
    /// Where a name behind the answers points into one of them.
    pointers: Box<[u16]>,
    /// Where a TTL that is not 0 stands.
    ttls: Box<[u16]>,
    /// Extended error for clients that speak EDNS.
    extended: Option<u16>,
}

impl Recipe {
    /// Of a reply without OPT. `None`: it is none that can be given again.
    pub(crate) fn of(reply: &[u8], extended: Option<u16>) -> Option<Self> {
        let mut records = Records::of(reply)?;
        let (mut starts, mut ttls, mut pointers) = (Vec::new(), Vec::new(), Vec::new());
        let question = records.at;
        let mut end = question;
        let mut first = None;
        let mut alike = true;
        for _ in 0..records.answers {
            let record = records.next()?;
            starts.push(small(record.start)?);
            let owner = pair(reply, record.start)?;
            alike &= owner == QUESTION && *first.get_or_insert(record.kind) == record.kind;
            if record.ttl != 0 {
                ttls.push(small(record.ttl_at)?);
            }
            end = records.at;
        }
        let turns = alike && matches!(first, Some(A | AAAA | SRV)) && end < 0x4000;
        if !turns || starts.len() < 2 {
            starts.clear();
        }
        for _ in 0..records.others {
            let record = records.next()?;
            if record.ttl != 0 {
                ttls.push(small(record.ttl_at)?);
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
        bytes[..2].fill(0);
        bytes[2] &= !0x01;
        bytes[3] &= !0x10;
        Some(Self {
            bytes,
            question,
            starts: starts.into(),
            end,
            pointers: pointers.into(),
            ttls: ttls.into(),
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
        if flags & 0x02 != 0 || !matches!(code, 0 | 3) {
            return None;
        }
        let mut records = Records::of(reply)?;
        let (question, total) = (records.at, u32::from(records.answers) + records.others);
        let (mut least, mut negative) = (None::<u32>, None);
        let (mut ttls, mut end, mut opts) = (Vec::new(), reply.len(), 0);
        let mut bytes = reply.to_vec();
        for _ in 0..total {
            let record = records.next()?;
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
            if record.kind == SOA && records.answers == 0 {
                let minimum = records
                    .at
                    .checked_sub(4)
                    .and_then(|at| reply.get(at..at + 4))?;
                let minimum = u32::from_be_bytes(minimum.try_into().ok()?);
                ttl = ttl.min(minimum).min(longest_negative);
                negative = Some(ttl);
            }
            let told = bytes.get_mut(record.ttl_at..record.ttl_at + 4)?;
            told.copy_from_slice(&ttl.to_be_bytes());
            ttls.push(small(record.ttl_at)?);
            least = Some(least.map_or(ttl, |least| least.min(ttl)));
        }
        // Without an SOA nobody says how long nothing holds (RFC 2308, section 5).
        let holds = if records.answers == 0 {
            negative?
        } else {
            least?
        };
        if records.at != reply.len() {
            return None;
        }
        bytes.truncate(end);
        let additionals = pair(&bytes, 10)?.checked_sub(opts)?;
        bytes
            .get_mut(10..12)?
            .copy_from_slice(&additionals.to_be_bytes());
        let head = bytes.get_mut(..4)?;
        head[..2].fill(0);
        // Of AA and what is copied from each question.
        head[2] &= !0x05;
        head[3] &= !0x10;
        let recipe = Self {
            bytes: bytes.into(),
            question,
            starts: Box::default(),
            end: question,
            pointers: Box::default(),
            ttls: ttls.into(),
            extended: None,
        };
        Some((recipe, holds))
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

    /// Bytes that it costs in a map, by this key.
    pub(crate) fn weigh(&self, key: &[u8]) -> usize {
        OVERHEAD + key.len() + self.bytes()
    }

    fn bytes(&self) -> usize {
        let places = self.starts.len() + self.pointers.len() + self.ttls.len();
        self.bytes.len() + 2 * places
    }

    /// Writes the reply to a packet. `None`: it does not fit `out`.
    fn write(
        &self,
        packet: &[u8],
        plain: &Plain,
        turn: usize,
        age: Age,
        out: &mut [u8],
    ) -> Option<usize> {
        let length = self.bytes.len();
        let extended = match age {
            Age::Fresh(_) => self.extended,
            Age::Stale(_) => Some(STALE_ANSWER),
        };
        let opt = plain
            .edns
            .map_or(0, |_| OPT + extended.map_or(0, |_| EXTENDED));
        if length + opt > plain.size {
            return None;
        }
        let body = out.get_mut(..length)?;
        let start = self
            .starts
            .first()
            .map_or(self.end, |first| usize::from(*first));
        let middle = match self.starts.len() {
            0 => start,
            many => usize::from(*self.starts.get(turn % many)?),
        };
        if middle == start {
            body.copy_from_slice(&self.bytes);
        } else {
            let (later, end) = (self.end - middle, self.end);
            body.get_mut(..start)?
                .copy_from_slice(self.bytes.get(..start)?);
            body.get_mut(start..start + later)?
                .copy_from_slice(self.bytes.get(middle..end)?);
            body.get_mut(start + later..end)?
                .copy_from_slice(self.bytes.get(start..middle)?);
            body.get_mut(end..)?.copy_from_slice(self.bytes.get(end..)?);
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
                body.get_mut(at..at + 2)?
                    .copy_from_slice(&moved.to_be_bytes());
            }
        }
        if age != Age::Fresh(0) {
            for &at in &self.ttls {
                let at = turned.to(usize::from(at));
                let ttl: &mut [u8; 4] = body.get_mut(at..at + 4)?.try_into().ok()?;
                let told = match age {
                    Age::Fresh(elapsed) => u32::from_be_bytes(*ttl).saturating_sub(elapsed),
                    Age::Stale(ttl) => ttl,
                };
                *ttl = told.to_be_bytes();
            }
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
        out.get_mut(10..12)?.copy_from_slice(&counted.to_be_bytes());
        Some(length + more)
    }
}

/// An OPT record that says our version and the client's own size, as Consul does.
fn write_opt(size: u16, extended: Option<u16>, out: &mut [u8]) -> Option<usize> {
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
enum Age {
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
            at + (self.end - self.middle)
        } else {
            at - (self.middle - self.start)
        }
    }
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

struct Record {
    start: usize,
    /// Where the pointer at the end of the owner stands, if it has one.
    pointer: Option<usize>,
    kind: u16,
    ttl_at: usize,
    ttl: u32,
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
            others: u32::from(pair(bytes, 8)?) + u32::from(pair(bytes, 10)?),
        };
        records.name()?;
        records.at += 4;
        Some(records)
    }

    /// Skips a name; where its pointer stands, if it ends with one.
    fn name(&mut self) -> Option<Option<usize>> {
        loop {
            let length = usize::from(*self.bytes.get(self.at)?);
            match length {
                0 => {
                    self.at += 1;
                    return Some(None);
                }
                1..=63 => self.at += length + 1,
                0xC0.. => {
                    self.at += 2;
                    return Some(Some(self.at - 2));
                }
                _ => return None,
            }
        }
    }

    fn next(&mut self) -> Option<Record> {
        let start = self.at;
        let pointer = self.name()?;
        let kind = pair(self.bytes, self.at)?;
        let ttl_at = self.at + 4;
        let ttl = self.bytes.get(ttl_at..ttl_at + 4)?.try_into().ok()?;
        let length = usize::from(pair(self.bytes, self.at + 8)?);
        self.at += 10 + length;
        (self.at <= self.bytes.len()).then_some(Record {
            start,
            pointer,
            kind,
            ttl_at,
            ttl: u32::from_be_bytes(ttl),
        })
    }
}

/// A reply on its way into the memory.
#[derive(Clone, Debug)]
pub(crate) struct Fill {
    /// The bytes of a [`Key`].
    pub(crate) key: Box<[u8]>,
    pub(crate) recipe: Recipe,
    /// When it was made.
    pub(crate) since: Instant,
    /// When it holds no more.
    pub(crate) until: Instant,
    pub(crate) fate: Option<Fate>,
}

#[derive(Debug)]
struct Entry {
    recipe: Recipe,
    since: Instant,
    until: Instant,
    fate: Option<Fate>,
    turn: u32,
    hits: u32,
}

/// What a packet comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// So many bytes of the reply.
    Reply(usize),
    /// Nothing that holds is known. So often it was given since it was last told.
    Miss { hits: u32 },
}

/// The replies that one thread knows.
#[derive(Debug)]
pub(crate) struct Shortcuts {
    entries: LruCache<Box<[u8]>, Entry>,
    bytes: usize,
    most: usize,
}

impl Shortcuts {
    /// At most `most` bytes, reckoned.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            entries: LruCache::unbounded(),
            bytes: 0,
            most,
        }
    }

    /// Bytes that the reply may need; 0 where none is known.
    pub(crate) fn room(&self, plain: &Plain) -> usize {
        let entry = self.entries.peek(plain.key.as_bytes());
        entry.map_or(0, |entry| entry.recipe.bytes.len() + OPT + EXTENDED)
    }

    /// The reply to a packet, written to `out`.
    pub(crate) fn answer(
        &mut self,
        packet: &[u8],
        plain: &Plain,
        now: Instant,
        out: &mut [u8],
    ) -> Given {
        let Some(entry) = self.entries.get_mut(plain.key.as_bytes()) else {
            return Given::Miss { hits: 0 };
        };
        let over = entry.fate.as_ref().is_some_and(Fate::is_over);
        if over || now >= entry.until {
            if !over {
                entry.until = now + GRACE;
            }
            return Given::Miss {
                hits: std::mem::take(&mut entry.hits),
            };
        }
        entry.hits = entry.hits.saturating_add(1);
        entry.turn = entry.turn.wrapping_add(1);
        let (turn, elapsed) = (
            entry.turn as usize,
            now.saturating_duration_since(entry.since),
        );
        let elapsed = u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX);
        let age = Age::Fresh(elapsed);
        let written = entry.recipe.write(packet, plain, turn, age, out);
        written.map_or(Given::Miss { hits: 0 }, Given::Reply)
    }

    /// Keeps a reply, from `now` on.
    pub(crate) fn keep(&mut self, fill: Fill, now: Instant) {
        let Fill {
            key,
            recipe,
            since,
            until,
            fate,
        } = fill;
        let bytes = recipe.weigh(&key);
        // One reply may not push out all others.
        if bytes > self.most / 4 {
            return;
        }
        let entry = Entry {
            recipe,
            since,
            until: until.min(now + LONGEST),
            fate,
            // Not the same first answer after each renewal.
            turn: self.entries.peek(&key).map_or(0, |before| before.turn),
            hits: 0,
        };
        self.bytes += bytes;
        if let Some((key, before)) = self.entries.push(key, entry) {
            self.bytes -= before.recipe.weigh(&key);
        }
        while self.bytes > self.most
            && let Some((key, oldest)) = self.entries.pop_lru()
        {
            self.bytes -= oldest.recipe.weigh(&key);
        }
    }

    /// Replies kept, and the bytes they are reckoned at.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests;
