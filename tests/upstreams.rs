//! Upstreams: what a question may cost them, what is told of them, how long their answers may be,
//! and those that send questions back to the stub by way of somebody else's forwarder (unbound,
//! which answers much by itself).
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use proconsul::{
    Resolver,
    stub::{Control, Stub, Traffic, Upstreams},
};
use support::{Folder, Over, PATIENCE, Serving, ask_tcp, ask_udp, closed_port, wait_for};
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};
use upstream::{LOOP, Upstream, a, addresses, coded, question, record, with_opt};

fn nobody() -> Resolver {
    let builder = Resolver::builder().dns("none").http("none");
    builder.build().unwrap()
}

fn to(upstreams: &[String]) -> Upstreams {
    Upstreams::parse(upstreams).unwrap()
}

/// A stub that knows no Consul, and sends nothing on yet.
async fn stub() -> (SocketAddr, Control, Traffic) {
    stub_at("127.0.0.1:0".parse().unwrap()).await
}

async fn stub_at(address: SocketAddr) -> (SocketAddr, Control, Traffic) {
    let stub = Stub::bind(nobody(), &[address]).await.unwrap();
    let (control, traffic) = (stub.control(), stub.traffic());
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    (address, control, traffic)
}

/// Names of unbound's own, with addresses in their SVCB and HTTPS records (RFC 9460).
const HINTS: &str = " local-zone: \"hints.example.\" static\n \
    local-data: \"inside.hints.example. 60 HTTPS 1 . alpn=h2 ipv4hint=192.168.0.1\"\n \
    local-data: \"outside.hints.example. 60 HTTPS 1 . alpn=h2 ipv4hint=203.0.113.1\"\n \
    local-data: \"inside.hints.example. 60 SVCB 1 . ipv6hint=fd00::1\"\n";

/// Ended when dropped, or when nobody holds its input any more.
struct Unbound {
    address: SocketAddr,
    child: Child,
    _folder: Folder,
}

impl Unbound {
    /// Passes on to that server what it does not answer itself, `zone` alone or all.
    async fn forwarding(zone: &str, server: SocketAddr) -> Self {
        let address = closed_port();
        let folder = Folder::new(&format!("unbound-{}", address.port()));
        let file = folder.path("unbound.conf");
        let config = format!(
            "server:\n interface: {}@{}\n do-not-query-localhost: no\n do-daemonize: no\n \
             chroot: \"\"\n username: \"\"\n pidfile: \"\"\n use-syslog: no\n \
             directory: \"{}\"\n\
             {HINTS}\
             remote-control:\n control-enable: no\n\
             forward-zone:\n name: \"{zone}\"\n forward-addr: {}@{}\n",
            address.ip(),
            address.port(),
            folder.0.display(),
            server.ip(),
            server.port(),
        );
        fs::write(&file, config).unwrap();
        let program = ["/usr/sbin/unbound", "unbound"];
        let program = program.into_iter().find(|path| Path::new(path).exists());
        let watched =
            "exec 3<&0; (read -r word <&3 || kill -KILL $$) & exec \"$@\" </dev/null 3<&-";
        let child = Command::new("sh")
            .args(["-c", watched, "sh", program.unwrap_or("unbound"), "-c"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stderr(fs::File::create(folder.path("log")).unwrap())
            .spawn()
            .unwrap();
        let unbound = Self {
            address,
            child,
            _folder: folder,
        };
        wait_for("unbound (scripts/test installs it)", async || {
            // It answers that name by itself.
            let asked = ask_udp(address, "localhost.", RecordType::A);
            let told = timeout(Duration::from_millis(500), asked).await;
            (!told.ok()??.answers.is_empty()).then_some(())
        })
        .await;
        unbound
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_circle_through_another_forwarder_is_cut_and_shown() {
    let (address, control, traffic) = stub().await;
    let unbound = Unbound::forwarding(".", address).await;
    let well = Upstream::start(|packet| Some(record(packet, 1, 0, &[10, 0, 0, 1]))).await;
    let shown = |loops: u8| {
        let line = format!(
            "proconsul_upstream_loops{{server=\"{}\"}} {loops}\n",
            unbound.address
        );
        traffic.to_string().contains(&line)
    };
    let both = [unbound.address.to_string(), well.address.to_string()];
    control.replace(nobody(), to(&both));
    assert!(shown(0), "{traffic}");
    let refused = async || {
        let code = a(address, "www.example.com.").await.metadata.response_code;
        (code == ResponseCode::Refused).then_some(())
    };
    wait_for("the circle to be seen", async || {
        _ = a(address, "www.example.com.").await;
        shown(1).then_some(())
    })
    .await;
    // The other one answers, and nobody where there is no other one.
    assert_eq!(addresses(&a(address, "a.example.").await), ["0 10.0.0.1"]);
    control.replace(nobody(), to(&both[..1]));
    wait_for("the circle to be cut", refused).await;
}

#[tokio::test]
async fn a_circle_of_one_domain_through_another_forwarder_is_cut() {
    let (address, control, traffic) = stub().await;
    let unbound = Unbound::forwarding("corp.example", address).await;
    control.replace(nobody(), to(&[format!("corp.example={}", unbound.address)]));
    wait_for("the circle to be cut", async || {
        let reply = a(address, "www.corp.example.").await;
        (reply.metadata.response_code == ResponseCode::Refused).then_some(())
    })
    .await;
    assert!(traffic.to_string().contains("\"} 1\n"), "{traffic}");
}

#[tokio::test]
async fn hints_at_addresses_come_as_they_are_and_lead_into_no_network_where_that_is_wished() {
    let (address, control, _) = stub().await;
    let unbound = Unbound::forwarding("nobody.example", closed_port()).await;
    let told = async |server, name: &str, kind| {
        let reply = ask_udp(server, &format!("{name}.hints.example."), kind).await;
        let reply = reply.unwrap();
        let data = reply.answers.into_iter().map(|record| record.data);
        (reply.metadata.response_code, data.collect::<Vec<_>>())
    };
    let all = [
        ("inside", RecordType::HTTPS),
        ("inside", RecordType::SVCB),
        ("outside", RecordType::HTTPS),
    ];
    let upstreams = || to(&[unbound.address.to_string()]);
    control.replace(nobody(), upstreams());
    // The second time from memory.
    for (name, kind) in [all, all].concat() {
        let own = told(unbound.address, name, kind).await;
        assert_eq!(own.1.len(), 1, "{name} {kind}");
        assert_eq!(told(address, name, kind).await, own);
    }
    control.replace(nobody(), upstreams().stop_rebind(true));
    for (name, kind) in [all, all].concat() {
        let given = told(address, name, kind).await.1.len();
        assert_eq!(given, usize::from(name == "outside"), "{name} {kind}");
    }
}

/// A server at port 53 of `127.0.0.x` that gives every name this address.
async fn giving(last: u8, address: [u8; 4]) {
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, last], 53))).await;
    let socket = socket.unwrap_or_else(|error| panic!("{error}; this test is root's"));
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut packet).await {
            let reply = record(&packet[..length], 1, 0, &address);
            _ = socket.send_to(&reply, client).await;
        }
    });
}

