//! "Answers that can't be told from Consul's own": every case of
//! `conformance/cases.txt` is put to a real agent and to the stub, over TCP, UDP and
//! EDNS, and code, flags, OPT and the three sections are compared.
//!
//! `docs/differences.md` lists where the stub answers otherwise, and why. A
//! difference that is not in it fails, and so does a line of it that no case needs
//! any more.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::SocketAddr,
    time::Duration,
};

use hickory_proto::{
    op::Message,
    rr::{RData, Record, RecordType},
};
use proconsul::{Resolver, stub::Stub};
use serde_json::{Value, json};
use support::{Agent, Builder, Over, ask, exchange, wait_for};
use tokio::time::Instant;

const CATALOG: &str = include_str!("conformance/catalog.json");
const CASES: &str = include_str!("conformance/cases.txt");
const DIFFERENCES: &str = include_str!("../docs/differences.md");

/// How often a case is asked before its answers are taken to differ: which of
/// several records is told, where only one is, changes from answer to answer.
const TRIES: usize = 16;

/// Instances of the large services.
const MANY: usize = 100;

/// Two datacenters, and client agents of the first with other settings.
struct Agents {
    all: BTreeMap<&'static str, Agent>,
}

impl Agents {
    async fn start() -> Self {
        let home = Agent::builder().node("srv-default").start().await;
        let joining = json!({
            "datacenter": "dc2",
            "translate_wan_addrs": true,
            "retry_join_wan": [home.wan_address().to_string()],
            "retry_interval_wan": "200ms",
        });
        let abroad = Agent::builder().node("srv-dc2").config(joining);
        let client = |name: &str, config| client(&home, name, config);
        let (abroad, passing, trunc, cache) = tokio::join!(
            abroad.start(),
            client(
                "cli-passing",
                json!({ "dns_config": {
                    "only_passing": true, "a_record_limit": 2, "disable_compression": true,
                    "udp_answer_limit": 20,
                } })
            )
            .start(),
            client(
                "cli-trunc",
                json!({ "alt_domain": "test-domain", "dns_config": {
                    "enable_additional_node_meta_txt": false, "enable_truncate": true,
                    "udp_answer_limit": 8, "node_ttl": "30s",
                    "service_ttl": { "*": "5s", "ma*": "10s", "many*": "12s", "web": "31s" },
                    "soa": { "expire": 5000, "min_ttl": 60, "refresh": 1200, "retry": 300 },
                } })
            )
            .start(),
            client(
                "cli-cache",
                json!({ "domain": "corp.example", "dns_config": {
                    "allow_stale": false, "use_cache": true, "cache_max_age": "10s",
                    "udp_answer_limit": 1,
                } })
            )
            .start(),
        );
        wait_for("both datacenters to know each other", async || {
            let known = home.get("/v1/catalog/datacenters").await;
            (known.as_array()?.len() == 2).then_some(())
        })
        .await;
        fill(&home, &abroad).await;
        let all = [
            ("default", home),
            ("dc2", abroad),
            ("passing", passing),
            ("trunc", trunc),
            ("cache", cache),
        ];
        let agents = Self { all: all.into() };
        for agent in agents.all.values() {
            // The last that was registered, where dc1 is asked from anywhere.
            wait_for("the catalog at every agent", async || {
                let path = "/v1/health/service/many?dc=dc1";
                (agent.get(path).await.as_array()?.len() == MANY).then_some(())
            })
            .await;
        }
        agents
    }

    /// The agent of a section of the cases. `alt` is `trunc` by its other domain.
    fn of(&self, section: &str) -> &Agent {
        let name = if section == "alt" { "trunc" } else { section };
        &self.all[name]
    }
}

fn client(home: &Agent, name: &str, config: Value) -> Builder {
    Agent::builder().client_of(home).node(name).config(config)
}

