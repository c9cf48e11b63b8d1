//! Names of every kind, against a real agent with default settings.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use proconsul::{Answer, ErrorKind, Freshness, Health, Outcome, Resolver, Source};
use serde_json::{Value, json};
use support::{Agent, SilentDns, closed_port};

/// Every look-up asks: what was cached would hide what is tested.
fn over(dns: &str, http: &str) -> Resolver {
    let builder = Resolver::builder()
        .dns(dns)
        .http(http)
        .ttl_floor(Duration::ZERO);
    builder.timeout(Duration::from_secs(10)).build().unwrap()
}

fn over_dns(agent: &Agent) -> Resolver {
    over(&agent.dns().to_string(), "none")
}

fn over_http(agent: &Agent) -> Resolver {
    over("none", &agent.http())
}

fn endpoints(answer: &Answer) -> Vec<String> {
    let mut all: Vec<_> = answer.endpoints().iter().map(ToString::to_string).collect();
    all.sort_unstable();
    all
}

fn weights(answer: &Answer) -> BTreeMap<u16, u16> {
    answer
        .endpoints()
        .iter()
        .map(|endpoint| (endpoint.port, endpoint.weight))
        .collect()
}

async fn shop() -> Agent {
    let agent = Agent::builder().node("Node-Upper").start().await;
    let weights = json!({ "Passing": 10, "Warning": 3 });
    let check = |status: &str| json!({ "TTL": "10m", "Status": status });
    for service in [
        json!({ "Name": "web", "ID": "web-1", "Address": "10.0.0.1", "Port": 8001, "Tags": ["v1"], "Weights": weights, "Check": check("passing") }),
        json!({ "Name": "web", "ID": "web-2", "Address": "10.0.0.2", "Port": 8002, "Tags": ["V2", "a.b"], "Weights": weights, "Check": check("warning"), "Meta": { "zone": "a" } }),
        json!({ "Name": "web", "ID": "web-3", "Address": "10.0.0.3", "Port": 8003, "Tags": ["v2"], "Weights": weights, "Check": check("critical") }),
        json!({ "Name": "sick", "Address": "10.0.0.9", "Port": 1, "Check": check("critical") }),
        json!({ "Name": "six", "Address": "2001:db8::1", "Port": 6000 }),
        json!({ "Name": "nodes", "Port": 7000 }),
        json!({ "Name": "portless", "Address": "10.0.0.7" }),
        json!({ "Name": "named", "Address": "localhost", "Port": 9000 }),
        json!({ "Name": "inner", "Address": "six.service.consul", "Port": 9001 }),
        json!({ "Name": "lost", "Address": "no-such-host.invalid", "Port": 9002 }),
        json!({ "Name": "dead", "Address": "nowhere.service.consul", "Port": 9003 }),
    ] {
        agent.register_service(service).await;
    }
    agent
}

