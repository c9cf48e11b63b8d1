//! What the stub does under load: floods, connections that are of no use, reloads, and sets
//! that never rest. Beside each goes the steady load of names that are cached.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use hickory_proto::rr::{RData, RecordType};
use proconsul::{Freshness, Resolver, Service};
use serde_json::json;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    field::{
        history::{History, Told, Versions},
        load::{Asked, Load},
    },
    number,
    support::{Agent, Over, Serving, ask, serve, wait_for},
};

/// Names that are cached while all else goes on.
const KNOWN: usize = 20;

/// Most that is looked at of the packets in one socket.
const WINDOW: usize = 64;

/// Threads of a flood.
const FLOODERS: u32 = 4;

/// One thing that was tried: what was measured, what it may be, and whether it was.
#[derive(Default)]
pub(crate) struct Report {
    what: String,
    figures: Vec<(String, String, bool)>,
}

impl Report {
    fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            figures: Vec::new(),
        }
    }

    fn note(&mut self, what: &str, value: impl fmt::Display) {
        self.figures.push((what.into(), value.to_string(), true));
    }

    fn bound(&mut self, what: &str, value: f64, most: f64) {
        let told = format!("{value:.1} (at most {most})");
        self.figures.push((what.into(), told, value <= most));
    }

    pub(crate) fn passed(&self) -> bool {
        self.figures.iter().all(|(.., holds)| *holds)
    }

    /// What the names that are cached had of it.
    fn cached(&mut self, asked: &[Asked], p99: f64) {
        let times = times(asked);
        let lost = times.iter().filter(|time| **time == Duration::MAX).count();
        self.note("cached names asked", times.len());
        self.bound("lost", lost as f64, 0.0);
        self.note("median ms", format!("{:.2}", at(&times, 0.5)));
        self.bound("p99 ms", at(&times, 0.99), p99);
    }
}

/// How long each answer took, the quickest first; those that did not come took for ever.
fn times(asked: &[Asked]) -> Vec<Duration> {
    let time = |one: &Asked| (one.reply()).map_or(Duration::MAX, |reply| reply.at - one.sent);
    let mut times: Vec<_> = asked.iter().map(time).collect();
    times.sort_unstable();
    times
}

/// The time, in milliseconds, that this share of all did not exceed.
fn at(times: &[Duration], share: f64) -> f64 {
    let at = (times.len() as f64 * share) as usize;
    match times.get(at.min(times.len().saturating_sub(1))) {
        None | Some(&Duration::MAX) => f64::INFINITY,
        Some(time) => time.as_secs_f64() * 1_000.0,
    }
}

/// A line of the report.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.figures.iter().map(|(what, value, holds)| {
            let mark = if *holds { "" } else { "**" };
            format!("{mark}{what}: {value}{mark}")
        });
        let figures = figures.collect::<Vec<_>>().join("; ");
        let passed = if self.passed() { "yes" } else { "**no**" };
        write!(f, "| {} | {figures} | {passed} |", self.what)
    }
}

pub(crate) const HEAD: &str = "| what | figures | passed |\n| --- | --- | --- |";

/// What a process holds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Held {
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Those of them that are no part of a file: what it has asked for, and not how much of the
    /// program has been needed so far.
    own: u64,
    files: usize,
}

impl Held {
    /// The most that was seen of each.
    fn most(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            own: self.own.max(other.own),
            files: self.files.max(other.files),
        }
    }

    /// MiB that were asked for since.
    fn grown_since(self, before: Self) -> f64 {
        mebibytes(self.own.saturating_sub(before.own))
    }
}

pub(crate) fn held(process: u32) -> Held {
    let told = fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages = |at| -> Option<u64> { told.split_whitespace().nth(at)?.parse().ok() };
    let (all, of_files) = (pages(1).unwrap_or_default(), pages(2).unwrap_or_default());
    Held {
        memory: all * 4_096,
        own: (all - of_files) * 4_096,
        files: fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count),
    }
}

/// The same when connections that nobody uses any more are closed: only what is left then
/// can have been forgotten.
async fn rested(process: u32) -> Held {
    sleep(Duration::from_secs(20)).await;
    held(process)
}

