//! "Answers that can't be told from Consul's own": every case of
//! `conformance/cases.txt` is put to a real agent and to the stub, both over TCP,
//! and rcode, AA and the three sections are compared as sets.
//!
//! `conformance/differences.txt` lists where the stub answers otherwise, and why.
//! A difference that is not in it fails, and so does a line of it that no case
//! needs any more.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{collections::BTreeSet, fmt::Write as _, net::SocketAddr, time::Duration};

use hickory_proto::{
    op::Message,
    rr::{RData, RecordType},
};
use proconsul::{Resolver, stub::Stub};
use serde_json::Value;
use support::{Agent, ask_tcp};

const CATALOG: &str = include_str!("conformance/catalog.json");
const CASES: &str = include_str!("conformance/cases.txt");
const DIFFERENCES: &str = include_str!("conformance/differences.txt");

/// How often a case is asked before its answers are taken to differ.
const TRIES: usize = 16;

/// An agent with the whole catalog.
async fn agent() -> Agent {
    let agent = Agent::builder().node("srv-default").start().await;
    let steps: Vec<(String, String, Value)> = serde_json::from_str(CATALOG).unwrap();
    for (method, path, body) in steps {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let response = agent
            .request(method, &path)
            .json(&body)
            .send()
            .await
            .unwrap();
        assert!(
            response.status().is_success(),
            "{path}: {:?}",
            response.text().await
        );
    }
    agent
}

async fn stub(dns: &str, http: &str) -> SocketAddr {
    let builder = Resolver::builder().dns(dns).http(http);
    let resolver = builder.timeout(Duration::from_secs(10)).build().unwrap();
    let stub = Stub::bind(resolver, &["127.0.0.1:0".parse().unwrap()])
        .await
        .unwrap();
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    address
}

/// What can be compared of a reply: a line each for rcode, AA and every record.
/// The serial of an SOA record is the time.
fn told(reply: Option<&Message>) -> BTreeSet<String> {
    let Some(reply) = reply else {
        return ["no reply".to_owned()].into();
    };
    let head = reply.metadata;
    let mut lines = BTreeSet::from([format!("{} aa={}", head.response_code, head.authoritative)]);
    for (section, records) in [
        ("answer", &reply.answers),
        ("authority", &reply.authorities),
        ("additional", &reply.additionals),
    ] {
        lines.extend(records.iter().map(|record| match &record.data {
            RData::SOA(soa) => {
                format!(
                    "{section} {} {} SOA {} {} {}",
                    record.name, record.ttl, soa.mname, soa.rname, soa.minimum
                )
            }
            data => format!(
                "{section} {} {} {} {data}",
                record.name,
                record.ttl,
                record.record_type()
            ),
        }));
    }
    lines
}

/// The reason why a case may differ.
fn excuse<'a>(rung: &str, kind: &str, name: &str) -> Option<&'a str> {
    DIFFERENCES
        .lines()
        .find(|line| matches(line, rung, kind, name))
}

/// A line is `RUNG TYPE NAME reason`; `*` stands for any, at the start of a name
/// for any beginning, at its end for any end.
fn matches(line: &str, rung: &str, kind: &str, name: &str) -> bool {
    let mut words = line.split_whitespace();
    let (Some(r), Some(k), Some(n)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let like =
        |pattern: &str, text: &str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
            (Some(end), _) => text.ends_with(end),
            (_, Some(start)) => text.starts_with(start),
            _ => pattern.split(',').any(|one| one == text),
        };
    !line.starts_with('#') && like(r, rung) && like(k, kind) && like(n, name)
}

async fn compare(rung: &str, agent: &Agent, stub: SocketAddr) {
    let mut report = String::new();
    let mut used = BTreeSet::new();
    for case in CASES.lines() {
        let (kind, name) = case.split_once(' ').unwrap();
        let record_type = match kind.strip_prefix("TYPE") {
            Some(number) => RecordType::from(number.parse::<u16>().unwrap()),
            None => kind.parse().unwrap(),
        };
        // Which of several records is told, where only one is, changes from answer
        // to answer: they have to meet once.
        let mut theirs = BTreeSet::new();
        let mut ours = BTreeSet::from(["not asked".to_owned()]);
        for _ in 0..TRIES {
            if theirs != ours {
                theirs = told(ask_tcp(agent.dns(), name, record_type).await.as_ref());
                ours = told(ask_tcp(stub, name, record_type).await.as_ref());
            }
        }
        let excuse = excuse(rung, kind, name);
        if theirs == ours {
            continue;
        }
        match excuse {
            Some(line) => {
                used.insert(line);
            }
            None => {
                writeln!(report, "{rung}: {kind} {name}").unwrap();
                for line in theirs.difference(&ours) {
                    writeln!(report, "    Consul alone: {line}").unwrap();
                }
                for line in ours.difference(&theirs) {
                    writeln!(report, "    stub alone:   {line}").unwrap();
                }
            }
        }
    }
    for line in DIFFERENCES.lines().filter(|line| line.starts_with(rung)) {
        if !used.contains(line) {
            writeln!(report, "no case differs any more as in: {line}").unwrap();
        }
    }
    let count = report.lines().filter(|line| !line.starts_with(' ')).count();
    assert!(report.is_empty(), "{count} differences\n{report}");
}

#[tokio::test]
async fn the_stub_over_dns_answers_as_consul_does() {
    let agent = agent().await;
    let stub = stub(&agent.dns().to_string(), "none").await;
    compare("dns", &agent, stub).await;
}

#[tokio::test]
async fn the_stub_over_http_answers_as_consul_does() {
    let agent = agent().await;
    let stub = stub("none", &agent.http()).await;
    compare("http", &agent, stub).await;
}
