//! The stub and its machine: killed, paused, without disk, descriptors or a clock.

use std::process::Command;

use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use super::*;
use crate::support::{framed, next_message};

/// 33: the stub is killed and started again while all of Consul is away.
pub(crate) async fn the_stub_is_killed_without_consul(lasts: Duration) -> Verdict {
    let snapshot = temporary("snapshot");
    _ = fs::remove_file(&snapshot);
    let plan = Plan {
        stub: vec!["--snapshot".into(), snapshot.display().to_string()],
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    field.stop_changes().await;
    wait_for("a snapshot of every name", async || {
        let text = fs::read(&snapshot).ok()?;
        let text = String::from_utf8_lossy(&text);
        let is_there = |name| text.contains(&known(name));
        (0..KNOWN).all(is_there).then_some(())
    })
    .await;
    field.pause_load().await;
    field.weather_everywhere(&Weather::refused());
    field.stub.signal("-KILL");
    field.stub.wait();
    let began = Instant::now();
    field.restart_stub();
    let mut first = None;
    while first.is_none() && began.elapsed() < PATIENCE {
        first = ask(field.stub.dns, &asked("svc-07"), RecordType::SRV, Over::Udp).await;
    }
    let took = began.elapsed();
    if first.is_none_or(|(reply, _)| reply.answers.len() < 3) {
        field.trouble("the snapshot is not given");
    }
    field.timed("start to first answer", took, ms(100));
    field.fault_begins();
    field.resume_load();
    sleep(lasts).await;
    field.shows(STALE_SERVED, |count| count > 0.0).await;
    field.weather_everywhere(&Weather::default());
    field.mended(ms(6_000)).await;
    _ = fs::remove_file(snapshot);
    let law = Law {
        first: ms(100),
        new: Fails(ms(50)),
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("33", "the stub is killed while Consul is away; a snapshot")
    };
    field.judge(law).await
}

/// 34: the stub is paused, as a machine that sleeps.
pub(crate) async fn the_stub_is_paused(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.pause_load().await;
    field.fault_begins();
    let before = field.upstream();
    field.stub.signal("-STOP");
    sleep(lasts * 6).await;
    field.stub.signal("-CONT");
    field.step();
    field.resume_load();
    sleep(ms(1_000)).await;
    // Twice what is usual where no name is followed.
    let burst = (field.upstream() - before) as f64;
    field.notes("asked of Consul in the first second", burst, burst <= 200.0);
    sleep(lasts).await;
    field.fault_ends();
    let law = Law {
        first: ms(160),
        new: Found(1.0, ms(900)),
        ..Law::usual("34", "the stub is paused for a while")
    };
    field.judge(law).await
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
    let snapshot = directory.join("snapshot");
    let plan = Plan {
        stub: vec!["--snapshot".into(), snapshot.display().to_string()],
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
        wrapped: vec!["prlimit".into(), "--nofile=64".into()],
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    let mut before = TcpStream::connect(field.stub.dns).await.unwrap();
    field.fault_begins();
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(TcpStream::connect(field.stub.dns).await);
    }
    let (mut unanswered, mut worst) = (0, Duration::ZERO);
    let began = Instant::now();
    // Who says nothing for 200 ms makes room for others.
    while began.elapsed() < lasts {
        let sent = Instant::now();
        let there = asks_on(&mut before, &asked(&known(2))).await;
        unanswered += u32::from(!there);
        worst = worst.max(sent.elapsed());
        sleep(ms(20)).await;
    }
    let what = "unanswered on a connection of before";
    field.notes(what, f64::from(unanswered), unanswered == 0);
    field.timed("and worst there", worst, ms(20));
    drop(clients);
    field.fault_ends();
    sleep(ms(1_000)).await;
    let name = asked(&known(1));
    let after = ask(field.stub.dns, &name, RecordType::SRV, Over::Tcp).await;
    let answered = after.is_some();
    field.notes(
        "over TCP afterwards",
        f64::from(u8::from(answered)),
        answered,
    );
    let law = Law {
        first: ms(20),
        new: Found(1.0, ms(900)),
        ..Law::usual("36", "descriptors run out under 200 TCP clients")
    };
    field.judge(law).await
}

/// Whether a question on this connection is answered.
async fn asks_on(stream: &mut TcpStream, name: &str) -> bool {
    let question = super::super::load::question(name, RecordType::SRV);
    let asked = async {
        stream.write_all(&framed(&question)).await.ok()?;
        next_message(stream).await
    };
    matches!(timeout(ms(2_000), asked).await, Ok(Some(_)))
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
    let law = Law::usual("37", "the clock jumps by 1 h, 10 years, to before 1970");
    let verdict = field.judge(law).await;
    _ = fs::remove_file(file);
    Some(verdict)
}
