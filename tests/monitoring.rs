//! What watches a running system: alert rules and the dashboard name metrics that there are,
//! alerts within the process are raised and cleared, and the facade is handed all values.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::rr::RecordType;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use proconsul::{Alert, AlertRule, Alerts, Blame, Resolver, Retry, ServiceDefinition, Severity};
use serde_json::{Value, json};
use support::{
    Agent, PATIENCE, Proxy, Serving, Weather, ask_udp, closed_port, http_client, wait_for,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

fn packaged(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(file)
}

/// The names of our metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_name(c));
    let ours = words.filter(|word| word.starts_with("proconsul_") && !word.ends_with('_'));
    ours.map(|word| {
        let of_histogram = ["_bucket", "_sum", "_count"];
        let bare = of_histogram.iter().find_map(|end| word.strip_suffix(end));
        bare.unwrap_or(word)
    })
    .collect()
}

/// What `serve` tells of itself at this agent.
async fn metrics_of_serve(agent: &Agent) -> String {
    let mut command = support::serve(&agent.dns().to_string(), &agent.http());
    command.args(["--admin", "127.0.0.1:0"]);
    let server = Serving::start(command);
    let url = format!("http://{}/metrics", server.admin);
    let client = http_client();
    wait_for("the leader's metric", async || {
        let text = client.get(&url).send().await.ok()?.text().await.ok()?;
        text.contains("proconsul_cluster_leader 1").then_some(text)
    })
    .await
}

/// The metrics that a text for Prometheus declares.
fn declared(metrics: &str) -> BTreeSet<&str> {
    let heads = metrics.lines();
    let types = heads.filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next()).collect()
}

/// What dashboards, and scripts of users, rely on.
const PROMISED: &str = "
    proconsul_lookups_total proconsul_lookup_duration_seconds proconsul_source_up
    proconsul_source_errors_total proconsul_fallbacks_total proconsul_stale_served_total
    proconsul_protection_active proconsul_cache_entries proconsul_cache_bytes proconsul_watches
    proconsul_membership_changes_total proconsul_registrations_total
    proconsul_reregistrations_total proconsul_breaker_open proconsul_dns_queries_total
    proconsul_dns_query_duration_seconds proconsul_dns_malformed_total proconsul_build_info";

#[tokio::test]
async fn every_metric_is_in_the_list_of_its_file_and_every_one_of_the_list_exists() {
    let agent = Agent::start().await;
    let served = metrics_of_serve(&agent).await;
    let resolver = resolver(&agent);
    let registration = resolver.register(ServiceDefinition::new("web", 80));
    let registration = registration.unwrap();
    timeout(PATIENCE, registration.registered()).await.unwrap();
    let own = resolver.metrics().to_string();
    registration.shutdown().await.unwrap();

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = |file: &str| {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let rows = text.lines().filter(|line| line.starts_with("//! | `"));
        // Its first cell; what else is said of one may name others.
        let cells = rows.filter_map(|row| row.split(" | ").nth(1));
        cells.collect::<Vec<_>>().join("\n")
    };
    let library = list("src/metrics.rs");
    let (stub, others) = (list("src/stub/tally.rs"), list("src/stub/forward/tally.rs"));
    let of_all = format!("{library}\n{stub}\n{others}");
    let there = declared(&served);
    assert_eq!(named(&of_all), there, "listed, and told by serve");
    assert!(declared(&own).is_subset(&named(&library)), "{own}");
    let missing: Vec<_> = named(PROMISED).difference(&there).copied().collect();
    assert_eq!(missing, [] as [&str; 0]);
}

#[tokio::test]
async fn every_metric_that_alerts_and_dashboard_name_exists() {
    let agent = Agent::start().await;
    let metrics = metrics_of_serve(&agent).await;
    let there = declared(&metrics);
    for file in ["prometheus/alerts.yml", "grafana/proconsul.json"] {
        let text = fs::read_to_string(packaged(file)).unwrap();
        let named = named(&text);
        assert!(named.len() > 8, "{file}: {named:?}");
        let missing: Vec<_> = named.difference(&there).collect();
        assert_eq!(missing, [] as [&&str; 0], "{file}");
    }
    let dashboard = fs::read(packaged("grafana/proconsul.json")).unwrap();
    let dashboard: Value = serde_json::from_slice(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        let expressions = panel["targets"].as_array().unwrap();
        assert!(!expressions.is_empty(), "{panel}");
        for target in expressions {
            // What Grafana fills in.
            let expression = target["expr"].as_str().unwrap();
            let expression = expression
                .replace("$__rate_interval", "5m")
                .replace("$instance", ".*");
            let mut promtool = Command::new("promtool");
            let rules = format!(
                "groups: [{{name: a, rules: [{{record: a, expr: {}}}]}}]",
                json!(expression)
            );
            let file =
                std::env::temp_dir().join(format!("proconsul-rule-{}.yml", std::process::id()));
            fs::write(&file, rules).unwrap();
            let checked = promtool
                .args(["check", "rules"])
                .arg(&file)
                .output()
                .unwrap();
            fs::remove_file(file).unwrap();
            assert!(checked.status.success(), "{expression}: {checked:?}");
        }
    }
}

