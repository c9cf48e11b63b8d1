//! Looking services up, beside hickory-resolver, on one and the same agent.
//! Run by `scripts/bench`.
//!
//! | part | against whom |
//! | --- | --- |
//! | cached | hickory with its own cache; the bare floors: a map behind a mutex, a clock |
//! | cached among many names | the same, both filled from a name server made for it (`name_server.rs`) |
//! | memory a name | bytes alive after that filling |
//! | uncached | hickory over UDP with three sizes of EDNS and over TCP kept open; our own HTTP rung |
//!
//! All contenders of a group take turns within one run, on one thread, and each
//! ratio is the median of the ratios of the rounds: these numbers hold on a
//! noisy machine, the times beside them only there. Nothing is asserted.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the point"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock itself"
)]

mod agent;
mod name_server;
mod race;
mod table;

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
    proto::rr::{Name, RecordType},
};
use lru::LruCache;
use proconsul::{ConsulName, Resolver};
use rand::{SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};
use tokio::runtime::Runtime;

use self::{
    agent::Agent,
    name_server::NameServer,
    race::{Contender, Pace, contender},
    table::Table,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const HOUR: Duration = Duration::from_secs(3600);

/// What the command line says.
struct Options {
    rounds: usize,
    names: usize,
    json: Option<PathBuf>,
}

fn main() -> Outcome<()> {
    let Some(options) = options()? else {
        println!("nothing is measured here: run scripts/bench");
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut table = Table::default();
    let agent = Agent::start()?;
    for instances in [1, 10, 100] {
        agent.register(&service(instances), instances)?;
    }
    cached(&runtime, &agent, options.rounds, &mut table)?;
    uncached(&runtime, &agent, options.rounds, &mut table)?;
    drop(agent);
    many_names(&runtime, options.names, options.rounds, &mut table)?;
    floors(&runtime, options.names, options.rounds, &mut table)?;
    println!("{table}");
    if let Some(file) = options.json {
        std::fs::write(file, table.json()?)?;
    }
    Ok(())
}

/// `None` when cargo only wants to see whether this runs, as `cargo test` does.
fn options() -> Outcome<Option<Options>> {
    let mut options = Options {
        rounds: 101,
        names: 100_000,
        json: None,
    };
    let mut measure = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--bench" => measure = true,
            "--rounds" => options.rounds = value()?.parse()?,
            "--names" => options.names = value()?.parse()?,
            "--json" => options.json = Some(value()?.into()),
            _ => return Err(format!("{word}: try --rounds N, --names N, --json FILE").into()),
        }
    }
    Ok(measure.then_some(options))
}

fn service(instances: usize) -> String {
    format!("bench-{instances}")
}

/// Look-ups of few names that both caches hold.
fn cached(runtime: &Runtime, agent: &Agent, rounds: usize, table: &mut Table) -> Outcome<()> {
    let pace = Pace {
        rounds,
        look_ups: 2_000,
    };
    let ours = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http("none")
        .no_catalog()
        .ttl_floor(HOUR)
        .ttl_cap(HOUR)
        .build()?;
    let peer = hickory(agent.dns(), Over::Tcp, 8_192)?;
    for instances in [1, 10, 100] {
        let text = format!("{}.service.consul.", service(instances));
        let name: ConsulName = text.parse()?;
        let peer_name = Name::from_ascii(&text)?;
        let contenders = vec![
            contender(runtime, "proconsul", async || ask(&ours, &name).await),
            contender(runtime, "hickory, parsed", async || {
                ask_hickory(&peer, peer_name.clone()).await
            }),
        ];
        let row = format!("cached, {instances} instances, parsed name");
        table.add(race::run(&row, contenders, pace));
        let contenders = vec![
            contender(runtime, "proconsul", async || {
                found(ours.lookup(text.as_str()).await)
            }),
            contender(runtime, "hickory, text", async || {
                let name = Name::from_ascii(&text).expect("it was read before");
                ask_hickory(&peer, name).await
            }),
        ];
        let row = format!("cached, {instances} instances, text");
        table.add(race::run(&row, contenders, pace));
    }
    Ok(())
}

