//! How long it takes until a change is seen, and what a failure of Consul costs:
//! proconsul beside hickory-resolver and, where it is installed, dnsmasq.
//!
//! | table | measured |
//! | --- | --- |
//! | time until a change is seen | from sending a registration to the first answer with the new instance; Consul's TTL is 30 s |
//! | Consul gone | the agent killed, or stopped so that it hangs: a cached name, a new name, and the truth after its return; Consul's TTL is 0 |
//!
//! `scripts/bench --events` runs it.

#![allow(clippy::print_stdout, reason = "the table is the point")]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock itself"
)]

#[path = "../lookup/agent.rs"]
mod agent;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as StdSocket},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, RecordType},
};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
};
use proconsul::{Freshness, Resolver, stub::Stub};
use serde_json::json;
use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{sleep, timeout},
};

use agent::Agent;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Changes that are measured.
const CHANGES: u16 = 20;

/// Consul's TTL where caches are to hold.
const TTL: Duration = Duration::from_secs(30);

/// Between two looks at what is polled.
const LOOK: Duration = Duration::from_millis(20);

/// Nobody is waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long Consul is gone.
const GONE: Duration = Duration::from_secs(8);

/// Who looks names up.
#[derive(Clone)]
enum Asker {
    Ours(Resolver),
    Hickory(Box<TokioResolver>),
    /// A name server: our stub, or another forwarder.
    Server(SocketAddr),
}

impl Asker {
    /// The ports of a service's instances; `None` where there was an error or nothing.
    async fn ports(&self, service: &str) -> Option<Vec<u16>> {
        let name = format!("{service}.service.consul.");
        match self {
            Self::Ours(resolver) => {
                let answer = resolver.lookup(name.as_str()).await.ok()?;
                Some(
                    answer
                        .endpoints()
                        .iter()
                        .map(|endpoint| endpoint.port)
                        .collect(),
                )
            }
            Self::Hickory(resolver) => {
                let answer = resolver.lookup(name, RecordType::SRV).await.ok()?;
                let port = |data: &RData| match data {
                    RData::SRV(srv) => Some(srv.port),
                    _ => None,
                };
                Some(
                    answer
                        .answers()
                        .iter()
                        .filter_map(|record| port(&record.data))
                        .collect(),
                )
            }
            Self::Server(server) => ask(*server, &name).await,
        }
    }
}

/// One datagram, and what it brings within five seconds, as a resolver library of
/// a C system waits.
async fn ask(server: SocketAddr, name: &str) -> Option<Vec<u16>> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).ok()?, RecordType::SRV));
    let socket = UdpSocket::bind("127.0.0.1:0").await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&question.to_vec().ok()?).await.ok()?;
    let mut packet = vec![0; 4_096];
    let length = timeout(Duration::from_secs(5), socket.recv(&mut packet))
        .await
        .ok()?
        .ok()?;
    let reply = Message::from_vec(packet.get(..length)?).ok()?;
    let ports: Vec<u16> = (reply.answers.iter())
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv.port),
            _ => None,
        })
        .collect();
    (!ports.is_empty()).then_some(ports)
}

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wants = |word: &str| words.iter().any(|own| own == word);
    if !wants("--events") {
        println!("nothing is measured here: run scripts/bench --events");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        changes().await?;
        outage().await
    })
}

fn ours(agent: &Agent) -> proconsul::ResolverBuilder {
    Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&format!("http://{}", agent.http()))
        .no_catalog()
        .no_snapshot()
}

async fn stub(resolver: &Resolver) -> Outcome<SocketAddr> {
    let stub = Stub::bind(resolver.clone(), &["127.0.0.1:0".parse()?]).await?;
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    Ok(address)
}

fn hickory(server: SocketAddr) -> Outcome<TokioResolver> {
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let servers = vec![NameServerConfig::new(ip, true, vec![connection])];
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let provider = TokioRuntimeProvider::default();
    let builder = TokioResolver::builder_with_config(config, provider);
    Ok(builder.with_options(ResolverOpts::default()).build()?)
}

/// dnsmasq in front of the agent, on a port of its own; `None` where there is none.
struct Dnsmasq(Child, SocketAddr);

