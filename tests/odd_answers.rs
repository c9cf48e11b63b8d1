//! Replies of Consul's DNS interface that are readable and odd: records that nobody asked
//! for, aliases that lead in a circle or to several places, instances told twice.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/script.rs"]
mod script;
mod support;

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::Message,
    rr::{
        Name, RData, RecordType,
        rdata::{A, CNAME, MX, NS, SRV},
    },
};
use proconsul::{Answer, Resolver};
use script::{Reply, Server, srv};
use support::ask_udp;
use tokio::time::Instant;

fn resolver(server: &Server) -> Resolver {
    let builder = Resolver::builder().dns(&server.address().to_string());
    builder
        .http("none")
        .ttl_floor(Duration::ZERO)
        .build()
        .unwrap()
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn evil() -> RData {
    RData::A(A(Ipv4Addr::new(6, 6, 6, 6)))
}

fn instance(port: u16) -> RData {
    RData::SRV(SRV::new(1, 1, port, name("06060606.addr.dc1.consul.")))
}

fn endpoints(answer: &Answer) -> Vec<String> {
    answer.endpoints().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn only_answers_to_the_question_are_instances() {
    let server = Server::start(|question, _| {
        vec![
            srv(question, 2)
                .answer("bank.service.consul.", 0, instance(1))
                .answer("example.", 0, instance(2))
                .answer("web.service.consul.", 0, evil())
                .answer("other.service.consul.", 0, evil())
                .authority("consul.", 0, RData::NS(NS(name("evil.node.consul."))))
                .authority(
                    "consul.",
                    0,
                    RData::MX(MX::new(1, name("evil.node.consul."))),
                )
                .glue("evil.node.consul.", [6, 6, 6, 6])
                .glue("bank.service.consul.", [6, 6, 6, 6])
                .with_text(),
        ]
    })
    .await;
    let answer = resolver(&server).lookup("web").await.unwrap();
    assert_eq!(endpoints(&answer), ["10.0.0.1:1", "10.0.0.2:2"]);
}

#[tokio::test]
async fn a_reply_that_holds_answers_to_another_question_alone_is_none_to_ours() {
    let server = Server::start(|question, _| {
        let told = match question.queries[0].name().to_string().as_str() {
            "consul.service.consul." => srv(question, 1),
            _ => srv(question, 0).answer("bank.service.consul.", 0, instance(1)),
        };
        vec![told.with_text()]
    })
    .await;
    let error = resolver(&server).lookup("web").await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn the_addresses_of_a_node_are_its_own() {
    let server = Server::start(|question, _| {
        let owner = question.queries[0].name().to_string();
        let address = |last| RData::A(A(Ipv4Addr::new(10, 0, 0, last)));
        vec![
            srv(question, 0)
                .answer(&owner, 0, address(1))
                .answer("bank.node.consul.", 0, evil())
                .answer(&owner.to_uppercase(), 0, address(2)),
        ]
    })
    .await;
    let answer = resolver(&server).lookup("host.node.consul").await.unwrap();
    assert_eq!(endpoints(&answer), ["10.0.0.1", "10.0.0.2"]);
}

#[tokio::test]
async fn what_came_beside_an_answer_answers_nothing_else() {
    let server = Server::start(|question, _| {
        let owner = question.queries[0].name().to_string();
        let told = match owner.as_str() {
            "vm.node.consul." => {
                srv(question, 0).answer(&owner, 0, RData::A(A(Ipv4Addr::new(10, 0, 0, 9))))
            }
            _ => srv(question, 0)
                .srv("vm.node.consul.", 80)
                .glue("vm.node.consul.", [10, 0, 0, 1])
                .with_text(),
        };
        vec![told]
    })
    .await;
    let resolver = resolver(&server);
    let web = resolver.lookup("web").await.unwrap();
    assert_eq!(endpoints(&web), ["10.0.0.1:80"]);
    let node = resolver.lookup("vm.node.consul").await.unwrap();
    assert_eq!(
        (endpoints(&node), server.asked()),
        (vec!["10.0.0.9".to_owned()], 2)
    );
}

/// A reply of one instance whose target stands for others, one after the other; the last
/// has an address.
fn chain(question: &Message, names: &[&str]) -> Reply {
    let mut reply = srv(question, 0).srv(names[0], 80);
    for two in names.windows(2) {
        reply = reply.alias(two[0], two[1]);
    }
    reply
        .glue(names[names.len() - 1], [10, 0, 0, 1])
        .with_text()
}

#[tokio::test]
async fn an_alias_is_followed_eight_steps_and_no_circle_is() {
    let nodes: Vec<String> = (0..11).map(|at| format!("n{at}.node.consul.")).collect();
    let server = Server::start(move |question, _| {
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        vec![match question.queries[0].name().to_string().as_str() {
            "one.service.consul." => chain(question, &nodes[..2]),
            "seven.service.consul." => chain(question, &nodes[..8]),
            "nine.service.consul." => chain(question, &nodes[..10]),
            "self.service.consul." => srv(question, 0)
                .srv(nodes[0], 80)
                .alias(nodes[0], nodes[0])
                .with_text(),
            "two.service.consul." => srv(question, 0)
                .srv(nodes[0], 80)
                .alias(nodes[0], nodes[1])
                .alias(nodes[1], nodes[0])
                .with_text(),
            // Two places at once, which DNS does not allow: to take one would be a guess.
            "fan.service.consul." => srv(question, 0)
                .srv(nodes[0], 80)
                .alias(nodes[0], nodes[1])
                .alias(nodes[0], nodes[2])
                .glue(nodes[1], [10, 0, 0, 1])
                .glue(nodes[2], [10, 0, 0, 2])
                .with_text(),
            // One place, told twice.
            "twice.service.consul." => srv(question, 0)
                .srv(nodes[0], 80)
                .alias(nodes[0], nodes[1])
                .alias(nodes[0], nodes[1])
                .glue(nodes[1], [10, 0, 0, 1])
                .with_text(),
            // Services that stand for each other.
            "left.service.consul." => srv(question, 0)
                .srv("right.service.consul.", 80)
                .with_text(),
            "right.service.consul." => srv(question, 0).srv("left.service.consul.", 80).with_text(),
            // Of the targets themselves nobody knows more.
            _ => srv(question, 0).code(3),
        }]
    })
    .await;
    let resolver = resolver(&server);
    for (service, found) in [
        ("one", true),
        ("seven", true),
        ("twice", true),
        ("nine", false),
        ("self", false),
        ("two", false),
        ("fan", false),
        ("left", false),
    ] {
        let (before, start) = (server.asked(), Instant::now());
        let answer = resolver.lookup(service).await.unwrap();
        let expected: &[&str] = if found { &["10.0.0.1:80"] } else { &[] };
        assert_eq!(endpoints(&answer), expected, "{service}");
        assert_eq!(
            answer.is_complete(),
            found,
            "{service}: {:?}",
            answer.warnings()
        );
        assert!(start.elapsed() < Duration::from_secs(1), "{service}");
        let asked = server.asked() - before;
        assert!(asked <= 8, "{service}: {asked} questions");
    }
}

#[tokio::test]
async fn an_alias_of_a_node_to_two_places_leads_nowhere() {
    let server = Server::start(|question, _| {
        let owner = question.queries[0].name().to_string();
        let alias = |target| RData::CNAME(CNAME(name(target)));
        let told = srv(question, 0).answer(&owner, 0, alias("a.node.consul."));
        let told = match owner.as_str() {
            "fan.node.consul." => told.answer(&owner, 0, alias("b.node.consul.")),
            _ => told,
        };
        vec![told.answer("a.node.consul.", 0, RData::A(A(Ipv4Addr::new(10, 0, 0, 1))))]
    })
    .await;
    let resolver = resolver(&server);
    let one = resolver.lookup("host.node.consul").await.unwrap();
    assert_eq!(endpoints(&one), ["10.0.0.1"]);
    let fan = resolver.lookup("fan.node.consul").await;
    assert!(
        fan.as_ref().map_or(true, |fan| fan.endpoints().is_empty()),
        "{fan:?}"
    );
}

#[tokio::test]
async fn an_instance_told_twice_is_one_and_two_ports_of_a_host_are_two() {
    let server = Server::start(|question, _| {
        let mut reply = srv(question, 1);
        for port in [1, 1, 2] {
            reply = reply.srv("0a000001.addr.dc1.consul.", port);
        }
        vec![
            reply
                .glue("0a000001.addr.dc1.consul.", [10, 0, 0, 1])
                .with_text(),
        ]
    })
    .await;
    let answer = resolver(&server).lookup("web").await.unwrap();
    assert_eq!(endpoints(&answer), ["10.0.0.1:1", "10.0.0.1:2"]);
    assert!(answer.endpoints().iter().all(|one| one.weight == 1));
}

#[tokio::test]
async fn a_service_whose_only_target_is_the_root_is_decidedly_not_there() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&asked);
    let server = Server::start(move |question, _| {
        let query = &question.queries[0];
        let line = format!("{} {}", query.name(), query.query_type());
        heard.lock().unwrap().push(line);
        vec![match query.name().to_string().as_str() {
            "web.service.consul." => srv(question, 0).srv(".", 80).glue(".", [6, 6, 6, 6]),
            _ => srv(question, 1).with_text(),
        }]
    })
    .await;
    let error = resolver(&server).lookup("web").await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    // No address of the same name instead.
    for line in asked.lock().unwrap().iter() {
        assert!(line.ends_with(".service.consul. SRV"), "{line}");
    }
}

#[tokio::test]
async fn host_names_of_a_large_set_are_no_flood() {
    let asked: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let heard = Arc::clone(&asked);
    let server = Server::start(move |question, _| {
        let name = question.queries[0].name().to_string();
        if name != "web.service.consul." {
            // Silence: each is in the air until the look-up's time is over.
            heard.lock().unwrap().insert(name);
            return Vec::new();
        }
        let hosts = (0..90).map(|host| format!("h{host}.node.consul."));
        let reply = hosts.fold(srv(question, 0), |reply, host| reply.srv(&host, 80));
        vec![reply.with_text()]
    })
    .await;
    let builder = Resolver::builder().dns(&server.address().to_string());
    // What is told at the end of that time must not be late where the machine stands still.
    let resolver = builder.http("none").timeout(Duration::from_secs(3));
    let answer = resolver.build().unwrap().lookup("web").await.unwrap();
    assert!(!answer.is_complete());
    let asked = asked.lock().unwrap().len();
    assert!((1..=64).contains(&asked), "{asked} were asked for at once");
}

#[tokio::test]
async fn a_set_in_another_order_is_the_same_set() {
    let turn = AtomicU16::new(0);
    let server = Server::start(move |question, _| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let mut reply = srv(question, 0);
        for at in 0..5 {
            let at = (at + turn) % 5 + 1;
            let target = format!("0a0000{at:02x}.addr.dc1.consul.");
            reply = reply.srv(&target, at);
        }
        vec![reply.with_text()]
    })
    .await;
    let resolver = resolver(&server);
    let changes = || {
        let metrics = resolver.metrics().to_string();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("proconsul_membership_changes_total"));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    for _ in 0..5 {
        assert_eq!(resolver.lookup("web").await.unwrap().endpoints().len(), 5);
    }
    assert_eq!(changes(), "0");
}

