//! The shipped policies at a real agent with ACLs in force: each suffices for what it says,
//! and has no rule that it could do without. And "not permitted" is told from "not there".
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use proconsul::{Check, ConsulName, ErrorKind, RegistrationState, Resolver, ServiceDefinition};
use serde_json::{Value, json};
use support::{Agent, PATIENCE, signal, wait_for};
use tokio::time::timeout;

const MASTER: &str = "00000000-0000-0000-0000-0000000000aa";

/// The TTL that only those learn who may read the agent's settings.
const TTL: Duration = Duration::from_secs(7);

async fn agent() -> Agent {
    let config = json!({
        "primary_datacenter": "dc1",
        "dns_config": { "service_ttl": { "*": "7s" } },
        "acl": {
            "enabled": true, "default_policy": "deny",
            "tokens": { "master": MASTER, "agent_master": "00000000-0000-0000-0000-0000000000bb" },
        },
    });
    let agent = Agent::builder().config(config).token(MASTER).start().await;
    let db = json!({ "Name": "db", "Address": "10.0.0.1", "Port": 5432 });
    agent.register_service(db).await;
    let near = json!({ "Name": "near", "Service": { "Service": "db" } });
    let made = agent
        .request(reqwest::Method::POST, "/v1/query")
        .json(&near);
    assert!(made.send().await.unwrap().status().is_success());
    agent
}

/// A token with these rules.
async fn token(agent: &Agent, rules: &str) -> String {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let name = format!(
        "p{}",
        COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    );
    agent
        .put("/v1/acl/policy", json!({ "Name": name, "Rules": rules }))
        .await;
    let made = json!({ "Policies": [{ "Name": name }] });
    let made = agent.put("/v1/acl/token", made).await;
    made["SecretID"].as_str().unwrap().to_owned()
}

fn resolver(agent: &Agent, token: &str) -> Resolver {
    let builder = Resolver::builder().dns("none").http(&agent.http());
    builder.token(token).build().unwrap()
}

/// The rules of a shipped policy, each by itself.
fn rules(name: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("packaging/acl/{name}.hcl"));
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let text: Vec<_> = lines.collect();
    let blocks = text.join("\n");
    let blocks = blocks.split("\n\n").map(str::trim);
    blocks
        .filter(|block| !block.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// What a policy is for, one by one; what is not permitted.
async fn refused(policy: &str, resolver: &Resolver, agent: &Agent) -> Vec<&'static str> {
    let mut refused = Vec::new();
    let mut note = |what, done: bool| {
        if !done {
            refused.push(what);
        }
    };
    if policy != "discover" {
        note("register", registers(resolver, "web").await);
    }
    if policy != "register" {
        let found = resolver.lookup("db").await;
        note("look up", found.is_ok());
        note("TTL", found.is_ok_and(|answer| answer.ttl() == TTL));
        let node = ConsulName::parse(&format!("{}.node.consul", agent.node()), resolver.domain());
        note("node", resolver.lookup(&node.unwrap()).await.is_ok());
        note("query", resolver.lookup("near.query.consul").await.is_ok());
        note(
            "services",
            resolver.services().await.is_ok_and(|all| all.len() == 2),
        );
        note(
            "instances",
            resolver
                .instances("db")
                .await
                .is_ok_and(|all| all.len() == 1),
        );
    }
    if policy == "admin" {
        let kv = resolver.kv();
        note("settings", kv.put("a/b", "1").await.is_ok());
        note(
            "setting",
            kv.get("a/b").await.is_ok_and(|found| found.is_some()),
        );
        let cluster = resolver.cluster().await.unwrap();
        note(
            "cluster",
            cluster.servers.is_ok_and(|servers| servers.healthy),
        );
    }
    refused
}

/// Registered, alive, into maintenance and out of it, gone.
async fn registers(resolver: &Resolver, name: &str) -> bool {
    let service = ServiceDefinition::new(name, 80).check(Check::ttl(Duration::from_secs(9)));
    let mut registration = resolver.register(service).unwrap();
    let state = timeout(PATIENCE, registration.changed())
        .await
        .unwrap()
        .remove(0)
        .1;
    match state {
        RegistrationState::Registered => {}
        RegistrationState::Failing(error) => {
            assert!(error.is_denied(), "{error}");
            assert!(error.to_string().contains("service:write"), "{error}");
            return false;
        }
        other => panic!("{other}"),
    }
    registration.maintenance(Some("test"));
    registration.shutdown().await.is_ok()
}

