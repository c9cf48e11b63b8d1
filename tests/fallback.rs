//! What happens when Consul fails, against real agents: the rungs of the ladder,
//! stale answers, the snapshot, and what an empty answer may delete.

mod support;

use std::{
    net::Ipv4Addr,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proconsul::{
    Answer, Error, ErrorKind, Freshness, Outcome, Reason, Resolver, ResolverBuilder, Source,
};
use serde_json::json;
use support::{
    Agent, Proxy, SilentDns, Weather, closed_port,
    http::{self, ScriptedHttp, Step, entries, ok},
    wait_for,
};

/// A short floor: what is asked again after it has to ask somebody.
fn builder(agent: &Agent) -> ResolverBuilder {
    Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http())
        .ttl_floor(Duration::from_millis(20))
}

fn ports(answer: &Answer) -> Vec<u16> {
    let mut ports: Vec<_> = answer
        .endpoints()
        .iter()
        .map(|endpoint| endpoint.port)
        .collect();
    ports.sort_unstable();
    ports
}

/// An agent that has `services`, each with one instance on a port of its own.
async fn agent_with(services: &[&str]) -> Agent {
    let agent = Agent::start().await;
    register(&agent, services).await;
    agent
}

async fn register(agent: &Agent, services: &[&str]) {
    for (index, service) in services.iter().enumerate() {
        let body = json!({ "Name": service, "Address": "10.0.0.1", "Port": 8000 + index });
        agent.register_service(body).await;
    }
}

/// Looks all names up; the endpoints that each has.
async fn find(resolver: &Resolver, names: &[&str]) -> Vec<Result<usize, ErrorKind>> {
    let mut found = Vec::new();
    for name in names {
        let answer = resolver.lookup(*name).await;
        found.push(
            answer
                .map(|answer| answer.endpoints().len())
                .map_err(|error| error.kind()),
        );
    }
    found
}

async fn fresh(resolver: &Resolver, name: &str) -> Answer {
    wait_for("a fresh answer", async || {
        resolver.lookup(name).require_fresh().await.ok()
    })
    .await
}

async fn gone(resolver: &Resolver, name: &str) -> Error {
    wait_for("the end of the name", async || {
        resolver
            .lookup(name)
            .await
            .err()
            .filter(Error::is_not_found)
    })
    .await
}

struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let name = format!("proconsul-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let mut lock = self.0.clone().into_os_string();
        lock.push(".lock");
        let _ = std::fs::remove_file(lock);
    }
}

