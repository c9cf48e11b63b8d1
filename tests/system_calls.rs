//! The kernel says no: each write of the snapshot is a place to be killed at and a place to
//! fail at, and each call of the stub fails now and then. Played by `strace`, which answers
//! system calls in the kernel's place.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

#[path = "support/script.rs"]
mod script;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use support::{
    Folder, Serving, closed_port, framed,
    http::{ScriptedHttp, entries, ok},
    http_client, serve, signal, wait_for,
};
use tokio::time::Instant;

/// With a snapshot in it.
impl Folder {
    fn snapshot(&self) -> PathBuf {
        self.path("snapshot")
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// `strace` with all calls that touch the snapshot, the files beside it and its folder.
    fn strace(&self, fault: &str) -> Command {
        let mut command = Command::new("strace");
        command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", fault]);
        for file in ["snapshot", "snapshot.new", "snapshot.lock"] {
            command.arg("-P").arg(self.path(file));
        }
        command.arg("-P").arg(&self.0);
        command.arg(env!("CARGO_BIN_EXE_proconsul")).env_clear();
        command
    }
}

/// Consul with one instance of whatever is asked for.
fn consul() -> ScriptedHttp {
    ScriptedHttp::start(|asked| {
        let name = asked.service();
        vec![ok("", &entries(name, &[80]))]
    })
}

fn looked_up(mut command: Command, name: &str, http: &str, snapshot: &Path) -> Output {
    // Whoever is traced is slow.
    command.args(["lookup", name, "--dns", "none", "--timeout", "20s"]);
    command.args(["--http", http, "--snapshot"]).arg(snapshot);
    command.stdin(Stdio::null()).output().unwrap()
}

fn is_found(output: &Output) -> bool {
    let told = String::from_utf8_lossy(&output.stdout);
    output.status.success() && told.contains("10.0.0.1")
}

fn plain() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear();
    command
}

/// The calls that write a snapshot, by all the names that kernels have for them.
const CALLS: [&str; 8] = [
    "?open,?openat",
    "flock",
    "?stat,?lstat,?statx,?newfstatat",
    "?unlink,?unlinkat",
    "write",
    "fsync",
    "close",
    "?rename,?renameat,?renameat2",
];

#[test]
fn whenever_it_is_killed_the_old_snapshot_or_the_new_one_is_there() {
    let closed = format!("http://{}", closed_port());
    let server = consul();
    let (mut old, mut new) = (0, 0);
    for call in CALLS {
        for time in 1.. {
            let folder = Folder::new("faults-killed");
            let snapshot = folder.snapshot();
            let look = |name: &str, http: &str| looked_up(plain(), name, http, &snapshot);
            assert!(is_found(&look("old", &server.url())));
            let fault = format!("inject={call}:signal=KILL:when={time}");
            let killed = looked_up(folder.strace(&fault), "new", &server.url(), &snapshot);
            if killed.status.success() {
                break;
            }
            assert_eq!(killed.status.signal(), Some(9), "{killed:?}");
            // What was there is there in either.
            let left = look("old", &closed);
            assert!(is_found(&left), "{fault}: {left:?}");
            match is_found(&look("new", &closed)) {
                false => old += 1,
                true => new += 1,
            }
            // The next one writes, and tidies up.
            assert!(is_found(&look("newer", &server.url())), "{fault}");
            assert!(is_found(&look("newer", &closed)), "{fault}");
            assert_eq!(folder.names(), ["snapshot", "snapshot.lock"], "{fault}");
        }
    }
    assert!(old >= 8 && new >= 1, "{old} times the old, {new} the new");
}