#[test]
fn the_alert_rules_are_raised_by_what_they_are_for_and_by_nothing_that_is_well() {
    for arguments in [
        &["check", "rules", "alerts.yml"][..],
        &["test", "rules", "alerts_test.yml"],
    ] {
        let mut promtool = Command::new("promtool");
        promtool.current_dir(packaged("prometheus")).args(arguments);
        let done = promtool
            .output()
            .expect("scripts/test installs what the tests need");
        assert!(done.status.success(), "{done:?}");
    }
    let rules = fs::read_to_string(packaged("prometheus/alerts.yml")).unwrap();
    let tests = fs::read_to_string(packaged("prometheus/alerts_test.yml")).unwrap();
    for rule in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(tests.matches(rule).count() >= 2, "{rule} is not tested");
    }
}

async fn next(alerts: &mut Alerts) -> Alert {
    timeout(PATIENCE, alerts.next()).await.unwrap()
}

fn resolver(agent: &Agent) -> Resolver {
    let builder = Resolver::builder().dns("none").http(&agent.http());
    builder.build().unwrap()
}

#[tokio::test]
async fn a_service_that_is_down_slow_or_failing_is_told_and_so_is_the_end_of_it() {
    let agent = Agent::start().await;
    let body = json!({ "Name": "web", "Address": "10.0.0.1", "Port": 1 });
    agent.register_service(body.clone()).await;
    let resolver = resolver(&agent);
    let web = resolver.service("web").unwrap();
    web.ready().await;
    let at_once = |rule: AlertRule| rule.lasting(Duration::ZERO);
    let mut alerts = resolver
        .alerts([
            at_once(AlertRule::service_down(&web)),
            at_once(AlertRule::error_rate_above(&web, 0.2)).severity(Severity::Critical),
            at_once(AlertRule::latency_above(&web, Duration::from_millis(20))),
        ])
        .unwrap();
    agent.deregister_service("web").await;
    let alert = next(&mut alerts).await;
    assert_eq!(
        (alert.rule, alert.severity, alert.raised),
        ("service_down", Severity::Critical, true)
    );
    assert_eq!(&*alert.about, "web.service.consul.");
    assert_eq!(alerts.active(), [alert]);
    agent.register_service(body).await;
    let alert = next(&mut alerts).await;
    assert_eq!((alert.rule, alert.raised), ("service_down", false));
    assert_eq!(alerts.active(), []);
    assert!(
        alert
            .to_string()
            .starts_with("over: critical service_down web"),
        "{alert}"
    );

    // Four of ten calls fail, and all are slow.
    let once = Retry::none();
    for number in 0..10 {
        let call = web.call_if(
            &once,
            async |_| {
                sleep(Duration::from_millis(30)).await;
                if number < 4 { Err("no") } else { Ok(()) }
            },
            |_| Blame::Unsafe,
        );
        _ = call.await;
    }
    let mut rules = [next(&mut alerts).await, next(&mut alerts).await];
    rules.sort_by_key(|alert| alert.rule);
    let [errors, latency] = rules;
    assert_eq!(
        (errors.rule, errors.severity, errors.raised),
        ("error_rate", Severity::Critical, true)
    );
    assert!(errors.text.contains("40.0 % of 10"), "{errors}");
    assert_eq!((latency.rule, latency.raised), ("latency", true));
    assert_eq!(alerts.active().len(), 2);
}

