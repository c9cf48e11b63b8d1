//! Packets that no good client sends, at the stub: what is no question gets silence,
//! what is malformed gets FORMERR and nothing else, and what is merely odd is answered.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/malformed.rs"]
mod malformed;
mod support;

use std::{net::SocketAddr, time::Duration};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use malformed::{malformed, odd, opt, option, tsig};
use proconsul::{Resolver, stub::Traffic};
use support::{Agent, Over, SilentDns, agents_stub, exchange, lonely_stub, stub_of, wait_for};
use tokio::{net::UdpSocket, time::timeout};

const ID: [u8; 2] = [0x12, 0x34];
const CHAOS: u16 = 3;

/// Reserved, MD, MF, OPT, TKEY, TSIG, MAILB, MAILA, reserved.
const NO_RECORD: [u16; 9] = [0, 3, 4, 41, 249, 250, 253, 254, 65_535];

/// A question with RD, whose answer is known without asking anybody.
fn known() -> Vec<u8> {
    question("0a000001.addr.consul", 1, 1)
}

fn question(name: &str, kind: u16, class: u16) -> Vec<u8> {
    let mut packet = [&ID[..], b"\x01\0\0\x01\0\0\0\0\0\0"].concat();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend(class.to_be_bytes());
    packet
}

/// The same with one more record in the additional section.
fn with(mut packet: Vec<u8>, record: &[u8]) -> Vec<u8> {
    packet[11] += 1;
    packet.extend(record);
    packet
}

/// An OPT record of this size, version and flags.
fn edns(size: u16, version: u8, flags: u16, options: &[u8]) -> Vec<u8> {
    let mut opt = opt(options);
    opt[3..5].copy_from_slice(&size.to_be_bytes());
    opt[6] = version;
    opt[7..9].copy_from_slice(&flags.to_be_bytes());
    opt
}

async fn asked(stub: SocketAddr, packet: &[u8], over: Over) -> Vec<u8> {
    let reply = exchange(stub, packet, over).await;
    reply.unwrap_or_else(|| panic!("no reply to {packet:02x?}"))
}

async fn read(stub: SocketAddr, packet: &[u8]) -> Message {
    Message::from_vec(&asked(stub, packet, Over::Udp).await).unwrap()
}

/// A header that says FORMERR to the packet and no more.
fn formerr(packet: &[u8]) -> Vec<u8> {
    let flags = [0x80 | packet[2] & 0x79, packet[3] & 0x10 | 1];
    [&packet[..2], &flags, &[0; 8]].concat()
}

