//! Services that register themselves at a real agent, and what becomes of them when it
//! forgets, restarts or is not there; and programs that are wrapped.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use proconsul::{Check, Health, Registration, RegistrationState, Resolver, ServiceDefinition};
use serde_json::{Value, json};
use support::{Agent, Folder, PATIENCE, Serving, closed_port, serve, signal, wait_for};
use tokio::time::{Instant, sleep, timeout};

fn resolver(agent: &Agent) -> Resolver {
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http());
    builder.build().unwrap()
}

fn web() -> ServiceDefinition {
    ServiceDefinition::new("web", 8080).address("10.0.0.7")
}

async fn registered(agent: &Agent, service: ServiceDefinition) -> Registration {
    let registration = resolver(agent).register(service).unwrap();
    timeout(PATIENCE, registration.registered()).await.unwrap();
    registration
}

/// How often the agent, and the catalog, have it.
async fn times(agent: &Agent, service: &str) -> (usize, usize) {
    let own = agent.get("/v1/agent/services").await;
    let own = own.as_object().unwrap().values();
    let catalog = agent.get(&format!("/v1/catalog/service/{service}")).await;
    (
        own.filter(|one| one["Service"] == service).count(),
        catalog.as_array().unwrap().len(),
    )
}

async fn check(agent: &Agent, id: &str) -> Option<Value> {
    let checks = agent.get("/v1/agent/checks").await;
    checks.get(id).cloned()
}

#[tokio::test]
async fn the_agent_is_told_all_and_at_the_end_that_it_is_gone() {
    let agent = Agent::start().await;
    let service = web()
        .tag("v2")
        .meta("version", "2.1")
        .extra_port("metrics", 9090)
        .weights(10, 2)
        .check(Check::tcp("127.0.0.1:1").name("door"))
        .check(Check::grpc("127.0.0.1:1/web"))
        .check(Check::http("http://127.0.0.1:1/").header("x-own", "7"));
    let registration = registered(&agent, service).await;
    let there = agent.get("/v1/agent/service/web-10.0.0.7-8080").await;
    assert_eq!(
        (
            &there["Service"],
            &there["Address"],
            &there["Port"],
            &there["Tags"]
        ),
        (
            &json!("web"),
            &json!("10.0.0.7"),
            &json!(8080),
            &json!(["v2"])
        )
    );
    assert_eq!(
        there["Meta"],
        json!({ "version": "2.1", "metrics_port": "9090" })
    );
    assert_eq!(there["Weights"], json!({ "Passing": 10, "Warning": 2 }));
    let names = async |id| check(&agent, id).await.unwrap()["Name"].clone();
    assert_eq!(names("service:web-10.0.0.7-8080:1").await, "door");
    assert_eq!(
        names("service:web-10.0.0.7-8080:2").await,
        "gRPC check of 127.0.0.1:1/web"
    );
    agent.wait_for_instances("web", 1).await;
    registration.shutdown().await.unwrap();
    assert_eq!(times(&agent, "web").await.0, 0);
    agent.wait_for_instances("web", 0).await;
}

