//! **Pure.** Names that only we ask for, and of whom: one that comes back was sent round by whom
//! it went to. Time and dice come in as arguments.
//!
//! A forwarder has to pass such a name on, and not answer it itself: so it is of no domain for
//! special use (RFC 6761), which many answer by themselves, and its upper label is drawn too, so
//! that nothing known of one tells of the next (RFC 8020, RFC 8198). A route's servers are asked
//! for a name in its domain, which may be all that they pass on. The type is one that nobody
//! filters.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::health::Hop;

/// Tells who reads logs whose these names are.
const OURS: &[u8] = b"proconsul-loop";

/// A name that comes back later says nothing any more.
const AWAITED: Duration = Duration::from_secs(10);

/// Longest name on the wire (RFC 1035, section 2.3.4).
const NAME: usize = 255;

/// What tells one name from all others.
pub(super) type Nonce = [u8; 32];

/// The names, and of whom they were asked when.
#[derive(Debug, Default)]
pub(super) struct Probes(HashMap<Nonce, (Hop, Instant)>);

impl Probes {
    /// A question that may go to a server about a name in a domain. `None`: there is no room for
    /// one.
    pub(super) fn question<'a>(
        &mut self,
        hop: Hop,
        domain: impl Iterator<Item = &'a [u8]>,
        dice: [u64; 2],
        now: Instant,
    ) -> Option<(Nonce, Vec<u8>)> {
        let nonce = nonce(dice);
        let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let start = packet.len();
        let mut write = |label: &[u8]| {
            packet.push(u8::try_from(label.len()).ok()?);
            packet.extend_from_slice(label);
            Some(())
        };
        write(OURS)?;
        write(&nonce)?;
        for label in domain {
            write(label)?;
        }
        packet.push(0);
        if packet.len() - start > NAME {
            return None;
        }
        // A, IN.
        packet.extend_from_slice(&[0, 1, 0, 1]);
        self.0.retain(|_, (_, since)| is_awaited(*since, now));
        self.0.insert(nonce, (hop, now));
        Some((nonce, packet))
    }

    /// Whose question it is that came here: it is awaited no more.
    pub(super) fn came_round(&mut self, labels: &[&[u8]], now: Instant) -> Option<Hop> {
        let [ours, nonce, ..] = labels else {
            return None;
        };
        if !ours.eq_ignore_ascii_case(OURS) {
            return None;
        }
        let nonce = Nonce::try_from(nonce.to_ascii_lowercase()).ok()?;
        let (hop, since) = self.0.remove(&nonce)?;
        is_awaited(since, now).then_some(hop)
    }

    /// Whether a question has not come here.
    pub(super) fn is_out(&self, nonce: &Nonce) -> bool {
        self.0.contains_key(nonce)
    }
}

fn is_awaited(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < AWAITED
}

/// All bits of the dice in letters: what stands for a number may be looked at as one.
fn nonce(dice: [u64; 2]) -> Nonce {
    let [high, low] = dice.map(u128::from);
    let all = high << 64 | low;
    std::array::from_fn(|at| b'a' + (all >> (4 * at) & 0x0F) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn hop() -> Hop {
        ("192.0.2.1:53".parse().unwrap(), Some(1))
    }

    /// The labels of the name in a question.
    fn labels(packet: &[u8]) -> Vec<&[u8]> {
        let mut rest = &packet[12..];
        let mut labels = Vec::new();
        while let [length @ 1..=63, after @ ..] = rest {
            let (label, next) = after.split_at(usize::from(*length));
            labels.push(label);
            rest = next;
        }
        assert_eq!(rest, [0, 0, 1, 0, 1]);
        labels
    }

    #[test]
    fn a_name_that_comes_back_is_known_once_in_any_case_and_for_a_while() {
        let (mut probes, now) = (Probes::default(), clock::now());
        let mut ask = |dice, domain: &[&'static [u8]], at| {
            let domain = domain.iter().copied();
            probes.question(hop(), domain, dice, at).unwrap()
        };
        let domain: &[&[u8]] = &[b"corp", b"example"];
        let (nonce, packet) = ask([1, 2], domain, now);
        let (_, late) = ask([1, 3], &[], now);
        let (other, _) = ask([2, 2], &[], now);
        assert_ne!(nonce, other);
        assert_eq!(labels(&packet)[2..], *domain);
        assert_eq!(labels(&late).len(), 2);
        let upper = packet.to_ascii_uppercase();
        let upper: Vec<_> = (labels(&packet).iter().zip([13, 28, 61, 66]))
            .map(|(label, at)| &upper[at..at + label.len()])
            .collect();
        assert!(probes.is_out(&nonce));
        assert_eq!(probes.came_round(&upper, now), Some(hop()));
        assert!(!probes.is_out(&nonce) && probes.is_out(&other));
        assert_eq!(probes.came_round(&upper, now), None);
        assert_eq!(probes.came_round(&labels(&late), now + AWAITED), None);
        let ours: &[u8] = b"proconsul-loop";
        for strange in [&[][..], &[ours], &[ours, b"a"]] {
            assert_eq!(probes.came_round(strange, now), None);
        }
        // What is not awaited any more takes no room.
        let long_after = now + 2 * AWAITED;
        _ = probes.question(hop(), std::iter::empty(), [0, 0], long_after);
        assert_eq!(probes.0.len(), 1);
    }

    #[test]
    fn a_domain_that_leaves_no_room_for_a_name_is_not_asked_about() {
        let long: &[u8] = &[b'a'; 63];
        let mut probes = Probes::default();
        let mut fits = |count: usize| {
            let domain = std::iter::repeat_n(long, count);
            (probes.question(hop(), domain, [0, 0], clock::now())).is_some()
        };
        assert!(fits(3) && !fits(4));
    }
}
