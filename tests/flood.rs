//! Too much of everything: names that do not exist, upstreams that are slow, replies
//! without end, questions that come back. Small; the full size is for benchmarks.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/script.rs"]
mod script;
mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType, rdata::SOA},
};
use proconsul::{
    Resolver, Transport,
    stub::{Stub, Upstreams},
};
use script::{Server, srv};
use support::{Agent, Serving, ask_tcp, ask_udp, memory, wait_for};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, timeout},
};
use upstream::{Upstream, a, crowd, question, record, reply, soa, stub, stub_of, with_opt};

const ADDRESS: [u8; 4] = [10, 0, 0, 1];

/// No client waits longer than a second; the busiest machine gets as much again.
const IN_TIME: Duration = Duration::from_secs(2);

/// The code of a reply.
fn code(reply: &[u8]) -> u8 {
    reply[3] & 0x0F
}

/// Whether a reply ends with an extended error.
fn tells_why(reply: &[u8]) -> bool {
    let at = reply.len().saturating_sub(6);
    reply[at..].starts_with(&[0, 15, 0, 2])
}

/// That there is no such name, as Consul says it.
fn nowhere(question: &Message) -> script::Reply {
    let apex = Name::from_ascii("consul.").unwrap();
    let data = SOA::new(apex.clone(), apex, 1, 3_600, 600, 86_400, 10);
    srv(question, 0)
        .code(3)
        .authority("consul.", 10, RData::SOA(data))
}

