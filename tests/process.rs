//! What happens to the process itself: signals, pauses, ports and rights it does not get, a
//! runtime that ends, futures that are dropped wherever they wait.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    fs,
    future::{Future, poll_fn},
    io::{Read as _, Write as _, pipe},
    net::UdpSocket,
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use proconsul::{ErrorKind, Resolver};
use serde_json::json;
use support::{
    Agent, Folder, PATIENCE, Serving, SilentDns, ask_udp, closed_port,
    http::{ScriptedHttp, Step, entries, ok},
    serve, serve_at, signal, wait_for,
};
use tokio::{
    runtime::{Handle, Runtime},
    time::{Instant, sleep, timeout},
};

fn question(name: &str) -> Vec<u8> {
    let mut question = Message::query();
    let name = Name::from_ascii(name).unwrap();
    question.add_query(Query::query(name, RecordType::A));
    question.to_vec().unwrap()
}

fn resolver(http: &str) -> Resolver {
    let builder = Resolver::builder().dns("none").http(http);
    builder.ttl_floor(Duration::ZERO).build().unwrap()
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_the_first_waits_for_what_is_due() {
    for again in [false, true] {
        let silent = SilentDns::start();
        let mut serving = Serving::start({
            let mut command = serve(&silent.address().to_string(), "none");
            command.args(["--admin", "none"]);
            command
        });
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect(serving.dns).unwrap();
        client.send(&question("web.service.consul.")).unwrap();
        while silent.questions().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        let start = Instant::now();
        serving.signal("-TERM");
        if again {
            // Two that come together are one.
            while !serving.has_ended() {
                serving.signal("-TERM");
                sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(serving.wait().code(), Some(1));
            assert!(serving.says().contains("twice"));
        } else {
            assert_eq!(serving.wait().code(), Some(0));
            let took = start.elapsed();
            let due = Duration::from_millis(400)..Duration::from_secs(5);
            assert!(due.contains(&took), "{took:?}");
            assert!(client.recv(&mut [0; 512]).is_ok(), "it was due");
        }
    }
}

/// Runs to its end: what cannot be bound is told at once.
/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The arguments of a program that prints more than a pipe holds, and has begun to: nobody reads
/// the rest.
async fn ends_though_nobody_reads(arguments: &[&str]) {
    let mut command = program();
    let command = command.args(arguments).stdin(Stdio::null());
    let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut stdout = running.0.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    signal(running.0.id(), "TERM");
    let what = format!("the end of {arguments:?}");
    let status = wait_for(&what, async || running.0.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0), "{arguments:?}");
}

#[tokio::test]
async fn a_reader_that_stops_keeps_no_signal_from_what_prints_changes() {
    let folder = Folder::new("process-unread");
    let snapshot = folder.path("snapshot");
    let ports: Vec<u16> = (1..=2_000).collect();
    let web = ScriptedHttp::start(move |_| vec![ok("", &entries("web", &ports))]);
    let snapshot_flag = snapshot.to_str().unwrap();
    let watch = ["watch", "web", "--json", "--dns", "none"];
    let more = ["--http", &web.url(), "--snapshot", snapshot_flag];
    ends_though_nobody_reads(&[watch.as_slice(), &more].concat()).await;
    assert!(snapshot.exists());
    let value = "A".repeat(400_000);
    let entry = json!([{ "Key": "k", "Value": value, "Flags": 0, "CreateIndex": 1,
                         "ModifyIndex": 1, "LockIndex": 0 }]);
    let kv = ScriptedHttp::start(move |_| vec![ok("", &entry.to_string())]);
    ends_though_nobody_reads(&["kv", "watch", "k", "--http", &kv.url()]).await;
}

#[tokio::test]
async fn a_stub_whose_stderr_nobody_reads_answers_and_ends() {
    let (reader, mut writer) = pipe().unwrap();
    let full = writer.try_clone().unwrap();
    // It fills the pipe, and waits until the reader goes.
    thread::spawn(move || while writer.write_all(&[b' '; 4096]).is_ok() {});
    let listen = closed_port();
    let mut command = serve_at(listen, "none", "none");
    command.args(["--admin", "none", "--upstream", "none"]);
    command.env("PROCONSUL_DEFAULT_WEB", "10.0.0.1:80");
    let mut running = Running(command.stderr(full).spawn().unwrap());
    let id = running.0.id();
    let answered = async || {
        let reply = ask_udp(listen, "web.service.consul.", RecordType::A).await;
        reply.filter(|reply| reply.answers.len() == 1).map(drop)
    };
    wait_for("an answer", answered).await;
    for _ in 0..3 {
        signal(id, "HUP");
        wait_for("an answer", answered).await;
    }
    signal(id, "TERM");
    let status = wait_for("its end", async || running.0.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
    drop(reader);
}

fn refused(program: &mut Command, listen: &[&str]) -> Output {
    program.args(["serve", "--admin", "none", "--upstream", "none"]);
    program.args(["--dns", "none", "--http", "none"]);
    for address in listen {
        program.args(["--listen", address]);
    }
    let output = program.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    output
}

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    program.env_clear();
    program
}

#[test]
fn where_one_address_cannot_be_had_none_is_answered_on() {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = tcp.local_addr().unwrap().to_string();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken_udp = udp.local_addr().unwrap().to_string();
    let (free, other) = (closed_port().to_string(), closed_port().to_string());
    for (listen, named) in [
        (vec![&*free, &*other, &*taken], &taken),
        (vec![&*taken_udp, &*free], &taken_udp),
        (vec![&*free, &*free], &free),
        (vec![&*free, "192.0.2.1:53"], &"192.0.2.1:53".to_owned()),
    ] {
        let output = refused(&mut program(), &listen);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(named.as_str()), "{listen:?}: {said}");
        assert!(!said.contains("serving"), "{listen:?}: {said}");
    }
}

