//! HTTP requests to a service by name, each to an instance of its own.
//!
//! ```console
//! $ cargo run --example http -- http://web/health
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::error::Error;

use proconsul::{HttpClient, Resolver};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("http://web/");
    let client = HttpClient::new(&Resolver::from_env()?)?;

    let answer = client.get(url).send().await?;
    println!("{}", answer.status());
    println!("{}", answer.text().await?);
    Ok(())
}
