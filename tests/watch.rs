//! Names that are followed: handles, changes, hot names and the program's `watch`,
//! against real agents.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/script.rs"]
mod script;
mod support;

use std::{
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proconsul::{
    Change, Changes, Endpoint, Freshness, Outcome, Resolver, ResolverBuilder, Service, Source,
};
use script::{Server, srv};
use serde_json::{Value, json};
use support::{
    Agent, Folder, PATIENCE, Proxy, Weather, closed_port,
    http::{ScriptedHttp, Step, entries, ok, status},
    wait_for,
};

fn builder(agent: &Agent) -> ResolverBuilder {
    Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http())
}

async fn register(agent: &Agent, name: &str, port: u16, tag: &str) {
    let id = format!("{name}-{port}");
    let body =
        json!({ "Name": name, "ID": id, "Address": "10.0.0.1", "Port": port, "Tags": [tag] });
    agent.register_service(body).await;
}

async fn next(changes: &mut Changes) -> Change {
    let next = tokio::time::timeout(PATIENCE, changes.next());
    next.await.expect("a change in time")
}

fn ports(endpoints: &[Endpoint]) -> Vec<u16> {
    let mut ports: Vec<_> = endpoints.iter().map(|endpoint| endpoint.port).collect();
    ports.sort_unstable();
    ports
}

#[tokio::test]
async fn each_change_is_told_as_what_came_what_went_and_what_is_there() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let resolver = builder(&agent).build().unwrap();
    let service = resolver.service("web").unwrap();
    let mut changes = service.changes();
    let first = next(&mut changes).await;
    assert_eq!((ports(&first.added), ports(&first.all)), (vec![1], vec![1]));
    service.ready().await;
    assert_eq!(ports(&service.endpoints()), [1]);

    register(&agent, "web", 2, "a").await;
    let second = next(&mut changes).await;
    assert_eq!(
        (ports(&second.added), ports(&second.all)),
        (vec![2], vec![1, 2])
    );
    assert!(second.removed.is_empty() && second.updated.is_empty());

    register(&agent, "web", 2, "b").await;
    let third = next(&mut changes).await;
    assert_eq!(
        (ports(&third.updated), ports(&third.all)),
        (vec![2], vec![1, 2])
    );
    assert_eq!(third.updated[0].tags.as_deref(), Some(&["b".into()][..]));

    agent.deregister_service("web-1").await;
    let fourth = next(&mut changes).await;
    assert_eq!(
        (ports(&fourth.removed), ports(&fourth.all)),
        (vec![1], vec![2])
    );

    agent.deregister_service("web-2").await;
    let fifth = next(&mut changes).await;
    assert_eq!(
        (ports(&fifth.removed), ports(&fifth.all)),
        (vec![2], vec![])
    );
    assert!(service.answer().is_none());
    assert!(resolver.lookup("web").await.unwrap_err().is_not_found());
    assert!(
        resolver
            .metrics()
            .to_string()
            .contains("proconsul_watches 1")
    );
}

#[tokio::test]
async fn a_look_up_of_a_followed_name_sees_a_change_without_asking() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    // What is cached otherwise would hold for an hour.
    let resolver = builder(&agent)
        .ttl_floor(Duration::from_secs(3_600))
        .build()
        .unwrap();
    let service = resolver.service("web").unwrap();
    service.ready().await;
    register(&agent, "web", 2, "a").await;
    let answer = wait_for("the second instance", async || {
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(answer.freshness(), Freshness::Fresh);
        (answer.endpoints().len() == 2).then_some(answer)
    })
    .await;
    assert!(answer.attempts().is_empty());
}

