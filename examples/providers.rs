//! A chat back end with several AI providers: routed by metadata, to the next best where the
//! one that is wished fails.
//!
//! ```console
//! $ cargo run --example providers -- gpt-4
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::{error::Error, time::Duration};

use proconsul::{Breaker, Endpoint, Filter, Policy, Resolver, Retry, Strategy};
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "gpt-4".to_owned());
    // Providers are instances of one service; what they can do stands in their metadata.
    let policy = Policy::new(Strategy::Latency)
        .require(Filter::new().meta("capability", "chat").passing())
        .prefer(Filter::new().meta("model", &model))
        .breaker(Breaker::default().failures(2).rest(Duration::from_secs(30)));
    let providers = Resolver::from_env()?.service_with("ai-provider", policy)?;

    let retry = Retry::http().deadline(Duration::from_secs(10));
    for _ in 0..4 {
        let provider = providers.call(&retry, ask).await?;
        println!("answered by {provider}");
    }
    for standing in providers.standings() {
        println!("{standing}");
    }
    Ok(())
}

/// Whatever speaks to a provider; an error sends the question to the next one.
async fn ask(provider: Endpoint) -> std::io::Result<String> {
    TcpStream::connect(provider.socket_addr()).await?;
    let meta = provider.meta.unwrap_or_default();
    Ok(meta
        .get("provider")
        .map_or_else(String::new, |name| name.to_string()))
}
