//! What `proconsul doctor` says of a service that somebody misses, and of rights: each entry
//! of the lists of trouble that people keep, at a real agent.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{Agent, Folder, Serving, closed_port, serve, wait_for};

/// Verdict, what, and mend of each check, by name.
struct Told(Vec<Value>);

impl Told {
    fn of(&self, check: &str) -> (&str, &str, &str) {
        let found = self.0.iter().find(|one| one["check"] == check);
        let found = found.unwrap_or_else(|| panic!("no {check}: {:#?}", self.0));
        let text = |key: &str| found[key].as_str().unwrap_or_default();
        (text("verdict"), text("what"), text("mend"))
    }

    fn has(&self, check: &str) -> bool {
        self.0.iter().any(|one| one["check"] == check)
    }
}

fn doctor(agent: &Agent, more: &[&str]) -> Told {
    doctor_at(&agent.dns().to_string(), &agent.http(), more)
}

fn doctor_at(dns: &str, http: &str, more: &[&str]) -> Told {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear().args(["doctor", "--json"]);
    command.args(["--dns", dns, "--http", http]).args(more);
    read(&mut command)
}

fn read(command: &mut Command) -> Told {
    let told = command.output().unwrap();
    let read: Value = serde_json::from_slice(&told.stdout).unwrap();
    Told(read["checks"].as_array().unwrap().clone())
}

#[tokio::test]
async fn doors_that_lead_to_different_instances_are_told_with_them() {
    let one = Agent::start().await;
    let other = Agent::builder().at([127, 0, 0, 7].into()).start().await;
    assert_eq!(doctor(&one, &[]).of("agreement").0, "ok");
    let told = doctor_at(&one.dns().to_string(), &other.http(), &[]);
    let (verdict, what, _) = told.of("agreement");
    assert_eq!(verdict, "warn", "{what}");
    assert!(what.contains("only DNS gives 127.0.0.1:"), "{what}");
    assert!(what.contains("only HTTP gives 127.0.0.7:"), "{what}");
}

#[tokio::test]
async fn consuls_own_service_is_seen_whatever_the_namespace_of_others() {
    let agent = Agent::start().await;
    let told = doctor(&agent, &["--namespace", "team", "--partition", "west"]);
    for check in ["DNS door", "HTTP door", "ACL", "agreement"] {
        assert_eq!(told.of(check).0, "ok", "{:?}", told.of(check));
    }
}

#[tokio::test]
async fn what_dns_shows_is_judged_also_where_http_does_not_answer() {
    let agent = Agent::start().await;
    let closed = format!("http://{}", closed_port());
    for http in ["none", &closed] {
        let told = doctor_at(&agent.dns().to_string(), http, &[]);
        for check in ["ACL", "TLS", "truncation", "TTL"] {
            assert_eq!(told.of(check).0, "ok", "{http}: {:?}", told.of(check));
        }
    }
    let told = doctor_at("none", &closed, &[]);
    assert_eq!((told.of("ACL").0, told.of("TLS").0), ("warn", "ok"));
}

#[test]
fn an_agent_that_need_not_prove_who_it_is_fails() {
    let address = format!("https://{}", closed_port());
    assert_eq!(doctor_at("none", &address, &[]).of("TLS").0, "warn");
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command
        .env_clear()
        .args(["doctor", "--json", "--dns", "none"]);
    command.args(["--http", &address]);
    command.env("CONSUL_HTTP_SSL_VERIFY", "false");
    let told = read(&mut command);
    let (verdict, what, _) = told.of("TLS");
    assert!(verdict == "FAIL" && what.contains(&address), "{what}");
}

#[test]
fn the_stub_is_asked_where_the_configuration_puts_it_and_for_its_domain() {
    let folder = Folder::new("doctor-stub");
    let mut command = serve("none", "none");
    command.args(["--admin", "none", "--domain", "corp.example"]);
    let serving = Serving::start(command);
    let file = folder.path("config.toml");
    let listen = format!("[serve]\nlisten = ['{}']\n", serving.dns);
    for (domain, expected) in [("corp.example", "ok"), ("consul", "warn")] {
        std::fs::write(&file, format!("[sources]\ndomain = '{domain}'\n{listen}")).unwrap();
        let told = doctor_at("none", "none", &["--config", file.to_str().unwrap()]);
        let (verdict, what, _) = told.of("stub");
        assert_eq!(verdict, expected, "{what}");
        assert!(what.contains(&serving.dns.to_string()), "{what}");
    }
}

#[test]
fn a_snapshot_that_cannot_be_used_is_told_with_its_file() {
    let folder = Folder::new("doctor-snapshot");
    let (damaged, missing) = (folder.path("damaged"), folder.path("missing"));
    std::fs::write(&damaged, "proconsul-snapshot 1 junk").unwrap();
    for (file, is_good) in [(&damaged, false), (&missing, true)] {
        let file = file.to_str().unwrap();
        let told = doctor_at("none", "none", &["--snapshot", file]);
        assert_eq!(told.has("snapshot"), !is_good);
        if !is_good {
            let (verdict, what, _) = told.of("snapshot");
            assert_eq!(verdict, "warn");
            assert!(what.contains(file), "{what}");
        }
    }
}

#[tokio::test]
async fn a_wrong_name_is_told_with_the_one_that_is_likely_to_be_meant() {
    let agent = Agent::start().await;
    agent
        .register_service(json!({ "Name": "ai-chat", "Port": 1, "Tags": ["v1"] }))
        .await;
    for wrong in ["ai_chat", "aichat", "ai-caht"] {
        let told = doctor(&agent, &[wrong]);
        let (verdict, what, _) = told.of("registration");
        assert!(
            verdict == "FAIL" && what.contains("did you mean ai-chat?"),
            "{what}"
        );
    }
    let told = doctor(&agent, &["nothing-like-it"]);
    assert!(!told.of("registration").1.contains("did you mean"));
    let told = doctor(&agent, &["v2.ai-chat"]);
    let (verdict, what, _) = told.of("tag");
    assert!(verdict == "FAIL" && what.contains("v1"), "{what}");
    assert_eq!(doctor(&agent, &["v1.ai-chat"]).of("tag").0, "ok");
}

