use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::Edns,
    rr::rdata::{A, AAAA, CNAME, SRV, TXT},
};
use proptest::{collection::vec, prelude::any, prop_assert, prop_assert_eq, proptest};

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query(kind: RecordType, payload: Option<u16>) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name("Web.service.consul."), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

fn question(kind: RecordType, payload: Option<u16>) -> Box<Question> {
    match judge(
        &query(kind, payload).to_vec().unwrap(),
        &Domain::default(),
        Recursion::None,
    ) {
        Judged::Ask(question) => question,
        other => panic!("{other:?}"),
    }
}

/// `count` SRV records with an IPv4 address and a node text each.
fn services(count: usize) -> Sections {
    let mut sections = Sections::empty();
    let owner = name("Web.service.consul.");
    for at in 0..count {
        let bits = 0x0a00_0000 + u32::try_from(at).unwrap();
        let target = name(&format!("{bits:08x}.addr.dc1.consul."));
        let srv = SRV::new(1, 1, 80, target.clone());
        let address = A(Ipv4Addr::from_bits(bits));
        let text = TXT::new(vec!["consul-network-segment=".to_owned()]);
        sections
            .answers
            .push(Record::from_rdata(owner.clone(), 0, RData::SRV(srv)));
        sections
            .additionals
            .push(Record::from_rdata(target, 0, RData::A(address)));
        let node = name("vm.node.dc1.consul.");
        sections
            .additionals
            .push(Record::from_rdata(node, 0, RData::TXT(text)));
    }
    sections
}

/// What a client reads; the message must be readable to its last byte.
fn read(reply: &[u8]) -> Message {
    let mut decoder = BinDecoder::new(reply);
    let message = Message::read(&mut decoder).unwrap();
    assert!(decoder.is_empty());
    message
}

fn code(judged: Judged) -> Option<ResponseCode> {
    match judged {
        Judged::Reply(reply) => Some(read(&reply).metadata.response_code),
        Judged::Drop => None,
        Judged::Ask(question) => panic!("{question:?}"),
    }
}

#[test]
fn what_fits_is_sent_whole_with_the_client_s_own_case_and_size() {
    let reply = question(RecordType::SRV, Some(1232)).reply(&services(3), Way::Loopback);
    let message = read(&reply);
    let flags = message.metadata;
    assert_eq!(
        (flags.id, flags.authoritative, flags.truncation),
        (77, true, false)
    );
    assert!(flags.recursion_desired && !flags.recursion_available);
    assert_eq!(message.queries[0].name().to_ascii(), "Web.service.consul.");
    assert_eq!(message.answers[0].name.to_ascii(), "Web.service.consul.");
    assert_eq!((message.answers.len(), message.additionals.len()), (3, 6));
    assert_eq!(message.edns.unwrap().max_payload(), 1232);
}

#[test]
fn a_client_without_edns_gets_512_bytes_at_most_and_no_opt() {
    for count in [1, 2, 5, 20, 100] {
        let reply = question(RecordType::SRV, None).reply(&services(count), Way::Loopback);
        assert!(reply.len() <= 512, "{count}: {}", reply.len());
        let message = read(&reply);
        assert!(message.edns.is_none());
        assert_eq!(message.metadata.truncation, message.answers.len() < count);
        assert!(!message.answers.is_empty());
    }
}

#[test]
fn a_client_elsewhere_gets_no_more_than_every_path_carries() {
    for size in [1_232, 1_400, 4_096, 65_535] {
        let asked = question(RecordType::SRV, Some(size));
        let [here, elsewhere] =
            [Way::Loopback, Way::Elsewhere].map(|way| asked.reply(&services(100), way));
        assert!(here.len() <= usize::from(size.min(4_096)) && elsewhere.len() <= 1_232);
        let told = read(&elsewhere);
        assert!(told.metadata.truncation && !told.answers.is_empty());
    }
}

