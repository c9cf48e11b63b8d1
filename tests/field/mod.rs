//! A field to make faults in: three real servers, a client agent beside the stub, doors of
//! ours between them, a steady load, changes that go on, and a judge who knows what was true
//! when.
#![allow(dead_code, reason = "the quick rows use a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

pub(crate) mod history;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod rows;
pub(crate) mod verdict;

use std::{
    collections::BTreeSet,
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    slice,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use proconsul::{Check, Registration, Resolver, ServiceDefinition};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use self::{
    history::History,
    load::{Asked, Load},
    machine::Machine,
};
use crate::support::{
    Agent, Over, PATIENCE, Proxy, Serving, Weather, ask, cluster, http_client, http_client_with,
    leader, serve_at, wait_for,
};

/// Names that are asked for all the time, and instances of each.
const KNOWN: u16 = 60;
const INSTANCES: u16 = 3;

/// Names that are asked for once.
const NEW: u16 = 1_500;

/// One change of a known name's set after the other.
const CHANGES: Duration = Duration::from_millis(250);

/// How long all is well before the fault.
const CALM: Duration = Duration::from_secs(3);

/// Who may do all, and the first token of the stub.
const MASTER: &str = "00000000-0000-4000-8000-0000000000aa";
const TOKEN: &str = "00000000-0000-4000-8000-0000000000bb";

/// Where the client agent and the doors are.
const AGENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 21);
const DOORS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 41);

/// What is unlike the usual field.
pub(crate) struct Plan {
    /// The TTL that Consul's DNS gives: `WITHSTAND_TTL`, in seconds.
    ttl: Duration,
    /// More configuration of the client agent.
    agent: Value,
    /// Further arguments of the stub.
    stub: Vec<String>,
    /// What the stub sends other names to.
    upstreams: Vec<SocketAddr>,
    /// ACLs are in force, and the stub's token is in this file.
    token_file: Option<PathBuf>,
    /// The stub asks the agent over TLS, and believes who is in this file.
    ca_file: Option<PathBuf>,
    /// Runs the stub: words before its own.
    wrapped: Vec<String>,
}

/// A setting of the environment: `WITHSTAND_TTL`, `WITHSTAND_SEED`, ...
pub(crate) fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    let told = env::var(format!("WITHSTAND_{name}")).ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(default)
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(setting("TTL", 0)),
            agent: json!({}),
            stub: Vec::new(),
            upstreams: Vec::new(),
            token_file: None,
            ca_file: None,
            wrapped: Vec::new(),
        }
    }
}

/// What this process registers at the agent.
struct Mine {
    resolver: Resolver,
    _stays: Registration,
    leaves: Leaves,
}

/// An instance that is stopped in the fault of some rows.
enum Leaves {
    NotYet(Box<Registration>),
    /// Nobody has to tell more than the agent, which is well.
    Told,
    /// The agent could not be told. That it is gone is for its checks: they fail at once, and
    /// a minute later, for which nobody waits here, it is.
    Untold,
    Done,
}

/// Who did not beat for so long is critical.
const BEATS: Duration = Duration::from_secs(3);

/// What the law gives the catalog to be right again.
const RIGHT_AGAIN: Duration = Duration::from_secs(5);

