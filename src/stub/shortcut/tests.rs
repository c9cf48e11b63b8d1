use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, SRV, TXT},
    },
};
use proptest::{collection::vec, prelude::any, prop_assert_eq, proptest};

use super::*;
use crate::{
    clock,
    name::Domain,
    records::write::{STALE_ANSWER, Sections},
    stub::answer::{Judged, Recursion, judge},
};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(owner: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(owner), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn services(count: u32, ttl: u32) -> Sections {
    let mut sections = Sections::empty();
    let owner = name("web.service.consul.");
    for at in 0..count {
        let bits = 0x0a00_0000 + at;
        let target = name(&format!("{bits:08x}.addr.dc1.consul."));
        let port = u16::try_from(8000 + at).unwrap();
        let srv = RData::SRV(SRV::new(1, 1, port, target.clone()));
        sections
            .answers
            .push(Record::from_rdata(owner.clone(), ttl, srv));
        let address = RData::A(A(Ipv4Addr::from_bits(bits)));
        sections
            .additionals
            .push(Record::from_rdata(target, ttl, address));
        let text = RData::TXT(TXT::new(vec!["rack=1".to_owned()]));
        let node = name(&format!("node-{at}.node.dc1.consul."));
        sections
            .additionals
            .push(Record::from_rdata(node, ttl, text));
    }
    sections
}

/// The slow lane's reply and what the fast one makes of it.
fn fill(packet: &[u8], sections: &Sections, until: Instant) -> (Vec<u8>, Fill) {
    let Judged::Ask(question) = judge(packet, &Domain::default(), Recursion::None) else {
        panic!("no question");
    };
    let body = question.body(sections, Way::Loopback);
    let fill = Fill {
        key: read(packet, Way::Loopback).unwrap().key.as_bytes().into(),
        recipe: Recipe::of(&body, sections.extended).unwrap(),
        since: until.checked_sub(LONGEST).unwrap(),
        term: Term {
            until,
            kept: until + LONGEST,
            fate: Some(Fate::default()),
        },
    };
    (question.finish(body, sections), fill)
}

fn ask(shortcuts: &mut Shortcuts, packet: &[u8], now: Instant) -> Option<Message> {
    let mut out = vec![0; 4096];
    let plain = read(packet, Way::Loopback)?;
    match shortcuts.answer(packet, &plain, now, &mut out) {
        Given::Reply(length) => Some(Message::from_vec(&out[..length]).unwrap()),
        Given::Miss { .. } => None,
    }
}

/// The sections as sets, since their order is turned.
fn sets(message: &Message) -> (BTreeSet<String>, BTreeSet<String>) {
    let texts = |records: &[Record]| records.iter().map(ToString::to_string).collect();
    (texts(&message.answers), texts(&message.additionals))
}

#[test]
fn a_second_question_has_the_first_ones_records_and_its_own_id_case_and_size() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    let first = question("web.service.consul.", RecordType::SRV, Some(1232));
    let (slow, fill) = fill(&first, &services(5, 0), now + LONGEST);
    shortcuts.keep(fill, now);
    let mut second = question("WEB.Service.consul.", RecordType::SRV, Some(1300));
    second[..2].copy_from_slice(&[0xAB, 0xCD]);
    let slow = Message::from_vec(&slow).unwrap();
    let fast = ask(&mut shortcuts, &second, now).unwrap();
    let head = fast.metadata;
    assert_eq!(head.id, 0xABCD);
    assert!(head.authoritative && head.recursion_desired && !head.checking_disabled);
    assert_eq!(fast.queries[0].name().to_string(), "WEB.Service.consul.");
    assert_eq!(fast.edns.as_ref().unwrap().max_payload(), 1300);
    assert_eq!(sets(&fast).1, sets(&slow).1);
    assert_eq!(fast.answers.len(), 5);
    // With other flags it is another question, which may have another answer.
    second[3] |= 0x10;
    assert!(ask(&mut shortcuts, &second, now).is_none());
    // Without EDNS it is another reply, which is not known.
    let plain = question("web.service.consul.", RecordType::SRV, None);
    assert!(ask(&mut shortcuts, &plain, now).is_none());
}

