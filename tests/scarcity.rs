//! The program with too little of something: descriptors, ports, memory, processor, disk.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/script.rs"]
mod script;
mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hickory_proto::rr::RecordType;
use script::{Server, srv};
use support::{Serving, ask_udp, serve, wait_for};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep},
};
use upstream::{a, question};

/// The program with the arguments of `command`, under `prlimit` with this limit.
fn limited(limit: &str, command: &Command) -> Command {
    let mut limited = Command::new("prlimit");
    limited.env_clear().env("PATH", "/usr/bin:/bin");
    limited.arg(limit).arg(command.get_program());
    limited.args(command.get_args());
    limited
}

/// Time of the processor that a process has had, in hundredths of a second.
fn processor_time(id: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let times = fields.split_whitespace().skip(11).take(2);
    times.map(|time| time.parse::<u64>().unwrap()).sum()
}

/// Ended with its test.
struct Burning(Vec<Child>);

impl Burning {
    fn start(count: usize) -> Self {
        let burn = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).spawn().unwrap()
        };
        Self((0..count).map(burn).collect())
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        for child in &mut self.0 {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_what_is_known_is_given_without_a_spin_or_a_log_full_of_it() {
    let server = Server::start(|question, _| vec![srv(question, 2).with_text()]).await;
    let mut command = serve(&server.address().to_string(), "none");
    command.args(["--admin", "none"]);
    let mut command = limited("--nofile=64:64", &command);
    command.env("RUST_LOG", "warn");
    let serving = Serving::start(command);
    assert_eq!(serving.instances().await, 2);
    let clients: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(serving.dns).unwrap())
        .collect();
    // No socket to ask by is left either: what was found before is given, as stale.
    let (before, start) = (processor_time(serving.id()), Instant::now());
    for _ in 0..25 {
        assert_eq!(serving.instances().await, 2);
        sleep(Duration::from_millis(100)).await;
    }
    let took = start.elapsed();
    let busy = processor_time(serving.id()) - before;
    assert!(
        u128::from(busy) * 10 < took.as_millis() / 10,
        "{busy} hundredths in {took:?}"
    );
    drop(clients);
    wait_for("an answer over TCP again", async || {
        let reply = support::ask_tcp(serving.dns, "web.service.consul.", RecordType::A).await?;
        (reply.answers.len() == 2).then_some(())
    })
    .await;
    serving.signal("-TERM");
    let mut lines = Vec::new();
    while let Some(line) = serving.said_before_it_ended() {
        lines.push(line);
    }
    // Connections leave descriptors to others; where they cannot, one line a second says so.
    let causes = lines
        .iter()
        .filter(|line| line.contains("no connection can be accepted"));
    let most = usize::try_from(took.as_secs()).unwrap() + 3;
    assert!(causes.count() <= most, "{lines:#?}");
}

/// Takes every port that this namespace has, and looks up a name.
const WITHOUT_PORTS: &str = r#"
ip link set lo up
echo '50000 50003' > /proc/sys/net/ipv4/ip_local_port_range
exec python3 -c '
import socket, subprocess, sys
held = []
for port in range(50000, 50004):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        one = socket.socket(socket.AF_INET, kind)
        one.bind(("0.0.0.0", port))
        held.append(one)
sys.exit(subprocess.run(sys.argv[1:]).returncode)
' "$@"
"#;