/// The field. Everything in it ends when it is dropped.
pub(crate) struct Field {
    pub(crate) servers: Vec<Agent>,
    pub(crate) agent: Agent,
    pub(crate) dns: Proxy,
    pub(crate) http: Proxy,
    /// Leads where `http` does, for what this process registers.
    our_http: Proxy,
    pub(crate) server_doors: Vec<Proxy>,
    pub(crate) stub: Serving,
    plan: Plan,
    machine: Machine,
    history: Arc<History>,
    load: Option<Load>,
    /// What was asked before the load rested.
    before: Vec<Asked>,
    changes: Option<JoinHandle<()>>,
    mine: Option<Mine>,
    began: Instant,
    /// The fault begins, and ends.
    fault: Option<Instant>,
    /// Those who failed are started again.
    waning: Option<Instant>,
    /// Meanwhile a server stood still, was started anew, or had no leader: it may tell what was so
    /// before.
    behind: Vec<(Instant, Option<Instant>)>,
    healed: Option<Instant>,
    /// What the doors had passed then.
    passed: [u64; 3],
    seen: Vec<(String, f64, bool)>,
    troubles: Vec<String>,
    late: Vec<String>,
    /// Lines of the stub, from the fault on.
    said: Vec<String>,
    steps: Vec<Instant>,
    /// How much later than usual what changes may be seen.
    late_by: Duration,
}

impl Field {
    pub(crate) async fn start(plan: Plan) -> Self {
        let servers = match &plan.token_file {
            None => cluster(json!({}), None).await,
            Some(_) => cluster(acl(), Some(MASTER)).await,
        };
        // The doors of TLS and of plain HTTP are one here: its port is known beforehand.
        let tls = plan.ca_file.is_some().then(free_port);
        let mut config = json!({
            // An identity that an empty disk does not change.
            "node_id": "00000000-0000-4000-8000-000000000021",
            "dns_config": { "service_ttl": { "*": format!("{}s", plan.ttl.as_secs()) } },
        });
        for (key, value) in plan.agent.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        if let Some(port) = tls {
            config["ports"] = json!({ "https": port });
        }
        let mut agent = Agent::builder().client_of(&servers[0]).at(AGENT);
        if let Some(file) = &plan.token_file {
            config["acl"] = acl()["acl"].clone();
            config["acl"]["tokens"]["default"] = json!(make_token(&servers[0], TOKEN).await);
            fs::write(file, TOKEN).unwrap();
            agent = agent.token(MASTER);
        }
        let agent = agent.node("beside").config(config).start().await;
        let history = Arc::new(History::default());
        register(&servers[0], &history).await;
        let dns = Proxy::start(DOORS, agent.dns()).await;
        // "localhost" is what a certificate is for.
        let http = match tls {
            None => Proxy::start(DOORS, agent.http_address()).await,
            Some(port) => Proxy::start(Ipv4Addr::LOCALHOST, (AGENT, port).into()).await,
        };
        let our_http = Proxy::start(DOORS, agent.http_address()).await;
        let mut server_doors = Vec::new();
        for server in &servers {
            server_doors.push(Proxy::start(DOORS, server.http_address()).await);
        }
        let doors = doors(&plan, &http, &server_doors);
        let stub = start_stub(&plan, dns.address(), &doors, None);
        let mut field = Self {
            servers,
            agent,
            dns,
            http,
            our_http,
            server_doors,
            stub,
            plan,
            machine: Machine::watched(),
            history,
            load: None,
            before: Vec::new(),
            changes: None,
            mine: None,
            began: Instant::now(),
            fault: None,
            waning: None,
            behind: Vec::new(),
            healed: None,
            passed: [0; 3],
            seen: Vec::new(),
            troubles: Vec::new(),
            late: Vec::new(),
            said: Vec::new(),
            steps: Vec::new(),
            late_by: Duration::ZERO,
        };
        field.register_ours().await;
        field.start_changes();
        field
    }

    /// The usual field, after a while in which all is well.
    pub(crate) async fn usual() -> Self {
        let mut field = Self::start(Plan::default()).await;
        field.calm().await;
        field
    }

    /// The stub again, at the address that it had.
    pub(crate) fn restart_stub(&mut self) {
        let doors = doors(&self.plan, &self.http, &self.server_doors);
        let at = Some(self.stub.dns);
        self.listen();
        self.stub = start_stub(&self.plan, self.dns.address(), &doors, at);
    }

