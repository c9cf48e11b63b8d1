//! Files that are not what they should be, as the program meets them: tokens, snapshots and
//! configurations that are links, devices, pipes, too large, replaced, or kept by somebody
//! else.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

use hickory_proto::rr::RecordType;
use support::{
    Folder, Serving, closed_port,
    http::{ScriptedHttp, entries, ok},
    http_client, serve, wait_for,
};

/// An agent that knows every name.
fn consul() -> ScriptedHttp {
    ScriptedHttp::start(|asked| {
        let name = asked.service();
        vec![ok("", &entries(name, &[80]))]
    })
}

fn lookup(http: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear().env("RUST_LOG", "warn");
    command.args([
        "lookup", "web", "-o", "short", "--dns", "none", "--http", http,
    ]);
    command.args(more).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The token that the agent was shown last.
fn shown(server: &ScriptedHttp) -> Option<String> {
    let asked = server.asked();
    let about = asked.iter().rfind(|asked| asked.is_about("web"));
    about.unwrap().header("x-consul-token").map(Into::into)
}

#[test]
fn a_token_file_is_read_wherever_it_leads_and_one_that_is_open_to_all_is_told() {
    let (folder, server) = (Folder::new("files-token"), consul());
    let token = folder.path("token");
    let real = folder.path("real");
    fs::write(&real, "good-token\n").unwrap();
    symlink(&real, &token).unwrap();
    for (mode, told) in [(0o600, false), (0o640, false), (0o644, true), (0o666, true)] {
        fs::set_permissions(&real, Permissions::from_mode(mode)).unwrap();
        let output = lookup(&server.url(), &["--token-file", token.to_str().unwrap()]);
        assert_eq!(text(&output.stdout), "10.0.0.1:80\n", "{mode:o}");
        assert_eq!(shown(&server).as_deref(), Some("good-token"), "{mode:o}");
        let said = text(&output.stderr);
        assert_eq!(said.contains("set its mode to 640"), told, "{said}");
        assert!(!said.contains("good-token"), "{said}");
    }
}

#[test]
fn a_stub_tells_warnings_by_default_and_what_runs_once_does_not() {
    let (folder, server) = (Folder::new("files-warned"), consul());
    let token = folder.path("token");
    fs::write(&token, "good-token\n").unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o644)).unwrap();
    let mut command = serve("none", &server.url());
    command
        .args(["--admin", "none", "--token-file"])
        .arg(&token);
    let serving = Serving::start(command);
    let warnings = &serving.warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("set its mode to 640"), "{warnings:?}");
    let mut lookup = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    lookup
        .env_clear()
        .args(["lookup", "web", "--dns", "none", "--http", &server.url()]);
    let output = lookup.arg("--token-file").arg(&token).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success() && !said.contains("WARN"), "{said}");
}

#[test]
fn a_token_that_cannot_be_had_is_told_with_its_file_and_nobody_is_asked_without_it() {
    let (folder, server) = (Folder::new("files-no-token"), consul());
    let pipe = folder.path("pipe");
    nix_mkfifo(&pipe);
    let large = folder.path("large");
    File::create(&large).unwrap().set_len(1 << 40).unwrap();
    let words = folder.path("words");
    fs::write(&words, "two hush-words").unwrap();
    for file in [
        folder.path("missing"),
        folder.0.clone(),
        pipe,
        large,
        words,
        "/dev/zero".into(),
    ] {
        let file = file.to_str().unwrap();
        let output = lookup(&server.url(), &["--token-file", file]);
        assert!(!output.status.success(), "{file}");
        let said = text(&output.stderr);
        assert!(said.contains(file) && !said.contains("hush"), "{said}");
    }
    assert_eq!(server.times("web"), 0);
}