/// The whole catalog.
async fn fill(home: &Agent, abroad: &Agent) {
    let steps: Vec<(String, String, Value, String)> = serde_json::from_str(CATALOG).unwrap();
    for (method, path, body, datacenter) in steps {
        let agent = if datacenter == "dc2" { abroad } else { home };
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = agent.request(method, &path).json(&body);
        let response = request.send().await.unwrap();
        let agreed = response.status().is_success();
        assert!(agreed, "{path}: {:?}", response.text().await);
    }
    let mut large = Vec::new();
    for at in 0..MANY {
        let instance = |service: &str, port: usize, address: String| {
            json!({ "Node": format!("m-{at:03}"), "Address": format!("10.50.0.{}", at + 1),
                "Service": { "Service": service, "ID": format!("{service}-{at}"),
                    "Port": port + at, "Address": address } })
        };
        large.push(instance("manyaddr", 21_000, format!("10.51.0.{}", at + 1)));
        large.push(instance(
            "manyv6",
            22_000,
            format!("2001:db8:51::{}", at + 1),
        ));
        if at < 40 {
            large.push(instance("many40", 23_000, String::new()));
        }
        if at < 5 {
            large.push(instance("many5", 24_000, String::new()));
        }
    }
    for at in 0..MANY {
        large.push(json!({ "Node": format!("m-{at:03}"),
            "Address": format!("10.50.0.{}", at + 1),
            "Service": { "Service": "many", "ID": format!("many-{at}"), "Port": 20_000 + at } }));
    }
    for node in large {
        home.register_catalog(node).await;
    }
}

/// The stub in front of an agent, with one of its two interfaces behind it.
async fn stub(section: &str, agent: &Agent, rung: &str) -> SocketAddr {
    let (dns, http) = match rung {
        "dns" => (agent.dns().to_string(), "none".to_owned()),
        _ => ("none".to_owned(), agent.http()),
    };
    let mut builder = Resolver::builder().dns(&dns).http(&http);
    builder = match section {
        "alt" => builder.domain("test-domain"),
        "cache" => builder.domain("corp.example"),
        _ => builder,
    };
    let resolver = builder.timeout(Duration::from_secs(10)).build().unwrap();
    let stub = Stub::bind(resolver, &["127.0.0.1:0".parse().unwrap()])
        .await
        .unwrap();
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    address
}

/// What can be compared of a reply, in sorted lines.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    head: String,
    is_cut: bool,
    answers: Vec<String>,
    authorities: Vec<String>,
    additionals: Vec<String>,
    length: usize,
}

impl Told {
    fn of(asked: Option<(Message, usize)>) -> Self {
        let Some((reply, length)) = asked else {
            return Self {
                head: "no reply".into(),
                ..Self::default()
            };
        };
        let head = reply.metadata;
        let opt = reply.edns.as_ref().map(|edns| {
            let (size, flags) = (edns.max_payload(), edns.flags());
            format!(
                "version={} size={size} do={}",
                edns.version(),
                flags.dnssec_ok
            )
        });
        let queries: Vec<_> = reply.queries.iter().map(ToString::to_string).collect();
        let head = format!(
            "{} aa={} rd={} ra={} ad={} cd={} opt={opt:?} of {queries:?}",
            head.response_code,
            head.authoritative,
            head.recursion_desired,
            head.recursion_available,
            head.authentic_data,
            head.checking_disabled,
        );
        Self {
            head,
            is_cut: reply.metadata.truncation,
            answers: lines(&reply.answers),
            authorities: lines(&reply.authorities),
            additionals: lines(&reply.additionals),
            length,
        }
    }

    /// All but the length, which tells how names are compressed.
    fn says_the_same(&self, other: &Self) -> bool {
        let length = self.length;
        *self
            == Self {
                length,
                ..other.clone()
            }
    }

