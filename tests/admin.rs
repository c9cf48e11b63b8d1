//! The admin address of `proconsul serve`.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/script.rs"]
mod script;
mod support;

use std::net::SocketAddr;

use hickory_proto::{op::ResponseCode, rr::RecordType};

use reqwest::{Method, StatusCode};
use script::{Server, srv};
use serde_json::Value;
use support::{
    Agent, Folder, PATIENCE, Serving, ask_tcp, ask_udp, closed_port,
    http::{ScriptedHttp, status},
    http_client, serve, wait_for,
};
use tokio::net::UdpSocket;

/// The program, serving, and a client of its admin address.
struct Admin {
    dns: SocketAddr,
    client: reqwest::Client,
    serving: Serving,
}

impl Admin {
    fn start(dns: &str, http: &str) -> Self {
        Self::start_with(dns, http, &[])
    }

    fn start_with(dns: &str, http: &str, more: &[&str]) -> Self {
        let mut command = serve(dns, http);
        command.args(["--admin", "127.0.0.1:0"]).args(more);
        let serving = Serving::start(command);
        Self {
            dns: serving.dns,
            client: http_client(),
            serving,
        }
    }

    async fn ask(&self, method: Method, path: &str) -> (StatusCode, String) {
        let request = (self.client).request(method, format!("http://{}{path}", self.serving.admin));
        let reply = request.send().await.unwrap();
        (reply.status(), reply.text().await.unwrap())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let (status, text) = self.ask(Method::GET, path).await;
        (status.as_u16(), text)
    }

    async fn json(&self, path: &str) -> Value {
        let (status, text) = self.get(path).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

#[tokio::test]
async fn what_is_answered_and_known_is_told() {
    let agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let serving = Admin::start(&agent.dns().to_string(), &agent.http());
    assert_eq!(serving.get("/healthz").await.0, 200);
    assert_eq!(serving.get("/readyz").await.0, 200);
    for _ in 0..20 {
        let reply = ask_udp(serving.dns, "web.service.consul.", RecordType::SRV).await;
        assert_eq!(reply.unwrap().answers.len(), 2);
    }
    ask_tcp(serving.dns, "web.service.consul.", RecordType::A)
        .await
        .unwrap();
    ask_udp(serving.dns, "nosuch.service.consul.", RecordType::A)
        .await
        .unwrap();

    let status = serving.json("/v1/status").await;
    assert_eq!(status["ready"], true);
    assert_eq!(status["sources"][0]["source"], "dns");
    assert_eq!(status["sources"][1]["addresses"][0]["up"], true);
    assert_eq!(status["queries"], 22);
    assert!(status["remembered"].as_u64().unwrap() >= 15, "{status}");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));

    let cache = serving.json("/v1/cache").await;
    let web = cache["names"].as_array().unwrap().iter();
    let web = web
        .clone()
        .find(|one| one["name"] == "web.service.consul.")
        .unwrap();
    assert_eq!((&web["count"], &web["complete"]), (&2.into(), &true.into()));
    let total = usize::try_from(cache["total"].as_u64().unwrap()).unwrap();
    assert_eq!(total, cache["names"].as_array().unwrap().len());

