//! **Pure.** The rule of answering packets, for the fuzzer.

use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::{A, SRV};

use super::*;
use crate::source::dns::message::decode;

/// Every packet is dropped or answered; every reply can be read, echoes id and
/// question, fits the client, and says so where it is cut. The number of records
/// is the input's first byte, the packet is the rest.
pub fn packet(bytes: &[u8]) {
    let (&count, packet) = bytes.split_first().unwrap_or((&0, &[]));
    let id = packet.first_chunk().copied().map(u16::from_be_bytes);
    let question = match judge(packet, &Domain::default(), Recursion::None) {
        Judged::Drop => return,
        Judged::Reply(reply) => return check(&reply, id),
        Judged::Ask(question) => question,
    };
    let sections = sections(usize::from(count), question.query.name());
    for way in [Way::Loopback, Way::Elsewhere, Way::Tcp] {
        let reply = question.reply(&sections, way);
        check(&reply, id);
        let message = Message::from_vec(&reply).expect("checked");
        assert_eq!(message.queries, std::slice::from_ref(&question.query));
        assert_eq!(
            message.metadata.truncation,
            message.answers.len() < sections.answers.len()
        );
        let most = match (way, question.payload) {
            (Way::Tcp, _) => 65_535,
            (_, None) => 512,
            (_, Some(payload)) => payload.clamp(512, way.most()).into(),
        };
        assert!(
            reply.len() <= most,
            "{} bytes for a client of {most}",
            reply.len()
        );
        assert_eq!(message.edns.is_some(), question.payload.is_some());
    }
}

fn check(reply: &[u8], id: Option<u16>) {
    let mut decoder = BinDecoder::new(reply);
    let message = Message::read(&mut decoder).expect("a reply can be read");
    assert!(decoder.is_empty(), "bytes after the reply");
    assert_eq!(Some(message.metadata.id), id);
    assert_eq!(message.metadata.message_type, MessageType::Response);
}

pub(crate) fn sections(count: usize, owner: &Name) -> Sections {
    let mut sections = Sections::empty();
    for at in 0..count {
        let bits = 0x0a00_0000 + u32::try_from(at).unwrap_or_default();
        let target = format!("{bits:08x}.addr.dc1.consul.");
        let target = Name::from_ascii(target).expect("a plain name");
        let srv = RData::SRV(SRV::new(1, 1, 80, target.clone()));
        sections
            .answers
            .push(Record::from_rdata(owner.clone(), 0, srv));
        let address = RData::A(A(Ipv4Addr::from_bits(bits)));
        sections
            .additionals
            .push(Record::from_rdata(target, 0, address));
    }
    sections
}

/// What can be read is written and read again as the same, in the same room or less, with
/// names in their own case and in shapes that are right.
pub fn encode(bytes: &[u8]) {
    let Ok(read) = decode(bytes) else { return };
    let [query] = &read.queries[..] else { return };
    let sections = [&read.answers, &read.authorities, &read.additionals];
    // An empty record stands for a name or a set in updates (RFC 2136) alone, and has no
    // data that could be written.
    let is_empty = |record: &Record| matches!(record.data, RData::Update0(_));
    if sections.iter().any(|section| section.iter().any(is_empty)) {
        return;
    }
    let write = |message: &Message| {
        let parts = Parts {
            metadata: message.metadata,
            query,
            answers: &message.answers,
            authorities: &message.authorities,
            additionals: &message.additionals,
        };
        encode::message(&parts, usize::from(u16::MAX))
    };
    let Some(written) = write(&read) else { return };
    let again = decode(&written).expect("what is written can be read");
    // Printed: names in another case are equal.
    assert_eq!(
        format!("{:?}", again.queries),
        format!("{:?}", read.queries)
    );
    for (again, read) in [
        (&again.answers, &read.answers),
        (&again.authorities, &read.authorities),
        (&again.additionals, &read.additionals),
    ] {
        assert_eq!(format!("{again:?}"), format!("{read:?}"));
    }
    assert_eq!(
        write(&again).as_ref(),
        Some(&written),
        "written in another way"
    );
}
