//! Names that are not Consul's: the stub sends them on, and remembers.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};
use proconsul::{
    Resolver,
    stub::{Control, Stub, Upstreams},
};
use support::{
    Agent, Over, Serving, SilentDns, ask, ask_tcp, ask_udp, closed_port, exchange, wait_for,
};
use tokio::{net::UdpSocket, time::Instant};
use upstream::{
    Upstream, a, addresses, coded, crowd, end, forwarding, question, record, reply, soa, stub,
    stub_of, wire,
};

#[tokio::test]
async fn other_names_go_on_and_their_answers_are_kept_for_their_ttl() {
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 2, &[10, 0, 0, 1]))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let first = a(stub, "www.example.com.").await;
    assert_eq!(addresses(&first), ["2 10.0.0.1"]);
    assert!(first.metadata.recursion_available && !first.metadata.authoritative);
    for name in ["www.example.com.", "WWW.example.COM."] {
        let kept = a(stub, name).await;
        assert!(addresses(&kept)[0].ends_with("10.0.0.1"));
        assert_eq!(kept.queries[0].name().to_string(), name);
    }
    assert_eq!(upstream.asked(), 1);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert_eq!(
        addresses(&a(stub, "www.example.com.").await),
        ["2 10.0.0.1"]
    );
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test]
async fn types_and_options_that_nobody_knows_stay_whole() {
    // A type of the private range, its data, and an option with it.
    let upstream = Upstream::start(|packet| {
        let mut reply = record(packet, 65_400, 60, b"\x01\x02anything");
        let last = reply.len() - 2;
        if packet[11] == 1 {
            reply[last..].copy_from_slice(&[0, 6]);
            reply.extend(b"\xfd\xe9\x00\x02hi");
        }
        Some(reply)
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let mut packet = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01".to_vec();
    packet.extend(b"\x01x\x07example\x00\xff\x78\x00\x01");
    packet.extend(b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00");
    for over in [Over::Udp, Over::Tcp] {
        let reply = exchange(stub, &packet, over).await.unwrap();
        assert_eq!(reply[..2], [0x12, 0x34]);
        assert!(reply.windows(10).any(|ten| ten == b"\x01\x02anything"));
        assert!(reply.ends_with(b"\xfd\xe9\x00\x02hi"), "{over:?}");
    }
}

#[tokio::test]
async fn the_next_upstream_is_asked_and_whoever_failed_comes_last() {
    let silent = SilentDns::start();
    let refusing = Upstream::start(|packet| Some(coded(packet, 5))).await;
    let good = Upstream::start(|packet| Some(record(packet, 1, 0, &[10, 0, 0, 1]))).await;
    let all = [
        silent.address().to_string(),
        closed_port().to_string(),
        refusing.address.to_string(),
        good.address.to_string(),
    ];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let stub = stub(&all).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["0 10.0.0.1"]);
    let before = silent.questions().len();
    assert!(before > 0);
    // At once now: who failed a moment ago is not waited for again.
    assert_eq!(addresses(&a(stub, "b.example.").await), ["0 10.0.0.1"]);
    assert_eq!(silent.questions().len(), 0);
    assert_eq!(refusing.asked(), 1);
}

#[tokio::test]
async fn of_three_upstreams_the_last_has_time_to_answer_and_comes_first_from_then_on() {
    let silent = [SilentDns::start(), SilentDns::start()];
    let slow = Duration::from_millis(150);
    let good = Upstream::late(slow, |packet| Some(record(packet, 1, 0, &[10, 0, 0, 1]))).await;
    let all = [silent[0].address(), silent[1].address(), good.address];
    let all = all.map(|address| address.to_string());
    let stub = stub(&[&all[0], &all[1], &all[2]]).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["0 10.0.0.1"]);
    for silent in &silent {
        assert!(!silent.questions().is_empty());
    }
    assert_eq!(addresses(&a(stub, "b.example.").await), ["0 10.0.0.1"]);
    for silent in &silent {
        assert_eq!(silent.questions().len(), 0, "it rests");
    }
}

#[tokio::test]
async fn an_upstream_that_is_slower_than_its_share_of_the_time_is_still_heard() {
    let slow = Duration::from_millis(600);
    let upstream = Upstream::late(slow, |packet| Some(record(packet, 1, 60, &[10, 0, 0, 1]))).await;
    let silent = SilentDns::start();
    let both = [upstream.address.to_string(), silent.address().to_string()];
    let stub = stub(&[&both[0], &both[1]]).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["60 10.0.0.1"]);
    assert!(!silent.questions().is_empty(), "it was asked as well");
}