#[test]
fn a_low_port_without_the_right_to_it_names_the_right() {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.args(["--inh-caps=-all", "--bounding-set=-all"]);
    command.arg(env!("CARGO_BIN_EXE_proconsul")).env_clear();
    command.env("PATH", "/usr/bin:/bin");
    let output = refused(&mut command, &["127.0.0.92:53"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("127.0.0.92:53") && said.contains("CAP_NET_BIND_SERVICE"),
        "{said}"
    );
}

#[test]
fn whoever_gave_root_up_has_no_right_left_and_gets_none_back() {
    let mut command = serve("none", "none");
    command.args(["--admin", "none", "--user", "nobody"]);
    let serving = Serving::start(command);
    let tasks = format!("/proc/{}/task", serving.id());
    let mut threads = 0;
    for thread in fs::read_dir(tasks).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for line in [
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(status.contains(line), "{line}: {status}");
        }
        threads += 1;
    }
    assert!(threads > 2);
}

/// What the dynamic linker is told, so that a program is on a machine that is suspended for as
/// many seconds as `file` says, as soon as it is there.
#[cfg(target_os = "linux")]
fn suspended_by(file: &Path, folder: &Folder) -> [(&'static str, PathBuf); 2] {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/suspended.c");
    let library = folder.path("suspended.so");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]);
    let compiled = compile.arg(&library).arg(source).status();
    assert!(
        compiled.unwrap().success(),
        "the linker that Rust needs compiles C as well"
    );
    [("LD_PRELOAD", library), ("SUSPENDED", file.to_owned())]
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn what_was_heard_before_the_machine_was_suspended_is_asked_for_anew() {
    // Nothing else has it asked for again.
    let long = json!({ "dns_config": { "service_ttl": { "*": "600s" } } });
    let agent = Agent::builder().config(long).start().await;
    agent.register_instances("web", 1).await;
    let folder = Folder::new("process-suspended");
    let file = folder.path("now");
    let serving = Serving::start({
        let mut command = serve(&agent.dns().to_string(), "none");
        command.args(["--admin", "none"]);
        command.envs(suspended_by(&file, &folder));
        command
    });
    assert_eq!(serving.instances().await, 1);
    agent.register_instances("web", 3).await;
    agent.wait_for_instances("web", 3).await;
    for _ in 0..5 {
        assert_eq!(serving.instances().await, 1, "it is remembered");
        sleep(Duration::from_millis(50)).await;
    }
    fs::write(&file, "3600").unwrap();
    // Within a few milliseconds; what is known is given while a slow agent is asked.
    wait_for("what holds since", async || {
        (serving.instances().await == 3).then_some(())
    })
    .await;
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn what_is_followed_over_connections_that_a_suspended_machine_lost_is_asked_for_anew() {
    let now = Arc::new(Mutex::new(entries("web", &[80])));
    let told = Arc::clone(&now);
    let server = ScriptedHttp::of_web(move |asked| match asked.what().contains("index=7") {
        // Nobody is there any more.
        true => vec![Step::Hang],
        false => vec![ok("X-Consul-Index: 7\r\n", &told.lock().unwrap())],
    });
    let folder = Folder::new("process-suspended-followed");
    let file = folder.path("now");
    let serving = Serving::start({
        let mut command = serve("none", &server.url());
        command.args(["--admin", "none"]);
        command.envs(suspended_by(&file, &folder));
        command
    });
    // On one address.
    let instances = async || {
        let reply = ask_udp(serving.dns, "web.service.consul.", RecordType::SRV).await;
        reply.map(|reply| reply.answers.len())
    };
    wait_for("who follows", async || {
        assert_eq!(instances().await, Some(1));
        let asked = server.asked();
        asked
            .iter()
            .any(|one| one.what().contains("index=7"))
            .then_some(())
    })
    .await;
    *now.lock().unwrap() = entries("web", &[80, 81, 82]);
    fs::write(&file, "20").unwrap();
    // Nobody asks before the agent has said that it is well.
    sleep(Duration::from_secs(4)).await;
    assert_eq!(instances().await, Some(3));
}

#[tokio::test]
async fn after_a_pause_answers_are_right_and_nobody_is_stormed() {
    let server = ScriptedHttp::start(|asked| {
        let name = asked.service();
        vec![ok("", &entries(name, &[80]))]
    });
    let serving = Serving::start({
        let mut command = serve("none", &server.url());
        command.args(["--admin", "none"]);
        command
    });
    assert_eq!(serving.instances().await, 1);
    let before = server.asked().len();
    serving.signal("-STOP");
    // All that clients ask meanwhile waits in the socket.
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(serving.dns).unwrap();
            for name in ["web.service.consul.", "new.service.consul."] {
                for _ in 0..5 {
                    client.send(&question(name)).unwrap();
                }
            }
            client
        })
        .collect();
    sleep(Duration::from_secs(3)).await;
    serving.signal("-CONT");
    for name in ["web.service.consul.", "new.service.consul."] {
        let start = Instant::now();
        let reply = ask_udp(serving.dns, name, RecordType::A).await.unwrap();
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NoError,
            "{name}"
        );
        assert_eq!(reply.answers.len(), 1, "{name}");
        assert!(start.elapsed() < Duration::from_secs(1), "{name}");
    }
    sleep(Duration::from_millis(500)).await;
    let asked = server.asked().len() - before;
    assert!(asked <= 12, "400 questions of clients made {asked} of ours");
    drop(clients);
}