async fn suffices_and_is_minimal(policy: &str) {
    let agent = agent().await;
    let rules = rules(policy);
    let whole = token(&agent, &rules.join("\n")).await;
    // A new token is not known to all at once, nor how the agent's DNS is set.
    let mut last = Vec::new();
    let sufficient = timeout(PATIENCE, async {
        loop {
            last = refused(policy, &resolver(&agent, &whole), &agent).await;
            if last.is_empty() {
                return;
            }
        }
    });
    let sufficient = sufficient.await;
    assert!(sufficient.is_ok(), "{policy} does not suffice: {last:?}");
    for (at, rule) in rules.iter().enumerate() {
        let mut others = rules.clone();
        others.remove(at);
        let less = token(&agent, &others.join("\n")).await;
        let resolver = resolver(&agent, &less);
        // What is denied stays so: a token that is not known yet would be too.
        wait_for("the token", async || {
            let path = format!("/v1/acl/token/self?token={less}");
            let own = agent.request(reqwest::Method::GET, &path).send().await;
            own.ok()?.status().is_success().then_some(())
        })
        .await;
        let refused = refused(policy, &resolver, &agent).await;
        assert!(!refused.is_empty(), "{policy} needs no {rule}");
    }
}

#[tokio::test]
async fn the_policy_to_register_suffices_and_has_nothing_to_spare() {
    suffices_and_is_minimal("register").await;
    let agent = agent().await;
    let token = token(&agent, &rules("register").join("\n")).await;
    let resolver = resolver(&agent, &token);
    wait_for("the token", async || {
        registers(&resolver, "web").await.then_some(())
    })
    .await;
    assert!(!registers(&resolver, "other").await);
}

#[tokio::test]
async fn the_policy_to_discover_suffices_and_has_nothing_to_spare() {
    suffices_and_is_minimal("discover").await;
}

#[tokio::test]
async fn the_policy_for_all_suffices_and_has_nothing_to_spare() {
    suffices_and_is_minimal("admin").await;
}