#[tokio::test]
async fn the_end_of_a_service_and_its_coming_back_are_changes_of_its_members() {
    let agent = Agent::start().await;
    agent.register_instances("other", 1).await;
    let builder = Resolver::builder().dns(&agent.dns().to_string());
    let resolver = builder.http(&agent.http()).build().unwrap();
    let changes = || {
        let metrics = resolver.metrics().to_string();
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.starts_with("proconsul_membership_changes_total"));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    let there_is = async |wanted: bool| {
        wait_for("the change", async || {
            let found = resolver.lookup("web").max_age(Duration::ZERO).await;
            (found.is_ok() == wanted).then_some(())
        })
        .await;
    };
    resolver.lookup("other").await.unwrap();
    let web = json!({"Name": "web", "Port": 80, "Address": "10.0.0.1"});
    for (there, changed) in [(true, "0"), (false, "1"), (true, "2")] {
        match there {
            true => agent.register_service(web.clone()).await,
            false => agent.deregister_service("web").await,
        }
        there_is(there).await;
        assert_eq!(changes(), changed);
    }
}

#[tokio::test]
async fn a_stub_whose_sources_are_gone_says_so_on_its_page_and_that_they_are_back() {
    let mut agent = Agent::start().await;
    let mut command = support::serve(&agent.dns().to_string(), &agent.http());
    command.args(["--admin", "127.0.0.1:0"]);
    let server = Serving::start(command);
    let client = http_client();
    let get = async |path: &str| {
        let url = format!("http://{}{path}", server.admin);
        client.get(url).send().await.unwrap().text().await.unwrap()
    };
    let rules = async || {
        let status: Value = serde_json::from_str(&get("/v1/status").await).unwrap();
        let alerts = status["alerts"].as_array().unwrap().clone();
        let rule = |alert: &Value| alert["rule"].as_str().unwrap().to_owned();
        alerts.iter().map(rule).collect::<Vec<_>>()
    };
    assert_eq!(rules().await, [] as [String; 0]);
    agent.kill();
    // Somebody has to ask for it to be found out.
    wait_for("the alert", async || {
        get("/v1/explain?name=web").await;
        rules()
            .await
            .contains(&"no_source".to_owned())
            .then_some(())
    })
    .await;
    let page = get("/").await;
    assert!(
        page.contains("id=\"alerts\"") && page.contains("no_source"),
        "{page}"
    );
    agent.restart().await;
    wait_for("its end", async || {
        get("/v1/explain?name=web").await;
        (!rules().await.contains(&"no_source".to_owned())).then_some(())
    })
    .await;
}

