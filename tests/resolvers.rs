//! The resolvers that machines have, set by the files of `packaging/`, find the same instances
//! through the stub as Consul gives.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command},
};

use hickory_proto::rr::RecordType;
use support::{Agent, Folder, Serving, ask_udp, closed_port, serve, wait_for};

/// What fits a datagram, and what does not.
const SERVICES: [(&str, usize); 2] = [("web", 3), ("many", 100)];

fn packaged(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    fs::read_to_string(folder.join(name)).unwrap()
}

/// A resolver of Debian's, which ends with this.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let child = command.spawn();
        let program = command.get_program().display();
        Self(child.unwrap_or_else(|error| panic!("{program}: {error}; run scripts/test")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// An agent with services, and a stub before it.
async fn world() -> (Agent, Serving) {
    let agent = Agent::start().await;
    for (service, count) in SERVICES {
        agent.register_instances(service, count).await;
    }
    let mut command = serve(&agent.dns().to_string(), &agent.http());
    command.args(["--admin", "none"]);
    (agent, Serving::start(command))
}

fn dig(server: SocketAddr, name: &str, kind: &str, more: &str) -> BTreeSet<String> {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let mut command = Command::new("dig");
    command.args([&at, "-p", &port, name, kind, "+short", more]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// All that Consul gives over TCP is given by the resolver to a client as others are.
async fn gives_what_consul_gives(resolver: SocketAddr, agent: &Agent, what: &str) {
    wait_for(what, async || {
        let reply = ask_udp(resolver, "web.service.consul.", RecordType::A).await;
        (!reply?.answers.is_empty()).then_some(())
    })
    .await;
    for (service, count) in SERVICES {
        let name = format!("{service}.service.consul");
        for kind in ["A", "SRV"] {
            let consuls = dig(agent.dns(), &name, kind, "+tcp");
            assert_eq!(consuls.len(), count, "{name} {kind}");
            assert_eq!(dig(resolver, &name, kind, "+notcp"), consuls, "{what}");
        }
    }
}

#[tokio::test]
async fn dnsmasq_as_packaged_gives_the_set_that_consul_gives() {
    let (agent, stub) = world().await;
    let file = packaged("dnsmasq.conf");
    let own = file.replace("127.0.0.1#8653", &format!("127.0.0.1#{}", stub.dns.port()));
    assert_ne!(own, file);
    let folder = Folder::new("resolvers-dnsmasq");
    fs::write(folder.path("proconsul.conf"), own).unwrap();
    // As Debian starts it, and as NetworkManager starts its own.
    for started_by in [
        &["--local-service"][..],
        &[
            "--no-hosts",
            "--cache-size=400",
            "--clear-on-reload",
            "--strict-order",
            "--proxy-dnssec",
        ],
    ] {
        let address = closed_port();
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
            ])
            .args(["--bind-interfaces", "--pid-file", "--user=root"])
            .arg(format!("--port={}", address.port()))
            .arg(format!("--listen-address={}", address.ip()))
            .arg(format!("--conf-dir={}", folder.0.display()))
            .args(started_by);
        let _dnsmasq = Running::start(&mut command);
        gives_what_consul_gives(address, &agent, &format!("dnsmasq {started_by:?}")).await;
    }
}

/// What Debian's own configuration says, as far as it bears on the drop-in: it validates, from
/// the root's key on. The rest keeps it on loopback, and in its folder.
const UNBOUND: &str = r#"
server:
    interface: 127.0.0.1
    port: PORT
    trust-anchor: ". DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D"
    do-daemonize: no
    username: ""
    chroot: ""
    directory: "FOLDER"
    pidfile: ""
    use-syslog: no
remote-control:
    control-enable: no
include: "FOLDER/proconsul.conf"
"#;

#[tokio::test]
async fn unbound_as_packaged_is_content_and_gives_the_set_that_consul_gives() {
    let (agent, stub) = world().await;
    let file = packaged("unbound.conf");
    let own = file.replace("127.0.0.1@8653", &format!("127.0.0.1@{}", stub.dns.port()));
    assert_ne!(own, file);
    let folder = Folder::new("resolvers-unbound");
    fs::write(folder.path("proconsul.conf"), own).unwrap();
    let address = closed_port();
    let whole = UNBOUND
        .replace("PORT", &address.port().to_string())
        .replace("FOLDER", folder.0.to_str().unwrap());
    let config = folder.path("unbound.conf");
    fs::write(&config, whole).unwrap();
    let checked = Command::new("unbound-checkconf").arg(&config).output();
    let checked = checked.expect("unbound-checkconf: run scripts/test");
    assert!(checked.status.success(), "{checked:?}");
    assert!(checked.stderr.is_empty(), "{checked:?}");
    let mut command = Command::new("unbound");
    let _unbound = Running::start(command.args(["-d", "-p", "-c"]).arg(&config));
    gives_what_consul_gives(address, &agent, "unbound").await;
}

/// The settings of a file by sections, as systemd and NetworkManager read it.
fn settings(file: &str) -> BTreeMap<(&str, &str), &str> {
    let mut section = "";
    let mut settings = BTreeMap::new();
    for line in file.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            section = name.strip_suffix(']').unwrap();
            continue;
        }
        let (key, value) = line.split_once('=').unwrap();
        let before = settings.insert((section, key), value);
        assert_eq!(before, None, "{key} is said twice");
    }
    settings
}

/// resolved.conf(5) and NetworkManager.conf(5) name these; what they do not name is ignored
/// with a warning that nobody reads. Neither can be started here: they need a bus, and the
/// whole machine.
#[test]
fn what_is_packaged_for_resolved_and_networkmanager_is_what_their_manuals_name() {
    let resolved = packaged("resolved.conf");
    let mut settings_left = settings(&resolved);
    // An address with a port; a domain that is only for routing; a boolean.
    let servers = settings_left.remove(&("Resolve", "DNS")).unwrap();
    assert!(
        servers
            .split(' ')
            .all(|one| one.parse::<SocketAddr>().is_ok())
    );
    let domains = settings_left.remove(&("Resolve", "Domains")).unwrap();
    assert_eq!(domains, "~consul");
    let signed = settings_left.remove(&("Resolve", "DNSSEC")).unwrap();
    assert!(["yes", "no", "allow-downgrade"].contains(&signed));
    assert!(settings_left.is_empty(), "{settings_left:?}");

    let manager = packaged("NetworkManager.conf");
    assert_eq!(
        settings(&manager),
        BTreeMap::from([(("main", "dns"), "dnsmasq")])
    );
}
