//! The program as its users see it: output, exit status, environment.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    net::{TcpListener, UdpSocket},
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use support::{Agent, Serving, closed_port, wait_for};

const CATALOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/catalog.json");

/// The program with nothing of this machine's environment that it reads.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    for (name, _) in std::env::vars() {
        if name.starts_with("CONSUL_") || name.starts_with("PROCONSUL_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Flags for an agent.
fn at(agent: &Agent) -> [String; 4] {
    [
        "--dns".into(),
        agent.dns().to_string(),
        "--http".into(),
        agent.http(),
    ]
}

fn run_at(agent: &Agent, arguments: &[&str]) -> Output {
    let at = at(agent);
    let mut all = arguments.to_vec();
    all.extend(at.iter().map(String::as_str));
    run(&all)
}

async fn agent() -> Agent {
    let agent = Agent::start().await;
    let web = json!({ "Name": "web", "Address": "10.0.0.1", "Port": 8001, "Tags": ["v1"] });
    agent.register_service(web).await;
    let web = json!({ "Name": "web", "ID": "web-2", "Address": "2001:db8::2", "Port": 8002, "Tags": ["v2"] });
    agent.register_service(web).await;
    agent
}

#[tokio::test]
async fn lookup_prints_a_table_a_short_list_or_one_json_object() {
    let agent = agent().await;
    let table = run_at(&agent, &["lookup", "web"]);
    assert_eq!(table.status.code(), Some(0));
    let printed = text(&table.stdout);
    assert!(
        printed.starts_with("ADDRESS") && printed.contains("10.0.0.1") && printed.contains("8001")
    );
    assert!(!printed.contains('\u{1b}'), "no colour but on a terminal");
    assert!(text(&table.stderr).contains("2 endpoints from dns (udp), fresh, complete"));
    assert!(run_at(&agent, &["lookup", "web", "-q"]).stderr.is_empty());

    let short = run_at(&agent, &["lookup", "web", "-o", "short"]);
    let printed = text(&short.stdout);
    let mut lines: Vec<_> = printed.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["10.0.0.1:8001", "[2001:db8::2]:8002"]);
    assert_eq!(
        run_at(&agent, &["lookup", "web@nodc", "--short"])
            .status
            .code(),
        Some(3)
    );

    let told = object(&run_at(&agent, &["lookup", "web", "--json", "--tag", "V2"]));
    let attempt = &told["attempts"][0];
    assert_eq!(attempt["address"], agent.dns().to_string());
    assert!(attempt["elapsed_ms"].is_number());
    assert_eq!(attempt["outcome"], "answered");
    for (field, value) in [
        ("name", json!("v2.web.service.consul.")),
        ("source", json!("dns")),
        ("transport", json!("udp")),
        ("freshness", json!("fresh")),
        ("age_ms", json!(0)),
        ("ttl_s", json!(0)),
        ("complete", json!(true)),
    ] {
        assert_eq!(told[field], value, "{field}");
    }
    assert_eq!(
        told["endpoints"],
        json!([{ "address": "2001:db8::2", "port": 8002, "priority": 1, "weight": 1,
            "target": "20010db8000000000000000000000002.addr.dc1.consul.",
            "node": null, "id": null, "tags": null, "meta": null, "health": null }])
    );
    let over_http = object(&run_at(
        &agent,
        &["lookup", "v2.web", "--json", "--source", "http"],
    ));
    let endpoint = &over_http["endpoints"][0];
    assert_eq!(
        (&endpoint["id"], &endpoint["health"]),
        (&json!("web-2"), &json!("passing"))
    );
    assert_eq!(over_http["source"], "http");
}

#[tokio::test]
async fn lookup_with_a_type_prints_records() {
    let agent = agent().await;
    let records = run_at(&agent, &["lookup", "v1.web", "srv"]);
    let printed = text(&records.stdout);
    assert!(
        printed.contains("1 1 8001 0a000001.addr.dc1.consul."),
        "{printed}"
    );
    let short = run_at(&agent, &["lookup", "web", "AAAA", "--short"]);
    assert_eq!(text(&short.stdout), "2001:db8::2\n");
    let pointers = run_at(&agent, &["lookup", "10.0.0.1", "--short"]);
    assert_eq!(text(&pointers.stdout), "web.service.dc1.consul.\n");
    assert_eq!(
        run_at(&agent, &["lookup", "web", "MX"]).status.code(),
        Some(3)
    );
    assert_eq!(
        run_at(&agent, &["lookup", "web", "NONSENSE"]).status.code(),
        Some(2)
    );
}