/// A resolv.conf of its own is put in the place of the system's for one process.
const OWN_RESOLV_CONF: &str = "
mount --bind \"$0\" /etc/resolv.conf
exec \"$@\"
";

#[tokio::test]
async fn without_a_word_of_upstreams_those_of_resolv_conf_are_asked_and_followed() {
    giving(97, [10, 0, 0, 97]).await;
    giving(98, [10, 0, 0, 98]).await;
    let folder = Folder::new("upstreams-of-the-system");
    let file = folder.path("resolv.conf");
    let names = |last: u8| fs::write(&file, format!("nameserver 127.0.0.{last}\n")).unwrap();
    names(97);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-e", "-c", OWN_RESOLV_CONF]);
    command.arg(&file).arg(env!("CARGO_BIN_EXE_proconsul"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "none"]);
    command.args(["--dns", "none", "--http", "none"]);
    let serving = Serving::start(command);
    let given = async |address: &str| {
        let told = addresses(&a(serving.dns, "www.example.").await);
        (told == [address]).then_some(())
    };
    assert!(given("0 10.0.0.97").await.is_some());
    names(98);
    wait_for("the other server", async || given("0 10.0.0.98").await).await;
}

#[tokio::test]
async fn a_reload_asks_other_upstreams_and_begins_to_hold_back_what_leads_inside() {
    let giving =
        |address: [u8; 4]| Upstream::start(move |packet| Some(record(packet, 1, 0, &address)));
    let inside = giving([10, 0, 0, 1]).await;
    let outside = giving([203, 0, 113, 1]).await;
    let folder = Folder::new("upstreams-reloaded");
    let file = folder.path("config.toml");
    let config = |upstream: SocketAddr, more: &str| {
        let text = format!(
            "[sources]\ndns = \"none\"\nhttp = \"none\"\n[serve]\nlisten = [\"127.0.0.1:0\"]\n\
             admin = \"none\"\nupstream = [\"{upstream}\"]\n{more}"
        );
        fs::write(&file, text).unwrap();
    };
    config(inside.address, "");
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear().arg("serve").arg("--config").arg(&file);
    let serving = Serving::start(command);
    let told = async || {
        let reply = a(serving.dns, "www.example.").await;
        (addresses(&reply), reply.metadata.response_code)
    };
    let reloaded = || {
        serving.signal("-HUP");
        while !serving.says().contains("reloaded") {}
    };
    let given = |address: &str| (vec![address.to_owned()], ResponseCode::NoError);
    assert_eq!(told().await, given("0 10.0.0.1"));
    config(outside.address, "");
    reloaded();
    assert_eq!(told().await, given("0 203.0.113.1"));
    config(inside.address, "stop-rebind = true\n");
    reloaded();
    assert_eq!(told().await, (Vec::new(), ResponseCode::NXDomain));
}

