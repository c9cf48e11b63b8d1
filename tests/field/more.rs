//! The other rows of the fault matrix: what takes longer, or needs more of the machine than
//! an ordinary test may ask for.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};

use super::{
    Field, Plan, TOKEN, asked, known, make_token,
    verdict::{
        Law,
        New::{Either, Fails, Found},
        Verdict, ms,
    },
};
use crate::support::{Over, PATIENCE, Weather, ask, leader, wait_for};

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}-{}", std::process::id()))
}

/// 5: two of three servers die; the one that is left tells what it knows.
pub(crate) async fn two_servers_are_killed(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.stop_changes().await;
    field.fault_begins();
    field.kill_server(1);
    field.kill_server(2);
    sleep(lasts).await;
    field.fault_wanes();
    field.launch_server(1);
    field.launch_server(2);
    leader(&field.servers).await;
    field.fault_ends();
    field.ours_is_there(ms(5_000)).await;
    sleep(ms(5_000)).await;
    let law = Law {
        recovers: Some(ms(5_000)),
        ..Law::usual("5", "two of three servers are killed")
    };
    field.judge(law).await
}

/// 11: DNS over TCP is closed, and UDP is not.
pub(crate) async fn dns_over_tcp_is_refused(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.servers[0].register_nodes("big", 100).await;
    field.calm().await;
    field.fault_begins();
    field.dns.set(Weather {
        tcp_refused: true,
        ..Weather::default()
    });
    let began = Instant::now();
    let big = ask(field.stub.dns, &asked("big"), RecordType::SRV, Over::Tcp).await;
    let took = began.elapsed();
    let found = big.map_or(0, |(reply, _)| reply.answers.len());
    let whole = found == 100 && took < ms(300);
    field.notes("of 100 instances", found as f64, whole);
    sleep(lasts).await;
    field.dns.set(Weather::default());
    field.fault_ends();
    sleep(ms(2_000)).await;
    field
        .judge(Law {
            first: ms(300),
            new: Found(1.0, ms(300)),
            ..Law::usual("11", "DNS over TCP is refused")
        })
        .await
}

/// A weather at the agent's doors, or at all of them.
async fn weather(law: Law, lasts: Duration, everywhere: bool, weather: Weather) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.fault_begins();
    let set = |field: &Field, weather: Weather| {
        if everywhere {
            field.weather_everywhere(&weather);
        } else {
            field.dns.set(weather.clone());
            field.http.set(weather);
        }
    };
    set(&field, weather);
    sleep(lasts).await;
    set(&field, Weather::default());
    field.fault_ends();
    sleep(ms(3_000)).await;
    field.judge(law).await
}

/// 13: everything takes longer.
pub(crate) async fn all_is_slow(lasts: Duration, delay: Duration) -> Verdict {
    let (fault, new) = match delay.as_millis() {
        100 => ("100 ms of delay, differing by a half", Found(1.0, ms(900))),
        400 => ("400 ms of delay, differing by a half", Either(ms(900))),
        _ => ("2 s of delay, differing by a half", Fails(ms(900))),
    };
    let law = Law {
        first: ms(160),
        next: ms(160),
        new,
        ..Law::usual("13", fault)
    };
    let slow = Weather {
        delay,
        jitter: 0.5,
        ..Weather::default()
    };
    weather(law, lasts, true, slow).await
}

/// 14: datagrams are lost, each way.
pub(crate) async fn datagrams_are_lost(lasts: Duration, loss: f64) -> Verdict {
    let (fault, new) = match (loss * 100.0) as u32 {
        5 => ("5 % of datagrams are lost", Found(0.999, ms(900))),
        30 => ("30 % of datagrams are lost", Found(0.99, ms(900))),
        _ => ("60 % of datagrams are lost", Found(0.9, ms(900))),
    };
    let law = Law {
        first: ms(160),
        next: ms(160),
        new,
        ..Law::usual("14", fault)
    };
    let lossy = Weather {
        loss,
        ..Weather::default()
    };
    weather(law, lasts, true, lossy).await
}