#[test]
fn colour_and_a_terminal_make_the_heading_bold_and_nothing_else() {
    let lookup = ["lookup", "web", "--source", "static", "--catalog", CATALOG];
    let told = |output: Output| {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        [text(&output.stdout), text(&output.stderr)].concat()
    };
    let plain = told(run(&lookup));
    let (heading, rest) = plain.split_once('\n').unwrap();
    assert!(rest.ends_with("3 endpoints from static (file), fresh, complete, ttl 0 s\n"));
    let bold = format!("\u{1b}[1m{heading}\u{1b}[0m\n{rest}");
    for (when, told_so) in [("always", &bold), ("never", &plain)] {
        let colored = run(&[&lookup[..], &["--color", when]].concat());
        assert_eq!(told(colored), *told_so, "{when}");
    }
    // All that it reads and writes is one terminal, which ends lines with `\r\n`.
    let words = [&[env!("CARGO_BIN_EXE_proconsul")][..], &lookup].concat();
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let mut terminal = Command::new("script");
    terminal.env_clear().env("PATH", "/usr/bin:/bin");
    terminal.args(["-q", "-e", "-c", &quoted.join(" "), "/dev/null"]);
    let shown = terminal.stdin(Stdio::null()).output().unwrap();
    assert_eq!(told(shown).replace('\r', ""), bold);
}

#[test]
fn help_and_usage_errors_have_the_colour_that_is_asked_for() {
    let bold = |arguments: &[&str]| {
        let output = run(arguments);
        [text(&output.stdout), text(&output.stderr)]
            .concat()
            .contains('\u{1b}')
    };
    for arguments in [&["lookup", "--help"][..], &["lookup", "web", "--nosuch"]] {
        assert!(bold(&[&["--color", "always"], arguments].concat()));
        assert!(bold(&[arguments, &["--color=always"]].concat()));
        assert!(!bold(&[arguments, &["--color", "never"]].concat()));
        assert!(!bold(arguments), "no terminal is here");
    }
}

#[tokio::test]
async fn pick_prints_what_a_client_would_be_given() {
    let agent = agent().await;
    let one = run_at(&agent, &["pick", "v1.web"]);
    assert_eq!(
        (text(&one.stdout).as_str(), one.status.code()),
        ("10.0.0.1:8001\n", Some(0))
    );
    let rounds = run_at(
        &agent,
        &["pick", "web", "-n", "4", "--strategy", "round-robin"],
    );
    let expected = "10.0.0.1:8001\n[2001:db8::2]:8002\n".repeat(2);
    assert_eq!(text(&rounds.stdout), expected);
    agent
        .register_service(json!({ "Name": "portless", "Address": "10.0.0.3" }))
        .await;
    let none = run_at(&agent, &["pick", "portless"]);
    assert_eq!((none.stdout.len(), none.status.code()), (0, Some(3)));
    assert_eq!(
        run(&["pick", "web", "--strategy", "best"]).status.code(),
        Some(2)
    );
}

