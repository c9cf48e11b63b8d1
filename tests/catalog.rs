//! All that is registered at a real agent: names, instances, checks, a registry; and the
//! command that lists them.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    process::{Command, Output},
    thread,
};

use proconsul::{ErrorKind, Filter, Health, Resolver};
use serde_json::{Value, json};
use support::{Agent, closed_port, wait_for};

const CATALOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/catalog.json");

fn resolver(http: &str) -> Resolver {
    Resolver::builder().dns("none").http(http).build().unwrap()
}

/// Three instances: one is well, one warns, one is critical.
async fn agent() -> Agent {
    let agent = Agent::start().await;
    for (id, kind, status) in [
        ("chat-1", "ai", "passing"),
        ("chat-2", "ai", "warning"),
        ("chat-3", "old", "critical"),
    ] {
        let body = json!({
            "Name": "chat", "ID": id, "Address": "10.0.0.1", "Port": 80, "Tags": ["v1", id],
            "Meta": { "type": kind },
            "Check": { "CheckID": format!("own:{id}"), "Name": "disk", "TTL": "1h", "Status": "passing" },
        });
        agent.register_service(body).await;
        let path = format!("/v1/agent/check/update/own:{id}");
        agent
            .put(
                &path,
                json!({ "Status": status, "Output": format!("{status} it is") }),
            )
            .await;
    }
    let db = json!({ "Name": "db", "Port": 5432 });
    agent.register_service(db).await;
    let resolver = resolver(&agent.http());
    wait_for("the states in the catalog", async || {
        let all = resolver.instances("chat").await.ok()?;
        let health = |at: usize| all.get(at).map(|one| one.health);
        let wanted = [Health::Passing, Health::Warning, Health::Critical];
        ([health(0)?, health(1)?, health(2)?] == wanted).then_some(())
    })
    .await;
    agent
}

#[tokio::test]
async fn services_are_listed_with_tags_and_instances_with_every_check() {
    let agent = agent().await;
    let resolver = resolver(&agent.http());
    let services = resolver.services().await.unwrap();
    let names: Vec<_> = services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["chat", "consul", "db"]);
    let mut tags = services[0].tags.to_vec();
    tags.sort_unstable();
    assert_eq!(
        tags,
        [
            "chat-1".into(),
            "chat-2".into(),
            "chat-3".into(),
            "v1".into()
        ] as [Box<str>; 4]
    );
    let instances = resolver.instances("chat").await.unwrap();
    let bad = &instances[2];
    assert_eq!(
        (&*bad.id, bad.health, bad.to_string()),
        ("chat-3", Health::Critical, "10.0.0.1:80".into())
    );
    let check = bad.checks.iter().find(|check| !check.of_node).unwrap();
    assert_eq!(
        (&*check.id, &*check.name, &*check.output),
        ("own:chat-3", "disk", "critical it is")
    );
    assert!(bad.checks.iter().any(|check| check.of_node));
    assert_eq!(resolver.instances("nobody").await.unwrap(), []);
    assert!(resolver.is_available("chat").await.unwrap());
    assert!(!resolver.is_available("nobody").await.unwrap());
}

#[tokio::test]
async fn a_registry_finds_by_name_tag_and_metadata_and_looks_again_for_what_it_misses() {
    let agent = agent().await;
    let registry = resolver(&agent.http()).registry();
    let found = async |filter: Filter| {
        let found = registry.find(&filter).await.unwrap();
        found
            .into_iter()
            .map(|one| one.id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(registry.service("Chat").await.unwrap().len(), 3);
    assert_eq!(found(Filter::new().tag("chat-2")).await, ["chat-2"]);
    assert_eq!(
        found(Filter::new().of_type("ai")).await,
        ["chat-1", "chat-2"]
    );
    assert_eq!(
        found(Filter::new().of_type("ai").passing()).await,
        ["chat-1"]
    );
    assert_eq!(registry.service("web").await.unwrap().len(), 0);
    agent
        .register_service(json!({ "Name": "web", "Port": 1 }))
        .await;
    // Once a second it is looked for.
    wait_for("what is new", async || {
        (registry.service("web").await.unwrap().len() == 1).then_some(())
    })
    .await;
    assert_eq!(registry.names().await.unwrap().len(), 4);
    assert!(registry.age().is_some());
}

#[tokio::test]
async fn nobody_who_answers_is_not_nothing_that_is_there() {
    let http = format!("http://{}", closed_port());
    let resolver = resolver(&http);
    let error = resolver.services().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains(&http) && error.attempts().len() == 1,
        "{error}"
    );
    assert!(resolver.is_available("web").await.is_err());
    assert!(resolver.registry().service("web").await.is_err());
    let agent = agent().await;
    let both = format!("{http},{}", agent.http());
    assert_eq!(self::resolver(&both).services().await.unwrap().len(), 3);
    // What a registry knows outlives its agent.
    let mut agent = agent;
    let registry = self::resolver(&agent.http()).registry();
    registry.refresh().await.unwrap();
    agent.kill();
    assert_eq!(registry.service("chat").await.unwrap().len(), 3);
    assert!(registry.refresh().await.is_err());
    // A hung agent costs one caller a time-out, not all one after the other.
    agent.restart().await;
    registry.refresh().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    agent.pause();
    let start = tokio::time::Instant::now();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let registry = registry.clone();
            tokio::spawn(async move { registry.service("nobody").await.unwrap().len() })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), 0);
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(12));
    agent.resume();
    assert_eq!(registry.service("nobody").await.unwrap().len(), 0);
}