fn dropped(traffic: &Traffic) -> String {
    let text = traffic.to_string();
    let line = text
        .lines()
        .find(|line| line.contains("reason=\"dropped\""));
    line.unwrap().rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn what_is_no_question_is_never_answered_and_counted() {
    let (stub, traffic) = lonely_stub().await;
    let mut silent: Vec<Vec<u8>> = (0..12).map(|length| known()[..length].to_vec()).collect();
    silent.extend((0..12).map(|length| vec![0xFF; length]));
    // Replies: two servers would answer each other for ever.
    for opcode in 0..16 {
        let mut reply = known();
        reply[2] = 0x80 | opcode << 3;
        silent.push(reply.clone());
        reply.truncate(12);
        silent.push(reply);
    }
    silent.push(formerr(&known()));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(stub).await.unwrap();
    for packet in &silent {
        client.send(packet).await.unwrap();
    }
    let count = silent.len().to_string();
    wait_for("all of them to be counted", async || {
        (dropped(&traffic) == count).then_some(())
    })
    .await;
    client.send(&known()).await.unwrap();
    let mut reply = [0; 512];
    let length = client.recv(&mut reply).await.unwrap();
    assert_eq!(
        (length > 12, reply[7]),
        (true, 1),
        "the answer is the first to come"
    );
    let more = timeout(Duration::from_millis(50), client.recv(&mut reply)).await;
    assert!(more.is_err(), "{reply:02x?}");
}

#[tokio::test]
async fn what_is_malformed_is_a_formerr_and_no_more() {
    let (stub, _) = lonely_stub().await;
    let good = known();
    let mut packets: Vec<(String, Vec<u8>)> = malformed(good.len())
        .iter()
        .map(|tail| (tail.what.clone(), tail.after(&good)))
        .collect();
    let counted = |count: [u8; 2], rest: &[u8]| [&good[..4], &count, &[0; 6], rest].concat();
    for (what, packet) in [
        ("a header alone", counted([0, 0], b"")),
        ("a header that promises a question", counted([0, 1], b"")),
        ("no question, and yet one", counted([0, 0], &good[12..])),
        ("two questions", counted([0, 2], &good[12..].repeat(2))),
        (
            "a question less than promised",
            counted([0, 2], &good[12..]),
        ),
        (
            "65,535 questions in 17 bytes",
            counted([255, 255], &[0; 17]),
        ),
        (
            "65,535 questions",
            counted([255, 255], &good[12..].repeat(100)),
        ),
        (
            "a question that points to itself",
            counted([0, 1], b"\xC0\x0C\0\x01\0\x01"),
        ),
        (
            "a question that points to the header",
            counted([0, 1], b"\xC0\x04\0\x01\0\x01"),
        ),
        (
            "a question that points onward",
            counted([0, 1], b"\xC0\x12\0\x01\0\x01\x01a\0"),
        ),
    ] {
        packets.push((what.to_owned(), packet));
    }
    // Cut short anywhere, with and without EDNS.
    for whole in [good.clone(), with(good.clone(), &opt(&option(10, 8)))] {
        for length in 12..whole.len() {
            packets.push((
                format!("{length} bytes of {}", whole.len()),
                whole[..length].to_vec(),
            ));
        }
    }
    assert!(packets.len() > 150, "{}", packets.len());
    for (what, packet) in packets {
        for over in [Over::Udp, Over::Tcp] {
            let reply = asked(stub, &packet, over).await;
            assert_eq!(reply, formerr(&packet), "{what}, {over:?}: {packet:02x?}");
        }
    }
}

#[tokio::test]
async fn what_is_odd_and_allowed_is_answered() {
    let (stub, _) = lonely_stub().await;
    let good = known();
    let shouted = good.to_ascii_uppercase();
    let mut packets: Vec<(String, Vec<u8>)> = odd(good.len())
        .iter()
        .map(|tail| (tail.what.clone(), tail.after(&good)))
        .collect();
    packets.push((
        "upper case".to_owned(),
        [&good[..12], &shouted[12..]].concat(),
    ));
    for (what, packet) in packets {
        for over in [Over::Udp, Over::Tcp] {
            let reply = asked(stub, &packet, over).await;
            let message = Message::from_vec(&reply).unwrap();
            assert_eq!(message.answers.len(), 1, "{what}, {over:?}");
            assert_eq!(reply[12..good.len()], packet[12..good.len()], "{what}");
        }
    }
    // As long as a name may be, in the question itself.
    let label = |length| "x".repeat(length);
    let longest = [
        label(63),
        label(63),
        label(63),
        label(54),
        "consul".to_owned(),
    ]
    .join(".");
    assert_eq!(longest.len() + 2, 255);
    let message = read(stub, &question(&longest, 1, 1)).await;
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    let many = "a.".repeat(127);
    let message = read(stub, &question(&many, 1, 1)).await;
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);
    for name in [format!("x{longest}"), format!("a.{many}")] {
        let packet = question(&name, 1, 1);
        let reply = asked(stub, &packet, Over::Udp).await;
        assert_eq!(reply, formerr(&packet), "{name}");
    }
}

#[tokio::test]
async fn operations_other_than_a_question_are_not_implemented() {
    let (stub, _) = lonely_stub().await;
    for opcode in 1..16 {
        let mut whole = known();
        whole[2] |= opcode << 3;
        let update = [&whole[..12], &whole[12..], &[0; 40]].concat();
        for packet in [&whole[..], &whole[..12], &update] {
            for over in [Over::Udp, Over::Tcp] {
                let reply = asked(stub, packet, over).await;
                let expected = [&ID[..], &[0x81 | opcode << 3, 4], &[0; 8]].concat();
                assert_eq!(reply, expected, "opcode {opcode}");
            }
        }
    }
}

#[tokio::test]
async fn classes_other_than_in_are_refused_and_transfers_are_not_implemented() {
    let (stub, _) = lonely_stub().await;
    for class in [0, 2, CHAOS, 4, 254, 255, 65_535] {
        for name in ["0a000001.addr.consul", "version.bind", "www.example.com"] {
            let message = read(stub, &question(name, 1, class)).await;
            assert_eq!(
                message.metadata.response_code,
                ResponseCode::Refused,
                "{class}"
            );
            assert!(message.answers.is_empty());
        }
        // Nothing of that stays behind for those of class IN.
        assert_eq!(read(stub, &known()).await.answers.len(), 1);
    }
    for kind in [251, 252] {
        for name in ["consul", "service.consul", "www.example.com"] {
            for over in [Over::Udp, Over::Tcp] {
                let reply = asked(stub, &question(name, kind, 1), over).await;
                let message = Message::from_vec(&reply).unwrap();
                let code = message.metadata.response_code;
                assert_eq!((code, message.answers.len()), (ResponseCode::NotImp, 0));
            }
        }
    }
}

