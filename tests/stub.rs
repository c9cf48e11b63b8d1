//! The stub as DNS clients meet it: dig, kdig, and sockets that misbehave.

mod support;

use std::{net::SocketAddr, process::Command, time::Duration};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use proconsul::{Resolver, stub::Stub};
use support::{Agent, SilentDns, ask_tcp, ask_udp, framed, next_message, wait_for};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::oneshot,
    time::timeout,
};

async fn stub(dns: &str, http: &str) -> SocketAddr {
    let builder = Resolver::builder().dns(dns).http(http);
    let resolver = builder
        .timeout(Duration::from_secs(5))
        .build()
        .expect("addresses");
    let any = "127.0.0.1:0".parse().expect("an address");
    let stub = Stub::bind(resolver, &[any]).await.expect("a free port");
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    address
}

/// A stub that knows nothing, at every address of this machine.
async fn at_every_address(any: &str) -> Option<SocketAddr> {
    let resolver = Resolver::builder().dns("none").http("none").build();
    let any = any.parse().expect("an address");
    let stub = Stub::bind(resolver.expect("no settings"), &[any]).await;
    let stub = stub.ok()?;
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    Some(address)
}

async fn tool(tool: &str, server: SocketAddr, arguments: &[&str]) -> String {
    let mut command = Command::new(tool);
    command
        .arg(format!("@{}", server.ip()))
        .args(["-p", &server.port().to_string()]);
    command.args(arguments);
    let run = move || command.output();
    let output = tokio::task::spawn_blocking(run).await.expect("no panic");
    let output = output.unwrap_or_else(|error| panic!("{tool}: {error}; run scripts/test"));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for complaint in [
        "Warning",
        "warning",
        "malformed",
        "bad packet",
        "extra",
        "mismatch",
    ] {
        assert!(
            !text.contains(complaint),
            "{tool} {arguments:?} complains:\n{text}"
        );
    }
    text
}

