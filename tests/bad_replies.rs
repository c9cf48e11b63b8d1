//! Replies that no good server sends, at the resolver. What is malformed is ignored,
//! and the right reply that follows is still taken; what is merely odd is read.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/malformed.rs"]
mod malformed;
#[path = "support/script.rs"]
mod script;
mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::op::Message;
use malformed::{Tail, malformed, odd, pointer, record};
use proconsul::{Answer, Outcome, Resolver, Source, Transport};
use script::{Reply, Server, srv};
use serde_json::json;
use support::{Agent, closed_port};
use tokio::time::Instant;

const SRV: u16 = 33;
/// Priority and weight 1, port 80.
const PLACE: &[u8] = b"\0\x01\0\x01\0\x50";
const TARGET: &[u8] = b"\x080a000009\x04addr\x03dc1\x06consul\0";

fn resolver(servers: &[&Server]) -> Resolver {
    let servers: Vec<_> = servers
        .iter()
        .map(|server| server.address().to_string())
        .collect();
    let builder = Resolver::builder().dns(&servers.join(",")).http("none");
    let builder = builder.ttl_floor(Duration::ZERO);
    builder.timeout(Duration::from_secs(5)).build().unwrap()
}

/// The header and question of a reply, without EDNS.
fn head(question: &Message) -> Vec<u8> {
    let mut reply = question.metadata.id.to_be_bytes().to_vec();
    reply.extend(b"\x85\0\0\x01\0\0\0\0\0\0");
    for label in question.queries[0].name().iter() {
        reply.push(u8::try_from(label.len()).unwrap());
        reply.extend(label);
    }
    reply.push(0);
    reply.extend(u16::from(question.queries[0].query_type()).to_be_bytes());
    reply.extend([0, 1]);
    reply
}

/// The same with one answer.
fn answered(question: &Message, record: &[u8]) -> Vec<u8> {
    let mut reply = head(question);
    reply[7] = 1;
    reply.extend(record);
    reply
}

fn instance() -> Vec<u8> {
    record(b"\xC0\x0C", SRV, &[PLACE, TARGET].concat())
}

fn found(answer: &Answer) -> Vec<String> {
    answer.endpoints().iter().map(ToString::to_string).collect()
}

fn outcomes(answer: &Answer) -> Vec<(Transport, Outcome)> {
    let attempts = answer.attempts().iter();
    attempts
        .map(|attempt| (attempt.transport, attempt.outcome))
        .collect()
}

type Made = dyn Fn(&Message) -> Vec<u8> + Send + Sync;

/// A server that sends each question a reply that is made for it, and then the right
/// one: three instances.
async fn between(made: Arc<Mutex<Arc<Made>>>) -> Server {
    Server::start(move |question, _| {
        let made = Arc::clone(&made.lock().unwrap());
        vec![Reply::bytes(&made(question)), srv(question, 3).with_text()]
    })
    .await
}

fn tails(all: fn(usize) -> Vec<Tail>, at: usize) -> Arc<Made> {
    Arc::new(move |question| {
        let head = head(question);
        all(head.len())[at].after(&head)
    })
}

#[tokio::test]
async fn what_is_malformed_is_ignored_and_the_right_reply_taken() {
    let count = malformed(0).len();
    let mut cases: Vec<(String, Arc<Made>)> = (malformed(0).into_iter().enumerate())
        .map(|(at, tail)| (tail.what, tails(malformed, at)))
        .collect();
    for length in 0..40 {
        let cut: Arc<Made> = Arc::new(move |question| {
            let mut reply = answered(question, &instance());
            reply.truncate(length);
            reply
        });
        cases.push((format!("{length} bytes"), cut));
    }
    for (what, at, bytes) in [
        ("no question", 4, &[0, 0][..]),
        ("two questions", 4, &[0, 2]),
        ("65,535 questions", 4, &[255, 255]),
        ("a question", 2, &[0x05]),
        ("another operation's reply", 2, &[0xA5]),
        ("another class", 32, &[3]),
    ] {
        let changed: Arc<Made> = Arc::new(move |question| {
            let mut reply = answered(question, &instance());
            // The question's class ends at its end, wherever that is.
            let at = if at == 32 {
                head(question).len() - 1
            } else {
                at
            };
            reply[at..at + bytes.len()].copy_from_slice(bytes);
            reply
        });
        cases.push((what.to_owned(), changed));
    }
    assert!(count > 70, "{count}");
    let made = Arc::new(Mutex::new(Arc::clone(&cases[0].1)));
    let server = between(Arc::clone(&made)).await;
    for (what, case) in cases {
        *made.lock().unwrap() = case;
        // A new one each time: its first question goes over UDP.
        let resolver = resolver(&[&server]);
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(answer.endpoints().len(), 3, "{what}");
        assert_eq!(
            outcomes(&answer),
            [(Transport::Udp, Outcome::Answered)],
            "{what}"
        );
        assert_eq!(resolver.ignored_replies(), 1, "{what}");
    }
}