    let (_, metrics) = serving.get("/metrics").await;
    for line in [
        "proconsul_dns_queries_total{transport=\"udp\",rcode=\"NOERROR\"} 20",
        "proconsul_dns_queries_total{transport=\"udp\",rcode=\"NXDOMAIN\"} 1",
        "proconsul_dns_queries_total{transport=\"tcp\",rcode=\"NOERROR\"} 1",
        "proconsul_dns_query_duration_seconds_count 22",
        "proconsul_source_up{source=\"dns\"} 1",
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line}\n{metrics}");
    }
    let heads = metrics.lines().filter(|line| line.starts_with("# TYPE"));
    let mut names: Vec<_> = heads.collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a metric is told twice");

    let told = serving.json("/v1/explain?name=web").await;
    assert_eq!(told["count"], 2);
    assert!(!told["attempts"].as_array().unwrap().is_empty());
    let told = serving.json("/v1/explain?name=no%20name").await;
    assert_eq!(told["error"]["kind"], "invalid");
    // What has no endpoints is told as what it has.
    let told = serving.json("/v1/explain?name=consul.").await;
    assert_eq!(told["records"][0]["type"], "NS", "{told}");
    assert!(!told["attempts"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_refused_as_it_stands_is_counted_by_its_whole_code() {
    let serving = Admin::start("none", "none");
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(serving.dns).await.unwrap();
    // No question; then one for the root, of a version of EDNS that there is not.
    let nothing = &b"\x12\x34\x01\0\0\0\0\0\0\0\0\0"[..];
    let version = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\0\0\x01\0\x01\0\0\x29\x04\xd0\0\x01\0\0\0\0";
    for packet in [nothing, version] {
        client.send(packet).await.unwrap();
        let heard = tokio::time::timeout(PATIENCE, client.recv(&mut [0; 512])).await;
        heard.unwrap().unwrap();
    }
    let (_, metrics) = serving.get("/metrics").await;
    for line in [
        "proconsul_dns_queries_total{transport=\"udp\",rcode=\"FORMERR\"} 1",
        "proconsul_dns_queries_total{transport=\"udp\",rcode=\"BADVERS\"} 1",
        "proconsul_dns_queries_total{transport=\"udp\",rcode=\"NOERROR\"} 0",
        "proconsul_dns_malformed_total{reason=\"formerr\"} 1",
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_said() {
    let closed = closed_port().to_string();
    let serving = Admin::start(&closed, "none");
    assert_eq!(serving.get("/nosuch").await.0, 404);
    assert_eq!(serving.get("/v1/explain").await.0, 400);
    assert_eq!(serving.ask(Method::POST, "/healthz").await.0, 405);
    // Before anybody asked, nobody knows that Consul is not there.
    wait_for("the failure to be seen", async || {
        ask_udp(serving.dns, "web.service.consul.", RecordType::A).await;
        (serving.get("/readyz").await.0 == 503).then_some(())
    })
    .await;
    assert_eq!(serving.get("/healthz").await.0, 200);
    let status = serving.json("/v1/status").await;
    assert_eq!(status["sources"][0]["up"], false);
    assert!(serving.get("/").await.1.contains("cannot answer"));
}

#[tokio::test]
async fn who_has_a_list_of_its_own_is_ready_and_who_knows_only_what_there_is_not_is_none() {
    let catalog = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/catalog.json");
    let listed = Admin::start_with("none", "none", &["--catalog", catalog]);
    assert_eq!(listed.get("/readyz").await.0, 200);

    let mut agent = Agent::start().await;
    let serving = Admin::start(&agent.dns().to_string(), &agent.http());
    let ask = async || ask_udp(serving.dns, "nosuch.service.consul.", RecordType::A).await;
    ask().await.unwrap();
    assert_eq!(serving.json("/v1/status").await["cache"]["names"], 1);
    agent.kill();
    wait_for("the failure to be seen", async || {
        ask().await;
        (serving.get("/readyz").await.0 == 503).then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_is_asked_nothing_finds_out_that_consul_is_there_and_that_it_is_gone() {
    let mut agent = Agent::start().await;
    agent.kill();
    let serving = Admin::start(&agent.dns().to_string(), &agent.http());
    let is_ready = async |ready: bool| {
        wait_for("what /readyz is to say", async || {
            let code = serving.get("/readyz").await.0;
            (code == if ready { 200 } else { 503 }).then_some(())
        })
        .await;
    };
    is_ready(false).await;
    // It answers that it is gone, and all is left alone from then on.
    let reply = ask_udp(serving.dns, "web.service.consul.", RecordType::A).await;
    assert_eq!(
        reply.unwrap().metadata.response_code,
        ResponseCode::ServFail
    );
    agent.restart().await;
    is_ready(true).await;
    let known = &serving.json("/v1/cache").await["names"];
    assert_eq!(known.as_array().unwrap().len(), 0, "{known}");
    agent.kill();
    is_ready(false).await;
}

#[tokio::test]
async fn who_has_a_snapshot_is_ready_though_nobody_asks_and_consul_is_gone() {
    let mut agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let folder = Folder::new("ready");
    let file = folder.path("snapshot");
    let (dns, http) = (agent.dns().to_string(), agent.http());
    let start = || Admin::start_with(&dns, &http, &["--snapshot", file.to_str().unwrap()]);
    let mut before = start();
    let reply = ask_udp(before.dns, "web.service.consul.", RecordType::A).await;
    assert_eq!(reply.unwrap().answers.len(), 2);
    before.serving.signal("-TERM");
    assert!(before.serving.wait().success());
    agent.kill();
    let serving = start();
    wait_for("what is written down", async || {
        let status = serving.json("/v1/status").await;
        (status["cache"]["names"] == 1 && status["sources"][0]["up"] == false).then_some(())
    })
    .await;
    assert_eq!(serving.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn who_answers_that_nothing_can_be_told_makes_nobody_ready() {
    let http =
        ScriptedHttp::start(|_| vec![status("500 Internal Server Error", "No cluster leader")]);
    let dns = Server::start(|question, _| vec![srv(question, 0).code(2)]).await;
    let serving = Admin::start(&dns.address().to_string(), &http.url());
    wait_for("what is answered to be seen", async || {
        (serving.get("/readyz").await.0 == 503).then_some(())
    })
    .await;
    let status = serving.json("/v1/status").await;
    assert_eq!(status["sources"][0]["up"], true, "{status}");
}

#[tokio::test]
async fn every_stale_answer_is_counted_as_one() {
    let mut agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let serving = Admin::start(&agent.dns().to_string(), &agent.http());
    let ask = async || ask_udp(serving.dns, "web.service.consul.", RecordType::A).await;
    ask().await.unwrap();
    agent.kill();
    let count = async |metric: &str| {
        let (_, metrics) = serving.get("/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with(metric));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    wait_for("stale answers", async || {
        ask().await;
        (count("proconsul_stale_served_total ").await > 0).then_some(())
    })
    .await;
    let fresh = "proconsul_lookups_total{source=\"dns\",freshness=\"fresh\"";
    let before = count(fresh).await;
    for _ in 0..500 {
        assert_eq!(ask().await.unwrap().answers.len(), 2);
    }
    // What was given without a look-up is told with the next one.
    wait_for("the count", async || {
        ask().await;
        (count("proconsul_stale_served_total ").await >= 500).then_some(())
    })
    .await;
    // Some that were given before are told late.
    assert!(count(fresh).await < before + 100);
    assert_eq!(serving.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn the_page_tells_a_fault_and_the_recovery() {
    let mut agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let serving = Admin::start(&agent.dns().to_string(), &agent.http());
    let ask = async || ask_udp(serving.dns, "web.service.consul.", RecordType::A).await;
    ask().await.unwrap();
    let (_, page) = serving.get("/").await;
    assert!(
        page.contains("web.service.consul.") && page.contains(">well<"),
        "{page}"
    );
    agent.kill();
    wait_for("the fault on the page", async || {
        ask().await;
        serving
            .get("/")
            .await
            .1
            .contains("answers from memory")
            .then_some(())
    })
    .await;
    agent.restart().await;
    agent.register_instances("web", 2).await;
    wait_for("the recovery on the page", async || {
        ask().await;
        serving.get("/").await.1.contains(">well<").then_some(())
    })
    .await;
}
