//! Consul's servers die, hang, forget or go back in time, with the agent or without it.

use std::collections::BTreeSet;

use reqwest::Method;

use super::*;

/// 4: the leader dies, and the agent lives.
pub(crate) async fn the_leader_is_killed(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    let at = leader(&field.servers).await;
    field.kill_server(at);
    field.fault_begins();
    // What the dead one confirmed last is known to all when another leads.
    field.falls_behind();
    wait_for("another leader", async || {
        (leader(&field.servers).await != at).then_some(())
    })
    .await;
    field.catches_up(ms(500));
    sleep(lasts).await;
    field.mended(ms(1_000)).await;
    let law = Law {
        recovers: Some(ms(5_000)),
        ..Law::usual("4", "the leader is killed")
    };
    field.judge(law).await
}

/// 5: two of three servers die; the one that is left tells what it knows.
pub(crate) async fn two_servers_are_killed(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.stop_changes().await;
    field.fault_begins();
    field.kill_server(1);
    field.kill_server(2);
    sleep(lasts).await;
    field.shows(LEADER, |leads| leads == 0.0).await;
    field.one_of_ours_leaves();
    field.fault_wanes();
    field.launch_server(1);
    field.launch_server(2);
    leader(&field.servers).await;
    field.mended(ms(5_000)).await;
    let law = Law {
        // What the last one knows is unconfirmed.
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("5", "two of three servers are killed")
    };
    field.judge(law).await
}

/// 6: all servers die, and the agent lives.
pub(crate) async fn all_servers_are_killed(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.kill_servers();
    field.fault_begins();
    sleep(lasts).await;
    field.shows(STALE_SERVED, |count| count > 0.0).await;
    field
        .cannot_tell(&asked("nobody"), NO_REACHABLE_AUTHORITY)
        .await;
    field.one_of_ours_leaves();
    field.restart_servers().await;
    field.mended(ms(5_000)).await;
    let law = Law {
        first: ms(160),
        new: Fails(ms(900)),
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("6", "all servers are killed")
    };
    field.judge(law).await
}

/// 7 and 12: everything dies; what the operator wrote down stands in for what was never
/// found.
pub(crate) async fn all_is_killed(lasts: Duration) -> Verdict {
    let (mut field, file) = with_static_catalog().await;
    field.kill_agent();
    field.kill_servers();
    field.fault_begins();
    sleep(ms(500)).await;
    field.gives_what_is_written(ms(20)).await;
    sleep(lasts).await;
    field.shows(DNS_UP, |up| up == 0.0).await;
    field.shows(HTTP_UP, |up| up == 0.0).await;
    field
        .cannot_tell(&asked("nobody"), NO_REACHABLE_AUTHORITY)
        .await;
    field.one_of_ours_leaves_unheard().await;
    field.restart_servers().await;
    field.restart_agent().await;
    field.mended(ms(5_000)).await;
    _ = fs::remove_file(file);
    let law = Law {
        first: ms(20),
        new: Fails(ms(50)),
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("7, 12", "all is killed; a static catalog")
    };
    field.judge(law).await
}

/// 12: the same where nothing refuses and nothing answers.
pub(crate) async fn all_is_silent(lasts: Duration) -> Verdict {
    let (mut field, file) = with_static_catalog().await;
    field.weather_everywhere(&Weather::silent());
    field.fault_begins();
    sleep(ms(500)).await;
    field.gives_what_is_written(ms(900)).await;
    sleep(lasts).await;
    field.shows(STALE_SERVED, |count| count > 0.0).await;
    field.weather_everywhere(&Weather::default());
    field.mended(ms(5_000)).await;
    _ = fs::remove_file(file);
    let law = Law {
        first: ms(200),
        new: Fails(ms(900)),
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("12", "all is silent; a static catalog")
    };
    field.judge(law).await
}