#[tokio::test]
async fn with_the_dns_port_closed_http_answers_and_dns_is_soon_left_alone() {
    let agent = agent_with(&["web"]).await;
    let resolver = builder(&agent)
        .dns(&closed_port().to_string())
        .build()
        .unwrap();
    let outcomes = |answer: &Answer| -> Vec<_> {
        let attempts = answer.attempts().iter();
        attempts
            .map(|attempt| (attempt.source, attempt.outcome))
            .collect()
    };
    let first = resolver.lookup("web").await.unwrap();
    let answered = (Source::Http, Outcome::Answered);
    assert_eq!(
        outcomes(&first),
        [(Source::Dns, Outcome::Refused), answered]
    );
    let second = resolver
        .lookup("web")
        .max_age(Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(
        outcomes(&second),
        [(Source::Dns, Outcome::Skipped), answered]
    );
    assert_eq!(second.freshness(), Freshness::Fresh);
    let metrics = resolver.metrics().to_string();
    for line in [
        "proconsul_source_up{source=\"dns\"} 0",
        "proconsul_source_up{source=\"http\"} 1",
        "proconsul_fallbacks_total{from=\"dns\",to=\"http\"} 2",
        "proconsul_source_errors_total{source=\"dns\",reason=\"refused\"} 1",
    ] {
        assert!(
            metrics.lines().any(|own| own == line),
            "{line} is not in\n{metrics}"
        );
    }
}

#[tokio::test]
async fn beside_a_silent_dns_port_http_is_asked_and_not_after_it() {
    let agent = agent_with(&["web"]).await;
    let silent = SilentDns::start();
    let resolver = builder(&agent)
        .dns(&silent.address().to_string())
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    let answer = resolver.lookup("web").await.unwrap();
    assert_eq!(answer.source(), Source::Http);
    let outcomes: Vec<_> = answer
        .attempts()
        .iter()
        .map(|attempt| attempt.outcome)
        .collect();
    // It would be a time-out had anybody waited for it.
    assert!(outcomes.contains(&Outcome::Late), "{outcomes:?}");
    // Three times late in a row, and nobody waits for the delay any more.
    for _ in 0..2 {
        resolver
            .lookup("web")
            .max_age(Duration::ZERO)
            .await
            .unwrap();
    }
    let answer = resolver
        .lookup("web")
        .max_age(Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(answer.attempts()[0].outcome, Outcome::Skipped);
}

#[tokio::test]
async fn with_http_closed_dns_goes_on_answering() {
    let agent = agent_with(&["web"]).await;
    let closed = format!("http://{}", closed_port());
    let resolver = builder(&agent).http(&closed).build().unwrap();
    for _ in 0..3 {
        let answer = resolver
            .lookup("web")
            .max_age(Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(
            (answer.source(), answer.freshness()),
            (Source::Dns, Freshness::Fresh)
        );
    }
}

#[tokio::test]
async fn a_second_agent_is_asked_when_the_first_is_gone() {
    let agent = agent_with(&["web"]).await;
    let dns = format!("{},{}", closed_port(), agent.dns());
    let http = format!("http://{},{}", closed_port(), agent.http());
    let over_dns = builder(&agent).dns(&dns).http("none").build().unwrap();
    assert_eq!(over_dns.lookup("web").await.unwrap().source(), Source::Dns);
    let over_http = builder(&agent).dns("none").http(&http).build().unwrap();
    assert_eq!(
        over_http.lookup("web").await.unwrap().source(),
        Source::Http
    );
}

#[tokio::test]
async fn what_was_found_once_is_given_while_consul_is_gone_and_the_truth_when_it_is_back() {
    let mut agent = agent_with(&["web"]).await;
    let resolver = builder(&agent).build().unwrap();
    assert_eq!(ports(&fresh(&resolver, "web").await), [8000]);
    agent.stop().await;
    for _ in 0..50 {
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(ports(&answer), [8000]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stale = resolver.lookup("web").await.unwrap();
    assert_eq!(
        (stale.freshness(), stale.protected()),
        (Freshness::Stale, None)
    );
    assert!(stale.age() >= Duration::from_millis(500));
    // Where somebody was asked, what was known is the last step.
    let steps = wait_for("a look-up that asks", async || {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let stale = resolver.lookup("web").await.unwrap();
        let steps = stale.attempts().to_vec();
        (!steps.is_empty()).then_some(steps)
    })
    .await;
    let last = steps.last().unwrap();
    assert_eq!(
        (&*last.address, last.outcome),
        ("cache", Outcome::Answered),
        "{steps:?}"
    );
    assert_eq!((last.source, last.count), (stale.source(), 1));
    assert!(last.detail.starts_with("found "), "{last}");
    let error = resolver.lookup("web").require_fresh().await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    let young = resolver
        .lookup("web")
        .max_age(Duration::from_millis(100))
        .await;
    assert!(young.unwrap_err().is_unavailable());
    let new = resolver.lookup("api").await.unwrap_err();
    assert!(new.is_unavailable(), "{new}");
    let metrics = resolver.metrics().to_string();
    assert!(
        !metrics.contains("proconsul_stale_served_total 0"),
        "{metrics}"
    );

    agent.restart().await;
    agent
        .register_service(json!({ "Name": "web", "Address": "10.0.0.1", "Port": 9000 }))
        .await;
    wait_for("the new port", async || {
        let answer = fresh(&resolver, "web").await;
        (ports(&answer) == [9000]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_failed_before_an_idle_time_costs_the_next_look_ups_nothing() {
    let names = ["web", "api", "db", "mail", "auth"];
    let mut agent = agent_with(&names).await;
    let resolver = builder(&agent).timeout(Duration::from_secs(20));
    let resolver = resolver
        .default_address("db", "10.9.9.9:1")
        .build()
        .unwrap();
    fresh(&resolver, "web").await;
    agent.stop().await;
    let error = resolver.lookup("web").require_fresh().await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    assert!(!resolver.status().sources.iter().any(|source| source.up));
    agent.restart().await;
    register(&agent, &names).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // All at once: none fails for the sake of another.
    let (web, api, db, mail, auth) = tokio::join!(
        resolver.lookup("web").require_fresh(),
        resolver.lookup("api"),
        resolver.lookup("db"),
        resolver.lookup("mail"),
        resolver.lookup("auth"),
    );
    for (answer, port) in [web, api, db, mail, auth].into_iter().zip(8000..) {
        let answer = answer.unwrap();
        assert_eq!(ports(&answer), [port]);
        assert_eq!(answer.freshness(), Freshness::Fresh);
    }
    wait_for("both to be well", async || {
        let sources = resolver.status().sources;
        sources.iter().all(|source| source.up).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_hangs_costs_a_cached_name_no_more_than_a_moment() {
    let agent = agent_with(&["web"]).await;
    let resolver = builder(&agent)
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap();
    fresh(&resolver, "web").await;
    agent.pause();
    let stale = wait_for("a stale answer", async || {
        let answer = resolver.lookup("web").await.unwrap();
        (answer.freshness() == Freshness::Stale).then_some(answer)
    })
    .await;
    assert_eq!(ports(&stale), [8000]);
    agent.resume();
    fresh(&resolver, "web").await;
}

#[tokio::test]
async fn nothing_stale_is_kept_where_none_is_wanted() {
    let mut agent = agent_with(&["web"]).await;
    let resolver = builder(&agent).keep_stale(Duration::ZERO).build().unwrap();
    resolver.lookup("web").await.unwrap();
    agent.stop().await;
    wait_for("an error", async || resolver.lookup("web").await.err()).await;
}

#[tokio::test]
async fn a_process_that_starts_while_everything_is_down_answers_from_the_snapshot() {
    let file = File::new("snapshot");
    let mut agent = agent_with(&["web", "api"]).await;
    let first = builder(&agent).snapshot(&file.0).build().unwrap();
    assert_eq!(find(&first, &["web", "api"]).await, [Ok(1), Ok(1)]);
    first.save_snapshot().await.unwrap();
    drop(first);
    agent.stop().await;

    let second = builder(&agent).snapshot(&file.0).build().unwrap();
    let answer = second.lookup("web").await.unwrap();
    assert_eq!(
        (answer.source(), answer.freshness()),
        (Source::Snapshot, Freshness::Stale)
    );
    assert_eq!(ports(&answer), [8000]);
    assert!(answer.age() > Duration::ZERO);
    assert!(second.lookup("web").require_fresh().await.is_err());
    assert!(second.lookup("nosuch").await.unwrap_err().is_unavailable());

    // What this one finds does not lose what it did not ask for.
    agent.restart().await;
    register(&agent, &["web"]).await;
    fresh(&second, "web").await;
    second.save_snapshot().await.unwrap();
    drop(second);
    agent.stop().await;
    let third = builder(&agent).snapshot(&file.0).build().unwrap();
    assert_eq!(find(&third, &["web", "api"]).await, [Ok(1), Ok(1)]);
}

/// Answers each query that waits after a second, with nothing new.
fn quiet_server() -> ScriptedHttp {
    ScriptedHttp::of_web(|asked| {
        let found = ok("X-Consul-Index: 7\r\n", &entries("web", &[80]));
        match asked.what().contains("index=") {
            true => vec![Step::Pause(Duration::from_millis(1_100)), found],
            false => vec![found],
        }
    })
}

/// What a process finds in the snapshot that starts without any agent.
async fn left_in(file: &File, keep: Duration) -> Result<Answer, Error> {
    let nowhere = format!("http://{}", closed_port());
    let builder = Resolver::builder().dns("none").http(&nowhere);
    let resolver = builder.snapshot(&file.0).keep_stale(keep).build()?;
    resolver.lookup("web").await
}

#[tokio::test]
async fn what_is_confirmed_and_never_changes_stays_in_the_snapshot_and_young() {
    let (file, server) = (File::new("quiet"), quiet_server());
    let keep = Duration::from_secs(6);
    let builder = Resolver::builder().dns("none").http(&server.url());
    let resolver = builder.snapshot(&file.0).keep_stale(keep).build().unwrap();
    let service = resolver.service("web").unwrap();
    service.ready().await;
    tokio::time::sleep(keep + Duration::from_secs(3)).await;
    // As if it was killed: nobody told it to write.
    let left = left_in(&file, keep).await.unwrap();
    assert_eq!(ports(&left), [80]);
    assert!(left.age() < keep, "{:?}", left.age());
}

#[tokio::test]
async fn at_the_end_the_snapshot_has_what_was_confirmed_last() {
    let (file, server) = (File::new("end"), quiet_server());
    let day = Duration::from_secs(86_400);
    let builder = Resolver::builder().dns("none").http(&server.url());
    let resolver = builder.snapshot(&file.0).build().unwrap();
    let service = resolver.service("web").unwrap();
    service.ready().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    resolver.save_snapshot().await.unwrap();
    let left = left_in(&file, day).await.unwrap();
    assert!(left.age() < Duration::from_secs(3), "{:?}", left.age());
}

#[tokio::test]
async fn a_snapshot_is_not_written_again_for_what_stays_as_it_is() {
    let (file, server) = (File::new("calm"), quiet_server());
    let builder = Resolver::builder().dns("none").http(&server.url());
    let resolver = builder.snapshot(&file.0).ttl_floor(Duration::ZERO);
    let resolver = resolver.watches(0).build().unwrap();
    // Each is another file that took the place of the one before.
    let mut written = std::collections::HashSet::new();
    for _ in 0..80 {
        resolver.lookup("web").await.unwrap();
        if let Ok(now) = std::fs::metadata(&file.0) {
            written.insert((now.ino(), now.mtime_nsec()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(written.len(), 1, "{written:?}");
    assert!(server.times("web") > 40);
}

#[tokio::test]
async fn a_damaged_snapshot_costs_nothing_but_itself() {
    let file = File::new("damaged");
    std::fs::write(&file.0, "proconsul-snapshot 1 5 abc\nhello").unwrap();
    let agent = agent_with(&["web"]).await;
    let resolver = builder(&agent).snapshot(&file.0).build().unwrap();
    assert_eq!(find(&resolver, &["web"]).await, [Ok(1)]);
    resolver.save_snapshot().await.unwrap();
    assert!(
        std::fs::read_to_string(&file.0)
            .unwrap()
            .contains("web.service")
    );
    let aside = format!("{}.refused", file.0.display());
    let problem = resolver.snapshot_problem().unwrap().to_string();
    assert!(problem.contains("damaged") && problem.ends_with(&format!("{aside} now")));
    let refused = std::fs::read_to_string(&aside).unwrap();
    assert_eq!(refused, "proconsul-snapshot 1 5 abc\nhello");
    std::fs::remove_file(&aside).unwrap();
}

#[tokio::test]
async fn a_default_address_stands_in_for_a_service_that_was_never_found() {
    let closed = closed_port().to_string();
    let defaults = || {
        Resolver::builder()
            .dns(&closed)
            .http("none")
            .default_address("pay-api", "https://127.0.0.1:8443/v1")
    };
    let resolver = defaults().build().unwrap();
    let answer = resolver.lookup("Pay-Api").await.unwrap();
    assert_eq!(answer.source(), Source::Static);
    assert_eq!(answer.endpoints()[0].to_string(), "127.0.0.1:8443");
    assert!(resolver.lookup("other").await.unwrap_err().is_unavailable());
    let strict = defaults().must_be_found(true).build().unwrap();
    assert!(strict.lookup("pay-api").await.unwrap_err().is_unavailable());
}

#[tokio::test]
async fn what_consul_has_wins_over_a_default_address_as_soon_as_it_is_there() {
    let mut agent = agent_with(&["web"]).await;
    agent.stop().await;
    let resolver = builder(&agent)
        .default_address("web", "127.0.0.1:1")
        .build()
        .unwrap();
    assert_eq!(ports(&resolver.lookup("web").await.unwrap()), [1]);
    agent.restart().await;
    register(&agent, &["web"]).await;
    wait_for("Consul's own answer", async || {
        let answer = resolver.lookup("web").await.unwrap();
        (ports(&answer) == [8000]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_service_that_was_taken_down_is_gone() {
    let agent = agent_with(&["web", "api", "db", "mail", "auth"]).await;
    for http in [agent.http(), "none".to_owned()] {
        let resolver = builder(&agent).http(&http).build().unwrap();
        find(&resolver, &["web", "api", "db", "mail", "auth"]).await;
        agent.deregister_service("web").await;
        let error = gone(&resolver, "web").await;
        assert!(error.to_string().contains("no service web"), "{error}");
        assert_eq!(resolver.protected(), []);
        assert_eq!(find(&resolver, &["api", "db"]).await, [Ok(1), Ok(1)]);
        register(&agent, &["web"]).await;
    }
}

#[tokio::test]
async fn of_an_agent_that_is_slow_a_service_that_was_taken_down_is_gone_and_none_is_shut_out() {
    let names = ["web", "api", "db", "mail", "auth"];
    let agent = agent_with(&names).await;
    let slow = Weather {
        delay: Duration::from_millis(250),
        ..Weather::default()
    };
    let http = agent.http().replace("http://", "").parse().unwrap();
    for (server, over_dns) in [(http, false), (agent.dns(), true)] {
        let proxy = Proxy::start(Ipv4Addr::LOCALHOST, server).await;
        let (dns, http) = match over_dns {
            true => (proxy.address().to_string(), "none".to_owned()),
            false => ("none".to_owned(), proxy.http()),
        };
        let resolver = builder(&agent).dns(&dns).http(&http);
        let resolver = resolver.timeout(Duration::from_secs(10)).build().unwrap();
        assert_eq!(find(&resolver, &names).await, [Ok(1); 5]);
        proxy.set(slow.clone());
        agent.deregister_service("web").await;
        gone(&resolver, "web").await;
        let metrics = resolver.metrics().to_string();
        let source = if over_dns { "dns" } else { "http" };
        let none = format!("proconsul_circuit_transitions_total{{source=\"{source}\"}} 0");
        assert!(metrics.contains(&none), "{metrics}");
        register(&agent, &["web"]).await;
    }
}

#[tokio::test]
async fn a_service_whose_instances_are_all_critical_is_not_protected() {
    let agent = Agent::start().await;
    let check = json!({ "CheckID": "c", "TTL": "10m", "Status": "passing" });
    agent
        .register_service(
            json!({ "Name": "web", "Address": "10.0.0.1", "Port": 1, "Check": check }),
        )
        .await;
    let resolver = builder(&agent).build().unwrap();
    fresh(&resolver, "web").await;
    agent.put("/v1/agent/check/fail/c", json!(null)).await;
    gone(&resolver, "web").await;
}

#[tokio::test]
async fn an_agent_that_lost_its_data_deletes_nothing() {
    let services = ["web", "api", "db", "mail", "auth", "pay"];
    let mut agent = agent_with(&services).await;
    let resolver = builder(&agent).build().unwrap();
    // Twice: Consul's own service is met when a name is found again.
    for _ in 0..2 {
        find(&resolver, &services).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    agent.stop().await;
    agent.restart().await;
    // It answers again, and has none of them.
    wait_for("the empty agent's word", async || {
        assert_eq!(find(&resolver, &services).await, [Ok(1); 6]);
        let answer = resolver.lookup("web").await.unwrap();
        answer.protected()
    })
    .await;
    assert_eq!(find(&resolver, &services).await, [Ok(1); 6]);
    let metrics = resolver.metrics().to_string();
    assert!(
        metrics.contains("proconsul_protection_active 1"),
        "{metrics}"
    );
    // What comes back is released, name by name.
    register(&agent, &["web"]).await;
    fresh(&resolver, "web").await;
    assert!(
        resolver
            .protected()
            .iter()
            .all(|(name, _)| name != "web.service")
    );
    // The operator knows better.
    resolver.release_protected();
    for name in ["api", "db", "mail", "auth", "pay"] {
        let error = resolver.lookup(name).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
    }
    assert_eq!(resolver.protected(), []);
    assert_eq!(find(&resolver, &["web"]).await, [Ok(1)]);
    let off = builder(&agent)
        .protection(proconsul::Protection::Off)
        .build()
        .unwrap();
    assert_eq!(find(&off, &["api"]).await, [Err(ErrorKind::NotFound)]);
}

#[tokio::test]
async fn a_token_that_lost_its_rights_deletes_nothing_and_hides_behind_no_nxdomain() {
    let master = "b1gs33cr3t-b1gs-33cr-3tb1-gs33cr3tb1gs";
    let acl = json!({ "acl": {
        "enabled": true, "default_policy": "deny", "tokens": { "master": master, "agent": master }
    }});
    let agent = Agent::builder().config(acl).token(master).start().await;
    agent
        .register_service(json!({ "Name": "web", "Address": "10.0.0.1", "Port": 8000 }))
        .await;
    let rules = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
    agent
        .put(
            "/v1/acl/policy",
            json!({ "Name": "discover", "Rules": rules }),
        )
        .await;
    let made = agent
        .put(
            "/v1/acl/token",
            json!({ "Policies": [{ "Name": "discover" }] }),
        )
        .await;
    let (secret, accessor) = (
        made["SecretID"].as_str().unwrap(),
        made["AccessorID"].as_str().unwrap(),
    );
    let resolver = builder(&agent).dns("none").token(secret).build().unwrap();
    wait_for("the token's rights", async || {
        resolver.lookup("web").await.ok()
    })
    .await;
    agent.delete(&format!("/v1/acl/token/{accessor}")).await;
    wait_for("the end of the rights", async || {
        let error = resolver.lookup("web").require_fresh().await.err()?;
        assert!(!error.is_not_found(), "{error}");
        error.is_denied().then_some(())
    })
    .await;
    let answer = resolver.lookup("web").await.unwrap();
    assert_eq!(
        (ports(&answer), answer.freshness()),
        (vec![8000], Freshness::Stale)
    );
    let new = resolver.lookup("api").await.unwrap_err();
    assert!(new.is_denied(), "{new}");
    for text in [
        format!("{new} {new:?}"),
        resolver.metrics().to_string(),
        format!("{resolver:?}"),
    ] {
        assert!(!text.contains(secret), "the token is told");
    }
}

#[tokio::test]
async fn rights_that_are_taken_from_strangers_in_silence_delete_nothing() {
    let master = "b1gs33cr3t-b1gs-33cr-3tb1-gs33cr3tb1gs";
    let acl = json!({ "acl": {
        "enabled": true, "default_policy": "deny", "tokens": { "master": master, "agent": master }
    }});
    let agent = Agent::builder().config(acl).token(master).start().await;
    register(&agent, &["web"]).await;
    let policy = |rules: &str| json!({ "Name": "strangers", "Rules": rules });
    let rules = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
    let made = agent.put("/v1/acl/policy", policy(rules)).await;
    let stranger = "00000000-0000-0000-0000-000000000002";
    let body = json!({ "AccessorID": stranger, "Policies": [{ "Name": "strangers" }] });
    agent.put(&format!("/v1/acl/token/{stranger}"), body).await;
    // One asks now and then, one follows, and one knows it from an earlier run.
    let file = File::new("strangers");
    let over_http = || builder(&agent).dns("none");
    let (asks, follows) = (over_http().snapshot(&file.0), over_http());
    let (asks, follows) = (asks.build().unwrap(), follows.build().unwrap());
    wait_for("the strangers' rights", async || {
        asks.lookup("web").await.ok()
    })
    .await;
    asks.save_snapshot().await.unwrap();
    let service = follows.service("web").unwrap();
    service.ready().await;

    let tightened = format!("/v1/acl/policy/{}", made["ID"].as_str().unwrap());
    agent.put(&tightened, policy("")).await;
    // Who follows hears of it with the next change.
    agent
        .register_service(json!({ "Name": "web", "Address": "10.0.0.1", "Port": 9000 }))
        .await;
    let starts = over_http().snapshot(&file.0).build().unwrap();
    for resolver in [&asks, &follows, &starts] {
        wait_for("the protection", async || {
            let answer = resolver.lookup("web").await.unwrap();
            assert_eq!(ports(&answer), [8000]);
            answer.protected()
        })
        .await;
    }
    assert_eq!(service.endpoints().len(), 1);
    // A new name is not believed away either.
    let new = asks.lookup("api").await.unwrap_err();
    assert!(new.is_denied(), "{new}");

    agent.put(&tightened, policy(rules)).await;
    for resolver in [&asks, &follows, &starts] {
        assert_eq!(ports(&fresh(resolver, "web").await), [9000]);
    }
    agent.deregister_service("web").await;
    for resolver in [&asks, &follows, &starts] {
        gone(resolver, "web").await;
    }
}

#[tokio::test]
async fn a_host_name_whose_addresses_nobody_tells_keeps_those_that_it_had() {
    let lost = Arc::new(AtomicBool::new(false));
    let is_lost = Arc::clone(&lost);
    let instances = |service: &str, address: &str| {
        let all = json!([{
            "Node": { "Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc1" },
            "Service": { "ID": service, "Service": service, "Address": address, "Port": 8000 },
            "Checks": [],
        }]);
        vec![ok("", &all.to_string())]
    };
    let agent = ScriptedHttp::start(move |asked| match asked.is_about("web") {
        true => instances("web", "db.service.consul"),
        false if !asked.is_about("db") => instances("consul", ""),
        false if is_lost.load(Ordering::SeqCst) => {
            vec![http::status("500 Internal Server Error", "no")]
        }
        false => instances("db", "10.0.0.7"),
    });
    let file = File::new("hosts");
    let resolver = || {
        let resolver = Resolver::builder().dns("none").http(&agent.url());
        let resolver = resolver.ttl_floor(Duration::from_millis(20));
        resolver.snapshot(&file.0).build().unwrap()
    };
    let addresses = |answer: &Answer| -> Vec<_> {
        let endpoints = answer.endpoints().iter();
        endpoints.map(ToString::to_string).collect()
    };
    let first = resolver();
    let service = first.service("web").unwrap();
    service.ready().await;
    let whole = fresh(&first, "web").await;
    assert!(whole.is_complete(), "{:?}", whole.warnings());
    lost.store(true, Ordering::SeqCst);
    let asked = || async {
        let answer = fresh(&first, "web").await;
        assert_eq!(addresses(&answer), ["10.0.0.7:8000"]);
        (!answer.is_complete()).then_some(answer)
    };
    let kept = wait_for("the warning", asked).await;
    assert!(
        kept.warnings()[0].contains("of before"),
        "{:?}",
        kept.warnings()
    );
    // Nor is it lost the next time, to whoever follows, or to the next run.
    let again = first.lookup("web").max_age(Duration::ZERO).await.unwrap();
    assert_eq!(addresses(&again), ["10.0.0.7:8000"]);
    assert_eq!(service.endpoints().len(), 1);
    first.save_snapshot().await.unwrap();
    let second = resolver();
    assert_eq!(
        addresses(&second.lookup("web").await.unwrap()),
        ["10.0.0.7:8000"]
    );
    assert_eq!(addresses(&fresh(&second, "web").await), ["10.0.0.7:8000"]);
}

#[tokio::test]
async fn where_the_operator_says_so_nothing_is_believed_gone() {
    let agent = agent_with(&["web"]).await;
    let keep = proconsul::Protection::KeepAll;
    let resolver = builder(&agent).protection(keep).build().unwrap();
    fresh(&resolver, "web").await;
    agent.deregister_service("web").await;
    let held = wait_for("the protection", async || {
        let answer = resolver.lookup("web").await.unwrap();
        answer.protected()
    })
    .await;
    assert_eq!(held, Reason::KeepAll);
}

#[tokio::test]
async fn a_resolver_built_after_another_keeps_what_was_known_in_the_snapshot() {
    let file = File::new("after");
    let mut agent = agent_with(&["web"]).await;
    let first = builder(&agent).snapshot(&file.0).build().unwrap();
    assert_eq!(find(&first, &["web"]).await, [Ok(1)]);
    first.save_snapshot().await.unwrap();
    let second = builder(&agent).snapshot(&file.0);
    let second = second.build_after(&first).unwrap();
    // The first is held by somebody still, and finds something.
    register(&agent, &["api"]).await;
    assert_eq!(find(&first, &["api"]).await, [Ok(1)]);
    first.save_snapshot().await.unwrap();
    second.save_snapshot().await.unwrap();
    agent.stop().await;
    drop(second);
    let third = builder(&agent).snapshot(&file.0).build().unwrap();
    assert_eq!(find(&third, &["web"]).await, [Ok(1)]);
    assert!(third.lookup("api").await.is_err());
    third.save_snapshot().await.unwrap();
}

#[tokio::test]
async fn the_first_of_many_that_vanish_are_given_again_and_who_follows_them_is_told() {
    are_given_again(|builder| builder).await;
}

#[tokio::test]
async fn the_first_of_many_that_vanish_are_given_again_and_who_polls_them_is_told() {
    are_given_again(|builder| builder.watches(0)).await;
}

async fn are_given_again(followed_as: impl Fn(ResolverBuilder) -> ResolverBuilder) {
    let (lost, stay) = (["a", "b", "c", "d"], ["k", "l", "m", "n", "o", "p"]);
    let agent = agent_with(&[&lost[..], &stay].concat()).await;
    let resolver = followed_as(builder(&agent))
        .build()
        .expect("right settings");
    let followed = lost.map(|name| resolver.service(name).expect("a name"));
    for service in &followed {
        service.ready().await;
    }
    // Those that were found last are looked at when one goes: they stay.
    for name in stay {
        fresh(&resolver, name).await;
    }
    tokio::join!(
        agent.deregister_service(lost[0]),
        agent.deregister_service(lost[1]),
        agent.deregister_service(lost[2]),
        agent.deregister_service(lost[3]),
    );
    wait_for("the protection of all", async || {
        (resolver.protected().len() == lost.len()).then_some(())
    })
    .await;
    for (name, service) in lost.into_iter().zip(&followed) {
        wait_for("whoever follows to be told", async || {
            (service.endpoints().len() == 1 && service.problem().is_some()).then_some(())
        })
        .await;
        let answer = resolver.lookup(name).await.expect("what is held");
        assert_eq!(answer.protected(), Some(Reason::Mass), "{name}");
        assert_eq!(answer.freshness(), Freshness::Stale, "{name}");
    }
    register(&agent, &lost).await;
    for (name, service) in lost.into_iter().zip(&followed) {
        fresh(&resolver, name).await;
        wait_for("its problem to be over", async || {
            service.problem().is_none().then_some(())
        })
        .await;
        assert_eq!(service.endpoints().len(), 1, "{name}");
    }
    assert_eq!(resolver.protected().len(), 0);
}

#[tokio::test]
async fn a_resolver_built_after_another_holds_what_that_one_held_and_leaves_it_all_it_knew() {
    let names = ["web", "api", "db", "mail", "auth"];
    let agent = agent_with(&names).await;
    let first = builder(&agent).build().unwrap();
    for name in names {
        fresh(&first, name).await;
    }
    for name in names {
        agent.deregister_service(name).await;
    }
    wait_for("the protection of all", async || {
        for name in names {
            _ = first.lookup(name).await;
        }
        (first.protected().len() == names.len()).then_some(())
    })
    .await;
    let second = builder(&agent).build_after(&first).unwrap();
    assert_eq!(second.protected(), first.protected());
    for resolver in [&second, &first] {
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(answer.endpoints().len(), 1);
        assert_eq!(answer.protected(), Some(Reason::Mass));
    }
}