#[tokio::test]
async fn what_is_odd_and_allowed_is_read() {
    for (at, tail) in odd(0).into_iter().enumerate() {
        let server = Server::start(move |question, _| {
            let reply = answered(question, &instance());
            vec![Reply::bytes(&odd(reply.len())[at].after(&reply))]
        })
        .await;
        let resolver = resolver(&[&server]);
        let answer = resolver
            .lookup("web")
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", tail.what));
        assert_eq!(found(&answer), ["10.0.0.9:80"], "{}", tail.what);
        assert_eq!(resolver.ignored_replies(), 0, "{}", tail.what);
    }
}

#[tokio::test]
async fn a_compressed_target_is_read() {
    let server = Server::start(|question, _| {
        let first = answered(question, &instance());
        // The target stands at the end; the other has a label of its own before it.
        let domain = first.len() - TARGET.len() + 9;
        let target = [&b"\x080a000008"[..], &pointer(domain)].concat();
        let mut reply = first;
        reply[7] = 2;
        reply.extend(record(b"\xC0\x0C", SRV, &[PLACE, &target].concat()));
        vec![Reply::bytes(&reply)]
    })
    .await;
    let answer = resolver(&[&server]).lookup("web").await.unwrap();
    let mut found = found(&answer);
    found.sort();
    assert_eq!(found, ["10.0.0.8:80", "10.0.0.9:80"]);
}

#[tokio::test]
async fn records_of_another_class_are_nobodys() {
    let server = Server::start(|question, _| {
        let mut reply = answered(question, &instance());
        reply[7] = 2;
        let mut chaos = record(
            b"\xC0\x0C",
            SRV,
            &[PLACE, b"\x080a000066\x04addr\x03dc1\x06consul\0"].concat(),
        );
        chaos[5] = 3;
        reply.extend(chaos);
        vec![Reply::bytes(&reply)]
    })
    .await;
    let answer = resolver(&[&server]).lookup("web").await.unwrap();
    assert_eq!(found(&answer), ["10.0.0.9:80"]);
}

