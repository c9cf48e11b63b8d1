//! `proconsul serve` as an operator has it: configuration, reload, systemd.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    fs,
    io::{self, PipeReader, Write as _, pipe},
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use support::{
    Agent, Over, PATIENCE, Serving, ask, ask_tcp, ask_udp, closed_port, serve, wait_for,
};

const CATALOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/catalog.json");

/// A directory of its own for each test.
fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("operation-{name}"));
    _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    program.env_clear();
    program
}

fn config(dns: &str, http: &str, more: &str) -> String {
    format!(
        "[sources]\ndns = \"{dns}\"\nhttp = \"{http}\"\n\
         [serve]\nlisten = [\"127.0.0.1:0\"]\nadmin = \"none\"\nupstream = [\"none\"]\n{more}"
    )
}

fn check(config: &str, name: &str) -> Output {
    let file = directory(name).join("config.toml");
    fs::write(&file, config).unwrap();
    let mut command = program();
    command.args(["config", "check", "--config"]).arg(&file);
    command.output().unwrap()
}

#[test]
fn a_configuration_is_checked_with_all_that_it_names() {
    let good = check(&config("127.0.0.1:1", "none", ""), "good");
    assert_eq!(good.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&good.stdout).contains("config.toml: fine"));
    for (at, (config, place)) in [
        (
            config("127.0.0.1:1", "none", "\n[cache]\nbites = 1\n"),
            "line 10, column 1",
        ),
        (config("nowhere", "none", ""), "127.0.0.1:8600"),
        (config("none", "none", "\n[default]\nweb = \"\"\n"), "web"),
        // One that is good mends no other.
        (
            config(
                "none",
                "none",
                "\n[default]\na = \"nowhere\"\nb = \"10.0.0.1:80\"\n",
            ),
            "the default address of a",
        ),
        (
            "[sources]\ncatalog = \"/nosuch/file\"\n".to_owned(),
            "/nosuch/file",
        ),
        // What only `serve` refuses.
        (
            "[serve]\nupstream = [\"not an address\"]\n".to_owned(),
            "not an address",
        ),
        (
            "[serve]\nupstream = [\"system\", \"none\"]\n".to_owned(),
            "--upstream none",
        ),
        (
            "[serve]\nuser = \"no-such-user\"\n".to_owned(),
            "no-such-user",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let bad = check(&config, &format!("bad{at}"));
        let said = String::from_utf8_lossy(&bad.stderr).into_owned();
        assert_eq!(bad.status.code(), Some(2), "{said}");
        assert!(said.contains(place), "{said}");
    }
}

#[test]
fn a_check_of_the_configuration_is_one_object_in_json_however_it_ends() {
    let file = directory("json").join("config.toml");
    for (text, key) in [
        ("[serve]\n", "fine"),
        ("[serve]\nuser = \"no-such-user\"\n", "error"),
    ] {
        fs::write(&file, text).unwrap();
        let mut command = program();
        command
            .args(["config", "check", "--json", "--config"])
            .arg(&file);
        let told: serde_json::Value =
            serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        assert!(told.get(key).is_some(), "{told}");
    }
    let mut command = program();
    let told = command
        .args(["config", "check", "--json"])
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told, serde_json::json!({ "fine": true, "file": null }));
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = directory("order").join("config.toml");
    fs::write(
        &file,
        "[sources]\ndomain = \"file.example\"\ndns = \"none\"\nhttp = \"none\"\n",
    )
    .unwrap();
    let asked = |flag: Option<&str>, variable: Option<&str>| {
        let mut command = program();
        command.args(["lookup", "web", "--config"]).arg(&file);
        command.args(
            flag.map(|domain| ["--domain", domain])
                .into_iter()
                .flatten(),
        );
        command.envs(variable.map(|domain| ("PROCONSUL_DOMAIN", domain)));
        command
            .envs([("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80")])
            .arg("--json");
        let told: serde_json::Value =
            serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        told["name"].as_str().unwrap().to_owned()
    };
    assert_eq!(asked(None, None), "web.service.file.example.");
    assert_eq!(asked(None, Some("env.example")), "web.service.env.example.");
    assert_eq!(
        asked(Some("flag.example"), Some("env.example")),
        "web.service.flag.example."
    );
}

