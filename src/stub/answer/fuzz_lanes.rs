//! **Pure.** The rule of the stub's two lanes, for the fuzzer.

use std::time::Duration;

use hickory_proto::{op::Message, rr::Record};

use super::{Judged, Recursion, fuzz::sections, judge};
use crate::{
    cache::fate::Term,
    clock,
    name::Domain,
    stub::shortcut::{Fill, Given, LONGEST, Recipe, Shortcuts, Way, read},
};

/// A packet that the fast lane takes is an ordinary question to the slow one, and both
/// give the same records, in whatever order, at any time and turn. Bytes that come from
/// an upstream break nothing. The first byte is the number of records, the second the
/// turn; the rest is the packet, and the reply of an upstream to it.
pub fn shortcut(bytes: &[u8]) {
    let Some((&[count, turns], packet)) = bytes.split_first_chunk() else {
        return;
    };
    forwarded(packet);
    let Some(plain) = read(packet, Way::Loopback) else {
        return;
    };
    let judged = judge(packet, &Domain::default(), Recursion::None);
    let Judged::Ask(question) = judged else {
        // Transfers are refused whatever they ask for.
        assert!(
            matches!(judged, Judged::Reply(_)),
            "dropped, and taken for a question"
        );
        return;
    };
    let sections = sections(usize::from(count), &question.asked.owner);
    let body = question.body(&sections, Way::Loopback);
    let Some(recipe) = Recipe::of(&body, sections.extended) else {
        panic!("a reply of our own cannot be given again");
    };
    let slow = Message::from_vec(&question.finish(body, &sections)).expect("our own reply");
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    shortcuts.keep(
        Fill {
            key: plain.key.as_bytes().into(),
            recipe,
            since: now,
            term: Term::of(now + LONGEST),
        },
        now,
    );
    let mut out = [0; 4_096];
    for turn in 0..=turns % 8 {
        let at = now + Duration::from_secs(u64::from(turn % 3));
        let given = shortcuts.answer(packet, &plain, at, &mut out);
        let Given::Reply(length) = given else {
            panic!("{given:?} of what was just kept");
        };
        let fast = Message::from_vec(&out[..length]).expect("a readable reply");
        assert_eq!(fast.metadata, slow.metadata);
        assert_eq!(fast.queries, slow.queries);
        assert_eq!(fast.edns, slow.edns);
        for (fast, slow) in [
            (&fast.answers, &slow.answers),
            (&fast.additionals, &slow.additionals),
        ] {
            assert_eq!(fast.len(), slow.len());
            let known = |record: &Record| {
                let same = |one: &Record| one.name == record.name && one.data == record.data;
                slow.iter().any(same)
            };
            assert!(fast.iter().all(known));
        }
    }
}

/// What an upstream sent is kept only if it can be given to the same question, whole.
fn forwarded(reply: &[u8]) {
    let Some((recipe, _)) = Recipe::of_forwarded(reply, 86_400, 300) else {
        return;
    };
    let end = recipe.question;
    let mut packet = reply[..end].to_vec();
    packet[2] &= 0x01;
    packet[3] &= 0x30;
    packet[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    let Some(plain) = read(&packet, Way::Tcp) else {
        return;
    };
    let mut out = vec![0; usize::from(u16::MAX)];
    for length in [
        recipe.give(&packet, &plain, 1, &mut out),
        recipe.give_stale(&packet, &plain, 30, &mut out),
    ] {
        let Some(length) = length else { continue };
        assert!(length <= reply.len());
        assert_eq!(out[..2], packet[..2]);
        assert_eq!(out[12..end], packet[12..end]);
    }
}