#[tokio::test]
async fn a_check_that_fails_is_told_with_what_it_printed() {
    let agent = Agent::start().await;
    for (id, status) in [("web-1", "critical"), ("web-2", "passing")] {
        let check = json!({ "CheckID": id, "Name": "disk", "TTL": "1h", "Status": "passing" });
        let body =
            json!({ "Name": "web", "ID": id, "Address": "10.0.0.1", "Port": 1, "Check": check });
        agent.register_service(body).await;
        let path = format!("/v1/agent/check/update/{id}");
        agent
            .put(&path, json!({ "Status": status, "Output": "91 % full" }))
            .await;
    }
    let told = wait_for("the check", async || {
        let told = doctor(&agent, &["web"]);
        (told.of("checks").0 == "warn").then_some(told)
    })
    .await;
    let (_, what, mend) = told.of("checks");
    assert!(
        what.contains("web-1") && what.contains("disk critical: 91 % full"),
        "{what}"
    );
    assert!(mend.contains("reaches"), "{mend}");
    agent.deregister_service("web-2").await;
    wait_for("all to be critical", async || {
        let told = doctor(&agent, &["web"]);
        (told.of("checks").0 == "FAIL" && told.of("name").0 == "FAIL").then_some(())
    })
    .await;
    let body = json!({ "Name": "idle", "Port": 1 });
    agent.register_service(body).await;
    agent
        .put(
            "/v1/agent/service/maintenance/idle?enable=true&reason=disks",
            Value::Null,
        )
        .await;
    wait_for("maintenance", async || {
        let told = doctor(&agent, &["idle"]);
        let (_, what, mend) = told.of("checks");
        (what.contains("disks") && mend.contains("maintenance")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_bad_registration_is_told() {
    let agent = Agent::start().await;
    agent.register_service(json!({ "Name": "portless" })).await;
    agent
        .register_service(json!({ "Name": "bare", "Port": 1 }))
        .await;
    let check = json!({ "TTL": "1h", "Status": "passing" });
    let anywhere = json!({ "Name": "anywhere", "Address": "0.0.0.0", "Port": 1, "Check": check });
    let anywhere = agent
        .request(reqwest::Method::PUT, "/v1/agent/service/register")
        .json(&anywhere);
    // Newer agents refuse it.
    let taken = anywhere.send().await.unwrap().status().is_success();
    assert!(
        doctor(&agent, &["portless"])
            .of("lint")
            .1
            .contains("port 0")
    );
    assert!(doctor(&agent, &["bare"]).of("lint").1.contains("no check"));
    if taken {
        agent.wait_for_instances("anywhere", 1).await;
        assert!(
            doctor(&agent, &["anywhere"])
                .of("lint")
                .1
                .contains("one listens")
        );
    }
    let whole = json!({ "Name": "whole", "Address": "10.0.0.1", "Port": 1, "Check": check });
    agent.register_service(whole).await;
    assert!(!doctor(&agent, &["whole"]).has("lint"));
}

#[tokio::test]
async fn what_was_there_and_went_is_told_with_the_causes() {
    let agent = Agent::start().await;
    agent
        .register_service(json!({ "Name": "web", "Address": "10.0.0.1", "Port": 1 }))
        .await;
    let file = std::env::temp_dir().join(format!("proconsul-went-{}", std::process::id()));
    let flag = file.to_str().unwrap();
    let mut first = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    first
        .env_clear()
        .args(["lookup", "web", "--snapshot", flag, "--http", &agent.http()]);
    assert!(first.args(["--dns", "none"]).status().unwrap().success());
    agent.deregister_service("web").await;
    agent.wait_for_instances("web", 0).await;
    let told = doctor(&agent, &["web", "--snapshot", flag]);
    assert_eq!(told.of("registration").0, "FAIL");
    let (_, what, mend) = told.of("deregistered");
    assert!(what.contains("was there 0 min ago"), "{what}");
    assert!(mend.contains("deregister_critical_service_after"), "{mend}");
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn tokens_are_judged() {
    let master = "00000000-0000-0000-0000-0000000000aa";
    let acl = json!({ "primary_datacenter": "dc1", "acl": {
        "enabled": true, "default_policy": "deny", "tokens": { "master": master, "agent": master },
    } });
    let agent = Agent::builder().config(acl).token(master).start().await;
    let told = doctor(&agent, &[]);
    assert_eq!(told.of("token").0, "warn", "{:?}", told.0);
    assert_eq!(told.of("DNS door").0, "FAIL");
    let file = std::env::temp_dir().join(format!("proconsul-token-{}", std::process::id()));
    let flag = file.to_str().unwrap();
    std::fs::write(&file, master).unwrap();
    let told = doctor(&agent, &["--token-file", flag]);
    let (verdict, what, _) = told.of("token");
    assert!(
        verdict == "ok" && what.contains("global-management"),
        "{what}"
    );
    // The agent's own token for DNS is another one.
    assert_eq!((told.of("HTTP door").0, told.of("ACL").0), ("ok", "FAIL"));
    std::fs::write(&file, "00000000-0000-0000-0000-00000000ffff").unwrap();
    let told = doctor(&agent, &["--token-file", flag]);
    assert_eq!(told.of("token").0, "FAIL");
    std::fs::remove_file(file).unwrap();
}