#[test]
fn a_token_of_the_environment_wins_over_the_configuration_and_a_flag_over_both() {
    let folder = Folder::new("files-order");
    let secret = |name: &str, token: &str| {
        let file = folder.path(name);
        fs::write(&file, token).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        file
    };
    let (low, high, empty) = (
        secret("low", "low"),
        secret("high", "high"),
        secret("empty", ""),
    );
    let config = folder.path("config.toml");
    fs::write(&config, format!("[sources]\ntoken-file = {low:?}\n")).unwrap();
    for (variable, flag, sent) in [
        (None, None, Some("low")),
        (Some(("CONSUL_HTTP_TOKEN", "middle")), None, Some("middle")),
        (
            Some(("CONSUL_HTTP_TOKEN_FILE", high.to_str().unwrap())),
            None,
            Some("high"),
        ),
        (
            Some(("CONSUL_HTTP_TOKEN", "middle")),
            Some(&high),
            Some("high"),
        ),
        (Some(("CONSUL_HTTP_TOKEN", "middle")), Some(&empty), None),
    ] {
        let server = consul();
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().envs(variable);
        command.args(["lookup", "web", "--dns", "none", "--http", &server.url()]);
        command.arg("--config").arg(&config);
        if let Some(file) = flag {
            command.arg("--token-file").arg(file);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{variable:?} {flag:?}: {output:?}");
        assert_eq!(shown(&server).as_deref(), sent, "{variable:?} {flag:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_replaced_in_one_step_is_shown_from_then_on() {
    let (folder, server) = (Folder::new("files-replaced"), consul());
    let put = |token: &str| {
        // As those who keep secrets for containers do: a link is put over a link.
        let file = folder.path(token);
        fs::write(&file, token).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        symlink(&file, folder.path("next")).unwrap();
        fs::rename(folder.path("next"), folder.path("token")).unwrap();
    };
    put("one");
    let resolver = proconsul::Resolver::builder()
        .dns("none")
        .http(&server.url())
        .token_file(folder.path("token"))
        .ttl_floor(std::time::Duration::ZERO)
        .build()
        .unwrap();
    for token in ["one", "two", "three"] {
        put(token);
        // A slow machine is given what was known first.
        wait_for("the token", async || {
            resolver.lookup("web").await.unwrap();
            (shown(&server).as_deref() == Some(token)).then_some(())
        })
        .await;
    }
    fs::remove_file(folder.path("token")).unwrap();
    resolver.lookup("web").await.unwrap();
    assert_eq!(
        shown(&server).as_deref(),
        Some("three"),
        "the last good one"
    );
}

fn nix_mkfifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn what_is_no_snapshot_of_ours_is_neither_read_nor_waited_for() {
    let (folder, server) = (Folder::new("files-snapshot"), consul());
    let closed = format!("http://{}", closed_port());
    let good = folder.path("good");
    let saved = lookup(&server.url(), &["--snapshot", good.to_str().unwrap()]);
    assert!(saved.status.success());
    let whole = fs::read(&good).unwrap();
    let copy = |name: &str, bytes: &[u8], mode: u32| {
        let path = folder.path(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    let link = folder.path("link");
    symlink(&good, &link).unwrap();
    let pipe = folder.path("pipe");
    nix_mkfifo(&pipe);
    let socket = folder.path("socket");
    let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let large = copy("large", &whole, 0o600);
    File::options()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len(4 << 30)
        .unwrap();
    let versioned = |version: &str| {
        let head = format!("proconsul-snapshot {version} ");
        text(&whole).replacen("proconsul-snapshot 1 ", &head, 1)
    };
    let others = copy("others", &whole, 0o666);
    let older = copy("older", versioned("0").as_bytes(), 0o600);
    let newer = copy("newer", versioned("2").as_bytes(), 0o600);
    let half = copy("half", &whole[..whole.len() / 2], 0o600);
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let flipped = copy("flipped", &flipped, 0o600);
    let twin = copy("twin", &whole, 0o600);
    fs::hard_link(&twin, folder.path("twin-2")).unwrap();
    let ours = copy("ours", &whole, 0o600);
    assert!(
        lookup(&closed, &["--snapshot", ours.to_str().unwrap()])
            .status
            .success()
    );
    for (path, why) in [
        (&link, "is a link"),
        (&pipe, "is not a file"),
        (&socket, "is not a file"),
        (&folder.0, "is not a file"),
        (&"/dev/zero".into(), "is not a file"),
        (&large, "is larger"),
        (&others, "may be written by others"),
        (&older, "of version 0"),
        (&newer, "of version 2"),
        (&half, "damaged"),
        (&flipped, "damaged"),
        (&twin, "has a second name"),
    ] {
        let path = path.to_str().unwrap();
        let output = lookup(&closed, &["--snapshot", path]);
        assert_eq!(output.status.code(), Some(5), "{path}: {output:?}");
        assert!(text(&output.stderr).contains(why), "{path}: {output:?}");
    }
    // What is found is given, whatever is there; what is no file stays.
    for path in [&pipe, &socket] {
        let output = lookup(&server.url(), &["--snapshot", path.to_str().unwrap()]);
        assert_eq!(text(&output.stdout), "10.0.0.1:80\n");
        let kind = fs::symlink_metadata(path).unwrap().file_type();
        assert!(kind.is_fifo() || kind.is_socket(), "{kind:?}");
    }
}

#[test]
fn what_may_not_be_a_snapshot_of_ours_is_told_and_not_lost() {
    let (folder, server) = (Folder::new("files-kept"), consul());
    let program = |arguments: &[&str], path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().args(arguments);
        command.args(["--dns", "none", "--http", &server.url(), "--snapshot"]);
        command.arg(path).stdin(Stdio::null()).output().unwrap()
    };
    let names = || {
        let names = fs::read_dir(&folder.0).unwrap();
        let mut names: Vec<_> = names.map(|one| one.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let notes = folder.path("notes");
    fs::write(&notes, "my notes\n").unwrap();
    let link = folder.path("link");
    symlink(&notes, &link).unwrap();
    let before = names();
    for (path, why) in [(&notes, "it is no snapshot"), (&link, "is a link")] {
        let was = fs::read(path).unwrap();
        for arguments in [
            &["lookup", "web"][..],
            &["lookup", "web", "SRV"],
            &["pick", "web"],
            &["explain", "web"],
        ] {
            let output = program(arguments, path);
            assert!(output.status.success(), "{arguments:?} {output:?}");
            let told = text(&output.stderr);
            assert_eq!(told.matches(why).count(), 1, "{arguments:?}: {told}");
            assert!(told.contains("neither used nor replaced"), "{told}");
        }
        assert_eq!(fs::read(path).unwrap(), was);
        let checked = program(&["config", "check"], path);
        assert_eq!(checked.status.code(), Some(2), "{checked:?}");
        assert!(text(&checked.stderr).contains(why), "{checked:?}");
    }
    assert!(link.is_symlink());
    assert_eq!(names(), before, "nothing is left beside them");
}

#[test]
fn a_snapshot_of_ours_that_is_of_no_use_makes_room_and_is_not_lost() {
    let (folder, server) = (Folder::new("files-room"), consul());
    let (ours, aside) = (folder.path("ours"), folder.path("ours.refused"));
    let program = |arguments: &[&str], path: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().args(arguments);
        command.args(["--dns", "none", "--http", &server.url(), "--snapshot"]);
        command.arg(path).args(more);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let is_moved = |why: &str, more: &[&str]| {
        let was = fs::read(&ours).unwrap();
        let checked = program(&["config", "check"], &ours, more);
        assert!(checked.status.success(), "{checked:?}");
        let told = text(&checked.stderr);
        assert!(told.contains(why) && told.contains("will be"), "{told}");
        assert_eq!(fs::read(&ours).unwrap(), was);
        for is_told in [true, false] {
            let output = program(&["lookup", "web"], &ours, more);
            assert!(output.status.success(), "{output:?}");
            let told = text(&output.stderr);
            assert_eq!(told.contains(why), is_told, "{told}");
            assert_eq!(told.contains("the snapshot"), is_told, "{told}");
        }
        assert_eq!(fs::read(&aside).unwrap(), was);
        let mode = fs::metadata(&ours).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    };
    fs::write(&ours, "proconsul-snapshot 1 5 abc\nhello").unwrap();
    is_moved("damaged", &[]);
    fs::set_permissions(&ours, Permissions::from_mode(0o660)).unwrap();
    is_moved("may be written by others", &[]);
    is_moved("of the domain consul", &["--domain", "corp.example"]);
    // It may be there where it is to run.
    let nowhere = Path::new("/nosuch/folder/snapshot");
    let checked = program(&["config", "check"], nowhere, &[]);
    assert!(checked.status.success(), "{checked:?}");
    let told = text(&checked.stderr);
    assert!(told.contains("/nosuch/folder:"), "{told}");
}

#[tokio::test]
async fn a_stub_says_once_that_what_it_is_given_is_no_snapshot() {
    let (folder, server) = (Folder::new("files-once"), consul());
    let notes = folder.path("notes");
    fs::write(&notes, "my notes\n").unwrap();
    let mut command = serve("none", &server.url());
    command.args(["--admin", "127.0.0.1:0", "--snapshot"]);
    let serving = Serving::start({
        command.arg(&notes);
        command
    });
    for (name, errors) in [("web", 2), ("db", 3)] {
        let name = format!("{name}.service.consul.");
        wait_for("an answer", async || {
            support::ask_udp(serving.dns, &name, RecordType::A).await
        })
        .await;
        wait_for("the error", async || {
            (snapshot_errors(&serving).await >= errors).then_some(())
        })
        .await;
    }
    serving.signal("-TERM");
    let mut said = Vec::new();
    while let Some(line) = serving.said_before_it_ended() {
        said.push(line);
    }
    let warned = said.iter().filter(|line| line.contains(" WARN "));
    assert_eq!(warned.count(), 1, "{said:?}");
    assert_eq!(fs::read(&notes).unwrap(), b"my notes\n");
}

async fn snapshot_errors(serving: &Serving) -> u32 {
    let url = format!("http://{}/metrics", serving.admin);
    let metrics = http_client().get(url).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let mut lines = metrics.lines();
    let counted = lines.find_map(|line| line.strip_prefix("proconsul_snapshot_errors_total "));
    counted.unwrap().parse().unwrap()
}

#[tokio::test]
async fn of_two_that_share_a_snapshot_the_first_keeps_it_and_both_answer() {
    let (folder, server) = (Folder::new("files-shared"), consul());
    let snapshot = folder.path("snapshot");
    let start = || {
        let mut command = serve("none", &server.url());
        command.args(["--admin", "127.0.0.1:0", "--snapshot"]);
        command.arg(&snapshot);
        Serving::start(command)
    };
    let first = start();
    assert_eq!(first.instances().await, 1);
    wait_for("the first snapshot", async || {
        snapshot.exists().then_some(())
    })
    .await;
    let mut second = start();
    assert_eq!(second.instances().await, 1);
    wait_for("the second's error", async || {
        (snapshot_errors(&second).await > 0).then_some(())
    })
    .await;
    assert_eq!(snapshot_errors(&first).await, 0);
    assert_eq!((first.instances().await, second.instances().await), (1, 1));
    second.signal("-TERM");
    assert!(second.says().contains("kept by another process"));
    assert_eq!(second.wait().code(), Some(0));
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused_at_the_start() {
    let folder = Folder::new("files-config");
    let serve = "[serve]\nlisten = ['127.0.0.1:0']\nadmin = 'none'\n";
    let large = format!("{serve}# {}\n", "x".repeat(1 << 20));
    let nested = format!("x = {}1{}\n", "[".repeat(5_000), "]".repeat(5_000));
    let cases: [(&str, &str, &[&str]); 15] = [
        (
            "an unknown key",
            "[serve]\nlisen = []\n",
            &["line 2", "lisen"],
        ),
        ("an unknown table", "[server]\n", &["line 1", "server"]),
        (
            "a key twice",
            "[cache]\nbytes = 1\nbytes = 2\n",
            &["line 3", "duplicate"],
        ),
        (
            "a time without its unit",
            "[sources]\ntimeout = '500'\n",
            &["line 2", "500ms"],
        ),
        (
            "a time as a number",
            "[sources]\ntimeout = 500\n",
            &["line 2"],
        ),
        (
            "a size with a unit",
            "[cache]\nbytes = '16MiB'\n",
            &["line 2"],
        ),
        ("an empty list", "[sources]\ndns = []\n", &["DNS interface"]),
        (
            "no address to listen on",
            "[serve]\nlisten = []\n",
            &["line 2", "an empty list"],
        ),
        (
            "no upstream",
            "[serve]\nupstream = []\n",
            &["line 2", "[\"none\"]"],
        ),
        (
            "no network to trust",
            "[serve]\ntrust = []\n",
            &["line 2", "this machine alone"],
        ),
        (
            "an upstream that is a name",
            "[serve]\nupstream = ['ns.example']\n",
            &["ns.example"],
        ),
        (
            "a domain without a server",
            "[serve]\nupstream = ['corp.example=']\n",
            &["--upstream"],
        ),
        (
            "none beside others",
            "[serve]\nupstream = ['none', 'system']\n",
            &["none"],
        ),
        ("a megabyte", &large, &["larger than 1 MiB"]),
        ("depth", &nested, &["line 1"]),
    ];
    for (name, config, told) in cases {
        let file = folder.path("config.toml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command.env_clear().args(["serve", "--config"]).arg(&file);
        command.args(["--admin", "none", "--listen", "127.0.0.1:0"]);
        let output = ended(&mut command, name);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        for told in told {
            assert!(said.contains(told), "{name}: {said}");
        }
    }
    let mut endless = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    endless.env_clear().args(["serve", "--config", "/dev/zero"]);
    let output = ended(&mut endless, "a file without end");
    assert!(text(&output.stderr).contains("larger"), "{output:?}");
}

/// What it said, where it ends by itself.
fn ended(command: &mut Command, name: &str) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..500 {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("{name}: taken: {:?}", child.wait_with_output());
}