/// Look-ups that each go to the agent.
fn uncached(runtime: &Runtime, agent: &Agent, rounds: usize, table: &mut Table) -> Outcome<()> {
    // Long enough that what a pause before costs whoever comes first is small.
    let pace = Pace {
        rounds: rounds.div_ceil(3),
        look_ups: 100,
    };
    let ours = |dns: &str, http: &str| {
        Resolver::builder()
            .dns(dns)
            .http(http)
            .no_catalog()
            .ttl_floor(Duration::ZERO)
            .build()
    };
    let over_dns = ours(&agent.dns().to_string(), "none")?;
    let over_http = ours("none", &format!("http://{}", agent.http()))?;
    let peers = [
        ("hickory, UDP without EDNS", Over::Udp(None)),
        ("hickory, UDP, EDNS 1232", Over::Udp(Some(1_232))),
        ("hickory, UDP, EDNS 4096", Over::Udp(Some(4_096))),
        ("hickory, TCP kept open", Over::Tcp),
    ];
    for instances in [10, 100] {
        let text = format!("{}.service.consul.", service(instances));
        let name: ConsulName = text.parse()?;
        let peer_name = Name::from_ascii(&text)?;
        let mut contenders = vec![
            contender(runtime, "proconsul", async || ask(&over_dns, &name).await),
            contender(runtime, "proconsul, HTTP alone", async || {
                ask(&over_http, &name).await
            }),
        ];
        for (label, over) in peers {
            let (peer, peer_name) = (hickory(agent.dns(), over, 0)?, peer_name.clone());
            contenders.push(contender(runtime, label, async move || {
                ask_hickory(&peer, peer_name.clone()).await
            }));
        }
        let row = format!("uncached, {instances} instances");
        table.add(race::run(&row, contenders, pace));
    }
    Ok(())
}

/// Look-ups of many names in no order, and what each name costs in memory.
fn many_names(runtime: &Runtime, names: usize, rounds: usize, table: &mut Table) -> Outcome<()> {
    let pace = Pace {
        rounds: rounds.div_ceil(3),
        look_ups: 20_000,
    };
    let server = NameServer::start()?;
    let room = NonZeroUsize::new(names * 2).ok_or("no names")?;
    let ours = Resolver::builder()
        .dns(&server.address().to_string())
        .http("none")
        .no_catalog()
        .cache_entries(room)
        .cache_bytes(1 << 30)
        .build()?;
    let peer = hickory(server.address(), Over::Udp(Some(4_096)), 2 * names as u64)?;
    let texts: Vec<String> = shuffled(names).map(wide_name).collect();
    let fill_ours = allocation_counter::measure(|| {
        runtime.block_on(async {
            for text in &texts {
                found(ours.lookup(text.as_str()).await);
            }
        });
    });
    let fill_peer = allocation_counter::measure(|| {
        runtime.block_on(async {
            for text in &texts {
                let name = Name::from_ascii(text).expect("a plain name");
                ask_hickory(&peer, name).await;
            }
        });
    });
    table.add_memory(
        names,
        per(fill_ours.bytes_current, names),
        per(fill_peer.bytes_current, names),
    );
    // Names of the asker's own, as after a restart of its own parts: they share
    // nothing with the cache's.
    let own: Vec<ConsulName> = (shuffled(names).map(wide_name))
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let peers_own: Vec<Name> = (shuffled(names).map(wide_name))
        .map(Name::from_ascii)
        .collect::<Result<_, _>>()?;
    let (mut next, mut peers_next) = (0, 0);
    // The peer reads some kilobytes for each answer: among others either contender
    // finds little of itself in the processor's caches.
    let alone = vec![contender(runtime, "proconsul", async || {
        next = (next + 1) % own.len();
        ask(&ours, &own[next]).await
    })];
    let row = format!("cached, 1 of {names} names, parsed name, alone");
    table.add(race::run(&row, alone, pace));
    let contenders = vec![
        contender(runtime, "proconsul", async || {
            next = (next + 1) % own.len();
            ask(&ours, &own[next]).await
        }),
        contender(runtime, "hickory, parsed", async || {
            peers_next = (peers_next + 1) % peers_own.len();
            ask_hickory(&peer, peers_own[peers_next].clone()).await
        }),
        // Here too: among others it finds less of itself in the processor's caches.
        bare_map(runtime, names)?,
    ];
    let row = format!("cached, 1 of {names} names, parsed name");
    table.add(race::run(&row, contenders, pace));
    Ok(())
}

