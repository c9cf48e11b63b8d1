//! A publishing system: HTTP calls by service name, balanced, repeated where that is safe.
//!
//! ```console
//! $ cargo run --example publishing -- http://articles/latest http://renderer/jobs
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::{error::Error, time::Duration};

use proconsul::{CallError, HttpClient, Policy, Resolver, Retry, Strategy};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut urls = std::env::args().skip(1);
    let read = urls
        .next()
        .unwrap_or_else(|| "http://articles/latest".to_owned());
    let write = urls
        .next()
        .unwrap_or_else(|| "http://renderer/jobs".to_owned());
    let http = HttpClient::builder()
        .policy(Policy::new(Strategy::LeastLoaded))
        .retry(Retry::http().attempts(3).budget(0.2))
        .timeout(Duration::from_secs(5))
        .build(&Resolver::from_env()?)?;

    // Again elsewhere after a lost connection, a time-out and 5xx.
    let article = http.get(&read).send().await?;
    println!("read: {}", article.status());

    // Only what was never sent is sent again: a job is not rendered twice.
    let job = http.post(&write).with(|request| request.body("{}"));
    match job.send().await {
        Ok(answer) => println!("written: {}", answer.status()),
        Err(CallError::NoEndpoint(error)) => println!("nobody renders: {error}"),
        Err(error) => println!("not written: {error}"),
    }
    Ok(())
}
