//! How long what was said is believed: TTLs of every size, names that do not exist,
//! failures. Of names that are sent on, and of Consul's. What the cache does with time is
//! played in `src/cache/tests.rs` and `tests/scenarios`.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/script.rs"]
mod script;
mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType, rdata::SOA},
};
use proconsul::{Freshness, Resolver, ResolverBuilder};
use script::{Reply, Server, srv};
use support::{ask_udp, wait_for};
use tokio::time::sleep;
use upstream::{OWNER, Upstream, a, addresses, coded, record, reply, rr, soa, stub, stub_of, wire};

const ADDRESS: [u8; 4] = [10, 0, 0, 1];

/// Longer than a second, which is the shortest TTL there is.
const A_SECOND: Duration = Duration::from_millis(1_150);

fn consul(server: &Server) -> ResolverBuilder {
    let builder = Resolver::builder();
    builder.dns(&server.address().to_string()).http("none")
}

/// The name that a question is about.
fn name(question: &Message) -> String {
    question.queries[0].name().to_string().to_lowercase()
}

/// Says that there is no such name, with this SOA of Consul's zone.
fn nothing(question: &Message, soa: Option<(u32, u32)>) -> Reply {
    let reply = srv(question, 0).code(3);
    let Some((ttl, minimum)) = soa else {
        return reply;
    };
    let apex = Name::from_ascii("consul.").unwrap();
    let data = SOA::new(apex.clone(), apex, 1, 3_600, 600, 86_400, minimum);
    reply.authority("consul.", ttl, RData::SOA(data))
}

