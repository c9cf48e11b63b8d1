//! **Pure.** One question to Consul's DNS interface, as bytes, and whether bytes
//! that come back answer it (RFC 5452, section 9.1).
//!
//! A reply is accepted only if id, QR, and the whole question are the ones sent;
//! the sockets see to address and port. Anything else is counted by its
//! [`Stranger`] and ignored: a stray or forged datagram must not end a query.

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

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::{
    op::Message,
    rr::{DNSClass, RecordType},
    serialize::binary::{BinDecodable, BinDecoder},
};

use crate::{
    name,
    records::wire,
    udp::{MOST_STRAY_DATAGRAMS, MOST_WRONG_IDS},
};

/// Length of a DNS header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// Bytes of a question behind its name, and of an OPT record without options.
const FIXED: usize = 4 + 11;

/// Longest datagram without EDNS (RFC 1035, section 2.3.4).
const PLAIN_PAYLOAD: u16 = 512;

/// One encoded question. Its id is a blank that each sending fills in.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    bytes: Vec<u8>,
    /// Where the question section ends.
    question_end: usize,
    /// The EDNS size that it advertises; what everybody takes, without EDNS.
    payload: u16,
}

/// How many replies were ignored, and why.
#[derive(Debug, Default)]
pub(crate) struct Strangers([AtomicU64; 5]);

