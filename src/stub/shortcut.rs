//! **Pure.** The fast lane's memory: replies that were encoded before, found by the
//! bytes of a question and made to fit it.
//!
//! | of a question | in the reply |
//! | --- | --- |
//! | id, RD, CD; the name in its case | copied |
//! | EDNS | an OPT record with the client's own size |
//! | EDNS size | picks the reply that was cut to 512, 1,232, 1,400 or 4,096 bytes; for clients elsewhere than on this machine the last two are never picked |
//!
//! TTLs are counted down by whole seconds. Answers of one type (A, AAAA, SRV) are
//! rotated by one at each hit, so that clients that take the first spread over all.
//!
//! Whatever is unusual about a packet is left to [`answer`](super::answer): only what
//! is understood whole is answered here. A hit takes no lock, decodes no record
//! and allocates nothing.

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

mod recipe;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use self::recipe::Age;
pub(super) use self::recipe::write_opt;
pub(crate) use self::recipe::{Recipe, addresses};
use crate::{
    bounded::{Bounded, Weigh},
    cache::{
        Hits,
        fate::{Fate, Term},
    },
    endpoint::Transport,
    records::{
        wire::{self, EDNS_SUBNET},
        write::NOT_READY,
    },
};

/// Length of a header.
const HEADER: usize = 12;

/// Longest name on the wire (RFC 1035, section 2.3.4).
const NAME: usize = 255;

/// Length of an OPT record without options.
pub(crate) const OPT: usize = 11;

/// Longest reply that nobody has time for a question: header, question, OPT record.
pub(crate) const REFUSAL: usize = 512;

/// Length of an extended error without text (RFC 8914, section 2), as an option.
pub(crate) const EXTENDED: usize = 6;

/// An entry is made anew after so long at most: what it was asked is told then.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

/// While one question renews an entry, the others are given the old one for so long, if it has
/// not been over for long itself.
const GRACE: Duration = Duration::from_millis(20);
const JUST_OVER: Duration = Duration::from_secs(1);

/// TTL in seconds of what nobody has time to ask for anew: the next may have it.
const LATE_TTL: u32 = 1;

/// Bytes that the map and an entry cost beside what they point to.
const OVERHEAD: usize = 272;

const TYPE_OPT: u16 = 41;

/// Most bytes of a datagram on this machine, where none comes in fragments that cannot be had
/// again at once, and elsewhere (RFC 9715, section 3.1).
const MOST_ON_LOOPBACK: u16 = 4_096;
const MOST_ELSEWHERE: u16 = 1_232;

/// How a message comes and goes, which says how long it may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By a datagram on this machine.
    Loopback,
    /// By a datagram to and from another one.
    Elsewhere,
    Tcp,
}

impl Way {
    /// That of datagrams of who has that address.
    pub(crate) fn udp(peer: IpAddr) -> Self {
        match peer.is_loopback() {
            true => Self::Loopback,
            false => Self::Elsewhere,
        }
    }

    pub(crate) fn of(transport: Transport, client: SocketAddr) -> Self {
        match transport {
            Transport::Udp => Self::udp(client.ip()),
            _ => Self::Tcp,
        }
    }

    pub(crate) fn transport(self) -> Transport {
        match self {
            Self::Loopback | Self::Elsewhere => Transport::Udp,
            Self::Tcp => Transport::Tcp,
        }
    }

    /// Bytes of a message, at most.
    pub(crate) fn most(self) -> u16 {
        match self {
            Self::Loopback => MOST_ON_LOOPBACK,
            Self::Elsewhere => MOST_ELSEWHERE,
            Self::Tcp => u16::MAX,
        }
    }
}

/// How long a reply may be, by what the client says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Replies for one bucket serve all clients in it.
    bucket: u8,
    /// Bytes, the OPT record among them.
    pub(crate) size: usize,
}

impl Room {
    const BUCKETS: u8 = 7;

    /// `edns`: the client's size (RFC 6891, section 6.2.3), if it speaks EDNS. Sizes
    /// in between count as the one below, so that few replies serve all clients.
    pub(crate) fn of(way: Way, edns: Option<u16>) -> Self {
        if way == Way::Tcp {
            return Self {
                bucket: if edns.is_some() { 6 } else { 5 },
                size: usize::from(u16::MAX),
            };
        }
        let (bucket, size) = match edns.map(|size| size.min(way.most())) {
            None => (0, 512),
            Some(..1232) => (1, 512),
            Some(1232..1400) => (2, 1232),
            Some(1400..4096) => (3, 1400),
            Some(4096..) => (4, 4096),
        };
        Self { bucket, size }
    }
}

/// The name of a reply: the question's name in lower case, its type, the room, and the
/// flags that may change what is answered (RD, AD, CD, DO).
#[derive(Clone, Copy)]
pub(crate) struct Key {
    bytes: [u8; NAME + 4],
    length: usize,
}