/// 15: the agent comes and goes.
pub(crate) async fn the_agent_flaps(lasts: Duration, each: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    let before = field.metric("proconsul_circuit_transitions_total").await;
    field.fault_begins();
    let began = Instant::now();
    while began.elapsed() < lasts * 12 {
        field.dns.set(Weather::refused());
        field.http.set(Weather::refused());
        sleep(each).await;
        field.dns.set(Weather::default());
        field.http.set(Weather::default());
        sleep(each).await;
    }
    field.fault_ends();
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let after = field.metric("proconsul_circuit_transitions_total").await;
    // Of the agent's two doors.
    let often = (after - before) / minutes / 2.0;
    field.notes("openings and closings a minute", often, often <= 20.0);
    sleep(ms(2_000)).await;
    let fault = match each.as_millis() {
        50 => "the agent comes and goes each 50 ms",
        _ => "the agent comes and goes each second",
    };
    field
        .judge(Law {
            first: ms(160),
            next: ms(160),
            new: Found(1.0, ms(900)),
            ..Law::usual("15", fault)
        })
        .await
}

/// 16: the agent comes back with an empty disk.
pub(crate) async fn the_agent_forgets_all(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.fault_begins();
    field.kill_agent();
    field.agent.forget();
    sleep(lasts).await;
    field.restart_agent().await;
    field.fault_ends();
    field.ours_is_there(ms(2_000)).await;
    sleep(ms(3_000)).await;
    field
        .judge(Law {
            first: ms(20),
            ..Law::usual("16", "the agent comes back with an empty disk")
        })
        .await
}