#[tokio::test]
async fn types_that_no_record_has_find_nothing() {
    let (stub, _) = lonely_stub().await;
    for kind in NO_RECORD {
        for name in ["0a000001.addr.consul", "nosuch.consul"] {
            let message = read(stub, &question(name, kind, 1)).await;
            let queried = message.queries[0].query_type();
            assert_eq!((u16::from(queried), message.answers.len()), (kind, 0));
        }
        let message = read(stub, &question("www.example.com", kind, 1)).await;
        assert_eq!(message.metadata.response_code, ResponseCode::Refused);
    }
}

#[tokio::test]
async fn flags_are_copied_ignored_and_never_claimed() {
    let (stub, _) = lonely_stub().await;
    // All but QR and the opcode.
    for flags in 0..=0x07FF_u16 {
        let [high, low] = flags.to_be_bytes();
        // The code of a question means nothing: some are enough.
        if low & 0x0E != 0 {
            continue;
        }
        let mut packet = known();
        packet[2..4].copy_from_slice(&[high, low]);
        let reply = asked(stub, &packet, Over::Udp).await;
        let expected = [0x84 | high & 0x01, low & 0x10];
        assert_eq!(reply[2..4], expected, "{high:02x} {low:02x}");
        assert_eq!(reply[7], 1, "{high:02x} {low:02x}");
    }
}

#[tokio::test]
async fn a_version_of_edns_that_nobody_speaks_is_told_which_one_we_do() {
    let (stub, _) = lonely_stub().await;
    for version in [1, 2, 128, 255] {
        for over in [Over::Udp, Over::Tcp] {
            let packet = with(known(), &edns(1_232, version, 0, b""));
            let message = Message::from_vec(&asked(stub, &packet, over).await).unwrap();
            // As BADSIG, which has the same number.
            assert_eq!(u16::from(message.metadata.response_code), 16);
            assert_eq!(message.edns.unwrap().version(), 0);
            assert!(message.answers.is_empty());
        }
    }
}

#[tokio::test]
async fn nothing_of_edns_comes_back_but_what_is_ours() {
    let (stub, _) = lonely_stub().await;
    let plain = asked(stub, &with(known(), &edns(1_232, 0, 0, b"")), Over::Udp).await;
    for (what, flags, options) in [
        ("an unknown option", 0, option(65_001, 20)),
        ("flags", 0x7FFF, vec![]),
        ("keepalive", 0, option(11, 2)),
        ("padding", 0, option(12, 60)),
        ("a name server's id", 0, option(3, 0)),
        ("a cookie", 0, option(10, 8)),
        ("a cookie with a server's", 0, option(10, 24)),
    ] {
        let packet = with(known(), &edns(1_232, 0, flags, &options));
        assert_eq!(asked(stub, &packet, Over::Udp).await, plain, "{what}");
    }
}

#[tokio::test]
async fn no_reply_is_longer_than_the_client_says_nor_than_ours_may_be() {
    let agent = Agent::start().await;
    agent.register_instances("web", 150).await;
    let (stub, _) = agents_stub(&agent).await;
    for kind in [RecordType::SRV, RecordType::A, RecordType::ANY] {
        let packet = question("web.service.consul", kind.into(), 1);
        let plain = asked(stub, &packet, Over::Udp).await;
        assert!(plain.len() <= 512 && plain[2] & 0x02 != 0, "{kind}");
        let whole = asked(stub, &packet, Over::Tcp).await;
        assert_eq!((whole[7], whole[2] & 0x02), (150, 0), "{kind}");
        for size in [
            0, 1, 511, 512, 513, 1_231, 1_232, 1_400, 4_095, 4_096, 4_097, 65_535,
        ] {
            let packet = with(packet.clone(), &edns(size, 0, 0, b""));
            let reply = asked(stub, &packet, Over::Udp).await;
            let most = usize::from(size).clamp(512, 4_096);
            let (length, is_cut) = (reply.len(), reply[2] & 0x02 != 0);
            assert!(
                length <= most,
                "{length} bytes of {kind} for a client of {size}"
            );
            assert!(
                length > 300,
                "{length} bytes of {kind} for a client of {size}"
            );
            assert_eq!(is_cut, reply[7] < 150, "{kind} for a client of {size}");
        }
    }
}