impl Key {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Those of the same name and type as most clients ask: who want recursion and nothing else,
    /// whatever their room.
    pub(crate) fn usual(self) -> impl Iterator<Item = Self> {
        const RECURSION: u8 = 1;
        (0..Room::BUCKETS).filter_map(move |bucket| {
            let mut key = self;
            let told = key.bytes.get_mut(..key.length)?.last_chunk_mut()?;
            *told = [bucket, RECURSION];
            Some(key)
        })
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
    /// It has EDNS options, which may be this client's alone.
    pub(crate) has_options: bool,
    /// Bytes that it can take.
    size: usize,
    pub(crate) key: Key,
}

impl Plain {
    /// Writes SERVFAIL, with an extended error for who speaks EDNS: nobody has time for
    /// the question. Takes no more than a look at the packet.
    pub(crate) fn overload(&self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        const SERVFAIL: u8 = 2;
        let (reply, rest) = out.split_at_mut_checked(self.end)?;
        reply.copy_from_slice(packet.get(..self.end)?);
        let head: &mut [u8; HEADER] = reply.first_chunk_mut()?;
        head[2] = 0x80 | head[2] & 0x01;
        head[3] = head[3] & 0x10 | SERVFAIL;
        // What follows the question is our own.
        head[11] = u8::from(self.edns.is_some());
        let Some(size) = self.edns else {
            return Some(self.end);
        };
        let more = write_opt(size, Some(NOT_READY), rest)?;
        self.end.checked_add(more)
    }
}

/// Reads a packet, if it is an ordinary question of class IN.
pub(crate) fn read(packet: &[u8], way: Way) -> Option<Plain> {
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
    let mut at = 0_usize;
    loop {
        let length = usize::from(*rest.get(at)?);
        let next = at.checked_add(length)?.checked_add(1)?;
        // Pointers and what there is not.
        if length > 63 || next > NAME {
            return None;
        }
        at = next;
        if length == 0 {
            break;
        }
    }
    let (name, rest) = rest.split_at_checked(at)?;
    let lower = key.bytes.get_mut(..at)?;
    lower.copy_from_slice(name);
    // All at once: the length of a label is below any letter.
    lower.make_ascii_lowercase();
    // Type and class.
    let (&[high, low, 0, 1], rest) = rest.split_first_chunk()? else {
        return None;
    };
    let (edns, wants_signatures) = match more {
        0 if rest.is_empty() => (None, false),
        0 => return None,
        _ => {
            let (size, signatures) = opt(rest)?;
            (Some(size), signatures)
        }
    };
    let room = Room::of(way, edns);
    let flags = header[2] & 0x01 | header[3] & 0x30 | u8::from(wants_signatures) << 7;
    *key.bytes.get_mut(at..)?.first_chunk_mut()? = [high, low, room.bucket, flags];
    key.length = name.len().checked_add(4)?;
    Some(Plain {
        end: packet.len().checked_sub(rest.len())?,
        edns,
        wants_signatures,
        has_options: rest.len() > OPT,
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
    let options = record.get(OPT..)?;
    if kind != TYPE_OPT || version != 0 || options.len() != usize::from(pair(record, 9)?) {
        return None;
    }
    // Only one of the options is answered.
    let mut has_subnet = false;
    wire::options(options, |code| has_subnet |= code == EDNS_SUBNET)?;
    if has_subnet {
        return None;
    }
    let size = u16::from_be_bytes([size_high, size_low]);
    Some((size, flags & 0x80 != 0))
}

fn pair(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*two))
}

/// A reply on its way into the memory.
#[derive(Clone, Debug)]
pub(crate) struct Fill {
    /// The bytes of a [`Key`].
    pub(crate) key: Box<[u8]>,
    pub(crate) recipe: Recipe,
    /// When it was made.
    pub(crate) since: Instant,
    pub(crate) term: Term,
}

#[derive(Debug)]
struct Entry {
    recipe: Recipe,
    since: Instant,
    /// At most [`LONGEST`] from when it was kept.
    term: Term,
    turn: u32,
    hits: Hits,
    /// It was given on while it was renewed.
    graced: bool,
}

impl Entry {
    fn is_gone(&self) -> bool {
        self.term.fate.as_ref().is_some_and(Fate::is_gone)
    }

    /// How often it was given, told once.
    fn take_hits(&mut self) -> Hits {
        let Hits { fresh, stale } = std::mem::take(&mut self.hits);
        match self.recipe.is_stale() {
            true => Hits {
                fresh: 0,
                stale: fresh.saturating_add(stale),
            },
            false => Hits { fresh, stale },
        }
    }