#[tokio::test]
async fn a_question_whose_datagram_is_lost_is_asked_once_more_from_another_port() {
    let asked = AtomicUsize::new(0);
    let upstream = Upstream::start(move |packet| {
        let is_lost = asked.fetch_add(1, Ordering::Relaxed) == 0;
        (!is_lost).then(|| record(packet, 1, 60, &[10, 0, 0, 1]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["60 10.0.0.1"]);
    let [first, second] = &upstream.questions()[..] else {
        panic!("two datagrams");
    };
    assert_ne!(first.port, second.port);
    assert_ne!(first.packet[..2], second.packet[..2], "an id of its own");
    assert_eq!(first.packet[2..], second.packet[2..]);
}

#[tokio::test]
async fn a_slow_reply_to_the_first_datagram_is_heard_after_the_second_was_sent() {
    let asked = AtomicUsize::new(0);
    let slow = Duration::from_millis(400);
    let upstream = Upstream::late(slow, move |packet| {
        let is_first = asked.fetch_add(1, Ordering::Relaxed) == 0;
        is_first.then(|| record(packet, 1, 60, &[10, 0, 0, 1]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["60 10.0.0.1"]);
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test]
async fn when_all_upstreams_are_gone_known_names_are_stale_and_others_fail() {
    let well = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&well);
    let upstream = Upstream::start(move |packet| {
        told.load(Ordering::Relaxed)
            .then(|| record(packet, 1, 0, &[10, 0, 0, 1]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["0 10.0.0.1"]);
    well.store(false, Ordering::Relaxed);
    let edns = Over::Edns(1232);
    _ = ask(stub, "a.example.", RecordType::A, edns).await;
    assert_eq!(addresses(&a(stub, "a.example.").await), ["30 10.0.0.1"]);
    let (failed, _) = ask(stub, "b.example.", RecordType::A, edns).await.unwrap();
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    let options = failed.edns.unwrap();
    assert!(!options.options().as_ref().is_empty(), "an extended error");
    well.store(true, Ordering::Relaxed);
    wait_for("the truth again", async || {
        let reply = a(stub, "a.example.").await;
        (addresses(&reply) == ["0 10.0.0.1"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_known_is_waited_for_no_longer_once_its_upstreams_are_silent() {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = Arc::clone(&well);
    let upstream = Upstream::start(move |packet| {
        (is_well.load(Ordering::Relaxed)).then(|| record(packet, 1, 0, &[10, 0, 0, 1]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    for name in ["a.example.", "b.example."] {
        assert_eq!(addresses(&a(stub, name).await), ["0 10.0.0.1"]);
    }
    well.store(false, Ordering::Relaxed);
    assert_eq!(addresses(&a(stub, "a.example.").await), ["30 10.0.0.1"]);
    let before = (Instant::now(), upstream.asked());
    for _ in 0..20 {
        assert_eq!(addresses(&a(stub, "a.example.").await), ["30 10.0.0.1"]);
    }
    let took = before.0.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "{took:?}, and 14 s if each is waited for"
    );
    // Each by two datagrams.
    let asked = (upstream.asked() - before.1) / 2;
    assert!(asked <= 2 + took.as_secs() as usize, "{asked} in {took:?}");
    // Nor is another one, as soon as nothing is heard from there.
    let new = ["x.example.", "y.example.", "z.example."];
    let [x, y, z] = new.map(|name| a(stub, name));
    tokio::join!(x, y, z);
    let start = Instant::now();
    assert_eq!(addresses(&a(stub, "b.example.").await), ["30 10.0.0.1"]);
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    // Each is asked for beside it.
    well.store(true, Ordering::Relaxed);
    for name in ["a.example.", "b.example."] {
        wait_for("the truth again", async || {
            (addresses(&a(stub, name).await) == ["0 10.0.0.1"]).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_nobody_could_tell_is_asked_for_again_after_a_second() {
    let upstream = Upstream::start(|packet| Some(coded(packet, 2))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let start = Instant::now();
    let mut asks = 0;
    while start.elapsed() < Duration::from_millis(1_500) {
        let code = a(stub, "a.example.").await.metadata.response_code;
        assert_eq!(code, ResponseCode::ServFail);
        asks += 1;
    }
    let most = 1 + start.elapsed().as_secs() as usize;
    let asked = upstream.asked();
    assert!(
        (2..=most).contains(&asked) && asks > asked,
        "{asked} of {asks}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_ask_for_a_silent_domain_others_are_answered() {
    let (silent, well) = (
        SilentDns::start(),
        Upstream::start(|packet| Some(record(packet, 1, 60, &[10, 0, 0, 1]))).await,
    );
    let routes = [
        well.address.to_string(),
        format!("corp.example={}", silent.address()),
    ];
    let stub = stub(&[&routes[0], &routes[1]]).await;
    let packets = vec![question("a.corp.example.", 1); 700];
    let flood = crowd(stub, packets, 100, Duration::from_secs(3));
    let flood = tokio::spawn(flood);
    wait_for("somebody who waits", async || {
        (!silent.questions().is_empty()).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(addresses(&a(stub, "www.example.").await), ["60 10.0.0.1"]);
    for (reply, took) in flood.await.unwrap().into_iter().flatten() {
        assert_eq!(reply[3] & 0x0F, 2, "in {took:?}");
    }
}

#[tokio::test]
async fn consuls_own_names_are_never_sent_on() {
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 60, &[10, 0, 0, 1]))).await;
    let agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http("none");
    let to = upstream.address.to_string();
    let stub = stub_of(builder.build().unwrap(), &[&to]).await;
    let web = a(stub, "web.service.consul.").await;
    assert_eq!(web.answers.len(), 2);
    assert!(web.metadata.recursion_available && web.metadata.authoritative);
    for name in [
        "nosuch.service.consul.",
        "web.consul.",
        "consul.",
        "x.nosuch.consul.",
    ] {
        let reply = a(stub, name).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NXDomain,
            "{name}"
        );
    }
    // Nor where the configured domain is another one.
    let builder = Resolver::builder()
        .dns("none")
        .http("none")
        .domain("corp.example");
    let other = stub_of(builder.build().unwrap(), &[&to]).await;
    let reply = a(other, "web.service.consul.").await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert_eq!(upstream.asked(), 0);
}

#[tokio::test]
async fn an_address_that_consul_does_not_know_is_asked_of_others() {
    let name = b"\x04host\x07example\x00";
    let upstream = Upstream::start(|packet| Some(record(packet, 12, 60, name))).await;
    let agent = Agent::start().await;
    agent
        .register_catalog(serde_json::json!({ "Node": "known", "Address": "10.7.7.7" }))
        .await;
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http("none");
    let stub = stub_of(builder.build().unwrap(), &[&upstream.address.to_string()]).await;
    let names = async |name: &str| {
        let reply = ask_udp(stub, name, RecordType::PTR).await.unwrap();
        reply.answers[0].data.to_string()
    };
    assert_eq!(
        names("7.7.7.10.in-addr.arpa.").await,
        "known.node.dc1.consul."
    );
    assert_eq!(upstream.asked(), 0);
    assert_eq!(names("9.9.9.10.in-addr.arpa.").await, "host.example.");
}

#[tokio::test]
async fn names_of_this_machine_and_names_that_are_nobodys_are_answered_here() {
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 60, &[10, 0, 0, 1]))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    assert_eq!(addresses(&a(stub, "localhost.").await), ["3600 127.0.0.1"]);
    let v6 = ask_udp(stub, "x.localhost.", RecordType::AAAA)
        .await
        .unwrap();
    assert_eq!(addresses(&v6), ["3600 ::1"]);
    // What there is not has an SOA, so that it may be kept (RFC 2308, section 3).
    let soa = |reply: &Message| {
        let owners = reply
            .authorities
            .iter()
            .filter_map(|record| match &record.data {
                RData::SOA(_) => Some(record.name.to_string()),
                _ => None,
            });
        owners.collect::<Vec<_>>()
    };
    let nobodys = [
        ("x.invalid.", "invalid."),
        ("y.X.Onion.", "onion."),
        ("x.test.", "test."),
    ];
    for (name, apex) in nobodys {
        let reply = a(stub, name).await;
        let code = reply.metadata.response_code;
        assert_eq!(code, ResponseCode::NXDomain, "{name}");
        assert_eq!(soa(&reply), [apex]);
    }
    let nothing = ask_udp(stub, "localhost.", RecordType::MX).await.unwrap();
    assert_eq!(nothing.metadata.response_code, ResponseCode::NoError);
    assert_eq!(soa(&nothing), ["localhost."]);
    assert_eq!(upstream.asked(), 0);
    // Where nobody is asked for other names, too.
    let alone = crate::stub(&["none"]).await;
    assert_eq!(addresses(&a(alone, "localhost.").await), ["3600 127.0.0.1"]);
    let code = a(alone, "x.invalid.").await.metadata.response_code;
    assert_eq!(code, ResponseCode::NXDomain);
    // Whoever tests names of that domain says by whom.
    let own = crate::stub(&[&format!("test={}", upstream.address)]).await;
    assert_eq!(addresses(&a(own, "x.test.").await), ["60 10.0.0.1"]);
    // What has names below it is not denied (RFC 8020).
    let corp = format!("corp.test={}", upstream.address);
    let below = crate::stub(&[&corp, &upstream.address.to_string()]).await;
    assert_eq!(addresses(&a(below, "test.").await), ["60 10.0.0.1"]);
}

#[tokio::test]
async fn a_domain_has_its_own_servers() {
    let corp = Upstream::start(|packet| Some(record(packet, 1, 60, &[10, 0, 0, 2]))).await;
    let rest = Upstream::start(|packet| Some(record(packet, 1, 60, &[10, 0, 0, 1]))).await;
    let routes = [
        rest.address.to_string(),
        format!("corp.example={}", corp.address),
    ];
    let stub = stub(&[&routes[0], &routes[1]]).await;
    assert_eq!(
        addresses(&a(stub, "a.corp.example.").await),
        ["60 10.0.0.2"]
    );
    assert_eq!(addresses(&a(stub, "a.example.").await), ["60 10.0.0.1"]);
}

#[tokio::test]
async fn an_upstream_that_sends_questions_back_is_found_out() {
    // Two stubs that forward to each other, as a stub and a cache in front of it may.
    let any = "127.0.0.1:0".parse().unwrap();
    let one = Stub::bind(nobody(), &[any]).await.unwrap();
    let other = Stub::bind(nobody(), &[any]).await.unwrap();
    let (at_one, at_other) = (one.addresses()[0], other.addresses()[0]);
    let to = |address: SocketAddr| Upstreams::parse([address.to_string()]).unwrap();
    tokio::spawn(one.forwarding(to(at_other)).run(std::future::pending()));
    tokio::spawn(other.forwarding(to(at_one)).run(std::future::pending()));
    wait_for("the circle to be cut", async || {
        let code = a(at_one, "www.example.com.").await.metadata.response_code;
        (code == ResponseCode::Refused).then_some(())
    })
    .await;
    // Both still answer what is theirs.
    for stub in [at_one, at_other] {
        assert_eq!(a(stub, "0a000001.addr.consul.").await.answers.len(), 1);
    }
}

#[tokio::test]
async fn a_long_answer_is_had_over_tcp_and_a_question_by_itself_is_refused() {
    let upstream = Upstream::start(|packet| Some(record(packet, 16, 60, &[9; 10_000]))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let reply = ask_tcp(stub, "long.example.", RecordType::from(65_400)).await;
    assert_eq!(reply.unwrap().answers.len(), 1);
    // Nobody to send it to but ourselves.
    let any = "127.0.0.1:0".parse().unwrap();
    let resolver = Resolver::builder()
        .dns("none")
        .http("none")
        .build()
        .unwrap();
    let alone = Stub::bind(resolver, &[any]).await.unwrap();
    let address = alone.addresses()[0];
    let alone = alone.forwarding(Upstreams::parse([address.to_string()]).unwrap());
    tokio::spawn(alone.run(std::future::pending()));
    let code = a(address, "www.example.com.").await.metadata.response_code;
    assert_eq!(code, ResponseCode::Refused);
}

#[tokio::test]
async fn nobody_gets_more_than_they_can_take_because_others_asked_the_same() {
    // Late, so that both wait for one answer.
    let upstream = Upstream::start(|packet| {
        std::thread::sleep(Duration::from_millis(100));
        Some(record(packet, 65_400, 0, &[7; 2_000]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let of = async |size| {
        let asked = ask(
            stub,
            "big.example.",
            RecordType::from(65_400),
            Over::Edns(size),
        )
        .await;
        let (reply, length) = asked.unwrap();
        (reply.metadata.truncation, length)
    };
    let (large, small) = tokio::join!(of(3_000), of(1_400));
    assert!(!large.0 && large.1 > 2_000, "{large:?}");
    assert!(small.0 && small.1 <= 1_400, "{small:?}");
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn what_was_cut_for_one_client_is_whole_for_the_next() {
    let upstream = Upstream::start(|packet| Some(record(packet, 16, 60, &[7; 2_000]))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    // What is remembered for those who take the same is whole or not given.
    let sizes = [1_232, 1_232, 3_000, 1_232, 512, 4_096, 1_232, 4_096, 4_096];
    for size in sizes {
        let asked = ask(stub, "big.example.", RecordType::TXT, Over::Edns(size)).await;
        let (reply, _) = asked.unwrap();
        let whole = size > 2_000;
        let told = (reply.metadata.truncation, reply.answers.len());
        assert_eq!(told, (!whole, usize::from(whole)), "{size}");
    }
    assert_eq!(upstream.asked(), sizes.len() - 2, "twice from memory");
}

#[tokio::test]
async fn a_datagram_is_as_long_as_its_client_takes_and_as_ours_may_be_and_else_none_of_it() {
    // The second time longer than anybody asked for.
    let asked = AtomicUsize::new(0);
    let upstream = Upstream::start(move |packet| {
        let length = match asked.fetch_add(1, Ordering::Relaxed) {
            0 => 4_000,
            _ => 6_000,
        };
        Some(record(packet, 65_400, 0, &vec![7; length]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let private = RecordType::from(65_400);
    let of = async |size| {
        let asked = ask(stub, "big.example.", private, Over::Edns(size)).await;
        let (reply, length) = asked.unwrap();
        (
            reply.metadata.truncation,
            reply.answers.len(),
            length <= size.into(),
        )
    };
    assert_eq!(of(65_535).await, (false, 1, true), "whole, by a datagram");
    for size in [65_535, 4_096] {
        assert_eq!(of(size).await, (true, 0, true), "it is to come over TCP");
    }
    for question in upstream.questions() {
        let end = end(&question.packet);
        assert_eq!(question.packet[end + 3..end + 5], 4_096_u16.to_be_bytes());
    }
    // Who says more of itself, too.
    let cookie = b"\0\x0A\0\x08clientsc";
    let packet = upstream::with_opt(question("big.example.", 65_400), 1_232, cookie);
    let reply = exchange(stub, &packet, Over::Edns(1_232)).await.unwrap();
    assert_eq!((reply[2] & 0x02, reply.len()), (0x02, end(&packet)));
}

#[tokio::test]
async fn answers_that_lead_into_this_network_are_held_back_where_that_is_wished() {
    let inside = Upstream::start(|packet| Some(record(packet, 1, 60, &[192, 168, 0, 1]))).await;
    let outside = Upstream::start(|packet| Some(record(packet, 1, 60, &[203, 0, 113, 1]))).await;
    let all = [
        inside.address.to_string(),
        format!("corp.example={}", inside.address),
        format!("net.example={}", outside.address),
    ];
    let upstreams = Upstreams::parse(&all).unwrap();
    let resolver = Resolver::builder().dns("none").http("none");
    let address = forwarding(resolver.build().unwrap(), upstreams.stop_rebind(true)).await;
    for _ in 0..2 {
        let held = a(address, "evil.example.").await;
        assert_eq!(held.metadata.response_code, ResponseCode::NXDomain);
        assert!(held.answers.is_empty());
    }
    assert_eq!(
        addresses(&a(address, "a.corp.example.").await),
        ["60 192.168.0.1"]
    );
    assert_eq!(
        addresses(&a(address, "a.net.example.").await),
        ["60 203.0.113.1"]
    );
    // By itself everything is handed on.
    let open = stub(&[&all[0]]).await;
    assert_eq!(
        addresses(&a(open, "evil.example.").await),
        ["60 192.168.0.1"]
    );
}

fn nobody() -> Resolver {
    let builder = Resolver::builder().dns("none").http("none");
    builder.build().unwrap()
}

/// A stub that knows no Consul, and what changes it.
async fn controlled(upstream: &Upstream) -> (SocketAddr, Control) {
    let any = "127.0.0.1:0".parse().unwrap();
    let stub = Stub::bind(nobody(), &[any]).await.unwrap();
    let upstreams = Upstreams::parse([upstream.address.to_string()]).unwrap();
    let stub = stub.forwarding(upstreams);
    let (address, control) = (stub.addresses()[0], stub.control());
    tokio::spawn(stub.run(std::future::pending()));
    (address, control)
}

#[tokio::test]
async fn what_upstreams_said_outlasts_a_reload_that_leaves_them_alone() {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = Arc::clone(&well);
    let upstream = Upstream::start(move |packet| {
        (is_well.load(Ordering::Relaxed)).then(|| record(packet, 1, 0, &[10, 0, 0, 1]))
    })
    .await;
    let (address, control) = controlled(&upstream).await;
    assert_eq!(addresses(&a(address, "a.example.").await), ["0 10.0.0.1"]);
    well.store(false, Ordering::Relaxed);
    for (others, told) in [
        (upstream.address, &["30 10.0.0.1"][..]),
        (closed_port(), &[]),
    ] {
        let upstreams = Upstreams::parse([others.to_string()]).unwrap();
        control.replace(nobody(), upstreams);
        assert_eq!(addresses(&a(address, "a.example.").await), told);
    }
}

#[tokio::test]
async fn what_is_held_back_since_a_reload_is_given_by_nobodys_memory() {
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 60, &[192, 168, 0, 1]))).await;
    let (address, control) = controlled(&upstream).await;
    let over = [Over::Udp, Over::Tcp];
    let told = async |over| {
        let (reply, _) = ask(address, "evil.example.", RecordType::A, over)
            .await
            .unwrap();
        reply.answers.len()
    };
    for over in over.into_iter().cycle().take(6) {
        assert_eq!(told(over).await, 1);
    }
    let upstreams = Upstreams::parse([upstream.address.to_string()]).unwrap();
    control.replace(nobody(), upstreams.stop_rebind(true));
    for over in over {
        assert_eq!(told(over).await, 0, "{over:?}");
    }
}

#[tokio::test]
async fn a_reverse_zone_is_not_consuls_zone() {
    let agent = Agent::start().await;
    let upstream = Upstream::start(|packet| match packet[end(packet) - 3] {
        2 => Some(record(packet, 2, 60, &wire("ns.example."))),
        _ => Some(reply(
            packet,
            0,
            [&[soa("10.in-addr.arpa.", 60, 60)], &[], &[]],
        )),
    })
    .await;
    let resolver = || {
        let builder = Resolver::builder().dns(&agent.dns().to_string());
        builder.http("none").build().unwrap()
    };
    let others = upstream.address.to_string();
    for (others, code, told) in [
        (Some(&others[..]), ResponseCode::NoError, 1),
        (None, ResponseCode::NXDomain, 0),
    ] {
        let stub = stub_of(resolver(), &[others.unwrap_or("none")]).await;
        for kind in [RecordType::SOA, RecordType::NS] {
            let reply = ask_udp(stub, "10.in-addr.arpa.", kind).await.unwrap();
            let seen = (reply.metadata.response_code, reply.answers.len());
            assert_eq!(seen, (code, told), "{kind} of {others:?}");
            let its_own = |record: &Record| record.name.to_ascii() == "10.in-addr.arpa.";
            assert!(reply.answers.iter().all(its_own), "{kind} of {others:?}");
        }
    }
}

#[tokio::test]
async fn addresses_are_asked_of_others_in_time_however_long_consul_is_gone() {
    let name = b"\x04host\x07example\x00";
    let upstream = Upstream::start(|packet| Some(record(packet, 12, 60, name))).await;
    let silent = SilentDns::start();
    for consul in [silent.address(), closed_port()] {
        let builder = Resolver::builder().dns(&consul.to_string()).http("none");
        let stub = stub_of(builder.build().unwrap(), &[&upstream.address.to_string()]).await;
        // Often enough for whoever failed to be left alone.
        for last in 1..=6 {
            let name = format!("{last}.9.9.10.in-addr.arpa.");
            let reply = ask_udp(stub, &name, RecordType::PTR).await.unwrap();
            assert_eq!(reply.answers.len(), 1, "{name} while {consul} is gone");
            assert_eq!(reply.answers[0].data.to_string(), "host.example.");
        }
    }
}

#[tokio::test]
async fn who_has_an_address_is_consuls_to_say_again_as_soon_as_it_can() {
    let back = Arc::new(AtomicBool::new(false));
    let well = Arc::clone(&back);
    let consul = Upstream::start(move |packet| {
        let name = b"\x05known\x04node\x03dc1\x06consul\x00";
        (well.load(Ordering::Relaxed)).then(|| record(packet, 12, 0, name))
    })
    .await;
    let others = Upstream::start(|packet| Some(record(packet, 12, 60, b"\x04host\x00"))).await;
    let builder = Resolver::builder().dns(&consul.address.to_string());
    let resolver = builder.http("none").build().unwrap();
    let stub = stub_of(resolver, &[&others.address.to_string()]).await;
    let told = async || {
        let reply = ask_udp(stub, "7.7.7.10.in-addr.arpa.", RecordType::PTR).await;
        reply.unwrap().answers[0].data.to_string()
    };
    for _ in 0..2 {
        assert_eq!(told().await, "host.");
    }
    back.store(true, Ordering::Relaxed);
    let truth = wait_for("Consul's word", async || {
        (told().await == "known.node.dc1.consul.").then_some(())
    });
    // What is remembered by a lane is so for ten seconds.
    let truth = tokio::time::timeout(Duration::from_secs(8), truth).await;
    assert!(truth.is_ok(), "what others said was kept");
}

#[tokio::test]
async fn what_others_cannot_be_asked_for_is_no_proof_that_nobody_has_an_address() {
    let agent = Agent::start().await;
    let silent = SilentDns::start();
    let well = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let name = b"\x04host\x07example\x00";
    let lossy = Upstream::start(move |packet| {
        (is_well.load(Ordering::Relaxed)).then(|| record(packet, 12, 60, name))
    })
    .await;
    // Whole addresses, of which Consul knows none, and names that are none.
    let names = ["9.9.9.10.in-addr.arpa.", "x.0-25.2.0.192.in-addr.arpa."];
    for others in [closed_port(), silent.address(), lossy.address] {
        let builder = Resolver::builder().dns(&agent.dns().to_string());
        let resolver = builder.http("none").build().unwrap();
        let stub = stub_of(resolver, &[&others.to_string()]).await;
        for name in names.into_iter().cycle().take(4) {
            let reply = ask_udp(stub, name, RecordType::PTR).await.unwrap();
            let told = (reply.metadata.response_code, reply.authorities.len());
            assert_eq!(told, (ResponseCode::ServFail, 0), "{name} by {others}");
        }
        if others == lossy.address {
            well.store(true, Ordering::Relaxed);
            for name in names {
                wait_for(name, async || {
                    let reply = ask_udp(stub, name, RecordType::PTR).await.unwrap();
                    let code = reply.metadata.response_code;
                    assert_ne!(code, ResponseCode::NXDomain, "remembered as nobody's");
                    (reply.answers.len() == 1).then_some(())
                })
                .await;
            }
        }
    }
}

#[tokio::test]
async fn upstreams_that_are_silent_keep_nobody_from_consuls_names() {
    let agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let upstream = Upstream::start(|_| None).await;
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http("none");
    let stub = stub_of(builder.build().unwrap(), &[&upstream.address.to_string()]).await;
    let mut packet = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x08aaaaaaaa\x07example\0\0\x01\0\x01".to_vec();
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    }
    let flood = tokio::spawn(async move {
        loop {
            for (client, socket) in (0_u8..).zip(&clients) {
                for number in 0..100_u8 {
                    packet[13..17].copy_from_slice(&[
                        b'a' + client / 26,
                        b'a' + client % 26,
                        b'a' + number / 26,
                        b'a' + number % 26,
                    ]);
                    _ = socket.try_send_to(&packet, stub);
                }
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    // Of what is sent, some is lost on the way: a full house needs several rounds.
    wait_for("a flood", async || (upstream.asked() >= 400).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Those who wait for the upstream do so for twice that.
    let asked = ask_udp(stub, "web.service.consul.", RecordType::A);
    let reply = tokio::time::timeout(Duration::from_millis(400), asked).await;
    assert_eq!(reply.expect("a seat").unwrap().answers.len(), 2);
    flood.abort();
}

#[tokio::test]
async fn what_a_client_says_of_itself_is_neither_shared_nor_kept() {
    // Echoes the question's OPT record with its options.
    let upstream = Upstream::start(|packet| {
        std::thread::sleep(Duration::from_millis(20));
        Some(record(packet, 1, 60, &[192, 0, 2, 1]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let asked = |cookie: [u8; 8]| {
        let mut packet =
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03www\x07example\0\0\x01\0\x01".to_vec();
        // OPT of 1232 bytes with a client cookie (RFC 7873).
        packet.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8]);
        packet.extend(cookie);
        async move {
            let reply = exchange(stub, &packet, Over::Edns(1232)).await.unwrap();
            reply.ends_with(&cookie)
        }
    };
    let both = tokio::join!(asked([1; 8]), asked([2; 8]));
    assert_eq!(both, (true, true));
    assert!(asked([3; 8]).await);
    assert_eq!(upstream.asked(), 3);
}

#[tokio::test]
async fn a_name_of_any_bytes_goes_on_as_it_came_and_stands_in_no_log() {
    const ODD: &[u8] = b"\x0e\0\xff. \"'\\\n\r\x1b[1mA\x02\xc3(\x07example\0\0\x01\0\x01";
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 0, &[10, 0, 0, 1]))).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command
        .env_clear()
        .args(["serve", "-vv", "--listen", "127.0.0.1:0", "--admin", "none"])
        .args(["--dns", &closed_port().to_string(), "--http", "none"])
        .args(["--upstream", &upstream.address.to_string()]);
    let serving = Serving::start(command);
    let mut packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    packet.extend(ODD);
    let told = exchange(serving.dns, &packet, Over::Udp).await.unwrap();
    assert_eq!(upstream.questions()[0].packet[12..], *ODD);
    assert_eq!(told[12..12 + ODD.len()], *ODD);
    assert!(told.ends_with(&[10, 0, 0, 1]));
    // The same in Consul's domain, where no name is of such bytes.
    for name in [
        "a\nb.service.consul.",
        "\u{1b}[31m.node.consul.",
        "a b.service.consul.",
    ] {
        let code = a(serving.dns, name).await.metadata.response_code;
        assert_eq!(code, ResponseCode::NXDomain, "{name:?}");
    }
    _ = a(serving.dns, "known.service.consul.").await;
    serving.signal("-TERM");
    let mut lines = 0;
    while let Some(line) = serving.said_before_it_ended() {
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(!line.contains("b.service.consul"), "{line:?}");
        lines += 1;
    }
    assert!(lines > 0, "it logs what it does");
}
