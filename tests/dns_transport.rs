//! What a real agent cannot be made to do: forged and broken replies, other name
//! servers in between, connections that end. "A reply is accepted only if address,
//! port, id and question match" (RFC 5452, section 9.1).

#[expect(clippy::unwrap_used, reason = "a test that fails says where")]
#[path = "support/script.rs"]
mod script;
mod support;

use std::time::Duration;

use proconsul::{Answer, ErrorKind, Outcome, Resolver, Transport};
use script::{Reply, Server, srv};

fn resolver(server: &Server) -> Resolver {
    let builder = Resolver::builder()
        .dns(&server.address().to_string())
        .http("none");
    builder
        .ttl_floor(Duration::ZERO)
        .timeout(Duration::from_secs(5))
        .build()
        .expect("an address")
}

fn outcomes(answer: &Answer) -> Vec<(Transport, Outcome)> {
    answer
        .attempts()
        .iter()
        .map(|attempt| (attempt.transport, attempt.outcome))
        .collect()
}

#[tokio::test]
async fn strangers_are_ignored_and_the_right_reply_is_still_taken() {
    let server = Server::start(|question, _| {
        let right = srv(question, 3).with_text();
        vec![
            Reply::bytes(b""),
            Reply::bytes(b"\0"),
            Reply::bytes(&[0xff; 40]),
            srv(question, 9).edit(|bytes| bytes[0] ^= 0x40),
            srv(question, 9).edit(|bytes| bytes[2] &= 0x7f),
            srv(question, 9).edit(|bytes| bytes[5] = 2),
            // Another name, of the same length.
            srv(question, 9).edit(|bytes| bytes[13] ^= 0x01),
            srv(question, 9).edit(|bytes| bytes.truncate(40)),
            srv(question, 9).edit(|bytes| bytes.push(0)),
            right,
        ]
    })
    .await;
    let resolver = resolver(&server);
    let answer = resolver.lookup("web").await.expect("the right reply");
    assert_eq!(resolver.ignored_replies(), 9, "each is counted");
    assert_eq!(answer.endpoints().len(), 3);
    assert_eq!(outcomes(&answer), [(Transport::Udp, Outcome::Answered)]);
}

#[tokio::test]
async fn a_reply_from_another_address_never_arrives() {
    let server = Server::start(|question, _| {
        vec![
            srv(question, 9).with_text().sent_from_elsewhere(),
            srv(question, 2).with_text(),
        ]
    })
    .await;
    let answer = resolver(&server)
        .lookup("web")
        .await
        .expect("the right reply");
    assert_eq!(answer.endpoints().len(), 2);
}

#[tokio::test]
async fn a_flood_of_guesses_sends_the_question_over_tcp() {
    let server = Server::start(|question, transport| match transport {
        Transport::Udp => (0..100)
            .map(|guess| {
                srv(question, 9)
                    .with_text()
                    .edit(move |bytes| bytes[1] ^= guess | 0x80)
            })
            .collect(),
        _ => vec![srv(question, 4).with_text()],
    })
    .await;
    let answer = resolver(&server)
        .lookup("web")
        .await
        .expect("the reply over TCP");
    assert_eq!(answer.endpoints().len(), 4);
    assert_eq!(
        outcomes(&answer),
        [
            (Transport::Udp, Outcome::Malformed),
            (Transport::Tcp, Outcome::Answered)
        ]
    );
}

#[tokio::test]
async fn fifteen_wrong_ids_are_ignored_and_the_next_one_sends_the_question_over_tcp() {
    for (wrong, over) in [(15_u8, Transport::Udp), (16, Transport::Tcp)] {
        let server = Server::start(move |question, transport| {
            let right = srv(question, 4).with_text();
            let guesses = (1..=wrong).map(|guess| {
                let forged = srv(question, 9).with_text();
                forged.edit(move |bytes| bytes[1] ^= guess)
            });
            match transport {
                Transport::Udp => guesses.chain([right]).collect(),
                _ => vec![right],
            }
        })
        .await;
        let answer = resolver(&server).lookup("web").await.unwrap();
        assert_eq!((answer.transport(), answer.endpoints().len()), (over, 4));
    }
}

#[tokio::test]
async fn a_truncated_datagram_is_asked_again_over_tcp() {
    let server = Server::start(|question, transport| match transport {
        Transport::Udp => vec![srv(question, 1).with_text().truncated()],
        _ => vec![srv(question, 30).with_text()],
    })
    .await;
    let answer = resolver(&server)
        .lookup("web")
        .await
        .expect("the reply over TCP");
    assert_eq!((answer.endpoints().len(), answer.is_complete()), (30, true));
}

