//! Forged replies, and who tries to make guessing easier: "A reply is accepted only if
//! address, port, id and question match" (RFC 5452, section 9.1), of names that are sent
//! on. How Consul's own replies are judged is in `tests/dns_transport.rs`.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/script.rs"]
mod script;
mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use proconsul::{Resolver, Transport};
use script::{Server, srv};
use socket2::{Domain, Protocol, Socket, Type};
use support::{Agent, Over, Serving, ask, ask_tcp, ask_udp, exchange, serve_at, wait_for};
use tokio::{net::UdpSocket, time::Instant};
use upstream::{
    OWNER, Upstream, a, addresses, crowd, question, record, reply, rr, stub, stub_of, with_opt,
};

const RIGHT: [u8; 4] = [10, 0, 0, 1];
const FORGED: [u8; 4] = [6, 6, 6, 6];

fn right(packet: &[u8]) -> Vec<u8> {
    record(packet, 1, 60, &RIGHT)
}

fn forged(packet: &[u8]) -> Vec<u8> {
    record(packet, 1, 60, &FORGED)
}

/// What is wrong with a reply, and who makes it so.
type Forgery = (&'static str, fn(&mut Vec<u8>));

const FORGERIES: [Forgery; 14] = [
    ("no bytes", |bytes| bytes.clear()),
    ("one byte", |bytes| bytes.truncate(1)),
    ("no whole header", |bytes| bytes.truncate(11)),
    ("a header alone", |bytes| bytes.truncate(12)),
    ("another id", |bytes| bytes[1] ^= 0x01),
    ("no reply", |bytes| bytes[2] &= 0x7F),
    ("another opcode", |bytes| bytes[2] |= 0x20),
    ("no question", |bytes| bytes[5] = 0),
    ("two questions", |bytes| bytes[5] = 2),
    ("256 questions more", |bytes| bytes[4] = 1),
    ("another name", |bytes| bytes[13] ^= 0x01),
    ("another type", |bytes| {
        let end = upstream::end(bytes);
        bytes[end - 3] ^= 0x1C;
    }),
    ("a type that differs as letters do in case", |bytes| {
        let end = upstream::end(bytes);
        bytes[end - 3] ^= 0x20;
    }),
    ("another class", |bytes| {
        let end = upstream::end(bytes);
        bytes[end - 1] = 3;
    }),
];

#[tokio::test]
async fn a_forged_reply_is_ignored_and_the_right_one_is_taken() {
    // The name says which forgery comes first.
    let upstream = Upstream::telling(Duration::ZERO, |packet, _| {
        let at = usize::from(packet[13] - b'a');
        let mut bytes = forged(packet);
        FORGERIES[at].1(&mut bytes);
        vec![bytes, right(packet)]
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    for (first, (what, _)) in ('a'..).zip(FORGERIES) {
        for (kind, letters) in [(1, ""), (65, "x"), (0x4141, "y")] {
            let mut packet = question(&format!("{first}{letters}.example."), kind);
            packet[..2].copy_from_slice(b"id");
            let told = exchange(stub, &packet, Over::Udp).await.unwrap();
            assert!(told.ends_with(&RIGHT), "{what}, type {kind}: {told:?}");
        }
    }
    assert_eq!(upstream.asked(), 3 * FORGERIES.len());
}

#[tokio::test]
async fn a_reply_from_another_address_or_port_never_reaches_a_forwarded_question() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = socket.local_addr().unwrap();
    let same_port = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), server.port());
    let other_address = UdpSocket::bind(same_port).await.unwrap();
    let other_port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut packet).await {
            for forger in [&other_address, &other_port] {
                let bytes = forged(&packet[..length]);
                forger.send_to(&bytes, client).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            _ = socket.send_to(&right(&packet[..length]), client).await;
        }
    });
    let stub = stub(&[&server.to_string()]).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["60 10.0.0.1"]);
}

