//! What an answer of the stub costs, beside other forwarders in front of Consul and an
//! echo server with the same batches: processor time of the server by answer, as a
//! ratio to the echo's in the same round.
//!
//! Server and load have a core each. `scripts/bench --stub` installs the peers and runs
//! it.

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
mod echo;
mod load;
mod peers;

use std::{env, process::Command, time::Duration};

use serde_json::json;

use agent::Agent;
use load::{Questions, Run, Way, question};
use peers::Peer;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Where the servers run; the load has the other one.
pub(crate) const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;

const A: u16 = 1;
const SRV: u16 = 33;

/// Bytes of an echo: those of an ordinary answer.
const ECHO: usize = 400;

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(10);

/// One run of one server.
const LENGTH: Duration = Duration::from_millis(700);

fn main() -> Outcome<()> {
    let words: Vec<String> = env::args().collect();
    let after = |flag: &str| {
        words
            .iter()
            .position(|word| word == flag)
            .map(|at| &words[at + 1..])
    };
    if let Some([port, length, ..]) = after("--echo") {
        return echo::serve(port.parse()?, length.parse()?);
    }
    let rounds = match after("--rounds") {
        Some([rounds, ..]) => rounds.parse()?,
        _ => 5,
    };
    let only = after("--only").and_then(|words| words.first().cloned());
    pin();
    if after("--names").is_some() {
        return names();
    }
    // Peers keep only what has a TTL.
    let agent = Agent::start_with(json!({ "dns_config": {
        "service_ttl": { "*": "60s" }, "node_ttl": "60s", "soa": { "min_ttl": 60 },
    }}))?;
    agent.register("one", 1)?;
    agent.register("ten", 10)?;
    for name in COMPLETE {
        agent.register(name, 100)?;
    }
    agent.register("frozen", 10)?;
    let first = question("ten.service.consul", A);
    let mut all = vec![
        peers::echo(ECHO)?,
        peers::ours(agent.dns(), agent.http(), &first, UNLIMITED)?,
    ];
    all.extend(peers::others(agent.dns(), &first));
    all.push(peers::consul(&agent));

    let a: Questions = vec![first.clone()];
    let srv: Questions = vec![question("ten.service.consul", SRV)];
    let mut mixed: Questions = (0..9).map(|_| first.clone()).collect();
    mixed.push(question("nosuch.service.consul", A));
    for (label, questions) in [("A, 10 records", &a), ("SRV, 10 records", &srv)] {
        println!("{label}: answers, additional records and bytes of a reply");
        for peer in &all[1..] {
            let reply = load::ask(peer.address, &questions[0], Way::Edns)?;
            println!(
                "  {:<16} {:>4} {:>4} {:>6}",
                peer.name, reply.answers, reply.additional, reply.length
            );
        }
    }
    complete(&all[1..], only.as_deref())?;
    table("A, 10 records", (rounds, only.as_deref()), &all, |peer| {
        load::udp(peer.address, peer.id(), &a, LENGTH, None)
    })?;
    table("SRV, 10 records", (rounds, only.as_deref()), &all, |peer| {
        load::udp(peer.address, peer.id(), &srv, LENGTH, None)
    })?;
    table(
        "A, every tenth NXDOMAIN",
        (rounds, only.as_deref()),
        &all,
        |peer| load::udp(peer.address, peer.id(), &mixed, LENGTH, None),
    )?;
    table(
        "A, 10,000 a second",
        (rounds, only.as_deref()),
        &all,
        |peer| load::udp(peer.address, peer.id(), &a, LENGTH, Some(10_000)),
    )?;
    table(
        "A over TCP, 64 in the air",
        (rounds, only.as_deref()),
        &all,
        |peer| load::tcp(peer.address, peer.id(), &a, LENGTH),
    )?;
    let mut round = 0;
    table(
        "names that nobody knows",
        (rounds, only.as_deref()),
        &all,
        |peer| {
            round += 1;
            let unknown: Questions = (0..20_000)
                .map(|at| question(&format!("u{round}x{at}.service.consul"), A))
                .collect();
            load::udp(peer.address, peer.id(), &unknown, LENGTH, None)
        },
    )?;
    // As it is by default, with its limit of unknown names.
    all[1] = peers::ours(agent.dns(), agent.http(), &first, "")?;
    flooded(&all[1..], &first, only.as_deref())
}

/// Two names with 100 instances each: of the one the plain client asks first, of the other who
/// comes over TCP.
const COMPLETE: [&str; 2] = ["hundred", "hundred-too"];

/// How many instances a client is given, and whether it is told that there are more (`+`).
fn complete(peers: &[Peer], only: Option<&str>) -> Outcome<()> {
    let label = "of 100 instances: plain UDP, EDNS, then TCP; TCP first, then plain UDP";
    if only.is_some_and(|only| !label.contains(only)) {
        return Ok(());
    }
    println!("\n{label}; of 10 to EDNS after plain UDP");
    let [first, second] = COMPLETE.map(|name| question(&format!("{name}.service.consul"), SRV));
    let frozen = question("frozen.service.consul", SRV);
    for peer in peers {
        let told = |question: &[u8], way| match load::ask(peer.address, question, way) {
            Ok(reply) => format!("{}{}", reply.answers, if reply.is_cut { "+" } else { "" }),
            Err(error) => format!("({error})"),
        };
        let [plain, edns, tcp] = [Way::Plain, Way::Edns, Way::Tcp].map(|way| told(&first, way));
        let [tcp_first, plain_then] = [Way::Tcp, Way::Plain].map(|way| told(&second, way));
        let [_, after] = [Way::Plain, Way::Edns].map(|way| told(&frozen, way));
        println!(
            "  {:<16} {plain:>6} {edns:>6} {tcp:>6} {tcp_first:>10} {plain_then:>6} {after:>8}",
            peer.name
        );
    }
    Ok(())
}