#[tokio::test]
async fn explain_tells_every_step_and_why_it_went_on() {
    let agent = agent().await;
    agent.register_instances("many", 100).await;
    let told = text(&run_at(&agent, &["explain", "many"]).stdout);
    for part in [
        "many means the service many",
        "asked for many.service.consul.",
        "udp",
        "partial",
        "near the size limit",
        "tcp",
        "answer: 100 endpoints from dns",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
    let told = object(&run_at(&agent, &["explain", "many", "--json"]));
    assert_eq!(told["attempts"].as_array().map(Vec::len), Some(2));
    assert_eq!(told["attempts"][1]["count"], 100);
    let closed = closed_port().to_string();
    let failed = run(&[
        "explain",
        "web",
        "--dns",
        &closed,
        "--http",
        &format!("http://{closed}"),
    ]);
    assert_eq!(failed.status.code(), Some(5));
    assert_eq!(
        text(&failed.stdout).matches("  refused  ").count(),
        2,
        "{failed:?}"
    );
}

#[tokio::test]
async fn a_name_that_is_not_there_ends_with_3_and_one_that_cannot_be_with_2() {
    let agent = agent().await;
    let missing = run_at(&agent, &["lookup", "nosuch", "--json"]);
    assert_eq!(missing.status.code(), Some(3));
    let told = object(&missing);
    assert_eq!(told["error"]["kind"], "not_found");
    assert_eq!(told["attempts"][0]["outcome"], "not_found");
    assert!(text(&missing.stderr).contains("there is no service nosuch"));
    for bad in ["a b", "web..x", "www.example.com.", ""] {
        let refused = run_at(&agent, &["lookup", bad]);
        assert_eq!(refused.status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn a_command_line_that_cannot_be_read_is_an_error_in_json_where_json_is_asked_for() {
    for json in [
        &["--json"][..],
        &["-o", "json"],
        &["--output=json"],
        &["-qo", "json"],
        &["-qojson"],
    ] {
        let output = run(&[&["lookup", "web", "--timeout", "soon"], json].concat());
        assert_eq!(output.status.code(), Some(2));
        let error = &object(&output)["error"];
        let message = error["message"].as_str().unwrap();
        assert!(
            error["kind"] == "invalid" && message.contains("soon"),
            "{error}"
        );
        assert!(!message.contains('\n'), "{message}");
        assert!(text(&output.stderr).contains("--help"));
    }
    let output = run(&["lookup", "web", "--timeout", "soon"]);
    assert!(output.stdout.is_empty());
    assert!(text(&run(&["lookup", "--json", "--help"]).stdout).contains("Examples:"));
}

#[tokio::test]
async fn every_error_is_one_object_of_one_form_in_json() {
    let agent = agent().await;
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let http = agent.http();
    for (arguments, kind, status) in [
        (
            &["kv", "get", "nosuch", "--http", &http][..],
            "not_found",
            3,
        ),
        (&["kv", "list", "nosuch", "--http", &http], "not_found", 3),
        (&["services", "nosuch", "--http", &http], "not_found", 3),
        (
            &["lookup", "web", "--dns", "none", "--http", "none"],
            "invalid",
            2,
        ),
        (&["man", "nosuch"], "invalid", 2),
        (&["man", "--dir", "/dev/null/nosuch"], "unavailable", 1),
        (&["serve", "--listen", &taken], "unavailable", 1),
    ] {
        let output = run(&[&["--json"], arguments].concat());
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let told = object(&output);
        assert_eq!(told["error"]["kind"], kind, "{told}");
        assert!(told["attempts"].is_array(), "{told}");
        let message = told["error"]["message"].as_str().unwrap();
        assert!(text(&output.stderr).contains(message), "{output:?}");
    }
    let register = [
        "register",
        "web",
        "--port",
        "1",
        "--json",
        "--",
        "/nonexistent",
    ];
    let output = run(&register);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(object(&output)["error"]["kind"], "invalid");
    // Who is not root becomes nobody else.
    let mut serve = program(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "none",
        "--json",
    ]);
    serve.args(["--dns", "none", "--http", "none", "--user", "root"]);
    let output = serve.uid(65_534).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = object(&output)["error"]["message"].to_string();
    assert!(told.contains("--user root"), "{told}");
}

#[test]
fn two_forms_contradict_each_other_wherever_they_stand() {
    for arguments in [
        &["lookup", "web", "--json", "-o", "short"][..],
        &["lookup", "web", "--json", "--short"],
        &["-o", "table", "lookup", "web", "--short"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("two forms"), "{output:?}");
    }
    let agreeing = ["lookup", "web", "--source", "static", "--catalog", CATALOG];
    let output = run(&[&["--json"], &agreeing[..], &["-qojson"]].concat());
    assert_eq!(object(&output)["source"], "static");
}

#[tokio::test]
async fn names_without_endpoints_are_explained_as_they_are_looked_up_and_picked_by_nobody() {
    let agent = agent().await;
    for (name, kind) in [("10.0.0.1", "PTR"), ("consul.", "NS")] {
        let looked_up = object(&run_at(&agent, &["lookup", name, "--json"]));
        let explained = object(&run_at(&agent, &["explain", name, "--json"]));
        let data = |told: &Value| {
            let first = &told["records"][0];
            assert_eq!(first["type"], kind, "{told}");
            first["data"].as_str().unwrap().to_owned()
        };
        assert_eq!(data(&looked_up), data(&explained));
        let told = text(&run_at(&agent, &["explain", name]).stdout);
        assert!(told.contains(&data(&explained)), "{told}");
        assert!(told.contains("answer: 1 answer from dns, fresh"), "{told}");
        for command in ["pick", "watch"] {
            let refused = run_at(&agent, &[command, name]);
            assert_eq!(refused.status.code(), Some(2), "{refused:?}");
            let mend = format!("proconsul lookup {name} {kind}");
            assert!(text(&refused.stderr).contains(&mend), "{refused:?}");
        }
        let told = object(&run_at(&agent, &["doctor", name, "--json"]));
        let checks = told["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["check"] == "name");
        assert_eq!(check.unwrap()["verdict"], "warn", "{told}");
    }
    let nobody = run_at(&agent, &["explain", "10.9.9.9"]);
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
}

#[test]
fn flags_are_offered_where_they_do_something() {
    for (command, flags) in [
        (
            &["kv", "get", "a"][..],
            &["--dns", "--catalog", "--snapshot"][..],
        ),
        (&["register", "web"], &["--dns", "--catalog", "--snapshot"]),
        (&["services"], &["--dns", "--snapshot"]),
    ] {
        let help = run(&[command, &["--help"]].concat());
        let help = text(&help.stdout);
        for flag in flags {
            assert!(!help.contains(flag), "{command:?} {flag}: {help}");
        }
        // One set of flags serves all.
        let all = ["--dns", "none", "--http", "none", "--snapshot", "none"];
        let taken = run(&[command, &all[..], &["--catalog", CATALOG]].concat());
        let said = text(&taken.stderr);
        assert!(!said.contains("unexpected argument"), "{said}");
        let wrong = run(&[command, &["--dns", "no address"]].concat());
        assert_eq!(wrong.status.code(), Some(2), "{command:?}: {wrong:?}");
    }
}

#[test]
fn a_flag_says_what_is_logged_before_the_environment_does() {
    let logged = |flags: &[&str], variable: &str| {
        let lookup = ["lookup", "web", "--source", "static", "--catalog", CATALOG];
        let mut command = program(&[&lookup[..], flags].concat());
        let output = command.env("RUST_LOG", variable).output().unwrap();
        text(&output.stderr)
    };
    let nothing = logged(&[], "");
    assert_eq!(nothing.lines().count(), 1, "{nothing}");
    assert!(logged(&[], "trace").lines().count() > 1);
    assert_eq!(logged(&["-q"], "trace"), "");
    assert!(logged(&["-vv"], "off").lines().count() > 1);
}

#[test]
fn where_there_is_no_port_the_address_stands_alone() {
    let short = |name: &str| {
        let lookup = ["lookup", name, "--short", "--catalog", CATALOG];
        let output = run(&[&lookup[..], &["--dns", "none", "--http", "none"]].concat());
        text(&output.stdout)
    };
    assert_eq!(short("7f000001.addr.consul"), "127.0.0.1\n");
    let v6 = "20010db8000000000000000000000002.addr.consul";
    assert_eq!(short(v6), "2001:db8::2\n");
}

#[test]
fn without_consul_one_message_names_each_attempt_its_cause_and_what_to_do() {
    let (dns, http) = (
        closed_port().to_string(),
        format!("http://{}", closed_port()),
    );
    let failed = run(&["lookup", "web", "--json", "--dns", &dns, "--http", &http]);
    assert_eq!(failed.status.code(), Some(5));
    let told = object(&failed);
    assert_eq!(told["error"]["kind"], "unavailable");
    let message = told["error"]["message"].as_str().unwrap();
    for part in [&*dns, &*http, "refused", "start a Consul agent"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    assert_eq!(text(&failed.stderr).lines().count(), 1);
    assert_eq!(told["attempts"].as_array().unwrap().len(), 2);
}

#[test]
fn the_static_catalog_answers_where_no_consul_is() {
    let (dns, http) = (
        closed_port().to_string(),
        format!("http://{}", closed_port()),
    );
    let found = run(&[
        "lookup",
        "web",
        "--json",
        "--catalog",
        CATALOG,
        "--dns",
        &dns,
        "--http",
        &http,
    ]);
    assert_eq!(found.status.code(), Some(0), "{found:?}");
    let told = object(&found);
    assert_eq!(
        (&told["source"], &told["complete"]),
        (&json!("static"), &json!(true))
    );
    assert_eq!(told["endpoints"].as_array().unwrap().len(), 3);

    let from_env = program(&["lookup", "primary.web", "--short"])
        .envs([
            ("PROCONSUL_CATALOG", CATALOG),
            ("PROCONSUL_DNS", "none"),
            ("CONSUL_HTTP_ADDR", "none"),
        ])
        .output()
        .unwrap();
    assert_eq!(text(&from_env.stdout), "10.20.0.11:8080\n");

    let missing = run(&[
        "lookup",
        "nosuch",
        "--source",
        "static",
        "--catalog",
        CATALOG,
    ]);
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
    let absent = run(&["lookup", "web", "--catalog", "/no/such/file.json"]);
    assert_eq!(absent.status.code(), Some(2));
    assert!(text(&absent.stderr).contains("/no/such/file.json"));
}

#[tokio::test]
async fn the_environment_says_where_consul_is_and_a_flag_wins() {
    let agent = agent().await;
    let closed = closed_port().to_string();
    let with = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut arguments = vec!["lookup", "web", "--json"];
        arguments.extend(flags);
        object(
            &program(&arguments)
                .envs(variables.iter().copied())
                .output()
                .unwrap(),
        )
    };
    let (dns, http) = (agent.dns().to_string(), agent.http_address().to_string());
    let by_env = with(&[], &[("PROCONSUL_DNS", &dns), ("CONSUL_HTTP_ADDR", &http)]);
    assert_eq!(by_env["source"], "dns");
    let bare = with(
        &["--dns", "none"],
        &[("PROCONSUL_DNS", &dns), ("CONSUL_HTTP_ADDR", &http)],
    );
    assert_eq!(bare["source"], "http");
    let flag = with(
        &["--dns", &dns],
        &[("PROCONSUL_DNS", &closed), ("CONSUL_HTTP_ADDR", "none")],
    );
    assert_eq!(flag["source"], "dns");
    let elsewhere = program(&["lookup", "web", "--dns", &dns])
        .env("CONSUL_DATACENTER", "nodc")
        .output()
        .unwrap();
    assert_eq!(elsewhere.status.code(), Some(3));
    let bad = program(&["lookup", "web"])
        .env("PROCONSUL_DNS", "nowhere")
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(text(&bad.stderr).contains("PROCONSUL_DNS"));
}

#[test]
fn help_teaches_with_examples() {
    for command in [
        &[][..],
        &["lookup"],
        &["pick"],
        &["explain"],
        &["watch"],
        &["serve"],
        &["services"],
        &["register"],
        &["doctor"],
        &["kv"],
        &["kv", "get"],
        &["config"],
        &["config", "check"],
        &["completions"],
        &["man"],
    ] {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let help = run(&arguments);
        assert_eq!(help.status.code(), Some(0));
        assert!(text(&help.stdout).contains("Examples:"), "{command:?}");
    }
    assert!(text(&run(&["--version"]).stdout).starts_with("proconsul "));
    assert_eq!(run(&["lookup"]).status.code(), Some(2));
    assert_eq!(
        run(&["lookup", "web", "--timeout", "0s"]).status.code(),
        Some(2)
    );
}

/// A stub that is ended when its test is.
#[test]
fn serve_says_where_it_answers_and_a_signal_ends_it_with_0() {
    for signal in ["-TERM", "-INT"] {
        let port = closed_port().port();
        let listen = format!("127.0.0.1:{port}");
        let mut command = program(&["serve", "--listen", &listen, "--admin", "127.0.0.1:0"]);
        command.args(["--upstream", "none", "--dns", "none", "--http", "none"]);
        command.args(["--catalog", CATALOG]);
        let mut serving = Serving::start(command);
        let line = format!("serving consul. on {listen} (udp, tcp), admin 127.0.0.1:");
        assert!(serving.line.starts_with(&line), "{}", serving.line);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        // web.service.consul A
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07service\x06consul\x00\x00\x01\x00\x01";
        client.send_to(question, &listen).unwrap();
        let mut reply = [0; 512];
        let length = client.recv(&mut reply).unwrap();
        assert_eq!(reply[..2], [0x12, 0x34]);
        assert_eq!(reply[7], 2, "two of the three have IPv4 addresses");
        assert!(length < 512);
        serving.signal(signal);
        assert_eq!(serving.wait().code(), Some(0));
    }
}

#[test]
fn an_address_that_is_taken_is_named_with_what_to_do() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = run(&["serve", "--listen", &address]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(
        said.contains(&address) && said.contains("--listen"),
        "{said}"
    );
}

#[test]
fn a_port_that_is_taken_is_an_error_in_json_where_json_is_asked_for() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (listen, admin) in [("127.0.0.1:0", &*taken), (&*taken, "none")] {
        let refused = run(&["serve", "--json", "--listen", listen, "--admin", admin]);
        assert_eq!(refused.status.code(), Some(1));
        let told = object(&refused);
        let said = text(&refused.stderr);
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(&taken) && said.contains(message), "{said}");
        assert_eq!(told["error"]["kind"], "unavailable");
        assert_eq!(told["attempts"], json!([]));
    }
}

#[test]
fn a_default_address_of_the_environment_is_the_last_source() {
    let closed = closed_port().to_string();
    let output = program(&[
        "lookup", "pay-api", "--dns", &closed, "--http", "none", "--json",
    ])
    .env("PROCONSUL_DEFAULT_PAY_API", "https://127.0.0.1:8443/v1")
    .output()
    .unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = object(&output);
    assert_eq!(told["source"], "static");
    assert_eq!(told["endpoints"][0]["port"], 8443);
    let bad = program(&["lookup", "pay-api"])
        .env("PROCONSUL_DEFAULT_PAY_API", "nowhere")
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(
        text(&bad.stderr).contains("PROCONSUL_DEFAULT_PAY_API"),
        "{bad:?}"
    );
}

#[test]
fn who_asks_no_consul_is_told_what_was_asked_instead() {
    for (more, instead) in [
        (&[][..], "it is not in the default addresses, "),
        (
            &["--catalog", CATALOG],
            "it is not in the static catalog or the default addresses, ",
        ),
    ] {
        let mut command = program(&["lookup", "nosuch", "--dns", "none", "--http", "none"]);
        let output = command
            .args(more)
            .env("PROCONSUL_DEFAULT_PAY", "10.0.0.1:80");
        let output = output.output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let told = text(&output.stderr);
        assert!(told.contains(instead), "{told}");
        assert!(!told.contains("cache") && !told.contains("token"), "{told}");
        let mut command = program(&["explain", "nosuch", "--dns", "none", "--http", "none"]);
        let output = command
            .args(more)
            .env("PROCONSUL_DEFAULT_PAY", "10.0.0.1:80");
        let told = text(&output.output().unwrap().stdout);
        assert!(told.contains("there is none of it"), "{told}");
    }
}

#[tokio::test]
async fn one_source_alone_is_answered_by_no_other() {
    let agent = agent().await;
    let file = std::env::temp_dir().join(format!("proconsul-alone-{}", std::process::id()));
    let path = file.to_str().unwrap();
    assert!(
        run_at(&agent, &["lookup", "web", "--snapshot", path])
            .status
            .success()
    );
    let closed = closed_port().to_string();
    let asked = |name: &str, source: &str, more: &[&str]| {
        let mut command = program(&["lookup", name, "--json", "--source", source]);
        command
            .args(["--dns", &closed, "--http", &closed])
            .args(more);
        command.env("PROCONSUL_SNAPSHOT", path);
        command.env("PROCONSUL_DEFAULT_WEB", "http://10.9.9.9:80");
        let output = command.output().unwrap();
        (output.status.code(), object(&output))
    };
    for source in ["dns", "http"] {
        let (code, told) = asked("web", source, &["--catalog", CATALOG]);
        assert_eq!(code, Some(5), "{told}");
        let attempts = told["attempts"].as_array().unwrap();
        assert!(!attempts.is_empty(), "{told}");
        assert!(attempts.iter().all(|one| one["source"] == source), "{told}");
    }
    let (code, told) = asked("web", "static", &["--catalog", CATALOG]);
    assert_eq!((code, &told["source"]), (Some(0), &json!("static")));
    assert_eq!(
        told["endpoints"].as_array().unwrap().len(),
        3,
        "the catalog's: {told}"
    );
    let (_, told) = asked("web", "static", &[]);
    assert_eq!(told["endpoints"][0]["address"], "10.9.9.9", "{told}");
    // Nor does the doctor take a default address for what was there before.
    let mut command = program(&["doctor", "nosuch", "--json", "--stub", &closed]);
    command
        .args(at(&agent))
        .env("PROCONSUL_DEFAULT_NOSUCH", "10.9.9.9:80");
    let told = object(&command.output().unwrap());
    assert!(!told.to_string().contains("deregistered\""), "{told}");
    assert!(
        told.to_string().contains("no service nosuch is registered"),
        "{told}"
    );
    let _ = std::fs::remove_file(&file);
    let _ = std::fs::remove_file(format!("{path}.lock"));
}

#[tokio::test]
async fn a_snapshot_answers_while_consul_is_gone_unless_nothing_stale_is_wanted() {
    let mut agent = agent().await;
    let file = std::env::temp_dir().join(format!("proconsul-program-{}", std::process::id()));
    let path = file.to_str().unwrap();
    assert!(
        run_at(&agent, &["lookup", "web", "--snapshot", path])
            .status
            .success()
    );
    agent.stop().await;
    let stale = run_at(&agent, &["lookup", "web", "--snapshot", path, "--json"]);
    assert!(stale.status.success(), "{stale:?}");
    let told = object(&stale);
    assert_eq!(
        (&told["source"], &told["freshness"]),
        (&json!("snapshot"), &json!("stale"))
    );
    assert_eq!(told["endpoints"].as_array().unwrap().len(), 2);
    let picked = run_at(&agent, &["pick", "web", "--snapshot", path]);
    assert!(picked.status.success());
    assert!(
        text(&picked.stderr).contains("no source answered"),
        "{picked:?}"
    );
    let explained = run_at(&agent, &["explain", "web", "--snapshot", path]);
    let told = text(&explained.stdout);
    assert!(told.contains("from snapshot, stale"), "{told}");
    let mut steps = told.lines().filter(|line| line.contains(" ms  "));
    let last: Vec<_> = steps.next_back().unwrap().split_whitespace().collect();
    assert_eq!(last[1..5], ["snapshot", path, "file", "answered"], "{told}");
    assert!(told.contains("2 records  found "), "{told}");
    let explained = run_at(&agent, &["explain", "web", "--snapshot", path, "--json"]);
    let told = object(&explained);
    let step = told["attempts"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&step["source"], &step["address"], &step["count"]),
        (&json!("snapshot"), &json!(path), &json!(2))
    );
    let none = run_at(&agent, &["lookup", "web", "--snapshot", path, "--no-stale"]);
    assert_eq!(none.status.code(), Some(5), "{none:?}");
    // It has not lost what it could not be asked for.
    assert!(
        run_at(&agent, &["lookup", "web", "--snapshot", path])
            .status
            .success()
    );
    let _ = std::fs::remove_file(&file);
    let _ = std::fs::remove_file(format!("{path}.lock"));
}

#[tokio::test]
async fn what_was_gone_at_the_end_is_not_brought_back_by_a_snapshot() {
    let mut agent = Agent::start().await;
    agent.register_instances("web", 1).await;
    let file = std::env::temp_dir().join(format!("proconsul-gone-{}", std::process::id()));
    let path = file.to_str().unwrap();
    let look_up = |agent: &Agent| run_at(agent, &["lookup", "web", "--snapshot", path]);
    assert!(look_up(&agent).status.success());
    agent.deregister_service("web-0").await;
    wait_for("it to be gone", async || {
        (look_up(&agent).status.code() == Some(3)).then_some(())
    })
    .await;
    agent.stop().await;
    let late = look_up(&agent);
    assert_eq!(late.status.code(), Some(5), "{late:?}");
    let _ = std::fs::remove_file(&file);
    let _ = std::fs::remove_file(format!("{path}.lock"));
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let made = run(&["completions", shell]);
        assert!(made.status.success());
        let made = text(&made.stdout);
        assert!(
            made.contains("register") && made.contains("check-grpc"),
            "{shell}"
        );
    }
    let page = text(&run(&["man"]).stdout);
    assert!(
        page.starts_with(".ie") && page.contains("proconsul\\-register"),
        "{page}"
    );
    let page = text(&run(&["man", "serve"]).stdout);
    assert!(page.contains("stop\\-rebind"), "{page}");
    assert_eq!(run(&["man", "nothing"]).status.code(), Some(2));
    let directory = std::env::temp_dir().join(format!("proconsul-man-{}", std::process::id()));
    let flag = directory.to_str().unwrap();
    assert!(run(&["man", "--dir", flag]).status.success());
    assert!(directory.join("proconsul-kv-get.1").exists());
    std::fs::remove_dir_all(directory).unwrap();
}