#[test]
fn text_goes_before_answers_do_and_that_is_no_truncation() {
    // 20 instances fit 1,232 bytes without their 20 TXT records.
    let reply = question(RecordType::SRV, Some(1400)).reply(&services(20), Way::Loopback);
    let message = read(&reply);
    assert!(!message.metadata.truncation);
    assert_eq!((message.answers.len(), message.additionals.len()), (20, 20));
}

#[test]
fn a_cut_reply_says_so_and_keeps_the_addresses_of_what_is_left() {
    let reply = question(RecordType::SRV, Some(1232)).reply(&services(100), Way::Loopback);
    let message = read(&reply);
    assert!(message.metadata.truncation && reply.len() <= 1232);
    let left = message.answers.len();
    assert!(left >= 19, "{left}");
    assert_eq!(message.additionals.len(), left);
    for (srv, address) in message.answers.iter().zip(&message.additionals) {
        let RData::SRV(srv) = &srv.data else {
            panic!("{srv}")
        };
        assert_eq!(srv.target, address.name);
    }
}

#[test]
fn a_size_below_512_counts_as_512_and_one_above_ours_as_ours() {
    let len = |payload| {
        question(RecordType::SRV, Some(payload))
            .reply(&services(200), Way::Loopback)
            .len()
    };
    assert_eq!(len(0), len(512));
    assert!((400..=512).contains(&len(511)));
    assert!((3_900..=4_096).contains(&len(65_535)));
}

#[test]
fn over_tcp_all_is_sent_and_addresses_go_before_answers_do() {
    let over_tcp = |count| read(&question(RecordType::SRV, None).reply(&services(count), Way::Tcp));
    let hundred = over_tcp(100);
    assert_eq!(
        (hundred.answers.len(), hundred.additionals.len()),
        (100, 200)
    );
    let most = over_tcp(1_400);
    assert!(!most.metadata.truncation);
    assert_eq!((most.answers.len(), most.additionals.len()), (1_400, 0));
    // More than any message can carry: said, not hidden.
    let too_many = over_tcp(1_600);
    assert!(too_many.metadata.truncation && too_many.answers.len() > 1_000);
}

#[test]
fn the_packet_table() {
    let domain = Domain::default();
    let judge = |packet: &[u8]| judge(packet, &domain, Recursion::None);
    let good = query(RecordType::A, Some(1232)).to_vec().unwrap();
    let with = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    for length in 0..12 {
        assert_eq!(code(judge(&good[..length])), None, "{length} bytes");
    }
    assert_eq!(code(judge(&with(2, 0x81))), None, "QR");
    for opcode in [1_u8, 2, 3, 4, 5, 6, 15] {
        let reply = judge(&with(2, opcode << 3));
        assert_eq!(code(reply), Some(ResponseCode::NotImp), "opcode {opcode}");
    }
    assert_eq!(
        code(judge(&good[..12])),
        Some(ResponseCode::FormErr),
        "header alone"
    );
    assert_eq!(
        code(judge(&with(5, 0))),
        Some(ResponseCode::FormErr),
        "no question"
    );
    assert_eq!(
        code(judge(&with(5, 2))),
        Some(ResponseCode::FormErr),
        "two questions"
    );
    assert_eq!(
        code(judge(&good[..good.len() - 1])),
        Some(ResponseCode::FormErr),
        "cut short"
    );
    let long = [&good[..], b"x"].concat();
    assert_eq!(
        code(judge(&long)),
        Some(ResponseCode::FormErr),
        "bytes left over"
    );
    let mut two = good.clone();
    two[11] = 2;
    two.extend_from_slice(&good[good.len() - 11..]);
    assert_eq!(
        code(judge(&two)),
        Some(ResponseCode::FormErr),
        "two OPT records"
    );

    let refused = |kind| code(judge(&query(kind, None).to_vec().unwrap()));
    assert_eq!(refused(RecordType::AXFR), Some(ResponseCode::NotImp));
    assert_eq!(refused(RecordType::IXFR), Some(ResponseCode::NotImp));
    let mut chaos = query(RecordType::TXT, None);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(
        code(judge(&chaos.to_vec().unwrap())),
        Some(ResponseCode::Refused)
    );
}