    fn print(&self) -> String {
        let mut text = format!("{} tc={}", self.head, self.is_cut);
        for (section, lines) in [
            ("answer", &self.answers),
            ("authority", &self.authorities),
            ("additional", &self.additionals),
        ] {
            write!(text, "\n        {section}: {} records", lines.len()).unwrap();
            for line in lines.iter().take(12) {
                write!(text, "\n            {line}").unwrap();
            }
        }
        text
    }
}

/// The serial of an SOA record is the time.
fn lines(records: &[Record]) -> Vec<String> {
    let line = |record: &Record| match &record.data {
        RData::SOA(soa) => format!(
            "{} {} SOA {} {} {} {} {} {}",
            record.name,
            record.ttl,
            soa.mname,
            soa.rname,
            soa.refresh,
            soa.retry,
            soa.expire,
            soa.minimum
        ),
        data => format!(
            "{} {} {} {data}",
            record.name,
            record.ttl,
            record.record_type()
        ),
    };
    let mut lines: Vec<_> = records.iter().map(line).collect();
    lines.sort();
    lines
}

fn is_among(some: &[String], all: &[String]) -> bool {
    let all: BTreeSet<_> = all.iter().collect();
    some.iter().all(|line| all.contains(line))
}

/// Where a reply over UDP differs from what it should be, seen beside both whole
/// answers.
fn fault(
    theirs: &Told,
    ours: &Told,
    their_whole: &Told,
    our_whole: &Told,
    limit: usize,
) -> Option<&'static str> {
    if theirs.answers.len() == their_whole.answers.len() && !theirs.is_cut {
        return (!theirs.says_the_same(ours)).then_some("whole, and not the same");
    }
    if theirs.head != ours.head {
        return Some("another head");
    }
    if !is_among(&theirs.answers, &our_whole.answers) {
        return Some("Consul answers what the stub does not have");
    }
    if !is_among(&theirs.additionals, &our_whole.additionals) {
        return Some("Consul adds what the stub does not have");
    }
    if ours.length > limit {
        return Some("longer than the client can take");
    }
    let is_whole = ours.answers == our_whole.answers;
    if ours.is_cut == is_whole {
        return Some("TC does not tell whether it is whole");
    }
    if !is_among(&ours.answers, &our_whole.answers)
        || !is_among(&ours.additionals, &our_whole.additionals)
    {
        return Some("a part of something else");
    }
    None
}

/// A line of a table in the document, without the marks of code.
fn rows(under: &str) -> impl Iterator<Item = (&'static str, Vec<String>)> {
    let (_, section) = DIFFERENCES.split_once(under).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    lines.map(|line| {
        let cells = line.trim_matches('|').split(" | ");
        (
            line,
            cells
                .map(|cell| cell.trim().trim_matches('`').to_owned())
                .collect(),
        )
    })
}

/// The line that excuses a case.
fn excuse(section: &str, rung: &str, kind: &str, name: &str) -> Option<&'static str> {
    let like = |patterns: &str, text: &str| {
        patterns.split(',').any(|pattern| {
            match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
                (Some(end), _) => text.ends_with(end),
                (_, Some(start)) => text.starts_with(start),
                _ => pattern == text,
            }
        })
    };
    let fits = |cells: &[String]| {
        [section, rung, kind, name]
            .iter()
            .zip(cells)
            .all(|(text, pattern)| like(pattern, text))
    };
    rows("## Answers")
        .find(|(_, cells)| fits(cells))
        .map(|(line, _)| line)
}

/// The cases of a section.
fn cases(section: &str) -> impl Iterator<Item = (&'static str, &'static str, RecordType)> {
    let (_, rest) = CASES.split_once(&format!("[{section}]\n")).unwrap();
    let own = rest.split("\n[").next().unwrap();
    let lines = own.lines().filter(|line| !line.is_empty());
    lines.map(|line| {
        let (kind, name) = line.split_once(' ').unwrap();
        let record_type = match kind.strip_prefix("TYPE") {
            Some(number) => RecordType::from(number.parse::<u16>().unwrap()),
            None => kind.parse().unwrap(),
        };
        (kind, name, record_type)
    })
}