#[test]
fn where_all_ports_are_taken_a_source_fails_at_once_and_the_next_is_asked() {
    let start = Instant::now();
    let mut command = Command::new("unshare");
    // A network of its own, in which nobody else is short of ports.
    command.args(["--net", "sh", "-c", WITHOUT_PORTS, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_proconsul"));
    command.args(["lookup", "web", "--json", "--timeout", "10s"]);
    command.args(["--dns", "127.0.0.1:8600", "--http", "127.0.0.1:8500"]);
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    let output = command.output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(told["source"], "static", "{told:#}");
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_names_is_survived_with_little_memory() {
    let server = Server::start(|question, _| {
        let name = question.queries[0].name().to_string();
        vec![match name.starts_with('x') {
            true => srv(question, 0).code(3),
            false => srv(question, 3).with_text().ttls(&[60; 3]),
        }]
    })
    .await;
    let mut command = serve(&server.address().to_string(), "none");
    command.args(["--admin", "none"]);
    // Address space for data, the stacks of its threads and what the allocator sets aside for
    // each of them among it: a limit that ends it, several times what it uses.
    let serving = Serving::start(limited("--data=100663296", &command));
    assert_eq!(serving.instances().await, 3);
    let names = (0..6_000_u16).map(|at| question(&format!("x{at}.service.consul."), 1));
    _ = upstream::crowd(serving.dns, names.collect(), 50, Duration::from_secs(5)).await;
    assert_eq!(serving.instances().await, 3);
    // Memory in use that is no file's: what a control group counts and cannot have back.
    let status = fs::read_to_string(format!("/proc/{}/status", serving.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    assert!(
        kilobytes.parse::<u32>().unwrap() < 32 << 10,
        "{kilobytes} kB"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_programs_that_take_all_of_the_processor_answers_come_in_time() {
    let silent = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&silent);
    let server = Server::start(move |question, _| match told.load(Ordering::Relaxed) {
        true => Vec::new(),
        false => vec![srv(question, 2).with_text()],
    })
    .await;
    let mut command = serve(&server.address().to_string(), "none");
    command.args(["--admin", "none"]);
    let serving = Serving::start(command);
    assert_eq!(serving.instances().await, 2);
    let _burning = Burning::start(2);
    silent.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for at in 0..30 {
        let start = Instant::now();
        // What is known is stale by now; of every third name nothing is known.
        let (name, found) = match at % 3 {
            0 => (format!("n{at}.service.consul."), 0),
            _ => ("web.service.consul.".to_owned(), 2),
        };
        // A client asks again, like all of them.
        let mut told = ask_udp(serving.dns, &name, RecordType::A).await;
        if told.is_none() {
            told = ask_udp(serving.dns, &name, RecordType::A).await;
        }
        assert_eq!(told.unwrap().answers.len(), found, "{name}");
        times.push(start.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    times.sort_unstable();
    // This test is kept waiting by them as well: four of five are in time all the same.
    assert!(times[23] < Duration::from_millis(900), "{times:?}");
}

/// Sends so many packets that are no questions, each wrong in another way.
async fn rubbish(server: SocketAddr, count: u32) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    let good = question("web.service.consul.", 1);
    for at in 0..count {
        let mut packet = good.clone();
        match at % 6 {
            0 => packet.truncate((at / 6) as usize % good.len()),
            1 => packet[2] |= 0x80,
            2 => packet[5] = 2,
            3 => packet.extend([0xFF; 20]),
            4 => packet[12] = 0xC0,
            _ => packet[7] = 9,
        }
        _ = socket.try_send(&packet);
        if at % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_are_no_questions_fill_no_log() {
    let mut command = serve("none", "none");
    command.args(["--admin", "none"]);
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    command.env("RUST_LOG", "info");
    let serving = Serving::start(command);
    rubbish(serving.dns, 20_000).await;
    // Its question may be one too many for the socket, where the machine is slow.
    wait_for("an answer", async || {
        (serving.instances().await == 1).then_some(())
    })
    .await;
    serving.signal("-TERM");
    let mut lines = Vec::new();
    while let Some(line) = serving.said_before_it_ended() {
        lines.push(line);
    }
    assert!(lines.len() <= 3, "{lines:#?}");
}

#[tokio::test]
async fn a_disk_without_room_for_the_log_keeps_nobody_from_an_answer() {
    let address = support::closed_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command
        .env_clear()
        .args(["serve", "-vv", "--admin", "none"]);
    command.args(["--listen", &address.to_string(), "--upstream", "none"]);
    command.args(["--dns", "127.0.0.1:1", "--http", "none"]);
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    // Each write to it fails: no space left on device.
    let full = File::options().write(true).open("/dev/full").unwrap();
    command.stderr(Stdio::from(full));
    let mut child = command.spawn().unwrap();
    let answer = wait_for("an answer", async || {
        let reply = ask_udp(address, "web.service.consul.", RecordType::A).await?;
        Some(reply.answers.len())
    })
    .await;
    let still = ask_udp(address, "web.service.consul.", RecordType::A).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((answer, still.unwrap().answers.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_that_is_asked_for_becomes_a_metric() {
    let server = Server::start(|question, _| vec![srv(question, 1).with_text()]).await;
    let mut command = serve(&server.address().to_string(), "none");
    command.args(["--admin", "127.0.0.1:0"]);
    let serving = Serving::start(command);
    let page = async || {
        let url = format!("http://{}/metrics", serving.admin);
        let page = support::http_client().get(url).send().await.unwrap();
        page.text().await.unwrap()
    };
    assert_eq!(serving.instances().await, 1);
    _ = a(serving.dns, "www.example.").await;
    let before = page().await;
    for at in 0..200 {
        _ = a(serving.dns, &format!("secret{at}.service.consul.")).await;
        _ = a(serving.dns, &format!("secret{at}.example.")).await;
    }
    let after = page().await;
    assert!(!after.contains("secret"), "{after}");
    assert_eq!(after.lines().count(), before.lines().count(), "{after}");
}