/// A server that answers all, and tells by which names it was asked whether it sends questions
/// back: a second datagram is no second question.
async fn probed() -> (String, Arc<Mutex<BTreeSet<Vec<u8>>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let names: Arc<Mutex<BTreeSet<Vec<u8>>>> = Arc::default();
    let seen = Arc::clone(&names);
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut packet).await {
            let packet = &packet[..length];
            if packet[12..].starts_with(LOOP) {
                seen.lock().unwrap().insert(packet[12..].to_vec());
            }
            _ = socket.send_to(&coded(packet, 3), client).await;
        }
    });
    (address, names)
}

#[tokio::test]
async fn after_a_reload_upstreams_are_asked_anew_whether_they_send_questions_back() {
    let (address, control, _) = stub().await;
    let (server, probes) = probed().await;
    for reload in 1..=3 {
        control.replace(nobody(), to(std::slice::from_ref(&server)));
        for name in ["a", "b", "c"] {
            _ = a(address, &format!("{name}{reload}.example.")).await;
        }
        let all = async {
            while probes.lock().unwrap().len() < reload {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, all).await.unwrap();
        assert_eq!(probes.lock().unwrap().len(), reload, "once each");
    }
}

#[tokio::test]
async fn however_many_upstreams_refuse_a_question_costs_a_bounded_number_of_packets() {
    let (address, control, _) = stub().await;
    let mut upstreams = Vec::new();
    for _ in 0..20 {
        upstreams.push(Upstream::start(|packet| Some(coded(packet, 5))).await);
    }
    let named: Vec<_> = (upstreams.iter())
        .map(|upstream| upstream.address.to_string())
        .collect();
    control.replace(nobody(), to(&named));
    let asked = |over: Over| -> usize {
        let all = upstreams.iter().flat_map(Upstream::questions);
        all.filter(|asked| asked.over == over).count()
    };
    let refused = a(address, "www.example.").await.metadata.response_code;
    assert_eq!(refused, ResponseCode::Refused);
    assert_eq!((asked(Over::Udp), asked(Over::Tcp)), (16, 0));
    let told = ask_tcp(address, "mail.example.", RecordType::A).await;
    let refused = told.unwrap().metadata.response_code;
    assert_eq!(refused, ResponseCode::Refused);
    assert_eq!((asked(Over::Udp), asked(Over::Tcp)), (16, 2));
}

#[tokio::test]
async fn who_refuses_connections_keeps_nobody_from_the_next() {
    let (address, control, _) = stub().await;
    let well = Upstream::start(|packet| Some(record(packet, 1, 60, &[10, 0, 0, 1]))).await;
    let named = [closed_port(), closed_port(), closed_port(), well.address];
    control.replace(nobody(), to(&named.map(|server| server.to_string())));
    let told = ask_tcp(address, "www.example.", RecordType::A).await;
    assert_eq!(addresses(&told.unwrap()), ["60 10.0.0.1"]);
}

#[tokio::test]
async fn what_comes_of_forwarding_is_counted_and_which_upstreams_are_up_is_told() {
    let (address, control, traffic) = stub().await;
    let well = Arc::new(Mutex::new(true));
    let is_well = Arc::clone(&well);
    let first = Upstream::telling(Duration::ZERO, move |packet, _| {
        let mut forged = record(packet, 1, 0, &[10, 9, 9, 9]);
        forged[0] ^= 1;
        let right = record(packet, 1, 0, &[10, 0, 0, 1]);
        match *is_well.lock().unwrap() {
            true => vec![forged, right],
            false => Vec::new(),
        }
    })
    .await;
    let refusing = Upstream::start(|packet| Some(coded(packet, 5))).await;
    let closed = closed_port();
    let named = [refusing.address, closed, first.address];
    control.replace(nobody(), to(&named.map(|server| server.to_string())));
    let has = |line: String| {
        let text = traffic.to_string();
        assert!(text.lines().any(|own| own == line), "no {line} in {text}");
    };
    let up = |server: SocketAddr, up: u8| {
        has(format!("proconsul_upstream_up{{server=\"{server}\"}} {up}"));
        has(format!("proconsul_upstream_loops{{server=\"{server}\"}} 0"));
    };
    let failures = |reason: &str| -> u64 {
        let text = traffic.to_string();
        let counted = format!("proconsul_upstream_errors_total{{reason=\"{reason}\"}} ");
        let (_, count) = text.split_once(&counted).unwrap();
        count.lines().next().unwrap().parse().unwrap()
    };
    for server in named {
        up(server, 1);
    }
    assert_eq!(addresses(&a(address, "a.example.").await), ["0 10.0.0.1"]);
    // The next one may be asked, and answer, before the refusal has come.
    let mut more = 0;
    wait_for("who is closed to be found out", async || {
        more += 1;
        a(address, &format!("a{more}.example.")).await;
        let is_down = format!("proconsul_upstream_up{{server=\"{closed}\"}} 0\n");
        traffic.to_string().contains(&is_down).then_some(())
    })
    .await;
    // Who refuses is there all the same.
    up(refusing.address, 1);
    up(closed, 0);
    up(first.address, 1);
    assert_ne!(failures("denied"), 0);
    assert_eq!(failures("servfail"), 0);
    // A second datagram may have brought another.
    let ignored = control.resolver().metrics().to_string();
    let (_, count) = ignored
        .split_once("\nproconsul_dns_ignored_replies_total ")
        .unwrap();
    assert!(!count.starts_with('0'), "{ignored}");
    // All are silent: what was known is given.
    control.replace(control.resolver(), to(&[first.address.to_string()]));
    *well.lock().unwrap() = true;
    assert_eq!(addresses(&a(address, "a.example.").await), ["0 10.0.0.1"]);
    has("proconsul_upstream_stale_served_total 0".into());
    *well.lock().unwrap() = false;
    assert_eq!(addresses(&a(address, "a.example.").await), ["30 10.0.0.1"]);
    has("proconsul_upstream_stale_served_total 1".into());
    wait_for("silence to be noticed", async || {
        let silent = format!("proconsul_upstream_up{{server=\"{}\"}} 0\n", first.address);
        traffic.to_string().contains(&silent).then_some(())
    })
    .await;
    assert_ne!(failures("timed_out"), 0);
    assert!(!traffic.to_string().contains(&closed.to_string()), "gone");
    // Held back.
    *well.lock().unwrap() = true;
    let upstreams = to(&[first.address.to_string()]).stop_rebind(true);
    control.replace(nobody(), upstreams);
    assert_eq!(addresses(&a(address, "b.example.").await), [""; 0]);
    has("proconsul_upstream_filtered_total 1".into());
}

/// An address of this machine that others reach, if it has one. Nothing is sent.
fn own_address() -> Option<SocketAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then(|| SocketAddr::new(ip, 0))
}

