//! The rows of the fault matrix that are quick. Each makes its fault in a [`Field`] of its
//! own, and gives what that cost.

use std::{fs, time::Duration};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Field, Plan, asked, instance,
    verdict::{
        Law,
        New::{Either, Fails, Found, Gone},
        Verdict, ms,
    },
};
use crate::support::{Over, PATIENCE, Weather, ask, leader, wait_for};

/// 1: the client agent dies, and comes back.
pub(crate) async fn the_agent_is_killed(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.kill_agent();
    field.fault_begins();
    sleep(lasts).await;
    field
        .shows("proconsul_source_up{source=\"dns\"}", |up| up == 0.0)
        .await;
    field.restart_agent().await;
    field.fault_ends();
    field.ours_is_there(Duration::from_secs(5)).await;
    sleep(ms(3_000)).await;
    field
        .shows("proconsul_source_up{source=\"dns\"}", |up| up == 1.0)
        .await;
    let law = Law {
        first: ms(20),
        ..Law::usual("1", "the agent is killed")
    };
    field.judge(law).await
}

/// 2 and 3: the client agent hangs, and goes on.
pub(crate) async fn the_agent_hangs(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.agent.pause();
    field.fault_begins();
    sleep(lasts).await;
    field
        .shows("proconsul_source_up{source=\"dns\"}", |up| up == 0.0)
        .await;
    field.agent.resume();
    field.fault_ends();
    field.ours_is_there(Duration::from_secs(5)).await;
    sleep(ms(3_000)).await;
    let law = Law {
        first: ms(200),
        new: Found(1.0, ms(400)),
        ..Law::usual("2, 3", "the agent hangs")
    };
    field.judge(law).await
}

/// 4: the leader dies, and the agent lives.
pub(crate) async fn the_leader_is_killed(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    let at = leader(&field.servers).await;
    field.kill_server(at);
    field.fault_begins();
    sleep(lasts).await;
    leader(&field.servers).await;
    field.fault_ends();
    field.ours_is_there(Duration::from_secs(5)).await;
    sleep(ms(1_000)).await;
    let law = Law {
        recovers: Some(ms(5_000)),
        ..Law::usual("4", "the leader is killed")
    };
    field.judge(law).await
}

/// 6: all servers die, and the agent lives.
pub(crate) async fn all_servers_are_killed(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.kill_servers();
    field.fault_begins();
    sleep(lasts).await;
    field
        .shows("proconsul_stale_served_total", |count| count > 0.0)
        .await;
    field.fault_wanes();
    field.launch_servers();
    leader(&field.servers).await;
    field.fault_ends();
    field.ours_is_there(Duration::from_secs(5)).await;
    sleep(ms(5_000)).await;
    let law = Law {
        first: ms(160),
        new: Either(ms(900)),
        recovers: Some(ms(5_000)),
        ..Law::usual("6", "all servers are killed")
    };
    field.judge(law).await
}

