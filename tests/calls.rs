//! Calls to services by name: real servers, registered at a real agent, that come, go and
//! fail.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proconsul::{
    Blame, Breaker, CallError, ErrorKind, Filter, Health, HttpClient, HttpError, Policy, Resolver,
    Retry, Strategy,
};
use serde_json::json;
use support::{Agent, PATIENCE, black_hole, closed_port, wait_for};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// An HTTP server that says its own port and the `Host` it was asked by; gone with its
/// connections when dropped.
struct Web {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    /// What it answers with; 0: nothing, and the connection is closed.
    status: Arc<AtomicU16>,
    _tasks: JoinSet<()>,
}

impl Web {
    async fn start() -> Self {
        Self::bound("127.0.0.1:0").await
    }

    async fn bound(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let status = Arc::new(AtomicU16::new(200));
        let mut tasks = JoinSet::new();
        let (counted, accepted, says) = (asked.clone(), connections.clone(), status.clone());
        tasks.spawn(async move {
            // Dropped with the task, and all of them with it.
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                open.spawn(converse(stream, address, counted.clone(), says.clone()));
            }
        });
        Self {
            address,
            asked,
            connections,
            status,
            _tasks: tasks,
        }
    }

    async fn registered(agent: &Agent, meta: serde_json::Value) -> Self {
        let web = Self::start().await;
        register(agent, web.address, meta).await;
        web
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn says(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

async fn register(agent: &Agent, address: SocketAddr, meta: serde_json::Value) {
    let body = json!({
        "Name": "web", "ID": format!("web-{}", address.port()), "Meta": meta,
        "Address": address.ip().to_string(), "Port": address.port(),
    });
    agent.register_service(body).await;
}

async fn converse(
    mut stream: TcpStream,
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    status: Arc<AtomicU16>,
) {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head: Vec<u8> = read.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let field = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.map(|line| line.trim().to_owned())
        };
        let length: usize = field("content-length:").map_or(0, |length| length.parse().unwrap());
        while read.len() < length {
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        }
        read.drain(..length);
        asked.fetch_add(1, Ordering::Relaxed);
        let status = status.load(Ordering::Relaxed);
        if status == 0 {
            return;
        }
        let body = format!("{} {}", address.port(), field("host:").unwrap_or_default());
        let reply = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn webs(agent: &Agent, count: usize) -> Vec<Web> {
    let mut webs = Vec::new();
    for _ in 0..count {
        webs.push(Web::registered(agent, json!({})).await);
    }
    webs
}

fn resolver(agent: &Agent) -> Resolver {
    Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http())
        .build()
        .unwrap()
}

/// A client that knows so many instances.
async fn client(agent: &Agent, instances: usize) -> HttpClient {
    let resolver = resolver(agent);
    let client = HttpClient::new(&resolver).unwrap();
    wait_for("all instances", async || {
        let answer = resolver.lookup("web").await.ok()?;
        (answer.endpoints().len() == instances).then_some(())
    })
    .await;
    client
}

async fn port(client: &HttpClient) -> Result<u16, HttpError> {
    let answer = client.get("http://web/").send().await?;
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    let (port, host) = text.split_once(' ').unwrap();
    assert_eq!(host, "web", "the host is the service");
    Ok(port.parse().unwrap())
}

#[tokio::test]
async fn requests_are_spread_over_all_instances_and_connections_kept() {
    let agent = Agent::start().await;
    let webs = webs(&agent, 4).await;
    let client = client(&agent, 4).await;
    let mut counts = BTreeMap::<u16, usize>::new();
    for _ in 0..400 {
        *counts.entry(port(&client).await.unwrap()).or_default() += 1;
    }
    assert!(
        counts.values().all(|count| (95..=105).contains(count)),
        "{counts:?}"
    );
    for web in &webs {
        assert_eq!(web.connections.load(Ordering::Relaxed), 1, "kept alive");
    }

    // Plain reqwest, with our addresses and ports, stays where it is.
    let found = resolver(&agent).reqwest_dns();
    let plain = support::http_client_with(|builder| builder.dns_resolver(found));
    let mut seen = BTreeMap::<String, usize>::new();
    for _ in 0..10 {
        let answer = plain
            .get("http://web.service.consul/")
            .send()
            .await
            .unwrap();
        *seen.entry(answer.text().await.unwrap()).or_default() += 1;
    }
    assert_eq!(seen.len(), 1);
}

#[tokio::test]
async fn no_call_fails_while_an_instance_dies_and_a_new_one_gets_its_share() {
    let agent = Agent::start().await;
    let mut webs = webs(&agent, 3).await;
    let client = client(&agent, 3).await;
    for call in 0..300 {
        if call == 100 {
            // Consul does not know of it yet.
            drop(webs.pop());
        }
        port(&client).await.unwrap();
    }
    let new = Web::registered(&agent, json!({})).await;
    wait_for("its share", async || {
        port(&client).await.unwrap();
        (new.asked() > 10).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_again() {
    let agent = Agent::start().await;
    let webs = webs(&agent, 3).await;
    let client = client(&agent, 3).await;
    let asked = || webs.iter().map(Web::asked).sum::<usize>();
    let says = |status| webs.iter().for_each(|web| web.says(status));
    // What the server answers to each method, and how often it is asked.
    for (status, method, times) in [
        (500, "GET", 3),
        (503, "PUT", 3),
        (500, "POST", 1),
        (503, "PATCH", 1),
        (501, "GET", 1),
        (404, "GET", 1),
        (429, "DELETE", 1),
    ] {
        says(status);
        let before = asked();
        let method = method.parse().unwrap();
        let answer = client.request(method, "http://web/").send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), asked() - before),
            (status, times)
        );
    }
    // The connection is closed without an answer.
    says(0);
    let before = asked();
    let sent = |method: &str| {
        let request = client.request(method.parse().unwrap(), "http://web/");
        request.with(|request| request.body("once")).send()
    };
    assert!(matches!(
        sent("POST").await,
        Err(CallError::Failed { attempts: 1, .. })
    ));
    assert_eq!(asked() - before, 1);
    assert!(matches!(
        sent("PUT").await,
        Err(CallError::Failed { attempts: 3, .. })
    ));
    assert_eq!(asked() - before, 4);
}

#[tokio::test]
async fn one_that_fails_rests_and_a_post_goes_elsewhere_where_nothing_was_sent() {
    let agent = Agent::start().await;
    let web = Web::registered(&agent, json!({})).await;
    register(&agent, closed_port(), json!({})).await;
    let client = client(&agent, 2).await;
    for _ in 0..40 {
        let answer = client.post("http://web/").send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(web.asked(), 40);
}

#[tokio::test]
async fn what_is_no_service_is_refused_by_name() {
    let agent = Agent::start().await;
    let client = HttpClient::new(&resolver(&agent)).unwrap();
    let refusal = async |url: &str| match client.get(url).send().await {
        Err(CallError::NoEndpoint(error)) => (error.kind(), error.to_string()),
        other => panic!("{url}: {other:?}"),
    };
    let (kind, said) = refusal("http://nosuch/").await;
    assert!(
        kind == ErrorKind::NotFound && said.contains("nosuch.service.consul"),
        "{said}"
    );
    for (url, why) in [
        ("http://web:8080/", "leave :8080 out"),
        ("http://127.0.0.1/", "any HTTP client"),
        ("http://[::1]/", "any HTTP client"),
        ("http://web@dc2/", "dc2.consul"),
        ("http://user:secret@web/", "as a header"),
        ("http://secret@web/", "as a header"),
        (
            "http://web:8080/secret?key=secret#secret",
            "leave :8080 out",
        ),
        ("ws://web/", "only http"),
    ] {
        let (kind, said) = refusal(url).await;
        assert!(kind == ErrorKind::Invalid && said.contains(why), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
}

#[tokio::test]
async fn a_call_of_any_kind_goes_elsewhere_where_one_fails() {
    let agent = Agent::start().await;
    let web = Web::registered(&agent, json!({ "zone": "b" })).await;
    register(&agent, closed_port(), json!({ "zone": "a" })).await;
    let policy = Policy::new(Strategy::RoundRobin).breaker(Breaker::default().failures(2));
    let service = resolver(&agent).service_with("web", policy).unwrap();
    wait_for("both", async || {
        (service.endpoints().len() == 2).then_some(())
    })
    .await;
    let retry = Retry::http();
    for _ in 0..10 {
        let stream = service
            .call(&retry, |endpoint| {
                TcpStream::connect(endpoint.socket_addr())
            })
            .await
            .unwrap();
        assert_eq!(stream.peer_addr().unwrap(), web.address);
    }
    let standings: Vec<_> = service
        .standings()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        standings.iter().any(|one| one.contains("open")),
        "{standings:?}"
    );

    // The question's fault is nobody's, and once is enough.
    let asked = AtomicUsize::new(0);
    let failed = service
        .call_if(
            &retry,
            |_| async { Err::<(), u8>(asked.fetch_add(1, Ordering::Relaxed) as u8) },
            |_| Blame::Question,
        )
        .await;
    assert!(matches!(
        failed,
        Err(CallError::Failed {
            error: 0,
            attempts: 1
        })
    ));
    let hanging = Retry::http().deadline(Duration::from_millis(50));
    let late = service
        .call(&hanging, |_| std::future::pending::<Result<(), u8>>())
        .await;
    assert!(matches!(
        late,
        Err(CallError::Deadline {
            attempts: 1,
            last: None
        })
    ));
}

#[tokio::test]
async fn a_repeat_goes_to_whoever_was_not_called_however_endpoints_are_chosen() {
    let agent = Agent::start().await;
    // First in order, at no cost, and with all the weight: nobody listens there.
    for port in [1, 2] {
        let body = json!({
            "Name": "web", "ID": format!("dead-{port}"), "Address": "127.0.0.1", "Port": port,
            "Weights": { "Passing": 1_000, "Warning": 1 },
        });
        agent.register_service(body).await;
    }
    let web = Web::registered(&agent, json!({})).await;
    let retry = Retry::http();
    for strategy in Strategy::ALL {
        let policy = Policy::new(strategy);
        let service = resolver(&agent).service_with("web", policy).unwrap();
        wait_for("all instances", async || {
            (service.endpoints().len() == 3).then_some(())
        })
        .await;
        for _ in 0..20 {
            let connect = async |endpoint: proconsul::Endpoint| {
                let stream = TcpStream::connect(endpoint.socket_addr()).await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
                stream.peer_addr()
            };
            let called = service.call_if(&retry, connect, |_| Blame::Unreached);
            let called = called
                .await
                .unwrap_or_else(|why| panic!("{strategy}: {why}"));
            assert_eq!(called, web.address);
        }
    }
}

#[tokio::test]
async fn several_registrations_of_one_place_are_one_endpoint_and_each_may_be_what_is_required() {
    let agent = Agent::start().await;
    for (id, tag, status) in [("a", "v1", "warning"), ("b", "v2", "passing")] {
        let body = json!({
            "Name": "web", "ID": id, "Tags": [tag], "Meta": { "id": id },
            "Address": "10.0.0.1", "Port": 80, "Weights": { "Passing": 10, "Warning": 1 },
            "Check": { "TTL": "1h", "Status": status },
        });
        agent.register_service(body).await;
    }
    let resolver = resolver(&agent);
    let picked = async |filter: Filter| {
        let policy = Policy::default().require(filter);
        let service = resolver.service_with("web", policy).unwrap();
        let lease = service.pick().await?;
        assert_eq!(service.endpoints().len(), 1);
        Ok::<_, proconsul::Error>(lease.endpoint().clone())
    };
    let tagged = |tag| Filter::new().tag(tag);
    for filter in [
        tagged("v1"),
        tagged("v2"),
        tagged("v1").meta("id", "a"),
        Filter::new().passing(),
        tagged("v2").passing(),
    ] {
        let endpoint = picked(filter.clone()).await.unwrap();
        assert!(filter.matches(&endpoint));
        // The healthiest stands for all.
        let told = (endpoint.id.as_deref(), endpoint.health, endpoint.weight);
        assert_eq!(told, (Some("b"), Some(Health::Passing), 10));
    }
    // No registration is all of that.
    for filter in [
        tagged("v1").passing(),
        tagged("v1").tag("v2"),
        tagged("v2").meta("id", "a"),
    ] {
        assert!(picked(filter).await.unwrap_err().is_not_found());
    }
    // Each look-up by tag finds its own.
    for (name, id) in [("v1.web", "a"), ("v2.web", "b")] {
        let answer = resolver.lookup(name).await.unwrap();
        assert_eq!(answer.endpoints().len(), 1, "{id}");
    }
    // What changes of one that another stands for is a change.
    let service = resolver.service("web").unwrap();
    let mut changes = service.changes();
    let next = async |changes: &mut proconsul::Changes| {
        let change = tokio::time::timeout(PATIENCE, changes.next()).await;
        change.expect("a change in time")
    };
    assert_eq!(next(&mut changes).await.all.len(), 1);
    let body = json!({
        "Name": "web", "ID": "a", "Tags": ["v3"], "Address": "10.0.0.1", "Port": 80,
        "Check": { "TTL": "1h", "Status": "warning" },
    });
    agent.register_service(body).await;
    let updated = next(&mut changes).await.updated;
    assert!(
        updated.iter().any(|one| tagged("v3").matches(one)),
        "{updated:?}"
    );
}

#[tokio::test]
async fn what_is_preferred_is_called_while_it_is_there() {
    let agent = Agent::start().await;
    let near = Web::registered(&agent, json!({ "zone": "a" })).await;
    let far = Web::registered(&agent, json!({ "zone": "b" })).await;
    let resolver = resolver(&agent);
    let policy = Policy::new(Strategy::RoundRobin).prefer(Filter::new().meta("zone", "a"));
    let service = resolver.service_with("web", policy).unwrap();
    wait_for("both", async || {
        (service.endpoints().len() == 2).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(service.pick().await.unwrap().socket_addr(), near.address);
    }
    agent
        .deregister_service(&format!("web-{}", near.address.port()))
        .await;
    wait_for("the other zone", async || {
        let picked = service.try_pick().ok()?.socket_addr();
        (picked == far.address).then_some(())
    })
    .await;
    let none = resolver
        .service("nosuch")
        .unwrap()
        .pick()
        .await
        .unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_three_phases_of_a_migration() {
    let agent = Agent::start().await;
    let (old, new) = (Web::start().await, Web::registered(&agent, json!({})).await);
    let closed = closed_port().to_string();
    let client = async |dns: &str, http: &str, strict: bool| {
        let builder = Resolver::builder().dns(dns).http(http);
        let builder = builder.default_address("web", &format!("http://{}", old.address));
        HttpClient::new(&builder.must_be_found(strict).build().unwrap()).unwrap()
    };
    let (dns, http) = (agent.dns().to_string(), agent.http());
    // Before there is a Consul; with both; and without the old address.
    let before = client("none", "none", false).await;
    assert_eq!(port(&before).await.unwrap(), old.address.port());
    let both = client(&dns, &http, false).await;
    assert_eq!(port(&both).await.unwrap(), new.address.port());
    let down = client(&closed, "none", false).await;
    assert_eq!(port(&down).await.unwrap(), old.address.port());
    let strict = client(&closed, "none", true).await;
    let failed = strict.get("http://web/").send().await.unwrap_err();
    let CallError::NoEndpoint(error) = failed else {
        panic!("{failed}")
    };
    assert!(error.is_unavailable(), "{error}");
    assert_eq!(old.asked(), 2);
}

#[cfg(feature = "tower")]
#[tokio::test]
async fn hyper_connects_and_tower_balances_by_name() {
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    use tower::{Service as _, ServiceExt as _, discover::Change, load::Constant};

    let agent = Agent::start().await;
    let webs = webs(&agent, 2).await;
    let resolver = resolver(&agent);
    let client =
        Client::builder(TokioExecutor::new()).build::<_, Empty<bytes::Bytes>>(resolver.connector());
    for uri in ["http://web/", "http://web.service.consul/"] {
        let answer = client.get(uri.parse().unwrap()).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let known = |web: &Web| body.starts_with(web.address.port().to_string().as_bytes());
        assert!(webs.iter().any(known), "{body:?}");
    }
    assert!(client.get("http://nosuch/".parse().unwrap()).await.is_err());

    // Addresses are no names.
    for here in ["127.0.0.1:0", "[::1]:0"] {
        let web = Web::bound(here).await;
        let uri = format!("http://{}/", web.address);
        let answer = client.get(uri.parse().unwrap()).await.unwrap();
        assert_eq!(
            (answer.status(), web.asked()),
            (200.try_into().unwrap(), 1),
            "{uri}"
        );
    }

    // Where nearly all connections would go nobody answers.
    let (address, _held) = black_hole("127.0.0.1:0".parse().unwrap()).unwrap();
    let body = json!({
        "Name": "half", "ID": "hole", "Address": "127.0.0.1", "Port": address.port(),
        "Weights": { "Passing": 65_000, "Warning": 1 },
    });
    agent.register_service(body).await;
    let body = json!({ "Name": "half", "Address": "127.0.0.1", "Port": webs[0].address.port() });
    agent.register_service(body).await;
    let got = client.get("http://half/".parse().unwrap());
    let got = tokio::time::timeout(Duration::from_secs(20), got).await;
    assert_eq!(got.expect("another is tried").unwrap().status(), 200);

    let service = resolver.service("web").unwrap();
    let connect = |endpoint: &proconsul::Endpoint| {
        let address = endpoint.socket_addr();
        Constant::new(tower::service_fn(move |()| TcpStream::connect(address)), 1)
    };
    let mut balance = tower::balance::p2c::Balance::new(service.discover(connect));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let stream = balance.ready().await.unwrap().call(()).await.unwrap();
        seen.insert(stream.peer_addr().unwrap());
    }
    assert_eq!(seen, webs.iter().map(|web| web.address).collect());

    let mut discover = service.discover(|endpoint| endpoint.port);
    let mut next = async || {
        let next = std::future::poll_fn(|context| {
            futures_core::Stream::poll_next(std::pin::Pin::new(&mut discover), context)
        });
        next.await.unwrap().unwrap()
    };
    for _ in &webs {
        assert!(matches!(next().await, Change::Insert(address, port) if address.port() == port));
    }
    agent
        .deregister_service(&format!("web-{}", webs[0].address.port()))
        .await;
    assert!(matches!(next().await, Change::Remove(gone) if gone == webs[0].address));
}

#[tokio::test]
async fn an_answer_is_in_the_air_until_its_body_has_arrived() {
    let agent = Agent::start().await;
    let webs = webs(&agent, 2).await;
    let resolver = resolver(&agent);
    let client = HttpClient::builder().policy(Policy::new(Strategy::LeastLoaded));
    let client = client.build(&resolver).unwrap();
    wait_for("both", async || {
        let answer = resolver.lookup("web").await.ok()?;
        (answer.endpoints().len() == 2).then_some(())
    })
    .await;
    let answer = client.get("http://web/all").send().await.unwrap();
    let its = answer.remote_addr().unwrap();
    assert_eq!(answer.url().as_str(), "http://web/all");
    assert_eq!(answer.content_length(), Some("12345 web".len() as u64));
    for _ in 0..20 {
        assert_ne!(port(&client).await.unwrap(), its.port());
    }
    assert!(answer.text().await.unwrap().contains("web"));
    let mut counts = webs.iter().map(Web::asked);
    assert!(counts.all(|count| count == 1 || count == 20));
    wait_for("its turn", async || {
        (port(&client).await.unwrap() == its.port()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn over_tls_the_certificate_is_the_services() {
    let made = rcgen::generate_simple_self_signed(["web".to_owned()]).unwrap();
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("calls-ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked_for = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let name = stream.get_ref().1.server_name().map(str::to_owned);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut head).await.unwrap() > 0);
        }
        let reply = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
        stream.write_all(reply).await.unwrap();
        stream.shutdown().await.unwrap();
        name
    });
    let resolver = Resolver::builder().dns("none").http("none");
    let resolver = resolver
        .default_address("web", &address.to_string())
        .build()
        .unwrap();
    let client = HttpClient::builder()
        .ca_file(&file)
        .build(&resolver)
        .unwrap();
    let answer = client.get("https://web/").send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(asked_for.await.unwrap().as_deref(), Some("web"));
}