    fn is_renewed(&self) -> bool {
        self.term.fate.as_ref().is_some_and(Fate::is_over)
    }
}

impl Weigh for Entry {
    fn weigh(&self, key: &[u8]) -> usize {
        self.recipe.weigh(key)
    }
}

/// What a packet comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// So many bytes of the reply.
    Reply(usize),
    /// Nothing that holds is known. So often it was given since that was last told.
    Miss { hits: Hits },
}

impl Given {
    pub(crate) const UNKNOWN: Self = Self::Miss {
        hits: Hits { fresh: 0, stale: 0 },
    };
}

/// What is told where nobody has time: so many bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// What was known, as stale.
    Known(usize),
    /// That nobody has time.
    Shed(usize),
}

/// The replies that one thread knows.
#[derive(Debug)]
pub(crate) struct Shortcuts {
    entries: Bounded<Entry>,
}

impl Shortcuts {
    /// At most `most` bytes, reckoned.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            entries: Bounded::new(most),
        }
    }

    /// Bytes that the reply may need; 0 where none is known.
    pub(crate) fn room(&self, plain: &Plain) -> usize {
        let entry = self.entries.peek(plain.key.as_bytes());
        entry.map_or(0, |entry| entry.recipe.room())
    }

    /// The reply to a packet, written to `out`.
    pub(crate) fn answer(
        &mut self,
        packet: &[u8],
        plain: &Plain,
        now: Instant,
        out: &mut [u8],
    ) -> Given {
        self.answer_within(packet, plain, now, |_| out)
    }

    /// The same, written to what is given for the bytes that it may need.
    pub(crate) fn answer_within<'a>(
        &mut self,
        packet: &[u8],
        plain: &Plain,
        now: Instant,
        room: impl FnOnce(usize) -> &'a mut [u8],
    ) -> Given {
        let Some(entry) = self.entries.get(plain.key.as_bytes()) else {
            return Given::UNKNOWN;
        };
        let (gone, renewed) = (entry.is_gone(), entry.is_renewed());
        if gone || now >= entry.term.until || (renewed && !entry.graced) {
            // Once: what cannot be renewed is not given for ever.
            let late = now.saturating_duration_since(entry.term.until);
            if !gone && late < JUST_OVER && !std::mem::replace(&mut entry.graced, true) {
                entry.term.until = now.checked_add(GRACE).unwrap_or(now);
            }
            return Given::Miss {
                hits: entry.take_hits(),
            };
        }
        entry.hits.fresh = entry.hits.fresh.saturating_add(1);
        entry.turn = entry.turn.wrapping_add(1);
        let (turn, elapsed) = (
            entry.turn as usize,
            now.saturating_duration_since(entry.since),
        );
        let elapsed = u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX);
        // Once a second for all, not once a reply.
        entry.recipe.count_down(elapsed);
        let age = Age::Fresh(elapsed);
        let out = room(entry.recipe.room());
        let written = entry.recipe.write(packet, plain, turn, age, out);
        written.map_or(Given::UNKNOWN, Given::Reply)
    }

    /// The reply to a packet that nobody has time for: what is known, as stale, where nobody
    /// knows that it is not so any more.
    pub(crate) fn answer_late(
        &mut self,
        packet: &[u8],
        plain: &Plain,
        now: Instant,
        out: &mut [u8],
    ) -> Option<usize> {
        let entry = self.entries.get(plain.key.as_bytes())?;
        if entry.is_gone() || now >= entry.term.kept {
            return None;
        }
        entry.hits.stale = entry.hits.stale.saturating_add(1);
        let (turn, age) = (entry.turn as usize, Age::Stale(LATE_TTL));
        entry.recipe.write(packet, plain, turn, age, out)
    }

    /// The same, or [that there is no time](Plain::overload).
    pub(crate) fn late(
        &mut self,
        packet: &[u8],
        plain: &Plain,
        now: Instant,
        out: &mut [u8],
    ) -> Option<Late> {
        let known = self.answer_late(packet, plain, now, out).map(Late::Known);
        known.or_else(|| plain.overload(packet, out).map(Late::Shed))
    }

    /// Keeps a reply, from `now` on.
    pub(crate) fn keep(&mut self, fill: Fill, now: Instant) {
        let Fill {
            key,
            recipe,
            since,
            mut term,
        } = fill;
        term.until = now.checked_add(LONGEST).unwrap_or(now).min(term.until);
        let entry = Entry {
            recipe,
            since,
            term,
            // Not the same first answer after each renewal.
            turn: self.entries.peek(&key).map_or(0, |before| before.turn),
            hits: Hits::default(),
            graced: false,
        };
        self.entries.keep(key, entry);
    }

    /// Replies kept, and the bytes they are reckoned at.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.entries.size()
    }
}

#[cfg(test)]
mod tests;