fn run(agent: &Agent, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear().arg("services").args(arguments);
    command.args(["--http", &agent.http()]).output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn the_program_lists_services_and_says_why_an_instance_is_not_healthy() {
    let agent = agent().await;
    let short = run(&agent, &["-o", "short"]);
    assert_eq!(text(short.stdout), "chat\nconsul\ndb\n");
    let told: Value =
        serde_json::from_slice(&run(&agent, &["--json", "--tag", "V1"]).stdout).unwrap();
    assert_eq!(told["services"].as_array().unwrap().len(), 1);
    assert_eq!(told["services"][0]["name"], "chat");
    let table = text(run(&agent, &["chat"]).stdout);
    assert!(
        table.contains("chat-3") && table.contains("disk critical: critical it is"),
        "{table}"
    );
    let told: Value = serde_json::from_slice(&run(&agent, &["chat", "--json"]).stdout).unwrap();
    assert_eq!(told["instances"][1]["health"], "warning");
    let none = run(&agent, &["nobody", "--json"]);
    assert_eq!(none.status.code(), Some(3));
    let told: Value = serde_json::from_slice(&none.stdout).unwrap();
    assert_eq!(told["error"]["kind"], "not_found");
}

#[test]
fn where_no_agent_tells_what_is_written_down_is_listed_and_said_to_be() {
    let run = |http: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().arg("services").args(arguments);
        command.args(["--catalog", CATALOG, "--http", http]);
        let output = command.output().unwrap();
        let said = text(output.stderr);
        (output.status.code(), text(output.stdout), said)
    };
    let closed = closed_port().to_string();
    for http in ["none", &closed] {
        let (code, told, said) = run(http, &["-o", "short", "--tag", "primary"]);
        assert_eq!((code, &*told), (Some(0), "db\nweb\n"), "{said}");
        assert!(said.contains("this is the static catalog"), "{said}");
        let (code, told, _) = run(http, &["primary.web", "--json"]);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((code, &told["source"]), (Some(0), &json!("static")));
        let one = json!([{
            "id": "web-1", "address": "10.20.0.11", "port": 8080, "meta": told["instances"][0]["meta"],
            "tags": ["v2", "primary"], "node": null, "health": null, "checks": null,
        }]);
        assert_eq!(told["instances"], one);
    }
    // Where an agent is to be asked, it may know more.
    assert_eq!(run("none", &["nosuch"]).0, Some(3));
    assert_eq!(run(&closed, &["nosuch"]).0, Some(5));
    // Nor is anything said of it by a page that somebody has put before it.
    let page = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = page.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in page.incoming() {
            let mut stream = stream.unwrap();
            _ = stream.read(&mut [0; 4_096]).unwrap();
            let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>";
            stream.write_all(reply).unwrap();
        }
    });
    assert_eq!(run(&address, &["nosuch"]).0, Some(5));
}

#[tokio::test]
async fn an_agent_that_tells_has_the_last_word_and_the_heading_stands_over_its_columns() {
    let agent = agent().await;
    let told = text(run(&agent, &["nosuch", "--catalog", CATALOG]).stdout);
    assert_eq!(told, "");
    for arguments in [&[][..], &["chat"]] {
        let plain = text(run(&agent, arguments).stdout);
        let colored = run(&agent, &[arguments, &["--color", "always"]].concat());
        // Consul has the tags in any order.
        let heading = plain.lines().next().unwrap();
        let bold = format!("\u{1b}[1m{heading}\u{1b}[0m\n");
        assert!(text(colored.stdout).starts_with(&bold), "{plain}");
    }
}