/// 7 and 12: everything dies; what the operator wrote down stands in for what was never
/// found.
pub(crate) async fn all_is_killed(lasts: Duration) -> Verdict {
    let file = std::env::temp_dir().join(format!("static-{}.json", std::process::id()));
    let written = json!({ "services": [
        { "name": "written", "address": "10.200.0.9", "port": 4_009 },
        // Never given while something better is known.
        { "name": super::known(0), "address": "10.200.0.10", "port": 4_010 },
    ]});
    fs::write(&file, written.to_string()).unwrap();
    let plan = Plan {
        stub: vec!["--catalog".into(), file.display().to_string()],
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    field.kill_agent();
    field.kill_servers();
    field.fault_begins();
    sleep(ms(500)).await;
    let began = Instant::now();
    let given = ask(
        field.stub.dns,
        &asked("written"),
        RecordType::SRV,
        Over::Udp,
    )
    .await;
    let took = began.elapsed().as_secs_f64();
    let found = given.is_some_and(|(reply, _)| reply.answers.len() == 1);
    let note = (
        "static default after s".to_owned(),
        took,
        found && took < 0.9,
    );
    field.seen.push(note);
    sleep(lasts).await;
    for source in ["dns", "http"] {
        let up = format!("proconsul_source_up{{source=\"{source}\"}}");
        field.shows(&up, |up| up == 0.0).await;
    }
    field.fault_wanes();
    field.launch_servers();
    leader(&field.servers).await;
    field.restart_agent().await;
    field.fault_ends();
    field.ours_is_there(Duration::from_secs(5)).await;
    sleep(ms(5_000)).await;
    _ = fs::remove_file(file);
    let law = Law {
        first: ms(20),
        new: Fails(ms(50)),
        recovers: Some(ms(5_000)),
        ..Law::usual("7, 12", "all is killed; a static catalog")
    };
    field.judge(law).await
}

/// 8: the DNS port is closed.
pub(crate) async fn dns_is_refused(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.dns.set(Weather::refused());
    field.fault_begins();
    sleep(lasts).await;
    field
        .shows(
            "proconsul_fallbacks_total{from=\"dns\",to=\"http\"}",
            |count| count > 0.0,
        )
        .await;
    field.dns.set(Weather::default());
    field.fault_ends();
    sleep(ms(2_000)).await;
    let law = Law {
        first: ms(20),
        ..Law::usual("8", "DNS is refused")
    };
    field.judge(law).await
}

/// 9: the DNS port is silent.
pub(crate) async fn dns_is_silent(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.dns.set(Weather::silent());
    field.fault_begins();
    sleep(lasts).await;
    field
        .shows(
            "proconsul_fallbacks_total{from=\"dns\",to=\"http\"}",
            |count| count > 0.0,
        )
        .await;
    field
        .shows("proconsul_source_up{source=\"dns\"}", |up| up == 0.0)
        .await;
    field.dns.set(Weather::default());
    field.fault_ends();
    sleep(ms(2_000)).await;
    let law = Law {
        first: ms(200),
        new: Found(1.0, ms(300)),
        ..Law::usual("9", "DNS is silent")
    };
    field.judge(law).await
}

/// 10: HTTP is closed everywhere, and DNS answers.
pub(crate) async fn http_is_refused(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.weather_of_http(&Weather::refused());
    field.fault_begins();
    sleep(lasts).await;
    field
        .shows("proconsul_source_up{source=\"http\"}", |up| up == 0.0)
        .await;
    field.weather_of_http(&Weather::default());
    field.fault_ends();
    field.ours_is_there(Duration::from_secs(5)).await;
    sleep(ms(2_000)).await;
    let law = Law::usual("10", "HTTP is refused");
    field.judge(law).await
}

/// 19: the servers come back without their data, and the services return later.
pub(crate) async fn the_servers_lose_their_data(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.calm().await;
    field.stop_changes().await;
    field.kill_servers();
    field.servers.iter().for_each(|server| server.forget());
    field.fault_begins();
    field.launch_servers();
    leader(&field.servers).await;
    // The agents' own service is there again: an answer that proves something.
    wait_for("the agents to tell who they are", async || {
        let request = field.servers[0].request(Method::GET, "/v1/health/service/consul");
        let told: Value = request.send().await.ok()?.json().await.ok()?;
        (told.as_array()?.len() == 3).then_some(())
    })
    .await;
    sleep(lasts).await;
    field
        .shows("proconsul_protection_active", |active| active == 1.0)
        .await;
    // New names are truly gone.
    let gone = ask(
        field.stub.dns,
        &asked("new-1499"),
        RecordType::SRV,
        Over::Udp,
    )
    .await;
    let code = gone.map(|(reply, _)| reply.metadata.response_code);
    if code != Some(ResponseCode::NXDomain) {
        field.trouble(format!("a name that nobody registered is {code:?}"));
    }
    super::register(&field.servers[0], &field.history).await;
    field.fault_ends();
    field.ours_is_there(Duration::from_secs(5)).await;
    sleep(ms(6_000)).await;
    field
        .shows("proconsul_protection_active", |active| active == 0.0)
        .await;
    let law = Law {
        first: ms(160),
        new: Gone(ms(900)),
        recovers: Some(ms(5_000)),
        ..Law::usual("19", "the servers lose their data")
    };
    field.judge(law).await
}

/// 21: a service is taken down while all is well.
pub(crate) async fn a_service_is_taken_down(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    for number in 0..3 {
        let leaving = instance("leaving", number, 5_000 + number);
        field.servers[0].put("/v1/catalog/register", leaving).await;
    }
    let stub = field.stub.dns;
    let there = async || {
        let told = ask(stub, &asked("leaving"), RecordType::SRV, Over::Udp).await;
        told.map(|(reply, _)| (reply.metadata.response_code, reply.answers.len()))
    };
    wait_for("the service that leaves", async || {
        (there().await? == (ResponseCode::NoError, 3)).then_some(())
    })
    .await;
    field.calm().await;
    field.warm("leaving").await;
    field.fault_begins();
    for number in 0..3 {
        let node = json!({ "Node": format!("leaving-{number}") });
        field.servers[0].put("/v1/catalog/deregister", node).await;
    }
    let began = Instant::now();
    while there().await != Some((ResponseCode::NXDomain, 0)) && began.elapsed() < PATIENCE {
        sleep(ms(5)).await;
    }
    let took = began.elapsed().as_secs_f64();
    field.seen.push(("gone after s".into(), took, took <= 1.0));
    sleep(lasts).await;
    field
        .shows("proconsul_protection_active", |active| active == 0.0)
        .await;
    field.fault_ends();
    let law = Law {
        recovers: None,
        ..Law::usual("21", "a service is taken down")
    };
    field.judge(law).await
}

/// 33: the stub is killed and started again while all of Consul is away.
pub(crate) async fn the_stub_is_killed_without_consul(lasts: Duration) -> Verdict {
    let snapshot = std::env::temp_dir().join(format!("snapshot-{}", std::process::id()));
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
        let last = super::known(super::KNOWN - 1);
        let all = String::from_utf8_lossy(&text).contains(&last);
        all.then_some(())
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
    let took = began.elapsed().as_secs_f64();
    let found = first.is_some_and(|(reply, _)| reply.answers.len() >= 3);
    let note = (
        "start to first answer s".to_owned(),
        took,
        found && took < 1.0,
    );
    field.seen.push(note);
    field.fault_begins();
    field.resume_load();
    sleep(lasts).await;
    field
        .shows("proconsul_stale_served_total", |count| count > 0.0)
        .await;
    field.weather_everywhere(&Weather::default());
    field.fault_ends();
    sleep(ms(6_000)).await;
    _ = fs::remove_file(snapshot);
    let law = Law {
        first: ms(100),
        new: Fails(ms(50)),
        recovers: Some(ms(5_000)),
        ..Law::usual("33", "the stub is killed while Consul is away; a snapshot")
    };
    field.judge(law).await
}