#[test]
fn an_edns_version_that_we_do_not_speak_gets_badvers() {
    let mut message = query(RecordType::A, Some(1232));
    message.edns.as_mut().unwrap().set_version(1);
    let Judged::Reply(reply) = judge(
        &message.to_vec().unwrap(),
        &Domain::default(),
        Recursion::None,
    ) else {
        panic!("answered")
    };
    let message = read(&reply);
    assert_eq!(message.metadata.response_code.low(), 0);
    let edns = message.edns.unwrap();
    assert_eq!((edns.rcode_high(), edns.version()), (1, 0));
}

#[test]
fn a_failure_tells_its_cause_to_who_speaks_edns() {
    let sections = Sections::failed(crate::error::ErrorKind::Denied);
    let message = read(&question(RecordType::A, Some(1232)).reply(&sections, Way::Loopback));
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    let options = message.edns.unwrap();
    let option = options.option(EXTENDED_ERROR.into()).unwrap();
    assert_eq!(option, &EdnsOption::Unknown(EXTENDED_ERROR, vec![0, 18]));
}

proptest! {
    #[test]
    fn no_packet_is_too_odd_and_every_reply_can_be_read(packet in vec(any::<u8>(), 0..600)) {
        if let Judged::Reply(reply) = judge(&packet, &Domain::default(), Recursion::None) {
            let message = Message::from_vec(&reply).unwrap();
            prop_assert_eq!(message.metadata.id.to_be_bytes(), [packet[0], packet[1]]);
            prop_assert_eq!(message.metadata.message_type, MessageType::Response);
        }
    }

    #[test]
    fn what_is_read_in_brief_is_what_a_whole_reading_gives(
        labels in vec(vec(any::<u8>(), 1..20), 0..6),
        kind: u16,
        class in 0_u16..300,
        owner in 0_usize..8,
        opt in proptest::option::of((any::<u16>(), any::<u32>(), vec(any::<u8>(), 0..3))),
        breaks in proptest::option::of((0_usize..200, any::<u8>())),
    ) {
        let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(opt.is_some())];
        for label in &labels {
            packet.push(label.len() as u8);
            packet.extend(label);
        }
        packet.push(0);
        packet.extend([kind.to_be_bytes(), class.to_be_bytes()].concat());
        if let Some((size, flags, data)) = &opt {
            // Seldom somebody's.
            packet.extend(if owner == 0 { &b"\x01a"[..] } else { b"" });
            packet.extend([0, 0, 41]);
            packet.extend(size.to_be_bytes());
            packet.extend(flags.to_be_bytes());
            packet.extend([0, data.len() as u8]);
            packet.extend(data);
        }
        // Perhaps it is none any more.
        if let Some((at, byte)) = breaks && let Some(broken) = packet.get_mut(at) {
            *broken = byte;
        }
        if first_look(&packet).is_ok() {
            let read = brief(&packet);
            let is_brief = opt.is_none_or(|(.., data)| data.is_empty() && owner > 0);
            let is_brief = is_brief && breaks.is_none();
            prop_assert!(read.is_some() || !is_brief);
            if read.is_some() {
                prop_assert_eq!(read, whole(&packet));
            }
        } else {
            prop_assert!(breaks.is_some() || opt.is_some());
        }
    }

    #[test]
    fn what_is_encoded_is_read_back_and_never_longer_than_hickory_writes_it(
        hosts in vec(("[a-zA-Z]{1,10}(\\.[a-zA-Z]{1,10}){0,3}", any::<u128>(), 0u8..5), 0..40),
    ) {
        let mut sections = Sections::empty();
        for (host, bits, kind) in &hosts {
            let owner = name(&format!("{host}.Consul."));
            let target = name(&format!("{}.consul.", host.to_uppercase()));
            let data = match kind {
                0 => RData::A(A(Ipv4Addr::from_bits(*bits as u32))),
                1 => RData::AAAA(AAAA(Ipv6Addr::from_bits(*bits))),
                2 => RData::CNAME(CNAME(target)),
                3 => RData::TXT(TXT::new(vec![host.clone()])),
                _ => RData::SRV(SRV::new(1, 2, 3, target)),
            };
            sections.answers.push(Record::from_rdata(owner, 5, data));
        }
        let question = question(RecordType::ANY, Some(4096));
        let reply = question.reply(&sections, Way::Tcp);
        let message = read(&reply);
        prop_assert_eq!(&message.answers, &sections.answers);
        for (read, written) in message.answers.iter().zip(&sections.answers) {
            prop_assert_eq!(read.to_string(), written.to_string(), "case is kept");
        }
        prop_assert!(reply.len() <= message.to_vec().unwrap().len());
    }
}