/// 18: the token is another one, in the file.
pub(crate) async fn the_token_is_rotated(lasts: Duration) -> Verdict {
    const NEXT: &str = "00000000-0000-4000-8000-0000000000cc";
    let file = temporary("rotated");
    let plan = Plan {
        token_file: Some(file.clone()),
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    field.fault_begins();
    make_token(&field.servers[0], NEXT).await;
    sleep(ms(500)).await;
    let next = temporary("rotated-next");
    fs::write(&next, NEXT).unwrap();
    fs::rename(&next, &file).unwrap();
    // The old one is taken away when nobody needs it any more.
    sleep(ms(2_000)).await;
    field.delete_token(TOKEN).await;
    sleep(lasts).await;
    field.fault_ends();
    _ = fs::remove_file(file);
    let denied = field
        .metric("proconsul_source_errors_total{source=\"http\",reason=\"denied\"}")
        .await;
    field.notes("denied", denied, true);
    field
        .judge(Law::usual("18", "the token is rotated in its file"))
        .await
}

/// 20: an old snapshot of the servers' data is restored.
pub(crate) async fn an_old_snapshot_is_restored(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.stop_changes().await;
    let request = field.servers[0].request(reqwest::Method::GET, "/v1/snapshot");
    let saved = request.send().await.unwrap().bytes().await.unwrap();
    let sets: Vec<_> = (0..10)
        .map(|name| field.history.now(&asked(&known(name))))
        .collect();
    for name in 0..10 {
        field.add_instance(name, 7).await;
    }
    sleep(ms(1_500)).await;
    field.fault_begins();
    let began = Instant::now();
    let request = field.servers[0].request(reqwest::Method::PUT, "/v1/snapshot");
    let restored = request.body(saved).send().await.unwrap();
    assert!(restored.status().is_success());
    for (name, set) in (0..10).zip(sets) {
        let now = Some(Instant::now());
        field.history.changed(&asked(&known(name)), set, began, now);
    }
    let mut late = Duration::ZERO;
    wait_for("the sets that were restored", async || {
        late = began.elapsed();
        let told = ask(
            field.stub.dns,
            &asked(&known(3)),
            RecordType::SRV,
            Over::Udp,
        )
        .await;
        let told = told.map(|(reply, _)| reply.answers.len());
        (told == Some(field.history.now(&asked(&known(3))).len())).then_some(())
    })
    .await;
    field.notes(
        "restored sets seen after s",
        late.as_secs_f64(),
        late < ms(7_000),
    );
    sleep(lasts).await;
    field.fault_ends();
    field
        .shows("proconsul_protection_active", |active| active == 0.0)
        .await;
    // What was seen is newer than what is restored: it is held until that is no passing state.
    field.late_by(ms(7_000));
    field
        .judge(Law::usual(
            "20",
            "an old snapshot of the servers is restored",
        ))
        .await
}

/// 22: all instances of a service fail their checks, and are well again.
pub(crate) async fn all_instances_are_critical(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    let sick = |number: u16, status: &str| {
        let mut node = super::instance("sick", number, 6_000 + number);
        node["Check"] = json!({
            "Node": format!("sick-{number}"), "CheckID": format!("c{number}"), "Name": "own",
            "ServiceID": format!("sick-{number}"), "Status": status,
        });
        node
    };
    for number in 0..3 {
        field.servers[0]
            .put("/v1/catalog/register", sick(number, "passing"))
            .await;
    }
    field.calm().await;
    field.warm("sick").await;
    field.fault_begins();
    for (status, count, what) in [
        ("critical", 0, "gone after s"),
        ("passing", 3, "back after s"),
    ] {
        for number in 0..3 {
            field.servers[0]
                .put("/v1/catalog/register", sick(number, status))
                .await;
        }
        let took = field.until_count("sick", count).await;
        field.notes(what, took.as_secs_f64(), took < ms(1_000));
        sleep(lasts / 2).await;
    }
    field
        .shows("proconsul_protection_active", |active| active == 0.0)
        .await;
    field.fault_ends();
    field
        .judge(Law::usual("22", "all instances of a service are critical"))
        .await
}

/// 23: the agent's certificate is no longer good, and is renewed by another authority.
pub(crate) async fn the_certificate_is_not_good(lasts: Duration) -> Verdict {
    let (cert, key, ca) = (temporary("cert"), temporary("key"), temporary("ca"));
    let write = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(&cert, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        made.cert.pem()
    };
    fs::write(&ca, write("localhost")).unwrap();
    let tls = Plan {
        agent: json!({ "cert_file": cert, "key_file": key }),
        ca_file: Some(ca.clone()),
        ..Plan::default()
    };
    let mut field = Field::start(tls).await;
    field.calm().await;
    field.fault_begins();
    // The same agent, with a certificate that nobody vouches for.
    let next = write("localhost");
    field.restart_agent().await;
    sleep(lasts).await;
    let errors = "proconsul_source_errors_total{source=\"http\"}";
    field.shows(errors, |count| count > 0.0).await;
    fs::write(&ca, next).unwrap();
    field.fault_ends();
    let began = Instant::now();
    let up = "proconsul_source_up{source=\"http\"}";
    while field.metric(up).await == 0.0 && began.elapsed() < Duration::from_secs(40) {
        sleep(ms(200)).await;
    }
    let took = began.elapsed().as_secs_f64();
    field.notes("a new authority is believed after s", took, took < 31.0);
    for file in [cert, key, ca] {
        _ = fs::remove_file(file);
    }
    field
        .judge(Law {
            // The agent itself restarts, and nobody else is asked here.
            first: ms(160),
            next: ms(160),
            new: Either(ms(900)),
            recovers: None,
            ..Law::usual("23", "the agent's certificate is not good")
        })
        .await
}

/// 24: the HTTP API sends its clients elsewhere.
pub(crate) async fn http_redirects(lasts: Duration) -> Verdict {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = elsewhere.local_addr().unwrap();
    let visits = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&visits);
    let waits = tokio::spawn(async move {
        while elsewhere.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let says =
        format!("HTTP/1.1 302 Found\r\nLocation: http://{there}/v1/\r\nContent-Length: 0\r\n\r\n");
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.fault_begins();
    // Connections that are open do not change their mind.
    field.weather_of_http(&Weather::refused());
    sleep(ms(50)).await;
    field.weather_of_http(&Weather {
        says: Some(says.into()),
        ..Weather::default()
    });
    sleep(lasts).await;
    field
        .shows("proconsul_source_errors_total{source=\"http\"}", |count| {
            count > 0.0
        })
        .await;
    field.weather_of_http(&Weather::refused());
    sleep(ms(50)).await;
    field.weather_of_http(&Weather::default());
    field.fault_ends();
    sleep(ms(3_000)).await;
    waits.abort();
    let visits = visits.load(Ordering::Relaxed);
    field.notes("visits elsewhere", f64::from(visits), visits == 0);
    field
        .judge(Law::usual("24", "HTTP redirects to another host"))
        .await
}

/// 25: the HTTP API asks to be left alone.
pub(crate) async fn http_is_throttled(lasts: Duration, status: u16) -> Verdict {
    let says: Arc<str> = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").into();
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.fault_begins();
    field.weather_of_http(&Weather::refused());
    sleep(ms(50)).await;
    field.weather_of_http(&Weather {
        says: Some(says),
        ..Weather::default()
    });
    sleep(lasts).await;
    let errors = "proconsul_source_errors_total{source=\"http\"}";
    field.shows(errors, |count| count > 0.0).await;
    field.weather_of_http(&Weather::refused());
    sleep(ms(50)).await;
    field.weather_of_http(&Weather::default());
    field.fault_ends();
    sleep(ms(3_000)).await;
    let fault = match status {
        429 => "HTTP says 429",
        _ => "HTTP says 503",
    };
    field.judge(Law::usual("25", fault)).await
}

/// 28: the agent, and the stub, lose sight of the servers, which go on.
pub(crate) async fn the_servers_are_out_of_sight(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.stop_changes().await;
    field.fault_begins();
    field.servers.iter().for_each(|server| server.pause());
    sleep(lasts * 4).await;
    field
        .shows("proconsul_stale_served_total", |count| count > 0.0)
        .await;
    field.fault_wanes();
    field.servers.iter().for_each(|server| server.resume());
    leader(&field.servers).await;
    field.fault_ends();
    field.ours_is_there(ms(5_000)).await;
    sleep(ms(6_000)).await;
    field
        .judge(Law {
            first: ms(200),
            new: Either(ms(900)),
            recovers: Some(ms(5_000)),
            ..Law::usual("28", "all servers hang")
        })
        .await
}

/// 29: questions arrive at the agent, and answers do not come back.
pub(crate) async fn answers_are_lost(lasts: Duration) -> Verdict {
    let law = Law {
        first: ms(200),
        new: Found(1.0, ms(400)),
        ..Law::usual("29", "answers of the agent are lost")
    };
    let one_way = Weather {
        replies_lost: true,
        ..Weather::default()
    };
    weather(law, lasts, false, one_way).await
}

/// A name server of Debian's for other names, which ends with this.
struct Upstream(std::process::Child, SocketAddr);

impl Upstream {
    fn start(last: u8, answers: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, last], 5_300));
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
            ])
            .args([
                "--no-hosts",
                "--bind-interfaces",
                "--pid-file",
                "--local-ttl=1",
                "--user=root",
            ])
            .arg(format!("--port={}", address.port()))
            .arg(format!("--listen-address={}", address.ip()))
            .arg(answers);
        let child = command
            .spawn()
            .expect("dnsmasq: scripts/withstand installs it");
        Self(child, address)
    }

    fn signal(&self, name: &str) {
        crate::support::signal(self.0.id(), name);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

const ANSWERS: &str = "--address=/example.test/192.0.2.1";

/// 30, 31, 32: upstreams of other names die, hang or lie.
pub(crate) async fn upstreams_fail(lasts: Duration) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (row, fault) in [
        ("30", "the first upstream is killed"),
        ("30", "the first upstream hangs"),
        ("31", "both upstreams are killed"),
        ("32", "the first upstream refuses all"),
    ] {
        let mut first = Upstream::start(31, ANSWERS);
        let mut second = Upstream::start(32, ANSWERS);
        let plan = Plan {
            upstreams: vec![first.1, second.1],
            ..Plan::default()
        };
        let mut field = Field::start(plan).await;
        let stub = field.stub.dns;
        let asks = async |name: String| {
            let began = Instant::now();
            let told = ask(stub, &name, RecordType::A, Over::Udp).await;
            let found = told.is_some_and(|(reply, _)| reply.answers.len() == 1);
            (found, began.elapsed())
        };
        wait_for("an upstream", async || {
            asks("known.example.test.".into()).await.0.then_some(())
        })
        .await;
        field.calm().await;
        field.fault_begins();
        match fault {
            "the first upstream is killed" => drop(first.0.kill()),
            "the first upstream hangs" => first.signal("STOP"),
            "both upstreams are killed" => {
                _ = first.0.kill();
                _ = second.0.kill();
            }
            _ => {
                drop(first);
                // Without anything to say or to ask, dnsmasq refuses.
                first = Upstream::start(31, "--log-queries=extra");
            }
        }
        let (mut known, mut new) = ((0, Duration::ZERO), (0, Duration::ZERO));
        for number in 0..20 {
            // Past its TTL of a second, in most rounds.
            let (found, took) = asks("known.example.test.".into()).await;
            known = (known.0 + u32::from(found), known.1.max(took));
            let (found, took) = asks(format!("n{number}.example.test.")).await;
            new = (new.0 + u32::from(found), new.1.max(took));
            sleep(lasts / 20).await;
        }
        field.fault_ends();
        let both = row == "31";
        field.notes(
            "known upstream names of 20",
            f64::from(known.0),
            known.0 == 20,
        );
        let worst = known.1.as_secs_f64() * 1_000.0;
        field.notes("worst ms", worst, worst < 750.0);
        let wanted = if both { 0 } else { 20 };
        field.notes(
            "new upstream names of 20",
            f64::from(new.0),
            new.0 == wanted,
        );
        let worst = new.1.as_secs_f64() * 1_000.0;
        field.notes("worst ms", worst, worst < 900.0);
        verdicts.push(field.judge(Law::usual(row, fault)).await);
    }
    verdicts
}

