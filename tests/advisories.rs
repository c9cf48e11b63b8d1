//! What went wrong in other resolvers, and must not here, as far as no other file shows it:
//! [`docs/withstand.md`](../docs/withstand.md) lists the advisories and their tests.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use support::{Over, exchange, wait_for};
use tokio::{net::UdpSocket, time::Instant};
use upstream::{LOOP, Upstream, a, addresses, end, question, record, stub, with_opt};

const ADDRESS: [u8; 4] = [10, 0, 0, 1];

/// A server that answers all, and tells which names it was asked for to see whether it
/// sends questions back.
async fn probed() -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let probes: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let seen = Arc::clone(&probes);
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut packet).await {
            let packet = &packet[..length];
            if packet[12..].starts_with(LOOP) {
                seen.lock().unwrap().push(packet.to_vec());
            }
            _ = socket
                .send_to(&record(packet, 1, 0, &ADDRESS), client)
                .await;
        }
    });
    (address, probes)
}

#[tokio::test]
async fn the_question_that_finds_circles_cannot_be_foretold_nor_end_more_than_one_upstream() {
    let mut labels = BTreeSet::new();
    for _ in 0..20 {
        let (address, probes) = probed().await;
        let stub = stub(&[&address]).await;
        assert_eq!(addresses(&a(stub, "www.example.").await), ["0 10.0.0.1"]);
        let label = wait_for("the probe", async || {
            let probes = probes.lock().unwrap();
            Some(probes.first()?[28..60].to_vec())
        })
        .await;
        // 128 bits.
        let is_digit = |letter: &u8| (b'a'..=b'p').contains(letter);
        assert!(label.iter().all(is_digit), "{label:?}");
        labels.insert(label);
    }
    assert_eq!(labels.len(), 20, "no two are the same");
    let mut bits = [0_u32; 4];
    for digit in labels.iter().flatten() {
        let digit = u32::from(digit - b'a');
        for (bit, count) in bits.iter_mut().enumerate() {
            *count += digit >> bit & 1;
        }
    }
    // Of 640 digits, give or take five deviations.
    assert!(
        bits.iter().all(|count| (257..=383).contains(count)),
        "{bits:?}"
    );

    // Somebody guesses.
    let (first, probes) = probed().await;
    let second = Upstream::start(|packet| Some(record(packet, 1, 0, &[10, 0, 0, 2]))).await;
    let stub = stub(&[&first, &second.address.to_string()]).await;
    for guess in 0..50_u128 {
        _ = a(stub, &format!("proconsul-loop.{guess:032}.")).await;
    }
    assert_eq!(addresses(&a(stub, "www.example.").await), ["0 10.0.0.1"]);
    // Whoever sees it can but have that one upstream left alone; nothing ends.
    let mut seen = wait_for("the probe", async || {
        // What was guessed went there too.
        let probes = probes.lock().unwrap();
        let is_drawn = |packet: &&Vec<u8>| packet[28..60].iter().all(u8::is_ascii_lowercase);
        probes.iter().find(is_drawn).cloned()
    })
    .await;
    seen[1] = 1;
    let told = exchange(stub, &seen, Over::Udp).await.unwrap();
    assert_eq!(told[3] & 0x0F, ResponseCode::Refused.low());
    assert_eq!(addresses(&a(stub, "www.example.").await), ["0 10.0.0.2"]);
}

#[tokio::test]
async fn options_without_number_cost_no_more_than_their_bytes() {
    let upstream = Upstream::start(|packet| Some(record(&packet[..end(packet)], 1, 60, &ADDRESS)));
    let stub = stub(&[&upstream.await.address.to_string()]).await;
    let empty = [0xFD, 0xE9, 0, 0].repeat(900);
    let cookies = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8].repeat(300);
    let errors = [0, 15, 0, 2, 0, 0].repeat(600);
    for (what, options) in [
        ("empty", &empty),
        ("cookies", &cookies),
        ("errors", &errors),
    ] {
        let start = Instant::now();
        for name in ["0a000001.addr.consul.", "www.example."] {
            for over in [Over::Udp, Over::Tcp] {
                let packet = with_opt(question(name, 1), 1_232, options);
                // Answered, or refused as malformed.
                let told = exchange(stub, &packet, over).await.unwrap();
                let code = told[3] & 0x0F;
                assert!(matches!(code, 0 | 1), "{what}, {name}: code {code}");
            }
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{what}");
    }
    assert_eq!(a(stub, "0a000001.addr.consul.").await.answers.len(), 1);
}

#[tokio::test]
async fn what_an_upstream_cuts_over_tcp_too_is_handed_on_and_asked_for_no_more() {
    let upstream = Upstream::telling(Duration::ZERO, |packet, _| {
        let mut cut = record(packet, 1, 60, &ADDRESS);
        cut[2] |= 0x02;
        vec![cut]
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    for (asked, over) in (1..).zip([Over::Udp, Over::Tcp]) {
        let told = exchange(stub, &question("www.example.", 1), over)
            .await
            .unwrap();
        assert_eq!(told[2] & 0x02, 0x02);
        assert_eq!(upstream.asked(), asked);
    }
    // And is not kept.
    _ = support::ask_tcp(stub, "www.example.", RecordType::A).await;
    assert_eq!(upstream.asked(), 3);
}

#[test]
fn arithmetic_that_overflows_is_caught_in_what_is_released() {
    let manifest = include_str!("../Cargo.toml");
    let (_, release) = manifest.split_once("[profile.release]").unwrap();
    let own = release.split("\n[").next().unwrap();
    assert!(own.contains("overflow-checks = true"), "{own}");
    assert!(manifest.contains("unsafe_code = \"forbid\""));
}
