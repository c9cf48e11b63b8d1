//! gRPC calls to a service by name: real servers, registered at a real agent, that come, go
//! and say how they are.
#![cfg(feature = "grpc")]
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    convert::Infallible,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use proconsul::{Policy, Resolver, Retry, Service, Strategy, grpc::Channel};
use serde_json::json;
use support::{Agent, black_hole, closed_port, wait_for};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    transport::{
        Certificate, ClientTlsConfig, Identity, Server, ServerTlsConfig, server::TcpIncoming,
    },
};
use tonic_health::{
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_client::HealthClient,
        health_server::{Health, HealthServer},
    },
    server::{HealthReporter, HealthService},
};
use tower_service::Service as _;

/// Any port of this machine.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server whose calls are counted; gone with its connections when dropped.
struct Grpc {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    health: HealthReporter,
    /// Its own: with it all connections end.
    runtime: Option<Runtime>,
}

impl Drop for Grpc {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Counted {
    own: HealthService,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Health for Counted {
    type WatchStream = <HealthService as Health>::WatchStream;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        assert_eq!(request.metadata().get("x-own").unwrap(), "7");
        Ok(Response::new(HealthCheckResponse::default()))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.own.watch(request).await
    }
}

impl Grpc {
    async fn registered(agent: &Agent) -> Self {
        let server = Self::at(ANY).unwrap();
        register(agent, server.address).await;
        server
    }

    fn at(address: SocketAddr) -> io::Result<Self> {
        Self::with(Server::builder(), address)
    }