#[test]
fn every_answer_comes_first_equally_often_and_keeps_its_address() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::SRV, Some(4096));
    let (slow, fill) = fill(&packet, &services(7, 0), now + LONGEST);
    shortcuts.keep(fill, now);
    let slow = Message::from_vec(&slow).unwrap();
    let mut first = BTreeMap::new();
    for _ in 0..70 {
        let fast = ask(&mut shortcuts, &packet, now).unwrap();
        assert_eq!(sets(&fast), sets(&slow));
        *first.entry(fast.answers[0].to_string()).or_insert(0) += 1;
    }
    assert_eq!(first.into_values().collect::<Vec<_>>(), [10; 7]);
}

/// A hit from the packet to the reply: turned, its pointers moved, its TTLs counted down, the
/// asker's id and case, EDNS and the extended error written; and what is given where nobody has
/// time.
#[test]
fn a_hit_allocates_nothing() {
    let now = clock::now();
    for (count, ttl, payload) in [(1, 0, None), (5, 0, Some(1232)), (7, 30, Some(4096))] {
        let first = question("web.service.consul.", RecordType::SRV, payload);
        let mut packet = question("WEB.Service.consul.", RecordType::SRV, payload);
        packet[..2].copy_from_slice(&[0xAB, 0xCD]);
        for extended in [None, Some(STALE_ANSWER)] {
            let sections = Sections {
                extended,
                ..services(count, ttl)
            };
            let mut shortcuts = Shortcuts::new(1 << 20);
            let (_, fill) = fill(&first, &sections, now + LONGEST);
            shortcuts.keep(fill, now);
            let mut out = [0; 4096];
            let (mut given, mut late) = (Vec::with_capacity(10), None);
            let told = allocation_counter::measure(|| {
                for second in 0..9 {
                    let at = now + Duration::from_secs(second);
                    let plain = read(&packet, Way::Loopback).unwrap();
                    given.push(shortcuts.answer(&packet, &plain, at, &mut out));
                }
                let plain = read(&packet, Way::Loopback).unwrap();
                late = shortcuts.late(&packet, &plain, now + LONGEST, &mut out);
            });
            let what = format!("{count} instances, {payload:?}, {extended:?}");
            assert_eq!(told.count_total, 0, "{what}");
            assert_eq!(given.len(), 9);
            let is_hit = |given: &Given| matches!(given, Given::Reply(length) if *length > 0);
            assert!(given.iter().all(is_hit), "{what}: {given:?}");
            assert!(matches!(late, Some(Late::Known(_))), "{what}: {late:?}");
        }
    }
}

#[test]
fn ttls_are_counted_down_wherever_they_stand() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::SRV, Some(4096));
    let (_, fill) = fill(&packet, &services(3, 30), now + LONGEST);
    shortcuts.keep(fill, now);
    for (seconds, ttl) in [(0, 30), (1, 29), (1, 29), (9, 21), (9, 21)] {
        for _ in 0..3 {
            let at = now + Duration::from_secs(seconds);
            let fast = ask(&mut shortcuts, &packet, at).unwrap();
            let all = fast.answers.iter().chain(&fast.additionals);
            assert!(all.into_iter().all(|record| record.ttl == ttl), "{fast}");
        }
    }
}

#[test]
fn what_was_given_as_stale_is_told_as_such() {
    let now = clock::now();
    let packet = question("web.service.consul.", RecordType::SRV, None);
    let plain = read(&packet, Way::Loopback).unwrap();
    let until = now + Duration::from_secs(1);
    for (extended, hits) in [
        (None, Hits { fresh: 2, stale: 1 }),
        (Some(STALE_ANSWER), Hits { fresh: 0, stale: 3 }),
    ] {
        let sections = Sections {
            extended,
            ..services(1, 1)
        };
        let mut shortcuts = Shortcuts::new(1 << 20);
        let (_, fill) = fill(&packet, &sections, until);
        shortcuts.keep(fill, now);
        for _ in 0..2 {
            assert!(ask(&mut shortcuts, &packet, now).is_some());
        }
        let late = shortcuts.answer_late(&packet, &plain, now, &mut [0; 512]);
        assert!(late.is_some());
        let given = shortcuts.answer(&packet, &plain, until, &mut [0; 512]);
        assert_eq!(given, Given::Miss { hits });
        // Once.
        let given = shortcuts.answer(&packet, &plain, until + GRACE, &mut [0; 512]);
        let hits = Hits::default();
        assert_eq!(given, Given::Miss { hits });
    }
}