#[tokio::test]
async fn what_the_program_may_not_it_tells_with_whom_it_asked_and_not_as_done() {
    let agent = agent().await;
    let program = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().args(arguments);
        command.args(["--json", "--http", &agent.http()]);
        command
    };
    for arguments in [&["services"][..], &["services", "db"]] {
        let output = program(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["error"]["kind"], "denied", "{told}");
        let attempt = &told["attempts"][0];
        assert_eq!(attempt["outcome"], "denied", "{told}");
        let address = attempt["address"].as_str().unwrap();
        assert!(address.starts_with(&agent.http()), "{told}");
    }
    let mut command = program(&["register", "web", "--port", "1"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    while !said
        .next()
        .unwrap()
        .unwrap()
        .contains("is not registered at")
    {}
    signal(child.id(), "TERM");
    let rest: Vec<_> = said.map_while(Result::ok).collect();
    assert!(!rest.concat().contains(": deregistered"), "{rest:?}");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{rest:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["error"]["kind"], "denied", "{told}");
}

#[tokio::test]
async fn not_permitted_is_told_from_not_there() {
    let agent = agent().await;
    agent.put("/v1/kv/a", Value::from(1)).await;
    let nothing = resolver(&agent, &token(&agent, "").await);
    let all = resolver(&agent, MASTER);
    wait_for("the token", async || {
        let error = nothing.services().await.err()?;
        error.to_string().contains("may not see").then_some(())
    })
    .await;
    let kinds = [
        nothing.lookup("db").await.err().map(|error| error.kind()),
        nothing.services().await.err().map(|error| error.kind()),
        nothing
            .instances("db")
            .await
            .err()
            .map(|error| error.kind()),
        nothing.kv().get("a").await.err().map(|error| error.kind()),
        nothing
            .kv()
            .put("a", "")
            .await
            .err()
            .map(|error| error.kind()),
        nothing
            .kv()
            .delete("a")
            .await
            .err()
            .map(|error| error.kind()),
        nothing
            .cluster()
            .await
            .unwrap()
            .servers
            .err()
            .map(|error| error.kind()),
    ];
    assert_eq!(kinds[1..], [Some(ErrorKind::Denied); 6], "{kinds:?}");
    assert_eq!(kinds[0], Some(ErrorKind::Denied), "{kinds:?}");
    assert!(all.lookup("nobody").await.unwrap_err().is_not_found());
    assert_eq!(all.instances("nobody").await.unwrap(), []);
    assert_eq!(all.kv().get("b").await.unwrap(), None);
    // A token that nobody knows.
    let unknown = resolver(&agent, "00000000-0000-0000-0000-00000000ffff");
    assert!(unknown.kv().get("a").await.unwrap_err().is_denied());
    assert!(!registers(&unknown, "web").await);
}

#[tokio::test]
async fn where_dns_may_show_nothing_http_is_asked() {
    // The agent's own token for DNS is the anonymous one, which may see nothing.
    let agent = agent().await;
    let builder = Resolver::builder().dns(&agent.dns().to_string());
    let both = builder.http(&agent.http()).token(MASTER).build().unwrap();
    let found = both.lookup("db").await.unwrap();
    assert_eq!(found.source(), proconsul::Source::Http);
    assert!(both.lookup("nobody").await.unwrap_err().is_not_found());
    let alone = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http("none");
    let error = alone.build().unwrap().lookup("db").await.unwrap_err();
    assert!(
        error.is_denied() && error.to_string().contains("dns or default token"),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_for_a_few_services_is_told_that_one_of_them_is_not_there() {
    let agent = agent().await;
    let few = r#"service "db" { policy = "read" } service "web" { policy = "read" }
        node_prefix "" { policy = "read" }"#;
    let few = resolver(&agent, &token(&agent, few).await);
    wait_for("the token", async || few.lookup("db").await.ok()).await;
    assert!(few.lookup("web").await.unwrap_err().is_not_found());
    assert_eq!(few.instances("web").await.unwrap(), []);
    assert!(!few.is_available("web").await.unwrap());
}

#[tokio::test]
async fn what_is_followed_without_the_right_to_see_it_is_unknown_and_not_gone() {
    let agent = agent().await;
    let poor = token(&agent, "").await;
    let mine = format!("{}/v1/acl/token/self", agent.http());
    let mine = support::http_client().get(mine);
    let mine = mine.header("x-consul-token", &poor);
    let mine: Value = mine.send().await.unwrap().json().await.unwrap();
    let both = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http())
        .token(&poor)
        // A busy machine shows Consul's own service late.
        .timeout(PATIENCE)
        .build()
        .unwrap();
    let alone = Resolver::builder()
        .dns("none")
        .http(&agent.http())
        .token(&poor)
        .timeout(PATIENCE)
        .build()
        .unwrap();
    for resolver in [alone, both] {
        let service = resolver.service("db").unwrap();
        let mut changes = service.changes();
        let mut problems = service.problems();
        let problem = timeout(PATIENCE, problems.next()).await.unwrap();
        assert!(problem.is_some_and(|problem| problem.is_denied()));
        assert!(service.pick().await.unwrap_err().is_denied());
        assert!(service.try_pick().unwrap_err().is_denied());
        // Each attempt is refused in turn, which is no news.
        let pause = Duration::from_secs(3);
        assert!(timeout(pause, changes.next()).await.is_err());
        assert!(timeout(pause / 100, problems.next()).await.is_err());
    }
    // With the right to see it, it is there, and the problem is over.
    let resolver = resolver(&agent, &poor);
    let service = resolver.service("db").unwrap();
    let (mut changes, mut problems) = (service.changes(), service.problems());
    assert!(timeout(PATIENCE, problems.next()).await.unwrap().is_some());
    let id = mine["Policies"][0]["ID"].as_str().unwrap();
    let name = mine["Policies"][0]["Name"].as_str().unwrap();
    let all = r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"#;
    let policy = json!({ "ID": id, "Name": name, "Rules": all });
    agent.put(&format!("/v1/acl/policy/{id}"), policy).await;
    let is_there = async {
        // What was asked for just before that was not there yet.
        while changes.next().await.all.is_empty() {}
    };
    timeout(PATIENCE, is_there).await.unwrap();
    assert!(timeout(PATIENCE, problems.next()).await.unwrap().is_none());
    assert!(service.problem().is_none() && service.try_pick().is_ok());
}

#[tokio::test]
async fn a_stub_that_may_see_nothing_says_so_and_not_that_there_is_nothing() {
    let agent = agent().await;
    // Neither the agent's DNS nor we may see anything.
    let mut command = support::serve(&agent.dns().to_string(), &agent.http());
    command.args(["--admin", "none"]);
    let server = support::Serving::start(command);
    let reply = support::ask_udp(server.dns, "db.service.consul.", RecordType::SRV).await;
    assert_eq!(
        reply.unwrap().metadata.response_code,
        ResponseCode::ServFail
    );
    // With rights it is told what there is, and what there is not.
    let mut command = support::serve(&agent.dns().to_string(), &agent.http());
    command.args(["--admin", "none"]);
    command.env("CONSUL_HTTP_TOKEN", MASTER);
    let server = support::Serving::start(command);
    let ask = async |name| {
        let reply = support::ask_udp(server.dns, name, RecordType::SRV).await;
        reply.unwrap().metadata.response_code
    };
    assert_eq!(ask("db.service.consul.").await, ResponseCode::NoError);
    assert_eq!(ask("nobody.service.consul.").await, ResponseCode::NXDomain);
}