#[tokio::test]
async fn a_flood_of_guesses_sends_a_forwarded_question_over_tcp() {
    let upstream = Upstream::telling(Duration::ZERO, |packet, over| match over {
        Over::Tcp if packet[13] == b'l' => {
            vec![record(packet, 65_400, 60, &[7; 2_000])]
        }
        Over::Tcp => vec![right(packet)],
        _ => (0..100)
            .map(|guess| {
                let mut bytes = forged(packet);
                bytes[1] ^= guess | 0x80;
                bytes
            })
            .collect(),
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["60 10.0.0.1"]);
    let ways = |questions: Vec<upstream::Asked>| -> Vec<Over> {
        questions.iter().map(|asked| asked.over).collect()
    };
    assert_eq!(ways(upstream.questions()), [Over::Udp, Over::Tcp]);
    // What does not fit a datagram is not made to: the client comes back over TCP.
    let private = RecordType::from(65_400);
    let cut = ask_udp(stub, "l.example.", private).await.unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = ask_tcp(stub, "l.example.", private).await.unwrap();
    assert_eq!(whole.answers.len(), 1);
}

#[tokio::test]
async fn fifteen_wrong_ids_leave_a_forwarded_question_where_it_is_and_the_next_one_does_not() {
    for (wrong, is_moved) in [(15_u8, false), (16, true)] {
        let upstream = Upstream::telling(Duration::ZERO, move |packet, over| {
            let guesses = (1..=wrong).map(|guess| {
                let mut bytes = forged(packet);
                bytes[1] ^= guess;
                bytes
            });
            match over {
                Over::Tcp => vec![right(packet)],
                _ => guesses.chain([right(packet)]).collect(),
            }
        })
        .await;
        let stub = stub(&[&upstream.address.to_string()]).await;
        assert_eq!(addresses(&a(stub, "a.example.").await), ["60 10.0.0.1"]);
        let questions = upstream.questions();
        let moved = questions.iter().any(|asked| asked.over == Over::Tcp);
        assert_eq!(moved, is_moved, "{wrong}");
    }
}

/// How far from even so many numbers below 2^16 are spread over `buckets`: chi-square,
/// about `buckets` for dice.
fn unevenness(numbers: &[u16], range: (u16, u16), buckets: usize) -> f64 {
    let (least, width) = (range.0, f64::from(range.1 - range.0) + 1.0);
    let mut counts = vec![0.0; buckets];
    for number in numbers {
        let share = f64::from(number - least) / width;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a small number"
        )]
        let bucket = (share * buckets as f64) as usize;
        counts[bucket.min(buckets - 1)] += 1.0;
    }
    let expected = numbers.len() as f64 / buckets as f64;
    let square = |count: &f64| (count - expected).powi(2) / expected;
    counts.iter().map(square).sum()
}

/// The ports that the kernel may draw.
fn kernels_ports() -> (u16, u16) {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let mut ends = range.split_whitespace().map(|end| end.parse().unwrap());
    (ends.next().unwrap(), ends.next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_ports_of_forwarded_questions_cannot_be_foretold() {
    const QUESTIONS: usize = 3_000;
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 0, &RIGHT))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let names = (0..QUESTIONS).map(|at| question(&format!("n{at}.example."), 1));
    _ = crowd(stub, names.collect(), 100, Duration::from_secs(5)).await;
    let asked = upstream.questions();
    assert!(asked.len() > QUESTIONS / 4, "{}", asked.len());
    let ids: Vec<u16> = (asked.iter())
        .map(|asked| u16::from_be_bytes([asked.packet[0], asked.packet[1]]))
        .collect();
    let ports: Vec<u16> = asked.iter().map(|asked| asked.port).collect();
    for (what, numbers, range) in [
        ("id", &ids, (0, u16::MAX)),
        ("port", &ports, kernels_ports()),
    ] {
        // 64 buckets of true dice: 63 on average, above 140 once in ten million runs.
        let uneven = unevenness(numbers, range, 64);
        assert!(uneven < 140.0, "{what}: chi-square {uneven}");
        // Nor does one tell the next: as many differ as by chance, and so do the steps.
        let width = f64::from(range.1 - range.0) + 1.0;
        let expected = width * (1.0 - (1.0 - 1.0 / width).powf(numbers.len() as f64));
        let distinct = numbers.iter().collect::<BTreeSet<_>>().len();
        assert!(
            distinct as f64 > 0.95 * expected,
            "{what}: {distinct} of {expected}"
        );
        let steps: Vec<u16> = numbers
            .windows(2)
            .map(|two| two[1].wrapping_sub(two[0]))
            .collect();
        let uneven = unevenness(
            &steps.iter().map(|step| step % 1_024).collect::<Vec<_>>(),
            (0, 1_023),
            64,
        );
        assert!(uneven < 140.0, "steps of {what}s: chi-square {uneven}");
    }
    // Every bit of an id is a bit of a die: 16 of them, each within five deviations.
    for bit in 0..16 {
        let ones = ids.iter().filter(|id| *id >> bit & 1 == 1).count() as f64;
        let half = ids.len() as f64 / 2.0;
        assert!(
            (ones - half).abs() < 5.0 * (half / 2.0).sqrt(),
            "bit {bit}: {ones} of {half}"
        );
    }
}