#[tokio::test]
async fn a_name_that_is_asked_often_is_followed_and_one_that_is_not_asked_is_not() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let floor = Duration::from_millis(200);
    let resolver = builder(&agent).ttl_floor(floor).build().unwrap();
    wait_for("a watch", async || {
        for _ in 0..30 {
            resolver.lookup("web").await.unwrap();
        }
        let metrics = resolver.metrics().to_string();
        metrics.contains("proconsul_watches 1").then_some(())
    })
    .await;
    // Asked as often as before, and no more than that, it stays followed, and nobody waits.
    let asked = |metrics: &str| {
        let mut lines = metrics.lines();
        let count =
            lines.find(|line| line.contains("lookup_duration_seconds_count{source=\"dns\""));
        count.map(str::to_owned)
    };
    let before = asked(&resolver.metrics().to_string());
    for _ in 0..60 {
        resolver.lookup("web").await.unwrap();
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let metrics = resolver.metrics().to_string();
    assert!(metrics.contains("proconsul_watches 1"), "{metrics}");
    assert_eq!(asked(&metrics), before);
    // Nobody asks any more: of two answers that are five seconds apart the second is the last.
    for tag in ["b", "c"] {
        tokio::time::sleep(Duration::from_secs(5)).await;
        register(&agent, "web", 1, tag).await;
    }
    wait_for("no watch", async || {
        let metrics = resolver.metrics().to_string();
        metrics.contains("proconsul_watches 0").then_some(())
    })
    .await;
    let none = builder(&agent).ttl_floor(floor).watches(0).build().unwrap();
    for _ in 0..10 {
        for _ in 0..30 {
            none.lookup("web").await.unwrap();
        }
        tokio::time::sleep(floor / 4).await;
    }
    assert!(none.metrics().to_string().contains("proconsul_watches 0"));
}

#[tokio::test]
async fn what_is_followed_at_an_agent_that_hangs_is_not_called_fresh_for_long() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let resolver = builder(&agent).build().unwrap();
    let service = resolver.service("web").unwrap();
    service.ready().await;
    wait_for("a watch", async || {
        let metrics = resolver.metrics().to_string();
        metrics.contains("proconsul_watches 1").then_some(())
    })
    .await;
    agent.pause();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let answer = resolver.lookup("web").await.unwrap();
    assert_eq!(answer.freshness(), Freshness::Stale, "{answer:?}");
    agent.resume();
    wait_for("the truth", async || {
        let answer = resolver.lookup("web").await.unwrap();
        (answer.freshness() == Freshness::Fresh).then_some(())
    })
    .await;
}

/// What an agent says of `web` and of its leader, which a test takes away.
fn agent_of(led: &Arc<AtomicBool>) -> ScriptedHttp {
    let led = Arc::clone(led);
    ScriptedHttp::start(move |asked| {
        let led = led.load(Ordering::SeqCst);
        if asked.is_pulse() {
            return vec![ok("", if led { "\"10.0.0.1:8300\"" } else { "\"\"" })];
        }
        if !asked.is_about("web") {
            return vec![status("403 Forbidden", "Permission denied")];
        }
        let headers = format!("X-Consul-Index: 7\r\nX-Consul-KnownLeader: {led}\r\n");
        let found = ok(&headers, &entries("web", &[80]));
        // A second, or so long that only the pulse tells.
        match asked.what().split_once("wait=") {
            None => vec![found],
            Some((_, "1s")) => vec![Step::Pause(Duration::from_secs(1)), found],
            Some(_) => vec![Step::Pause(PATIENCE)],
        }
    })
}