/// What no cache of this kind can go below, whoever writes it.
fn floors(runtime: &Runtime, names: usize, rounds: usize, table: &mut Table) -> Outcome<()> {
    let pace = Pace {
        rounds,
        look_ups: 20_000,
    };
    let mut contenders = Vec::new();
    for names in [100, names] {
        contenders.push(bare_map(runtime, names)?);
    }
    contenders.push(contender(runtime, "the clock, read once", async || {
        std::hint::black_box(Instant::now());
        0
    }));
    contenders.rotate_right(1);
    table.add(race::run("floors", contenders, pace));
    Ok(())
}

/// A map behind a mutex and a shared set in it: what a hit costs at the least.
fn bare_map(runtime: &Runtime, names: usize) -> Outcome<Contender<'_>> {
    let mut map: LruCache<ConsulName, Arc<usize>> = LruCache::unbounded();
    for index in shuffled(names) {
        map.put(wide_name(index).parse()?, Arc::new(index));
    }
    let map = Mutex::new(map);
    let own: Vec<ConsulName> = (shuffled(names).map(wide_name))
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let mut next = 0;
    let label = format!("lru behind a mutex, {names} names");
    Ok(contender(runtime, &label, async move || {
        next = (next + 1) % own.len();
        let held = map.lock().expect("nobody panics").get(&own[next]).cloned();
        held.map_or(0, |_| 1)
    }))
}

async fn ask(resolver: &Resolver, name: &ConsulName) -> usize {
    found(resolver.lookup(name).await)
}

fn found(answer: Result<proconsul::Answer, proconsul::Error>) -> usize {
    answer
        .expect("the agent knows the service")
        .endpoints()
        .len()
}

async fn ask_hickory(resolver: &TokioResolver, name: Name) -> usize {
    let answer = resolver.lookup(name, RecordType::SRV).await;
    let answer = answer.expect("the agent knows the service");
    let services = (answer.answers().iter()).filter(|r| r.record_type() == RecordType::SRV);
    services.count()
}

/// How hickory is to ask.
#[derive(Clone, Copy)]
enum Over {
    /// With this much room said by EDNS.
    Udp(Option<u16>),
    Tcp,
}

fn hickory(server: SocketAddr, over: Over, cached: u64) -> Outcome<TokioResolver> {
    let mut connection = match over {
        Over::Udp(_) => ConnectionConfig::udp(),
        Over::Tcp => ConnectionConfig::tcp(),
    };
    connection.port = server.port();
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let server = NameServerConfig::new(ip, true, vec![connection]);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut options = ResolverOpts::default();
    options.cache_size = cached;
    if cached > 0 {
        options.positive_min_ttl = Some(HOUR);
    }
    match over {
        Over::Udp(None) => options.edns0 = false,
        Over::Udp(Some(room)) => options.edns_payload_len = room,
        Over::Tcp => {}
    }
    let provider = TokioRuntimeProvider::default();
    let builder = TokioResolver::builder_with_config(config, provider).with_options(options);
    Ok(builder.build()?)
}

fn wide_name(index: usize) -> String {
    format!("service-{index:06}.service.consul.")
}

/// All numbers below `count`, in an order of its own each time but the same in
/// each run.
fn shuffled(count: usize) -> impl Iterator<Item = usize> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SEED: AtomicU64 = AtomicU64::new(1);
    let mut all: Vec<usize> = (0..count).collect();
    all.shuffle(&mut SmallRng::seed_from_u64(
        SEED.fetch_add(1, Ordering::Relaxed),
    ));
    all.into_iter()
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per(bytes: i64, names: usize) -> f64 {
    bytes as f64 / names as f64
}
