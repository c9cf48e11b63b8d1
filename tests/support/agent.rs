//! One Consul agent as a child process.

use std::{
    env, fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{
    PATIENCE, ports, wait_for,
    wire::{ask_udp, http_client},
};

/// How often an agent is started anew when another process took one of its
/// ports before it could.
const PORT_COLLISIONS: u32 = 5;

/// Runs Consul with the id of the shell, beside a watcher that ends it when the
/// other end of its input closes without a word: then the test's process is
/// gone. (Linux' parent death signal would need unsafe code, and would act when
/// a mere thread ends.)
const WATCHED: &str = r#"
exec 3<&0
(read -r word <&3 || kill -KILL $$) &
exec "$@" </dev/null 3<&-
"#;

/// A running agent.
pub(crate) struct Agent {
    settings: Builder,
    node: String,
    ports: Ports,
    directory: PathBuf,
    client: reqwest::Client,
    child: Option<Child>,
}

/// What kind of agent is started.
#[derive(Clone, Debug, Default)]
enum Role {
    /// A server that keeps all in memory and leads a cluster of one.
    #[default]
    Server,
    /// A client agent of the server whose LAN gossip is at this address.
    ClientOf(SocketAddr),
    /// A server that waits for two others, which never come.
    Leaderless,
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Builder {
    role: Role,
    address: Option<Ipv4Addr>,
    config: Option<Value>,
    environment: Vec<(String, String)>,
    node: Option<String>,
    token: Option<String>,
    elsewhere: bool,
}

impl Builder {
    /// More configuration, as in an agent's configuration file. It wins over
    /// the harness' own.
    pub(crate) fn config(mut self, config: Value) -> Self {
        self.config = Some(config);
        self
    }

    /// Where it listens, and how others reach it: an address of loopback. By default
    /// 127.0.0.1.
    pub(crate) fn at(mut self, address: Ipv4Addr) -> Self {
        self.address = Some(address);
        self
    }

    /// A variable of the agent's environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The node's name. By default a new one for each agent.
    pub(crate) fn node(mut self, name: &str) -> Self {
        self.node = Some(name.into());
        self
    }

    /// The ACL token that the harness itself shows, for an agent whose
    /// configuration turns ACLs on.
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A client agent that joins this server instead of a server of its own.
    pub(crate) fn client_of(mut self, server: &Agent) -> Self {
        self.role = Role::ClientOf(server.lan_address());
        self
    }

    /// A server that never gets a leader. It counts as started as soon as its
    /// HTTP port answers.
    pub(crate) fn leaderless(mut self) -> Self {
        self.role = Role::Leaderless;
        self
    }

    /// It stands for one on another machine: this one's processors are for others first.
    pub(crate) fn elsewhere(mut self) -> Self {
        self.elsewhere = true;
        self
    }

    /// Starts the agent, and waits until it answers over HTTP and DNS.
    pub(crate) async fn start(self) -> Agent {
        for _ in 0..PORT_COLLISIONS {
            let mut agent = Agent::new(self.clone());
            match agent.spawn_until_ready().await {
                Ok(()) => return agent,
                Err(Fault::PortTaken) => {}
                Err(Fault::Ended(log)) => panic!("the Consul agent ended at its start:\n{log}"),
            }
        }
        panic!("{PORT_COLLISIONS} Consul agents in a row found a port taken");
    }
}

/// Why an agent did not come up.
enum Fault {
    PortTaken,
    Ended(String),
}

#[derive(Debug)]
struct Ports {
    dns: u16,
    http: u16,
    serf_lan: u16,
    serf_wan: u16,
    server: u16,
}

impl Ports {
    fn new() -> Self {
        Self {
            dns: ports::free(),
            http: ports::free(),
            serf_lan: ports::free(),
            serf_wan: ports::free(),
            server: ports::free(),
        }
    }
}

impl Agent {
    /// A server of its own, with nothing registered but itself.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    fn new(settings: Builder) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "agent-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
        // Left there by an earlier process of the same id, if it failed.
        _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("cargo's directory for tests takes files");
        Self {
            node: settings.node.clone().unwrap_or(name),
            settings,
            ports: Ports::new(),
            directory,
            client: http_client(),
            child: None,
        }
    }

    fn address(&self) -> Ipv4Addr {
        self.settings.address.unwrap_or(Ipv4Addr::LOCALHOST)
    }

    /// Where it answers DNS, over UDP and TCP.
    pub(crate) fn dns(&self) -> SocketAddr {
        (self.address(), self.ports.dns).into()
    }

    /// Where it answers HTTP.
    pub(crate) fn http_address(&self) -> SocketAddr {
        (self.address(), self.ports.http).into()
    }

    /// Where it gossips within its datacenter: to be joined.
    pub(crate) fn lan_address(&self) -> SocketAddr {
        (self.address(), self.ports.serf_lan).into()
    }

    /// Where other servers reach it, as they write it.
    pub(crate) fn server_address(&self) -> String {
        format!("{}:{}", self.address(), self.ports.server)
    }

    /// Where it gossips with other datacenters: for `retry_join_wan`.
    pub(crate) fn wan_address(&self) -> SocketAddr {
        (self.address(), self.ports.serf_wan).into()
    }

    /// The base URL of its HTTP API, without a slash at the end.
    pub(crate) fn http(&self) -> String {
        format!("http://{}", self.http_address())
    }

    /// The name of its node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// All that it said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// PUT of a path such as `/v1/agent/service/register`; panics unless the
    /// agent agrees.
    pub(crate) async fn put(&self, path: &str, body: Value) -> Value {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// GET of a path such as `/v1/health/service/web`; panics unless the agent
    /// agrees.
    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await
    }

    /// DELETE of a path such as `/v1/kv/settings`; panics unless the agent
    /// agrees.
    pub(crate) async fn delete(&self, path: &str) -> Value {
        self.call(Method::DELETE, path, None).await
    }

    /// What it says within a second, if it agrees; without a leader, or stopped, it does not.
    pub(crate) async fn tried(&self, method: Method, path: &str) -> Option<Value> {
        let asked = timeout(Duration::from_secs(1), self.try_call(method, path, None));
        let (status, text) = asked.await.ok()?.ok()?;
        let value = || serde_json::from_str(&text).unwrap_or(Value::Null);
        status.is_success().then(value)
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let what = format!("{method} {path}");
        let (status, text) = match self.try_call(method, path, body).await {
            Ok(heard) => heard,
            Err(error) => panic!("{what}: {error:?}"),
        };
        assert!(status.is_success(), "{what}: {status}: {text}");
        // Some endpoints answer with nothing.
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(reqwest::StatusCode, String), reqwest::Error> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        Ok((response.status(), response.text().await?))
    }

    /// A request with the harness' token, for what [`Agent::put`] and
    /// [`Agent::get`] do not do.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self
            .client
            .request(method, format!("{}{path}", self.http()));
        match &self.settings.token {
            Some(token) => request.header("X-Consul-Token", token),
            None => request,
        }
    }

    /// Stops it as a hung machine would: it takes connections and packets, and
    /// never answers.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// Undoes [`Agent::pause`].
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    /// It was started, and neither ended nor killed since.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Ends it at once, as a crash would. From then on its ports are closed.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        dismiss_watcher(&mut child);
        // It may have ended by itself; then there is nothing to do.
        _ = child.kill();
        _ = child.wait();
    }

    /// Asks it to end, as an operator would, and waits until it has.
    pub(crate) async fn stop(&mut self) {
        self.signal("TERM");
        let ended = timeout(PATIENCE, async {
            while !self.has_ended() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        _ = ended.await;
        self.kill();
    }

    /// After [`Agent::kill`]: all that it kept on disk is gone.
    pub(crate) fn forget(&self) {
        _ = fs::remove_dir_all(self.directory.join("data"));
    }

    /// Starts it again as [`Agent::restart`] does, and waits for nothing.
    pub(crate) fn launch(&mut self) {
        self.kill();
        self.spawn();
    }

    /// Starts it again after [`Agent::kill`] or [`Agent::stop`], with the same
    /// ports and configuration and, being a server in memory, without what was
    /// registered. One that keeps its data on disk has it still.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        match self.spawn_until_ready().await {
            Ok(()) => {}
            Err(Fault::PortTaken) => panic!("another process took a port of the agent that ended"),
            Err(Fault::Ended(log)) => panic!("the Consul agent ended at its restart:\n{log}"),
        }
    }

    fn signal(&self, name: &str) {
        let child = self
            .child
            .as_ref()
            .expect("only a running agent is signalled");
        super::signal(child.id(), name);
    }

    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => true,
        }
    }

    async fn spawn_until_ready(&mut self) -> Result<(), Fault> {
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            if self.has_ended() {
                self.kill();
                let log = self.log();
                return Err(if log.contains("address already in use") {
                    Fault::PortTaken
                } else {
                    Fault::Ended(log)
                });
            }
            assert!(
                Instant::now() < deadline,
                "the Consul agent was not ready after {PATIENCE:?}:\n{}",
                self.log()
            );
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn spawn(&mut self) {
        let log = fs::File::create(self.log_path()).expect("the agent's directory takes files");
        let errors = log.try_clone().expect("a file can be shared");
        let politeness = if self.settings.elsewhere { "10" } else { "0" };
        let mut command = Command::new("nice");
        command
            .args(["-n", politeness, "sh", "-c", WATCHED, "sh"])
            .arg(binary())
            .arg("agent")
            .env_remove("CONSUL_HTTP_TOKEN")
            .envs(
                self.settings
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors);
        if matches!(self.settings.role, Role::Server) {
            command.arg("-dev");
        }
        for (name, config) in [
            ("1-harness.json", Some(self.base_config())),
            ("2-test.json", self.settings.config.clone()),
        ] {
            let Some(config) = config else { continue };
            let path = self.directory.join(name);
            fs::write(&path, config.to_string()).expect("the agent's directory takes files");
            command.arg("-config-file").arg(path);
        }
        self.child = Some(command.spawn().expect("there is a shell"));
    }

    fn base_config(&self) -> Value {
        let mut config = json!({
            "node_name": self.node,
            "bind_addr": self.address(),
            "advertise_addr": self.address(),
            "client_addr": self.address(),
            "disable_update_check": true,
            "disable_host_node_id": true,
            "enable_script_checks": false,
            "log_level": "INFO",
            "ports": {
                "dns": self.ports.dns,
                "http": self.ports.http,
                "https": -1,
                "grpc": -1,
                "serf_lan": self.ports.serf_lan,
                "serf_wan": self.ports.serf_wan,
                "server": self.ports.server,
            },
            // Hundreds of registrations come from one address at once.
            "limits": { "http_max_conns_per_client": 2000 },
            "leave_on_terminate": false,
        });
        match self.settings.role {
            Role::Server => {}
            Role::ClientOf(server) => {
                config["data_dir"] = json!(self.directory.join("data"));
                config["retry_join"] = json!([server]);
                config["retry_interval"] = json!("200ms");
                config["ports"]["serf_wan"] = json!(-1);
            }
            Role::Leaderless => {
                config["data_dir"] = json!(self.directory.join("data"));
                config["server"] = json!(true);
                config["bootstrap_expect"] = json!(3);
            }
        }
        config
    }

    /// Whether it can be worked with: a leader is elected, its own catalog is
    /// seen over HTTP and over DNS, and it takes registrations.
    async fn is_ready(&self) -> bool {
        let looked = timeout(Duration::from_secs(2), async {
            let leader = self.look("/v1/status/leader").await?;
            if matches!(self.settings.role, Role::Leaderless) {
                return Some(());
            }
            leader.as_str().filter(|address| !address.is_empty())?;
            let servers = self.look("/v1/health/service/consul?passing").await?;
            servers.as_array().filter(|servers| !servers.is_empty())?;
            let own = self
                .look(&format!("/v1/catalog/node/{}", self.node))
                .await?;
            own.get("Node").filter(|node| !node.is_null())?;
            self.answers_dns().await.then_some(())
        });
        matches!(looked.await, Ok(Some(())))
    }

    async fn look(&self, path: &str) -> Option<Value> {
        let (status, text) = self.try_call(Method::GET, path, None).await.ok()?;
        status
            .is_success()
            .then(|| serde_json::from_str(&text).ok())?
    }

    async fn answers_dns(&self) -> bool {
        let settings = self.settings.config.as_ref();
        let domain = settings
            .and_then(|config| config["domain"].as_str())
            .unwrap_or("consul");
        let name = format!("consul.service.{}.", domain.trim_end_matches('.'));
        match ask_udp(self.dns(), &name, RecordType::A).await {
            // Under ACLs the anonymous questioner may see nothing.
            Some(_) if self.settings.token.is_some() => true,
            Some(reply) => {
                reply.metadata.response_code == ResponseCode::NoError && !reply.answers.is_empty()
            }
            None => false,
        }
    }

    /// Waits until the catalog lists so many instances of a service.
    pub(crate) async fn wait_for_instances(&self, service: &str, count: usize) {
        let what = format!("{count} instances of {service} in the catalog");
        wait_for(&what, async || {
            let found = self.get(&format!("/v1/catalog/service/{service}")).await;
            (found.as_array()?.len() == count).then_some(())
        })
        .await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            #[expect(
                clippy::print_stderr,
                reason = "beside the failed test is where one looks"
            )]
            {
                eprintln!("the agent's log: {}", self.log_path().display());
            }
        } else {
            _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// A word to the watcher of [`WATCHED`], upon which it ends and leaves the agent
/// alone: once the agent is waited for, its id may become another process'.
fn dismiss_watcher(child: &mut Child) {
    if let Some(mut input) = child.stdin.take() {
        // Where nobody listens any more, nobody need be told.
        _ = input.write_all(b"done\n");
    }
}

/// The Consul binary: `CONSUL_BIN`, `consul` on `PATH`, or what scripts/consul
/// fetched.
fn binary() -> PathBuf {
    if let Some(named) = env::var_os("CONSUL_BIN") {
        return named.into();
    }
    let on_path = env::var_os("PATH").unwrap_or_default();
    // Cargo gives tests a directory directly below the one it builds in.
    let fetched = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("consul");
    env::split_paths(&on_path)
        .chain([fetched])
        .map(|directory| directory.join("consul"))
        .find(|file| file.is_file())
        .expect("there is no Consul to test with: run scripts/test, or install Consul, or set CONSUL_BIN")
}