/// What the stub has known for a while has a TTL that is lower by so much, and no more: the same
/// as if it had just been heard.
fn as_if_new(ours: &mut Message, theirs: &Message, age: Duration) {
    let sections = [
        (&mut ours.answers, &theirs.answers),
        (&mut ours.authorities, &theirs.authorities),
        (&mut ours.additionals, &theirs.additionals),
    ];
    for (ours, theirs) in sections {
        for record in ours {
            let alike = theirs.iter().find(|their| {
                their.name == record.name && their.record_type() == record.record_type()
            });
            if let Some(their) = alike
                && let Some(older) = their.ttl.checked_sub(record.ttl)
                && u64::from(older) <= age.as_secs()
            {
                record.ttl = their.ttl;
            }
        }
    }
}

/// Asks both the same until they agree. What differs, if anything. The stub knows nothing from
/// before it was `begun`.
async fn compare(
    agent: SocketAddr,
    (stub, begun): (SocketAddr, Instant),
    name: &str,
    kind: RecordType,
) -> Option<String> {
    let both = async |over| {
        let (theirs, mut ours) =
            tokio::join!(ask(agent, name, kind, over), ask(stub, name, kind, over));
        if let (Some((theirs, _)), Some((ours, _))) = (&theirs, &mut ours) {
            as_if_new(ours, theirs, begun.elapsed());
        }
        (Told::of(theirs), Told::of(ours))
    };
    let (mut their_whole, mut our_whole) = both(Over::Tcp).await;
    for _ in 1..TRIES {
        if !their_whole.says_the_same(&our_whole) {
            (their_whole, our_whole) = both(Over::Tcp).await;
        }
    }
    let report = |over: &str, why: &str, theirs: &Told, ours: &Told| {
        let (theirs, ours) = (theirs.print(), ours.print());
        Some(format!(
            "    over {over}: {why}\n      Consul: {theirs}\n      stub:   {ours}\n"
        ))
    };
    if !their_whole.says_the_same(&our_whole) {
        return report("TCP", "not the same", &their_whole, &our_whole);
    }
    for (over, limit) in [
        (Over::Udp, 512),
        (Over::Edns(1232), 1232),
        (Over::Edns(4096), 4096),
    ] {
        let mut last = None;
        for _ in 0..TRIES {
            let (theirs, ours) = both(over).await;
            let Some(why) = fault(&theirs, &ours, &their_whole, &our_whole, limit) else {
                last = None;
                break;
            };
            last = report(&format!("{over:?}"), why, &theirs, &ours);
        }
        if last.is_some() {
            return last;
        }
    }
    None
}

#[tokio::test]
async fn the_stub_answers_as_consul_does() {
    let agents = Agents::start().await;
    let mut report = String::new();
    let mut used = BTreeSet::new();
    let mut count = 0;
    for section in ["default", "passing", "trunc", "alt", "cache", "dc2"] {
        let agent = agents.of(section);
        for rung in ["dns", "http"] {
            let stub = (stub(section, agent, rung).await, Instant::now());
            for (kind, name, record_type) in cases(section) {
                count += 1;
                let Some(differs) = compare(agent.dns(), stub, name, record_type).await else {
                    continue;
                };
                match excuse(section, rung, kind, name) {
                    Some(line) => _ = used.insert(line),
                    None => writeln!(report, "{section} {rung} {kind} {name}\n{differs}").unwrap(),
                }
            }
        }
    }
    for (line, _) in rows("## Answers").filter(|(line, _)| !used.contains(line)) {
        writeln!(report, "no case differs any more as in: {line}").unwrap();
    }
    assert!(count > 1_000, "only {count} cases were asked");
    assert!(report.is_empty(), "of {count} cases differ\n{report}");
}