    /// Over TLS, with a certificate of this name, which is given.
    fn named(name: &str) -> (Self, Certificate) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let own = Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem());
        let tls = ServerTlsConfig::new().identity(own);
        let server = Server::builder().tls_config(tls).unwrap();
        let certificate = Certificate::from_pem(made.cert.pem());
        (Self::with(server, ANY).unwrap(), certificate)
    }

    fn with(mut server: Server, address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<AtomicUsize>::default();
        let health = HealthReporter::new();
        let counted = Counted {
            own: HealthService::from_health_reporter(health.clone()),
            asked: Arc::clone(&asked),
        };
        let server = server.add_service(HealthServer::new(counted));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = TcpIncoming::from(listener);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Ok(Self {
            address,
            asked,
            health,
            runtime: Some(runtime),
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn register(agent: &Agent, address: SocketAddr) {
    let body = json!({
        "Name": "orders", "ID": format!("orders-{}", address.port()),
        "Address": address.ip().to_string(), "Port": address.port(),
    });
    agent.register_service(body).await;
}

/// The service, once so many instances are known.
async fn service(agent: &Agent, instances: usize) -> Service {
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http());
    let policy = Policy::new(Strategy::RoundRobin);
    let service = builder
        .build()
        .unwrap()
        .service_with("orders", policy)
        .unwrap();
    wait_for("all instances", async || {
        (service.endpoints().len() == instances).then_some(())
    })
    .await;
    service
}

async fn call(channel: &Channel) -> Result<(), Status> {
    let mut client = HealthClient::new(channel.clone());
    client.check(request()).await.map(drop)
}

async fn call_within(channel: &Channel, time: Duration) -> Result<(), Status> {
    let mut client = HealthClient::new(channel.clone());
    let mut request = request();
    request.set_timeout(time);
    client.check(request).await.map(drop)
}

fn request() -> Request<HealthCheckRequest> {
    let mut request = Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("x-own", "7".parse().unwrap());
    request
}

#[tokio::test]
async fn calls_are_spread_and_follow_who_is_there() {
    let agent = Agent::start().await;
    let servers = [
        Grpc::registered(&agent).await,
        Grpc::registered(&agent).await,
    ];
    let channel = Channel::new(service(&agent, 2).await);
    for _ in 0..200 {
        call(&channel).await.unwrap();
    }
    for server in &servers {
        assert!((95..=105).contains(&server.asked()), "{}", server.asked());
    }
    let new = Grpc::registered(&agent).await;
    wait_for("its share", async || {
        call(&channel).await.unwrap();
        (new.asked() > 10).then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_call_fails_while_an_instance_is_dead_or_dies() {
    let agent = Agent::start().await;
    register(&agent, closed_port()).await;
    let alive = Grpc::registered(&agent).await;
    let dying = Grpc::registered(&agent).await;
    let service = service(&agent, 3).await;
    let channel = Channel::builder().repeatable(true).build(service.clone());
    let mut dying = Some(dying);
    for number in 0..300 {
        if number == 100 {
            drop(dying.take());
        }
        call(&channel).await.unwrap();
    }
    assert!(alive.asked() > 150);
    // The two that fail may not all rest: one of them is tried by each call.
    let standings: Vec<_> = service
        .standings()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        standings.iter().any(|one| one.contains("  open")),
        "{standings:?}"
    );
}

#[tokio::test]
async fn who_says_that_it_does_not_serve_is_left_alone() {
    let agent = Agent::start().await;
    let servers = [
        Grpc::registered(&agent).await,
        Grpc::registered(&agent).await,
    ];
    let service = service(&agent, 2).await;
    let channel = Channel::new(service.clone());
    for _ in 0..10 {
        call(&channel).await.unwrap();
    }
    servers[0]
        .health
        .set_service_status("", tonic_health::ServingStatus::NotServing)
        .await;
    wait_for("its word", async || {
        let standings = service.standings();
        let own = standings
            .iter()
            .find(|one| one.endpoint.port == servers[0].address.port())?;
        (!own.serves).then_some(())
    })
    .await;
    let before = servers[0].asked();
    for _ in 0..20 {
        call(&channel).await.unwrap();
    }
    assert_eq!(servers[0].asked(), before);
    servers[0]
        .health
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    wait_for("its share", async || {
        call(&channel).await.unwrap();
        (servers[0].asked() > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_an_endpoint_a_call_fails_at_once_and_says_why() {
    let agent = Agent::start().await;
    let builder = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&agent.http());
    let service = builder.build().unwrap().service("orders").unwrap();
    let channel = Channel::builder()
        .retry(Retry::default().deadline(Duration::from_secs(20)))
        .build(service);
    let failed = call(&channel).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable);
    assert!(
        failed.message().contains("orders.service.consul"),
        "{failed}"
    );
}

/// It ends, and who had a connection to it has seen that: what is sent before may be lost.
async fn leaves(server: Grpc) {
    drop(server);
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Eight calls at once, none of which finds anybody. One after another they would need a
/// second each.
async fn eight_fail_together(channel: &Channel) {
    let start = tokio::time::Instant::now();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { call(&channel).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn all_who_want_a_connection_wait_for_it_together() {
    let (address, _held) = black_hole(ANY).unwrap();
    let channel = Channel::builder().retry(Retry::none());
    let service = service_at(address);
    eight_fail_together(&channel.build(service.clone())).await;
    // It was one connection that failed.
    assert_eq!(service.standings()[0].failures, 1);
}

#[tokio::test]
async fn all_who_want_a_connection_again_wait_for_it_together() {
    let server = Grpc::at(ANY).unwrap();
    let address = server.address;
    let channel = Channel::builder().retry(Retry::none());
    let service = service_at(address);
    let channel = channel.build(service.clone());
    call(&channel).await.unwrap();
    leaves(server).await;
    let _held = wait_for("its port", async || black_hole(address).ok()).await;
    eight_fail_together(&channel).await;
    assert_eq!(service.standings()[0].failures, 1);
}

/// A channel that trusts a certificate.
fn over_tls(service: Service, trusted: Certificate) -> Channel {
    let tls = ClientTlsConfig::new().ca_certificate(trusted);
    let channel = Channel::builder()
        .tls(true)
        .retry(Retry::none())
        .configure(move |endpoint| endpoint.tls_config(tls.clone()).unwrap());
    channel.build(service)
}

#[tokio::test]
async fn the_handshake_has_to_be_done_in_time_too() {
    // Connections are made, and nobody says a word.
    let listener = TcpListener::bind(ANY).await.unwrap();
    let service = service_at(listener.local_addr().unwrap());
    let (_, trusted) = Grpc::named("orders");
    let channel = over_tls(service.clone(), trusted);
    let called = tokio::time::timeout(Duration::from_secs(20), call(&channel));
    let failed = called.await.expect("an end").unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed}");
    assert_eq!(service.standings()[0].failures, 1);
}

#[tokio::test]
async fn over_tls_the_certificate_is_the_services() {
    let (server, trusted) = Grpc::named("orders.service.consul");
    let channel = over_tls(service_at(server.address), trusted);
    call(&channel).await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused_unless_it_is_asked_for() {
    let (server, trusted) = Grpc::named("payments.service.consul");
    let service = service_at(server.address);
    let failed = call(&over_tls(service.clone(), trusted.clone())).await;
    let failed = failed.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable);
    assert!(failed.message().contains("certificate"), "{failed}");
    assert_eq!(server.asked(), 0);
    let other = ClientTlsConfig::new()
        .ca_certificate(trusted)
        .domain_name("payments.service.consul");
    let channel = Channel::builder()
        .tls(true)
        .configure(move |endpoint| endpoint.tls_config(other.clone()).unwrap());
    call(&channel.build(service)).await.unwrap();
}

/// Passes connections on, each after so long.
async fn slow_way(to: SocketAddr, pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                let mut to = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    address
}

#[tokio::test]
async fn a_connection_that_takes_longer_than_each_call_has_is_made_nonetheless() {
    let (server, trusted) = Grpc::named("orders.service.consul");
    let slow = Duration::from_millis(400);
    let service = service_at(slow_way(server.address, slow).await);
    let channel = over_tls(service.clone(), trusted);
    let (start, time) = (tokio::time::Instant::now(), Duration::from_millis(150));
    let late = call_within(&channel, time).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    wait_for("the connection", async || {
        // Nobody is blamed for it; who is connected to may be, where it stands still.
        let failures = service.standings()[0].failures;
        assert!(failures == 0 || start.elapsed() > slow, "{failures}");
        call_within(&channel, time).await.ok()
    })
    .await;
}

#[tokio::test]
async fn who_takes_no_connection_has_failed_however_little_time_calls_have() {
    let (address, _held) = black_hole(ANY).unwrap();
    let service = service_at(address);
    let channel = Channel::new(service.clone());
    let late = call_within(&channel, Duration::from_millis(10)).await;
    assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
    wait_for("the failure", async || {
        (service.standings()[0].failures == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_deadline_that_is_over_is_told_as_such_and_nothing_is_called_again() {
    let (address, _) = silent();
    let service = service_at(address);
    let channel = Channel::builder().repeatable(true).build(service.clone());
    for _ in 0..20 {
        let late = call_within(&channel, Duration::from_millis(60)).await;
        let late = late.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        assert!(late.message().contains("attempt 1"), "{late}");
    }
}

#[tokio::test]
async fn a_limit_for_each_attempt_is_no_deadline_of_the_call() {
    let (address, _) = silent();
    let service = service_at(address);
    let channel = Channel::builder()
        .retry(Retry::http().attempts(2))
        .repeatable(true)
        .configure(|endpoint| endpoint.timeout(Duration::from_millis(20)));
    let late = call_within(&channel.build(service.clone()), Duration::from_secs(20)).await;
    let late = late.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert_eq!(service.standings()[0].failures, 2);
}

#[tokio::test]
async fn a_request_that_is_a_stream_is_not_lost_with_a_connection() {
    let first = Grpc::at(ANY).unwrap();
    let address = first.address;
    let channel = Channel::builder().retry(Retry::none());
    let mut channel = channel.build(service_at(address));
    call(&channel).await.unwrap();
    leaves(first).await;
    let _second = wait_for("its port", async || Grpc::at(address).ok()).await;
    // It has begun, and goes on.
    let empty = Frame::data(Bytes::from_static(&[0, 0, 0, 0, 0]));
    let (sender, mut rest) = tokio::sync::mpsc::channel::<Result<_, Status>>(1);
    sender.send(Ok(empty)).await.unwrap();
    let body = futures_util::stream::poll_fn(move |context| rest.poll_recv(context));
    let request = http::Request::post("/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-own", "7")
        .body(Body::new(StreamBody::new(body)))
        .unwrap();
    let mut answer = channel.call(request);
    tokio::select! {
        answer = &mut answer => panic!("an answer to half a question: {answer:?}"),
        () = tokio::time::sleep(Duration::from_millis(100)) => {}
    }
    drop(sender);
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers().get("grpc-status"), None, "{answer:?}");
}

#[tokio::test]
async fn a_stream_of_answers_is_in_the_air_until_it_is_dropped() {
    let server = Grpc::at(ANY).unwrap();
    let service = service_by(server.address, Strategy::LeastLoaded);
    let mut client = HealthClient::new(Channel::new(service.clone()));
    let in_flight = || service.standings()[0].in_flight;
    client.check(request()).await.unwrap();
    assert_eq!(in_flight(), Some(0));
    let stream = client.watch(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(in_flight(), Some(1));
    drop(stream);
    assert_eq!(in_flight(), Some(0));
}

#[test]
fn a_channel_outlives_the_runtime_that_it_connected_in() {
    let server = Grpc::at(ANY).unwrap();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let channel = first.block_on(async {
        let channel = Channel::new(service_at(server.address));
        call(&channel).await.unwrap();
        channel
    });
    drop(first);
    runtime().block_on(async { call(&channel).await.unwrap() });
}

#[tokio::test]
async fn what_a_server_told_one_channel_another_does_not_take_back() {
    let server = Grpc::at(ANY).unwrap();
    let service = service_at(server.address);
    let channels = [Channel::new(service.clone()), Channel::new(service.clone())];
    for channel in &channels {
        call(channel).await.unwrap();
    }
    let word = tonic_health::ServingStatus::NotServing;
    server.health.set_service_status("", word).await;
    let [one, other] = channels;
    wait_for("its word to both", async || {
        let failed = call(&other).await.err()?;
        let out = failed.message().contains("all of its 1 instances say");
        out.then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(other);
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!service.standings()[0].serves);
    }
    drop(one);
    wait_for("it to be given", async || {
        service.standings()[0].serves.then_some(())
    })
    .await;
}

/// A server that takes calls and answers none. Counts the frames of each type that it gets.
fn silent() -> (SocketAddr, Arc<[AtomicUsize; 10]>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let frames = Arc::default();
    let counted = Arc::clone(&frames);
    // A thread, whose time nobody moves by hand. It ends with the connection.
    std::thread::spawn(move || listen(&listener, &counted));
    (address, frames)
}

fn listen(listener: &std::net::TcpListener, frames: &[AtomicUsize; 10]) -> io::Result<Infallible> {
    let (mut stream, _) = listener.accept()?;
    stream.read_exact(&mut [0; 24])?;
    stream.write_all(&[0, 0, 0, SETTINGS as u8, 0, 0, 0, 0, 0])?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize])?;
        let (kind, flags) = (usize::from(head[3]), head[4]);
        frames[kind].fetch_add(1, Ordering::Relaxed);
        if (kind, flags) == (SETTINGS, 0) {
            stream.write_all(&[0, 0, 0, SETTINGS as u8, 1, 0, 0, 0, 0])?;
        }
    }
}

/// Types of frames: RFC 9113, section 6.
const HEADERS: usize = 1;
const RESET: usize = 3;
const SETTINGS: usize = 4;
const PING: usize = 6;

/// A service that is at this address, without Consul.
fn service_at(address: SocketAddr) -> Service {
    service_by(address, Strategy::default())
}

fn service_by(address: SocketAddr, strategy: Strategy) -> Service {
    let builder = Resolver::builder().dns("none").http("none");
    let builder = builder.default_address("orders", &address.to_string());
    let policy = Policy::new(strategy);
    let service = builder.build().unwrap().service_with("orders", policy);
    service.unwrap()
}

#[tokio::test]
async fn a_server_that_thinks_for_long_is_not_pinged() {
    let (address, frames) = silent();
    let seen = |kind: usize| frames[kind].load(Ordering::Relaxed);
    let channel = Channel::new(service_at(address));
    let call = tokio::spawn(async move { call(&channel).await });
    wait_for("the call, and the question for its health", async || {
        (seen(HEADERS) == 2).then_some(())
    })
    .await;
    tokio::time::pause();
    for _ in 0..60 {
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
    // What was sent before the call ended is read before that is.
    call.abort();
    wait_for("the end of the call", async || {
        (seen(RESET) + seen(PING) > 0).then_some(())
    })
    .await;
    assert_eq!(seen(PING), 0);
}

#[tokio::test]
async fn a_deadline_is_that_of_the_connection_too() {
    let (address, _held) = black_hole(ANY).unwrap();
    let service = service_at(address);
    let mut client = HealthClient::new(Channel::new(service.clone()));
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_millis(100));
    let failed = client.check(request).await.unwrap_err();
    assert_eq!(failed.code(), Code::DeadlineExceeded, "{failed}");
    // Who takes no connection has failed, however short the deadline.
    wait_for("the failure", async || {
        (service.standings()[0].failures == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_asked_for_its_health_again() {
    let agent = Agent::start().await;
    let first = Grpc::registered(&agent).await;
    let address = first.address;
    let service = service(&agent, 1).await;
    let channel = Channel::builder().repeatable(true).build(service.clone());
    call(&channel).await.unwrap();
    drop(first);
    let second = wait_for("its port", async || Grpc::at(address).ok()).await;
    let word = tonic_health::ServingStatus::NotServing;
    second.health.set_service_status("", word).await;
    wait_for("its word", async || {
        (!service.standings()[0].serves).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_word_of_a_server_is_forgotten_with_who_heard_it_and_kept_when_it_comes_back() {
    let agent = Agent::start().await;
    let server = Grpc::registered(&agent).await;
    let service = service(&agent, 1).await;
    let channel = Channel::new(service.clone());
    call(&channel).await.unwrap();
    let word = tonic_health::ServingStatus::NotServing;
    server.health.set_service_status("", word).await;
    let out = async || (!service.standings().first()?.serves).then_some(());
    wait_for("its word", out).await;
    // It leaves Consul and comes back, and has said nothing new.
    let id = format!("orders-{}", server.address.port());
    agent.deregister_service(&id).await;
    wait_for("it to be gone", async || {
        service.standings().is_empty().then_some(())
    })
    .await;
    register(&agent, server.address).await;
    wait_for("it to be back", async || {
        (!service.standings().is_empty()).then_some(())
    })
    .await;
    wait_for("its word again", out).await;
    drop(channel);
    wait_for("it to be given", async || {
        service.standings().first()?.serves.then_some(())
    })
    .await;
}