    /// Nobody asks for a while.
    pub(crate) async fn pause_load(&mut self) {
        if let Some(load) = self.load.take() {
            let asked = tokio::task::spawn_blocking(|| load.stop()).await;
            self.before.extend(asked.expect("the load does not panic"));
        }
    }

    /// The load goes on, with names that are new still.
    pub(crate) fn resume_load(&mut self) {
        let known: Vec<_> = (0..KNOWN).map(known).map(|name| asked(&name)).collect();
        let used = self.before.iter().filter(|asked| asked.new).count();
        let new = (0..NEW).skip(used).map(new).map(|name| asked(&name));
        let new: Vec<_> = new.collect();
        self.load = Some(Load::start(self.stub.dns, &known, &new));
    }

    /// The load begins, and all is well for a while.
    pub(crate) async fn calm(&mut self) {
        self.resume_load();
        // Each name is asked for once, and followed, before that counts as calm.
        sleep(CALM.mul_f64(0.5)).await;
        self.began = Instant::now();
        self.passed[0] = self.upstream();
        sleep(CALM).await;
    }

    /// From now on something is wrong.
    pub(crate) fn fault_begins(&mut self) {
        self.passed[1] = self.upstream();
        self.listen();
        // What is no word about this fault; but a panic is never usual.
        self.said.retain(|line| line.contains("panicked"));
        self.fault = Some(Instant::now());
    }

    /// From now on a server may be behind: one stands still, or nobody leads, and what was
    /// confirmed last is known to nobody else.
    pub(crate) fn falls_behind(&mut self) {
        self.behind.push((Instant::now(), None));
    }

    /// All servers are there, and will have caught up so soon.
    pub(crate) fn catches_up(&mut self, within: Duration) {
        let soon = Instant::now() + within;
        for (_, until) in &mut self.behind {
            until.get_or_insert(soon);
        }
    }

    /// Something else fails: for a second it is met for the first time.
    pub(crate) fn step(&mut self) {
        self.steps.push(Instant::now());
    }

    /// Takes down what the stub said until now.
    fn listen(&mut self) {
        self.said.extend(self.stub.said_so_far());
    }

    /// From now on those who failed come back, and what they say first may be what was true
    /// long ago: Consul answers while it still reads its log.
    pub(crate) fn fault_wanes(&mut self) {
        self.waning = Some(Instant::now());
    }

    /// From now on all is well again, or as well as it gets.
    pub(crate) fn fault_ends(&mut self) {
        self.passed[2] = self.upstream();
        self.healed = Some(Instant::now());
    }

    /// All is well again, our own instance is there, and the load goes on for a while.
    pub(crate) async fn mended(&mut self, rest: Duration) {
        self.fault_ends();
        self.ours_is_there(RIGHT_AGAIN).await;
        sleep(rest).await;
        for which in ["", "passing"] {
            let there = wait_for("a server that tells", async || {
                self.in_catalog("ours", which).await
            })
            .await;
            if there != 1 {
                let trouble = format!("our own instance is there {there} times, later: {which}");
                self.trouble(trouble);
            }
        }
    }

    /// Questions and requests that reached Consul's doors.
    fn upstream(&self) -> u64 {
        let doors = [&self.dns, &self.http]
            .into_iter()
            .chain(&self.server_doors);
        doors.map(Proxy::passed).sum()
    }

