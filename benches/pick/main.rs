//! What a pick costs: for each strategy, among 1 to 10,000 endpoints, by one thread and
//! by two at once; beside hickory-resolver's cached look-up and the floors of what a pick
//! can be made of. Run by `scripts/bench --pick`.
//!
//! All take turns within one run; each figure is the median of the rounds. Nothing is
//! asserted.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the point"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock itself"
)]

#[path = "../lookup/agent.rs"]
mod agent;

use std::{
    env, fs,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use arc_swap::ArcSwap;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::RecordType,
};
use proconsul::{Lease, Policy, Resolver, Service, Strategy};
use rand::{RngExt as _, rngs::SmallRng};
use serde_json::json;
use tokio::runtime::Runtime;

use agent::Agent;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const COUNTS: [usize; 4] = [1, 10, 100, 10_000];

/// Picks of each thread in a round.
const PICKS: usize = 200_000;

/// Somebody who picks: so many times, on the calling thread.
type Picks = Box<dyn Fn(usize) + Send + Sync>;

fn main() -> Outcome<()> {
    let words: Vec<String> = env::args().collect();
    let Some(at) = words.iter().position(|word| word == "--pick") else {
        println!("nothing is measured here: run scripts/bench --pick");
        return Ok(());
    };
    let rounds = match &words[at + 1..] {
        [flag, rounds, ..] if flag == "--rounds" => rounds.parse()?,
        _ => 15,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    println!(
        "{:<28} {:>10} {:>12} {:>14} {:>10} {:>12}",
        "a pick", "endpoints", "1 thread", "2 threads", "2 over 1", "allocations"
    );
    for count in COUNTS {
        let mut all = vec![
            ("floor: ArcSwap, random".to_owned(), random_floor(count)),
            ("floor: ArcSwap, counter".to_owned(), counter_floor(count)),
        ];
        for strategy in Strategy::ALL {
            let service = service(&runtime, count, strategy)?;
            let reported = service.clone();
            let picks = Box::new(move |times| pick(&service, strategy, times, drop));
            all.push((strategy.to_string(), picks as Picks));
            let picks = Box::new(move |times| pick(&reported, strategy, times, Lease::succeeded));
            all.push((format!("{strategy}, reported"), picks as Picks));
        }
        race(count, rounds, &all);
    }
    hickory(&runtime, rounds)
}

/// Interleaved rounds of all, alone and on two threads.
fn race(count: usize, rounds: usize, all: &[(String, Picks)]) {
    let mut times = vec![(Vec::new(), Vec::new()); all.len()];
    for _ in 0..rounds {
        for ((_, picks), (one, two)) in all.iter().zip(&mut times) {
            one.push(alone(picks));
            two.push(together(picks));
        }
    }
    for ((label, picks), (one, two)) in all.iter().zip(times) {
        let ratios = one.iter().zip(&two).map(|(one, two)| two / one).collect();
        let counted = allocation_counter::measure(|| picks(1_000));
        println!(
            "{label:<28} {count:>10} {:>9.1} ns {:>11.1} ns {:>10.2} {:>12}",
            median(one),
            median(two),
            median(ratios),
            counted.count_total
        );
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Nanoseconds a pick.
fn alone(picks: &Picks) -> f64 {
    let start = Instant::now();
    picks(PICKS);
    start.elapsed().as_nanos() as f64 / PICKS as f64
}

/// The same for each of two threads at once: the slower one's.
fn together(picks: &Picks) -> f64 {
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    picks(1_000);
                    barrier.wait();
                    alone(picks)
                })
            })
            .collect();
        let times = threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread"));
        times.fold(0.0, f64::max)
    })
}

fn pick(service: &Service, strategy: Strategy, times: usize, end: impl Fn(Lease)) {
    for at in 0..times {
        let lease = match strategy {
            Strategy::Hash => service.try_pick_for((at as u64).to_be_bytes()),
            _ => service.try_pick(),
        };
        let lease = lease.expect("an endpoint");
        black_box(lease.socket_addr());
        end(lease);
    }
}

/// A service of so many endpoints, all of the same weight.
fn service(runtime: &Runtime, count: usize, strategy: Strategy) -> Outcome<Service> {
    let instance = |at: usize| {
        let [_, a, b, c] = (at as u32).to_be_bytes();
        json!({ "name": "web", "id": format!("web-{at}"), "port": 80,
                "address": IpAddr::from([10, a, b, c]).to_string() })
    };
    let catalog = json!({ "services": (1..=count).map(instance).collect::<Vec<_>>() });
    let file = env::temp_dir().join(format!("proconsul-bench-pick-{}.json", std::process::id()));
    fs::write(&file, catalog.to_string())?;
    let resolver = Resolver::builder()
        .dns("none")
        .http("none")
        .catalog(&file)
        .build()?;
    let service = runtime.block_on(async {
        let service = resolver.service_with("web", Policy::new(strategy))?;
        service.ready().await;
        Ok::<_, proconsul::Error>(service)
    })?;
    assert_eq!(service.endpoints().len(), count);
    fs::remove_file(file)?;
    Ok(service)
}

fn addresses(count: usize) -> Arc<ArcSwap<Vec<SocketAddr>>> {
    let address = |at| SocketAddr::from((Ipv4Addr::from_bits(at as u32), 80));
    Arc::new(ArcSwap::from_pointee((0..count).map(address).collect()))
}

fn random_floor(count: usize) -> Picks {
    let all = addresses(count);
    Box::new(move |times| {
        let mut dice: SmallRng = rand::make_rng();
        for _ in 0..times {
            let set = all.load();
            black_box(set[dice.random_range(0..set.len())]);
        }
    })
}

fn counter_floor(count: usize) -> Picks {
    let (all, next) = (addresses(count), AtomicUsize::new(0));
    Box::new(move |times| {
        for _ in 0..times {
            let set = all.load();
            black_box(set[next.fetch_add(1, Ordering::Relaxed) % set.len()]);
        }
    })
}

/// The cached look-up of what others make a pick of.
fn hickory(runtime: &Runtime, rounds: usize) -> Outcome<()> {
    let agent = Agent::start_with(json!({ "dns_config": { "service_ttl": { "*": "600s" } } }))?;
    for count in [10, 100] {
        let name = format!("s{count}");
        agent.register(&name, count)?;
        let mut connection = ConnectionConfig::tcp();
        connection.port = agent.dns().port();
        let server = NameServerConfig::new(agent.dns().ip(), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let resolver =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build()?;
        let name = format!("{name}.service.consul.");
        let mut times = Vec::new();
        for _ in 0..rounds {
            let took = runtime.block_on(async {
                let start = Instant::now();
                for _ in 0..1_000 {
                    let found = resolver.lookup(name.as_str(), RecordType::SRV).await;
                    black_box(found.expect("instances"));
                }
                start.elapsed()
            });
            times.push(took.as_nanos() as f64 / 1_000.0);
        }
        println!(
            "{:<28} {count:>10} {:>9.1} ns",
            "hickory, cached look-up",
            median(times)
        );
    }
    Ok(())
}