/// A question for the address of `v4only.service.consul`, changed.
fn packet(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    packet.extend(b"\x06v4only\x07service\x06consul\x00\x00\x01\x00\x01");
    change(&mut packet);
    packet
}

/// The same about another name.
fn packet_about(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.as_bytes());
    }
    packet.extend(b"\x00\x00\x01\x00\x01");
    change(&mut packet);
    packet
}

/// Adds an OPT record (RFC 6891, section 6.1.2).
fn opt(size: u16, version: u8, flags: u8, options: &[u8]) -> impl FnOnce(&mut Vec<u8>) {
    move |packet| {
        packet[11] += 1;
        packet.extend(b"\x00\x00\x29");
        packet.extend(size.to_be_bytes());
        packet.extend([0, version, flags, 0]);
        packet.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
        packet.extend(options);
    }
}

/// 10.9.8.0/24 as a client's subnet (RFC 7871, section 6).
const SUBNET: &[u8] = b"\x00\x08\x00\x07\x00\x01\x18\x00\x0a\x09\x08";
const COOKIE: &[u8] = b"\x00\x0a\x00\x0812345678";
const UNKNOWN: &[u8] = b"\xfd\xe9\x00\x02hi";

/// With a key that nobody knows (RFC 8945, section 4.2).
fn sign(packet: &mut Vec<u8>) {
    packet[11] += 1;
    packet.extend(b"\x03key\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x21");
    packet.extend(b"\x0bhmac-sha256\x00\0\0\0\0\0\0\x01\x2c\x00\x04abcd\x12\x34\0\0\0\0");
}

fn packets() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |label: &str, packet| all.push((label.to_owned(), packet));
    for opcode in [1, 2, 4, 5, 6, 15] {
        let changed = packet(|packet| packet[2] = opcode << 3 | 1);
        add(&format!("opcode {opcode}"), changed);
    }
    add("recursion not desired", packet(|packet| packet[2] = 0));
    add("CD", packet(|packet| packet[3] = 0x10));
    add("AD", packet(|packet| packet[3] = 0x20));
    add("Z", packet(|packet| packet[3] = 0x40));
    add("RA", packet(|packet| packet[3] = 0x80));
    add("AA", packet(|packet| packet[2] |= 0x04));
    add("TC", packet(|packet| packet[2] |= 0x02));
    add("QR", packet(|packet| packet[2] |= 0x80));
    add(
        "no question",
        packet(|packet| {
            packet[5] = 0;
            packet.truncate(12);
        }),
    );
    add(
        "two questions",
        packet(|packet| {
            packet[5] = 2;
            packet.extend_from_within(12..);
        }),
    );
    add("header only", packet(|packet| packet.truncate(12)));
    add("5 bytes", packet(|packet| packet.truncate(5)));
    add(
        "a label that ends nowhere",
        packet(|packet| packet.truncate(20)),
    );
    let at = packet(|_| {}).len();
    for (kind, name) in [
        (0, "type 0"),
        (41, "type OPT"),
        (251, "type IXFR"),
        (252, "type AXFR"),
    ] {
        add(name, packet(|packet| packet[at - 3] = kind));
    }
    for (class, name) in [(3, "class CH"), (254, "class NONE"), (255, "class ANY")] {
        add(name, packet(|packet| packet[at - 1] = class));
    }
    for size in [0, 512, 513, 65_535] {
        add(&format!("EDNS size {size}"), packet(opt(size, 0, 0, b"")));
    }
    add("EDNS version 1", packet(opt(1232, 1, 0, b"")));
    add("EDNS DO", packet(opt(1232, 0, 0x80, b"")));
    add("EDNS cookie", packet(opt(1232, 0, 0, COOKIE)));
    let short = b"\x00\x0a\x00\x071234567";
    add("EDNS cookie of 7 bytes", packet(opt(1232, 0, 0, short)));
    let long = [SUBNET, b"\x00"].concat();
    let long = [&long[..3], b"\x08", &long[4..]].concat();
    add("EDNS subnet too long", packet(opt(1232, 0, 0, &long)));
    add(
        "EDNS option that ends nowhere",
        packet(opt(1232, 0, 0, &UNKNOWN[..5])),
    );
    let many = b"\xfd\xe9\x00\x00".repeat(33);
    add("33 EDNS options", packet(opt(1232, 0, 0, &many)));
    add("signed with TSIG", packet(sign));
    add(
        "a record behind the signature",
        packet(|packet| {
            sign(packet);
            opt(1232, 0, 0, b"")(packet);
        }),
    );
    add(
        "a pointer into the header",
        packet(|packet| {
            packet[11] = 1;
            packet.extend(b"\xC0\x04\x00\x01\x00\x01\0\0\0\0\x00\x04\x0a\0\0\x01");
        }),
    );
    add("EDNS unknown option", packet(opt(1232, 0, 0, UNKNOWN)));
    add("EDNS subnet", packet(opt(1232, 0, 0, SUBNET)));
    for name in [
        "webq.query.consul",
        "nosuchq.query.consul",
        "node-a.node.consul",
        "www.example.com",
    ] {
        add(
            &format!("EDNS subnet, {name}"),
            packet_about(name, opt(1232, 0, 0, SUBNET)),
        );
    }
    let long = format!("{}.service.consul", "x".repeat(63));
    add("label of 63 bytes", packet_about(&long, |_| {}));
    let long = vec!["y".repeat(49); 4].join(".") + ".service.consul";
    add("name of 217 bytes", packet_about(&long, |_| {}));
    all
}

