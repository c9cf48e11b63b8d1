//! The backend of an assistant: it registers itself, finds the service that it needs, and
//! falls back to the address that it had before there was a Consul.
//!
//! ```console
//! $ SERVICE_NAME=assistant SERVICE_PORT=8000 cargo run --example assistant
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::time::Duration;

use proconsul::{Check, Error, Health, Resolver, ServiceDefinition};

#[tokio::main]
async fn main() -> Result<(), Error> {
    // CONSUL_HTTP_ADDR, or CONSUL_HOST and CONSUL_PORT, or this machine's agent.
    let resolver = Resolver::builder()
        .environment()
        .default_address("memory", "http://127.0.0.1:9000")
        .build()?;

    // SERVICE_NAME, SERVICE_PORT, SERVICE_ADDRESS, SERVICE_TAGS. An agent that is not there
    // yet is waited for in the background.
    let alive = Check::ttl(Duration::from_secs(15)).starts(Health::Passing);
    let registration = resolver.register(ServiceDefinition::from_env()?.check(alive))?;

    // From Consul while it answers, from the default address while it cannot.
    let memory = resolver.lookup("memory").await?;
    for endpoint in memory.endpoints() {
        println!("memory is at {endpoint} (says {})", memory.source());
    }

    // SIGTERM and SIGINT: gone from Consul first, then from here.
    registration.shutdown_on_signal().await?;
    println!("gone");
    Ok(())
}