/// Polls a future so often, and then drops it. Whether it was done by then.
async fn dropped_after<F: Future>(polls: usize, future: F) -> bool {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        future.as_mut().poll(context).map(|_| true)
    })
    .await
}

#[tokio::test]
async fn a_future_may_be_dropped_wherever_it_waits() {
    let server = ScriptedHttp::start(|asked| {
        let name = asked.service();
        // In pieces, so that there is more to wait for.
        let body = entries(name, &[80]);
        let (one, other) = body.split_at(body.len() / 2);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let pause = Step::Pause(Duration::from_millis(1));
        let say = |text: &str| Step::Say(text.into());
        vec![
            say(&head[..20]),
            pause.clone(),
            say(&head[20..]),
            pause.clone(),
            say(one),
            pause,
            say(other),
        ]
    });
    let tasks = Handle::current().metrics();
    let file = std::env::temp_dir().join(format!("proconsul-dropped-{}", std::process::id()));
    let builder = Resolver::builder().dns("none").http(&server.url());
    let resolver = builder.snapshot(&file).build().unwrap();
    let mut all_done = 0;
    for polls in 0..12 {
        // A name of its own, so that each has to ask.
        let name = format!("web{polls}");
        let mut done = dropped_after(polls, resolver.lookup(&*name)).await;
        let service = resolver.service(&*name).unwrap();
        done &= dropped_after(polls, service.ready()).await;
        done &= dropped_after(polls, service.pick()).await;
        done &= dropped_after(polls, resolver.save_snapshot()).await;
        done &= dropped_after(polls, resolver.instances(&name)).await;
        done &= dropped_after(polls, resolver.services()).await;
        all_done += usize::from(done);
        drop(service);
        // Whoever comes after them gets what there is.
        let answer = timeout(PATIENCE, resolver.lookup(&*name)).await.unwrap();
        assert_eq!(answer.unwrap().endpoints().len(), 1, "{polls} polls");
        timeout(PATIENCE, resolver.save_snapshot())
            .await
            .unwrap()
            .unwrap();
    }
    assert!(all_done > 0, "none was polled to its end");
    // Nor is anything left of them.
    drop(resolver);
    wait_for("the end of all tasks", async || {
        (tasks.num_alive_tasks() == 0).then_some(())
    })
    .await;
    fs::remove_file(&file).unwrap();
    fs::remove_file(file.with_extension("lock")).unwrap();
}