/// Asks for what is known, and for what nobody knows, for as long as it is held.
fn load(server: SocketAddr) -> JoinSet<()> {
    let mut asking = JoinSet::new();
    for client in 0..4 {
        asking.spawn(async move {
            for at in 0_u32.. {
                let new = format!("n{client}-{at}.service.consul.");
                for name in ["web.service.consul.", "other.service.consul.", &new] {
                    _ = ask_udp(server, name, RecordType::A).await;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
    asking
}

/// "web" and "other", one instance each.
async fn register_two(agent: &Agent) {
    for name in ["web", "other"] {
        let body = json!({ "Name": name, "Address": "10.0.0.1", "Port": 1 });
        agent.register_service(body).await;
    }
}

/// A stub that answers, and whoever asks it all the time.
async fn under_load(dns: SocketAddr, agent: &Agent) -> (Serving, JoinSet<()>) {
    let mut command = support::serve(&dns.to_string(), &agent.http());
    command.args(["--admin", "none"]);
    let server = Serving::start(command);
    let asking = load(server.dns);
    wait_for("an answer", async || {
        (server.instances().await == 1).then_some(())
    })
    .await;
    (server, asking)
}

/// All that is still said.
fn rest(server: &Serving) -> Vec<String> {
    server.signal("-TERM");
    std::iter::from_fn(|| server.said_before_it_ended()).collect()
}

fn about<'a>(lines: &'a [String], what: &str) -> Vec<&'a String> {
    lines.iter().filter(|line| line.contains(what)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_under_load_is_one_line_and_so_is_its_coming_back() {
    let agent = Agent::start().await;
    register_two(&agent).await;
    let dns = Proxy::start(Ipv4Addr::LOCALHOST, agent.dns()).await;
    let (server, _asking) = under_load(dns.address(), &agent).await;
    dns.set(Weather::silent());
    let mut lines = vec![server.says()];
    // Nothing is said while it lasts.
    sleep(Duration::from_secs(5)).await;
    dns.set(Weather::default());
    lines.push(server.says());
    // It comes and goes each half second: that is no line each time.
    for _ in 0..10 {
        for weather in [Weather::refused(), Weather::default()] {
            dns.set(weather);
            sleep(Duration::from_millis(500)).await;
        }
    }
    let gone = "proconsul: alert: warning source_down dns: left alone until ";
    let back = "proconsul: alert: over: warning source_down dns: asked again at ";
    assert!(lines[0].starts_with(gone), "{lines:#?}");
    assert!(lines[0].contains(&dns.address().to_string()), "{lines:#?}");
    assert!(lines[1].starts_with(back), "{lines:#?}");
    lines.extend(rest(&server));
    assert!(lines.len() <= 10, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_under_load_costs_few_lines() {
    let agent = Agent::start().await;
    register_two(&agent).await;
    let (server, _asking) = under_load(agent.dns(), &agent).await;
    agent.pause();
    let mut lines = Vec::new();
    let down = ["source_down dns", "source_down http"];
    while !down.iter().all(|what| about(&lines, what).len() == 1) {
        lines.push(server.says());
    }
    sleep(Duration::from_secs(5)).await;
    agent.resume();
    while !down.iter().all(|what| about(&lines, what).len() == 2) {
        lines.push(server.says());
    }
    lines.extend(rest(&server));
    assert!(lines.len() <= 10, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_loses_its_rights_is_told_once_and_without_the_token() {
    const MASTER: &str = "00000000-0000-0000-0000-0000000000aa";
    let config = json!({
        "primary_datacenter": "dc1",
        "acl": {
            "enabled": true, "default_policy": "deny",
            "tokens": { "master": MASTER },
        },
    });
    let agent = Agent::builder().config(config).token(MASTER).start().await;
    register_two(&agent).await;
    let rules = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
    let policy = json!({ "Name": "reads", "Rules": rules });
    agent.put("/v1/acl/policy", policy).await;
    let made = json!({ "Policies": [{ "Name": "reads" }] });
    let made = agent.put("/v1/acl/token", made).await;
    let token = made["SecretID"].as_str().unwrap();
    let mut command = support::serve("none", &agent.http());
    command.args(["--admin", "none"]);
    command.env("CONSUL_HTTP_TOKEN", token);
    let server = Serving::start(command);
    let _asking = load(server.dns);
    wait_for("an answer", async || {
        (server.instances().await == 1).then_some(())
    })
    .await;
    let accessor = made["AccessorID"].as_str().unwrap();
    agent.delete(&format!("/v1/acl/token/{accessor}")).await;
    let mut lines = Vec::new();
    while about(&lines, "alert: warning denied: ").is_empty() {
        lines.push(server.says());
    }
    sleep(Duration::from_secs(10)).await;
    lines.extend(rest(&server));
    assert_eq!(about(&lines, "warning denied: ").len(), 1, "{lines:#?}");
    assert!(lines.len() <= 10, "{lines:#?}");
    assert_eq!(about(&lines, token), [] as [&String; 0]);
}

/// Keeps what it is handed.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<(String, f64)>>>);

struct Kept(Recorder, String);

impl metrics::CounterFn for Kept {
    fn increment(&self, _: u64) {}

    fn absolute(&self, value: u64) {
        self.0
            .0
            .lock()
            .unwrap()
            .push((self.1.clone(), value as f64));
    }
}

impl metrics::GaugeFn for Kept {
    fn increment(&self, _: f64) {}

    fn decrement(&self, _: f64) {}

    fn set(&self, value: f64) {
        self.0.0.lock().unwrap().push((self.1.clone(), value));
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(Kept(self.clone(), key.to_string())))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Kept(self.clone(), key.to_string())))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test]
async fn the_facade_is_handed_every_value() {
    let closed = format!("http://{}", closed_port());
    let resolver = Resolver::builder()
        .dns("none")
        .http(&closed)
        .build()
        .unwrap();
    resolver.lookup("web").await.unwrap_err();
    let recorder = Recorder::default();
    metrics::with_local_recorder(&recorder, || resolver.metrics().publish());
    let told = recorder.0.lock().unwrap().clone();
    let find = |name: &str, label: &str| {
        let found = told
            .iter()
            .find(|(key, _)| key.contains(name) && key.contains(label));
        found
            .unwrap_or_else(|| panic!("no {name} {label}: {told:?}"))
            .1
    };
    assert_eq!(find("proconsul_lookups_total", "unavailable"), 1.0);
    let refused = |(key, value): &(String, f64)| {
        key.contains("proconsul_source_errors_total") && key.contains("refused") && *value == 1.0
    };
    assert!(told.iter().any(refused), "{told:?}");
    assert_eq!(find("proconsul_cache_entries", ""), 0.0);
    let timed = find("proconsul_lookup_duration_seconds_count", "none");
    assert_eq!(timed, 1.0);
}
