//! Finds every instance of a service and prints one `address:port` a line.
//!
//! ```console
//! $ PROCONSUL_CATALOG=examples/catalog.json cargo run --example lookup -- web
//! ```
//!
//! Sources are taken from the environment: `PROCONSUL_DNS`, `CONSUL_HTTP_ADDR` and
//! `PROCONSUL_CATALOG`, each with the default that the README tells.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

use proconsul::{Error, Resolver};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "web".to_owned());
    let resolver = Resolver::from_env()?;
    let answer = resolver.lookup(&name).await?;

    for endpoint in answer.endpoints() {
        println!("{endpoint}");
    }
    eprintln!(
        "{} endpoints of {} from {}, {}",
        answer.endpoints().len(),
        answer.name(),
        answer.source(),
        answer.freshness(),
    );
    for warning in answer.warnings() {
        eprintln!("not the whole set: {warning}");
    }
    Ok(())
}
