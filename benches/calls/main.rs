//! Calls by name beside what others make of the same instances: how they are spread, how
//! many fail while one instance is dead, and what a call takes. Run by
//! `scripts/bench --calls`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the point"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock itself"
)]

#[path = "../lookup/agent.rs"]
mod agent;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proconsul::{HttpClient, Policy, Resolver, Strategy, grpc};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use agent::Agent;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const CALLS: usize = 1_000;

#[tokio::main]
async fn main() -> Outcome<()> {
    if !std::env::args().any(|word| word == "--calls") {
        println!("nothing is measured here: run scripts/bench --calls");
        return Ok(());
    }
    let agent = tokio::task::spawn_blocking(|| Agent::start().map_err(|error| error.to_string()));
    let agent = agent.await??;
    let mut addresses = Vec::new();
    for _ in 0..10 {
        addresses.push(web().await?);
    }
    register(&agent, "web", &addresses).await?;
    let resolver = Resolver::builder()
        .dns(&agent.dns().to_string())
        .http(&format!("http://{}", agent.http()))
        .build()?;
    while resolver
        .lookup("web")
        .await
        .map_or(0, |answer| answer.endpoints().len())
        < 10
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    println!(
        "{:<36} {:>10} {:>10} {:>10} {:>10}",
        "HTTP, 10 instances", "failed", "least", "most", "a call"
    );
    let http = HttpClient::new(&resolver)?;
    let plain = plain(&resolver)?;
    for _ in 0..3 {
        spread("proconsul HttpClient", async || {
            let answer = http.get("http://web/").send().await.ok()?;
            answer.text().await.ok()
        })
        .await;
        spread("reqwest with reqwest_dns()", async || {
            let answer = plain.get("http://web/").send().await.ok()?;
            answer.text().await.ok()
        })
        .await;
    }

    println!(
        "\n{:<36} {:>10} {:>10} {:>10} {:>10}",
        "gRPC, 3 instances and a dead one", "failed", "", "", "a call"
    );
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(health().await?);
    }
    // Nobody listens there any more.
    servers.push(TcpListener::bind("127.0.0.1:0").await?.local_addr()?);
    register(&agent, "orders", &servers).await?;
    let service = resolver.service_with("orders", Policy::new(Strategy::RoundRobin))?;
    while service.endpoints().len() < 4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let endpoints = servers.iter().map(|server| {
        let endpoint = Endpoint::from_shared(format!("http://{server}"));
        endpoint.map(|endpoint| endpoint.connect_timeout(Duration::from_secs(1)))
    });
    let endpoints: Vec<_> = endpoints.collect::<Result<_, _>>()?;
    for _ in 0..3 {
        let ours = grpc::Channel::new(service.clone());
        spread("proconsul grpc::Channel", async || {
            let asked = HealthClient::new(ours.clone())
                .check(HealthCheckRequest::default())
                .await;
            asked.ok().map(|_| String::new())
        })
        .await;
        let theirs = Channel::balance_list(endpoints.clone().into_iter());
        spread("tonic balance_list", async || {
            let asked = HealthClient::new(theirs.clone())
                .check(HealthCheckRequest::default())
                .await;
            asked.ok().map(|_| String::new())
        })
        .await;
    }
    Ok(())
}

/// So many calls, one after the other: who answered how often, how many failed, how long
/// one took.
async fn spread(label: &str, mut call: impl AsyncFnMut() -> Option<String>) {
    let (mut counts, mut failed) = (BTreeMap::<String, usize>::new(), 0);
    let start = Instant::now();
    for _ in 0..CALLS {
        match call().await {
            Some(who) => *counts.entry(who).or_default() += 1,
            None => failed += 1,
        }
    }
    let took = start.elapsed() / CALLS as u32;
    let least = if counts.len() < 10 {
        0
    } else {
        counts.values().copied().min().unwrap_or(0)
    };
    let most = counts.values().copied().max().unwrap_or(0);
    println!("{label:<36} {failed:>10} {least:>10} {most:>10} {took:>10.1?}");
}

fn plain(resolver: &Resolver) -> Outcome<reqwest::Client> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let builder = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls);
    Ok(builder.dns_resolver(resolver.reqwest_dns()).build()?)
}

async fn register(agent: &Agent, name: &str, addresses: &[SocketAddr]) -> Outcome<()> {
    for address in addresses {
        let body = json!({ "Name": name, "ID": address.to_string(),
                           "Address": address.ip().to_string(), "Port": address.port() });
        let body = body.to_string();
        let mut stream = TcpStream::connect(agent.http()).await?;
        let head = format!(
            "PUT /v1/agent/service/register HTTP/1.1\r\nhost: consul\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.read_to_string(&mut String::new()).await?;
    }
    Ok(())
}

/// A server that answers with its own port.
async fn web() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = [0; 4_096];
                let port = address.port().to_string();
                let reply = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{port}",
                    port.len()
                );
                // One request fits one read here.
                while stream.read(&mut read).await.is_ok_and(|length| length > 0) {
                    if stream.write_all(reply.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

async fn health() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    Ok(address)
}