#[tokio::test]
async fn what_a_server_without_a_leader_confirms_is_marked_and_gets_no_younger() {
    let led = Arc::new(AtomicBool::new(true));
    let server = agent_of(&led);
    let builder = Resolver::builder().dns("none").http(&server.url());
    let service = builder.build().unwrap().service("web").unwrap();
    service.ready().await;
    assert!(service.answer().unwrap().warnings().is_empty());
    led.store(false, Ordering::SeqCst);
    let doubted = async || {
        let answer = service.answer()?;
        assert_eq!(ports(answer.endpoints()), [80]);
        let told = answer.warnings().first()?.contains("no leader");
        (told && answer.is_complete()).then_some(answer)
    };
    wait_for("the mark", doubted).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let answer = wait_for("the mark", doubted).await;
    assert!(answer.age() > Duration::from_secs(3), "{:?}", answer.age());
    led.store(true, Ordering::SeqCst);
    wait_for("the leader's word", async || {
        let answer = service.answer()?;
        let young = answer.age() < Duration::from_secs(2);
        (answer.warnings().is_empty() && young && answer.freshness() == Freshness::Fresh)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_server_without_a_leader_confirms_is_fresh_all_the_while_and_dns_is_not_asked() {
    // What DNS says otherwise would be seen.
    let agent = Agent::start().await;
    register(&agent, "web", 79, "a").await;
    let server = ScriptedHttp::of_web(|asked| {
        let found = ok(
            "X-Consul-Index: 7\r\nX-Consul-KnownLeader: false\r\n",
            &entries("web", &[80]),
        );
        // As Consul, which adds up to a sixteenth.
        let waits = asked.what().contains("wait=1s");
        let pause = Duration::from_millis(if waits { 1_062 } else { 0 });
        vec![Step::Pause(pause), found]
    });
    let resolver = builder(&agent).http(&server.url()).build().unwrap();
    let service = resolver.service("web").unwrap();
    wait_for("the first word of the HTTP API", async || {
        (ports(&service.endpoints()) == [80]).then_some(())
    })
    .await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(ports(answer.endpoints()), [80], "{answer:?}");
        assert_eq!(answer.freshness(), Freshness::Fresh);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_older_is_not_told_without_a_leader_and_with_one_only_if_it_stays() {
    // What DNS knows is of before, too, and it cannot tell.
    let agent = Agent::start().await;
    register(&agent, "web", 79, "a").await;
    const NEW: usize = 0;
    const OLD: usize = 1;
    const OLD_AND_LED: usize = 2;
    let phase = Arc::new(AtomicUsize::new(NEW));
    let told = Arc::clone(&phase);
    let server = ScriptedHttp::of_web(move |asked| {
        let (index, led, port) = match told.load(Ordering::SeqCst) {
            NEW => (900, true, 80),
            OLD => (300, false, 79),
            _ => (300, true, 79),
        };
        let headers = format!("X-Consul-Index: {index}\r\nX-Consul-KnownLeader: {led}\r\n");
        let waits = asked.what().contains("wait=");
        let pause = Duration::from_secs(u64::from(waits));
        vec![Step::Pause(pause), ok(&headers, &entries("web", &[port]))]
    });
    let resolver = builder(&agent).http(&server.url()).build().unwrap();
    let service = resolver.service("web").unwrap();
    wait_for("what is new", async || {
        (ports(&service.endpoints()) == [80]).then_some(())
    })
    .await;
    phase.store(OLD, Ordering::SeqCst);
    // Longer than a server with a leader is given to catch up.
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(ports(answer.endpoints()), [80], "{answer:?}");
        assert_eq!(ports(&service.endpoints()), [80]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = service.answer().unwrap();
    assert_eq!(answer.freshness(), Freshness::Stale);
    assert!(answer.age() > Duration::from_secs(4), "{:?}", answer.age());
    // Data that were replaced by older ones.
    phase.store(OLD_AND_LED, Ordering::SeqCst);
    let start = tokio::time::Instant::now();
    wait_for("what is there now", async || {
        (ports(&service.endpoints()) == [79]).then_some(())
    })
    .await;
    assert!(start.elapsed() > Duration::from_secs(2));
}

/// Names that one agent is asked for, and how often in a second a source may be asked that
/// asks to be left alone.
const MANY: u16 = 40;
const MOST: u64 = 2;

#[tokio::test]
async fn when_an_api_fails_one_of_all_who_follow_asks_and_what_they_know_is_not_asked_at_once() {
    let agent = Agent::start().await;
    let names: Vec<_> = (0..MANY).map(|number| format!("web{number}")).collect();
    for (name, port) in names.iter().zip(1..) {
        register(&agent, name, port, "a").await;
    }
    let at = Ipv4Addr::LOCALHOST;
    let dns = Proxy::start(at, agent.dns()).await;
    let api = agent.http().replace("http://", "").parse().unwrap();
    let http = Proxy::start(at, api).await;
    let resolver = builder(&agent)
        .dns(&dns.address().to_string())
        .http(&http.http())
        .build()
        .unwrap();
    let services: Vec<_> = (names.iter())
        .map(|name| resolver.service(name).unwrap())
        .collect();
    for service in &services {
        service.ready().await;
    }
    wait_for("all to be followed", async || {
        (resolver.status().watches == usize::from(MANY)).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (dns_before, http_before) = (dns.passed(), http.passed());
    // Connections that are open are cut: all who wait for a change hear it in one instant.
    http.set(Weather::refused());
    tokio::time::sleep(Duration::from_millis(50)).await;
    http.set(Weather {
        // Each request is one connection: those are counted.
        says: Some("HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".into()),
        ..Weather::default()
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (start, asked) = (tokio::time::Instant::now(), dns.passed() - dns_before);
    assert!(asked < u64::from(MANY) / 2, "{asked} at once");
    while start.elapsed() < Duration::from_secs(3) {
        for name in &names {
            resolver.lookup(name).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let asked = http.passed() - http_before;
    // A machine that stands still meanwhile had longer.
    let most = start.elapsed().as_secs().max(3) * MOST + 2;
    assert!((2..=most).contains(&asked), "{asked} and not {most}");
    let fresh = |service: &Service| service.answer().unwrap().source() == Source::Dns;
    assert!(services.iter().all(fresh));
    http.set(Weather::default());
    let followed = |service: &Service| service.answer().unwrap().source() == Source::Http;
    let all = async {
        while !services.iter().all(followed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
}

#[tokio::test]
async fn a_dns_answer_that_comes_late_takes_the_place_of_nothing_that_was_told_since() {
    let agent = Agent::start().await;
    // A set, or none at all, of before; and a set of what is gone.
    for (before, now) in [(true, true), (false, true), (true, false)] {
        if before {
            register(&agent, "web", 79, "a").await;
        } else {
            agent.deregister_service("web-79").await;
        }
        let mut tries = 0;
        while !comes_late(&agent, now).await {
            tries += 1;
            assert!(tries < 10, "the HTTP API always answered first");
        }
    }
}

/// What DNS says 800 ms late of `web`, which is there `now`. False: it was not asked before the
/// HTTP API had told.
async fn comes_late(agent: &Agent, now: bool) -> bool {
    let dns = Proxy::start(Ipv4Addr::LOCALHOST, agent.dns()).await;
    dns.set(Weather {
        delay: Duration::from_millis(800),
        ..Weather::default()
    });
    // The first is asked by whoever follows the name, who has others asked beside it meanwhile.
    let asked = AtomicUsize::new(0);
    let server = ScriptedHttp::of_web(move |_| {
        let ports: &[u16] = if now { &[80] } else { &[] };
        let told = ok("X-Consul-Index: 7\r\n", &entries("web", ports));
        match asked.fetch_add(1, Ordering::Relaxed) {
            0 => vec![Step::Pause(Duration::from_millis(300)), told],
            _ => vec![Step::Hang],
        }
    });
    let resolver = builder(agent).dns(&dns.address().to_string());
    let resolver = resolver.http(&server.url()).build().unwrap();
    let service = resolver.service("web").unwrap();
    let start = tokio::time::Instant::now();
    let expected = now.then(|| (Source::Http, vec![80]));
    let told = || {
        let answer = service.answer()?;
        Some((answer.source(), ports(answer.endpoints())))
    };
    wait_for("what whoever follows it is told", async || {
        let is_early = start.elapsed() < Duration::from_millis(500);
        (!is_early && told() == expected).then_some(())
    })
    .await;
    // Consul's own service is met a second after a set was found.
    let was_asked = dns.passed() > 0 && start.elapsed() < Duration::from_secs(1);
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!(told(), expected);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    was_asked
}

#[tokio::test]
async fn a_name_that_is_asked_often_stays_followed_however_often_it_changes() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let resolver = builder(&agent).build().unwrap();
    let (start, mut followed) = (tokio::time::Instant::now(), None);
    let mut number = 2;
    // Two looks at whether anybody still wants it.
    while followed.is_none_or(|since: tokio::time::Instant| since.elapsed().as_secs() < 12) {
        assert!(start.elapsed() < 2 * PATIENCE, "it is not followed");
        register(&agent, "web", number, "a").await;
        number = 2 + number % 5;
        for _ in 0..15 {
            resolver.lookup("web").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let watches = resolver.status().watches;
        assert!(watches == 1 || followed.is_none(), "it was left");
        if watches == 1 {
            followed.get_or_insert_with(tokio::time::Instant::now);
            agent.deregister_service(&format!("web-{number}")).await;
        }
    }
}

#[tokio::test]
async fn an_index_that_moves_without_a_change_hides_no_change() {
    let agent = Agent::start().await;
    register(&agent, "web", 80, "a").await;
    // It moves with each query, and what is told of the name by it is always the same.
    let server = ScriptedHttp::of_web(|asked| {
        let headers = format!("X-Consul-Index: {}\r\n", 7 + asked.number);
        vec![ok(&headers, &entries("web", &[80]))]
    });
    let service = builder(&agent).http(&server.url());
    let service = service.build().unwrap().service("web").unwrap();
    // By then it is asked for seldom.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(server.times("web") < 20);
    register(&agent, "web", 81, "a").await;
    wait_for("what DNS knows", async || {
        (ports(&service.endpoints()) == [80, 81]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_service_that_is_not_there_yet_is_told_when_it_comes() {
    let agent = Agent::start().await;
    let resolver = builder(&agent).build().unwrap();
    let service = resolver.service("late").unwrap();
    let mut changes = service.changes();
    assert_eq!(next(&mut changes).await, Change::default());
    register(&agent, "late", 7, "a").await;
    assert_eq!(ports(&next(&mut changes).await.added), [7]);
    service.ready().await;
}

#[tokio::test]
async fn without_the_http_api_changes_are_told_all_the_same() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    for http in ["none".to_owned(), format!("http://{}", closed_port())] {
        let resolver = builder(&agent).http(&http).build().unwrap();
        let service = resolver.service("web").unwrap();
        let mut changes = service.changes();
        let there = ports(&next(&mut changes).await.all);
        register(&agent, "web", 9, "a").await;
        let more = next(&mut changes).await;
        assert_eq!((there, ports(&more.added)), (vec![1], vec![9]));
        agent.deregister_service("web-9").await;
    }
}

#[tokio::test]
async fn an_http_api_that_is_silent_keeps_nobody_waiting_for_what_dns_knows() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let server = ScriptedHttp::start(|_| vec![Step::Hang]);
    let builder = builder(&agent).http(&server.url());
    let resolver = builder.timeout(Duration::from_secs(10)).build().unwrap();
    let service = resolver.service("web").unwrap();
    let ready = tokio::time::timeout(Duration::from_secs(2), service.ready());
    ready.await.expect("what DNS knows");
    assert_eq!(ports(&service.endpoints()), [1]);
    register(&agent, "web", 2, "a").await;
    let start = tokio::time::Instant::now();
    wait_for("the change", async || {
        (ports(&service.endpoints()) == [1, 2]).then_some(())
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_agent_that_restarts_changes_nothing_and_what_is_new_is_told() {
    let mut agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let resolver = builder(&agent).build().unwrap();
    let service = resolver.service("web").unwrap();
    let mut changes = service.changes();
    next(&mut changes).await;
    agent.stop().await;
    wait_for("a stale answer", async || {
        let answer = service.answer()?;
        assert_eq!(ports(answer.endpoints()), [1]);
        (answer.freshness() == Freshness::Stale).then_some(())
    })
    .await;
    assert_eq!(ports(&service.endpoints()), [1]);
    agent.restart().await;
    register(&agent, "web", 1, "a").await;
    register(&agent, "web", 2, "a").await;
    wait_for("the new instance", async || {
        let change = next(&mut changes).await;
        (ports(&change.all) == [1, 2]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_handle_gives_nothing_that_is_older_than_what_may_be_given() {
    let mut agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let keep = Duration::from_secs(3);
    let resolver = builder(&agent).keep_stale(keep).build().unwrap();
    let service = resolver.service("web").unwrap();
    let mut changes = service.changes();
    assert_eq!(ports(&next(&mut changes).await.all), [1]);
    agent.stop().await;
    assert_eq!(ports(&service.endpoints()), [1]);
    wait_for("the end of what was known", async || {
        service.endpoints().is_empty().then_some(())
    })
    .await;
    assert!(service.try_pick().unwrap_err().is_unavailable());
    assert!(service.pick().await.unwrap_err().is_unavailable());
    assert_eq!(ports(&next(&mut changes).await.removed), [1]);
    agent.restart().await;
    register(&agent, "web", 2, "a").await;
    wait_for("the truth", async || {
        (ports(&service.endpoints()) == [2]).then_some(())
    })
    .await;
    drop(service.try_pick().unwrap());
}

#[tokio::test]
async fn a_resolver_that_is_dropped_leaves_no_query_behind() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let resolver = builder(&agent).build().unwrap();
    let service = resolver.service("web").unwrap();
    service.ready().await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let busy = tasks();
    drop((service, resolver));
    wait_for("the end of its tasks", async || {
        (tasks() < busy).then_some(())
    })
    .await;
}

/// Connections of this machine to a port of loopback that are open now.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux tells its connections");
    let peer = format!("0100007F:{port:04X}");
    let is_open = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&peer) && words.next() == Some("01")
    };
    table.lines().filter(is_open).count()
}

#[tokio::test]
async fn over_tls_all_followed_names_share_one_connection() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])
        .expect("a certificate can be made");
    let folder = std::env::temp_dir().join(format!("proconsul-watch-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a file can be written");
        path.to_str().expect("a plain name").to_owned()
    };
    let cert = file("cert.pem", made.cert.pem());
    let key = file("key.pem", made.signing_key.serialize_pem());
    let port = closed_port().port();
    let config = json!({ "cert_file": cert, "key_file": key, "ports": { "https": port } });
    let agent = Agent::builder().config(config).start().await;
    let names = ["web", "api", "db", "mail", "auth"];
    for (name, port) in names.iter().zip(1..) {
        register(&agent, name, port, "a").await;
    }
    let url = format!("https://localhost:{port}");
    let resolver = builder(&agent)
        .dns("none")
        .http(&url)
        .ca_file(&cert)
        .build()
        .unwrap();
    let services = names.map(|name| resolver.service(name).unwrap());
    for service in &services {
        service.ready().await;
    }
    assert!(
        resolver
            .metrics()
            .to_string()
            .contains("proconsul_watches 5")
    );
    // The first questions may have opened some more at once.
    wait_for("one connection", async || {
        (connections_to(port) == 1).then_some(())
    })
    .await;
    let mut changes = services[0].changes();
    next(&mut changes).await;
    register(&agent, "web", 99, "a").await;
    assert_eq!(ports(&next(&mut changes).await.added), [99]);
    let _ = std::fs::remove_dir_all(folder);
}

/// Ends the program however the test ends.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_program_prints_a_line_for_each_change_until_it_is_interrupted() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let watch = |form: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.args(["watch", "web", "api", "-o", form, "--dns"]);
        command.args([agent.dns().to_string(), "--http".into(), agent.http()]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (Running(child), lines)
    };
    let (mut table, mut lines) = watch("table");
    let (_json, mut objects) = watch("json");
    assert_eq!(
        lines.next().unwrap().unwrap(),
        "+ web.service.consul. 10.0.0.1:1 weight 1 passing"
    );
    let mut object =
        || -> Value { serde_json::from_str(&objects.next().unwrap().unwrap()).unwrap() };
    let firsts = [object(), object()];
    let web = firsts
        .iter()
        .find(|one| one["name"] == "web.service.consul.")
        .unwrap();
    assert_eq!(web["added"][0]["port"], 1);
    assert_eq!(web["source"], "http");
    register(&agent, "api", 2, "a").await;
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .starts_with("+ api.service.consul. 10.0.0.1:2 ")
    );
    assert_eq!(object()["endpoints"][0]["port"], 2);
    agent.deregister_service("web-1").await;
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .starts_with("- web.service.consul. 10.0.0.1:1 ")
    );
    let id = table.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    assert!(table.0.wait().unwrap().success());
}

#[tokio::test]
async fn the_program_says_once_that_nobody_answers_and_that_what_it_shows_is_old() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let folder = Folder::new("watch-silence");
    let snapshot = folder.path("snapshot");
    let program = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().args(arguments).arg("--dns");
        command.args([agent.dns().to_string(), "--http".into(), agent.http()]);
        command.arg("--snapshot").arg(&snapshot);
        command
    };
    assert!(program(&["lookup", "web"]).status().unwrap().success());
    let mut command = program(&["watch", "web", "nosuch"]);
    agent.pause();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut shown = BufReader::new(child.stdout.take().unwrap()).lines();
    let errors = BufReader::new(child.stderr.take().unwrap());
    let running = Running(child);
    let (tell, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        (errors.lines().map_while(Result::ok)).try_for_each(|line| tell.send(line))
    });
    let says = |count: usize| {
        let lines = (0..count).map(|_| said.recv_timeout(PATIENCE).expect("a line in time"));
        let mut lines: Vec<_> = lines.collect();
        lines.sort();
        lines
    };
    assert!(shown.next().unwrap().unwrap().starts_with("+ web.service"));
    let first = says(3);
    for (line, start, end) in [
        (
            &first[0],
            "proconsul: nosuch.service.consul.",
            "no source answered: ",
        ),
        (
            &first[1],
            "proconsul: web.service.consul.",
            "no source answered: ",
        ),
        (
            &first[2],
            "warning: web.service.consul. is ",
            " s old: no source answered",
        ),
    ] {
        assert!(line.starts_with(start) && line.contains(end), "{first:?}");
    }
    // Asked for all the while, which is no news.
    tokio::time::sleep(Duration::from_secs(3)).await;
    agent.resume();
    assert_eq!(
        says(3),
        [
            "nosuch.service.consul. has no instance",
            "proconsul: nosuch.service.consul. is answered again",
            "proconsul: web.service.consul. is answered again",
        ]
    );
    drop(running);
    assert!(said.recv_timeout(PATIENCE).is_err());
}

#[tokio::test]
async fn a_handle_that_is_dropped_leaves_its_watch_to_the_next() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    register(&agent, "api", 2, "a").await;
    let resolver = builder(&agent).watches(1).build().unwrap();
    let web = resolver.service("web").unwrap();
    web.ready().await;
    let api = resolver.service("api").unwrap();
    api.ready().await;
    // Before anything changes: what waits for a change is given up.
    drop(web);
    wait_for("the end of the first watch", async || {
        let names = resolver.cached(10);
        let one = names.iter().find(|one| &*one.name == "web.service.consul.");
        one.is_none_or(|one| one.freshness == Freshness::Stale)
            .then_some(())
    })
    .await;
    wait_for("the second name's watch", async || {
        (resolver.status().watches == 1).then_some(())
    })
    .await;
    let mut changes = api.changes();
    next(&mut changes).await;
    register(&agent, "api", 3, "a").await;
    assert_eq!(ports(&next(&mut changes).await.added), [3]);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

#[test]
fn a_handle_that_outlives_its_runtime_is_followed_where_it_is_used_next() {
    let (first, second) = (runtime(), runtime());
    let agent = second.block_on(Agent::start());
    second.block_on(register(&agent, "web", 1, "a"));
    let keep = Duration::from_secs(2);
    let resolver = builder(&agent).keep_stale(keep).build().unwrap();
    let service = first.block_on(async {
        let service = resolver.service("web").unwrap();
        service.ready().await;
        service
    });
    let told = service.clone();
    let (waits, waiting) = std::sync::mpsc::channel();
    // It waits elsewhere when the first runtime ends.
    let tells = second.spawn(async move {
        let mut changes = told.changes();
        next(&mut changes).await;
        waits.send(()).unwrap();
        let change = next(&mut changes).await;
        (ports(&change.added), changes)
    });
    waiting.recv().unwrap();
    drop(first);
    second.block_on(register(&agent, "web", 2, "a"));
    let (added, mut changes) = second.block_on(tells).unwrap();
    assert_eq!(added, [2]);
    // All runtimes end: what is known is given for as long as it may be, and no longer.
    drop(service.try_pick().unwrap());
    let third = runtime();
    let last = third.block_on(async {
        let last = resolver.service("api").unwrap();
        register(&agent, "api", 7, "a").await;
        last.ready().await;
        last
    });
    drop(third);
    drop(last.try_pick().unwrap());
    std::thread::sleep(keep + Duration::from_secs(1));
    assert!(last.try_pick().unwrap_err().is_unavailable());
    assert!(last.endpoints().is_empty());
    second.block_on(async {
        drop(wait_for("an instance", async || last.pick().await.ok()).await);
        register(&agent, "web", 3, "a").await;
        let all = wait_for("the change", async || {
            let change = next(&mut changes).await;
            change
                .all
                .iter()
                .any(|one| one.port == 3)
                .then_some(change.all)
        });
        assert_eq!(ports(&all.await), [1, 2, 3]);
    });
}

#[test]
fn a_resolver_that_outlives_a_runtime_follows_in_the_next() {
    let (first, second) = (runtime(), runtime());
    let agent = second.block_on(Agent::start());
    second.block_on(register(&agent, "web", 1, "a"));
    let (resolver, early) = first.block_on(async {
        let resolver = builder(&agent).build().unwrap();
        let service = resolver.service("web").unwrap();
        service.ready().await;
        (resolver, service)
    });
    drop(first);
    second.block_on(async {
        let service = resolver.service("web").unwrap();
        register(&agent, "web", 2, "a").await;
        for service in [service, early] {
            wait_for("the change", async || {
                (ports(&service.endpoints()) == [1, 2]).then_some(())
            })
            .await;
        }
    });
}

#[tokio::test]
async fn problems_are_told_though_the_handle_that_they_are_of_is_dropped() {
    let agent = Agent::start().await;
    register(&agent, "web", 1, "a").await;
    let proxy = Proxy::start(Ipv4Addr::LOCALHOST, agent.http_address()).await;
    let resolver = Resolver::builder().dns("none").http(&proxy.http());
    let resolver = resolver.build().unwrap();
    let mut problems = {
        let service = resolver.service("web").unwrap();
        service.ready().await;
        service.problems()
    };
    for (weather, fails) in [(Weather::refused(), true), (Weather::default(), false)] {
        proxy.set(weather);
        let next = tokio::time::timeout(PATIENCE, problems.next()).await;
        assert_eq!(next.expect("a word in time").is_some(), fails);
    }
}

#[tokio::test]
async fn a_problem_is_over_when_a_probe_was_answered() {
    let server = Server::start(|question, _| vec![srv(question, 1).ttls(&[3_600])]).await;
    let proxy = Proxy::start(Ipv4Addr::LOCALHOST, server.address()).await;
    proxy.set(Weather::refused());
    let dns = proxy.address().to_string();
    let resolver = Resolver::builder().dns(&dns).http("none").build().unwrap();
    let service = resolver.service("web").unwrap();
    wait_for("the server to be left alone", async || {
        let error = resolver.lookup("web").await.unwrap_err();
        let mut attempts = error.attempts().iter();
        attempts
            .any(|one| one.outcome == Outcome::Skipped)
            .then_some(())
    })
    .await;
    assert!(service.problem().is_some());
    proxy.set(Weather::default());
    // What the probe found holds for an hour: nobody asks again.
    wait_for("an answer", async || service.answer()).await;
    wait_for("its end", async || {
        service.problem().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_host_name_in_a_followed_set_is_asked_for_again() {
    let agent = Agent::start().await;
    // On another node, so that nothing of `web` changes with it, and nobody tells.
    let db = |address: &str| {
        json!({ "Node": "apart", "Address": address,
                "Service": { "Service": "db", "Address": address, "Port": 1 } })
    };
    agent.register_catalog(db("10.0.0.7")).await;
    let body = json!({ "Name": "web", "ID": "web-1", "Address": "db.service.consul", "Port": 2 });
    agent.register_service(body).await;
    let resolver = builder(&agent).build().unwrap();
    let service = resolver.service("web").unwrap();
    for address in ["10.0.0.7", "10.0.0.8"] {
        agent.register_catalog(db(address)).await;
        wait_for(address, async || {
            let endpoints = service.endpoints();
            let there = endpoints.iter().map(|one| one.address.to_string());
            there.eq([address]).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_right_that_comes_between_a_reply_and_the_look_at_rights_is_found_soon() {
    const NONE: usize = 0;
    const NEXT: usize = 1;
    const GIVEN: usize = 2;
    let right = Arc::new(AtomicUsize::new(NONE));
    let told = Arc::clone(&right);
    let server = ScriptedHttp::start(move |asked| {
        let nothing = vec![ok("X-Consul-Index: 7\r\n", "[]")];
        if asked.is_about("web") {
            // It comes after a reply, and before it is looked for.
            let next = told.compare_exchange(NEXT, GIVEN, Ordering::SeqCst, Ordering::SeqCst);
            match next {
                // It wakes nobody.
                Err(GIVEN) if asked.what().contains("index=7") => vec![Step::Hang],
                Err(GIVEN) => vec![ok("X-Consul-Index: 7\r\n", &entries("web", &[80]))],
                _ => nothing,
            }
        } else if asked.is_pulse() {
            vec![ok("", "\"10.0.0.1:8300\"")]
        } else if asked.is_about("consul") && told.load(Ordering::SeqCst) == GIVEN {
            vec![ok("", &entries("consul", &[8300]))]
        } else if asked.is_about("consul") {
            nothing
        } else if asked.what().contains("/v1/catalog/services") {
            vec![ok("", "{}")]
        } else {
            vec![status("403 Forbidden", "Permission denied")]
        }
    });
    let builder = Resolver::builder().dns("none").http(&server.url());
    let resolver = builder.token("hush").build().unwrap();
    let service = resolver.service("web").unwrap();
    let (mut changes, mut problems) = (service.changes(), service.problems());
    let problem = tokio::time::timeout(PATIENCE, problems.next()).await;
    assert!(problem.unwrap().is_some_and(|problem| problem.is_denied()));
    right.store(NEXT, Ordering::SeqCst);
    while next(&mut changes).await.all.is_empty() {}
}