impl Dnsmasq {
    fn start(server: SocketAddr) -> Option<Self> {
        let free = StdSocket::bind("127.0.0.1:0").ok()?;
        let address = free.local_addr().ok()?;
        drop(free);
        let child = Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--conf-file=/dev/null",
            ])
            .args([
                "--listen-address=127.0.0.1",
                "--bind-interfaces",
                "--no-daemon",
            ])
            .arg(format!("--port={}", address.port()))
            .arg(format!("--server=/consul/127.0.0.1#{}", server.port()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self(child, address))
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn changes() -> Outcome<()> {
    println!(
        "time until a change is seen, {CHANGES} changes, Consul's TTL {} s",
        TTL.as_secs()
    );
    println!("{:<44} {:>10} {:>10}", "", "median", "worst");
    let agent = Agent::start_with(json!({"dns_config": {"service_ttl": {"*": "30s"}}}))?;
    for at in 0..CHANGES {
        for kind in ["watch", "stub", "ttl"] {
            agent.put(&format!("{kind}{at}"), 1)?;
        }
    }
    sleep(Duration::from_secs(2)).await;

    let resolver = ours(&agent).build()?;
    let mut seen = Vec::new();
    for at in 0..CHANGES {
        let name = format!("watch{at}");
        let service = resolver.service(name.as_str())?;
        let mut changes = service.changes();
        changes.next().await;
        sleep(Duration::from_millis(50 + 7 * u64::from(at))).await;
        let start = Instant::now();
        tokio::task::block_in_place(|| agent.put(&name, 2))?;
        let change = timeout(PATIENCE, changes.next()).await?;
        assert_eq!(change.added.len(), 1);
        seen.push(start.elapsed());
    }
    row("proconsul, Service::changes()", seen);

    let server = stub(&resolver).await?;
    let mut seen = Vec::new();
    for at in 0..CHANGES {
        let name = format!("stub{at}");
        let service = resolver.service(name.as_str())?;
        service.ready().await;
        sleep(Duration::from_millis(50 + 7 * u64::from(at))).await;
        let start = Instant::now();
        tokio::task::block_in_place(|| agent.put(&name, 2))?;
        seen.push(
            until(
                &Asker::Server(server),
                &name,
                2,
                start,
                Duration::from_millis(1),
            )
            .await?,
        );
    }
    row("proconsul, stub, followed name", seen);

    let dnsmasq = Dnsmasq::start(agent.dns());
    sleep(Duration::from_millis(500)).await;
    let mut askers = vec![
        (
            "proconsul, by TTL (watches off)",
            Asker::Ours(ours(&agent).watches(0).build()?),
        ),
        (
            "hickory-resolver",
            Asker::Hickory(Box::new(hickory(agent.dns())?)),
        ),
    ];
    match &dnsmasq {
        Some(Dnsmasq(_, address)) => askers.push(("dnsmasq", Asker::Server(*address))),
        None => println!("dnsmasq is not installed: left out"),
    }
    // All at once: each change takes as long as it takes.
    let mut running = JoinSet::new();
    let (tell, _) = tokio::sync::broadcast::channel::<(u16, Instant)>(64);
    for (which, (_, asker)) in askers.iter().enumerate() {
        for at in 0..CHANGES {
            let (asker, mut told) = (asker.clone(), tell.subscribe());
            asker.ports(&format!("ttl{at}")).await;
            running.spawn(async move {
                let start = loop {
                    match told.recv().await {
                        Ok((changed, start)) if changed == at => break start,
                        Ok(_) => {}
                        Err(error) => return Err(error.into()),
                    }
                };
                until(&asker, &format!("ttl{at}"), 2, start, LOOK)
                    .await
                    .map(|took| (which, took))
            });
        }
    }
    for at in 0..CHANGES {
        sleep(Duration::from_millis(1_400)).await;
        let start = Instant::now();
        tokio::task::block_in_place(|| agent.put(&format!("ttl{at}"), 2))?;
        let _ = tell.send((at, start));
    }
    let mut seen = vec![Vec::new(); askers.len()];
    while let Some(one) = running.join_next().await {
        let (which, took) = one??;
        seen[which].push(took);
    }
    for ((label, _), seen) in askers.iter().zip(seen) {
        row(label, seen);
    }
    Ok(())
}

/// The time from `start` until an asker sees that port.
async fn until(
    asker: &Asker,
    service: &str,
    port: u16,
    start: Instant,
    pause: Duration,
) -> Outcome<Duration> {
    while start.elapsed() < PATIENCE {
        if asker
            .ports(service)
            .await
            .is_some_and(|ports| ports.contains(&port))
        {
            return Ok(start.elapsed());
        }
        sleep(pause).await;
    }
    Err(format!("{service}: the change was never seen").into())
}

fn row(label: &str, mut seen: Vec<Duration>) {
    seen.sort();
    let (median, worst) = (seen[seen.len() / 2], seen[seen.len() - 1]);
    println!("{label:<44} {:>10.1?} {:>10.1?}", median, worst);
}

async fn outage() -> Outcome<()> {
    for how in ["closed", "hanging"] {
        println!();
        println!("Consul gone for {} s, {how}", GONE.as_secs());
        println!(
            "{:<28} {:>12} {:>10} {:>10} {:>12} {:>10}",
            "", "answered", "first", "worst then", "new name", "true again"
        );
        let mut agent = Agent::start()?;
        agent.put("web", 1)?;
        sleep(Duration::from_secs(1)).await;
        let resolver = ours(&agent).build()?;
        let served = ours(&agent).build()?;
        let dnsmasq = Dnsmasq::start(agent.dns());
        sleep(Duration::from_millis(300)).await;
        let mut askers = vec![
            ("proconsul", Asker::Ours(resolver.clone())),
            ("proconsul, stub", Asker::Server(stub(&served).await?)),
            (
                "hickory-resolver",
                Asker::Hickory(Box::new(hickory(agent.dns())?)),
            ),
        ];
        if let Some(Dnsmasq(_, address)) = &dnsmasq {
            askers.push(("dnsmasq", Asker::Server(*address)));
        }
        for (_, asker) in &askers {
            assert!(asker.ports("web").await.is_some());
        }
        // What is fresh is no stale answer yet.
        sleep(Duration::from_millis(1_100)).await;
        if how == "closed" {
            agent.kill()?
        } else {
            agent.signal("STOP")?
        }
        let mut running = JoinSet::new();
        for (_, asker) in askers.clone() {
            running.spawn(async move {
                let cached = tokio::spawn(cached(asker.clone()));
                let start = Instant::now();
                let found = timeout(PATIENCE, asker.ports("never-asked")).await;
                let new = start.elapsed();
                assert!(!matches!(found, Ok(Some(_))));
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((cached.await?, new))
            });
            // In the order of the table.
            sleep(Duration::from_millis(1)).await;
        }
        sleep(GONE).await;
        tokio::task::block_in_place(|| -> Outcome<()> {
            if how == "closed" {
                agent.restart()?
            } else {
                agent.signal("CONT")?
            }
            agent.put("web", 2)
        })?;
        // Back is when the agent itself tells the new truth.
        let direct = Asker::Server(agent.dns());
        until(&direct, "web", 2, Instant::now(), Duration::from_millis(2)).await?;
        let start = Instant::now();
        let mut again = JoinSet::new();
        for (which, (_, asker)) in askers.iter().cloned().enumerate() {
            again.spawn(async move {
                let pause = Duration::from_millis(5);
                (which, until(&asker, "web", 2, start, pause).await.ok())
            });
        }
        let mut back = vec![None; askers.len()];
        while let Some(one) = again.join_next().await {
            let (which, took) = one?;
            back[which] = took;
        }
        let mut told = Vec::new();
        while let Some(one) = running.join_next().await {
            told.push(one??);
        }
        told.sort_by_key(|(cached, _)| cached.started);
        for (((label, _), (cached, new)), back) in askers.iter().zip(told).zip(back) {
            let share = format!("{}/{}", cached.answered, cached.asked);
            let back = back.map_or_else(|| "never".to_owned(), |back| format!("{back:.1?}"));
            println!(
                "{label:<28} {share:>12} {:>10.1?} {:>10.1?} {new:>12.1?} {back:>10}",
                cached.first, cached.worst
            );
        }
        let stale = resolver.lookup("web").max_age(Duration::ZERO).await?;
        assert_eq!(stale.freshness(), Freshness::Fresh);
    }
    Ok(())
}

/// What became of a cached name while Consul was gone.
struct Cached {
    started: Instant,
    asked: usize,
    answered: usize,
    first: Duration,
    worst: Duration,
}

async fn cached(asker: Asker) -> Cached {
    let started = Instant::now();
    let mut cached = Cached {
        started,
        asked: 0,
        answered: 0,
        first: Duration::ZERO,
        worst: Duration::ZERO,
    };
    while started.elapsed() < GONE {
        let start = Instant::now();
        let left = (GONE + Duration::from_secs(8)).saturating_sub(started.elapsed());
        let found = timeout(left, asker.ports("web")).await;
        let took = start.elapsed();
        cached.asked += 1;
        cached.answered += usize::from(matches!(found, Ok(Some(_))));
        if cached.asked == 1 {
            cached.first = took;
        } else {
            cached.worst = cached.worst.max(took);
        }
        sleep(LOOK).await;
    }
    cached
}