#[tokio::test]
async fn a_forwarded_answer_is_kept_for_its_lowest_ttl_and_never_longer_than_a_day() {
    // TTLs of an answer, those told of what is kept, whether it is fresh at once and after a second.
    type Case = (&'static str, &'static [u32], &'static [u32], bool, bool);
    let cases: [Case; 7] = [
        ("zero", &[0], &[0], false, false),
        ("one", &[1], &[1], true, false),
        ("an hour", &[3_600], &[3_600], true, true),
        ("a day and more", &[86_401], &[86_400], true, true),
        ("the highest bit", &[1 << 31], &[86_400], true, true),
        ("all bits", &[u32::MAX], &[86_400], true, true),
        ("of several the lowest", &[300, 1], &[300, 1], true, false),
    ];
    let upstream = Upstream::start(move |packet| {
        let ttls = cases[usize::from(packet[13] - b'a')].1;
        let answers: Vec<_> = (ttls.iter())
            .map(|ttl| rr(OWNER, 1, *ttl, &ADDRESS))
            .collect();
        Some(reply(packet, 0, [&answers, &[], &[]]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let names = ('a'..).map(|first| format!("{first}.example."));
    let mut asked = 0;
    for (name, (what, sent, told, at_once, _)) in names.clone().zip(cases) {
        for again in [false, true] {
            let seen: Vec<u32> = (a(stub, &name).await.answers.iter())
                .map(|record| record.ttl)
                .collect();
            // The first goes on as it came.
            let ttls = if again && at_once { told } else { sent };
            assert_eq!(seen, ttls, "{what}");
            asked += usize::from(!(again && at_once));
            assert_eq!(upstream.asked(), asked, "{what}, again: {again}");
        }
    }
    sleep(A_SECOND).await;
    for (name, (what, .., later)) in names.zip(cases) {
        _ = a(stub, &name).await;
        asked += usize::from(!later);
        assert_eq!(upstream.asked(), asked, "{what}, a second later");
    }
}

#[tokio::test]
async fn what_does_not_exist_elsewhere_is_kept_as_its_soa_says_and_not_without_one() {
    const LONG: u32 = 1 << 31;
    let alias = |ttl| rr(OWNER, 5, ttl, &wire("gone.example."));
    // Code, an alias before it, the SOA's TTL and minimum, whether it is fresh at once and
    // after a second.
    type Case = (
        &'static str,
        u8,
        Option<u32>,
        Option<(u32, u32)>,
        bool,
        bool,
    );
    let cases: [Case; 13] = [
        ("no SOA", 3, None, None, false, false),
        ("no SOA, nothing of the type", 0, None, None, false, false),
        ("minimum 0", 3, None, Some((900, 0)), false, false),
        ("TTL 0", 3, None, Some((0, 900)), false, false),
        ("minimum 1", 3, None, Some((900, 1)), true, false),
        (
            "TTL 1, nothing of the type",
            0,
            None,
            Some((1, 900)),
            true,
            false,
        ),
        (
            "a minimum of the highest bit",
            3,
            None,
            Some((LONG, LONG)),
            true,
            true,
        ),
        (
            "behind an alias, no SOA",
            3,
            Some(86_400),
            None,
            false,
            false,
        ),
        (
            "behind an alias, minimum 1",
            3,
            Some(86_400),
            Some((900, 1)),
            true,
            false,
        ),
        (
            "behind an alias of a second",
            3,
            Some(1),
            Some((900, 900)),
            true,
            false,
        ),
        (
            "behind an alias, long",
            3,
            Some(86_400),
            Some((900, 900)),
            true,
            true,
        ),
        (
            "an alias to nothing of the type, no SOA",
            0,
            Some(86_400),
            None,
            false,
            false,
        ),
        (
            "an alias to nothing of the type",
            0,
            Some(86_400),
            Some((900, 1)),
            true,
            false,
        ),
    ];
    let upstream = Upstream::start(move |packet| {
        let (_, code, before, zone, ..) = cases[usize::from(packet[13] - b'a')];
        let answers: Vec<_> = before.map(alias).into_iter().collect();
        let told = zone.map(|(ttl, minimum)| soa("example.", ttl, minimum));
        let told: Vec<_> = told.into_iter().collect();
        Some(reply(packet, code, [&answers, &told, &[]]))
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let names = ('a'..).map(|first| format!("{first}.example."));
    let mut asked = 0;
    for (name, (what, code, before, _, at_once, _)) in names.clone().zip(cases) {
        for again in [false, true] {
            let told = a(stub, &name).await;
            let seen = (told.metadata.response_code, told.answers.len());
            let code = ResponseCode::from(0, code);
            assert_eq!(seen, (code, usize::from(before.is_some())), "{what}");
            if let Some(soa) = told.authorities.first().filter(|_| again && at_once) {
                assert!(soa.ttl <= 300, "{what}: {}", soa.ttl);
            }
            asked += usize::from(!(again && at_once));
            assert_eq!(upstream.asked(), asked, "{what}, again: {again}");
        }
    }
    sleep(A_SECOND).await;
    for (name, (what, .., later)) in names.zip(cases) {
        _ = a(stub, &name).await;
        asked += usize::from(!later);
        assert_eq!(upstream.asked(), asked, "{what}, a second later");
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_says_nothing_of_those_below_it() {
    let upstream = Upstream::start(|packet| {
        Some(match packet[12] {
            7 => reply(packet, 3, [&[], &[soa(".", 900, 900)], &[]]),
            _ => record(packet, 1, 60, &ADDRESS),
        })
    })
    .await;
    let server = Server::start(|question, _| {
        vec![match name(question).as_str() {
            "web.service.consul." => nothing(question, Some((60, 60))),
            _ => srv(question, 2).with_text(),
        }]
    })
    .await;
    let resolver = consul(&server).build().unwrap();
    let stub = stub_of(resolver, &[&upstream.address.to_string()]).await;
    for (parent, child) in [
        ("example.", "www.example."),
        ("web.service.consul.", "v2.web.service.consul."),
        // Consul answers so while there are services.
        ("service.consul.", "v2.web.service.consul."),
        ("consul.", "api.service.consul."),
    ] {
        let gone = a(stub, parent).await.metadata.response_code;
        assert_eq!(gone, ResponseCode::NXDomain, "{parent}");
        assert!(!a(stub, child).await.answers.is_empty(), "{child}");
    }
}

#[tokio::test]
async fn a_ttl_of_consuls_is_counted_by_its_lowest_and_told_as_a_day_at_most() {
    let server = Server::start(|question, _| {
        let ttls: &[u32] = match name(question).as_str() {
            "differ.service.consul." => &[300, 2],
            "huge.service.consul." => &[1 << 31; 2],
            "all.service.consul." => &[u32::MAX; 2],
            _ => &[0, 0],
        };
        vec![srv(question, 2).with_text().ttls(ttls)]
    })
    .await;
    let stub = stub_of(consul(&server).build().unwrap(), &["127.0.0.1:9"]).await;
    for (service, told) in [
        ("zero", 0),
        ("differ", 2),
        ("huge", 86_400),
        ("all", 86_400),
    ] {
        for _ in 0..2 {
            let name = format!("{service}.service.consul.");
            let reply = ask_udp(stub, &name, RecordType::SRV).await;
            for record in reply.unwrap().answers {
                assert_eq!(record.ttl, told, "{service}");
            }
        }
    }
    assert_eq!(server.asked(), 4, "within the floor of a second");
}

#[tokio::test]
async fn without_a_floor_nothing_of_no_time_to_live_is_given_as_fresh() {
    let asked_for = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked_for);
    let server = Server::start(move |question, _| {
        // Consul's own service is asked for beside it.
        let is_web = usize::from(name(question).starts_with("web"));
        counted.fetch_add(is_web, Ordering::Relaxed);
        vec![srv(question, 2).with_text()]
    })
    .await;
    let asked_so_far = || asked_for.load(Ordering::Relaxed);
    let resolver = consul(&server).ttl_floor(Duration::ZERO).build().unwrap();
    let stub = stub_of(resolver.clone(), &["127.0.0.1:9"]).await;
    for asked in 1..=5 {
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(answer.freshness(), Freshness::Fresh);
        assert_eq!(asked_so_far(), asked);
    }
    for asked in 6..=10 {
        assert_eq!(a(stub, "web.service.consul.").await.answers.len(), 2);
        assert_eq!(asked_so_far(), asked);
    }
}

#[tokio::test]
async fn what_consul_does_not_know_is_asked_for_again_within_the_bounds_of_what_does_not_exist() {
    // The SOA that comes with it, and whether it is believed still after 0.7 s.
    type Case = (&'static str, Option<(u32, u32)>, bool);
    let cases: [Case; 5] = [
        ("none", None, false),
        ("zero", Some((0, 0)), false),
        ("ttl", Some((0, 60)), false),
        ("long", Some((1 << 31, 1 << 31)), true),
        ("plain", Some((3, 5)), true),
    ];
    let server = Server::start(move |question, _| {
        let name = name(question);
        let case = cases.iter().find(|(service, ..)| name.starts_with(service));
        vec![case.map_or_else(
            || srv(question, 1).with_text(),
            |(_, soa, _)| nothing(question, *soa),
        )]
    })
    .await;
    let resolver = consul(&server).build().unwrap();
    // Whether anything is to be seen is asked once.
    assert!(resolver.lookup("consul.service.consul").await.is_ok());
    let asked = async |service: &str| {
        let before = server.asked();
        let error = resolver.lookup(service).await.unwrap_err();
        assert!(error.is_not_found(), "{service}: {error}");
        server.asked() > before
    };
    for (service, ..) in cases {
        assert!(asked(service).await, "{service}: new");
        assert!(!asked(service).await, "{service}: just now");
    }
    sleep(Duration::from_millis(700)).await;
    for (service, _, believed) in cases {
        assert_eq!(asked(service).await, !believed, "{service}: later");
    }
}

#[tokio::test]
async fn a_failure_takes_the_place_of_nothing_that_is_known() {
    let code = Arc::new(AtomicU8::new(0));
    let (elsewhere, at_consul) = (Arc::clone(&code), Arc::clone(&code));
    let upstream = Upstream::start(move |packet| {
        Some(match elsewhere.load(Ordering::Relaxed) {
            0 => record(packet, 1, 0, &ADDRESS),
            code => coded(packet, code),
        })
    })
    .await;
    let server = Server::start(move |question, _| {
        vec![match at_consul.load(Ordering::Relaxed) {
            0 => srv(question, 2).with_text(),
            code => srv(question, 0).code(code.into()),
        }]
    })
    .await;
    let resolver = consul(&server).ttl_floor(Duration::ZERO).build().unwrap();
    let stub = stub_of(resolver, &[&upstream.address.to_string()]).await;
    let known = async || {
        let web = a(stub, "web.service.consul.").await.answers.len();
        (web, addresses(&a(stub, "www.example.").await))
    };
    assert_eq!(known().await, (2, vec!["0 10.0.0.1".to_owned()]));
    for (what, failure) in [("SERVFAIL", 2), ("NOTIMP", 4), ("REFUSED", 5)] {
        code.store(failure, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(known().await, (2, vec!["30 10.0.0.1".to_owned()]), "{what}");
        }
    }
    code.store(0, Ordering::Relaxed);
    wait_for("the truth again", async || {
        (known().await.1 == ["0 10.0.0.1"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_upstream_is_asked_where_one_cannot_tell() {
    for (what, code) in [("SERVFAIL", 2), ("NOTIMP", 4), ("REFUSED", 5)] {
        let failing = Upstream::start(move |packet| Some(coded(packet, code))).await;
        let good = Upstream::start(|packet| Some(record(packet, 1, 60, &ADDRESS))).await;
        let both = [failing.address.to_string(), good.address.to_string()];
        let stub = stub(&[&both[0], &both[1]]).await;
        assert_eq!(
            addresses(&a(stub, "a.example.").await),
            ["60 10.0.0.1"],
            "{what}"
        );
        assert_eq!((failing.asked(), good.asked()), (1, 1), "{what}");
    }
    // That there is no such name is an answer.
    let none = Upstream::start(|packet| Some(coded(packet, 3))).await;
    let other = Upstream::start(|packet| Some(record(packet, 1, 60, &ADDRESS))).await;
    let both = [none.address.to_string(), other.address.to_string()];
    let stub = stub(&[&both[0], &both[1]]).await;
    let code = a(stub, "a.example.").await.metadata.response_code;
    assert_eq!((code, other.asked()), (ResponseCode::NXDomain, 0));
}

#[tokio::test]
async fn what_nobody_could_tell_of_a_name_is_told_for_a_second_without_asking_anew() {
    let well = Arc::new(AtomicBool::new(false));
    let at_consul = Arc::clone(&well);
    let server = Server::start(move |question, _| {
        let fails = !name(question).starts_with("known") && !at_consul.load(Ordering::Relaxed);
        vec![match fails {
            true => srv(question, 0).code(2),
            false => srv(question, 2).with_text(),
        }]
    })
    .await;
    let resolver = consul(&server).build().unwrap();
    assert_eq!(resolver.lookup("known").await.unwrap().endpoints().len(), 2);
    let first = resolver.lookup("new").await.unwrap_err();
    let asked = server.asked();
    for _ in 0..20 {
        let again = resolver.lookup("new").await.unwrap_err();
        assert_eq!(again.kind(), first.kind());
        assert!(again.to_string().contains("is not asked again"), "{again}");
        assert_eq!(again.attempts().len(), first.attempts().len());
    }
    assert_eq!(server.asked(), asked);
    // Who wants an answer of now asks.
    let now = resolver.lookup("new").max_age(Duration::ZERO).await;
    assert_eq!(now.unwrap_err().kind(), first.kind());
    // What is known is given, and other names are asked for.
    assert_eq!(resolver.lookup("known").await.unwrap().endpoints().len(), 2);
    assert!(resolver.lookup("other").await.is_err());
    well.store(true, Ordering::Relaxed);
    sleep(A_SECOND).await;
    assert_eq!(resolver.lookup("new").await.unwrap().endpoints().len(), 2);
}

#[tokio::test]
async fn a_name_that_once_failed_is_not_dead() {
    let well = Arc::new(AtomicBool::new(false));
    let (elsewhere, at_consul) = (Arc::clone(&well), Arc::clone(&well));
    let upstream = Upstream::start(move |packet| {
        Some(match elsewhere.load(Ordering::Relaxed) {
            true => record(packet, 1, 60, &ADDRESS),
            false => coded(packet, 2),
        })
    })
    .await;
    let server = Server::start(move |question, _| {
        let fails = !name(question).starts_with("known") && !at_consul.load(Ordering::Relaxed);
        vec![match fails {
            true => srv(question, 0).code(2),
            false => srv(question, 2).with_text(),
        }]
    })
    .await;
    let resolver = consul(&server).ttl_floor(Duration::ZERO).build().unwrap();
    let stub = stub_of(resolver, &[&upstream.address.to_string()]).await;
    assert_eq!(a(stub, "known.service.consul.").await.answers.len(), 2);
    // Somebody makes questions fail, again and again.
    for _ in 0..10 {
        for name in ["new.service.consul.", "new.example."] {
            let code = a(stub, name).await.metadata.response_code;
            assert_eq!(code, ResponseCode::ServFail, "{name}");
        }
        assert_eq!(a(stub, "known.service.consul.").await.answers.len(), 2);
    }
    well.store(true, Ordering::Relaxed);
    // What failed is asked for again after a second, and a source that failed is probed.
    wait_for("the forwarded name that failed", async || {
        (addresses(&a(stub, "new.example.").await) == ["60 10.0.0.1"]).then_some(())
    })
    .await;
    wait_for("the name that failed", async || {
        (a(stub, "new.service.consul.").await.answers.len() == 2).then_some(())
    })
    .await;
}

/// A stub whose only source of Consul's names is gone.
async fn without_consul(upstream: SocketAddr) -> SocketAddr {
    let closed = support::closed_port().to_string();
    let builder = Resolver::builder().dns(&closed).http(&closed);
    stub_of(builder.build().unwrap(), &[&upstream.to_string()]).await
}

#[tokio::test]
async fn consuls_names_are_not_asked_of_others_while_consul_is_gone() {
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 60, &ADDRESS))).await;
    let stub = without_consul(upstream.address).await;
    for name in [
        "web.service.consul.",
        "WEB.Service.CONSUL.",
        "v2.web.service.dc2.consul.",
        "host.node.consul.",
        "near.query.consul.",
        "web.connect.consul.",
        "_web._tcp.service.consul.",
    ] {
        for kind in [
            RecordType::A,
            RecordType::SRV,
            RecordType::TXT,
            RecordType::ANY,
        ] {
            let reply = ask_udp(stub, name, kind).await.unwrap();
            let code = reply.metadata.response_code;
            assert!(reply.answers.is_empty(), "{name} {kind}");
            // Of a node everybody knows that it has no SRV records.
            let known = name.contains(".node.") && kind == RecordType::SRV;
            let expected = if known {
                ResponseCode::NoError
            } else {
                ResponseCode::ServFail
            };
            assert_eq!(code, expected, "{name} {kind}");
        }
    }
    for name in ["service.consul.", "x.nosuch.consul.", "a.b.consul."] {
        let code = a(stub, name).await.metadata.response_code;
        assert_eq!(code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(upstream.asked(), 0);
}

#[tokio::test]
async fn names_of_the_network_at_hand_are_the_upstreams_to_answer() {
    // Names of one label and below home.arpa are this network's own: the server that it
    // names knows them, and nobody else is asked.
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 60, &ADDRESS))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    for (asked, name) in (1..).zip(["printer.", "nas.home.arpa.", "x.local."]) {
        assert_eq!(addresses(&a(stub, name).await), ["60 10.0.0.1"], "{name}");
        assert_eq!(upstream.asked(), asked, "{name}");
    }
}

/// "A DNS responder that receives an ANY query MAY decline to provide a conventional ANY response"
/// and give one set that it likes, or an HINFO record (RFC 8482, section 4).
#[tokio::test]
async fn what_an_upstream_likes_to_say_to_any_is_given_on_and_is_no_answer_to_other_types() {
    const HINFO: &[u8] = b"\x07RFC8482\0";
    let upstream = Upstream::start(|packet| {
        let [_, kind, ..] = packet[upstream::end(packet) - 4..] else {
            return None;
        };
        Some(match kind {
            255 => record(packet, 13, 60, HINFO),
            _ => record(packet, u16::from(kind), 60, &ADDRESS),
        })
    })
    .await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    for _ in 0..2 {
        let reply = ask_udp(stub, "www.example.", RecordType::ANY).await;
        let [answer] = &reply.unwrap().answers[..] else {
            panic!("one record was sent");
        };
        assert_eq!(answer.record_type(), RecordType::HINFO);
        // Kept as any other answer.
        assert_eq!(upstream.asked(), 1);
    }
    assert_eq!(addresses(&a(stub, "www.example.").await), ["60 10.0.0.1"]);
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test]
async fn an_upstream_does_not_answer_for_consuls_names_behind_an_alias() {
    let counted = Arc::new(AtomicUsize::new(0));
    let web = Arc::clone(&counted);
    let upstream = Upstream::start(|packet| {
        let target = wire("web.service.consul.");
        let alias = rr(OWNER, 5, 60, &target);
        let evil = rr(&target, 1, 86_400, &[6, 6, 6, 6]);
        Some(reply(packet, 0, [&[alias, evil.clone()], &[], &[evil]]))
    })
    .await;
    let server = Server::start(move |question, _| {
        web.fetch_add(1, Ordering::Relaxed);
        vec![srv(question, 2).with_text()]
    })
    .await;
    let stub = stub_of(
        consul(&server).build().unwrap(),
        &[&upstream.address.to_string()],
    )
    .await;
    for _ in 0..2 {
        _ = a(stub, "www.example.").await;
        let told = addresses(&a(stub, "web.service.consul.").await);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().all(|one| one.contains("10.0.0.")), "{told:?}");
    }
    assert_eq!(counted.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn another_place_that_is_silent_makes_nothing_of_ours_stale() {
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = Arc::clone(&silent);
    let server = Server::start(move |question, _| {
        let elsewhere = name(question).contains(".dc2.") && is_silent.load(Ordering::Relaxed);
        let replies = (!elsewhere).then(|| srv(question, 3).with_text());
        replies.into_iter().collect()
    })
    .await;
    let builder = consul(&server).ttl_floor(Duration::ZERO).datacenter("dc1");
    let resolver = builder.build().unwrap();
    let look = async |name: &str| resolver.lookup(name).await.unwrap().freshness();
    assert_eq!(look("db.service.dc2.consul").await, Freshness::Fresh);
    assert_eq!(look("web").await, Freshness::Fresh);
    silent.store(true, Ordering::Relaxed);
    assert_eq!(look("db.service.dc2.consul").await, Freshness::Stale);
    assert_eq!(look("web").await, Freshness::Fresh);
}

#[tokio::test]
async fn what_comes_after_silent_sources_is_there_before_the_stubs_time_is_over() {
    let server = Server::start(|_, _| Vec::new()).await;
    let web = consul(&server).default_address("web", "127.0.0.1:8443");
    let builder = web.default_address("api", "127.0.0.1:8444");
    let stub = stub_of(builder.build().unwrap(), &[]).await;
    // Twice, for a machine that is busy; the third would find the server left alone.
    let mut found = 0;
    for name in ["web.service.consul.", "api.service.consul."] {
        let reply = ask_udp(stub, name, RecordType::SRV).await.unwrap();
        found += reply.answers.len();
    }
    assert!(found > 0);
}
