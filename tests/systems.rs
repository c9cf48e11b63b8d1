//! The programs of `docs/systems`, and the web service, beside a real agent and real servers;
//! and the pages, which show those programs.
#![cfg(feature = "grpc")]
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::json;
use support::{Agent, Serving, closed_port, example, http_client, signal, wait_for};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};

fn command(agent: &Agent, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(example(name));
    command.env_clear().args(arguments);
    command.env("CONSUL_HTTP_ADDR", agent.http());
    command.env("PROCONSUL_DNS", agent.dns().to_string());
    command
}

/// What it prints. Not on the test's own thread, where its servers live.
async fn run(agent: &Agent, name: &str, arguments: &[&str]) -> String {
    let mut command = command(agent, name, arguments);
    let ran = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output {
        status,
        stdout,
        stderr,
    } = ran.await.unwrap();
    let told = String::from_utf8(stdout).unwrap();
    assert!(
        status.success(),
        "{name}: {told}{}",
        String::from_utf8_lossy(&stderr)
    );
    told
}

async fn register(agent: &Agent, name: &str, at: SocketAddr, meta: serde_json::Value) {
    let body = json!({
        "Name": name, "ID": format!("{name}-{}", at.port()),
        "Address": at.ip().to_string(), "Port": at.port(), "Meta": meta,
    });
    agent.register_service(body).await;
}

/// A server that takes connections.
async fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn an_assistant_is_registered_finds_its_memory_and_leaves() {
    let agent = Agent::start().await;
    let mut command = command(&agent, "assistant", &[]);
    command
        .env("SERVICE_NAME", "assistant")
        .env("SERVICE_PORT", "8000");
    command.env("SERVICE_TAGS", "v1").stdout(Stdio::piped());
    // Nobody is `memory` yet: Consul says so, and it is not replaced by a default.
    assert!(!command.status().unwrap().success());
    register(&agent, "memory", "10.0.0.1:7".parse().unwrap(), json!({})).await;
    let mut child = command.spawn().unwrap();
    agent.wait_for_instances("assistant", 1).await;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(
        lines.next().unwrap().unwrap(),
        "memory is at 10.0.0.1:7 (says dns)"
    );
    signal(child.id(), "TERM");
    let status = wait_for("its end", async || child.try_wait().unwrap()).await;
    assert!(status.success());
    agent.wait_for_instances("assistant", 0).await;
    assert_eq!(lines.next().unwrap().unwrap(), "gone");

    // While there is no agent, the address that it had before; and it waits for the agent.
    let mut command = Command::new(example("assistant"));
    let closed = closed_port();
    command.env_clear().env("CONSUL_HOST", "127.0.0.1");
    command
        .env("CONSUL_PORT", closed.port().to_string())
        .env("PROCONSUL_DNS", "none");
    command
        .env("SERVICE_NAME", "assistant")
        .env("SERVICE_PORT", "8000");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(
        lines.next().unwrap().unwrap(),
        "memory is at 127.0.0.1:9000 (says static)"
    );
    signal(child.id(), "TERM");
    wait_for("its end", async || child.try_wait().unwrap()).await;
}

#[tokio::test]
async fn a_provider_that_fails_gives_way_to_the_next_best() {
    let agent = Agent::start().await;
    let (_listener, local) = listening().await;
    let meta =
        |provider, model| json!({ "capability": "chat", "provider": provider, "model": model });
    register(&agent, "ai-provider", closed_port(), meta("dead", "gpt-4")).await;
    register(&agent, "ai-provider", local, meta("local", "small")).await;
    let images = json!({ "capability": "image", "model": "gpt-4" });
    register(
        &agent,
        "ai-provider",
        "10.255.255.1:1".parse().unwrap(),
        images,
    )
    .await;
    let told = run(&agent, "providers", &["gpt-4"]).await;
    assert_eq!(told.matches("answered by local").count(), 4, "{told}");
    assert!(
        told.contains("  open"),
        "the one that is wished rests: {told}"
    );
    let told = run(&agent, "providers", &["small"]).await;
    assert_eq!(told.matches("answered by local").count(), 4, "{told}");
}

