//! **Pure.** The bytes of a packet that goes on and of what comes back: what is said in its
//! head, how long a reply may be, whether it is one to ours, and whose head it has.

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

use crate::records::wire;

/// Bytes that every client takes over UDP (RFC 1035, section 2.3.4).
pub(super) const LEAST_ROOM: u16 = 512;

/// Whether a reply is SERVFAIL, NOTIMP or REFUSED.
pub(super) fn cannot_tell(reply: &[u8]) -> bool {
    reply
        .get(3)
        .is_none_or(|flags| matches!(flags & 0x0F, 2 | 4 | 5))
}

/// Whether a reply is NOERROR or NXDOMAIN, and whole.
pub(super) fn is_told(reply: &[u8]) -> bool {
    let is_said = matches!(reply, [_, _, flags, code, ..] if flags & 0x02 == 0 && matches!(code & 0x0F, 0 | 3));
    is_said && wire::shape(reply).is_some()
}

/// A packet that asks for datagrams of so many bytes at most. What is signed stays as it is.
pub(super) fn with_room(packet: &[u8], most: u16) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(shape) = wire::shape(&packet)
        && !shape.is_signed
        && let Some(size) = shape.size_at
        && let Some(bytes) = packet.get_mut(size..).and_then(<[u8]>::first_chunk_mut)
    {
        *bytes = u16::from_be_bytes(*bytes).min(most).to_be_bytes();
    }
    packet
}

/// Bytes that whoever sent a packet takes in a datagram (RFC 6891, section 6.2.3).
pub(super) fn room(packet: &[u8]) -> usize {
    let size = wire::shape(packet).and_then(|shape| shape.size_at);
    let bytes = size.and_then(|at| packet.get(at..)?.first_chunk());
    let said = bytes.map_or(0, |bytes| u16::from_be_bytes(*bytes));
    said.max(LEAST_ROOM).into()
}

/// A reply with the client's own id and the case of its question.
pub(super) fn own_head(reply: &[u8], packet: &[u8]) -> Vec<u8> {
    let mut reply = reply.to_vec();
    for (own, asked) in reply.iter_mut().zip(packet).take(2) {
        *own = *asked;
    }
    let end = question_end(packet).unwrap_or(12);
    if let (Some(own), Some(asked)) = (reply.get_mut(12..end), packet.get(12..end))
        && own.eq_ignore_ascii_case(asked)
    {
        own.copy_from_slice(asked);
    }
    reply
}

/// The head of a reply, with TC: the client is to come back over TCP.
pub(super) fn truncated(reply: &[u8]) -> Vec<u8> {
    let end = question_end(reply).unwrap_or(reply.len());
    let mut head = reply.get(..end).unwrap_or_default().to_vec();
    if let Some(flags) = head.get_mut(2) {
        *flags |= 0x02;
    }
    if let Some(counts) = head.get_mut(6..12) {
        counts.fill(0);
    }
    head
}

/// Where the only question of a message ends.
pub(super) fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match usize::from(*packet.get(at)?) {
            0 => return at.checked_add(5).filter(|end| *end <= packet.len()),
            length @ 1..=63 => at = at.checked_add(length)?.checked_add(1)?,
            _ => return None,
        }
    }
}

/// Whether a datagram answers a packet that went out with this id (RFC 5452, section
/// 9.1).
pub(crate) fn answers(reply: &[u8], packet: &[u8], id: [u8; 2]) -> bool {
    answers_at_all(reply, packet, id).is_some()
}

fn answers_at_all(reply: &[u8], packet: &[u8], id: [u8; 2]) -> Option<()> {
    let &[high, low, flags, _, 0, 1, ..] = reply.first_chunk::<12>()? else {
        return None;
    };
    let is_reply = flags & 0x80 != 0 && flags & 0x78 == packet.get(2)? & 0x78;
    let end = question_end(packet)?;
    let (ours, told) = (packet.get(12..end)?, reply.get(12..end)?);
    // The name in any case, type and class as they are: 65 and 97 are two types.
    let ((ours, our_kind), (told, kind)) =
        (ours.split_last_chunk::<4>()?, told.split_last_chunk::<4>()?);
    let same = ours.eq_ignore_ascii_case(told) && our_kind == kind;
    ([high, low] == id && is_reply && same).then_some(())
}