#[test]
fn what_holds_no_more_is_asked_for_once_and_given_meanwhile() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::SRV, None);
    let until = now + Duration::from_secs(1);
    let (_, fill) = fill(&packet, &services(1, 0), until);
    shortcuts.keep(fill, now);
    for _ in 0..3 {
        assert!(ask(&mut shortcuts, &packet, now).is_some());
    }
    let plain = read(&packet, Way::Loopback).unwrap();
    let given = shortcuts.answer(&packet, &plain, until, &mut [0; 512]);
    let hits = Hits { fresh: 3, stale: 0 };
    assert_eq!(given, Given::Miss { hits });
    assert!(ask(&mut shortcuts, &packet, until).is_some());
    // Once: what nobody renews is not given for ever.
    for late in 1..4 {
        assert!(ask(&mut shortcuts, &packet, until + late * GRACE).is_none());
        assert!(ask(&mut shortcuts, &packet, until + late * GRACE).is_none());
    }
}

#[test]
fn what_is_not_so_any_more_is_never_given_again() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::SRV, None);
    let (_, fill) = fill(&packet, &services(1, 0), now + LONGEST);
    let fate = fill.term.fate.clone().unwrap();
    shortcuts.keep(fill, now);
    assert!(ask(&mut shortcuts, &packet, now).is_some());
    fate.end();
    assert!(ask(&mut shortcuts, &packet, now).is_none());
    assert!(ask(&mut shortcuts, &packet, now).is_none());
}

#[test]
fn what_has_been_over_for_long_is_given_to_nobody_while_it_is_asked_for() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::SRV, None);
    let (_, fill) = fill(&packet, &services(1, 0), now);
    shortcuts.keep(fill, now);
    assert!(ask(&mut shortcuts, &packet, now + JUST_OVER).is_none());
    assert!(ask(&mut shortcuts, &packet, now + JUST_OVER).is_none());
}

#[test]
fn a_late_reply_has_a_ttl_and_is_given_where_it_cannot_say_that_it_is_late() {
    let now = clock::now();
    let packet = question("web.service.consul.", RecordType::SRV, Some(512));
    let sizes = (0..250).map(|at| {
        let mut sections = services(4, 0);
        sections
            .additionals
            .retain(|record| record.record_type() == RecordType::A);
        let text = RData::TXT(TXT::new(vec!["x".repeat(at)]));
        sections
            .additionals
            .push(Record::from_rdata(name("n."), 0, text));
        let mut shortcuts = Shortcuts::new(1 << 20);
        let (slow, fill) = fill(&packet, &sections, now);
        shortcuts.keep(fill, now);
        let (plain, mut out) = (read(&packet, Way::Loopback).unwrap(), [0; 512]);
        let length = shortcuts
            .answer_late(&packet, &plain, now, &mut out)
            .unwrap();
        let given = Message::from_vec(&out[..length]).unwrap();
        assert!(given.answers.iter().all(|record| record.ttl == LATE_TTL));
        assert!(
            given
                .additionals
                .iter()
                .all(|record| record.ttl == LATE_TTL)
        );
        let says = !given.edns.unwrap().options().as_ref().is_empty();
        assert_eq!(says, slow.len() + EXTENDED <= 512, "{} bytes", slow.len());
        says
    });
    let (says, silent): (Vec<_>, Vec<_>) = sizes.partition(|says| *says);
    assert!(!says.is_empty() && !silent.is_empty());
}

#[test]
fn what_nobody_has_time_to_ask_for_anew_is_given_as_stale_until_it_is_known_not_to_be_so() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::SRV, Some(1232));
    let (slow, fill) = fill(&packet, &services(2, 30), now);
    let (kept, fate) = (fill.term.kept, fill.term.fate.clone().unwrap());
    shortcuts.keep(fill, now);
    let mut late = |now| {
        let (plain, mut out) = (read(&packet, Way::Loopback).unwrap(), [0; 4096]);
        let length = shortcuts.answer_late(&packet, &plain, now, &mut out)?;
        Some(Message::from_vec(&out[..length]).unwrap())
    };
    let given = late(now).unwrap();
    assert_eq!(given.answers.len(), 2);
    assert!(given.answers.iter().all(|record| record.ttl == LATE_TTL));
    assert_eq!(given.edns.unwrap().options().as_ref().len(), 1);
    assert!(
        Message::from_vec(&slow)
            .unwrap()
            .edns
            .unwrap()
            .options()
            .as_ref()
            .is_empty()
    );
    assert_eq!(late(kept), None);
    fate.end();
    assert_eq!(late(now), None);
}