#[test]
fn a_disk_that_says_no_costs_no_answer_and_no_snapshot() {
    let closed = format!("http://{}", closed_port());
    let server = consul();
    for call in CALLS {
        for error in ["EIO", "ENOSPC", "EROFS", "EMFILE", "EINTR"] {
            let folder = Folder::new("faults-disk");
            let snapshot = folder.snapshot();
            let look = |name: &str, http: &str| looked_up(plain(), name, http, &snapshot);
            assert!(is_found(&look("old", &server.url())));
            // Twice: what interrupts is tried again, and must not be for ever.
            let fault = format!("inject={call}:error={error}:when=1..2");
            let answer = looked_up(folder.strace(&fault), "new", &server.url(), &snapshot);
            assert!(is_found(&answer), "{fault}: {answer:?}");
            let left = look("old", &closed);
            assert!(
                is_found(&left) || call.contains("open"),
                "{fault}: {left:?}"
            );
            let names = folder.names();
            assert!(
                names == ["snapshot", "snapshot.lock"] || call.contains("unlink"),
                "{fault}: {names:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_full_disk_is_counted_and_answers_go_on() {
    let server = consul();
    let folder = Folder::new("faults-full");
    let mut command = folder.strace("inject=write:error=ENOSPC");
    let given = serve("none", &server.url());
    command.args(given.get_args());
    command.args(["--admin", "127.0.0.1:0", "--snapshot"]);
    let mut serving = Serving::start({
        command.arg(folder.snapshot());
        command
    });
    let url = format!("http://{}/metrics", serving.admin);
    wait_for("the error in the metrics", async || {
        // Whoever is traced is slow.
        (serving.instances().await == 1).then_some(())?;
        let metrics = http_client().get(&url).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let counted = metrics
            .lines()
            .find_map(|line| line.strip_prefix("proconsul_snapshot_errors_total "))
            .unwrap();
        (counted != "0").then_some(())
    })
    .await;
    assert_eq!(serving.instances().await, 1);
    serving.signal("-TERM");
    let said = serving.says();
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(serving.wait().code(), Some(0));
    assert_eq!(folder.names(), ["snapshot.lock"]);
}

/// System calls that fail, each in ways that a kernel knows.
const FAULTS: [(&str, &[&str]); 10] = [
    ("recvmmsg", &["EINTR", "ENOMEM", "ECONNREFUSED"]),
    ("sendmmsg", &["EINTR", "ENOBUFS", "EPERM"]),
    ("sendto", &["ENOBUFS", "EPERM"]),
    ("recvfrom", &["EINTR", "ECONNRESET"]),
    ("accept4", &["EINTR", "ECONNABORTED", "EMFILE", "EPERM"]),
    ("socket", &["EMFILE", "EPERM"]),
    ("connect", &["EPERM", "ENETUNREACH"]),
    ("?epoll_wait,?epoll_pwait", &["EINTR"]),
    ("epoll_ctl", &["ENOMEM"]),
    ("writev", &["EINTR", "EPIPE"]),
];

/// How often a client asks, and how long it waits each time. A source that failed is left
/// alone for 0.4 s, and every fifth call fails, which may be the same one of as many questions.
const TRIES: usize = 6;
const WAITS: Duration = Duration::from_millis(600);

/// A client as plain as they come: it asks, and asks again.
fn asked(server: SocketAddr, name: &str, tcp: bool) -> Option<Message> {
    asked_at_most(TRIES, server, name, tcp)
}

fn asked_at_most(tries: usize, server: SocketAddr, name: &str, tcp: bool) -> Option<Message> {
    let mut question = Message::query();
    let name = Name::from_ascii(name).unwrap();
    question.add_query(Query::query(name, RecordType::A));
    let bytes = question.to_vec().unwrap();
    for _ in 0..tries {
        let start = Instant::now();
        let told = if tcp {
            over_tcp(server, &bytes)
        } else {
            over_udp(server, &bytes)
        };
        let reply = told.ok().and_then(|told| Message::from_vec(&told).ok());
        if reply.as_ref().is_some_and(|reply| {
            reply.metadata.id == question.metadata.id
                && reply.metadata.response_code == ResponseCode::NoError
        }) {
            return reply;
        }
        std::thread::sleep(WAITS.saturating_sub(start.elapsed()));
    }
    None
}

fn over_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(WAITS))?;
    socket.connect(server)?;
    socket.send(question)?;
    let mut reply = vec![0; 4_096];
    let length = socket.recv(&mut reply)?;
    reply.truncate(length);
    Ok(reply)
}

fn over_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, WAITS)?;
    stream.set_read_timeout(Some(WAITS))?;
    stream.write_all(&framed(question))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// `strace` at a process that runs; it leaves it when it is dropped.
struct Meddling(Child);

impl Meddling {
    fn with(id: u32, fault: &str) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-e", fault, "-p", &id.to_string()]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        // A thread may have ended before it is reached: strace says so, and goes on.
        let errors = BufReader::new(child.stderr.as_mut().unwrap());
        let mut said = Vec::new();
        let attached = errors.lines().map(Result::unwrap).any(|line| {
            said.push(line);
            said.last().is_some_and(|line| line.contains("attached"))
        });
        assert!(attached, "{said:?}");
        Self(child)
    }
}

impl Drop for Meddling {
    fn drop(&mut self) {
        signal(self.0.id(), "TERM");
        _ = self.0.wait();
    }
}