#[tokio::test]
async fn services_are_found_by_name_tag_datacenter_and_rfc_2782_form() {
    let agent = shop().await;
    for (resolver, source) in [
        (over_dns(&agent), Source::Dns),
        (over_http(&agent), Source::Http),
    ] {
        let all = ["10.0.0.1:8001", "10.0.0.2:8002"];
        for name in [
            "web",
            "WEB",
            "web@dc1",
            "web.service.consul",
            "web.service.dc1.consul.",
            "_web._tcp",
            "_web._tcp.service.consul",
        ] {
            let answer = resolver.lookup(name).await.unwrap();
            assert_eq!(endpoints(&answer), all, "{name} over {source}");
            assert_eq!(
                (answer.source(), answer.is_complete()),
                (source, true),
                "{name}"
            );
        }
        for name in [
            "v2.web",
            "V2.web",
            "a.b.web",
            "_web._v2",
            "v2.web.service.dc1.consul",
        ] {
            let answer = resolver.lookup(name).await.unwrap();
            assert_eq!(
                endpoints(&answer),
                ["10.0.0.2:8002"],
                "{name} over {source}"
            );
        }
        for name in [
            "v3.web",
            "nosuch",
            "sick",
            "web@nodc",
            "v1.a.b.web",
            "nosuch.node.consul",
            "nosuch.query.consul",
        ] {
            let error = resolver.lookup(name).await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::NotFound,
                "{name} over {source}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn warning_instances_are_found_with_their_weight_and_critical_ones_are_not() {
    let agent = shop().await;
    for resolver in [over_dns(&agent), over_http(&agent)] {
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(weights(&answer), [(8001, 10), (8002, 3)].into());
    }
    let answer = over_http(&agent).lookup("v2.web").await.unwrap();
    let endpoint = &answer.endpoints()[0];
    assert_eq!(endpoint.health, Some(Health::Warning));
    assert_eq!(endpoint.id.as_deref(), Some("web-2"));
    assert_eq!(
        endpoint.tags.as_deref(),
        Some(&["V2".into(), "a.b".into()][..])
    );
    assert_eq!(endpoint.meta.as_deref().unwrap()["zone"], "a".into());
    assert_eq!(endpoint.node.as_deref(), Some("Node-Upper"));
}

#[tokio::test]
async fn targets_of_every_sort_get_their_address_and_none_is_guessed() {
    let agent = shop().await;
    for resolver in [over_dns(&agent), over_http(&agent)] {
        let six = resolver.lookup("six").await.unwrap();
        assert_eq!(endpoints(&six), ["[2001:db8::1]:6000"]);
        let target = "20010db8000000000000000000000001.addr.dc1.consul.";
        assert_eq!(&*six.endpoints()[0].target, target);

        let node = resolver.lookup("nodes").await.unwrap();
        assert_eq!(endpoints(&node), ["127.0.0.1:7000"]);
        assert_eq!(&*node.endpoints()[0].target, "Node-Upper.node.dc1.consul.");
        assert_eq!(node.endpoints()[0].node.as_deref(), Some("Node-Upper"));

        // A name in Consul's zone is followed in Consul, any other in the system.
        let inner = resolver.lookup("inner").await.unwrap();
        assert_eq!(endpoints(&inner), ["[2001:db8::1]:9001"]);
        let named = resolver.lookup("named").await.unwrap();
        assert!(
            endpoints(&named).contains(&"127.0.0.1:9000".to_owned()),
            "{named:?}"
        );
        assert!(named.is_complete());

        let portless = resolver.lookup("portless").await.unwrap();
        assert_eq!(endpoints(&portless), ["10.0.0.7"]);

        for name in ["lost", "dead"] {
            let answer = resolver.lookup(name).await.unwrap();
            assert!(
                answer.endpoints().is_empty() && !answer.is_complete(),
                "{answer:?}"
            );
            assert!(
                answer.warnings()[0].contains("has no address"),
                "{:?}",
                answer.warnings()
            );
        }
    }
}

#[tokio::test]
async fn nodes_addresses_queries_and_pointers_are_found() {
    let agent = shop().await;
    let query = json!({ "Name": "near", "Service": { "Service": "web", "Tags": ["v2"] }, "DNS": { "TTL": "25s" } });
    agent
        .request(reqwest::Method::POST, "/v1/query")
        .json(&query)
        .send()
        .await
        .unwrap();
    for resolver in [over_dns(&agent), over_http(&agent)] {
        let node = resolver.lookup("node-upper.node.consul").await.unwrap();
        assert_eq!(endpoints(&node), ["127.0.0.1"]);
        let query = resolver.lookup("near.query.consul").await.unwrap();
        assert_eq!(endpoints(&query), ["10.0.0.2:8002"]);
        assert_eq!(query.ttl(), Duration::from_secs(25));
        let address = resolver.lookup("0a000001.addr.consul").await.unwrap();
        assert_eq!(address.endpoints()[0].address, IpAddr::from([10, 0, 0, 1]));
        assert!(address.attempts().is_empty(), "nobody has to be asked");
    }
    let records = over_dns(&agent).records("10.0.0.1", "PTR").await.unwrap();
    assert_eq!(&*records.code, "NOERROR");
    assert_eq!(&*records.records[0].data, "web.service.dc1.consul.");
    let records = over_dns(&agent).records("10.99.0.1", "PTR").await.unwrap();
    assert_eq!((&*records.code, records.answers().count()), ("NXDOMAIN", 0));
}

#[tokio::test]
async fn a_name_without_records_of_a_type_is_told_from_one_that_does_not_exist() {
    let agent = shop().await;
    let resolver = over_dns(&agent);
    for (name, kind, code, answers) in [
        ("six", "AAAA", "NOERROR", 1),
        ("six", "A", "NOERROR", 0),
        ("six", "MX", "NOERROR", 0),
        ("nosuch", "A", "NXDOMAIN", 0),
        ("sick", "SRV", "NXDOMAIN", 0),
        ("node-upper.node.consul", "SRV", "NOERROR", 0),
        ("node-upper.node.consul", "A", "NOERROR", 1),
        ("consul", "SOA", "NOERROR", 1),
        ("consul", "A", "NXDOMAIN", 0),
    ] {
        let records = resolver.records(name, kind).await.unwrap();
        assert_eq!(
            (&*records.code, records.answers().count()),
            (code, answers),
            "{name} {kind}"
        );
    }
    let error = resolver.records("web", "NONSENSE").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_refused_port_is_passed_over_at_once_and_told() {
    let agent = shop().await;
    let closed = closed_port();
    let resolver = over(&closed.to_string(), &agent.http());
    let answer = resolver.lookup("web").await.unwrap();
    assert_eq!(answer.source(), Source::Http);
    assert_eq!(answer.attempts()[0].outcome, Outcome::Refused);
    // With several agents the next address comes before the next source.
    let second = over(&format!("{closed},{}", agent.dns()), &agent.http());
    assert_eq!(second.lookup("web").await.unwrap().source(), Source::Dns);

    let error = over(&closed.to_string(), &format!("http://{closed}"))
        .lookup("web")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    for part in [
        "web.service.consul.",
        &closed.to_string(),
        "refused",
        "--dns",
        "--catalog",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(error.attempts().len(), 2);
}

#[tokio::test]
async fn silence_ends_at_the_time_limit_with_a_timeout_that_names_each_attempt() {
    let silent = SilentDns::start();
    let resolver = Resolver::builder()
        .dns(&silent.address().to_string())
        .http(&format!("http://{}", silent.address()))
        .timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let start = tokio::time::Instant::now();
    let error = resolver.lookup("web").await.unwrap_err();
    // Far above the limit, far below waiting for an answer that never comes.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let outcomes: Vec<_> = error
        .attempts()
        .iter()
        .map(|attempt| attempt.outcome)
        .collect();
    assert!(
        outcomes.len() >= 2 && outcomes.iter().all(|outcome| *outcome == Outcome::TimedOut),
        "{outcomes:?}"
    );
}

#[tokio::test]
async fn a_paused_agent_is_no_answer_and_a_resumed_one_is() {
    let agent = shop().await;
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http());
    let resolver = builder.ttl_floor(Duration::ZERO).build().unwrap();
    assert_eq!(resolver.lookup("web").await.unwrap().endpoints().len(), 2);
    agent.pause();
    // The signal takes a moment to reach every thread.
    let silent = async || resolver.lookup("web").require_fresh().await.err();
    let error = support::wait_for("the agent's silence", silent).await;
    assert!(error.is_unavailable(), "{error}");
    agent.resume();
    support::wait_for("the resumed agent's answer", async || {
        resolver.lookup("web").require_fresh().await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_stopped_agent_is_refused_and_a_started_one_is_found_again() {
    let mut agent = shop().await;
    let resolver = over_dns(&agent);
    resolver.lookup("web").await.unwrap();
    agent.stop().await;
    let error = resolver.lookup("web").require_fresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    agent.restart().await;
    agent
        .register_service(json!({ "Name": "web", "Address": "10.0.0.5", "Port": 5 }))
        .await;
    let answer = support::wait_for("the agent's answer", async || {
        resolver.lookup("web").require_fresh().await.ok()
    })
    .await;
    assert_eq!(endpoints(&answer), ["10.0.0.5:5"]);
}

#[tokio::test]
async fn the_cache_answers_within_the_floor_and_asks_again_after_it() {
    let agent = shop().await;
    let resolver = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http("none")
        .ttl_floor(Duration::from_millis(700))
        .build()
        .unwrap();
    let first = resolver.lookup("web").await.unwrap();
    assert_eq!(first.attempts().len(), 1);
    agent
        .register_service(
            json!({ "Name": "web", "ID": "web-4", "Address": "10.0.0.4", "Port": 8004 }),
        )
        .await;
    let second = resolver.lookup("web").await.unwrap();
    assert_eq!((second.attempts().len(), second.endpoints().len()), (0, 2));
    let third = support::wait_for("the end of the floor", async || {
        let answer = resolver.lookup("web").await.unwrap();
        (answer.endpoints().len() == 3).then_some(answer)
    });
    assert_eq!(third.await.freshness(), Freshness::Fresh);
}

#[tokio::test]
async fn callers_of_one_name_share_one_question() {
    let silent = SilentDns::start();
    let builder = Resolver::builder()
        .dns(&silent.address().to_string())
        .http("none");
    let resolver = builder.timeout(Duration::from_millis(250)).build().unwrap();
    let callers: Vec<_> = (0..500)
        .map(|_| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.lookup("web").await.unwrap_err().kind() })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), ErrorKind::Timeout);
    }
    // The question and its one repetition.
    assert!(silent.questions().len() <= 2);
}

#[tokio::test]
async fn a_token_that_may_not_see_is_told_from_a_name_that_is_not_there() {
    let acl = json!({ "acl": { "enabled": true, "default_policy": "deny", "tokens": { "master": "00000000-0000-0000-0000-0000000000aa", "agent_master": "00000000-0000-0000-0000-0000000000bb" } } });
    let agent = Agent::builder()
        .config(acl)
        .token("00000000-0000-0000-0000-0000000000aa")
        .start()
        .await;
    let web: Value = json!({ "Name": "web", "Address": "10.0.0.1", "Port": 1 });
    agent.register_service(web).await;
    let with = |token: &str| {
        let builder = Resolver::builder()
            .dns("none")
            .http(&agent.http())
            .token(token);
        builder.ttl_floor(Duration::ZERO).build().unwrap()
    };
    let good = with("00000000-0000-0000-0000-0000000000aa");
    assert_eq!(
        endpoints(&good.lookup("web").await.unwrap()),
        ["10.0.0.1:1"]
    );
    assert!(good.lookup("nosuch").await.unwrap_err().is_not_found());
    let unknown = with("11111111-1111-1111-1111-111111111111")
        .lookup("web")
        .await
        .unwrap_err();
    assert!(unknown.is_denied(), "{unknown}");
    assert!(
        !format!("{unknown} {unknown:?}").contains("11111111-1111"),
        "{unknown}"
    );
}