/// Processor time of a process so far.
fn spent(process: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten();
    let spent = threads.flatten().filter_map(|thread| {
        let told = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        told.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn asked(service: &str) -> String {
    format!("{service}.service.consul.")
}

/// An agent with the names that are cached, and a stub beside it.
async fn start(more: &[&str]) -> (Agent, Serving, Vec<String>) {
    let agent = Agent::start().await;
    let mut names = Vec::new();
    for number in 0..KNOWN {
        let name = format!("known-{number:02}");
        agent.register_nodes(&name, 3).await;
        names.push(asked(&name));
    }
    let mut command = serve(&agent.dns().to_string(), &agent.http());
    command.args(["--admin", "127.0.0.1:0"]).args(more);
    let stub = Serving::start(command);
    for name in &names {
        wait_for("a known name", async || {
            let told = ask(stub.dns, name, RecordType::SRV, Over::Udp).await?;
            (told.0.answers.len() == 3).then_some(())
        })
        .await;
    }
    (agent, stub, names)
}

async fn stop(load: Load) -> Vec<Asked> {
    let stopped = tokio::task::spawn_blocking(|| load.stop()).await;
    stopped.expect("the load does not panic")
}

/// Names that nobody has, so many a second, beside cached ones. As many as the stub takes would
/// be all of a machine of two processors, and the scheduler's time what is measured.
pub(crate) async fn flood() -> Report {
    let (_agent, stub, names) = start(&[]).await;
    let mut report = Report::new("flood of names that nobody has");
    let load = Load::start(stub.dns, &names, &[]);
    sleep(Duration::from_secs(3)).await;
    let before = held(stub.id());
    let most: u64 = number("UNKNOWN", 1_350_000);
    let (done, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let began = Instant::now();
    let rate = number("UNKNOWN_PER_SECOND", 40_000_u32).max(1);
    let pace = Duration::from_secs(1) * FLOODERS * WINDOW as u32 / rate;
    let threads: Vec<_> = (0..FLOODERS)
        .map(|thread| {
            let (done, count) = (Arc::clone(&done), Arc::clone(&count));
            let server = stub.dns;
            thread::spawn(move || ask_unknown(server, thread, pace, &done, &count))
        })
        .collect();
    let mut highest = Held::default();
    while count.load(Ordering::Relaxed) < most && began.elapsed() < Duration::from_secs(300) {
        sleep(Duration::from_millis(250)).await;
        highest = highest.most(held(stub.id()));
    }
    done.store(true, Ordering::Relaxed);
    let took = began.elapsed().as_secs_f64();
    for thread in threads {
        thread.join().expect("a flood does not panic");
    }
    let count = count.load(Ordering::Relaxed);
    report.note("unknown names", count);
    report.note("a second", format!("{:.0}", count as f64 / took));
    report.bound("memory grown by MiB", highest.grown_since(before), 9.0);
    report.bound("memory MiB", mebibytes(highest.memory), 30.0);
    report.cached(&stop(load).await, 2.0);
    report
}

/// Sends a window of questions at that pace, each about another name.
fn ask_unknown(
    server: SocketAddr,
    thread: u32,
    pace: Duration,
    done: &AtomicBool,
    count: &AtomicU64,
) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.connect(server).expect("loopback");
    let wait = Some(Duration::from_millis(50));
    socket.set_read_timeout(wait).expect("more than nothing");
    let mut reply = [0; 4_096];
    let mut number = u64::from(thread) << 40;
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        for _ in 0..WINDOW {
            number += 1;
            let label = format!("u{number:x}");
            let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in [&label, "service", "consul"] {
                packet.push(u8::try_from(label.len()).expect("a label"));
                packet.extend(label.as_bytes());
            }
            packet.extend([0, 0, 1, 0, 1]);
            _ = socket.send(&packet);
        }
        count.fetch_add(WINDOW as u64, Ordering::Relaxed);
        for _ in 0..WINDOW {
            if socket.recv(&mut reply).is_err() {
                break;
            }
        }
        // What was late is not made up for.
        thread::sleep(pace.saturating_sub(began.elapsed()));
    }
}

/// Connections that say nothing, or a byte a second, or never read.
pub(crate) async fn connections() -> Report {
    let (_agent, stub, names) = start(&[]).await;
    let mut report = Report::new("2,000 connections that are of no use");
    let load = Load::start(stub.dns, &names, &[]);
    sleep(Duration::from_secs(3)).await;
    let before = held(stub.id());
    let began = Instant::now();
    let mut hostile = Vec::new();
    for number in 0..2_000_u32 {
        let Ok(mut stream) = TcpStream::connect(stub.dns).await else {
            continue;
        };
        match number % 4 {
            // Says nothing.
            0 => {}
            // The half of a length.
            1 => _ = stream.write_all(&[0]).await,
            // Promises much.
            2 => _ = stream.write_all(&[0xff, 0xff, 0]).await,
            // Asks, and never reads.
            _ => {
                let mut packet = vec![0, 36, 0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
                for label in ["known-00", "service", "consul"] {
                    packet.push(label.len() as u8);
                    packet.extend(label.as_bytes());
                }
                packet.extend([0, 0, 33, 0, 1]);
                packet[1] = u8::try_from(packet.len() - 2).expect("a short question");
                for _ in 0..100 {
                    if timeout(Duration::from_millis(5), stream.write_all(&packet))
                        .await
                        .is_err()
                    {
                        break;
                    }
                }
            }
        }
        hostile.push(stream);
    }
    report.note("connected", hostile.len());
    let mut highest = Held::default();
    let drip = Instant::now();
    while drip.elapsed() < Duration::from_secs(15) {
        highest = highest.most(held(stub.id()));
        for stream in hostile.iter_mut().skip(1).step_by(4).take(200) {
            _ = timeout(Duration::from_millis(1), stream.write_all(&[0])).await;
        }
        sleep(Duration::from_millis(500)).await;
        if held(stub.id()).files <= before.files + 8 {
            break;
        }
    }
    report.bound("all closed after s", began.elapsed().as_secs_f64(), 30.0);
    report.bound(
        "open files left",
        held(stub.id()).files.saturating_sub(before.files) as f64,
        8.0,
    );
    report.bound("memory grown by MiB", highest.grown_since(before), 16.0);
    let told = ask(stub.dns, &names[0], RecordType::SRV, Over::Tcp).await;
    report.bound(
        "plain TCP question unanswered",
        f64::from(u8::from(told.is_none())),
        0.0,
    );
    report.cached(&stop(load).await, 2.0);
    report
}

/// The configuration is read again each second.
pub(crate) async fn reloads() -> Report {
    let file = std::env::temp_dir().join(format!("withstand-{}.toml", std::process::id()));
    fs::write(&file, "").unwrap();
    let (_agent, stub, names) = start(&["--config", &file.display().to_string()]).await;
    let mut report = Report::new("a reload each second");
    let load = Load::start(stub.dns, &names, &[]);
    // By then the names are followed.
    let before = rested(stub.id()).await;
    let count = number("RELOADS", 30);
    for _ in 0..count {
        stub.signal("-HUP");
        sleep(Duration::from_secs(1)).await;
    }
    let after = rested(stub.id()).await;
    report.note("reloads", count);
    report.bound("memory grown by MiB", after.grown_since(before), 8.0);
    report.bound(
        "open files more",
        after.files as f64 - before.files as f64,
        4.0,
    );
    report.cached(&stop(load).await, 5.0);
    _ = fs::remove_file(file);
    report
}

/// One large service that changes all the time, and is asked for all the while: through the
/// stub over TCP, and through the library.
pub(crate) async fn churn() -> Report {
    let instances: usize = number("CHURN_INSTANCES", 10_000);
    let (agent, stub, names) = start(&[]).await;
    let mut report = Report::new(format!(
        "{instances} instances of one service that never rest"
    ));
    let registered = agent.register_nodes("large", instances).await;
    let ports = registered.iter().map(SocketAddr::port);
    let versions = Arc::new(Mutex::new(Versions::new(ports, Instant::now())));
    let load = Load::start(stub.dns, &names, &[]);
    let began = Instant::now();
    let most = wait_for("the large set", async || {
        let told = ask(stub.dns, &asked("large"), RecordType::SRV, Over::Tcp).await?;
        Some(told.0.answers.len()).filter(|count| *count > 0)
    });
    let most = most.await;
    report.note(
        "first answer ms",
        format!("{:.0}", began.elapsed().as_secs_f64() * 1_000.0),
    );
    report.note("SRV records in one reply over TCP", most);
    let resolver = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http())
        .build()
        .unwrap();
    let service = resolver.service("large").unwrap();
    service.ready().await;
    let (before, used) = (held(stub.id()), spent(stub.id()));
    let done = Arc::new(AtomicBool::new(false));
    let over_tcp = tokio::spawn(large_over_tcp(
        stub.dns,
        Arc::clone(&versions),
        Arc::clone(&done),
    ));
    let in_library = tokio::spawn(large_in_library(
        service,
        Arc::clone(&versions),
        Arc::clone(&done),
    ));
    let began = Instant::now();
    let lasts = Duration::from_secs(number("CHURN_SECONDS", 60));
    let mut changes = 0_usize;
    let mut highest = Held::default();
    while began.elapsed() < lasts {
        change_large(&agent, &versions, changes, instances).await;
        changes += BATCH;
        highest = highest.most(held(stub.id()));
        // A thousand a second, if Consul can.
        let due = Duration::from_secs_f64(changes as f64 / 1_000.0);
        sleep(due.saturating_sub(began.elapsed())).await;
    }
    let took = began.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    report.note("changes a second", format!("{:.0}", changes as f64 / took));
    let cores = (spent(stub.id()) - used).as_secs_f64() / took;
    report.bound("processor cores", (cores * 100.0).round() / 100.0, 1.0);
    report.bound("memory MiB", mebibytes(highest.memory), 64.0);
    report.note(
        "memory before MiB",
        format!("{:.1}", mebibytes(before.memory)),
    );
    over_tcp
        .await
        .expect("no task panics")
        .tell("over TCP", &mut report);
    in_library
        .await
        .expect("no task panics")
        .tell("in the library", &mut report);
    report.cached(&stop(load).await, 5.0);
    report
}

/// What a transaction of Consul's changes, at most half of what it may hold.
const BATCH: usize = 32;

/// A change as old as that has to be seen.
const SEEN: Duration = Duration::from_secs(2);

/// Of the next few instances each has another port, but for every fourth: it goes, or comes
/// back.
async fn change_large(agent: &Agent, versions: &Mutex<Versions>, from: usize, instances: usize) {
    let changed: Vec<_> = (from..from + BATCH)
        .map(|number| {
            let instance = number % instances;
            let is_there = versions.lock().unwrap().port(instance).is_some();
            let goes = is_there && instance.is_multiple_of(4);
            // Of all rounds its own: no port comes twice.
            let port = 1_024 + (instance + (number / instances + 1) * 7_919) % 64_000;
            (instance, (!goes).then(|| u16::try_from(port).unwrap()))
        })
        .collect();
    let operations = changed.iter().map(|(instance, port)| {
        let name = format!("large-{instance}");
        let verb = if port.is_some() { "set" } else { "delete" };
        let service = json!({ "ID": name, "Service": "large", "Port": port.unwrap_or_default() });
        json!({ "Service": { "Verb": verb, "Node": name, "Service": service } })
    });
    let operations: Vec<_> = operations.collect();
    // What may be seen from here on has to be written down before it is.
    versions.lock().unwrap().begins(&changed, Instant::now());
    agent.put("/v1/txn", json!(operations)).await;
    versions.lock().unwrap().confirmed(Instant::now());
}

/// What one way of asking for a set that changes gave.
#[derive(Default)]
struct Seen {
    answers: usize,
    stale: usize,
    /// Known not to be the whole set.
    partial: usize,
    /// Not in time, or without an instance.
    unanswered: usize,
    never: usize,
    /// How long ago each answer was true.
    ages: Vec<Duration>,
}

impl Seen {
    fn take(&mut self, told: Told) {
        self.answers += 1;
        match told {
            Told::True(ago) => self.ages.push(ago),
            Told::Never => self.never += 1,
        }
    }

    fn tell(mut self, way: &str, report: &mut Report) {
        self.ages.sort_unstable();
        report.note(&format!("sets {way}"), self.answers);
        report.note(&format!("stale {way}"), self.stale);
        report.note(&format!("partial {way}"), self.partial);
        let unanswered = format!("unanswered {way}");
        report.bound(&unanswered, self.unanswered as f64, 0.0);
        let never = format!("sets that never were, {way}");
        report.bound(&never, self.never as f64, 0.0);
        let worst = format!("last true before ms, {way}, worst");
        report.bound(&worst, at(&self.ages, 1.0), SEEN.as_secs_f64() * 1_000.0);
    }
}

/// As many of the large set as one message takes, again and again.
async fn large_over_tcp(
    server: SocketAddr,
    versions: Arc<Mutex<Versions>>,
    done: Arc<AtomicBool>,
) -> Seen {
    let mut seen = Seen::default();
    while !done.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let told = ask(server, &asked("large"), RecordType::SRV, Over::Tcp).await;
        let heard = Instant::now();
        match told {
            Some((reply, _)) if !reply.answers.is_empty() => {
                let services = reply
                    .answers
                    .iter()
                    .filter_map(|record| match &record.data {
                        RData::SRV(srv) => Some((number_of(&srv.target.to_string()), srv.port)),
                        _ => None,
                    });
                let (set, whole) = (services.collect(), !reply.metadata.truncation);
                seen.partial += usize::from(!whole);
                seen.take(versions.lock().unwrap().told(&set, whole, sent, heard));
            }
            Some(_) | None => seen.unanswered += 1,
        }
        sleep(Duration::from_millis(100)).await;
    }
    seen
}

/// What a service of the library holds, again and again.
async fn large_in_library(
    service: Service,
    versions: Arc<Mutex<Versions>>,
    done: Arc<AtomicBool>,
) -> Seen {
    let mut seen = Seen::default();
    while !done.load(Ordering::Relaxed) {
        let now = Instant::now();
        if let Some(answer) = service.answer() {
            seen.stale += usize::from(answer.freshness() == Freshness::Stale);
            let endpoints = answer.endpoints().iter();
            let set = endpoints.map(|one| (number_of(&one.target), one.port));
            let set: HashMap<_, _> = set.collect();
            let whole = answer.is_complete();
            seen.partial += usize::from(!whole);
            seen.take(versions.lock().unwrap().told(&set, whole, now, now));
        }
        sleep(Duration::from_millis(100)).await;
    }
    seen
}

/// Of `large-7.node.dc1.consul.`
fn number_of(target: &str) -> usize {
    let node = target.split('.').next().unwrap_or_default();
    let number = node.rsplit('-').next().unwrap_or_default();
    number.parse().unwrap_or(usize::MAX)
}

/// Many services, many of them asked for, and some of these change.
pub(crate) async fn many() -> Report {
    let services: usize = number("MANY_SERVICES", 5_000);
    const ASKED: usize = 500;
    let (agent, stub, _) = start(&[]).await;
    let mut report = Report::new(format!(
        "{services} services of 2 instances, {ASKED} asked for"
    ));
    let (mut names, history) = (Vec::new(), History::default());
    for number in 0..services {
        let name = format!("many-{number}");
        let began = Instant::now();
        let instances = agent.register_nodes(&name, 2).await;
        if number % (services / ASKED) == 0 {
            let ports = instances.iter().map(SocketAddr::port).collect();
            history.changed(&asked(&name), ports, began, None);
            names.push(name);
        }
    }
    let questions: Vec<_> = names.iter().map(|name| asked(name)).collect();
    let (before, used) = (held(stub.id()), spent(stub.id()));
    let load = Load::start(stub.dns, &questions, &[]);
    let began = Instant::now();
    let mut changes = 0;
    while began.elapsed() < Duration::from_secs(20) {
        // Each has a third instance at one time, and not at another.
        change_one(&agent, &history, &names[changes * 7 % names.len()]).await;
        changes += 1;
        sleep(Duration::from_millis(50)).await;
    }
    let took = began.elapsed().as_secs_f64();
    report.note("changes", changes);
    let cores = (spent(stub.id()) - used).as_secs_f64() / took;
    report.bound("processor cores", (cores * 100.0).round() / 100.0, 1.0);
    report.bound(
        "memory grown by MiB",
        held(stub.id()).grown_since(before),
        64.0,
    );
    let mut asked = stop(load).await;
    asked.sort_by_key(|one| one.sent);
    let (mut wrong, mut stale) = (0, 0);
    for one in &asked {
        let Some(reply) = one.reply() else { continue };
        stale += usize::from(reply.is_stale());
        let from = (!reply.is_stale()).then(|| one.sent - SEEN);
        let is_recent = |until| from.is_none_or(|from| until >= from);
        let was = history.was(&one.name, &reply.ports, reply.at, is_recent);
        wrong += usize::from(!was);
    }
    report.bound("not true within the last 2 s", wrong as f64, 0.0);
    report.bound("stale", stale as f64, 0.0);
    // What is asked for the first time is not cached, and all of it comes at once.
    let mut known = HashSet::new();
    let is_first = |one: &Asked| known.insert(Arc::clone(&one.name));
    let (first, cached): (Vec<_>, Vec<_>) = asked.into_iter().partition(is_first);
    report.bound("first answers, p99 ms", at(&times(&first), 0.99), 20.0);
    report.cached(&cached, 5.0);
    report
}

/// Its third instance comes, or goes.
async fn change_one(agent: &Agent, history: &History, name: &str) {
    const THIRD: u16 = 9_000;
    let node = format!("{name}-third");
    let mut ports = history.now(&asked(name));
    let began = Instant::now();
    if ports.remove(&THIRD) {
        let node = json!({ "Node": node });
        agent.put("/v1/catalog/deregister", node).await;
    } else {
        ports.insert(THIRD);
        let service = json!({ "ID": node, "Service": name, "Port": THIRD });
        let node = json!({ "Node": node, "Address": "10.3.0.1", "Service": service });
        agent.put("/v1/catalog/register", node).await;
    }
    history.changed(&asked(name), ports, began, Some(Instant::now()));
}

/// All goes on for a long time, with an agent that restarts now and then.
pub(crate) async fn soak() -> Report {
    let minutes: u64 = number("SOAK_MINUTES", 10);
    let (mut agent, stub, names) = start(&[]).await;
    let mut report = Report::new(format!(
        "{minutes} minutes, and an agent that hangs in each"
    ));
    let began = Instant::now();
    let mut samples: Vec<(f64, f64)> = Vec::new();
    let (mut lost, mut count, mut files) = (0, 0, Vec::new());
    let mut highest = Held::default();
    while began.elapsed() < Duration::from_secs(minutes * 60) {
        let load = Load::start(stub.dns, &names, &[]);
        sleep(Duration::from_secs(5)).await;
        agent.pause();
        sleep(Duration::from_secs(2)).await;
        agent.resume();
        sleep(Duration::from_secs(2)).await;
        let held = rested(stub.id()).await;
        let asked = stop(load).await;
        count += asked.len();
        lost += asked.iter().filter(|one| one.reply().is_none()).count();
        samples.push((began.elapsed().as_secs_f64(), held.own as f64 / 1_024.0));
        files.push(held.files);
        highest = highest.most(held);
        eprintln!(
            "{:.0} s: {:.1} MiB, {:.1} of its own, {} files",
            samples[samples.len() - 1].0,
            mebibytes(held.memory),
            mebibytes(held.own),
            held.files
        );
    }
    agent.kill();
    // What was filled once is not growth: the allocator keeps what the worst moment took, and
    // in the first minutes each hang may be the worst so far.
    let settled = &samples[samples.len() / 3..];
    report.note("questions", count);
    report.bound("lost", lost as f64, 0.0);
    report.note("memory MiB", format!("{:.1}", mebibytes(highest.memory)));
    report.bound("memory slope kB/s", slope(settled), 1.0);
    let more = files[files.len() - 1] as f64 - files[0] as f64;
    report.bound("open files more", more, 4.0);
    report
}

/// Of the line that fits best.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let (x, y) = (x / count, y / count);
    let above: f64 = points.iter().map(|one| (one.0 - x) * (one.1 - y)).sum();
    let below: f64 = points.iter().map(|one| (one.0 - x).powi(2)).sum();
    above / below.max(1.0)
}

/// What the machine is, for the report's head.
pub(crate) fn machine() -> String {
    let told = Command::new("uname").arg("-srm").output();
    let told = told.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned());
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    format!("{}, {cores} cores", told.unwrap_or_default())
}
