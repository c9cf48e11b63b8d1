//! Picks one instance after the other, by a strategy: where ten requests would go.
//!
//! ```console
//! $ PROCONSUL_CATALOG=examples/catalog.json cargo run --example pick -- web round-robin
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::error::Error;

use proconsul::{Resolver, Strategy};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "web".to_owned());
    let strategy = match arguments.next() {
        Some(word) => word.parse()?,
        None => Strategy::default(),
    };

    let resolver = Resolver::from_env()?;
    let answer = resolver.lookup(&name).await?;
    // A picker keeps its place, so make one for a set, not one for each request.
    let mut picker = resolver.picker(&answer, strategy);
    for _ in 0..10 {
        let endpoint = picker.pick().ok_or("no instance has a port")?;
        println!("{endpoint}");
    }
    Ok(())
}
