//! What an answer of the stub costs, beside other forwarders in front of Consul and an
//! echo server with the same batches: processor time of the server by answer, as a
//! ratio to the echo's in the same round, and to unbound's.
//!
//! Server and load have a core each, Consul both. `scripts/bench --stub` installs the peers and
//! runs it.

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

use rand::seq::SliceRandom as _;
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

/// One run of what waits for Consul, which costs now more and now less: runs that are compared
/// follow each other closely, and there are more of them.
const BRIEF: Duration = Duration::from_millis(350);
const MORE: usize = 4;

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
    if after("--names").is_some() {
        return names();
    }
    // Peers keep only what has a TTL.
    let agent = Agent::start_with(json!({ "dns_config": {
        "service_ttl": { "*": "60s" }, "node_ttl": "60s", "soa": { "min_ttl": 60 },
    }}))?;
    pin();
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
        (rounds * MORE, only.as_deref()),
        &all,
        |peer| {
            round += 1;
            let unknown: Questions = (0..20_000)
                .map(|at| question(&format!("u{round}x{at}.service.consul"), A))
                .collect();
            load::udp(peer.address, peer.id(), &unknown, BRIEF, None)
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

/// Interleaved rounds: every server once a round, and its cost over those of the echo and of
/// unbound in the same round; medians.
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
        "  {:<16} {:>12} {:>10} {:>13} {:>10} {:>10} {:>8}",
        "", "ns an answer", "over echo", "over unbound", "answers/s", "of echo's", "lost"
    );
    let mut seen: Vec<Vec<Option<Run>>> = vec![Vec::new(); peers.len()];
    let mut order: Vec<usize> = (0..peers.len()).collect();
    for peer in peers {
        // What is to be cached is.
        _ = run(peer);
    }
    for _ in 0..rounds {
        // Whoever was before leaves its traces in Consul: that is another one each time.
        order.shuffle(&mut rand::rng());
        for &at in &order {
            let peer = &peers[at];
            let run = run(peer).inspect_err(|error| eprintln!("  {}: {error}", peer.name));
            seen[at].push(run.ok());
        }
    }
    let over = |own: &[Option<Run>], name: &str, what: fn(&Run) -> f64| {
        let other = peers.iter().position(|peer| peer.name == name);
        let rounds = own.iter().zip(other.map_or(&[][..], |other| &seen[other]));
        median(rounds.filter_map(|(own, other)| Some(what(own.as_ref()?) / what(other.as_ref()?))))
    };
    for (peer, own) in peers.iter().zip(&seen) {
        let runs = || own.iter().flatten();
        if runs().next().is_none() {
            println!("  {:<16} {:>12}", peer.name, "none");
            continue;
        }
        let (answers, asked) = runs().fold((0, 0), |(answers, asked), run| {
            (answers + run.answers, asked + run.asked)
        });
        println!(
            "  {:<16} {:>12.0} {:>10.2} {:>13.2} {:>10.0} {:>10.2} {:>7.2}%",
            peer.name,
            median(runs().map(Run::cost)),
            over(own, "echo", Run::cost),
            over(own, "unbound", Run::cost),
            median(runs().map(Run::rate)),
            over(own, "echo", Run::rate),
            100.0 - answers as f64 * 100.0 / asked.max(1) as f64
        );
    }
    Ok(())
}

/// Not a number, of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a miss costs is measured above the limit that there is by default.
const UNLIMITED: &str = "[serve]\nunknown-per-second = 0\nforwarded-per-second = 0\n";

/// Room for all of them, which all are asked for the first time.
const ROOM: &str = "[cache]\nbytes = 268435456\n[serve]\nunknown-per-second = 0\n";

/// Questions a second that fill a memory: each is a miss once, and Consul takes some 10,000.
const FILLING: u32 = 5_000;

/// Long enough for every entry to be made anew, as each is now and then.
const STEADY: Duration = Duration::from_secs(15);

/// The cost among many names, each that of a service with one instance.
fn names() -> Outcome<()> {
    const MOST: u32 = 100_000;
    let agent = Agent::start_with(json!({ "dns_config": { "service_ttl": { "*": "3600s" } } }))?;
    pin();
    let name = |at: u32| format!("service-{at:06}");
    println!("{MOST} services are registered, and asked for at {FILLING} a second");
    agent.put_many(MOST, name)?;
    println!(
        "{:>8} {:>12} {:>10} {:>14}",
        "names", "ns an answer", "over 100", "bytes a name"
    );
    let mut least = None;
    for count in [100, 10_000, MOST] {
        let all: Questions = (0..count)
            .map(|at| question(&format!("{}.service.consul", name(at)), A))
            .collect();
        let peer = peers::ours(agent.dns(), agent.http(), &all[0], ROOM)?;
        let before = load::memory(peer.id())?;
        let length = Duration::from_secs_f64(f64::from(count) / f64::from(FILLING) + 0.2);
        // What was lost is there after the second time.
        for _ in 0..2 {
            load::udp(peer.address, peer.id(), &all, length, Some(FILLING))?;
        }
        let bytes = load::memory(peer.id())?.saturating_sub(before) / u64::from(count);
        let run = load::udp(peer.address, peer.id(), &all, STEADY, None)?;
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
