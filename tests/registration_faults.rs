//! Registrations that meet what goes wrong on the way: answers that are lost, rights that are
//! not there, a process that is stopped for a while, two that are one, checks that print
//! without end.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proconsul::{Check, Registration, RegistrationState, Resolver, ServiceDefinition};
use serde_json::{Value, json};
use support::{
    Agent, PATIENCE,
    http::{Asked, ScriptedHttp, Step, ok, status},
    signal, wait_for,
};
use tokio::time::{Instant, sleep, timeout};

fn resolver(http: &str) -> Resolver {
    let builder = Resolver::builder().dns("none").http(http);
    builder.build().unwrap()
}

fn web() -> ServiceDefinition {
    let check = Check::ttl(Duration::from_secs(30));
    ServiceDefinition::new("web", 8080)
        .address("10.0.0.7")
        .check(check)
}

async fn registered(http: &str) -> Registration {
    let registration = resolver(http).register(web()).unwrap();
    timeout(PATIENCE, registration.registered()).await.unwrap();
    registration
}

/// An agent that keeps one service, and for which some requests end otherwise.
fn agent(otherwise: impl Fn(&Asked) -> Option<Vec<Step>> + Send + Sync + 'static) -> ScriptedHttp {
    let there = AtomicBool::new(false);
    ScriptedHttp::start(move |asked| {
        let what = asked.what();
        if what.contains("/service/register") {
            there.store(true, Ordering::SeqCst);
        }
        if let Some(steps) = otherwise(asked) {
            return steps;
        }
        if what.contains("/service/deregister") {
            there.store(false, Ordering::SeqCst);
        }
        let looked = what.starts_with("GET /v1/agent/service/");
        vec![match (looked, there.load(Ordering::SeqCst)) {
            (true, false) => status("404 Not Found", "unknown service"),
            (true, true) => ok("", r#"{"Service":"web","Address":"10.0.0.7","Port":8080}"#),
            _ => ok("", ""),
        }]
    })
}

fn puts(server: &ScriptedHttp, path: &str) -> Vec<Asked> {
    let mut asked = server.asked();
    asked.retain(|one| one.what().starts_with("PUT ") && one.what().contains(path));
    asked
}

/// The id stands for an instance elsewhere.
fn anothers() -> Step {
    ok("", r#"{"Service":"web","Address":"10.0.0.8","Port":8080}"#)
}

#[tokio::test]
async fn where_the_answer_is_lost_the_same_is_said_again_and_is_there_once() {
    let first = AtomicBool::new(true);
    let server = agent(move |asked| {
        let lost = asked.what().contains("/service/register");
        (lost && first.swap(false, Ordering::SeqCst)).then(|| vec![Step::Close])
    });
    let registration = registered(&server.url()).await;
    let said = puts(&server, "/service/register");
    assert_eq!(said.len(), 2);
    assert_eq!(said[0].body, said[1].body);
    let body: Value = serde_json::from_slice(&said[0].body).unwrap();
    assert_eq!(body["ID"], "web-10.0.0.7-8080");
    // The net below it, should this process be killed.
    let checks = body["Checks"].as_array().unwrap();
    assert!(
        checks[0]["DeregisterCriticalServiceAfter"].is_string(),
        "{body}"
    );
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(puts(&server, "/service/register").len(), 2);
    registration.shutdown().await.unwrap();
    assert_eq!(puts(&server, "/service/deregister").len(), 1);
}

#[tokio::test]
async fn a_registration_that_arrives_after_the_end_is_taken_back() {
    let (leaving, there) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let ends = Arc::clone(&leaving);
    let server = ScriptedHttp::start(move |asked| {
        let what = asked.what();
        let look = what.starts_with("GET /v1/agent/service/");
        if what.contains("/service/deregister") {
            there.store(false, Ordering::SeqCst);
        }
        // It was on its way all the time.
        let arrives = look && ends.swap(false, Ordering::SeqCst);
        vec![match there.fetch_or(arrives, Ordering::SeqCst) {
            _ if what.contains("/service/register") => Step::Close,
            false if look => status("404 Not Found", "unknown service"),
            true if look => ok("", r#"{"Service":"web","Address":"10.0.0.7","Port":8080}"#),
            _ => ok("", ""),
        }]
    });
    let registration = resolver(&server.url()).register(web()).unwrap();
    wait_for("a registration without an answer", async || {
        (!puts(&server, "/service/register").is_empty()).then_some(())
    })
    .await;
    sleep(Duration::from_millis(100)).await;
    leaving.store(true, Ordering::SeqCst);
    registration.shutdown().await.unwrap();
    assert_eq!(puts(&server, "/service/deregister").len(), 1);
}

#[tokio::test]
async fn what_is_registered_anew_while_its_guard_is_dropped_is_taken_back_too() {
    let stage = Arc::new(AtomicUsize::new(0));
    let at = Arc::clone(&stage);
    let server = ScriptedHttp::start(move |asked| {
        let what = asked.what();
        let stage = at.load(Ordering::SeqCst);
        vec![if what.starts_with("GET /v1/agent/service/") {
            // It arrives after the first look at the end.
            if stage == 2 {
                at.store(3, Ordering::SeqCst);
            }
            match stage {
                0 | 3 => ok("", r#"{"Service":"web","Address":"10.0.0.7","Port":8080}"#),
                _ => status("404 Not Found", "unknown service"),
            }
        } else if what.contains("/service/register") && stage == 1 {
            Step::Hang
        } else {
            ok("", "")
        }]
    });
    let registration = registered(&server.url()).await;
    stage.store(1, Ordering::SeqCst);
    wait_for("a registration anew", async || {
        (puts(&server, "/service/register").len() == 2).then_some(())
    })
    .await;
    stage.store(2, Ordering::SeqCst);
    drop(registration);
    assert_eq!(puts(&server, "/service/deregister").len(), 1);
}

#[tokio::test]
async fn an_agent_that_does_not_know_what_a_heartbeat_is_of_is_told_the_service_again() {
    for unknown in [
        status("404 Not Found", "Unknown check"),
        status("500 X", "CheckID \"x\" does not have associated TTL"),
        status("500 X", "Unknown service \"web-10.0.0.7-8080\""),
    ] {
        let forgotten = AtomicBool::new(true);
        let server = agent(move |asked| {
            let beats = asked.what().contains("/check/update");
            (beats && forgotten.swap(false, Ordering::SeqCst)).then(|| vec![unknown.clone()])
        });
        let registration = resolver(&server.url()).register(web()).unwrap();
        wait_for("a registration anew", async || {
            (puts(&server, "/service/register").len() == 2).then_some(())
        })
        .await;
        registration.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_deregistration_that_is_lost_is_tried_again_and_told_at_last() {
    for (steps, tries) in [(vec![Step::Close], 3), (vec![status("500 X", "no")], 3)] {
        let server = agent(move |asked| {
            let lost = asked.what().contains("/service/deregister");
            lost.then(|| steps.clone())
        });
        let registration = registered(&server.url()).await;
        let start = Instant::now();
        let error = registration.shutdown().await.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        let told = error.to_string();
        assert!(
            told.contains("web-10.0.0.7-8080") && told.contains("when its checks have failed"),
            "{told}"
        );
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(puts(&server, "/service/deregister").len() >= tries);
    }
    let once = AtomicBool::new(true);
    let server = agent(move |asked| {
        let lost = asked.what().contains("/service/deregister");
        (lost && once.swap(false, Ordering::SeqCst)).then(|| vec![Step::Close])
    });
    registered(&server.url()).await.shutdown().await.unwrap();
    assert_eq!(puts(&server, "/service/deregister").len(), 2);
}

#[tokio::test]
async fn what_became_somebody_elses_is_left_alone_though_the_agent_does_not_say_so_at_the_end() {
    for drops in [false, true] {
        let turn = Arc::new(AtomicUsize::new(0));
        let turns = Arc::clone(&turn);
        let server = agent(move |asked| {
            let looked = asked.what().starts_with("GET /v1/agent/service/");
            match turns.load(Ordering::SeqCst) {
                1 if looked => Some(vec![anothers()]),
                2 if looked => Some(vec![status("500 X", "busy")]),
                _ => None,
            }
        });
        let mut registration = registered(&server.url()).await;
        turn.store(1, Ordering::SeqCst);
        let is_taken = |state: &RegistrationState| matches!(state, RegistrationState::Taken(_));
        let taken = async { while !is_taken(&registration.changed().await[0].1) {} };
        timeout(PATIENCE, taken).await.unwrap();
        turn.store(2, Ordering::SeqCst);
        // Looks that fail do not make it ours.
        sleep(Duration::from_millis(1_500)).await;
        match drops {
            true => drop(registration),
            false => registration.shutdown().await.unwrap(),
        }
        assert_eq!(puts(&server, "/service/deregister").len(), 0);
    }
}

#[tokio::test]
async fn a_look_that_fails_at_the_end_is_tried_again_before_anything_is_taken_away() {
    for (busy, is_anothers, deregistered) in [(1, true, 0), (1, false, 1), (9, false, 1)] {
        // Zero until the end.
        let looks = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&looks);
        let server = agent(move |asked| {
            if !asked.what().starts_with("GET /v1/agent/service/") {
                return None;
            }
            let less = |left: usize| (left > 1).then(|| left - 1);
            match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
                Ok(_) => Some(vec![status("500 X", "busy")]),
                Err(left) => (left == 1 && is_anothers).then(|| vec![anothers()]),
            }
        });
        let registration = registered(&server.url()).await;
        looks.store(1 + busy, Ordering::SeqCst);
        registration.shutdown().await.unwrap();
        assert_eq!(puts(&server, "/service/deregister").len(), deregistered);
    }
}

#[tokio::test]
async fn without_the_right_to_it_that_is_said_at_once_and_tried_seldom() {
    let may = Arc::new(AtomicBool::new(false));
    let allowed = Arc::clone(&may);
    let server = agent(move |asked| {
        let refused = asked.what().starts_with("PUT ") && !allowed.load(Ordering::SeqCst);
        refused.then(|| vec![status("403 Forbidden", "Permission denied")])
    });
    let mut registration = resolver(&server.url()).register(web()).unwrap();
    let states = timeout(Duration::from_secs(2), registration.changed());
    let states = states.await.unwrap();
    let [(_, RegistrationState::Failing(error))] = states.as_slice() else {
        panic!("{states:?}");
    };
    assert!(error.is_denied(), "{error}");
    assert!(error.to_string().contains("service:write"), "{error}");
    sleep(Duration::from_secs(3)).await;
    let asked = server.asked().len();
    assert!(asked <= 6, "asked {asked} times");
    // Rights that are given meanwhile are found without a restart.
    may.store(true, Ordering::SeqCst);
    timeout(PATIENCE, registration.registered()).await.unwrap();
    registration.shutdown().await.unwrap();
}

/// What the catalog says of the one instance of a service.
async fn instance(agent: &Agent, service: &str) -> Option<Value> {
    let all = agent.get(&format!("/v1/catalog/service/{service}")).await;
    let all = all.as_array().unwrap();
    assert!(all.len() <= 1, "{all:?}");
    all.first().cloned()
}

#[tokio::test]
async fn two_who_say_the_same_are_one_instance_and_do_not_quarrel() {
    let agent = Agent::start().await;
    let first = registered(&agent.http()).await;
    let second = registered(&agent.http()).await;
    agent.wait_for_instances("web", 1).await;
    let before = instance(&agent, "web").await.unwrap();
    sleep(Duration::from_millis(2_500)).await;
    let after = instance(&agent, "web").await.unwrap();
    assert_eq!(before["ModifyIndex"], after["ModifyIndex"]);
    // One of them leaves; the other is there all the same.
    first.shutdown().await.unwrap();
    let start = Instant::now();
    wait_for("the other", async || {
        let own = agent.get("/v1/agent/services").await;
        own.get("web-10.0.0.7-8080").map(drop)
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(2));
    second.shutdown().await.unwrap();
    agent.wait_for_instances("web", 0).await;
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_process_that_was_stopped_is_critical_meanwhile_and_well_at_its_next_beat() {
    let agent = Agent::start().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.args(["register", "job", "--port", "7", "--check-ttl", "1s"]);
    command.args(["--http", &agent.http(), "--", "sleep", "60"]);
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    let child = Ended(child);
    let status = async || {
        let checks = agent.get("/v1/agent/checks").await;
        let check = checks.as_object()?.values().next()?;
        check["Status"].as_str().map(str::to_owned)
    };
    let until = async |wanted: &str| {
        wait_for(wanted, async || (status().await? == wanted).then_some(())).await;
    };
    until("passing").await;
    agent.wait_for_instances("job", 1).await;
    let before = instance(&agent, "job").await.unwrap();
    signal(child.0.id(), "STOP");
    until("critical").await;
    signal(child.0.id(), "CONT");
    let start = Instant::now();
    until("passing").await;
    assert!(start.elapsed() < Duration::from_secs(3));
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(status().await.as_deref(), Some("passing"));
    let after = instance(&agent, "job").await.unwrap();
    assert_eq!(
        before["CreateIndex"], after["CreateIndex"],
        "registered anew"
    );
    assert_eq!(
        before["ModifyIndex"], after["ModifyIndex"],
        "registered anew"
    );
    signal(child.0.id(), "TERM");
    agent.wait_for_instances("job", 0).await;
}

#[test]
fn what_a_check_prints_is_cut_and_harmless() {
    let output = format!("\u{1b}[2J\u{7}{}\n", "é".repeat(5 << 20));
    let body = json!([{
        "Node": { "Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc1" },
        "Service": { "ID": "web-1", "Service": "web", "Port": 80 },
        "Checks": [
            { "CheckID": "c", "Name": "disk", "Status": "critical", "Output": output },
            { "CheckID": "d", "Name": "\u{1b}]0;x\u{7}", "Status": "warning", "Output": "" },
        ],
    }]);
    let body = body.to_string();
    let server = ScriptedHttp::of_web(move |_| vec![ok("X-Consul-Index: 7\r\n", &body)]);
    for command in [&["services", "web"][..], &["doctor", "web"]] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        program.env_clear().args(command).args(["--timeout", "20s"]);
        program
            .env("PROCONSUL_DNS", "none")
            .args(["--http", &server.url()]);
        let output = program.stdin(Stdio::null()).output().unwrap();
        for bytes in [&output.stdout, &output.stderr] {
            let said = String::from_utf8_lossy(bytes);
            assert!(said.len() < 16 << 10, "{command:?}: {} bytes", said.len());
            assert!(
                !said.contains(['\u{1b}', '\u{7}']),
                "{command:?}: {}",
                &said[..said.len().min(500)].escape_debug()
            );
        }
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("disk critical: "), "{command:?}: {said}");
    }
    let resolver = resolver(&server.url());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let all = runtime.block_on(resolver.instances("web")).unwrap();
    let kept = all[0].checks[0].output.len();
    assert!((4_090..=4_096).contains(&kept), "{kept}");
}