/// A cached question beside a flood.
fn flooded(peers: &[Peer], cached: &[u8], only: Option<&str>) -> Outcome<()> {
    let label = "a cached name beside a flood of 30,000 unknown names a second";
    if only.is_some_and(|only| !label.contains(only)) {
        return Ok(());
    }
    println!("\n{label}");
    println!(
        "  {:<16} {:>10} {:>10} {:>8} {:>12} {:>12}",
        "", "median", "p99", "lost", "unknown/s", "grown"
    );
    for peer in peers {
        // What is to be cached is.
        _ = load::ask(peer.address, cached, Way::Edns);
        let seen = load::flood(peer.address, peer.id(), cached, 30_000, FLOOD)?;
        println!(
            "  {:<16} {:>10.1?} {:>10.1?} {:>7.2}% {:>12.0} {:>9} KiB",
            peer.name,
            seen.median,
            seen.p99,
            seen.lost * 100.0,
            seen.unknown,
            seen.grown / 1024
        );
    }
    Ok(())
}

/// Interleaved rounds: every server once a round, and its cost over the echo's.
fn table(
    label: &str,
    (rounds, only): (usize, Option<&str>),
    peers: &[Peer],
    mut run: impl FnMut(&Peer) -> Outcome<Run>,
) -> Outcome<()> {
    if only.is_some_and(|only| !label.contains(only)) {
        return Ok(());
    }
    println!("\n{label}");
    println!(
        "  {:<16} {:>12} {:>12} {:>12} {:>8}",
        "", "ns an answer", "over echo", "answers/s", "lost"
    );
    let mut seen: Vec<Vec<(f64, Run)>> = vec![Vec::new(); peers.len()];
    for peer in peers {
        // What is to be cached is.
        _ = run(peer);
    }
    for _ in 0..rounds {
        let mut limit = None;
        for (peer, seen) in peers.iter().zip(&mut seen) {
            match run(peer) {
                Ok(run) => {
                    let limit = *limit.get_or_insert_with(|| run.cost());
                    seen.push((run.cost() / limit, run));
                }
                Err(error) => eprintln!("  {}: {error}", peer.name),
            }
        }
    }
    for (peer, mut seen) in peers.iter().zip(seen) {
        seen.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let Some((ratio, run)) = seen.get(seen.len() / 2) else {
            println!("  {:<16} {:>12}", peer.name, "none");
            continue;
        };
        let lost = 1.0 - run.answers as f64 / run.asked.max(1) as f64;
        println!(
            "  {:<16} {:>12.0} {:>12.2} {:>12.0} {:>7.2}%",
            peer.name,
            run.cost(),
            ratio,
            run.rate(),
            lost * 100.0
        );
    }
    Ok(())
}

/// What a miss costs is measured above the limit that there is by default.
const UNLIMITED: &str = "[serve]\nunknown-per-second = 0\nforwarded-per-second = 0\n";

/// Room for all of them.
const ROOM: &str = "[cache]\nbytes = 268435456\n";

/// The cost among many names, which are `addr` names: nobody is asked for them.
fn names() -> Outcome<()> {
    let agent = Agent::start()?;
    println!(
        "{:>8} {:>12} {:>10} {:>14}",
        "names", "ns an answer", "over 100", "bytes a name"
    );
    let mut least = None;
    for count in [100_u32, 10_000, 100_000] {
        let all: Questions = (0..count)
            .map(|at| question(&format!("0a{at:06x}.addr.consul"), A))
            .collect();
        let peer = peers::ours(agent.dns(), agent.http(), &all[0], ROOM)?;
        let before = load::memory(peer.id())?;
        // At a pace that fills: each name is a miss once.
        for _ in 0..3 {
            let length = Duration::from_secs_f64(f64::from(count) / 40_000.0 + 0.2);
            load::udp(peer.address, peer.id(), &all, length, Some(40_000))?;
        }
        let bytes = load::memory(peer.id())?.saturating_sub(before) / u64::from(count);
        let run = load::udp(peer.address, peer.id(), &all, LENGTH, None)?;
        let limit = *least.get_or_insert_with(|| run.cost());
        println!(
            "{count:>8} {:>12.0} {:>10.2} {bytes:>14}",
            run.cost(),
            run.cost() / limit
        );
    }
    Ok(())
}

/// The load on its core; the servers are put on theirs by `taskset`.
fn pin() {
    let own = std::process::id().to_string();
    let set = Command::new("taskset")
        .args(["-pc", &LOAD_CORE.to_string(), &own])
        .output();
    if !set.is_ok_and(|set| set.status.success()) {
        eprintln!("the load is not pinned: taskset does not work here");
    }
}