#[tokio::test]
async fn what_is_signed_is_not_answered_for_consuls_names() {
    let (stub, _) = lonely_stub().await;
    let mut sig = malformed::record(b"\0", 24, &[&[0; 18][..], b"\x03key\0sign"].concat());
    sig[3..5].copy_from_slice(&[0, 255]);
    for signature in [tsig(), sig] {
        for packet in [
            with(known(), &signature),
            with(with(known(), &opt(b"")), &signature),
        ] {
            for over in [Over::Udp, Over::Tcp] {
                let reply = asked(stub, &packet, over).await;
                let message = Message::from_vec(&reply).unwrap();
                let code = message.metadata.response_code;
                assert_eq!((code, message.answers.len()), (ResponseCode::NotAuth, 0));
                assert!(!message.metadata.authoritative);
            }
        }
    }
}

#[tokio::test]
async fn nothing_bad_is_sent_on() {
    let (upstream, stub) = before_an_upstream().await;
    let good = question("www.example.com", 1, 1);
    let mut unasked = good.clone();
    unasked[2] = 0;
    let mut packets = vec![
        ("RD not set".to_owned(), unasked),
        ("class CH".to_owned(), question("www.example.com", 1, CHAOS)),
        ("class ANY".to_owned(), question("www.example.com", 1, 255)),
        ("a transfer".to_owned(), question("www.example.com", 252, 1)),
        (
            "a part of one".to_owned(),
            question("www.example.com", 251, 1),
        ),
        (
            "EDNS version 1".to_owned(),
            with(good.clone(), &edns(1_232, 1, 0, b"")),
        ),
    ];
    let bad = malformed(good.len());
    packets.extend(
        bad.iter()
            .map(|tail| (tail.what.clone(), tail.after(&good))),
    );
    for (what, packet) in packets {
        let reply = asked(stub, &packet, Over::Udp).await;
        assert!(
            matches!(reply[3] & 0x0F, 0 | 1 | 4 | 5),
            "{what}: {reply:02x?}"
        );
        assert!(upstream.questions().is_empty(), "{what} was sent on");
    }
    // And that one would have been seen.
    let asking = exchange(stub, &good, Over::Udp);
    let sent = async {
        wait_for("the question", async || {
            upstream
                .questions()
                .into_iter()
                .find(|sent| sent[12..] == good[12..])
        })
        .await
    };
    tokio::select! { _ = sent => {}, reply = asking => panic!("{reply:02x?}") }
}

/// An upstream that never answers, and a stub that sends other names there.
async fn before_an_upstream() -> (SilentDns, SocketAddr) {
    let upstream = SilentDns::start();
    let resolver = Resolver::builder().dns("none").http("none").build();
    let (stub, _) = stub_of(resolver.unwrap(), &[upstream.address()]).await;
    (upstream, stub)
}

/// Sends a packet that is not answered, until so many like it were sent on.
async fn sent_on(upstream: &SilentDns, stub: SocketAddr, packets: &[&[u8]]) {
    let clients: Vec<UdpSocket> = {
        let mut clients = Vec::new();
        for packet in packets {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(packet, stub).await.unwrap();
            clients.push(client);
        }
        clients
    };
    let mut missing = packets.to_vec();
    wait_for("all to be sent on as they came", async || {
        for sent in upstream.questions() {
            // With an id of its own.
            missing.retain(|packet| packet[2..] != sent[2..]);
        }
        missing.is_empty().then_some(())
    })
    .await;
    drop(clients);
}

#[tokio::test]
async fn what_is_signed_is_sent_on_as_it_came_for_other_names() {
    let (upstream, stub) = before_an_upstream().await;
    let packet = with(question("www.example.com", 1, 1), &tsig());
    sent_on(&upstream, stub, &[&packet]).await;
}

/// 10.9.x.0/24.
fn subnet(third: u8) -> Vec<u8> {
    [0, 8, 0, 7, 0, 1, 24, 0, 10, 9, third].to_vec()
}

#[tokio::test]
async fn a_subnet_is_sent_on_and_makes_no_answer_for_others() {
    let (upstream, stub) = before_an_upstream().await;
    let about = |third| with(question("www.example.com", 1, 1), &opt(&subnet(third)));
    // Asked at once, and neither waits for the other's answer.
    sent_on(&upstream, stub, &[&about(1), &about(2)]).await;
    // Of Consul's names the answer is the same, and tells each their own.
    for third in [1, 2] {
        let reply = asked(stub, &with(known(), &opt(&subnet(third))), Over::Udp).await;
        assert_eq!((reply[7], reply.ends_with(&subnet(third))), (1, true));
    }
}

#[tokio::test]
async fn of_several_subnets_the_first_counts() {
    let (stub, _) = lonely_stub().await;
    let both = [subnet(1), subnet(2)].concat();
    let reply = asked(stub, &with(known(), &opt(&both)), Over::Udp).await;
    let one = asked(stub, &with(known(), &opt(&subnet(1))), Over::Udp).await;
    assert_eq!(reply, one);
}