#[test]
fn addresses_of_both_families_are_glue() {
    let mut sections = services(0);
    let target = name("n1.node.dc1.consul.");
    let srv = SRV::new(1, 1, 80, target.clone());
    sections.answers.push(Record::from_rdata(
        name("Web.service.consul."),
        0,
        RData::SRV(srv),
    ));
    for address in ["10.0.0.1", "2001:db8::1"] {
        let data = match address.parse().unwrap() {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        sections
            .additionals
            .push(Record::from_rdata(target.clone(), 0, data));
    }
    assert_eq!(glue(&sections.answers, &sections.additionals).len(), 2);
}

#[test]
fn no_packet_asks_for_memory_by_its_counts() {
    let domain = Domain::default();
    for at in [4, 6, 8, 10] {
        for body in [0, 17, 500] {
            let mut packet = query(RecordType::A, None).to_vec().unwrap();
            packet[at..at + 2].fill(0xFF);
            packet.extend(vec![0; body]);
            let asked = allocation_counter::measure(|| {
                let judged = judge(&packet, &domain, Recursion::None);
                assert_eq!(code(judged), Some(ResponseCode::FormErr));
            });
            assert!(asked.bytes_max < 4_096, "{at}, {body}: {asked:?}");
        }
    }
}

#[test]
fn the_target_of_a_service_is_written_in_full() {
    let reply = question(RecordType::SRV, Some(4_096)).reply(&services(20), Way::Loopback);
    let target = b"\x080a000007\x04addr\x03dc1\x06consul\0";
    let times = |whole: &[u8]| {
        reply
            .windows(whole.len())
            .filter(|part| *part == whole)
            .count()
    };
    assert_eq!(times(target), 1);
    assert_eq!(times(b"\x04addr\x03dc1\x06consul\0"), 20);
}

#[test]
fn what_it_costs_to_encode_grows_with_the_answer_and_no_faster() {
    // Names of 120 labels, no two of which have more than the domain in common.
    let deep = |count: usize| {
        let mut sections = Sections::empty();
        let owner = name("Web.service.consul.");
        for at in 0..count {
            let labels = (0..116).map(|label| format!("{}", (at * 7 + label) % 10));
            let labels: Vec<String> = [format!("{at:06}")].into_iter().chain(labels).collect();
            let target = name(&format!("{}.service.consul.", labels.join(".")));
            let srv = SRV::new(1, 1, 80, target.clone());
            let address = RData::A(A(Ipv4Addr::LOCALHOST));
            (sections.answers).push(Record::from_rdata(owner.clone(), 0, RData::SRV(srv)));
            (sections.additionals).push(Record::from_rdata(target, 0, address));
        }
        sections
    };
    let asked = question(RecordType::SRV, Some(4096));
    let cost = |count| {
        let sections = deep(count);
        let cost = allocation_counter::measure(|| {
            assert!(asked.reply(&sections, Way::Tcp).len() > 250 * count.min(240));
        });
        cost.bytes_total
    };
    for (some, twice) in [(50, 100), (240, 480)] {
        let costs = (cost(some), cost(twice));
        assert!(
            costs.1 < 3 * costs.0,
            "bytes for {some} and {twice}: {costs:?}"
        );
    }
}
