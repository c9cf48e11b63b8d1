//! A Consul agent of the benchmark's own, on loopback and on free ports. It ends
//! when its handle goes, also by a panic.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::Outcome;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Agent {
    process: Child,
    command: Command,
    directory: PathBuf,
    dns: SocketAddr,
    http: SocketAddr,
}

#[allow(dead_code, reason = "each benchmark uses its part")]
impl Agent {
    /// Starts the binary that `CONSUL_BIN` names, else `consul`.
    pub(crate) fn start() -> Outcome<Self> {
        Self::start_with(json!({}))
    }

    /// The same with more settings.
    pub(crate) fn start_with(mut config: Value) -> Outcome<Self> {
        let binary = std::env::var_os("CONSUL_BIN").unwrap_or_else(|| "consul".into());
        let [dns, http, server, lan, wan] = free_ports()?;
        let mut ports = json!({
            "dns": dns, "http": http, "server": server,
            "serf_lan": lan, "serf_wan": wan, "grpc": -1,
        });
        let version = Command::new(&binary).arg("version").output()?;
        if knows_grpc_tls(&String::from_utf8_lossy(&version.stdout)) {
            ports["grpc_tls"] = json!(-1);
        }
        let directory =
            std::env::temp_dir().join(format!("proconsul-bench-{dns}-{}", std::process::id()));
        fs::create_dir(&directory)?;
        let file = directory.join("agent.json");
        config["ports"] = ports;
        config["disable_update_check"] = json!(true);
        fs::write(&file, config.to_string())?;
        let mut command = Command::new(&binary);
        command
            .args(["agent", "-dev", "-node", "bench", "-log-level", "err"])
            .args(["-bind", "127.0.0.1", "-client", "127.0.0.1", "-config-file"])
            .arg(&file)
            .stdout(Stdio::null());
        let process = command.spawn()?;
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut agent = Self {
            process,
            command,
            directory,
            dns: address(dns),
            http: address(http),
        };
        agent.wait_for_leader()?;
        Ok(agent)
    }

    pub(crate) fn dns(&self) -> SocketAddr {
        self.dns
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it at once; its ports refuse then.
    pub(crate) fn kill(&mut self) -> Outcome<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts it again on the same ports, without its data.
    pub(crate) fn restart(&mut self) -> Outcome<()> {
        self.process = self.command.spawn()?;
        self.wait_for_leader()
    }

    /// `STOP`: it hangs, its ports are open. `CONT`: it goes on.
    pub(crate) fn signal(&self, name: &str) -> Outcome<()> {
        let id = self.process.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status()?;
        if sent.success() {
            Ok(())
        } else {
            Err("the signal was not sent".into())
        }
    }

    /// Registers one instance of a service; what is known of it is not waited for.
    pub(crate) fn put(&self, service: &str, port: u16) -> Outcome<()> {
        let body = json!({
            "ID": format!("{service}-{port}"),
            "Name": service,
            "Address": "127.0.1.1",
            "Port": port,
        });
        self.call("PUT", "/v1/agent/service/register", &body.to_string())?;
        Ok(())
    }

    /// Registers that many services of one instance each at another node, straight into the
    /// catalog.
    pub(crate) fn put_many(&self, count: u32, name: impl Fn(u32) -> String) -> Outcome<()> {
        /// As many as a transaction may have (Consul's docs: Transaction HTTP API).
        const BATCH: usize = 64;
        let node = json!({ "Node": "many", "Address": "127.0.2.1" });
        self.call("PUT", "/v1/catalog/register", &node.to_string())?;
        let all: Vec<u32> = (0..count).collect();
        for batch in all.chunks(BATCH) {
            let set = |&at: &u32| {
                json!({ "Service": { "Verb": "set", "Node": "many", "Service": {
                    "ID": name(at), "Service": name(at), "Port": 8_000, "Address": "127.0.2.2",
                }}})
            };
            let body: Vec<Value> = batch.iter().map(set).collect();
            self.call("PUT", "/v1/txn", &Value::from(body).to_string())?;
        }
        Ok(())
    }

    /// Registers that many instances on the agent's node, each with an address
    /// and a port of its own, and waits until all are listed.
    pub(crate) fn register(&self, service: &str, instances: usize) -> Outcome<()> {
        for index in 1..=u8::try_from(instances)? {
            let body = json!({
                "ID": format!("{service}-{index}"),
                "Name": service,
                "Address": format!("127.0.1.{index}"),
                "Port": 8_000 + u16::from(index),
            });
            self.call("PUT", "/v1/agent/service/register", &body.to_string())?;
        }
        let path = format!("/v1/health/service/{service}?passing");
        let start = Instant::now();
        loop {
            let listed: Vec<Value> = serde_json::from_str(&self.call("GET", &path, "")?)?;
            if listed.len() == instances {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("{} of {instances} are listed", listed.len()).into());
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn wait_for_leader(&mut self) -> Outcome<()> {
        let start = Instant::now();
        loop {
            // The node's own check is listed last, when DNS and HTTP both serve.
            match self.call("GET", "/v1/health/node/bench", "") {
                Ok(checks) if checks.contains("serfHealth") => return Ok(()),
                Ok(_) | Err(_) => {}
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("the agent ended: {status}").into());
            }
            if start.elapsed() > PATIENCE {
                return Err("the agent does not come up".into());
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// One request of HTTP/1.0, which knows no chunks.
    fn call(&self, method: &str, path: &str, body: &str) -> Outcome<String> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let (head, body) = reply.split_once("\r\n\r\n").ok_or("no reply")?;
        if head.split(' ').nth(1) == Some("200") {
            Ok(body.to_owned())
        } else {
            Err(format!("{method} {path}: {reply}").into())
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Five ports that are free on loopback for UDP and TCP, all held until all are
/// found.
fn free_ports() -> Outcome<[u16; 5]> {
    let mut held = Vec::new();
    let mut ports = Vec::new();
    while ports.len() < 5 {
        let stream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = stream.local_addr()?;
        if let Ok(datagrams) = UdpSocket::bind(address) {
            ports.push(address.port());
            held.push((stream, datagrams));
        }
    }
    Ok(ports.try_into().map_err(|_| "five")?)
}

/// Consul opens a port for gRPC over TLS since 1.14; before that the setting is
/// an error.
fn knows_grpc_tls(version: &str) -> bool {
    let numbers = version.split_once(" v").map_or("", |(_, rest)| rest);
    let mut numbers = numbers
        .split(['.', '\n', '-'])
        .map_while(|n| n.parse().ok());
    (numbers.next(), numbers.next()) >= (Some(1), Some(14))
}
