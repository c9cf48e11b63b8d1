//! The servers that are measured, each a process of its own on one core.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    Outcome, SERVER_CORE,
    agent::Agent,
    load::{self, Way},
};

/// A server that runs.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    id: u32,
    /// None of its own: somebody else ends it.
    own: Option<Own>,
}

/// A process and its folder, which end with this.
struct Own {
    child: Child,
    directory: PathBuf,
}

impl Peer {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    fn start(
        name: &'static str,
        config: impl FnOnce(u16) -> String,
        command: impl FnOnce(u16, &str) -> Vec<String>,
    ) -> Outcome<Self> {
        let port = free_port()?;
        let directory = std::env::temp_dir().join(format!("proconsul-bench-{name}-{port}"));
        fs::create_dir_all(&directory)?;
        let file = directory.join("config");
        fs::write(&file, config(port))?;
        let words = command(port, file.to_str().ok_or("a path")?);
        let child = Command::new("taskset")
            .args(["-c", &SERVER_CORE.to_string()])
            .args(&words)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("log"))?)
            .spawn()?;
        Ok(Self {
            name,
            address: ([127, 0, 0, 1], port).into(),
            id: child.id(),
            own: Some(Own { child, directory }),
        })
    }

    /// Waits until it answers.
    fn ready(mut self, question: &[u8]) -> Outcome<Self> {
        let start = Instant::now();
        loop {
            match load::ask(self.address, question, Way::Edns) {
                Ok(reply) if reply.code == 0 && reply.answers > 0 => return Ok(self),
                Ok(_) | Err(_) => sleep(Duration::from_millis(50)),
            }
            if let Some(own) = &mut self.own
                && let Some(status) = own.child.try_wait()?
            {
                let log = fs::read_to_string(own.directory.join("log")).unwrap_or_default();
                return Err(format!("{} ended: {status}\n{log}", self.name).into());
            }
            if start.elapsed() > Duration::from_secs(15) {
                return Err(format!("{} does not answer", self.name).into());
            }
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = fs::remove_dir_all(&self.directory);
    }
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|&word| word.to_owned()).collect()
}

/// The physical limit.
pub(crate) fn echo(length: usize) -> Outcome<Peer> {
    let own = std::env::current_exe()?;
    let own = own.to_str().ok_or("a path")?;
    let peer = Peer::start(
        "echo",
        |_| String::new(),
        |port, _| words(&[own, "--echo", &port.to_string(), &length.to_string()]),
    )?;
    sleep(Duration::from_millis(300));
    Ok(peer)
}

/// Consul itself, on whatever core it runs.
pub(crate) fn consul(agent: &Agent) -> Peer {
    Peer {
        name: "consul",
        address: agent.dns(),
        id: agent.id(),
        own: None,
    }
}

/// Ours, with Consul behind it, and this configuration.
pub(crate) fn ours(
    dns: SocketAddr,
    http: SocketAddr,
    question: &[u8],
    config: &str,
) -> Outcome<Peer> {
    let peer = Peer::start(
        "proconsul",
        |_| config.to_owned(),
        |port, file| {
            let (dns, http) = (dns.to_string(), format!("http://{http}"));
            let listen = format!("127.0.0.1:{port}");
            let program = env!("CARGO_BIN_EXE_proconsul");
            let mut all = words(&[
                program, "serve", "--config", file, "--dns", &dns, "--http", &http,
            ]);
            all.extend(words(&[
                "--listen",
                &listen,
                "--upstream",
                "none",
                "--admin",
                "none",
            ]));
            all
        },
    )?;
    peer.ready(question)
}

/// Those that are installed, with Consul behind them.
pub(crate) fn others(dns: SocketAddr, question: &[u8]) -> Vec<Peer> {
    let port = dns.port();
    let unbound = Peer::start(
        "unbound",
        |own| {
            format!(
                "server:\n interface: 127.0.0.1\n port: {own}\n num-threads: 1\n do-daemonize: no\n \
                 username: \"\"\n chroot: \"\"\n directory: \".\"\n pidfile: \"\"\n use-syslog: no\n \
                 module-config: \"iterator\"\n do-not-query-localhost: no\n so-reuseport: yes\n \
                 msg-cache-size: 64m\n rrset-cache-size: 64m\n edns-buffer-size: 4096\n\
                 max-udp-size: 4096\n outgoing-range: 4096\n num-queries-per-thread: 2048\n \
                 local-zone: \"consul.\" nodefault\n\
                 stub-zone:\n name: \"consul\"\n stub-addr: 127.0.0.1@{port}\nremote-control:\n control-enable: no\n"
            )
        },
        |_, file| words(&["unbound", "-d", "-p", "-c", file]),
    );
    let dnsdist = Peer::start(
        "dnsdist",
        |own| {
            format!(
                "setLocal('127.0.0.1:{own}', {{tcpFastOpenQueueSize=0}})\nsetSecurityPollSuffix('')\n\
                 newServer({{address='127.0.0.1:{port}', checkInterval=10, mustResolve=false, checkName='consul.service.consul.'}})\n\
                 getPool(''):setCache(newPacketCache(200000))\n"
            )
        },
        |_, file| words(&["dnsdist", "--supervised", "--disable-syslog", "-C", file]),
    );
    let dnsmasq = Peer::start(
        "dnsmasq",
        |_| String::new(),
        |own, _| {
            let (own, server) = (
                format!("--port={own}"),
                format!("--server=/consul/127.0.0.1#{port}"),
            );
            let mut all = words(&["dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts"]);
            all.extend(words(&[
                "--conf-file=/dev/null",
                "--listen-address=127.0.0.1",
                "--bind-interfaces",
            ]));
            all.extend(words(&[
                "--cache-size=10000",
                "--dns-forward-max=5000",
                &own,
                &server,
            ]));
            all
        },
    );
    let kresd = Peer::start(
        "knot-resolver",
        |own| {
            format!(
                "net.listen('127.0.0.1', {own}, {{ kind = 'dns' }})\ncache.size = 64 * MB\n\
                 trust_anchors.remove('.')\npolicy.add(policy.suffix(policy.STUB({{'127.0.0.1@{port}'}}), policy.todnames({{'consul.'}})))\n"
            )
        },
        |_, file| words(&["kresd", "-n", "-c", file, "."]),
    );
    let started = [unbound, dnsdist, dnsmasq, kresd];
    let ready = started.into_iter().map(|peer| peer?.ready(question));
    let mut peers = Vec::new();
    for peer in ready {
        match peer {
            Ok(peer) => peers.push(peer),
            Err(error) => eprintln!("left out: {error}"),
        }
    }
    peers
}

fn free_port() -> Outcome<u16> {
    loop {
        let stream = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = stream.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address.port());
        }
    }
}