/// Processor time that it has used, in hundredths of a second.
fn used(id: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let field = |at: usize| fields.split_whitespace().nth(at).unwrap().parse::<u64>();
    // utime and stime, proc(5): the 14th and 15th, of which two stand before.
    field(11).unwrap() + field(12).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_call_fails_now_and_then_a_client_that_asks_again_is_answered() {
    let dns = script::Server::start(|question, _| vec![script::srv(question, 1)]).await;
    let any = consul();
    let mut command = serve(&dns.address().to_string(), &any.url());
    command.args(["--admin", "none"]);
    let serving = Serving::start(command);
    let (id, address) = (serving.id(), serving.dns);
    assert!(asked(address, "web.service.consul.", false).is_some());
    let mut count = 0;
    for (call, errors) in FAULTS {
        for error in errors {
            let fault = format!("inject={call}:error={error}:when=3+5");
            let meddling = Meddling::with(id, &fault);
            for round in 0..4 {
                // One that is known, one that is new, and both kinds of transport.
                let new = format!("new{count}x{round}.service.consul.");
                for name in ["web.service.consul.", &new] {
                    let tcp = round % 2 == 1;
                    let reply = asked(address, name, tcp);
                    assert!(reply.is_some(), "{fault}: {name} over tcp: {tcp}");
                }
            }
            drop(meddling);
            count += 1;
        }
    }
    // It has nothing to do now, and does nothing.
    let before = used(id);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let spent = used(id) - before;
    assert!(spent < 15, "{spent} hundredths of a second for nothing");
    for _ in 0..20 {
        assert!(asked(address, "web.service.consul.", false).is_some());
        assert!(asked(address, "web.service.consul.", true).is_some());
    }
}

#[tokio::test]
async fn a_thread_that_cannot_be_started_leaves_its_clients_to_the_others() {
    let cores = std::thread::available_parallelism().unwrap().get();
    // The runtime's threads come first, one a core, then that of stderr.
    let fault = format!("inject=?clone3,?clone:error=EAGAIN:when={}", cores + 2);
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", &fault]);
    command.arg(env!("CARGO_BIN_EXE_proconsul")).env_clear();
    let server = consul();
    command.args(serve("none", &server.url()).get_args());
    command.args(["--admin", "none"]).env("RUST_LOG", "warn");
    let serving = Serving::start(command);
    let said = serving.says();
    assert!(said.contains("a thread cannot be started"), "{said}");
    // Each from a port of its own, so that the kernel spreads them: a socket that nobody
    // reads would have its share.
    let name = "web.service.consul.";
    let one = |_: &_| asked_at_most(1, serving.dns, name, cores == 1).is_some();
    let answered = (0..30).filter(one).count();
    assert!(answered >= 27, "{answered} of 30");
}

#[test]
fn what_is_written_is_on_the_disk_before_its_name_is() {
    let (folder, server) = (Folder::new("faults-order"), consul());
    let log = folder.0.join("log");
    let mut command = folder.strace("trace=all");
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let to_log = arguments.iter().map(|one| match one.to_str() {
        Some("/dev/null") => log.clone().into_os_string(),
        _ => one.clone(),
    });
    command = Command::new("strace");
    command.args(to_log).env_clear();
    let saved = looked_up(command, "web", &server.url(), &folder.snapshot());
    assert!(is_found(&saved), "{saved:?}");
    let log = fs::read_to_string(log).unwrap();
    let new = log.lines().skip_while(|line| !line.contains("O_EXCL"));
    let calls = new.filter_map(|line| line.split_once('(')?.0.split_whitespace().last());
    let order = ["openat", "write", "fsync", "rename", "openat", "fsync"];
    let mut left = order.iter().peekable();
    for call in calls {
        if left.peek().is_some_and(|next| call.starts_with(**next)) {
            left.next();
        } else {
            assert!(!call.starts_with("rename"), "too early: {log}");
        }
    }
    assert_eq!(left.next(), None, "{log}");
}

#[test]
fn without_dice_nothing_is_asked_rather_than_something_that_can_be_guessed() {
    let server = consul();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    silent.set_nonblocking(true).unwrap();
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-o", "/dev/null"]);
    command.args(["-e", "inject=getrandom:error=EIO"]);
    command.arg(env!("CARGO_BIN_EXE_proconsul")).env_clear();
    command.args(["lookup", "web", "--http", &server.url(), "--dns"]);
    let output = command
        .arg(silent.local_addr().unwrap().to_string())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
    let asked = silent.recv(&mut [0; 512]);
    assert!(asked.is_err(), "{asked:?}: {output:?}");
}
