//! Follows a service: prints what came and what went, so many changes long.
//!
//! ```console
//! $ PROCONSUL_CATALOG=examples/catalog.json cargo run --example watch -- web 1
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::error::Error;

use proconsul::Resolver;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "web".to_owned());
    let most: usize = arguments
        .next()
        .map_or(Ok(usize::MAX), |text| text.parse())?;

    let resolver = Resolver::from_env()?;
    // A handle keeps the name followed; its endpoints are at hand without waiting.
    let service = resolver.service(&name)?;
    // The first change is the full set. `Changes` is a Stream, too.
    let mut changes = service.changes();
    for _ in 0..most {
        let change = changes.next().await;
        for endpoint in &change.added {
            println!("+ {endpoint}");
        }
        for endpoint in &change.removed {
            println!("- {endpoint}");
        }
        println!("{} now", service.endpoints().len());
    }
    Ok(())
}