/// Header and OPT, in text. Of a reply that refuses, no more is there.
fn head(reply: Option<Vec<u8>>) -> String {
    let Some(reply) = reply else {
        return "no reply".to_owned();
    };
    let Ok(message) = Message::from_vec(&reply) else {
        return format!("unreadable: {reply:?}");
    };
    // Written out by hand, so that no reading of ours stands between.
    let counts: Vec<_> = reply[4..12].chunks(2).map(|two| two[1]).collect();
    let flags = &reply[2..4];
    let edns = message.edns.as_ref().map(|edns| {
        let (size, version) = (edns.max_payload(), edns.version());
        let options: Vec<_> = edns
            .options()
            .as_ref()
            .iter()
            .map(|(_, option)| option)
            .collect();
        format!(
            "size={size} version={version} flags={:?} {options:?}",
            edns.flags()
        )
    });
    format!(
        "flags={flags:02x?} counts={counts:?} {} opt={edns:?}",
        message.metadata.response_code
    )
}

#[tokio::test]
async fn the_stub_takes_odd_packets_as_consul_does() {
    let agents = Agents::start().await;
    let agent = agents.of("default");
    let mut report = String::new();
    let mut used = BTreeSet::new();
    for rung in ["dns", "http"] {
        let stub = stub("default", agent, rung).await;
        for (label, packet) in packets() {
            for over in [Over::Udp, Over::Tcp] {
                let (theirs, ours) = tokio::join!(
                    exchange(agent.dns(), &packet, over),
                    exchange(stub, &packet, over)
                );
                let (theirs, ours) = (head(theirs), head(ours));
                if theirs == ours {
                    continue;
                }
                match rows("## Packets").find(|(_, cells)| cells[0] == label) {
                    Some((line, _)) => _ = used.insert(line),
                    None => writeln!(
                        report,
                        "{label} over {over:?}, {rung}\n    Consul {theirs}\n    stub   {ours}"
                    )
                    .unwrap(),
                }
            }
        }
    }
    for (line, _) in rows("## Packets").filter(|(line, _)| !used.contains(line)) {
        writeln!(
            report,
            "no packet is taken otherwise any more as in: {line}"
        )
        .unwrap();
    }
    assert!(report.is_empty(), "packets differ\n{report}");
}