/// 34: the stub is paused, as a machine that sleeps.
pub(crate) async fn the_stub_is_paused(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.pause_load().await;
    field.fault_begins();
    let before = field.upstream();
    field.stub.signal("-STOP");
    sleep(lasts * 6).await;
    field.stub.signal("-CONT");
    field.resume_load();
    sleep(ms(1_000)).await;
    let burst = field.upstream() - before;
    field.notes(
        "asked of Consul in the first second",
        burst as f64,
        burst < 400,
    );
    sleep(lasts).await;
    field.fault_ends();
    field
        .judge(Law {
            first: ms(160),
            new: Found(1.0, ms(900)),
            ..Law::usual("34", "the stub is paused for a while")
        })
        .await
}

/// 35: the disk of the snapshot is full.
pub(crate) async fn the_disk_is_full(lasts: Duration) -> Option<Verdict> {
    let directory = temporary("full");
    fs::create_dir_all(&directory).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8k", "tmpfs"])
        .arg(&directory)
        .status();
    if !mount.is_ok_and(|done| done.success()) {
        return None;
    }
    let plan = Plan {
        stub: vec![
            "--snapshot".into(),
            directory.join("snapshot").display().to_string(),
        ],
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    field.fault_begins();
    sleep(lasts).await;
    field
        .shows("proconsul_snapshot_errors_total", |count| count > 0.0)
        .await;
    field.fault_ends();
    let verdict = field.judge(Law::usual("35", "the disk is full")).await;
    _ = Command::new("umount").arg(&directory).status();
    Some(verdict)
}

/// 36: few descriptors, and many clients over TCP.
pub(crate) async fn descriptors_run_out(lasts: Duration) -> Verdict {
    let plan = Plan {
        wrapped: vec!["prlimit".into(), "--nofile=96".into()],
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    field.fault_begins();
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(tokio::net::TcpStream::connect(field.stub.dns).await);
    }
    sleep(lasts).await;
    drop(clients);
    field.fault_ends();
    sleep(ms(1_000)).await;
    let after = ask(
        field.stub.dns,
        &asked(&known(1)),
        RecordType::SRV,
        Over::Tcp,
    )
    .await;
    field.notes(
        "over TCP afterwards",
        f64::from(u8::from(after.is_some())),
        after.is_some(),
    );
    field
        .judge(Law {
            first: ms(20),
            new: Found(0.9, ms(900)),
            ..Law::usual("36", "descriptors run out under 200 TCP clients")
        })
        .await
}

/// 37: the wall clock jumps.
pub(crate) async fn the_clock_jumps(lasts: Duration) -> Option<Verdict> {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    if !std::path::Path::new(library).exists() {
        return None;
    }
    let file = temporary("clock");
    fs::write(&file, "+0").unwrap();
    let plan = Plan {
        wrapped: vec![
            "env".into(),
            format!("LD_PRELOAD={library}"),
            format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
            "DONT_FAKE_MONOTONIC=1".into(),
            "FAKETIME_NO_CACHE=1".into(),
        ],
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    field.fault_begins();
    for jump in ["+1h", "-1h", "+10y", "-50y", "+0"] {
        fs::write(&file, jump).unwrap();
        sleep(lasts / 2).await;
    }
    field.fault_ends();
    sleep(ms(1_000)).await;
    let verdict = field
        .judge(Law::usual(
            "37",
            "the clock jumps by 1 h, 10 years, to before 1970",
        ))
        .await;
    _ = fs::remove_file(file);
    Some(verdict)
}

/// 38: one after the other restarts, round by round.
pub(crate) async fn all_restart_in_turn(lasts: Duration, rounds: u32) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.fault_begins();
    for _ in 0..rounds {
        for at in 0..field.servers.len() {
            field.kill_server(at);
            sleep(lasts).await;
            field.launch_server(at);
            // An operator goes on when all are well.
            wait_for("all to be well again", async || {
                let request = field.servers[(at + 1) % 3]
                    .request(reqwest::Method::GET, "/v1/operator/autopilot/health");
                let told: Value = request.send().await.ok()?.json().await.ok()?;
                (told["Healthy"] == true).then_some(())
            })
            .await;
        }
        field.kill_agent();
        sleep(lasts).await;
        field.restart_agent().await;
        field.ours_is_there(ms(5_000)).await;
    }
    field.fault_ends();
    sleep(ms(3_000)).await;
    field
        .judge(Law {
            first: ms(20),
            new: Found(0.999, ms(900)),
            ..Law::usual("38", "all restart in turn")
        })
        .await
}

/// 39: two faults at a time, others every two seconds, by a seed.
pub(crate) async fn anything_may_fail(lasts: Duration, seed: u64) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    let mut dice = SmallRng::seed_from_u64(seed);
    field.fault_begins();
    let began = Instant::now();
    let mut paused = false;
    while began.elapsed() < lasts {
        for _ in 0..2 {
            let weather = match dice.random_range(0..7_u8) {
                0 => Weather::refused(),
                1 => Weather::silent(),
                2 => Weather {
                    loss: 0.4,
                    ..Weather::default()
                },
                3 => Weather {
                    delay: ms(300),
                    jitter: 0.5,
                    ..Weather::default()
                },
                4 => Weather {
                    replies_lost: true,
                    ..Weather::default()
                },
                5 => Weather {
                    tcp_refused: true,
                    ..Weather::default()
                },
                _ => Weather {
                    bytes_a_second: Some(200),
                    ..Weather::default()
                },
            };
            match dice.random_range(0..4_u8) {
                0 => field.dns.set(weather),
                1 => field.http.set(weather),
                2 => field.weather_of_http(&weather),
                _ if !paused => {
                    field.agent.pause();
                    paused = true;
                }
                _ => field.weather_everywhere(&weather),
            }
        }
        sleep(ms(2_000)).await;
        field.weather_everywhere(&Weather::default());
        if std::mem::take(&mut paused) {
            field.agent.resume();
        }
    }
    field.fault_ends();
    field.ours_is_there(ms(5_000)).await;
    sleep(ms(5_000)).await;
    field.notes("seed", seed as f64, true);
    field
        .judge(Law {
            first: ms(200),
            next: ms(200),
            new: Either(ms(900)),
            recovers: Some(ms(5_000)),
            ..Law::usual("39", "any two faults, others every 2 s")
        })
        .await
}