#[tokio::test]
async fn a_resolver_that_is_dropped_while_all_ask_leaves_nothing_running() {
    let silent = SilentDns::start();
    let tasks = Handle::current().metrics();
    let resolver = Resolver::builder()
        .dns(&silent.address().to_string())
        .http("none")
        .build()
        .unwrap();
    let callers: Vec<_> = (0..200)
        .map(|at| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.lookup(format!("web{}", at % 20)).await })
        })
        .collect();
    let service = resolver.service("web").unwrap();
    sleep(Duration::from_millis(100)).await;
    assert!(tasks.num_alive_tasks() > 200);
    drop((resolver, service));
    for caller in callers {
        caller.abort();
    }
    // A question in the air ends with its time, 1 s.
    let ended = async || (tasks.num_alive_tasks() == 0).then_some(());
    let all = wait_for("the end of all tasks", ended);
    assert!(timeout(Duration::from_secs(5), all).await.is_ok());
}

#[test]
fn a_question_that_went_down_with_its_runtime_is_asked_anew_in_the_next() {
    let hangs = Arc::new(AtomicBool::new(true));
    let hanging = Arc::clone(&hangs);
    let server = ScriptedHttp::of_web(move |_| match hanging.load(Ordering::SeqCst) {
        true => vec![Step::Hang],
        false => vec![ok("", &entries("web", &[80]))],
    });
    let resolver = resolver(&server.url());
    let first = Runtime::new().unwrap();
    for _ in 0..50 {
        let resolver = resolver.clone();
        first.spawn(async move { resolver.lookup("web").await });
    }
    while server.times("web") == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    hangs.store(false, Ordering::SeqCst);
    first.shutdown_background();
    let second = Runtime::new().unwrap();
    let answer = second.block_on(async {
        let found = wait_for("an answer", async || resolver.lookup("web").await.ok());
        timeout(PATIENCE, found).await.unwrap()
    });
    assert_eq!(answer.endpoints().len(), 1);
}

#[test]
fn a_question_in_a_runtime_that_stands_still_keeps_nobody_waiting_without_end() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    // It has nothing to leave a connection open for, which stands still too.
    let server = ScriptedHttp::start(|_| vec![Step::Hang]);
    let limit = Duration::from_millis(500);
    let builder = Resolver::builder().dns("none").http(&server.url());
    let resolver = builder.timeout(limit).build().unwrap();
    let (still, other) = (runtime(), runtime());
    let left =
        still.block_on(async { timeout(Duration::from_millis(50), resolver.lookup("web")).await });
    assert!(left.is_err(), "{left:?}");
    // From now on nobody drives it, and it is not shut down either.
    let (waited, error) = other.block_on(async {
        let start = Instant::now();
        let told = timeout(PATIENCE, resolver.lookup("web")).await;
        (start.elapsed(), told.expect("its time limit").unwrap_err())
    });
    assert!(waited < 2 * limit, "{waited:?}");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    // Whoever asks when no look-up can still be under way starts anew.
    let asked = server.times("web");
    let error = other.block_on(async {
        sleep(limit).await;
        resolver.lookup("web").await.unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(!error.attempts().is_empty());
    assert_eq!(server.times("web"), asked + 1);
}