async fn with_static_catalog() -> (Field, PathBuf) {
    let file = temporary("static.json");
    let written = json!({ "services": [
        { "name": "written", "address": "10.200.0.9", "port": 4_009 },
        // Never given while something better is known.
        { "name": known(0), "address": "10.200.0.10", "port": 4_010 },
    ]});
    fs::write(&file, written.to_string()).unwrap();
    let plan = Plan {
        stub: vec!["--catalog".into(), file.display().to_string()],
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    (field, file)
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
    // Whoever tells less than before has 3 s to catch up: from then on it is judged.
    sleep(lasts.max(ms(6_000))).await;
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
    register(&field.servers[0], &field.history).await;
    field.fault_ends();
    field.ours_is_there(Duration::from_secs(5)).await;
    sleep(ms(6_000)).await;
    field
        .shows("proconsul_protection_active", |active| active == 0.0)
        .await;
    let law = Law {
        first: ms(160),
        new: Gone(ms(900)),
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("19", "the servers lose their data")
    };
    field.judge(law).await
}

/// 20: an old snapshot of the servers' data is restored. Single services are what they were:
/// instances that came since are gone, and those that went are back.
pub(crate) async fn an_old_snapshot_is_restored(lasts: Duration) -> Verdict {
    const CHANGED: u16 = 20;
    let mut field = Field::start(Plan::default()).await;
    let returns = instance("returns", 0, 5_100);
    (field.servers[0].put("/v1/catalog/register", returns)).await;
    field.calm().await;
    field.stop_changes().await;
    let saved = field.snapshot().await;
    let sets: Vec<_> = (0..CHANGED)
        .map(|name| field.history.now(&asked(&known(name))))
        .collect();
    for name in 0..CHANGED {
        match name % 2 {
            0 => field.add_instance(name, 7).await,
            _ => field.remove_instance(name, 0).await,
        }
    }
    let node = json!({ "Node": "returns-0" });
    (field.servers[0].put("/v1/catalog/deregister", node)).await;
    field.warm("returns").await;
    field.fault_begins();
    let began = Instant::now();
    field.restore(saved).await;
    for (name, set) in (0..CHANGED).zip(sets) {
        let now = Some(Instant::now());
        field.history.changed(&asked(&known(name)), set, began, now);
    }
    for name in 0..CHANGED {
        let wanted = field.history.now(&asked(&known(name))).len();
        field.until_count(&known(name), wanted).await;
    }
    field.until_count("returns", 1).await;
    let late = began.elapsed();
    field.timed("restored sets seen", late, HELD);
    if late > PATIENCE {
        field.trouble("restored sets are not given");
    }
    sleep(lasts).await;
    field.fault_ends();
    field.shows(PROTECTION, |active| active == 0.0).await;
    field.late_by(HELD);
    let law = Law {
        fresh: Some(HELD),
        ..Law::usual("20", "an old snapshot of the servers is restored")
    };
    field.judge(law).await
}

/// What was seen is newer than what is restored: it is held until that is no passing state.
const HELD: Duration = ms(7_000);

/// 20: the same where many services are younger than the snapshot: they are protected, and are
/// themselves again when they return.
pub(crate) async fn a_snapshot_without_many_is_restored(lasts: Duration) -> Verdict {
    // Above the share of all that are known, of which the new names are the most.
    const YOUNG: u16 = 200;
    let young = |number: u16| format!("young-{number:03}");
    let mut field = Field::start(Plan::default()).await;
    field.stop_changes().await;
    let saved = field.snapshot().await;
    let sets: Vec<_> = (0..KNOWN)
        .map(|name| field.history.now(&asked(&known(name))))
        .collect();
    let register_young = async |field: &Field| {
        for number in 0..YOUNG {
            let one = instance(&young(number), 0, 5_200 + number);
            (field.servers[0].put("/v1/catalog/register", one)).await;
        }
    };
    register_young(&field).await;
    field.calm().await;
    for _ in 0..10 {
        for number in 0..YOUNG {
            field.count(&young(number)).await;
        }
    }
    field.stop_changes().await;
    let began = Instant::now();
    field.fault_begins();
    field.restore(saved).await;
    for (name, set) in (0..KNOWN).zip(sets) {
        let now = Some(Instant::now());
        field.history.changed(&asked(&known(name)), set, began, now);
    }
    let (mut denied, mut all) = (0, 0);
    // The first to go are believed to, until there are too many of them.
    let mut first = None;
    let began = Instant::now();
    while began.elapsed() < lasts.max(HELD) + ms(2_000) {
        for number in 0..YOUNG {
            if field.count(&young(number)).await == 0 {
                let since = *first.get_or_insert_with(Instant::now);
                denied += u32::from(since.elapsed() > ms(1_000));
            }
            all += 1;
        }
        sleep(ms(50)).await;
    }
    let what = format!("of {all} answers about what vanished deny it after a second");
    field.notes(&what, f64::from(denied), denied == 0);
    field.shows(PROTECTION, |active| active == 1.0).await;
    register_young(&field).await;
    field.fault_ends();
    // What nobody asks for stays held.
    for _ in 0..5 {
        for number in 0..YOUNG {
            field.count(&young(number)).await;
        }
        sleep(ms(600)).await;
    }
    field.shows(PROTECTION, |active| active == 0.0).await;
    field.late_by(HELD);
    let law = Law {
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("20", "a snapshot without many services is restored")
    };
    field.judge(law).await
}

/// 28: the agent, and the stub, lose sight of the servers, which go on.
pub(crate) async fn the_servers_are_out_of_sight(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.stop_changes().await;
    field.fault_begins();
    field.servers.iter().for_each(|server| server.pause());
    sleep(lasts * 4).await;
    field.shows(STALE_SERVED, |count| count > 0.0).await;
    field
        .cannot_tell(&asked("nobody"), NO_REACHABLE_AUTHORITY)
        .await;
    field.one_of_ours_leaves();
    field.fault_wanes();
    field.servers.iter().for_each(|server| server.resume());
    leader(&field.servers).await;
    field.mended(ms(6_000)).await;
    let law = Law {
        first: ms(200),
        new: Fails(ms(900)),
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("28", "all servers hang")
    };
    field.judge(law).await
}

/// 38: one after the other restarts, round by round.
pub(crate) async fn all_restart_in_turn(lasts: Duration, rounds: u32) -> Verdict {
    let mut field = Field::usual().await;
    field.fault_begins();
    for _ in 0..rounds {
        for at in 0..field.servers.len() {
            field.step();
            field.kill_server(at);
            sleep(lasts).await;
            field.step();
            field.launch_server(at);
            // An operator goes on when all are well.
            wait_for("all to be well again", async || {
                let request = field.servers[(at + 1) % 3]
                    .request(Method::GET, "/v1/operator/autopilot/health");
                let told: Value = request.send().await.ok()?.json().await.ok()?;
                (told["Healthy"] == true).then_some(())
            })
            .await;
        }
        field.step();
        field.kill_agent();
        sleep(lasts).await;
        field.restart_agent().await;
        field.step();
        field.ours_is_there(ms(5_000)).await;
    }
    field.fault_ends();
    sleep(ms(3_000)).await;
    let law = Law {
        first: ms(20),
        new: Found(1.0, ms(400)),
        ..Law::usual("38", "all restart in turn")
    };
    field.judge(law).await
}

impl Field {
    /// What the operator wrote down, for a name that was never found.
    async fn gives_what_is_written(&mut self, within: Duration) {
        let began = Instant::now();
        if self.count("written").await != 1 {
            self.trouble("what is written down is not given");
        }
        self.timed("static default", began.elapsed(), within);
    }

    /// One more instance of a known name.
    async fn add_instance(&self, name: u16, number: u16) {
        let mut ports = self.history.now(&asked(&known(name)));
        ports.insert(port(name, number));
        let node = instance(&known(name), number, port(name, number));
        self.change(name, "register", node, ports).await;
    }

    /// One less.
    async fn remove_instance(&self, name: u16, number: u16) {
        let mut ports = self.history.now(&asked(&known(name)));
        ports.remove(&port(name, number));
        let node = json!({ "Node": format!("{}-{number}", known(name)) });
        self.change(name, "deregister", node, ports).await;
    }

    async fn change(&self, name: u16, how: &str, node: Value, ports: BTreeSet<u16>) {
        let began = Instant::now();
        let path = format!("/v1/catalog/{how}");
        self.servers[0].put(&path, node).await;
        let done = Some(Instant::now());
        self.history
            .changed(&asked(&known(name)), ports, began, done);
    }

    /// All that the servers know.
    async fn snapshot(&self) -> Vec<u8> {
        let request = self.servers[0].request(Method::GET, "/v1/snapshot");
        let saved = request.send().await.unwrap().bytes().await.unwrap();
        saved.to_vec()
    }

    async fn restore(&self, saved: Vec<u8>) {
        let request = self.servers[0].request(Method::PUT, "/v1/snapshot");
        let restored = request.body(saved).send().await.unwrap();
        assert!(restored.status().is_success());
    }
}
