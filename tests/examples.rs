//! Style: "`examples/`: each below 60 lines, its first line says what it shows, a
//! test runs it." They are run over the static catalog alone: no agent is asked.

#[path = "support/process.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod process;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    process::Command,
    thread,
};

use process::example;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Standard output of an example over `examples/catalog.json`, as lines.
fn run(name: &str, arguments: &[&str]) -> Vec<String> {
    run_with(name, arguments, None)
}

/// The same with one more variable of the environment.
fn run_with(name: &str, arguments: &[&str], more: Option<&(&str, String)>) -> Vec<String> {
    let output = Command::new(example(name))
        .args(arguments)
        .current_dir(ROOT)
        .env_clear()
        .env("PROCONSUL_DNS", "none")
        .env("CONSUL_HTTP_ADDR", "none")
        .env("PROCONSUL_CATALOG", "examples/catalog.json")
        .envs(more.map(|(name, value)| (name, value)))
        .output()
        .expect("the example starts");
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("an example prints UTF-8");
    text.lines().map(str::to_owned).collect()
}

const WEB: [&str; 3] = [
    "10.20.0.11:8080",
    "10.20.0.12:8080",
    "[2001:db8:20::13]:8080",
];

#[test]
fn lookup_prints_every_instance() {
    assert_eq!(run("lookup", &["web"]), WEB);
    assert_eq!(run("lookup", &["v1.web"]), WEB[2..]);
}

#[test]
fn pick_follows_the_strategy() {
    let round: Vec<_> = WEB.iter().cycle().take(10).copied().collect();
    assert_eq!(run("pick", &["web", "round-robin"]), round);
    assert_eq!(run("pick", &["web", "first"]), [WEB[0]; 10]);
    let weighted = run("pick", &["web"]);
    assert_eq!(weighted.len(), 10);
    assert!(weighted.iter().all(|one| WEB.contains(&one.as_str())));
}

#[test]
fn stub_answers_the_question_put_to_it() {
    assert_eq!(
        run("stub", &["web.service.consul"]),
        ["web.service.consul SRV: response code 0, 3 answers"]
    );
    assert_eq!(
        run("stub", &["nosuch.service.consul"]),
        ["nosuch.service.consul SRV: response code 3, 0 answers"]
    );
}

#[test]
fn watch_prints_the_full_set_first() {
    let mut lines = run("watch", &["web", "1"]);
    assert_eq!(lines.pop().as_deref(), Some("3 now"));
    assert_eq!(lines, WEB.map(|endpoint| format!("+ {endpoint}")));
}

#[test]
fn service_keeps_to_its_policy() {
    let lines = run("service", &["web"]);
    assert_eq!(lines[..4], [WEB[0]; 4]);
    assert_eq!(
        lines[4..],
        ["10.20.0.11:8080  unknown  closed  3 failures in a row"]
    );
}

#[test]
fn blocking_needs_no_runtime() {
    let lines = run("blocking", &["web"]);
    assert_eq!(lines[0], "3 endpoints");
    assert!(WEB.contains(&lines[1].as_str()), "{lines:?}");
}

#[test]
fn call_and_http_reach_a_server_by_name() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = server.local_addr().expect("it is bound");
    let served = thread::spawn(move || {
        for answer in [
            None,
            Some("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
        ] {
            let (mut stream, _) = server.accept().expect("a client");
            if let Some(answer) = answer {
                _ = stream.read(&mut [0; 1_024]).expect("a request");
                stream.write_all(answer.as_bytes()).expect("it is taken");
            }
        }
    });
    let own = ("PROCONSUL_DEFAULT_OWN", address.to_string());
    let called = run_with("call", &["own"], Some(&own));
    assert_eq!(called, [format!("connected to {address}")]);
    let got = run_with("http", &["http://own/"], Some(&own));
    assert_eq!(got, ["200 OK", "hello"]);
    served.join().expect("both were served");
}

#[cfg(feature = "grpc")]
#[tokio::test(flavor = "multi_thread")]
async fn grpc_gives_a_generated_client_a_name() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let server = server.expect("a free port");
    let address = server.local_addr().expect("it is bound");
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = tonic::transport::server::TcpIncoming::from(server);
    let serving = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(serving.serve_with_incoming(incoming));
    let own = ("PROCONSUL_DEFAULT_OWN", address.to_string());
    let asked = tokio::task::spawn_blocking(move || run_with("grpc", &["own"], Some(&own)));
    assert_eq!(asked.await.expect("it ran"), ["Serving"]);
}

#[test]
fn every_example_is_short_says_what_it_shows_and_is_run_here() {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("{ROOT}/examples")).expect("examples/ is there") {
        let path = entry.expect("examples/ can be read").path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("an example can be read");
        let name = path.display();
        assert!(
            text.starts_with("//! "),
            "{name} does not say what it shows"
        );
        assert!(text.lines().count() < 60, "{name} has 60 lines or more");
        found.insert(path.file_stem().expect("it has a name").to_owned());
    }
    let run_here = [
        "blocking", "call", "grpc", "http", "lookup", "pick", "service", "stub", "watch",
    ];
    // By tests/systems.rs and tests/cluster.rs, beside real agents.
    let run_there = [
        "assistant",
        "axum",
        "cluster",
        "layers",
        "orchestrator",
        "providers",
        "publishing",
    ];
    let all = run_here.into_iter().chain(run_there);
    assert_eq!(found, all.map(Into::into).collect());
}