/// What a client with that very address gets to a packet.
async fn datagram(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((server.ip(), 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut told = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut told)).await.unwrap();
    told.truncate(length.unwrap());
    told
}

#[tokio::test]
async fn datagrams_are_as_long_as_they_may_be_where_their_client_is() {
    let private = RecordType::from(65_400);
    let upstream = Upstream::start(|packet| Some(record(packet, 65_400, 60, &[7; 2_000]))).await;
    let mut ways = vec![("127.0.0.1:0".parse().unwrap(), 4_096)];
    ways.extend(own_address().map(|address| (address, 1_232)));
    for (at, most) in ways {
        let (address, control, _) = stub_at(at).await;
        control.replace(nobody(), to(&[upstream.address.to_string()]));
        for _ in 0..3 {
            let packet = with_opt(question("long.example.", 65_400), 65_535, &[]);
            let told = datagram(address, &packet).await;
            assert_eq!(
                (told[2] & 0x02 != 0, told.len() < 2_000),
                (most < 2_000, most < 2_000),
                "{at}"
            );
            let whole = ask_tcp(address, "long.example.", private).await.unwrap();
            assert_eq!(whole.answers.len(), 1, "{at}");
        }
        // What is asked for on its way is no longer than it may be at its end.
        for asked in upstream.questions() {
            let size = asked.packet.windows(3).position(|opt| opt == [0, 0, 41]);
            let size = size.map(|at| [asked.packet[at + 3], asked.packet[at + 4]]);
            let size = size.map_or(0, u16::from_be_bytes);
            assert!(size <= 4_096, "{size}");
        }
        let packet = with_opt(
            question("long.example.", 65_400),
            4_096,
            b"\0\x0A\0\x08clientsc",
        );
        let told = datagram(address, &packet).await;
        assert!(told.len() <= most, "{at}: {}", told.len());
    }
}
