//! Programs that only speak DNS, as people run them, find the same instances through
//! the stub as through Consul: with Consul's DNS behind it, and with HTTP alone where that is
//! dead.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use proconsul::{Resolver, stub::Stub};
use support::{Agent, wait_for};

/// Instances of a service that fits a datagram, and of one that does not.
const FEW: usize = 5;
const MANY: usize = 100;

struct World {
    agent: Agent,
    /// Consul itself, the stub in front of its DNS, and the stub where that is dead.
    servers: [SocketAddr; 3],
    few: BTreeSet<u16>,
    many: BTreeSet<u16>,
    /// Of the few.
    addresses: BTreeSet<String>,
}

impl World {
    async fn start() -> Self {
        let agent = Agent::start().await;
        let ports = |all: Vec<SocketAddr>| all.iter().map(SocketAddr::port).collect();
        let few = agent.register_instances("web", FEW).await;
        let addresses = few.iter().map(|one| one.ip().to_string()).collect();
        let few = ports(few);
        let many = ports(agent.register_instances("many", MANY).await);
        let (dns, http) = (agent.dns().to_string(), agent.http());
        // Nobody is at that port.
        let dead = support::closed_port().to_string();
        let servers = [
            agent.dns(),
            stub(&dns, &http).await,
            stub(&dead, &http).await,
        ];
        Self {
            agent,
            servers,
            few,
            many,
            addresses,
        }
    }

    /// A stub at port 53 of an address of its own for each state of Consul's DNS: the last byte
    /// of `127.0.0.x`, from `first` on.
    async fn at_port_53(&self, first: u8) -> Vec<u8> {
        let (up, down) = (self.agent.dns(), support::closed_port());
        let mut all = Vec::new();
        for (at, dns) in (first..).zip([up, down]) {
            let resolver = Resolver::builder().dns(&dns.to_string());
            let resolver = resolver.http(&self.agent.http()).build().unwrap();
            let address = SocketAddr::from(([127, 0, 0, at], 53));
            let stub = Stub::bind(resolver, &[address]).await;
            let stub = stub.unwrap_or_else(|error| panic!("{error}; this test is root's"));
            tokio::spawn(stub.run(std::future::pending()));
            all.push(at);
        }
        all
    }

    fn stubs(&self) -> &[SocketAddr] {
        &self.servers[1..]
    }
}

async fn stub(dns: &str, http: &str) -> SocketAddr {
    let resolver = Resolver::builder().dns(dns).http(http).build().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let stub = Stub::bind(resolver, &[any]).await.unwrap();
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    address
}

/// What a program prints; it must end well.
async fn prints(program: &str, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(program);
    let output = command.args(arguments).output().await;
    let output = output.unwrap_or_else(|error| {
        panic!("{program}: {error}; scripts/test installs what the tests compare with")
    });
    let (out, errors) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {out}{errors}"
    );
    out
}