#[tokio::test]
async fn articles_are_read_by_name_and_a_job_is_not_rendered_twice() {
    let agent = Agent::start().await;
    let mut command = support::serve("none", &agent.http());
    command.args(["--admin", "127.0.0.1:0"]);
    let server = Serving::start(command);
    register(&agent, "articles", server.admin.parse().unwrap(), json!({})).await;
    register(&agent, "articles", closed_port(), json!({})).await;
    let arguments = ["http://articles/healthz", "http://renderer/jobs"];
    let told = run(&agent, "publishing", &arguments).await;
    assert!(told.starts_with("read: 200 OK\n"), "{told}");
    assert!(
        told.contains("nobody renders: ") && told.contains("renderer"),
        "{told}"
    );
    // Taken, and then the connection is lost: it may have been done.
    let (listener, address) = listening().await;
    let taken = tokio::spawn(async move {
        let mut taken = 0;
        loop {
            let accepted =
                tokio::time::timeout(std::time::Duration::from_secs(2), listener.accept());
            match accepted.await {
                Ok(stream) => {
                    taken += 1;
                    drop(stream);
                }
                Err(_) => return taken,
            }
        }
    });
    register(&agent, "renderer", address, json!({})).await;
    let told = run(&agent, "publishing", &arguments).await;
    assert!(told.contains("not written: "), "{told}");
    assert_eq!(taken.await.unwrap(), 1);
}

#[tokio::test]
async fn a_layer_is_ready_when_those_below_are() {
    let agent = Agent::start().await;
    register(
        &agent,
        "storage",
        "10.0.0.1:1".parse().unwrap(),
        json!({ "type": "layer" }),
    )
    .await;
    let told = run(&agent, "layers", &["storage", "memory"]).await;
    assert!(
        told.contains("storage.service.consul.: ready true, 1 endpoints"),
        "{told}"
    );
    assert!(
        told.contains("memory.service.consul.: ready false, 0 endpoints"),
        "{told}"
    );
    assert!(told.contains("storage at 10.0.0.1:1, passing"), "{told}");
}

#[tokio::test]
async fn an_orchestrator_calls_agents_by_limits_that_are_in_consul() {
    let agent = Agent::start().await;
    let (listener, address) = listening().await;
    let (_health, service) = tonic_health::server::health_reporter();
    let server = Server::builder().add_service(service);
    let serving = server.serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(async move { serving.await.unwrap() });
    register(&agent, "agents", address, json!({})).await;
    register(&agent, "agents", closed_port(), json!({})).await;
    let limits = json!({ "failures": 1, "rest_s": 30, "calls": 7 });
    agent.put("/v1/kv/orchestrator/limits", limits).await;
    let told = run(&agent, "orchestrator", &[]).await;
    assert_eq!(told.matches("an agent says Serving").count(), 7, "{told}");
    assert!(told.contains("  open"), "{told}");
}

#[tokio::test]
async fn a_web_service_is_there_when_it_is_ready_and_gone_before_it_ends() {
    let agent = Agent::start().await;
    let mut child = command(&agent, "axum", &[])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("hello on ").unwrap().to_owned();
    wait_for("it to be healthy", async || {
        let healthy = agent.get("/v1/health/service/hello?passing").await;
        (healthy.as_array()?.len() == 1).then_some(())
    })
    .await;
    let client = http_client();
    let get = async |path: &str| client.get(format!("{url}{path}")).send().await;
    for path in ["", "health/live", "health/ready"] {
        assert!(get(path).await.unwrap().status().is_success(), "{path}");
    }
    signal(child.id(), "TERM");
    agent.wait_for_instances("hello", 0).await;
    // It drains: who still comes is answered.
    assert!(get("").await.is_ok());
    let status = wait_for("its end", async || child.try_wait().unwrap()).await;
    assert!(status.success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn the_pages_show_the_programs_that_are_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let index = fs::read_to_string(root.join("docs/systems/README.md")).unwrap();
    let mut pages = 0;
    for page in fs::read_dir(root.join("docs/systems")).unwrap() {
        let path = page.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name == "README" {
            continue;
        }
        pages += 1;
        assert!(
            index.contains(&format!("({name}.md)")),
            "{name} is not listed"
        );
        let page = fs::read_to_string(&path).unwrap();
        let (_, rest) = page.split_once("```rust\n").unwrap();
        let (shown, _) = rest.split_once("```").unwrap();
        let program = fs::read_to_string(root.join(format!("examples/{name}.rs"))).unwrap();
        assert!(
            program.ends_with(shown),
            "{name}: the page shows another program"
        );
        assert!(shown.len() > 500);
    }
    assert_eq!(pages, 5);
}