impl Field {
    pub(crate) fn notes(&mut self, what: &str, value: f64, holds: bool) {
        self.seen.push((what.to_owned(), value, holds));
    }

    async fn delete_token(&self, secret: &str) {
        let tokens = self.servers[0].get("/v1/acl/tokens").await;
        for token in tokens.as_array().unwrap() {
            let id = token["AccessorID"].as_str().unwrap();
            let path = format!("/v1/acl/token/{id}");
            if self.servers[0].get(&path).await["SecretID"] == secret {
                self.servers[0].delete(&path).await;
            }
        }
    }

    /// How many instances the stub tells.
    async fn count(&self, service: &str) -> usize {
        let told = ask(self.stub.dns, &asked(service), RecordType::SRV, Over::Udp).await;
        told.map_or(usize::MAX, |(reply, _)| reply.answers.len())
    }

    /// Asks often enough for the name to be followed.
    pub(crate) async fn warm(&self, service: &str) {
        for _ in 0..125 {
            self.count(service).await;
            sleep(ms(20)).await;
        }
    }

    async fn until_count(&self, service: &str, count: usize) -> Duration {
        let began = Instant::now();
        while self.count(service).await != count && began.elapsed() < PATIENCE {
            sleep(ms(5)).await;
        }
        began.elapsed()
    }

