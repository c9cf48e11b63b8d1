//! Three real servers, one of which dies: what a client with all their addresses sees of it,
//! and what `doctor` says.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{path::Path, process::Command, time::Duration};

use proconsul::{Resolver, TokenState};
use serde_json::{Value, json};
use support::{Agent, cluster, example, wait_for};
use tokio::time::{Instant, sleep};

fn http(servers: &[Agent]) -> String {
    servers
        .iter()
        .map(Agent::http)
        .collect::<Vec<_>>()
        .join(",")
}

fn doctor(http: &str, more: &[&str]) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command
        .env_clear()
        .args(["doctor", "--json", "--dns", "none", "--http", http]);
    let told = command.args(more).output().unwrap().stdout;
    let told: Value = serde_json::from_slice(&told).unwrap();
    told["checks"].as_array().unwrap().clone()
}

fn verdict(checks: &[Value], check: &str) -> (String, String) {
    let found = checks.iter().find(|one| one["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no {check}: {checks:?}"));
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    (text("verdict"), text("what"))
}

#[tokio::test]
async fn the_last_of_three_servers_tells_what_it_knows_and_that_it_may_be_of_before() {
    let mut servers = cluster(json!({}), None).await;
    let last = servers.swap_remove(0);
    let service = json!({ "Name": "db", "Address": "10.0.0.1", "Port": 1 });
    last.register_service(service).await;
    last.wait_for_instances("db", 1).await;
    let builder = Resolver::builder().dns("none").http(&last.http());
    let service = builder.build().unwrap().service("db").unwrap();
    service.ready().await;
    assert!(service.answer().unwrap().warnings().is_empty());
    for gone in &mut servers {
        gone.kill();
    }
    wait_for("the mark", async || {
        let answer = service.answer()?;
        assert_eq!(answer.endpoints().len(), 1);
        let warning = answer.warnings().first()?;
        assert!(warning.contains("leader"), "{warning}");
        Some(())
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(service.endpoints().len(), 1);
}

#[tokio::test]
async fn the_death_of_the_leader_costs_no_look_up() {
    let mut servers = cluster(json!({}), None).await;
    servers[0]
        .register_service(json!({ "Name": "db", "Address": "10.0.0.1", "Port": 1 }))
        .await;
    for server in &servers {
        server.wait_for_instances("db", 1).await;
        wait_for("what is read without the leader", async || {
            let read = server.get("/v1/health/service/db?stale").await;
            (read.as_array()?.len() == 1).then_some(())
        })
        .await;
    }
    let all = http(&servers);
    let resolver = Resolver::builder().dns("none").http(&all);
    // Each look-up asks anew.
    let resolver = resolver.ttl_floor(Duration::ZERO).build().unwrap();
    let before = wait_for("the leader to have looked at all", async || {
        let told = resolver.cluster().await.ok()?;
        told.servers.as_ref().ok()?.healthy.then_some(told)
    })
    .await;
    let leader = before.leader.clone().unwrap();
    assert_eq!(
        (before.peers.len(), before.clock_skew.unwrap().abs() <= 2),
        (3, true)
    );
    let health = before.servers.unwrap();
    assert_eq!(
        (
            health.healthy,
            health.failure_tolerance,
            health.servers.len()
        ),
        (true, 1, 3)
    );
    assert!(
        health
            .servers
            .iter()
            .any(|one| one.leader && one.address == leader)
    );
    assert_eq!(resolver.token_state().await.unwrap(), TokenState::AclsOff);
    let checks = doctor(&all, &[]);
    assert_eq!(
        verdict(&checks, "leader"),
        ("ok".into(), leader.to_string())
    );
    assert_eq!(verdict(&checks, "servers").0, "ok");
    assert_eq!(verdict(&checks, "clock").0, "ok");

    let at = support::leader(&servers).await;
    let mut gone = servers.swap_remove(at);
    gone.kill();
    let killed = Instant::now();
    let mut asked = 0;
    let mut new = None;
    while new.is_none() || killed.elapsed() < Duration::from_secs(3) {
        let answer = resolver.lookup("db").require_fresh().await;
        assert!(answer.is_ok(), "after {:?}: {answer:?}", killed.elapsed());
        asked += 1;
        let cluster = resolver.cluster().await.unwrap();
        new = cluster.leader.filter(|now| *now != leader);
        assert!(killed.elapsed() < support::PATIENCE, "no new leader");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(asked > 3);
    // What must be changed is changed at another server.
    wait_for("a write", async || resolver.kv().put("a", "1").await.ok()).await;
    wait_for("the doctor's word on it", async || {
        let checks = doctor(&all, &[]);
        (verdict(&checks, "servers").0 == "warn").then_some(())
    })
    .await;
    // Without a majority nothing can be changed, and that is told.
    let mut second = servers.swap_remove(0);
    second.kill();
    wait_for("the doctor's word on that", async || {
        let checks = doctor(&all, &[]);
        (verdict(&checks, "leader").0 == "FAIL").then_some(())
    })
    .await;
}

#[test]
fn the_script_starts_three_servers_and_ends_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = env!("CARGO_BIN_EXE_proconsul");
    let mut command = Command::new(root.join("scripts/cluster"));
    let done = command
        .args([program, "doctor", "--json"])
        .output()
        .unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    let told: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{said}"));
    let checks = told["checks"].as_array().unwrap();
    assert_eq!(verdict(checks, "DNS door").0, "ok", "{checks:?}");
    assert!(
        verdict(checks, "servers").1.starts_with("3 servers"),
        "{checks:?}"
    );
    let processes = said.lines().find_map(|line| line.split_once("processes: "));
    for process in processes.unwrap().1.split_whitespace() {
        assert!(
            !Path::new("/proc").join(process).exists(),
            "{process} still runs"
        );
    }
}

#[test]
fn the_example_goes_on_while_the_cluster_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("scripts/cluster"));
    let done = command.arg(example("cluster")).arg("6").output().unwrap();
    let told = String::from_utf8(done.stdout).unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    // The first look may be earlier than the catalog's word.
    let found = told.matches(" leads; 1 endpoints from ").count();
    assert!(found >= 4, "{told}{said}");
}