/// Asks for so many names that do not exist, a few at a time, as fast as they are answered.
async fn flood(server: SocketAddr, from: u32, count: u32, zone: &'static str) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    let mut reply = [0; 4_096];
    for at in (from..from + count).step_by(32) {
        for number in at..at + 32 {
            let packet = question(&format!("x{number:07}.{zone}"), 1);
            _ = socket.send(&packet).await;
        }
        for _ in 0..32 {
            // What is lost is lost.
            if timeout(Duration::from_millis(50), socket.recv(&mut reply))
                .await
                .is_err()
            {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_exist_cost_neither_memory_nor_what_is_known() {
    let (known, names) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (well, all) = (Arc::clone(&known), Arc::clone(&names));
    let consul = Server::start(move |question, _| {
        all.fetch_add(1, Ordering::Relaxed);
        let name = question.queries[0].name().to_string();
        if name.starts_with("web") || name.starts_with("consul") {
            // Whether anything can be seen is asked until it is known.
            let is_web = usize::from(name.starts_with("web"));
            well.fetch_add(is_web, Ordering::Relaxed);
            return vec![srv(question, 3).with_text().ttls(&[3_600; 3])];
        }
        vec![nowhere(question)]
    })
    .await;
    let others = Upstream::start(|packet| {
        Some(match packet[13] {
            b'w' => record(packet, 1, 3_600, &ADDRESS),
            _ => reply(packet, 3, [&[], &[soa("example.", 300, 300)], &[]]),
        })
    })
    .await;
    let config = Path::new(env!("CARGO_TARGET_TMPDIR")).join("flood.toml");
    fs::write(&config, "[cache]\nbytes = 1048576\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command
        .env_clear()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "none"])
        .args(["--http", "none", "--dns", &consul.address().to_string()])
        .args(["--upstream", &others.address.to_string(), "--config"])
        .arg(&config);
    let serving = Serving::start(command);

    let ask = async || {
        let web = a(serving.dns, "web.service.consul.").await.answers.len();
        (web, a(serving.dns, "www.example.").await.answers.len())
    };
    assert_eq!(ask().await, (3, 1));
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, server) = (Arc::clone(&stop), serving.dns);
    let floods = tokio::spawn(async move {
        let mut sizes = Vec::new();
        let id = serving.id();
        for round in 0..3 {
            let from = round * 3_000;
            tokio::join!(
                flood(server, from, 1_500, "service.consul."),
                flood(server, from, 1_500, "example."),
                flood(server, from + 1_500, 1_500, "service.consul."),
            );
            sizes.push(memory(id));
        }
        stopped.store(true, Ordering::Relaxed);
        (serving, sizes)
    });
    let (mut asked, mut slowest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let web = ask_udp(server, "web.service.consul.", RecordType::A).await;
        let www = ask_udp(server, "www.example.", RecordType::A).await;
        let told = (web.unwrap().answers.len(), www.unwrap().answers.len());
        assert_eq!(told, (3, 1), "after {asked}");
        (asked, slowest) = (asked + 1, slowest.max(start.elapsed()));
        sleep(Duration::from_millis(5)).await;
    }
    let (serving, sizes) = floods.await.unwrap();
    assert!(
        asked > 20 && slowest < IN_TIME,
        "{asked} asked, {slowest:?}"
    );
    assert!(names.load(Ordering::Relaxed) > 5_000, "it was a flood");
    assert!(
        known.load(Ordering::Relaxed) <= 3,
        "what is known was asked for again"
    );
    assert!(sizes[2] < sizes[0] + (16 << 20), "{sizes:?} bytes");
    assert!(sizes[2] < 64 << 20, "{sizes:?} bytes");
    drop(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_thousands_of_slow_names_each_is_answered_in_time_and_told_why() {
    let upstream = Upstream::start(|_| None).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let names = (0..3_000).map(|at| with_opt(question(&format!("n{at}.example."), 1), 1_232, &[]));
    let told = crowd(stub, names.collect(), 100, IN_TIME).await;
    let heard: Vec<_> = told.iter().flatten().collect();
    // A datagram may be lost on its way through a full queue of the kernel's.
    assert!(heard.len() > 2_700, "{} were answered", heard.len());
    for (reply, took) in &heard {
        assert_eq!(code(reply), 2);
        assert!(tells_why(reply), "{reply:?}");
        assert!(*took < IN_TIME, "{took:?}");
    }
    // Each is waited for about 800 ms, and no more than 512 at once.
    let mut known = HashSet::new();
    let mut asked = upstream.questions();
    // A second datagram is no other question.
    asked.retain(|asked| known.insert(asked.packet[12..].to_vec()));
    for many in asked.windows(600) {
        let within = many[599].at - many[0].at;
        assert!(within > Duration::from_millis(300), "600 within {within:?}");
    }
}

#[tokio::test]
async fn a_look_up_of_the_stub_that_nobody_answers_is_counted() {
    let silent = Server::start(|_, _| Vec::new()).await;
    let builder = Resolver::builder().dns(&silent.address().to_string());
    let resolver = builder.http("none").build().unwrap();
    let metrics = resolver.clone();
    let stub = stub_of(resolver, &["127.0.0.1:9"]).await;
    assert_eq!(
        a(stub, "web.service.consul.").await.metadata.response_code,
        ResponseCode::ServFail
    );
    let metrics = metrics.metrics().to_string();
    let late = |line: &&str| line.contains("outcome=\"timeout\"") && line.ends_with(" 1");
    assert!(metrics.lines().any(|line| late(&line)), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_that_asks_for_more_than_its_share_is_told_so() {
    let silent = Server::start(|_, _| Vec::new()).await;
    let builder = Resolver::builder()
        .dns(&silent.address().to_string())
        .http("none");
    let stub = stub_of(builder.clone().build().unwrap(), &["127.0.0.1:9"]).await;
    is_told_of_its_share(stub).await;
    // A socket for every address has to look where each datagram was sent to.
    let every = SocketAddr::from(([0, 0, 0, 0], 0));
    let stub = Stub::bind(builder.build().unwrap(), &[every])
        .await
        .unwrap();
    let port = stub.addresses()[0].port();
    tokio::spawn(stub.run(std::future::pending()));
    is_told_of_its_share(SocketAddr::from(([127, 0, 0, 1], port))).await;
}

async fn is_told_of_its_share(stub: SocketAddr) {
    const ASKED: u16 = 450;
    let greedy = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    greedy.connect(stub).await.unwrap();
    let ask = async {
        for at in 0..ASKED {
            let name = format!("n{at}.service.consul.");
            let mut packet = with_opt(question(&name, 1), 1_232, &[]);
            packet[..2].copy_from_slice(&at.to_be_bytes());
            greedy.send(&packet).await.unwrap();
            if at % 32 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
    };
    let (mut heard, mut at_once) = (BTreeSet::new(), 0);
    let hear = async {
        let mut reply = [0; 512];
        while let Ok(length) = timeout(IN_TIME, greedy.recv(&mut reply)).await {
            let reply = &reply[..length.unwrap()];
            assert!(code(reply) == 2 && tells_why(reply), "{reply:?}");
            assert!(heard.insert([reply[0], reply[1]]), "answered twice");
            // "Not ready".
            at_once += usize::from(reply.ends_with(&[0, 14]));
            if heard.len() == usize::from(ASKED) {
                break;
            }
        }
    };
    tokio::join!(ask, hear);
    // A datagram may be lost on its way through a full queue of the kernel's.
    assert!(
        heard.len() * 10 > usize::from(ASKED) * 9,
        "{} were answered",
        heard.len()
    );
    assert!(at_once > 50, "{at_once} above the share");
}

/// What a line of metrics that begins so ends with.
fn count(metrics: &impl ToString, what: &str) -> Option<u64> {
    let text = metrics.to_string();
    let line = text.lines().find(|line| line.starts_with(what))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_nothing_is_known_of_are_asked_for_so_often_a_second_and_no_more() {
    let asked: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let all = Arc::clone(&asked);
    let consul = Server::start(move |question, _| {
        let name = question.queries[0].name().to_string();
        if name.starts_with("web") || name.starts_with("consul") {
            return vec![srv(question, 3).with_text().ttls(&[3_600; 3])];
        }
        if name.starts_with('n') {
            all.lock().unwrap().insert(name);
        }
        vec![nowhere(question)]
    })
    .await;
    let builder = Resolver::builder().dns(&consul.address().to_string());
    let resolver = builder.http("none").build().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let stub = Stub::bind(resolver, &[any]).await.unwrap();
    let stub = stub.unknown_per_second(100);
    let (server, traffic) = (stub.addresses()[0], stub.traffic());
    tokio::spawn(stub.run(std::future::pending()));
    assert_eq!(a(server, "web.service.consul.").await.answers.len(), 3);

    let start = Instant::now();
    let names =
        (0..1_000).map(|at| with_opt(question(&format!("n{at}.service.consul."), 1), 1_232, &[]));
    let told = crowd(server, names.collect(), 20, IN_TIME).await;
    // What is known is given, also of those names, and what is written in a name needs nobody.
    assert_eq!(a(server, "web.service.consul.").await.answers.len(), 3);
    let written = a(server, "0a000001.addr.dc1.consul.").await;
    assert_eq!(written.answers.len(), 1);
    let allowed = 101 + start.elapsed().as_millis() as usize / 10;
    let heard: Vec<_> = told.iter().flatten().map(|(reply, _)| reply).collect();
    let not_ready = |reply: &[u8]| code(reply) == 2 && reply.ends_with(&[0, 14]);
    let turned_away = heard.iter().filter(|reply| not_ready(reply)).count();
    let known = heard.iter().filter(|reply| code(reply) == 3).count();
    assert_eq!(known + turned_away, heard.len());
    assert!(
        known >= 95 && known <= allowed && turned_away > 500,
        "{known} of {allowed}, {turned_away} turned away"
    );
    assert!(asked.lock().unwrap().len() <= allowed);
    // A reply may be lost on its way.
    let counted = count(&traffic, "proconsul_dns_turned_away_total");
    assert!(counted >= Some(turned_away as u64), "{traffic}");
    // The next second is another one.
    wait_for("the next second", async || {
        (a(server, "new.service.consul.")
            .await
            .metadata
            .response_code
            == ResponseCode::NXDomain)
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_that_nothing_is_known_of_have_a_budget_of_their_own() {
    let consul = Server::start(|question, _| vec![srv(question, 3).with_text()]).await;
    let builder = Resolver::builder().dns(&consul.address().to_string());
    let resolver = builder.http("none").build().unwrap();
    let upstream = Upstream::start(|packet| Some(record(packet, 1, 0, &ADDRESS))).await;
    let any = "127.0.0.1:0".parse().unwrap();
    let stub = Stub::bind(resolver, &[any]).await.unwrap();
    let upstreams = Upstreams::parse([upstream.address.to_string()]).unwrap();
    let stub = stub.forwarding(upstreams).forwarded_per_second(100);
    let (server, traffic) = (stub.addresses()[0], stub.traffic());
    tokio::spawn(stub.run(std::future::pending()));
    assert_eq!(a(server, "www.example.").await.answers.len(), 1);

    let start = Instant::now();
    let names = (0..1_000).map(|at| with_opt(question(&format!("n{at}.example."), 1), 1_232, &[]));
    let told = crowd(server, names.collect(), 20, IN_TIME).await;
    let allowed = 101 + start.elapsed().as_millis() as usize / 10;
    let heard: Vec<_> = told.iter().flatten().map(|(reply, _)| reply).collect();
    let not_ready = |reply: &[u8]| code(reply) == 2 && reply.ends_with(&[0, 14]);
    let turned_away = heard.iter().filter(|reply| not_ready(reply)).count();
    let known = heard.iter().filter(|reply| code(reply) == 0).count();
    assert_eq!(known + turned_away, heard.len());
    assert!(
        known >= 95 && known <= allowed && turned_away > 500,
        "{known} of {allowed}, {turned_away} turned away"
    );
    // A second datagram is no other name.
    let asked: BTreeSet<_> = (upstream.questions().into_iter())
        .map(|asked| asked.packet[12..].to_vec())
        .collect();
    assert!(asked.len() <= allowed + 1, "{} of {allowed}", asked.len());
    let counted = count(&traffic, "proconsul_dns_turned_away_total");
    assert!(counted >= Some(turned_away as u64), "{traffic}");
    // What is remembered is asked for again, and Consul's names have their own.
    assert_eq!(a(server, "www.example.").await.answers.len(), 1);
    assert_eq!(a(server, "web.service.consul.").await.answers.len(), 3);
}

#[tokio::test]
async fn where_nobody_has_time_what_was_known_is_given_as_stale() {
    let consul = Server::start(|question, _| vec![srv(question, 3).with_text().ttls(&[1; 3])]);
    let builder = Resolver::builder().dns(&consul.await.address().to_string());
    let stub = stub_of(builder.http("none").build().unwrap(), &["127.0.0.1:9"]).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(stub).await.unwrap();
    let (web, mut reply) = (question("web.service.consul.", 33), [0; 4_096]);
    let web = with_opt(web, 1_232, &[]);
    client.send(&web).await.unwrap();
    let length = client.recv(&mut reply).await.unwrap();
    assert_eq!((code(&reply), tells_why(&reply[..length])), (0, false));
    // From here on the stub's slow lane, which runs on this thread, does nothing at all.
    let client = client.into_std().unwrap();
    client.set_nonblocking(false).unwrap();
    client.set_read_timeout(Some(IN_TIME)).unwrap();
    client.send(&web).unwrap();
    client.recv(&mut reply).unwrap();
    assert_eq!(code(&reply), 0);
    thread::sleep(Duration::from_millis(1_100));
    for at in 0..1_200 {
        client
            .send(&question(&format!("n{at}.service.consul."), 33))
            .unwrap();
        if at % 50 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
    client.send(&web).unwrap();
    let mut refused = 0;
    let length = loop {
        let length = client.recv(&mut reply).unwrap();
        match code(&reply) {
            0 => break length,
            _ => refused += 1,
        }
    };
    assert!(refused > 50, "{refused} were refused");
    assert_eq!(reply[6..8], [0, 3]);
    assert!(tells_why(&reply[..length]) && reply[..length].ends_with(&[0, 3]));
}

#[tokio::test]
async fn time_that_a_question_waits_for_its_turn_is_not_given_to_it_again() {
    let silent = Server::start(|_, _| Vec::new()).await;
    let builder = Resolver::builder().dns(&silent.address().to_string());
    let stub = stub_of(builder.http("none").build().unwrap(), &["127.0.0.1:9"]).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(stub).await.unwrap();
    // It has begun to serve.
    assert_eq!(
        ask_udp(stub, "x.example.", RecordType::A)
            .await
            .unwrap()
            .answers,
        []
    );
    let asked = Instant::now();
    client
        .send(&question("web.service.consul.", 33))
        .await
        .unwrap();
    // The stub's slow lane runs on this thread.
    thread::sleep(Duration::from_millis(700));
    let mut reply = [0; 512];
    client.recv(&mut reply).await.unwrap();
    assert_eq!(code(&reply), 2);
    assert!(
        asked.elapsed() < Duration::from_millis(1_400),
        "{:?}",
        asked.elapsed()
    );
}

#[tokio::test]
async fn answers_that_come_too_late_are_not_saved_up_for_a_burst() {
    let late = Duration::from_millis(1_300);
    let upstream = Upstream::late(late, |packet| Some(record(packet, 1, 60, &ADDRESS))).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(stub).await.unwrap();
    for at in 0..50_u8 {
        let mut packet = question(&format!("n{at}.example."), 1);
        packet[1] = at;
        socket.send(&packet).await.unwrap();
    }
    let (mut packet, mut heard) = ([0; 512], Vec::new());
    let deadline = Instant::now() + late + Duration::from_millis(500);
    while let Ok(length) = tokio::time::timeout_at(deadline, socket.recv(&mut packet)).await {
        heard.push((packet[1], code(&packet[..length.unwrap()])));
    }
    heard.sort_unstable();
    let once: Vec<_> = (0..50).map(|at| (at, 2)).collect();
    assert_eq!(heard, once, "each once, as failed, and nothing after that");
}

#[tokio::test]
async fn asking_for_a_slow_name_again_and_again_keeps_nobody_waiting_longer() {
    let upstream = Upstream::start(|_| None).await;
    let stub = stub(&[&upstream.address.to_string()]).await;
    let begun = Instant::now();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        asking.spawn(async move {
            let start = Instant::now();
            let reply = ask_udp(stub, "slow.example.", RecordType::A).await;
            (reply.unwrap().metadata.response_code, start.elapsed())
        });
        sleep(Duration::from_millis(100)).await;
    }
    while let Some(told) = asking.join_next().await {
        let (code, took) = told.unwrap();
        assert_eq!(code, ResponseCode::ServFail);
        assert!(took < Duration::from_millis(1_500), "{took:?}");
    }
    // One question after the other, each given up after 820 ms and two datagrams.
    let (asked, took) = (upstream.asked() / 2, begun.elapsed());
    assert!(
        asked as u128 <= 1 + took.as_millis() / 700,
        "{asked} in {took:?}"
    );
}

#[tokio::test]
async fn replies_without_end_are_looked_at_as_far_as_is_needed() {
    let server = Server::start(|question, transport| match transport {
        // Under the right id, and about something else.
        Transport::Udp => {
            let stranger = || srv(question, 1).edit(|bytes| bytes[13] ^= 0x01);
            (0..2_000).map(|_| stranger()).collect()
        }
        _ => vec![srv(question, 4).with_text()],
    })
    .await;
    let upstream = Upstream::telling(Duration::ZERO, |packet, _| {
        let mut wrong = record(packet, 1, 60, &ADDRESS);
        wrong[13] ^= 0x01;
        let mut all = vec![wrong; 2_000];
        all.push(record(packet, 1, 60, &ADDRESS));
        all
    })
    .await;
    let builder = Resolver::builder().dns(&server.address().to_string());
    let resolver = builder.http("none").build().unwrap();
    let start = Instant::now();
    let answer = resolver.lookup("web").await.unwrap();
    assert_eq!(answer.endpoints().len(), 4);
    // So many by who asked and by whose socket it was, and as many again where a second datagram
    // went out, since the first was slow.
    let ignored = resolver.ignored_replies();
    assert!((64..=4 * 65).contains(&ignored), "{ignored}");
    let stub = stub_of(resolver, &[&upstream.address.to_string()]).await;
    let drowned = a(stub, "www.example.").await.metadata.response_code;
    assert_eq!(drowned, ResponseCode::ServFail);
    assert!(start.elapsed() < IN_TIME);
    // And the right one first is all that is looked at.
    let kind = Upstream::telling(Duration::ZERO, |packet, _| {
        vec![record(packet, 1, 0, &ADDRESS); 2_000]
    })
    .await;
    let stub = upstream::stub(&[&kind.address.to_string()]).await;
    for at in 0..20 {
        assert_eq!(a(stub, &format!("n{at}.example.")).await.answers.len(), 1);
    }
}

#[tokio::test]
async fn a_circle_through_the_agents_own_recursors_is_cut_and_all_else_answered() {
    let any = "127.0.0.1:0".parse().unwrap();
    let nobody = Resolver::builder().dns("none").http("none").build();
    let stub = Stub::bind(nobody.unwrap(), &[any]).await.unwrap();
    let (address, control) = (stub.addresses()[0], stub.control());
    tokio::spawn(stub.run(std::future::pending()));
    let config = serde_json::json!({ "recursors": [address.to_string()] });
    let agent = Agent::builder().config(config).start().await;
    agent.register_instances("web", 2).await;
    let builder = Resolver::builder().dns(&agent.dns().to_string());
    let upstreams = Upstreams::parse([agent.dns().to_string()]).unwrap();
    control.replace(builder.http("none").build().unwrap(), upstreams);
    assert_eq!(a(address, "web.service.consul.").await.answers.len(), 2);
    wait_for("the circle to be cut", async || {
        let code = a(address, "www.example.com.").await.metadata.response_code;
        (code == ResponseCode::Refused).then_some(())
    })
    .await;
    // An address that nobody knows goes round by the agent, and is answered all the same.
    for at in 1..=4 {
        let start = Instant::now();
        let name = format!("{at}.9.9.10.in-addr.arpa.");
        let reply = ask_udp(address, &name, RecordType::PTR).await.unwrap();
        assert!(reply.answers.is_empty());
        assert!(start.elapsed() < IN_TIME, "{name}");
    }
    assert_eq!(a(address, "web.service.consul.").await.answers.len(), 2);
}

#[tokio::test]
async fn a_stub_answers_on_its_own_address_and_no_other() {
    let stub = stub(&["127.0.0.1:9"]).await;
    assert_eq!(a(stub, "0a000001.addr.consul.").await.answers.len(), 1);
    let beside = SocketAddr::new([127, 0, 0, 2].into(), stub.port());
    let told = ask_udp(beside, "0a000001.addr.consul.", RecordType::A).await;
    assert_eq!(told.map(|reply| reply.answers.len()), None);
}

/// A network with a cable whose other end is somebody else's, who claims to be this machine. The
/// kernel is told to believe that.
const BELIEVING: &str = r#"
ip link set lo up
ip link add outside type veth peer name inside address 02:00:00:00:00:02
for setting in route_localnet accept_local; do
    echo 1 > /proc/sys/net/ipv4/conf/inside/$setting
done
for interface in all inside; do echo 0 > /proc/sys/net/ipv4/conf/$interface/rp_filter; done
ip link set outside up && ip link set inside up
exec python3 -c "$0" "$@"
"#;

/// Sends a question in from outside, to a program on 127.0.0.1 and to itself there; prints how
/// many the program says that it was asked, before and after that, and then from inside.
const FROM_OUTSIDE: &str = r#"
import re, socket, struct, subprocess, sys, time, urllib.request
question = bytes.fromhex("0001010000010000000000000377656207736572766963650663") + b"onsul\0\0\1\0\1"
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
def frame(port):
    here = socket.inet_aton("127.0.0.1")
    udp = struct.pack("!4H", 4444, port, 8 + len(question), 0) + question
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, here, here)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return b"\2\0\0\0\0\2" + b"\2\0\0\0\0\1" + b"\x08\0" + head + udp
def ask(patience):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(patience)
        one.sendto(question, ("127.0.0.1", 5300))
        try:
            return one.recv(512)
        except OSError:
            time.sleep(0.05)
def asked():
    metrics = urllib.request.urlopen("http://127.0.0.1:5301/metrics").read().decode()
    return sum(map(int, re.findall(r"proconsul_dns_queries_total\{.*\} (\d+)", metrics)))
program = subprocess.Popen(sys.argv[1:], stderr=subprocess.DEVNULL)
try:
    while not ask(0.2):
        pass
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    control.bind(("127.0.0.1", 5302))
    control.settimeout(10)
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    cable.bind(("outside", 0))
    # Of those before some may be answered yet.
    told = [asked()]
    while time.sleep(0.3) or told != [asked()]:
        told = [asked()]
    for port in (5300, 5302):
        cable.send(frame(port))
    assert control.recvfrom(512) == (question, ("127.0.0.1", 4444))
    time.sleep(0.3)
    told.append(asked())
    assert ask(10)
    told.append(asked())
    print(*told)
finally:
    program.kill()
    program.wait()
"#;

#[test]
fn who_comes_from_outside_is_not_this_machine_whatever_its_source_says() {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-e", "-c", BELIEVING]);
    command
        .arg(FROM_OUTSIDE)
        .arg(env!("CARGO_BIN_EXE_proconsul"));
    command.args(["serve", "--listen", "127.0.0.1:5300"]);
    command.args(["--admin", "127.0.0.1:5301", "--upstream", "none"]);
    command.args(["--dns", "none", "--http", "none"]);
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let told: Vec<u32> = told.split_whitespace().flat_map(str::parse).collect();
    let &[before, then, last] = told.as_slice() else {
        panic!("{output:?}");
    };
    assert_eq!((then, last), (before, before + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_more_than_its_share_is_given_what_was_known() {
    let consul = Server::start(|question, _| {
        let name = question.queries[0].name().to_string();
        match name.starts_with("web.") {
            true => vec![srv(question, 3).with_text().ttls(&[1; 3])],
            // Slow beyond all limits.
            false => Vec::new(),
        }
    })
    .await;
    let builder = Resolver::builder()
        .dns(&consul.address().to_string())
        .http("none");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let resolver = builder.build().unwrap();
    let stub = Stub::bind(resolver.clone(), &[any]).await.unwrap();
    let (server, traffic) = (stub.addresses()[0], stub.traffic());
    tokio::spawn(stub.run(std::future::pending()));

    let greedy = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    greedy.connect(server).await.unwrap();
    let mut reply = [0; 512];
    let web = with_opt(question("web.service.consul.", 1), 1_232, &[]);
    wait_for("web", async || {
        greedy.send(&web).await.unwrap();
        let length = timeout(IN_TIME, greedy.recv(&mut reply)).await.ok()?;
        (length.unwrap() > 12 && reply[7] == 3).then_some(())
    })
    .await;
    // Of this one no reply to a datagram is remembered.
    let found = ask_tcp(server, "web.service.dc1.consul.", RecordType::A).await;
    assert_eq!(found.unwrap().answers.len(), 3);
    let other = with_opt(question("web.service.dc1.consul.", 1), 1_232, &[]);
    // Its time is over.
    sleep(Duration::from_millis(1_300)).await;
    for at in 0..450_u16 {
        let name = format!("n{at}.service.consul.");
        let packet = with_opt(question(&name, 1), 1_232, &[]);
        greedy.send(&packet).await.unwrap();
    }
    greedy.send(&web).await.unwrap();
    greedy.send(&other).await.unwrap();
    let is_web = |reply: &[u8]| reply[12..].starts_with(b"\x03web");
    let mut given = Vec::new();
    let hear = timeout(IN_TIME, async {
        while given.len() < 2 {
            let length = greedy.recv(&mut reply).await.unwrap();
            if is_web(&reply[..length]) {
                given.push((code(&reply), reply[7]));
            }
        }
    });
    hear.await.unwrap();
    assert_eq!(given, [(0, 3); 2]);
    // Both tell who was turned away.
    let stale = count(&resolver.metrics(), "proconsul_stale_served_total");
    assert!(stale >= Some(1), "{}", resolver.metrics());
    let failed = "proconsul_dns_queries_total{transport=\"udp\",rcode=\"SERVFAIL\"}";
    wait_for("who was turned away", async || {
        let shed = count(&traffic, "proconsul_dns_shed_total")?;
        let told = count(&traffic, failed)?;
        (shed > 50 && told >= shed).then_some(())
    })
    .await;
}