    /// One more instance of a known name.
    async fn add_instance(&self, name: u16, number: u16) {
        let (name, port) = (known(name), super::port(name, number));
        let mut ports = self.history.now(&asked(&name));
        ports.insert(port);
        let began = Instant::now();
        let node = super::instance(&name, number, port);
        self.servers[0].put("/v1/catalog/register", node).await;
        let done = Some(Instant::now());
        self.history.changed(&asked(&name), ports, began, done);
    }
}

/// 17: the rights of the token are taken away, and given back.
pub(crate) async fn the_token_is_revoked(lasts: Duration) -> Verdict {
    let file = temporary("revoked");
    let plan = Plan {
        token_file: Some(file.clone()),
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    // Sets go on changing: a query that waits is told of lost rights when it wakes.
    field.calm().await;
    field.fault_begins();
    field.delete_token(TOKEN).await;
    // Agents remember rights for a second.
    sleep(ms(3_000) + lasts).await;
    let told = ask(
        field.stub.dns,
        &asked("nobody"),
        RecordType::SRV,
        Over::Edns(1232),
    )
    .await;
    let code = told.map(|(reply, _)| reply.metadata.response_code);
    if code != Some(ResponseCode::ServFail) {
        field.trouble(format!("a name that may not be seen is {code:?}"));
    }
    let metrics = [
        "proconsul_source_errors_total{source=\"http\",reason=\"denied\"}",
        "proconsul_stale_served_total",
    ];
    for metric in metrics {
        field.shows(metric, |count| count > 0.0).await;
    }
    make_token(&field.servers[0], TOKEN).await;
    field.fault_ends();
    sleep(ms(6_000)).await;
    _ = fs::remove_file(file);
    field
        .judge(Law {
            first: ms(160),
            new: Either(ms(900)),
            recovers: Some(ms(5_000)),
            ..Law::usual("17", "the token's rights are taken away")
        })
        .await
}
