//! A platform in layers: each says when it is ready, which it is when those below are, and
//! what was found once is at hand without asking again.
//!
//! ```console
//! $ cargo run --example layers -- storage memory
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::{error::Error, time::Duration};

use proconsul::{AlertRule, Filter, Resolver, Service};
use tokio::time::timeout;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A layer that starts while Consul is down knows what it knew before.
    let snapshot = std::env::temp_dir().join(format!("layers-{}", std::process::id()));
    let resolver = Resolver::builder()
        .environment()
        .snapshot(&snapshot)
        .build()?;
    let names: Vec<_> = std::env::args().skip(1).collect();
    let below: Vec<Service> = (names.iter())
        .map(|name| resolver.service(name.as_str()))
        .collect::<Result<_, _>>()?;

    // /health/ready of this layer: 200 where this is true.
    for layer in &below {
        let is_ready = timeout(Duration::from_secs(2), layer.ready()).await.is_ok();
        // No question: the handles are told of every change.
        println!(
            "{}: ready {is_ready}, {} endpoints",
            layer.name(),
            layer.endpoints().len()
        );
    }

    // Who else is there, whatever its name.
    let registry = resolver.registry();
    for instance in registry.find(&Filter::new().of_type("layer")).await? {
        println!(
            "{} at {instance}, {}",
            instance.service,
            instance.health.as_str()
        );
    }

    // And a word when one goes down or comes back.
    let alerts = resolver.alerts(below.iter().map(AlertRule::service_down))?;
    println!("{} alerts", alerts.active().len());
    resolver.save_snapshot().await?;
    std::fs::remove_file(snapshot)?;
    Ok(())
}
