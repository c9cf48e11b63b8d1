//! "All of them, always": whatever the agent cuts from a reply without a word,
//! a look-up gives every instance, or says that it cannot.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::rr::RecordType;
use proconsul::{Answer, Freshness, Resolver, Source, Transport, stub::Stub};
use support::{Agent, Over, Proxy, SilentDns, Weather, ask, ask_tcp, ask_udp, wait_for};

/// A resolver that keeps nothing, so that each look-up asks.
fn resolver(agent: &Agent, http: &str) -> Resolver {
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .ttl_floor(Duration::ZERO)
        .keep_stale(Duration::ZERO);
    // A test machine under load must not turn a slow answer into a failed one, nor into the
    // one before.
    builder
        .http(http)
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap()
}

fn found(answer: &Answer) -> BTreeSet<SocketAddr> {
    answer
        .endpoints()
        .iter()
        .map(|endpoint| endpoint.socket_addr())
        .collect()
}

#[track_caller]
fn assert_whole(answer: &Answer, registered: &[SocketAddr]) {
    let registered: BTreeSet<_> = registered.iter().copied().collect();
    assert!(
        answer.is_complete(),
        "{}: {:?}",
        answer.name(),
        answer.warnings()
    );
    assert_eq!(
        answer.endpoints().len(),
        registered.len(),
        "{}: nothing twice",
        answer.name()
    );
    assert_eq!(found(answer), registered, "{}", answer.name());
}

#[tokio::test]
async fn every_instance_of_an_agent_s_services_is_found_whatever_their_number() {
    let agent = Agent::builder().node("vm").start().await;
    let shared = resolver(&agent, "none");
    // Around 43, EDNS is passed by less than one record; see the module complete.
    for count in [1, 3, 19, 20, 41, 42, 43, 44, 45, 100] {
        let service = format!("s{count}");
        let registered = agent.register_instances(&service, count).await;
        assert_whole(&shared.lookup(&service).await.unwrap(), &registered);
        // The first question of a resolver goes over UDP.
        let answer = resolver(&agent, "none").lookup(&service).await.unwrap();
        assert_whole(&answer, &registered);
        assert_eq!(answer.source(), Source::Dns);
        // By the length of the node's name, which stands in each TXT record.
        let wanted = if count <= 42 {
            Transport::Udp
        } else {
            Transport::Tcp
        };
        assert_eq!(answer.transport(), wanted, "{count}");
    }
    // The same agent gives others 3.
    let plain = ask_udp(agent.dns(), "s100.service.consul.", RecordType::SRV)
        .await
        .unwrap();
    assert_eq!((plain.answers.len(), plain.metadata.truncation), (3, false));
}

#[tokio::test]
async fn every_instance_is_found_on_nodes_without_metadata_that_could_prove_it() {
    let agent = Agent::start().await;
    let resolver = resolver(&agent, "none");
    for count in [1, 3, 20, 60, 100, 700] {
        let service = format!("n{count}");
        let registered = agent.register_nodes(&service, count).await;
        let answer = resolver.lookup(&service).await.unwrap();
        assert_whole(&answer, &registered);
        assert_eq!(answer.source(), Source::Dns);
    }
}

#[tokio::test]
async fn what_tcp_cannot_carry_comes_over_http_and_without_http_is_marked() {
    let agent = Agent::start().await;
    let registered = agent.register_instances("large", 1_500).await;

    let answer = resolver(&agent, &agent.http())
        .lookup("large")
        .await
        .unwrap();
    assert_whole(&answer, &registered);
    assert_eq!(answer.source(), Source::Http);
    assert!(
        answer
            .endpoints()
            .iter()
            .all(|endpoint| endpoint.id.is_some())
    );

    let cut = resolver(&agent, "none").lookup("large").await.unwrap();
    assert!(!cut.is_complete());
    assert!(
        cut.warnings()[0].contains("not known to be whole"),
        "{:?}",
        cut.warnings()
    );
    let theirs = ask_tcp(agent.dns(), "large.service.consul.", RecordType::SRV)
        .await
        .unwrap();
    assert!(!theirs.metadata.truncation, "the agent itself says nothing");
    assert_eq!(cut.endpoints().len(), theirs.answers.len());
}