#[tokio::test]
async fn what_the_agent_forgets_it_is_told_again_within_two_seconds() {
    let agent = Agent::start().await;
    let resolver = resolver(&agent);
    let service = web().check(Check::ttl(Duration::from_secs(30)));
    let registration = resolver.register(service).unwrap();
    registration.registered().await;
    registration.maintenance(Some("upgrade"));
    let own = "_service_maintenance:web-10.0.0.7-8080";
    wait_for("maintenance", async || check(&agent, own).await).await;
    for round in 1..=3 {
        let forgotten = Instant::now();
        agent.deregister_service("web-10.0.0.7-8080").await;
        wait_for("it to be there again", async || {
            (times(&agent, "web").await.0 == 1).then_some(())
        })
        .await;
        assert!(forgotten.elapsed() < Duration::from_secs(2));
        let told = wait_for("maintenance, and what was said", async || {
            check(&agent, own).await
        })
        .await;
        assert_eq!(told["Notes"], "upgrade");
        let metrics = resolver.metrics().to_string();
        assert!(metrics.contains("proconsul_registrations_total 1\n"));
        let again = format!("proconsul_reregistrations_total {round}\n");
        assert!(metrics.contains(&again), "{metrics}");
    }
    // A check alone.
    let path = "/v1/agent/check/deregister/service:web-10.0.0.7-8080";
    agent.put(path, Value::Null).await;
    registration.set_health(Health::Warning, "hot").unwrap();
    wait_for("the check", async || {
        let check = check(&agent, "service:web-10.0.0.7-8080").await?;
        (check["Output"] == "hot").then_some(())
    })
    .await;
    registration.maintenance(None);
    wait_for("the end of maintenance", async || {
        check(&agent, own).await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_the_servers_lost_is_in_the_catalog_again_long_before_the_agent_looks() {
    let mut server = Agent::start().await;
    let agent = Agent::builder().client_of(&server).start().await;
    let resolver = resolver(&agent);
    let registration = registered(&agent, web()).await;
    agent.wait_for_instances("web", 1).await;
    // What was not seen there is not missed, and whoever registered it looks as we do.
    sleep(Duration::from_secs(1)).await;
    server.restart().await;
    let join = format!("/v1/agent/join/{}", agent.lan_address());
    server.put(&join, Value::Null).await;
    let joined = Instant::now();
    server.wait_for_instances("web", 1).await;
    assert!(
        joined.elapsed() < Duration::from_secs(15),
        "{:?}",
        joined.elapsed()
    );
    drop((registration, resolver));
}

#[tokio::test]
async fn an_agent_that_restarts_twenty_times_has_it_once_each_time() {
    let mut agent = Agent::start().await;
    let registration = registered(&agent, web()).await;
    for _ in 0..20 {
        // As kill -9 does; this agent keeps nothing.
        agent.restart().await;
        wait_for("it to be there again", async || {
            (times(&agent, "web").await == (1, 1)).then_some(())
        })
        .await;
    }
    registration.shutdown().await.unwrap();
    agent.wait_for_instances("web", 0).await;
}

#[tokio::test]
async fn an_agent_that_is_not_there_yet_is_waited_for() {
    let mut agent = Agent::start().await;
    agent.kill();
    let mut registration = resolver(&agent).register(web()).unwrap();
    let states = registration.changed().await;
    let [(id, RegistrationState::Failing(error))] = states.as_slice() else {
        panic!("{states:?}");
    };
    assert_eq!(id, "web-10.0.0.7-8080");
    let told = error.to_string();
    assert!(
        told.contains("refused") && told.contains(&agent.http()) && told.contains("again"),
        "{told}"
    );
    agent.restart().await;
    timeout(Duration::from_secs(5), registration.registered())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_agent_that_hangs_for_a_while_and_forgets_nothing_is_told_apart() {
    let agent = Agent::start().await;
    let mut registration = registered(&agent, web()).await;
    agent.pause();
    let is_failing = |state: &RegistrationState| matches!(state, RegistrationState::Failing(_));
    let failing = async { while !is_failing(&registration.changed().await[0].1) {} };
    timeout(PATIENCE, failing).await.unwrap();
    agent.resume();
    timeout(PATIENCE, registration.registered()).await.unwrap();
    assert_eq!(times(&agent, "web").await.0, 1);
}

#[tokio::test]
async fn a_heartbeat_says_how_it_is_and_that_it_lives() {
    let agent = Agent::start().await;
    let ttl = Duration::from_secs(1);
    let registration = registered(&agent, web().check(Check::ttl(ttl))).await;
    let status = async || {
        let check = check(&agent, "service:web-10.0.0.7-8080").await?;
        Some((check["Status"].clone(), check["Output"].clone()))
    };
    wait_for("the first word", async || {
        (status().await?.0 == "passing").then_some(())
    })
    .await;
    registration
        .set_health(Health::Warning, "disk 91 % full")
        .unwrap();
    let warning = (json!("warning"), json!("disk 91 % full"));
    wait_for("the warning", async || {
        (status().await? == warning).then_some(())
    })
    .await;
    sleep(ttl * 3).await;
    assert_eq!(status().await.unwrap(), warning);
    let silent = registered(&agent, ServiceDefinition::new("db", 1)).await;
    let refused = silent.set_health(Health::Warning, "").unwrap_err();
    assert!(refused.to_string().contains("Check::ttl"), "{refused}");
}

#[tokio::test]
async fn an_instance_in_maintenance_is_given_to_nobody() {
    let agent = Agent::start().await;
    let registration = registered(&agent, web()).await;
    agent.wait_for_instances("web", 1).await;
    let resolver = resolver(&agent);
    registration.maintenance(Some("new disks"));
    wait_for("nobody to be given", async || {
        let found = resolver.lookup("web").require_fresh().await;
        found.is_err_and(|error| error.is_not_found()).then_some(())
    })
    .await;
    registration.maintenance(None);
    wait_for("it to be given", async || {
        resolver.lookup("web").await.ok().map(drop)
    })
    .await;
}

#[tokio::test]
async fn the_agents_own_checks_decide() {
    let agent = Agent::start().await;
    let mut command = serve("none", &agent.http());
    command.args(["--admin", "127.0.0.1:0"]);
    let server = Serving::start(command);
    let address: SocketAddr = server.admin.parse().unwrap();
    let url = format!("http://{address}/healthz");
    let service = ServiceDefinition::new("web", address.port()).address("127.0.0.1");
    let service = service.check(Check::http(url).interval(Duration::from_millis(100)));
    let registration = registered(&agent, service).await;
    let resolver = resolver(&agent);
    let found = wait_for("a check that passes", async || {
        resolver.lookup("web").await.ok()
    })
    .await;
    assert_eq!(found.endpoints()[0].socket_addr(), address);
    registration.shutdown().await.unwrap();
}

#[test]
fn a_guard_that_is_dropped_deregisters_also_at_the_end_of_its_runtime() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let outer = runtime();
    let agent = outer.block_on(Agent::start());
    let mine = runtime();
    let registration = mine.block_on(registered(&agent, web()));
    mine.shutdown_background();
    drop(registration);
    assert_eq!(outer.block_on(times(&agent, "web")).0, 0);
    let mine = runtime();
    mine.block_on(async {
        let _registration = registered(&agent, web()).await;
    });
    assert_eq!(outer.block_on(times(&agent, "web")).0, 0);
    drop(mine);
    outer.block_on(async move { drop(agent) });
}

#[tokio::test]
async fn an_id_of_somebody_else_is_told_and_left_alone() {
    let agent = Agent::start().await;
    let first = web().with_id("web-1");
    let first = registered(&agent, first).await;
    let second = ServiceDefinition::new("web", 9090).with_id("web-1");
    let mut second = resolver(&agent).register(second).unwrap();
    let states = second.changed().await;
    assert!(
        matches!(&states[0].1, RegistrationState::Taken(whose) if whose.contains("10.0.0.7:8080")),
        "{states:?}"
    );
    second.shutdown().await.unwrap();
    let there = agent.get("/v1/agent/service/web-1").await;
    assert_eq!(there["Port"], 8080);
    first.shutdown().await.unwrap();
    assert_eq!(times(&agent, "web").await.0, 0);
}

#[tokio::test]
async fn several_services_are_one_registration() {
    let agent = Agent::start().await;
    let all = (1..=5).map(|port| ServiceDefinition::new("worker", port));
    let registration = resolver(&agent).register_all(all).unwrap();
    registration.registered().await;
    assert_eq!(times(&agent, "worker").await.0, 5);
    registration.shutdown().await.unwrap();
    assert_eq!(times(&agent, "worker").await.0, 0);
    let twice = [web(), web()];
    let refused = resolver(&agent).register_all(twice).unwrap_err();
    assert!(
        refused.to_string().contains("web-10.0.0.7-8080"),
        "{refused}"
    );
    let nowhere = Resolver::builder().http("none").build().unwrap();
    assert!(nowhere.register(web()).is_err());
}

/// The program with nothing of this machine's environment that it reads.
fn program(agent: &Agent, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    for (name, _) in std::env::vars() {
        let prefixes = ["CONSUL_", "PROCONSUL_", "SERVICE_", "RUST_LOG"];
        if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.arg("register").arg("--http").arg(agent.http());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Waits for its end without stopping the test's own runtime.
async fn ended(child: &mut Child) -> Option<i32> {
    wait_for("the program's end", async || child.try_wait().unwrap())
        .await
        .code()
}

/// What the agent knows of an instance, as soon as it knows it.
async fn seen(agent: &Agent, id: &str) -> Value {
    wait_for("its registration", async || {
        let all = agent.get("/v1/agent/services").await;
        all.get(id).cloned()
    })
    .await
}

#[tokio::test]
async fn a_wrapped_program_is_registered_while_it_runs() {
    let agent = Agent::start().await;
    let mut child = program(&agent, &["--meta", "zone=a"])
        .env("SERVICE_NAME", "job")
        .env("SERVICE_PORT", "7")
        .env("SERVICE_TAGS", "v1,v2")
        .args(["--", "sh", "-c", "read line || sleep 60"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let there = seen(&agent, "job-7").await;
    assert_eq!(
        (&there["Tags"], &there["Meta"]),
        (&json!(["v1", "v2"]), &json!({ "zone": "a" }))
    );
    // It has a heartbeat by itself.
    wait_for("its heartbeat", async || {
        let check = check(&agent, "service:job-7").await?;
        (check["Status"] == "passing").then_some(())
    })
    .await;
    use std::io::Write as _;
    child.stdin.take().unwrap().write_all(b"end\n").unwrap();
    assert_eq!(ended(&mut child).await, Some(0));
    assert_eq!(times(&agent, "job").await.0, 0);
}

#[tokio::test]
async fn each_tag_flag_is_one_tag_and_those_of_the_environment_are_not_added() {
    let agent = Agent::start().await;
    let rule = "rule=Host(a),Host(b)";
    let mut child = program(
        &agent,
        &["job", "--port", "7", "--tag", rule, "--tag", "v2"],
    )
    .env("SERVICE_TAGS", "v1")
    .args(["--", "sleep", "60"])
    .spawn()
    .unwrap();
    let there = seen(&agent, "job-7").await;
    assert_eq!(there["Tags"], json!([rule, "v2"]));
    signal(child.id(), "TERM");
    assert_eq!(ended(&mut child).await, Some(143));
}

#[test]
fn what_is_wrong_with_a_registration_is_told_once() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.args(["register", "job", "--port", "0"]);
    command.args(["--http", &closed_port().to_string(), "--", "sleep", "1"]);
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert_eq!(said.matches(" is not registered at ").count(), 1, "{said}");
    assert_eq!(said.matches("port 0").count(), 1, "{said}");
}

#[tokio::test]
async fn what_never_was_registered_is_not_told_as_deregistered() {
    let closed = closed_port().to_string();
    // The command's own status stays: `read` ends with 1 where there is no line.
    for (command, status) in [(&[][..], 5), (&["--", "sh", "-c", "read line"], 1)] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        program.env_clear().env("PATH", "/usr/bin:/bin");
        program.args(["register", "job", "--port", "7", "--http", &closed]);
        let program = program.args(command).stdin(Stdio::piped());
        let mut child = program.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        while !said
            .next()
            .unwrap()
            .unwrap()
            .contains("is not registered at")
        {}
        match command {
            [] => signal(child.id(), "TERM"),
            _ => drop(child.stdin.take()),
        }
        let rest: Vec<_> = said.map_while(Result::ok).collect();
        assert!(!rest.concat().contains(": deregistered"), "{rest:?}");
        let ended = child.wait().unwrap().code();
        assert_eq!(ended, Some(status), "{rest:?}");
    }
}

#[tokio::test]
async fn the_exit_status_of_a_wrapped_program_is_passed_on() {
    let agent = Agent::start().await;
    for (command, status) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["no-such-program"], 127),
        (&["/"], 126),
    ] {
        let mut child = program(&agent, &["job", "--port", "7", "-q", "--"]);
        let mut child = child.args(command).stderr(Stdio::null()).spawn().unwrap();
        assert_eq!(ended(&mut child).await, Some(status), "{command:?}");
        assert_eq!(times(&agent, "job").await.0, 0);
    }
    let nameless = program(&agent, &["--port", "7"]).output().unwrap();
    assert_eq!(nameless.status.code(), Some(2));
    let told = String::from_utf8(nameless.stderr).unwrap();
    assert!(
        told.contains("SERVICE_NAME") && told.contains("proconsul register"),
        "{told}"
    );
}

#[tokio::test]
async fn a_signal_deregisters_first_and_then_reaches_the_program() {
    let agent = Agent::start().await;
    let script = "trap 'exit 9' TERM; trap 'echo hup' HUP; while :; do sleep 0.05; done";
    let mut child = program(&agent, &["job", "--port", "7", "--drain", "1s"])
        .args(["--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    agent.wait_for_instances("job", 1).await;
    signal(child.id(), "HUP");
    sleep(Duration::from_millis(200)).await;
    signal(child.id(), "TERM");
    agent.wait_for_instances("job", 0).await;
    assert!(child.try_wait().unwrap().is_none(), "it drains");
    assert_eq!(ended(&mut child).await, Some(9));
    let mut told = String::new();
    use std::io::Read as _;
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    assert_eq!(told, "hup\n");
}

/// Runs the program as a shell on a terminal does: in a group of its own, in front.
const ON_A_TERMINAL: &str = "
import os, pty, signal, sys
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
signal.alarm(60)
print(child, flush=True)
for line in sys.stdin:
    os.write(terminal, b'\\x03')
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
";

/// Ends with the number of times that it was interrupted, a moment after the last. There is a
/// file once it counts.
const COUNTS: &str = "
import signal, sys, time
times = []
signal.signal(signal.SIGINT, lambda *_: times.append(time.monotonic()))
open(sys.argv[2], 'w').close()
while not times or time.monotonic() < times[-1] + float(sys.argv[1]):
    time.sleep(0.05)
sys.exit(40 + len(times))
";

#[tokio::test]
async fn an_interrupt_reaches_the_program_whether_a_terminal_sent_it_or_not() {
    let (agent, folder) = (Agent::start().await, Folder::new("interrupts"));
    // One that takes its time has it from the terminal and from us.
    for (from_terminal, lasts, status) in [(false, "0.1", 41), (true, "0.1", 41), (true, "7", 42)] {
        let counts = folder.path(&format!("{from_terminal}-{lasts}"));
        let mut command = Command::new("python3");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap());
        command.args(["-c", ON_A_TERMINAL, env!("CARGO_BIN_EXE_proconsul")]);
        command.args(["register", "job", "--port", "7", "--http", &agent.http()]);
        command
            .args(["--", "python3", "-c", COUNTS, lasts])
            .arg(&counts);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let id: u32 = said.next().unwrap().unwrap().parse().unwrap();
        wait_for("its registration", async || {
            (times(&agent, "job").await.0 == 1).then_some(())
        })
        .await;
        wait_for("its program", async || counts.exists().then_some(())).await;
        let mut keys = child.stdin.take().unwrap();
        if from_terminal {
            use std::io::Write as _;
            keys.write_all(b"\n").unwrap();
        } else {
            signal(id, "INT");
        }
        drop(keys);
        assert_eq!(
            ended(&mut child).await,
            Some(status),
            "{from_terminal} {lasts}"
        );
        assert_eq!(times(&agent, "job").await.0, 0);
    }
}

#[tokio::test]
async fn an_agent_that_hangs_does_not_keep_a_signal_from_the_program() {
    let agent = Agent::start().await;
    let script = "trap 'echo told; exit 9' TERM; while :; do sleep 0.05; done";
    let mut child = program(&agent, &["job", "--port", "7"])
        .args(["--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    agent.wait_for_instances("job", 1).await;
    let mut said = BufReader::new(child.stdout.take().unwrap());
    agent.pause();
    signal(child.id(), "TERM");
    let start = Instant::now();
    let told = tokio::task::spawn_blocking(move || {
        let mut told = String::new();
        said.read_line(&mut told).map(|_| told)
    });
    assert_eq!(told.await.unwrap().unwrap(), "told\n");
    // All that is tried at the agent takes longer.
    assert!(start.elapsed() < Duration::from_secs(6));
    agent.resume();
    agent.wait_for_instances("job", 0).await;
    assert_eq!(ended(&mut child).await, Some(9));
}

#[tokio::test]
async fn other_signals_do_not_end_a_drain_and_a_second_one_does() {
    let agent = Agent::start().await;
    let script = "trap 'exit 9' TERM; trap 'echo hup' HUP; while :; do sleep 0.05; done";
    let run = |drain: &str| {
        let mut command = program(&agent, &["job", "--port", "7", "--drain", drain]);
        command.args(["--", "sh", "-c", script]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut child = run("1s");
    agent.wait_for_instances("job", 1).await;
    signal(child.id(), "TERM");
    agent.wait_for_instances("job", 0).await;
    signal(child.id(), "HUP");
    assert_eq!(ended(&mut child).await, Some(9), "SIGTERM is not forgotten");

    let start = Instant::now();
    let mut child = run("60s");
    agent.wait_for_instances("job", 1).await;
    signal(child.id(), "TERM");
    agent.wait_for_instances("job", 0).await;
    signal(child.id(), "TERM");
    assert_eq!(ended(&mut child).await, Some(9));
    assert!(start.elapsed() < Duration::from_secs(30));
    // Nor is there anything to drain where the program ended by itself.
    let mut command = program(&agent, &["job", "--port", "7", "--drain", "60s"]);
    let mut child = command.args(["--", "sleep", "0.2"]).spawn().unwrap();
    assert_eq!(ended(&mut child).await, Some(0));
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn what_would_be_refused_is_refused_before_the_program_runs() {
    let agent = Agent::start().await;
    let file = std::env::temp_dir().join(format!("proconsul-ran-{}", std::process::id()));
    for flags in [&["--meta", "a b=c"][..], &["--check-ttl", "0s"]] {
        let mut command = program(&agent, &["job", "--port", "7"]);
        command.args(flags).arg("--").arg("touch").arg(&file);
        assert_eq!(command.output().unwrap().status.code(), Some(2));
        assert!(!file.exists());
    }
}

#[tokio::test]
async fn a_guard_dropped_before_the_agent_answered_leaves_nothing_behind() {
    let agent = Agent::start().await;
    for _ in 0..20 {
        let registration = resolver(&agent).register(web()).unwrap();
        tokio::task::yield_now().await;
        sleep(Duration::from_millis(2)).await;
        drop(registration);
    }
    sleep(Duration::from_millis(300)).await;
    assert_eq!(times(&agent, "web").await.0, 0);
}

#[tokio::test]
async fn calls_go_on_while_an_instance_is_told_to_end() {
    let agent = Agent::start().await;
    let ports = [free_port(), free_port()];
    let mut children: Vec<_> = ports
        .iter()
        .map(|port| {
            let own = port.to_string();
            let check = format!("127.0.0.1:{port}");
            let mut command = program(&agent, &["web", "--address", "127.0.0.1", "--port", &own]);
            command.args([
                "--check-tcp",
                &check,
                "--check-interval",
                "100ms",
                "--drain",
                "500ms",
            ]);
            command.args([
                "--",
                "python3",
                "-m",
                "http.server",
                "--bind",
                "127.0.0.1",
                &own,
            ]);
            command
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let service = resolver(&agent).service("web").unwrap();
    wait_for("both", async || {
        (service.endpoints().len() == 2).then_some(())
    })
    .await;
    let start = Instant::now();
    let mut told = false;
    let mut gone = None;
    while gone.is_none() {
        let lease = service.pick().await.unwrap();
        let url = format!("http://{}/", lease.socket_addr());
        let answer = reqwest_get(&url).await;
        assert!(answer, "a call to {url} failed after {:?}", start.elapsed());
        if !told && start.elapsed() > Duration::from_millis(300) {
            told = true;
            signal(children[0].id(), "TERM");
        }
        gone = children[0].try_wait().unwrap();
        assert!(start.elapsed() < PATIENCE);
    }
    assert_eq!(service.endpoints().len(), 1);
    signal(children[1].id(), "TERM");
    ended(&mut children[1]).await;
    assert_eq!(times(&agent, "web").await.0, 0);
}

async fn reqwest_get(url: &str) -> bool {
    let answer = support::http_client().get(url).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind::<SocketAddr>(([127, 0, 0, 1], 0).into());
    listener.unwrap().local_addr().unwrap().port()
}
