//! Tokens and settings reach nobody: a canary is looked for in all that the program writes,
//! with every log there is, and in all that the library prints of itself.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    error::Error as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use proconsul::{CallError, Check, HttpClient, Resolver, Retry, ServiceDefinition};
use serde_json::json;
use support::{Agent, Serving, closed_port, http_client, wait_for};
use tokio::net::TcpListener;

/// A token, valid at the agent, that nothing may print.
const CANARY: &str = "c0ffee00-dead-4bad-beef-0000000canary";

async fn agent() -> Agent {
    let config = json!({
        "primary_datacenter": "dc1",
        "acl": {
            "enabled": true, "default_policy": "deny",
            "tokens": { "master": CANARY, "agent": CANARY },
        },
    });
    let agent = Agent::builder().config(config).token(CANARY).start().await;
    let web = json!({ "Name": "web", "Address": "10.0.0.1", "Port": 80 });
    agent.register_service(web).await;
    agent
}

fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = directory.join(format!("{name}-{}", std::process::id()));
    _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn is_clean(what: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    assert!(!text.contains(CANARY), "{what} tells the token:\n{text}");
    // Nor the half of it.
    assert!(!text.contains("0000000canary"), "{what}:\n{text}");
}

#[tokio::test]
async fn no_command_prints_the_token_whatever_it_logs() {
    let agent = agent().await;
    let directory = directory("secrets");
    let file = directory.join("token");
    fs::write(&file, format!("{CANARY}\n")).unwrap();
    let snapshot = directory.join("snapshot");
    let silent = format!("http://{}", closed_port());
    let mut seen = 0;
    for http in [agent.http(), silent] {
        for arguments in [
            &["lookup", "web"][..],
            &["lookup", "nosuch", "--json"],
            &["lookup", "web", "SRV"],
            &["pick", "web"],
            &["explain", "web", "--json"],
            &["services"],
            &["services", "web", "--json"],
            &["kv", "put", "a", "1"],
            &["kv", "get", "a", "--json"],
            &["kv", "get", "none"],
            &["doctor", "web"],
            &["config", "check"],
            &["register", "job", "--port", "7", "--", "true"],
        ] {
            for by_file in [true, false] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
                command.env_clear().args(arguments);
                command.args(["--http", &http]);
                command
                    .env("PROCONSUL_DNS", agent.dns().to_string())
                    .env("PROCONSUL_SNAPSHOT", &snapshot)
                    .env("RUST_LOG", "trace")
                    .env("PATH", "/usr/bin:/bin");
                if by_file {
                    command.arg("--token-file").arg(&file);
                } else {
                    command.env("CONSUL_HTTP_TOKEN", CANARY);
                }
                let done = command.stdin(Stdio::null()).output().unwrap();
                let what = format!("{arguments:?} at {http}");
                is_clean(&what, &done.stdout);
                is_clean(&what, &done.stderr);
                seen += done.stderr.len();
            }
        }
    }
    // What goes on until it is told to end.
    let mut command = Command::new("timeout");
    command
        .args(["--signal=INT", "2", env!("CARGO_BIN_EXE_proconsul")])
        .args(["watch", "web", "--http", &agent.http()])
        .env_clear()
        .env("PROCONSUL_DNS", agent.dns().to_string())
        .env("RUST_LOG", "trace")
        .env("PATH", "/usr/bin:/bin")
        .env("CONSUL_HTTP_TOKEN", CANARY);
    let done = command.stdin(Stdio::null()).output().unwrap();
    assert!(!done.stdout.is_empty(), "it told what there is");
    is_clean("watch", &done.stdout);
    is_clean("watch", &done.stderr);
    assert!(seen > 40_000, "the log was on: {seen} bytes");
    is_clean("the snapshot", &fs::read(&snapshot).unwrap());
    // A token that no header carries is told without being told.
    fs::write(&file, format!("{CANARY} {CANARY}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command
        .env_clear()
        .args(["lookup", "web", "--dns", "none", "--http", &agent.http()]);
    let done = command.arg("--token-file").arg(&file).output().unwrap();
    assert!(!done.status.success());
    is_clean("a bad token file", &done.stderr);
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn the_stub_tells_the_token_to_nobody_who_asks() {
    let agent = agent().await;
    let mut command = support::serve(&agent.dns().to_string(), &agent.http());
    command
        .args(["--admin", "127.0.0.1:0"])
        .env("CONSUL_HTTP_TOKEN", CANARY)
        .env("RUST_LOG", "trace");
    let server = Serving::start(command);
    let client = http_client();
    let get = async |path: &str| {
        let url = format!("http://{}{path}", server.admin);
        client.get(url).send().await.unwrap().bytes().await.unwrap()
    };
    wait_for("an answer", async || {
        let explained = get("/v1/explain?name=web").await;
        String::from_utf8_lossy(&explained)
            .contains("found")
            .then_some(())
    })
    .await;
    assert_eq!(server.instances().await, 1);
    for path in [
        "/",
        "/metrics",
        "/v1/status",
        "/v1/cache",
        "/v1/explain?name=nosuch",
        "/nowhere",
    ] {
        is_clean(path, &get(path).await);
    }
    // All that it said of that, with every detail.
    let mut said: Vec<String> = server.warnings.clone();
    said.extend(server.said_so_far());
    assert!(said.len() > 40, "the log was on: {} lines", said.len());
    for line in said {
        is_clean("the log", line.as_bytes());
    }
}

#[tokio::test]
async fn nothing_of_the_library_prints_the_token() {
    let agent = agent().await;
    let builder = Resolver::builder()
        .dns("none")
        .http(&agent.http())
        .token(CANARY);
    is_clean("the builder", format!("{builder:?} {builder}").as_bytes());
    let resolver = builder.build().unwrap();
    let service = resolver.service("web").unwrap();
    service.pick().await.unwrap().succeeded();
    let kv = resolver.kv();
    kv.put("a", CANARY).await.unwrap();
    let entry = kv.get("a").await.unwrap().unwrap();
    let setting = kv.watch::<u32>("a").unwrap();
    wait_for("the problem", async || setting.problem()).await;
    let job = ServiceDefinition::new("job", 7).check(Check::ttl(Duration::from_secs(9)));
    let registration = resolver.register(job).unwrap();
    let there = tokio::time::timeout(Duration::from_secs(10), registration.registered());
    assert!(there.await.is_ok(), "{:?}", registration.states());
    let http = HttpClient::new(&resolver).unwrap();
    let error = kv.get_as::<u32>("a").await.unwrap_err();
    let large = kv.put("a", vec![b'x'; 600 << 10]).await.unwrap_err();
    for (what, printed) in [
        ("resolver", format!("{resolver:?}")),
        ("service", format!("{service:?} {:?}", service.standings())),
        ("kv", format!("{kv:?} {entry:?} {setting:?}")),
        ("errors", format!("{error} {error:?} {large} {large:?}")),
        ("registration", format!("{registration:?}")),
        ("http", format!("{http:?} {:?}", http.get("http://web/"))),
        ("metrics", resolver.metrics().to_string()),
        (
            "status",
            format!("{:?} {:?}", resolver.status(), resolver.cached(9)),
        ),
        ("registry", format!("{:?}", resolver.registry())),
    ] {
        is_clean(what, printed.as_bytes());
    }
    registration.shutdown().await.unwrap();
    let refused = Resolver::builder()
        .token("hush hush\u{7f}")
        .build()
        .unwrap_err();
    assert!(
        !format!("{refused} {refused:?}").contains("hush"),
        "{refused}"
    );
}

#[tokio::test]
async fn no_error_of_a_request_tells_more_of_its_url_than_scheme_and_host() {
    let agent = Agent::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (name, address) in [
        ("shut", closed_port()),
        ("silent", silent.local_addr().unwrap()),
    ] {
        let address = (address.ip().to_string(), address.port());
        let body = json!({ "Name": name, "Address": address.0, "Port": address.1 });
        agent.register_service(body).await;
    }
    let resolver = Resolver::builder().dns("none").http(&agent.http());
    let http = HttpClient::builder()
        .timeout(Duration::from_millis(300))
        .retry(Retry::http().deadline(Duration::from_millis(500)))
        .build(&resolver.build().unwrap())
        .unwrap();
    let request = |name: &str| http.get(&format!("http://{name}/{CANARY}?token={CANARY}#{CANARY}"));
    let unreached = request("shut").send().await.unwrap_err();
    let late = request("silent").send().await.unwrap_err();
    let unmade = request("shut").with(|request| request.header("a b", "c"));
    let unmade = unmade.send().await.unwrap_err();
    assert!(
        matches!(late, CallError::Deadline { last: Some(_), .. }),
        "{late:?}"
    );
    for (host, error) in [("shut", &unreached), ("silent", &late), ("", &unmade)] {
        let mut told = format!("{error} {error:?}");
        let mut cause = error.source();
        while let Some(error) = cause {
            told += &format!("\n{error} {error:?}");
            cause = error.source();
        }
        is_clean(host, told.as_bytes());
        assert!(
            told.contains(&format!("http://{host}")) || host.is_empty(),
            "{told}"
        );
    }
}

#[tokio::test]
async fn no_list_of_processes_tells_the_token_and_no_flag_takes_it() {
    let mut command = support::serve("none", "none");
    command
        .args(["--admin", "none"])
        .env("CONSUL_HTTP_TOKEN", CANARY);
    let server = Serving::start(command);
    // What everybody may read of a process (proc(5)).
    for file in ["cmdline", "comm", "status", "stat"] {
        let path = format!("/proc/{}/{file}", server.id());
        is_clean(&path, &fs::read(path.clone()).unwrap());
    }
    for flag in ["--token", "--http-token", "-t"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().args(["lookup", "web", flag, CANARY]);
        let refused = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{flag}");
        is_clean(flag, &refused.stderr);
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        let joined = format!("{flag}={CANARY}");
        command.env_clear().args(["lookup", "web", &joined]);
        let refused = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{joined}");
        is_clean(flag, &refused.stderr);
    }
}

#[test]
fn an_address_with_a_password_is_refused_and_the_password_is_not_repeated() {
    for http in [
        format!("http://user:{CANARY}@127.0.0.1:8500"),
        format!("http://127.0.0.1:8500/?token={CANARY}"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().args(["lookup", "web", "--dns", "none"]);
        command.env("RUST_LOG", "trace").args(["--http", &http]);
        let refused = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        is_clean("a refused address", &refused.stderr);
        is_clean("a refused address", &refused.stdout);
        let builder = Resolver::builder().http(&http);
        is_clean("the builder", format!("{builder:?} {builder}").as_bytes());
    }
}

/// Told to be wrong by each command that reads it, and not repeated by any.
fn is_refused_and_not_repeated(set: impl Fn(&mut Command)) {
    for arguments in [
        &["lookup", "web"][..],
        &["lookup", "web", "--json"],
        &["config", "check"],
        &["serve"],
        &["doctor", "--json", "--stub", "127.0.0.1:1"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().env("RUST_LOG", "trace").args(arguments);
        set(command.args(["--dns", "none", "--http", "none"]));
        let refused = command.stdin(Stdio::null()).output().unwrap();
        assert!(!refused.status.success(), "{refused:?}");
        is_clean("what is refused", &refused.stderr);
        is_clean("what is refused", &refused.stdout);
    }
}

#[test]
fn a_token_in_the_configuration_is_refused_and_not_repeated() {
    let directory = directory("secrets-file");
    let file = directory.join("config.toml");
    for key in ["token", "[sources]\ntoken", "[sources]\nhttp.token"] {
        fs::write(&file, format!("{key} = \"{CANARY}\"\n")).unwrap();
        is_refused_and_not_repeated(|command| _ = command.arg("--config").arg(&file));
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_default_address_with_a_password_is_taken_or_refused_and_the_password_is_not_repeated() {
    for bad in [
        format!("postgres://app:{CANARY}@db/app"),
        format!("app:{CANARY}@db:5432"),
    ] {
        is_refused_and_not_repeated(|command| _ = command.env("PROCONSUL_DEFAULT_WEB", &bad));
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear().env("RUST_LOG", "trace");
    command.env(
        "PROCONSUL_DEFAULT_DB",
        format!("postgres://app:{CANARY}@127.0.0.1:5432/app"),
    );
    command.args(["lookup", "db", "--short", "--dns", "none", "--http", "none"]);
    let found = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "127.0.0.1:5432\n");
    is_clean("an address with a password", &found.stderr);
}
