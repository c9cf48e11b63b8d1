//! An orchestrator of gRPC agents: calls by name, agents that fail left alone, and limits
//! that are changed in Consul while it runs.
//!
//! ```console
//! $ proconsul kv put orchestrator/limits '{"failures": 3, "rest_s": 30, "calls": 5}'
//! $ cargo run --features grpc --example orchestrator
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::{error::Error, time::Duration};

use proconsul::{Breaker, Policy, Resolver, Retry, Strategy, grpc::Channel};
use serde::Deserialize;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[derive(Deserialize)]
struct Limits {
    failures: u32,
    rest_s: u64,
    calls: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let resolver = Resolver::from_env()?;
    // The last one that could be read stays, whatever somebody types.
    let setting = resolver.kv().watch::<Limits>("orchestrator/limits")?;
    let limits = setting
        .ready()
        .await
        .ok_or("no orchestrator/limits in Consul")?;

    let breaker = Breaker::default()
        .failures(limits.failures)
        .rest(Duration::from_secs(limits.rest_s));
    let policy = Policy::new(Strategy::RoundRobin).breaker(breaker);
    let agents = resolver.service_with("agents", policy)?;
    // 2 s, 4 s, 8 s, at most 10 s: only for work that may be done twice.
    let channel = Channel::builder()
        .retry(Retry::default())
        .build(agents.clone());

    // Any generated client.
    let mut client = HealthClient::new(channel);
    for _ in 0..setting.get().map_or(limits.calls, |now| now.calls) {
        let answer = client.check(HealthCheckRequest::default()).await?;
        println!("an agent says {:?}", answer.into_inner().status());
    }
    for standing in agents.standings() {
        println!("{standing}");
    }
    Ok(())
}