    /// The client agent dies, and its ports close.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.kill();
        self.weather_of_agent(&Weather::refused());
    }

    /// It is there again.
    pub(crate) async fn restart_agent(&mut self) {
        self.agent.restart().await;
        self.weather_of_agent(&Weather::default());
    }

    /// A server dies, and its ports close.
    pub(crate) fn kill_server(&mut self, at: usize) {
        self.servers[at].kill();
        self.server_doors[at].set(Weather::refused());
    }

    pub(crate) fn kill_servers(&mut self) {
        (0..self.servers.len()).for_each(|at| self.kill_server(at));
    }

    /// A server is started, and nobody waits for it.
    pub(crate) fn launch_server(&mut self, at: usize) {
        self.servers[at].launch();
        self.server_doors[at].set(Weather::default());
    }

    pub(crate) fn launch_servers(&mut self) {
        (0..self.servers.len()).for_each(|at| self.launch_server(at));
    }

    /// They have a leader again.
    pub(crate) async fn restart_servers(&mut self) {
        self.fault_wanes();
        self.launch_servers();
        leader(&self.servers).await;
    }

    /// The same weather at all doors.
    pub(crate) fn weather_everywhere(&self, weather: &Weather) {
        self.dns.set(weather.clone());
        self.weather_of_http(weather);
    }

    pub(crate) fn weather_of_agent(&self, weather: &Weather) {
        self.dns.set(weather.clone());
        self.weather_of_agents_http(weather);
    }

    pub(crate) fn weather_of_agents_http(&self, weather: &Weather) {
        self.http.set(weather.clone());
        self.our_http.set(weather.clone());
    }

    pub(crate) fn weather_of_http(&self, weather: &Weather) {
        self.weather_of_agents_http(weather);
        for door in &self.server_doors {
            door.set(weather.clone());
        }
    }

    /// A metric of the stub; the sum over its labels. 0 where there is none.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.stub.admin);
        let Ok(told) = http_client().get(url).send().await else {
            return 0.0;
        };
        let told = told.text().await.unwrap_or_default();
        let (name, label) = name.split_once('{').unwrap_or((name, ""));
        let lines = told.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && rest.contains(label.trim_end_matches('}'))
        });
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// A metric has to be so while the fault lasts: looked at until it is, for a while.
    pub(crate) async fn shows(&mut self, name: &str, wanted: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(8);
        loop {
            let value = self.metric(name).await;
            let shown = wanted(value);
            if shown || Instant::now() > deadline {
                self.notes(name, value, shown);
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many instances the stub tells.
    async fn count(&self, service: &str) -> usize {
        let told = ask(self.stub.dns, &asked(service), RecordType::SRV, Over::Udp).await;
        told.map_or(usize::MAX, |(reply, _)| reply.answers.len())
    }

    /// A name that nobody can tell of is an error, with the reason that there is for it.
    pub(crate) async fn cannot_tell(&mut self, name: &str, reason: u16) {
        for (what, most) in [("nobody can tell", 900), ("nor again", 5)] {
            let began = Instant::now();
            let told = load::ask_once(self.stub.dns, name, RecordType::SRV).await;
            self.timed(what, began.elapsed(), Duration::from_millis(most));
            let told = told.map(|reply| (reply.code, reply.reasons));
            if told != Some((ResponseCode::ServFail, vec![reason])) {
                self.trouble(format!("{name}, of which {what}, is {told:?}"));
            }
        }
    }

    /// What changes may be seen so much later than usual.
    pub(crate) fn late_by(&mut self, time: Duration) {
        self.late_by = time;
    }

    /// Beside the row's bounds: what was found, and whether it is as it has to be.
    pub(crate) fn notes(&mut self, what: &str, value: f64, holds: bool) {
        self.seen.push((what.to_owned(), value, holds));
    }

    /// Beside the row's bounds: how long something took, and how long it may.
    pub(crate) fn timed(&mut self, what: &str, took: Duration, most: Duration) {
        let shown = took.as_secs_f64() * 1_000.0;
        self.notes(&format!("{what}, ms"), shown, true);
        if took > most {
            self.late
                .push(format!("{what} {took:.1?}, at most {most:?}"));
        }
    }

    /// Something that must not have been.
    pub(crate) fn trouble(&mut self, what: impl Into<String>) {
        self.troubles.push(what.into());
    }

    /// Two instances of this process, with heartbeats: one must be in the catalog once, and
    /// well, whenever that can be written to; the other is stopped in the fault of some rows.
    async fn register_ours(&mut self) {
        let mut resolver = Resolver::builder().dns("none").http(&self.our_http.http());
        if self.plan.token_file.is_some() {
            resolver = resolver.token(MASTER);
        }
        let resolver = resolver.build().unwrap();
        let register = |name: &str, port| {
            let check = Check::ttl(BEATS);
            let service = ServiceDefinition::new(name, port).address("10.200.0.1");
            resolver.register(service.check(check)).unwrap()
        };
        let (stays, leaves) = (register("ours", 4_000), register("ours-too", 4_001));
        for service in ["ours", "ours-too"] {
            self.agent.wait_for_instances(service, 1).await;
        }
        self.mine = Some(Mine {
            resolver,
            _stays: stays,
            leaves: Leaves::NotYet(Box::new(leaves)),
        });
    }

    /// The other instance of ours ends, and its agent is well.
    pub(crate) fn one_of_ours_leaves(&mut self) {
        self.leaves(Leaves::Told);
    }

    /// The other instance of ours ends, and has tried in vain to say so.
    pub(crate) async fn one_of_ours_leaves_unheard(&mut self) {
        self.leaves(Leaves::Untold);
        sleep(BEATS).await;
    }

    fn leaves(&mut self, how: Leaves) {
        let mine = self.mine.as_mut().expect("they are registered");
        let Leaves::NotYet(leaves) = std::mem::replace(&mut mine.leaves, how) else {
            panic!("it leaves once");
        };
        tokio::spawn(leaves.shutdown());
    }

    /// How often what we registered was told again.
    pub(crate) fn told_again(&self) -> f64 {
        let mine = self.mine.as_ref().expect("they are registered");
        let metrics = mine.resolver.metrics();
        let is_it = |name: &str| name == "proconsul_reregistrations_total";
        let again = metrics.samples().find(|one| is_it(one.name));
        again.map_or(0.0, |one| one.value)
    }

    /// How many instances the catalog has, as the first of the servers that answers tells it.
    async fn in_catalog(&self, service: &str, which: &str) -> Option<usize> {
        let path = format!("/v1/health/service/{service}?{which}");
        for server in &self.servers {
            let request = server.request(Method::GET, &path).send();
            if let Ok(Ok(told)) = timeout(Duration::from_secs(1), request).await
                && told.status().is_success()
            {
                let found: Value = told.json().await.unwrap_or_default();
                return found.as_array().map(Vec::len);
            }
        }
        None
    }

    /// How long it takes until the catalog is right about ours: one is there, once, and well;
    /// who was stopped is not.
    pub(crate) async fn ours_is_there(&mut self, within: Duration) {
        self.catalog_has("ours", "passing", 1, "registered again", within)
            .await;
        self.is_once(within).await;
        let mine = self.mine.as_mut().expect("they are registered");
        match std::mem::replace(&mut mine.leaves, Leaves::Done) {
            Leaves::Told => {
                self.catalog_has("ours-too", "", 0, "who left is gone", within)
                    .await
            }
            Leaves::Untold => {
                let what = "who left is given to nobody";
                self.catalog_has("ours-too", "passing", 0, what, within)
                    .await;
            }
            as_before @ (Leaves::NotYet(_) | Leaves::Done) => {
                self.mine.as_mut().expect("they are registered").leaves = as_before;
            }
        }
    }

    async fn is_once(&mut self, within: Duration) {
        let all = self.in_catalog("ours", "").await;
        if all.is_some_and(|all| all > 1) {
            self.trouble(format!("our own instance is there {all:?} times"));
        }
        // What the servers had from before is taken away by an agent that was started anew, and
        // then it is told again.
        let what = "there once";
        self.catalog_has("ours", "", 1, what, within).await;
    }

    async fn catalog_has(
        &mut self,
        service: &str,
        which: &str,
        count: usize,
        what: &str,
        within: Duration,
    ) {
        let began = Instant::now();
        loop {
            let found = self.in_catalog(service, which).await;
            let took = began.elapsed();
            // On a machine that does other things besides, late is not lost.
            if found == Some(count) || took > PATIENCE {
                self.timed(what, took, within);
                if found != Some(count) {
                    self.trouble(format!(
                        "{what}: in vain, {service} is there {found:?} times"
                    ));
                }
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sets change all the time, one after the other, for as long as somebody can write.
    fn start_changes(&mut self) {
        let history = Arc::clone(&self.history);
        let servers: Vec<_> = self.servers.iter().map(Agent::http).collect();
        self.changes = Some(tokio::spawn(async move {
            let client = http_client_with(|builder| builder.timeout(Duration::from_secs(2)));
            for turn in 0_u16.. {
                sleep(CHANGES).await;
                let name = turn % KNOWN;
                let mut ports = history.now(&asked(&known(name)));
                let more = port(name, INSTANCES);
                let (path, body) = if ports.remove(&more) {
                    let node = json!({ "Node": format!("{}-{INSTANCES}", known(name)) });
                    ("/v1/catalog/deregister", node)
                } else {
                    ports.insert(more);
                    (
                        "/v1/catalog/register",
                        instance(&known(name), INSTANCES, more),
                    )
                };
                let began = Instant::now();
                let mut confirmed = None;
                for server in &servers {
                    let sent = client.put(format!("{server}{path}")).json(&body);
                    let sent = sent.header("X-Consul-Token", MASTER).send().await;
                    if sent.is_ok_and(|told| told.status().is_success()) {
                        confirmed = Some(Instant::now());
                        break;
                    }
                }
                history.changed(&asked(&known(name)), ports, began, confirmed);
            }
        }));
    }

    /// No set changes any more.
    pub(crate) async fn stop_changes(&mut self) {
        if let Some(changes) = self.changes.take() {
            changes.abort();
            _ = changes.await;
        }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if let Some(changes) = self.changes.take() {
            changes.abort();
        }
    }
}

/// Of the agent's address.
fn free_port() -> u16 {
    let socket = TcpListener::bind((AGENT, 0)).expect("a free port");
    socket.local_addr().expect("it is bound").port()
}

/// The agent first, and then each server.
fn doors(plan: &Plan, http: &Proxy, servers: &[Proxy]) -> String {
    let first = match plan.ca_file {
        None => http.http(),
        Some(_) => format!("https://localhost:{}", http.address().port()),
    };
    let servers = servers.iter().map(Proxy::http);
    let all = std::iter::once(first).chain(servers.filter(|_| plan.ca_file.is_none()));
    all.collect::<Vec<_>>().join(",")
}

fn start_stub(plan: &Plan, dns: SocketAddr, http: &str, at: Option<SocketAddr>) -> Serving {
    let at = at.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into());
    let mut command = serve_at(at, &dns.to_string(), http);
    command.args(["--admin", "127.0.0.1:0"]).args(&plan.stub);
    match &plan.upstreams[..] {
        [] => _ = command.args(["--upstream", "none"]),
        upstreams => upstreams.iter().for_each(|upstream| {
            command.args(["--upstream", &upstream.to_string()]);
        }),
    }
    for (flag, file) in [
        ("--token-file", &plan.token_file),
        ("--ca-file", &plan.ca_file),
    ] {
        if let Some(file) = file {
            command.arg(flag).arg(file);
        }
    }
    if let Some((first, rest)) = plan.wrapped.split_first() {
        let mut wrapped = Command::new(first);
        wrapped.args(rest).arg(command.get_program());
        wrapped.args(command.get_args()).env_clear();
        command = wrapped;
    }
    Serving::start(command)
}

/// ACLs in force; who has no token sees nothing.
fn acl() -> Value {
    json!({ "primary_datacenter": "dc1", "acl": {
        "enabled": true, "default_policy": "deny", "down_policy": "deny",
        "policy_ttl": "1s", "token_ttl": "1s", "role_ttl": "1s",
        "tokens": { "master": MASTER, "agent": MASTER },
    }})
}

/// What the first of them says that can: some may be dead, hang, or have no leader.
async fn any_of(servers: &[Agent], method: Method, path: &str) -> Value {
    wait_for(path, async || {
        for server in servers {
            let told = server.tried(method.clone(), path).await;
            if told.is_some() {
                return told;
            }
        }
        None
    })
    .await
}

/// Makes a token that may see all services; `secret` is what it is.
async fn make_token(server: &Agent, secret: &str) -> String {
    let rules = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" } \
                 agent_prefix \"\" { policy = \"read\" }";
    let policies = any_of(slice::from_ref(server), Method::GET, "/v1/acl/policies").await;
    let there = policies.as_array().unwrap().iter();
    if !there.clone().any(|policy| policy["Name"] == "see") {
        let policy = json!({ "Name": "see", "Rules": rules });
        server.put("/v1/acl/policy", policy).await;
    }
    let token = json!({ "SecretID": secret, "Policies": [{ "Name": "see" }] });
    let made = server.put("/v1/acl/token", token).await;
    made["SecretID"].as_str().unwrap().to_owned()
}

fn known(name: u16) -> String {
    format!("svc-{name:02}")
}

fn new(name: u16) -> String {
    format!("new-{name:04}")
}

/// As it is asked for.
fn asked(service: &str) -> String {
    format!("{service}.service.consul.")
}

fn port(name: u16, instance: u16) -> u16 {
    10_000 + name * 8 + instance
}

fn instance(service: &str, number: u16, port: u16) -> Value {
    let [high, low] = port.to_be_bytes();
    json!({
        "Node": format!("{service}-{number}"), "Address": format!("10.9.{high}.{low}"),
        "Service": { "ID": format!("{service}-{number}"), "Service": service, "Port": port },
    })
}

/// All names, as external nodes that no agent's death takes with it.
async fn register(server: &Agent, history: &History) {
    let began = Instant::now();
    let mut nodes = Vec::new();
    let mut sets = Vec::new();
    for name in 0..KNOWN {
        let ports: BTreeSet<_> = (0..INSTANCES).map(|number| port(name, number)).collect();
        nodes.extend(
            (0..INSTANCES).map(|number| instance(&known(name), number, port(name, number))),
        );
        sets.push((known(name), ports));
    }
    for name in 0..NEW {
        let port = 20_000 + name;
        nodes.push(instance(&new(name), 0, port));
        sets.push((new(name), BTreeSet::from([port])));
    }
    // Consul takes at most 64 operations in a transaction; an instance is two. No set is
    // there by half.
    for part in nodes.chunks(usize::from(32 / INSTANCES * INSTANCES)) {
        let operations = part.iter().flat_map(|node| {
            let (name, service) = (&node["Node"], &node["Service"]);
            let own = json!({ "Node": name, "Address": node["Address"] });
            [
                json!({ "Node": { "Verb": "set", "Node": own } }),
                json!({ "Service": { "Verb": "set", "Node": name, "Service": service } }),
            ]
        });
        let operations: Vec<_> = operations.collect();
        // On a machine that stands still now and then the leader is another one.
        wait_for("the servers to take them", async || {
            let request = server.request(Method::PUT, "/v1/txn");
            let told = request.json(&operations).send().await.ok()?;
            told.status().is_success().then_some(())
        })
        .await;
    }
    for (service, ports) in sets {
        history.changed(&asked(&service), ports, began, None);
    }
    wait_for("every server to have them", async || {
        let last = format!("/v1/health/service/{}?stale", new(NEW - 1));
        let found = server.get(&last).await;
        (found.as_array()?.len() == 1).then_some(())
    })
    .await;
}