#[test]
fn an_alias_stays_before_what_it_leads_to() {
    let now = clock::now();
    let mut sections = Sections::empty();
    let (owner, target) = (name("web.service.consul."), name("host.service.consul."));
    let alias = RData::CNAME(CNAME(target.clone()));
    sections.answers.push(Record::from_rdata(owner, 0, alias));
    for last in 1..4 {
        let address = RData::A(A(Ipv4Addr::new(10, 0, 0, last)));
        sections
            .answers
            .push(Record::from_rdata(target.clone(), 0, address));
    }
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::A, None);
    let (_, fill) = fill(&packet, &sections, now + LONGEST);
    shortcuts.keep(fill, now);
    for _ in 0..8 {
        let fast = ask(&mut shortcuts, &packet, now).unwrap();
        assert_eq!(fast.answers, sections.answers);
    }
}

#[test]
fn a_stale_reply_says_so_to_clients_with_edns() {
    let now = clock::now();
    let sections = Sections {
        extended: Some(3),
        ..services(1, 1)
    };
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::SRV, Some(1232));
    let (slow, fill) = fill(&packet, &sections, now + LONGEST);
    shortcuts.keep(fill, now);
    let fast = ask(&mut shortcuts, &packet, now).unwrap();
    let slow = Message::from_vec(&slow).unwrap();
    assert!(!fast.edns.as_ref().unwrap().options().as_ref().is_empty());
    assert_eq!(fast.edns, slow.edns);
}

#[test]
fn what_is_not_ordinary_is_left_to_the_slow_lane() {
    let packet = question("web.service.consul.", RecordType::A, Some(1232));
    assert!(read(&packet, Way::Loopback).is_some());
    let changed = |at: usize, byte: u8| {
        let mut packet = packet.clone();
        packet[at] = byte;
        read(&packet, Way::Loopback)
    };
    for (at, byte) in [
        (2, 0x81), // QR
        (2, 0x11), // an opcode
        (2, 0x03), // TC
        (5, 0),    // no question
        (5, 2),    // two of them
        (7, 1),    // an answer
        (11, 2),   // more than one record
        (11, 0),   // bytes that belong to nothing
        (12, 64),  // no such label
        (12, 0xC0),
    ] {
        assert!(changed(at, byte).is_none(), "{at} {byte:#x}");
    }
    let end = packet.len();
    for (at, byte) in [
        (end - 5, 1),  // EDNS version
        (end - 1, 1),  // options that are not there
        (end - 10, 1), // no OPT
        (end - 12, 3), // class
    ] {
        assert!(changed(at, byte).is_none(), "{at} {byte:#x}");
    }
    let with_option = |code: u8| {
        let mut packet = packet.clone();
        *packet.last_mut().unwrap() = 8;
        packet.extend([0, code, 0, 4, 1, 2, 3, 4]);
        read(&packet, Way::Loopback)
    };
    assert!(with_option(11).is_some());
    // A subnet, and a cookie that is none.
    assert!(with_option(8).is_none());
    assert!(with_option(10).is_none());
    let mut many = packet.clone();
    *many.last_mut().unwrap() = 4 * 33;
    many.extend([0xFD, 0xE9, 0, 0].repeat(33));
    assert!(read(&many, Way::Loopback).is_none());
    for length in 0..end {
        assert!(read(&packet[..length], Way::Loopback).is_none(), "{length}");
    }
}

#[test]
fn who_cannot_be_answered_in_time_is_told_so() {
    for (payload, checks_nothing) in [(None, false), (Some(1232), false), (Some(512), true)] {
        let mut packet = question("WEB.service.consul.", RecordType::SRV, payload);
        packet[3] |= if checks_nothing { 0x10 } else { 0 };
        let plain = read(&packet, Way::Loopback).unwrap();
        let mut out = [0xFF; 512];
        let length = plain.overload(&packet, &mut out).unwrap();
        let told = Message::from_vec(&out[..length]).unwrap();
        assert_eq!(told.metadata.id, 0x1234);
        assert_eq!(told.metadata.message_type, MessageType::Response);
        assert_eq!(told.metadata.response_code, ResponseCode::ServFail);
        assert!(told.metadata.recursion_desired && !told.metadata.truncation);
        assert_eq!(told.metadata.checking_disabled, checks_nothing);
        assert_eq!(told.queries[0].name().to_string(), "WEB.service.consul.");
        assert!(told.answers.is_empty());
        let options = told.edns.map(|edns| edns.options().as_ref().len());
        assert_eq!(options, payload.map(|_| 1));
        // No room is no reply.
        assert_eq!(plain.overload(&packet, &mut out[..length - 1]), None);
    }
}