#[tokio::test]
async fn a_malformed_reply_over_tcp_is_a_failure_at_once_and_the_next_server_is_asked() {
    let bad = Server::start(|question, transport| match transport {
        Transport::Udp => vec![srv(question, 1).truncated()],
        _ => vec![srv(question, 9).with_text().edit(|bytes| bytes.push(0))],
    })
    .await;
    let good = Server::start(|question, _| vec![srv(question, 2).with_text()]).await;
    let start = Instant::now();
    let answer = resolver(&[&bad, &good]).lookup("web").await.unwrap();
    assert_eq!(answer.endpoints().len(), 2);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_record_as_long_as_a_message_is_read_over_tcp() {
    let server = Server::start(|question, transport| match transport {
        Transport::Udp => vec![srv(question, 1).truncated()],
        _ => {
            let mut reply = answered(question, &instance());
            reply[11] = 1;
            let rest = 65_535 - reply.len() - 12;
            reply.extend(record(b"\xC0\x0C", 65_400, &vec![7; rest]));
            assert_eq!(reply.len(), 65_535);
            vec![Reply::bytes(&reply)]
        }
    })
    .await;
    let answer = resolver(&[&server]).lookup("web").await.unwrap();
    assert_eq!(found(&answer), ["10.0.0.9:80"]);
}

#[tokio::test]
async fn a_datagram_longer_than_was_asked_for_is_taken_if_it_is_whole() {
    let padded = |question: &Message, size: usize| {
        let mut reply = answered(question, &instance());
        reply[11] = 1;
        let rest = size - reply.len() - 12;
        reply.extend(record(b"\xC0\x0C", 65_400, &vec![7; rest]));
        Reply::bytes(&reply)
    };
    for (size, ignored) in [(4_094, 0), (4_600, 0), (20_000, 1), (60_000, 1)] {
        let server = Server::start(move |question, transport| match transport {
            // One that does not fit, and then one that is known to be cut.
            Transport::Udp => vec![padded(question, size), srv(question, 1).truncated()],
            _ => vec![srv(question, 2).with_text()],
        })
        .await;
        let resolver = resolver(&[&server]);
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(resolver.ignored_replies(), ignored, "{size}");
        assert_eq!(answer.endpoints().len(), 2, "{size}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_know_edns_is_asked_without_it_and_stays_so() {
    for (code, transport) in [
        (1, Transport::Udp),
        (4, Transport::Udp),
        (1, Transport::Tcp),
    ] {
        let with_edns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&with_edns);
        let server = Server::start(move |question, over| {
            if transport == Transport::Tcp && over == Transport::Udp {
                return vec![srv(question, 1).truncated()];
            }
            if question.edns.is_some() {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut refusal = head(question);
                refusal[3] = code;
                return vec![Reply::bytes(&refusal)];
            }
            vec![Reply::bytes(&answered(question, &instance()))]
        })
        .await;
        let resolver = resolver(&[&server]);
        for name in ["web", "api", "db"] {
            let answer = resolver.lookup(name).await.unwrap();
            assert_eq!(
                found(&answer),
                ["10.0.0.9:80"],
                "{name}, {code}, {transport:?}"
            );
        }
        assert_eq!(
            with_edns.load(Ordering::Relaxed),
            1,
            "{code}, {transport:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_refuses_without_edns_too_is_not_asked_for_ever() {
    let server = Server::start(|question, _| {
        let mut refusal = head(question);
        refusal[3] = 1;
        vec![Reply::bytes(&refusal)]
    })
    .await;
    let error = resolver(&[&server]).lookup("web").await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    assert!(server.asked() <= 3, "{}", server.asked());
}

#[tokio::test]
async fn a_reply_without_edns_is_taken_and_not_called_complete() {
    let server =
        Server::start(|question, _| vec![Reply::bytes(&answered(question, &instance()))]).await;
    let answer = resolver(&[&server]).lookup("web").await.unwrap();
    assert_eq!((found(&answer).len(), answer.is_complete()), (1, false));
}

#[tokio::test]
async fn a_refused_port_is_passed_over_at_once() {
    let good = Server::start(|question, _| vec![srv(question, 2).with_text()]).await;
    let servers = format!("{},{}", closed_port(), good.address());
    let mut least = Duration::MAX;
    for _ in 0..5 {
        // A new one each time: what was refused before is left alone for a while.
        let resolver = Resolver::builder()
            .dns(&servers)
            .http("none")
            .build()
            .unwrap();
        let start = Instant::now();
        let answer = resolver.lookup("web").await.unwrap();
        least = least.min(start.elapsed());
        assert_eq!(answer.attempts()[0].outcome, Outcome::Refused);
        assert_eq!(answer.endpoints().len(), 2);
    }
    assert!(least < Duration::from_millis(50), "{least:?}");
}

#[tokio::test]
async fn a_refusal_by_one_server_ends_no_question_to_another() {
    let slow = Server::start(|question, _| {
        let reply = srv(question, 2).with_text();
        std::thread::sleep(Duration::from_millis(20));
        vec![reply]
    })
    .await;
    let (slow, closed) = (slow.address().to_string(), closed_port().to_string());
    let build = |dns: &str| Resolver::builder().dns(dns).http("none").build().unwrap();
    let both = build(&format!("{closed},{slow}"));
    let asking: Vec<_> = (0..8)
        .map(|number| {
            let both = both.clone();
            tokio::spawn(async move {
                both.lookup(&format!("s{number}"))
                    .await
                    .unwrap()
                    .endpoints()
                    .len()
            })
        })
        .collect();
    // Refusals come in all the while.
    for _ in 0..20 {
        assert!(build(&closed).lookup("web").await.is_err());
    }
    for asked in asking {
        assert_eq!(asked.await.unwrap(), 2);
    }
}

#[tokio::test]
async fn on_a_connection_strangers_and_second_replies_are_ignored_until_there_are_too_many() {
    let strangers = |question: &Message, count: u8| {
        let wrong = |number| {
            srv(question, 9)
                .with_text()
                .edit(move |bytes| bytes[0] ^= 0x80 | number)
        };
        (0..count).map(wrong).collect::<Vec<_>>()
    };
    for (count, is_kept) in [(1, true), (40, false)] {
        let server = Server::start(move |question, transport| match transport {
            Transport::Udp => vec![srv(question, 1).truncated()],
            _ => {
                let mut replies = strangers(question, count / 4);
                let other = srv(question, 9).edit(|bytes| bytes[13] ^= 0x01);
                let (right, second) = (srv(question, 2).with_text(), srv(question, 9).with_text());
                replies.extend([other, right, second]);
                replies.extend(strangers(question, count - count / 4));
                replies
            }
        })
        .await;
        let resolver = resolver(&[&server]);
        for _ in 0..2 {
            let answer = resolver.lookup("web").await.unwrap();
            assert_eq!(answer.endpoints().len(), 2, "{count}");
            // For the rest to come in.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(server.connections() == 1, is_kept, "{count}");
    }
}

#[tokio::test]
async fn a_connection_bears_sixteen_strangers_and_no_more() {
    for (strangers, is_kept) in [(16_u8, true), (17, false)] {
        let came = AtomicBool::new(false);
        let server = Server::start(move |question, transport| {
            if transport == Transport::Udp {
                return vec![srv(question, 1).truncated()];
            }
            let count = match came.swap(true, Ordering::Relaxed) {
                false => strangers,
                true => 0,
            };
            let wrong = |number| {
                let stranger = srv(question, 9).with_text();
                stranger.edit(move |bytes| bytes[1] ^= number)
            };
            let right = srv(question, 2).with_text();
            (1..=count).map(wrong).chain([right]).collect()
        })
        .await;
        let resolver = resolver(&[&server]);
        for _ in 0..2 {
            let answer = resolver.lookup("web").await.unwrap();
            assert_eq!(answer.endpoints().len(), 2, "{strangers}");
        }
        assert_eq!(server.connections() == 1, is_kept, "{strangers}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_know_yet_is_not_the_only_one_asked_where_something_failed_lately() {
    let agent = Agent::start().await;
    for name in ["web", "api"] {
        let body = json!({ "Name": name, "Address": "10.0.0.1", "Port": 8000 });
        agent.register_service(body).await;
    }
    // It reads its log again, and has come to nothing but Consul's own service.
    let replays = Server::start(|question, _| {
        let name = question.queries[0].name().to_string();
        vec![match name.starts_with("consul.") {
            true => srv(question, 1),
            false => srv(question, 0).code(3),
        }]
    })
    .await;
    let resolver = |dns: &str| {
        let builder = Resolver::builder().dns(dns).http(&agent.http());
        builder.build().unwrap()
    };
    // While nothing fails the word of one is enough: a name that does not exist costs no more.
    let calm = resolver(&replays.address().to_string());
    assert!(calm.lookup("web").await.unwrap_err().is_not_found());

    let shaken = resolver(&format!("{},{}", closed_port(), replays.address()));
    for name in ["web", "api"] {
        let found = shaken.lookup(name).await.unwrap();
        assert_eq!((found.source(), found.endpoints().len()), (Source::Http, 1));
    }
    let nowhere = shaken.lookup("nowhere").await.unwrap_err();
    assert!(nowhere.is_not_found(), "{nowhere}");
}