#[tokio::test]
async fn dig_and_kdig_are_content_with_every_type() {
    let agent = Agent::builder().node("vm").start().await;
    agent.register_instances("web", 3).await;
    // The agent tells of its own node a moment after it is there.
    wait_for("the node's metadata", async || {
        let reply = ask_udp(agent.dns(), "vm.node.consul.", RecordType::TXT).await;
        (!reply?.answers.is_empty()).then_some(())
    })
    .await;
    // By Consul's DNS, and by its HTTP API while nobody is at the port of its DNS.
    let stubs = [
        stub(&agent.dns().to_string(), "none").await,
        stub(&support::closed_port().to_string(), &agent.http()).await,
    ];
    let ways = ["dig", "kdig"].map(|program| stubs.map(|stub| (program, stub)));
    for (program, stub) in ways.into_iter().flatten() {
        for (name, kind, expected) in [
            ("web.service.consul", "A", "10.1.0.1"),
            ("WEB.Service.consul", "SRV", "addr.dc1.consul."),
            ("web.service.consul", "ANY", "10.1.0.2"),
            ("web.service.consul", "TXT", "10.1.0.2"),
            ("vm.node.consul", "TXT", "consul-network-segment="),
            ("vm.node.consul", "ANY", "127.0.0.1"),
            ("consul", "SOA", "hostmaster.consul."),
            ("consul", "NS", "vm.node.dc1.consul."),
            ("1.0.1.10.in-addr.arpa", "PTR", "web.service.dc1.consul."),
            ("web.service.consul", "AAAA", "NOERROR"),
            ("web.service.consul", "TYPE65", "NOERROR"),
            ("nosuch.service.consul", "A", "NXDOMAIN"),
            ("www.example.com", "A", "REFUSED"),
        ] {
            for transport in [&["+notcp"][..], &["+tcp"], &["+noedns"]] {
                let arguments = [&[name, kind, "+norecurse"], transport].concat();
                let printed = tool(program, stub, &arguments).await;
                assert!(
                    printed.contains(expected),
                    "{program} {arguments:?}:\n{printed}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_large_set_is_truncated_over_udp_and_whole_over_tcp() {
    let agent = Agent::builder().node("vm").start().await;
    agent.register_instances("many", 100).await;
    let stub = stub(&agent.dns().to_string(), "none").await;
    let ignoring = ["many.service.consul", "SRV", "+ignore", "+norecurse"];
    let cut = tool("dig", stub, &ignoring).await;
    assert!(cut.contains("flags: qr aa tc;"), "{cut}");
    let whole = ["many.service.consul", "SRV", "+norecurse", "+tcp"];
    let whole = tool("dig", stub, &whole).await;
    assert!(
        whole.contains("flags: qr aa;") && whole.contains("ANSWER: 100,"),
        "{whole}"
    );
    let plain = ask_udp(stub, "many.service.consul.", RecordType::SRV)
        .await
        .expect("a reply");
    assert!(plain.metadata.truncation && plain.answers.len() >= 2);

    // Who takes the first is spread over all.
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let reply = ask_tcp(stub, "many.service.consul.", RecordType::A)
            .await
            .expect("a reply");
        assert_eq!(reply.answers.len(), 100);
        first.insert(reply.answers[0].data.to_string());
    }
    assert!(first.len() > 10, "{first:?}");
}

#[tokio::test]
async fn more_than_any_reply_holds_is_said_to_be_so() {
    let agent = Agent::builder().node("vm").start().await;
    agent.register_instances("large", 1_500).await;
    let stub = stub(&agent.dns().to_string(), &agent.http()).await;
    let addresses = ask_tcp(stub, "large.service.consul.", RecordType::A)
        .await
        .expect("a reply");
    assert_eq!(
        (addresses.answers.len(), addresses.metadata.truncation),
        (1_500, false)
    );
    let services = ask_tcp(stub, "large.service.consul.", RecordType::SRV)
        .await
        .expect("a reply");
    assert!(
        services.metadata.truncation && services.answers.len() > 1_400,
        "{}",
        services.answers.len()
    );
}

#[tokio::test]
async fn when_no_source_answers_it_is_servfail_with_the_reason() {
    let silent = SilentDns::start();
    let builder = Resolver::builder()
        .dns(&silent.address().to_string())
        .http("none");
    let resolver = builder
        .timeout(Duration::from_millis(300))
        .build()
        .expect("an address");
    let any = "127.0.0.1:0".parse().expect("an address");
    let stub = Stub::bind(resolver, &[any]).await.expect("a free port");
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    let printed = tool("dig", address, &["web.service.consul", "+norecurse"]).await;
    assert!(
        printed.contains("SERVFAIL") && printed.contains("EDE: 22"),
        "{printed}"
    );
}

/// `web.service.consul A`, with its length.
fn web(id: u8) -> Vec<u8> {
    let question = b"\x01\0\0\x01\0\0\0\0\0\0\x03web\x07service\x06consul\0\0\x01\0\x01";
    framed(&[&[0, id][..], question].concat())
}

#[tokio::test]
async fn questions_on_one_connection_are_all_answered_however_they_arrive() {
    let agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let stub = stub(&agent.dns().to_string(), "none").await;
    let mut stream = TcpStream::connect(stub).await.expect("a connection");
    let all: Vec<u8> = (0..100).flat_map(web).collect();
    // Split where it hurts: within lengths, headers and names.
    for part in all.chunks(37) {
        stream.write_all(part).await.expect("the stub reads");
        tokio::task::yield_now().await;
    }
    // The client has no more to ask; its answers are still due.
    stream.shutdown().await.expect("half a close");
    let mut ids = std::collections::BTreeSet::new();
    while let Some(reply) = next_message(&mut stream).await {
        assert_eq!(reply[7], 2, "both instances");
        ids.insert(reply[1]);
    }
    assert_eq!(ids.len(), 100);
}

#[tokio::test]
async fn a_client_that_stalls_or_talks_nonsense_is_cut_off_and_others_go_on() {
    let agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let stub = stub(&agent.dns().to_string(), "none").await;
    // Half a message and then nothing; a length below a header's; another protocol.
    for start in [
        &b"\x00\x40\x12"[..],
        b"\x00\x00",
        b"\x00\x05abcde",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(stub).await.expect("a connection");
        stream.write_all(start).await.expect("the stub reads");
        let other = ask_tcp(stub, "web.service.consul.", RecordType::A).await;
        assert_eq!(other.expect("a reply").answers.len(), 2);
        let mut rest = Vec::new();
        let end = timeout(Duration::from_secs(8), stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok() && rest.is_empty(), "{start:?} is not cut off");
    }
}

#[tokio::test]
async fn noise_over_udp_is_dropped_or_refused_and_never_echoed() {
    let stub = stub("none", "none").await;
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    client.connect(stub).await.expect("an address");
    // A response, and packets below a header: answering them could go on for ever.
    for packet in [
        &b""[..],
        b"\x00",
        b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a",
        b"\x00\x01\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    ] {
        client.send(packet).await.expect("sent");
    }
    client
        .send(b"\x00\x63\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
        .await
        .expect("sent");
    let mut reply = [0; 512];
    let length = timeout(Duration::from_secs(5), client.recv(&mut reply)).await;
    // The first to come back is the answer to the last: FORMERR.
    assert_eq!(
        &reply[..length.expect("in time").expect("a reply")],
        b"\x00\x63\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00"
    );
}

#[tokio::test]
async fn a_stopped_stub_sends_the_answers_that_are_due_and_lets_its_port_go() {
    let silent = SilentDns::start();
    let builder = Resolver::builder()
        .dns(&silent.address().to_string())
        .http("none");
    let resolver = builder
        .timeout(Duration::from_millis(600))
        .build()
        .expect("an address");
    let any = "127.0.0.1:0".parse().expect("an address");
    let stub = Stub::bind(resolver, &[any]).await.expect("a free port");
    let address = stub.addresses()[0];
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(stub.run(async { drop(stopped.await) }));

    let mut asking = TcpStream::connect(address).await.expect("a connection");
    asking.write_all(&web(7)).await.expect("the stub reads");
    wait_for("the question on its way to Consul", async || {
        (!silent.questions().is_empty()).then_some(())
    })
    .await;
    stop.send(()).expect("the stub runs");
    let reply = next_message(&mut asking)
        .await
        .expect("the answer that was due");
    assert_eq!((reply[1], reply[3] & 0x0f), (7, 2), "SERVFAIL");
    running.await.expect("no panic");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_stub_at_every_address_answers_from_the_one_that_was_asked() {
    let v4 = at_every_address("0.0.0.0:0").await.expect("a free port");
    let mut asked: Vec<SocketAddr> = ["127.0.0.1", "127.0.0.2", "127.8.9.10"]
        .map(|ip| SocketAddr::new(ip.parse().expect("an address"), v4.port()))
        .into();
    // Some machines have no IPv6.
    if let Some(v6) = at_every_address("[::]:0").await {
        let loopback = std::net::Ipv6Addr::LOCALHOST;
        asked.push(SocketAddr::new(loopback.into(), v6.port()));
    }
    for server in asked {
        let reply = ask_udp(server, "www.example.com.", RecordType::A).await;
        let code = reply.map(|reply| reply.metadata.response_code);
        assert_eq!(code, Some(ResponseCode::Refused), "{server}");
    }
}

#[tokio::test]
async fn a_stale_answer_says_so_to_clients_that_speak_edns_and_is_soon_asked_for_again() {
    let mut agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let stub = stub(&agent.dns().to_string(), &agent.http()).await;
    let question = ["web.service.consul", "SRV", "+norecurse"];
    let fresh = tool("dig", stub, &question).await;
    assert!(
        fresh.contains("\t0\tIN\tSRV\t") && !fresh.contains("EDE"),
        "{fresh}"
    );
    agent.stop().await;
    let stale = wait_for("a stale answer", async || {
        let told = tool("dig", stub, &question).await;
        assert!(told.contains("NOERROR"), "{told}");
        told.contains("EDE: 3 (Stale Answer)").then_some(told)
    })
    .await;
    assert!(stale.contains("ANSWER: 2,"), "{stale}");
    // RFC 8767, section 4: a TTL above 0.
    assert!(stale.contains("\t1\tIN\tSRV\t"), "{stale}");
    let plain = tool(
        "dig",
        stub,
        &["web.service.consul", "SRV", "+norecurse", "+noedns"],
    )
    .await;
    assert!(
        plain.contains("ANSWER: 2,") && !plain.contains("EDE"),
        "{plain}"
    );
    let unknown = tool("dig", stub, &["nosuch.service.consul", "SRV", "+norecurse"]).await;
    assert!(
        unknown.contains("SERVFAIL") && unknown.contains("EDE: 22"),
        "{unknown}"
    );
}

/// The first address of each of so many answers over UDP.
async fn first_of(stub: SocketAddr, name: &str, count: usize) -> Vec<String> {
    let mut first = Vec::new();
    for _ in 0..count {
        let reply = ask_udp(stub, name, RecordType::A).await.expect("a reply");
        first.push(reply.answers.first().expect("an address").data.to_string());
    }
    first
}

#[tokio::test]
async fn clients_that_take_the_first_address_spread_over_all() {
    let agent = Agent::start().await;
    agent.register_instances("web", 3).await;
    let stub = stub(&agent.dns().to_string(), &agent.http()).await;
    let first = first_of(stub, "web.service.consul.", 60).await;
    for address in ["10.1.0.0", "10.1.0.1", "10.1.0.2"] {
        let count = first.iter().filter(|one| *one == address).count();
        assert!(count >= 12, "{address} came first {count} times of 60");
    }
}

#[tokio::test]
async fn a_change_is_in_the_next_answer_however_often_the_last_one_was_given() {
    let agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let (dns, http) = (agent.dns().to_string(), agent.http());
    // What is found holds for a minute, unless somebody says otherwise.
    let builder = Resolver::builder().dns(&dns).http(&http);
    let resolver = builder
        .ttl_floor(Duration::from_secs(60))
        .build()
        .expect("addresses");
    let any = "127.0.0.1:0".parse().expect("an address");
    let stub = Stub::bind(resolver.clone(), &[any])
        .await
        .expect("a free port");
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    let service = resolver.service("web").expect("a name");
    service.ready().await;
    for _ in 0..100 {
        let reply = ask_udp(address, "web.service.consul.", RecordType::A).await;
        assert_eq!(reply.expect("a reply").answers.len(), 2);
    }
    let third =
        serde_json::json!({ "ID": "third", "Name": "web", "Port": 1, "Address": "10.9.9.9" });
    agent.register_service(third).await;
    wait_for("the change at the handle", async || {
        (service.endpoints().len() == 3).then_some(())
    })
    .await;
    let reply = ask_udp(address, "web.service.consul.", RecordType::A).await;
    assert_eq!(reply.expect("a reply").answers.len(), 3);
    let reply = ask_tcp(address, "web.service.consul.", RecordType::A).await;
    assert_eq!(reply.expect("a reply").answers.len(), 3);
}

#[tokio::test]
async fn a_client_that_asks_for_much_at_once_does_not_keep_others_waiting() {
    let silent = SilentDns::start();
    let builder = Resolver::builder()
        .dns(&silent.address().to_string())
        .http("none");
    let resolver = builder.build().expect("an address");
    let any = "127.0.0.1:0".parse().expect("an address");
    let stub = Stub::bind(resolver, &[any]).await.expect("a free port");
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    let greedy = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    greedy.connect(address).await.expect("an address");
    for id in 0..5_000_u16 {
        let mut packet = web(0)[2..].to_vec();
        packet[..2].copy_from_slice(&id.to_be_bytes());
        // Each for another name.
        packet[13..16].copy_from_slice(format!("{:03x}", id & 0xFFF).as_bytes());
        _ = greedy.try_send(&packet);
    }
    // Known without asking anybody.
    let reply = ask_udp(address, "0a000001.addr.consul.", RecordType::A).await;
    assert_eq!(reply.expect("a reply").answers.len(), 1);
}

#[tokio::test]
async fn connections_that_say_nothing_make_room_for_others() {
    let stub = stub("none", "none").await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(stub).await.expect("a connection"));
    }
    wait_for("room for one more", async || {
        let reply = ask_tcp(stub, "0a000001.addr.consul.", RecordType::A).await?;
        (reply.answers.len() == 1).then_some(())
    })
    .await;
    drop(idle);
}

#[tokio::test]
async fn connections_that_always_ask_make_room_for_others_too() {
    let stub = stub("none", "none").await;
    let question =
        b"\0\x26\0\x01\x01\0\0\x01\0\0\0\0\0\0\x080a000001\x04addr\x06consul\0\0\x01\0\x01";
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..256 {
        let mut stream = TcpStream::connect(stub).await.expect("a connection");
        busy.spawn(async move {
            let mut reply = [0; 512];
            while stream.write_all(question).await.is_ok() {
                if !stream.read(&mut reply).await.is_ok_and(|length| length > 0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    wait_for("room for one more", async || {
        let reply = ask_tcp(stub, "0a000001.addr.consul.", RecordType::A).await?;
        (reply.answers.len() == 1).then_some(())
    })
    .await;
    busy.abort_all();
}