#[tokio::test]
async fn one_instance_that_cannot_be_used_leaves_the_others() {
    let server = Server::start(|question, _| {
        vec![
            srv(question, 2)
                .srv("nosuch.node.consul.", 1)
                .srv("zz.addr.dc1.consul.", 2)
                .srv("0a000009.addr.dc1.consul.", 0)
                .with_text(),
        ]
    })
    .await;
    let resolver = resolver(&server);
    let answer = resolver.lookup("web").await.unwrap();
    let found = endpoints(&answer);
    assert!(
        found.starts_with(&["10.0.0.1:1".to_owned(), "10.0.0.2:2".to_owned()]),
        "{found:?}"
    );
    // The one without a port is told and never picked.
    let mut picker = resolver.picker(&answer, proconsul::Strategy::RoundRobin);
    for _ in 0..10 {
        assert_ne!(picker.pick().unwrap().port, 0);
    }
}

#[tokio::test]
async fn an_alias_that_leads_in_a_circle_is_answered_in_time_by_the_stub() {
    let server = Server::start(|question, _| {
        vec![srv(question, 0).srv("web.service.consul.", 80).with_text()]
    })
    .await;
    let any = "127.0.0.1:0".parse().unwrap();
    let stub = proconsul::stub::Stub::bind(resolver(&server), &[any])
        .await
        .unwrap();
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    for kind in [RecordType::A, RecordType::SRV, RecordType::ANY] {
        let start = Instant::now();
        let reply = ask_udp(address, "web.service.consul.", kind).await.unwrap();
        assert!(
            reply
                .answers
                .iter()
                .all(|record| record.data.ip_addr().is_none())
        );
        assert!(start.elapsed() < Duration::from_millis(1_500), "{kind}");
    }
}
