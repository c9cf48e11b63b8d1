//! Several servers, one of which may die: `scripts/cluster cargo run --example cluster` starts
//! three. It prints who leads and what is found, and goes on while the leader is ended.
#![expect(clippy::print_stdout, reason = "an example shows what it found")]

use std::{error::Error, time::Duration};

use proconsul::{Resolver, ServiceDefinition};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // All addresses of CONSUL_HTTP_ADDR and PROCONSUL_DNS: one is asked after the other.
    let resolver = Resolver::from_env()?;
    let web = ServiceDefinition::new("web", 8080).address("10.0.0.7");
    let registration = resolver.register(web)?;
    registration.registered().await;
    let rounds = std::env::args()
        .nth(1)
        .map_or(Ok(5), |rounds| rounds.parse::<u32>())?;
    for _ in 0..rounds {
        let leader = match resolver.cluster().await {
            Ok(cluster) => cluster.leader.unwrap_or_else(|| "nobody".into()),
            Err(error) => error.to_string().into(),
        };
        match resolver.lookup("web").await {
            Ok(answer) => println!(
                "{leader} leads; {} endpoints from {}, {}",
                answer.endpoints().len(),
                answer.source(),
                answer.freshness()
            ),
            Err(error) => println!("{leader} leads; {error}"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    registration.shutdown().await?;
    Ok(())
}