#[tokio::test]
async fn a_reload_takes_new_settings_and_keeps_what_is_known() {
    let mut one = Agent::start().await;
    one.register_instances("web", 2).await;
    let other = Agent::start().await;
    other.register_instances("web", 3).await;
    let file = directory("reload").join("config.toml");
    fs::write(&file, config(&one.dns().to_string(), "none", "")).unwrap();
    let mut command = program();
    command.arg("serve").arg("--config").arg(&file);
    let serving = Serving::start(command);
    assert_eq!(serving.instances().await, 2);

    // Nothing is lost by a reload while nobody answers.
    one.kill();
    fs::write(&file, config(&closed_port().to_string(), "none", "")).unwrap();
    serving.signal("-HUP");
    assert!(serving.says().contains("reloaded"));
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(serving.instances().await, 2);

    // What is wrong changes nothing.
    fs::write(&file, "[sources]\ndns = 1\n").unwrap();
    serving.signal("-HUP");
    let said = serving.says();
    assert!(
        said.contains("reload failed") && said.contains("line 2"),
        "{said}"
    );
    assert_eq!(serving.instances().await, 2);

    fs::write(&file, config(&other.dns().to_string(), &other.http(), "")).unwrap();
    serving.signal("-HUP");
    while !serving.says().contains("reloaded") {}
    wait_for("the other agent's instances", async || {
        (serving.instances().await == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reload_changes_whom_the_stub_trusts_and_how_much_it_asks() {
    let agent = Agent::start().await;
    agent.register_instances("web", 10).await;
    let file = directory("limits").join("config.toml");
    let config = |more: &str| config(&agent.dns().to_string(), "none", more);
    let strict = "trust = [\"192.0.2.0/24\"]\nunknown-per-second = 2\nforwarded-per-second = 2\n";
    fs::write(&file, config(strict)).unwrap();
    let mut command = program();
    command.arg("serve").arg("--config").arg(&file);
    let serving = Serving::start(command);
    let of_web = || {
        ask(
            serving.dns,
            "web.service.consul.",
            RecordType::A,
            Over::Edns(4_096),
        )
    };
    // Of names that nobody knows, those that Consul was asked for.
    let denied = async |from: u8| {
        let names = (from..from + 10).map(|number| format!("none-{number}.service.consul."));
        let names: Vec<_> = names.collect();
        let asked = names
            .iter()
            .map(|name| ask_udp(serving.dns, name, RecordType::A));
        let told = futures_util::future::join_all(asked).await;
        let codes = told
            .into_iter()
            .flatten()
            .map(|told| told.metadata.response_code);
        codes.filter(|code| *code == ResponseCode::NXDomain).count()
    };
    let (strange, _) = of_web().await.unwrap();
    let is_cut = strange.metadata.truncation && strange.answers.is_empty();
    assert!(is_cut, "{strange:?}");
    assert!(denied(0).await < 10, "two a second");
    let free = "trust = [\"127.0.0.0/8\"]\nunknown-per-second = 0\nforwarded-per-second = 0\n";
    fs::write(&file, config(free)).unwrap();
    serving.signal("-HUP");
    while !serving.says().contains("reloaded") {}
    let (known, _) = of_web().await.unwrap();
    assert_eq!(known.answers.len(), 10);
    assert_eq!(denied(10).await, 10);
}

/// A pipe that holds a text, once.
fn piped(text: &str) -> PipeReader {
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    reader
}

#[tokio::test]
async fn a_configuration_that_can_be_read_once_is_read_whole_and_stays() {
    let broken = "[sources]\ndns = \"nowhere\"\n[serve]\nadmin = \"none\"\n";
    let mut command = program();
    command.args(["config", "check", "--config", "/dev/stdin"]);
    let checked = command.stdin(piped(broken)).output().unwrap();
    assert_eq!(checked.status.code(), Some(2), "{checked:?}");

    let text = config("none", "none", "[default]\nweb = \"10.0.0.1:80\"\n");
    let mut command = program();
    command.args(["serve", "--config", "/dev/stdin"]);
    command.stdin(piped(&text));
    let serving = Serving::start(command);
    assert_eq!(serving.instances().await, 1);
    serving.signal("-HUP");
    let said = serving.says();
    assert!(
        said.contains("reloaded") && said.contains("read once"),
        "{said}"
    );
    assert_eq!(serving.instances().await, 1);
}

#[tokio::test]
async fn the_snapshot_is_in_the_state_directory_unless_another_place_is_said() {
    let agent = Agent::start().await;
    agent.register_instances("web", 1).await;
    let directory = directory("state");
    let (own, other) = (directory.join("snapshot"), directory.join("other"));
    let said = format!("\n[sources]\nsnapshot = {other:?}\n");
    for (more, there) in [("", &own), (&*said, &other)] {
        let file = directory.join("config.toml");
        fs::write(&file, more).unwrap();
        let mut command = serve(&agent.dns().to_string(), "none");
        command.args(["--admin", "none", "--config"]).arg(&file);
        command.env(
            "STATE_DIRECTORY",
            format!("{}:/nowhere", directory.display()),
        );
        let mut serving = Serving::start(command);
        assert_eq!(serving.instances().await, 1);
        serving.signal("-TERM");
        assert_eq!(serving.wait().code(), Some(0));
        assert!(fs::remove_file(there).is_ok(), "{more:?}");
        assert!(!own.exists() && !other.exists(), "{more:?}");
    }
}

#[tokio::test]
async fn systemd_is_told_of_each_step() {
    let socket = directory("notify").join("notify");
    let heard = UnixDatagram::bind(&socket).unwrap();
    heard.set_read_timeout(Some(PATIENCE)).unwrap();
    let state = || {
        let mut state = [0; 4_096];
        let length = heard.recv(&mut state).unwrap();
        String::from_utf8_lossy(&state[..length]).into_owned()
    };
    let mut command = program();
    command.env("NOTIFY_SOCKET", &socket);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "none"]);
    command.args(["--upstream", "none", "--dns", "none", "--http", "none"]);
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    let mut serving = Serving::start(command);
    assert!(state().contains("READY=1"));
    serving.signal("-HUP");
    let reloading = state();
    assert!(
        reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="),
        "{reloading}"
    );
    assert!(state().contains("READY=1"));
    serving.signal("-TERM");
    assert!(state().contains("STOPPING=1"));
    assert_eq!(serving.wait().code(), Some(0));
}

/// Hands sockets over as systemd does: from descriptor 3 on, to this very process.
const HANDING_OVER: &str = "
import os, socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', int(sys.argv[1])))
tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
tcp.bind(('127.0.0.1', int(sys.argv[1])))
tcp.listen(16)
held = [os.dup(udp.fileno()), os.dup(tcp.fileno())]
for at, descriptor in enumerate(held):
    os.dup2(descriptor, 3 + at, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')
os.execv(sys.argv[2], sys.argv[2:])
";

async fn has_a_thread_for_each_core(serving: &Serving) {
    let cores = std::thread::available_parallelism().unwrap();
    wait_for("a thread for each core", async || {
        let threads = fs::read_dir(format!("/proc/{}/task", serving.id())).unwrap();
        // One of them may end meanwhile.
        let name = |thread: io::Result<fs::DirEntry>| {
            fs::read_to_string(thread.ok()?.path().join("comm")).ok()
        };
        let is_lane = |name: &String| name.starts_with("proconsul-dns-");
        let lanes = threads.filter_map(name).filter(is_lane).count();
        (lanes == cores.get().min(64)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_address_is_listened_at_by_a_thread_for_each_core() {
    let serving = Serving::start(serve("none", "none"));
    has_a_thread_for_each_core(&serving).await;
}

#[tokio::test]
async fn sockets_that_are_handed_over_are_answered_on() {
    let port = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            break address.port();
        }
    };
    let mut command = Command::new("python3");
    command.args([
        "-c",
        HANDING_OVER,
        &port.to_string(),
        env!("CARGO_BIN_EXE_proconsul"),
    ]);
    command.args(["serve", "--admin", "none", "--upstream", "none"]);
    command.args(["--dns", "none", "--http", "none"]);
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    let serving = Serving::start(command);
    assert_eq!(serving.dns.port(), port);
    assert_eq!(serving.instances().await, 1);
    let reply = ask_tcp(serving.dns, "web.service.consul.", RecordType::A).await;
    assert_eq!(reply.unwrap().answers.len(), 1);
    // One socket is all there is: each core's thread reads it.
    has_a_thread_for_each_core(&serving).await;
}

/// The settings of a file of `packaging/`, without its comments.
fn packaged(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name);
    let text = fs::read_to_string(path).unwrap();
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[test]
fn what_is_packaged_speaks_to_the_default_address() {
    let has = |name: &str, line: &str| {
        assert!(
            packaged(name).iter().any(|own| own == line),
            "{name}: {line}"
        );
    };
    has("resolved.conf", "DNS=127.0.0.1:8653");
    has("resolved.conf", "Domains=~consul");
    has("dnsmasq.conf", "server=/consul/127.0.0.1#8653");
    has("unbound.conf", "forward-addr: 127.0.0.1@8653");
    has("proconsul.service", "ExecStart=/usr/bin/proconsul serve");
    has("proconsul.service", "ExecReload=/bin/kill -HUP $MAINPID");
    has("proconsul.service", "LimitCORE=0");
    has("proconsul.service", "NoNewPrivileges=yes");
    has("proconsul.service", "Type=notify");
    has("proconsul.service", "StateDirectory=proconsul");
    // What systemd hands over is all that it listens on.
    for way in ["ListenDatagram", "ListenStream"] {
        has("proconsul.socket", &format!("{way}=127.0.0.1:53"));
        has("proconsul.socket", &format!("{way}=127.0.0.1:8653"));
    }
    let help = program().args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("127.0.0.1:8653"), "{help}");
}

#[test]
fn systemd_understands_every_word_of_the_units_and_finds_the_service_well_confined() {
    let directory = directory("units");
    let units = ["proconsul.service", "proconsul.socket"].map(|name| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path.join("packaging").join(name)).unwrap();
        let file = directory.join(name);
        let text = text.replace("/usr/bin/proconsul", env!("CARGO_BIN_EXE_proconsul"));
        fs::write(&file, text).unwrap();
        file
    });
    let analyze = |arguments: &[&str], units: &[PathBuf]| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(arguments).args(units).output();
        let output = output
            .unwrap_or_else(|error| panic!("systemd-analyze: {error}; scripts/test installs it"));
        let told = [&output.stdout[..], &output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(output.status.success(), "{told}");
        told
    };
    // What it does not know it tells, and ignores.
    let told = analyze(&["verify", "--man=no"], &units);
    assert!(!told.contains("proconsul."), "{told}");
    // Tenths, of ten: an exposure that it calls "ok".
    let confined = ["security", "--offline=true", "--threshold=20"];
    analyze(&confined, &units[..1]);
}

#[tokio::test]
async fn the_unit_reads_the_configuration_that_its_variables_name_and_keeps_its_own_snapshot() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let unit = fs::read_to_string(root.join("packaging/proconsul.service")).unwrap();
    let (comment, settings) = unit.split_once("[Unit]").unwrap();
    assert!(settings.contains("\nEnvironmentFile=-/etc/default/proconsul\n"));
    // What its comment says is put into /etc/default/proconsul, by the comment's own words.
    let said = comment.lines().filter_map(|line| line.strip_prefix("#   "));
    let said: Vec<_> = said.filter_map(|line| line.split_once('=')).collect();
    assert_eq!(said, [("PROCONSUL_CONFIG", "/etc/proconsul.toml")]);

    let agent = Agent::start().await;
    agent.register_instances("web", 1).await;
    let state = directory("unit");
    fs::create_dir(state.join("proconsul")).unwrap();
    let own = state.join("snapshot-of-the-file");
    let file = state.join("proconsul.toml");
    let more = format!("[sources]\nsnapshot = {own:?}\n");
    let dns = agent.dns().to_string();
    let text = config(&dns, "none", "").replace("[sources]\n", &more);
    fs::write(&file, text).unwrap();
    let mut command = program();
    for line in settings.lines() {
        if let Some((name, value)) = line
            .strip_prefix("Environment=")
            .and_then(|set| set.split_once('='))
        {
            command.env(name, value.replace("%S", state.to_str().unwrap()));
        }
    }
    let mut serving = Serving::start({
        command.env(said[0].0, &file).arg("serve");
        command
    });
    assert_eq!(serving.instances().await, 1);
    serving.signal("-TERM");
    assert_eq!(serving.wait().code(), Some(0));
    assert!(state.join("proconsul/snapshot").exists() && !own.exists());
}

#[tokio::test]
async fn doctor_says_what_is_wrong_and_what_mends_it() {
    let mut agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let closed = closed_port().to_string();
    let doctor = |http: &str, more: &[&str]| {
        let dns = agent.dns().to_string();
        let mut command = program();
        command.args([
            "doctor", "--json", "--dns", &dns, "--http", http, "--stub", &closed,
        ]);
        let output = command.args(more).output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = told["checks"].as_array().unwrap().clone();
        let verdict = move |check: &str| {
            let found = checks.iter().find(|one| one["check"] == check);
            let word = |one: &serde_json::Value| one["verdict"].as_str().unwrap().to_owned();
            found.map_or_else(|| "none".to_owned(), word)
        };
        (output.status.code(), verdict)
    };
    let (code, verdict) = doctor(&agent.http(), &["web"]);
    for check in [
        "configuration",
        "DNS door",
        "HTTP door",
        "leader",
        "clock",
        "token",
        "agreement",
        "name",
        "registration",
        "checks",
    ] {
        assert_eq!(verdict(check), "ok", "{check}");
    }
    assert_eq!((code, verdict("stub")), (Some(0), "warn".to_owned()));
    let (code, verdict) = doctor(&closed, &["nosuch"]);
    assert_eq!((code, verdict("HTTP door")), (Some(1), "FAIL".to_owned()));
    assert_eq!(
        (verdict("DNS door"), verdict("name")),
        ("ok".to_owned(), "FAIL".to_owned())
    );
    let (code, verdict) = doctor("http://", &[]);
    assert_eq!(
        (code, verdict("configuration")),
        (Some(2), "FAIL".to_owned())
    );
    agent.kill();
    // Nobody to be asked is no way to find anything; a static catalog is one.
    let alone = |more: &[&str]| {
        let mut command = program();
        command.args([
            "doctor", "--dns", "none", "--http", "none", "--stub", &closed,
        ]);
        command.args(more).output().unwrap().status.code()
    };
    assert_eq!(alone(&[]), Some(2));
    assert_eq!(alone(&["--catalog", CATALOG]), Some(0));
}

/// Runs what follows with another list of groups.
const WITH_GROUPS: &str = r#"mount --bind "$1" /etc/group && shift && exec "$@""#;

#[tokio::test]
async fn root_is_given_up_once_the_ports_are_bound() {
    let groups = directory("groups").join("group");
    fs::write(&groups, "secret:x:7654:root,nobody\nother:x:7655:root\n").unwrap();
    let mut command = Command::new("unshare");
    command.env_clear().env("PATH", "/usr/bin:/bin:/sbin");
    command.args(["-m", "sh", "-c", WITH_GROUPS, "sh"]);
    command.arg(&groups).arg(env!("CARGO_BIN_EXE_proconsul"));
    command.args([
        "serve",
        "--listen",
        "127.0.0.90:53",
        "--admin",
        "none",
        "--user",
        "nobody",
    ]);
    command.args(["--upstream", "none", "--dns", "none", "--http", "none"]);
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    let serving = Serving::start(command);
    let status = fs::read_to_string(format!("/proc/{}/status", serving.id())).unwrap();
    let of = |what: &str| {
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let user = of("Uid:");
    assert!(
        user.iter().all(|id| *id == user[0] && id != "0"),
        "{user:?}"
    );
    let own = &of("Gid:")[0];
    assert_ne!(own, "0");
    assert!(of("Gid:").iter().all(|id| id == own));
    // What they may read is read again: a token file of mode 640.
    let mut groups = of("Groups:");
    groups.retain(|id| id != own);
    assert_eq!(groups, ["7654"]);
    for thread in fs::read_dir(format!("/proc/{}/task", serving.id())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(!status.contains("Uid:\t0"), "{status}");
        assert!(status.contains("7654"), "{status}");
    }
    assert_eq!(serving.instances().await, 1);

    let mut command = program();
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "none",
        "--user",
        "no-such-user",
    ]);
    let refused = command
        .args(["--dns", "none", "--http", "none"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no such user"));
}

#[tokio::test]
async fn serve_takes_as_many_descriptors_as_it_may_have() {
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64:512", env!("CARGO_BIN_EXE_proconsul"), "serve"]);
    command.args(["--listen", "127.0.0.1:0", "--admin", "none"]);
    command.args(["--dns", "none", "--http", "none", "--upstream", "none"]);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    let serving = Serving::start(command);
    let limits = fs::read_to_string(format!("/proc/{}/limits", serving.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = line.unwrap().split_whitespace().skip(3).collect();
    assert_eq!(words[..2], ["512", "512"], "{limits}");
}

#[tokio::test]
async fn an_upstream_that_is_the_stub_itself_is_told_at_once() {
    let own = closed_port();
    let mut command = support::serve_at(own, "none", "none");
    command.args(["--upstream", &own.to_string(), "--admin", "none"]);
    let serving = Serving::start(command);
    let told = serving.warnings.join("\n");
    assert!(
        told.contains("this very server") && told.contains(&own.to_string()),
        "{told}"
    );
    // And nobody is asked in a circle.
    let reply = ask_udp(serving.dns, "www.example.", RecordType::A).await;
    assert_eq!(reply.unwrap().metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn clients_that_use_up_all_descriptors_do_not_keep_others_from_an_answer() {
    let mut command = Command::new("prlimit");
    command.args(["--nofile=48:48", env!("CARGO_BIN_EXE_proconsul"), "serve"]);
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "none",
        "--upstream",
        "none",
    ]);
    command.args(["--dns", "none", "--http", "none"]);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    let serving = Serving::start(command);
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(std::net::TcpStream::connect(serving.dns).unwrap());
    }
    for _ in 0..20 {
        assert_eq!(serving.instances().await, 1);
    }
    drop(clients);
    wait_for("an answer over TCP again", async || {
        let reply = ask_tcp(serving.dns, "web.service.consul.", RecordType::A).await?;
        (reply.answers.len() == 1).then_some(())
    })
    .await;
}