impl Strangers {
    pub(crate) fn count(&self, stranger: Stranger) {
        if let Some(count) = self.0.get(stranger as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.0
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

/// Why bytes were ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stranger {
    TooShort,
    WrongId,
    NotAReply,
    WrongQuestion,
    Malformed,
}

impl Query {
    /// A question for `name` and `kind` that advertises `payload` bytes by EDNS.
    /// `None` if the name has no wire form.
    pub(crate) fn new(name: &str, kind: RecordType, payload: u16) -> Option<Self> {
        let labels = name::labels(name)?;
        let mut bytes = Vec::with_capacity(name.len().saturating_add(HEADER + 2 + FIXED));
        // One question with RD, and an OPT record behind it.
        bytes.extend_from_slice(&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        for label in labels {
            bytes.push(u8::try_from(label.len()).ok()?);
            bytes.extend_from_slice(&label);
        }
        bytes.push(0);
        bytes.extend_from_slice(&u16::from(kind).to_be_bytes());
        bytes.extend_from_slice(&u16::from(DNSClass::IN).to_be_bytes());
        let question_end = bytes.len();
        // The root, type and size; no further code, version or flags, and no options
        // (RFC 6891, section 6.1.2).
        let [high, low] = payload.to_be_bytes();
        bytes.extend_from_slice(&[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
        Some(Self {
            bytes,
            question_end,
            payload,
        })
    }

    /// The same without EDNS, for who does not know it (RFC 6891, section 6.2.2).
    pub(crate) fn without_edns(mut self) -> Self {
        // The OPT record is all that follows the question.
        self.bytes.truncate(self.question_end);
        if let Some(additionals) = self.bytes.get_mut(10..HEADER) {
            additionals.fill(0);
        }
        Self {
            payload: PLAIN_PAYLOAD,
            ..self
        }
    }

    pub(crate) fn has_edns(&self) -> bool {
        self.bytes.len() > self.question_end
    }

    /// The EDNS size that it advertises, in bytes.
    pub(crate) fn payload(&self) -> u16 {
        self.payload
    }

    /// The bytes to send under `id`.
    pub(crate) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(field) = bytes.first_chunk_mut() {
            *field = id.to_be_bytes();
        }
        bytes
    }

    /// Whether `reply` answers this question sent under `id`, by its header and
    /// question alone.
    pub(crate) fn is_answered_by(&self, id: u16, reply: &[u8]) -> Result<(), Stranger> {
        let Some((header, _)) = reply.split_first_chunk::<HEADER>() else {
            return Err(Stranger::TooShort);
        };
        if header[..2] != id.to_be_bytes() {
            return Err(Stranger::WrongId);
        }
        // QR, and the opcode that was sent.
        if header[2] & 0xF8 != 0x80 {
            return Err(Stranger::NotAReply);
        }
        let question = |message| {
            // Type and class behind the name.
            <[u8]>::get(message, HEADER..self.question_end)?.split_last_chunk::<4>()
        };
        let same_question = match (question(reply), question(&self.bytes)) {
            (Some((name, kind)), Some((own_name, own_kind))) => {
                name.eq_ignore_ascii_case(own_name) && kind == own_kind
            }
            _ => false,
        };
        if header[4..6] == [0, 1] && same_question {
            Ok(())
        } else {
            Err(Stranger::WrongQuestion)
        }
    }
}

/// What is heard after one question was sent as a datagram, until its reply or until it is
/// enough: a flood must not keep us busy.
#[derive(Debug)]
pub(crate) struct Hearing<'a> {
    query: &'a Query,
    id: u16,
    strangers: usize,
    wrong_ids: usize,
}

/// What a datagram is to a question.
#[derive(Debug)]
pub(crate) enum Heard {
    Reply(Box<Message>),
    /// It is ignored, and the next one waited for.
    Stranger(Stranger),
    /// It is ignored, and it was the last that is looked at.
    Enough(Stranger),
}

impl<'a> Hearing<'a> {
    /// `id`: the one that the question was sent under.
    pub(crate) fn new(query: &'a Query, id: u16) -> Self {
        Self {
            query,
            id,
            strangers: 0,
            wrong_ids: 0,
        }
    }

    pub(crate) fn hear(&mut self, datagram: &[u8]) -> Heard {
        let read = self.query.is_answered_by(self.id, datagram);
        let stranger = match read.and_then(|()| decode(datagram)) {
            Ok(message) => return Heard::Reply(message),
            Err(stranger) => stranger,
        };
        self.strangers = self.strangers.saturating_add(1);
        if stranger == Stranger::WrongId {
            self.wrong_ids = self.wrong_ids.saturating_add(1);
        }
        if self.wrong_ids >= MOST_WRONG_IDS || self.strangers >= MOST_STRAY_DATAGRAMS {
            Heard::Enough(stranger)
        } else {
            Heard::Stranger(stranger)
        }
    }
}

/// The id that a message starts with.
pub(crate) fn id(message: &[u8]) -> Option<u16> {
    message.first_chunk().copied().map(u16::from_be_bytes)
}

/// The whole message, read to its last byte, without records of other classes than IN.
pub(crate) fn decode(reply: &[u8]) -> Result<Box<Message>, Stranger> {
    wire::shape(reply).ok_or(Stranger::Malformed)?;
    let mut message =
        Message::read(&mut BinDecoder::new(reply)).map_err(|_| Stranger::Malformed)?;
    for section in [
        &mut message.answers,
        &mut message.authorities,
        &mut message.additionals,
    ] {
        section.retain(|record| record.dns_class == DNSClass::IN);
    }
    // In a box, as it is handed on from one to the next.
    Ok(Box::new(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, MessageType};

    fn query() -> Query {
        Query::new("web.service.consul.", RecordType::SRV, 4093).unwrap()
    }

    fn reply(id: u16) -> Vec<u8> {
        let mut message = Message::from_vec(&query().with_id(id)).unwrap();
        message.metadata.message_type = MessageType::Response;
        message.to_vec().unwrap()
    }

    #[test]
    fn its_own_reply_is_accepted_in_any_case() {
        assert_eq!(query().is_answered_by(7, &reply(7)), Ok(()));
        let mut shouted = reply(7);
        shouted[13..16].make_ascii_uppercase();
        assert_eq!(query().is_answered_by(7, &shouted), Ok(()));
    }

    #[test]
    fn every_single_wrong_field_makes_a_stranger() {
        let query = query();
        assert_eq!(query.is_answered_by(8, &reply(7)), Err(Stranger::WrongId));
        assert_eq!(
            query.is_answered_by(7, &query.with_id(7)),
            Err(Stranger::NotAReply)
        );
        let mut notify = reply(7);
        notify[2] |= 4 << 3;
        assert_eq!(query.is_answered_by(7, &notify), Err(Stranger::NotAReply));
        for at in HEADER..query.question_end {
            let mut forged = reply(7);
            forged[at] ^= 0x01;
            assert_eq!(
                query.is_answered_by(7, &forged),
                Err(Stranger::WrongQuestion),
                "byte {at}"
            );
        }
        for count in [0, 2, 255] {
            let mut forged = reply(7);
            forged[5] = count;
            assert_eq!(
                query.is_answered_by(7, &forged),
                Err(Stranger::WrongQuestion)
            );
        }
        for length in 0..HEADER {
            assert_eq!(
                query.is_answered_by(7, &reply(7)[..length]),
                Err(Stranger::TooShort)
            );
        }
        assert_eq!(
            query.is_answered_by(7, &reply(7)[..20]),
            Err(Stranger::WrongQuestion)
        );
    }

    #[test]
    fn of_a_million_replies_with_one_field_forged_none_is_accepted() {
        use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
        let query = query();
        let mut dice = SmallRng::seed_from_u64(11);
        let mut taken = 0;
        let right = reply(7);
        for round in 0..1_000_000 {
            let mut forged = right.clone();
            let end = query.question_end;
            let other = dice.random_range(1..=u16::MAX);
            let mut number = |at: usize, own: u16| {
                let other = own.wrapping_add(other);
                forged[at..at + 2].copy_from_slice(&other.to_be_bytes());
            };
            match round % 7 {
                0 => number(0, 7),
                1 => number(4, 1),
                2 => number(end - 4, 33),
                3 => number(end - 2, 1),
                4 => forged[2] &= 0x7F,
                5 => {
                    let at = dice.random_range(HEADER..end - 4);
                    while forged[at].eq_ignore_ascii_case(&right[at]) {
                        forged[at] = dice.random();
                    }
                }
                _ => forged.truncate(dice.random_range(0..end)),
            }
            taken += usize::from(query.is_answered_by(7, &forged).is_ok());
        }
        assert_eq!(taken, 0);
    }

    #[test]
    fn the_type_is_compared_with_its_case() {
        // Types 65 and 97 are `A` and `a` as letters.
        let query = Query::new("web.service.consul.", RecordType::from(65), 4093).unwrap();
        let mut forged = query.with_id(7);
        forged[2] |= 0x80;
        assert_eq!(query.is_answered_by(7, &forged), Ok(()));
        forged[query.question_end - 3] = 97;
        assert_eq!(
            query.is_answered_by(7, &forged),
            Err(Stranger::WrongQuestion)
        );
    }

    /// Read name by name it would be 24 million steps.
    #[test]
    fn thousands_of_pointers_before_thousands_of_records_are_malformed_at_once() {
        let hostile = wire::hostile::chained(8_000, 3_000);
        assert_eq!(decode(&hostile).unwrap_err(), Stranger::Malformed);
        assert!(decode(&wire::hostile::chained(10, 2)).is_ok());
    }

    #[test]
    fn a_flood_ends_a_question_and_wrong_ids_end_it_sooner() {
        let query = query();
        let heard = |datagram: &[u8]| {
            let mut hearing = Hearing::new(&query, 7);
            let all = (1..).find(|_| matches!(hearing.hear(datagram), Heard::Enough(_)));
            all.unwrap()
        };
        assert_eq!(heard(&reply(8)), MOST_WRONG_IDS);
        assert_eq!(heard(&[]), MOST_STRAY_DATAGRAMS);
        let mut hearing = Hearing::new(&query, 7);
        assert!(matches!(hearing.hear(&reply(8)), Heard::Stranger(_)));
        assert!(matches!(hearing.hear(&reply(7)), Heard::Reply(_)));
    }

    #[test]
    fn bytes_left_over_make_a_message_malformed() {
        let mut long = reply(7);
        assert!(decode(&long).is_ok());
        long.push(0);
        assert_eq!(decode(&long).unwrap_err(), Stranger::Malformed);
    }

    #[test]
    fn no_reply_asks_for_memory_by_its_counts() {
        for at in [6, 8, 10] {
            let mut lying = query().without_edns().with_id(7);
            lying[2] |= 0x80;
            lying[at..at + 2].fill(0xFF);
            lying.extend([0; 17]);
            assert_eq!(query().is_answered_by(7, &lying), Ok(()));
            let asked = allocation_counter::measure(|| assert!(decode(&lying).is_err()));
            assert_eq!(asked.bytes_total, 0, "{at}");
        }
    }

    /// A reply to the question with so many bytes of records behind it, and these counts.
    fn claiming(counts: [u16; 3], records: &[u8]) -> Vec<u8> {
        let mut bytes = query().with_id(7)[..query().question_end].to_vec();
        bytes[2] |= 0x80;
        for (at, count) in (6..).step_by(2).zip(counts) {
            bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        bytes.extend_from_slice(records);
        bytes
    }

    #[test]
    fn counts_that_lie_make_room_for_nothing() {
        for counts in [
            [u16::MAX, 0, 0],
            [0, u16::MAX, 0],
            [0, 0, u16::MAX],
            [u16::MAX; 3],
        ] {
            let bytes = claiming(counts, &[0; 17]);
            let cost = allocation_counter::measure(|| assert!(decode(&bytes).is_err()));
            let most = 64 * bytes.len() as u64 + 4_096;
            assert!(cost.bytes_total < most, "{counts:?}: {}", cost.bytes_total);
        }
    }

    #[test]
    fn a_name_that_pointers_make_too_long_is_refused() {
        // Labels of 63 bytes, each before a pointer to the one before it.
        let (mut records, mut before) = (Vec::new(), 12_u16);
        let start = query().question_end;
        let mut longest = 0;
        for count in 1..=5 {
            let own = u16::try_from(start + records.len()).unwrap();
            records.push(63);
            records.extend([b'x'; 63]);
            records.extend((0xC000 | before).to_be_bytes());
            records.extend([0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 0, 0, 1]);
            before = own;
            if decode(&claiming([count, 0, 0], &records)).is_ok() {
                longest = count;
            }
        }
        // web.service.consul. has 20 bytes, and 3 times 64 more are 212; 4 times are 276.
        assert_eq!(longest, 3);
    }
}