/// Whether another socket can be bound to that port, by somebody who shares ports.
fn can_share(port: u16) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())
        .is_ok()
}

#[tokio::test]
async fn the_port_of_a_question_is_shared_with_nobody_and_gone_with_its_answer() {
    let shared = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&shared);
    let upstream = Upstream::start(move |packet| Some(record(packet, 1, 0, &RIGHT))).await;
    // A server that looks at the port before it answers.
    let looking = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = looking.local_addr().unwrap();
    let ports: Arc<Mutex<Vec<u16>>> = Arc::default();
    let seen = Arc::clone(&ports);
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, client)) = looking.recv_from(&mut packet).await {
            if can_share(client.port()) {
                told.store(true, Ordering::Relaxed);
            }
            seen.lock().unwrap().push(client.port());
            _ = looking.send_to(&right(&packet[..length]), client).await;
        }
    });
    let stub = stub(&[&address.to_string(), &upstream.address.to_string()]).await;
    for at in 0..20 {
        assert_eq!(a(stub, &format!("n{at}.example.")).await.answers.len(), 1);
    }
    assert!(!shared.load(Ordering::Relaxed), "a port was shared");
    let ports: BTreeSet<u16> = ports.lock().unwrap().iter().copied().collect();
    assert!(ports.len() >= 19, "{ports:?}");
    wait_for("all ports to be given back", async || {
        ports.iter().all(|port| can_share(*port)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_that_ask_for_one_new_name_are_one_question_to_an_upstream() {
    // Much sooner than it is asked by a second datagram.
    let late = Duration::from_millis(40);
    let upstream = Upstream::late(late, |packet| Some(right(packet))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    // In every case, which is no other name.
    let names = (0..1_000_u32).map(|at| {
        let mut packet = question("abcdefghij.example.", 1);
        for bit in 0..10 {
            packet[13 + bit] ^= if at >> bit & 1 == 1 { 0x20 } else { 0 };
        }
        packet
    });
    let told = crowd(stub, names.collect(), 100, Duration::from_secs(3)).await;
    // On a machine that stands still meanwhile it is asked by a second datagram.
    assert!((1..=2).contains(&upstream.asked()), "{}", upstream.asked());
    let heard: Vec<_> = told.iter().flatten().map(|(reply, _)| reply).collect();
    let good = heard.iter().filter(|reply| reply.ends_with(&RIGHT)).count();
    assert_eq!(good, heard.len(), "nobody is told that there is no time");
    // A datagram may be lost on its way through a full queue of the kernel's.
    assert!(good >= 950, "{good}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_to_ask_for_a_name_of_consuls_makes_two_questions_of_it() {
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let heard = Arc::clone(&asked);
    let server = Server::start(move |question, _| {
        heard.lock().unwrap().push(Instant::now());
        std::thread::sleep(Duration::from_millis(70));
        vec![srv(question, 3).with_text()]
    })
    .await;
    let builder = Resolver::builder()
        .dns(&server.address().to_string())
        .http("none");
    let stub = stub_of(
        builder.ttl_floor(Duration::from_secs(60)).build().unwrap(),
        &["127.0.0.1:9"],
    )
    .await;
    let subnet = |network: u8| [0, 8, 0, 7, 0, 1, 24, 0, 10, network, 0];
    let packets = (0..600_u16).map(|at| {
        let name = if at % 2 == 0 {
            "web.service.consul."
        } else {
            "WeB.Service.CONSUL."
        };
        let packet = question(name, [1, 28, 33, 255, 16][usize::from(at) % 5]);
        let mut packet = match at % 3 {
            0 => packet,
            1 => with_opt(packet, 1_232 + at, &[]),
            _ => with_opt(packet, 4_096, &subnet(at.to_be_bytes()[1])),
        };
        // RD, CD, and a wish for signatures.
        packet[2] ^= u8::from(at % 7 == 0);
        packet[3] ^= 0x10 * u8::from(at % 11 == 0);
        if at % 3 == 1 {
            let flags = packet.len() - 4;
            packet[flags] = 0x80 * u8::from(at % 5 == 0);
        }
        packet
    });
    let over_tcp = async {
        let asking: Vec<_> = (0..20)
            .map(|_| tokio::spawn(ask_tcp(stub, "web.service.consul.", RecordType::SRV)))
            .collect();
        for one in asking {
            assert!(one.await.unwrap().is_some());
        }
    };
    let (told, ()) = tokio::join!(
        crowd(stub, packets.collect(), 100, Duration::from_secs(3)),
        over_tcp
    );
    let heard = told.iter().flatten().count();
    assert!(heard >= 570, "{heard} were answered");
    // A second datagram goes out where there was no reply for 100 ms, as on a busy machine.
    let asked = asked.lock().unwrap();
    let together = asked
        .iter()
        .filter(|at| **at - asked[0] < Duration::from_millis(95));
    assert_eq!(together.count(), 1, "{asked:?}");
    assert!(asked.len() <= 2, "{asked:?}");
}

#[tokio::test]
async fn what_splits_a_forwarded_question_splits_what_is_kept_of_it_too() {
    // A forger who has one question asked many times at once, by options that differ, must
    // gain nothing that others are given.
    let upstream = Upstream::start(|packet| {
        let odd = packet.len() > upstream::end(packet) + 11;
        Some(if odd { forged(packet) } else { right(packet) })
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let cookie = |at: u8| [0, 10, 0, 8, at, 0, 0, 0, 0, 0, 0, 0];
    let subnet = |at: u8| [0, 8, 0, 7, 0, 1, 24, 0, 10, at, 0, 0];
    for at in 0..20 {
        let plain = question("a.example.", 1);
        for packet in [
            with_opt(plain.clone(), 1_232, &cookie(at)),
            with_opt(plain, 1_232, &subnet(at)[..11]),
        ] {
            _ = exchange(stub, &packet, Over::Udp).await;
        }
    }
    for name in ["a.example.", "A.Example."] {
        assert_eq!(addresses(&a(stub, name).await), ["60 10.0.0.1"]);
        let plain = with_opt(question(name, 1), 1_232, &[]);
        let told = exchange(stub, &plain, Over::Udp).await.unwrap();
        let address = told.len() - 15..told.len() - 11;
        assert_eq!(told[address], RIGHT, "{told:?}");
    }
}

/// Bytes of a reply that must be right: id, QR, number of questions, name.
const FIELDS: [usize; 6] = [0, 1, 2, 4, 5, 12];

#[tokio::test]
async fn suspicion_makes_nothing_forgotten() {
    let under_attack = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&under_attack);
    let upstream = Upstream::telling(Duration::ZERO, move |packet, over| {
        if over == Over::Udp && told.load(Ordering::Relaxed) {
            let wrong = |at: u8| {
                let mut bytes = forged(packet);
                bytes[FIELDS[usize::from(at) % FIELDS.len()]] ^= 0x80 | at;
                bytes
            };
            return (0..200).map(wrong).collect();
        }
        vec![right(packet)]
    })
    .await;
    let guesses = Arc::clone(&under_attack);
    let server = Server::start(move |question, transport| {
        let reply = |count| srv(question, count).with_text();
        if transport == Transport::Udp && guesses.load(Ordering::Relaxed) {
            return (0..100)
                .map(|at| reply(9).edit(move |bytes| bytes[1] ^= at | 0x80))
                .collect();
        }
        vec![reply(3)]
    })
    .await;
    let builder = Resolver::builder()
        .dns(&server.address().to_string())
        .http("none");
    let resolver = builder.ttl_floor(Duration::from_secs(60)).build().unwrap();
    let stub = stub_of(resolver, &[&upstream.address.to_string()]).await;
    let known = async || {
        let web = a(stub, "web.service.consul.").await.answers.len();
        (web, a(stub, "www.example.").await.answers.len())
    };
    assert_eq!(known().await, (3, 1));
    let before = (server.asked(), upstream.asked());
    under_attack.store(true, Ordering::Relaxed);
    for at in 0..30 {
        let other = a(stub, &format!("n{at}.example.")).await;
        assert!(!addresses(&other).contains(&"60 6.6.6.6".to_owned()));
        _ = a(stub, &format!("n{at}.service.consul.")).await;
    }
    assert!(server.asked() > before.0 && upstream.asked() > before.1);
    let (consuls, others) = (server.asked(), upstream.asked());
    assert_eq!(known().await, (3, 1));
    assert_eq!(
        (server.asked(), upstream.asked()),
        (consuls, others),
        "asked anew"
    );
}

#[tokio::test]
async fn what_nobody_asked_for_is_kept_for_nobody() {
    let bank = upstream::wire("bank.example.");
    let told = bank.clone();
    let upstream = Upstream::start(move |packet| {
        let evil = rr(&told, 1, 86_400, &FORGED);
        let server = rr(&upstream::wire("example."), 2, 86_400, &told);
        Some(reply(
            packet,
            0,
            [
                &[rr(OWNER, 1, 60, &RIGHT), evil.clone()],
                &[server],
                &[evil],
            ],
        ))
    })
    .await;
    let consul = Server::start(|question, _| vec![srv(question, 2).with_text()]).await;
    let builder = Resolver::builder()
        .dns(&consul.address().to_string())
        .http("none");
    let stub = stub_of(builder.build().unwrap(), &[&upstream.address.to_string()]).await;
    assert_eq!(
        a(stub, "www.example.").await.answers[0].data.to_string(),
        "10.0.0.1"
    );
    assert_eq!(upstream.asked(), 1);
    // Asked for by itself, whatever was said beside another answer.
    let bank = a(stub, "bank.example.").await;
    assert_eq!(
        (upstream.asked(), bank.answers[0].data.to_string().as_str()),
        (2, "10.0.0.1")
    );
    let web = a(stub, "web.service.consul.").await;
    assert_eq!(
        (web.metadata.response_code, web.answers.len()),
        (ResponseCode::NoError, 2)
    );
}

#[tokio::test]
async fn strangers_get_short_replies_over_udp_and_whole_ones_over_tcp() {
    let agent = Agent::start().await;
    agent.register_instances("web", 10).await;
    for every in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
        let (dns, http) = (agent.dns().to_string(), agent.http());
        let mut command = serve_at((every, 0).into(), &dns, &http);
        command
            .args(["--upstream", "none", "--admin", "none"])
            // The tests' own address is none of these.
            .args(["--trust", "192.0.2.0/24"]);
        let serving = Serving::start(command);
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, serving.dns.port()));
        let name = "web.service.consul.";
        // What is found, and what is given again.
        for over in [Over::Udp, Over::Edns(4_096), Over::Udp, Over::Edns(4_096)] {
            let (reply, length) = ask(server, name, RecordType::SRV, over).await.unwrap();
            let cut = reply.metadata.truncation && reply.answers.is_empty();
            assert!(cut, "{every} {reply:?}");
            let spoken = matches!(over, Over::Edns(_));
            assert_eq!(reply.edns.is_some(), spoken);
            // The question came back, and nothing else.
            assert_eq!(length, if spoken { 47 } else { 36 });
        }
        let whole = ask_tcp(server, name, RecordType::SRV).await.unwrap();
        assert_eq!(whole.answers.len(), 10);
        let short = ask_udp(server, "none.service.consul.", RecordType::A).await;
        assert_eq!(
            short.unwrap().metadata.response_code,
            ResponseCode::NXDomain
        );
    }
}