#[tokio::test]
async fn truncated_over_tcp_too_is_given_and_marked_without_a_loop() {
    let server = Server::start(|question, _| vec![srv(question, 5).with_text().truncated()]).await;
    let answer = resolver(&server)
        .lookup("web")
        .await
        .expect("what there is");
    assert_eq!((answer.endpoints().len(), answer.is_complete()), (5, false));
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn a_set_through_another_name_server_is_not_called_complete() {
    let server =
        Server::start(|question, _| vec![srv(question, 3).with_text().with_size(1232)]).await;
    let answer = resolver(&server)
        .lookup("web")
        .await
        .expect("what there is");
    assert_eq!((answer.endpoints().len(), answer.is_complete()), (3, false));
    assert!(
        answer.warnings()[0].contains("another name server"),
        "{:?}",
        answer.warnings()
    );
}

#[tokio::test]
async fn a_datagram_that_may_be_cut_is_given_where_tcp_fails() {
    let server = Server::start(|question, transport| match transport {
        Transport::Udp => vec![srv(question, 3)],
        _ => vec![Reply::hang_up()],
    })
    .await;
    let answer = resolver(&server)
        .lookup("web")
        .await
        .expect("what there is");
    assert_eq!((answer.endpoints().len(), answer.is_complete()), (3, false));
}

#[tokio::test]
async fn addresses_come_from_the_zone_s_own_glue_and_from_nowhere_else() {
    let server = Server::start(|question, _| {
        vec![
            srv(question, 0)
                .srv("vm.node.dc1.consul.", 1)
                .glue("vm.node.dc1.consul.", [10, 0, 0, 1])
                .srv("bank.invalid.", 2)
                .glue("bank.invalid.", [6, 6, 6, 6])
                .srv(".", 3)
                .with_text(),
        ]
    })
    .await;
    let answer = resolver(&server).lookup("web").await.expect("the reply");
    let found: Vec<_> = answer.endpoints().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.0.0.1:1"]);
    assert!(
        answer.warnings()[0].starts_with("bank.invalid. has no address"),
        "{:?}",
        answer.warnings()
    );
}

#[tokio::test]
async fn a_failing_server_is_passed_over_for_the_next() {
    let failing = Server::start(|question, _| vec![srv(question, 0).code(2)]).await;
    let good = Server::start(|question, _| vec![srv(question, 2).with_text()]).await;
    let both = format!("{},{}", failing.address(), good.address());
    let resolver = Resolver::builder()
        .dns(&both)
        .http("none")
        .build()
        .expect("addresses");
    let answer = resolver
        .lookup("web")
        .await
        .expect("the second server's reply");
    assert_eq!(answer.endpoints().len(), 2);
    assert_eq!(answer.attempts()[0].outcome, Outcome::Failed);
}

#[tokio::test]
async fn questions_are_pipelined_on_one_connection_and_replies_taken_in_any_order() {
    let server = Server::reversing(20, |question| srv(question, 1).with_text()).await;
    let resolver = resolver(&server);
    let names: Vec<_> = (0..20).map(|at| format!("s{at}")).collect();
    let askers: Vec<_> = names
        .into_iter()
        .map(|name| {
            let resolver = resolver.clone();
            tokio::spawn(async move {
                resolver
                    .lookup(&name)
                    .await
                    .map(|answer| answer.name().to_owned())
            })
        })
        .collect();
    for (at, asker) in askers.into_iter().enumerate() {
        let name = asker.await.expect("no panic").expect("a reply");
        assert_eq!(name, format!("s{at}.service.consul."));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_opened_again_unseen() {
    let server = Server::start(|question, transport| match transport {
        Transport::Udp => vec![srv(question, 1).with_text().truncated()],
        _ => vec![srv(question, 2).with_text(), Reply::hang_up()],
    })
    .await;
    let resolver = resolver(&server);
    for _ in 0..3 {
        let answer = resolver.lookup("web").await.expect("a reply each time");
        assert_eq!(answer.endpoints().len(), 2);
    }
    assert!(server.connections() >= 2);
}

#[tokio::test]
async fn nothing_but_noise_is_a_failure_that_is_told() {
    let server =
        Server::start(|question, _| vec![srv(question, 9).edit(|bytes| bytes.truncate(30))]).await;
    let error = resolver(&server)
        .lookup("web")
        .await
        .expect_err("no reply can be read");
    assert!(
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout),
        "{error}"
    );
}

// The slow server's thread sleeps; the asker needs one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_has_all_the_time_there_is_and_a_lost_datagram_costs_little() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let lost = Server::start(move |question, _| {
        let first = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        if first {
            Vec::new()
        } else {
            vec![srv(question, 2).with_text()]
        }
    })
    .await;
    let answer = resolver(&lost)
        .lookup("web")
        .await
        .expect("the second datagram's reply");
    assert_eq!((answer.endpoints().len(), lost.asked()), (2, 2));

    let slow = Server::start(|question, _| {
        std::thread::sleep(Duration::from_millis(700));
        vec![srv(question, 3).with_text()]
    })
    .await;
    let answer = resolver(&slow).lookup("web").await.expect("the late reply");
    assert_eq!(answer.endpoints().len(), 3);
}

#[tokio::test]
async fn a_name_that_needs_tcp_is_still_found_where_tcp_stops_to_work() {
    let server = Server::start(|question, transport| match transport {
        Transport::Udp => vec![srv(question, 3).truncated()],
        _ => vec![Reply::hang_up()],
    })
    .await;
    let resolver = resolver(&server);
    for _ in 0..3 {
        let answer = resolver.lookup("web").await.expect("what there is");
        assert_eq!((answer.endpoints().len(), answer.is_complete()), (3, false));
    }
}

#[tokio::test]
async fn a_text_that_stands_where_an_address_should_proves_nothing() {
    // What Consul makes anew after a cut: the first record of each target's name.
    let server = Server::start(|question, _| {
        let reply = srv(question, 0).srv("0a000001.addr.dc1.consul.", 1);
        let reply = reply.glue("0a000001.addr.dc1.consul.", [10, 0, 0, 1]);
        vec![
            reply
                .srv("vm.node.dc1.consul.", 2)
                .with_text()
                .with_size(4093),
        ]
    })
    .await;
    let answer = resolver(&server)
        .lookup("web")
        .await
        .expect("what there is");
    assert!(!answer.is_complete());
}

#[tokio::test]
async fn a_reply_cut_down_to_nothing_is_not_the_end_of_a_name() {
    let server = Server::start(|question, transport| match transport {
        Transport::Udp => vec![srv(question, 0).truncated()],
        _ => vec![Reply::hang_up()],
    })
    .await;
    let error = resolver(&server)
        .lookup("web")
        .await
        .expect_err("nothing was heard");
    assert!(error.is_unavailable(), "{error}");
}