/// The numbers that stand alone in a line each.
fn numbers(text: &str) -> BTreeSet<u16> {
    text.lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

#[tokio::test]
async fn drill_sees_every_instance() {
    let world = World::start().await;
    for server in world.servers {
        let port = server.port().to_string();
        for (name, ports) in [("web", &world.few), ("many", &world.many)] {
            let name = format!("{name}.service.consul");
            let told = prints("drill", &["-t", "-p", &port, "@127.0.0.1", &name, "SRV"]).await;
            let answer = told.split(";; AUTHORITY").next().unwrap();
            let records = answer.lines().filter(|line| line.contains("\tSRV\t"));
            let told: BTreeSet<u16> = records
                .map(|line| {
                    line.split_whitespace()
                        .nth_back(1)
                        .unwrap()
                        .parse()
                        .unwrap()
                })
                .collect();
            assert_eq!(told, *ports, "{server} {name}");
        }
    }
}

const DNSPYTHON: &str = "
import sys, dns.resolver
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers, resolver.port = ['127.0.0.1'], int(sys.argv[1])
for record in resolver.resolve(sys.argv[2], 'SRV'):
    print(record.port)
";

#[tokio::test]
async fn dnspython_sees_every_instance() {
    let world = World::start().await;
    for server in world.stubs() {
        let port = server.port().to_string();
        for (name, ports) in [("web", &world.few), ("many", &world.many)] {
            let name = format!("{name}.service.consul.");
            // Debian's own Python has Debian's package.
            let told = prints("/usr/bin/python3", &["-c", DNSPYTHON, &port, &name]).await;
            assert_eq!(numbers(&told), *ports, "{server} {name}");
        }
    }
}

const NODE: &str = "
const { Resolver } = require('node:dns').promises;
const resolver = new Resolver();
resolver.setServers(['127.0.0.1:' + process.argv[1]]);
resolver.resolveSrv(process.argv[2]).then(
  (all) => all.forEach((one) => console.log(one.port)),
  (error) => { console.error(error); process.exit(1); });
";

#[tokio::test]
async fn node_sees_every_instance() {
    let world = World::start().await;
    for server in world.stubs() {
        let port = server.port().to_string();
        for (name, ports) in [("web", &world.few), ("many", &world.many)] {
            let name = format!("{name}.service.consul");
            let told = prints("node", &["-e", NODE, &port, &name]).await;
            assert_eq!(numbers(&told), *ports, "{server} {name}");
        }
    }
}

#[tokio::test]
async fn dig_and_kdig_see_every_instance() {
    let world = World::start().await;
    for server in world.stubs() {
        let port = server.port().to_string();
        for (name, ports) in [("web", &world.few), ("many", &world.many)] {
            let name = format!("{name}.service.consul");
            for program in ["dig", "kdig"] {
                let arguments = ["+short", "-p", &port, "@127.0.0.1", &name, "SRV"];
                let told = prints(program, &arguments).await;
                // Priority, weight, port and target.
                let records = told.lines().filter_map(|line| line.split(' ').nth(2));
                let told: BTreeSet<u16> = records.filter_map(|port| port.parse().ok()).collect();
                assert_eq!(told, *ports, "{program} {server} {name}");
            }
        }
    }
}

/// glibc asks port 53 of the servers in /etc/resolv.conf: a resolv.conf of its own is put
/// in its place for one process, and the stub has that port on an address of its own.
/// `ahosts` asks for A and AAAA at once, from one port.
const GETADDRINFO: &str = "
mount --bind \"$0\" /etc/resolv.conf
exec getent \"$1\" web.service.consul
";

#[tokio::test]
async fn programs_of_the_c_library_see_every_instance() {
    let world = World::start().await;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for at in world.at_port_53(88).await {
        let file = directory.join(format!("clients-resolv-{at}.conf"));
        fs::write(&file, format!("nameserver 127.0.0.{at}\n")).unwrap();
        let file = file.to_str().unwrap();
        for family in ["ahostsv4", "ahosts"] {
            let arguments = ["-m", "sh", "-e", "-c", GETADDRINFO, file, family];
            let told = prints("unshare", &arguments).await;
            let addresses: BTreeSet<String> = told
                .lines()
                .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
                .collect();
            assert_eq!(addresses, world.addresses, "{family} {told}");
        }
    }
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test]
async fn haproxy_fills_its_servers() {
    let world = World::start().await;
    for (at, server) in world.stubs().iter().enumerate() {
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clients-haproxy-{at}"));
        fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("admin");
        _ = fs::remove_file(&socket);
        let config = directory.join("haproxy.cfg");
        let text = format!(
            "global\n stats socket {} mode 600 level admin\ndefaults\n mode tcp\n timeout connect 1s\n \
             timeout client 1s\n timeout server 1s\nresolvers consul\n nameserver stub 127.0.0.1:{}\n \
             accepted_payload_size 4096\n hold valid 1s\n timeout resolve 1s\nbackend web\n \
             server-template web 8 _web._tcp.service.consul resolvers consul init-addr none\n",
            socket.display(),
            server.port()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&config);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let started = command.spawn();
        let _running = Running(started.unwrap_or_else(|error| {
            panic!("haproxy: {error}; scripts/test installs what the tests compare with")
        }));
        wait_for("haproxy to know all instances", async || {
            let mut stream = UnixStream::connect(&socket).ok()?;
            stream.write_all(b"show servers state web\n").ok()?;
            let mut told = String::new();
            stream.read_to_string(&mut told).ok()?;
            // ... srv_addr is the 5th word, srv_port the 19th.
            let ports = told.lines().filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let address = words.get(4).filter(|address| address.starts_with("10."));
                address.and_then(|_| words.get(18)?.parse::<u16>().ok())
            });
            (ports.collect::<BTreeSet<_>>() == world.few).then_some(())
        })
        .await;
    }
}

/// As [`GETADDRINFO`]: Prometheus reads /etc/resolv.conf itself.
const PROMETHEUS: &str = "
mount --bind \"$0\" /etc/resolv.conf
exec prometheus --config.file=\"$1\" --storage.tsdb.path=\"$2\" --web.listen-address=\"$3\"
";

#[tokio::test]
async fn prometheus_finds_its_targets() {
    let world = World::start().await;
    for at in world.at_port_53(91).await {
        finds_its_targets(&world, at).await;
    }
}

async fn finds_its_targets(world: &World, at: u8) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clients-prometheus-{at}"));
    _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let (resolv, config) = (
        directory.join("resolv.conf"),
        directory.join("prometheus.yml"),
    );
    fs::write(&resolv, format!("nameserver 127.0.0.{at}\n")).unwrap();
    // Found out there, but asked here: nothing leaves the machine.
    let text = "scrape_configs:\n- job_name: web\n  dns_sd_configs:\n  - refresh_interval: 1s\n    \
                names: [many.service.consul]\n    type: SRV\n  relabel_configs:\n  \
                - source_labels: [__address__]\n    target_label: instance\n  \
                - target_label: __address__\n    replacement: 127.0.0.1:1\n";
    fs::write(&config, text).unwrap();
    let listen = format!("127.0.0.1:{}", support::closed_port().port());
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-e", "-c", PROMETHEUS]);
    command
        .args([&resolv, &config, &directory.join("data")])
        .arg(&listen);
    let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _running = Running(started.unwrap());
    let client = support::http_client();
    wait_for("prometheus to know all targets", async || {
        let url = format!("http://{listen}/api/v1/targets");
        let told: serde_json::Value = client.get(url).send().await.ok()?.json().await.ok()?;
        let targets = told["data"]["activeTargets"].as_array()?;
        let ports = targets.iter().filter_map(|target| {
            let address = target["discoveredLabels"]["__address__"].as_str()?;
            address.rsplit_once(':')?.1.parse::<u16>().ok()
        });
        (ports.collect::<BTreeSet<_>>() == world.many).then_some(())
    })
    .await;
}