#[test]
fn the_memory_is_bounded_and_keeps_what_is_used() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(64 << 10);
    let hot = question("web.service.consul.", RecordType::SRV, None);
    shortcuts.keep(fill(&hot, &services(1, 0), now + LONGEST).1, now);
    let empty = Sections::code(ResponseCode::NXDomain);
    for at in 0..2_000 {
        let packet = question(&format!("n{at}.service.consul."), RecordType::A, None);
        shortcuts.keep(fill(&packet, &empty, now + LONGEST).1, now);
        assert!(ask(&mut shortcuts, &hot, now).is_some(), "{at}");
        assert!(shortcuts.size().1 <= 64 << 10);
    }
    assert!(shortcuts.size().0 > 100, "{:?}", shortcuts.size());
}

#[test]
fn whoever_asks_for_signatures_is_not_given_what_was_asked_without() {
    let now = clock::now();
    let mut shortcuts = Shortcuts::new(1 << 20);
    let packet = question("web.service.consul.", RecordType::SRV, Some(1232));
    shortcuts.keep(fill(&packet, &services(1, 0), now + LONGEST).1, now);
    let mut signed = packet.clone();
    let flags = signed.len() - 4;
    signed[flags] |= 0x80;
    assert!(read(&signed, Way::Loopback).is_some_and(|plain| plain.wants_signatures));
    assert!(ask(&mut shortcuts, &packet, now).is_some());
    assert!(ask(&mut shortcuts, &signed, now).is_none());
}

proptest! {
    /// A packet that is taken for ordinary is one to the slow lane as well, and about
    /// the same name.
    #[test]
    fn both_lanes_read_the_same(mut packet in vec(any::<u8>(), 0..80), plain in any::<bool>()) {
        if plain {
            let mut ordinary = question("web.service.consul.", RecordType::A, Some(1232));
            for (at, byte) in packet.iter().enumerate().filter(|(at, _)| at % 7 == 0) {
                let place = at * 5 % ordinary.len();
                ordinary[place] = *byte;
            }
            packet = ordinary;
        }
        if let Some(plain) = read(&packet, Way::Loopback) {
            let read = match judge(&packet, &Domain::default(), Recursion::None) {
                Judged::Ask(question) => question.asked.owner.to_lowercase(),
                other => panic!("{other:?} for {packet:?}"),
            };
            let end = plain.end - HEADER - 4;
            let mut wire = Vec::new();
            for label in &read {
                wire.push(u8::try_from(label.len()).unwrap());
                wire.extend(label);
            }
            wire.push(0);
            prop_assert_eq!(&plain.key.as_bytes()[..end], &wire[..]);
        }
    }

    #[test]
    fn no_reply_breaks_the_recipe(reply in vec(any::<u8>(), 0..200)) {
        _ = Recipe::of(&reply, None);
    }
}

#[test]
fn addresses_are_found_in_every_section_and_in_hints() {
    let mut reply = b"\0\0\x81\x80\0\x01\0\x01\0\0\0\x01\x01a\0\0\x41\0\x01".to_vec();
    let hints =
        b"\0\x01\x01t\0\0\x01\0\x03\x02h2\0\x04\0\x08\x0A\0\0\x01\x09\x09\x09\x09\0\x06\0\x10\
                  \xFC\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01";
    reply.extend(b"\xC0\x0C\0\x41\0\x01\0\0\0\x3C\0");
    reply.push(u8::try_from(hints.len()).unwrap());
    let start = reply.len();
    reply.extend(hints);
    reply.extend(b"\xC0\x0C\0\x01\0\x01\0\0\0\x3C\0\x04\xC0\xA8\0\x01");
    let all: Vec<IpAddr> = ["10.0.0.1", "9.9.9.9", "fc00::1", "192.168.0.1"]
        .map(|address| address.parse().unwrap())
        .to_vec();
    assert_eq!(addresses(&reply), Some(all));
    // A target, a key or a value that runs out of the record.
    for (at, odd) in [(2, 60), (8, 99), (15, 99)] {
        let mut reply = reply.clone();
        reply[start + at] = odd;
        assert_eq!(addresses(&reply), None, "{at}");
    }
}