#[tokio::test]
async fn sets_that_just_pass_tcp_s_limit_with_their_metadata_lose_nothing() {
    let agent = Agent::builder().node("vm").start().await;
    let resolver = resolver(&agent, "none");
    let registered = agent.register_instances("edge", 620).await;
    let mut trapped = 0;
    for count in (600..=620).rev() {
        let answer = resolver.lookup("edge").await.unwrap();
        assert_whole(&answer, &registered[..count]);
        let raw = ask_tcp(agent.dns(), "edge.service.consul.", RecordType::SRV)
            .await
            .unwrap();
        trapped += usize::from(raw.answers.len() < count);
        agent
            .deregister_service(&format!("edge-{}", count - 1))
            .await;
        agent.wait_for_instances("edge", count - 1).await;
    }
    assert!(
        trapped > 0,
        "no count in this range made the agent cut its reply over TCP"
    );
    assert!(
        trapped < 20,
        "{trapped} counts: that is no trap but a limit"
    );
}

#[tokio::test]
async fn a_name_is_asked_over_the_transport_that_it_needed_last_time() {
    let agent = Agent::start().await;
    agent.register_instances("many", 100).await;
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http("none");
    let resolver = builder.ttl_floor(Duration::ZERO).build().unwrap();
    let transports = |answer: &Answer| -> Vec<Transport> {
        answer
            .attempts()
            .iter()
            .map(|attempt| attempt.transport)
            .collect()
    };
    let first = resolver.lookup("many").await.unwrap();
    assert_eq!(transports(&first), [Transport::Udp, Transport::Tcp]);
    let second = resolver.lookup("many").await.unwrap();
    assert_eq!(transports(&second), [Transport::Tcp]);
    // Any other name follows it while the connection is open and free.
    agent.register_instances("few", 3).await;
    let few = resolver.lookup("few").await.unwrap();
    assert_eq!(transports(&few), [Transport::Tcp]);
}

#[tokio::test]
async fn a_dns_port_that_is_silent_leaves_time_for_http() {
    let agent = Agent::start().await;
    let registered = agent.register_instances("web", 3).await;
    let silent = SilentDns::start();
    let builder = Resolver::builder()
        .dns(&silent.address().to_string())
        .http(&agent.http());
    let answer = builder.build().unwrap().lookup("web").await.unwrap();
    assert_whole(&answer, &registered);
    assert_eq!(answer.source(), Source::Http);
    assert!(!silent.questions().is_empty(), "DNS was asked first");
}

#[tokio::test]
async fn a_part_takes_nothing_from_the_whole_that_was_known_and_the_stub_says_what_is_one() {
    let agent = Agent::start().await;
    let registered = agent.register_instances("web", 100).await;
    let dns = Proxy::start(Ipv4Addr::LOCALHOST, agent.dns()).await;
    let resolver = || {
        let builder = Resolver::builder()
            .dns(&dns.address().to_string())
            .http("none")
            .ttl_floor(Duration::from_millis(50));
        builder.timeout(Duration::from_secs(20)).build().unwrap()
    };
    let knows = resolver();
    assert_whole(&knows.lookup("web").await.unwrap(), &registered);

    // Over UDP the agent gives 67, and says nothing of the others.
    dns.set(Weather {
        tcp_refused: true,
        ..Weather::default()
    });
    let part = wait_for("a part of the set", async || {
        let found = knows.lookup("web").await.ok()?;
        (found.freshness() == Freshness::Fresh && !found.is_complete()).then_some(found)
    })
    .await;
    assert_eq!(found(&part), registered.iter().copied().collect());
    let warned = |text: &str| part.warnings().iter().any(|warning| warning.contains(text));
    assert!(
        warned("not known to be whole") && warned("33 of before"),
        "{:?}",
        part.warnings()
    );

    for (resolver, count) in [(knows, 100), (resolver(), 67)] {
        let any = "127.0.0.1:0".parse().unwrap();
        let stub = Stub::bind(resolver, &[any]).await.unwrap();
        let server = stub.addresses()[0];
        tokio::spawn(stub.run(std::future::pending()));
        // What is found, and what is given again.
        for _ in 0..2 {
            for over in [Over::Tcp, Over::Edns(4_096)] {
                let name = "web.service.consul.";
                let (reply, _) = ask(server, name, RecordType::A, over).await.unwrap();
                assert_eq!(
                    (reply.metadata.truncation, reply.answers.len()),
                    (true, count)
                );
            }
        }
    }
}
